"""The house rules that a reader relies on, checked over the source: who imports whom, how long things are, what is never written.

Each rule is a function from a tree to its faults; a fault says where, what, and what to do about it.  The second half of the file plants
each fault in a small tree, so that no rule can pass by looking at nothing.
"""

import ast
import fnmatch
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("dsdb.cli",), "the commands; nobody imports them"),
    (("dsdb",), "what `import dsdb` gives: the driver's names"),
    (("dsdb.node", "dsdb.driver"), "the two ends: a node's composition root, and the client library"),
    (("dsdb.session",), "the gateway: one session a client"),
    (("dsdb.flow",), "stages of a query across nodes; runs below sessions, above the ranges that it reads"),
    (("dsdb.coordinator", "dsdb.jobs"), "decide what becomes of ranges, and run what outlives a session"),
    (("dsdb.txn",), "transactions: take timestamps from the oracle and send to ranges"),
    (("dsdb.oracle",), "timestamps: its client finds the system range through the router"),
    (("dsdb.ranges",), "which node serves a key"),
    (("dsdb.store", "dsdb.rpc", "dsdb.protocol"), "replicas on a disk; calls between nodes; the clients' protocol"),
    (("dsdb.kv",), "requests, errors and descriptors of ranges; names Raft's replica ids"),
    (("dsdb.raft", "dsdb.config"), "the consensus core, which knows nothing; the limits of each layer"),
    (("dsdb.env",), "ports to the world"),
    (("dsdb.tls",), "certificates and encryption without a socket, for nodes and for the driver"),
    (("dsdb.sql",), "text to stages; knows no node, range or socket"),
    (("dsdb.storage",), "bytes and versions; knows nothing above"),
)
"""Top to bottom, each with the reason for its place.  A module imports lower floors only; rooms of one floor do not know each other."""

LAZY_IMPORTS = {("dsdb.driver", "dsdb.node"): "an embedded node is started by connect() when a directory or nothing is named"}
"""Upward imports inside functions, each with its reason."""

ATTRIBUTES_OF_DSDB = {"__version__"}
"""What every floor may take from the package itself."""

TOP_LEVEL = {"pyproject.toml", "README.md", "Makefile", "LICENSE", "dsdb", "sql", "storage", "tests", "bench", "docs"}
"""Everything at the top that does not begin with a dot."""

MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
OVERSIZED: dict[str, int] = {}
"""Ratchet: `path` or `path:function` → lines that it may have until it is cut.  Only ever shrinks."""

VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "manager", "misc"}

PURE = (
    *("dsdb.raft", "dsdb.protocol", "dsdb.kv", "dsdb.sql.bind", "dsdb.sql.plan"),
    *("dsdb.coordinator.plan", "dsdb.coordinator.view", "dsdb.coordinator.repair", "dsdb.coordinator.balance", "dsdb.coordinator.scene"),
    "dsdb.coordinator.placement",
    *("dsdb.store.latches", "dsdb.store.locks", "dsdb.store.timestamp_cache", "dsdb.store.liveness", "dsdb.store.evaluate"),
    *("dsdb.store.state_machine", "dsdb.store.command", "dsdb.store.frame"),
    *("dsdb.store.intents", "dsdb.store.records", "dsdb.store.verdicts"),
)
"""Cores without I/O: time and chance are arguments."""
IMPURE_MODULES = {"asyncio", "logging", "secrets", "socket", "threading", "time", "trio"}

BLOCKING_ROOMS = ("dsdb.cli", "dsdb.driver")
"""Rooms without an event loop, where a wait may block its thread."""

ROOT_COMMENT = re.compile(r"\broots?\b|raises bare Exception")
"""Why everything is caught: it is the root of a task, thread or statement; or the library below raises nothing narrower."""

