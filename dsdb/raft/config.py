"""The limits and intervals of one Raft group, in ticks and bytes."""

import msgspec


class RaftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a `RaftNode`. A tick is whatever interval the store calls `tick()` at; the core knows no time.

    Raises ValueError on values that could never work.
    """

    election_ticks: int = 10  # a follower campaigns after [election_ticks, 2 × election_ticks) ticks of silence
    heartbeat_ticks: int = 2  # a ticked leader heartbeats this often
    inflight_messages_max: int = 64  # Appends on their way to one follower; bounds its queue while it is slow
    inflight_bytes_max: int = 8 << 20  # entry bytes on their way to one follower
    append_bytes_max: int = 256 << 10  # entry bytes in one Append; at least one entry always goes
    apply_bytes_max: int = 4 << 20  # entry bytes in the committed entries of one Ready; at least one entry always goes
    uncommitted_bytes_max: int = 16 << 20  # a leader refuses proposals above this much uncommitted data
    reads_pending_max: int = 4096  # read-index requests that wait for a heartbeat round
    announces_commit: bool = True  # a new commit index goes to idle followers at once; else with the next entries or heartbeat

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            highest = self.election_ticks - 1
            raise ValueError(f"heartbeat_ticks must be between 1 and {highest} (election_ticks - 1), not {self.heartbeat_ticks}")
        for name in self.__struct_fields__:
            if name != "announces_commit" and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
