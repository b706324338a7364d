"""Clusters of real processes with certificates: what works, who is refused, and what both sides say of it."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

import dsdb
from dsdb.cli.processes import NodeProcess, ProcessCluster
from dsdb.cli.start import start_command
from dsdb.env import Address, parse_address
from dsdb.node.config import NodeConfig, StartError
from dsdb.node.greeting import OPENING_S
from dsdb.node.node import Node
from dsdb.protocol.frames import SQL_MAGIC
from dsdb.rpc.frames import RPC_MAGIC, FrameKind, FrameReader, encode_frame
from dsdb.tls.authority import Authority, Validity
from dsdb.tls.contexts import client_context
from dsdb.tls.files import KeyPair, client_files, node_files
from tests.cluster.cut_cluster import wait_until
from tests.cluster.test_processes import run_start

YEAR = Validity(365)


class Certificates:
    """The cluster's, and all kinds of others."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority.create(directory / "ca", YEAR)
        self.good = directory / "certs"
        self.authority.create_node(self.good, ["127.0.0.1"], YEAR)
        for user in ("root", "ada"):
            self.authority.create_client(self.good, user, YEAR)
        self.authority.create_client(self.good, "old", Validity(-1))
        self.foreign = directory / "foreign"
        foreign = Authority.create(directory / "foreign-ca", YEAR)
        foreign.create_node(self.foreign, ["127.0.0.1"], YEAR)
        foreign.create_client(self.foreign, "root", YEAR)
        # A node that believes in the cluster's authority, and is not believed.
        self.stranger = directory / "stranger"
        foreign.create_node(self.stranger, ["127.0.0.1"], YEAR)
        believed = self.stranger / "ca.crt"
        believed.write_bytes(believed.read_bytes() + (self.good / "ca.crt").read_bytes())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessCluster]:
    with ProcessCluster(tmp_path_factory.mktemp("secure"), nodes=3, http=True, certs_dir=certificates.good) as found:
        found.wait_replicated(3)
        yield found


def log_of(node: NodeProcess) -> str:
    return (node.store / "dsdb.log").read_text()


def failure(url: str) -> dsdb.Error:
    with pytest.raises(dsdb.Error) as caught:
        dsdb.connect(url)
    return caught.value


def refusal_to_start(**settings: Any) -> str:
    """Start a node in memory that cannot; give what it says."""
    with pytest.RaisesGroup(StartError, allow_unwrapped=True, flatten_subgroups=True) as caught:
        trio.run(Node(NodeConfig(**{"listen": Address("127.0.0.1", 0), **settings})).run)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def raw_connection(node: NodeProcess, files: KeyPair | None = None) -> socket.socket:
    """Connect as an attacker would: with any certificate, or plain."""
    host, _, port = node.address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    if files is None:
        return sock
    return client_context(files, checks_host=False).wrap_socket(sock)


def first_error(sock: socket.socket) -> str:
    """Give what node RPC answers: the text of its first ERROR frame; or how the connection ended."""
    frames = FrameReader()
    with sock:
        try:
            while data := sock.recv(4096):
                for frame in frames.feed(data):
                    assert frame.kind == FrameKind.ERROR
                    return bytes(frame.payload).decode(errors="replace")
        except ssl.SSLError as error:
            return str(error.reason)
    return "closed without a word"


