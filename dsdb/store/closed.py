"""Closed timestamps: what leaseholders promise never to write at or below any more, and how all replicas learn of it (rule 23).

    issued timestamps ─▶ target: the newest that was known `closed_lag_s` ago (`IssuedLine`)
    leaseholder       ─▶ writes at or below the target are bumped; so it promises (target, last index of its log):
                         ├─ in the range's next command (`Replica.promise_in_log`): kept with the applied index
                         └─ beside the log, for all ranges led here, one update for each peer and interval (`Telling` ─▶ `Promises`)
    replica           ─▶ closed = the highest promise whose index it has applied

A promise (ts, index) says that every write at or below ts that its range ever has stands in the log at or below the index.  That is true
of the committed log for ever, whoever leads: what this leaseholder had evaluated at or below ts was in its log already, what it evaluates
later is bumped above, older leaseholders' entries stand before its own first one, and later leaseholders' low water lies above ts, as ts
had been issued while this lease was held.  So a promise needs no term, and none of it has to be known to the next leaseholder.

An update names the ranges whose index has changed since the last one; to all others that were named before, the new timestamp applies at
the index that they had.  A range at rest therefore costs nothing, and where nothing is written anywhere no update is sent.

Invariants:
- Nothing above an issued timestamp is closed.
- An update counts only behind the one that was sent before it; whoever has missed one forgets the sender's, and asks for all anew.
- What is closed never goes back: a promise that counts is kept before another one takes its place.

Sans-I/O: times and indexes come in as values.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from dsdb.kv.ids import RangeId, StoreId
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store.frame import ClosedUpdate

RANGES_MAX = 20_000
"""Ranges that one peer is told of beside the log, 300 kB in one frame; others close by their commands alone."""


class IssuedLine:
    """What is known of the timestamps that were issued, and since when."""

    def __init__(self, lag_s: float) -> None:
        self.lag_s = lag_s
        """May be changed at any time; after it has grown nothing is given for as long as it has grown by."""
        self._samples: deque[tuple[float, Timestamp]] = deque()
        """The newest one at a few moments of the last `lag_s`, and at one before; ascending."""

    def target(self, now: float, newest: Timestamp) -> Timestamp:
        """Give the newest timestamp that was known `lag_s` ago; newest: the one that is known now."""
        samples = self._samples
        if not samples or newest > samples[-1][1]:
            samples.append((now, newest))
        known_by = now - self.lag_s
        while len(samples) > 1 and samples[1][0] <= known_by:
            samples.popleft()
        at, ts = samples[0]
        return ts if at <= known_by else MIN_TIMESTAMP


class _Told:
    """What a peer was told."""

    __slots__ = ("indexes", "number", "session")

    def __init__(self, session: int) -> None:
        self.session = session
        self.number = 0
        """Updates sent in this session."""
        self.indexes: dict[RangeId, int] = {}
        """Range → the index of its promise."""


class Telling:
    """The updates that a store makes for its peers."""

    def __init__(self, life: int) -> None:
        self._session = life
        """Names the next session; those of two lives of a store never meet, as `life` was drawn."""
        self._told: dict[StoreId, _Told] = {}

    def peers(self) -> list[StoreId]:
        """Give the stores that believe something, ascending."""
        return sorted(self._told)

    def begin_again(self, store: StoreId) -> None:
        """Tell a peer everything anew: it has missed something."""
        self._told.pop(store, None)

    def update(self, store: StoreId, ts: Timestamp, indexes: Mapping[RangeId, int]) -> ClosedUpdate:
        """Make the update that says: `ts` is closed in these ranges, and in no others, at these indexes."""
        told = self._told.get(store)
        if told is None:
            told = self._told[store] = _Told(self._session)
            self._session += 1
        before = told.indexes
        told.indexes = dict(indexes)
        told.number += 1
        if not indexes:
            del self._told[store]
        return ClosedUpdate(
            session=told.session,
            number=told.number,
            ts=ts,
            changed=tuple(sorted([(range_id, index) for range_id, index in indexes.items() if before.get(range_id) != index])),
            dropped=tuple(sorted([range_id for range_id in before if range_id not in indexes])),
        )

    def amend(self, store: StoreId, ts: Timestamp, indexes: Mapping[RangeId, int], looked_at: Sequence[RangeId]) -> ClosedUpdate | None:
        """Make the update that says: `ts`, as in the last one, is closed at these indexes of the ranges looked at, in no others of them.

        None: that is what the peer believes.  No range looked at: a repetition.
        """
        told = self._told.get(store)
        if told is None:
            return self.update(store, ts, indexes) if indexes else None
        before = told.indexes
        changed = tuple([(one, indexes[one]) for one in looked_at if one in indexes and before.get(one) != indexes[one]])
        dropped = tuple([one for one in looked_at if one not in indexes and one in before])
        if looked_at and not changed and not dropped:
            return None
        told.indexes.update(changed)
        for range_id in dropped:
            del told.indexes[range_id]
        told.number += 1
        if not told.indexes:
            del self._told[store]
        return ClosedUpdate(session=told.session, number=told.number, ts=ts, changed=changed, dropped=dropped)


class _Heard:
    """What one store has promised for the ranges that it leads."""

    __slots__ = ("indexes", "number", "session", "ts")

    def __init__(self, session: int) -> None:
        self.session = session
        self.number = 0
        self.ts: Timestamp = MIN_TIMESTAMP
        self.indexes: dict[RangeId, int] = {}


class Promises:
    """What stores have promised beside the log, this one among them.

    keep: called with a range whose promise is about to be replaced, so that it is kept if it counts.
    """

    def __init__(self, keep: Callable[[RangeId], None]) -> None:
        self._keep = keep
        self._heard: dict[StoreId, _Heard] = {}

    def closed(self, range_id: RangeId, applied: int) -> Timestamp:
        """Give the highest promise that counts for a replica which has applied its log up to an index."""
        best = MIN_TIMESTAMP
        for heard in self._heard.values():
            index = heard.indexes.get(range_id)
            if index is not None and index <= applied and heard.ts > best:
                best = heard.ts
        return best

    def take(self, store: StoreId, update: ClosedUpdate) -> bool:
        """Take an update.  False: an earlier one is missing, and everything must be told anew."""
        heard = self._heard.get(store)
        if update.number == 1:
            self._forget(store)
            heard = self._heard[store] = _Heard(update.session)
        elif heard is None or heard.session != update.session or heard.number + 1 != update.number:
            self._forget(store)
            return False
        # At the indexes that they had the old timestamp is closed, and not the new one.
        for range_id in (*[range_id for range_id, _ in update.changed], *update.dropped):
            if range_id in heard.indexes:
                self._keep(range_id)
        heard.indexes.update(update.changed)
        for range_id in update.dropped:
            heard.indexes.pop(range_id, None)
        heard.ts, heard.number = update.ts, update.number
        return True

    def _forget(self, store: StoreId) -> None:
        heard = self._heard.get(store)
        if heard is not None:
            for range_id in heard.indexes:
                self._keep(range_id)
            del self._heard[store]
