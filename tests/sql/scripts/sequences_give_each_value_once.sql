CREATE SEQUENCE s START 5 INCREMENT 2 MAXVALUE 9;
---
CREATE SEQUENCE

SELECT currval('s');
---
55000 currval of sequence "s" is not yet defined in this session

SELECT lastval();
---
55000 lastval is not yet defined in this session

SELECT nextval('s'), nextval('s') AS second, currval('s');
---
nextval | second | currval
5 | 7 | 7
SELECT 1

SELECT nextval('s');
---
nextval
9
SELECT 1

SELECT nextval('s');
---
2200H nextval: reached maximum value of sequence "s" (9)

SELECT setval('s', 5), lastval();
---
setval | lastval
5 | 5
SELECT 1

SELECT nextval('s');
---
nextval
7
SELECT 1

SELECT setval('s', 5, false);
---
setval
5
SELECT 1

SELECT nextval('s');
---
nextval
5
SELECT 1

SELECT setval('s', 11);
---
22003 setval: value 11 is out of bounds for sequence "s" (1..9)

CREATE TABLE t (id INT DEFAULT nextval('s'), n INT);
---
CREATE TABLE

INSERT INTO t (n) VALUES (1) RETURNING *;
---
id | n
7 | 1
INSERT 0 1

INSERT INTO t VALUES (nextval('s'), 2) RETURNING *;
---
id | n
9 | 2
INSERT 0 1

SELECT nextval('s') FROM t;
---
0A000 nextval() is only supported in VALUES, in DEFAULT, and in a SELECT without FROM

DROP SEQUENCE s;
---
2BP01 cannot drop sequence s because other objects depend on it
detail: default value for column id of table t depends on sequence s
hint: Drop the table first.

DROP TABLE t;
---
DROP TABLE

DROP SEQUENCE s;
---
DROP SEQUENCE

CREATE SEQUENCE s INCREMENT 0;
---
22023 INCREMENT must not be zero

CREATE SEQUENCE down INCREMENT -1;
---
CREATE SEQUENCE

SELECT nextval('down'), nextval('down');
---
nextval | nextval
-1 | -2
SELECT 1

SELECT nextval('nope');
---
42P01 relation "nope" does not exist