IMPORT_PROGRAM = "import sys; import dsdb, dsdb.driver; print('\\n'.join(sys.modules))"
SERVER_MODULES = re.compile(
    r"dsdb\.(cli|node|session|flow|coordinator|jobs|txn|oracle|ranges|store|rpc|kv|raft|env|sql\.(bind|plan|execute|parse)|storage\.(engine|mvcc))\b"
    r"|(trio|pyarrow|duckdb|rocksdict|sqlglot|numpy|pandas|polars|click|rich)$"
)
"""What a program that only imports the driver does not pay for."""


class Fault(NamedTuple):
    """A broken rule."""

    path: str
    line: int
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}; {self.do}"


class Source(NamedTuple):
    """A Python file."""

    path: str
    """From the root, with slashes."""
    module: str
    """Its name as imports spell it; tests and benches have their path with dots."""
    lines: list[str]
    syntax: ast.Module
    imports: list[tuple[ast.stmt, str, bool]]
    """Each imported module with its statement, and whether it is imported when the file is."""

    @property
    def is_product(self) -> bool:
        return self.module.split(".")[0] == "dsdb"

    def fault(self, node: ast.AST | int, what: str, do: str) -> Fault:
        return Fault(self.path, node if isinstance(node, int) else getattr(node, "lineno", 1), what, do)


class Tree(NamedTuple):
    """What the rules look at."""

    root: Path
    sources: list[Source]


Rule = Callable[[Tree], Iterator[Fault]]


