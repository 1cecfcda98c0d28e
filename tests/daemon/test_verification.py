"""Proof is found in the transaction that writes it: nothing that others wrote meanwhile is slept over or overlooked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from ingestd.clocks import read_clocks
from ingestd.config import load
from ingestd.daemon import Daemon, once_policies
from ingestd.daemon.feed_reading import _GLANCE_BACK
from ingestd.emulator import Emulator
from ingestd.ledger import Entry, Ledger, moves, queries
from ingestd.lifecycle import Identity, Reason, Sighting, State
from ingestd.reader import InspectJob, Read
from ingestd.reconciler import Finding, needs_comparison
from tests.builders import fresh_uid, write_instance
from tests.daemon.test_promise import configure, running
from tests.ledgers import statements_of
from tests.patience import PATIENCE
from tests.running import Site, TookTooLongError, wait_until
from tests.serving import only_server, only_workers


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@contextmanager
def rooms(site: Site) -> Iterator[Daemon]:
    """The daemon's rooms in this process, turned by hand."""
    config = load(site.config_file)
    daemon = Daemon(config, policies=once_policies(config))
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@contextmanager
def somebody_else(site: Site) -> Iterator[Ledger]:
    """Another process's hand on the same ledger."""
    with Ledger.open(site.ledger_url, create=False) as ledger:
        yield ledger


def turn_until(daemon: Daemon, condition: Callable[[], object], *, what: str, within_seconds: float = PATIENCE) -> None:
    """Tick until it holds."""
    give_up_at = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > give_up_at:
            raise TookTooLongError(f"{what} did not come within {within_seconds:.0f} s")
        due = daemon.loop.tick()
        daemon.loop.wait(min(due, read_clocks().mono + 0.05))


def only_entry(daemon: Daemon) -> Entry | None:
    rows = queries.entries(daemon.ledger)
    return rows[0] if rows else None


def is_in(daemon: Daemon, state: State) -> Callable[[], bool]:
    return lambda: (entry := only_entry(daemon)) is not None and entry.state is state


def utc_now() -> datetime:
    return datetime.now(UTC)


def test_what_the_feed_shows_is_not_slept_over_by_a_plan_made_before_it(tmp_path: Path, server: Emulator):
    """Seen with 20,000 small files: 208 rows stayed STORED for the whole grace time, though the feed had shown them."""
    site = Site(tmp_path / "site", server.url, reconcile={"interval": "1h", "grace": "1h", "lag": "1s"})
    write_instance(site.drop / "image")
    with rooms(site) as daemon, somebody_else(site) as other:
        turn_until(daemon, is_in(daemon, State.STORED), what="the answer to the post")
        entry = only_entry(daemon)
        assert entry is not None

        def the_feed_was_read() -> bool:
            # As long as it was not, the row is due in every tick: in that of the feed's answer, too.
            if queries.cursor(daemon.ledger) is not None:
                return True
            with other.transaction() as tx:
                moves.check_again(tx, [entry.delivery_id], at=utc_now())
            return False

        turn_until(daemon, the_feed_was_read, what="the feed")

        turn_until(daemon, is_in(daemon, State.CONFIRMED), what="the proof")


def test_what_another_process_has_seen_is_not_slept_over(tmp_path: Path, server: Emulator):
    """``send`` and the daemon read one feed for one ledger: each writes what it sees on the rows of the other."""
    site = Site(tmp_path / "site", server.url, reconcile={"interval": "1h", "grace": "1h", "lag": "1s"})
    server.faults.add("late_feed", seconds=3600)
    write_instance(site.drop / "image")
    with rooms(site) as daemon, somebody_else(site) as other:
        turn_until(daemon, is_in(daemon, State.STORED), what="the answer to the post")
        entry = only_entry(daemon)
        assert entry is not None
        assert entry.identity is not None
        with other.transaction() as tx:
            moves.check_again(tx, [entry.delivery_id], at=utc_now())
        now = read_clocks()
        only_server(daemon).verification.collect(now)
        with other.transaction() as tx:
            moves.record_sightings(tx, [sighting_of(entry.identity)], now=utc_now())

        with daemon.ledger.transaction() as tx:
            only_server(daemon).verification.write(tx, now)

        turn_until(daemon, is_in(daemon, State.CONFIRMED), what="the proof")


