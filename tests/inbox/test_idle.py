"""What inboxes in which nothing happens cost, counted on a clock that only moves when told."""

import threading
import time
from pathlib import Path

import pytest

from ingestd.clocks import boottime
from ingestd.inbox import Watch
from ingestd.inbox.folder_health import ARM_WAIT
from ingestd.inbox.scan_schedule import RESTING_MOST
from ingestd.inbox.watched_folder import LOOK_EVERY
from tests.inboxing import Desk, policy
from tests.running import wait_until

HOUR = 3_600.0


@pytest.fixture
def desk(tmp_path, request):
    """One inbox beside another whose scan takes a second; its first scan is over."""
    with Desk(tmp_path, policy(tmp_path, watch=getattr(request, "param", Watch.EVENTS))) as desk:
        schedule_of(desk)._seconds["elsewhere"] = 1.0
        desk.inboxes.open()
        desk.look_until(lambda _: is_at_rest(desk))
        yield desk


def is_at_rest(desk):
    """Whether its first scan is over, and the one behind an observer that was armed after that."""
    health, scans = desk.inboxes._folders["a"].health, schedule_of(desk)
    return health.hears_all == health.wants_events and desk.report().scans and not (scans.is_wanted or scans.walk)


def schedule_of(desk):
    return desk.inboxes._folders["a"].scans


def hints_of(desk):
    return desk.inboxes._folders["a"].health.watcher.hints


def rest(desk, seconds):
    """Let time pass as the daemon does, from one look to the next; say how many scans ended meanwhile."""
    before, end = desk.report().scans, desk.now + seconds
    while desk.now < end:
        desk.pass_time(max(0.0, desk.look().next_at - desk.now))
    return desk.report().scans - before


def test_scans_of_all_inboxes_together_take_a_fifth_of_a_percent_where_events_come(desk):
    assert rest(desk, HOUR) in range(4, 10)  # 500 s after each


@pytest.mark.parametrize("desk", [Watch.POLL], indirect=True)
def test_without_events_an_inbox_is_scanned_as_often_as_ever(desk):
    assert rest(desk, HOUR) >= 115


def test_folder_that_cannot_be_watched_is_scanned_as_often_as_ever(desk):
    assert rest(desk, 60) == 0
    hints_of(desk).unwatched = 1

    assert rest(desk, 600) >= 19  # until it is tried again


def test_file_that_no_event_told_of_is_found_within_the_longest_rest_and_events_are_trusted_no_more(desk, tmp_path):
    schedule_of(desk)._seconds["elsewhere"] = 1e6
    desk.scan_again()
    written = Path(tmp_path) / "lost.dcm"
    written.write_bytes(b"x")
    written.rename(tmp_path / "drop-a" / "lost.dcm")
    wait_until(lambda: not hints_of(desk).is_empty, what="the event")
    time.sleep(0.2)  # one rename may be told in two of them
    hints_of(desk).take()

    assert rest(desk, RESTING_MOST - 60) == 0
    assert rest(desk, 120) >= 1
    assert desk.report().found_by_scan == 1
    assert rest(desk, HOUR) >= 115


def test_many_inboxes_are_scanned_in_the_turns_that_look_at_their_folders(tmp_path):
    names = [f"i{number}" for number in range(10)]
    with Desk(tmp_path, *(policy(tmp_path, name, watch=Watch.POLL) for name in names)) as desk:
        desk.look_until(lambda _: all(report.scans for report in desk.inboxes.reports()))
        for number, folder in enumerate(desk.inboxes._folders.values()):
            folder.scans._next_at += 2.7 * number  # as it comes of files that were found in one and not in another
        before, end, looks = [report.scans for report in desk.inboxes.reports()], desk.now + 600, 0
        while desk.now < end:
            desk.pass_time(max(0.0, desk.look().next_at - desk.now))
            looks += 1
        scans = [report.scans - then for report, then in zip(desk.inboxes.reports(), before, strict=True)]

    assert looks < 1.5 * 600 / LOOK_EVERY
    assert min(scans) >= 18  # every 30 s, as ever
    assert max(scans) <= 21


def test_inboxes_that_take_long_to_arm_are_waited_for_together(tmp_path):
    with Desk(tmp_path, *(policy(tmp_path, f"i{number}", watch=Watch.EVENTS) for number in range(4))) as desk:
        may_end = threading.Event()
        former = threading.Thread(target=may_end.wait)
        former.start()
        try:
            for folder in desk.inboxes._folders.values():
                folder.health._disarming = former  # an earlier observer, whose end each waits for

            began = boottime()
            desk.inboxes.open()

            assert boottime() - began < 2 * ARM_WAIT
        finally:
            may_end.set()
            former.join()
        desk.look_until(lambda _: all(report.scans for report in desk.inboxes.reports()))
