"""The port by which a store gets foreign intents out of the way: it knows ranges only by number, not where their keys lie."""

from typing import Protocol

import msgspec

from dsdb.kv.intents import Pusher, TxnMeta, TxnStatus
from dsdb.storage.timestamp import Timestamp


class Settled(msgspec.Struct, frozen=True, array_like=True):
    """What became of an attempt: COMMITTED at `ts`, ABORTED, PUSHED (above the timestamp of the push), PENDING (it goes on), or GONE."""

    status: TxnStatus
    ts: Timestamp | None = None


class IntentSettler(Protocol):
    """Finds out what becomes of an intent's transaction; implemented by `dsdb.txn`, which can reach every range."""

    async def settle(self, meta: TxnMeta, ts: Timestamp, *, abort: bool, pusher: Pusher) -> Settled:
        """Push the transaction of an intent (rule 16), and recover it if it is STAGING (rule 19).

        ts: where the intent stands in the way; abort: of a writer, which is `pusher`.
        Raises KvError if the record cannot be reached in time.  Cancellation: nothing is left half done.
        """
