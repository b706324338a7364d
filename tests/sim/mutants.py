"""Planted faults in all simulators, one after another, as a table: `make mutants`.  Seconds are of CPU, so a busy machine finds the same.

    python -m tests.sim.mutants [name …] [--minutes 5]
"""

import argparse
import logging
import time
from collections.abc import Callable, Iterator

from tests.sim import elastic_mutants, fold_mutants, ingest_mutants, node_mutants, protocol_mutants, test_raft_sim
from tests.sim.raft_checker import Violation
from tests.sim.raft_sim import simulate

Find = Callable[[], tuple[int, BaseException] | None]


def _raft() -> Iterator[tuple[str, Find]]:
    for mutant in test_raft_sim.MUTANTS:

        def find(mutant: test_raft_sim.Mutant = mutant) -> tuple[int, BaseException] | None:
            for seed in range(1, mutant.seeds + 1):
                try:
                    simulate(seed, test_raft_sim.SECONDS, mutant.rules)
                except Violation as error:
                    return seed, error
            return None

        yield f"raft: {mutant.name}", find


def _protocol(limit_s: float) -> Iterator[tuple[str, Find]]:
    for mutant in (*protocol_mutants.MUTANTS, *elastic_mutants.MUTANTS, *fold_mutants.MUTANTS, *ingest_mutants.MUTANTS):
        name = mutant.plant.__name__.replace("_", " ")
        yield f"protocol: {name}", lambda mutant=mutant: protocol_mutants.find(mutant, limit_s)  # type: ignore[misc]


def _nodes(limit_s: float) -> Iterator[tuple[str, Find]]:
    for mutant in node_mutants.MUTANTS:
        yield f"nodes: {mutant.plant.__name__.replace('_', ' ')}", lambda mutant=mutant: node_mutants.find(mutant, limit_s)  # type: ignore[misc]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names; all if there are none")
    parser.add_argument("--minutes", type=float, default=5.0, help="of CPU that the search for one may take")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    missed = 0
    print(f"{'planted fault':56} {'seed':>5} {'CPU s':>8}  found as")
    limit_s = options.minutes * 60
    for name, find in [*_raft(), *_protocol(limit_s), *_nodes(limit_s)]:
        if options.names and not any(part in name for part in options.names):
            continue
        began = time.process_time()
        found = find()
        missed += found is None
        seed, what = ("-", "NOT FOUND") if found is None else (str(found[0]), " ".join(str(found[1]).split())[:80])
        print(f"{name:56} {seed:>5} {time.process_time() - began:>8.1f}  {what}", flush=True)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
