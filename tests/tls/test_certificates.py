"""Certificates: what is made, who may read it, whom it proves, and which files a node does not use."""

import os
import ssl
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from dsdb.cli.cert import cert_command
from dsdb.tls.authority import Authority, Validity
from dsdb.tls.channel import TlsChannel
from dsdb.tls.contexts import client_context, server_context
from dsdb.tls.credentials import NodeCredentials
from dsdb.tls.errors import CertificateError, HandshakeError
from dsdb.tls.files import KeyPair, client_files, node_files
from dsdb.tls.identity import Identity, read_identity

YEAR = Validity(365)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", YEAR)


@pytest.fixture
def certs(authority: Authority, tmp_path: Path) -> Path:
    directory = tmp_path / "certs"
    authority.create_node(directory, ["127.0.0.1", "::1", "n1.example.com", "*.nodes.example.com"], YEAR)
    authority.create_client(directory, "ada", YEAR)
    return directory


def converse(server: ssl.SSLContext, client: ssl.SSLContext, host: str | None = None) -> tuple[Identity, Identity]:
    """Shake hands and say a word each way; give whom the client met, and whom the server."""
    theirs, ours = TlsChannel(server, is_server=True), TlsChannel(client, is_server=False, host=host)
    while True:
        is_done = ours.shake_hands()
        theirs.feed(ours.outgoing())
        if theirs.shake_hands() and is_done:
            break
        ours.feed(theirs.outgoing())
    ours.write(b"ping")
    theirs.feed(ours.outgoing())
    assert theirs.read(100) == b"ping"
    theirs.write(b"pong")
    ours.feed(theirs.outgoing())
    assert ours.read(100) == b"pong"
    return ours.identity(), theirs.identity()


def test_a_certificate_says_who_its_holder_is(certs: Path) -> None:
    node, user = converse(server_context(node_files(certs)), client_context(client_files(certs, "ada")), "127.0.0.1")
    assert (node.is_node, node.user) == (True, None)
    assert (user.is_node, user.user) == (False, "ada")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "n1.example.com", "a.nodes.example.com"])
def test_a_node_is_known_by_each_of_its_hosts(certs: Path, host: str) -> None:
    converse(server_context(node_files(certs)), client_context(node_files(certs)), host)


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "n2.example.com", "a.b.nodes.example.com"])
def test_another_host_is_not(certs: Path, host: str) -> None:
    with pytest.raises(HandshakeError, match=f"the other side's certificate does not name {host}"):
        converse(server_context(node_files(certs)), client_context(node_files(certs)), host)
    converse(server_context(node_files(certs)), client_context(node_files(certs), checks_host=False))


def test_a_users_certificate_does_not_serve(certs: Path, authority: Authority) -> None:
    with pytest.raises(HandshakeError, match="not meant for this end"):
        converse(server_context(client_files(certs, "ada")), client_context(node_files(certs), checks_host=False))


def test_expired_and_foreign_certificates_are_refused_by_either_side(certs: Path, authority: Authority, tmp_path: Path) -> None:
    authority.create_client(certs, "old", Validity(-1))
    authority.create_node(tmp_path / "old", ["127.0.0.1"], Validity(-1))
    foreign = Authority.create(tmp_path / "foreign-ca", YEAR)
    foreign.create_client(tmp_path / "foreign", "ada", YEAR)
    mixed = KeyPair(certs / "ca.crt", *client_files(tmp_path / "foreign", "ada")[1:])
    good_server, good_client = server_context(node_files(certs)), client_context(client_files(certs, "ada"))
    for server, client, said in (
        (good_server, client_context(client_files(certs, "old")), "the other side's certificate has expired"),
        (good_server, client_context(mixed), "the other side's certificate is of another authority"),
        (good_server, client_context(client_files(tmp_path / "foreign", "ada")), "the other side's certificate is of another authority"),
        (server_context(node_files(tmp_path / "old")), good_client, "the other side's certificate has expired"),
    ):
        with pytest.raises(HandshakeError, match=said):
            converse(server, client, "127.0.0.1")


def test_whoever_has_no_certificate_is_refused_and_told_so(certs: Path) -> None:
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.load_verify_locations(certs / "ca.crt")
    ours = TlsChannel(anybody, is_server=False, host="127.0.0.1")
    theirs = TlsChannel(server_context(node_files(certs)), is_server=True)
    ours.shake_hands()
    theirs.feed(ours.outgoing())
    theirs.shake_hands()
    ours.feed(theirs.outgoing())
    assert ours.shake_hands()  # with TLS 1.3 it believes so
    theirs.feed(ours.outgoing())
    with pytest.raises(HandshakeError, match="the other side gave no certificate"):
        theirs.shake_hands()
    ours.feed(theirs.outgoing())
    with pytest.raises(HandshakeError, match="the other side wants a certificate, and was given none"):
        ours.read(100)


def test_old_versions_of_tls_are_refused(certs: Path) -> None:
    client = client_context(client_files(certs, "ada"))
    client.minimum_version = ssl.TLSVersion.TLSv1_2
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(HandshakeError, match="the two sides share no version of TLS"):
        converse(server_context(node_files(certs)), client, "127.0.0.1")


def test_what_does_not_speak_tls_is_noticed(certs: Path) -> None:
    ours = TlsChannel(client_context(client_files(certs, "ada")), is_server=False, host="127.0.0.1")
    ours.shake_hands()
    ours.feed(b"this port speaks something else\n")
    with pytest.raises(HandshakeError, match="the other side does not speak TLS"):
        ours.shake_hands()


def test_names_of_nobody() -> None:
    assert read_identity(None) == Identity()
    assert read_identity({"subjectAltName": (("DNS", "dsdb:node"),), "notAfter": "Jan  1 00:00:00 2030 GMT"}).is_node is False