def sighting_of(identity: Identity, *, disturbed: bool = False) -> Sighting:
    return Sighting(identity=identity, sequence=7, action="create", state="current", at=utc_now(), disturbed=disturbed)


def test_an_answer_is_judged_by_the_row_as_it_is_when_it_is_written(tmp_path: Path, server: Emulator):
    """While the server is asked whether it is there, somebody's hand is seen in it: presence is no proof any more.

    The server is one that has earned trust, and the file one of a study that was compared: presence would be enough.
    """
    site = Site(tmp_path / "site", server.url, destination={"kind": "other"}, reconcile={"sample": "0%"})
    study_uid = fresh_uid(1)
    write_instance(site.drop / "first", study_uid=study_uid)
    assert site.run_once().returncode == 0
    with rooms(site) as daemon, somebody_else(site) as other:
        (first,) = queries.unproven_rows(daemon.ledger, [entry.delivery_id for entry in queries.entries(daemon.ledger)])
        with other.transaction() as tx:
            moves.count_matches(tx, {first.kind: 1000})
        write_instance(site.drop / "image", study_uid=study_uid)
        turn_until(daemon, lambda: only_workers(daemon).reconciler.in_flight, what="the question")
        (image,) = (entry for entry in queries.entries(daemon.ledger) if entry.delivery_id != first.delivery_id)
        assert image.identity is not None
        assert not needs_comparison_of(daemon, image), "presence would be enough"
        with other.transaction() as tx:
            moves.record_sightings(tx, [sighting_of(image.identity, disturbed=True)], now=utc_now())

        turn_until(daemon, lambda: queries.counts(daemon.ledger)[State.CONFIRMED] == 2, what="the proof")

        story = queries.story(daemon.ledger, image.delivery_id)
        assert story is not None
        assert story.history[-1].evidence["content"] == "same"


def needs_comparison_of(daemon: Daemon, entry: Entry) -> bool:
    (row,) = queries.unproven_rows(daemon.ledger, [entry.delivery_id])
    assert only_server(daemon).server_questions.rules is not None
    return needs_comparison(row, only_server(daemon).server_questions.rules)


def test_an_answer_that_settles_nothing_lets_a_row_sleep_no_longer_than_others_want(tmp_path: Path, server: Emulator):
    site = Site(tmp_path / "site", server.url, destination={"kind": "other"}, reconcile={"verify": "presence"})
    server.faults.add("index_lag", seconds=3600)
    write_instance(site.drop / "image")
    with rooms(site) as daemon, somebody_else(site) as other:
        turn_until(daemon, lambda: only_workers(daemon).reconciler.in_flight, what="the question")
        entry = only_entry(daemon)
        assert entry is not None
        woken_at = utc_now()
        with other.transaction() as tx:
            moves.check_again(tx, [entry.delivery_id], at=woken_at)

        turn_until(daemon, lambda: not only_workers(daemon).reconciler.in_flight, what="the answer")

        entry = only_entry(daemon)
        assert entry is not None
        assert (entry.state, entry.next_check_at) == (State.STORED, woken_at)


