"""The settings of the cluster: what is said to hold by default is what holds, and values are spelled as they are read."""

import trio
from hypothesis import given as generated
from hypothesis import strategies as st

from dsdb.coordinator.coordinator import DEAD_AFTER_S
from dsdb.coordinator.scene import Settings
from dsdb.env import Address
from dsdb.jobs import cleanup, versions
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.sql.cluster_settings import CLUSTER_SETTINGS, SettingKind
from dsdb.sql.execute.session import SessionState
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.store.config import StoreConfig


def test_the_defaults_are_those_of_the_parts() -> None:
    parts = {
        "check_bytes_per_s": StoreConfig().check_bytes_per_s,
        "check_interval": StoreConfig().check_interval_s,
        "closed_lag": StoreConfig().closed_lag_s,
        "dead_after": DEAD_AFTER_S,
        "fold_percent": 100 * StoreConfig().fold_share,
        "rebalance_moves_max": Settings().moves_max,
        "snapshot_bytes_per_s": StoreConfig().snapshot_bytes_per_s,
        "version_age": versions.AGE_S,
    }
    assert {name: setting.default for name, setting in CLUSTER_SETTINGS.items()} == parts
    assert cleanup.AGE_S == versions.AGE_S
    assert all(setting.least <= setting.default <= setting.most for setting in CLUSTER_SETTINGS.values())


@generated(data=st.data(), name=st.sampled_from(sorted(CLUSTER_SETTINGS)))
def test_values_are_spelled_as_they_are_read(data: st.DataObject, name: str) -> None:
    setting = CLUSTER_SETTINGS[name]
    value = data.draw(st.integers(int(setting.least) + 1, int(setting.most)))
    assert setting.read(setting.spelled(value)) == value
    if setting.kind is SettingKind.DURATION:
        assert setting.read(setting.spelled(value - 0.25)) == value - 0.25


def test_each_setting_is_obeyed_while_the_node_runs_and_so_is_its_reset() -> None:
    given = {
        "check_bytes_per_s": 65_536.0,
        "check_interval": 86_000.0,
        "closed_lag": 1.5,
        "dead_after": 7.0,
        "fold_percent": 3.0,
        "rebalance_moves_max": 3.0,
        "snapshot_bytes_per_s": 131_072.0,
        "version_age": 11.0,
    }

    async def main() -> None:
        node = Node(NodeConfig(store=None, listen=Address("127.0.0.1", 0)), engine=MemoryEngine())
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            defaults = obeyed(node)
            assert all(given[name] != default for name, default in defaults.items())
            for text in ("SET CLUSTER SETTING {} = {}", "RESET CLUSTER SETTING {}"):
                for name, value in given.items():
                    await execute(node, text.format(name, value if name in ("closed_lag", "dead_after", "version_age") else int(value)))
                wanted = given if text.startswith("SET") else defaults
                with trio.fail_after(10):
                    while obeyed(node) != wanted:  # noqa: ASYNC110 (the node tells nobody)
                        await trio.sleep(0.02)
            nursery.cancel_scope.cancel()

    trio.run(main)


def obeyed(node: Node) -> dict[str, float]:
    """Look at what the parts of a node go by."""
    assert node.parts is not None
    parts = node.parts
    sent, taken = parts.store.snapshot_rates
    assert sent.bytes_per_s == taken.bytes_per_s
    assert parts.cleanup._age_s == parts.version_collector._age_s
    return {
        "check_bytes_per_s": parts.store.consistency.throttle.bytes_per_s,
        "check_interval": parts.store.consistency.interval_s,
        "closed_lag": parts.store.closing._line.lag_s,
        "dead_after": parts.coordinator._dead_after_s,
        "fold_percent": 100 * parts.store.folding.share,
        "rebalance_moves_max": parts.coordinator._settings.moves_max,
        "snapshot_bytes_per_s": sent.bytes_per_s,
        "version_age": parts.version_collector._age_s,
    }


async def execute(node: Node, text: str) -> None:
    assert node.parts is not None
    (statement,) = node.parts.executor.prepare(text)
    await node.parts.executor.run(SessionState(), statement, [])
