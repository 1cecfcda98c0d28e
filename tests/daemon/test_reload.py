"""One folder's trouble is that folder's alarm: at the start, and when the configuration is read again."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import pytest

from ingestd.clocks import Now
from ingestd.config import load
from ingestd.daemon import service
from ingestd.daemon.daemon import Daemon
from ingestd.daemon.loop import Wake
from ingestd.daemon.notify import Notifier
from ingestd.daemon.service import _built, _has_taken_over, _RefusedError, _Service
from ingestd.daemon.signals import Asked, Signals
from ingestd.daemon.stage import Stage
from ingestd.emulator import Emulator
from ingestd.ledger import LedgerUnread, queries
from ingestd.threads import NoThread
from tests.daemon.test_promise import configure, image, running, states, turn
from tests.ledgers import by_lock_only, kept_out, sqlite_only, wait_little
from tests.running import QUICK_INBOX, Site, wait_until
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


@pytest.mark.slow
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
        wait_until(lambda: "config_refused" in site.stopped(), what="the word of it in status")
        other.unlink()
        other.mkdir()
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: not site.stopped(), what="the end of it")


@sqlite_only
def test_reload_while_the_ledger_is_locked_ends_nothing(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rooms that were being built read the ledger, and what it raised ended the daemon."""
    wait_little(monkeypatch)
    config = configure(tmp_path, server)
    with running(config) as daemon:
        with kept_out(config.ledger), pytest.raises(_RefusedError, match="is in use by another process"):
            _built(config, daemon)
        following = _built(config, daemon)

        assert following is not None
        following.close(hand_over=True)


