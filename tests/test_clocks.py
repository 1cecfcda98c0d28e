"""The wall clock is set, back or forward: nothing waits for it, nothing ends early, and it is on record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.clocks import Clock, Now, boottime
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.reader_client import ReaderClient
from ingestd.daemon.retention import Looks, Retention
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Gate, Gates
from ingestd.daemon.wallclock import WallClock
from ingestd.emulator import Emulator
from ingestd.inbox import Spool
from ingestd.ledger import Event, Ledger, moves, queries
from ingestd.lifecycle import Backoff, Reason, State, StudyQueue, Turns
from ingestd.reader import ReaderLimits, ReaderPool
from tests.builders import write_instance
from tests.clocking import MovingClock, sets_clock
from tests.emulating import post, stores
from tests.ledger_builders import LATER, NOW, admit, arrival, assert_ledger_holds, entry_in, open_ledger, outcome, send
from tests.ledger_builders import apply as apply_outcome
from tests.running import Site, wait_until

HOURS = timedelta(hours=3)
BACK = LATER - HOURS


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path) as opened:
        yield opened


def test_clock_of_another_is_gone_by_as_far_as_it_was_seen_to_differ():
    """An answer is old by as much as it took: what it leaves open stays as it was."""
    clock, asked = Clock(), boottime()
    real = datetime.now(UTC)
    assert abs(clock.utc() - real) < timedelta(seconds=1)

    clock.hear(real - timedelta(seconds=5), asked=asked - 10)
    assert abs(clock.utc() - real) < timedelta(seconds=1)

    clock.hear(real + HOURS, asked=asked)
    ahead = clock.utc() - datetime.now(UTC)
    assert abs(ahead - HOURS) < timedelta(seconds=1)
    clock.hear(real + HOURS - timedelta(seconds=5), asked=boottime() - 10)
    assert clock.utc() - datetime.now(UTC) == pytest.approx(ahead, abs=timedelta(milliseconds=50))


def claimed(ledger: Ledger, now: datetime) -> list[int]:
    with ledger.transaction() as tx:
        moves.wake(tx, now=now)
        batches = [moves.claim(tx, study.study_uid, now=now) for study in queries.studies_due(ledger, now=now)]
    return [part.delivery_id for batch in batches if batch is not None for part in batch.parts]


def test_wait_beyond_its_own_longest_is_over(ledger: Ledger):
    """Set back three hours, what waited for five seconds waited three hours: each kind of wait that paces."""
    quiet, backoff = admit(ledger, arrival(1, study=1), arrival(2, study=2), now=LATER)
    send(ledger, 2, state=State.PENDING, reason=Reason.SERVER_ERROR, charge_study=True, answered=True)
    (deferred,) = admit(ledger, arrival(3, study=3), now=LATER)
    send(ledger, 3, state=State.PENDING, reason=Reason.BEING_CREATED, wait=timedelta(minutes=2), answered=True)
    (checked,) = admit(ledger, arrival(4, study=4), now=LATER)
    send(ledger, 4, wait=timedelta(minutes=15))

    assert queries.studies_due(ledger, now=LATER) == []
    assert queries.next_study_at(ledger, now=BACK) == BACK
    assert queries.next_wake_at(ledger, now=BACK) == BACK
    assert queries.next_check_at(ledger, now=BACK) == BACK
    assert [row.delivery_id for row in queries.unproven(ledger, now=BACK)] == [checked]
    with ledger.transaction() as tx:
        moves.wake(tx, now=BACK)
    assert sorted(claimed(ledger, BACK)) == [quiet, backoff, deferred]


def test_wait_within_its_own_longest_stands(ledger: Ledger):
    admit(ledger, arrival(1))
    send(ledger, state=State.PENDING, reason=Reason.SERVER_ERROR, charge_study=True, answered=True)
    delivery_id = entry_in(ledger, State.STORED, study=2)
    apply_outcome(ledger, outcome(delivery_id, State.STORED, Reason.NOT_SHOWN, wait=timedelta(minutes=30)))

    assert queries.studies_due(ledger, now=LATER) == []
    assert queries.unproven(ledger, now=LATER) == []


def test_what_the_server_cannot_tell_for_long_is_not_hidden_by_a_clock_set_back(ledger: Ledger):
    """Its alarm ended when the clock was set back, and stood again three hours later."""
    delivery_id = entry_in(ledger, State.UNCERTAIN)
    told = replace(outcome(delivery_id, State.UNCERTAIN, Reason.NO_VERDICT), untold=True, noted=True, note="no copy")
    apply_outcome(ledger, told, now=LATER)
    grace = timedelta(minutes=15)

    assert queries.untold(ledger, longer_than=grace, now=LATER + grace / 2) == (0, "")
    assert queries.untold(ledger, longer_than=grace, now=LATER + grace) == (1, "no copy")
    assert queries.untold(ledger, longer_than=grace, now=BACK) == (1, "no copy")


def test_study_from_before_the_clock_was_set_back_goes_first():
    """It seemed to wait since a time to come, and every new study was served before it for three hours."""
    old = StudyQueue(study_uid="old", waiting=1, waiting_bytes=1, oldest_at=NOW, newest_at=NOW)
    new = StudyQueue(study_uid="new", waiting=1, waiting_bytes=1, oldest_at=NOW - HOURS, newest_at=NOW - HOURS)

    served = Turns().order([new, old], now=NOW - HOURS + timedelta(minutes=10))

    assert [study.study_uid for study in served] == ["old", "new"]


SHORT = Backoff(base=timedelta(milliseconds=100))


def now(utc: datetime, boot: float) -> Now:
    return Now(utc=utc, mono=boot)


def notice(ledger: Ledger, *instants: Now) -> WallClock:
    """One run of the daemon that ticks at these instants."""
    wall = WallClock(ledger)
    for instant in instants:
        wall.collect(instant)
        with ledger.transaction() as tx:
            wall.write(tx, instant)
    return wall


def test_jump_is_one_row_and_the_facts_keep_their_times(ledger: Ledger):
    (delivery_id,) = admit(ledger, arrival(1), now=LATER)

    wall = notice(
        ledger,
        now(LATER, 1000.0),
        now(LATER + timedelta(seconds=5), 1005.0),
        now(BACK + timedelta(seconds=10), 1010.0),
        now(BACK + timedelta(seconds=15), 1015.0),
    )

    (jump,) = queries.jumps(ledger)
    assert jump == wall.jump
    assert (jump.at, jump.by) == (BACK + timedelta(seconds=10), -HOURS)
    assert (jump.last_file_id, jump.last_attempt_id) == (delivery_id, 0)
    entry = queries.entry(ledger, delivery_id)
    assert entry is not None
    assert entry.admitted_at == LATER


def test_many_small_steps_are_noticed_as_well_as_a_large_one(ledger: Ledger):
    notice(ledger, *(now(LATER - timedelta(seconds=step), 1000.0) for step in range(20)))

    assert sum((jump.by for jump in queries.jumps(ledger)), timedelta(0)) <= -timedelta(seconds=18)


def test_clock_set_while_nobody_ran_is_noticed_at_the_next_start(ledger: Ledger):
    notice(ledger, now(LATER, 1000.0))

    notice(ledger, now(LATER + timedelta(minutes=1) + HOURS, 1060.0))

    assert [jump.by for jump in queries.jumps(ledger)] == [HOURS]


def test_clock_set_back_over_a_restart_of_the_machine_is_noticed_by_what_is_on_record(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    notice(ledger, now(LATER, 1000.0))
    admit(ledger, arrival(1), now=LATER)
    monkeypatch.setattr("ingestd.daemon.wallclock._boot_id", lambda: "another boot")

    notice(ledger, now(BACK, 20.0), now(BACK + timedelta(seconds=5), 25.0))

    assert [jump.by for jump in queries.jumps(ledger)] == [-HOURS]


def test_backoffs_and_checks_last_as_long_as_they_would_have(ledger: Ledger):
    """Half an hour back is within the longest backoff: the wait was half an hour longer."""
    notice(ledger, now(LATER, 1000.0))
    admit(ledger, arrival(1, study=1), arrival(2, study=2), arrival(3, study=3), now=NOW)
    send(ledger, 1, state=State.PENDING, reason=Reason.SERVER_ERROR, charge_study=True, answered=True)
    send(ledger, 2, state=State.PENDING, reason=Reason.BEING_CREATED, wait=timedelta(minutes=2), answered=True)
    send(ledger, 3, wait=timedelta(minutes=3))
    back = LATER - timedelta(minutes=30)

    notice(ledger, now(back, 1000.0))

    assert queries.next_wake_at(ledger, now=back) == back + timedelta(minutes=2)
    assert queries.next_check_at(ledger, now=back) == back + timedelta(minutes=3)
    assert queries.studies_due(ledger, now=back) == []
    assert [study.study_uid for study in queries.studies_due(ledger, now=back + timedelta(seconds=5))] == ["1.2.1"]


def test_study_whose_quiet_period_outlasts_its_backoff_is_due_as_it_would_have_been(ledger: Ledger):
    """Its due time was moved along with a backoff that it did not wait for, and was not what its numbers say."""
    with ledger.transaction() as tx:
        moves.admit(tx, [arrival(1)], now=LATER)
        moves.charge_study(tx, arrival(1).identity.study_uid, now=LATER, backoff=SHORT, jitter=0.0)
    assert_ledger_holds(ledger)

    notice(ledger, now(LATER, 1000.0), now(LATER + timedelta(days=1), 1000.0))

    assert_ledger_holds(ledger)


@pytest.mark.parametrize("by", [-HOURS, HOURS], ids=["back", "forward"])
def test_age_of_the_oldest_file_goes_on_over_a_jump(ledger: Ledger, by: timedelta):
    """Set back, it read 0; set forward, three hours too much."""
    notice(ledger, now(LATER, 1000.0))
    admit(ledger, arrival(1), now=LATER)
    admit(ledger, arrival(2), now=LATER + timedelta(minutes=10))
    set_at = LATER + timedelta(minutes=20) + by

    notice(ledger, now(set_at, 1000.0 + 20 * 60))
    admit(ledger, arrival(3), now=set_at + timedelta(minutes=1))

    assert queries.oldest_unconfirmed_at(ledger, at=1) == set_at - timedelta(minutes=20)


@pytest.fixture
def removals(ledger: Ledger, tmp_path: Path) -> Iterator[Callable[[WallClock], Retention]]:
    """What removes kept files after a day, going by this clock."""
    spool = Spool(tmp_path / "spool-host-a")
    spool.lock()
    readers = ReaderPool(processes=1, limits=ReaderLimits(), wake=lambda: None)
    yield lambda wall: Retention(
        ledger=ledger,
        spool=spool,
        reader_client=ReaderClient(readers, Alarms()),
        adopt=lambda _candidate: None,
        wall=wall,
        gate=Gate(),
        disk=SpoolDisk(spool=spool, gates=Gates(), alarms=Alarms(), low_water=0),
        retain=timedelta(days=1),
        looks=lambda: Looks(up_to=None, away=frozenset(), unasked=frozenset()),
    )
    readers.close()
    spool.unlock()


@pytest.mark.parametrize(
    "by, latest", [(-HOURS, timedelta(hours=27)), (timedelta(days=2), timedelta(hours=24))], ids=["back", "forward"]
)
def test_retain_begins_anew_across_a_jump(ledger: Ledger, removals, by: timedelta, latest: timedelta):
    """Set forward by two days, everything that was kept for one went at once."""
    notice(ledger, now(LATER, 1000.0))
    entry_in(ledger, State.CONFIRMED)
    set_at = LATER + timedelta(hours=1) + by
    wall = notice(ledger, now(set_at, 1000.0 + 3600))
    tidying = removals(wall)

    tidying.hurry()
    tidying.collect(now(set_at + timedelta(hours=23, minutes=59), 0.0))
    assert not tidying._due

    tidying.hurry()
    tidying.collect(now(set_at + latest, 0.0))
    assert tidying._due


def test_file_settled_in_a_time_to_come_is_not_kept_until_then(ledger: Ledger, removals):
    """The clock was a year ahead and was mended: the spool would fill for a year."""
    notice(ledger, now(LATER, 1000.0))
    entry_in(ledger, State.CONFIRMED)
    mended = LATER - timedelta(days=365)
    wall = notice(ledger, now(mended, 1000.0))
    tidying = removals(wall)

    tidying.hurry()
    tidying.collect(now(mended + timedelta(hours=25), 0.0))

    assert tidying._due


def test_duplicate_from_before_a_jump_is_let_go_by_what_is_seen_after_it_and_by_nothing_older(ledger: Ledger):
    """Dropped at noon; the clock goes back to nine; what the server shows at five past nine is newer all the same."""
    notice(ledger, now(LATER, 1000.0))
    holder = entry_in(ledger, State.CONFIRMED)
    duplicate, *_ = admit(ledger, arrival(1), now=LATER)
    notice(ledger, now(BACK, 1000.0))

    def is_settled_by(evidence_at: datetime) -> bool:
        seen = outcome(holder, State.CONFIRMED, evidence_at=evidence_at)
        apply_outcome(ledger, seen, now=BACK + timedelta(minutes=9))
        return duplicate in {row.file_id for row in queries.removable(ledger, before=BACK + timedelta(days=1))}

    assert not is_settled_by(BACK - timedelta(minutes=5))
    assert is_settled_by(BACK + timedelta(minutes=5))


def test_stuck_on_the_server_is_counted_anew_across_a_jump(ledger: Ledger):
    """A day forward, and a file that was just being created was FAILED as stuck for a day."""
    notice(ledger, now(LATER, 1000.0))
    admit(ledger, arrival(1), now=NOW)
    send(ledger, state=State.PENDING, reason=Reason.BEING_CREATED, wait=timedelta(minutes=2), answered=True)
    set_at = LATER + timedelta(days=1)
    notice(ledger, now(set_at, 1000.0))

    with ledger.transaction() as tx:
        moves.wake(tx, now=set_at + timedelta(minutes=2))
        batch = moves.claim(tx, "1.2.1", now=set_at + timedelta(minutes=2))

    assert batch is not None
    assert [part.being_created_since for part in batch.parts] == [set_at]


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def history_of(site: Site) -> list[Event]:
    return [event for story in site.stories() for event in story.history]


@sets_clock
@pytest.mark.slow
@pytest.mark.parametrize("by", [-HOURS, HOURS], ids=["back", "forward"])
def test_clock_that_is_set_while_files_wait_delays_nothing_and_is_told(tmp_path: Path, server: Emulator, by: timedelta):
    """Three hours back: what was PENDING, STORED or deferred waited three hours, and status said that it is 0 s old."""
    clock = MovingClock(tmp_path)
    site = Site(tmp_path / "site", server.url, batch={"quiet_period": "2s", "max_wait": "5s"})
    with site.start(env=clock.env) as daemon:
        server.faults.add("latency", seconds=1.0, method="POST", count=1)
        write_instance(site.drop / "first")
        site.wait_for({"SENDING": 1})
        write_instance(site.drop / "second")
        site.wait_for({"SENDING": 1, "PENDING": 1})

        clock.set(by)

        site.wait_for({"CONFIRMED": 2})
        write_instance(site.drop / "third")
        site.wait_for({"CONFIRMED": 3})
        told = json.loads(site.command("status", "--json", env=clock.env).stdout)
        shown = site.command("status", env=clock.env).stdout
        log = daemon.log.read_text()

    assert [round(jump["seconds"] / 60) for jump in told["clock_jumps"]] == [by.total_seconds() / 60]
    assert f"was set {'back' if by < timedelta(0) else 'forward'} by" in shown
    assert log.count('"clock.set"') == 1
    assert len(stores(server.requests)) == 3


@sets_clock
@pytest.mark.slow
def test_clock_set_forward_between_two_absences_shortens_nothing(tmp_path: Path, server: Emulator):
    """An hour forward, the wait between two absences was over at once, and an instance on its way was sent twice."""
    clock = MovingClock(tmp_path)
    site = Site(tmp_path / "site", server.url, reconcile={"absence_wait": "5s", "interval": "200ms"})
    server.faults.add("drop_after_body", method="POST", count=1)
    with site.start(env=clock.env):
        write_instance(site.drop / "image")
        wait_until(lambda: any(event.reason == Reason.ABSENT for event in history_of(site)), what="the first absence")
        began = time.monotonic()

        clock.set(timedelta(hours=1))

        site.wait_for({"CONFIRMED": 1})
        assert time.monotonic() - began > 4.5


@sets_clock
@pytest.mark.slow
def test_two_absences_are_seen_by_one_process(tmp_path: Path, server: Emulator):
    """What another process saw, by a clock that nobody vouches for, is no first absence of ours."""
    clock = MovingClock(tmp_path)
    site = Site(tmp_path / "site", server.url, reconcile={"absence_wait": "4s", "interval": "200ms"})
    server.faults.add("drop_after_body", method="POST", count=1)
    with site.start(env=clock.env) as daemon:
        write_instance(site.drop / "image")
        wait_until(lambda: any(event.reason == Reason.ABSENT for event in history_of(site)), what="the first absence")
        daemon.kill()
    began = time.monotonic()
    with site.start(env=clock.env):
        site.wait_for({"CONFIRMED": 1})

    assert time.monotonic() - began > 3.5


@sets_clock
@pytest.mark.slow
@pytest.mark.parametrize("by", [-HOURS, HOURS], ids=["back", "forward"])
def test_single_run_tells_of_what_came_to_need_a_person_in_it_and_of_nothing_else(
    tmp_path: Path, server: Emulator, by: timedelta
):
    """By the time of day, a clock set back hid the files of this run and told those of the last one again."""
    clock = MovingClock(tmp_path)
    site = Site(tmp_path / "site", server.url)
    content = write_instance(tmp_path / "image").read_bytes()
    post(server.url, content[:-1] + b"\7")
    (site.drop / "image").write_bytes(content)
    server.faults.add("latency", seconds=2.0, method="POST", count=1)
    with site.start("--once", "--timeout", "30s", wait=False, env=clock.env) as once:
        wait_until(lambda: server.faults.listed()[0]["fired"], what="the post")
        clock.set(by)
        assert once.wait() == ExitCode.NEEDS_PERSON

    assert site.states() == {"CONFLICT": 1}
    clock.set(-HOURS)
    again = site.command("run", "--once", "--timeout", "30s", env=clock.env)
    assert again.returncode == ExitCode.DONE, again.stdout
