"""Histories: what clients asked for and were told, in the one form that every checker of this folder reads.

A history is a sequence of transactions; a single operation is a transaction of one micro-operation.  Each has the process (client) that
ran it, the times at which it was invoked and answered, and its outcome:

    ok     the client was told that it took effect; it did so between `invoked` and `completed`
    fail   the client was told that it had no effect
    info   nobody knows; it took effect at any time after `invoked`, or never

The micro-operations are what the client did, in its order, with what it was given.  A read whose result nobody saw is left out.  The form
is that of Jepsen's and Elle's histories (Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations",
VLDB 2020), with one entry a transaction in place of two.

Invariants:
- Numbers are unique; `ok` has a time of completion, which is not before the invocation.
- A process runs one transaction at a time; one whose outcome is unknown is over when its process begins another.
- Times come from one clock that all processes share.  Where they do not share one, checkers are told to leave real time out.
- What was saved and loaded again is equal.

Not here: what a history promises, which each checker says.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")
Key = int | str
Value = int | str | None
FORMAT = "dsdb-history-1"


class BadHistoryError(ValueError):
    """A history breaks the form, or uses what a checker cannot judge: the recorder is wrong, not the system."""


class Violation(AssertionError):
    """Something that must hold did not."""


class Outcome(StrEnum):
    """What the client was told."""

    OK = "ok"
    FAIL = "fail"
    INFO = "info"


# ---- Micro-operations; positional, as histories are also written by hand ----


class Append(msgspec.Struct, frozen=True, tag="append"):
    """Add a value, unique for its list, to the end of a list."""

    key: Key
    value: Value


class ReadList(msgspec.Struct, frozen=True, tag="list"):
    """Read a list; `()` if it is not there."""

    key: Key
    values: tuple[Value, ...]


class Write(msgspec.Struct, frozen=True, tag="write"):
    """Set a register."""

    key: Key
    value: Value


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Read a register, or a row by its key; None if it is not there."""

    key: Key
    value: Value


class Cas(msgspec.Struct, frozen=True, tag="cas"):
    """Set a register to `new` where it was `old`; where it was not, the outcome is `fail`."""

    key: Key
    old: Value
    new: Value


class Increment(msgspec.Struct, frozen=True, tag="increment"):
    """Add one to a register; `result` is the value after it, if the client was given it."""

    key: Key
    result: int | None = None


class Insert(msgspec.Struct, frozen=True, tag="insert"):
    """Insert a row, by its key; keys are inserted once.  `group` is the column that `Select` asks for."""

    key: Key
    group: Key | None = None


class Scan(msgspec.Struct, frozen=True, tag="scan"):
    """Read all rows with start <= key < end; None is no bound."""

    keys: tuple[Key, ...]
    start: Key | None = None
    end: Key | None = None

    def covers(self, key: Key) -> bool:
        """Say whether a row would have been read, were it there.  Raises TypeError for a key that does not compare with the bounds."""
        return (self.start is None or self.start <= key) and (self.end is None or key < self.end)  # type: ignore[operator]


class Select(msgspec.Struct, frozen=True, tag="select"):
    """Read the keys of all rows of a group."""

    group: Key
    keys: tuple[Key, ...]


Op = Append | ReadList | Write | Read | Cas | Increment | Insert | Scan | Select


