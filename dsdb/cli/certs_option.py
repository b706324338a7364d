"""The option --certs-dir of every command that connects to a cluster, by the driver or as a node would."""

import os
from collections.abc import Callable
from typing import TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., object])


VARIABLES = ("DSDB_CERTS_DIR", "DSDB_SSLMODE", "DSDB_SSLROOTCERT", "DSDB_SSLCERT", "DSDB_SSLKEY")
"""What the driver takes from the environment."""


def forget_certificates() -> None:
    """Let this process, and those that it starts, speak to nodes without certificates."""
    for name in VARIABLES:
        os.environ.pop(name, None)


def certs_dir_option(command: CommandT) -> CommandT:
    """Add the option: what the driver takes from the environment, said on the command line."""
    return click.option(
        "--certs-dir",
        type=click.Path(file_okay=False),
        expose_value=False,
        callback=_take,
        help="Directory with ca.crt, client.USER.crt and client.USER.key: TLS is on.  [default: DSDB_CERTS_DIR]",
    )(command)


def _take(_: click.Context, __: click.Parameter, directory: str | None) -> None:
    if directory is not None:
        os.environ["DSDB_CERTS_DIR"] = directory
