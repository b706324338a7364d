"""Clusters and what would be changed about them: testdata/*, views in words, each followed by its moves.

`python -m tests.coordinator.test_plan_scripts --rewrite` makes the moves anew, to be read before they are committed.
"""

import sys
from pathlib import Path

import pytest

from dsdb.coordinator.plan import plan
from tests.coordinator.clusters import parse

TESTDATA = Path(__file__).parent / "testdata"


def run(text: str) -> str:
    """Give a script with its moves: `=> ` lines behind each view."""
    parts = []
    for part in text.split("---\n"):
        lines = [line for line in part.splitlines() if not line.startswith("=>")]
        view, underway = parse(lines)
        moves = plan(view, underway)
        again = plan(view, underway)
        assert moves == again, "the same view gives the same moves"
        parts.append("\n".join([*lines, *[f"=> {move}" for move in moves]] if moves else [*lines, "=> nothing"]) + "\n")
    return "---\n".join(parts)


@pytest.mark.parametrize("name", sorted(path.name for path in TESTDATA.iterdir()))
def test_script(name: str) -> None:
    text = (TESTDATA / name).read_text()
    assert run(text) == text


if __name__ == "__main__":
    for path in sorted(TESTDATA.iterdir()):
        text = run(path.read_text())
        if "--rewrite" in sys.argv:
            path.write_text(text)
        else:
            print(text)
