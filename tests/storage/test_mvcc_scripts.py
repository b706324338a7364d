"""MVCC as transcripts: each file in `mvcc_scripts` is a story of commands and their output, its name the claim.

A block is prose (`# …`), commands, `---`, output.  Run as a program with `--rewrite`, this module writes the outputs anew: read them.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsdb.storage import mvcc
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Engine, Family
from dsdb.storage.engine.rocksdb import RocksEngine
from dsdb.storage.keys import KEY_MAX, Span
from dsdb.storage.mvcc import Intent, IntentsFoundError, Version
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp
from dsdb.storage.versions import View

SCRIPTS = sorted((Path(__file__).parent / "mvcc_scripts").glob("*.txt"))

Arguments = dict[str, str]


def timestamp(arguments: Arguments, name: str = "ts") -> Timestamp:
    return Timestamp(int(arguments[name]))


def key(arguments: Arguments) -> bytes:
    return arguments["key"].encode()


def value(arguments: Arguments) -> bytes | None:
    return arguments["value"].encode() if "value" in arguments else None


def own(arguments: Arguments) -> bytes | None:
    return arguments["own"].encode() if "own" in arguments else None


def span(arguments: Arguments) -> Span:
    return Span(arguments.get("from", "").encode(), arguments["to"].encode() if "to" in arguments else KEY_MAX)


def text(stored: bytes | None) -> str:
    return "deleted" if stored is None else stored.decode()


def show_version(version: Version | None) -> list[str]:
    return ["none" if version is None else f"{text(version.value)} @{version.ts}"]


def show_intent(of: bytes, intent: Intent) -> str:
    return f"{of.decode()} intent of {intent.attempt_id.decode()} @{intent.ts}: {text(intent.value)}"


def put(engine: Engine, arguments: Arguments) -> list[str]:
    batch = engine.new_batch()
    mvcc.put(batch, key(arguments), timestamp(arguments), value(arguments))
    engine.write(batch)
    return []


def put_intent(engine: Engine, arguments: Arguments) -> list[str]:
    batch = engine.new_batch()
    ts = timestamp(arguments)
    mvcc.put_intent(batch, key(arguments), Intent(arguments["attempt"].encode(), key(arguments), ts, ts, 1, value(arguments)))
    engine.write(batch)
    return []


def resolve(engine: Engine, arguments: Arguments) -> list[str]:
    batch = engine.new_batch()
    commit_ts = timestamp(arguments, "commit") if "commit" in arguments else None
    found = mvcc.resolve_intent(engine, batch, key(arguments), arguments["attempt"].encode(), commit_ts)
    engine.write(batch)
    return ["resolved" if found else "no intent of this attempt"]


def get(engine: Engine, arguments: Arguments) -> list[str]:
    return show_version(mvcc.get(engine, key(arguments), View(timestamp(arguments), own(arguments))))


def scan(engine: Engine, arguments: Arguments) -> list[str]:
    chunks = mvcc.scan(engine, span(arguments), View(timestamp(arguments), own(arguments)), reverse="reverse" in arguments)
    rows = [row for keys, values in chunks for row in zip(keys, values)]
    return [f"{row_key.decode()} = {row_value.decode()}" for row_key, row_value in rows] or ["no rows"]


def changed(engine: Engine, arguments: Arguments) -> list[str]:
    low, high = timestamp(arguments, "low"), timestamp(arguments, "high")
    passable = {arguments["passable"].encode(): timestamp(arguments, "at")} if "passable" in arguments else {}
    found = mvcc.changed(engine, span(arguments), low, View(high, own(arguments), passable))
    return ["unchanged" if found is None else f"{found[0].decode()} @{found[1]}"]


def intents(engine: Engine, arguments: Arguments) -> list[str]:
    found = mvcc.intents(engine, span(arguments), at_or_below=timestamp(arguments), limit=int(arguments.get("limit", "100")))
    return [show_intent(*each) for each in found] or ["no intents"]


def collect_garbage(engine: Engine, arguments: Arguments) -> list[str]:
    batch = engine.new_batch()
    versions_max = int(arguments.get("max", "100"))
    removed, _, resume = mvcc.collect_garbage(engine, batch, span(arguments), timestamp(arguments, "threshold"), versions_max=versions_max)
    engine.write(batch)
    return [f"removed {removed}" + ("" if resume is None else f", go on from {resume.decode()}")]


def dump(engine: Engine, arguments: Arguments) -> list[str]:
    """Show what is stored, as the engine orders it."""
    del arguments
    lines = []
    for keys, values in engine.scan(Family.DELTA, b"", KEY_MAX):
        for engine_key, stored in zip(keys, values):
            user_key, ts = engine_key[:-8], MAX_TIMESTAMP - int.from_bytes(engine_key[-8:], "big")
            if stored[0] == 2:
                intent = mvcc.get_intent(engine, user_key)
                assert intent is not None
                lines.append(show_intent(user_key, intent))
            else:
                lines.append(f"{user_key.decode()} @{ts}: {text(stored[1:]) if stored[0] == 0 else 'deleted'}")
    return lines or ["nothing"]


COMMANDS: dict[str, Callable[[Engine, Arguments], list[str]]] = {
    command.__name__: command for command in (put, put_intent, resolve, get, scan, changed, intents, collect_garbage, dump)
}


def run_line(engine: Engine, line: str) -> list[str]:
    name, *words = line.split()
    arguments = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    try:
        return COMMANDS[name](engine, arguments)
    except IntentsFoundError as error:
        return [f"in the way: {show_intent(*each)}" for each in error.intents]


def run_script(script: str, engine: Engine) -> str:
    """Give the script with the outputs that its commands have now."""
    blocks = []
    for block in script.strip().split("\n\n"):
        source = block.partition("\n---")[0].rstrip()
        output = []
        for line in source.split("\n"):
            if line and not line.startswith("#"):
                shown = run_line(engine, line)
                if len(shown) == 1:
                    output.append(f"{line} → {shown[0]}")
                elif shown:
                    output += [f"{line} →", *(f"    {each}" for each in shown)]
        blocks.append("\n".join([source, "---", *output]))
    return "\n\n".join(blocks) + "\n"


@pytest.fixture(params=["memory", "rocksdb"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    made: Engine = MemoryEngine() if request.param == "memory" else RocksEngine.open(tmp_path / "store", create=True)
    yield made
    made.close()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(script: Path, engine: Engine) -> None:
    assert run_script(script.read_text(), engine) == script.read_text()


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 5


if __name__ == "__main__":
    assert sys.argv[1:] == ["--rewrite"], "usage: test_mvcc_scripts.py --rewrite"
    for path in SCRIPTS:
        path.write_text(run_script(path.read_text(), MemoryEngine()))
