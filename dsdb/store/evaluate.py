"""What a leaseholder checks before it answers: reads, commits, refreshes; the rules of docs/transactions.md by number.

Each function is a plain call without a wait, and is atomic for all others on this store: it answers, asks to be called again after a
latch (`Blocked`), when intents of others are out of the way (`IntentsMet`), or with a fresh timestamp, or gives a command to be proposed.

Not here: what is checked for commits over many ranges (`intents`).

Invariants:
- A read is in the timestamp cache before anything else can be evaluated (rule 4).
- A commit is evaluated once, under its latches, with everything that decides it seen at one moment (rule 8).  The versions under the
  keys of a large one, and in the spans that it read, are looked up before (`Seen`): nobody else can change them until its latches or
  the lease are given up.
- Nothing is answered without the lease having been held at the moment of evaluation.
"""

from collections.abc import Sequence

import msgspec

from dsdb.kv.errors import BelowThreshold, Conflict, DeadlinePassed, Gone, InvalidRequest, KeyExists, KvError, Refused
from dsdb.kv.ids import AttemptId
from dsdb.kv.requests import BumpReply, CommitReply, CommitRequest, ReadReply, ReadRequest, RefreshRequest, ScanReply, ScanRequest, Write
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS
from dsdb.storage.keys import Span, key_after
from dsdb.storage.mvcc import Intent, IntentsFoundError
from dsdb.storage.timestamp import COUNTER_BITS, MIN_TIMESTAMP, Timestamp
from dsdb.storage.versions import View
from dsdb.store.command import CommitCommand
from dsdb.store.latches import Latch
from dsdb.store.replica import Replica

