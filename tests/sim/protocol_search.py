"""The command of the protocol simulator: see `node_search`."""

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from tests.sim import node_search, protocol_faults, protocol_sim
from tests.sim.ingest_events import RARE_INGESTS, RARE_INGESTS_ELASTIC
from tests.sim.protocol_watch import RARE, RARE_ELASTIC


class Run(node_search.Run, frozen=True):
    """What a command runs, of the protocol."""

    module: ClassVar[str] = "tests.sim.protocol_sim"
    usual_seconds: ClassVar[float] = 120.0
    rare: ClassVar[tuple[str, ...]] = RARE

    def mix(self) -> Any:
        """Give what the seed draws."""
        return protocol_faults.draw(self.seed, self.faults, self.clients, elastic=self.elastic, ingests=self.ingests)

    def expected(self) -> tuple[str, ...]:
        """Give what a search is expected to have seen."""
        expected = (*RARE, *RARE_ELASTIC) if self.elastic else RARE
        if self.ingests:
            expected += (*RARE_INGESTS, *RARE_INGESTS_ELASTIC) if self.elastic else RARE_INGESTS
        return expected

    def simulate(self, events: Counter[str], keep: Path | None = None) -> str:
        """Run it; give its trace, and what else is to be said of it."""
        options = {"elastic": self.elastic, "ingests": self.ingests}
        simulation = protocol_sim.simulate(self.seed, self.seconds, self.faults, keep, self.clients, events, **options)
        return (
            f"trace {simulation.trace:08x}\n"
            f"  {simulation.heap.now:.0f} s simulated, {simulation.heap.events} events; "
            f"slowest transaction {simulation.clients.slowest_s:.1f} s; back {simulation.back_s:.1f} s after the last fault"
        )


def main() -> None:
    """Run the command."""
    node_search.main(Run)
