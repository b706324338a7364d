"""Who holds a certificate: a node, or a user, as URIs among its alternative names say.

Invariants:
- A certificate without such a URI is nobody's: it opens neither sessions nor calls between nodes.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec

NODE_URI = "dsdb:node"
_USER_URI = "dsdb:user:"

USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,62}")
"""Users that can have a certificate: their name is a part of a file's name."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate says of its holder.

    user: its name, None if it is no user's; expires: when the certificate does, in seconds since the epoch.
    """

    is_node: bool = False
    user: str | None = None
    expires: float = 0.0

    def __str__(self) -> str:
        """Name the holder, for sentences."""
        if self.is_node:
            return "a node"
        return "nobody that dsdb knows" if self.user is None else f"user {self.user}"


def user_uri(user: str) -> str:
    """Give the URI that names a user."""
    return _USER_URI + quote(user, safe="")


def read_identity(certificate: Mapping[str, Any] | None) -> Identity:
    """Read what `ssl` gives as a peer's certificate, which it has checked."""
    import ssl  # noqa: PLC0415, RUF100

    if not certificate:
        return Identity()
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    users = [unquote(uri.removeprefix(_USER_URI)) for uri in uris if uri.startswith(_USER_URI)]
    return Identity(is_node=NODE_URI in uris, user=users[0] if users else None, expires=ssl.cert_time_to_seconds(certificate["notAfter"]))
