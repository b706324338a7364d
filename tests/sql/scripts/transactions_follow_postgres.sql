# A transaction of several statements: its own writes are seen, and ROLLBACK forgets them.

CREATE TABLE t (id INT PRIMARY KEY, n INT CHECK (n < 100));
---
CREATE TABLE

BEGIN;
---
BEGIN

INSERT INTO t VALUES (1, 10), (2, 20);
---
INSERT 0 2

UPDATE t SET n = n + 1 WHERE id = 1;
---
UPDATE 1

SELECT * FROM t ORDER BY id;
---
id | n
1 | 11
2 | 20
SELECT 2

SELECT sum(n) FROM t;
---
sum
31
SELECT 1

DELETE FROM t WHERE n > 15;
---
DELETE 1

SELECT count(*) FROM t;
---
count
1
SELECT 1

ROLLBACK;
---
ROLLBACK

SELECT count(*) FROM t;
---
count
0
SELECT 1

START TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE NOT DEFERRABLE; INSERT INTO t VALUES (1, 10); COMMIT WORK;
---
START TRANSACTION
INSERT 0 1
COMMIT

SELECT * FROM t;
---
id | n
1 | 10
SELECT 1

# A failed statement fails the transaction; its COMMIT rolls back.

BEGIN;
---
BEGIN

INSERT INTO t VALUES (5, 50);
---
INSERT 0 1

INSERT INTO t VALUES (6, 60), (1, 11);
---
23505 duplicate key value violates unique constraint "t_pkey"
detail: Key (id)=(1) already exists.

SELECT 1;
---
25P02 current transaction is aborted, commands ignored until end of transaction block
hint: Send ROLLBACK.

SHOW transaction_isolation;
---
25P02 current transaction is aborted, commands ignored until end of transaction block
hint: Send ROLLBACK.

SAVEPOINT x;
---
25P02 current transaction is aborted, commands ignored until end of transaction block
hint: Send ROLLBACK.

COMMIT;
---
ROLLBACK

SELECT * FROM t;
---
id | n
1 | 10
SELECT 1

# A key that was deleted in the transaction is free.

BEGIN; DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1, 12);
---
BEGIN
DELETE 1
INSERT 0 1

INSERT INTO t VALUES (1, 13);
---
23505 duplicate key value violates unique constraint "t_pkey"
detail: Key (id)=(1) already exists.

ROLLBACK;
---
ROLLBACK

# Savepoints nest, and names hide each other.

BEGIN;
---
BEGIN

INSERT INTO t VALUES (2, 2);
---
INSERT 0 1

SAVEPOINT a;
---
SAVEPOINT

INSERT INTO t VALUES (3, 3);
---
INSERT 0 1

SAVEPOINT a;
---
SAVEPOINT

INSERT INTO t VALUES (4, 4);
---
INSERT 0 1

ROLLBACK TO SAVEPOINT a;
---
ROLLBACK

SELECT id FROM t ORDER BY id;
---
id
1
2
3
SELECT 3

RELEASE a;
---
RELEASE

ROLLBACK TO a;
---
ROLLBACK

SELECT id FROM t ORDER BY id;
---
id
1
2
SELECT 2

SELECT 1 / 0;
---
22012 division by zero

SELECT 1;
---
25P02 current transaction is aborted, commands ignored until end of transaction block
hint: Send ROLLBACK.

ROLLBACK TO b;
---
3B001 savepoint "b" does not exist

ROLLBACK TO a;
---
ROLLBACK

INSERT INTO t VALUES (5, 5);
---
INSERT 0 1

COMMIT;
---
COMMIT

SELECT id FROM t ORDER BY id;
---
id
1
2
5
SELECT 3

# What a statement wrote before it failed is gone with it: by key, by span, under a lock.

BEGIN; SAVEPOINT s; INSERT INTO t VALUES (20, 20), (21, 21), (2, 2);
---
23505 duplicate key value violates unique constraint "t_pkey"
detail: Key (id)=(2) already exists.

