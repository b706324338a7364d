"""Settings for all tests: Hypothesis tries the same examples in every run, unless DSDB_EXPLORE=1 asks it to search for new ones.

Several workers (`make test`) take one file after another, with one exception: tests of real processes are one worker's, which begins
with them.  They wait more than they work, and measure how long clusters take; two at a time would only be in each other's way.
"""

import os
from typing import Any

import pytest
from hypothesis import settings

# A run that fails by chance helps nobody on a busy machine; new examples are found by running with DSDB_EXPLORE=1.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("DSDB_EXPLORE") else "repeatable")

PROCESSES = "tests/cluster/"
"""The tests of real processes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(PROCESSES))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return PROCESSES if nodeid.startswith(PROCESSES) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)
