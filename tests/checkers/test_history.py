"""The form of histories, how they are recorded and kept; and the check of lists by timestamps."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkers import timestamps
from tests.checkers.history import (
    Anomaly,
    Append,
    BadHistoryError,
    Cas,
    History,
    Increment,
    Insert,
    Op,
    Outcome,
    Read,
    ReadList,
    Recorder,
    Scan,
    Select,
    Txn,
    Violation,
    Write,
    explain,
    load,
    refuse,
)

ROOT = Path(__file__).resolve().parents[2]


def ok(number: int, invoked: int, completed: int | None, *ops: Op, process: int = 1, ts: int | None = None) -> Txn:
    return Txn(number=number, process=process, invoked=invoked, completed=completed, outcome=Outcome.OK, ops=ops, ts=ts)


@pytest.mark.parametrize(
    ("txns", "says"),
    [
        ([ok(1, 1, 2), ok(1, 3, 4)], "two transactions are number 1"),
        ([ok(1, 2, 1)], "no time of completion"),
        ([ok(1, 1, None)], "no time of completion"),
        ([ok(1, 1, 3), ok(2, 2, 4)], "two transactions at once"),
    ],
)
def test_what_breaks_the_form_is_refused(txns: list[Txn], says: str) -> None:
    with pytest.raises(BadHistoryError, match=says):
        History(txns)


def test_recorder_notes_who_did_what_when() -> None:
    recorder = Recorder()
    first, second = recorder.begin(1), recorder.begin(2)
    first.ops.append(Write("x", 1))
    first.restart()
    first.ops.append(Write("x", 2))
    recorder.ok(first, ts=7)
    third = recorder.begin(1)
    recorder.fail(third, "refused")
    fourth = recorder.begin(1)
    recorder.info(fourth)
    assert [str(txn) for txn in recorder.history().txns] == [
        "T1 (process 1, 1–3, ok at 7): x := 2",
        "T2 (process 2, 2–…, info): ",
        "T3 (process 1, 4–5, fail): ",
        "T4 (process 1, 6–7, info): ",
    ]
    recorder.ok(second)
    assert [txn.outcome for txn in recorder.history().txns] == ["ok", "ok", "fail", "info"]


def test_recorder_takes_the_time_from_a_clock() -> None:
    recorder = Recorder(iter((100, 250)).__next__)
    recorder.ok(recorder.begin(1))
    (txn,) = recorder.history().txns
    assert (txn.invoked, txn.completed) == (100, 250)


keys = st.integers(-(2**40), 2**40) | st.text(max_size=5)
values = keys | st.none()
key_lists = st.lists(keys, max_size=3).map(tuple)
ops = st.one_of(
    st.builds(Append, keys, values),
    st.builds(ReadList, keys, st.lists(values, max_size=3).map(tuple)),
    st.builds(Write, keys, values),
    st.builds(Read, keys, values),
    st.builds(Cas, keys, values, values),
    st.builds(Increment, keys, st.none() | st.integers(0, 9)),
    st.builds(Insert, keys, values),
    st.builds(Scan, key_lists, values, values),
    st.builds(Select, keys, key_lists),
)


@given(st.lists(st.lists(ops, max_size=3).map(tuple), max_size=4), st.text(max_size=9))
def test_what_is_kept_is_loaded_again(tmp_path_factory: pytest.TempPathFactory, all_ops: list[tuple[Op, ...]], about: str) -> None:
    history = History([ok(number, number, number + 1, *each) for number, each in enumerate(all_ops)], about)
    path = tmp_path_factory.getbasetemp() / "history.jsonl"
    history.save(path)
    assert load(path) == history


@pytest.mark.parametrize("content", [b"", b"{}\n", b"no\n", b'{"format":"dsdb-history-1","about":""}\n{"number":1}\n'])
def test_what_is_no_history_is_not_loaded(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadHistoryError):
        load(path)


def test_violations_keep_their_history_which_can_be_judged_again(tmp_path: Path) -> None:
    stale = History([ok(1, 1, 2, Append("x", 1)), ok(2, 3, 4, ReadList("x", ()))], "seed 7")
    path = tmp_path / "history.jsonl"
    refuse([], stale, path)
    assert not path.exists()
    with pytest.raises(Violation, match=r"1 G2\nG2: why\nhistory: .*jsonl"):
        refuse([Anomaly(name="G2", explanation="why")], stale, path)
    judged = subprocess.run(
        [sys.executable, "-m", "tests.checkers", "listappend", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert judged.returncode == 1
    assert judged.stdout.startswith("2 transactions seed 7\n1 G-single-process, 1 lost-write\n")


def test_explanations_are_counted_and_cut() -> None:
    many = [Anomaly(name=name, explanation="…") for name in ("b", "a", "b", "b")]
    assert explain(many, shown=2) == "1 a, 3 b\nb: …\na: …"


# ---- Lists by timestamps ----


def lists(*txns: tuple[dict[str, tuple[int, ...]], str, int | None], last: tuple[int, ...]) -> History:
    """Transactions one after the other, of (reads, list appended to, timestamp); the number is what is appended."""
    recorder = Recorder()
    for reads, key, ts in txns:
        pending = recorder.begin(1)
        pending.ops += [ReadList(each, seen) for each, seen in reads.items()]
        if key:
            pending.ops.append(Append(key, pending.number))
        if ts is not None:
            recorder.ok(pending, ts)
    end = recorder.begin(2)
    end.ops.append(ReadList("x", last))
    recorder.ok(end)
    return recorder.history()


SERIAL = lists(({"x": ()}, "x", 10), ({"x": (1,)}, "", 20), ({"x": (1,)}, "x", None), ({"x": (1, 3)}, "x", 40), last=(1, 3, 4))


@pytest.mark.parametrize(
    ("history", "found"),
    [
        (SERIAL, []),
        (lists(({"x": ()}, "x", 10), ({"x": ()}, "", 20), last=(1,)), ["wrong-read"]),  # stale
        (lists(({"x": ()}, "x", 20), ({"x": (1,)}, "", 10), last=(1,)), ["order", "wrong-read"]),
        (lists(({"x": ()}, "x", 20), ({"x": ()}, "", 20), last=(1,)), ["order"]),
        (lists(({}, "x", 20), ({}, "x", 30), last=(2, 1)), ["list-order"]),
        (lists(({"x": ()}, "x", None), ({"x": (1,)}, "", 20), ({"x": (7, 8)}, "", None), last=()), ["wrong-read"]),  # read, and gone
        (lists(({"x": ()}, "x", 10), ({"x": ()}, "x", 20), last=(1, 2)), ["wrong-read"]),  # a lost update
    ],
)
def test_timestamps_explain_what_was_read(history: History, found: list[str]) -> None:
    assert [anomaly.name for anomaly in timestamps.check(history)] == found


@pytest.mark.parametrize(("outcome", "found"), [(Outcome.OK, ["wrong-read"]), (Outcome.FAIL, []), (Outcome.INFO, [])])
def test_own_appends_of_the_unacknowledged_are_in_no_list(outcome: Outcome, found: list[str]) -> None:
    own = Txn(number=1, process=1, invoked=1, completed=2, outcome=outcome, ops=(Append("x", 1), ReadList("x", (1,))))
    history = History([own, ok(2, 1, 2, Append("x", 2), process=2, ts=20), ok(3, 3, 4, ReadList("x", (2,)), ts=30)])
    assert [anomaly.name for anomaly in timestamps.check(history)] == found
