"""The shape of the house, read from its source.

Imports go downwards only and in no circle, a third-party library is one room's, and nothing heavy is imported before it
is needed; no two types that could meet have one name; what a room gives others says what it is; and where a library's
internals are leaned on, it is told which, and in which version they were seen.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from itertools import permutations
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "ingestd"

# room: the rooms it may import from, beside itself.
MAY_IMPORT = {
    "clocks": set(),
    "threads": {"clocks"},
    "workers": {"clocks", "threads"},
    "sameness": set(),
    "lifecycle": {"sameness"},
    "locks": set(),
    "lease": {"clocks"},
    "fs": set(),
    "error_location": set(),
    "digests": set(),
    "instance": {"digests"},
    "config": {"lifecycle", "fs"},
    "logs": {"clocks", "error_location"},
    "dicomweb": {"clocks", "threads", "digests", "fs", "instance"},
    "emulator": set(),
    "inbox": {"clocks", "threads", "workers", "digests", "lifecycle", "fs"},
    "ledger": {"clocks", "lease", "lifecycle", "fs"},
    "outages": {"lifecycle", "dicomweb"},
    "sender": {"clocks", "workers", "lifecycle", "fs", "error_location", "dicomweb", "outages"},
    "reconciler": {"clocks", "workers", "digests", "lifecycle", "fs", "error_location", "dicomweb", "outages"},
    "reader": {"clocks", "threads", "digests", "sameness", "fs", "error_location", "instance"},
    "daemon": {
        *("clocks", "workers", "lifecycle", "locks", "fs", "instance", "config", "logs", "dicomweb"),
        *("inbox", "ledger", "lease", "sender", "reconciler", "reader"),
    },
    "cli": {
        *("clocks", "digests", "lifecycle", "locks", "fs", "error_location", "config", "logs", "dicomweb", "emulator"),
        *("inbox", "ledger", "sender", "reconciler", "reader", "daemon"),
    },
    "__init__": set(),
    "__main__": {"cli"},
}

# library: the rooms that may import it.
LIBRARIES = {
    "sqlalchemy": {"ledger"},
    "psycopg": {"ledger"},
    "blake3": {"digests"},
    "requests": {"dicomweb"},
    "requests_toolbelt": {"dicomweb"},
    "urllib3": {"dicomweb"},
    "azure": {"dicomweb"},
    "watchdog": {"inbox"},
    "pydicom": {"instance", "dicomweb", "emulator"},
    "yaml": {"config"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "click": {"cli"},
    "rich": {"cli"},
    "structlog": {"logs", "cli", "daemon", "inbox", "ledger", "sender", "reconciler", "reader"},
    "starlette": {"emulator"},
    "uvicorn": {"emulator"},
    "httptools": {"emulator"},
    "anyio": {"emulator"},
    "jwt": {"emulator"},
    "cryptography": {"emulator"},
    "numpy": {"emulator"},
    "PIL": {"emulator"},
    "gdcm": {"emulator"},
    "openjpeg": {"emulator"},
}
# The demo's real files are those that come with pydicom; it asks where they lie.
ALSO = {("cli.demo", "pydicom")}

# The parts of the emulator, lowest first: each may import from those before it.
EMULATOR = (
    *("errors", "faults", "settings", "dicom", "storage", "http", "services"),
    *("routes", "app", "control", "server"),
)

# What nobody promises to keep, and the version it was seen in; a room's module leans on nothing else of that kind.
# module: library, version, {the library's module: its names}.
INTERNALS = {
    "inbox.watch": (
        ("watchdog", "7.1.0"),
        {
            "watchdog.observers.inotify_c": {"_inotify_fd", "_watch_for_wd", "_lock", "inotify_add_watch"},
            "watchdog.observers.inotify": {
                *("_active_callbacks_by_path", "_active_callbacks_by_watch", "_lock", "_remove_callbacks"),
            },
        },
    ),
    "dicomweb.connections": (
        ("urllib3", "2.8.0"),
        {"urllib3.connection": {"_new_conn"}, "http.client": {"_read_status"}},  # the latter of Python 3.11 to 3.14
    ),
    "emulator.http.connection": (
        ("uvicorn", "0.54.0"),
        {"uvicorn.protocols.http.httptools_impl": {"STATUS_LINE", "_unset_keepalive_if_required"}},
    ),
}
# They look private, and are documented: Python's, and SQLAlchemy's Row; or exist for a checker of types only.
PROMISED = {"_exit", "_mapping", "_Hash"}

HEAVY = ("sqlalchemy", "pydicom", "requests", "pydantic", "rich", "yaml", "watchdog", "structlog", "starlette", "azure")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> str:
    """A module's name inside the package: ``cli.status``, ``ledger``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of everything a module imports anywhere in it."""
    package = ["ingestd", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            if module in {"ingestd", ""}:
                yield from (f"ingestd.{alias.name}" for alias in node.names if alias.name != "__version__")


def test_a_room_imports_only_from_the_rooms_below_it():
    above = []
    for path in modules():
        room = dotted(path).partition(".")[0]
        ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("ingestd.")}
        above += [f"{dotted(path)} imports {name}" for name in ours - {room} - MAY_IMPORT[room]]

    assert above == []