class Txn(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction, as its client saw it."""

    number: int
    process: int
    invoked: int
    completed: int | None = None  # None: never answered, or nobody knows when; not used of an `info`
    outcome: Outcome
    ops: tuple[Op, ...] = ()
    ts: int | None = None  # the commit timestamp, if the client was given it
    error: str = ""  # what the client was told of a `fail` or an `info`

    def ended(self) -> int | None:
        """Give the time after which it can no longer take effect; None if there is none."""
        return self.completed if self.outcome is Outcome.OK else None

    def __str__(self) -> str:
        """Describe it in one line."""
        until = "…" if self.completed is None else self.completed
        ts = "" if self.ts is None else f" at {self.ts}"
        return f"T{self.number} (process {self.process}, {self.invoked}–{until}, {self.outcome}{ts}): {'; '.join(map(describe, self.ops))}"


def describe(op: Op) -> str:
    """Give a micro-operation in a few words."""
    match op:
        case Append():
            return f"append {op.value!r} to {op.key}"
        case ReadList():
            return f"{op.key} is {_shortened(op.values)}"
        case Write():
            return f"{op.key} := {op.value!r}"
        case Read():
            return f"{op.key} is {op.value!r}"
        case Cas():
            return f"{op.key} from {op.old!r} to {op.new!r}"
        case Increment():
            return f"{op.key} += 1" + ("" if op.result is None else f" gives {op.result}")
        case Insert():
            return f"insert {op.key!r}" + ("" if op.group is None else f" into {op.group}")
        case Scan():
            return f"[{op.start}, {op.end}) has {_shortened(op.keys)}"
        case Select():
            return f"{op.group} has {_shortened(op.keys)}"


def _shortened(values: tuple[Value, ...], shown: int = 12) -> str:
    if len(values) <= shown:
        return str(list(values))
    return f"[{len(values) - shown} more, {', '.join(map(repr, values[-shown:]))}]"


class Anomaly(msgspec.Struct, frozen=True, kw_only=True):
    """What a history has that its system promised not to do."""

    name: str
    explanation: str
    txns: tuple[int, ...] = ()  # the numbers of those concerned; of a cycle, in its order

    def __str__(self) -> str:
        """Give the name and the explanation."""
        return f"{self.name}: {self.explanation}"


def anomaly(name: str, explanation: str, *txns: Txn) -> Anomaly:
    """Make an anomaly that shows the transactions concerned."""
    lines = "".join(f"\n  {txn}" for txn in txns)
    return Anomaly(name=name, explanation=explanation + lines, txns=tuple(txn.number for txn in txns))


class History:
    """Transactions in the order of their invocations.  Raises BadHistoryError if they break the form."""

    def __init__(self, txns: Iterable[Txn], about: str = "") -> None:
        self.txns: tuple[Txn, ...] = tuple(sorted(txns, key=lambda txn: (txn.invoked, txn.number)))
        self.about = about  # where it is from, such as the seed
        self._check()

    def _check(self) -> None:
        busy: dict[int, Txn] = {}
        numbers: set[int] = set()
        for txn in self.txns:
            if txn.number in numbers:
                raise BadHistoryError(f"two transactions are number {txn.number}")
            numbers.add(txn.number)
            if txn.outcome is Outcome.OK and (txn.completed is None or txn.completed < txn.invoked):
                raise BadHistoryError(f"{txn} has no time of completion after its invocation")
            before = busy.get(txn.process)
            if before is not None and before.outcome is Outcome.OK and (before.completed or 0) > txn.invoked:
                raise BadHistoryError(f"one process runs two transactions at once: {before} and {txn}")
            busy[txn.process] = txn

    def with_outcome(self, *outcomes: Outcome) -> Iterator[Txn]:
        """Give the transactions of some outcomes."""
        return (txn for txn in self.txns if txn.outcome in outcomes)

    def processes(self) -> dict[int, list[Txn]]:
        """Give each process's transactions, in their order."""
        found: dict[int, list[Txn]] = defaultdict(list)
        for txn in self.txns:
            found[txn.process].append(txn)
        return dict(sorted(found.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and (self.txns, self.about) == (other.txns, other.about)

    def __hash__(self) -> int:
        return hash(self.txns)

    def save(self, path: Path) -> None:
        """Write it as JSON lines: a header, then one transaction a line."""
        encode = msgspec.json.encode
        lines = [encode({"format": FORMAT, "about": self.about}), *map(encode, self.txns)]
        path.write_bytes(b"\n".join(lines) + b"\n")


def took_effect(history: History, writers: Mapping[T, Txn], seen: Callable[[Txn], Iterable[T]]) -> list[Txn]:
    """Give the transactions that certainly took effect: the acknowledged ones, and unknown ones of which one of these has seen something.

    `writers` says who wrote what; `seen` what a transaction has read.
    """
    committed = {txn.number for txn in history.with_outcome(Outcome.OK)}
    unknown = {what: txn for what, txn in writers.items() if txn.outcome is Outcome.INFO}
    fresh = list(history.with_outcome(Outcome.OK)) if unknown else []
    while fresh:
        found = {unknown[what].number: unknown[what] for txn in fresh for what in seen(txn) if what in unknown}
        fresh = [txn for number, txn in found.items() if number not in committed]
        committed.update(found)
    return [txn for txn in history.txns if txn.number in committed]


def load(path: Path) -> History:
    """Read what `save` wrote.  Raises BadHistoryError if it is something else."""
    header, *lines = path.read_bytes().splitlines() or [b""]
    try:
        start = msgspec.json.decode(header, type=dict[str, str])
        if start.get("format") != FORMAT:
            raise BadHistoryError(f"{path} is of format {start.get('format')!r}, not {FORMAT!r}")
        decode = msgspec.json.Decoder(Txn).decode
        return History(map(decode, lines), start.get("about", ""))
    except msgspec.MsgspecError as error:
        raise BadHistoryError(f"{path} is not a history: {error}") from error


class Pending:
    """A transaction that its client is still at: micro-operations are added to it as they are answered."""

    def __init__(self, number: int, process: int, invoked: int) -> None:
        self.number = number
        self.process = process
        self.invoked = invoked
        self.ops: list[Op] = []
        self.is_over = False

    def restart(self) -> None:
        """Forget the micro-operations of an attempt that had no effect."""
        self.ops.clear()


class Recorder:
    """Makes a history while clients run.

    Without a clock, times are the places of the events in the order in which the recorder hears of them: right where all clients are in one
    process, as in a simulation.  Elsewhere `clock` is one that all of them share, such as `time.monotonic_ns` on one machine.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock or itertools.count(1).__next__
        self._pending: dict[int, Pending] = {}
        self._txns: list[Txn] = []

    def begin(self, process: int) -> Pending:
        """Note that a process asks for something: to be called before anything is sent."""
        number = len(self._txns) + len(self._pending) + 1
        pending = self._pending[number] = Pending(number, process, self._clock())
        return pending

    def ok(self, pending: Pending, ts: int | None = None) -> None:
        """Note that it took effect: to be called after the answer is there."""
        self._end(pending, Outcome.OK, ts=ts)

    def fail(self, pending: Pending, error: str = "") -> None:
        """Note that it is known to have had no effect."""
        self._end(pending, Outcome.FAIL, error=error)

    def info(self, pending: Pending, error: str = "") -> None:
        """Note that nobody knows."""
        self._end(pending, Outcome.INFO, error=error)

    def _end(self, pending: Pending, outcome: Outcome, ts: int | None = None, error: str = "") -> None:
        assert not pending.is_over, f"transaction {pending.number} ended twice"
        pending.is_over = True
        del self._pending[pending.number]
        self._txns.append(self._txn(pending, self._clock(), outcome, ts, error))

    def _txn(self, pending: Pending, completed: int | None, outcome: Outcome, ts: int | None, error: str) -> Txn:
        ops, invoked = tuple(pending.ops), pending.invoked
        return Txn(
            number=pending.number,
            process=pending.process,
            invoked=invoked,
            completed=completed,
            outcome=outcome,
            ops=ops,
            ts=ts,
            error=error,
        )

    def history(self, about: str = "") -> History:
        """Give what happened up to now; what is not over is unknown."""
        unknown = [self._txn(pending, None, Outcome.INFO, None, "") for pending in self._pending.values()]
        return History([*self._txns, *unknown], about)


def explain(anomalies: Sequence[Anomaly], shown: int = 5) -> str:
    """Give the first anomalies as text, and how many there are of each name."""
    counts: dict[str, int] = defaultdict(int)
    for each in anomalies:
        counts[each.name] += 1
    total = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return "\n".join([total, *map(str, anomalies[:shown])])


def refuse(anomalies: Sequence[Anomaly], history: History, keep: Path | None = None) -> None:
    """Raise Violation if there is any anomaly; the history is then kept at `keep`."""
    if anomalies:
        if keep is not None:
            history.save(keep)
        raise Violation(explain(anomalies) + ("" if keep is None else f"\nhistory: {keep}"))
