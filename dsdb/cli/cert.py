"""`dsdb cert`: the cluster's authority, and certificates for nodes and users."""

import datetime
import sys
from collections.abc import Callable
from pathlib import Path

import click

from dsdb.tls.authority import Authority, Validity, describe_certificate
from dsdb.tls.errors import CertificateError

CA_DAYS = 3650
CERTIFICATE_DAYS = 365
"""How long an authority, and what it signs, holds if nothing is said."""

_directory = click.Path(path_type=Path, file_okay=False)
_ca_option = click.option("--ca-dir", type=_directory, default=Path("ca"), show_default=True, help="Where the authority and its key are.")
_certs_option = click.option("--certs-dir", type=_directory, default=Path("certs"), show_default=True, help="Where the files go.")
_overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the files that are there: nodes read them again by themselves.")


def _days_option(days: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--days", type=click.IntRange(1, 36_500), default=days, show_default=True, help="How long it is valid.")


@click.group("cert")
def cert_command() -> None:
    """Make certificates for TLS: an authority first, then one for each node and each user."""


@cert_command.command("create-ca")
@_ca_option
@_days_option(CA_DAYS)
def create_ca(ca_dir: Path, days: int) -> None:
    """Make the cluster's authority.  Keep its directory away from the nodes: whoever has ca.key can be any node and any user."""
    with _Sentences():
        authority = Authority.create(ca_dir, Validity(days))
        _say(ca_dir / "ca.crt", authority.end)
        click.echo(f"{ca_dir / 'ca.key'} signs for the cluster: keep it secret, and off the nodes")


@cert_command.command("create-node")
@click.argument("hosts", nargs=-1, required=True, metavar="HOST…")
@_certs_option
@_ca_option
@_days_option(CERTIFICATE_DAYS)
@_overwrite_option
def create_node(hosts: tuple[str, ...], certs_dir: Path, ca_dir: Path, days: int, overwrite: bool) -> None:
    """Make a node's certificate, for every name and address by which nodes and clients reach it."""
    with _Sentences():
        end = Authority.open(ca_dir).create_node(certs_dir, list(hosts), Validity(days), overwrite=overwrite)
        _say(certs_dir / "node.crt", end)


@cert_command.command("create-client")
@click.argument("user")
@_certs_option
@_ca_option
@_days_option(CERTIFICATE_DAYS)
@_overwrite_option
def create_client(user: str, certs_dir: Path, ca_dir: Path, days: int, overwrite: bool) -> None:
    """Make the certificate by which a user proves who it is."""
    with _Sentences():
        end = Authority.open(ca_dir).create_client(certs_dir, user, Validity(days), overwrite=overwrite)
        _say(certs_dir / f"client.{user}.crt", end)


@cert_command.command("ls")
@_certs_option
def list_certificates(certs_dir: Path) -> None:
    """List the certificates of a directory: whose they are, for which hosts, until when."""
    with _Sentences():
        paths = sorted(certs_dir.glob("*.crt"))
        if not paths:
            raise CertificateError(f"there are no certificates in {certs_dir}")
        for path in paths:
            holder, hosts, end = describe_certificate(path)
            state = "EXPIRED" if end < datetime.datetime.now(datetime.UTC) else "valid until"
            click.echo(f"{path}: {holder}{f' at {hosts}' if hosts else ''}, {state} {end:%Y-%m-%d %H:%M} UTC")


# The short names.
cert_command.add_command(create_node, "node")
cert_command.add_command(create_client, "client")


def _say(path: Path, end: datetime.datetime) -> None:
    click.echo(f"{path} is valid until {end:%Y-%m-%d}")


class _Sentences:
    """Ends the command with a sentence and code 1 when it fails."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CertificateError):
            message = str(error)
        elif isinstance(error, OSError):
            message = f"{error.filename} cannot be written: {error.strerror}"
        else:
            return
        click.echo(f"dsdb: {message}.", err=True)
        sys.exit(1)
