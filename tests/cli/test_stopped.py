"""One rule: whatever keeps a file from being confirmed beyond its own time has a line, a next step, and exit code 1."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from datetime import timedelta

import pytest

from ingestd.cli.common import ExitCode
from ingestd.clocks import utc_now
from ingestd.emulator import Emulator
from ingestd.inbox import Leave
from ingestd.ledger import moves
from ingestd.lifecycle import Pause, PauseCause, Reason, State
from tests.builders import write_instance
from tests.commanding import Rows, command_in
from tests.inboxing import Desk, policy
from tests.ledgers import by_lock_only, remove_ledger
from tests.running import QUICK_INBOX, Site, wait_until


@pytest.fixture
def rows(tmp_path):
    rows = Rows(tmp_path)
    yield rows
    rows.close()


@pytest.fixture
def command(rows, capfd):
    return command_in(rows.folder, capfd)


@pytest.fixture
def daemon_runs(rows):
    with rows.daemon():
        yield


def kinds(command):
    said = command("status", "--json").json
    found = [line["kind"] for line in said["stopped_because"]]
    assert said["healthy"] is (not found)
    assert all(line["note"] and line["next_step"] for line in said["stopped_because"])
    calls = bool(found or said["needs_person"])
    assert command("status", "--exit-code").code == (ExitCode.NEEDS_PERSON if calls else ExitCode.DONE)
    for line in said["stopped_because"]:
        assert f"Stopped because {line['note']}"[:40] in command("status").out
    return found


def test_nothing_stops_where_nothing_waits(command):
    assert kinds(command) == []


def test_a_stopped_daemon_is_told_while_files_lie_in_an_inbox(command, rows):
    (rows.folder / "drop" / ".hidden").write_bytes(b"")
    assert kinds(command) == []

    (rows.folder / "drop" / "study").mkdir()
    write_instance(rows.folder / "drop" / "study" / "image")

    assert kinds(command) == ["no_daemon"]
    assert 0 <= command("status", "--json").json["oldest_unconfirmed_seconds"] < 60
    assert "none waits" not in command("status").out


def test_a_file_that_is_still_being_written_waits_for_no_daemon(command, rows):
    write_instance(rows.folder / "drop" / "image.part")
    assert kinds(command) == []


def test_what_would_not_be_taken_in_waits_for_no_daemon(command, rows):
    """A link, and a pipe that somebody left, were told as files that wait, for as long as no daemon ran."""
    drop = rows.folder / "drop"
    (drop / "link").symlink_to(write_instance(rows.folder / "image"))
    os.mkfifo(drop / "pipe")

    assert kinds(command) == []


def test_a_stopped_daemon_is_told_while_rows_wait(command, rows):
    rows.admit("pending")
    assert kinds(command) == ["no_daemon"]


def test_a_configuration_that_names_another_server_is_told_while_nothing_runs(command, rows):
    """`start it: ingestd run`, which refuses to."""
    file = rows.config.file
    file.write_text(file.read_text().replace(rows.config.destination.url, "http://127.0.0.1:9/other"))
    assert "none waits" in command("status").out
    dropped = write_instance(rows.folder / "drop" / "image")

    said = command("status", "--json").json
    (line,) = said["stopped_because"]
    assert line["kind"] == "other_address"
    assert said["oldest_unconfirmed_seconds"] == pytest.approx(time.time() - dropped.stat().st_ctime, abs=5)
    assert "http://127.0.0.1:9/other" in line["note"]
    assert rows.config.destination.url in line["note"]
    assert "destination move" in line["next_step"]
    assert kinds(command) == ["other_address"]


def test_a_stopped_daemon_is_told_also_without_a_ledger(tmp_path, capfd):
    rows = Rows(tmp_path)
    rows.close()
    remove_ledger(tmp_path)
    write_instance(tmp_path / "drop" / "image")

    assert kinds(command_in(tmp_path, capfd)) == ["no_daemon"]


@by_lock_only
@pytest.mark.usefixtures("daemon_runs")
def test_a_spool_that_is_away_is_told_as_that_and_not_as_a_daemon_that_ended(command, rows):
    """The daemon's lock lies in it: "not running (start it: ingestd run)", while one ran."""
    rows.admit("pending")
    write_instance(rows.folder / "drop" / "image")
    assert kinds(command) == []

    rows.spool.path.rename(rows.folder / "away")

    assert kinds(command) == ["spool"]
    assert command("status", "--json").json["daemon"] == {"running": None, "pid": None}
    [line] = command("status", "--json").json["stopped_because"]
    assert str(rows.spool.path) in line["note"]
    for said in (command("status").out, command("explain", str(rows.folder / "drop" / "image")).err):
        assert "start it" not in said
        assert f"the spool is not at {rows.spool.path}" in said

    (rows.folder / "away").rename(rows.spool.path)
    assert kinds(command) == []


