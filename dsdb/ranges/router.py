"""The router: gets an answer to a request from the range that holds its keys, wherever that is now.

    send(key, make) ─▶ cache ─ miss ─▶ meta scan in the system range
         │                └─▶ the store that probably leads: this one, or over rpc
         │                └─▶ for reads of the past: this node's replica first, whoever leads
         ◀── reply        ◀── NotLeaseholder, RangeKeyMismatch, RangeNotFound: learn, ask again
                          ◀── no connection: the next replica
                          ◀── a reply that was lost: ask again, if the request allows it

Invariants:
- A request whose effect would be different the second time is sent again only under the same attempt id (`kv.requests`): commits and
  refusals, whose first outcome stands, and everything about intents and records, which decide and not the order of requests.
- A request is sent to replicas of the range that it names only: one that was built for a range which does not hold its key any more goes
  back to the caller, who cuts it anew. (Any other range's leaseholder would say that it is not the leaseholder, for ever.)
- It ends within `deadline_s`: with an answer, with a KvError of the range, or with Unavailable (known to have had no effect) or
  AmbiguousResult (not known). Never a hang (B22).

Not here: transactions (`dsdb.txn`), and what a leaseholder checks (`dsdb.store`).
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import trio

from dsdb.env import Clock
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import (
    AmbiguousResult,
    Conflict,
    DeadlinePassed,
    KvError,
    NotLeaseholder,
    RangeKeyMismatch,
    RangeNotFound,
    Refused,
    Unavailable,
)
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, StoreId
from dsdb.kv.intents import IntentRequest
from dsdb.kv.locks import LockRequest
from dsdb.kv.requests import (
    CommitRequest,
    DescribeRequest,
    ReadRequest,
    RefreshRequest,
    RefuseRequest,
    Reply,
    Request,
    ScanReply,
    ScanRequest,
)
from dsdb.ranges.cache import CachedRange, RangeCache
from dsdb.ranges.methods import KV_CALL
from dsdb.rpc import CallFailed, NotSent, Peers, ReplyLost
from dsdb.storage.keys import META_PREFIX, SYSTEM_END, Span, key_after, meta_key, prefix_end

log = logging.getLogger("dsdb.ranges")

DEADLINE_S = 10.0
"""A request that found no leaseholder for this long is given up."""
CALL_TIMEOUT_S = 4.0
"""One try of one request; a store answers its own errors much sooner."""
PAUSE_MIN_S, PAUSE_MAX_S = 0.005, 0.2
"""Pauses between tries while a range has no leaseholder, doubling."""
META_PREFETCH_ROWS = 16
"""Descriptors read by one look-up: neighbours are often wanted next."""

_Commit = CommitRequest | RefuseRequest
_Repeatable = _Commit | IntentRequest
"""What has an effect, and may be sent again after a reply was lost."""
_WithoutEffect = DescribeRequest | LockRequest | ReadRequest | RefreshRequest | ScanRequest
_FINAL = AmbiguousResult | Conflict | DeadlinePassed | Refused
"""What no later copy of the same attempt can turn into a commit.  KeyExists is not among them: the key may be removed meanwhile."""
_DECODE_DESCRIPTOR = msgspec.msgpack.Decoder(RangeDescriptor).decode


class LocalStore(Protocol):
    """This node's own store, asked without a connection."""

    def try_serve(self, request: Request) -> Reply | None:
        """Answer at once, or None if it takes waiting.  Raises KvError."""

    async def serve(self, request: Request) -> Reply:
        """Answer.  Raises KvError."""


class Copies:
    """What became of the copies of a request: of one `send`, or of all that carry one attempt's commit."""

    __slots__ = ("in_doubt",)

    def __init__(self) -> None:
        self.in_doubt = False
        """One was sent and not answered: it may have taken effect, or may still do so, whatever a later one was told."""


