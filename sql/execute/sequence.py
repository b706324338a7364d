"""Sequences: values handed out in blocks, so that most of them cost no transaction.

    next value (a row of the system range) ── one transaction takes a block of `cache` values ──▶ this node's block ──▶ nextval

Invariants:
- A value is given once in the cluster (until setval), also by statements that fail: gaps are normal.
- Blocks of several nodes interleave: values order as they were taken, not as they were used.
- A block is dropped when the node stops, and at setval here; other nodes go on with theirs.
- Values of a sequence that an open transaction has made, or begun anew, are its own until it commits: nothing is stored before.

Not here: descriptors (`catalog`), currval and lastval, which are the session's (`session`).
"""

from collections.abc import Callable

import trio

from dsdb.sql.catalog import sequence_value_key
from dsdb.sql.errors import CannotConnectNowError, NumericOutOfRangeError, SerializationError, UnknownOutcomeError
from dsdb.sql.ports import AmbiguousCommitError, RangeUnavailableError, Transaction, TransactionRetryError
from dsdb.sql.schema import SequenceDescriptor

OWNED_CACHE = 256
"""Values in a block of a SERIAL, IDENTITY or row id column."""
ATTEMPTS_MAX = 50
_RETRY_PAUSE_S = 0.002


def _encode(value: int) -> bytes:
    # As text: behind a sequence's end the next value may need more than 64 bits.
    return str(value).encode()


def _decode(stored: bytes) -> int:
    return int(stored)


def _check_next(sequence: SequenceDescriptor, value: int) -> None:
    if not sequence.minimum <= value <= sequence.maximum:
        side, bound = ("maximum", sequence.maximum) if sequence.increment > 0 else ("minimum", sequence.minimum)
        raise SequenceLimitError(f'nextval: reached {side} value of sequence "{sequence.name}" ({bound})')


def _check_settable(sequence: SequenceDescriptor, value: int) -> None:
    if not sequence.minimum <= value <= sequence.maximum:
        bounds = f"({sequence.minimum}..{sequence.maximum})"
        raise NumericOutOfRangeError(f'setval: value {value} is out of bounds for sequence "{sequence.name}" {bounds}')


class OwnSequences:
    """Next values of the sequences that an open transaction has made or begun anew; going back to a savepoint does not bring them back."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}

    def begin(self, sequence: SequenceDescriptor) -> None:
        """Begin at the sequence's start."""
        self._next[sequence.sequence_id] = sequence.start

    def take(self, sequence: SequenceDescriptor, count: int) -> list[int]:
        """Give the next `count` values.  Raises NumericOutOfRangeError at the sequence's end."""
        values: list[int] = []
        value = self._next[sequence.sequence_id]
        for _ in range(count):
            _check_next(sequence, value)
            values.append(value)
            value += sequence.increment
        self._next[sequence.sequence_id] = value
        return values

    def set(self, sequence: SequenceDescriptor, value: int, *, is_called: bool) -> None:
        """Do what `SequenceCache.set` does."""
        _check_settable(sequence, value)
        self._next[sequence.sequence_id] = value + sequence.increment if is_called else value

    def store(self, sequence: SequenceDescriptor, txn: Transaction) -> None:
        """Buffer the next value, for the commit after which others take values."""
        txn.put(sequence_value_key(sequence.sequence_id), _encode(self._next[sequence.sequence_id]))


class SequenceCache:
    """This node's blocks of all sequences."""

    def __init__(self, begin: Callable[[], Transaction]) -> None:
        self._begin = begin
        self._blocks: dict[int, tuple[int, int]] = {}
        """By sequence id: the next value and how many are left."""

    def take_nowait(self, sequence: SequenceDescriptor) -> int | None:
        """Give the next value of this node's block, or None if it is used up."""
        block = self._blocks.get(sequence.sequence_id)
        if block is None:
            return None
        value, left = block
        if left > 1:
            self._blocks[sequence.sequence_id] = (value + sequence.increment, left - 1)
        else:
            del self._blocks[sequence.sequence_id]
        return value

    async def take(self, sequence: SequenceDescriptor, count: int) -> list[int]:
        """Give the next `count` values.  Raises NumericOutOfRangeError at the sequence's end."""
        values: list[int] = []
        while len(values) < count:
            value = self.take_nowait(sequence)
            if value is None:
                await self._fill(sequence, count - len(values))
            else:
                values.append(value)
        return values

    async def _fill(self, sequence: SequenceDescriptor, wanted: int) -> None:
        wanted = max(wanted, sequence.cache)
        for number in range(1, ATTEMPTS_MAX + 1):
            try:
                first, count = await self._allocate(sequence, wanted)
            except TransactionRetryError:
                await trio.sleep(_RETRY_PAUSE_S * number)
                continue
            except AmbiguousCommitError:
                # Perhaps taken, perhaps not: a gap at worst.
                continue
            except RangeUnavailableError as error:
                raise CannotConnectNowError(f'sequence "{sequence.name}" cannot be reached: {error}') from error
            # Another statement may have filled it meanwhile: its block is dropped, which is a gap.
            self._blocks[sequence.sequence_id] = (first, count)
            return
        raise SerializationError(f'sequence "{sequence.name}" is used by too many others at the same time', hint="Run the statement again.")

    async def _allocate(self, sequence: SequenceDescriptor, wanted: int) -> tuple[int, int]:
        """Take a block by one transaction: its first value, and how many."""
        txn = self._begin()
        key = sequence_value_key(sequence.sequence_id)
        [stored] = await txn.get([key])
        first = sequence.start if stored is None else _decode(stored)
        _check_next(sequence, first)
        room = sequence.maximum - first if sequence.increment > 0 else first - sequence.minimum
        count = min(wanted, room // abs(sequence.increment) + 1)
        txn.put(key, _encode(first + count * sequence.increment))
        await txn.commit()
        return first, count

    async def set(self, sequence: SequenceDescriptor, value: int, *, is_called: bool = True) -> None:
        """Make `value` the last one given (is_called), or the next one.  Raises NumericOutOfRangeError, SerializationError."""
        _check_settable(sequence, value)
        for number in range(1, ATTEMPTS_MAX + 1):
            txn = self._begin()
            txn.put(sequence_value_key(sequence.sequence_id), _encode(value + sequence.increment if is_called else value))
            try:
                await txn.commit()
            except TransactionRetryError:
                await trio.sleep(_RETRY_PAUSE_S * number)
                continue
            except AmbiguousCommitError as error:
                raise UnknownOutcomeError(f'whether sequence "{sequence.name}" was set is not known') from error
            except RangeUnavailableError as error:
                raise CannotConnectNowError(f'sequence "{sequence.name}" cannot be reached: {error}') from error
            self._blocks.pop(sequence.sequence_id, None)
            return
        raise SerializationError(f'sequence "{sequence.name}" is used by too many others at the same time', hint="Run the statement again.")

    def forget(self, sequence: SequenceDescriptor) -> None:
        """Drop this node's block: the sequence begins anew."""
        self._blocks.pop(sequence.sequence_id, None)


class SequenceLimitError(NumericOutOfRangeError):
    """A sequence has no further value."""

    sqlstate = "2200H"
