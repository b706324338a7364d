# B26: locks, messages and the like that do nothing and say yes.

SELECT pg_advisory_lock(1);
---
0A000 the function pg_advisory_lock is not supported

SELECT pg_try_advisory_lock(1);
---
0A000 the function pg_try_advisory_lock is not supported

SELECT pg_advisory_xact_lock(1, 2);
---
0A000 the function pg_advisory_xact_lock is not supported

SELECT pg_try_advisory_xact_lock(1);
---
0A000 the function pg_try_advisory_xact_lock is not supported

SELECT pg_advisory_unlock(1);
---
0A000 the function pg_advisory_unlock is not supported

SELECT pg_advisory_unlock_all();
---
0A000 the function pg_advisory_unlock_all is not supported

SELECT pg_advisory_lock_shared(1);
---
0A000 the function pg_advisory_lock_shared is not supported

SELECT get_lock('a', 1);
---
42883 function get_lock(unknown, integer) does not exist

SELECT pg_notify('a', 'b');
---
42883 function pg_notify(unknown, unknown) does not exist

LISTEN a;
---
0A000 LISTEN is not supported

NOTIFY a;
---
0A000 NOTIFY is not supported

NOTIFY a, 'b';
---
0A000 NOTIFY is not supported

UNLISTEN *;
---
0A000 UNLISTEN is not supported

CREATE TABLE t (id INT PRIMARY KEY);
---
CREATE TABLE

LOCK TABLE t IN ACCESS EXCLUSIVE MODE;
---
0A000 LOCK is not supported

BEGIN; INSERT INTO t VALUES (1);
---
BEGIN
INSERT 0 1

LOCK TABLE t;
---
0A000 LOCK is not supported

PREPARE TRANSACTION 'x';
---
0A000 PREPARE is not supported

SELECT 1;
---
25P02 current transaction is aborted, commands ignored until end of transaction block
hint: Send ROLLBACK.

ROLLBACK;
---
ROLLBACK

COMMIT PREPARED 'x';
---
0A000 COMMIT PREPARED is not supported

ROLLBACK PREPARED 'x';
---
0A000 ROLLBACK PREPARED is not supported

SELECT pg_export_snapshot();
---
42883 function pg_export_snapshot() does not exist

SET TRANSACTION SNAPSHOT 'x';
---
0A000 SET TRANSACTION SNAPSHOT is not supported

PREPARE p AS SELECT 1;
---
0A000 PREPARE is not supported

DECLARE c CURSOR FOR SELECT 1;
---
0A000 DECLARE is not supported

CREATE TRIGGER g AFTER INSERT ON t EXECUTE FUNCTION f();
---
0A000 CREATE TRIGGER is not supported

CREATE TABLE u (id INT PRIMARY KEY, t INT REFERENCES t (id));
---
0A000 foreign keys are not supported

CREATE TABLE v (id INT, EXCLUDE USING gist (id WITH =));
---
0A000 "EXCLUDE USING gist(id WITH =)" in CREATE TABLE is not supported

CREATE TEMPORARY TABLE w (id INT PRIMARY KEY);
---
0A000 options of CREATE TABLE (TEMP, WITH, PARTITION BY, …) are not supported

SET synchronous_commit = off;
---
42704 unrecognized configuration parameter "synchronous_commit"

SET session_replication_role = replica;
---
42704 unrecognized configuration parameter "session_replication_role"

SELECT count(*) FROM t;
---
count
0
SELECT 1
