"""Opening the store of a node: its own again, a new cluster's first, or a place in the cluster it joins.

directory ── has an identity? ─ yes ─▶ restart (with --join: of that cluster, or refuse)
                             └─ no ── --join? ─ yes ─▶ ask for ids, write them
                                             └─ no ──▶ found a cluster
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from dsdb.env import Address, Clock, Network
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import NodeId, StoreId
from dsdb.node.config import NodeConfig, StartError
from dsdb.node.directory import NodeEntry
from dsdb.node.membership import ask_to_join
from dsdb.rpc import Peers
from dsdb.rpc.server import Hello
from dsdb.storage.engine import Engine
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.rocksdb import RocksEngine
from dsdb.storage.errors import StorageError, StoreLockedError
from dsdb.store.identity import StoreIdentity, read_identity
from dsdb.store.store import Store

log = logging.getLogger("dsdb.node")


class OpenStore(NamedTuple):
    """A store that is open, who it is, and what the cluster told it when it joined."""

    engine: Engine
    identity: StoreIdentity
    nodes: tuple[NodeEntry, ...]
    system_range: RangeDescriptor | None
    is_founder: bool


async def open_store(
    config: NodeConfig, given: Engine | None, network: Network, clock: Clock, new_cluster_id: Callable[[], str]
) -> OpenStore:
    """Open, found or join; `given` is used instead of the engine that the configuration names.  Raises StartError with a sentence."""
    engine = given or _open_engine(config)
    try:
        identity = read_identity(engine)
        if identity is not None:
            log.info("restarting node %d of cluster %s", identity.node_id, identity.cluster_id)
            return OpenStore(engine, identity, (), None, is_founder=False)
        if config.join:
            return await _join(engine, config, network, clock)
        identity = StoreIdentity(cluster_id=new_cluster_id(), node_id=NodeId(1), store_id=StoreId(1))
        Store.create(engine, identity, first=True)
    except StorageError as error:
        engine.close()
        raise StartError(f"the store {config.store} cannot be used: {error}.") from error
    except BaseException:
        engine.close()
        raise
    log.info("founded cluster %s", identity.cluster_id)
    return OpenStore(engine, identity, (), None, is_founder=True)


async def _join(engine: Engine, config: NodeConfig, network: Network, clock: Clock) -> OpenStore:
    def peers_of(address: Address) -> Peers:
        peers = Peers(network, clock, address_of=lambda _: address)
        peers.hello = Hello("", NodeId(0))
        return peers

    reply = await ask_to_join(network, peers_of, config.join, config.join_timeout_s)
    identity = StoreIdentity(cluster_id=reply.cluster_id, node_id=reply.node_id, store_id=reply.store_id)
    Store.create(engine, identity, first=False)
    log.info("joined cluster %s as node %d", identity.cluster_id, identity.node_id)
    return OpenStore(engine, identity, reply.nodes, reply.system_range, is_founder=False)


def _open_engine(config: NodeConfig) -> Engine:
    if config.store is None:
        return MemoryEngine()
    try:
        config.store.mkdir(parents=True, exist_ok=True)
        return RocksEngine.open(config.store / "db", create=not (config.store / "db").exists())
    except StoreLockedError as error:
        raise StartError(f"the store {config.store} is in use by another process.") from error
    except (StorageError, OSError) as error:
        raise StartError(f"the store {config.store} cannot be opened: {error}.") from error
