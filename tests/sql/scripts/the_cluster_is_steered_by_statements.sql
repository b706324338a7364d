SHOW ALL CLUSTER SETTINGS;
---
name | value | default_value | description
check_bytes_per_s | 8MiB | 8MiB | What a store reads at most, in a second, to compare its replicas with others.
check_interval | 86400s | 86400s | In about this time the replicas of every range that has changed are compared.
closed_lag | 3s | 3s | A timestamp is closed so long after it was issued; follower_read_timestamp() reads two seconds further back.
dead_after | 300s | 300s | A store that does not answer for so long is dead: its replicas are replaced.
fold_percent | 10 | 10 | Part of the time for which a store folds old rows into columnar blocks, at most; 0: not at all.
rebalance_moves_max | 64 | 64 | Ranges of the cluster whose replicas are being moved at a time.
snapshot_bytes_per_s | 32MiB | 32MiB | What a store sends, and what it takes, at most, in a second, of whole replicas for other stores.
version_age | 600s | 600s | How long old versions of rows are kept at least, and AS OF SYSTEM TIME reads back.
SHOW

SET CLUSTER SETTING dead_after = '5min';
---
SET CLUSTER SETTING

SHOW CLUSTER SETTING dead_after;
---
dead_after
300s
SHOW

SET CLUSTER SETTING dead_after = 2.5;
---
SET CLUSTER SETTING

SHOW CLUSTER SETTING dead_after;
---
dead_after
2.5s
SHOW

SET CLUSTER SETTING check_bytes_per_s = '16MiB';
---
SET CLUSTER SETTING

SELECT name, value, default_value, scope FROM system.settings WHERE scope = 'cluster' AND value <> default_value;
---
name | value | default_value | scope
check_bytes_per_s | 16MiB | 8MiB | cluster
dead_after | 2.5s | 300s | cluster
SELECT 2

RESET CLUSTER SETTING dead_after;
---
RESET CLUSTER SETTING

SET CLUSTER SETTING check_bytes_per_s TO DEFAULT;
---
RESET CLUSTER SETTING

SELECT name, value FROM system.settings WHERE scope = 'cluster' AND value <> default_value;
---
name | value
SELECT 0

SET CLUSTER SETTING dead_after = '1s';
---
22023 1s is outside the valid range for cluster setting "dead_after" (2s .. 2592000s)

SET CLUSTER SETTING dead_after = 'soon';
---
22023 invalid value for cluster setting "dead_after": "soon"
hint: Give seconds, or a number with ms, s, min, h or d, as in '5min'.

SET CLUSTER SETTING dead_after = -5;
---
22023 invalid value for cluster setting "dead_after": "-5"
hint: Give seconds, or a number with ms, s, min, h or d, as in '5min'.

SET CLUSTER SETTING rebalance_moves_max = 1.5;
---
22023 cluster setting "rebalance_moves_max" takes no fractions: "1.5"
hint: Give a whole number.

SET CLUSTER SETTING ded_after = 5;
---
42704 there is no cluster setting "ded_after"
hint: did you mean "dead_after"?

SHOW CLUSTER SETTING nothing_like_it;
---
42704 there is no cluster setting "nothing_like_it"
hint: There are check_bytes_per_s, check_interval, closed_lag, dead_after, fold_percent, rebalance_moves_max, snapshot_bytes_per_s, version_age.

SET CLUSTER SETTING dead_after;
---
42601 syntax error at end of input

ALTER NODE 1 SET STATE draining;
---
ALTER NODE

ALTER NODE 1 SET STATE = active;
---
ALTER NODE

ALTER NODE 9 SET STATE draining;
---
22023 there is no node 9: the nodes are 1

ALTER NODE 1 SET STATE decommissioned;
---
42601 syntax error at or near "decommissioned"

ALTER NODE x SET STATE draining;
---
42601 syntax error at or near "x"

CREATE TABLE t (id INT PRIMARY KEY);
---
CREATE TABLE

ALTER TABLE t SCATTER;
---
moves_begun | ranges_left
0 | 0
SCATTER

ALTER RANGE 1 SCATTER;
---
moves_begun | ranges_left
0 | 0
SCATTER

ALTER RANGE 100 SCATTER;
---
22023 there is no range 100

ALTER TABLE missing SCATTER;
---
42P01 relation "missing" does not exist

SHOW JOBS;
---
kind | range_id | node_id | what | started_at | left_to_do | unit | job_id | state | done | why | ended_at
SHOW

SELECT * FROM system.jobs;
---
kind | range_id | node_id | what | started_at | left_to_do | unit | job_id | state | done | why | ended_at
SELECT 0

SELECT * FROM system.stores;
---
store_id | node_id | liveness | silence_s | replicas | leases | used_bytes | capacity_bytes | requests_per_s
1 | 1 | live | 0 | 1 | 1 | 1000 | NULL | 0.5
SELECT 1

SELECT range_id, node_id, start_key FROM system.leases;
---
range_id | node_id | start_key
1 | 1 | /min
SELECT 1

BEGIN;
---
BEGIN

INSERT INTO t VALUES (1);
---
INSERT 0 1

SET CLUSTER SETTING dead_after = '5min';
---
25001 SET CLUSTER SETTING cannot run inside a transaction block
hint: Send it before BEGIN or after COMMIT.

ROLLBACK;
---
ROLLBACK

SET default_transaction_read_only = on;
---
SET

ALTER NODE 1 SET STATE draining;
---
25006 cannot execute ALTER NODE in a read-only transaction

SHOW CLUSTER SETTING dead_after;
---
dead_after
300s
SHOW
