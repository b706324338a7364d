"""Turns of the event loop, counted: so that whoever wants to know whether something else happened in the same turn need not wake a task.

Invariants:
- One count for each run of trio; it grows by one before the tasks of a turn run.
"""

import trio


class Turns(trio.abc.Instrument):
    """How many turns the loop has begun."""

    def __init__(self) -> None:
        self.count = 1

    def after_io_wait(self, timeout: float) -> None:
        """Begin a turn."""
        self.count += 1


_OF_RUN: trio.lowlevel.RunVar[Turns] = trio.lowlevel.RunVar("dsdb turns")


def turns_of_run() -> Turns:
    """Give the count of the loop that runs the calling task."""
    try:
        return _OF_RUN.get()
    except LookupError:
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        _OF_RUN.set(turns)
        return turns
