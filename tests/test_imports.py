"""Who may import whom: downwards only, one third-party library to a room, and nothing heavy before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "ingestd"

# room: the rooms it may import from, beside itself.
MAY_IMPORT = {
    "clocks": set(),
    "threads": {"clocks"},
    "workers": {"clocks", "threads"},
    "lifecycle": set(),
    "locks": set(),
    "fs": set(),
    "error_location": set(),
    "instance": set(),
    "config": {"fs"},
    "logs": {"clocks", "error_location"},
    "dicomweb": {"clocks", "threads", "fs", "instance"},
    "emulator": set(),
    "inbox": {"clocks", "threads", "workers", "lifecycle", "fs"},
    "ledger": {"clocks", "lifecycle", "fs"},
    "outages": {"lifecycle", "dicomweb"},
    "sender": {"clocks", "threads", "lifecycle", "fs", "error_location", "dicomweb", "outages"},
    "reconciler": {"clocks", "threads", "lifecycle", "fs", "error_location", "dicomweb", "outages"},
    "reader": {"clocks", "threads", "lifecycle", "fs", "error_location", "instance"},
    "daemon": {
        *("clocks", "threads", "lifecycle", "locks", "fs", "instance", "config", "logs", "dicomweb"),
        *("inbox", "ledger", "sender", "reconciler", "reader"),
    },
    "cli": {
        *("clocks", "lifecycle", "locks", "fs", "error_location", "config", "logs", "dicomweb", "emulator"),
        *("inbox", "ledger", "sender", "reconciler", "reader", "daemon"),
    },
    "__init__": set(),
    "__main__": {"cli"},
}

# library: the rooms that may import it.
LIBRARIES = {
    "sqlalchemy": {"ledger"},
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

HEAVY = ("sqlalchemy", "pydicom", "requests", "pydantic", "rich", "yaml", "watchdog", "structlog", "starlette", "azure")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """A module's name inside the package: ``cli.status``, ``ledger``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of everything a module imports anywhere in it."""
    package = ["ingestd", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            if module in {"ingestd", ""}:
                yield from (f"ingestd.{alias.name}" for alias in node.names if alias.name != "__version__")


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_room_imports_only_from_the_rooms_below_it(path):
    room = dotted(path).partition(".")[0]

    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("ingestd.")}

    assert ours - {room} <= MAY_IMPORT[room], f"{dotted(path)} imports {ours}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_library_is_used_in_its_room_only(path):
    room = dotted(path).partition(".")[0]

    tops = {name.partition(".")[0] for name in imports_of(path)} - {"ingestd"} - sys.stdlib_module_names
    strangers = {top for top in tops if room not in LIBRARIES.get(top, set()) and (dotted(path), top) not in ALSO}

    assert strangers == set(), f"{dotted(path)} imports {strangers}"


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


@pytest.mark.parametrize("path", [path for path in modules() if dotted(path) != "clocks"], ids=dotted)
def test_a_duration_runs_on_the_clock_that_nobody_can_set(path):
    """Wall time moved every wait with it, and CLOCK_MONOTONIC stands still while the machine sleeps.

    The emulator is somebody else's server, with clocks of its own; commands read wall time for people.
    """
    room = dotted(path).partition(".")[0]
    forbidden = {"time.time", "time.monotonic"} | (set() if room == "cli" else {"datetime.now"})

    read = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }

    assert room == "emulator" or read & forbidden == set()
