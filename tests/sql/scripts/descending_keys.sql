# A primary key may order columns from the highest down.

CREATE TABLE d (a INT, "B" TEXT, n INT, PRIMARY KEY (a ASC, "B" DESC));
---
CREATE TABLE

SHOW CREATE TABLE d;
---
table_name | create_statement
d | CREATE TABLE d (
    a integer NOT NULL,
    "B" text NOT NULL,
    n integer,
    CONSTRAINT d_pkey PRIMARY KEY (a, "B" DESC)
)
SHOW

INSERT INTO d VALUES (1, 'x', 1), (1, 'y', 2), (2, 'x', 3), (1, '', 4);
---
INSERT 0 4

SELECT * FROM d WHERE a = 1 AND "B" > '' ORDER BY n;
---
a | B | n
1 | x | 1
1 | y | 2
SELECT 2

SELECT * FROM d WHERE a = 1 AND "B" >= 'x' AND "B" < 'y';
---
a | B | n
1 | x | 1
SELECT 1

SELECT * FROM d ORDER BY a, "B" DESC;
---
a | B | n
1 | y | 2
1 | x | 1
1 |  | 4
2 | x | 3
SELECT 4

SELECT n FROM d WHERE a = 1 AND "B" = 'y';
---
n
2
SELECT 1

UPDATE d SET "B" = 'z' WHERE a = 1 AND "B" = 'x' RETURNING *;
---
a | B | n
1 | z | 1
UPDATE 1

DELETE FROM d WHERE a = 1 AND "B" <= 'y' RETURNING n;
---
n
2
4
DELETE 2

CREATE TABLE e (a INT, b INT, PRIMARY KEY (a, b DESC NULLS LAST));
---
42601 syntax error at or near "NULLS"
detail: Expecting )

# Advisory locks are not there.

SELECT pg_advisory_lock(1);
---
0A000 the function pg_advisory_lock is not supported

SELECT pg_try_advisory_xact_lock(1, 2);
---
0A000 the function pg_try_advisory_xact_lock is not supported

SELECT pg_advisory_unlock_all();
---
0A000 the function pg_advisory_unlock_all is not supported
