"""Commands: what the log of a range carries, evaluated already; applying one checks only its header.

Invariants:
- A command says what to do in effects, not in requests: applying it gives the same on every replica.
- Fields are added at the end only: a log may hold commands of an earlier version.
"""

from typing import TypeAlias

import msgspec

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import AttemptId, StoreId
from dsdb.kv.intents import ResolveItem, TxnMeta
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp


class CommitCommand(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Write versions at `ts`, and the outcome of the attempt, unless it has one (rule 9)."""

    generation: int
    """Of the descriptor under which it was evaluated."""
    lease_term: int
    floor: Timestamp
    """Forget outcomes up to here first."""
    attempt: AttemptId
    first_ts: Timestamp
    ts: Timestamp
    keys: tuple[bytes, ...]
    """Ascending."""
    values: tuple[bytes | None, ...]
    closed: Timestamp = MIN_TIMESTAMP
    """Everything at or below it that the range ever has is in the log before this command, or is this command (rule 23)."""


class RefuseCommand(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Record the refusal of an attempt, unless it has an outcome (rule 10)."""

    lease_term: int
    attempt: AttemptId
    first_ts: Timestamp


class RaiseMarkCommand(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Raise the oracle's mark."""

    lease_term: int
    mark: Timestamp


class SplitCommand(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Cut the range: it becomes `left`, and `right` begins."""

    generation: int
    lease_term: int
    left: RangeDescriptor
    right: RangeDescriptor
    left_size_bytes: int
    """The part of the size that stays."""
    closed: Timestamp = MIN_TIMESTAMP
    """As in CommitCommand; of both sides."""
    right_size_bytes: int | None = None
    """The part of the size that goes; None, in an old log: as much as stays."""


class ClearSpanCommand(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Remove everything in a span."""

    generation: int
    lease_term: int
    span: Span
    size_bytes: int = 0
    """What the span had."""


class CollectGarbageCommand(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Raise the threshold, and remove what no read at or above it sees in a span."""

    generation: int
    lease_term: int
    span: Span
    threshold: Timestamp


class ChangeReplicasCommand(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """The store's part of a membership change: the descriptor that goes with it.  Travels as the context of a CONFIG entry."""

    generation: int
    descriptor: RangeDescriptor


class PrewriteCommand(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Lay intents at `ts` (rule 13), in place of the attempt's own that are there (rules 27 and 29)."""

    generation: int
    lease_term: int
    meta: TxnMeta
    ts: Timestamp
    keys: tuple[bytes, ...]
    """Ascending."""
    values: tuple[bytes | None, ...]
    closed: Timestamp = MIN_TIMESTAMP
    """As in CommitCommand."""
    sequence: int = 0
    older: tuple[tuple[int, tuple[tuple[int, bytes | None], ...]], ...] = ()
    """Places of keys whose intents keep earlier writes, ascending, and these (`mvcc.Intent.older`)."""
    nothing: tuple[int, ...] = ()
    """Places of keys whose intents are of nothing."""


class StageCommand(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Create the txn record of an attempt as STAGING at `ts`, raise it there, or make it COMMITTED (rules 14, 15).

    Lays intents at `ts`, too.
    """

    generation: int
    lease_term: int
    meta: TxnMeta
    ts: Timestamp
    keys: tuple[bytes, ...]
    is_final: bool
    laid: tuple[bytes, ...] = ()
    """Ascending."""
    values: tuple[bytes | None, ...] = ()
    closed: Timestamp = MIN_TIMESTAMP
    """As in CommitCommand."""
    spans: tuple[Span, ...] = ()


class EndTxnCommand(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """Finish a STAGING record, if it stands where it was seen (rule 19), or a PENDING one, and resolve some of its intents."""

    generation: int
    lease_term: int
    meta: TxnMeta
    commit_ts: Timestamp | None
    expected: Timestamp | None
    resolve: tuple[bytes, ...]
    """Ascending."""


class ResolveCommand(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """Turn intents into versions, or remove them (rule 21)."""

    generation: int
    lease_term: int
    items: tuple[ResolveItem, ...]


class RemoveRecordsCommand(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """Remove records that are finished (rule 22)."""

    lease_term: int
    attempts: tuple[AttemptId, ...]


class BeginTxnCommand(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """Create the txn record of an attempt as PENDING, or have it name other spans (rule 28)."""

    generation: int
    lease_term: int
    meta: TxnMeta
    spans: tuple[Span, ...]


class ChecksumCommand(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """Change nothing: have each replica sum up the range as it is at this place of the log, and tell `collector` (`consistency`)."""

    lease_term: int
    check: int
    collector: StoreId
    is_urgent: bool


class LayBlockCommand(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """Lay a block intent at `ts` (rule 33)."""

    generation: int
    lease_term: int
    meta: TxnMeta
    ts: Timestamp
    sequence: int
    first_key: bytes
    last_key: bytes
    entry: bytes
    chunks: tuple[bytes, ...]
    closed: Timestamp = MIN_TIMESTAMP
    """As in CommitCommand."""


class DropBlockCommand(msgspec.Struct, frozen=True, array_like=True, tag=16, gc=False):
    """Remove a block intent of an attempt, each of whose rows has an intent of its own by now."""

    generation: int
    lease_term: int
    attempt: AttemptId
    first_key: bytes


IntentCommand: TypeAlias = (
    PrewriteCommand
    | StageCommand
    | EndTxnCommand
    | ResolveCommand
    | RemoveRecordsCommand
    | BeginTxnCommand
    | LayBlockCommand
    | DropBlockCommand
)
INTENT_COMMANDS = (
    *(PrewriteCommand, StageCommand, EndTxnCommand, ResolveCommand),
    *(RemoveRecordsCommand, BeginTxnCommand, LayBlockCommand, DropBlockCommand),
)
"""For isinstance."""
Command: TypeAlias = (
    CommitCommand
    | RefuseCommand
    | RaiseMarkCommand
    | SplitCommand
    | ClearSpanCommand
    | CollectGarbageCommand
    | ChangeReplicasCommand
    | IntentCommand
    | ChecksumCommand
)


def keys_of(
    command: PrewriteCommand | StageCommand | EndTxnCommand | ResolveCommand | BeginTxnCommand | LayBlockCommand | DropBlockCommand,
) -> tuple[bytes, ...]:
    """Give the keys of the range that a command touches."""
    match command:
        case BeginTxnCommand():
            return (command.meta.anchor,)
        case PrewriteCommand():
            return command.keys
        case LayBlockCommand():
            return (command.first_key, command.last_key)
        case DropBlockCommand():
            return (command.first_key,)
        case StageCommand():
            return (command.meta.anchor, *command.laid)
        case EndTxnCommand():
            return (command.meta.anchor, *command.resolve)
        case ResolveCommand():
            return tuple([key for item in command.items for key in item.keys])


encode_command = msgspec.msgpack.Encoder().encode
_decoder: "msgspec.msgpack.Decoder[Command]" = msgspec.msgpack.Decoder(Command)


def decode_command(data: bytes) -> Command:
    """Decode a command.  Raises msgspec.DecodeError on anything else: then this version cannot apply the log, and must stop."""
    return _decoder.decode(data)
