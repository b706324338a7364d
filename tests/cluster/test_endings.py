"""However a node's process ends, its log says why; a process that was killed is told of by the next one."""

import signal
import sys
import time
from pathlib import Path

from dsdb.cli.processes import NodeProcess

BROKEN = """
import trio
from dsdb.cli.main import main
from dsdb.coordinator.events import EventLog

async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
    task_status.started()
    await trio.sleep(0.2)
    raise ZeroDivisionError("planted")

EventLog.run = run
main(prog_name="dsdb")
"""
KILLED = "the process before this one was killed, or the machine lost its power"


def wait_ended(node: NodeProcess) -> None:
    deadline = time.monotonic() + 20
    while node.is_running:
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.05)
    node.terminate()  # closes its pipe


def log_since(node: NodeProcess, seen: int) -> str:
    return (node.store / "dsdb.log").read_text()[seen:]


def test_every_end_leaves_its_reason_in_the_log(tmp_path: Path) -> None:
    broken = NodeProcess(tmp_path / "n", launcher=(sys.executable, "-c", BROKEN)).start()
    wait_ended(broken)
    said = log_since(broken, 0)
    assert "ZeroDivisionError: planted" in said
    assert "CRITICAL dsdb: the node ends by an error that nobody expected" in said
    assert said.splitlines()[-1].endswith("the process ends with code 70")
    assert any("the node ends by an error that nobody expected: ZeroDivisionError: planted" in line for line in broken.lines)

    node = NodeProcess(tmp_path / "n").start()
    node.send_signal(signal.SIGABRT)  # as a library does that gives up
    wait_ended(node)
    aborted = log_since(node, len(said))
    assert KILLED not in aborted
    assert "Fatal Python error: Aborted" in aborted

    node.start()
    node.kill()
    node.start()
    node.send_signal(signal.SIGHUP)  # the terminal is gone
    wait_ended(node)
    after = log_since(node, len(said) + len(aborted))
    assert after.count(KILLED) == 2, "of the one that was aborted, and of the one that was killed"
    assert "SIGHUP: the node is to stop" in after
    assert after.splitlines()[-1].endswith("the process ends with code 0")