def test_a_cluster_speaks_tls_everywhere(secure: ProcessCluster, certificates: Certificates) -> None:
    with dsdb.connect(secure.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE encrypted (id INT PRIMARY KEY, v TEXT)")
        connection.execute("ALTER TABLE encrypted SPLIT AT VALUES (100), (200)")
        for start in (0, 100, 200):
            values = ", ".join(f"({number}, '{'x' * 10_000}')" for number in range(start, start + 100))
            connection.execute(f"INSERT INTO encrypted VALUES {values}")
    context = ssl.create_default_context(cafile=str(certificates.good / "ca.crt"))
    for node in secure.nodes:
        with dsdb.connect(secure.url_of([node])) as connection:
            found = connection.execute("SELECT count(*), sum(id), sum(length(v)) FROM encrypted").fetchone()
            assert found == (300, 44850, 3_000_000)
            assert sum(batch.num_rows for batch in connection.execute("SELECT id, v FROM encrypted").fetch_record_batch()) == 300
        with urllib.request.urlopen(f"https://{node.http_address}/health", timeout=5, context=context) as response:
            assert json.load(response)["status"] == "ok"
        with urllib.request.urlopen(f"https://{node.http_address}/metrics", timeout=5, context=context) as response:
            text = response.read()
            assert b"dsdb_certificate_expires_seconds" in text
            assert b"dsdb_connections_refused_total" in text


def test_a_cancel_overtakes_its_statement(secure: ProcessCluster) -> None:
    with dsdb.connect(secure.url, autocommit=True) as connection:
        threading.Timer(0.3, connection.cancel).start()
        with pytest.raises(dsdb.OperationalError, match="user request"):
            connection.execute("SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 1000000) b")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_node_is_killed_and_comes_back(secure: ProcessCluster) -> None:
    victim = secure.nodes[2]
    with dsdb.connect(secure.url_of(secure.nodes[:2]), autocommit=True) as connection:
        connection.execute("CREATE TABLE while_away (id INT PRIMARY KEY)")
        victim.kill()
        connection.execute("INSERT INTO while_away VALUES (1)")
        victim.start()
    with dsdb.connect(secure.url_of([victim])) as connection:
        assert connection.execute("SELECT id FROM while_away").fetchall() == [(1,)]


def test_the_shell_takes_certificates_by_option_and_by_environment(secure: ProcessCluster, certificates: Certificates) -> None:
    def shell(*arguments: str, **environment: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "dsdb.cli", "sql", *arguments, "-e", "SELECT 40 + 2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **environment})
        return done.returncode, done.stdout + done.stderr

    address = secure.nodes[0].address
    for arguments, environment in (
        (["--certs-dir", str(certificates.good), f"dsdb://{address}"], {}),
        ([f"dsdb://ada@{address}"], {"DSDB_CERTS_DIR": str(certificates.good)}),
    ):
        code, said = shell(*arguments, **environment)
        assert (code, "42" in said) == (0, True), said
    code, said = shell(f"dsdb://{address}")
    assert (code, "28000: this node speaks TLS only" in said, "--certs-dir" in said) == (2, True, True)
    code, said = shell("--certs-dir", str(certificates.good), f"dsdb://eve@{address}")
    assert (code, "client.eve.crt is missing" in said) == (2, True)


def test_clients_without_the_right_certificate_are_refused(secure: ProcessCluster, certificates: Certificates) -> None:
    node, good = secure.nodes[0], certificates.good
    base = f"dsdb://{node.address}/?"
    for options, sqlstate, said in (
        ("", "28000", "this node speaks TLS only"),
        (f"certs_dir={certificates.foreign}", "08001", "certificate is of another authority"),
        (f"certs_dir={certificates.foreign}&sslrootcert={good}/ca.crt", "08001", "of an authority that it does not know"),
        (f"sslrootcert={good}/ca.crt&sslcert={good}/client.old.crt&sslkey={good}/client.old.key", "08001", "it has expired"),
        (f"sslrootcert={good}/ca.crt&sslcert={good}/client.ada.crt&sslkey={good}/client.ada.key", "28000", "asks for user root"),
        (f"sslrootcert={good}/ca.crt&sslcert={good}/node.crt&sslkey={good}/node.key", "28000", "this one is of a node"),
    ):
        error = failure(base + options)
        assert (error.sqlstate, said in str(error)) == (sqlstate, True), (options, str(error))
    log = log_of(node)
    for reason in (
        "this node speaks TLS only",
        "the other side refuses our certificate: it is of an authority that it does not know",
        "the other side's certificate is of another authority",
        "the other side's certificate has expired",
        "this one is of a node",
    ):
        assert reason in log
    port = node.address.rpartition(":")[2]
    assert "does not name localhost" in str(failure(f"dsdb://localhost:{port}/?certs_dir={good}"))
    dsdb.connect(f"dsdb://localhost:{port}/?certs_dir={good}&sslmode=verify-ca").close()


def test_what_the_url_says_of_tls_is_checked(certificates: Certificates) -> None:
    for options, said in (
        ("sslmode=require", "checks nobody"),
        ("sslmode=full", "expected one of disable, verify-ca, verify-full"),
        ("sslmode=verify-full", "sslrootcert is missing"),
        (f"sslrootcert={certificates.good}/ca.crt", "sslcert is missing"),
        ("certs_dir=nowhere", "nowhere/ca.crt is missing"),
    ):
        with pytest.raises(dsdb.InterfaceError, match=said):
            dsdb.connect(f"dsdb://127.0.0.1:1/?{options}")


def test_calls_between_nodes_need_a_nodes_certificate(secure: ProcessCluster, certificates: Certificates) -> None:
    """Neither a client's certificate, nor a foreign or an old one, nor none at all opens a connection that could carry Raft."""
    node, good = secure.nodes[0], certificates.good
    hello = RPC_MAGIC + encode_frame(FrameKind.HELLO, 0, 0, b"\x92\xa0\x01")
    for files, said in (
        (None, "this node speaks TLS only"),
        (client_files(good, "ada"), "calls between nodes need a node's certificate, and this one is of user ada"),
        (client_files(good, "old"), "ALERT_CERTIFICATE_EXPIRED"),
        (KeyPair(good / "ca.crt", *node_files(certificates.foreign)[1:]), "ALERT_UNKNOWN_CA"),
    ):
        sock = raw_connection(node, files)
        sock.sendall(hello)
        assert said in first_error(sock)
    sock = raw_connection(node, node_files(good))
    sock.sendall(hello + encode_frame(FrameKind.PING, 0, 0, b""))
    with sock:
        (frame,) = FrameReader().feed(sock.recv(4096))
    assert frame.kind == FrameKind.PONG


def open_soon(url: str) -> None:
    """Open a session; while hundreds of others are only just being taken in, it may be among those that make room."""
    deadline = time.monotonic() + OPENING_S / 2
    while True:
        try:
            dsdb.connect(url).close()
        except dsdb.OperationalError:
            if time.monotonic() > deadline:
                raise
        else:
            return


def test_strangers_and_those_who_say_nothing_do_not_keep_others_out(secure: ProcessCluster) -> None:
    node = secure.nodes[1]
    silent = [raw_connection(node) for _ in range(400)]
    try:
        for number, sock in enumerate(silent):
            if number % 2:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01")  # the beginning of a handshake
        for _ in range(3):
            open_soon(secure.url_of([node]))
        silent[0].settimeout(OPENING_S / 2)
        assert silent[0].recv(1) == b""  # the oldest made room, long before its time was over
    finally:
        for sock in silent:
            sock.close()
    with raw_connection(node) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400")
    with raw_connection(node) as sock:
        sock.sendall(b"\x16\x03\x01" + b"\xff" * 100)
        while sock.recv(4096):
            pass
    with raw_connection(node) as sock:
        sock.sendall(SQL_MAGIC[:3])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("foreign", "is of another authority than ca.crt has"),
        ("stranger", "the other side refuses our certificate: it is of an authority that it does not know"),
        ("none", "this node speaks TLS only"),
    ],
)
def test_a_node_that_is_not_of_the_cluster_does_not_join(
    secure: ProcessCluster, certificates: Certificates, kind: str, said: str
) -> None:
    directory = {"foreign": certificates.foreign, "stranger": certificates.stranger, "none": None}[kind]
    assert said in refusal_to_start(join=(parse_address(secure.nodes[0].address, default_port=0),), certs_dir=directory)
    with dsdb.connect(secure.url, autocommit=True) as connection:
        assert len(connection.execute("SHOW NODES").fetchall()) == 3