def test_a_server_that_cannot_be_asked_lets_a_row_sleep_no_longer_than_others_want(tmp_path: Path, server: Emulator):
    site = Site(tmp_path / "site", server.url, destination={"kind": "other"})
    write_instance(site.drop / "image")
    with rooms(site) as daemon, somebody_else(site) as other:
        turn_until(daemon, is_in(daemon, State.STORED), what="the answer to the post")
        server.faults.add("unavailable", method="GET")
        turn_until(daemon, lambda: only_workers(daemon).reconciler.in_flight, what="the question")
        entry = only_entry(daemon)
        assert entry is not None
        woken_at = utc_now()
        with other.transaction() as tx:
            moves.check_again(tx, [entry.delivery_id], at=woken_at)

        turn_until(daemon, lambda: not only_workers(daemon).reconciler.in_flight, what="the answer")

        entry = only_entry(daemon)
        assert entry is not None
        assert (entry.state, entry.next_check_at) == (State.STORED, woken_at)


def uncertain_and_without_a_file(daemon: Daemon, site: Site) -> int:
    """Turn until the outcome of the only post is unknown, and remove the file before the server is asked for it."""
    turn_until(daemon, is_in(daemon, State.UNCERTAIN), what="a post without an answer")
    entry = only_entry(daemon)
    assert entry is not None
    assert entry.file is not None
    (site.spool / entry.file).unlink()
    return entry.delivery_id


def test_copy_is_compared_by_its_digest_where_our_file_is_gone(tmp_path: Path, server: Emulator):
    """The server keeps another preamble than ours, so that its copy is not byte by byte what was sent."""
    site = Site(tmp_path / "site", server.url)
    server.faults.add("drop_after_store")
    path = write_instance(tmp_path / "image")
    (site.drop / "image").write_bytes(b"\1" * 128 + path.read_bytes()[128:])
    with rooms(site) as daemon:
        uncertain_and_without_a_file(daemon, site)

        turn_until(daemon, lambda: not is_in(daemon, State.UNCERTAIN)(), what="an end")

        assert is_in(daemon, State.CONFIRMED)()


def test_row_without_a_file_is_given_up_only_when_nothing_could_be_told_for_the_grace_time(
    tmp_path: Path, server: Emulator
):
    """One reader that died of the server's copy made it FAILED at once."""
    site = Site(tmp_path / "site", server.url, reconcile={"grace": "2s"})
    server.faults.add("drop_after_store")
    write_instance(site.drop / "image")
    with rooms(site) as daemon:
        delivery_id = uncertain_and_without_a_file(daemon, site)
        copy = tmp_path / "copy"

        def reader_dies() -> Entry:
            (row,) = queries.unproven_rows(daemon.ledger, [delivery_id])
            finding = Finding(row=row, present=True, asked_at=utc_now(), copies=(copy,))
            verification = only_server(daemon).verification
            compared = verification._comparison.result_of(
                finding, Read(job=InspectJob(key=0, path=str(copy)), died=True)
            )
            assert compared is not None
            verification._compared.append(compared)
            with daemon.ledger.transaction() as tx:
                only_server(daemon).verification.write(tx, read_clocks())
            entry = only_entry(daemon)
            assert entry is not None
            return entry

        first = reader_dies()
        assert first.state is State.UNCERTAIN
        assert "could not be compared" in first.note
        wait_until(lambda: reader_dies().state is not State.UNCERTAIN, what="the end of the grace time", every=0.2)

        last = only_entry(daemon)
        assert last is not None
        assert (last.state, last.reason) == (State.FAILED, Reason.GONE)
        assert last.changed_at - first.changed_at >= timedelta(seconds=1)
        assert "could not be compared" in last.note


def test_once_nothing_is_left_to_post_the_feed_is_read_again_soon(tmp_path: Path, server: Emulator):
    """Seen: 64 files were stored after 0.4 s and proven after 12 to 16 s, a whole interval later."""
    site = Site(tmp_path / "site", server.url, reconcile={"interval": "1h", "grace": "1h", "lag": "1s"})
    server.faults.add("late_feed", seconds=1)
    write_instance(site.drop / "image")

    done = site.run_once()

    assert done.returncode == 0, done.stdout
    assert site.states() == {"CONFIRMED": 1}


