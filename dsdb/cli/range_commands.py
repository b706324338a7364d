"""`dsdb range`: the ranges of a cluster, one of them, and spreading those of a table evenly over the nodes."""

import click

from dsdb.cli.asking import EXIT_REFUSED, Asking, format_option, print_rows, print_table, url_options
from dsdb.cli.waiting import wait

EVENTS_SHOWN = 20
MOVES_PER_RANGE_MAX = 6
"""More moves than this a range are not spreading any more: somebody, or the balance of the whole cluster, wants something else."""


@click.group("range")
def range_command() -> None:
    """List the ranges of a cluster, look at one, spread those of a table."""


@range_command.command("ls")
@click.argument("table", required=False)
@format_option
@url_options
def list_ranges(table: str | None, output_format: str, url: str) -> None:
    """List all ranges, or those of TABLE: who leads them, who has replicas."""
    with Asking(url) as asking:
        columns = "range_id, database_name, table_name, start_key, end_key, leaseholder, replicas"
        where = "" if table is None else " WHERE range_id IN (" + _ids_of(asking, table) + ")"
        rows = asking.rows(f"SELECT {columns} FROM system.ranges{where} ORDER BY range_id")
        print_rows(("range", "database", "table", "from", "to", "leaseholder", "replicas"), rows, output_format)


@range_command.command("show")
@click.argument("range_id", type=click.IntRange(0), metavar="RANGE")
@url_options
def show_range(range_id: int, url: str) -> None:
    """Show one range, what is being done to it, and what was done to it last, with reasons."""
    with Asking(url) as asking:
        rows = asking.rows("SELECT * FROM system.ranges WHERE range_id = ?", (range_id,))
        if not rows:
            click.echo(f"dsdb: there is no range {range_id}: dsdb range ls lists them.", err=True)
            raise SystemExit(EXIT_REFUSED)
        names = _columns(asking, "ranges")
        print_table(("", ""), list(zip(names, rows[0])))
        jobs = asking.rows("SELECT kind, what, started_at FROM system.jobs WHERE range_id = ?", (range_id,))
        if jobs:
            print_table(("being done", "what", "since"), jobs)
        newest = f"WHERE range_id = ? ORDER BY event_id DESC LIMIT {EVENTS_SHOWN}"
        events = asking.rows(f"SELECT happened_at, kind, what, is_done FROM system.events {newest}", (range_id,))
        if events:
            print_table(("when", "kind", "what was tried", "done"), events[::-1])


@range_command.command("scatter")
@click.argument("what", metavar="TABLE|RANGE")
@url_options
def scatter(what: str, url: str) -> None:
    """Spread the ranges of TABLE, their leases and replicas, evenly over the nodes."""
    statement = f"ALTER RANGE {what} SCATTER" if what.isdecimal() else f"ALTER TABLE {_quoted(what)} SCATTER"
    name = f"range {what}" if what.isdecimal() else f"the ranges of {what}"
    verb = "is" if what.isdecimal() else "are"
    with Asking(url) as asking:
        asking.go_on = "What was begun is finished by the cluster; nothing more is moved. The same command goes on."
        ids = what if what.isdecimal() else _ids_of(asking, what)
        moved = 0
        most = MOVES_PER_RANGE_MAX * (ids.count(",") + 1)

        def left() -> int:
            nonlocal moved
            ((begun, waiting),) = asking.rows(statement)
            moved += begun
            return int(begun + waiting) if moved <= most else 0

        wait(f"Scattering {name}", asking.looked(left), unit="ranges")
        moves = f"{moved} move{'' if moved == 1 else 's'}"
        if moved <= most:
            click.echo(f"{moves}: {name} {verb} spread evenly")
        else:
            click.echo(f"{moves}, and ranges come back: what the whole cluster needs goes before an even spread of {what}")


def _ids_of(asking: Asking, table: str) -> str:
    return ", ".join(str(row[0]) for row in asking.rows(f"SHOW RANGES FROM TABLE {_quoted(table)}"))


def _columns(asking: Asking, table: str) -> list[str]:
    return [row[0] for row in asking.rows(f"SHOW COLUMNS FROM system.{table}")]


def _quoted(name: str) -> str:
    """Quote each part of a dotted name as it was typed."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))
