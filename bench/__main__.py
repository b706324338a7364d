"""`python -m bench`: run benchmarks; `python -m bench report`: their tables."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from bench.report import markdown, write_page
from bench.results import newest_result, read_results
from bench.run import SIDES, WORK, WORK_GROUPS, Options, install_peers, run_benchmarks
from bench.sides.port import end_servers_on_sigterm

_PEERS = tuple(name for name in SIDES if name != "dsdb")


def _names(known: tuple[str, ...], groups: dict[str, tuple[str, ...]]) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """Give what reads a list of names with commas between them."""

    def read(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
        names = tuple(part.strip() for part in text.split(",") if part.strip() and part.strip() != "none")
        for name in names:
            if name not in known and name not in groups:
                raise click.BadParameter(f"{name!r} is unknown; known are {', '.join((*known, *groups))}, none")
        return tuple(dict.fromkeys(found for name in names for found in groups.get(name, (name,))))

    return read


def _counts(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    if not text:
        return ()
    counts = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if len(counts) != text.count(",") + 1 or min(counts) < 1:
        raise click.BadParameter(f"{text!r} is not a list like 1,16,64")
    return counts


@click.group(invoke_without_command=True)
@click.option(
    "--peers", callback=_names(_PEERS, {}), default=",".join(_PEERS), show_default=True, help="Whom to compare with; none: nobody."
)
@click.option("--work", callback=_names(WORK, WORK_GROUPS), default=",".join(WORK), show_default=True, help="What to run.")
@click.option("--clients", callback=_counts, default="", help="Numbers of clients, a process each.  [default: 1,16,64; bank: 16]")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="Length of a slice.")
@click.option("--turns", type=click.IntRange(min=1), default=3, show_default=True, help="Slices of each contender; 3 or more for figures.")
@click.option("--scale", type=click.FloatRange(min=0.001, max=100), default=1.0, show_default=True, help="Share of the usual rows.")
@click.option("--idle-seconds", type=click.FloatRange(min=1), default=20.0, show_default=True, help="Length of the idle measurement.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(tempfile.gettempdir()),
    show_default=True,
    help="Where the servers keep their data; removed afterwards.",
)
@click.option("--install", is_flag=True, help="Install missing peers by apt-get first.")
@click.option("--no-dsdb", is_flag=True, help="Run the peers alone, to try the harness.")
@click.pass_context
def bench(
    context: click.Context,
    peers: tuple[str, ...],
    work: tuple[str, ...],
    clients: tuple[int, ...],
    seconds: float,
    turns: int,
    scale: float,
    idle_seconds: float,
    directory: Path,
    install: bool,
    no_dsdb: bool,
) -> None:
    """Run the same workloads on dsdb and on its peers, in turns."""
    if context.invoked_subcommand is not None:
        return
    end_servers_on_sigterm()
    if install:
        install_peers(peers, click.echo)
    sides = peers if no_dsdb else ("dsdb", *peers)
    options = Options(
        sides=sides,
        work=work,
        clients=clients,
        seconds=seconds,
        turns=turns,
        scale=scale,
        idle_s=idle_seconds,
        directory=directory.resolve(),
    )
    try:
        run_benchmarks(options, click.echo)
    except (RuntimeError, TimeoutError) as error:
        raise click.ClickException(str(error)) from error  # our own nodes did not start


@bench.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--write", is_flag=True, help="Put the tables into docs/benchmarks.md.")
def report(files: tuple[Path, ...], write: bool) -> None:
    """Print the tables of results (those of the last run, if none are named) in Markdown."""
    if not files:
        newest = newest_result()
        if newest is None:
            click.echo("there are no results: run `make bench` first", err=True)
            sys.exit(1)
        files = (newest,)
    text = "\n".join(markdown(read_results(path)) for path in files)
    if write:
        write_page(text)
    else:
        click.echo(text)


if __name__ == "__main__":
    bench()
