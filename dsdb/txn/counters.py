"""What transactions of this node have done, counted for metrics and for tests of rare events."""

from collections.abc import Iterator
from typing import ClassVar

from dsdb.sql.ports import AmbiguousCommitError, TransactionRetryError


class TxnCounters:
    """One for each node; only ever grows."""

    DESCRIPTIONS: ClassVar[dict[str, str]] = {
        "one_range_commits": "Commits of one range, in one round",
        "parallel_commits": "Commits over several ranges, in one round",
        "two_round_commits": "Commits over several ranges that were too large for one round",
        "became_many": "Commits of one range that a split turned into commits over several",
        "bumps": "Times that a commit needed a later timestamp",
        "refreshes": "Times that the reads of a commit were carried to a later timestamp",
        "restarts": "Attempts that ended because of others, to be run again",
        "recovered_commits": "Own commits that somebody else had finished first",
        "unknown_outcomes": "Commits of which nothing is known",
        "pushes": "Times that the transaction of an intent was asked after",
        "recoveries_committed": "Abandoned commits found to be complete",
        "recoveries_aborted": "Abandoned commits found to be incomplete",
        "finishes_failed": "Commits whose intents or records were left for others to clean up",
        "finishes_waited": "Commits that waited for their own cleaning up, as too many others were at it",
        "stale_records": "Records of dead gateways that were cleaned up here",
        "flushes": "Times that the buffer of a large transaction was flushed as intents",
        "flushed_commits": "Commits of transactions that had flushed",
        "flushes_rolled_back": "Times that flushed writes were overwritten, as they were rolled back to a savepoint",
        "blocks": "Columnar blocks that transactions have laid before their commits",
        "unpackings": "Times that a transaction had rows of its blocks laid one by one, as it wanted to read or change them",
        "abandoned": "Large transactions aborted here, as their gateways were silent",
    }
    """By attribute."""

    def __init__(self) -> None:
        self.one_range_commits = 0
        self.parallel_commits = 0
        self.two_round_commits = 0
        self.became_many = 0
        self.bumps = 0
        self.refreshes = 0
        self.restarts = 0
        self.recovered_commits = 0
        self.unknown_outcomes = 0
        self.pushes = 0
        self.recoveries_committed = 0
        self.recoveries_aborted = 0
        self.finishes_failed = 0
        self.finishes_waited = 0
        self.stale_records = 0
        self.flushes = 0
        self.flushed_commits = 0
        self.flushes_rolled_back = 0
        self.blocks = 0
        self.unpackings = 0
        self.abandoned = 0

    def note_end(self, error: Exception) -> None:
        """Count how a commit failed."""
        self.restarts += isinstance(error, TransactionRetryError)
        self.unknown_outcomes += isinstance(error, AmbiguousCommitError)

    def entries(self) -> Iterator[tuple[str, str, int]]:
        """Give name, description and count of each."""
        for name, description in self.DESCRIPTIONS.items():
            yield name, description, getattr(self, name)