class Router:
    """Requests to ranges, from this node."""

    def __init__(self, *, node_id: NodeId, local: LocalStore, peers: Peers, clock: Clock) -> None:
        self.node_id = node_id
        self.cache = RangeCache()
        self._local = local
        self._peers = peers
        self.clock = clock

    def try_send(self, key: bytes, make: Callable[[RangeDescriptor], Request]) -> Reply | None:
        """Answer from this node's own store at once, or give None: then `send`.  Raises no error of addressing; other KvErrors it does."""
        entry = self.cache.lookup(key)
        if entry is None or entry.leaseholder is None:
            return None
        replica = entry.desc.replica_on(entry.leaseholder)
        if replica is None or replica.node_id != self.node_id:
            return None
        try:
            return self._local.try_serve(make(entry.desc))
        except KvError as error:
            if isinstance(error.detail, NotLeaseholder | RangeKeyMismatch | RangeNotFound):
                self._learn(entry, error.detail)
                return None
            raise

    async def send(
        self,
        key: bytes,
        make: Callable[[RangeDescriptor], Request],
        *,
        deadline_s: float = DEADLINE_S,
        copies: Copies | None = None,
    ) -> Reply:
        """Get an answer from the range that holds `key`; `make` builds the request for its descriptor, again for each try.

        copies: told whether some copy stays unanswered; those of an earlier `send` of the same commit count too.
        Raises KvError: the range's own answer, RangeKeyMismatch if what `make` builds does not fit the range even after learning
        the newest descriptor (the caller must cut it up again), Unavailable or AmbiguousResult.
        """
        search = _Search(self.clock.now() + deadline_s, Copies() if copies is None else copies)
        try:
            return await self._send(key, make, search)
        except KvError as error:
            if search.is_ambiguous and not isinstance(error.detail, _FINAL | RangeKeyMismatch):
                # An earlier copy may have been applied, or still be on its way: whatever this one met does not decide.
                # After a mismatch the caller cuts again, and looks at `copies`.
                raise KvError(AmbiguousResult(str(error))) from error
            raise

    async def _send(self, key: bytes, make: Callable[[RangeDescriptor], Request], search: "_Search") -> Reply:
        while True:
            entry = await self._entry(key, search)
            request = make(entry.desc)
            if request.range_id != entry.desc.range_id:
                raise KvError(RangeKeyMismatch((entry.desc,)))
            search.is_commit = isinstance(request, _Commit)
            near = self._near_replica(entry, request, search)
            target = near or search.next_replica(entry)
            try:
                return await self._ask(target, request, search)
            except KvError as error:
                if near is not None and isinstance(error.detail, NotLeaseholder | RangeNotFound):
                    continue  # it is not resolved here: on to the leaseholder, of whom this replica may know less than we
                await self._after_error(error, entry, request, search)
            except NotSent as error:
                search.note(f"range {entry.desc.range_id}: {error}")
                entry.leaseholder = None
                await self._pause(search)
            except (ReplyLost, CallFailed) as error:
                is_lost = isinstance(error, ReplyLost)
                search.note(f"range {entry.desc.range_id}: {error}", in_doubt=is_lost and isinstance(request, _Repeatable))
                entry.leaseholder = None
                await self._pause(search)

    def _near_replica(self, entry: CachedRange, request: Request, search: "_Search") -> ReplicaDescriptor | None:
        """Give this node's own replica for a read that any replica may answer (rule 23), once in a search."""
        if search.was_near or not isinstance(request, ReadRequest | ScanRequest) or not request.any_replica:
            return None
        search.was_near = True
        return next((replica for replica in entry.desc.replicas if replica.node_id == self.node_id), None)

    async def lookup(self, key: bytes) -> CachedRange:
        """Give the range that holds a key.  Raises KvError Unavailable."""
        return await self._entry(key, _Search(self.clock.now() + DEADLINE_S, Copies()))

    async def ranges(self, span: Span) -> list[CachedRange]:
        """Give all ranges that overlap a span, in key order, as the cache or meta has them.  Raises KvError Unavailable."""
        found: list[CachedRange] = []
        key = span.start
        while key < span.end:
            entry = self.cache.lookup(key) or await self.lookup(key)
            found.append(entry)
            key = entry.end_key
        return found

    async def cut(self, spans: Sequence[Span]) -> list[tuple[CachedRange, Span]]:
        """Cut spans at range boundaries."""
        pieces = []
        for span in spans:
            for entry in await self.ranges(span):
                pieces.append((entry, span.clipped(Span(entry.start_key, entry.end_key))))
        return pieces

    async def cut_keys(self, keys: Sequence[bytes]) -> list[tuple[CachedRange, tuple[bytes, ...]]]:
        """Put ascending keys together by ranges."""
        groups = []
        at = 0
        while at < len(keys):
            entry = self.cache.lookup(keys[at]) or await self.lookup(keys[at])
            end = bisect_left(keys, entry.end_key, at)
            groups.append((entry, tuple(keys[at:end])))
            at = end
        return groups

    async def cut_spans(self, spans: Sequence[Span]) -> list[tuple[CachedRange, tuple[Span, ...]]]:
        """Cut ascending spans at range boundaries, and put them together by ranges."""
        groups: list[tuple[CachedRange, list[Span]]] = []
        for entry, span in await self.cut(spans):
            if groups and groups[-1][0] is entry:
                groups[-1][1].append(span)
            else:
                groups.append((entry, [span]))
        return [(entry, tuple(group)) for entry, group in groups]

    async def _ask(self, replica: ReplicaDescriptor, request: Request, search: "_Search") -> Reply:
        left_s = max(search.deadline - self.clock.now(), 0.0)
        if replica.node_id != self.node_id:
            return await self._peers.call(replica.node_id, KV_CALL, request, timeout_s=min(CALL_TIMEOUT_S, left_s))
        reply = self._local.try_serve(request)
        if reply is not None:
            return reply
        with trio.move_on_after(left_s):
            return await self._local.serve(request)
        reason = f"range {request.range_id} did not answer in time"
        if isinstance(request, _WithoutEffect):
            raise KvError(Unavailable(reason))
        search.note(reason, in_doubt=True)
        raise KvError(AmbiguousResult(reason))

    async def _after_error(self, error: KvError, entry: CachedRange, request: Request, search: "_Search") -> None:
        """Learn from an error and return to try again, or raise it."""
        match error.detail:
            case NotLeaseholder() | RangeNotFound():
                self._learn(entry, error.detail)
                search.note(str(error))
                if not search.has_fresh_hint(entry):
                    await self._pause(search)
            case RangeKeyMismatch():
                self._learn(entry, error.detail)
                search.mismatches += 1
                if search.mismatches > 3:
                    raise error
            case Unavailable():
                search.note(error.detail.reason)
                await self._pause(search)
            case AmbiguousResult() if isinstance(request, _Repeatable):
                # The same attempt may be sent again: it is applied once, and its outcome, record or intents are there.
                search.note(error.detail.reason, in_doubt=True)
                await self._pause(search)
            case _:
                raise error

    def _learn(self, entry: CachedRange, detail: object) -> None:
        match detail:
            case NotLeaseholder(_, leaseholder, desc):
                if desc is not None:
                    entry = self.cache.update(desc)
                entry.leaseholder = leaseholder
            case RangeKeyMismatch(descriptors):
                if all(desc.range_id != entry.desc.range_id or desc.generation <= entry.desc.generation for desc in descriptors):
                    self.cache.evict(entry)
                for desc in descriptors:
                    self.cache.update(desc)
            case RangeNotFound():
                entry.leaseholder = None

    async def _pause(self, search: "_Search") -> None:
        if self.clock.now() >= search.deadline:
            raise KvError(Unavailable(f"no answer within the time allowed; last: {search.reason}"))
        await trio.sleep(search.pause())

    async def _entry(self, key: bytes, search: "_Search") -> CachedRange:
        entry = self.cache.lookup(key)
        if entry is not None and search.tries_without_news < 2 * len(entry.desc.replicas) + 1:
            return entry
        if key < SYSTEM_END:
            # The system range is where look-ups start; nobody but a replica, or the gossip that fills this cache, can say where it is.
            if entry is not None:
                return entry
            raise KvError(Unavailable("this node does not know where the system range is"))
        while True:
            await self._read_meta(key, search)
            search.tries_without_news = 0
            found = self.cache.lookup(key)
            if found is not None:
                return found
            # The left side of a split is known, and the entry of the right side, which its leaseholder writes next, is not there yet.
            search.note(f"no range is known to hold key {key.hex()}")
            await self._pause(search)

    async def _read_meta(self, key: bytes, search: "_Search") -> None:
        span = Span(meta_key(key_after(key)), prefix_end(META_PREFIX))
        request = ScanRequest(SYSTEM_RANGE, span, None, rows_max=META_PREFETCH_ROWS, bytes_max=1 << 20)
        reply = await self.send(span.start, lambda _: request, deadline_s=search.deadline - self.clock.now())
        assert isinstance(reply, ScanReply)
        for value in reply.values:
            self.cache.update(_DECODE_DESCRIPTOR(value))


