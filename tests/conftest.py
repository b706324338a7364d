"""Settings for all tests: Hypothesis tries the same examples in every run, unless DSDB_EXPLORE=1 asks it to search for new ones."""

import os

from hypothesis import settings

# A run that fails by chance helps nobody on a busy machine; new examples are found by running with DSDB_EXPLORE=1.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("DSDB_EXPLORE") else "repeatable")