SLICE_WRITES = 512
"""Writes of one commit whose newest versions are looked up at once: 1 to 4 ms."""


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What was looked up for a large commit under its latches: it holds as long as they and the lease do."""

    lease_term: int
    has_versions: bool = False
    """The next two are known, of all of its keys."""
    newest_ts: Timestamp = MIN_TIMESTAMP
    """Of the newest version of any of the keys."""
    existing: bytes | None = None
    """The first key that must be absent and is not."""
    unchanged_to: Timestamp = MIN_TIMESTAMP
    """Up to here nobody changed what it read in this range, and no foreign intent may come to."""


class Blocked(Exception):
    """A read met a write that is evaluated and not applied: come again when it is."""

    def __init__(self, latch: Latch) -> None:
        super().__init__("blocked by a latch")
        self.latch = latch


class IntentsMet(Exception):
    """Foreign intents stand in the way of a request at `ts`: get them out of it without latches, then come again."""

    def __init__(self, intents: list[tuple[bytes, Intent]], ts: Timestamp, *, is_write: bool, is_read: bool = False) -> None:
        super().__init__(f"{len(intents)} intents in the way")
        self.intents = intents
        """User keys and intents; there may be more."""
        self.ts = ts
        self.is_write = is_write
        """They must end; else it is enough that they are pushed above `ts`."""
        self.is_read = is_read
        """They are looked at as values: it is also enough to know when their attempts were committed."""


# ---- Reads ----


def read(replica: Replica, request: ReadRequest, ts: Timestamp) -> ReadReply:
    """Read keys at `ts` (rules 3 and 4).  Raises Blocked, IntentsMet, KvError."""
    if request.any_replica and replica.takes_past_read(ts):
        return _read_past(replica, request.keys, ts)
    replica.require_lease()
    keys = request.keys
    state = replica.machine.state
    descriptor = state.descriptor
    start, end = descriptor.start_key, descriptor.end_key
    latches = replica.latches
    has_latches = len(latches) > 0
    for key in keys:
        if not start <= key < end:
            replica.require_keys(key, key)
        if has_latches:
            latch = latches.blocking_key(key, ts)
            if latch is not None:
                raise Blocked(latch)
    if ts < state.threshold:
        raise KvError(BelowThreshold(state.threshold))
    try:
        replica.machine.provisional.pass_at(keys, ts, request.attempt, replica.passable)
        values = replica.rows.get_many(keys, View(ts, request.attempt, replica.passable, replica.committed))
    except IntentsFoundError as error:
        raise IntentsMet(error.intents, ts, is_write=False, is_read=True) from None
    note = replica.cache.note_key
    for key in keys:
        note(key, ts, request.attempt)
    replica.read_bytes += sum([len(value) for value in values if value is not None])
    return ReadReply(ts, tuple(values))


def _read_past(replica: Replica, keys: Sequence[bytes], ts: Timestamp) -> ReadReply:
    replica.require_keys(min(keys), max(keys))
    threshold = replica.machine.state.threshold
    if ts < threshold:
        raise KvError(BelowThreshold(threshold))
    try:
        return ReadReply(ts, tuple(replica.rows.get_many(keys, View(ts))))
    except IntentsFoundError:
        raise KvError(replica.no_lease()) from None


def check_span_read(replica: Replica, span: Span, ts: Timestamp, *, is_past: bool = False) -> None:
    """Check all that must hold for a read of a span at `ts`; is_past: without the lease.  Raises Blocked, KvError."""
    if not is_past:
        replica.require_lease()
    replica.require_span(span)
    state = replica.machine.state
    if ts < state.threshold:
        raise KvError(BelowThreshold(state.threshold))
    latch = replica.latches.blocking_span(span, ts)
    if latch is not None:
        raise Blocked(latch)


def scan(replica: Replica, request: ScanRequest, ts: Timestamp) -> ScanReply:
    """Read the rows of a span at `ts` up to the limits; record the part that was read.  Raises Blocked, IntentsMet, KvError."""
    span = request.span
    if request.rows_max < 1 or span.is_empty:
        raise KvError(InvalidRequest(f"a scan of {request.rows_max} rows in {span.start.hex()} to {span.end.hex()}"))
    is_past = request.any_replica and replica.takes_past_read(ts)
    check_span_read(replica, span, ts, is_past=is_past)
    config = replica.context.config
    rows_max = min(request.rows_max, config.scan_rows_max)
    bytes_max = min(max(request.bytes_max, 1), config.scan_read_bytes_max)
    keys: list[bytes] = []
    values: list[bytes] = []
    try:
        if not is_past:
            replica.machine.provisional.pass_in(span, ts, request.attempt, replica.passable)
        is_over = _collect(replica, request, ts, rows_max, bytes_max, keys, values)
    except IntentsFoundError as error:
        raise IntentsMet(error.intents, ts, is_write=False, is_read=True) from None
    done, resume = span, None
    if is_over is False:
        if request.reverse:
            done, resume = Span(keys[-1], span.end), Span(span.start, keys[-1])
        else:
            done, resume = Span(span.start, key_after(keys[-1])), Span(key_after(keys[-1]), span.end)
        if resume.is_empty:
            done, resume = span, None
    if not is_past:
        replica.cache.note_span(done, ts, request.attempt)
    replica.read_bytes += sum(map(len, values))
    return ScanReply(ts, tuple(keys), tuple(values), resume)


def _collect(
    replica: Replica, request: ScanRequest, ts: Timestamp, rows_max: int, bytes_max: int, keys: list[bytes], values: list[bytes]
) -> bool:
    """Gather rows up to the limits; say whether the span was read to its end."""
    taken = 0
    # One row more than asked for shows whether there is a rest.
    chunk_rows = min(rows_max + 1, SCAN_CHUNK_ROWS)
    view = View(ts, request.attempt, replica.passable, replica.committed)
    chunks = replica.rows.scan(request.span, view, reverse=request.reverse, chunk_rows=chunk_rows)
    for chunk_keys, chunk_values in chunks:
        for key, value in zip(chunk_keys, chunk_values):
            if len(keys) >= rows_max or (keys and taken + len(value) > bytes_max):
                return False
            keys.append(key)
            values.append(value)
            taken += len(value)
    return True


# ---- Commits ----


def check_commit(request: CommitRequest) -> tuple[tuple[bytes, ...], tuple[Write, ...]]:
    """Give the keys and writes of a commit in key order.  Raises InvalidRequest on one that makes no sense."""
    writes = request.writes
    if len(writes) > 1:
        writes = tuple(sorted(writes, key=lambda write: write.key))
    keys = tuple([write.key for write in writes])
    if not keys or len(set(keys)) != len(keys):
        raise KvError(InvalidRequest("a commit needs writes, and one of each key"))
    if request.ts is None and request.has_other_reads:
        raise KvError(InvalidRequest("a commit with reads in other ranges must say at which timestamp they hold"))
    return keys, writes


def recorded_outcome(replica: Replica, request: CommitRequest) -> CommitReply | None:
    """Give the recorded outcome of the attempt (rule 8a); None if there is none.  Raises Refused, Gone (rule 8b)."""
    machine = replica.machine
    outcome = machine.outcomes.get(request.attempt)
    if outcome is not None:
        if outcome.ts is None:
            raise KvError(Refused())
        return CommitReply(outcome.ts)
    if request.first_ts <= machine.state.floor:
        raise KvError(Gone())
    return None


def look_up(replica: Replica, keys: Sequence[bytes], writes: Sequence[Write], seen: Seen) -> Seen:
    """Look up the versions under some more keys of a large commit, under its latches.  Raises IntentsMet, KvError."""
    require_seen(replica, seen)
    newest_ts, existing = seen.newest_ts, seen.existing
    met = replica.machine.provisional.foreign_at(keys, None)
    for write, (standing_ts, is_there, intent) in zip(writes, replica.rows.standing_of(keys)):
        if intent is not None:
            met.append((write.key, intent))
        if standing_ts > newest_ts:
            newest_ts = standing_ts
        if is_there and write.must_be_absent and existing is None:
            existing = write.key
    if met:
        raise IntentsMet(met, newest_ts, is_write=True)
    return Seen(seen.lease_term, has_versions=True, newest_ts=newest_ts, existing=existing, unchanged_to=seen.unchanged_to)


def spans_to_refresh(request: CommitRequest) -> list[Span]:
    """Give the spans whose refresh may take long: points do not."""
    if request.read_ts is None or (request.ts is not None and request.ts <= request.read_ts):
        return []
    return [span for span in request.reads if span.end != span.start + b"\x00"]


def require_seen(replica: Replica, seen: Seen) -> None:
    """Raise KvError unless what was looked up still holds."""
    replica.require_lease()
    if replica.lease_term != seen.lease_term:
        # Another leaseholder may have written the keys since; that the lease is back does not help.
        raise KvError(replica.no_lease())


def evaluate_commit(
    replica: Replica, request: CommitRequest, keys: Sequence[bytes], writes: Sequence[Write], ts: Timestamp, seen: Seen | None = None
) -> CommitCommand | CommitReply | BumpReply:
    """Evaluate a commit at `ts`, under its latches.  A BumpReply means: not at this timestamp.  Raises IntentsMet, KvError."""
    replica.require_writable()
    replica.require_keys(keys[0], keys[-1])
    recorded = recorded_outcome(replica, request)
    if recorded is not None:
        return recorded
    attempt = request.attempt
    cache = replica.cache
    if seen is not None:
        require_seen(replica, seen)
    if seen is None or not seen.has_versions:
        bound, existing = _bound(replica, writes, ts, attempt)
    else:
        bound = cache.bound_of_all(keys, ts, attempt)
        if seen.newest_ts >= ts:
            bound = max(bound, seen.newest_ts)
        existing = seen.existing
    least = max(cache.low, replica.machine.state.threshold)
    if bound or ts <= least:
        return BumpReply(max(bound, least))
    _refresh_local(replica, request, ts, is_unchanged=seen is not None and ts <= seen.unchanged_to)
    if existing is not None:
        # The client learns that the key exists at this timestamp.
        cache.note_key(existing, ts, None)
        raise KvError(KeyExists(existing))
    if request.deadline is not None and ts >= request.deadline:
        raise KvError(DeadlinePassed(ts))
    state = replica.machine.state
    return CommitCommand(
        generation=state.descriptor.generation,
        lease_term=replica.lease_term,
        floor=_next_floor(replica, ts),
        attempt=attempt,
        first_ts=request.first_ts,
        ts=ts,
        keys=tuple(keys),
        values=tuple([write.value for write in writes]),
        closed=replica.promise_in_log(),
    )


def _bound(replica: Replica, writes: Sequence[Write], ts: Timestamp, attempt: AttemptId) -> tuple[Timestamp, bytes | None]:
    """Give the timestamp that writes must be above (0: `ts` will do), and the first key that must be absent and is not.

    Raises IntentsMet.
    """
    rows, cache = replica.rows, replica.cache
    bound = MIN_TIMESTAMP
    existing: bytes | None = None
    met = replica.machine.provisional.foreign_at([write.key for write in writes], None)
    for write in writes:
        key = write.key
        cached = cache.bound(key, ts, attempt)
        if cached > bound:
            bound = cached
        standing_ts, is_there, intent = rows.standing(key)
        if intent is not None:
            met.append((key, intent))
        if standing_ts >= ts and standing_ts > bound:
            bound = standing_ts
        if is_there and write.must_be_absent and existing is None:
            existing = key
    if met:
        raise IntentsMet(met, ts, is_write=True)
    return bound, existing


def _refresh_local(replica: Replica, request: CommitRequest, ts: Timestamp, *, is_unchanged: bool) -> None:
    """Carry the reads of a commit in this range up to its timestamp (rule 8d)."""
    if request.read_ts is None or not request.reads or ts <= request.read_ts:
        return
    _refresh(replica, request.reads, request.read_ts, ts, request.attempt, is_unchanged=is_unchanged)


def _refresh(
    replica: Replica, spans: Sequence[Span], low: Timestamp, high: Timestamp, attempt: AttemptId, *, is_unchanged: bool = False
) -> None:
    threshold = replica.machine.state.threshold
    if low < threshold:
        # A deletion in (low, high] may have been collected.
        raise KvError(BelowThreshold(threshold))
    for span in spans:
        replica.require_span(span)
    view = View(high, attempt, replica.passable)
    met: list[tuple[bytes, Intent]] = []
    for span in () if is_unchanged else spans:
        try:
            replica.machine.provisional.refresh_in(span, high, attempt, replica.passable)
            found = replica.rows.changed(span, low, view)
        except IntentsFoundError as error:
            met += error.intents
            continue
        if found is not None:
            raise KvError(Conflict(*found))
    if met:
        raise IntentsMet(met, high, is_write=False)
    for span in spans:
        replica.cache.note_span(span, high, attempt)


def refresh(replica: Replica, request: RefreshRequest) -> None:
    """Check that spans are unchanged over (low, high], and record them as read at high (rule 7).  Raises Blocked, IntentsMet, KvError."""
    for span in request.spans:
        check_span_read(replica, span, request.high)
    _refresh(replica, request.spans, request.low, request.high, request.attempt)


def record_refresh(replica: Replica, request: RefreshRequest, spans: Sequence[Span]) -> None:
    """Record spans as read at high before they are looked at: nobody writes at or below it any more.  Raises Blocked, KvError."""
    for span in spans:
        check_span_read(replica, span, request.high)
    threshold = replica.machine.state.threshold
    if request.low < threshold:
        raise KvError(BelowThreshold(threshold))
    for span in spans:
        replica.cache.note_span(span, request.high, request.attempt)


def _next_floor(replica: Replica, ts: Timestamp) -> Timestamp:
    """Give the floor to go with a command at `ts`: the present one, or a higher one when it is time (rule 11)."""
    config = replica.context.config
    machine = replica.machine
    floor = machine.state.floor
    keep = config.outcome_keep_ms << COUNTER_BITS
    if len(machine.outcomes) > config.outcomes_max and ts > floor:
        # Forget the older half of the time that the outcomes span.
        oldest = max(floor, machine.oldest_first_ts())
        return Timestamp(max(floor, oldest + (ts - oldest) // 2)) if ts > oldest else floor
    wanted = ts - keep
    if wanted > floor + (config.outcome_floor_step_ms << COUNTER_BITS):
        return Timestamp(wanted)
    return floor
