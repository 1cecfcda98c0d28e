"""A fault that repeats is written when it is new, then once a backoff step: the log of a fault must not be a fault."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import structlog

from ingestd.config import load
from ingestd.emulator import Emulator
from ingestd.logs.repeats import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, Repeats
from tests.builders import write_instance
from tests.running import Site


class Log:
    """Repeats on a clock that moves when told."""

    def __init__(self):
        self.now = 0.0
        self.told = []
        self._repeats = Repeats(self.told.append, lambda: self.now)

    def write(self, event="inbox.not_taken", level="error", **keys):
        """Whether it was written, and how many were held back before it."""
        try:
            return self._repeats(None, level, {"event": event, "level": level, **keys}).get("repeated", 0)
        except structlog.DropEvent:
            return None

    def catch_up(self):
        self._repeats.catch_up()

    def finish(self):
        self._repeats.finish()


def test_a_fault_is_written_at_once_and_then_once_a_backoff_step_with_how_often_it_came():
    log = Log()
    written = []
    for second in range(3600):
        log.now = float(second)
        for _ in range(40):
            repeated = log.write(note="no space left on device", files=second)
            if repeated is not None:
                written.append((second, repeated))

    assert written[:3] == [(0, 0), (5, 199), (15, 399)]
    assert len(written) <= 13
    assert max(after - before for (before, _), (after, _) in pairwise(written)) == 600


def test_another_text_another_file_and_another_answer_are_other_faults():
    log = Log()
    faults = [
        {"note": "no space left on device"},
        {"note": "permission denied"},
        {"note": "no space left on device", "inbox": "drop-00000000"},
        {"note": "no space left on device", "delivery_id": 1},
        {"note": "no space left on device", "delivery_id": 2},
        {"note": "no space left on device", "errno": 28},
    ]
    assert [log.write(**fault) for fault in faults] == [0] * 6
    assert [log.write(**fault) for fault in faults] == [None] * 6
    assert log.write(event="spool.not_written", note="no space left on device") == 0


def test_what_only_counts_makes_no_other_fault():
    log = Log()
    assert log.write(note="x", files=1, bytes=2, seconds=0.5) == 0
    assert log.write(note="x", files=2, bytes=3, seconds=0.7) is None


def test_a_fault_that_stayed_away_is_new_when_it_comes_back():
    log = Log()
    log.write(note="x")
    log.write(note="x")
    log.now = 3 * FIRST_WAIT_SECONDS

    assert log.write(note="x") == 1
    log.now += FIRST_WAIT_SECONDS - 0.1
    assert log.write(note="x") is None


def test_how_often_a_fault_came_is_told_also_when_it_does_not_come_again():
    """Five lines, and 180 more that nobody ever heard of, because the disk was mended."""
    log = Log()
    for second in range(30):
        log.now = float(second)
        log.write(note="no space left on device", files=second)
    log.write(event="spool.not_written", note="once")
    log.catch_up()
    assert log.told == []

    log.now = 36.0
    log.write(event="inbox.admitted", level="info")
    (told,) = log.told
    assert (told["event"], told["level"], told["note"]) == ("inbox.not_taken", "error", "no space left on device")
    assert (told["files"], told["age_seconds"]) == (29, 7), "the last of those that were held back, and how long ago"
    assert told["repeated"] == 13, "those beside it since the line at 15 s"

    log.now = 1e6
    log.catch_up()
    assert len(log.told) == 1, "told once"


def test_every_fault_is_in_a_line_or_in_a_count_whatever_becomes_of_it():
    """At the end, when another takes its place, when it stays away and comes back."""
    for seconds in (1, 4, 20, 21, 22, 700, 701, 5_000):
        log = Log()
        came = lines = counted = 0
        for second in range(seconds):
            log.now += 1.0 if second % 50 else 17.0
            for note in ("x", f"y{second % 7}", f"z{second}"):
                came += 1
                repeated = log.write(note=note)
                lines += repeated is not None
                counted += repeated or 0
        log.finish()
        lines += len(log.told)
        counted += sum(line.get("repeated", 0) for line in log.told)

        assert lines + counted == came, seconds
        log.finish()
        assert lines + counted == came


@pytest.mark.slow
def test_a_daemon_that_ends_says_how_often_a_fault_came(tmp_path):
    """What was held back until then was never said."""
    with Emulator(tmp_path / "server") as server:
        site = Site(tmp_path / "site", server.url)
        assert site.run_once().returncode == 0
        (site.spool / "files" / load(site.config_file).inboxes[0].spool_name).write_bytes(b"in the way")
        write_instance(site.drop / "image")
        said = site.command("run", "--once", "--timeout", "3s").stderr
    lines = [json.loads(line) for line in said.splitlines() if "inbox.not_taken" in line]
    assert ["age_seconds" in line for line in lines] == [False, True], said


def test_fault_that_is_forgotten_for_newer_ones_is_told_first():
    log = Log()
    log.write(note="old")
    log.write(note="old")
    for number in range(5_000):
        log.write(delivery_id=number)

    assert [(line["note"], line.get("repeated")) for line in log.told] == [("old", None)]


def test_facts_and_changes_are_all_written():
    log = Log()
    assert [log.write(event="instance.confirmed", level="info", instances=1) for _ in range(3)] == [0, 0, 0]
    assert [log.write(event="alarm.raised", kind="disk_low", alarm="low") for _ in range(3)] == [0, 0, 0]


def test_what_is_remembered_is_bounded():
    log = Log()
    for number in range(6_000):
        log.write(delivery_id=number)

    assert len(log._repeats._faults) <= 4096
    assert log.write(delivery_id=5_999) is None
    assert LONGEST_WAIT_SECONDS == 600
