"""kill -9 between the line of a candidate and its row: the name it was dropped under and its tries outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingestd.config import Config, load
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, LeftCandidate, moves, queries
from ingestd.lifecycle import State
from tests.builders import write_instance
from tests.daemon.test_promise import configure, image, run, running, states, turn
from tests.running import run_program

# The process ends at the first file that is brought into the spool: before it is, or before anybody hears of it.
KILLED = """
import os, signal, sys
from pathlib import Path
from ingestd.config import load
from ingestd.inbox import takein
from tests.daemon.test_promise import run

bring = takein.bring

def dies(*given, **more):
    if sys.argv[2] == "moved":
        bring(*given, **more)
    os.kill(os.getpid(), signal.SIGKILL)

takein.bring = dies
run(load(Path(sys.argv[1])))
"""


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.fixture(params=["renamed", "copied"])
def config(tmp_path: Path, server: Emulator, request: pytest.FixtureRequest) -> Iterator[Config]:
    """A line whose files are renamed into the spool, or come from another filesystem."""
    config = configure(tmp_path, server)
    if request.param == "renamed":
        yield config
        return
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no second filesystem here")
    folder = memory / f"ingestd-test-{uuid.uuid4().hex}"
    folder.mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("path: drop,", f"path: {folder},"))
    yield load(file)
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@contextmanager
def ledger_of(config: Config) -> Iterator[Ledger]:
    """The ledger, as the daemon of this spool has it open."""
    spool = config.spool.path
    host = (spool / "spool.id").read_text().strip()
    with Ledger.open(config.ledger, host=host, spool=spool, key=config.spool.search_key) as ledger:
        yield ledger


def killed(config: Config, folder: Path, moment: str) -> LeftCandidate:
    """Run until the first file is brought into the spool, or was, and die; give the row that it left."""
    done = run_program([str(folder / "config.yaml"), moment], script=KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with ledger_of(config) as ledger:
        (left,) = queries.left_candidates(ledger)
    return left


def drop(config: Config, content: bytes) -> Path:
    file = config.inboxes[0].path / "ward" / "IM1"
    file.parent.mkdir()
    file.write_bytes(content)
    return file


def spool_files(folder: Path) -> list[Path]:
    return [path for room in ("files", "rejected") for path in (folder / "spool" / room).rglob("*") if path.is_file()]


def ends(config: Config) -> list[tuple[str, State]]:
    """Run on, and say what became of what."""
    run(config)
    with ledger_of(config) as ledger:
        assert queries.left_candidates(ledger) == []
        return [(entry.relative_path, entry.state) for entry in queries.entries(ledger)]


@pytest.mark.parametrize(
    "content, state", [(image(), State.CONFIRMED), (b"no image", State.REJECTED)], ids=["taken", "refused"]
)
def test_file_lies_where_its_candidate_row_said_or_where_it_lay(
    tmp_path: Path, config: Config, content: bytes, state: State
) -> None:
    file = drop(config, content)

    left = killed(config, tmp_path, "not moved")
    assert (left.relative_path, len(left.target)) == ("ward/IM1", 32)
    assert file.exists()
    assert spool_files(tmp_path) == []

    left = killed(config, tmp_path, "moved")
    (lies,) = spool_files(tmp_path)
    assert left.target in lies.parts
    assert lies.name == ("IM1" if state is State.REJECTED else left.target)
    is_begun_anew = file.exists()  # a copy is, as long as its source lies there as it was

    assert ends(config) == [("ward/IM1", state)]
    assert not file.exists()
    assert (spool_files(tmp_path) != [lies]) is is_begun_anew


@pytest.mark.parametrize("then", ["written to", "its source gone"])
def test_file_in_the_spool_keeps_the_name_it_was_dropped_under_whatever_the_kernel_says_of_it(
    tmp_path: Path, config: Config, then: str
) -> None:
    """It was known by inode, size and mtime: of another one's copy the inode was new, and after a write all else."""
    file = drop(config, image())
    killed(config, tmp_path, "moved")

    (lies,) = spool_files(tmp_path)
    if then == "written to":
        os.utime(lies, (1, 1))
    file.unlink(missing_ok=True)

    assert ends(config) == [("ward/IM1", State.CONFIRMED)]


def test_tries_of_a_file_outlive_each_kill(tmp_path: Path, config: Config) -> None:
    """A file that ends its reader twice is set aside; one that could be moved in between came to no such number."""
    file = drop(config, image())
    left = killed(config, tmp_path, "not moved")
    with ledger_of(config) as ledger, ledger.transaction() as tx:
        moves.candidate_died(tx, left.candidate_id)

    assert killed(config, tmp_path, "not moved").tries == 1
    assert killed(config, tmp_path, "moved").tries == 1
    file.unlink(missing_ok=True)
    (lies,) = spool_files(tmp_path)
    again = killed(config, tmp_path, "not moved")
    assert (again.tries, again.relative_path) == (1, "ward/IM1")
    assert [lies] == spool_files(tmp_path)
    assert again.target in lies.parts

    assert ends(config) == [("ward/IM1", State.CONFIRMED)]


def test_two_files_of_one_name_in_the_spool_are_both_told_by_it(tmp_path: Path, config: Config) -> None:
    """The row of the second took the place of the first one's, and a start found the first without its name."""
    file = drop(config, image())
    killed(config, tmp_path, "moved")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(image(first_pixel=1))

    assert sorted(ends(config)) == [("ward/IM1", State.CONFIRMED), ("ward/IM1", State.CONFLICT)]


def test_files_that_somebody_put_into_one_folder_of_the_spool_are_all_kept(tmp_path: Path, server: Emulator) -> None:
    """They went by the name of that folder, each in place of the one before."""
    config = configure(tmp_path, server)
    run(config)
    inbox = config.inboxes[0].spool_name
    folder = tmp_path / "spool" / "rejected" / inbox / "mended"
    folder.mkdir(parents=True)
    for number, name in enumerate(("1", "2", "mended")):
        write_instance(folder / name, sop_uid=f"1.2.3.4.{number}")
    other = tmp_path / "spool" / "files" / inbox / "mended"
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"no image")
    (folder / "text").write_bytes(b"no image either")

    assert sorted(state for _, state in ends(config)) == [State.CONFIRMED] * 3 + [State.REJECTED] * 2
    assert len(spool_files(tmp_path)) == 5


def test_start_looks_through_a_large_spool_bit_by_bit(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY, and what waits to be delivered, waited until each of a million kept files had been asked about."""
    config = configure(tmp_path, server)
    for number in range(5):
        (config.inboxes[0].path / f"{number}").write_bytes(b"no image")
    run(config)
    assert len(spool_files(tmp_path)) == 5
    left = tmp_path / "spool" / "files" / config.inboxes[0].spool_name / f"{0:032x}"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(image())
    monkeypatch.setattr("ingestd.inbox.spool.KNOWN_AT_ONCE", 2)

    with running(config) as daemon:
        orphans = daemon.stages.orphans
        for _ in range(3):
            assert not orphans.are_adopted
            daemon.loop.tick()
        turn(daemon, lambda: orphans.are_adopted)
        turn(daemon, lambda: states(config).get("CONFIRMED") == 1)
