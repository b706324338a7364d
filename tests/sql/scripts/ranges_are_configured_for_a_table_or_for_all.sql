CREATE TABLE t (id INT PRIMARY KEY);
---
CREATE TABLE

ALTER TABLE t CONFIGURE RANGES (max_bytes = '16 MiB', load_requests = 250);
---
ALTER TABLE

ALTER CLUSTER CONFIGURE RANGES (load_bytes = '1 GB', load_requests = 0);
---
ALTER CLUSTER

SELECT * FROM system.range_settings;
---
database_name | table_name | max_bytes | load_requests | load_bytes | replicas | constraints | lease_preference
NULL | NULL | 67108864 | 0 | 1000000000 | 3 |  | 
defaultdb | t | 16777216 | 250 | 1000000000 | 3 |  | 
SELECT 2

ALTER TABLE t CONFIGURE RANGES (max_bytes = 1000);
---
22023 max_bytes must be 0, for never, or from 65536 to 1099511627776, not 1000

ALTER TABLE t CONFIGURE RANGES (max_byte = 1000000);
---
22023 ranges have no setting "max_byte"
hint: Did you mean "max_bytes"?

ALTER TABLE t CONFIGURE RANGES (max_bytes = 'much');
---
42601 max_bytes takes a whole number, a text like '64 MiB', or DEFAULT

ALTER TABLE t CONFIGURE RANGES (max_bytes = 1.5);
---
42601 max_bytes takes a whole number, a text like '64 MiB', or DEFAULT

ALTER TABLE t CONFIGURE RANGES (max_bytes = DEFAULT, max_bytes = 0);
---
42601 max_bytes is set twice

ALTER TABLE t CONFIGURE RANGES ();
---
42601 syntax error at or near ")"

ALTER TABLE nothing CONFIGURE RANGES (max_bytes = 0);
---
42P01 relation "nothing" does not exist

# A column may be called like a word of the statement.
ALTER TABLE t ADD COLUMN configure INT;
---
0A000 ALTER TABLE is only supported with SPLIT AT, SCATTER and CONFIGURE

BEGIN;
---
BEGIN

ALTER TABLE t CONFIGURE RANGES (max_bytes = DEFAULT);
---
25001 ALTER TABLE … CONFIGURE RANGES cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK;
---
ROLLBACK

SHOW RANGES FROM TABLE t;
---
range_id | start_key | end_key | leaseholder | replicas | quarantined | bytes | requests_per_s | blocks
1 | /min | /max | 1 | {1} | {} | NULL | NULL | NULL
SHOW
