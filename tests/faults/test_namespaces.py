"""The network of namespaces does what chaos relies on: each scenario runs in namespaces of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from dsdb.driver import wire
from tests.faults import namespaces
from tests.faults.namespaces import NamespaceNetwork
from tests.faults.proxy import Site

_HEAR = """
import socket
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("0.0.0.0", 5500))
print("ready", flush=True)
while True:
    print(heard.recv(100).decode(), flush=True)
"""
_SAY = "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 5500))"
_ACCEPT = """
import signal, socket
listener = socket.create_server(("0.0.0.0", 5500))
print("ready", flush=True)
kept = [listener.accept()[0] for _ in range(2)]
signal.pause()
"""


@pytest.fixture(scope="module", autouse=True)
def _permitted() -> None:
    if (refusal := namespaces.refusal()) is not None:
        pytest.skip(f"network namespaces cannot be used here: {refusal}")


@pytest.mark.parametrize("name", ["cut_one_way_then_mend", "power_fails"])
def test_scenario(name: str) -> None:
    before = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout.count("dsdb")
    command = [*namespaces.own_namespaces(), sys.executable, "-m", "tests.faults.test_namespaces", name]
    environment = {**os.environ, namespaces.INSIDE: "plain"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout.count("dsdb") == before


def test_it_says_why_there_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("ip") is None
    assert namespaces.refusal() == "there is no `unshare`"


def _python(site: Site, program: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*site.launcher, sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def cut_one_way_then_mend(network: NamespaceNetwork, sites: list[Site]) -> None:
    """What goes from 1 to 2 is lost while that link is cut, what goes the other way arrives."""
    hears = {number: _python(site, _HEAR) for number, site in enumerate(sites, 1)}
    assert [_line(process) for process in hears.values()] == ["ready", "ready"]

    def say(source: int, target: int, text: str) -> None:
        assert _python(sites[source - 1], _SAY, f"10.77.{target}.2", text).wait() == 0

    network.cut([(1, 2)])
    say(1, 2, "lost")
    say(2, 1, "the other way")
    assert _line(hears[1]) == "the other way"
    network.mend([(1, 2)])
    say(1, 2, "after the cut")
    assert _line(hears[2]) == "after the cut", "what was sent during the cut arrived"
    network.isolate(2, [1])
    network.heal()
    say(1, 2, "healed")
    assert _line(hears[2]) == "healed"


def power_fails(network: NamespaceNetwork, sites: list[Site]) -> None:
    """A driver hears of a node whose power failed without a word, whether it waits or has just sent something."""
    wire.SILENCE_MAX_S, wire._PROBE_AFTER_S, wire._PROBE_EVERY_S = 2, 1, 1
    node = _python(sites[0], _ACCEPT)
    assert _line(node) == "ready"
    waits, sends = (socket.create_connection(("10.77.1.2", 5500), timeout=20) for _ in range(2))
    for sock in (waits, sends):
        wire.expect_signs_of_life(sock)
    network.unplug(1)
    node.kill()
    node.wait()
    network.vanish(1)
    began = time.monotonic()
    sends.sendall(b"a statement")
    for sock in (waits, sends):
        # The kernel's error has a number; that of our own patience has none.
        with pytest.raises(OSError, match=r"\[Errno"):
            sock.recv(1)
    assert time.monotonic() - began < 8, "the driver waited for too long"
    network.come_back(1)
    again = _python(sites[0], _ACCEPT)
    assert _line(again) == "ready"
    socket.create_connection(("10.77.1.2", 5500), timeout=5).close()
    again.kill()


if __name__ == "__main__":
    made = NamespaceNetwork()
    where = [made.add_node(), made.add_node()]
    for place, found in enumerate(where, 1):
        made.name(place, place, found.listen)
    {"cut_one_way_then_mend": cut_one_way_then_mend, "power_fails": power_fails}[sys.argv[1]](made, where)