@by_lock_only
def test_pause_is_said_to_end_by_itself_only_where_somebody_runs(command, rows):
    with rows.ledger.transaction() as tx:
        moves.pause_destination(
            tx, Pause(cause=PauseCause.NOT_AUTHORIZED, note="401"), until=utc_now() + timedelta(minutes=5), now=rows.now
        )

    said = " ".join(command("status").out.split())
    assert "401; tried again once ingestd runs" in said
    assert "`ingestd check` looks at it; then start ingestd" in said
    waits = str(rows.admit("waits"))
    assert "is due; but no ingestd runs (start it: `ingestd run`); nothing is sent" in command("explain", waits).out
    for folder in (rows.config.spool.path, rows.config.spool.for_send):
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            said = " ".join(command("status").out.split())
            assert "no ingestd runs" not in command("explain", waits).out
        assert "401; tried again in 4 min" in said
        assert "sending goes on by itself" in said


@pytest.mark.usefixtures("daemon_runs")
@pytest.mark.parametrize("words", [["reconcile"], ["reconcile", "--full"]], ids=" ".join)
def test_no_spool_is_made_in_the_place_of_one_that_is_away(command, rows, words):
    """It stood in the way when the folder was put back, and ended with 0: "nothing waits for proof"."""
    rows.spool.path.rename(rows.folder / "away")

    said = command(*words)

    assert said.code == ExitCode.CONFIGURATION
    assert f"the spool is not at {rows.spool.path}" in said.err
    assert not rows.spool.path.exists()


@pytest.mark.usefixtures("daemon_runs")
@pytest.mark.parametrize(
    "cause, minutes, expected",
    [
        (PauseCause.UNREACHABLE, 0, []),
        (PauseCause.UNREACHABLE, 2, ["paused"]),
        (PauseCause.THROTTLED, 2, ["paused"]),
        (PauseCause.MISCONFIGURED, 0, ["paused"]),
        (PauseCause.NOT_AUTHORIZED, 0, ["paused"]),
        (PauseCause.NO_TOKEN, 0, ["paused"]),
    ],
)
def test_a_paused_destination_is_told_at_once_where_a_person_must_act(command, rows, cause, minutes, expected):
    since = rows.now + timedelta(minutes=10 - minutes)
    with rows.ledger.transaction() as tx:
        moves.pause_destination(
            tx, Pause(cause=cause, note="what it said"), until=since + timedelta(hours=1), now=since
        )

    assert kinds(command) == expected


@pytest.mark.usefixtures("daemon_runs")
def test_the_oldest_file_is_told_by_its_age_whatever_keeps_it(command, rows):
    rows.admit("pending")
    assert kinds(command) == []

    rows.now -= timedelta(minutes=30)
    rows.admit("older", uid="1.2.3.4")

    assert kinds(command) == ["too_old"]


@pytest.mark.usefixtures("daemon_runs")
def test_the_age_counts_files_without_a_row(command, rows):
    since = rows.now - timedelta(minutes=30)
    rows.report(files_seen=1, oldest_at=since)

    assert kinds(command) == ["too_old"]
    assert command("status", "--json").json["oldest_unconfirmed_seconds"] > 1800


