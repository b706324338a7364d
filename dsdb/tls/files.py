"""The names of files in a directory of certificates, and who may read a key.

    ca.crt                       the cluster's authority (or several, one after the other, while it is changed); everybody has it
    node.crt, node.key           of a node
    client.USER.crt, …key        of a user

Not here: the authority's own key.  It lies elsewhere (`dsdb cert create-ca` puts it into a directory of its own), and no node reads it.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from dsdb.tls.errors import CertificateError

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"


class KeyPair(NamedTuple):
    """The files that prove who one is, and whom one believes."""

    authority: Path
    certificate: Path
    key: Path


def node_files(directory: Path) -> KeyPair:
    """Give the files of a node."""
    return KeyPair(directory / CA_CERTIFICATE, directory / "node.crt", directory / "node.key")


def client_files(directory: Path, user: str) -> KeyPair:
    """Give the files of a user."""
    return KeyPair(directory / CA_CERTIFICATE, directory / f"client.{user}.crt", directory / f"client.{user}.key")


def check_readable(files: KeyPair) -> None:
    """Raise CertificateError if a file is missing, cannot be read, or is a key that others may read."""
    for path in files:
        try:
            with path.open("rb"):
                pass
        except FileNotFoundError:
            raise CertificateError(f"the file {path} is missing: `dsdb cert` makes it") from None
        except OSError as error:
            raise CertificateError(f"the file {path} cannot be read: {error.strerror}") from None
    _check_private(files.key)


def _check_private(key: Path) -> None:
    """As libpq has it: nobody but its owner may read a key, or root and one group if it is root's."""
    if os.name != "posix":
        return
    found = key.stat()
    allowed = stat.S_IRWXU | (stat.S_IRGRP if found.st_uid == 0 else 0)
    if stat.S_IMODE(found.st_mode) & ~allowed:
        raise CertificateError(f"others may use the key {key} (mode {stat.S_IMODE(found.st_mode):04o}): `chmod 600` makes it private")
