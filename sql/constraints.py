"""Constraints on localities, as text and as values: where the replicas of a table may be, and where its leases should be.

    'region=eu,-machine=m3'      in region eu, and not on machine m3; all must hold; '' says nothing

Invariants:
- What is read can be fulfilled by some locality: one value of a tier at most is wanted, and none both wanted and forbidden.
- `spelled` gives text that reads back as the same constraints.

Not here: which nodes there are (`dsdb.coordinator.placement`).
"""

import re
from collections.abc import Sequence

import msgspec

from dsdb.sql.errors import InvalidParameterError

CONSTRAINTS_MAX = 16
_CONSTRAINT = re.compile(r"\s*([+-]?)\s*([^\s=,+-][^=,]*?)\s*=\s*([^=,]*?)\s*")
_HINT = "Write 'region=eu,-machine=m3' for: in region eu, and not on machine m3."


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """That a locality has a tier, or that it has not."""

    tier: tuple[str, str]
    is_wanted: bool = True


Constraints = tuple[Constraint, ...]


def read_constraints(name: str, text: str) -> Constraints:
    """Read the text of a setting.  Raises InvalidParameterError."""
    if not text.strip():
        return ()
    if text.lstrip()[:1] in ("{", "["):
        raise InvalidParameterError(f"{name} holds for all replicas alike: {text!r} is not supported", hint=_HINT)
    found: dict[Constraint, None] = {}
    for part in text.split(","):
        match = _CONSTRAINT.fullmatch(part)
        if match is None or not match[3]:
            raise InvalidParameterError(f"{name} takes key=value or -key=value, with commas between, not {part.strip()!r}", hint=_HINT)
        found[Constraint((match[2], match[3]), match[1] != "-")] = None
    if len(found) > CONSTRAINTS_MAX:
        raise InvalidParameterError(f"{name} has {len(found)} constraints, more than {CONSTRAINTS_MAX}")
    _check(name, tuple(found))
    return tuple(found)


def spelled(constraints: Constraints) -> str:
    """Spell constraints."""
    return ",".join(f"{'' if constraint.is_wanted else '-'}{'='.join(constraint.tier)}" for constraint in constraints)


def is_met(constraints: Constraints, locality: Sequence[tuple[str, str]]) -> bool:
    """Say whether a locality meets all constraints."""
    return all((constraint.tier in locality) is constraint.is_wanted for constraint in constraints)


def _check(name: str, constraints: Constraints) -> None:
    wanted: dict[str, str] = {}
    for constraint in constraints:
        key, value = constraint.tier
        if constraint.is_wanted and wanted.setdefault(key, value) != value:
            raise InvalidParameterError(f"{name} can never hold: a node has one {key}, not both {wanted[key]} and {value}")
    for constraint in constraints:
        key, value = constraint.tier
        if not constraint.is_wanted and wanted.get(key) == value:
            raise InvalidParameterError(f"{name} can never hold: {key}={value} is both wanted and forbidden")
