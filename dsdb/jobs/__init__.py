"""Work that goes on behind statements, at one node at a time."""

from dsdb.jobs.cleanup import Cleanup

__all__ = ["Cleanup"]
