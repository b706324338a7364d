"""A short run of chaos: real processes, transactions over several ranges, and some of everything that may happen to them."""

from pathlib import Path

from tests.faults import chaos
from tests.faults.proxy import CutNetwork


def test_promises_are_kept_under_faults(tmp_path: Path) -> None:
    picture = tmp_path / "timeline.svg"
    assert chaos.run(tmp_path, seed=2, nodes=3, network=CutNetwork(), seconds=6, picture=picture) == []
    assert picture.read_text().startswith("<svg")
