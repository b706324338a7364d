"""`dsdb start`: one node in the foreground, until SIGTERM or Ctrl-C.

first signal: stop taking sessions, let statements finish, hand leases over, end
second signal: end at once
SIGHUP, with certificates: look at their files now, not at the next connection; without: as SIGTERM, as its terminal is gone

Invariants:
- However the process ends, the log says it: its last line is LAST_WORDS, or what a library or the interpreter died of.  Only SIGKILL and a
  loss of power leave nothing; then the next process to have the store says so.
"""

import faulthandler
import gc
import io
import ipaddress
import logging
import logging.handlers
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
import trio

from dsdb.coordinator.coordinator import DEAD_AFTER_S
from dsdb.env import Address, parse_address
from dsdb.node.config import DEFAULT_HTTP_PORT, DEFAULT_PORT, NodeConfig, StartError
from dsdb.node.node import Node

SWITCH_INTERVAL_S = 0.0005
"""How long a thread of the engine or the disk may keep the event loop from running; Python's own 5 ms cost half the durable writes."""
EXIT_UNEXPECTED = 70
"""An error in dsdb itself (EX_SOFTWARE)."""
LAST_WORDS = "the process ends with code"
ENDING_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGXCPU")
"""Each is a wish to stop."""
LOG_BYTES_MAX, LOG_FILES = 16 * 1024 * 1024, 5
"""Size of a store's log file, and how many old ones are kept."""
LINE_BYTES_MAX = 4096
"""The end of a log, which is looked at for LAST_WORDS."""

log = logging.getLogger("dsdb")


def _addresses(text: str | None) -> tuple[Address, ...]:
    return tuple(parse_address(part.strip(), default_port=DEFAULT_PORT) for part in (text or "").split(",") if part.strip())


def _locality(text: str | None) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in (text or "").split(","):
        if part:
            key, _, value = (word.strip() for word in part.partition("="))
            # What placements could not name would be no use.
            if not key or not value or "=" in value or key[0] in "+-":
                raise ValueError(f"{part!r} is not a locality: expected KEY=VALUE")
            pairs.append((key, value))
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError(f"{text!r} names a tier twice")
    return tuple(pairs)


def _check_loopback(address: Address) -> None:
    """Raises ValueError with a sentence for an address that other machines can reach, where there are no certificates."""
    if address.host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            f"{address} is reachable from other machines: give --certs-dir with certificates (`dsdb cert` makes them), "
            "or say --insecure if everybody in the network may read and change everything"
        )


@click.command("start")
@click.option(
    "--store", type=click.Path(path_type=Path, file_okay=False), default=Path("dsdb-data"), show_default=True, help="Data directory."
)
@click.option("--memory", is_flag=True, help="Keep everything in memory instead of a store; gone when the node ends.")
@click.option("--listen", default=f"127.0.0.1:{DEFAULT_PORT}", show_default=True, help="HOST:PORT for nodes and clients; port 0: any.")
@click.option("--advertise", default=None, help="HOST:PORT by which other nodes reach this one; default: the listening one.")
@click.option("--join", default=None, help="HOST:PORT[,HOST:PORT…] of nodes of the cluster to join.")
@click.option(
    "--http", default=f"127.0.0.1:{DEFAULT_HTTP_PORT}", show_default=True, help="HOST:PORT for /health and /metrics; 'off': none."
)
@click.option("--locality", default=None, help="KEY=VALUE,… from the widest to the narrowest.")
@click.option(
    "--certs-dir", type=click.Path(path_type=Path, file_okay=False), default=None, help="Directory of this node's certificates: TLS is on."
)
@click.option(
    "--dead-after",
    type=click.FloatRange(min=1.0),
    default=DEAD_AFTER_S,
    show_default=True,
    metavar="SECONDS",
    help="Replace the replicas of a node that does not answer for so long.  Say the same at every node.",
)
@click.option("--insecure", is_flag=True, help="No TLS, also at addresses that other machines can reach.")
def start_command(
    store: Path,
    memory: bool,
    listen: str,
    advertise: str | None,
    join: str | None,
    http: str,
    locality: str | None,
    certs_dir: Path | None,
    dead_after: float,
    insecure: bool,
) -> None:
    """Start a node: found a cluster, restart the store's own, or (--join) join one."""
    try:
        config = NodeConfig(
            store=None if memory else store,
            listen=parse_address(listen, default_port=DEFAULT_PORT),
            advertise=parse_address(advertise, default_port=DEFAULT_PORT) if advertise else None,
            join=_addresses(join),
            http=None if http == "off" else parse_address(http, default_port=DEFAULT_HTTP_PORT),
            locality=_locality(locality),
            certs_dir=certs_dir,
            dead_after_s=dead_after,
        )
        if certs_dir is not None and insecure:
            raise ValueError("--certs-dir turns TLS on and --insecure turns it off: say one of them")
        for address in (config.listen, config.advertise, config.http):
            if address is not None and certs_dir is None and not insecure:
                _check_loopback(address)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _log_to(config)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # A full collection over all that was imported holds the interpreter for 100 ms, under load every few seconds.
    gc.collect()
    gc.freeze()
    try:
        trio.run(_serve, config)
    except BaseException as error:  # the process's root: whatever it is, the log has it
        _leave(_told(error))
    _leave(0)


