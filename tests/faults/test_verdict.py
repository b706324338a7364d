"""What a chaos run says of itself."""

from pathlib import Path
from xml.etree import ElementTree

from tests.faults.timeline import draw
from tests.faults.verdict import FaultSpan, Load, Pause, Told, pauses, quorumless, report, worst_by_kind

KILL = FaultSpan("kill", (2,), 10.0, 12.0)
CUT = FaultSpan("isolate", (3,), 11.0, 15.0)
SPLIT = FaultSpan("split", (), 30.0, 30.1)


def test_pauses_reach_from_the_start_to_the_end() -> None:
    assert pauses([2.0, 1.0], 5.0) == [Pause(0.0, 1.0), Pause(1.0, 2.0), Pause(2.0, 5.0)]


def test_faults_are_blamed_for_what_they_overlap_or_just_precede() -> None:
    assert Pause(13.5, 16.0).blamed([CUT, KILL]) == [KILL, CUT]
    assert Pause(14.5, 16.0).blamed([CUT, KILL]) == [CUT]
    assert Pause(9.0, 10.0).blamed([CUT, KILL]) == []


def test_a_kind_is_alone_to_blame_only_where_nothing_else_can_be() -> None:
    found = [Pause(10.0, 13.0), Pause(14.5, 16.0), Pause(40.0, 49.0)]
    assert worst_by_kind(found, [KILL, CUT, SPLIT]) == {"kill": (3.0, 0.0), "isolate": (3.0, 1.5), "split": (0.0, 0.0)}


def test_a_quorum_is_lost_while_two_of_three_replicas_are_down() -> None:
    ranges = [frozenset({1, 2, 3}), frozenset({3, 4, 5})]
    assert quorumless(Pause(9.0, 20.0), [KILL, CUT], ranges) == 1.0
    assert quorumless(Pause(11.5, 20.0), [KILL, CUT], ranges) == 0.5
    assert quorumless(Pause(9.0, 20.0), [KILL, CUT], ranges[1:]) == 0.0
    assert quorumless(Pause(9.0, 20.0), [KILL, FaultSpan("slow", (3,), 9.0, 20.0)], ranges) == 0.0


def test_the_longest_pause_is_told_with_what_went_on_meanwhile() -> None:
    load = Load(
        name="bank", commits=[1.0, 10.5, 14.0], failed=1, unknown=2, errors=[Told(12.0, "08006 lost\nHINT: again"), Told(1.0, "early")]
    )
    said = report([load], [KILL, CUT], 15.0, {0.0: [frozenset({1, 2, 3})]})
    assert "3 transactions committed (0/s), 1 aborted, 2 of unknown outcome; 2 faults" in said
    assert "no commit for 9.5 s (1.0–10.5): kill of 2 (10.0–12.0)\n" in said
    assert (
        "no commit for 3.5 s (10.5–14.0): kill of 2 (10.0–12.0), isolate of 3 (11.0–15.0); for 1.0 s of it some range had no quorum\n"
        "          1 × 08006 lost HINT: again" in said
    )


def test_the_picture_has_a_row_for_each_node_and_the_right_scale(tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    draw(path, title="a < b", seconds=20.0, commits=[1.0, 1.1, 5.0], faults=[KILL, CUT, SPLIT], longest=Pause(5.0, 20.0))
    root = ElementTree.parse(path).getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "node 2", "node 3", "all", "8/s", "15.0 s", "20 s"} <= set(texts)
    titled = [element for element in root.iter("{http://www.w3.org/2000/svg}rect") if len(element)]
    assert (titled[0].get("x"), titled[0].get("width")) == ("645.0", "107.0")
