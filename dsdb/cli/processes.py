"""Node processes on this machine, for the demo, tests and benches: started as a user would, ended by their own ids.

Invariants:
- Every process started is ended by `close`, also after an error.
- Ports are found by the nodes themselves (port 0) and read from what they print.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

START_S = 90.0
"""How long a node may take to say that it serves: a second or two, but the machine may have much else to do."""
STOP_S = 30.0
"""How long a node may take to stop after SIGTERM before it is killed; its own limits are 8 s."""

_SERVES = re.compile(r"node (\d+) serves at ([\w.:\[\]]+):(\d+)")
_HTTP = re.compile(r"https?://([\w.:\[\]]+):(\d+)/")

LAUNCHER = (sys.executable, "-m", "dsdb.cli")
"""What stands before `start` in a node's command line."""


class NodeProcess:
    """One `dsdb start` in a process of its own."""

    def __init__(
        self,
        store: Path,
        *,
        listen: str = "127.0.0.1:0",
        advertise: str | None = None,
        join: Sequence[str] = (),
        http: bool = False,
        launcher: Sequence[str] = LAUNCHER,
        options: Sequence[str] = (),
    ) -> None:
        """options: others of `dsdb start`."""
        self.store = store
        self._options = tuple(options)
        self._launcher = tuple(launcher)
        self._advertise = advertise
        self._http = http
        self._join = tuple(join)
        self.listen = listen
        self.node_id = 0
        self.http_address: str | None = None
        self._process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        """What it has printed, since it was started first."""

    @property
    def address(self) -> str:
        """Give host:port."""
        return self.listen

    @property
    def pid(self) -> int:
        """Give the process id.  Raises RuntimeError if it does not run."""
        if self._process is None:
            raise RuntimeError("the node does not run")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Say whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, patience_s: float = START_S) -> "NodeProcess":
        """Start it and wait until it serves; a restart listens at the same address.  Raises RuntimeError with what it said."""
        command = [*self._launcher, "start", "--store", str(self.store), "--listen", self.listen]
        command += ["--http", "127.0.0.1:0" if self._http else "off"]
        if self._advertise:
            command += ["--advertise", self._advertise]
        if self._join:
            command += ["--join", ",".join(self._join)]
        command += self._options
        said = len(self.lines)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ.copy())
        serves = threading.Event()
        threading.Thread(target=self._read, args=(self._process, serves), daemon=True).start()
        if not serves.wait(patience_s) or not self.node_id:
            self.kill()
            raise RuntimeError(f"node with store {self.store} did not start: {''.join(self.lines[said:]) or 'it said nothing'}")
        return self

    def terminate(self) -> None:
        """Stop it cleanly."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reap()

    def kill(self) -> None:
        """End it at once, as a power failure of the process would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reap()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal (SIGSTOP, SIGCONT)."""
        os.kill(self.pid, number)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def _read(self, process: "subprocess.Popen[str]", serves: threading.Event) -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                self.lines.append(line)
                if found := _SERVES.search(line):
                    self.node_id = int(found[1])
                    self.listen = f"{found[2]}:{found[3]}"
                    if not self._http:
                        serves.set()
                if found := _HTTP.search(line):
                    self.http_address = f"{found[1]}:{found[2]}"
                    serves.set()
        except ValueError:
            pass  # its pipe was closed while we read
        serves.set()


class ProcessCluster:
    """Some node processes with stores below one directory."""

    def __init__(
        self, directory: Path, *, nodes: int = 3, http: bool = False, launcher: Sequence[str] = LAUNCHER, certs_dir: Path | None = None
    ) -> None:
        """certs_dir: of certificates for 127.0.0.1 and for the user root, if they shall speak TLS."""
        self.nodes: list[NodeProcess] = []
        self.certs_dir = certs_dir
        options = () if certs_dir is None else ("--certs-dir", str(certs_dir))
        try:
            for number in range(1, nodes + 1):
                join = [self.nodes[0].address] if self.nodes else []
                node = NodeProcess(directory / f"node{number}", join=join, http=http, launcher=launcher, options=options)
                self.nodes.append(node.start())
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Give the URL that names all nodes."""
        return self.url_of(self.nodes)

    def url_of(self, nodes: "Sequence[NodeProcess]") -> str:
        """Give the URL that names some of the nodes."""
        options = "" if self.certs_dir is None else f"/?certs_dir={self.certs_dir}"
        return f"dsdb://{','.join(node.address for node in nodes)}{options}"

    def wait_replicated(self, replicas: int, *, timeout_s: float = 60.0) -> None:
        """Wait until every range has so many voters.  Raises TimeoutError."""
        import dsdb

        deadline = time.monotonic() + timeout_s
        with dsdb.connect(self.url, autocommit=True) as connection, connection.cursor() as cursor:
            while True:
                cursor.execute("SHOW RANGES")
                names = [column[0] for column in cursor.description or ()]
                found = [row[names.index("replicas")] for row in cursor.fetchall()]
                if found and all(len(str(text).split(",")) >= replicas for text in found):
                    return
                if time.monotonic() > deadline:
                    raise TimeoutError(f"after {timeout_s:.0f} s the ranges have replicas {found}")
                threading.Event().wait(0.1)

    def close(self) -> None:
        """Stop all nodes."""
        for node in reversed(self.nodes):
            node.terminate()

    def __enter__(self) -> "ProcessCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
