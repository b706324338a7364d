"""The intents of one range: their oldest, and what keeping count of very many costs."""

from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp
from dsdb.store.open_intents import HEAP_SLACK, OpenIntents


def test_open_intents_know_their_oldest() -> None:
    intents = OpenIntents(is_complete=True)
    assert intents.oldest_ts() == MAX_TIMESTAMP
    for number in range(300):
        intents.lay(b"%03d" % number, Timestamp(1000 - number))
    intents.lay(b"299", Timestamp(2000))
    assert (intents.oldest_ts(), intents.count) == (702, 300)
    right = intents.hand_over(b"200")
    assert (intents.oldest_ts(), right.oldest_ts(), right.count) == (801, 702, 100)
    intents.clear(Span(b"100", b"300"))
    assert (intents.oldest_ts(), intents.count) == (901, 100)
    for number in range(100):
        intents.drop(b"%03d" % number)
    assert (intents.oldest_ts(), intents.count) == (MAX_TIMESTAMP, 0)


def test_whoever_asks_for_the_oldest_does_not_pay_for_all_that_were_resolved() -> None:
    intents = OpenIntents(is_complete=True)
    many = 10_000
    for number in range(many):
        intents.lay(b"%05d" % number, Timestamp(1000))
    intents.lay(b"last", Timestamp(2000))
    for number in range(many):
        intents.drop(b"%05d" % number)
    assert len(intents._by_ts) <= HEAP_SLACK, "all of them on top of the heap"
    assert intents.oldest() == (2000, b"last")
