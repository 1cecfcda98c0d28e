"""What every test may use: the project on the path (``tests.running`` and its like), and real peers as fixtures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import forking
from tests.orthanc import Orthanc

# The files whose slow tests take more than two minutes, one after the other or of a core.
LONGEST = ("test_debian.py", "test_torture.py", "test_simulation.py", "test_torture_faults.py", "test_trust.py")

if TYPE_CHECKING:
    from ingestd.emulator import Emulator
    from tests.emulator_peer import Peer


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """An Orthanc of this test's own; a test that asks for it is marked with ``requires_orthanc``."""
    with Orthanc(folder=tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes chosen system calls fail, compiled; without gcc a test that asks for it is skipped."""
    from tests.torture.failing import NoCompilerError, compile_library

    try:
        return compile_library(tmp_path_factory.mktemp("library"))
    except NoCompilerError as error:
        if os.environ.get("INGESTD_REQUIRE_PEERS") == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    """An embedded server that a module's tests share; a module that needs another one has its own of this name."""
    from ingestd.emulator import Emulator

    with Emulator(fsync=False) as running:
        yield running


@pytest.fixture(scope="module", params=["v1", "v2"])
def peer(request: pytest.FixtureRequest, server: Emulator) -> Iterator[Peer]:
    """Who speaks to it, in each version of the API."""
    from tests.emulator_peer import Peer

    with Peer(server.root, request.param) as one:
        yield one


@pytest.fixture(scope="module")
def v1(server: Emulator) -> Iterator[Peer]:
    """Who speaks to it in version 1."""
    from tests.emulator_peer import Peer

    with Peer(server.root, "v1") as one:
        yield one


@pytest.fixture(scope="module")
def v2(server: Emulator) -> Iterator[Peer]:
    """Who speaks to it in version 2."""
    from tests.emulator_peer import Peer

    with Peer(server.root) as one:
        yield one


@pytest.fixture
def fresh() -> Iterator[Peer]:
    """Who speaks to an embedded server of this test's own."""
    from ingestd.emulator import Emulator
    from tests.emulator_peer import Peer

    with Emulator(fsync=False) as running, Peer(running.root) as one:
        yield one


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """So many as keep two cores busy: of what the slow tests take, most is waiting for what comes by the minute."""
    return 6 if config.option.markexpr == "slow" else 4


def pytest_configure(config: pytest.Config) -> None:
    """Have processes that tests start begin at once: ingestd forked, and each with its byte code.

    Where none may be kept beside the source, each would compile the whole program first, which takes longer than what
    is tested.
    """
    forking.allowed = True
    if sys.dont_write_bytecode:
        sys.pycache_prefix = str(config.rootpath / ".pytest_cache" / "bytecode")
        sys.dont_write_bytecode = False
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
        del os.environ["PYTHONDONTWRITEBYTECODE"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path.name, len(rank)), item.path not in slow))