def test_a_library_is_used_in_its_room_only():
    strangers = []
    for path in modules():
        room = dotted(path).partition(".")[0]
        tops = {name.partition(".")[0] for name in imports_of(path)} - {"ingestd"} - sys.stdlib_module_names
        known = {top for top in tops if room in LIBRARIES.get(top, set()) or (dotted(path), top) in ALSO}
        strangers += [f"{dotted(path)} imports {top}" for top in tops - known]

    assert strangers == []


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    """What stands under ``if TYPE_CHECKING``, which is never run."""
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    return {below for guard in guards for node in guard.body for below in ast.walk(node)}


def modules_imported_by(path: Path, ours: set[str]) -> set[str]:
    """Which modules of the package this one has run before or while it runs, wherever in it the import stands."""
    package = ["ingestd", *path.relative_to(PACKAGE).parts[:-1]]
    unread = for_types_only(parsed(path))
    named: set[tuple[str, ...]] = set()
    for node in ast.walk(parsed(path)):
        if node in unread:
            continue
        if isinstance(node, ast.Import):
            named |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = (*above, *(node.module.split(".") if node.module else ()))
            # A name that is no module of ours is what the module itself has.
            named |= {
                (*module, name) if ".".join((*module[1:], name)) in ours else module
                for name in (alias.name for alias in node.names)
            }
    return {".".join(parts[1:]) for parts in named if parts[0] == "ingestd"} & ours - {dotted(path)}


def test_no_module_imports_itself_by_way_of_others():
    """Not inside a room either, and not in a function: whoever reads one of a circle has to read them all."""
    ours = {dotted(path) for path in modules()}
    graph = {dotted(path): modules_imported_by(path, ours) for path in modules()}

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("part", EMULATOR)
def test_a_part_of_the_emulator_imports_only_from_those_below_it(part):
    of_it = [path for path in modules() if f"{dotted(path)}.".startswith(f"emulator.{part}.")]
    ours = {dotted(path) for path in modules()}

    imported = {name for path in of_it for name in modules_imported_by(path, ours)}

    assert of_it
    assert {name.split(".")[1] for name in imported} <= {*EMULATOR[: EMULATOR.index(part) + 1]}


def test_no_two_types_that_may_meet_have_one_name():
    rooms = defaultdict(set)
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                rooms[node.name].add(dotted(path).partition(".")[0])

    twice = {name for name, of in rooms.items() for one, other in permutations(of, 2) if other in MAY_IMPORT[one]}

    assert twice == set()


