"""The cluster's authority, and the certificates that it signs: ECDSA over P-256, as files.

Invariants:
- A key is written with mode 0600 from its first byte on; a file that is there is replaced only where that was asked for, and then in one
  step.
- A certificate does not outlive its authority.
- A node's certificate serves both ends of a connection, a user's only the one that connects: no client takes a user for a node.
"""

import datetime
import ipaddress
import os
import re
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dsdb.tls.errors import CertificateError
from dsdb.tls.files import CA_CERTIFICATE, CA_KEY, KeyPair, client_files, node_files
from dsdb.tls.identity import NODE_URI, USER_NAME, user_uri

BACKDATED = datetime.timedelta(hours=1)
"""A certificate is valid from so long before it is made, for machines whose clocks are behind."""
_HOST_NAME = re.compile(r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")


class Validity:
    """From when until when a certificate holds."""

    def __init__(self, days: float, *, now: datetime.datetime | None = None) -> None:
        """days: from now on; fewer than none make an expired one."""
        now = now or datetime.datetime.now(datetime.UTC)
        self.end = now + datetime.timedelta(days=days)
        self.start = min(now, self.end) - BACKDATED


class Authority:
    """A certificate authority: what signs for one cluster."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key

    @classmethod
    def create(cls, directory: Path, validity: Validity) -> "Authority":
        """Make one in a directory of its own.  Raises CertificateError if there is one, and OSError."""
        key = ec.generate_private_key(ec.SECP256R1())
        # Two clusters' authorities must not have one name: OpenSSL looks for the signer by it.
        name = _name(f"dsdb authority {secrets.token_hex(4)}")
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), validity.start, validity.end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write_pair(directory / CA_CERTIFICATE, _pem(certificate), directory / CA_KEY, _key_pem(key), overwrite=False)
        return cls(certificate, key)

    @classmethod
    def open(cls, directory: Path) -> "Authority":
        """Read one.  Raises CertificateError."""
        try:
            certificates = x509.load_pem_x509_certificates((directory / CA_CERTIFICATE).read_bytes())
            key = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), password=None)
        except OSError as error:
            hint = "`dsdb cert create-ca` makes an authority" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
            raise CertificateError(f"there is no authority in {directory}, or it cannot be read: {hint}") from None
        except (ValueError, TypeError):
            raise CertificateError(f"the files {CA_CERTIFICATE} and {CA_KEY} in {directory} are not an authority's") from None
        for certificate in certificates:
            if isinstance(key, ec.EllipticCurvePrivateKey) and certificate.public_key() == key.public_key():
                return cls(certificate, key)
        raise CertificateError(f"the key {directory / CA_KEY} is not that of {CA_CERTIFICATE} beside it")

    @property
    def end(self) -> datetime.datetime:
        """Give when it expires."""
        return self._certificate.not_valid_after_utc

    def create_node(self, directory: Path, hosts: list[str], validity: Validity, *, overwrite: bool = False) -> datetime.datetime:
        """Make the certificate of a node that is reached by these names and addresses; give its end.  Raises CertificateError, OSError."""
        names = [x509.UniformResourceIdentifier(NODE_URI), *(_host(text) for text in hosts)]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(node_files(directory), "node", names, usages, validity, overwrite=overwrite)

    def create_client(self, directory: Path, user: str, validity: Validity, *, overwrite: bool = False) -> datetime.datetime:
        """Make the certificate of a user; give its end.  Raises CertificateError, OSError."""
        if not USER_NAME.fullmatch(user):
            raise CertificateError(f"{user!r} cannot be a user with a certificate: expected up to 63 letters, digits or any of _ . @ + -")
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(user_uri(user))]
        return self._issue(client_files(directory, user), user, names, [ExtendedKeyUsageOID.CLIENT_AUTH], validity, overwrite=overwrite)

    def _issue(
        self,
        files: KeyPair,
        name: str,
        names: list[x509.GeneralName],
        usages: list[x509.ObjectIdentifier],
        validity: Validity,
        *,
        overwrite: bool,
    ) -> datetime.datetime:
        end = min(validity.end, self.end)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(name), self._certificate.subject, key.public_key(), validity.start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._give_authority(files.authority)
        _write_pair(files.certificate, _pem(certificate), files.key, _key_pem(key), overwrite=overwrite)
        return end

    def _give_authority(self, path: Path) -> None:
        """Put the authority's certificate beside what it signs."""
        pem = _pem(self._certificate)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, pem, mode=0o644)
        elif pem.strip() not in path.read_bytes():
            raise CertificateError(f"the file {path} is another authority's: choose another directory, or add this authority to the file")


def describe_certificate(path: Path) -> tuple[str, str, datetime.datetime]:
    """Give who holds a certificate, the hosts that it names, and its end.  Raises CertificateError."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise CertificateError(f"the file {path} has no certificate, or cannot be read") from None
    holder, hosts = "authority", []
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    else:
        holder = ", ".join(names.get_values_for_type(x509.UniformResourceIdentifier)) or "nobody"
    hosts = [*names.get_values_for_type(x509.DNSName), *(str(ip) for ip in names.get_values_for_type(x509.IPAddress))]
    return holder, ", ".join(hosts), certificate.not_valid_after_utc


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    if len(text) > 253 or not _HOST_NAME.fullmatch(text):
        raise CertificateError(f"{text!r} is no host: expected a name or an IP address, without a port")
    return x509.DNSName(text)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime.datetime, end: datetime.datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=start,
        not_valid_after=end,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "dsdb"), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write_pair(certificate: Path, certificate_pem: bytes, key: Path, key_pem: bytes, *, overwrite: bool) -> None:
    for path in (certificate, key):
        if path.exists() and not overwrite:
            raise CertificateError(f"the file {path} is there already, and is not overwritten")
    key.parent.mkdir(parents=True, exist_ok=True)
    _write(key, key_pem, mode=0o600)
    _write(certificate, certificate_pem, mode=0o644)


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Write beside the file, then put it in its place: whoever reads meanwhile sees the one or the other."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