@pytest.mark.slow
def test_a_glance_at_the_feed_moves_no_cursor_and_hides_nothing_that_comes_late(tmp_path: Path, server: Emulator):
    """While somebody waits for the end, the whole lag is read at the interval only: it may be 20,000 entries."""
    site = Site(tmp_path / "site", server.url, reconcile={"interval": "1h", "grace": "1h", "lag": "1m"})
    late = fresh_uid(3)
    server.faults.add("late_feed", seconds=4, uid=late)
    write_instance(site.drop / "first")
    with rooms(site) as daemon:
        turn_until(daemon, is_in(daemon, State.CONFIRMED), what="the first proof")
        cursor, before = queries.cursor(daemon.ledger), len(server.requests)
        assert cursor is not None
        daemon.progress.flushes = True
        write_instance(site.drop / "late", sop_uid=late)
        turn_until(
            daemon, lambda: queries.counts(daemon.ledger)[State.STORED] == 1, what="the answer to the second post"
        )
        time.sleep(_GLANCE_BACK.total_seconds())  # an entry this much younger, and its own lies before every glance
        write_instance(site.drop / "third")

        turn_until(daemon, lambda: queries.counts(daemon.ledger)[State.CONFIRMED] == 2, what="the third file's proof")

        assert queries.cursor(daemon.ledger) == cursor
        glances = [line["query"] for line in server.requests[before:] if line.get("path", "").endswith("/changefeed")]
        assert glances
        assert all(cursor_time(query) > cursor.since for query in glances)
        only_server(daemon).feed_reading._due_at = 0.0  # the interval is over
        turn_until(daemon, lambda: queries.counts(daemon.ledger)[State.CONFIRMED] == 3, what="the late entry")


def cursor_time(query: str) -> datetime:
    return datetime.fromisoformat(dict(parse_qsl(query))["startTime"])


def test_what_the_feed_showed_is_committed_with_the_cursor_that_passes_it(tmp_path: Path, server: Emulator):
    """A crash between the two, the cursor first, would hide the entries for good."""
    site = Site(tmp_path / "site", server.url, reconcile={"interval": "1h", "grace": "1h", "lag": "0s"})
    server.faults.add("late_feed", seconds=1)
    write_instance(site.drop / "image")
    with rooms(site) as daemon:
        turn_until(daemon, is_in(daemon, State.STORED), what="the answer to the post")
        turn_until(daemon, lambda: queries.cursor(daemon.ledger) is not None, what="a first reading")
        before = queries.cursor(daemon.ledger)
        time.sleep(1.2)  # the entry shows itself
        only_server(daemon).feed_reading.read_soon()
        only_server(daemon).feed_reading.collect(read_clocks())
        wait_until(lambda: only_workers(daemon).reconciler._feed._ended, what="the feed's answer")
        now = read_clocks()
        only_server(daemon).server_questions.collect(now)
        only_server(daemon).feed_reading.collect(now)
        assert (queries.cursor(daemon.ledger), seen_sequence(daemon)) == (before, None)

        with suppress(TornAwayError), daemon.ledger.transaction() as tx:
            only_server(daemon).feed_reading.write(tx, now)
            raise TornAwayError
        assert (queries.cursor(daemon.ledger), seen_sequence(daemon)) == (before, None)

        with daemon.ledger.transaction() as tx:
            only_server(daemon).feed_reading.write(tx, now)
            tx._on_commit.clear()
        # Nothing that comes after the commit is needed.
        assert queries.cursor(daemon.ledger) != before
        assert seen_sequence(daemon) is not None


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_entry_that_is_read_again_and_again_is_looked_for_twice(tmp_path: Path, server: Emulator, version: str):
    """When it is first seen, and when the cursor passes it; in between its row would be the same."""
    url = f"{server.root}/{version}"
    site = Site(tmp_path / "site", url, reconcile={"interval": "1h", "grace": "1h", "lag": "1h"})
    write_instance(site.drop / "image")
    with rooms(site) as daemon:
        turn_until(daemon, is_in(daemon, State.CONFIRMED), what="the proof")
        assert [times_looked_for(daemon) for _ in range(3)] == [0, 0, 0]

        only_server(daemon).feed_reading._lag = timedelta(seconds=-2)  # it is over; the server's Date has no fractions

        assert times_looked_for(daemon) == 1


