"""`dsdb sql`: the shell.

-e, -f or a pipe    run, stop at the first error, exit with 1
a terminal          a prompt (`shell_prompt`)
"""

import sys
from typing import IO

import click

from dsdb.cli.certs_option import certs_dir_option

FORMATS = ("table", "csv", "json", "arrow", "parquet", "markdown")
DEFAULT_URL = "dsdb://localhost:7432/defaultdb"


@click.command("sql")
@click.argument("url", default=DEFAULT_URL, required=False)
@click.option("-e", "--execute", "statements", multiple=True, metavar="SQL", help="Run this and end; may be given several times.")
@click.option(
    "-f", "--file", "file", type=click.File("r", encoding="utf-8"), help="Run the statements of a file (- is standard input) and end."
)
@click.option("--format", "output_format", type=click.Choice(FORMATS), default="table", show_default=True, help="How results are written.")
@certs_dir_option
def sql_command(url: str, statements: tuple[str, ...], file: IO[str] | None, output_format: str) -> None:
    """Run SQL on a cluster, or type it at a prompt.

    URL is dsdb://user@host:7432/database, or the directory of an embedded node.
    """
    sys.exit(run_shell(url, statements=statements, file=file, output_format=output_format))


def run_shell(url: str, *, statements: tuple[str, ...], file: IO[str] | None, output_format: str) -> int:
    """Run the shell; give the exit code: 0, or 1 if a statement failed, 2 if there is no connection."""
    from dsdb.cli.shell_meta import MetaCommands, QuitShell  # noqa: PLC0415, RUF100
    from dsdb.cli.shell_run import Shell, standard_streams  # noqa: PLC0415, RUF100
    from dsdb.cli.shell_text import describe_error  # noqa: PLC0415, RUF100
    from dsdb.driver.errors import Error  # noqa: PLC0415, RUF100
    from dsdb.driver.target import parse_target  # noqa: PLC0415, RUF100

    out, err = standard_streams()
    try:
        shell = Shell(parse_target(url), output_format=output_format, out=out, err=err)
    except Error as error:
        err.write(describe_error(error, "") + "\n")
        return 2
    meta = MetaCommands(shell)
    try:
        if statements or file is not None:
            if not all(shell.run_lines(iter([text + "\n"]), meta.run) for text in statements):
                return 1
            return 0 if file is None or shell.run_lines(iter(file), meta.run) else 1
        if not sys.stdin.isatty():
            return 0 if shell.run_lines(iter(sys.stdin), meta.run) else 1
        from dsdb.cli.shell_prompt import run_prompt  # noqa: PLC0415, RUF100

        click.echo(f"{shell.connection.server_version}, node {shell.connection.node_id}. \\? for help.")
        run_prompt(shell, meta)
    except QuitShell:
        pass
    except BrokenPipeError:
        # The reader of our output has had enough.  Python would complain again at exit.
        sys.stderr.close()
        return 1
    finally:
        shell.close()
    return 0
