"""The daemon as a process: signals, locks, the service manager, configuration, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.builders import fresh_uid, write_instance
from tests.emulating import stores
from tests.ledgers import ON_POSTGRESQL, by_lock_only
from tests.running import Daemon, Site, session_members, wait_until
from tests.torture.watching import Watch


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.fixture
def site(tmp_path: Path, server: Emulator) -> Site:
    return Site(tmp_path / "site", server.url, reader={"processes": 2})


def test_service_manager_hears_ready_watchdog_status_and_stopping(site: Site):
    with site.start(env={"WATCHDOG_USEC": "600000"}) as daemon:
        wait_until(lambda: daemon.listen().count("WATCHDOG=1") >= 3, what="three signs of life")
        code = daemon.terminate()

    assert code == 0
    assert "READY=1" in daemon.heard
    assert any(line.startswith("STATUS=") for line in daemon.heard)
    assert daemon.heard.index("STOPPING=1") > daemon.heard.index("READY=1")
    assert session_members(daemon.pid) == []


@by_lock_only
def test_second_daemon_on_the_same_spool_ends_with_75_and_disturbs_nothing(site: Site):
    with site.start() as first:
        second = site.command("run")

        assert second.returncode == 75
        assert "Traceback" not in second.stderr
        assert first.is_running()
        write_instance(site.drop / "image")
        site.wait_for({"CONFIRMED": 1})


def test_sigterm_finishes_the_post_in_flight(site: Site, server: Emulator):
    server.faults.add("latency", seconds=1.0, method="POST")
    write_instance(site.drop / "image")

    with site.start() as daemon:
        site.wait_for({"SENDING": 1})
        code = daemon.terminate()

    assert code == 0
    assert site.states() in ({"STORED": 1}, {"CONFIRMED": 1})
    assert [line["result"] for line in stores(server.requests)] == ["stored"]


def test_post_that_outlasts_the_grace_is_asked_about_after_the_next_start(tmp_path: Path, server: Emulator):
    site = Site(tmp_path / "site", server.url, shutdown_grace="200ms")
    server.faults.add("latency", seconds=1.5, method="POST", count=1)
    write_instance(site.drop / "image")

    with site.start() as daemon:
        site.wait_for({"SENDING": 1})
        daemon.terminate()
    assert site.states() == {"UNCERTAIN" if ON_POSTGRESQL else "SENDING": 1}
    with site.start():
        site.wait_for({"CONFIRMED": 1})

    story = site.stories()[0]
    assert [event.after for event in story.history][:3] == ["PENDING", "SENDING", "UNCERTAIN"]


def test_sighup_rereads_the_configuration(site: Site):
    more = site.folder / "more"
    more.mkdir()
    with site.start() as daemon:
        inbox = {"settle": "100ms", "incomplete_after": "2s"}
        site.configure(inboxes=[{"path": "./drop", **inbox}, {"path": "./more", **inbox}])
        os.kill(daemon.pid, signal.SIGHUP)
        write_instance(more / "image")
        site.wait_for({"CONFIRMED": 1})

        assert "RELOADING=1" in daemon.listen()
        wait_until(lambda: daemon.listen().count("READY=1") == 2, what="READY again")


@pytest.mark.slow
def test_sighup_waits_for_the_post_in_flight(tmp_path: Path, server: Emulator):
    """One that outlasted the grace went on, was found absent meanwhile, and the file was sent a second time."""
    site = Site(tmp_path / "site", server.url, shutdown_grace="200ms")
    server.faults.add("latency", seconds=4.0, method="POST", count=1)
    write_instance(site.drop / "image")

    with site.start() as daemon:
        site.wait_for({"SENDING": 1})
        os.kill(daemon.pid, signal.SIGHUP)
        site.wait_for({"CONFIRMED": 1})
        wait_until(lambda: daemon.listen().count("READY=1") == 2, what="READY again")

    assert [event.after for event in site.stories()[0].history] == ["PENDING", "SENDING", "STORED", "CONFIRMED"]
    assert len(stores(server.requests)) == 1


def test_sighup_with_a_wrong_configuration_changes_nothing(site: Site):
    with site.start() as daemon:
        site.config_file.write_text("inboxes: [nonsense\n")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: daemon.listen().count("READY=1") == 2, what="READY again")
        site.configure()
        write_instance(site.drop / "image")
        site.wait_for({"CONFIRMED": 1})

        assert daemon.is_running()


def test_wrong_configuration_names_every_problem_and_ends_with_2(site: Site):
    site.config_file.write_text(
        json.dumps(
            {
                "inboxes": [{"path": "./drop", "settle": "soon", "colour": "blue"}],
                "spool": "./spool",
                "batch": {"max_instances": 0},
                "destination": {"url": "gopher://example", "auth": "none"},
                "ledger": "sqlite:///ledger.db",
            }
        )
    )

    said = site.command("run")

    assert said.returncode == 2
    assert "Traceback" not in said.stderr
    for key in ("settle", "colour", "max_instances", "url"):
        assert key in said.stderr


def test_another_destination_on_the_same_ledger_is_refused(site: Site):
    write_instance(site.drop / "image")
    site.run_once()
    site.configure(destination={"url": "http://127.0.0.1:9/v2", "auth": "none"})

    said = site.command("run")

    assert said.returncode == 2
    assert "Traceback" not in said.stderr
    assert site.states() == {"CONFIRMED": 1}


@pytest.mark.slow
def test_vanished_folder_is_an_alarm_and_not_a_deletion(site: Site):
    write_instance(site.drop / "image")
    with site.start() as daemon:
        site.wait_for({"CONFIRMED": 1})
        site.drop.rename(site.folder / "elsewhere")

        def alarm() -> str:
            return str(json.loads(site.command("status", "--json").stdout)["inboxes"][0]["alarm"])

        wait_until(alarm, what="the alarm")
        assert daemon.is_running()
        assert site.states() == {"CONFIRMED": 1}

        (site.folder / "elsewhere").rename(site.drop)
        write_instance(site.drop / "second")
        site.wait_for({"CONFIRMED": 2})


def test_killed_while_posting_it_asks_before_it_sends_again(site: Site, server: Emulator):
    server.faults.add("latency", seconds=0.7, method="POST", count=1)
    study_uid = fresh_uid(1)
    for number in range(3):
        write_instance(site.drop / f"image{number}", study_uid=study_uid)

    with site.start() as daemon:
        site.wait_for({"SENDING": 3})
        daemon.kill()
    with site.start():
        site.wait_for({"CONFIRMED": 3})

    assert [line["result"] for line in stores(server.requests)] == ["stored"] * 3
    for story in site.stories():
        assert [event.after for event in story.history][:3] == ["PENDING", "SENDING", "UNCERTAIN"]


@pytest.mark.slow
def test_file_in_the_spool_without_a_row_is_admitted_under_the_name_it_was_dropped_under(site: Site):
    """Killed between the move into the spool and the row, it once knew the file only by its number in the spool."""
    watch = Watch(site)
    dropped: set[str] = set()
    orphans = 0
    while not orphans and len(dropped) < 3000:  # a busy machine may let the row be there before the kill
        folder = f"in{len(dropped)}"
        study_uid = fresh_uid(len(dropped) + 1)
        for number in range(300):
            write_instance(site.folder / folder / f"IMAGE{number}", study_uid=study_uid)
            dropped.add(f"{folder}/IMAGE{number}")
        before = watch.spool_files()
        with site.start() as daemon:
            (site.folder / folder).rename(site.drop / folder)
            wait_until(lambda: watch.spool_files() - before, what="a file in the spool", every=0.001)  # noqa: B023
            daemon.kill()
        orphans = watch.scene().orphans

    assert orphans > 0
    with site.start():
        site.wait_for({"CONFIRMED": len(dropped)})
    assert {entry.relative_path for entry in site.entries()} == dropped
    assert watch.scene().candidates == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB that is really full when it is full; needs root to mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let a small disk be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_admission_stops_before_the_disk_is_full_and_resumes(small_disk: Path, tmp_path: Path, server: Emulator):
    site = Site(
        tmp_path / "site",
        server.url,
        inboxes=[{"path": str(small_disk / "drop"), "settle": "100ms", "incomplete_after": "2s"}],
        spool={"path": str(small_disk / "spool"), "low_water": "4MB"},
    )
    drop, ballast = small_disk / "drop", small_disk / "ballast"
    drop.mkdir()
    with site.start() as daemon:
        fill(ballast, leave_bytes=2_000_000)
        wait_until(lambda: says(daemon, "alarm.raised"), what="word of the low disk")
        write_instance(drop / "image")
        wait_until(lambda: site.stopped() == {"disk_low"}, what="the line that says why")
        assert site.command("status", "--exit-code").returncode == 1
        wait_until(lambda: reported(site)["files_seen"], what="a report with the file")
        assert site.states() == {}
        assert (drop / "image").exists()

        ballast.unlink()
        site.wait_for({"CONFIRMED": 1})
        assert site.stopped() == set()
        assert site.command("status", "--exit-code").returncode == 0


@pytest.mark.slow
def test_a_full_disk_does_not_fill_the_log(small_disk: Path, tmp_path: Path, server: Emulator):
    """The same error for every file and every try: 1,782 lines in 45 seconds, on the disk that was full."""
    site = Site(tmp_path / "site", server.url, spool={"path": str(small_disk / "spool"), "low_water": "1kB"})
    small_disk.joinpath("spool").mkdir(mode=0o700)
    for number in range(100):
        write_instance(site.drop / f"image{number}", rows=256, columns=256)
    fill(small_disk / "ballast", leave_bytes=60_000)
    with site.start() as daemon:
        wait_until(lambda: says(daemon, "inbox.not_taken"), what="word of what is not taken")
        wait_until(lambda: reported(site)["barred"] or reported(site)["unreadable"], what="files that wait for room")
        lines = daemon.log.read_text().splitlines()

    said = Counter(json.loads(line)["event"] for line in lines if line.startswith("{"))
    assert all(said[event] <= 6 for event in said if event != "alarm.raised"), said


def reported(site: Site) -> Counter[str]:
    """What the daemon last reported of its only inbox."""
    inboxes = json.loads(site.command("status", "--json").stdout)["inboxes"]
    return Counter(inboxes[0]["counts"] if inboxes else {})


@pytest.mark.slow
def test_spool_without_room_leaves_the_file_where_it_is_until_there_is(
    small_disk: Path, tmp_path: Path, server: Emulator
):
    site = Site(tmp_path / "site", server.url, spool={"path": str(small_disk / "spool"), "low_water": "1kB"})
    ballast = small_disk / "ballast"
    with site.start() as daemon:
        fill(ballast, leave_bytes=100_000)
        path = write_instance(site.drop / "image", rows=1000, columns=1000)
        content = path.read_bytes()
        wait_until(lambda: says(daemon, "inbox.not_taken"), what="word of the full spool")
        assert path.read_bytes() == content
        assert site.states() == {}

        ballast.unlink()
        site.wait_for({"CONFIRMED": 1})
        wait_until(lambda: not path.exists(), what="the source's removal")


def fill(ballast: Path, *, leave_bytes: int) -> None:
    """Fill the disk but for so much, or for what a daemon writes there meanwhile."""
    room = os.statvfs(ballast.parent)
    with suppress(OSError):
        ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - leave_bytes))


def says(daemon: Daemon, event: str) -> bool:
    return any(f'"event": "{event}"' in line for line in daemon.log.read_text().splitlines())


@pytest.mark.slow
def test_ledger_that_cannot_be_written_is_told_by_status(small_disk: Path, tmp_path: Path, server: Emulator):
    """What is told through the ledger is told to nobody then: all looked healthy while nothing was taken in."""
    site = Site(tmp_path / "site", server.url, ledger=f"sqlite:///{small_disk}/ledger.db")
    with site.start() as daemon:
        fill(small_disk / "ballast", leave_bytes=0)
        for number in range(3):
            write_instance(site.drop / str(number))
        wait_until(lambda: site.stopped() == {"ledger_failed"}, what="the line that says why")
        told = site.status()
        assert not told["healthy"]
        assert told["oldest_unconfirmed_seconds"] >= 0
        assert site.command("status", "--exit-code").returncode == 1

        (small_disk / "ballast").unlink()
        wait_until(lambda: not site.stopped(), what="its end")
        wait_until(lambda: len(list(site.drop.iterdir())) == 0, what="the files")
        assert daemon.terminate() == 0
