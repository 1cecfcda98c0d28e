"""Whose files go, and when: each server holds what rests on it; where there is no room, what need not be kept goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from ingestd.clocks import utc_now
from ingestd.config import Config, load
from ingestd.daemon import Daemon
from ingestd.daemon.spool_disk import who_waits
from ingestd.ledger import Alarm, DestinationStatus, Entry, Ledger, RefusedMove, moves, queries
from ingestd.lifecycle import HOLDING, Reason, State
from tests.builders import instance_bytes
from tests.daemon.test_destinations import addresses, configure, drop, run, states, stopped
from tests.daemon.test_promise import running, turn
from tests.daemon.test_retention import pass_seconds
from tests.emulating import EmulatorProcess
from tests.inbox.test_copying import small_disk  # noqa: F401 - a fixture

BY_INBOX = (
    "rules:\n"
    "  - {when: {inbox: er}, to: [archive, research]}\n"
    "  - {when: {folder: research}, to: [research]}\n"
    "  - {when: {}, to: [archive]}\n"
)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, EmulatorProcess]]:
    with EmulatorProcess(tmp_path / "archive") as archive, EmulatorProcess(tmp_path / "research") as research:
        yield {"archive": archive, "research": research}


def kept(config: Config) -> set[str]:
    """The names of the files that are in the spool still, by what the ledger says."""
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return {entry.relative_path for entry in queries.entries(ledger) if entry.removed_at is None}


def fill(folder: Path, servers: dict[str, EmulatorProcess], *, retain: str = "24h") -> Config:
    """Have three files confirmed: one at both servers, one at each."""
    config = configure(folder, addresses(servers), rules=BY_INBOX, retain=retain)
    drop(folder, "er", 1)
    drop(folder, "ward", 2)
    (folder / "ward" / "research").mkdir()
    drop(folder, "ward/research", 3)
    assert run(config).done
    assert states(config) == {("archive", "CONFIRMED"): 2, ("research", "CONFIRMED"): 2}
    return config


@contextmanager
def filled_and_running(folder: Path, servers: dict[str, EmulatorProcess]) -> Iterator[tuple[Config, Daemon]]:
    """The same, and then a daemon that keeps no file for long."""
    fill(folder, servers)
    config = configure(folder, addresses(servers), rules=BY_INBOX, retain="0s")
    with running(config) as daemon:
        yield config, daemon


@pytest.mark.slow
def test_one_that_is_away_holds_what_rests_on_it_and_nothing_of_another(
    tmp_path: Path, servers: dict[str, EmulatorProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestd.daemon.retention._LOOK_THROUGH_AT_ONCE", 1)  # file by file, as of many thousands
    with filled_and_running(tmp_path, servers) as (config, daemon):
        with stopped(servers["research"]):
            turn(daemon, lambda: "IM2" not in kept(config), seconds=40)
            assert kept(config) == {"IM1", "research/IM3"}
        turn(daemon, lambda: not kept(config), seconds=60)


def test_server_that_gave_back_other_bytes_holds_what_it_has_and_nothing_of_another(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    with filled_and_running(tmp_path, servers) as (config, daemon):
        with daemon.ledger.at("research").transaction() as tx:
            moves.mismatch(tx, studies=(), differs="the pixels", stops=True, now=utc_now())
        turn(daemon, lambda: "IM2" not in kept(config), seconds=40)
        assert kept(config) == {"IM1", "research/IM3"}


@pytest.mark.slow
def test_only_what_nobody_has_to_have_is_given_up_where_there_is_no_room(
    tmp_path: Path, servers: dict[str, EmulatorProcess]
) -> None:
    fill(tmp_path, servers)
    with stopped(servers["archive"]), stopped(servers["research"]):
        drop(tmp_path, "er", 11)
        drop(tmp_path, "ward", 12)
        drop(tmp_path, "ward/research", 13)
        config = configure(tmp_path, addresses(servers), rules=BY_INBOX)
        with running(config) as daemon:
            turn(daemon, lambda: len(entries(config, "research", State.PENDING)) == 2)
        file = tmp_path / "config.yaml"
        text = file.read_text().replace("low_water: 1MB", "low_water: 100000TB")
        file.write_text(
            text.replace(f"'{servers['research'].url}', ", f"'{servers['research'].url}', required: false, ")
        )
        config = load(file)
        with running(config) as daemon:
            turn(daemon, lambda: entries(config, "research", State.FAILED))
            turn(daemon, lambda: kept(config) == {"IM1", "IM2", "IM11", "IM12"})

        (given_up,) = entries(config, "research", State.FAILED)
        assert (given_up.relative_path, given_up.reason) == ("research/IM13", Reason.NO_ROOM)
        assert {entry.relative_path for entry in entries(config, "research", State.PENDING)} == {"IM11"}


FILES, SIDE = 28, 600  # 720 kB each


def with_little_room(folder: Path, servers: dict[str, EmulatorProcess], disk: Path, *, required: bool) -> Config:
    """A spool for some twenty files; research has to have them, or need not."""
    configure(folder, addresses(servers), rules=BY_INBOX)
    file = folder / "config.yaml"
    text = file.read_text().replace("path: spool, low_water: 1MB", f"path: '{disk / 'spool'}', low_water: 8MB")
    need = f"auth: none, required: {str(required).lower()}}}"
    text = text.replace(f"'{servers['research'].url}', auth: none}}", f"'{servers['research'].url}', {need}")
    file.write_text(text)
    return load(file)


def drop_large(folder: Path, inbox: str, *numbers: int) -> None:
    for number in numbers:
        study = f"1.2.3.{number}"
        content = instance_bytes(
            study_uid=study, series_uid=f"{study}.1", sop_uid=f"{study}.1.1", rows=SIDE, columns=SIDE
        )
        (folder / inbox / f"IM{number}").write_bytes(content)


def entries(config: Config, destination: str, *states: State) -> list[Entry]:
    with Ledger.open(config.ledger, read_only=True) as ledger:
        found = [entry for entry in queries.entries(ledger) if entry.destination == destination]
    return sorted((entry for entry in found if entry.state in states), key=lambda entry: entry.delivery_id)


def arrived(config: Config, number: int) -> bool:
    return len(entries(config, "archive", State.CONFIRMED)) >= number


def alarm(config: Config, kind: str) -> Alarm | None:
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return next((each for each in queries.alarms(ledger) if each.kind == kind), None)


def test_kept_files_make_room_for_copies_that_do_not_fit(
    tmp_path: Path,
    servers: dict[str, EmulatorProcess],
    small_disk: Path,  # noqa: F811
) -> None:
    """The disk was full at low_water and never below it: nothing went before its time, and nothing more came in."""
    config = with_little_room(tmp_path, servers, small_disk, required=True)
    with running(config) as daemon:
        drop_large(tmp_path, "ward", *range(FILES))
        turn(daemon, partial(arrived, config, FILES), seconds=60)
    assert len(kept(config)) < FILES


@pytest.mark.slow
def test_what_need_not_be_sent_makes_room_the_oldest_first_and_no_more_than_that(
    tmp_path: Path,
    servers: dict[str, EmulatorProcess],
    small_disk: Path,  # noqa: F811
) -> None:
    config = with_little_room(tmp_path, servers, small_disk, required=False)
    with stopped(servers["research"]), running(config) as daemon:
        for number in range(FILES):
            drop_large(tmp_path, "er", number)
            turn(daemon, partial(arrived, config, number + 1), seconds=60)
        turn(daemon, lambda: alarm(config, "no_room"))

        given_up = entries(config, "research", State.FAILED)
        waiting = entries(config, "research", *HOLDING)
        assert {entry.reason for entry in given_up} == {Reason.NO_ROOM}
        assert len(given_up) <= 7, "no more than the room that was missing, which is that of five files"
        tried = {entry.delivery_id for entry in waiting if entry.state is not State.PENDING}
        assert max(e.delivery_id for e in given_up) < min(e.delivery_id for e in waiting if e.delivery_id not in tried)
        told = alarm(config, "no_room")
    assert told is not None
    assert told.destination == "research"
    assert told.note == "files that waited for research had to go, because the disk was full (no_room)"
    with Ledger.open(config.ledger) as ledger:
        assert queries.status(ledger).needs_person == len(given_up)
        with pytest.raises(RefusedMove, match="its file was removed"), ledger.transaction() as tx:
            moves.retry(tx, given_up[0].delivery_id, now=utc_now())


@pytest.mark.slow
def test_what_has_to_be_sent_stops_the_intake_where_there_is_no_room(
    tmp_path: Path,
    servers: dict[str, EmulatorProcess],
    small_disk: Path,  # noqa: F811
) -> None:
    config = with_little_room(tmp_path, servers, small_disk, required=True)
    with stopped(servers["research"]), running(config) as daemon:
        drop_large(tmp_path, "er", *range(FILES))
        turn(daemon, lambda: (told := alarm(config, "disk_low")) and "away since" in told.note, seconds=60)
        turn(daemon, pass_seconds(6))

        assert list((tmp_path / "er").glob("IM*")), "they wait where they are"
        assert entries(config, "research", State.FAILED) == []
        assert all(entry.removed_at is None for entry in entries(config, "archive", *State))
        told = alarm(config, "disk_low")
    assert told is not None
    assert " files wait for research, away since 20" in told.note


def test_who_waits_is_named_with_how_much():
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    none = dict.fromkeys(("kind", "pause_cause", "pause_note"), "") | dict.fromkeys(("paused_until", "last_ok_at"))
    archive = DestinationStatus(
        name="archive", url="", unconfirmed=4512, unconfirmed_bytes=12_345_000_000, paused_since=noon, **none
    )
    research = replace(archive, name="research", unconfirmed=1, unconfirmed_bytes=500_000, paused_since=None)
    idle = replace(research, unconfirmed=0, unconfirmed_bytes=0)

    of_archive = "12.3 GB in 4,512 files wait for {}, away since 2026-03-01 12:00 UTC"
    assert who_waits([research, archive]) == f"; {of_archive.format('archive')}; 0.5 MB in 1 file waits for research"
    assert who_waits([archive]) == f"; {of_archive.format('the server')}"
    assert who_waits([archive, idle]) == f"; {of_archive.format('archive')}"
    assert who_waits([idle]) == ""
