"""Resolving the intents of a large transaction: by spans, as its keys are too many to be remembered."""

from collections.abc import Sequence

from dsdb.kv.errors import KvError, Unavailable
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import ResolveSpansRequest, SpansReply
from dsdb.oracle import OracleClient
from dsdb.ranges import Router
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.txn.sender import Sender

SPANS_AT_ONCE = 256
"""Spans of one request."""
TRIES_MAX = 3
"""Times that a range may not answer before the rest is left to others."""


async def resolve_spans(
    router: Router, oracle: OracleClient, attempt: AttemptId, spans: Sequence[Span], commit_ts: Timestamp | None
) -> None:
    """Turn an attempt's intents in spans (disjoint, ascending) into versions, or remove them (rule 21), however long it takes.

    Raises KvError.
    """
    rest = list(spans)
    tries = 0
    while rest:
        try:
            replies = await Sender(router, oracle).round_over(
                rest,
                router.cut_spans,
                lambda desc, group: ResolveSpansRequest(desc.range_id, attempt, group, commit_ts),
                items_max=SPANS_AT_ONCE,
            )
        except KvError as error:
            tries += 1
            if tries >= TRIES_MAX or not isinstance(error.detail, Unavailable):
                raise
            continue
        rest = []
        for _, reply in replies:
            assert isinstance(reply, SpansReply)
            rest += reply.rest
        rest.sort()
