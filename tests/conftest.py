"""What every test may use: the project on the path (``tests.running`` and its like), and real peers as fixtures."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import forking
from tests.orthanc import Orthanc

# The files whose slow tests take more than two minutes, one after the other or of a core.
LONGEST = (
    "test_database.py",
    "test_stopped.py",
    "test_two_gateways.py",
    "test_debian.py",
    "test_torture.py",
    "test_simulation.py",
    "test_torture_faults.py",
    "test_trust.py",
)

if TYPE_CHECKING:
    from ingestd.emulator import Emulator
    from tests.emulator_peer import Peer
    from tests.postgres import Cluster
    from tests.sharing.share import Share


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """An Orthanc of this test's own; a test that asks for it is marked with ``requires_orthanc``."""
    with Orthanc(folder=tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A PostgreSQL that a worker's tests share, each with databases of its own; skipped where none is installed."""
    from tests.orthanc import peers_are_required
    from tests.postgres import Cluster, why_no_postgres

    if (reason := why_no_postgres()) and not peers_are_required():
        pytest.skip(reason)
    # A database is 300 files: 20 ms in memory, and up to 300 on a disk that others sync beside it.
    memory = Path("/dev/shm")
    in_memory = memory.exists() and shutil.disk_usage(memory).free > 4 << 30
    folder = tempfile.mkdtemp(prefix="ingestd-postgres-", dir=memory if in_memory else tmp_path_factory.getbasetemp())
    # Where a sync costs nothing, `ingestd check` is to find nothing amiss.
    with Cluster(Path(folder), settings={"max_wal_size": "128MB"}, durable=in_memory) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def server_of_ledgers(request: pytest.FixtureRequest) -> None:
    """Where ``tests.ledgers`` keeps ledgers in PostgreSQL, on a server that is there or on that of this worker."""
    if os.environ.get("INGESTD_TEST_LEDGER") != "postgresql":
        return
    from ingestd.daemon import post_results
    from ingestd.inbox import missing

    # What is not found on a share is gone a minute later.
    missing.SURE_SECONDS, post_results._AWAY_WAIT = 0.5, timedelta(seconds=0.5)
    if "INGESTD_TEST_SERVER" not in os.environ:
        os.environ["INGESTD_TEST_SERVER"] = request.getfixturevalue("cluster").url("postgres")


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """The URL of an empty database of this test's own, dropped after it."""
    from tests.postgres import fresh_database

    url = fresh_database(cluster)
    yield url
    cluster.drop(url.rpartition("/")[2])


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


@pytest.fixture(scope="session")
def share_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a share is mounted with, compiled; where that cannot be, a test that asks for it is skipped."""
    from tests.orthanc import peers_are_required
    from tests.sharing.share import NoShareError, compile_share

    try:
        return compile_share(tmp_path_factory.mktemp("share"))
    except NoShareError as error:
        if peers_are_required():
            raise
        pytest.skip(str(error))


@pytest.fixture
def shares(share_program: Path, tmp_path: Path) -> Iterator[tuple[Share, Share]]:
    """One folder, as two hosts have mounted it."""
    from tests.sharing.share import Share

    with (
        Share(share_program, tmp_path / "shared", tmp_path / "here") as here,
        Share(share_program, tmp_path / "shared", tmp_path / "there") as there,
    ):
        yield here, there


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
    """Have processes that tests start begin at once, ingestd forked and each with its byte code; and ledgers, too.

    Where none may be kept beside the source, each would compile the whole program first, which takes longer than what
    is tested.
    """
    forking.allowed = True
    # A shell's script has what it starts behind `&` ignore Ctrl-C, and so would all that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.dont_write_bytecode:
        sys.pycache_prefix = str(config.rootpath / ".pytest_cache" / "bytecode")
        sys.dont_write_bytecode = False
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
        del os.environ["PYTHONDONTWRITEBYTECODE"]
    # How long an example takes says how busy the machine is.
    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")
    from tests.ledgers import share_what_is_compiled

    share_what_is_compiled()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path.name, len(rank)), item.path not in slow))
