"""Runs statements: the point path by key, the stage path through the engine, changes of data and of the catalogue.

    executor = StatementExecutor(services)                              one a node (`statement`)
    for statement in await executor.prepared(text):                     SqlSyntaxError; `;` gives several; `prepare` does it synchronously
        result = await executor.run(session, statement, parameters)     SessionState, ParsedStatement, Sequence[Parameter] → Result
        ...                                                             consume result.batches before the next statement

Only errors of `dsdb.sql.errors` leave it; what streams afterwards raises them too.
"""