def test_hand_over_waits_for_a_ledger_that_is_locked(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new limits were the first that it was to write, and the daemon ended instead of waiting as it does else."""
    wait_little(monkeypatch)
    config = configure(tmp_path, server)
    with running(config) as daemon, ExitStack() as held:
        following = Daemon(config, before=daemon)
        let_in = held.enter_context(kept_out(config.ledger))
        daemon.stop(config.shutdown_grace, hand_over=True)
        waits: list[float] = []

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            let_in()
            return False

        monkeypatch.setattr(following.wake, "wait", wait)
        notifier = Mock()
        try:
            assert _has_taken_over(following, Signals(following.wake), notifier)
            assert len(waits) == 1
            assert notifier.alive.call_count == 1
            following.loop.tick()
        finally:
            following.close()


def test_hand_over_to_a_ledger_that_stays_locked_ends_when_it_is_told_to(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_little(monkeypatch)
    config = configure(tmp_path, server)
    with running(config) as daemon, ExitStack() as held:
        following = Daemon(config, before=daemon)
        let_in = held.enter_context(kept_out(config.ledger))
        daemon.stop(config.shutdown_grace, hand_over=True)
        signals = Signals(following.wake)
        monkeypatch.setattr(following.wake, "wait", lambda _: setattr(signals, "asked", Asked.STOP))

        assert not _has_taken_over(following, signals, Mock())
        let_in()
        Daemon(config).close()


def test_start_whose_reading_of_the_ledger_failed_is_begun_anew(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left its workers running, and its spool locked: the next try found the spool in use."""
    config = configure(tmp_path, server)
    with monkeypatch.context() as failing:
        failing.setattr(queries, "clock", Mock(side_effect=LedgerUnread))
        with pytest.raises(LedgerUnread):
            Daemon(config)

    Daemon(config).close()


def test_reload_asked_for_before_the_daemon_stands_is_kept(tmp_path: Path, server: Emulator) -> None:
    """It ended the process, or would have left it with what was read before the change."""
    site = Site(tmp_path, server.url)
    with site.start(wait=False, env={}) as daemon:  # what is forked has read more than the configuration already
        maps = Path(f"/proc/{daemon.pid}/maps")
        wait_until(lambda: "pydantic_core" in maps.read_text(), what="the reading of the configuration", every=0.002)
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_ready()

        wait_until(lambda: "config.reread" in daemon.tail(), what="the reload")


@pytest.mark.slow
def test_reloads_in_a_row_keep_no_file_from_being_taken_in(tmp_path: Path, server: Emulator) -> None:
    """Each began the file's ``settle`` anew, and the wait for the rest of a short one."""
    site = Site(tmp_path, server.url)
    site.configure(inboxes=[{"path": "./drop", "settle": "3s", "incomplete_after": "6s"}])
    (site.drop / "image").write_bytes(image())
    (site.drop / "short").write_bytes(image()[:-40].replace(b"1.2.3.4.5", b"1.2.3.4.6"))
    with site.start() as daemon:
        reloaded_at = [time.monotonic()]

        def reload_and_look() -> bool:
            if time.monotonic() - reloaded_at[-1] > 1.5:
                os.kill(daemon.pid, signal.SIGHUP)
                reloaded_at.append(time.monotonic())
            daemon.listen()
            return site.states() == {"CONFIRMED": 1, "REJECTED": 1}

        wait_until(reload_and_look, what="both files")
        assert len(reloaded_at) > 3


@by_lock_only
def test_reload_leaves_no_word_of_a_ledger_that_failed_before(tmp_path: Path, server: Emulator) -> None:
    """It stood in the lock until the next start, and ``status`` called a person for it."""
    site = Site(tmp_path, server.url)
    config = load(site.config_file)
    daemon = Daemon(config)
    daemon.start()
    daemon.spool.tell("no room is left on its disk")
    assert site.stopped() == {"ledger_failed"}
    following = Daemon(config, before=daemon)
    daemon.stop(config.shutdown_grace, hand_over=True)

    following.start()

    try:
        assert site.stopped() == set()
    finally:
        following.stop(config.shutdown_grace)


def test_posts_that_a_reload_waits_for_are_told_of_where_they_take_long(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else was sent meanwhile, be it for an hour, and nothing said why."""
    monkeypatch.setattr(service, "_POSTS_LONG_SECONDS", 0.2)
    config = configure(tmp_path, server)
    server.faults.add("latency", method="POST", seconds=1.5, count=1)
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        signals = Signals(daemon.wake)
        serving = _Service(daemon, signals, Mock(watchdog_interval=None), reread=lambda: config, adopt=lambda _: None)
        daemon.loop.stages = [*daemon.loop.stages, _Restless()]
        turn(daemon, lambda: states(config) == {"SENDING": 1})
        signals.asked = Asked.RELOAD

        turn(daemon, lambda: serving.is_over() or daemon.stages.alarms.stands("posts_awaited"))
        assert serving.following is not None
        assert daemon.stages.alarms.stands("posts_awaited")

        turn(daemon, serving.is_over)
        serving.following.close(hand_over=True)


@pytest.mark.slow
def test_reload_takes_new_settings_over_the_same_spool_and_ledger(tmp_path: Path, server: Emulator) -> None:
    site = Site(tmp_path / "site", server.url, spool={"path": "./spool", "low_water": "10MB", "retain": "24h"})
    with site.start() as daemon:
        (site.drop / "image").write_bytes(image())
        site.wait_for({"CONFIRMED": 1})
        site.configure(spool={"path": "./spool", "low_water": "10MB", "retain": "0s"})
        for ready in (2, 3):
            os.kill(daemon.pid, signal.SIGHUP)
            wait_until(lambda: daemon.listen().count("READY=1") == ready, what="READY again")  # noqa: B023
        wait_until(lambda: not list(site.spool.glob("files/*/*/*")), what="the removal")
        assert daemon.is_running()
    assert site.run_once().returncode == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"spool": {"path": "./other-spool", "low_water": "10MB"}},
        {"ledger": "sqlite:///other.db"},
        {"destination": {"url": "http://127.0.0.1:9/v2", "auth": "none"}},
    ],
    ids=["spool", "ledger", "destination"],
)
def test_reload_never_changes_what_waiting_files_belong_to(tmp_path: Path, server: Emulator, changed: dict) -> None:
    """Files that wait would be looked for in another spool, or sent to another server, without a person's word."""
    site = Site(tmp_path / "site", server.url)
    with site.start() as daemon:
        site.configure(**changed)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: daemon.listen().count("READY=1") == 2, what="READY again")
        (site.drop / "image").write_bytes(image())
        site.wait_for({"CONFIRMED": 1})
        assert "config.refused" in daemon.tail()
        assert not (site.folder / "other-spool").exists()
        assert not (site.folder / "other.db").exists()


def test_reload_takes_new_settings_of_the_log(tmp_path: Path, server: Emulator) -> None:
    site = Site(tmp_path / "site", server.url, logging={"format": "json"})
    with site.start() as daemon:
        site.configure(logging={"format": "console"})
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: daemon.listen().count("READY=1") == 2, what="READY again")
        lines = daemon.log.read_text().splitlines()

    assert lines[0].startswith("{")
    assert [line for line in lines if "config.reread" in line and not line.startswith("{")]