@cache
def names_of_our_own() -> frozenset[str]:
    """Every name that the package itself gives to anything."""
    names = set()
    for node in (node for path in modules() for node in ast.walk(parsed(path))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def internals_in(path: Path) -> Iterator[str]:
    """Private names of other people's code that a module uses."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            of_the_base = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            if of_the_base or node.attr not in names_of_our_own():
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level and not f"{node.module}.".startswith("ingestd."):
            yield from (alias.name for alias in node.names if is_private(alias.name))
            yield from {node.module} if is_private(node.module or "") else ()
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_private(alias.name))


def test_no_internals_of_a_library_are_leaned_on_but_those_that_are_told_of():
    untold, used_no_more = [], []
    for path in modules():
        _, of = INTERNALS.get(dotted(path), ((), {}))
        told = {name for names in of.values() for name in names}
        untold += [f"{dotted(path)}: {name}" for name in set(internals_in(path)) - told - PROMISED]
        text = path.read_text(encoding="utf-8")
        used_no_more += [f"{dotted(path)}: {name}" for name in told if name not in text]

    assert (untold, used_no_more) == ([], [])


@pytest.mark.parametrize("module", INTERNALS)
def test_the_internals_that_are_leaned_on_are_there(module):
    (library, seen), of = INTERNALS[module]
    words = f"{library} is {version(library)}, and what {module} leans on was seen in {seen}: look at it again"

    for name, internals in of.items():
        source = inspect.getsource(importlib.import_module(name))
        assert {each for each in internals if each not in source} == set(), words


def gives() -> Iterator[tuple[str, object]]:
    """What the rooms' doors give: their functions and classes, by the name that others import."""
    for room in sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")):
        door = importlib.import_module(f"ingestd.{room}")
        for name in getattr(door, "__all__", ()):
            given = getattr(door, name)
            if inspect.isfunction(given) or inspect.isclass(given):
                yield f"{room}.{name}", given


def does_something(method: object) -> bool:
    """Whether it is more than a line or two that say themselves what they do."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) - 1 > 2


def test_what_a_room_gives_others_says_what_it_is():
    mute = []
    for name, given in gives():
        mute += [name] if not given.__doc__ else []
        for attribute, value in list(vars(given).items()) if inspect.isclass(given) else ():
            method = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if attribute.startswith("_") or not inspect.isfunction(method) or method.__doc__:
                continue
            if method.__module__ == given.__module__ and does_something(method):
                mute.append(f"{name}.{attribute}")

    assert mute == []


def loaded_after(code: str) -> set[str]:
    """Top-level packages that are loaded after a piece of code ran in a fresh interpreter."""
    asked = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=PROJECT)
    return set(ran.stdout.split("\n")[-2].split())


def test_help_imports_no_heavy_library():
    code = "from ingestd.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"

    assert loaded_after(code).isdisjoint(HEAVY)


def test_the_daemon_never_imports_pydicom():
    assert loaded_after("import ingestd.daemon").isdisjoint({"pydicom", "numpy", "starlette", "uvicorn"})


def test_status_imports_only_what_it_reads_with():
    assert loaded_after("import ingestd.cli.status").isdisjoint(HEAVY)


def test_every_command_has_the_sentence_that_help_shows_for_it():
    from ingestd.cli import COMMANDS, commands

    for name, (_, sentence) in COMMANDS.items():
        command = commands.get_command(None, name)
        assert (command.name, command.get_short_help_str(limit=200)) == (name, sentence)


def test_a_duration_runs_on_the_clock_that_nobody_can_set():
    """Wall time moved every wait with it, and CLOCK_MONOTONIC stands still while the machine sleeps.

    The emulator is somebody else's server, with clocks of its own; commands read wall time for people.
    """
    others = []
    for path in modules():
        room = dotted(path).partition(".")[0]
        forbidden = {"time.time", "time.monotonic"} | (set() if room == "cli" else {"datetime.now"})
        read = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        others += [f"{dotted(path)}: {name}" for name in read & forbidden if room not in {"clocks", "emulator"}]

    assert others == []
