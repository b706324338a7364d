CREATE TABLE kv (k INT PRIMARY KEY, v TEXT, CHECK (v <> 'bad'));
---
CREATE TABLE

INSERT INTO kv VALUES (1, 'one'), (2, 'two');
---
INSERT 0 2

INSERT INTO kv VALUES (1, 'new'), (3, 'three') ON CONFLICT (k) DO UPDATE SET v = excluded.v || ' was ' || kv.v RETURNING *;
---
k | v
1 | new was one
3 | three
INSERT 0 2

INSERT INTO kv VALUES (1, 'x'), (4, 'four'), (4, 'again') ON CONFLICT DO NOTHING RETURNING *;
---
k | v
4 | four
INSERT 0 1

# A row is changed by one statement once.

INSERT INTO kv VALUES (5, 'a'), (5, 'b') ON CONFLICT (k) DO UPDATE SET v = excluded.v;
---
21000 ON CONFLICT DO UPDATE command cannot affect row a second time
hint: Ensure that no rows proposed for insertion within the same command have duplicate constrained values.

# Both rows have the column.

INSERT INTO kv VALUES (1, 'a') ON CONFLICT (k) DO UPDATE SET v = v || 'a';
---
42702 column reference "v" is ambiguous

INSERT INTO kv VALUES (1, 'a'), (2, 'a') ON CONFLICT (k) DO UPDATE SET v = 'z' WHERE kv.v = 'two' RETURNING *;
---
k | v
2 | z
INSERT 0 1

INSERT INTO kv VALUES (1, 'a') ON CONFLICT (k) DO UPDATE SET v = 'bad';
---
23514 new row for relation "kv" violates check constraint "kv_v_check"
detail: Failing row contains (1, bad).

INSERT INTO kv VALUES (2, 'a') ON CONFLICT (k) DO UPDATE SET k = 3;
---
23505 duplicate key value violates unique constraint "kv_pkey"
detail: Key (k)=(3) already exists.

INSERT INTO kv VALUES (2, 'a') ON CONFLICT (k) DO UPDATE SET k = 30;
---
INSERT 0 1

INSERT INTO kv VALUES (1, 'a') ON CONFLICT (v) DO NOTHING;
---
42P10 there is no unique or exclusion constraint matching the ON CONFLICT specification

INSERT INTO kv VALUES (1, 'a') ON CONFLICT DO UPDATE SET v = 'b';
---
42601 ON CONFLICT DO UPDATE requires inference specification or constraint name
hint: For example, ON CONFLICT (column_name).

INSERT INTO kv VALUES (1, 'a') ON CONFLICT ON CONSTRAINT nope DO NOTHING;
---
42704 constraint "nope" for table "kv" does not exist

SELECT * FROM kv ORDER BY k;
---
k | v
1 | new was one
3 | three
4 | four
30 | z
SELECT 4
