# FOR UPDATE locks rows of tables that are joined.

CREATE TABLE a (id INT PRIMARY KEY, n INT); CREATE TABLE b (x INT, y INT, a INT, PRIMARY KEY (x, y)); CREATE TABLE c (n INT);
---
CREATE TABLE
CREATE TABLE
CREATE TABLE

INSERT INTO a VALUES (1, 10), (2, 20), (3, 30); INSERT INTO b VALUES (1, 1, 1), (1, 2, 1), (2, 1, 3); INSERT INTO c VALUES (10);
---
INSERT 0 3
INSERT 0 3
INSERT 0 1

BEGIN; SELECT * FROM a JOIN b ON b.a = a.id ORDER BY y, x FOR UPDATE; COMMIT;
---
BEGIN
id | n | x | y | a
1 | 10 | 1 | 1 | 1
3 | 30 | 2 | 1 | 3
1 | 10 | 1 | 2 | 1
SELECT 3
COMMIT

SELECT a.n, other.y FROM a, b AS other WHERE other.a = a.id ORDER BY 1 DESC LIMIT 1 FOR UPDATE OF a, other NOWAIT;
---
n | y
30 | 1
SELECT 1

SELECT n FROM a JOIN c USING (n) FOR SHARE OF a;
---
n
10
SELECT 1

SELECT * FROM a JOIN a AS again ON a.id = again.id + 1 WHERE a.n > 20 FOR NO KEY UPDATE OF again FOR SHARE OF a;
---
id | n | id | n
3 | 30 | 2 | 20
SELECT 1

SELECT 1 FOR UPDATE;
---
?column?
1
SELECT 1

# What cannot be locked is refused.

SELECT * FROM a JOIN b ON b.a = a.id FOR UPDATE OF elsewhere;
---
42P01 relation "elsewhere" in FOR UPDATE clause not found in FROM clause

SELECT 1 FOR UPDATE OF a;
---
42P01 relation "a" in FOR UPDATE clause not found in FROM clause

SELECT * FROM a LEFT JOIN b ON b.a = a.id FOR UPDATE;
---
0A000 FOR UPDATE cannot be applied to the nullable side of an outer join

SELECT * FROM a JOIN c USING (n) FOR UPDATE;
---
0A000 FOR UPDATE of joined tables without a primary key is not supported

SELECT * FROM a JOIN b ON b.a = a.id FOR UPDATE SKIP LOCKED;
---
0A000 SKIP LOCKED is only supported for the rows of one table

SELECT count(*) FROM a JOIN b ON b.a = a.id FOR UPDATE;
---
0A000 FOR UPDATE is not allowed with aggregate functions

SELECT * FROM a, (SELECT 1) AS s FOR UPDATE;
---
0A000 FOR UPDATE is only supported for the rows of tables

SELECT * FROM a JOIN system.nodes ON true FOR UPDATE;
---
42809 "system.nodes" is a virtual table: it can only be read

EXPLAIN SELECT * FROM a JOIN b ON b.a = a.id FOR UPDATE OF b;
---
QUERY PLAN
Lock Rows of b
  -> Keys and values by a query
EXPLAIN
