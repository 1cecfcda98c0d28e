"""A slice of the torture program: fifty kills, at least five in each phase (``python -m tests.torture`` does more)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.clocking import requires_compiler
from tests.emulating import EmulatorProcess, delete, file_of, post
from tests.running import Site, wait_until
from tests.torture.feeding import Feeder, Kind, Written
from tests.torture.fleet import FleetCampaign, Strike
from tests.torture.killing import LEAST_PER_PHASE, SETTINGS, Campaign, Phase
from tests.torture.watching import Watch, invariants_of, ledger_copy

KILLS = 50


@pytest.mark.slow
def test_count_finds_nothing_where_all_went_well_and_then_every_promise_that_is_broken(tmp_path: Path):
    """The count decides over the program, so it is held itself: whatever is broken behind its back, it says so."""
    with EmulatorProcess(tmp_path / "server") as server:
        site = Site(tmp_path / "site", server.url, **SETTINGS)
        written = feed(site, files=30)

        def count(files: list[Written]) -> str:
            with ledger_copy(site) as ledger:
                return "\n".join(invariants_of(site, server, files).check_end(ledger))

        first = next(file for file in written if file.kind is Kind.NEW)
        content = file_of(server.url, first.identity)
        assert content is not None
        assert count(written) == ""

        lost = replace(first, name="LOST", sop_uid="1.2.3")
        assert "LOST was dropped once and has 0 rows" in count([*written, lost])
        assert "rows [1]" in count([file for file in written if file.name != written[-1].name])

        delete(server.url, first.identity)
        assert "the server has no such instance" in count(written)
        post(server.url, content[:-1] + bytes([content[-1] ^ 1]))
        assert "the server has another content" in count(written)
        assert "posted twice in one attempt" in count(written)

        spooled = next(iter(Watch(site).spool_files()))
        (site.spool / spooled).unlink()
        assert "its file is gone" in count(written)


def feed(site: Site, *, files: int) -> list[Written]:
    """Have the daemon take so many files to their ends, and return what was written."""
    feeder = Feeder(site.drop, seed=7, pace_seconds=0.05)
    with site.start() as daemon:
        feeder.start()
        wait_until(lambda: len(feeder.written) > files, what="the files")
        written = feeder.stop()
        wait_until(Watch(site).is_at_rest, what="rest", every=0.1)
        daemon.terminate()
    return written


@pytest.mark.slow
def test_killed_fifty_times_nothing_is_lost_nothing_confirmed_falsely_nothing_sent_again_unexplained(tmp_path: Path):
    report = Campaign(tmp_path, kills=KILLS, seed=1451).run()

    print(report)
    assert report.findings.violations == []
    assert report.kills >= KILLS
    assert {phase: count for phase, count in report.by_phase.items() if count < LEAST_PER_PHASE} == {}
    assert set(report.by_phase) == set(Phase)


@requires_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")  # skipped where there is no PostgreSQL; the campaign has one of its own
def test_workers_on_one_ledger_that_are_struck_lose_nothing_and_send_nothing_again_unexplained(tmp_path: Path):
    report = FleetCampaign(tmp_path, workers=2, strikes=12, seed=1451).run()

    print(report)
    assert report.violations == []
    assert set(report.strikes) == set(Strike)
