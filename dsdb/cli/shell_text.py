"""What the shell does with texts: cutting a stream of lines into statements, and showing an error at its place."""

import re

from dsdb.driver.errors import Error

_OPENING = re.compile(r"(?P<escape>\b[eE]')|(?P<quote>['\"])|(?P<line>--)|(?P<block>/\*)|(?P<dollar>\$(?:[A-Za-z_]\w*)?\$)|(?P<end>;)")
_COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
"""Good enough to tell whether there is anything but comments."""
_CLOSING = {
    "'": re.compile(r"'"),
    '"': re.compile(r'"'),
    "E'": re.compile(r"\\.|'", re.DOTALL),
    "--": re.compile(r"\n"),
    "/*": re.compile(r"/\*|\*/"),
}


class StatementSplitter:
    """Cuts lines into statements at `;`, but not inside quotes, comments and $$ bodies.

    Fed with whole lines; keeps the statement that is not complete yet, and looks at each line once.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        # What the text so far ends inside of: a key of _CLOSING, a dollar quote, or nothing.
        self._inside = ""
        self._depth = 0

    def feed(self, lines: str) -> list[str]:
        """Take whole lines, give the statements that they complete, without their `;`."""
        statements = []
        at = start = 0
        while at < len(lines):
            if self._inside:
                at = self._skip(lines, at)
                continue
            match = _OPENING.search(lines, at)
            if match is None:
                break
            at = match.end()
            if match.lastgroup == "end":
                self._pieces.append(lines[start : match.start()])
                start = at
                statements.append(self.take_rest())
            elif match.lastgroup == "escape":
                self._inside = "E'"
            else:
                self._inside, self._depth = match.group(), 1
        self._pieces.append(lines[start:])
        return [statement for statement in statements if statement]

    def _skip(self, lines: str, at: int) -> int:
        """Give where the construct that the text is inside of ends, or the lines do."""
        if self._inside.startswith("$"):
            found = lines.find(self._inside, at)
            end = found + len(self._inside)
        else:
            match = _CLOSING[self._inside].search(lines, at)
            found = -1 if match is None else match.start()
            end = 0 if match is None else match.end()
            if match is not None and match.group().startswith("\\"):
                return end
            if match is not None and self._inside == "/*":
                self._depth += 1 if match.group() == "/*" else -1
                if self._depth:
                    return end
        if found < 0:
            return len(lines)
        self._inside = ""
        return end

    @property
    def is_blank(self) -> bool:
        """Say whether nothing but space and comments waits for its end."""
        return not self._inside and not _COMMENTS.sub("", "".join(self._pieces)).strip()

    def take_rest(self) -> str:
        """Give what waits for its end, and forget it."""
        rest = "" if self.is_blank else "".join(self._pieces).strip()
        self._pieces, self._inside, self._depth = [], "", 0
        return rest


def describe_error(error: Error, sql: str) -> str:
    """Give an error as the shell shows it: message, the line with a caret, detail, hint."""
    lines = [f"ERROR {error.sqlstate}: {error.message}" if error.sqlstate else f"ERROR: {error.message}"]
    if error.position is not None and 0 < error.position <= len(sql) + 1:
        before = sql[: error.position - 1]
        number = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1)
        prefix = f"LINE {number}: "
        lines.append(prefix + sql.split("\n")[number - 1].replace("\t", " "))
        lines.append(" " * (len(prefix) + column) + "^")
    if error.detail:
        lines.append(f"DETAIL: {error.detail}")
    if error.hint:
        lines.append(f"HINT: {error.hint}")
    return "\n".join(lines)
