"""What a commit is given: the writes and reads of one attempt, fixed when the client asks for the commit."""

import msgspec

from dsdb.kv.ids import AttemptId
from dsdb.kv.requests import RefreshRequest, Write
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.txn.counters import TxnCounters
from dsdb.txn.sender import Sender

REFRESH_SPANS_MAX = 1_000
"""Spans of one refresh: some milliseconds for its leaseholder."""


class CommitPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's commit.

    writes: one for each key, the anchor's first; read_ts: where it read, None if it read nothing; read_age_s: how long ago that was
    taken; reads: disjoint, ascending; deadline: the commit timestamp must be below it; start_ts: its rank, None if it has none yet;
    holds_locks: others may wait for it.
    """

    attempt: AttemptId
    writes: tuple[Write, ...]
    read_ts: Timestamp | None
    read_age_s: float
    reads: tuple[Span, ...]
    deadline: Timestamp | None
    start_ts: Timestamp | None = None
    holds_locks: bool = False


async def refresh(sender: Sender, counters: TxnCounters, plan: CommitPlan, spans: tuple[Span, ...] | list[Span], high: Timestamp) -> None:
    """Check that what was read in some spans is unchanged up to `high`, and have it recorded as read there (rule 7), side by side.

    Raises KvError: Conflict among others.  Leaseholders get the intents of others out of the way by themselves.
    """
    low = plan.read_ts
    if low is None or high <= low or not spans:
        return
    counters.refreshes += 1
    await sender.round_over(
        spans,
        sender.router.cut_spans,
        lambda desc, group: RefreshRequest(desc.range_id, plan.attempt, group, low, high),
        items_max=REFRESH_SPANS_MAX,
        is_reading=True,
    )
