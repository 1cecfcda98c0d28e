"""Other bytes under an identity that a destination has: a row that waits to be compared, and holds nothing up."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd.config import Config
from ingestd.daemon.holder_comparison import _Comparison
from ingestd.ledger import Choice, Ledger, queries
from ingestd.lifecycle import Reason, State
from ingestd.reader import CompareJob, Read
from tests.builders import instance_bytes
from tests.daemon.test_destinations import addresses, configure, drop, run, servers, states, stopped
from tests.daemon.test_promise import encodings_of_one_object, running, turn
from tests.emulating import EmulatorProcess

__all__ = ["servers"]

ONLY_ARCHIVE = "rules:\n  - {when: {inbox: er}, to: [archive]}\n  - {when: {}, to: [archive, research]}\n"
AWAY = {("archive", "CONFIRMED"): 1, ("archive", "DUPLICATE"): 1, ("research", "CONFIRMED"): 1}


def kept(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "spool" / "files").rglob("*"))


def only_the_archive_has(folder: Path, servers: dict[str, EmulatorProcess], *contents: bytes) -> Config:
    """Our own copies of these are gone."""
    config = configure(folder, addresses(servers), rules=ONLY_ARCHIVE, retain="0s")
    for number, content in enumerate(contents):
        (folder / "er" / f"{number}").write_bytes(content)
    with running(config) as daemon:
        turn(daemon, lambda: states(config) == {("archive", "CONFIRMED"): len(contents)} and kept(folder) == 0)
    return config


def taken_in_while_it_was_away(folder: Path, servers: dict[str, EmulatorProcess]) -> tuple[Config, Path]:
    """A file that waits to be compared with a copy that only the archive has; where it lies."""
    one, other = encodings_of_one_object()
    config = only_the_archive_has(folder, servers, one)
    with stopped(servers["archive"]):
        (folder / "er" / "again").write_bytes(other)
        with running(config) as daemon:
            turn(daemon, lambda: states(config) == {("archive", "CONFIRMED"): 1, ("archive", "DUPLICATE"): 1})
    (held,) = (path for path in (folder / "spool" / "files").rglob("*") if path.is_file())
    return config, held


def reasons(config: Config) -> dict[State, str]:
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return {entry.state: str(entry.reason) for entry in queries.entries(ledger) if entry.destination == "archive"}


@pytest.mark.parametrize("is_same", [True, False])
def test_file_that_only_an_away_server_can_be_compared_with_goes_to_the_other_meanwhile(
    tmp_path: Path, servers: dict[str, EmulatorProcess], monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    """It was taken in nowhere until that server was back, and so was whatever came behind enough of such files."""
    monkeypatch.setattr("ingestd.daemon.admission._IN_HAND_MOST", 1)
    one, other = encodings_of_one_object()
    config = only_the_archive_has(tmp_path, servers, one)
    others = other if is_same else one[:-2] + bytes([one[-2] ^ 1, one[-1]])
    with stopped(servers["archive"]):
        (tmp_path / "ward" / "again").write_bytes(others)
        with running(config) as daemon:
            turn(daemon, lambda: states(config) == AWAY)
            assert reasons(config)[State.DUPLICATE] == Reason.NOT_COMPARED
            drop(tmp_path, "ward", 1)
            turn(daemon, lambda: states(config)["research", "CONFIRMED"] == 2)
            daemon.stages.retention.hurry()
        with running(config) as daemon:  # and it is compared although it was taken in by another run
            turn(daemon, lambda: not daemon.stages.servers["archive"].holder_comparison.is_idle)
            assert reasons(config)[State.DUPLICATE] == Reason.NOT_COMPARED
            assert kept(tmp_path) == 2

    with running(config) as daemon:
        if is_same:
            turn(daemon, lambda: reasons(config).get(State.DUPLICATE) == Reason.SAME_CONTENT)
            turn(daemon, lambda: kept(tmp_path) == 0)
        else:
            turn(daemon, lambda: reasons(config).get(State.CONFLICT) == Reason.OTHER_CONTENT)
            turn(daemon, lambda: kept(tmp_path) == 1)


def test_what_waits_for_copies_lets_by_what_can_be_compared_here(
    tmp_path: Path, servers: dict[str, EmulatorProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestd.daemon.holder_comparison._AT_ONCE", 2)
    monkeypatch.setattr("ingestd.daemon.holder_comparison._COPIES_AT_ONCE", 1)
    studies = [f"1.2.{number}" for number in range(5)]
    config = only_the_archive_has(tmp_path, servers, *(encodings_of_one_object(study)[0] for study in studies))
    with stopped(servers["archive"]):
        for study in studies:
            (tmp_path / "ward" / study).write_bytes(encodings_of_one_object(study)[1])
        with running(config) as daemon:
            turn(daemon, lambda: states(config)["archive", "DUPLICATE"] == 5)
            for name, content in zip("ab", encodings_of_one_object("1.2.9"), strict=True):
                (tmp_path / "er" / name).write_bytes(content)
                turn(daemon, lambda: not any(path.is_file() for path in (tmp_path / "er").iterdir()))

            def compared() -> int:
                with Ledger.open(config.ledger, read_only=True) as ledger:
                    same = Choice(state=State.DUPLICATE, reason=Reason.SAME_CONTENT)
                    return len(queries.entries(ledger, same))

            turn(daemon, lambda: compared() == 1)


def test_file_that_was_written_to_before_it_was_compared_is_what_lies_there_now(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    config, held = taken_in_while_it_was_away(tmp_path, servers)
    whole = instance_bytes(study_uid="1.2.8", series_uid="1.2.8.1", sop_uid="1.2.8.1.1")
    held.write_bytes(whole)
    with running(config) as daemon:
        turn(daemon, lambda: states(config) == {("archive", "CONFIRMED"): 2, ("archive", "DISCARDED"): 1})


def test_file_that_is_gone_before_it_was_compared_is_for_a_person(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    config, held = taken_in_while_it_was_away(tmp_path, servers)
    held.unlink()
    with running(config) as daemon:
        turn(daemon, lambda: reasons(config).get(State.CONFLICT) == Reason.GONE)


def test_single_run_waits_for_the_comparison(tmp_path: Path, servers: dict[str, EmulatorProcess]) -> None:
    one, other = encodings_of_one_object()
    config = only_the_archive_has(tmp_path, servers, one)
    (tmp_path / "er" / "again").write_bytes(other)
    with stopped(servers["archive"]):
        ended = run(config, seconds=3)
        assert (ended.done, ended.unfinished) == (False, 1)
    assert run(config).done
    assert reasons(config) == {State.CONFIRMED: Reason.CONTENT_CHECK, State.DUPLICATE: Reason.SAME_CONTENT}


def test_reader_that_is_killed_while_it_compares_makes_no_conflict(
    tmp_path: Path, servers: dict[str, EmulatorProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestd.daemon.holder_comparison._AGAIN_SECONDS", 0.1)
    config = configure(tmp_path, addresses(servers), rules=ONLY_ARCHIVE)
    one, other = encodings_of_one_object()
    (tmp_path / "er" / "first").write_bytes(one)
    run(config)
    with running(config) as daemon:
        comparison = daemon.stages.servers["archive"].holder_comparison
        ask, asked = comparison._ask, list[_Comparison]()

        def ask_or_die(what: _Comparison) -> None:
            asked.append(what)
            if len(asked) == 1:  # as after an OOM killer's kill -9
                job = CompareJob(key=0, ours=what.row.path, theirs=what.row.path)
                comparison._answers.append((what, Read(job=job, died=True, cause="killed by signal 9")))
            else:
                ask(what)

        monkeypatch.setattr(comparison, "_ask", ask_or_die)
        (tmp_path / "er" / "again").write_bytes(other)
        turn(daemon, lambda: reasons(config).get(State.DUPLICATE) == Reason.SAME_CONTENT)
    assert len(asked) == 2


def test_file_that_was_read_and_is_not_whole_is_for_a_person(
    tmp_path: Path, servers: dict[str, EmulatorProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is that a person had admitted although it is cut: it will not be another one at the next try."""
    config = configure(tmp_path, addresses(servers), rules=ONLY_ARCHIVE)
    one, other = encodings_of_one_object()
    (tmp_path / "er" / "first").write_bytes(one)
    run(config)
    (tmp_path / "er" / "again").write_bytes(other)
    with running(config) as daemon:
        comparison = daemon.stages.servers["archive"].holder_comparison

        def cut(what: _Comparison) -> None:
            job = CompareJob(key=0, ours=what.row.path, theirs=what.row.path)
            read = Read(job=job, waits="our file cannot be compared: it ends too early", not_whole="ours")
            comparison._answers.append((what, read))

        monkeypatch.setattr(comparison, "_ask", cut)
        turn(daemon, lambda: reasons(config).get(State.CONFLICT) == Reason.NOT_COMPARABLE)
