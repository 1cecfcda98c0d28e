"""A source on another filesystem is copied, and goes only after its row is committed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.config import load
from ingestd.daemon import once_policies, run_once
from ingestd.daemon.daemon import Daemon
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, queries
from ingestd.lifecycle import State
from tests.builders import write_instance
from tests.inboxing import scan_now
from tests.ledgers import url_of
from tests.running import QUICK_INBOX, Site, wait_until


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another filesystem than ``tmp_path``."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second filesystem at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory, prefix="ingestd-test-"))
    yield folder
    shutil.rmtree(folder)


def test_copied_source_is_removed_and_not_taken_twice(tmp_path: Path, elsewhere: Path) -> None:
    for number in range(3):
        write_instance(elsewhere / f"image{number}", sop_uid=f"1.2.3.{number + 1}")
    with Emulator() as server:
        config_file = tmp_path / "config.yaml"
        config_file.write_text(
            f"inboxes: [{{path: {elsewhere}, settle: 50ms}}]\n"
            "spool: {path: spool, low_water: 1MB}\n"
            "batch: {quiet_period: 50ms}\n"
            f'destination: {{url: "{server.url}"}}\n'
            "reconcile: {interval: 100ms, lag: 1s}\n"
            f"ledger: {url_of(tmp_path)}\n"
            "reader: {processes: 1}\n"
        )
        config = load(config_file)

        first = run_once(config, timeout=timedelta(seconds=30), policies=once_policies(config))
        second = run_once(config, timeout=timedelta(seconds=30), policies=once_policies(config))

    assert first.done
    assert first.taken_in == 3
    assert second.done
    assert second.taken_in == 0
    assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == []
    with Ledger.open(config.ledger, read_only=True) as ledger:
        assert {state: count for state, count in queries.counts(ledger).items() if count} == {State.CONFIRMED: 3}


@pytest.mark.slow
def test_folders_that_we_emptied_are_removed_and_others_stay(tmp_path: Path) -> None:
    with Emulator() as server:
        site = Site(tmp_path, server.url)
        config = load(site.config_file)
        policies = tuple(replace(policy, emptied_after=timedelta(0)) for policy in once_policies(config))
        write_instance(site.drop / "study" / "series" / "image")
        (site.drop / "never used").mkdir()
        (site.drop / "study" / "never used").mkdir()
        (site.drop / "study 2" / "series").mkdir(parents=True)
        write_instance(site.drop / "study 2" / "series" / "image")

        assert run_once(config, timeout=timedelta(seconds=30), policies=policies).done
        daemon = Daemon(config, policies=policies)

        def is_tidy() -> bool:
            scan_now(daemon.workers.inboxes)
            daemon.loop.tick()
            return not (site.drop / "study 2").exists() and not (site.drop / "study" / "series").exists()

        try:
            daemon.start()
            wait_until(is_tidy, what="the removal of what was emptied")
        finally:
            daemon.close()

    assert sorted(path.name for path in site.drop.rglob("*")) == ["never used", "never used", "study"]


@pytest.mark.slow
def test_a_squatted_name_of_ours_is_told_while_removals_go_on(tmp_path: Path, elsewhere: Path) -> None:
    with Emulator() as server:
        site = Site(tmp_path / "site", server.url, inboxes=[{"path": str(elsewhere), **QUICK_INBOX}])
        (elsewhere / ".ingestd-removing").write_bytes(b"")
        write_instance(elsewhere / "image")
        with site.start():
            site.wait_for({"CONFIRMED": 1})
            wait_until(lambda: not (elsewhere / "image").exists(), what="the removal of the source")
            wait_until(lambda: site.command("status", "--exit-code").returncode == 1, what="the alarm", every=0.5)
            told = site.command("status").stdout
            (elsewhere / ".ingestd-removing").unlink()
            wait_until(lambda: site.command("status", "--exit-code").returncode == 0, what="its end")

    assert "our own folder" in told
    assert ".ingestd-removing" in told
