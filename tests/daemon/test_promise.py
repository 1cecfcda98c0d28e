"""What once broke the promise between the rooms: runs of the whole line in this process, on the embedded server."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestd.clocks import read_clocks
from ingestd.config import Config, load
from ingestd.daemon import Daemon, OnceResult, once_policies, run_once, sending_config, sending_policies
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, RowToCompare, moves, queries
from ingestd.lifecycle import Content, Reason, State
from tests.builders import element, instance_bytes, sequence
from tests.emulating import dataset_of, delete
from tests.ledger_builders import admit, arrival, open_ledger, send
from tests.ledgers import ON_POSTGRESQL, agree_anew, kept_out, raw, url_of, wait_little
from tests.patience import PATIENCE
from tests.running import wait_until
from tests.serving import only_server

IDENTITY = ("1.2.3", "1.2.3.4", "1.2.3.4.5")


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def image(*, first_pixel: int = 0) -> bytes:
    """One object; with other pixels it is the same identity, altered."""
    pixels = bytes([first_pixel]) + bytes(range(1, 128)) * 4 + bytes(3)
    study_uid, series_uid, sop_uid = IDENTITY
    return instance_bytes(
        study_uid=study_uid, series_uid=series_uid, sop_uid=sop_uid, rows=16, columns=16, pixels=pixels
    )


def configure(
    folder: Path,
    server: Emulator,
    *,
    take: str = "move",
    retain: str = "24h",
    kind: str = "auto",
    auth: str = "none",
    verify: str = "auto",
    ledger: str = "",
) -> Config:
    """One inbox beside its spool, with the patience of a test; ``ledger`` is the folder's where none is named."""
    (folder / "drop").mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(
        f"inboxes: [{{path: drop, take: {take}, settle: 50ms}}]\n"
        f"spool: {{path: spool, low_water: 1MB, retain: {retain}}}\n"
        "batch: {quiet_period: 50ms}\n"
        "retry: {base: 200ms, cap: 1s}\n"
        f'destination: {{url: "{server.url}", kind: {kind}, auth: {auth}}}\n'
        f"reconcile: {{interval: 100ms, lag: 1s, absence_wait: 200ms, verify: {verify}}}\n"
        "shutdown_grace: 5s\n"
        f"ledger: {ledger or url_of(folder)}\n"
        "reader: {processes: 1}\n"
    )
    agree_anew(folder)
    return load(file)


def run(config: Config, *, seconds: float = 20) -> OnceResult:
    return run_once(config, timeout=timedelta(seconds=seconds), policies=once_policies(config))


def run_until(config: Config, is_so: Callable[[OnceResult], object]) -> OnceResult:
    """Run once and once again, each for a short time that a busy machine makes shorter, until a run made it so."""
    give_up_at = time.monotonic() + PATIENCE
    while not is_so(ended := run(config, seconds=2)):
        assert time.monotonic() < give_up_at, "it did not come"
    return ended


@contextmanager
def running(config: Config) -> Iterator[Daemon]:
    """The daemon's rooms, started; the test turns the loop."""
    daemon = Daemon(config)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def turn(daemon: Daemon, until: Callable[[], object], *, seconds: float = PATIENCE) -> int:
    """Turn the loop until something holds, as ``run`` does; say how often it went round."""
    give_up_at = time.monotonic() + seconds
    rounds = 0
    while not until():
        assert time.monotonic() < give_up_at, "it did not come"
        daemon.loop.wait(min(daemon.loop.tick(), give_up_at))
        rounds += 1
    return rounds


def states(config: Config) -> dict[str, int]:
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return dict(Counter(entry.state.value for entry in queries.entries(ledger)))


def test_file_in_place_that_is_altered_after_it_was_confirmed_is_a_conflict(tmp_path: Path, server: Emulator) -> None:
    """It was compared with its own row's path, which is itself, and so it was "the same content"."""
    config = configure(tmp_path, server, take="in_place")
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    (tmp_path / "drop" / "image").write_bytes(image(first_pixel=1))

    result = run(config)

    assert result.done
    assert states(config) == {"CONFIRMED": 1, "CONFLICT": 1}


def test_altered_object_is_a_conflict_also_when_the_first_ones_file_is_gone(tmp_path: Path, server: Emulator) -> None:
    """The server's copy was byte for byte the row's own, so none was kept, and it was asked for again for ever."""
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    assert [path for path in (tmp_path / "spool" / "files").rglob("*") if path.is_file()] == []
    (tmp_path / "drop" / "image").write_bytes(image(first_pixel=1))
    (tmp_path / "drop" / "once more").write_bytes(image(first_pixel=1))
    (tmp_path / "drop" / "and another").write_bytes(image(first_pixel=2))

    result = run(config)

    assert result.done
    assert states(config) == {"CONFIRMED": 1, "CONFLICT": 3}


