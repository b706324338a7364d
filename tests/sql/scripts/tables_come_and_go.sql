CREATE TABLE t (id INT PRIMARY KEY, name VARCHAR(10) NOT NULL DEFAULT 'nobody', amount DECIMAL(10,2), CONSTRAINT positive CHECK (amount > 0));
---
CREATE TABLE

CREATE TABLE t (id INT);
---
42P07 relation "t" already exists

CREATE TABLE IF NOT EXISTS t (id INT);
---
notice: 42P07 relation "t" already exists, skipping
CREATE TABLE

SHOW CREATE TABLE t;
---
table_name | create_statement
t | CREATE TABLE t (
    id integer NOT NULL,
    name character varying(10) NOT NULL DEFAULT 'nobody',
    amount numeric(10,2),
    CONSTRAINT t_pkey PRIMARY KEY (id),
    CONSTRAINT positive CHECK (amount > 0)
)
SHOW

SHOW COLUMNS FROM t;
---
column_name | data_type | is_nullable | column_default | is_primary_key
id | integer | f | NULL | t
name | character varying(10) | f | 'nobody' | f
amount | numeric(10,2) | t | NULL | f
SHOW

CREATE TABLE e (n SERIAL, m INT GENERATED ALWAYS AS IDENTITY (START WITH 10 INCREMENT BY 5), o TEXT);
---
CREATE TABLE

INSERT INTO e (o) VALUES ('a'), ('b') RETURNING *;
---
n | m | o
1 | 10 | a
2 | 15 | b
INSERT 0 2

INSERT INTO e (m) VALUES (1);
---
428C9 cannot insert a non-DEFAULT value into column "m"
detail: Column "m" is an identity column defined as GENERATED ALWAYS.

INSERT INTO e (n, m) VALUES (DEFAULT, DEFAULT) RETURNING *;
---
n | m | o
3 | 20 | NULL
INSERT 0 1

SHOW TABLES;
---
schema_name | table_name
public | e
public | t
SHOW

TRUNCATE e;
---
TRUNCATE TABLE

SELECT * FROM e;
---
n | m | o
SELECT 0

INSERT INTO e DEFAULT VALUES RETURNING *;
---
n | m | o
4 | 25 | NULL
INSERT 0 1

TRUNCATE TABLE e RESTART IDENTITY;
---
TRUNCATE TABLE

INSERT INTO e DEFAULT VALUES RETURNING *;
---
n | m | o
1 | 10 | NULL
INSERT 0 1

CREATE TABLE copy AS SELECT n * 2 AS double, 'x' AS word FROM e;
---
SELECT 1

SHOW COLUMNS FROM copy;
---
column_name | data_type | is_nullable | column_default | is_primary_key
double | integer | t | NULL | f
word | text | t | NULL | f
SHOW

SELECT * FROM copy;
---
double | word
2 | x
SELECT 1

DROP TABLE copy, e;
---
DROP TABLE

DROP TABLE e;
---
42P01 table "e" does not exist

DROP TABLE IF EXISTS e;
---
notice: 00000 table "e" does not exist, skipping
DROP TABLE

SELECT * FROM e;
---
42P01 relation "e" does not exist

# What is not there is refused.

CREATE TABLE u (a INT UNIQUE);
---
0A000 UNIQUE constraints are not supported
hint: The primary key is the one unique constraint of a table.

CREATE TABLE u (a INT REFERENCES t (id));
---
0A000 foreign keys are not supported

CREATE TEMP TABLE u (a INT);
---
0A000 options of CREATE TABLE (TEMP, WITH, PARTITION BY, …) are not supported

CREATE TABLE u (a INT) WITH (fillfactor = 10);
---
0A000 options of CREATE TABLE (TEMP, WITH, PARTITION BY, …) are not supported

CREATE INDEX i ON t (name);
---
0A000 CREATE INDEX is not supported

ALTER TABLE t ADD COLUMN b INT;
---
0A000 ALTER TABLE is only supported with SPLIT AT, SCATTER and CONFIGURE

CREATE TABLE u (a nope);
---
42704 type "nope" does not exist

CREATE TABLE u (a INT, a INT);
---
42701 column "a" specified more than once

CREATE TABLE u (a INT PRIMARY KEY, b INT, PRIMARY KEY (b));
---
42P16 multiple primary keys for table "u" are not allowed

CREATE TABLE u (a INT, PRIMARY KEY (b));
---
42703 column "b" named in key does not exist

CREATE TABLE u (a INT DEFAULT 'x');
---
22P02 invalid input syntax for type integer: "x"

CREATE TABLE u (a INT CHECK (b > 0));
---
42703 column "b" does not exist

CREATE TABLE u (a TEXT GENERATED ALWAYS AS IDENTITY);
---
22023 identity column type must be smallint, integer, or bigint

# Databases.

CREATE DATABASE d;
---
CREATE DATABASE

CREATE DATABASE d;
---
42P04 database "d" already exists

SHOW DATABASES;
---
database_name
d
defaultdb
SHOW

DROP DATABASE d;
---
DROP DATABASE

DROP DATABASE IF EXISTS d;
---
notice: 00000 database "d" does not exist, skipping
DROP DATABASE

DROP DATABASE defaultdb;
---
55006 cannot drop "defaultdb": it is the session's database

# Ranges.

ALTER TABLE t SPLIT AT VALUES (10), (20);
---
ALTER TABLE

SHOW RANGES FROM TABLE t;
---
range_id | start_key | end_key | leaseholder | replicas | quarantined | bytes | requests_per_s | blocks
1 | /min | /table/t/1/10 | 1 | {1} | {} | NULL | NULL | NULL
2 | /table/t/1/10 | /table/t/1/20 | 1 | {1} | {} | NULL | NULL | NULL
3 | /table/t/1/20 | /max | 1 | {1} | {} | NULL | NULL | NULL
SHOW

ALTER TABLE t SPLIT AT VALUES (1, 2);
---
42601 SPLIT AT takes at most 1 values a row: the columns of the primary key

SET statement_timeout = '5s';
---
SET

SHOW statement_timeout;
---
statement_timeout
5000
SHOW

SET timezone = 'Mars';
---
22023 invalid value for parameter "timezone": "Mars"
hint: The only value of "timezone" is "UTC".

SET nope = 1;
---
42704 unrecognized configuration parameter "nope"
