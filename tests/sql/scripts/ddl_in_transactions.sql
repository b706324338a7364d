# Changes of the catalogue are part of the transaction.

BEGIN; CREATE TABLE t (id INT PRIMARY KEY, n INT); INSERT INTO t VALUES (1, 10), (2, 20); SELECT sum(n) FROM t; ROLLBACK;
---
BEGIN
CREATE TABLE
INSERT 0 2
sum
30
SELECT 1
ROLLBACK

SELECT * FROM t;
---
42P01 relation "t" does not exist

BEGIN; CREATE TABLE t (id INT PRIMARY KEY, n INT); INSERT INTO t VALUES (1, 10); CREATE TABLE u AS SELECT id + 1 AS id FROM t;
---
BEGIN
CREATE TABLE
INSERT 0 1
SELECT 1

SELECT * FROM u;
---
id
2
SELECT 1

SHOW TABLES;
---
schema_name | table_name
public | t
public | u
SHOW

COMMIT;
---
COMMIT

SELECT * FROM t, u;
---
id | n | id
1 | 10 | 2
SELECT 1

# Back to savepoints.

BEGIN; SAVEPOINT a; DROP TABLE u; SAVEPOINT b; CREATE TABLE u (name TEXT); INSERT INTO u VALUES ('x');
---
BEGIN
SAVEPOINT
DROP TABLE
SAVEPOINT
CREATE TABLE
INSERT 0 1

SELECT * FROM u;
---
name
x
SELECT 1

ROLLBACK TO b; SELECT * FROM u;
---
42P01 relation "u" does not exist

ROLLBACK TO a; SELECT * FROM u;
---
ROLLBACK
id
2
SELECT 1

DROP TABLE u; CREATE TABLE u (name TEXT); INSERT INTO u VALUES ('y'); COMMIT;
---
DROP TABLE
CREATE TABLE
INSERT 0 1
COMMIT

SELECT * FROM u;
---
name
y
SELECT 1

# A statement that fails leaves nothing, and fails the transaction.

BEGIN; DROP TABLE u; CREATE TABLE t (id INT);
---
42P07 relation "t" already exists

SELECT 1;
---
25P02 current transaction is aborted, commands ignored until end of transaction block
hint: Send ROLLBACK.

ROLLBACK; SELECT * FROM u;
---
ROLLBACK
name
y
SELECT 1

# What was made and dropped again is gone.

BEGIN; CREATE TABLE gone (id INT); INSERT INTO gone VALUES (1); DROP TABLE gone; INSERT INTO t VALUES (2, 20); COMMIT;
---
BEGIN
CREATE TABLE
INSERT 0 1
DROP TABLE
INSERT 0 1
COMMIT

SELECT * FROM gone;
---
42P01 relation "gone" does not exist

SELECT * FROM t ORDER BY id;
---
id | n
1 | 10
2 | 20
SELECT 2

# TRUNCATE.

BEGIN; INSERT INTO t VALUES (3, 30); TRUNCATE t; SELECT count(*) FROM t; INSERT INTO t VALUES (4, 40); ROLLBACK; SELECT * FROM t ORDER BY id;
---
BEGIN
INSERT 0 1
TRUNCATE TABLE
count
0
SELECT 1
INSERT 0 1
ROLLBACK
id | n
1 | 10
2 | 20
SELECT 2

BEGIN; INSERT INTO t VALUES (3, 30); TRUNCATE t; INSERT INTO t VALUES (4, 40); TRUNCATE t; INSERT INTO t VALUES (5, 50); COMMIT; SELECT * FROM t;
---
BEGIN
INSERT 0 1
TRUNCATE TABLE
INSERT 0 1
TRUNCATE TABLE
INSERT 0 1
COMMIT
id | n
5 | 50
SELECT 1

# Sequences that the transaction makes begin at their start, and go on from there.

BEGIN; CREATE TABLE s (id SERIAL PRIMARY KEY, name TEXT); INSERT INTO s (name) VALUES ('a'), ('b') RETURNING id; COMMIT;
---
BEGIN
CREATE TABLE
id
1
2
INSERT 0 2
COMMIT

