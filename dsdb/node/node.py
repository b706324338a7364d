"""A node: its start, its one tree of nurseries, and its end.  `parts` puts the pieces together.

    run: peers │ store │ issuer │ gatherer │ sessions │ catalogue leases │ meta │ coordinator │ membership │ lag │ accept

Invariants:
- The order of starting is the order of the tree; stopping is its cancellation, after sessions were drained and leases handed over.
"""

import logging
import random
import secrets

import trio

from dsdb.env import Address, Clock, DiskThread, InlineDisk, Network, NodeListener, Offload, SystemClock, TcpNetwork, TlsNetwork
from dsdb.kv.ids import NodeId
from dsdb.node.config import DRAIN_S, NodeConfig, StartError
from dsdb.node.http import HttpServer, NodeMetrics
from dsdb.node.membership import MEET
from dsdb.node.opening import OpenStore, open_store
from dsdb.node.parts import NodeParts
from dsdb.rpc import CallFailed, RpcError
from dsdb.storage.engine import Engine
from dsdb.tls.credentials import NodeCredentials
from dsdb.tls.errors import CertificateError

log = logging.getLogger("dsdb.node")

ANY_ADDRESS = ("0.0.0.0", "::")
"""Every address of a machine, to listen at."""
FINISH_S = 1.0
"""How long a clean stop waits for commits to be cleaned up after; others would do it."""
LEASE_HANDOVER_S = 2.0
"""How long a stopping node tries to hand its leases to others."""


class Node:
    """One node; `run` is its whole life."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        clock: Clock | None = None,
        network: Network | None = None,
        disk: Offload | None = None,
        worker: Offload | None = None,
        chance: random.Random | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._config = config
        self._engine = engine
        self._clock = clock or SystemClock()
        self._credentials: NodeCredentials | None = None
        self._network: Network = network or TcpNetwork()
        self._disk = disk or (DiskThread("dsdb-disk") if config.store is not None else InlineDisk())
        self._worker = worker or (DiskThread("dsdb-fold") if config.store is not None else InlineDisk())
        self._random = chance or random.Random(secrets.randbits(64))
        self._scope = trio.CancelScope()
        self._stop_asked = trio.Event()
        self.ended = trio.Event()
        """Set when `run` is over."""
        self.address: Address = config.listen
        """Where it listens; the real port once `run` has started."""
        self.http_address: Address | None = None
        self.node_id = NodeId(0)
        self.parts: NodeParts | None = None
        """What it is made of, once `run` has opened the store."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start, serve until `stop` or cancellation, and close everything.  Raises StartError."""
        self._open_certificates()
        listener = await self._listen()
        try:
            opened = await open_store(
                self._config, self._engine, self._network, self._clock, lambda: f"{self._random.getrandbits(96):024x}"
            )
            try:
                with self._scope:
                    await self._serve(opened, listener, task_status)
            finally:
                self._disk.close()
                self._worker.close()
                opened.engine.close()
        finally:
            self.ended.set()
            with trio.CancelScope(shield=True):
                await listener.aclose()

    def stop(self, *, at_once: bool = False) -> None:
        """Ask the node to end: after its sessions are drained, or at once."""
        if at_once:
            self._scope.cancel()
        self._stop_asked.set()

    def refresh_certificates(self) -> bool:
        """Read the certificates again if their files have changed; give whether the node has any."""
        if self._credentials is not None:
            self._credentials.refresh()
        return self._credentials is not None

    def _open_certificates(self) -> None:
        directory = self._config.certs_dir
        if directory is None:
            return
        try:
            self._credentials = NodeCredentials(directory)
            self._check_own_host(self._credentials)
        except CertificateError as error:
            raise StartError(f"{error}.") from error
        self._network = TlsNetwork(self._credentials)

    def _check_own_host(self, credentials: NodeCredentials) -> None:
        """Raises CertificateError if others, who will ask for it by its advertised host, would not believe this node."""
        host = (self._config.advertise or self._config.listen).host
        if host in ANY_ADDRESS:
            raise CertificateError(f"{host} is no address by which others reach this node: say --advertise with a host of its certificate")
        credentials.check_host(host)

    async def _listen(self) -> NodeListener:
        try:
            listener = await self._network.listen(self._config.listen)
        except OSError as error:
            raise StartError(f"cannot listen at {self._config.listen}: {error.strerror or error}.") from error
        self.address = listener.address
        return listener

    async def _serve(self, opened: OpenStore, listener: NodeListener, task_status: trio.TaskStatus[None]) -> None:
        parts = NodeParts(
            self._config, opened, self.address, self._clock, self._network, self._disk, self._worker, self._random, self._credentials
        )
        self.parts = parts
        self.node_id = parts.identity.node_id
        http = self._open_http(parts)
        try:
            async with trio.open_nursery() as nursery:
                await parts.start(nursery)
                await self._check_join(parts)
                if opened.is_founder:
                    await parts.found()  # so that the first session finds its database
                nursery.start_soon(parts.accept, listener, nursery)
                log.info("node %d serves at %s", self.node_id, self.address)
                task_status.started()
                await self._stop_asked.wait()
                log.info("stopping: sessions are drained")
                parts.readiness.stop()
                await parts.sessions.drain(grace_seconds=DRAIN_S)
                await parts.finisher.drain(FINISH_S)
                with trio.move_on_after(LEASE_HANDOVER_S):
                    await parts.hand_over_leases()
                nursery.cancel_scope.cancel()
        finally:
            parts.engine.close()
            if http is not None:
                http.close()
        log.info("stopped")

    def _open_http(self, parts: "NodeParts") -> HttpServer | None:
        if self._config.http is None:
            return None
        try:
            http = HttpServer(self._config.http, parts.health, NodeMetrics(parts.metrics), self._credentials)
        except OSError as error:
            raise StartError(f"cannot listen at {self._config.http}: {error.strerror or error}.") from error
        self.http_address = http.address
        return http

    async def _check_join(self, parts: "NodeParts") -> None:
        """On a restart with --join: those nodes must be of the store's own cluster, if they can be reached at all."""
        for number, address in enumerate(self._config.join):
            probe_id = NodeId(-1 - number)
            parts.probe_addresses[probe_id] = address
            try:
                reply = await parts.peers.call(probe_id, MEET, parts.membership.request(), timeout_s=2.0)
            except CallFailed as error:
                if "belongs to cluster" in str(error):
                    raise StartError(f"{address} is of another cluster than the store: {error}.") from error
            except RpcError as error:
                log.warning("%s of --join does not answer: %s", address, error)
            else:
                parts.membership.take(reply.nodes, reply.system_range)