@pytest.mark.slow
def test_object_whose_rival_on_the_server_cannot_be_had_is_kept_as_a_conflict_after_the_grace_time(
    tmp_path: Path, server: Emulator
) -> None:
    """The server's copy was asked for every ten seconds for ever, and the file had no row as long as that."""
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("absence_wait: 200ms", "absence_wait: 200ms, grace: 3s"))
    server.faults.add("half_answer", method="GET", path=f"/instances/{IDENTITY[2]}")
    (tmp_path / "drop" / "image").write_bytes(image(first_pixel=1))
    asked_before = len(server.requests)

    began_at = time.monotonic()
    result = run(load(file))

    assert result.done
    assert time.monotonic() - began_at >= 3
    assert states(config) == {"CONFIRMED": 1, "CONFLICT": 1}
    fetches = [line for line in server.requests[asked_before:] if IDENTITY[2] in line.get("path", "")]
    assert 2 <= len(fetches) <= 3


@pytest.mark.parametrize("kind", ["azure", "other"])
def test_altered_object_is_sent_when_the_first_one_was_deleted_on_the_server(
    tmp_path: Path, server: Emulator, kind: str
) -> None:
    """It waited for the copy of an object that was gone, and nobody told it that its identity was free."""
    config = configure(tmp_path, server, retain="0s", kind=kind)
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    delete(server.url, IDENTITY)
    (tmp_path / "drop" / "image").write_bytes(image(first_pixel=1))

    result = run(config)

    assert result.done
    assert states(config) == {"DELETED": 1, "CONFIRMED": 1}


def test_loop_rests_while_the_last_posts_end(tmp_path: Path, server: Emulator) -> None:
    """What is not served any more was still counted as due, and the loop went round as fast as it could."""
    config = configure(tmp_path, server)
    server.faults.add("latency", seconds=3, method="POST")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        turn(daemon, lambda: only_server(daemon).posting.in_hand)
        began = time.process_time()

        daemon.stop(timedelta(seconds=10))

        assert time.process_time() - began < 0.7
    assert states(config) == {"STORED": 1}


def test_loop_rests_while_one_post_tries_the_server_after_an_outage(tmp_path: Path, server: Emulator) -> None:
    """Another study was due all the while, and nothing could be done about it."""
    config = configure(tmp_path, server, auth="{kind: bearer, token_file: token}")
    server.faults.add("latency", seconds=1.5, method="POST")
    for number in (1, 2, 3):
        content = instance_bytes(study_uid=f"1.2.{number}", series_uid=f"1.2.{number}.1", sop_uid=f"1.2.{number}.2")
        (tmp_path / "drop" / f"image{number}").write_bytes(content)
    with running(config) as daemon:
        turn(daemon, lambda: states(config) and only_server(daemon).posting.destination.pause)
        (tmp_path / "token").write_text("secret")
        turn(daemon, lambda: only_server(daemon).posting.destination.half_open and only_server(daemon).posting.in_hand)
        until = time.monotonic() + 1

        assert turn(daemon, lambda: time.monotonic() > until) < 40