ROLLBACK TO s; SELECT id FROM t WHERE id IN (20, 21);
---
ROLLBACK
id
SELECT 0

SELECT id, n FROM t ORDER BY id;
---
id | n
1 | 10
2 | 2
5 | 5
SELECT 3

UPDATE t SET n = 40 / (id - 5);
---
22012 division by zero

ROLLBACK TO s; SELECT id, n FROM t WHERE n = n + 0 ORDER BY id;
---
ROLLBACK
id | n
1 | 10
2 | 2
5 | 5
SELECT 3

SELECT id, n FROM t WHERE id = 1 FOR UPDATE;
---
id | n
1 | 10
SELECT 1

INSERT INTO t VALUES (20, 1); SAVEPOINT u; UPDATE t SET n = n + 60;
---
INSERT 0 1
SAVEPOINT
UPDATE 4

UPDATE t SET n = n + 60;
---
23514 new row for relation "t" violates check constraint "t_n_check"
detail: Failing row contains (1, 130).

ROLLBACK TO u; SELECT id, n FROM t ORDER BY id;
---
ROLLBACK
id | n
1 | 10
2 | 2
5 | 5
20 | 1
SELECT 4

INSERT INTO t VALUES (20, 2) ON CONFLICT (id) DO UPDATE SET n = t.n + EXCLUDED.n RETURNING n;
---
n
3
INSERT 0 1

DELETE FROM t WHERE id = 20 RETURNING 1 / (id - 20);
---
22012 division by zero

ROLLBACK TO s; SELECT id, n FROM t WHERE id = 20; SELECT count(*) FROM t;
---
ROLLBACK
id | n
SELECT 0
count
3
SELECT 1

COMMIT;
---
COMMIT

SELECT id, n FROM t ORDER BY id;
---
id | n
1 | 10
2 | 2
5 | 5
SELECT 3

# Settings go back, too.

BEGIN; SET statement_timeout = '3s'; SAVEPOINT s; SET lock_timeout = 7;
---
BEGIN
SET
SAVEPOINT
SET

ROLLBACK TO s; SHOW lock_timeout;
---
ROLLBACK
lock_timeout
0
SHOW

SHOW statement_timeout;
---
statement_timeout
3000
SHOW

ROLLBACK;
---
ROLLBACK

SHOW statement_timeout;
---
statement_timeout
0
SHOW

BEGIN; SET idle_in_transaction_session_timeout = '2min'; COMMIT; SHOW idle_in_transaction_session_timeout;
---
BEGIN
SET
COMMIT
idle_in_transaction_session_timeout
120000
SHOW

# Warnings, and what is not possible here.

COMMIT;
---
warning: 25P01 there is no transaction in progress
COMMIT

ROLLBACK;
---
warning: 25P01 there is no transaction in progress
ROLLBACK

SAVEPOINT a;
---
25P01 SAVEPOINT can only be used in transaction blocks

ROLLBACK TO a;
---
25P01 ROLLBACK TO can only be used in transaction blocks

RELEASE a;
---
25P01 RELEASE can only be used in transaction blocks

SET TRANSACTION READ ONLY;
---
warning: 25P01 SET TRANSACTION can only be used in transaction blocks
SET

BEGIN; BEGIN;
---
BEGIN
warning: 25001 there is already a transaction in progress
BEGIN

RELEASE b;
---
3B001 savepoint "b" does not exist

ROLLBACK;
---
ROLLBACK

COMMIT AND CHAIN;
---
0A000 COMMIT AND CHAIN is not supported
hint: Send BEGIN after it.

PREPARE TRANSACTION 'x';
---
0A000 PREPARE is not supported

BEGIN;
---
BEGIN

CREATE TABLE u (id INT);
---
CREATE TABLE

ROLLBACK;
---
ROLLBACK

