"""etcd as a peer: three members, reads linearizable, writes durable on a majority as it comes; clients speak gRPC."""

import itertools
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import bank, rows
from bench.sides.port import ClientSpec, Contender, SideMissing, free_ports

MEMBERS = 3
START_S, STOP_S = 30.0, 10.0
TXN_PUTS = 100
"""etcd takes at most 128 operations in a transaction."""
PAGE_KEYS = 10_000
"""gRPC takes answers of up to 4 MB."""
_MOD_REVISION = 2
"""What a Compare looks at; an answer with another revision means that the key was written since."""
_PROTO = "bench/sides/etcd.proto"


class EtcdSide:
    """Three etcd members below a directory."""

    name = "etcd"

    def __init__(self, directory: Path, *, kv_rows: int, wide_rows: int) -> None:
        self._directory = directory / "etcd"
        self._kv_rows = kv_rows
        self._commands: list[list[str]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._endpoints: list[str] = []
        self._prepared: set[str] = set()
        self.version = ""

    def start(self) -> None:
        """Found a cluster.  Raises SideMissing."""
        program = shutil.which("etcd")
        if program is None:
            raise SideMissing("etcd is not installed: apt-get install etcd-server, or `python -m bench --install` as root")
        try:
            _stubs()
        except ImportError:
            raise SideMissing("grpcio-tools is not installed: `make bench` installs it") from None
        self._directory.mkdir(parents=True)
        ports = free_ports(2 * MEMBERS)
        self._endpoints = [f"127.0.0.1:{port}" for port in ports[:MEMBERS]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[MEMBERS:]]
        initial = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
        for number, (endpoint, peer) in enumerate(zip(self._endpoints, peers)):
            command = [program, "--name", f"m{number}", "--data-dir", str(self._directory / f"m{number}"), "--log-level", "error"]
            command += ["--listen-client-urls", f"http://{endpoint}", "--advertise-client-urls", f"http://{endpoint}"]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", initial, "--initial-cluster-state", "new", "--quota-backend-bytes", str(4 << 30)]
            self._commands.append(command)
        self._launch()

    def servers(self) -> list[int]:
        """Give the members' ids."""
        return [process.pid for process in self._processes]

    def prepare(self, workload: str) -> None:
        """Put the keys that are read."""
        if workload in self._prepared:
            return
        client = EtcdClient(self._endpoints[0])
        if workload == "read":
            client.put_many((_kv_key(key), rows.VALUE.encode()) for key in range(self._kv_rows))
        elif (accounts := bank.ACCOUNTS.get(workload)) is not None:
            client.put_many((_account_key(accounts, account), b"%d" % bank.BALANCE) for account in range(accounts))
        client.close()
        self._prepared.add(workload)

    def check(self, workload: str) -> None:
        """Add up the balances."""
        if (accounts := bank.ACCOUNTS.get(workload)) is not None:
            client = EtcdClient(self._endpoints[0])
            found = client.balances(accounts)
            client.close()
            bank.check(self.name, accounts, (len(found), sum(found), min(found)))

    def contenders(self, workload: str, clients: int) -> list[Contender]:
        """Say who takes part: one client is measured at the leader and at a follower, many are spread over all members."""
        if workload not in ("read", "insert", *bank.ACCOUNTS):
            return []
        servers = tuple(self.servers())
        specs = [ClientSpec(module="etcd", address=endpoint) for endpoint in self._endpoints]
        if clients > 1:
            spread = tuple(specs[number % MEMBERS] for number in range(clients))
            return [Contender(label="etcd", is_dsdb=False, specs=spread, servers=servers)]
        leader = self._leader()
        return [
            Contender(label="etcd, at the leader", is_dsdb=False, specs=(specs[leader],), servers=servers),
            Contender(label="etcd, at a follower", is_dsdb=False, specs=(specs[(leader + 1) % MEMBERS],), servers=servers),
        ]

    def starts(self) -> dict[str, Callable[[], float]]:
        """Give the restart of all members: one alone has no majority and answers nothing."""
        return {"etcd, 3 members again": self._start_again}

    def _start_again(self) -> float:
        self._stop()
        begun = time.perf_counter()
        self._launch()
        return time.perf_counter() - begun

    def close(self) -> None:
        """End all members, at once: their data goes with them, and an orderly end takes seconds."""
        for process in self._processes:
            process.kill()
        self._stop()

    def _launch(self) -> None:
        for command in self._commands:
            with (self._directory / "server.log").open("ab") as log:
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        import grpc  # type: ignore[import-untyped]  # noqa: PLC0415, RUF100

        deadline = time.monotonic() + START_S
        while True:
            client = EtcdClient(self._endpoints[0])
            try:
                client.insert(0)
                self.version = str(client.status().version)
                return
            except grpc.RpcError as error:
                if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                    raise SideMissing(f"etcd did not start: {error}") from error
            finally:
                client.close()
            threading.Event().wait(0.01)

    def _leader(self) -> int:
        for number, endpoint in enumerate(self._endpoints):
            client = EtcdClient(endpoint)
            status = client.status()
            client.close()
            if status.leader == status.header.member_id:
                return number
        raise SideMissing("etcd has no leader")

    def _stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []


def _kv_key(key: int) -> bytes:
    return b"kv/%08d" % key


def _account_key(accounts: int, account: int) -> bytes:
    return b"bank%d/%08d" % (accounts, account)


def _stubs() -> Any:
    """Give the messages and the services; grpcio-tools makes them of the .proto file while it runs."""
    import grpc  # noqa: PLC0415, RUF100
    import grpc_tools  # type: ignore[import-untyped]  # noqa: F401, PLC0415, RUF100

    return grpc.protos_and_services(_PROTO)


class EtcdClient:
    """A client by gRPC."""

    def __init__(self, endpoint: str) -> None:
        import grpc  # noqa: PLC0415, RUF100

        self._messages, services = _stubs()
        self.errors: tuple[type[Exception], ...] = (grpc.RpcError, bank.Aborted)
        self._channel = grpc.insecure_channel(endpoint)
        self.service = services.KVStub(self._channel)
        self._maintenance = services.MaintenanceStub(self._channel)
        self._chance = random.Random()

    def read(self, key: int) -> None:
        """Read one value, linearizably."""
        found = self.service.Range(self._messages.RangeRequest(key=_kv_key(key)))
        assert found.kvs, key

    def insert(self, key: int) -> None:
        """Put one value."""
        self.service.Put(self._messages.PutRequest(key=b"ins/%019d" % key, value=rows.VALUE.encode()))

    def put_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Put many values, TXN_PUTS a transaction."""
        waiting = iter(pairs)
        while puts := [self._put(key, value) for key, value in itertools.islice(waiting, TXN_PUTS)]:
            self.service.Txn(self._messages.TxnRequest(success=puts))

    def transfer(self, accounts: int) -> int:
        """Make a transfer: read both, then write both if neither has changed."""
        messages = self._messages

        def attempt(source: int, target: int, amount: int) -> bool:
            keys = [_account_key(accounts, account) for account in (source, target)]
            reads = [messages.RequestOp(request_range=messages.RangeRequest(key=key)) for key in keys]
            found = self.service.Txn(messages.TxnRequest(success=reads))
            pairs = [response.response_range.kvs[0] for response in found.responses]
            balances = [int(pair.value) for pair in pairs]
            if balances[0] < amount:
                return False
            unchanged = [messages.Compare(target=_MOD_REVISION, key=pair.key, mod_revision=pair.mod_revision) for pair in pairs]
            puts = [self._put(keys[0], b"%d" % (balances[0] - amount)), self._put(keys[1], b"%d" % (balances[1] + amount))]
            if not self.service.Txn(messages.TxnRequest(compare=unchanged, success=puts)).succeeded:
                raise bank.Aborted
            return True

        return bank.transfer(accounts, attempt, self._chance)

    def balances(self, accounts: int) -> list[int]:
        """Read all balances, a page at a time."""
        found: list[int] = []
        first, end = _account_key(accounts, 0), _account_key(accounts, accounts)
        while True:
            request = self._messages.RangeRequest(key=first, range_end=end, limit=PAGE_KEYS)
            page = self.service.Range(request).kvs
            found += [int(pair.value) for pair in page]
            if len(page) < PAGE_KEYS:
                return found
            first = page[-1].key + b"\0"

    def _put(self, key: bytes, value: bytes) -> Any:
        return self._messages.RequestOp(request_put=self._messages.PutRequest(key=key, value=value))

    def status(self) -> Any:
        """Ask a member for its state."""
        return self._maintenance.Status(self._messages.StatusRequest())

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()


def open_client(address: str) -> EtcdClient:
    """Connect."""
    return EtcdClient(address)
