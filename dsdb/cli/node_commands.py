"""`dsdb node`: who is there, and what is wanted of a node.

ls                who is there
drain N           leases go to others, no new sessions: before a restart
decommission N    replicas go to others as well: before a node leaves for good
recommission N    neither is wanted any more

All of it is SQL (ALTER NODE … SET STATE, system.nodes); the wish is kept by the cluster, and is carried out whether or not anybody waits.
"""

import click

from dsdb.cli.asking import Asking, format_option, print_rows, url_options
from dsdb.cli.waiting import wait

_COLUMNS = ("node_id", "address", "is_live", "state", "ranges", "leases", "locality")
_node_argument = click.argument("node_id", type=click.IntRange(1), metavar="NODE")
_no_wait_option = click.option("--no-wait", is_flag=True, help="Say what is wanted, and do not wait until it is done.")


@click.group("node")
def node_command() -> None:
    """List the nodes of a cluster; drain, decommission and recommission one."""


@node_command.command("ls")
@format_option
@url_options
def list_nodes(output_format: str, url: str) -> None:
    """List the nodes: where they are, how they are, what they have."""
    with Asking(url) as asking:
        rows = asking.rows(f"SELECT {', '.join(_COLUMNS)} FROM system.nodes ORDER BY node_id")
        print_rows(("node", "address", "live", "state", "replicas", "leases", "locality"), rows, output_format)


@node_command.command("drain")
@_node_argument
@_no_wait_option
@url_options
def drain(node_id: int, no_wait: bool, url: str) -> None:
    """Let others lead what a node leads, and let it take no new sessions, until `recommission`."""
    with Asking(url) as asking:
        asking.rows(f"ALTER NODE {node_id} SET STATE draining")
        asking.go_on = (
            f"Node {node_id} goes on giving its leases away. To wait again: dsdb node drain {node_id}; "
            f"to have it serve again: dsdb node recommission {node_id}."
        )
        if no_wait:
            click.echo(f"node {node_id} is to be drained")
            return

        def left() -> int:
            return _figure(asking, node_id, "leases", "draining")

        wait(f"Draining node {node_id}", asking.looked(left), unit="leases")
        click.echo(f"node {node_id} is drained: it leads no range, and takes no sessions; it may be stopped")


@node_command.command("decommission")
@_node_argument
@_no_wait_option
@url_options
def decommission(node_id: int, no_wait: bool, url: str) -> None:
    """Move all replicas of a node to others, for good."""
    with Asking(url) as asking:
        rows = asking.rows("SELECT state FROM system.nodes WHERE node_id = ?", (node_id,))
        if rows != [("decommissioned",)]:
            asking.rows(f"ALTER NODE {node_id} SET STATE decommissioning")
        asking.go_on = (
            f"Node {node_id} goes on giving its replicas away. To wait again: dsdb node decommission {node_id}; "
            f"to keep it: dsdb node recommission {node_id}."
        )
        if no_wait:
            click.echo(f"node {node_id} is to be decommissioned")
            return

        def left() -> int:
            (row,) = asking.rows("SELECT state, ranges FROM system.nodes WHERE node_id = ?", (node_id,))
            _check_state(node_id, row[0], ("decommissioning", "decommissioned"))
            return 0 if row[0] == "decommissioned" else max(row[1] or 0, 1)

        wait(f"Decommissioning node {node_id}", asking.looked(left), unit="replicas")
        click.echo(f"node {node_id} is decommissioned: it has no replica left, and may be stopped for good")


@node_command.command("recommission")
@_node_argument
@url_options
def recommission(node_id: int, url: str) -> None:
    """Let a drained or decommissioned node serve again; replicas and leases come to it by and by."""
    with Asking(url) as asking:
        asking.rows(f"ALTER NODE {node_id} SET STATE active")
        asking.go_on = f"Node {node_id} is to be active: that is kept."

        def left() -> int:
            (row,) = asking.rows("SELECT state FROM system.nodes WHERE node_id = ?", (node_id,))
            return int(row[0] != "active")

        wait(f"Recommissioning node {node_id}", asking.looked(left), unit="step")
        click.echo(f"node {node_id} is active")


def _figure(asking: Asking, node_id: int, column: str, state: str) -> int:
    (row,) = asking.rows(f"SELECT state, {column} FROM system.nodes WHERE node_id = ?", (node_id,))
    _check_state(node_id, row[0], (state,))
    # What is not known now is not done yet.
    return 1 if row[0] is None or row[1] is None else int(row[1])


def _check_state(node_id: int, state: str | None, wanted: tuple[str, ...]) -> None:
    """End the command if somebody else has meanwhile wanted something else of the node."""
    if state is not None and state not in wanted:
        raise click.ClickException(f"somebody else wants something else of node {node_id} by now: it is {state}")
