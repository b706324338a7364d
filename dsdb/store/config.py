"""The limits and intervals of a store, each with its unit and its reason."""

import msgspec

from dsdb.raft.config import RaftConfig


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a `Store`.  Raises ValueError on values that could never work."""

    tick_interval_s: float = 0.05
    """Time between ticks of the groups that are awake, and between looks at deadlines."""
    raft: RaftConfig = RaftConfig(announces_commit=False)
    """Of every group.  Nobody reads from followers, so they may learn a commit index with the next entry, or the next heartbeat: telling
    them at once costs two messages each way for every lone write."""
    support_interval_s: float = 0.15
    """Time between requests for support to a store: five of them fit into a promise, so that three may be lost or late."""
    support_duration_s: float = 0.75
    """How long a promise stands: the longest time for which a dead leader's ranges are without one."""
    clock_drift_max: float = 0.01
    """How much faster or slower than ours another store's clock may run, as a fraction."""
    campaign_jitter_s: float = 0.15
    """Replicas that lost their leader campaign after a random part of this, so that they do not split the votes."""
    wakes_per_s: float = 100.0
    """If something befalls very many replicas at once, so many are woken in a second, besides those that are asked for: an election
    costs three stores about a millisecond together."""
    wakes_wanted_per_s: float = 300.0
    """So many of those that are asked for, at most."""
    inquiry_interval_s: float = 2.0
    """How long a replica without a leader waits before it asks, again and again, whether it was removed."""
    closed_lag_s: float = 3.0
    """A timestamp is closed so long after it was issued: a transaction that takes longer from its commit timestamp to its last intent is
    bumped, and reads of the past that are younger must ask the leaseholder."""
    closed_interval_s: float = 0.45
    """Time between two promises of a store beside its logs: at every third request for support."""
    closed_repeat_s: float = 5.0
    """While nothing is issued the last promise is repeated so seldom, in case that it was lost."""
    latch_wait_s: float = 5.0
    """A request that waits longer for latches is answered Unavailable: its client can decide better than a queue."""
    latch_waiters_max: int = 10_000
    """Requests that wait for latches in one range; more are answered Unavailable."""
    proposal_timeout_s: float = 5.0
    """A command not applied after this long is answered AmbiguousResult: the range has probably lost its quorum."""
    low_water_wait_s: float = 3.0
    """How long a write waits for the first timestamp of a new lease."""
    timestamp_wait_s: float = 3.0
    """How long a request, perhaps under its latches, waits for the oracle."""
    intent_wait_s: float = 3.0
    """How long a request tries to get foreign intents out of its way: longer than a writer waits for another one."""
    push_wait_s: float = 1.0
    """How long a writer waits for a younger attempt without a record before it is aborted: it has laid an intent, so it is committing."""
    push_wait_short_s: float = 0.01
    """The same if the writer is the older one, as two that wait for each other must not both wait long, and of a reader, whose push would
    cost the attempt a round if its staging is on its way beside its intents."""
    gateway_wait_s: float = 2.0
    """How long a writer waits for a large transaction whose gateway lives before it looks again; a reader, for one that is committing."""
    commit_patience_s: float = 20.0
    """For so long readers wait for a large transaction that was pushed above its commit timestamp, and refreshes what it read."""
    staging_wait_s: float = 0.1
    """How long a STAGING record is waited for: its coordinator needs one more round; if it is dead, others recover it."""
    verdicts_max: int = 20_000
    """Pushes, and tombstones, that a range's leaseholder remembers; with more it refuses the older half of what is committing."""
    passable_max: int = 4_096
    """Attempts whose intents a replica remembers to be passable; forgotten ones are asked about again."""
    lock_silence_s: float = 5.0
    """A lock whose holder was not heard of for this long may be taken by others: its gateway is probably dead."""
    lock_give_way_s: float = 1.0
    """How long a commit without a lock waits for an older transaction that has it; a prewrite waits less than others for its record."""
    locks_max: int = 100_000
    """Locks of one range, 20 MB of memory; more drop the oldest, which costs their holders a restart at most."""
    lock_waiters_max: int = 10_000
    """Requests that wait for locks in one range; more are answered Unavailable."""
    proposals_max: int = 10_000
    """Commands of one range on their way through Raft; more are answered Unavailable."""
    fresh_timestamps_max: int = 4
    """Timestamps that one commit may take under its latches before it answers with a bump."""
    outcome_keep_ms: int = 60_000
    """Outcomes of attempts are kept for this distance of timestamps: longer than any client sends a commit again."""
    outcome_floor_step_ms: int = 5_000
    """The floor under the outcomes is raised in steps of at least this, as each costs a range deletion."""
    outcomes_max: int = 50_000
    """Outcomes kept by a range: 10 MB of memory.  With more the floor rises faster."""
    timestamp_cache_points_max: int = 20_000
    """Keys in one of the two generations of a range's timestamp cache."""
    timestamp_cache_spans_max: int = 4_096
    """Segments of spans in a range's timestamp cache."""
    log_cache_bytes_max: int = 256 << 10
    """Newest entries of a log kept in memory, so that followers in step are served without a read."""
    log_keep_entries: int = 2_048
    """Applied entries kept for followers that are a little behind; truncated when twice as many are there."""
    log_bytes_max: int = 8 << 20
    """A log is truncated to what is not applied when it is larger: a follower so far behind takes a Raft snapshot."""
    snapshot_chunk_bytes: int = 64 << 10
    """Bytes in a chunk of a Raft snapshot: less than 1 ms of work for either side, which requests may have to wait for turn by turn."""
    snapshot_part_bytes: int = 4 << 20
    """Bytes of a Raft snapshot between two acknowledgements: what is sent again after a broken connection, and kept in memory for that."""
    snapshot_bytes_per_s: float = 32 << 20
    """What a store sends of all its Raft snapshots, and what it takes, at most: a third of a gigabit line."""
    snapshot_patience_s: float = 15.0
    """How long a store keeps what it has of a Raft snapshot whose sender is not heard of."""
    snapshot_senders_max: int = 2
    """Raft snapshots that a store sends at a time, so that they do not starve requests of the network."""
    snapshot_receivers_max: int = 2
    """Raft snapshots that a store takes at a time, for the same reason."""
    snapshot_retry_s: float = 1.0
    """Time between attempts to send a Raft snapshot to a replica that lacks its data."""
    check_interval_s: float = 86_400.0
    """In about this time every range that has changed is checked: its replicas' checksums are compared."""
    check_bytes_per_s: float = 8 << 20
    """What a store reads for checks, at most: a few per cent of a processor."""
    split_patience_s: float = 10.0
    """How long a right side waits for a follower that has yet to apply the split, before it is sent a Raft snapshot instead."""
    change_timeout_s: float = 300.0
    """A change of replicas that is not through after this long is answered with an error; it can be asked for again."""
    scan_read_bytes_max: int = 4 << 20
    """Bytes of values in one ScanReply, whatever was asked for: what one message may carry."""
    scan_rows_max: int = 10_000
    """Rows in one ScanReply, whatever was asked for."""
    garbage_chunk_rows: int = 8_192
    """Versions that one garbage collection command looks at: about 10 ms of work."""
    block_cache_bytes: int = 256 << 20
    """Decompressed parts of columnar blocks that a store keeps for its reads: of lineitem, some 5 million rows."""
    stretches_bytes: int = 128 << 20
    """Rows over columnar blocks that a store keeps as its scans need them, where nothing is written."""
    folds: bool = True
    """Whether old versions are folded into columnar blocks."""
    fold_look_s: float = 1.0
    """Between two looks at what could be folded."""
    fold_quiet_s: float = 5.0
    """A range that was not written for so long is looked at: while it is written, its blocks would be written again soon."""
    fold_rest_s: float = 30.0
    """After so long it is at rest: also blocks of which little has changed are written anew, as what lies over a block doubles its scan."""
    fold_busy_writes: int = 32_768
    """After so many writes a range is looked at even if it is never quiet: its delta would grow without end."""
    fold_range_bytes_min: int = 512 << 10
    """Ranges that are smaller stay rows: there is nothing to be gained."""
    fold_versions_min: int = 4_096
    """Versions that are worth a block, new or written anew."""
    fold_rest_versions: int = 64
    """Versions that are worth writing a block anew at rest, at least."""
    fold_batch_versions: int = 4_096
    """Versions that one batch of folding takes: some 5 ms of the loop's time with the block that they go into."""
    fold_block_rows: int = 16_384
    """Rows in a block at most (docs/decisions/0020)."""
    fold_sweep_versions: int = 20_000
    """Versions folded in a range after which the delta there is compacted: until then every scan walks over what they leave."""
    fold_share: float = 0.1
    """Part of the time that folding may take: it is a thread of Python, for which the loop has to wait, too."""
    stall_backoff_s: float = 0.01
    """Pause after the engine refused a write for being busy."""
    disk_full_probe_s: float = 1.0
    """Pause before a write is tried again on a full disk."""

    def __post_init__(self) -> None:
        if self.support_interval_s * 2 > self.support_duration_s:
            least = 2 * self.support_interval_s
            raise ValueError(f"support_duration_s must be at least twice support_interval_s, {least}, not {self.support_duration_s}")
        if not 0 <= self.clock_drift_max < 0.5:
            raise ValueError(f"clock_drift_max must lie within 0 and 0.5, not {self.clock_drift_max}")
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value <= 0 and name not in ("folds", "campaign_jitter_s", "clock_drift_max"):
                raise ValueError(f"{name} must be above 0, not {value}")
