"""A fault that repeats is written when it is new, then once a backoff step: the log of a fault must not be a fault."""

from __future__ import annotations

from itertools import pairwise

import structlog

from ingestd.logs.repeats import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, Repeats


class Log:
    """Repeats on a clock that moves when told."""

    def __init__(self):
        self.now = 0.0
        self._repeats = Repeats(lambda: self.now)

    def write(self, event="inbox.not_taken", level="error", **keys):
        """Whether it was written, and how many were held back before it."""
        try:
            return self._repeats(None, level, {"event": event, "level": level, **keys}).get("repeated", 0)
        except structlog.DropEvent:
            return None


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
        {"note": "no space left on device", "entry_id": 1},
        {"note": "no space left on device", "entry_id": 2},
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


def test_facts_and_changes_are_all_written():
    log = Log()
    assert [log.write(event="instance.confirmed", level="info", instances=1) for _ in range(3)] == [0, 0, 0]
    assert [log.write(event="alarm.raised", kind="disk_low", alarm="low") for _ in range(3)] == [0, 0, 0]


def test_what_is_remembered_is_bounded():
    log = Log()
    for number in range(6_000):
        log.write(entry_id=number)

    assert len(log._repeats._faults) <= 4096
    assert log.write(entry_id=5_999) is None
    assert LONGEST_WAIT_SECONDS == 600
