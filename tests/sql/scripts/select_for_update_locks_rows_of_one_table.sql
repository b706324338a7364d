# FOR UPDATE gives what the query gives; what PostgreSQL refuses to lock is refused, and joins too.

CREATE TABLE t (id INT PRIMARY KEY, n INT, state TEXT); CREATE TABLE nokey (a INT);
---
CREATE TABLE
CREATE TABLE

INSERT INTO t VALUES (1, 10, 'ready'), (2, 20, 'done'), (3, 30, 'ready'), (4, NULL, 'ready');
---
INSERT 0 4

INSERT INTO nokey VALUES (1), (1), (2);
---
INSERT 0 3

SELECT * FROM t WHERE id = 2 FOR UPDATE;
---
id | n | state
2 | 20 | done
SELECT 1

SELECT n + 1 AS more FROM t WHERE id IN (1, 3) AND state = 'ready' FOR NO KEY UPDATE NOWAIT;
---
more
11
31
SELECT 2

SELECT n, id AS who FROM t WHERE state = 'ready' ORDER BY who DESC FOR UPDATE;
---
n | who
NULL | 4
30 | 3
10 | 1
SELECT 3

SELECT t.*, upper(state) FROM t ORDER BY 2 NULLS FIRST LIMIT 2 OFFSET 1 FOR SHARE;
---
id | n | state | upper
1 | 10 | ready | READY
2 | 20 | done | DONE
SELECT 2

SELECT x.id FROM t AS x WHERE n > (SELECT avg(n) FROM t) ORDER BY n FOR UPDATE OF x;
---
id
3
SELECT 1

SELECT id FROM t WHERE state = 'ready' ORDER BY id DESC LIMIT 2 FOR UPDATE SKIP LOCKED;
---
id
4
3
SELECT 2

SELECT state, id * 2 FROM t ORDER BY n OFFSET 3 FOR KEY SHARE SKIP LOCKED;
---
state | ?column?
ready | 8
SELECT 1

SELECT * FROM nokey WHERE a = 1 FOR UPDATE;
---
a
1
1
SELECT 2

SELECT a FROM nokey ORDER BY a LIMIT 1 FOR UPDATE SKIP LOCKED;
---
a
1
SELECT 1

SELECT * FROM t WHERE id = 99 FOR UPDATE;
---
id | n | state
SELECT 0

SELECT * FROM t WHERE false FOR UPDATE SKIP LOCKED;
---
id | n | state
SELECT 0

# In a transaction, over its own writes.

BEGIN;
---
BEGIN

UPDATE t SET state = 'done' WHERE id = 1;
---
UPDATE 1

SELECT id FROM t WHERE state = 'ready' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED;
---
id
3
SELECT 1

INSERT INTO t VALUES (0, 0, 'ready');
---
INSERT 0 1

SELECT id FROM t WHERE state = 'ready' ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED;
---
id
0
3
SELECT 2

COMMIT;
---
COMMIT

# Refused.

SELECT count(*) FROM t FOR UPDATE;
---
0A000 FOR UPDATE is not allowed with aggregate functions

SELECT DISTINCT state FROM t FOR UPDATE;
---
0A000 FOR UPDATE is not allowed with DISTINCT clause

SELECT state FROM t GROUP BY state FOR UPDATE;
---
0A000 FOR UPDATE is not allowed with GROUP BY clause

SELECT row_number() OVER (ORDER BY id) FROM t FOR UPDATE;
---
0A000 FOR UPDATE is not allowed with window functions

SELECT * FROM t JOIN nokey ON id = a FOR UPDATE;
---
0A000 FOR UPDATE of joined tables without a primary key is not supported

SELECT * FROM t, nokey FOR UPDATE;
---
0A000 FOR UPDATE of joined tables without a primary key is not supported

SELECT 1 FOR UPDATE;
---
?column?
1
SELECT 1

SELECT * FROM (SELECT * FROM t) AS x FOR UPDATE;
---
0A000 FOR UPDATE is only supported for the rows of one table

SELECT * FROM t WHERE id IN (SELECT a FROM nokey FOR UPDATE);
---
0A000 FOR UPDATE or FOR SHARE is not supported here

SELECT id FROM t UNION SELECT a FROM nokey FOR UPDATE;
---
0A000 FOR UPDATE or FOR SHARE is not supported here

SELECT * FROM t FOR UPDATE OF other;
---
42P01 relation "other" in FOR UPDATE clause not found in FROM clause

SELECT * FROM missing FOR UPDATE;
---
42P01 relation "missing" does not exist

SELECT id FROM t WHERE n > (SELECT avg(n) FROM t) FOR UPDATE SKIP LOCKED;
---
0A000 SKIP LOCKED with sub-queries is not supported

SELECT * FROM t LIMIT -1 FOR UPDATE SKIP LOCKED;
---
2201W LIMIT must not be negative

SELECT * FROM system.nodes FOR UPDATE;
---
42809 "system.nodes" is a virtual table: it can only be read

EXPLAIN SELECT * FROM t WHERE id = 1 FOR UPDATE;
---
QUERY PLAN
Locking Point Get on t
EXPLAIN

EXPLAIN SELECT * FROM t WHERE n = 1 FOR UPDATE;
---
QUERY PLAN
Lock Rows of t
  -> Keys and values by a query
EXPLAIN

BEGIN READ ONLY; SELECT * FROM t FOR UPDATE;
---
25006 cannot execute SELECT FOR UPDATE in a read-only transaction

ROLLBACK;
---
ROLLBACK
