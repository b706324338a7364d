"""What is wanted of nodes and tables, as the system range keeps it: states of nodes; when ranges are split, and where they are to be.

03 "node" node id       ─▶ NodeState       no entry: active
03 "ranges" table id    ─▶ StoredSettings  of the cluster under CLUSTER_TABLE; no entry: nothing is set; it goes with its table
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from dsdb.coordinator.view import NodeState
from dsdb.kv.ids import SYSTEM_RANGE, NodeId
from dsdb.kv.requests import ScanReply, ScanRequest
from dsdb.ranges import Router
from dsdb.storage.keys import KEY_MIN, decode_id, prefix_span, system_key
from dsdb.store.range_settings import CLUSTER_TABLE, StoredSettings
from dsdb.txn import TransactionFactory

T = TypeVar("T")

_ROWS = 1000
_ENCODE = msgspec.msgpack.Encoder().encode
_NODE_STATES = msgspec.msgpack.Decoder(NodeState)
_RANGE_SETTINGS = msgspec.msgpack.Decoder(StoredSettings)


async def read_node_states(router: Router) -> dict[NodeId, NodeState]:
    """Read what is wanted of nodes.  Raises KvError."""
    return {NodeId(number): state for number, state in (await _read(router, "node", _NODE_STATES)).items()}


async def read_range_settings(router: Router) -> dict[int, StoredSettings]:
    """Read what is set for ranges, by table id.  Raises KvError."""
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


async def change_range_settings(transactions: TransactionFactory, database_id: int, table_id: int, changes: Mapping[str, Any]) -> bool:
    """Set some of what holds for the ranges of a table, and leave the rest as it is; None: not set any more.

    changes: fields of StoredSettings.  Gives False, and sets nothing, if there is no such table any more.  Raises PortError.
    """
    txn = transactions.begin()
    key = system_key("ranges", table_id)
    table, stored = await txn.get([system_key("table", table_id), key])
    if table is None and table_id != CLUSTER_TABLE:
        return False
    before = StoredSettings(database_id=database_id) if stored is None else _RANGE_SETTINGS.decode(stored)
    after = msgspec.structs.replace(before, **changes)
    if after == StoredSettings(database_id=after.database_id):
        txn.delete(key)
    else:
        txn.put(key, _ENCODE(after))
    await txn.commit()
    return True