def times_looked_for(daemon: Daemon) -> int:
    """Have the feed read once, and count the statements that look for the rows of its entries."""
    reading = only_server(daemon).feed_reading
    before = reading._counted_at
    reading.read_soon()
    with statements_of(daemon.ledger) as statements:
        turn_until(daemon, lambda: reading._counted_at != before, what="the reading")
    return sum("needs_content_check, study.uid" in statement for statement in statements)


class TornAwayError(Exception):
    """The process ends here."""


def seen_sequence(daemon: Daemon) -> int | None:
    entry = only_entry(daemon)
    assert entry is not None
    (row,) = queries.unproven_rows(daemon.ledger, [entry.delivery_id])
    return row.seen_sequence


def test_a_batch_whose_attempt_is_not_committed_does_not_leave(tmp_path: Path, server: Emulator):
    """G5: nothing leaves the machine before a durable attempt row says that it may have left."""
    site = Site(tmp_path / "site", server.url, batch={"quiet_period": "1h", "max_wait": "1h"})
    write_instance(site.drop / "image")
    with rooms(site) as daemon:
        turn_until(daemon, is_in(daemon, State.PENDING), what="the file")
        turn_until(
            daemon,
            lambda: only_workers(daemon).sender.free and only_workers(daemon).sender.prepare() is True,
            what="a server to post to",
        )
        daemon.progress.flushes = True
        only_server(daemon).posting.collect(read_clocks())

        with suppress(LookupError), daemon.ledger.transaction() as tx:
            only_server(daemon).posting.write(tx, read_clocks())
            raise LookupError("the ledger could not commit")

        assert only_server(daemon).posting.in_hand == 0
        assert is_in(daemon, State.PENDING)()
        with daemon.ledger.transaction() as tx:
            only_server(daemon).posting.write(tx, read_clocks())
            assert only_server(daemon).posting.in_hand == 0
        assert only_server(daemon).posting.in_hand == 1
    assert len([line for line in server.requests if line.get("method") == "POST"]) <= 1


def test_server_is_asked_as_soon_as_its_kind_is_known(tmp_path: Path, server: Emulator) -> None:
    """A second went by until the disk was looked at."""
    with running(configure(tmp_path, server)) as daemon:
        while only_workers(daemon).sender.profile is None:
            due = daemon.loop.tick()

        assert only_server(daemon).server_questions.rules is None
        assert due <= read_clocks().mono
        daemon.loop.tick()
        assert only_server(daemon).server_questions.rules is not None


def test_rows_that_are_being_compared_are_not_read_again_with_each_answer(tmp_path: Path, server: Emulator):
    """They stay due until they are answered: 1,500 files were read some 1,000 at a time, two answers apart."""
    files = 400
    site = Site(tmp_path / "site", server.url, reconcile={"interval": "200ms", "lag": "1s", "verify": "content"})
    for number in range(files):
        write_instance(site.drop / f"image{number}", study_uid="1.2.3")
    with rooms(site) as daemon:

        def come_to(*states: State) -> bool:
            return sum(queries.counts(daemon.ledger).get(state, 0) for state in states) == files

        # Where the last come late, the first are proven by then.
        turn_until(daemon, lambda: come_to(State.STORED, State.CONFIRMED), what="all stored")
        with statements_of(daemon.ledger) as statements:
            turn_until(daemon, lambda: come_to(State.CONFIRMED), what="the proof")

    looks = sum("ORDER BY delivery.next_check_at" in text for text in statements)
    assert looks < files / 4