@pytest.mark.usefixtures("daemon_runs")
def test_beside_the_age_stands_the_oldest_that_needs_a_person(command, rows):
    rows.refuse("readme.txt", Reason.NOT_DICOM, "no DICOM")
    assert command("status", "--json").json["oldest_needs_person_seconds"] is None

    rows.send("failed", State.FAILED, Reason.REFUSED, failure_reason=0xA900)

    said = command("status", "--json").json
    assert 0 < said["oldest_needs_person_seconds"] < 900
    assert said["oldest_unconfirmed_seconds"] is None
    assert "Needs a person" in command("status").out


def test_a_file_that_cannot_be_moved_stays_counted_while_it_is_tried_again(tmp_path):
    drop = tmp_path / "drop-a"
    drop.mkdir()
    (drop / "x").write_bytes(b"x")
    with Desk(tmp_path, policy(tmp_path)) as desk:
        desk.settle(2.1)
        [candidate] = desk.ready_now()
        desk.inboxes.take_back(candidate, Leave.UNREADABLE)
        assert desk.report().barred == 1

        desk.pass_time(61)
        [again] = desk.ready_now()
        assert desk.report().in_hand == 1
        assert desk.report().barred == 1

        desk.inboxes.take_back(again, Leave.DONE)
        assert desk.report().barred == 0


def test_the_age_of_a_file_in_the_drop_folder_begins_when_it_was_first_seen(tmp_path):
    with Desk(tmp_path, policy(tmp_path)) as desk:
        assert desk.report().oldest_since is None
        (tmp_path / "drop-a" / "x").write_bytes(b"x")
        before = desk.now
        desk.scan_again()
        desk.pass_time(100)

        assert before <= desk.report().oldest_since <= desk.now - 100


def test_unfinished_names_are_told_when_they_outlive_their_time(tmp_path):
    drop = tmp_path / "drop-a"
    drop.mkdir()
    for name in ("a.part", ".hidden", "b~", "c.TMP", "Thumbs.db", ".DS_Store", "._forked", "log.txt"):
        (drop / name).write_bytes(b"x")
    (drop / ".folder").mkdir()
    # Copiers set the time of the original; only ctime says since when it lies here.
    os.utime(drop / "a.part", (0, 0))
    options = {"ignore": ("*.txt",), "unfinished_after": timedelta(seconds=1)}
    with Desk(tmp_path, policy(tmp_path, **options)) as desk:
        desk.scan_again()
        assert (desk.report().ignored, desk.report().stale_ignored) == (9, 0)
        age_out_at = time.time() + 1.1
        wait_until(lambda: time.time() > age_out_at, what="the time of an unfinished name")
        desk.scan_again()

        assert (desk.report().ignored, desk.report().stale_ignored) == (9, 4)


