"""A private PostgreSQL to compare with: installed where it is missing and may be, started in a folder of its own, ended with the tests.

    find_programs ─▶ initdb, postgres (else apt-get, as root) ─▶ run_postgres: a cluster on a free loopback port, collation C, no fsync

PostgreSQL refuses to run as root: it then runs as the user `postgres` that its package makes.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import psycopg

INSTALL_S = 300
START_S = 30.0
_PACKAGED = pathlib.Path("/usr/lib/postgresql")


class NoPostgresError(Exception):
    """There is no PostgreSQL here, and none can be installed; the text says why."""


def find_programs() -> pathlib.Path:
    """Give the folder of initdb and postgres, installing them if that is possible.  Raises NoPostgresError."""
    found = _installed()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = _installed()
    if found is None:
        raise NoPostgresError("PostgreSQL is not installed, and installing it takes root and Debian's packages")
    return found


@contextlib.contextmanager
def run_postgres() -> Iterator[str]:
    """Run a cluster of its own, and give the connection string.  Raises NoPostgresError."""
    programs = find_programs()
    with tempfile.TemporaryDirectory(prefix="dsdb-postgres-") as folder:
        user = "postgres" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(folder, user)
        data = pathlib.Path(folder) / "data"
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            user=user, env=environment, cwd=folder, capture_output=True, text=True, timeout=START_S * 2, check=False,
        )  # fmt: skip
        if made.returncode:
            raise NoPostgresError(f"initdb failed: {made.stderr.strip()[-300:]}")
        port = _free_port()
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "TimeZone": "UTC",
            "max_connections": 10, "shared_buffers": "16MB", "autovacuum": "off",
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (pathlib.Path(folder) / "log").open("w") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *options], user=user, env=environment, cwd=folder, stdout=log, stderr=log
            )
        try:
            target = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
            _wait_for(server, target)
            yield target
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown
            server.wait(START_S)


def _installed() -> pathlib.Path | None:
    folders = sorted(_PACKAGED.glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        folders.append(pathlib.Path(on_path).parent)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "postgresql"]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["apt-get", *command], env=environment, capture_output=True, timeout=INSTALL_S, check=False)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(server: subprocess.Popen[bytes], target: str) -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(target):
            return
        time.sleep(0.05)
    raise NoPostgresError("the private PostgreSQL did not start")
