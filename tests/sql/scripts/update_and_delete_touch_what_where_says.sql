CREATE TABLE p (a INT, b TEXT, c INT, PRIMARY KEY (a, b));
---
CREATE TABLE

INSERT INTO p VALUES (1, 'x', 1), (1, 'y', 2), (2, 'x', 3), (3, 'z', NULL);
---
INSERT 0 4

# By whole keys, by a prefix of the key, by a filter.

EXPLAIN UPDATE p SET c = 0 WHERE a = 1 AND b = 'x';
---
QUERY PLAN
Update on p
  -> Point Get on p
EXPLAIN

EXPLAIN UPDATE p SET c = 0 WHERE a = 1 AND c > 0;
---
QUERY PLAN
Update on p
  -> Scan of a key span on p, filtered at the gateway
EXPLAIN

EXPLAIN DELETE FROM p WHERE c = 1;
---
QUERY PLAN
Delete on p
  -> Full Scan on p, filtered at the gateway
EXPLAIN

UPDATE p SET c = c + 10 WHERE a = 1 AND b = 'x' RETURNING *;
---
a | b | c
1 | x | 11
UPDATE 1

UPDATE p SET c = c + 1 WHERE a = 1 RETURNING *;
---
a | b | c
1 | x | 12
1 | y | 3
UPDATE 2

UPDATE p SET c = 7 WHERE c = 3;
---
UPDATE 2

# NULL is not less than anything.

DELETE FROM p WHERE c < 0;
---
DELETE 0

# A new key takes the row with it; keys may pass each other in one statement.

UPDATE p SET a = a + 1;
---
UPDATE 4

SELECT * FROM p ORDER BY a, b;
---
a | b | c
2 | x | 12
2 | y | 7
3 | x | 7
4 | z | NULL
SELECT 4

UPDATE p SET a = 2, b = 'x' WHERE a = 4;
---
23505 duplicate key value violates unique constraint "p_pkey"
detail: Key (a, b)=(2, x) already exists.

UPDATE p SET a = 9, b = 'same' WHERE a = 2;
---
23505 duplicate key value violates unique constraint "p_pkey"
detail: Key (a, b)=(9, same) already exists.

UPDATE p SET (b, c) = ('w', a * 2), a = 5 WHERE a = 4;
---
UPDATE 1

# Sub-queries and FROM.

UPDATE p SET c = (SELECT max(c) FROM p) WHERE a = 5 RETURNING *;
---
a | b | c
5 | w | 12
UPDATE 1

CREATE TABLE other (id INT, name TEXT);
---
CREATE TABLE

INSERT INTO other VALUES (2, 'two'), (2, 'zwei'), (5, 'five');
---
INSERT 0 3

UPDATE p SET c = other.id * 100 FROM other WHERE other.id = p.a AND other.name <> 'zwei';
---
UPDATE 3

UPDATE p AS q SET c = -q.c WHERE q.a IN (SELECT id FROM other WHERE name = 'five') RETURNING q.a, q.c;
---
a | c
5 | -500
UPDATE 1

DELETE FROM p USING other WHERE other.id = p.a AND other.name = 'five';
---
DELETE 1

# A table without a key has rows of its own all the same.

UPDATE other SET id = id + 1 WHERE name = 'two';
---
UPDATE 1

UPDATE other SET name = (SELECT min(b) FROM p) WHERE id = 3;
---
UPDATE 1

SELECT * FROM other ORDER BY id, name;
---
id | name
2 | zwei
3 | x
5 | five
SELECT 3

DELETE FROM other WHERE id = 2;
---
DELETE 1

DELETE FROM p WHERE a IN (2, 3) AND b = 'x' RETURNING a, b;
---
a | b
2 | x
3 | x
DELETE 2

UPDATE p SET nope = 1;
---
42703 column "nope" of relation "p" does not exist

UPDATE p SET c = 1, c = 2;
---
42601 multiple assignments to same column "c"

UPDATE p SET c = 'x';
---
22P02 invalid input syntax for type integer: "x"

UPDATE p SET b = NULL;
---
23502 null value in column "b" of relation "p" violates not-null constraint
detail: Failing row contains (2, null, 200).

DELETE FROM p;
---
DELETE 1
