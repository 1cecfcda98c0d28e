"""Who works ends, one way or another, and who stands by goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.builders import fresh_uid
from tests.daemon.test_window import OPEN, window
from tests.fleet.gateways import GRACE, LEASE, Gateways
from tests.running import wait_until


def test_killed_worker_of_this_boot_is_followed_at_once(both: Gateways):
    a, b = both.start("a"), both.start("b")
    study = fresh_uid(1)
    both.feed(2, study=study)
    both.wait_confirmed()

    a.kill()

    assert both.wait_held_by(b) < LEASE
    both.feed(2, study=study)
    both.wait_confirmed()
    assert both.check() == []


@pytest.mark.slow
def test_killed_worker_of_another_machine_is_followed_after_its_lease(both: Gateways):
    a, b = both.start("a"), both.start("b")
    study = fresh_uid(1)
    both.feed(1, study=study)
    both.wait_confirmed()
    both.put_elsewhere()

    a.kill()
    killed_at = time.monotonic()
    (late,) = both.feed(1, study=study)

    wait_until(lambda: late.sop_uid in both.posted(), what="the next post", within_seconds=LEASE + GRACE)
    assert time.monotonic() - killed_at >= LEASE * 5 / 6 - 0.1  # a beat may have been on its way
    both.wait_confirmed()
    assert both.check() == []
    assert b.is_running()


@pytest.mark.slow
def test_study_that_was_being_sent_goes_on_though_what_became_of_that_is_not_known_yet(both: Gateways):
    both.server.faults.add("bandwidth", method="POST", bytes=300_000, count=1)
    a = both.start("a")
    both.put_elsewhere()
    study = fresh_uid(1)
    (cut,) = both.feed(1, study=study, rows=1800)
    both.wait_for(SENDING=1)
    both.start("b")

    a.kill()
    (late,) = both.feed(1, study=study)

    wait_until(lambda: late.sop_uid in both.posted(), what="the next post", within_seconds=LEASE + GRACE)
    assert cut.sop_uid not in both.posted()
    both.wait_confirmed()
    assert both.check() == []
    assert set(both.posted().values()) == {1}


def test_worker_that_is_told_to_end_is_followed_at_once(both: Gateways):
    a, b = both.start("a"), both.start("b")
    both.put_elsewhere()

    began_at = time.monotonic()
    assert a.terminate() == 0

    both.wait_held_by(b)
    assert time.monotonic() - began_at < 2
    both.feed()
    both.wait_confirmed()
    assert both.check() == []


@pytest.mark.slow
def test_post_that_a_worker_let_go_of_when_it_was_told_to_end_is_seen_to_by_another(both: Gateways):
    """It stayed in sending, and nobody was told, until any worker was started anew."""
    a = both.start("a", shutdown_grace="0s")
    both.feed()
    both.wait_confirmed()
    both.server.faults.add("bandwidth", method="POST", bytes=300_000, count=1)  # it would take seven seconds
    both.feed(rows=1000)
    wait_until(lambda: both.states().get("SENDING"), what="a post")
    both.start("b")

    assert a.terminate() == 0

    assert '"sender.given_up"' in a.tail()
    both.wait_for(UNCERTAIN=1, CONFIRMED=1)
    both.sql("UPDATE delivery SET next_check_at = 1 WHERE state = 'UNCERTAIN'")  # else in a minute
    both.wait_confirmed()
    assert both.check() == []


def test_post_that_a_worker_lets_go_of_where_nobody_misses_it_is_settled_by_itself(both: Gateways):
    """Another that had not looked meanwhile never knew of it: the file stayed in sending, and nobody was told."""
    a = both.start("a", shutdown_grace="0s")
    both.server.faults.add("bandwidth", method="POST", bytes=300_000, count=1)  # it would take seven seconds
    both.feed(rows=1000)
    wait_until(lambda: both.states().get("SENDING"), what="a post")

    assert a.terminate() == 0

    assert '"sender.given_up"' in a.tail()
    assert both.states() == {"UNCERTAIN": 1}


def test_reload_that_would_differ_from_the_others_is_refused_by_the_names_of_its_keys(both: Gateways):
    a = both.start("a")
    site = both.site("b", reconcile={"verify": "presence"})
    (site.folder.parent / "a" / "config.yaml").write_text(site.config_file.read_text())

    a.process.send_signal(signal.SIGHUP)

    wait_until(lambda: '"event": "config.refused"' in a.tail(), what="the refusal")
    (line,) = (json.loads(each) for each in a.tail().splitlines() if "config.refused" in each)
    assert (line["error"], line["notes"]) == ("LedgerDiffers", ["reconcile"])


def test_single_run_which_waits_for_no_window_has_the_configuration_of_the_others(both: Gateways):
    """Its own was without the windows: it was refused beside that of the others, or they were by its word."""
    now = window(**OPEN)
    both.feed()
    first = both.site("a", destination=now).run_once()
    a = both.start("a", destination=now)
    both.feed()
    both.wait_confirmed()
    assert a.terminate() == 0
    again = both.site("b", destination=now).run_once()
    assert [first.returncode, again.returncode] == [0, 0], first.stderr + again.stderr


def test_what_one_had_is_had_by_exactly_one_of_those_that_are_left(both: Gateways):
    a, b, c = both.start("a"), both.start("b"), both.start("c")
    both.put_elsewhere()
    before = both.holder()

    a.kill()

    wait_until(lambda: both.holder() not in {0, before}, what="the take-over", within_seconds=LEASE + GRACE)
    after = both.holder()
    both.feed(3)
    both.wait_confirmed()
    assert both.holder() == after
    assert b.is_running()
    assert c.is_running()
    assert len(both.sql("SELECT name FROM claim")) == 2, "the drop folder, and the upkeep"
    assert both.check() == []
    for daemon in (b, c):
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
    assert both.sql("SELECT id FROM worker WHERE id > 0 AND ended_at IS NULL") == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [("run", "--once"), ("send",)], ids=" ".join)
def test_single_run_ends_one_that_was_cut_off_on_another_machine(
    both: Gateways, tmp_path: Path, command: tuple[str, ...]
):
    """It was refused for ever: where nobody stands by for its spool, nobody ended that one."""
    (tmp_path / "disc").mkdir()
    both.feed(drop=tmp_path / "disc")
    words = [*command, str(tmp_path / "disc")] if command == ("send",) else command
    site = both.site("a")
    assert site.command(*words).returncode == 0
    both.put_elsewhere()
    both.sql("UPDATE worker SET ended_at = NULL, wrote_at = clock_timestamp() WHERE id > 0")

    at_once = site.command(*words)
    assert (at_once.returncode, "another ingestd works on this spool" in at_once.stderr) == (75, True)

    silent = "SELECT clock_timestamp() - wrote_at > %s * interval '1 second' FROM worker WHERE id = 1"
    wait_until(lambda: both.sql(silent, LEASE) == [(True,)], what="that it seems to be silent")
    began_at = time.monotonic()
    assert site.command(*words).returncode == 0
    assert time.monotonic() - began_at > LEASE
    assert both.sql("SELECT why_ended FROM worker WHERE id = 1") == [("silent",)]
