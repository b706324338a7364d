"""Ranges in memory that keep the commit protocol, for tests of the gateway's half: a leaseholder each, without Raft.

Evaluation and application are one step here, so there are no latches; what lies between a request, its effect and its reply is the
network's (`Link`), which loses, delays and doubles.  Leases move (what is volatile is lost) and ranges are split.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
import trio

from dsdb.env import TcpNetwork
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import (
    AmbiguousResult,
    Conflict,
    DeadlinePassed,
    IntentInTheWay,
    KeyExists,
    KvError,
    RangeKeyMismatch,
    Refused,
    Unavailable,
)
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, RangeId, StoreId
from dsdb.kv.intents import (
    EndTxnRequest,
    PrewriteReply,
    PrewriteRequest,
    Pusher,
    PushRequest,
    QueryIntentsReply,
    QueryIntentsRequest,
    RecordReply,
    RemoveRecordsReply,
    RemoveRecordsRequest,
    ResolveReply,
    ResolveRequest,
    StageRequest,
    TxnMeta,
    TxnStatus,
)
from dsdb.kv.requests import (
    BumpReply,
    CommitReply,
    CommitRequest,
    OutcomeReply,
    ReadReply,
    ReadRequest,
    RefreshReply,
    RefreshRequest,
    RefuseRequest,
    Reply,
    Request,
    ScanReply,
    ScanRequest,
)
from dsdb.raft.messages import ReplicaId
from dsdb.ranges import Router
from dsdb.rpc import Peers
from dsdb.storage.keys import KEY_MAX, SYSTEM_END, Span, key_after, point_span
from dsdb.txn import AttemptIds, Finisher, Janitor, LockKeeper, Settlement, TransactionFactory, TxnCounters

NODE, STORE = NodeId(1), StoreId(1)
TRIES = 30


class Clock:
    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return int(trio.current_time() * 1000)


class Oracle:
    """Timestamps, and an OracleClient over them that takes its time."""

    def __init__(self, chance: random.Random) -> None:
        self.latest = 1 << 30
        self.issued: set[int] = set()
        self._chance = chance

    def issue(self) -> Any:
        self.latest = max(self.latest + 1, (1 << 30) + (int(trio.current_time() * 1000) << 18))
        self.issued.add(self.latest)
        return self.latest

    def note(self, ts: int) -> None:
        assert ts <= self.latest, f"{ts} was never issued"

    def fresh_nowait(self) -> Any:
        return self.issue() if self._chance.random() < 0.3 else None

    async def fresh(self, *, timeout_s: float = 1) -> Any:
        await trio.sleep(self._chance.choice((0, 0.001, 0.003)))
        return self.issue()


@dataclass
class Intent:
    meta: TxnMeta
    ts: int
    value: bytes | None


class Met(Exception):
    def __init__(self, key: bytes, intent: Intent, ts: int, *, abort: bool, pusher: Pusher) -> None:
        self.key, self.intent, self.ts, self.abort, self.pusher = key, intent, ts, abort, pusher


@dataclass
class FakeRange:
    """A range at its leaseholder."""

    desc: RangeDescriptor
    cluster: "FakeCluster"
    # replicated
    versions: dict[bytes, list[tuple[int, bytes | None]]] = field(default_factory=dict)
    intents: dict[bytes, Intent] = field(default_factory=dict)
    records: dict[bytes, tuple[TxnMeta, RecordReply]] = field(default_factory=dict)
    outcomes: dict[bytes, int | None] = field(default_factory=dict)
    # volatile
    low: int = 0
    cache: list[tuple[Span, int, bytes | None]] = field(default_factory=list)
    pushes: dict[bytes, int] = field(default_factory=dict)
    tombs: dict[bytes, RecordReply] = field(default_factory=dict)
    passable: dict[bytes, int] = field(default_factory=dict)

    def move_lease(self) -> None:
        self.low = self.cluster.oracle.issue()
        self.cache, self.pushes, self.tombs, self.passable = [], {}, {}, {}

    # ---- Parts ----

    def check(self, *keys: bytes) -> None:
        if not all(self.desc.start_key <= key < self.desc.end_key for key in keys):
            raise KvError(RangeKeyMismatch(tuple(other.desc for other in self.cluster.ranges.values())))

    def check_span(self, span: Span) -> None:
        self.check(span.start)
        if span.end > self.desc.end_key:
            self.check(self.desc.end_key)

    def keys_in(self, span: Span) -> list[bytes]:
        return sorted(key for key in self.versions.keys() | self.intents.keys() if span.contains(key))

    def foreign(self, key: bytes, attempt: bytes | None, ts: int) -> Intent | None:
        intent = self.intents.get(key)
        if intent is None or intent.meta.attempt == attempt or intent.ts > ts or self.passable.get(intent.meta.attempt, -1) >= ts:
            return None
        return intent

    def visible(self, key: bytes, ts: int) -> bytes | None:
        found = None
        for version_ts, value in self.versions.get(key, ()):
            if version_ts <= ts:
                found = value
        return found

    def bound(self, key: bytes, ts: int, attempt: bytes) -> int:
        """What a write must be above; 0: `ts` will do."""
        found = [self.low] if self.low >= ts else []
        found += [version_ts for version_ts, _ in self.versions.get(key, ())[-1:] if version_ts >= ts]
        found += [at for span, at, owner in self.cache if span.contains(key) and (at > ts or (at == ts and owner != attempt))]
        return max(found, default=0)

    def put(self, key: bytes, ts: int, value: bytes | None) -> None:
        versions = self.versions.setdefault(key, [])
        assert all(version_ts != ts for version_ts, _ in versions), f"two versions of {key!r} at {ts}"
        versions.append((ts, value))
        versions.sort(key=lambda version: version[0])

    def look(self, spans: list[Span] | tuple[Span, ...], attempt: bytes, low: int, high: int, pusher: Pusher) -> None:
        """Refresh spans over (low, high]."""
        for span in spans:
            self.check_span(span)
        for span in spans:
            for key in self.keys_in(span):
                for ts, _ in self.versions.get(key, ()):
                    if low < ts <= high:
                        raise KvError(Conflict(key, ts))  # type: ignore[arg-type]
                intent = self.foreign(key, attempt, high)
                if intent is not None:
                    raise Met(key, intent, high, abort=False, pusher=pusher)
        self.cache += [(span, high, attempt) for span in spans]

    # ---- Reads ----

    def read(self, request: ReadRequest) -> Reply:
        self.check(*request.keys)
        ts: Any = request.ts
        for key in request.keys:
            intent = self.foreign(key, request.attempt, ts)
            if intent is not None:
                raise Met(key, intent, ts, abort=False, pusher=Pusher(ts))
        self.cache += [(point_span(key), ts, request.attempt) for key in request.keys]
        return ReadReply(ts, tuple(self.visible(key, ts) for key in request.keys))

    def scan(self, request: ScanRequest) -> Reply:
        if self.desc.range_id == SYSTEM_RANGE:
            descriptors = sorted((other.desc for other in self.cluster.ranges.values()), key=lambda desc: desc.start_key)
            found = [msgspec.msgpack.encode(desc) for desc in descriptors]
            return ScanReply(self.cluster.oracle.issue(), tuple(b"m%d" % at for at in range(len(found))), tuple(found))
        self.check_span(request.span)
        ts: Any = request.ts
        rows: list[tuple[bytes, bytes]] = []
        done, resume = request.span, None
        for key in self.keys_in(request.span)[:: -1 if request.reverse else 1]:
            intent = self.foreign(key, request.attempt, ts)
            if intent is not None:
                raise Met(key, intent, ts, abort=False, pusher=Pusher(ts))
            value = self.visible(key, ts)
            if value is None:
                continue
            if len(rows) == request.rows_max:
                last = rows[-1][0]
                done = Span(last, done.end) if request.reverse else Span(done.start, key_after(last))
                resume = Span(request.span.start, last) if request.reverse else Span(key_after(last), request.span.end)
                break
            rows.append((key, value))
        self.cache.append((done, ts, request.attempt))
        return ScanReply(ts, tuple(key for key, _ in rows), tuple(value for _, value in rows), resume)

    def refresh(self, request: RefreshRequest) -> Reply:
        self.look(request.spans, request.attempt, request.low, request.high, Pusher(request.high))
        return RefreshReply()

    # ---- One range ----

    def commit(self, request: CommitRequest) -> Reply:
        attempt = request.attempt
        if attempt in self.outcomes:
            outcome = self.outcomes[attempt]
            if outcome is None:
                raise KvError(Refused())
            return CommitReply(outcome)  # type: ignore[arg-type]
        self.check(*[write.key for write in request.writes])
        for write in request.writes:
            if write.key in self.intents:
                raise Met(write.key, self.intents[write.key], request.first_ts, abort=True, pusher=Pusher(request.first_ts))
        ts: Any = request.ts or self.cluster.oracle.issue()
        bound = max(self.bound(write.key, ts, attempt) for write in request.writes)
        if bound:
            if request.has_other_reads:
                return BumpReply(bound)  # type: ignore[arg-type]
            ts = self.cluster.oracle.issue()
        if request.read_ts is not None and ts > request.read_ts:
            self.look(request.reads, attempt, request.read_ts, ts, Pusher(request.first_ts))
        for write in request.writes:
            if write.must_be_absent and self.visible(write.key, ts) is not None:
                raise KvError(KeyExists(write.key))
        if request.deadline is not None and ts >= request.deadline:
            raise KvError(DeadlinePassed(ts))
        for write in request.writes:
            self.put(write.key, ts, write.value)
        self.outcomes[attempt] = ts
        return CommitReply(ts)

    def refuse(self, request: RefuseRequest) -> Reply:
        return OutcomeReply(self.outcomes.setdefault(request.attempt, None))  # type: ignore[arg-type]

    # ---- Intents ----

    def prewrite(self, request: PrewriteRequest) -> Reply:
        self.check(*request.keys)
        attempt, highest = request.meta.attempt, request.ts
        for key in request.keys:
            intent = self.intents.get(key)
            if intent is not None and intent.meta.attempt != attempt:
                raise Met(key, intent, request.ts, abort=True, pusher=Pusher(request.meta.first_ts))
        for key, value in zip(request.keys, request.values):
            intent = self.intents.get(key)
            if intent is None:
                bound = self.bound(key, request.ts, attempt)
                intent = self.intents[key] = Intent(request.meta, bound + 1 if bound else request.ts, value)
                if bound:
                    self.cluster.seen["prewrite bumped"] += 1
            highest = max(highest, intent.ts)  # type: ignore[assignment]
        return PrewriteReply(highest)

    def query(self, request: QueryIntentsRequest) -> Reply:
        self.check(*request.keys)
        is_found = True
        for key in request.keys:
            intent = self.intents.get(key)
            if intent is None or intent.meta.attempt != request.attempt or intent.ts > request.ts:
                self.cache.append((point_span(key), request.ts, None))
                is_found = False
        return QueryIntentsReply(is_found)

    def resolve(self, request: ResolveRequest) -> Reply:
        for item in request.items:
            self.check(*item.keys)
            self.settle_keys(item.attempt, item.keys, item.commit_ts)
        return ResolveReply()

    def settle_keys(self, attempt: bytes, keys: tuple[bytes, ...], commit_ts: int | None) -> None:
        for key in keys:
            intent = self.intents.get(key)
            if intent is not None and intent.meta.attempt == attempt:
                del self.intents[key]
                if commit_ts is not None and intent.ts <= commit_ts:
                    self.put(key, commit_ts, intent.value)

    # ---- Records ----

    def stage(self, request: StageRequest) -> Reply:
        self.check(request.meta.anchor, *request.laid)
        attempt, ts = request.meta.attempt, request.ts
        _, record = self.records.get(attempt, (None, None))
        if record is None:
            if attempt in self.tombs:
                return self.tombs[attempt]
            if request.meta.first_ts <= self.low:
                self.cluster.seen["stage gone"] += 1
                return RecordReply(TxnStatus.GONE)
            if self.pushes.get(attempt, 0) >= ts:
                self.cluster.seen["stage bumped"] += 1
                return BumpReply(self.pushes[attempt])  # type: ignore[arg-type]
        elif record.status is not TxnStatus.STAGING or (record.ts or 0) >= ts:
            return record
        if request.laid:
            laid = self.prewrite(PrewriteRequest(request.range_id, request.meta, ts, request.laid, request.values))
            assert isinstance(laid, PrewriteReply)
            if laid.ts > ts:
                return BumpReply(laid.ts)
        status = TxnStatus.COMMITTED if request.is_final else TxnStatus.STAGING
        self.records[attempt] = (request.meta, RecordReply(status, ts, request.keys))
        return RecordReply(status, ts)

    def push(self, request: PushRequest) -> Reply | None:
        """None: wait for news, if there is patience."""
        self.check(request.meta.anchor)
        meta = request.meta
        _, record = self.records.get(meta.attempt, (None, None))
        if record is not None:
            if record.status is TxnStatus.STAGING and not request.abort and (record.ts or 0) > request.ts:
                return RecordReply(TxnStatus.PUSHED)
            return record if record.status is not TxnStatus.STAGING else None
        if meta.attempt in self.tombs:
            return self.tombs[meta.attempt]
        if meta.first_ts <= self.low:
            return RecordReply(TxnStatus.ABORTED)
        if not request.abort:
            self.pushes[meta.attempt] = max(request.ts, self.pushes.get(meta.attempt, 0))
            return RecordReply(TxnStatus.PUSHED)
        return None

    def push_impatiently(self, request: PushRequest) -> Reply:
        reply = self.push(request)
        if reply is None:
            if request.meta.attempt in self.records:
                return self.records[request.meta.attempt][1]
            reply = self.tombs[request.meta.attempt] = RecordReply(TxnStatus.ABORTED)
        return reply

    def end(self, request: EndTxnRequest) -> Reply:
        meta = request.meta
        self.check(meta.anchor, *request.resolve)
        _, record = self.records.get(meta.attempt, (None, None))
        if record is None:
            if meta.attempt in self.tombs:
                return self.tombs[meta.attempt]
            if request.expected is not None or meta.first_ts <= self.low:
                return RecordReply(TxnStatus.GONE)
            return self.tombs.setdefault(meta.attempt, RecordReply(TxnStatus.ABORTED))
        if record.status is TxnStatus.STAGING:
            if request.expected not in (None, record.ts):
                return record
            status = TxnStatus.ABORTED if request.commit_ts is None else TxnStatus.COMMITTED
            record = RecordReply(status, request.commit_ts, record.keys)
            self.records[meta.attempt] = (meta, record)
        if record.ts == request.commit_ts:
            self.settle_keys(meta.attempt, request.resolve, request.commit_ts)
        return record

    def remove(self, request: RemoveRecordsRequest) -> Reply:
        for attempt in request.attempts:
            _, record = self.records.get(attempt, (None, None))
            if record is not None and record.status is not TxnStatus.STAGING:
                del self.records[attempt]
                self.tombs[attempt] = RecordReply(record.status, record.ts)
        return RemoveRecordsReply()

    handlers: ClassVar[dict[type, Any]] = {
        ReadRequest: read,
        ScanRequest: scan,
        RefreshRequest: refresh,
        CommitRequest: commit,
        RefuseRequest: refuse,
        PrewriteRequest: prewrite,
        QueryIntentsRequest: query,
        ResolveRequest: resolve,
        StageRequest: stage,
        PushRequest: push_impatiently,
        EndTxnRequest: end,
        RemoveRecordsRequest: remove,
    }


class FakeCluster:
    """All ranges, and the settling of intents that they meet."""

    def __init__(self, chance: random.Random, splits: list[bytes]) -> None:
        self.chance = chance
        self.oracle = Oracle(chance)
        self.seen: Counter[str] = Counter()
        self.ranges: dict[RangeId, FakeRange] = {}
        self._next = 1
        for start, end in zip([b"", SYSTEM_END, *splits], [SYSTEM_END, *splits, KEY_MAX]):
            self._add(start, end, 1)
        # The stores' own way to other ranges.
        self.settlement = Gateway(self, Link(self, random.Random(chance.getrandbits(64)), is_calm=True), 999).settlement

    def _add(self, start: bytes, end: bytes, generation: int) -> FakeRange:
        range_id = RangeId(self._next)
        self._next += 1
        replica = ReplicaDescriptor(ReplicaId(1), NODE, STORE)
        desc = RangeDescriptor(range_id, start, end, generation, (replica,), ReplicaId(2))
        self.ranges[range_id] = FakeRange(desc, self)
        return self.ranges[range_id]

    def split(self, key: bytes) -> None:
        left = next(one for one in self.ranges.values() if one.desc.start_key < key < one.desc.end_key)
        right = self._add(key, left.desc.end_key, left.desc.generation + 1)
        left.desc = msgspec.structs.replace(left.desc, end_key=key, generation=left.desc.generation + 1)
        right.low = self.oracle.issue()
        right.outcomes = dict(left.outcomes)
        for moved in (key_ for key_ in list(left.versions) if key_ >= key):
            right.versions[moved] = left.versions.pop(moved)
        for moved in (key_ for key_ in list(left.intents) if key_ >= key):
            right.intents[moved] = left.intents.pop(moved)
        for attempt, (meta, record) in list(left.records.items()):
            if meta.anchor >= key:
                right.records[attempt] = meta, record
                del left.records[attempt]

    async def execute(self, request: Request) -> Reply:
        """What a leaseholder does with a request."""
        if isinstance(request, PushRequest):
            wait_s = 0.1 if request.meta.attempt in self.ranges[request.range_id].records else 1.0
            if request.pusher.rank < request.meta.rank:
                wait_s = 0.01
            until = trio.current_time() + wait_s
            while trio.current_time() < until:
                reply = self.ranges[request.range_id].push(request)
                if reply is not None:
                    return reply
                await trio.sleep(0.005)
        if isinstance(request, ReadRequest | ScanRequest) and request.ts is None:
            request = msgspec.structs.replace(request, ts=self.oracle.issue())
        for _ in range(TRIES):
            one = self.ranges[request.range_id]
            try:
                reply = one.handlers[type(request)](one, request)  # type: ignore[operator]
            except Met as found:
                met = found
            else:
                return reply  # type: ignore[no-any-return]
            settled = await self._settle(met)
            attempt = met.intent.meta.attempt
            if settled.status is TxnStatus.PUSHED or (settled.status is TxnStatus.COMMITTED and settled.ts > met.ts and not met.abort):
                one.passable[attempt] = max(met.ts, one.passable.get(attempt, 0))
                continue
            commit_ts = settled.ts if settled.status is TxnStatus.COMMITTED else None
            for holder in self.ranges.values():
                if holder.desc.start_key <= met.key < holder.desc.end_key:
                    holder.settle_keys(attempt, (met.key,), commit_ts)
        raise KvError(Unavailable("intents, again and again"))

    async def _settle(self, met: Met) -> Any:
        self.seen["intent met"] += 1
        try:
            return await self.settlement.settle(
                met.intent.meta, met.ts, abort=met.abort, pusher=met.pusher  # type: ignore[arg-type]
            )
        except KvError as error:
            raise KvError(IntentInTheWay(met.key)) from error

    # ---- For the janitor ----

    def has_records(self) -> bool:
        return any(one.records for one in self.ranges.values())

    def has_intents(self) -> bool:
        return False

    async def settle_oldest_intents(self, below: int) -> int:
        return 0

    def stale_records(self, below: int, count_max: int) -> list[tuple[TxnMeta, RecordReply]]:
        found = [entry for one in self.ranges.values() for entry in one.records.values() if entry[0].first_ts < below and entry[1].keys]
        return found[:count_max]


class Link:
    """A gateway's way to the ranges: implements the router's LocalStore."""

    def __init__(self, cluster: FakeCluster, chance: random.Random, *, is_calm: bool = False) -> None:
        self._cluster = cluster
        self._chance = chance
        self.is_calm = is_calm
        self.nursery: trio.Nursery | None = None
        self.messages_left = 1 << 60
        """It dies after so many."""
        self.sent: list[Request] = []
        self.on_send: Callable[[Request], None] = lambda _: None

    @property
    def is_dead(self) -> bool:
        return self.messages_left <= 0

    def try_serve(self, request: Request) -> Reply | None:
        return None

    async def serve(self, request: Request) -> Reply:
        self.messages_left -= 1
        if self.is_dead:
            await trio.sleep_forever()
        self.sent.append(request)
        self.on_send(request)
        if self.is_calm:
            await trio.sleep(0.001)
            return await self._cluster.execute(request)
        chance = self._chance
        await trio.sleep(chance.choice((0, 0.001, 0.001, 0.005)))
        fate = chance.random()
        assert self.nursery is not None
        if fate < 0.03:
            raise KvError(AmbiguousResult("lost on its way"))
        if fate < 0.08:
            self.nursery.start_soon(self._late, request, chance.choice((0.001, 0.02, 0.5, 3)))
            raise KvError(AmbiguousResult("late"))
        if fate < 0.13:
            self.nursery.start_soon(self._late, request, chance.choice((0.001, 0.02, 0.5, 3)))
        if fate < 0.16:
            await trio.sleep(chance.choice((0.02, 0.2)))
        reply = await self._cluster.execute(request)
        if self.is_dead:
            await trio.sleep_forever()
        if chance.random() < 0.04:
            raise KvError(AmbiguousResult("the reply was lost"))
        await trio.sleep(chance.choice((0, 0.001, 0.005)))
        return reply

    async def _late(self, request: Request, seconds: float) -> None:
        await trio.sleep(seconds)
        try:
            await self._cluster.execute(request)
        except KvError:
            pass  # nobody waits for it


class Gateway:
    """A node without a store."""

    def __init__(self, cluster: FakeCluster, link: Link, number: int) -> None:
        self.link = link
        self.counters = TxnCounters()
        clock = Clock()
        self.router = Router(node_id=NODE, local=link, peers=Peers(TcpNetwork(), clock, address_of=lambda _: None), clock=clock)
        for one in cluster.ranges.values():
            self.router.cache.update(one.desc, STORE)
        oracle: Any = cluster.oracle
        self.finisher = Finisher(self.router, oracle, self.counters)
        self.settlement = Settlement(self.router, oracle, self.counters)
        self.transactions = TransactionFactory(
            router=self.router,
            oracle=oracle,
            attempts=AttemptIds(NodeId(number), number),
            finisher=self.finisher,
            keeper=LockKeeper(self.router, oracle),
            counters=self.counters,
        )
        self.janitor = Janitor(cluster, self.router, oracle, self.settlement, self.finisher, self.counters)


