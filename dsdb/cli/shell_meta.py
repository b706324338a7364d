"""The shell's own commands, which begin with a backslash."""

from collections.abc import Callable
from pathlib import Path

from dsdb.cli.shell_run import Shell
from dsdb.cli.shell_text import describe_error
from dsdb.driver.errors import Error
from dsdb.sql.system_tables import SYSTEM_SCHEMA

HELP = """\
  \\d [TABLE]      tables, or the columns and the definition of one
  \\dt             tables
  \\l              databases
  \\c DATABASE     go on in another database
  \\copy …         COPY, as without the backslash: files are read and written here
  \\i FILE         run the statements of a file
  \\timing         show how long statements take, or no longer
  \\x              show rows as lists of their columns, or no longer
  \\?              this help
  \\q              end (also Ctrl-D)
  A statement ends with ; and may take several lines.  Ctrl-C cancels the statement that runs.
"""


class QuitShell(Exception):
    """The user wants to end."""


class MetaCommands:
    """Runs backslash commands on a shell."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._commands: dict[str, Callable[[str], bool]] = {
            "d": self._describe,
            "dt": lambda argument: shell.run("SHOW TABLES"),
            "l": lambda argument: shell.run("SHOW DATABASES"),
            "c": self._change_database,
            "copy": lambda argument: shell.run(f"COPY {argument}"),
            "i": self._include,
            "timing": self._toggle_timing,
            "x": self._toggle_expanded,
            "?": self._help,
            "q": self._quit,
        }

    def run(self, line: str) -> bool:
        """Run a command; say whether it succeeded.  Raises QuitShell."""
        name, _, argument = line.removeprefix("\\").partition(" ")
        command = self._commands.get(name.rstrip(";"))
        if command is None:
            return self._fail(f"there is no command \\{name}; \\? lists them")
        return command(argument.strip().rstrip(";"))

    def _fail(self, message: str) -> bool:
        self._shell.err.write(f"ERROR: {message}\n")
        return False

    def _say(self, message: str) -> bool:
        self._shell.out.write(message + "\n")
        self._shell.out.flush()
        return True

    def _describe(self, argument: str) -> bool:
        if not argument:
            return self._shell.run("SHOW TABLES")
        is_described = self._shell.run(f"SHOW COLUMNS FROM {argument}")
        if not is_described or argument.lower().startswith(f"{SYSTEM_SCHEMA}."):
            return is_described
        return self._shell.run(f"SHOW CREATE TABLE {argument}")

    def _change_database(self, argument: str) -> bool:
        if not argument:
            return self._say(f'The database is "{self._shell.target.database}", the user "{self._shell.target.user}".')
        try:
            known = {str(row[0]) for row in self._shell.rows("SHOW DATABASES")}
            if argument not in known:
                return self._fail(f'database "{argument}" does not exist; \\l lists them')
            self._shell.change_database(argument)
        except Error as error:
            self._shell.err.write(describe_error(error, "") + "\n")
            return False
        return self._say(f'The database is "{argument}" now.')

    def _include(self, argument: str) -> bool:
        try:
            with Path(argument).expanduser().open(encoding="utf-8") as lines:
                return self._shell.run_lines(lines, self.run)
        except (OSError, UnicodeDecodeError) as error:
            return self._fail(f"cannot read {argument!r}: {error}")

    def _toggle_timing(self, argument: str) -> bool:
        self._shell.is_timing = not self._shell.is_timing
        return self._say(f"Timing is {'on' if self._shell.is_timing else 'off'}.")

    def _toggle_expanded(self, argument: str) -> bool:
        self._shell.is_expanded = not self._shell.is_expanded
        return self._say(f"Rows are shown as {'lists' if self._shell.is_expanded else 'tables'}.")

    def _help(self, argument: str) -> bool:
        return self._say(HELP.rstrip("\n"))

    def _quit(self, argument: str) -> bool:
        raise QuitShell
