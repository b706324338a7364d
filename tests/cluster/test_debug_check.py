"""`dsdb debug check`: what it sees in a cluster's structure, and a replica whose engine was changed behind its node's back."""

import subprocess
import sys
from pathlib import Path

import msgspec

import dsdb
from dsdb.cli.processes import ProcessCluster
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor, ReplicaKind
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.node.checking import look
from dsdb.raft.messages import ReplicaId
from dsdb.storage.engine.port import Family
from dsdb.storage.engine.rocksdb import RocksEngine
from dsdb.storage.keys import KEY_MAX, KEY_MIN, meta_key
from dsdb.store.consistency import ReplicaCopy
from tests.cluster.cut_cluster import ask, wait_until

MIDDLE = b"\x20"


def desc(number: int, start: bytes, end: bytes, *, generation: int = 4, nodes: tuple[int, ...] = (1, 2, 3)) -> RangeDescriptor:
    replicas = tuple(ReplicaDescriptor(ReplicaId(node), NodeId(node), StoreId(node)) for node in nodes)
    return RangeDescriptor(RangeId(number), start, end, generation, replicas, ReplicaId(9))


def row(descriptor: RangeDescriptor) -> tuple[bytes, bytes]:
    return meta_key(descriptor.end_key), msgspec.msgpack.encode(descriptor)


LEFT, RIGHT = desc(1, KEY_MIN, MIDDLE), desc(2, MIDDLE, KEY_MAX)
META = [row(LEFT), row(RIGHT)]
STORES = {NodeId(number): StoreId(number) for number in (1, 2, 3)}
Copies = dict[NodeId, list[ReplicaCopy] | None]


def copies(*descriptors: RangeDescriptor) -> Copies:
    found: Copies = {node_id: [] for node_id in STORES}
    for descriptor in descriptors:
        for replica in descriptor.replicas:
            replicas = found[replica.node_id]
            assert replicas is not None
            replicas.append(ReplicaCopy(descriptor, replica.replica_id, replica.node_id == 1))
    return found


def seen(meta: list[tuple[bytes, bytes]], found: Copies) -> list[tuple[int | None, int | None, str]]:
    problems = [(one.range_id, one.node_id, one.problem) for one in look(meta, found, STORES)]
    return sorted(problems, key=lambda problem: (problem[0] or 0, problem[1] or 0, problem[2]))


def test_a_structure_in_order() -> None:
    assert seen(META, copies(LEFT, RIGHT)) == []


def test_an_index_that_is_behind_or_has_holes() -> None:
    newer = desc(2, MIDDLE, KEY_MAX, generation=5)
    assert seen(META, copies(LEFT, newer)) == [(2, None, "the addressing index knows its generation 4, and it is at 5")]
    assert seen(META[1:], copies(LEFT, RIGHT)) == [
        (1, None, "it is missing from the addressing index"),
        (2, None, "the addressing index has a hole before this range"),
    ]
    assert seen(META[:1], copies(LEFT, RIGHT)) == [
        (None, None, "the addressing index ends before the end of all keys"),
        (2, None, "it is missing from the addressing index"),
    ]


def test_ranges_that_are_gone_or_overlap() -> None:
    assert seen(META, copies(LEFT)) == [
        (None, None, "no range has the last keys"),
        (2, None, "it is in the addressing index, and no node that answers has a replica of it"),
    ]
    wide = desc(1, KEY_MIN, b"\x30")
    assert (2, None, "it has keys that another range has") in seen([row(wide), row(RIGHT)], copies(wide, RIGHT))


def test_replicas_in_the_wrong_places() -> None:
    found = copies(LEFT, desc(2, MIDDLE, KEY_MAX, nodes=(1, 2)))
    right = desc(2, MIDDLE, KEY_MAX, generation=5, nodes=(1, 3))
    for node in (1, 3):
        replicas = found[NodeId(node)]
        assert replicas is not None
        found[NodeId(node)] = [*replicas[:1], ReplicaCopy(right, ReplicaId(node), leads=node == 1)]
    assert seen([META[0], row(right)], found) == [(2, 2, "an orphan: replica 2 is on its store, and not in the range")]
    replicas = found[NodeId(3)]
    assert replicas is not None
    replicas.pop()
    assert (2, 3, "replica 3 is not on its store") in seen([META[0], row(right)], found)


def test_what_a_move_left_behind() -> None:
    kinds = (ReplicaKind.VOTER, ReplicaKind.VOTER_OUTGOING, ReplicaKind.LEARNER)
    replicas = tuple(msgspec.structs.replace(replica, kind=kind) for replica, kind in zip(RIGHT.replicas, kinds))
    right = msgspec.structs.replace(RIGHT, replicas=replicas)
    assert seen([META[0], row(right)], copies(LEFT, right)) == [
        (2, None, "it is left in a joint configuration"),
        (2, 3, "its replica is left as a learner"),
    ]


def test_a_node_that_does_not_answer_and_a_replica_out_of_service() -> None:
    found = copies(LEFT, RIGHT)
    found[NodeId(3)] = None
    found[NodeId(2)] = [ReplicaCopy(LEFT, ReplicaId(2), leads=False, damage="bad"), ReplicaCopy(RIGHT, ReplicaId(2), leads=False)]
    assert seen(META, found) == [(None, 3, "it does not answer"), (1, 2, "its replica is out of service: bad")]


def check(url: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "dsdb.cli", "debug", "check", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr

    return done.returncode, done.stdout


def test_a_replica_that_lost_a_row_is_found_and_repaired(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path, nodes=3, http=True) as cluster:
        cluster.wait_replicated(3)
        url = f"dsdb://{cluster.nodes[0].address}"
        with dsdb.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept (id INT PRIMARY KEY, v TEXT)")
            cursor.execute("INSERT INTO kept SELECT i, 'value' || i FROM generate_series(1, 500) s(i)")
            cursor.execute("SHOW RANGES FROM TABLE kept")
            range_id = (cursor.fetchone() or ())[0]
        wait_until(lambda: check(url)[0] == 0, timeout_s=60)

        cluster.nodes[2].terminate()
        engine = RocksEngine.open(cluster.nodes[2].store / "db", create=False)
        stored = next(
            key for keys, values in engine.scan(Family.DELTA, b"\x10", b"\x11") for key, value in zip(keys, values) if b"value250" in value
        )
        batch = engine.new_batch()
        batch.delete(Family.DELTA, stored)
        engine.write(batch)
        engine.sync()
        engine.close()
        cluster.nodes[2].start()

        # Until all three replicas answer, it may be that no majority is there to say who is wrong.
        wait_until(lambda: "its content differs from that of 2 of 3 replicas" in check(url)[1], timeout_s=60)
        wait_until(lambda: check(url)[0] == 0, timeout_s=60)
        assert ask(url, f"SELECT quarantined FROM system.ranges WHERE range_id = {range_id}", column=0) == [("{}",)]
        for node in cluster.nodes[:2]:
            node.terminate()
            node.start()
        assert ask(url, "SELECT count(*), max(v) FROM kept WHERE v = 'value' || id", column=0) == [(500,)]


def test_a_cluster_that_does_not_answer() -> None:
    assert check("dsdb://127.0.0.1:1")[0] == 2
