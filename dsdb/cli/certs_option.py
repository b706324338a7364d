"""The option --certs-dir of every command that connects to a cluster."""

import os
from collections.abc import Callable
from typing import TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., object])


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
