"""Judge a history that was kept: `python -m tests.checkers listappend FILE`.

Only checkers are here that need nothing but the history.  Ends with status 1 if there is an anomaly.
"""

import argparse
from pathlib import Path

from tests.checkers import listappend, longfork, monotonic, phantom, predicate, register, sets, timestamps
from tests.checkers.history import explain, load

CHECKERS = {
    "listappend": listappend.check,
    "longfork": longfork.check,
    "monotonic": monotonic.check,
    "phantom": phantom.check,
    "predicate": predicate.check,
    "register": register.check,
    "sets": sets.check,
    "timestamps": timestamps.check,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checker", choices=sorted(CHECKERS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--shown", type=int, default=20, help="so many anomalies are explained")
    options = parser.parse_args()
    history = load(options.file)
    found = CHECKERS[options.checker](history)
    print(f"{len(history.txns)} transactions {history.about}")
    if found:
        print(explain(found, options.shown))
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
