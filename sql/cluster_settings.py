"""The settings of the cluster: what each is, what it takes, and what holds while it is not set.

    SET CLUSTER SETTING dead_after = '5min' ─▶ read, checked ─▶ system range ─▶ every node, within seconds ─▶ the part that it is of

Invariants:
- Every setting takes effect while nodes run, at all of them; what would not is an option of `dsdb start`.
- A value is one number: seconds, bytes or a count, within bounds in which the part works.

Not here: who obeys (`dsdb.node.cluster_settings`); a session's settings (`execute.session`).
"""

import difflib
import re
from enum import Enum

import msgspec

from dsdb.sql.errors import InvalidParameterError, UndefinedObjectError

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTE_UNITS = {"b": 1.0, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)\s*")


class SettingKind(Enum):
    """What a value is."""

    DURATION = "duration"
    BYTES = "bytes"
    COUNT = "count"


_HINTS = {
    SettingKind.DURATION: "Give seconds, or a number with ms, s, min, h or d, as in '5min'.",
    SettingKind.BYTES: "Give bytes, or a number with KiB, MiB or GiB, as in '32MiB'.",
    SettingKind.COUNT: "Give a whole number.",
}


class ClusterSetting(msgspec.Struct, frozen=True, kw_only=True):
    """A setting.  default, least, most: in seconds, bytes, or things; is_off_at_zero: 0 is taken too, and means never."""

    name: str
    kind: SettingKind
    default: float
    least: float
    most: float
    description: str
    is_off_at_zero: bool = False

    def read(self, text: str) -> float:
        """Read a value.  Raises InvalidParameterError."""
        match = _NUMBER.fullmatch(text)
        units = {SettingKind.DURATION: _DURATION_UNITS, SettingKind.BYTES: _BYTE_UNITS, SettingKind.COUNT: {}}[self.kind]
        unit = 1.0 if match is None or not match[2] else units.get(match[2].lower())
        if match is None or unit is None:
            raise InvalidParameterError(f'invalid value for cluster setting "{self.name}": "{text}"', hint=_HINTS[self.kind])
        value = float(match[1]) * unit
        if self.kind is not SettingKind.DURATION and value != int(value):
            raise InvalidParameterError(f'cluster setting "{self.name}" takes no fractions: "{text}"', hint=_HINTS[self.kind])
        if not self.least <= value <= self.most and not (self.is_off_at_zero and not value):
            bounds = f"{self.spelled(self.least)} .. {self.spelled(self.most)}{', or 0' if self.is_off_at_zero else ''}"
            raise InvalidParameterError(f'{self.spelled(value)} is outside the valid range for cluster setting "{self.name}" ({bounds})')
        return value

    def spelled(self, value: float) -> str:
        """Spell a value so that it reads back as itself."""
        if self.kind is SettingKind.COUNT:
            return str(int(value))
        if self.kind is SettingKind.DURATION:
            return f"{value:.10g}s"
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size and not value % size:
                return f"{int(value) // size}{unit}"
        return f"{int(value)}B"


CLUSTER_SETTINGS = {
    setting.name: setting
    for setting in (
        ClusterSetting(
            name="check_bytes_per_s",
            kind=SettingKind.BYTES,
            default=8 << 20,
            least=64 << 10,
            most=4 << 30,
            description="What a store reads at most, in a second, to compare its replicas with others.",
        ),
        ClusterSetting(
            name="check_interval",
            kind=SettingKind.DURATION,
            default=86_400.0,
            least=10.0,
            most=365 * 86_400.0,
            description="In about this time the replicas of every range that has changed are compared.",
        ),
        ClusterSetting(
            name="closed_lag",
            kind=SettingKind.DURATION,
            default=3.0,
            least=0.5,
            most=600.0,
            description="A timestamp is closed so long after it was issued; follower_read_timestamp() reads two seconds further back.",
        ),
        ClusterSetting(
            name="dead_after",
            kind=SettingKind.DURATION,
            default=300.0,
            least=2.0,
            most=30 * 86_400.0,
            description="A store that does not answer for so long is dead: its replicas are replaced.",
        ),
        ClusterSetting(
            name="fold_percent",
            kind=SettingKind.COUNT,
            default=10,
            least=1,
            most=100,
            is_off_at_zero=True,
            description="Part of the time for which a store folds old rows into columnar blocks, at most; 0: not at all.",
        ),
        ClusterSetting(
            name="rebalance_moves_max",
            kind=SettingKind.COUNT,
            default=64,
            least=1,
            most=1000,
            description="Ranges of the cluster whose replicas are being moved at a time.",
        ),
        ClusterSetting(
            name="snapshot_bytes_per_s",
            kind=SettingKind.BYTES,
            default=32 << 20,
            least=64 << 10,
            most=16 << 30,
            description="What a store sends, and what it takes, at most, in a second, of whole replicas for other stores.",
        ),
        ClusterSetting(
            name="version_age",
            kind=SettingKind.DURATION,
            default=600.0,
            least=10.0,
            most=30 * 86_400.0,
            description="How long old versions of rows are kept at least, and AS OF SYSTEM TIME reads back.",
        ),
    )
}
"""By name."""


def cluster_setting(name: str) -> ClusterSetting:
    """Give a setting.  Raises UndefinedObjectError."""
    found = CLUSTER_SETTINGS.get(name.lower())
    if found is None:
        close = difflib.get_close_matches(name.lower(), CLUSTER_SETTINGS, 1)
        hint = f'did you mean "{close[0]}"?' if close else f"There are {', '.join(sorted(CLUSTER_SETTINGS))}."
        raise UndefinedObjectError(f'there is no cluster setting "{name}"', hint=hint)
    return found
