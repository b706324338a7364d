"""`python -m dsdb.cli`: the same as the `dsdb` command."""

from dsdb.cli.main import main

main(prog_name="dsdb")
