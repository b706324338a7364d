"""The Raft core: one group's consensus as a value machine, with no clock, disk, network or thread inside.

Invariants:
- Nothing here awaits, reads a clock, draws from global randomness, logs or does I/O; the `store` floor does, as `Ready` tells it to.
- Same calls in the same order with the same seeded `Random` give the same effects, whatever the hash seed.

Where to begin: `messages` (what travels and what is kept), `ready` (the duties of the shell), `node` (the public class `RaftNode`).
"""
