"""The commands of the two simulators that run nodes: one seed, or seed after seed; a failing one is made smaller.

    python -m tests.sim.node_sim --seed N [--seconds S] [--faults a,b] [--clients a,b] [--keep FILE] [--verbose]
    python -m tests.sim.node_sim --search MINUTES [--seed N] [--seconds S] …

The same for `tests.sim.protocol_sim` (`protocol_search`).

    failing seed ─▶ fewer seconds ─▶ fewer faults ─▶ fewer clients ─▶ the smallest command that fails still
"""

import argparse
import logging
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import ClassVar

import msgspec
import trio

from tests.sim import node_faults, node_sim
from tests.sim.rare_events import RARE

SHRINK_S = 240.0
"""Real time that is spent on making one failing run smaller."""
SEEDS_OF_A_SMALLER_MIX = 3
"""A smaller mix is another run: with so many seeds it may fail as well."""


class Run(msgspec.Struct, frozen=True):
    """What a command runs: of whole nodes, unless a subclass says otherwise."""

    seed: int
    seconds: float
    faults: tuple[str, ...] | None = None
    clients: tuple[str, ...] | None = None
    elastic: bool = False
    """With replicas that come, go, are sent whole, and go bad: the protocol's; whole nodes draw that themselves."""
    ingests: bool = False
    """With clients that lay rows as blocks: the protocol's."""

    module: ClassVar[str] = "tests.sim.node_sim"
    usual_seconds: ClassVar[float] = 20.0
    rare: ClassVar[tuple[str, ...]] = RARE
    """What a search is expected to have seen."""

    def expected(self) -> tuple[str, ...]:
        """Give what a search is expected to have seen."""
        return self.rare

    def mix(self) -> "node_faults.Mix":
        """Give what the seed draws."""
        return node_faults.draw(self.seed, self.faults, self.clients)

    def simulate(self, events: Counter[str], keep: Path | None = None) -> str:
        """Run it; give its trace, and what else is to be said of it."""
        model = node_sim.simulate(self.seed, self.seconds, self.faults, keep, self.clients, events)
        return (
            f"trace {model.trace:08x}\n"
            f"  slowest statement {model.slowest_s:.1f} s; back {model.slowest_back_s:.1f} s after the last fault"
        )

    def command(self) -> str:
        """Give the line to type."""
        text = f"python -m {self.module} --seed {self.seed} --seconds {self.seconds:g}"
        if self.faults is not None:
            text += f" --faults '{','.join(self.faults)}'"
        if self.clients is not None:
            text += f" --clients {','.join(self.clients)}"
        if self.elastic:
            text += " --elastic"
        if self.ingests:
            text += " --ingests"
        return text

    def error(self, events: Counter[str] | None = None) -> Exception | None:
        """Run it, and give what went wrong."""
        try:
            self.simulate(Counter() if events is None else events)
        except Exception as error:  # a search's root: whatever went wrong is a finding
            return error
        return None


def shrink(run: Run, limit_s: float = SHRINK_S) -> Run:
    """Give the smallest run found in the time that fails still."""
    end = time.perf_counter() + limit_s
    mix = run.mix()
    best = msgspec.structs.replace(run, faults=mix.faults, clients=mix.clients)

    def is_failing(candidate: Run) -> bool:
        return time.perf_counter() < end and candidate.error() is not None

    def try_seeds(**change: object) -> bool:
        nonlocal best
        for number in range(SEEDS_OF_A_SMALLER_MIX):
            candidate = msgspec.structs.replace(best, seed=best.seed + number, **change)
            if is_failing(candidate):
                best = candidate
                return True
        return False

    while best.seconds > 2 and is_failing(shorter := msgspec.structs.replace(best, seconds=best.seconds / 2)):
        best = shorter
    for name in ("faults", "clients"):
        for each in getattr(best, name):
            rest = tuple(other for other in getattr(best, name) if other != each)
            if rest:
                try_seeds(**{name: rest})
    return best


def search(minutes: float, first: Run, *, shrinks: bool = True) -> bool:
    """Run seed after seed, and print the failing ones.  Say whether there was none."""
    began, seed, failing = time.perf_counter(), first.seed, []
    spent_s = 0.0
    events: Counter[str] = Counter()
    while time.perf_counter() < began + minutes * 60:
        run = msgspec.structs.replace(first, seed=seed)
        error = run.error(events)
        if error is not None:
            failing.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:2000]}\n  {run.mix()}", flush=True)
            if shrinks and len(failing) == 1:
                since = time.perf_counter()
                print(f"  the smallest that fails: {shrink(run).command()}", flush=True)
                spent_s = time.perf_counter() - since
        seed += 1
    runs = seed - first.seed
    speed = runs / (time.perf_counter() - began - spent_s)
    print(f"seeds {first.seed} to {seed - 1}: {runs} of {first.seconds:g} s, {speed:.2f} seeds/s; failing: {failing or 'none'}")
    print_events(events)
    missing = [name for name in first.expected() if not events[name]]
    print(f"  never seen: {', '.join(missing) or 'nothing'}")
    return not failing


def print_events(events: Counter[str]) -> None:
    """Print what was counted."""
    for name, count in sorted(events.items()):
        if count:
            print(f"  {name:50} {count}")


class _SimulatedTime(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        try:
            now = trio.current_time()
        except RuntimeError:
            now = 0.0
        return f"{now:9.3f} {record.name:16} {super().format(record)}"


def _options(kind: type[Run]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="the first one, of a search")
    parser.add_argument("--search", type=float, metavar="MINUTES", help="run seed after seed for so long, and print the failing ones")
    parser.add_argument("--seconds", type=float, default=kind.usual_seconds)
    parser.add_argument("--faults", help="comma-separated, instead of the seed's own mix")
    parser.add_argument("--clients", help="comma-separated, instead of the seed's own")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where a history goes that is wrong, of one seed")
    parser.add_argument("--shrink", action="store_true", help="make a failing seed smaller")
    parser.add_argument("--elastic", action="store_true", help="of the protocol: replicas come, go, are sent whole, and go bad")
    parser.add_argument("--ingests", action="store_true", help="of the protocol: rows are laid as blocks besides")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


def main(kind: type[Run] = Run) -> None:
    """Run the command."""
    options = _options(kind)
    if options.verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(_SimulatedTime())
        logging.basicConfig(level=logging.INFO, handlers=[handler])
    else:
        logging.disable(logging.CRITICAL)
    faults = tuple(options.faults.split(",")) if options.faults else None
    clients = tuple(options.clients.split(",")) if options.clients else None
    run = kind(options.seed, options.seconds, faults, clients, options.elastic, options.ingests)
    if options.search is not None:
        raise SystemExit(0 if search(options.search, run) else 1)
    began = time.perf_counter()
    events: Counter[str] = Counter()
    try:
        told = run.simulate(events, options.keep)
    except Exception as error:
        if options.verbose:
            traceback.print_exc()
        print(f"seed {run.seed}: {run.mix()}")
        if options.shrink:
            print(f"the smallest that fails: {shrink(run).command()}")
        raise SystemExit(f"seed {run.seed}: {type(error).__name__}: {error}") from None
    took = time.perf_counter() - began
    print(f"seed {run.seed}: {run.seconds:g} s of faults in {took:.1f} s, {told}")
    print(f"  {run.mix()}")
    print_events(events)
