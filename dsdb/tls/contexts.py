"""What is accepted on a connection: TLS 1.3, certificates of the cluster's authority on both sides, the right host's name.

Invariants:
- Between dsdb's own ends there is no TLS below 1.3, and nobody is let in without a certificate.
- Whoever connects checks that the certificate is one for servers, which a user's is not, and that it names the host (but for verify-ca).

No tickets are given: sessions of TLS are not resumed, so a certificate that has expired is noticed at the next connection.
"""

import ssl

from dsdb.tls.errors import CertificateError
from dsdb.tls.files import KeyPair, check_readable
from dsdb.tls.sentences import describe


def server_context(files: KeyPair) -> ssl.SSLContext:
    """Give what a node accepts on its port.  Raises CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    return _loaded(context, files, ssl.TLSVersion.TLSv1_3)


def client_context(files: KeyPair, *, checks_host: bool = True) -> ssl.SSLContext:
    """Give what a node, or a driver, accepts when it connects.  Raises CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = checks_host
    return _loaded(context, files, ssl.TLSVersion.TLSv1_3)


def http_context(files: KeyPair) -> ssl.SSLContext:
    """Give what the HTTP port accepts: anybody, also with TLS 1.2, because scrapers and browsers have no certificate of ours."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files, ssl.TLSVersion.TLSv1_2)


def _loaded(context: ssl.SSLContext, files: KeyPair, least: ssl.TLSVersion) -> ssl.SSLContext:
    check_readable(files)
    context.minimum_version = least
    try:
        context.load_verify_locations(cafile=str(files.authority))
    except (ssl.SSLError, OSError):
        raise CertificateError(f"the file {files.authority} has no certificate") from None
    try:
        # An encrypted key would make OpenSSL ask for its password on the terminal.
        context.load_cert_chain(str(files.certificate), str(files.key), password=_no_password)
    except ssl.SSLError as error:
        reason = describe(error) if error.reason else "one of them is not a PEM file of its kind"
        raise CertificateError(f"the certificate {files.certificate} cannot be used with {files.key.name}: {reason}") from None
    except (OSError, _EncryptedKeyError):
        raise CertificateError(f"the key {files.key} is encrypted, which dsdb does not read") from None
    return context


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> bytes:
    raise _EncryptedKeyError