INSERT INTO s (name) VALUES ('c') RETURNING id;
---
id
3
INSERT 0 1

BEGIN; TRUNCATE s RESTART IDENTITY; INSERT INTO s (name) VALUES ('d') RETURNING id; ROLLBACK;
---
BEGIN
TRUNCATE TABLE
id
1
INSERT 0 1
ROLLBACK

SELECT * FROM s ORDER BY id;
---
id | name
1 | a
2 | b
3 | c
SELECT 3

BEGIN; TRUNCATE s RESTART IDENTITY; INSERT INTO s (name) VALUES ('d'), ('e') RETURNING id; COMMIT;
---
BEGIN
TRUNCATE TABLE
id
1
2
INSERT 0 2
COMMIT

INSERT INTO s (name) VALUES ('f') RETURNING id;
---
id
3
INSERT 0 1

BEGIN; CREATE SEQUENCE q START 7; SELECT nextval('q'), nextval('q'); SELECT setval('q', 100); SELECT nextval('q'); ROLLBACK;
---
BEGIN
CREATE SEQUENCE
nextval | nextval
7 | 8
SELECT 1
setval
100
SELECT 1
nextval
101
SELECT 1
ROLLBACK

SELECT nextval('q');
---
42P01 relation "q" does not exist

BEGIN; CREATE SEQUENCE q START 7; SELECT nextval('q'); COMMIT; SELECT nextval('q');
---
BEGIN
CREATE SEQUENCE
nextval
7
SELECT 1
COMMIT
nextval
8
SELECT 1

BEGIN; CREATE TABLE p (id INT DEFAULT nextval('q')); DROP SEQUENCE q;
---
2BP01 cannot drop sequence q because other objects depend on it
detail: default value for column id of table p depends on sequence q
hint: Drop the table first.

ROLLBACK; BEGIN; DROP SEQUENCE q; CREATE TABLE q (id INT); COMMIT; SELECT * FROM q;
---
ROLLBACK
BEGIN
DROP SEQUENCE
CREATE TABLE
COMMIT
id
SELECT 0

# What is there, and what is not.

BEGIN; CREATE TABLE IF NOT EXISTS t (id INT); DROP TABLE IF EXISTS nothing; CREATE TABLE w (id INT); CREATE TABLE IF NOT EXISTS w (id INT); COMMIT;
---
BEGIN
notice: 42P07 relation "t" already exists, skipping
CREATE TABLE
notice: 00000 table "nothing" does not exist, skipping
DROP TABLE
CREATE TABLE
notice: 42P07 relation "w" already exists, skipping
CREATE TABLE
COMMIT

DROP TABLE w;
---
DROP TABLE

# What cannot be part of a transaction.

BEGIN; CREATE DATABASE d;
---
25001 CREATE DATABASE cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK; BEGIN; DROP DATABASE defaultdb;
---
25001 DROP DATABASE cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK; BEGIN; ALTER TABLE t SPLIT AT VALUES (3);
---
25001 ALTER TABLE … SPLIT AT cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK; BEGIN READ ONLY; CREATE TABLE w (id INT);
---
25006 cannot execute CREATE TABLE in a read-only transaction

ROLLBACK; BEGIN READ ONLY; DROP TABLE t;
---
25006 cannot execute DROP TABLE in a read-only transaction

ROLLBACK;
---
ROLLBACK

# A statement that makes a table and writes its rows does both, or nothing.

CREATE TABLE copied AS SELECT 1 / (count(*) - count(id)) AS x FROM t;
---
22012 division by zero

SELECT * FROM copied;
---
42P01 relation "copied" does not exist

CREATE TABLE copied AS SELECT id FROM t;
---
SELECT 1

SELECT * FROM copied;
---
id
5
SELECT 1

# Notices have a class.

BEGIN; BEGIN; COMMIT; COMMIT; ROLLBACK; SET TRANSACTION READ ONLY;
---
BEGIN
warning: 25001 there is already a transaction in progress
BEGIN
COMMIT
warning: 25P01 there is no transaction in progress
COMMIT
warning: 25P01 there is no transaction in progress
ROLLBACK
warning: 25P01 SET TRANSACTION can only be used in transaction blocks
SET