def test_a_nodes_own_files_are_looked_at_before_they_are_used(certs: Path, authority: Authority, tmp_path: Path) -> None:
    def refusal(directory: Path) -> str:
        with pytest.raises(CertificateError) as caught:
            NodeCredentials(directory)
        return str(caught.value)

    assert "is missing" in refusal(tmp_path / "nothing")
    authority.create_node(tmp_path / "old", ["127.0.0.1"], Validity(-1))
    assert "has expired" in refusal(tmp_path / "old")
    user = tmp_path / "user"
    user.mkdir()
    for source, name in zip(client_files(certs, "ada"), ("ca.crt", "node.crt", "node.key")):
        (user / name).write_bytes(source.read_bytes())
        (user / name).chmod(0o600)
    assert "not meant for this end" in refusal(user)
    (user / "node.key").write_bytes((certs / "node.key").read_bytes())
    assert "the key is another certificate's" in refusal(user)
    (user / "node.crt").write_text("nothing")
    assert "one of them is not a PEM file" in refusal(user)
    password = serialization.BestAvailableEncryption(b"secret")
    key = serialization.load_pem_private_key((certs / "node.key").read_bytes(), None)
    (user / "node.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, password))
    (user / "node.crt").write_bytes((certs / "node.crt").read_bytes())
    assert "is encrypted, which dsdb does not read" in refusal(user)
    (user / "ca.crt").write_text("")
    assert "has no certificate" in refusal(user)
    (certs / "node.key").chmod(0o644)
    assert "others may use the key" in refusal(certs)
    (certs / "node.key").chmod(0o600)
    Authority.create(tmp_path / "foreign-ca", YEAR)
    (certs / "ca.crt").write_bytes((tmp_path / "foreign-ca" / "ca.crt").read_bytes())
    assert "is of another authority" in refusal(certs)


def test_replaced_files_are_read_again_and_bad_ones_are_not(certs: Path, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    credentials = NodeCredentials(certs)
    before = credentials.server()
    assert credentials.server() is before
    end = authority.create_node(certs, ["127.0.0.1"], Validity(100), overwrite=True)
    assert credentials.server() is not before
    assert credentials.expires == pytest.approx(end.timestamp(), abs=1)
    used = credentials.client()
    good = (certs / "node.key").read_bytes()
    authority.create_client(certs, "eve", YEAR)
    (certs / "node.key").write_bytes((certs / "client.eve.key").read_bytes())
    assert credentials.client() is used
    assert credentials.client() is used
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the key is another certificate's" in caplog.text
    (certs / "node.key").write_bytes(good)
    assert credentials.client() is not used
    converse(credentials.server(), credentials.client(), "127.0.0.1")


def test_two_authorities_may_be_trusted_while_one_replaces_the_other(certs: Path, tmp_path: Path) -> None:
    new = Authority.create(tmp_path / "new-ca", YEAR)
    new.create_node(tmp_path / "new", ["127.0.0.1"], YEAR)
    both = (certs / "ca.crt").read_bytes() + (tmp_path / "new" / "ca.crt").read_bytes()
    for directory in (certs, tmp_path / "new"):
        (directory / "ca.crt").write_bytes(both)
    old_one, new_one = NodeCredentials(certs), NodeCredentials(tmp_path / "new")
    converse(old_one.server(), new_one.client(), "127.0.0.1")
    converse(new_one.server(), old_one.client(), "127.0.0.1")


def run(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(cert_command, arguments)
    assert found.exit_code == code, found.output
    return found.output


def test_the_commands_make_files_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = os.umask(0)
    try:
        run("create-ca")
        run("create-node", "localhost", "10.0.0.1")
        run("client", "ada.lovelace@example.com")
    finally:
        os.umask(old)
    for key in ("ca/ca.key", "certs/node.key", "certs/client.ada.lovelace@example.com.key"):
        assert stat.S_IMODE((tmp_path / key).stat().st_mode) == 0o600
    assert not (tmp_path / "certs" / "ca.key").exists()
    credentials = NodeCredentials(tmp_path / "certs")
    credentials.check_host("localhost")
    with pytest.raises(CertificateError, match=r"does not name 10\.0\.0\.2"):
        credentials.check_host("10.0.0.2")
    listed = run("ls")
    assert "dsdb:node at localhost, 10.0.0.1, valid until" in listed
    assert "dsdb:user:ada.lovelace%40example.com, valid until" in listed


def test_the_commands_refuse_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no authority in ca" in run("create-node", "localhost", code=1)
    run("create-ca")
    key = (tmp_path / "ca" / "ca.key").read_bytes()
    assert "is there already, and is not overwritten" in run("create-ca", code=1)
    assert (tmp_path / "ca" / "ca.key").read_bytes() == key
    run("create-node", "localhost")
    assert "is not overwritten" in run("create-node", "localhost", code=1)
    run("create-node", "localhost", "--overwrite")
    for host in ("local host", "n1:7432", "", "a" * 300, "-n1"):
        assert "is no host" in run("create-node", "--overwrite", "--", host, code=1)
    for user in ("", "a/b", "../x", "ada ", "a" * 64):
        assert "cannot be a user" in run("create-client", user, code=1)
    run("create-ca", "--ca-dir", "other")
    assert "is another authority's" in run("create-client", "ada", "--ca-dir", "other", code=1)
    assert not (tmp_path / "certs" / "client.ada.key").exists()
    (tmp_path / "ca" / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    assert "is not that of ca.crt" in run("create-client", "ada", code=1)
    assert "no certificates in" in run("ls", "--certs-dir", "nowhere", code=1)


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", Validity(10))
    assert authority.create_node(tmp_path / "certs", ["localhost"], YEAR) == authority.end