def test_ledger_that_is_locked_for_a_while_ends_nothing(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it ended the daemon, and one that had nothing to write took no file in any more."""
    wait_little(monkeypatch)
    config = configure(tmp_path, server)
    with running(config) as daemon:
        turn(
            daemon,
            lambda: only_server(daemon).posting.destination.is_open and only_server(daemon).server_questions.rules,
        )
        with kept_out(config.ledger):
            until = time.monotonic() + 1
            turn(daemon, lambda: time.monotonic() > until)
            (tmp_path / "drop" / "image").write_bytes(image())
            turn(daemon, lambda: time.monotonic() > until + 1)

        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})


@pytest.mark.slow
def test_spool_file_that_cannot_be_removed_stops_nothing_else(tmp_path: Path, server: Emulator) -> None:
    """It ended the daemon, at every start anew."""
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        turn(daemon, lambda: any((tmp_path / "spool" / "files").glob("*/*/*")))
        (stuck,) = (tmp_path / "spool" / "files").glob("*/*/*")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1} or not stuck.exists())
        stuck.unlink(missing_ok=True)
        (stuck / "in the way").mkdir(parents=True)
        until = time.monotonic() + 6

        turn(daemon, lambda: time.monotonic() > until)

    with Ledger.open(config.ledger, read_only=True) as ledger:
        (entry,) = queries.entries(ledger)
    assert entry.removed_at is None


def test_file_read_again_is_compared_also_when_the_ledger_failed_in_between(tmp_path: Path, server: Emulator) -> None:
    """The reading was kept and written once more, and passed for the comparison that had not been made: a conflict."""
    config = configure(tmp_path, server, take="in_place")
    first, second = tmp_path / "first", tmp_path / "second"
    one, other = encodings_of_one_object()
    first.write_bytes(one)
    second.write_bytes(other)
    with running(config) as daemon:
        stages, ledger = daemon.stages, daemon.ledger
        daemon.gates.rereads.open("orphans")
        admit(ledger, replace(arrival(1, study=2, in_place=True), path=str(second)))
        send(ledger, study=2, state=State.PENDING, reason=Reason.CHANGED, reread=True)
        held = replace(arrival(1, in_place=True), path=str(first), content=content_of_file(first))
        admit(ledger, held)
        parts = (stages.reader_client, stages.rereads, stages.admission)

        def has_read() -> bool:
            for stage in parts:
                stage.collect(read_clocks())
            return bool(stages.admission._new or stages.admission._answers)

        def write() -> None:
            with ledger.transaction() as tx:
                stages.admission.write(tx, read_clocks())

        wait_until(has_read, what="the row")
        write()
        wait_until(has_read, what="the reading")
        with suppress(ZeroDivisionError), ledger.transaction() as tx:
            stages.admission.write(tx, read_clocks())
            raise ZeroDivisionError
        while not stages.admission.is_idle:
            wait_until(has_read, what="the reading or the comparison")
            write()

    assert states(config) == {"PENDING": 1, "DUPLICATE": 1, "DISCARDED": 1}


def encodings_of_one_object(study_uid: str = "1.2.1") -> tuple[bytes, bytes]:
    """The same object with a sequence of known, and of undefined length."""
    one, other = (
        instance_bytes(
            study_uid=study_uid,
            series_uid=f"{study_uid}.1",
            sop_uid=f"{study_uid}.1.1",
            extra=sequence(0x00400275, [element(0x00400007, "LO", b"CT")], undefined=undefined),
        )
        for undefined in (False, True)
    )
    return one, other


def test_file_read_again_is_compared_with_the_servers_copy_where_the_other_ones_file_is_gone(
    tmp_path: Path, server: Emulator
) -> None:
    """A new file was; that of a row passed for another object, unseen: a conflict for a person."""
    config = configure(tmp_path, server, retain="0s")
    one, other = encodings_of_one_object()
    (tmp_path / "drop" / "first").write_bytes(one)
    run(config)
    assert [path for path in (tmp_path / "spool" / "files").rglob("*") if path.is_file()] == []
    with running(config) as daemon:
        daemon.gates.claims.shut("test")
        (tmp_path / "drop" / "second").write_bytes(encodings_of_one_object("1.2.9")[0])
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1, "PENDING": 1})
        (kept,) = (tmp_path / "spool" / "files").glob("*/*/*")
        kept.write_bytes(other)
        daemon.gates.claims.open("test")

        turn(daemon, lambda: "PENDING" not in states(config) and "SENDING" not in states(config))

    assert states(config) == {"CONFIRMED": 1, "DUPLICATE": 1, "DISCARDED": 1}


def test_rows_whose_files_took_each_others_names_do_not_one_waits_for_the_other_for_ever(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported once more over the same names, in another order and a little different, while the server was away."""
    monkeypatch.setattr("ingestd.daemon.holder_comparison._AGAIN_SECONDS", 0.1)
    config = configure(tmp_path, server, take="in_place")
    with running(config) as daemon:
        daemon.gates.claims.shut("test")
        files = {study: tmp_path / f"{study}" for study in (1, 2)}
        for study, file in files.items():
            admit(daemon.ledger, replace(arrival(1, study=study, in_place=True), path=str(file)))
            send(daemon.ledger, study=study, state=State.PENDING, reason=Reason.CHANGED, reread=True)
            file.write_bytes(encodings_of_one_object(f"1.2.{3 - study}")[0])

        turn(daemon, lambda: states(config) == {"PENDING": 2, "DISCARDED": 2})


def to_compare(daemon: Daemon) -> list[RowToCompare]:
    return queries.rows_to_compare(daemon.ledger, limit=9)


def one_waits_for_the_other(daemon: Daemon, first: Path, second: Path, content: bytes) -> None:
    """A row whose file, ``second``, is read again; the row that holds its identity has its file where none can look."""
    admit(daemon.ledger, replace(arrival(1, study=2, in_place=True), path=str(second)))
    send(daemon.ledger, study=2, state=State.PENDING, reason=Reason.CHANGED, reread=True)
    first.write_bytes(content)
    admit(daemon.ledger, replace(arrival(1, in_place=True), path=str(first), content=content_of_file(first)))
    first.unlink()  # its folder is away, say


def test_file_read_again_is_no_conflict_while_the_other_ones_file_cannot_be_read(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was learnt of it, and it passed for another object."""
    monkeypatch.setattr("ingestd.daemon.holder_comparison._AGAIN_SECONDS", 0.05)
    monkeypatch.setattr("ingestd.daemon.holder_comparison._UNREAD_SECONDS", 1.0)
    config = configure(tmp_path, server, take="in_place")
    one, other = encodings_of_one_object()
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_bytes(other)
    with running(config) as daemon:
        daemon.gates.claims.shut("test")
        one_waits_for_the_other(daemon, first, second, one)
        turn(daemon, lambda: states(config) == {"PENDING": 1, "DUPLICATE": 1, "DISCARDED": 1})
        until = time.monotonic() + 1.5
        turn(daemon, lambda: time.monotonic() > until)
        assert daemon.stages.alarms.stands("not_compared")
        assert [row.path for row in to_compare(daemon)] == [f"{second.parent}/{second.name}"]
        assert states(config) == {"PENDING": 1, "DUPLICATE": 1, "DISCARDED": 1}

        first.write_bytes(one)
        turn(daemon, lambda: not to_compare(daemon))
        turn(daemon, lambda: not daemon.stages.alarms.stands("not_compared"))
        assert states(config) == {"PENDING": 1, "DUPLICATE": 1, "DISCARDED": 1}


def content_of_file(path: Path) -> Content:
    """What a reader finds in a whole file made by the builders."""
    dataset = dataset_of(path.read_bytes())
    size = path.stat().st_size
    return Content(
        transfer_syntax="1.2.840.10008.1.2.1",
        digest=hashlib.sha256(dataset).hexdigest(),
        meta_digest=hashlib.sha256(path.read_bytes()[: size - len(dataset)]).hexdigest(),
        dataset_offset=size - len(dataset),
        size_bytes=size,
    )


def test_rows_that_cannot_be_read_let_the_others_by(tmp_path: Path, server: Emulator) -> None:
    """The first sixty-four were taken up for ever, and nobody behind them."""
    config = configure(tmp_path, server, take="in_place")
    with running(config) as daemon:
        unreadable = f"/proc/{os.getpid()}/mem"
        many = [replace(arrival(number, in_place=True), path=unreadable) for number in range(1, 131)]
        admit(daemon.ledger, *many)
        send(daemon.ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)
        taken_up: set[int] = set()

        def all_were() -> bool:
            daemon.stages.rereads._look_at = 0.0
            daemon.loop.tick()
            taken_up.update(daemon.stages.admission.rows_in_hand)
            return len(taken_up) == len(many)

        wait_until(all_were, what="everybody's turn")


def test_drop_of_what_another_host_confirmed_and_the_server_lost_is_sent(tmp_path: Path, server: Emulator) -> None:
    """`send` had confirmed it and ended: nobody looked again, and the drop stayed its duplicate for ever."""
    config = configure(tmp_path, server, kind="other")
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "image").write_bytes(image())
    run_once(sending_config(config), timeout=timedelta(seconds=20), policies=sending_policies([archive]))
    assert states(config) == {"CONFIRMED": 1}
    delete(server.url, IDENTITY)
    (tmp_path / "drop" / "image").write_bytes(image())

    with running(config) as daemon:
        turn(daemon, lambda: states(config) == {"DELETED": 1, "CONFIRMED": 1})


def test_object_that_took_anothers_place_is_compared_before_it_is_confirmed(tmp_path: Path) -> None:
    """The feed shows what was replaced and what replaced it; the sender's word for that was lost on the way."""
    with open_ledger(tmp_path) as ledger:
        (delivery_id,) = admit(ledger, arrival(1))
        send(ledger, needs_content_check=True)

        assert [row.needs_content_check for row in queries.unproven_rows(ledger, [delivery_id])] == [True]


def test_files_of_a_folder_that_is_away_wait_for_it(tmp_path: Path, server: Emulator) -> None:
    """A share that was not mounted made every file in it FAILED, one post after the other."""
    config = configure(tmp_path, server, take="in_place", auth="{kind: bearer, token_file: token}")
    for number in (1, 2):
        content = instance_bytes(study_uid="1.2.3", series_uid="1.2.3.4", sop_uid=f"1.2.3.4.{number}")
        (tmp_path / "drop" / f"image{number}").write_bytes(content)
    with running(config) as daemon:
        turn(daemon, lambda: states(config) == {"PENDING": 2} and only_server(daemon).posting.destination.pause)
        (tmp_path / "drop").rename(tmp_path / "elsewhere")
        (tmp_path / "drop").mkdir()
        (tmp_path / "token").write_text("secret")
        turn(daemon, lambda: queries.next_wake_at(daemon.ledger, now=read_clocks().utc))
    assert states(config) == {"PENDING": 2}
    (tmp_path / "drop").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "drop")

    with Ledger.open(config.ledger) as ledger, ledger.transaction() as tx:
        for delivery_id in (1, 2):
            moves.retry(tx, delivery_id, now=read_clocks().utc)
    assert run(config).done
    assert states(config) == {"CONFIRMED": 2}


@pytest.mark.parametrize("other", ["a link", "a folder"])
def test_row_whose_file_in_place_is_a_file_no_more_comes_to_its_end(
    tmp_path: Path, server: Emulator, other: str
) -> None:
    """It was "changed" to the sender and gone to whoever read it again: one claim after the other, and no end."""
    config = configure(tmp_path, server, take="in_place")
    file, target = tmp_path / "drop" / "image", tmp_path / "elsewhere"
    file.write_bytes(image())
    with running(config) as daemon:
        daemon.gates.claims.shut("test")
        turn(daemon, lambda: states(config) == {"PENDING": 1})
        file.rename(target)
        if other == "a link":
            file.symlink_to(target)
        else:
            file.mkdir()
        daemon.gates.claims.open("test")

        turn(daemon, lambda: states(config) == {"FAILED": 1})

    with Ledger.open(config.ledger, read_only=True) as ledger:
        (entry,) = queries.entries(ledger)
    assert entry.reason is Reason.GONE
    with raw(config.ledger) as connection:
        (attempts,) = connection.execute("SELECT count(*) FROM attempt").fetchone()
    assert attempts == 1 or (ON_POSTGRESQL and attempts == 2)  # on a share it is looked for twice


def test_row_to_be_read_again_that_no_reader_can_read_is_told(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file can be looked at: it was handed in every two seconds, came back unread, and no alarm stood."""
    monkeypatch.setattr("ingestd.daemon.rereads._LOOK_EVERY_SECONDS", 0.1)
    monkeypatch.setattr("ingestd.daemon.rereads._UNREAD_SECONDS", 0.5)
    config = configure(tmp_path, server, take="in_place")
    with running(config) as daemon:
        daemon.gates.claims.shut("test")
        row = replace(arrival(1, in_place=True), path=f"/proc/{os.getpid()}/mem")
        (delivery_id,) = admit(daemon.ledger, row)
        send(daemon.ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)

        turn(daemon, lambda: daemon.stages.alarms.stands("not_read_again"))
        with daemon.ledger.transaction() as tx:
            moves.read_no_more(tx, delivery_id, now=read_clocks().utc)
        turn(daemon, lambda: not daemon.stages.alarms.stands("not_read_again"))


@pytest.mark.parametrize("why", ["its disk fails", "its folder is empty"])
def test_row_to_be_read_again_of_whose_file_nobody_can_say_is_told(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """It was looked for every two seconds, for ever, and no alarm stood."""
    monkeypatch.setattr("ingestd.daemon.rereads._LOOK_EVERY_SECONDS", 0.1)
    monkeypatch.setattr("ingestd.daemon.rereads._UNREAD_SECONDS", 0.5)
    config = configure(tmp_path, server, take="in_place")
    file, stat = tmp_path / "drop" / "image", os.stat

    def fail(path: Any, **more: Any) -> os.stat_result:
        if path == "image":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, **more)

    with running(config) as daemon:
        daemon.gates.claims.shut("test")
        file.write_bytes(image())
        turn(daemon, lambda: states(config) == {"PENDING": 1})
        now = read_clocks().utc
        send(daemon.ledger, 3, now=now, state=State.PENDING, reason=Reason.CHANGED, reread=True)
        with monkeypatch.context() as patched:
            if why == "its disk fails":
                patched.setattr(os, "stat", fail)
            else:
                file.rename(tmp_path / "elsewhere")

            turn(daemon, lambda: daemon.stages.alarms.stands("not_read_again"))
        if why == "its folder is empty":
            (tmp_path / "elsewhere").rename(file)

        turn(daemon, lambda: not daemon.stages.alarms.stands("not_read_again"))
        daemon.gates.claims.open("test")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
