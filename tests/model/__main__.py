"""Run the model: `python -m tests.model --help`, or `make model`."""

import argparse
import multiprocessing
import os
import sys
import time

from tests.model import early_intents, lock_waits, scenarios
from tests.model.campaign import campaign, rules_of
from tests.model.history import history
from tests.model.rules import RULES

FOREVER_HISTORIES = 1_000_000_000


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Check the rules of transactions by random histories.")
    takes_away = "what to take away: a rule, rules joined by +, `all` for nothing, `each` for one after another"
    parser.add_argument("rules", nargs="*", default=["all"], help=takes_away)
    parser.add_argument("--histories", type=int, help="how many histories for each (default: 12000)")
    parser.add_argument("--minutes", type=float, help="how long for each, instead")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--stop-after", type=int, default=10, help="so many violations are enough; 0: never (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="print one history, every request and its answer")
    parser.add_argument("--scenarios", action="store_true", help="print what the written scenarios come to")
    parser.add_argument("--early-intents", type=int, metavar="HISTORIES", help="the smaller model of intents laid early")
    parser.add_argument("--lock-waits", type=int, metavar="HISTORIES", help="the model of who waits for whom")
    return parser.parse_args(argv)


def show(seed: int, off: frozenset[str]) -> bool:
    """Print one history; gives whether it is right."""
    kind, world, clients = history(seed, off, trace=True)
    for client in clients:
        attempts = [(attempt.id, attempt.read_ts, attempt.commit_ts, attempt.reads, attempt.writes) for attempt in client.attempts]
        print(client.id, client.program, client.invoked, client.returned, client.told, attempts)
    for rg in world.ranges:
        print(rg.keys, rg.versions, rg.intents, rg.records)
    print("past", world.past)
    print("violation:", kind)
    return kind is None


def main(argv: list[str]) -> int:
    asked = arguments(argv)
    try:
        offs = {name: rules_of(name) for given in asked.rules for name in (RULES if given == "each" else [given])}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.scenarios:
        return 0 if scenarios.show() else 1
    if asked.early_intents:
        return 0 if early_intents.show(asked.early_intents) else 1
    if asked.lock_waits:
        return 0 if lock_waits.show(asked.lock_waits) else 1
    if asked.seed is not None:
        return 0 if show(asked.seed, next(iter(offs.values()))) else 1
    histories = asked.histories or (FOREVER_HISTORIES if asked.minutes else 12_000)
    broken = False
    with multiprocessing.Pool(asked.jobs) as pool:
        for name, off in offs.items():
            begin = time.monotonic()
            until = begin + 60 * asked.minutes if asked.minutes else None
            seeds = range(asked.first_seed, asked.first_seed + histories)
            tally = campaign(off, seeds, asked.stop_after, until, pool.map, asked.jobs)
            print(tally.line(name, time.monotonic() - begin), flush=True)
            if not off:
                print("  " + ", ".join(f"{what} {n}" for what, n in sorted(tally.seen.items())), flush=True)
                broken = broken or tally.bad > 0
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
