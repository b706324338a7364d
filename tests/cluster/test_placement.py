"""Tables are placed by statements, on node processes of which two share a machine, while a client writes and notices nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsdb
from dsdb.cli.processes import NodeProcess
from tests.cluster.cut_cluster import ask, wait_until
from tests.cluster.writer import Writer

PATIENCE_S = 60.0
LOCALITIES = (
    *("region=eu,machine=m1", "region=eu,machine=m1", "region=eu,machine=m2"),
    *("region=us,machine=m3", "region=us,machine=m4", "region=us,machine=m5"),
)
"""Of nodes 1 to 6."""


class Cluster:
    """Six nodes on five machines."""

    def __init__(self, nodes: list[NodeProcess]) -> None:
        self.url = f"dsdb://{','.join(node.address for node in nodes)}"

    def replicas(self, table: str | None = None) -> list[set[int]]:
        """Give the nodes of each range, of a table or of all."""
        query = "SELECT replicas FROM system.ranges" + (f" WHERE table_name = '{table}'" if table else "")
        return [{int(number) for number in str(text).strip("{}").split(",")} for (text,) in ask(self.url, query, column=0)]

    def leaseholders(self, table: str) -> set[object]:
        return {node for (node,) in ask(self.url, f"SELECT leaseholder FROM system.ranges WHERE table_name = '{table}'", column=0)}

    def say(self, statement: str) -> list[str]:
        """Give the notices of a statement."""
        with dsdb.connect(self.url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return [str(notice) for notice in connection.notices]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with contextlib.ExitStack() as running:
        nodes: list[NodeProcess] = []
        for number, locality in enumerate(LOCALITIES, 1):
            join = [nodes[0].address] if nodes else []
            node = NodeProcess(tmp_path / f"node{number}", join=join, options=("--locality", locality))
            running.callback(node.terminate)
            nodes.append(node.start())
        found = Cluster(nodes)
        wait_until(lambda: all(len(nodes) == 3 for nodes in found.replicas()), timeout_s=PATIENCE_S)
        yield found


def are_on_machines_of_their_own(nodes: set[int]) -> bool:
    return len({LOCALITIES[number - 1] for number in nodes}) == len(nodes)


def test_tables_are_where_they_are_told_to_be_and_writers_notice_nothing(cluster: Cluster) -> None:
    for table in ("before", "placed", "behind"):
        cluster.say(f"CREATE TABLE {table} (n INT PRIMARY KEY)")
    writer = Writer(cluster.url, table="placed")
    writer.start()

    def settles(*, count: int, among: set[int], leading: set[int] | None = None) -> None:
        def is_there() -> bool:
            placed = cluster.replicas("placed")
            is_led_there = leading is None or cluster.leaseholders("placed") <= leading
            return len(placed) == 1 and len(placed[0]) == count and placed[0] <= among and is_led_there

        wait_until(is_there, timeout_s=PATIENCE_S)
        assert all(map(are_on_machines_of_their_own, cluster.replicas()))
        writer.wait_acknowledged(5)

    everywhere = {1, 2, 3, 4, 5, 6}
    try:
        assert cluster.say("ALTER TABLE placed CONFIGURE PLACEMENT (replicas = 5)") == []
        settles(count=5, among=everywhere)
        cluster.say("ALTER TABLE placed CONFIGURE PLACEMENT (replicas = 3)")
        settles(count=3, among=everywhere)
        cluster.say("ALTER TABLE placed CONFIGURE PLACEMENT (constraints = 'region=us', lease_preference = 'machine=m4')")
        settles(count=3, among={4, 5, 6}, leading={5})
        cluster.say("ALTER TABLE placed CONFIGURE PLACEMENT (constraints = '-machine=m4,-machine=m5', lease_preference = 'machine=m1')")
        settles(count=3, among={1, 2, 3, 4}, leading={1, 2})
        (doubt,) = cluster.say("ALTER TABLE placed CONFIGURE PLACEMENT (constraints = 'region=eu')")
        assert "there are 2 that meet region=eu" in doubt
        with pytest.raises(dsdb.Error, match='did you mean "region"') as refused:
            cluster.say("ALTER TABLE placed CONFIGURE PLACEMENT (constraints = 'regoin=eu')")
        assert refused.value.sqlstate == "22023"
        cluster.say("ALTER TABLE placed CONFIGURE PLACEMENT DEFAULT")
    finally:
        writer.stop()
    writer.check(cluster.url)
    assert not writer.refused
    assert not writer.unknown
    cluster.say("ALTER TABLE behind CONFIGURE PLACEMENT (replicas = 3)")
    cluster.say("TRUNCATE TABLE behind")
    said = "SELECT table_name FROM system.range_settings WHERE table_name IS NOT NULL"
    assert ask(cluster.url, said) == [("behind",)]
    cluster.say("DROP TABLE behind")
    assert ask(cluster.url, said) == []
