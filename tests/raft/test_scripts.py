"""Each script in testdata shows one claim about the core: its file name.

`python -m tests.raft.test_scripts --rewrite` regenerates the outputs, to be read before they are committed.
"""

import sys
from pathlib import Path

import pytest

from tests.raft.script import SCRIPTS, replay


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    script = path.read_text()
    assert replay(script) == script


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 14


if __name__ == "__main__":
    for script_path in SCRIPTS:
        text = replay(script_path.read_text())
        if "--rewrite" in sys.argv:
            script_path.write_text(text)
        elif text != script_path.read_text():
            print(f"{script_path.name} differs")
