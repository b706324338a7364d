SELECT * FROM system.nodes;
---
node_id | address | is_live | ranges | leases | locality | state
1 | 127.0.0.1:7432 | t | 1 | 1 |  | NULL
SELECT 1

CREATE TABLE t (id INT PRIMARY KEY, v TEXT);
---
CREATE TABLE

INSERT INTO t VALUES (1, 'a'), (7, 'b');
---
INSERT 0 2

SELECT * FROM system.ranges;
---
range_id | database_name | table_name | start_key | end_key | leaseholder | replicas | quarantined | bytes | requests_per_s | blocks
1 | defaultdb | t | /min | /max | 1 | {1} | {} | NULL | NULL | NULL
SELECT 1

ALTER TABLE t SPLIT AT VALUES (5);
---
ALTER TABLE

SELECT range_id, database_name, table_name, start_key, end_key FROM system.ranges ORDER BY 1;
---
range_id | database_name | table_name | start_key | end_key
1 | defaultdb | t | /min | /table/t/1/5
2 | defaultdb | t | /table/t/1/5 | /max
SELECT 2

CREATE TABLE u (id INT PRIMARY KEY);
---
CREATE TABLE

# A range with rows of two tables is of no table.
SELECT range_id, table_name FROM system.ranges ORDER BY 1;
---
range_id | table_name
1 | t
2 | NULL
SELECT 2

# Joins, aggregates, filters, sub-queries, common table expressions, the same table twice.
SELECT t.v, n.node_id FROM t JOIN system.nodes AS n ON n.node_id = t.id WHERE n.is_live;
---
v | node_id
a | 1
SELECT 1

SELECT leaseholder, count(*) FROM system.ranges GROUP BY leaseholder HAVING count(*) > 1;
---
leaseholder | count
1 | 2
SELECT 1

SELECT (SELECT address FROM system.nodes WHERE node_id = t.id) AS address, v FROM t ORDER BY id;
---
address | v
127.0.0.1:7432 | a
NULL | b
SELECT 2

WITH r AS (SELECT * FROM system.ranges) SELECT count(*), max(a.range_id) FROM r a, system.ranges b WHERE a.range_id = b.range_id;
---
count | max
2 | 2
SELECT 1

SELECT system.nodes.node_id, nodes.address FROM system.nodes LEFT JOIN t ON t.id = nodes.node_id + 1;
---
node_id | address
1 | 127.0.0.1:7432
SELECT 1

SELECT defaultdb.system.nodes.ranges FROM defaultdb.system.nodes;
---
ranges
2
SELECT 1

SELECT count(*) FROM system.nodes;
---
count
1
SELECT 1

SELECT value FROM system.settings WHERE name = 'timezone';
---
value
UTC
SELECT 1

SELECT name FROM system.settings WHERE description IS NULL;
---
name
SELECT 0

SELECT * FROM system.locks UNION ALL SELECT * FROM system.locks;
---
range_id | database_name | table_name | key | holder | holder_node | held_since | waiters
SELECT 0

SELECT * FROM system.transactions;
---
node_id | session_id | attempt | started_at | state | statement | read_timestamp | writes | bytes
SELECT 0

# They can feed a statement that writes.
INSERT INTO t SELECT node_id + 10, address FROM system.nodes RETURNING *;
---
id | v
11 | 127.0.0.1:7432
INSERT 0 1

UPDATE t SET v = n.address FROM system.nodes n WHERE n.node_id = t.id RETURNING t.v;
---
v
127.0.0.1:7432
UPDATE 1

CREATE TABLE copied AS SELECT name, value FROM system.settings WHERE name = 'timezone';
---
SELECT 1

SELECT * FROM copied;
---
name | value
timezone | UTC
SELECT 1

# EXPLAIN shows them.
EXPLAIN SELECT address FROM system.nodes WHERE is_live;
---
QUERY PLAN
gateway
  SELECT CAST(c2 AS VARCHAR) AS c8 FROM t1 WHERE c3
t1: Virtual table system.nodes
  columns: c2 = address, c3 = is_live
EXPLAIN

EXPLAIN SELECT count(*) FROM system.nodes JOIN t ON t.id = node_id;
---
QUERY PLAN
gateway
  SELECT CAST(count(*) AS BIGINT) AS c10 FROM t1 JOIN t2 ON (c8 = c1)
t2: leaf over t on node 1 (1 range)
  keys: all
  SELECT c8 FROM input
  columns: c8 = id
t1: Virtual table system.nodes
  columns: c1 = node_id
EXPLAIN

# Nothing writes them, or makes anything in their schema.
INSERT INTO system.nodes VALUES (1);
---
42809 "system.nodes" is a virtual table: it can only be read

UPDATE system.settings SET value = 'x';
---
42809 "system.settings" is a virtual table: it can only be read

DELETE FROM system.locks;
---
42809 "system.locks" is a virtual table: it can only be read

TRUNCATE system.locks;
---
42809 "system.locks" is a virtual table: it can only be read

DROP TABLE system.transactions;
---
42809 "system.transactions" is a virtual table: it can only be read

ALTER TABLE system.nodes SPLIT AT VALUES (1);
---
42809 "system.nodes" is a virtual table: it can only be read

CREATE TABLE system.mine (id INT);
---
42501 schema "system" has virtual tables only: nothing can be made or changed in it
hint: Use schema "public".

CREATE TABLE system.nodes (id INT);
---
42809 "system.nodes" is a virtual table: it can only be read

CREATE SEQUENCE system.s;
---
42501 schema "system" has virtual tables only: nothing can be made or changed in it
hint: Use schema "public".

SHOW RANGES FROM TABLE system.nodes;
---
42809 "system.nodes" is a virtual table: it can only be read

SHOW CREATE TABLE system.nodes;
---
42809 "system.nodes" is a virtual table: it can only be read

# Names.
SHOW COLUMNS FROM system.nodes;
---
column_name | data_type | is_nullable | column_default | is_primary_key
node_id | bigint | t | NULL | f
address | text | t | NULL | f
is_live | boolean | t | NULL | f
ranges | bigint | t | NULL | f
leases | bigint | t | NULL | f
locality | text | t | NULL | f
state | text | t | NULL | f
SHOW

SHOW COLUMNS FROM system.node;
---
42P01 relation "system.node" does not exist
hint: did you mean "system.nodes"?

SELECT * FROM system.rages;
---
42P01 relation "system.rages" does not exist
hint: did you mean "system.ranges"?

SELECT * FROM system.nothing;
---
42P01 relation "system.nothing" does not exist
hint: The tables there are events, jobs, leases, locks, nodes, range_settings, ranges, settings, stores, transactions.

SELECT * FROM nodes;
---
42P01 relation "nodes" does not exist

SELECT nope FROM system.nodes;
---
42703 column "nope" does not exist

SHOW SCHEMAS;
---
schema_name
public
system
SHOW

SHOW TABLES;
---
schema_name | table_name
public | copied
public | t
public | u
SHOW

# They show the present, also within a transaction.
BEGIN READ ONLY;
---
BEGIN

SELECT node_id FROM system.nodes;
---
node_id
1
SELECT 1

COMMIT;
---
COMMIT

SELECT * FROM system.nodes AS OF SYSTEM TIME '-1s';
---
0A000 virtual tables have no past: AS OF SYSTEM TIME is not supported for them