def _told(error: BaseException) -> int:
    """Say why the node ends, in its log and at the terminal; give the exit code."""
    first = _first(error)
    if isinstance(first, StartError):
        log.error("%s", first)
        click.echo(f"dsdb: {first}", err=True)
        return 1
    if isinstance(first, KeyboardInterrupt):
        return 128 + signal.SIGINT
    log.critical("the node ends by an error that nobody expected", exc_info=error)
    click.echo(f"dsdb: the node ends by an error that nobody expected: {type(first).__name__}: {first}; its log has more.", err=True)
    return EXIT_UNEXPECTED


def _leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart: the engine's bindings would report every object that is still there."""
    log.info("%s %d", LAST_WORDS, code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _serve(config: NodeConfig) -> None:
    node = Node(config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey_signals, node, ENDING_SIGNALS if config.certs_dir is not None else (*ENDING_SIGNALS, "SIGHUP"))
        if config.certs_dir is not None and hasattr(signal, "SIGHUP"):
            nursery.start_soon(_read_certificates_on_hangup, node)
        await nursery.start(node.run)
        gc.freeze()
        where = "in memory" if config.store is None else f"in {config.store}"
        click.echo(f"dsdb: node {node.node_id} serves at {node.address}, data {where}")
        if node.http_address is not None:
            scheme = "http" if config.certs_dir is None else "https"
            click.echo(f"dsdb: metrics and health at {scheme}://{node.http_address}/")
        await node.ended.wait()
        nursery.cancel_scope.cancel()


async def _read_certificates_on_hangup(node: Node) -> None:
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            node.refresh_certificates()


async def _obey_signals(node: Node, names: Sequence[str]) -> None:
    """Stop at the first of some signals, those of them that the system has, and at once at the second."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    with trio.open_signal_receiver(*numbers) as signals:
        count = 0
        async for number in signals:
            count += 1
            log.info("%s: the node is to stop%s", signal.Signals(number).name, " at once" if count > 1 else "")
            node.stop(at_once=count > 1)


class _LogFile(logging.handlers.RotatingFileHandler):
    """The store's log, which also gets what a library or the interpreter dies of."""

    def _open(self) -> io.TextIOWrapper:
        stream = super()._open()
        faulthandler.enable(stream)
        return stream


def _log_to(config: NodeConfig) -> None:
    """Send log lines to the store's file, or to the terminal for a node in memory."""
    handler: logging.Handler = logging.StreamHandler()
    left = None
    if config.store is None:
        faulthandler.enable()
    else:
        path = config.store / "dsdb.log"
        try:
            config.store.mkdir(parents=True, exist_ok=True)
            left = _last_line(path)
            handler = _LogFile(path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES)
        except OSError as error:
            click.echo(f"dsdb: the store {config.store} cannot be written: {error.strerror}.", err=True)
            sys.exit(1)
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    threading.excepthook = lambda args: log.critical("a thread ended by an error: %s", args.thread, exc_info=args.exc_value)
    if left and LAST_WORDS not in left:
        log.warning("the process before this one was killed, or the machine lost its power, unless the lines above say why it ended")


def _last_line(path: Path) -> str:
    """Give the last line of a log; empty if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - LINE_BYTES_MAX, 0))
        return (file.read().splitlines() or [b""])[-1].decode(errors="replace")


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
