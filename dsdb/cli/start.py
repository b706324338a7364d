"""`dsdb start`: one node in the foreground, until SIGTERM or Ctrl-C.

first signal: stop taking sessions, let statements finish, hand leases over, end
second signal: end at once
SIGHUP, with certificates: look at their files now, not at the next connection
"""

import gc
import ipaddress
import logging
import logging.handlers
import os
import signal
import sys
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
LOG_BYTES_MAX, LOG_FILES = 16 * 1024 * 1024, 5
"""Size of a store's log file, and how many old ones are kept."""


def _addresses(text: str | None) -> tuple[Address, ...]:
    return tuple(parse_address(part.strip(), default_port=DEFAULT_PORT) for part in (text or "").split(",") if part.strip())


def _locality(text: str | None) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in (text or "").split(","):
        if part:
            key, separator, value = part.partition("=")
            if not separator or not key or not value:
                raise ValueError(f"{part!r} is not a locality: expected KEY=VALUE")
            pairs.append((key.strip(), value.strip()))
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
    except* StartError as group:
        message = str(_first(group))
        logging.getLogger("dsdb").error("%s", message)
        click.echo(f"dsdb: {message}", err=True)
        _leave(1)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart: the engine's bindings would report every object that is still there."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _serve(config: NodeConfig) -> None:
    node = Node(config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey_signals, node)
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


async def _obey_signals(node: Node) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        count = 0
        async for _ in signals:
            count += 1
            node.stop(at_once=count > 1)


def _log_to(config: NodeConfig) -> None:
    """Send log lines to the store's file, or to the terminal for a node in memory."""
    handler: logging.Handler = logging.StreamHandler()
    if config.store is not None:
        try:
            config.store.mkdir(parents=True, exist_ok=True)
            handler = logging.handlers.RotatingFileHandler(config.store / "dsdb.log", maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES)
        except OSError as error:
            click.echo(f"dsdb: the store {config.store} cannot be written: {error.strerror}.", err=True)
            sys.exit(1)
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