class _Restless(Stage):
    """Has the loop tick all the time, and counts."""

    ticks = 0

    def next_at(self, now: Now) -> float:
        self.ticks += 1
        return now.mono + 0.02


def test_no_sign_of_life_is_given_while_a_worker_makes_no_progress(
    tmp_path: Path, server: Emulator, monkeypatch
) -> None:
    """systemd restarts what gives none (WATCHDOG=1); given all the same, a daemon that hangs would hang for ever."""
    site = Site(tmp_path / "site", server.url)
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(str(tmp_path / "notify"))
    ear.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    heard: list[str] = []

    def listen() -> int:
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.extend(ear.recv(65536).decode().splitlines())
        return heard.count("WATCHDOG=1")

    wake = Wake()
    signals = Signals(wake)
    daemon = Daemon(load(site.config_file), wake=wake)
    restless = _Restless()
    daemon.loop.stages = [*daemon.loop.stages, restless]
    sick = False
    is_well = daemon.workers.mover.is_healthy
    monkeypatch.setattr(daemon.workers.mover, "is_healthy", lambda: is_well() and not sick)

    def watch() -> None:
        nonlocal sick
        wait_until(lambda: listen() >= 3, what="signs of life")
        sick = True
        listen()
        begun = restless.ticks
        wait_until(lambda: restless.ticks > begun + 3, what="the last sign that was under way")
        given, begun = listen(), restless.ticks
        wait_until(lambda: restless.ticks > begun + 20, what="time for more signs")
        assert listen() == given
        sick = False
        wait_until(lambda: listen() > given, what="signs of life again")

    with ThreadPoolExecutor(1) as pool, ear:
        daemon.start()
        watching = pool.submit(watch)
        watching.add_done_callback(lambda _: (setattr(signals, "asked", Asked.STOP), wake()))
        service = _Service(daemon, signals, Notifier(), reread=lambda: daemon.config, adopt=lambda _: None)
        daemon.loop.run_until(service.is_over)
        daemon.close()
        watching.result()


@pytest.mark.parametrize("missing", ["readers", "ingestd-token", "ingestd-ask-1", "copier", "remover"])
def test_daemon_for_which_there_is_no_thread_leaves_none_behind(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """A configuration read again on a machine at its limit was refused, and each time kept the threads it had got."""
    config = configure(tmp_path, server)
    start, before = threading.Thread.start, set(threading.enumerate())

    def refuse(thread: threading.Thread) -> None:
        if thread.name == missing:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        patch.setattr("ingestd.threads._TRY_SECONDS", 0.0)
        with pytest.raises(NoThread):
            Daemon(config)

    wait_until(lambda: set(threading.enumerate()) <= before, what="the end of the threads that were started")
    Daemon(config).close()  # neither spool nor ledger is held
    wait_until(lambda: set(threading.enumerate()) <= before, what="the end of those of one that was closed")
