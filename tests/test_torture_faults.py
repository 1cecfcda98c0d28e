"""System calls that fail, one at a time (``python -m tests.torture --faults`` does many): the library, the checks."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulating import EmulatorProcess
from tests.running import environment
from tests.torture.failing import Fault, Injector, Trial
from tests.torture.feeding import Kind, Written

OPEN_ALL = """
import errno, sys
for name in sys.argv[2:]:
    try:
        open(name).close()
        print("ok")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    """The embedded server."""
    with EmulatorProcess(tmp_path_factory.mktemp("server")) as server:
        yield server


def answers(injector: Injector, program: str, *names: Path) -> list[str]:
    """What a process of this name is told when it opens these files, one after the other."""
    words = [sys.executable, "-c", OPEN_ALL, program, *map(str, names)]
    ended = subprocess.run(
        words, env=environment(injector.environment), capture_output=True, text=True, check=True, timeout=60
    )
    return ended.stdout.split()


def test_library_fails_the_calls_that_its_rule_names_and_no_other(library: Path, tmp_path: Path):
    inside, outside = tmp_path / "in" / "file", tmp_path / "out"
    inside.parent.mkdir()
    inside.touch()
    outside.touch()

    def under(name: str, program: str, **rule: object) -> tuple[list[str], Injector]:
        plain = {"call": "open", "error": errno.ESTALE, "place": "-", "nth": 2}
        injector = Injector(library, tmp_path / name, Fault(**{**plain, **rule}), str(inside.parent))
        return answers(injector, program, inside, outside, inside, inside), injector

    said, injector = under("once", "ingestd")
    assert said == ["ok", "ok", "ESTALE", "ok"]
    assert (injector.calls, injector.failed, injector.last) == (3, 1, f"open {inside}")
    assert under("twice", "ingestd", times=2, nth=1)[0] == ["ESTALE", "ok", "ESTALE", "ok"]
    assert under("while", "ingestd", times=0, seconds=30, nth=1)[0] == ["ESTALE", "ok", "ESTALE", "ESTALE"]
    assert under("counted", "ingestd", nth=0)[0] == ["ok"] * 4
    assert under("reader", "ingestd.reader", process="reader")[0] == ["ok", "ok", "ESTALE", "ok"]
    assert under("not a reader", "ingestd", process="reader")[0] == ["ok"] * 4
    assert under("not the daemon", "ingestd.reader")[0] == ["ok"] * 4
    assert under("another program", "other", process="any")[0] == ["ok"] * 4


def trial_of(fault: Fault, library: Path, archive: EmulatorProcess, folder: Path) -> Trial:
    return Trial(folder, archive, fault, library)


def expect_no_harm(trial: Trial, **how: bool) -> None:
    """Have a trial meet its fault, and nothing come of it."""
    trial.run(**how)

    assert trial.injector.failed > 0
    assert trial.problems == []


NO_FAULT = Fault(call="open", error=errno.EIO, place="drop", nth=0)


@pytest.mark.parametrize("once", [True, False], ids=["run --once", "daemon"])
def test_trial_finds_nothing_where_no_call_fails(library: Path, archive: EmulatorProcess, tmp_path: Path, once: bool):
    trial = trial_of(NO_FAULT, library, archive, tmp_path / "trial")
    trial.run(once=once, mixed=True, elsewhere=False, late=True)

    assert trial.problems == []
    assert trial.injector.calls > 0, "the library counted in the daemon"
    assert trial.findings.states["CONFIRMED"] == 4


class _OneMore(Trial):
    """A trial that expects a file that nobody wrote, which is what a lost one looks like."""

    def _write(self, *, mixed: bool) -> None:
        super()._write(mixed=mixed)
        self.written.append(Written(name="LOST", kind=Kind.NEW, sop_uid="1.2.3"))


class _OneLeft(Trial):
    """A trial in which a file comes back into the drop folder, which is what one that could not be taken looks like."""

    def _in_drop(self) -> set[str]:
        return super()._in_drop() | {"IM0001"}