def test_a_node_with_certificates_does_not_join_a_cluster_without(cluster: ProcessCluster, certificates: Certificates) -> None:
    node = cluster.nodes[0]
    said = refusal_to_start(join=(parse_address(node.address, default_port=0),), certs_dir=certificates.good)
    assert "the other side does not speak TLS" in said
    assert "it speaks TLS, and this node was started without certificates" in log_of(node)
    assert "the other side does not speak TLS" in str(failure(f"dsdb://{node.address}/?certs_dir={certificates.good}"))


def test_what_cannot_start_says_why(certificates: Certificates, tmp_path: Path) -> None:
    old = tmp_path / "old"
    certificates.authority.create_node(old, ["127.0.0.1"], Validity(-1))
    assert "ca.crt is missing" in refusal_to_start(certs_dir=tmp_path / "nowhere")
    assert "it has expired" in refusal_to_start(certs_dir=old)
    assert "does not name 10.1.2.3" in refusal_to_start(certs_dir=certificates.good, advertise=Address("10.1.2.3", 7432))
    assert "0.0.0.0 is no address by which others reach" in refusal_to_start(certs_dir=certificates.good, listen=Address("0.0.0.0", 0))
    code, said = run_start("--store", str(tmp_path / "n"), "--listen", "127.0.0.1:0", "--certs-dir", str(old))
    assert (code, f"dsdb: the certificate {old}/node.crt cannot be used: it has expired." in said) == (1, True), said


