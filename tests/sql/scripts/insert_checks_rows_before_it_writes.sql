# Defaults, NOT NULL and CHECK decide about a whole row; the first broken rule ends the statement, and nothing of it stays.

CREATE TABLE item (id INT PRIMARY KEY, name TEXT NOT NULL, price DECIMAL(10,2) DEFAULT 1+1 CHECK (price > 0));
---
CREATE TABLE

INSERT INTO item VALUES (1, 'a', 2.5), (2, 'b', DEFAULT);
---
INSERT 0 2

INSERT INTO item (id, name) VALUES (3, 'c') RETURNING *, price * 2 AS double;
---
id | name | price | double
3 | c | 2.00 | 4.00
INSERT 0 1

INSERT INTO item VALUES (8, 'x'), (9, NULL);
---
23502 null value in column "name" of relation "item" violates not-null constraint
detail: Failing row contains (9, null, 2.00).

INSERT INTO item VALUES (8, 'x', -1);
---
23514 new row for relation "item" violates check constraint "item_price_check"
detail: Failing row contains (8, x, -1.00).

# NULL passes a CHECK.

INSERT INTO item VALUES (4, 'd', NULL);
---
INSERT 0 1

INSERT INTO item VALUES (1, 'x');
---
23505 duplicate key value violates unique constraint "item_pkey"
detail: Key (id)=(1) already exists.

INSERT INTO item VALUES (9, 'x'), (9, 'y');
---
23505 duplicate key value violates unique constraint "item_pkey"
detail: Key (id)=(9) already exists.

SELECT * FROM item ORDER BY id;
---
id | name | price
1 | a | 2.50
2 | b | 2.00
3 | c | 2.00
4 | d | NULL
SELECT 4

INSERT INTO item VALUES (true, 'x');
---
42804 column "id" is of type integer but expression is of type boolean
hint: You will need to rewrite or cast the expression.

INSERT INTO item VALUES (99999999999, 'x');
---
22003 integer out of range

INSERT INTO item VALUES ('abc', 'x');
---
22P02 invalid input syntax for type integer: "abc"

INSERT INTO item VALUES (1, 'x', 3, 4);
---
42601 INSERT has more expressions than target columns

INSERT INTO item (id, name) VALUES (1);
---
42601 INSERT has more target columns than expressions

INSERT INTO item (id, id) VALUES (1, 2);
---
42701 column "id" specified more than once

INSERT INTO item (nope) VALUES (1);
---
42703 column "nope" of relation "item" does not exist

INSERT INTO nope VALUES (1);
---
42P01 relation "nope" does not exist

# Literals that stand alone in a query take their columns' types; in VALUES a sub-query may stand.

INSERT INTO item SELECT '50', 'q', '1.555';
---
INSERT 0 1

INSERT INTO item VALUES ((SELECT max(id) + 1 FROM item), 'r', NULL) RETURNING *;
---
id | name | price
51 | r | NULL
INSERT 0 1

INSERT INTO item SELECT id + 100, name, price FROM item WHERE id = 50 RETURNING *;
---
id | name | price
150 | q | 1.56
INSERT 0 1
