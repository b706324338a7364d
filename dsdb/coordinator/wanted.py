"""What is wanted of nodes and tables, as the system range keeps it: states of nodes, placements of tables, when ranges are split.

03 "node" node id       ─▶ NodeState     no entry: active
03 "placement" table id ─▶ Placement     no entry: the default one
03 "ranges" table id    ─▶ StoredSettings  of the cluster under CLUSTER_TABLE; no entry: nothing is set
"""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from dsdb.coordinator.view import NodeState, Placement
from dsdb.kv.ids import SYSTEM_RANGE, NodeId
from dsdb.kv.requests import ScanReply, ScanRequest
from dsdb.ranges import Router
from dsdb.storage.keys import KEY_MIN, decode_id, prefix_span, system_key
from dsdb.store.range_settings import StoredSettings
from dsdb.txn import TransactionFactory

T = TypeVar("T")

_ROWS = 1000
_ENCODE = msgspec.msgpack.Encoder().encode
_NODE_STATES = msgspec.msgpack.Decoder(NodeState)
_PLACEMENTS = msgspec.msgpack.Decoder(Placement)
_RANGE_SETTINGS = msgspec.msgpack.Decoder(StoredSettings)


async def read_node_states(router: Router) -> dict[NodeId, NodeState]:
    """Read what is wanted of nodes.  Raises KvError."""
    return {NodeId(number): state for number, state in (await _read(router, "node", _NODE_STATES)).items()}


async def read_placements(router: Router) -> dict[int, Placement]:
    """Read where tables are to be, by table id.  Raises KvError."""
    return await _read(router, "placement", _PLACEMENTS)


async def read_range_settings(router: Router) -> dict[int, StoredSettings]:
    """Read when ranges are split, by table id.  Raises KvError."""
    return await _read(router, "ranges", _RANGE_SETTINGS)


async def _read(router: Router, tag: str, decoder: "msgspec.msgpack.Decoder[T]") -> dict[int, T]:
    prefix = system_key(tag)
    found: dict[int, T] = {}
    rest = prefix_span(prefix)
    while True:
        span = rest
        reply = await router.send(KEY_MIN, lambda _, span=span: ScanRequest(SYSTEM_RANGE, span, None, _ROWS, 1 << 20))  # type: ignore[misc]
        assert isinstance(reply, ScanReply), reply
        for key, value in zip(reply.keys, reply.values):
            found[decode_id(key, len(prefix))[0]] = decoder.decode(value)
        if reply.resume is None:
            return found
        rest = reply.resume


async def write_node_state(transactions: TransactionFactory, node_id: NodeId, state: NodeState) -> None:
    """Write what is wanted of a node.  Raises PortError, SqlError."""
    txn = transactions.begin()
    txn.put(system_key("node", node_id), _ENCODE(state))
    await txn.commit()


async def write_placement(transactions: TransactionFactory, table_id: int, placement: Placement | None) -> None:
    """Write where a table is to be; None: wherever.  Raises PortError."""
    txn = transactions.begin()
    key = system_key("placement", table_id)
    if placement is None:
        txn.delete(key)
    else:
        txn.put(key, _ENCODE(placement))
    await txn.commit()


async def change_range_settings(
    transactions: TransactionFactory, database_id: int, table_id: int, changes: Mapping[str, int | None]
) -> None:
    """Set some of when the ranges of a table are split, and leave the rest as it is; None: not set any more.  Raises PortError."""
    txn = transactions.begin()
    key = system_key("ranges", table_id)
    (stored,) = await txn.get([key])
    before = StoredSettings(database_id=database_id) if stored is None else _RANGE_SETTINGS.decode(stored)
    after = msgspec.structs.replace(before, **changes)
    if after == StoredSettings(database_id=after.database_id):
        txn.delete(key)
    else:
        txn.put(key, _ENCODE(after))
    await txn.commit()
