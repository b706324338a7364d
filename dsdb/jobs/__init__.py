"""Work that goes on behind statements, at one node at a time."""

from dsdb.jobs.cleanup import Cleanup
from dsdb.jobs.imports import Imports
from dsdb.jobs.versions import VersionCollector

__all__ = ["Cleanup", "Imports", "VersionCollector"]
