SELECT nothing FROM numbers
SELECT id FROM nowhere
SELECT n.id, m.i FROM numbers n JOIN moments m ON n.id = m.id WHERE id = 1
SELECT id FROM numbers n, moments m
SELECT x.id FROM numbers n
SELECT numbers.id FROM numbers n
SELECT nofunction(1)
SELECT upper(1, 2)
SELECT length(5)
SELECT 1 + 'a'
SELECT 1 + true
SELECT 1 = 'x'
SELECT true = 1
SELECT i, count(*) FROM numbers
SELECT sum(i) FROM numbers WHERE sum(i) > 1
SELECT sum(sum(i)) FROM numbers
SELECT i FROM numbers GROUP BY b
SELECT i FROM numbers HAVING i > 1
SELECT count(*) FROM numbers GROUP BY count(*)
SELECT row_number() FROM numbers
SELECT id FROM numbers WHERE row_number() OVER () = 1
SELECT sum(i) OVER (ORDER BY rank() OVER ()) FROM numbers
SELECT 1 UNION SELECT 1, 2
SELECT 1 UNION SELECT 'a'
SELECT 1 UNION SELECT true
SELECT id FROM numbers ORDER BY 2
SELECT id FROM numbers ORDER BY 0
SELECT id FROM numbers GROUP BY 5
SELECT id FROM numbers ORDER BY 'a'
SELECT DISTINCT id FROM numbers ORDER BY i
SELECT id FROM numbers UNION SELECT id FROM blobs ORDER BY i
SELECT id FROM numbers LIMIT -1
SELECT id FROM numbers OFFSET -1
SELECT id FROM numbers LIMIT 'a'
SELECT id FROM numbers LIMIT id
SELECT id FROM numbers WHERE i
SELECT id FROM numbers WHERE 'x'
SELECT CASE WHEN 1 THEN 2 END
SELECT CASE WHEN true THEN 1 ELSE 'x' END
SELECT CASE WHEN true THEN 1 ELSE true END
SELECT coalesce(1, 'a')
SELECT coalesce(1, true)
SELECT greatest(1, 'a')
SELECT (SELECT 1, 2)
SELECT (SELECT id FROM numbers)
SELECT 1 IN (SELECT 1, 2)
SELECT 1 IN (1, 'a')
SELECT (1, 2) = (1, 2, 3)
SELECT 1 WHERE EXISTS (SELECT nothing FROM numbers)
SELECT FROM
SELEC 1
SELECT 1 +
SELECT (1
SELECT 'abc
SELECT 1 2 3
SELECT * FROM numbers WHERE
SELECT *
SELECT n.* FROM numbers m
SELECT id FROM numbers JOIN moments USING (nothing)
SELECT id FROM numbers JOIN moments USING (id)
SELECT 1 FROM numbers a, numbers a
SELECT id AS a, i AS a FROM numbers ORDER BY a
WITH q AS (SELECT 1), q AS (SELECT 2) SELECT * FROM q
WITH q(a, b) AS (SELECT 1) SELECT * FROM q
SELECT * FROM (VALUES (1), (1, 2)) AS v
SELECT * FROM (VALUES (1), ('a')) AS v
SELECT a FROM (VALUES (1, 2)) AS v(a, b, c)
SELECT CAST(1 AS nothing)
SELECT 1::date
SELECT true::date
SELECT '2020-01-01'::date::int
SELECT '00000000-0000-0000-0000-000000000000'::uuid::int
SELECT date '2020-13-01'
SELECT date 'x'
SELECT time '25:00'
SELECT timestamp '2020-02-30'
SELECT interval 'x'
SELECT interval '1 nothing'
SELECT count(DISTINCT *) FROM numbers
SELECT count() FROM numbers
SELECT sum(x) FROM numbers
SELECT avg(x) FROM numbers
SELECT upper(x) FILTER (WHERE true) FROM numbers
SELECT id FROM numbers WHERE id = NULL
SELECT NULL
SELECT NULL = NULL
SELECT 1 AS "A b", 2 AS Abc, 'x' "Q"
SELECT 1 a, 2 b, 3
SELECT +1, - 1, - -1
SELECT 7 / 2, -7 / 2, 7 % -2, -7 % 2
SELECT 2 ^ 3
SELECT 1.0, 1.50, .5, 1e3, 1e-3
SELECT 10000000000, 2147483648, 9223372036854775808
SELECT 0.1 + 0.2, 1.10 * 2.20, 1.0 - 1.00
SELECT 'a' || 1 || true
SELECT 1 || 2
SELECT 'a' || NULL
SELECT NOT 1 = 2
SELECT 2 BETWEEN 1 AND 3 AND true
SELECT -2 ^ 2
SELECT 'a' LIKE 'A' OR 'a' ILIKE 'A'
SELECT 5 & 3 | 8
SELECT 1 << 3
SELECT 1 << 33
SELECT 'abc' < 'abd', 'a ' = 'a', 'a '::char(3) = 'a'
SELECT E'a\nb'
SELECT 'it''s'
SELECT $$dollar$$
SELECT true AND NULL, false AND NULL, true OR NULL
SELECT round(2.5), round(3.5), round(-2.5), round(2.5::float8), round(3.5::float8), round(0.5::float8)
SELECT 2.5::int, 3.5::int, 2.5::float8::int, 3.5::float8::int, -2.5::int
SELECT date '2020-01-31' + interval '1 month', date '2020-03-31' - interval '1 month'
SELECT timestamp '2020-01-01' - timestamp '2019-01-01'
SELECT date '2020-03-01' - date '2020-02-01'
SELECT age(timestamp '2020-03-01', timestamp '2020-01-31')
SELECT age(timestamp '2001-04-10', timestamp '1957-06-13')
SELECT interval '1 day' = interval '24 hours'
SELECT interval '1 month' > interval '29 days'
SELECT extract(dow from date '2020-01-05'), extract(isodow from date '2020-01-05'), extract(doy from date '2020-12-31')
SELECT interval '1-2' year to month
SELECT interval '5' day
SELECT interval '1:02' hour to minute
SELECT interval '1.5' second
SELECT interval '2' year
SELECT interval '1 2:03:04' day to second
SELECT interval '12:34.5678' minute to second(2)
SELECT interval '1 2' day to hour
SELECT interval '1 2' day to minute
SELECT count(*) FROM numbers n WHERE n.id IN (1, 2, NULL)
SELECT count(*) FROM numbers n WHERE n.id NOT IN (1, 2, NULL)
SELECT sum(i) FROM numbers WHERE false
SELECT count(*), max(x), bool_and(b) FROM numbers WHERE false
SELECT i FROM numbers WHERE false GROUP BY i
SELECT 1 HAVING false
SELECT 1 WHERE NULL
VALUES (1, 'a'), (2, NULL)
VALUES (1), (2.5)
SELECT * FROM generate_series(1, 3)
SELECT * FROM generate_series(3, 1, -1) AS g(n)
SELECT * FROM generate_series(1, 2, 0)
TABLE blobs ORDER BY id LIMIT 1
SELECT b FROM numbers ORDER BY b DESC, id LIMIT 3
SELECT string_agg(x, '') FROM numbers WHERE id < 0
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY i) FROM numbers
SELECT i, b, count(*) FROM numbers GROUP BY CUBE (i, b)
SELECT i, b, count(*) FROM numbers GROUP BY GROUPING SETS ((i), (b), ())
SELECT DISTINCT ON (i) i, id FROM numbers ORDER BY i, id DESC
SELECT DISTINCT ON (i) i FROM numbers ORDER BY id
WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT sum(n) FROM t
SELECT * FROM numbers n, LATERAL (SELECT n.i + 1 AS k) AS l WHERE n.id < 3
SELECT id FROM numbers FETCH FIRST 2 ROWS ONLY
SELECT id, i FROM numbers NATURAL JOIN (SELECT 1 AS id) AS q
SELECT 'a' SIMILAR TO 'a|b', 'abc' SIMILAR TO '%(b|d)%', 'abc' NOT SIMILAR TO '_b_'
SELECT i << 2, i >> 1, l << 3 FROM numbers
SELECT substr(y, 2), substring(y from 1 for 1) FROM blobs
SELECT extract(epoch from iv) FROM moments
SELECT count(*) FILTER (WHERE b) OVER (PARTITION BY s) FROM numbers
SELECT (1, 'a') = (1, 'a'), (1, NULL) = (1, 2), (2, NULL) < (3, 1)
SELECT justify_interval(interval '1 mon -1 hour')
SELECT sum(iv), min(iv) FROM moments
SELECT overlay(x placing 'Q' from 1), overlay(x placing 'QQ' from 2 for 1) FROM numbers WHERE id < 30
SELECT extract(epoch from '99 years 3 mons -5 days 01:02:03.5'::interval)
SELECT interval '1:02.123456', interval '-1:02.5'
SELECT '0044-03-15 BC'::date::text, (dt - 1000000)::text FROM moments
SELECT extract(year from dt - 800000), extract(isoyear from ts - interval '3000 years') FROM moments
SELECT 1e30, 1e-10, 1.5e29
SELECT x::varchar(2)::text, CASE WHEN b THEN x::varchar(2) ELSE x::varchar(3) END FROM numbers