def test_what_is_no_regular_file_is_told_when_it_outlives_its_time(tmp_path):
    drop = tmp_path / "drop-a"
    drop.mkdir()
    (tmp_path / "archive").mkdir()
    (drop / "image").symlink_to(write_instance(tmp_path / "archive" / "image"))
    (drop / "folder").symlink_to(tmp_path / "archive")
    (drop / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(drop / "pipe")
    for left_alone in ("latest.txt", ".hidden", "Thumbs.db"):
        (drop / left_alone).symlink_to(tmp_path / "nowhere")
    # By ctime: whoever makes a link can give it any other time.
    os.utime(drop / "image", (0, 0), follow_symlinks=False)
    options = {"ignore": ("*.txt",), "unfinished_after": timedelta(seconds=1)}
    with Desk(tmp_path, policy(tmp_path, **options)) as desk:
        desk.scan_again()
        assert (desk.report().not_regular, desk.report().stale_not_regular) == (4, 0)
        age_out_at = time.time() + 1.1
        wait_until(lambda: time.time() > age_out_at, what="the time of the folder")
        desk.scan_again()
        assert (desk.report().not_regular, desk.report().stale_not_regular) == (4, 4)
        assert desk.report().stale_ignored == 0

        (drop / "pipe").unlink()
        desk.scan_again()
        assert (desk.report().not_regular, desk.report().stale_not_regular) == (3, 3)


@pytest.mark.slow
def test_what_a_daemon_cannot_take_is_told_while_it_lasts(tmp_path):
    """Folders too deep, files under a name that no writer will change any more, and links."""
    with Emulator(tmp_path / "server") as server:
        site = Site(tmp_path / "site", server.url, inboxes=[{"path": "./drop", **QUICK_INBOX}])
        deep = site.drop.joinpath(*["d"] * 33)
        deep.mkdir(parents=True)
        write_instance(deep / "image")
        write_instance(site.drop / "complete.part")
        (site.drop / "link").symlink_to(write_instance(tmp_path / "elsewhere"))
        expected = {"too_deep", "unfinished", "not_regular"}
        with site.start():
            wait_until(lambda: site.stopped() == expected, what="a line for each")
            [links] = [line for line in site.status()["stopped_because"] if line["kind"] == "not_regular"]
            assert "drop the file itself" in links["next_step"]
            assert site.command("status", "--exit-code").returncode == ExitCode.NEEDS_PERSON

            (deep / "image").rename(site.drop / "image")
            deep.rmdir()
            (site.drop / "complete.part").rename(site.drop / "complete")
            (site.drop / "link").unlink()
            wait_until(lambda: not site.stopped(), what="no line")
            site.wait_for({"CONFIRMED": 2})
            assert site.command("status", "--exit-code").returncode == ExitCode.DONE


@pytest.mark.slow
def test_a_wrong_path_on_the_server_is_told(tmp_path):
    """A 404 to every post was "answered 0 s ago" and nothing else."""
    with Emulator(tmp_path / "server") as server:
        site = Site(tmp_path / "site", server.url.replace("/v2", "/wrong"))
        write_instance(site.drop / "image")
        with site.start():
            wait_until(lambda: site.stopped() == {"refused"}, what="a line")
            answered_at, attempts = site.status()["destination"]["last_ok_at"], site.entries()[0].attempts
            wait_until(lambda: site.entries()[0].attempts > attempts, what="another post")
            assert site.status()["destination"]["last_ok_at"] == answered_at

            server.faults.add("drop_before_body", method="POST")
            wait_until(lambda: site.states() == {"UNCERTAIN": 1}, what="a post without an answer")
            (line,) = site.status()["stopped_because"]
            assert "(last with HTTP 404)" in line["note"]


@pytest.mark.slow
def test_an_immutable_file_is_told(tmp_path):
    with Emulator(tmp_path / "server") as server:
        site = Site(tmp_path / "site", server.url)
        write_instance(site.drop / "image")
        with Immutable(site.drop / "image"), site.start():
            wait_until(lambda: site.stopped() == {"barred"}, what="a line")


class Immutable:
    """A file that nobody may move, not even root (FS_IMMUTABLE_FL, ioctl_iflags(2))."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        self._set(0x10)

    def __exit__(self, *_):
        self._set(0)

    def _set(self, flags):
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, 0x40086602, flags.to_bytes(8, "little"))
        except OSError as error:
            if error.errno in {errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM}:
                pytest.skip("this filesystem has no immutable files, or this user may not make them")
            raise
        finally:
            os.close(descriptor)


@by_lock_only
@pytest.mark.usefixtures("daemon_runs")
def test_what_only_another_send_would_send_is_told_once_nobody_is_about_to_run_it(command, tmp_path):
    """It was a yellow line, exit code 0, `healthy`."""
    of_send = Rows(tmp_path, of_send=True)
    pending = of_send.admit("pending")
    of_send.close()
    lock = of_send.spool.path / "lock"
    lock.touch()
    assert kinds(command) == []

    os.utime(lock, (time.time() - 61,) * 2)
    assert kinds(command) == ["waits_for_send"]

    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert kinds(command) == []
        assert command("resolve", str(pending), "--discard").code == ExitCode.NEEDS_PERSON

    # The medium is gone, and nobody has the file any more.
    assert command("resolve", str(pending), "--discard").code == ExitCode.DONE
    assert kinds(command) == []
