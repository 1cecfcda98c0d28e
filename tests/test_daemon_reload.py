"""One folder's trouble is that folder's alarm: at the start, and when the configuration is read again."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.running import QUICK_INBOX, Site, wait_until
from tests.test_daemon_promise import image
from tests.torture.failing import Fault, Injector, NoCompilerError, compile_library


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.fixture
def failing_share(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder that no system call of the daemon can look at (a stale NFS handle), and the environment that does it."""
    share = tmp_path / "share"
    share.mkdir()
    try:
        library = compile_library(tmp_path)
    except NoCompilerError as error:
        if os.environ.get("INGESTD_REQUIRE_PEERS") == "1":
            raise
        pytest.skip(str(error))
    fault = Fault(call="stat", error=errno.ESTALE, place="drop", nth=1, times=0, seconds=600, process="any")
    return share, Injector(library, tmp_path / "rule", fault, str(share)).environment


def test_folder_that_cannot_be_looked_at_keeps_no_other_down(
    tmp_path: Path, server: Emulator, failing_share: tuple[Path, dict[str, str]]
) -> None:
    """``run`` ended with 2, while ``check --for-start`` said that it can start."""
    share, env = failing_share
    site = Site(tmp_path / "site", server.url)
    site.configure(inboxes=[{"path": "./drop", **QUICK_INBOX}, {"path": str(share), **QUICK_INBOX}])
    with site.start(env=env) as daemon:
        (site.drop / "image").write_bytes(image())
        site.wait_for({"CONFIRMED": 1})
        wait_until(lambda: "the folder cannot be listed" in site.command("status").stdout, what="the alarm")
        assert daemon.is_running()


def test_reload_with_a_folder_that_cannot_be_looked_at_goes_on(
    tmp_path: Path, server: Emulator, failing_share: tuple[Path, dict[str, str]]
) -> None:
    share, env = failing_share
    site = Site(tmp_path / "site", server.url)
    with site.start(env=env) as daemon:
        site.configure(inboxes=[{"path": "./drop", **QUICK_INBOX}, {"path": str(share), **QUICK_INBOX}])
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: daemon.listen().count("READY=1") == 2, what="READY again")
        (site.drop / "image").write_bytes(image())
        site.wait_for({"CONFIRMED": 1})
        assert daemon.is_running()


def test_reload_that_cannot_be_built_closes_nothing(tmp_path: Path, server: Emulator) -> None:
    """The old rooms were closed before the new ones stood, so that the daemon ended."""
    site = Site(tmp_path / "site", server.url)
    with site.start() as daemon:
        other = site.folder / "other"
        other.write_text("a file, where a folder was configured")
        site.configure(inboxes=[{"path": "./drop", **QUICK_INBOX}, {"path": "./other", **QUICK_INBOX}])
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: daemon.listen().count("READY=1") == 2, what="READY again")
        (site.drop / "image").write_bytes(image())
        site.wait_for({"CONFIRMED": 1})
        assert daemon.is_running()
        assert "config.refused" in daemon.tail()


def test_reload_takes_new_settings_over_the_same_spool_and_ledger(tmp_path: Path, server: Emulator) -> None:
    site = Site(tmp_path / "site", server.url, spool={"path": "./spool", "low_water": "10MB", "retain": "24h"})
    with site.start() as daemon:
        (site.drop / "image").write_bytes(image())
        site.wait_for({"CONFIRMED": 1})
        site.configure(spool={"path": "./spool", "low_water": "10MB", "retain": "0s"})
        for ready in (2, 3):
            os.kill(daemon.pid, signal.SIGHUP)
            wait_until(lambda: daemon.listen().count("READY=1") == ready, what="READY again")  # noqa: B023
        wait_until(lambda: not list(site.spool.glob("files/*/*")), what="the removal")
        assert daemon.is_running()
    assert site.run_once().returncode == 0
