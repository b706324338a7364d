"""The `dsdb` command and its sub-commands.  Each is imported only when it is called: `dsdb sql` loads no server."""

import importlib

import click

_COMMANDS = {
    "start": ("dsdb.cli.start", "start_command"),
    "sql": ("dsdb.cli.shell", "sql_command"),
    "import": ("dsdb.cli.transfer", "import_command"),
    "export": ("dsdb.cli.transfer", "export_command"),
    "dump": ("dsdb.cli.transfer", "dump_command"),
    "node": ("dsdb.cli.node_commands", "node_command"),
    "range": ("dsdb.cli.range_commands", "range_command"),
    "cert": ("dsdb.cli.cert", "cert_command"),
    "debug": ("dsdb.cli.debug", "debug_group"),
    "demo": ("dsdb.cli.demo", "demo_command"),
}
"""Name → module and object, in the order in which --help lists them."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dsdb", prog_name="dsdb")
def main() -> None:
    """Run dsdb, a distributed SQL database."""
