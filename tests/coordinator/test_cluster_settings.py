"""The settings of the cluster: what is said to hold by default is what holds, and values are spelled as they are read."""

from hypothesis import given
from hypothesis import strategies as st

from dsdb.coordinator.coordinator import DEAD_AFTER_S
from dsdb.coordinator.scene import Settings
from dsdb.jobs import cleanup, versions
from dsdb.sql.cluster_settings import CLUSTER_SETTINGS, SettingKind
from dsdb.store.config import StoreConfig


def test_the_defaults_are_those_of_the_parts() -> None:
    parts = {
        "check_bytes_per_s": StoreConfig().check_bytes_per_s,
        "closed_lag": StoreConfig().closed_lag_s,
        "dead_after": DEAD_AFTER_S,
        "rebalance_moves_max": Settings().moves_max,
        "version_age": versions.AGE_S,
    }
    assert {name: setting.default for name, setting in CLUSTER_SETTINGS.items()} == parts
    assert cleanup.AGE_S == versions.AGE_S
    assert all(setting.least <= setting.default <= setting.most for setting in CLUSTER_SETTINGS.values())


@given(data=st.data(), name=st.sampled_from(sorted(CLUSTER_SETTINGS)))
def test_values_are_spelled_as_they_are_read(data: st.DataObject, name: str) -> None:
    setting = CLUSTER_SETTINGS[name]
    value = data.draw(st.integers(int(setting.least) + 1, int(setting.most)))
    assert setting.read(setting.spelled(value)) == value
    if setting.kind is SettingKind.DURATION:
        assert setting.read(setting.spelled(value - 0.25)) == value - 0.25
