"""What a session needs of SQL: statements prepared and run."""

from collections.abc import Sequence
from typing import Protocol

from dsdb.sql.execute.result import Parameter, Result
from dsdb.sql.execute.session import SessionState
from dsdb.sql.parse import ParsedStatement
from dsdb.sql.transaction_status import Begin


class StatementPort(Protocol):
    """Runs statements.  Raises SqlError's; what streams afterwards raises them too.  Cancellation stops a statement."""

    async def prepared(self, text: str) -> Sequence[ParsedStatement]:
        """Cut a text into statements; one that takes long is cut by a thread."""

    async def run(
        self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter], *, begin: Begin = Begin.NO
    ) -> Result:
        """Run one of them; `begin` says what begins if no transaction is open."""

    async def end(self, session: SessionState) -> None:
        """Roll back what a session that ends has open."""
