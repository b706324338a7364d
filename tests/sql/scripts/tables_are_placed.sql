CREATE TABLE t (id INT PRIMARY KEY);
---
CREATE TABLE

ALTER TABLE t CONFIGURE PLACEMENT (constraints = '+region=eu, -machine=m3', lease_preference = 'zone=a');
---
ALTER TABLE

ALTER CLUSTER CONFIGURE PLACEMENT (replicas = 5);
---
warning: 01000 there is one node
ALTER CLUSTER

SELECT table_name, replicas, constraints, lease_preference FROM system.range_settings;
---
table_name | replicas | constraints | lease_preference
NULL | 5 |  | 
t | 5 | region=eu,-machine=m3 | zone=a
SELECT 2

# One setting goes back to what the cluster says, an empty text says: none.
ALTER TABLE t CONFIGURE PLACEMENT (constraints = '', lease_preference = DEFAULT);
---
ALTER TABLE

SELECT table_name, replicas, constraints, lease_preference FROM system.range_settings;
---
table_name | replicas | constraints | lease_preference
NULL | 5 |  | 
t | 5 |  | 
SELECT 2

ALTER TABLE t CONFIGURE PLACEMENT DEFAULT;
---
ALTER TABLE

ALTER CLUSTER CONFIGURE PLACEMENT DEFAULT;
---
ALTER CLUSTER

ALTER TABLE t CONFIGURE RANGES DEFAULT;
---
ALTER TABLE

SELECT * FROM system.range_settings;
---
database_name | table_name | max_bytes | load_requests | load_bytes | replicas | constraints | lease_preference
NULL | NULL | 67108864 | 1000 | 16777216 | 3 |  | 
SELECT 1

ALTER TABLE t CONFIGURE PLACEMENT (replicas = 4);
---
22023 replicas must be 1, 3, 5, 7 or 9, not 4
hint: 4 replicas survive the loss of no more nodes than 3 do.

ALTER TABLE t CONFIGURE PLACEMENT (replicas = 0);
---
22023 replicas must be 1, 3, 5, 7 or 9, not 0

ALTER TABLE t CONFIGURE PLACEMENT (replicas = 11);
---
22023 replicas must be 1, 3, 5, 7 or 9, not 11

ALTER TABLE t CONFIGURE PLACEMENT (replicas = 'many');
---
42601 replicas takes a whole number, or DEFAULT

ALTER TABLE t CONFIGURE PLACEMENT (replicas = '5 MiB');
---
42601 replicas takes a whole number, or DEFAULT

ALTER TABLE t CONFIGURE PLACEMENT (replicas = -1);
---
42601 replicas takes a whole number, or DEFAULT

ALTER TABLE t CONFIGURE PLACEMENT (replica = 5);
---
22023 a placement has no setting "replica"
hint: Did you mean "replicas"?

ALTER TABLE t CONFIGURE PLACEMENT (max_bytes = 5);
---
22023 a placement has no setting "max_bytes"
hint: There are replicas, constraints, lease_preference.

ALTER TABLE t CONFIGURE PLACEMENT (constraints = region);
---
42601 constraints takes a text like 'region=eu,-machine=m3', or DEFAULT

ALTER TABLE t CONFIGURE PLACEMENT (constraints = 'region');
---
22023 constraints takes key=value or -key=value, with commas between, not 'region'
hint: Write 'region=eu,-machine=m3' for: in region eu, and not on machine m3.

ALTER TABLE t CONFIGURE PLACEMENT (constraints = '{"+region=eu": 1}');
---
22023 constraints holds for all replicas alike: '{"+region=eu": 1}' is not supported
hint: Write 'region=eu,-machine=m3' for: in region eu, and not on machine m3.

ALTER TABLE t CONFIGURE PLACEMENT (constraints = 'region=eu,region=us');
---
22023 constraints can never hold: a node has one region, not both eu and us

ALTER TABLE t CONFIGURE PLACEMENT (replicas = 3, replicas = 5);
---
42601 replicas is set twice

ALTER TABLE t CONFIGURE PLACEMENT ();
---
42601 syntax error at or near ")"

ALTER TABLE t CONFIGURE PLACEMENT;
---
42601 syntax error at end of input

ALTER TABLE t CONFIGURE PLACEMENT DEFAULT (replicas = 3);
---
42601 syntax error at or near "("

ALTER TABLE nothing CONFIGURE PLACEMENT (replicas = 5);
---
42P01 relation "nothing" does not exist

ALTER DATABASE defaultdb CONFIGURE PLACEMENT (replicas = 5);
---
42601 syntax error at or near "DATABASE"

BEGIN;
---
BEGIN

ALTER TABLE t CONFIGURE PLACEMENT (replicas = 5);
---
25001 ALTER TABLE … CONFIGURE PLACEMENT cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK;
---
ROLLBACK

BEGIN;
---
BEGIN

ALTER CLUSTER CONFIGURE PLACEMENT (replicas = 5);
---
25001 ALTER CLUSTER CONFIGURE PLACEMENT cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK;
---
ROLLBACK
