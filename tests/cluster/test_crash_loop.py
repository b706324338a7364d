"""The crash loop, short: `make crash MINUTES=60` runs it longer."""

from pathlib import Path

import pytest

from tests.faults.crash_loop import CrashLoop


@pytest.mark.slow
def test_no_acknowledged_row_is_lost_when_nodes_are_killed_and_unsynced_log_tails_are_gone(tmp_path: Path) -> None:
    # The first round of this seed kills all three nodes.
    loop = CrashLoop(tmp_path, seed=6)
    loop.run(seconds=0, rounds_min=1)
    assert not loop.faults, loop.report()
    assert loop.kills == 3
    # How much was not synced when they were killed is chance, and may be nothing; `make crash` counts it over many rounds.