BEGIN; TRUNCATE t;
---
BEGIN
TRUNCATE TABLE

ROLLBACK; BEGIN; CREATE DATABASE d;
---
25001 CREATE DATABASE cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK; BEGIN; ALTER TABLE t SPLIT AT VALUES (3);
---
25001 ALTER TABLE … SPLIT AT cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK;
---
ROLLBACK

# Sequences are not rolled back.

CREATE SEQUENCE s;
---
CREATE SEQUENCE

BEGIN; SELECT nextval('s');
---
BEGIN
nextval
1
SELECT 1

ROLLBACK; SELECT nextval('s');
---
ROLLBACK
nextval
2
SELECT 1

# READ ONLY.

BEGIN READ ONLY;
---
BEGIN

SHOW transaction_read_only;
---
transaction_read_only
on
SHOW

SELECT count(*) FROM t;
---
count
3
SELECT 1

INSERT INTO t VALUES (9, 9);
---
25006 cannot execute INSERT in a read-only transaction

ROLLBACK;
---
ROLLBACK

BEGIN; SET TRANSACTION READ ONLY; SELECT count(*) FROM t; SET TRANSACTION READ WRITE;
---
25001 transaction read-write mode must be set before any query

ROLLBACK; BEGIN READ ONLY; SET TRANSACTION READ WRITE; DELETE FROM t WHERE id = 5; COMMIT;
---
ROLLBACK
BEGIN
SET
DELETE 1
COMMIT

BEGIN; SAVEPOINT a; SET TRANSACTION READ ONLY; RELEASE a; SHOW transaction_read_only; BEGIN READ ONLY; SAVEPOINT b; SET TRANSACTION READ WRITE;
---
25001 cannot set transaction read-write mode inside a read-only transaction

ROLLBACK;
---
ROLLBACK

SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY;
---
SET

SHOW default_transaction_read_only;
---
default_transaction_read_only
on
SHOW

SHOW transaction_read_only;
---
transaction_read_only
on
SHOW

UPDATE t SET n = 1;
---
25006 cannot execute UPDATE in a read-only transaction

SELECT nextval('s');
---
25006 cannot execute nextval() in a read-only transaction

CREATE TABLE u (id INT);
---
25006 cannot execute CREATE TABLE in a read-only transaction

BEGIN READ WRITE; UPDATE t SET n = n + 1 WHERE id = 1; COMMIT;
---
BEGIN
UPDATE 1
COMMIT

SET default_transaction_read_only = off;
---
SET

SELECT * FROM t ORDER BY id;
---
id | n
1 | 11
2 | 2
SELECT 2

# AS OF SYSTEM TIME.

SELECT id FROM t AS OF SYSTEM TIME '2023-11-14';
---
id
SELECT 0

SELECT id FROM t AS OF SYSTEM TIME '2126-01-01';
---
22023 cannot read AS OF SYSTEM TIME '2126-01-01': it is in the future

SELECT id FROM t AS OF SYSTEM TIME '-1 fortnight';
---
22023 AS OF SYSTEM TIME '-1 fortnight' is not a time
hint: Write '-10s', '2026-01-31 12:00:00', or a timestamp as a number.

SELECT id FROM t AS OF SYSTEM TIME 1;
---
id
SELECT 0

BEGIN AS OF SYSTEM TIME '-10s';
---
BEGIN

SHOW transaction_read_only;
---
transaction_read_only
on
SHOW

SELECT id FROM t;
---
id
SELECT 0

INSERT INTO t VALUES (7, 7);
---
25006 cannot execute INSERT in a read-only transaction

ROLLBACK;
---
ROLLBACK

BEGIN; SELECT id FROM t AS OF SYSTEM TIME '-10s';
---
0A000 AS OF SYSTEM TIME is not supported for one statement of a transaction
hint: Give it to BEGIN, or commit first.

ROLLBACK;
---
ROLLBACK
