"""What a store has for each of its peers, until the end of the turn: then one frame goes to each.

Invariants:
- Messages to one peer keep the order in which they were added.
"""

from dsdb.kv.ids import StoreId
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store.frame import (
    ChecksumReport,
    ClosedUpdate,
    DamageNotice,
    RaftEnvelope,
    ReplicaNotice,
    StoreFrame,
    SupportGrant,
    SupportRequest,
    Transport,
)


class _Parcel:
    """What one peer will get."""

    __slots__ = (
        "checksums",
        "closed",
        "damaged",
        "grant",
        "inquiries",
        "messages",
        "missing",
        "removed",
        "request",
        "wants_closed",
        "wrong",
    )

    def __init__(self) -> None:
        self.messages: list[RaftEnvelope] = []
        self.request: SupportRequest | None = None
        self.grant: SupportGrant | None = None
        self.removed: list[ReplicaNotice] = []
        self.missing: list[ReplicaNotice] = []
        self.inquiries: list[ReplicaNotice] = []
        self.closed: ClosedUpdate | None = None
        self.wants_closed = False
        self.checksums: list[ChecksumReport] = []
        self.damaged: list[DamageNotice] = []
        self.wrong: list[DamageNotice] = []


class Outbox:
    """Frames in the making."""

    def __init__(self, sender: StoreId, transport: Transport) -> None:
        self._sender = sender
        self._transport = transport
        self._parcels: dict[StoreId, _Parcel] = {}
        self._owed: dict[StoreId, SupportGrant] = {}
        """Grants that go with the next frame to a store, whatever makes it."""
        self.issued: Timestamp = MIN_TIMESTAMP
        """The highest issued timestamp that is known here: it goes with what is said about support."""

    def _to(self, store: StoreId) -> _Parcel:
        parcel = self._parcels.get(store)
        if parcel is None:
            parcel = self._parcels[store] = _Parcel()
            parcel.grant = self._owed.pop(store, None)
        return parcel

    def add(self, to: StoreId, envelope: RaftEnvelope) -> None:
        """Add a Raft message."""
        self._to(to).messages.append(envelope)

    def request(self, to: StoreId, request: SupportRequest) -> None:
        """Ask for support."""
        self._to(to).request = request

    def grant(self, to: StoreId, grant: SupportGrant) -> None:
        """Promise support."""
        self._to(to).grant = grant

    def grant_later(self, to: StoreId, grant: SupportGrant) -> None:
        """Promise support with the next frame to a store; `send_owed` makes one if nothing else does."""
        parcel = self._parcels.get(to)
        if parcel is None:
            self._owed[to] = grant
        else:
            parcel.grant = grant

    def send_owed(self) -> None:
        """Have grants that wait sent with the end of this turn."""
        for store in sorted(self._owed):
            self._to(store)

    def tell_removed(self, to: StoreId, notice: ReplicaNotice) -> None:
        """Tell a store that its replica was removed."""
        self._to(to).removed.append(notice)

    def tell_missing(self, to: StoreId, notice: ReplicaNotice) -> None:
        """Tell a store that the replica to which it speaks is not here."""
        self._to(to).missing.append(notice)

    def inquire(self, to: StoreId, notice: ReplicaNotice) -> None:
        """Ask a store whether our replica was removed."""
        self._to(to).inquiries.append(notice)

    def tell_closed(self, to: StoreId, update: ClosedUpdate) -> None:
        """Tell a store what is closed: once before the next `flush`."""
        parcel = self._to(to)
        assert parcel.closed is None, f"two updates for store {to} in one frame"
        parcel.closed = update

    def want_closed(self, to: StoreId) -> None:
        """Ask a store to tell all that is closed anew."""
        self._to(to).wants_closed = True

    def report_checksum(self, to: StoreId, report: ChecksumReport) -> None:
        """Tell a store what was found for a check of its."""
        self._to(to).checksums.append(report)

    def tell_damaged(self, to: StoreId, notice: DamageNotice) -> None:
        """Tell a store that a replica here is out of service."""
        self._to(to).damaged.append(notice)

    def tell_wrong(self, to: StoreId, notice: DamageNotice) -> None:
        """Tell a store that its replica differs from most others of its range."""
        self._to(to).wrong.append(notice)

    def flush(self) -> None:
        """Send a frame to everyone who has something."""
        if not self._parcels:
            return
        parcels, self._parcels = self._parcels, {}
        for store in sorted(parcels):
            parcel = parcels[store]
            self._transport.send(
                store,
                StoreFrame(
                    sender=self._sender,
                    messages=tuple(parcel.messages),
                    request=parcel.request,
                    grant=parcel.grant,
                    removed=tuple(parcel.removed),
                    missing=tuple(parcel.missing),
                    inquiries=tuple(parcel.inquiries),
                    issued=MIN_TIMESTAMP if parcel.request is None and parcel.grant is None else self.issued,
                    closed=parcel.closed,
                    wants_closed=parcel.wants_closed,
                    checksums=tuple(parcel.checksums),
                    damaged=tuple(parcel.damaged),
                    wrong=tuple(parcel.wrong),
                ),
            )