class _Search:
    """What one `send` has learned so far."""

    def __init__(self, deadline: float, copies: Copies) -> None:
        self.deadline = deadline
        self.reason = "nobody was asked"
        self.is_commit = False
        self.was_near = False
        """This node's own replica was asked, as any may answer."""
        self._copies = copies
        self.mismatches = 0
        self.tries_without_news = 0
        self._pause_s = PAUSE_MIN_S
        self._asked: StoreId | None = None
        self._turn = 0

    def next_replica(self, entry: CachedRange) -> ReplicaDescriptor:
        """Choose whom to ask: the leaseholder if it is known, else the voters in turn."""
        self.tries_without_news += 1
        replica = entry.desc.replica_on(entry.leaseholder) if entry.leaseholder is not None else None
        if replica is None:
            voters = entry.desc.voters
            replica = voters[self._turn % len(voters)]
            self._turn += 1
        self._asked = replica.store_id
        return replica

    def has_fresh_hint(self, entry: CachedRange) -> bool:
        """Say whether somebody else than the one just asked is believed to lead now: then no pause is needed."""
        if entry.leaseholder is not None and entry.leaseholder != self._asked:
            self._turn += 1
            return self._turn < 8  # two replicas that name each other get pauses too
        return False

    @property
    def is_ambiguous(self) -> bool:
        """Say whether this is a commit of which an unanswered copy decides.

        Who sends about intents and records asks the record after an error, whatever it is.
        """
        return self.is_commit and self._copies.in_doubt

    def note(self, reason: str, *, in_doubt: bool = False) -> None:
        """Remember why a try failed, and whether it may have taken effect all the same, or still may."""
        self.reason = reason
        self._copies.in_doubt = self._copies.in_doubt or in_doubt

    def pause(self) -> float:
        """Give the next pause, in seconds."""
        pause, self._pause_s = self._pause_s, min(self._pause_s * 2, PAUSE_MAX_S)
        return pause