@pytest.mark.slow
def test_trial_says_so_when_a_file_is_lost_or_left(library: Path, archive: EmulatorProcess, tmp_path: Path):
    trial = _OneMore(tmp_path / "lost", archive, NO_FAULT, library)
    trial.run(once=True, mixed=False, elsewhere=False, late=False)
    said = "\n".join(trial.problems)
    assert "in no visible state: ['LOST']" in said
    assert "LOST was dropped once and has 0 rows" in said

    trial = _OneLeft(tmp_path / "left", archive, NO_FAULT, library)
    trial.run(once=True, mixed=False, elsewhere=False, late=False)
    assert "run --once ended with 0 and left 1 files" in "\n".join(trial.problems)


@pytest.mark.parametrize(
    "words",
    [
        "ingestd: a fault in ingestd: OSError at ingestd.inbox.spool:1",
        "the ledger x is damaged (SQLITE_IOERR)",
        "no permission to use the ledger x",
    ],
)
def test_trial_says_so_when_a_fault_of_the_disk_is_called_something_else(
    library: Path, archive: EmulatorProcess, tmp_path: Path, words: str
):
    trial = trial_of(NO_FAULT, library, archive, tmp_path / "trial")
    trial._judge_words(words)
    assert trial.problems
    trial.problems.clear()
    trial._judge_words("the ledger x cannot be read: input/output error")
    assert trial.problems == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault(call="fsync", error=errno.EIO, place="drop", nth=1, times=2, process="reader"),
        Fault(call="pwrite", error=errno.ENOSPC, place="ledger.db", nth=9, times=3),
        Fault(call="fdatasync", error=errno.EIO, place="ledger.db", nth=5, times=0, seconds=1.0),
        Fault(call="readdir", error=errno.ESTALE, place="drop", nth=1),
    ],
    ids=str,
)
def test_failing_call_loses_nothing_and_all_is_complete_after_one_clean_run(
    fault: Fault, library: Path, archive: EmulatorProcess, tmp_path: Path
):
    expect_no_harm(
        trial_of(fault, library, archive, tmp_path / "trial"), once=False, mixed=True, elsewhere=False, late=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault(call="readdir", error=errno.ESTALE, place="drop", nth=1, times=0, seconds=1.5),
        Fault(call="stat", error=errno.EIO, place="drop", nth=9, times=0, seconds=1.5),
    ],
    ids=str,
)
def test_files_that_a_failing_look_at_the_folder_missed_wait_for_no_whole_interval(
    fault: Fault, library: Path, archive: EmulatorProcess, tmp_path: Path
):
    """They were seen at the next scan, 30 s later, where no event named them."""
    expect_no_harm(
        trial_of(fault, library, archive, tmp_path / "trial"), once=False, mixed=False, elsewhere=False, late=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2])
def test_daemon_outlives_a_folder_that_opens_and_cannot_be_looked_at(
    library: Path, archive: EmulatorProcess, tmp_path: Path, nth: int
):
    """`ingestd: input/output error`, and nobody watched the folder any more."""
    fault = Fault(call="fstat", error=errno.EIO, place="drop", nth=nth, times=0, seconds=1.5)
    expect_no_harm(
        trial_of(fault, library, archive, tmp_path / "trial"), once=False, mixed=False, elsewhere=False, late=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 30.0])
def test_copied_files_that_cannot_be_removed_are_told_at_the_end_of_a_single_run(
    library: Path, archive: EmulatorProcess, tmp_path: Path, seconds: float
):
    """It ended with 0, and the files lay there as if nothing had happened to them."""
    fault = Fault(call="rename", error=errno.EIO, place="drop", nth=1, times=0, seconds=seconds)
    expect_no_harm(
        trial_of(fault, library, archive, tmp_path / "trial"), once=True, mixed=False, elsewhere=True, late=False
    )
