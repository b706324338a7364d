"""What `connect` is given: a URL of nodes, a directory, or nothing.

dsdb://user@h1:7432,h2:7432/db?autocommit=true&load_balance=random      or load_balance=weighted&weights=3,1
dsdb://…?sslmode=verify-full&sslrootcert=ca.crt&sslcert=client.user.crt&sslkey=client.user.key      or certs_dir=DIR
path/                                        an embedded node over this directory
None                                         an embedded node in memory

Options of TLS that a URL does not have are taken from the environment: DSDB_SSLMODE, DSDB_SSLROOTCERT, DSDB_SSLCERT, DSDB_SSLKEY,
DSDB_CERTS_DIR.
"""

import os
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from dsdb.driver.errors import InterfaceError

DEFAULT_PORT = 7432
DEFAULT_USER = "root"
DEFAULT_DATABASE = "defaultdb"
CONNECT_TIMEOUT_SECONDS = 10.0
LOAD_BALANCES = ("first", "random", "round_robin", "weighted", "least_loaded")
WEIGHT_MAX = 1_000_000.0

SSL_MODES = ("disable", "verify-ca", "verify-full")
"""No TLS; the node's certificate is the authority's; and it also names the host."""
TLS_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "certs_dir")

_SCHEME = "dsdb://"
_SETTINGS = ("application_name", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where to connect, and as whom.

    hosts: (host, port) in the order given; load_balance: which is tried first; weights: of the hosts, if that is
    `weighted`; autocommit: every statement commits by itself; options:
    settings of the session; sslmode, and files of certificates: certs_dir has those that are not named (empty) by themselves.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    directory: str | None = None
    user: str = DEFAULT_USER
    database: str = DEFAULT_DATABASE
    load_balance: str = "first"
    weights: tuple[float, ...] = ()
    connect_timeout: float = CONNECT_TIMEOUT_SECONDS
    autocommit: bool = False
    options: dict[str, str] = {}
    sslmode: str = "disable"
    sslrootcert: str = ""
    sslcert: str = ""
    sslkey: str = ""
    certs_dir: str | None = None

    @property
    def is_embedded(self) -> bool:
        """Say whether a node of this process is meant."""
        return not self.hosts


def parse_target(target: str | os.PathLike[str] | None) -> Target:
    """Read what `connect` was given.  Raises InterfaceError with a sentence."""
    if target is None or target == ":memory:":
        return Target()
    text = os.fspath(target)
    if not text.startswith(_SCHEME):
        if "://" in text:
            raise InterfaceError(f"{text!r} is not a URL of dsdb", hint="Write dsdb://user@host:7432/database, or a directory's path.")
        return Target(directory=text)
    rest, _, query = text[len(_SCHEME) :].partition("?")
    netloc, _, path = rest.partition("/")
    user, at, hosts = netloc.rpartition("@")
    if ":" in user:
        raise InterfaceError("the URL has a password, and dsdb has none", hint="Write dsdb://user@host:7432/database.")
    known, options = _split_query(query)
    parsed = tuple(_parse_host(host) for host in hosts.split(","))
    load_balance = _load_balance(known.get("load_balance", "first"))
    return Target(
        hosts=parsed,
        user=unquote(user) if at and user else DEFAULT_USER,
        database=unquote(path) or DEFAULT_DATABASE,
        load_balance=load_balance,
        weights=_weights(known.get("weights"), len(parsed), is_weighted=load_balance == "weighted"),
        connect_timeout=_seconds(known.get("connect_timeout")),
        autocommit=_boolean("autocommit", known.get("autocommit", "false")),
        options=options,
        **_tls(known),
    )


def _split_query(query: str) -> tuple[dict[str, str], dict[str, str]]:
    known: dict[str, str] = {}
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in ("autocommit", "load_balance", "weights", "connect_timeout", *TLS_OPTIONS):
            known[name] = value
        elif name in _SETTINGS:
            options[name] = value
        else:
            raise InterfaceError(
                f"the URL has an unknown option {name!r}",
                hint=f"Known are autocommit, load_balance, weights, connect_timeout, {', '.join((*TLS_OPTIONS, *_SETTINGS))}.",
            )
    return known, options


def _tls(known: dict[str, str]) -> dict[str, Any]:
    """Give the options of TLS: of the URL, else of the environment."""
    found = {name: known.get(name) or os.environ.get(f"DSDB_{name.upper()}", "") for name in TLS_OPTIONS}
    is_named = any(found[name] for name in TLS_OPTIONS[1:])
    mode = found["sslmode"] or ("verify-full" if is_named else "disable")
    if mode in ("allow", "prefer", "require"):
        raise InterfaceError(f"sslmode is {mode!r}, which checks nobody", hint="Say verify-full, verify-ca, or disable for no TLS.")
    if mode not in SSL_MODES:
        raise InterfaceError(f"sslmode is {mode!r}, expected one of {', '.join(SSL_MODES)}")
    if mode != "disable" and not found["certs_dir"]:
        for name in ("sslrootcert", "sslcert", "sslkey"):
            if not found[name]:
                raise InterfaceError(
                    f"sslmode is {mode}, and {name} is missing",
                    hint="Name sslrootcert, sslcert and sslkey, or certs_dir (--certs-dir, DSDB_CERTS_DIR).",
                )
    return {**found, "sslmode": mode, "certs_dir": found["certs_dir"] or None}


def _parse_host(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, port_text = text[1:].partition("]")
        port_text = port_text.removeprefix(":")
    else:
        host, _, port_text = text.partition(":")
    if port_text and not (port_text.isdecimal() and 0 < int(port_text) < 65536):
        raise InterfaceError(f"the URL has {text!r} where host:port is expected, with a port from 1 to 65535")
    return unquote(host) or "localhost", int(port_text or DEFAULT_PORT)


def _load_balance(text: str) -> str:
    if text not in LOAD_BALANCES:
        raise InterfaceError(f"load_balance is {text!r}, expected one of {', '.join(LOAD_BALANCES)}")
    return text


def _weights(text: str | None, hosts: int, *, is_weighted: bool) -> tuple[float, ...]:
    if text is None and not is_weighted:
        return ()
    if text is None or not is_weighted:
        raise InterfaceError("weights and load_balance=weighted go together", hint="Write ?load_balance=weighted&weights=3,1.")
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != hosts or not all(0 <= weight <= WEIGHT_MAX for weight in found) or not any(found):
        raise InterfaceError(
            f"weights is {text!r}, expected {hosts} numbers from 0, one for each host, not all 0",
            hint="A host of weight 0 is tried when no other takes the session.",
        )
    return found


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InterfaceError(f"{name} is {text!r}, expected true or false")
    return text.lower() == "true"


def _seconds(text: str | None) -> float:
    if text is None:
        return CONNECT_TIMEOUT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise InterfaceError(f"connect_timeout is {text!r}, expected seconds above 0")
    return seconds