def read_tree(root: Path) -> Tree:
    """Read every Python file of dsdb/, sql/, storage/ (by their real folders), tests/ and bench/."""
    sources = []
    for room in ("dsdb", "sql", "storage", "tests", "bench"):
        for path in sorted((root / room).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if "__pycache__" in name or name.startswith(("dsdb/sql/", "dsdb/storage/")):
                continue  # rglob does not follow links before Python 3.13; these are read where they are
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            module = f"dsdb.{module}" if room in ("sql", "storage") else module
            text = path.read_text()
            syntax = ast.parse(text, name)
            sources.append(Source(name, module, text.splitlines(), syntax, list(imports_of(syntax))))
    return Tree(root, sources)


def floor_of(module: str) -> tuple[int, str] | None:
    """Find a module's floor, counted from the top, and its room."""
    parts = module.split(".")
    room = ".".join(parts[:2])
    for number, (rooms, _) in enumerate(FLOORS):
        if room in rooms:
            return number, room
    return None


def imports_of(syntax: ast.Module) -> Iterator[tuple[ast.stmt, str, bool]]:
    """Give what `Source.imports` has."""
    functions = [node for node in ast.walk(syntax) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for_types = [node for node in ast.walk(syntax) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    late = {id(inner) for node in (*functions, *for_types) for inner in ast.walk(node)}
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node, "." * node.level + (node.module or ""), id(node) not in late
            elif node.module == "dsdb":
                for alias in node.names:
                    if alias.name not in ATTRIBUTES_OF_DSDB:
                        yield node, f"dsdb.{alias.name}", id(node) not in late
            else:
                yield node, node.module or "", id(node) not in late


def imports_go_down(tree: Tree) -> Iterator[Fault]:
    """Floors import lower floors only, also inside functions."""
    for source in tree.sources:
        if not source.is_product:
            continue
        here = floor_of(source.module)
        if here is None:
            yield source.fault(1, f"{source.module} is on no floor", "give its room a place and a reason in FLOORS")
            continue
        for node, module, is_early in source.imports:
            there = floor_of(module) if module.split(".")[0] == "dsdb" else None
            if there is None or there[1] == here[1] or there[0] > here[0]:
                continue
            if not is_early and (here[1], there[1]) in LAZY_IMPORTS:
                continue
            do = "let the lower room have a Protocol, given in by dsdb/node"
            yield source.fault(node, f"{here[1]} imports {module}, which is not below it", do)


def imports_are_spelled_in_full(tree: Tree) -> Iterator[Fault]:
    """Only `dsdb.sql…` and `dsdb.storage…`: a second spelling would load a module twice; relative imports hide the floor."""
    for source in tree.sources:
        for node, module, _ in source.imports:
            first = module.split(".")[0]
            if module.startswith("."):
                yield source.fault(node, "relative import", "spell it dsdb.…")
            elif first in ("sql", "storage"):
                yield source.fault(node, f"import of {module}", f"spell it dsdb.{module}")
            elif first in ("tests", "bench") and source.is_product:
                yield source.fault(node, f"the product imports {module}", "move what it needs into dsdb/")


IMPORT_NAMES = {"google_re2": "re2"}
"""Libraries that are imported by another name than they are installed by."""


def libraries_are_declared(tree: Tree) -> Iterator[Fault]:
    """What is imported with a file is a runtime dependency; optional libraries are imported inside functions."""
    project = tomllib.loads((tree.root / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in requirements}
        return {IMPORT_NAMES.get(name, name) for name in found}

    always = names(project["dependencies"])
    sometimes = always.union(*(names(group) for extra, group in project.get("optional-dependencies", {}).items() if extra != "dev"))
    for source in tree.sources:
        if not source.is_product:
            continue
        for node, module, is_early in source.imports:
            name = module.split(".")[0]
            if name in ("", "dsdb", "sql", "storage") or name in sys.stdlib_module_names or name in (always if is_early else sometimes):
                continue
            do = "declare it, or import an optional one inside the function that needs it"
            yield source.fault(node, f"import of {name}, which pyproject.toml does not declare for this", do)


def cores_have_no_clock(tree: Tree) -> Iterator[Fault]:
    """Cores without I/O import no clock, thread, socket, log or event loop, and no chance but a given random.Random."""
    for source in tree.sources:
        if source.module in PURE or source.module.startswith(tuple(f"{name}." for name in PURE)):
            for node, module, _ in source.imports:
                if module.split(".")[0] in IMPURE_MODULES:
                    yield source.fault(node, f"a core without I/O imports {module}", "let the shell pass in what it needs")
            for use in ast.walk(source.syntax):
                if isinstance(use, ast.Attribute) and re.match(r"random\.(?!Random$)", ast.unparse(use)):
                    yield source.fault(use, f"{ast.unparse(use)} in a core without I/O", "use the Random that was passed in")


def files_are_short(tree: Tree) -> Iterator[Fault]:
    """Modules and functions keep to their lengths; a ratchet entry that is no longer needed is a fault too."""
    needed = set()
    for source in tree.sources:
        if not source.is_product:
            continue
        found = [(source.path, 1, len(source.lines), MODULE_LINES_MAX, "cut the module where its concepts part")]
        for node in ast.walk(source.syntax):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append((f"{source.path}:{node.name}", node.lineno, length, FUNCTION_LINES_MAX, "name its steps as functions"))
        for name, line, length, most, do in found:
            if length > most:
                needed.add(name)
                if length > OVERSIZED.get(name, most):
                    yield source.fault(line, f"{name} has {length} lines of at most {OVERSIZED.get(name, most)}", do)
    for name in sorted(OVERSIZED.keys() - needed):
        yield Fault(name.split(":")[0], 1, f"{name} is short enough", "take it from OVERSIZED")


def everything_public_has_a_docstring(tree: Tree) -> Iterator[Fault]:
    """Public modules, classes, functions and methods say what they are."""

    def walk(source: Source, body: list[ast.stmt], where: str) -> Iterator[Fault]:
        for node in body:
            if isinstance(node, ast.If | ast.Try):
                yield from walk(source, node.body + node.orelse, where)
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
            if not (ast.get_docstring(node) or "").strip() and not decorators & {"overload", "override", "setter"}:
                yield source.fault(node, f"{where}{node.name} has no docstring", "say in a sentence what it is, or what it does")
            if isinstance(node, ast.ClassDef):
                yield from walk(source, node.body, f"{where}{node.name}.")

    for source in tree.sources:
        if source.is_product:
            if not (ast.get_docstring(source.syntax) or "").strip():
                yield source.fault(1, "the module has no docstring", "say in a sentence what it is for")
            yield from walk(source, source.syntax.body, "")


def names_say_something(tree: Tree) -> Iterator[Fault]:
    """No module is a drawer for anything."""
    for source in tree.sources:
        for part in source.module.split("."):
            if VAGUE_NAMES & set(part.split("_")):
                yield source.fault(1, f"a module called {part}", "name the concept or the verb")


def nothing_is_pickled(tree: Tree) -> Iterator[Fault]:
    """What comes from a peer or a disk is never run."""
    for source in tree.sources:
        for node, module, _ in source.imports:
            if module.split(".")[0] in ("pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"):
                yield source.fault(node, f"import of {module}", "use a msgspec Struct")


def errors_are_caught_by_name(tree: Tree) -> Iterator[Fault]:
    """`except Exception` stands at a root, and its comment says so; `except BaseException` raises again, or is a root too."""
    for source in tree.sources:
        if not source.is_product:
            continue
        for node in ast.walk(source.syntax):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if not re.search(r"\b(Base)?Exception\b", caught):
                continue
            if "BaseException" in caught and any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                continue
            if not ROOT_COMMENT.search(_comment_at(source, node.lineno)):
                do = "catch what can happen by name, or say in a comment of which task it is the root"
                yield source.fault(node, f"except {caught} without its reason", do)


def _comment_at(source: Source, line: int) -> str:
    """Give the comment on a line and the comment lines around it."""
    said = [source.lines[line - 1].partition("#")[2]]
    for step, start in ((-1, line - 2), (1, line)):
        number = start
        while 0 <= number < len(source.lines) and source.lines[number].lstrip().startswith("#"):
            said.append(source.lines[number])
            number += step
    return " ".join(said)


def no_event_loop_sleeps(tree: Tree) -> Iterator[Fault]:
    """A blocking sleep stops every range of a node."""
    for source in tree.sources:
        if not source.is_product or source.module.startswith(BLOCKING_ROOMS):
            continue
        for node in ast.walk(source.syntax):
            is_call = isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep"
            is_import = isinstance(node, ast.ImportFrom) and node.module == "time" and "sleep" in {alias.name for alias in node.names}
            if is_call or is_import:
                yield source.fault(node, "time.sleep", "await trio.sleep, or let the caller decide when to come again")


def sets_are_sorted_before_use(tree: Tree) -> Iterator[Fault]:
    """No loop, list or dict takes its order from a set, as far as the syntax shows what is one."""
    for source in tree.sources:
        if source.is_product:
            yield from _unordered_loops(source)


_ORDER_FREE = {"sorted", "any", "all", "sum", "min", "max", "len", "set", "frozenset"}


def _unordered_loops(source: Source) -> Iterator[Fault]:
    annotated = [node for node in ast.walk(source.syntax) if isinstance(node, ast.AnnAssign)]
    attributes = {ast.unparse(node.target) for node in annotated if _says_set(node.annotation) and isinstance(node.target, ast.Attribute)}
    scopes: dict[int, set[str]] = {}
    for function in ast.walk(source.syntax):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [node for node in ast.walk(function.args) if isinstance(node, ast.arg)]
            names = {argument.arg for argument in arguments if _says_set(argument.annotation)}
            for node in ast.walk(function):
                if isinstance(node, ast.AnnAssign) and _says_set(node.annotation):
                    names.add(ast.unparse(node.target))
                elif isinstance(node, ast.Assign) and _is_set(node.value, names | attributes):
                    names.update(ast.unparse(target) for target in node.targets)
            for node in ast.walk(function):
                scopes[id(node)] = names
    excused = {
        id(inner)
        for node in ast.walk(source.syntax)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ORDER_FREE
        for inner in node.args
    }
    for node in ast.walk(source.syntax):
        taken: list[ast.expr] = []
        if isinstance(node, ast.For):
            taken = [node.iter]
        elif isinstance(node, ast.ListComp | ast.DictComp | ast.GeneratorExp) and id(node) not in excused:
            taken = [generator.iter for generator in node.generators]
        elif isinstance(node, ast.Call) and id(node) not in excused and ast.unparse(node.func) in ("list", "tuple", "enumerate"):
            taken = node.args[:1]
        for iterated in taken:
            if _is_set(iterated, scopes.get(id(node), set()) | attributes):
                yield source.fault(node, f"the order of the set {ast.unparse(iterated)[:40]} is used", "sort it")


def _says_set(annotation: ast.expr | None) -> bool:
    return annotation is not None and re.match(r"(frozen)?set\b", ast.unparse(annotation)) is not None


def _is_set(node: ast.expr, names: set[str]) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        return _is_set(node.left, names) or _is_set(node.right, names)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")
    return isinstance(node, ast.Set | ast.SetComp) or (isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in names)


UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|home|root|Users)/\w")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".sql", ".test", ".yml", ".yaml", ""}


def text_is_finished(tree: Tree) -> Iterator[Fault]:
    """No notes to oneself, and no path of the machine on which something was written."""
    for room in sorted((*TOP_LEVEL - {"LICENSE"}, ".ci")):
        start = tree.root / room
        for path in sorted(start.rglob("*")) if start.is_dir() else [start]:
            if not path.is_file() or path.suffix not in TEXT_SUFFIXES or "__pycache__" in path.parts:
                continue
            name = path.relative_to(tree.root).as_posix()
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if found := UNFINISHED.search(line):
                    yield Fault(name, number, f"a {found[1]}", "finish it, or refuse what is not supported with an error")
                if found := MACHINE_PATH.search(line):
                    yield Fault(name, number, f"the path {found[0]}…", "derive it from the file's own place, or take it as an argument")


LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
NAMED_FILE = re.compile(r"`((?:dsdb|sql|storage|tests|bench|docs)/[\w./-]+\.(?:py|md|txt))`")


def pages_name_what_is_there(tree: Tree) -> Iterator[Fault]:
    """Links and files named in README.md and docs/ exist."""
    for path in (tree.root / "README.md", *sorted((tree.root / "docs").rglob("*.md"))):
        name = path.relative_to(tree.root).as_posix()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            targets = [(target, path.parent / target) for target in LINK.findall(line)]
            targets += [(target, tree.root / target) for target in NAMED_FILE.findall(line)]
            for target, found in targets:
                if not found.exists():
                    yield Fault(name, number, f"{target} is not there", "name what there is")


def the_top_level_is_complete(tree: Tree) -> Iterator[Fault]:
    """The top level has exactly its entries; what git ignores is not looked at."""
    ignored = (tree.root / ".gitignore").read_text().split() if (tree.root / ".gitignore").exists() else []
    entries = {path.name for path in tree.root.iterdir() if not path.name.startswith(".")}
    entries = {name for name in entries if not any(fnmatch.fnmatch(name, pattern.rstrip("/")) for pattern in ignored)}
    for name in sorted(entries - TOP_LEVEL):
        yield Fault(name, 1, "not an entry of the top level", "put it into the room it belongs to, or let git ignore it")
    for name in sorted(TOP_LEVEL | {".ci"}):
        if not (tree.root / name).exists():
            yield Fault(name, 1, "missing at the top level", "restore it")


RULES: tuple[Rule, ...] = (
    imports_go_down,
    imports_are_spelled_in_full,
    libraries_are_declared,
    cores_have_no_clock,
    files_are_short,
    everything_public_has_a_docstring,
    names_say_something,
    nothing_is_pickled,
    errors_are_caught_by_name,
    no_event_loop_sleeps,
    sets_are_sorted_before_use,
    text_is_finished,
    pages_name_what_is_there,
    the_top_level_is_complete,
)


@pytest.fixture(scope="module")
def house() -> Tree:
    tree = read_tree(ROOT)
    assert len([source for source in tree.sources if source.is_product]) > 100, "the walk does not find the product"
    rooms = {source.module.split(".")[1] for source in tree.sources if source.module.startswith("dsdb.")}
    assert rooms >= {"sql", "storage", "raft", "node"}
    return tree


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house(rule: Rule, house: Tree) -> None:
    faults = list(rule(house))
    assert not faults, f"{rule.__doc__}\n" + "\n".join(map(str, faults))


def loaded_by(program: str) -> list[str]:
    """Run a program that prints the modules it loaded; give those that a client does not need."""
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    return sorted(name for name in printed.split() if SERVER_MODULES.match(name))


def test_importing_the_driver_loads_no_server() -> None:
    loaded = loaded_by(IMPORT_PROGRAM)
    assert not loaded, f"`import dsdb.driver` loads {', '.join(loaded)}: import them where they are used, inside the function"


def test_the_import_check_sees_what_is_loaded() -> None:
    assert "trio" in loaded_by("import sys, trio; print('\\n'.join(sys.modules))")
    assert "dsdb.storage.mvcc" in loaded_by("import sys, dsdb.storage.mvcc; print('\\n'.join(sys.modules))")


MODULE = '"""A module."""\n'

PLANTED: tuple[tuple[Rule, str, str, int], ...] = (
    (imports_go_down, "dsdb/store/a.py", "from dsdb.ranges.router import Router", 2),
    (imports_go_down, "dsdb/store/a.py", "import dsdb.rpc.peer", 2),
    (imports_go_down, "dsdb/store/a.py", "def f():\n    from dsdb.txn import x", 3),
    (imports_go_down, "dsdb/raft/a.py", "from dsdb import kv", 2),
    (imports_go_down, "dsdb/kv/a.py", "import dsdb", 2),
    (imports_go_down, "sql/a.py", "from dsdb.kv.ids import NodeId", 2),
    (imports_go_down, "storage/a.py", "import dsdb.sql.types", 2),
    (imports_go_down, "dsdb/driver/a.py", "from dsdb.node.embedded import open_embedded", 2),
    (imports_go_down, "dsdb/cellar/a.py", "", 1),
    (imports_are_spelled_in_full, "dsdb/raft/a.py", "from . import log", 2),
    (imports_are_spelled_in_full, "tests/a.py", "from storage.keys import Span", 2),
    (imports_are_spelled_in_full, "sql/a.py", "import sql.types", 2),
    (imports_are_spelled_in_full, "sql/a.py", "from tests.sql import local_txn", 2),
    (libraries_are_declared, "sql/a.py", "import requests", 2),
    (libraries_are_declared, "dsdb/driver/a.py", "import pandas", 2),
    (cores_have_no_clock, "dsdb/raft/a.py", "import time", 2),
    (cores_have_no_clock, "dsdb/store/latches.py", "from trio import Event", 2),
    (cores_have_no_clock, "dsdb/raft/a.py", "import random\nx = random.random()", 3),
    (files_are_short, "sql/a.py", "x = 1\n" * MODULE_LINES_MAX, 1),
    (files_are_short, "sql/a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX, 2),
    (everything_public_has_a_docstring, "dsdb/kv/a.py", "class A:\n    pass", 2),
    (everything_public_has_a_docstring, "dsdb/kv/a.py", "class _A:\n    pass\nclass B:\n    '''B.'''\n    def f(self): ...", 6),
    (everything_public_has_a_docstring, "dsdb/kv/a.py", "async def f(): ...", 2),
    (names_say_something, "sql/plan_utils.py", "", 1),
    (names_say_something, "dsdb/common/keys.py", "", 1),
    (nothing_is_pickled, "tests/a.py", "import pickle", 2),
    (errors_are_caught_by_name, "sql/a.py", "try:\n    f()\nexcept Exception:\n    pass", 4),
    (errors_are_caught_by_name, "sql/a.py", "try:\n    f()\nexcept:\n    pass", 4),
    (errors_are_caught_by_name, "sql/a.py", "try:\n    f()\nexcept (OSError, BaseException):  # whatever\n    pass", 4),
    (no_event_loop_sleeps, "dsdb/store/a.py", "import time\ntime.sleep(1)", 3),
    (no_event_loop_sleeps, "sql/a.py", "from time import sleep", 2),
    (sets_are_sorted_before_use, "dsdb/raft/a.py", "for x in {1, 2}:\n    print(x)", 2),
    (sets_are_sorted_before_use, "dsdb/raft/a.py", "def f(ids: set[int]):\n    return [x for x in ids]", 3),
    (
        sets_are_sorted_before_use,
        "dsdb/raft/a.py",
        "class A:\n    def f(self):\n        self.a: set[int] = x\n        return list(self.a)",
        5,
    ),
    (text_is_finished, "docs/a.md", "TO" + "DO: write", 2),
    (text_is_finished, "bench/a.py", "path = '/ho" + "me/someone/x'", 2),
    (pages_name_what_is_there, "docs/a.md", "see [this](b.md#part)", 2),
    (pages_name_what_is_there, "docs/a.md", "see `storage/gone.py`", 2),
    (the_top_level_is_complete, "scripts/a.py", "", 1),
)

SOUND = """
import random
import time
from dsdb import __version__
from dsdb.kv.ids import NodeId

class A:
    '''An a.'''
    def f(self, ids: set[int], rng: random.Random):
        '''Do it.'''
        def inner():
            from dsdb.storage import keys
        try:
            return sorted(x for x in ids), any(x for x in ids), [x for x in sorted(ids)], {x for x in ids}
        except OSError:
            pass
        except Exception:  # a task's root: told to the opener
            pass
        except BaseException:
            raise
"""


def plant(root: Path, path: str, text: str) -> Tree:
    """Write a house with nothing in it but one file."""
    for room in TOP_LEVEL | {".ci"}:
        (root / room).write_text("") if "." in room[1:] or room in ("Makefile", "LICENSE") else (root / room).mkdir()
    (root / "pyproject.toml").write_text('[project]\ndependencies = ["trio>=1"]\noptional-dependencies.pandas = ["pandas>=2"]\n')
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(MODULE + textwrap.dedent(text))
    return read_tree(root)


@pytest.mark.parametrize(("rule", "path", "text", "line"), PLANTED, ids=[f"{planted[0].__name__}-{planted[1]}" for planted in PLANTED])
def test_a_planted_fault_is_found(rule: Rule, path: str, text: str, line: int, tmp_path: Path) -> None:
    faults = list(rule(plant(tmp_path, path, text)))
    assert faults, f"{rule.__name__} does not see it"
    where = path.split("/")[0] if rule is the_top_level_is_complete else path
    assert str(faults[0]).startswith(f"{where}:{line}: ")
    assert faults[0].do


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_file_has_no_fault(rule: Rule, tmp_path: Path) -> None:
    assert not list(rule(plant(tmp_path, "dsdb/flow/a.py", SOUND)))


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, *_ in PLANTED} == set(RULES)


def test_the_driver_may_start_a_node_when_asked(tmp_path: Path) -> None:
    tree = plant(tmp_path, "dsdb/driver/a.py", "def f():\n    from dsdb.node import embedded\n    return embedded")
    assert not list(imports_go_down(tree))


def test_the_ratchet_only_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = plant(tmp_path, "sql/a.py", "x = 1\n" * (MODULE_LINES_MAX + 9))
    monkeypatch.setitem(OVERSIZED, "sql/a.py", MODULE_LINES_MAX + 10)
    assert not list(files_are_short(tree))
    monkeypatch.setitem(OVERSIZED, "sql/b.py", MODULE_LINES_MAX + 10)
    assert [fault.what for fault in files_are_short(tree)] == ["sql/b.py is short enough"]
    monkeypatch.setitem(OVERSIZED, "sql/a.py", MODULE_LINES_MAX + 8)
    assert next(files_are_short(tree)).path == "sql/a.py"