def test_without_certificates_only_this_machine_is_served() -> None:
    for options, said in (
        (["--listen", "0.0.0.0:0"], "give --certs-dir with certificates"),
        (["--listen", "n1.example.com:7432"], "or say --insecure"),
        (["--advertise", "10.1.2.3:7432"], "10.1.2.3:7432 is reachable from other machines"),
        (["--http", "[::]:7480"], "[::]:7480 is reachable from other machines"),
        (["--certs-dir", "certs", "--insecure"], "say one of them"),
    ):
        found = CliRunner().invoke(start_command, options)
        assert (found.exit_code, said in found.output) == (2, True), found.output


def test_certificates_are_replaced_while_the_node_runs(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", YEAR)
    certs = tmp_path / "certs"
    authority.create_node(certs, ["127.0.0.1"], YEAR)
    authority.create_client(certs, "root", YEAR)
    other = Authority.create(tmp_path / "other-ca", YEAR)
    other.create_node(tmp_path / "other", ["127.0.0.1"], YEAR)
    other.create_client(tmp_path / "other", "root", YEAR)
    node = NodeProcess(tmp_path / "n", options=["--certs-dir", str(certs)]).start()
    try:
        with dsdb.connect(f"dsdb://{node.address}/?certs_dir={certs}") as before:
            # A key without its certificate: what was there goes on, and the log has it, at once after the signal.
            (certs / "node.key").write_bytes((tmp_path / "other" / "node.key").read_bytes())
            node.send_signal(signal.SIGHUP)
            wait_until(lambda: "the changed certificates are not used" in log_of(node))
            dsdb.connect(f"dsdb://{node.address}/?certs_dir={certs}").close()
            for name in ("ca.crt", "node.crt"):
                (certs / name).write_bytes((tmp_path / "other" / name).read_bytes())
            dsdb.connect(f"dsdb://{node.address}/?certs_dir={tmp_path / 'other'}").close()
            assert "authority that it does not know" in str(failure(f"dsdb://{node.address}/?certs_dir={certs}"))
            assert before.execute("SELECT 1").fetchone() == (1,)
    finally:
        node.terminate()


def test_an_idle_connection_notices_that_its_node_stops_and_goes_elsewhere(secure: ProcessCluster) -> None:
    leaving, staying = secure.nodes[2], secure.nodes[1]
    with dsdb.connect(secure.url_of([leaving, staying]), autocommit=True) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.node_id == leaving.node_id
        leaving.terminate()
        assert connection.execute("SELECT 2").fetchone() == (2,)
        assert connection.node_id == staying.node_id
    leaving.start()
