"""The observer: its hints make things quick, and whatever it loses is found all the same."""

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.fs.mounts import Mount, mount_of, parse_mountinfo
from ingestd.inbox import Leave, Watch
from ingestd.inbox.hints import MOST_EVENTS, MOST_FOLDERS, MOST_PATHS, Hints
from ingestd.inbox.watch import Watcher
from tests.inboxing import Desk, candidate_of, policy, quick_folder, scan_now
from tests.patience import PATIENCE

SYSCTL = Path("/proc/sys/fs/inotify")


@pytest.fixture
def drop(tmp_path):
    folder = tmp_path / "drop-a"
    folder.mkdir()
    return folder


@pytest.fixture
def quick(tmp_path):
    with quick_folder(tmp_path) as folder:
        yield folder


@contextmanager
def kernel_limit(name, value):
    """Change one of inotify's limits for observers made meanwhile: any on this machine, so not for long."""
    path = SYSCTL / name
    before = path.read_text()
    try:
        path.write_text(str(value))
    except OSError:
        pytest.skip("the kernel's limits may not be changed here")
    try:
        yield
    finally:
        path.write_text(before)


def armed(tmp_path, *policies, **options):
    desk = Desk(tmp_path, *(policies or (policy(tmp_path, watch=Watch.EVENTS),)), **options)
    desk.inboxes.open()
    desk.look_until(lambda _: all(report.scans for report in desk.inboxes.reports()))
    return desk


@contextmanager
def as_another_user(folder):
    """Be nobody, whom rights bind, where root runs the tests; the folder becomes theirs."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def take_all(desk, wanted, limit=60):
    """Drive the inbox on the real clock until so many files came, removing each as the spool would."""
    seen = set()

    def take(candidate):
        assert candidate.relative_path not in seen
        seen.add(candidate.relative_path)
        Path(candidate.path).unlink()
        desk.inboxes.take_back(candidate, Leave.DONE)

    desk.look_until(lambda _: len(seen) >= wanted, on_ready=take, limit=limit)
    return seen


def test_lone_file_is_ready_within_ten_milliseconds_of_its_settle_time(tmp_path, drop):
    with armed(tmp_path, policy(tmp_path, settle=timedelta(milliseconds=100), watch=Watch.EVENTS)) as desk:
        late = []
        for number in range(10):
            (drop / str(number)).write_bytes(b"x" * 100_000)
            written = time.monotonic()
            (candidate,) = desk.look_until(len, limit=5)
            late.append(time.monotonic() - written - 0.1)
            desk.inboxes.take_back(candidate, Leave.DONE)

        # The best few: what else the machine does is not ours.
        assert sorted(late)[2] < 0.010
        assert desk.report().found_by_scan == 0


@pytest.mark.parametrize("how", ["written", "renamed in", "linked in", "moved with its folder", "made in new folders"])
def test_events_name_files_however_they_arrive(tmp_path, drop, how):
    with armed(tmp_path) as desk:
        if how == "written":
            (drop / "x").write_bytes(b"x")
        elif how == "renamed in":
            (tmp_path / "x").write_bytes(b"x")
            (tmp_path / "x").rename(drop / "x")
        elif how == "linked in":
            (tmp_path / "x").write_bytes(b"x")
            os.link(tmp_path / "x", drop / "x")
        elif how == "moved with its folder":
            (tmp_path / "study/series").mkdir(parents=True)
            (tmp_path / "study/series/x").write_bytes(b"x")
            (tmp_path / "study").rename(drop / "study")
        else:
            (drop / "a/b/c").mkdir(parents=True)
            (drop / "a/b/c/x").write_bytes(b"x")
        desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)
        scans = desk.report().scans
        desk.pass_time(2.1)

        assert len(desk.ready_now()) == 1
        assert desk.report().scans == scans


def test_folder_that_comes_whole_is_named_once_not_file_by_file(tmp_path, drop):
    (tmp_path / "study/series").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "study/series" / str(number)).write_bytes(b"x")
    paths, folders = set(), {}
    watcher = Watcher(str(drop), lambda: None)
    watcher.start(wait=10)
    try:
        (tmp_path / "study").rename(drop / "study")
        (drop / "last").write_bytes(b"x")
        end = time.monotonic() + PATIENCE
        while "last" not in paths and time.monotonic() < end:
            more, named, _ = watcher.hints.take()
            paths.update(more)
            folders.update(named)
    finally:
        watcher.stop().join(10)

    assert paths == {"last"}
    assert folders == {"study": True}


def test_folder_that_takes_the_place_of_one_that_was_handed_out_is_seen_file_by_file(tmp_path, drop):
    """An exporter that moves whole folders in may use a name again before the files that came first are decided."""
    for folder, content in (("first", b"1"), ("second", b"22")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_bytes(content)
    with armed(tmp_path) as desk:
        (tmp_path / "first").rename(drop / "study")
        desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)
        desk.pass_time(2.1)
        (candidate,) = desk.ready_now()
        scans = desk.report().scans
        Path(candidate.path).unlink()
        (tmp_path / "second").rename(drop / "study")
        (drop / "last").write_bytes(b"x")
        desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)  # what came before it was looked at too
        desk.inboxes.take_back(candidate, Leave.DONE)
        desk.look_until(lambda _: desk.report().waiting_settle == 2, limit=5)

        assert desk.report().scans == scans


def test_folder_renamed_inside_the_inbox_is_followed(tmp_path, drop):
    (drop / "before").mkdir()
    with armed(tmp_path) as desk:
        (drop / "before").rename(drop / "after")
        desk.look_until(lambda _: True)
        (drop / "after" / "x").write_bytes(b"x")
        desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)
        desk.pass_time(2.1)

        assert [one.relative_path for one in desk.ready_now()] == ["after/x"]
        assert desk.report().watching == "events"


@pytest.mark.parametrize("mended", ["a/b/x", "a/b", "a", "."])
def test_what_is_barred_is_tried_again_at_once_when_rights_are_mended_on_its_way(tmp_path, drop, mended):
    """It was found out within a minute only, while somebody stood beside it, unless it was the file's own."""
    (drop / "a/b").mkdir(parents=True)
    (drop / "a/b/x").write_bytes(b"x")
    (drop / "y").write_bytes(b"x")
    with armed(tmp_path) as desk:
        desk.settle(2.1)
        for _ in range(8):
            for candidate in desk.ready_now():
                desk.inboxes.take_back(candidate, Leave.UNREADABLE)
            desk.pass_time(61)
        assert {candidate.relative_path for candidate in desk.ready_now()} == {"a/b/x", "y"}
        for name in ("a/b/x", "y"):
            desk.inboxes.take_back(candidate_of(drop, name), Leave.UNREADABLE)
        assert desk.ready_now() == []

        (drop / mended).chmod(0o750)

        wanted = {"a/b/x", "y"} if mended == "." else {"a/b/x"}
        assert {one.relative_path for one in desk.look_until(lambda came: len(came) == len(wanted), limit=5)} == wanted


@pytest.mark.parametrize("named", ["itself", "its folder"])
def test_folder_that_could_not_be_listed_is_looked_into_and_watched_once_it_may_be(quick, named):
    """Nothing said that its rights were mended, and no event ever came from it."""
    drop = quick / "drop-a"
    closed = drop / "study"
    (closed / "series").mkdir(parents=True)
    (closed / "series/x").write_bytes(b"x")
    shut = closed if named == "itself" else closed / "series"
    with as_another_user(quick):
        shut.chmod(0)
        with armed(quick) as desk:
            desk.scan_again()
            assert desk.report().barred == 1
            scans = desk.report().scans

            shut.chmod(0o700)
            desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)
            (closed / "series/y").write_bytes(b"y")
            desk.look_until(lambda _: desk.report().waiting_settle == 2, limit=5)
            assert desk.report().scans == scans


def test_hidden_and_ignored_files_raise_no_hint(tmp_path, drop):
    (drop / ".ingestd-removing").mkdir()
    with armed(tmp_path) as desk:
        for name in (".ingestd-removing/0123", "half.part", ".x"):
            (drop / name).write_bytes(b"x")
        (drop / "x").write_bytes(b"x")
        desk.look_until(lambda _: desk.report().waiting_settle, limit=5)

        assert desk.report().waiting_settle == 1


def test_missed_file_is_found_by_the_timers_scan_and_counted(tmp_path, drop):
    with armed(tmp_path) as desk:
        drop_watcher = desk.inboxes._folders["a"].health.watcher
        drop_watcher.hints.file = lambda _path: None
        (drop / "missed").write_bytes(b"x")
        desk.pass_time(31)
        desk.look_until(lambda _: desk.report().waiting_settle == 1)
        desk.pass_time(2.1)

        assert len(desk.ready_now()) == 1
        assert desk.report().found_by_scan == 1


def test_overflowing_queue_loses_no_file(quick):
    drop = quick / "drop-a"
    with kernel_limit("max_queued_events", 16):
        desk = armed(quick, policy(quick, settle=timedelta(milliseconds=200), watch=Watch.EVENTS))
    with desk:

        def burst(part):
            for number in range(10_000):
                (drop / f"{part}-{number}").touch()

        writers = [threading.Thread(target=burst, args=(part,)) for part in range(2)]
        for writer in writers:
            writer.start()
        seen = take_all(desk, 20_000)
        for writer in writers:
            writer.join()

        assert len(seen) == 20_000
        assert desk.report().overflows > 0
        assert desk.report().watching == "events"


def test_more_folders_than_watches_are_scanned_and_reported(tmp_path, drop):
    for number in range(60):
        (drop / str(number)).mkdir()
    watches = sum(
        line.startswith("inotify")
        for path in Path("/proc/self/fdinfo").iterdir()
        for line in (path.read_text().splitlines() if path.exists() else ())
    )
    quickly = policy(tmp_path, settle=timedelta(milliseconds=100), watch=Watch.EVENTS)
    with kernel_limit("max_user_watches", watches + 20):
        desk = armed(tmp_path, quickly)
    with desk:
        for number in range(60):
            (drop / str(number) / "x").write_bytes(b"x")
        scan_now(desk.inboxes)

        assert len(take_all(desk, 60)) == 60
        assert "the limit of inotify watches is reached" in desk.report().degraded


def test_no_instance_left_means_scanning(tmp_path, drop):
    with kernel_limit("max_user_instances", 0):
        desk = armed(tmp_path)
    with desk:
        (drop / "x").write_bytes(b"x")
        desk.settle(2.1)

        assert len(desk.ready_now()) == 1
        assert desk.report().watching == "poll"
        assert "max_user_instances" in desk.report().degraded
        assert desk.inboxes.is_healthy()


def test_observer_that_could_not_be_armed_is_tried_again_soon_and_what_it_missed_found(tmp_path, drop):
    """It was tried again after a minute; until then each file waited for the scan, half a minute away."""
    with kernel_limit("max_user_instances", 0):
        desk = armed(tmp_path)
    with desk:
        desk.scan_again()
        assert desk.report().watching == "poll"
        (drop / "x").write_bytes(b"x")

        desk.pass_time(6)
        desk.look_until(lambda _: desk.report().watching == "events")
        desk.pass_time(6)
        desk.look_until(lambda _: desk.report().files_seen == 1)


def test_dead_thread_of_the_observer_is_replaced_and_what_it_missed_found(tmp_path, drop):
    with armed(tmp_path) as desk:
        for victim in ("emitter", "reader", "observer"):
            watcher = desk.inboxes._folders["a"].health.watcher
            observer = watcher._observer
            thread = {"emitter": next(iter(observer.emitters)), "reader": observer.reader, "observer": observer}[victim]
            thread.stop()
            thread.join(5)
            (drop / f"after-{victim}").write_bytes(b"x")
            assert desk.report().watching == "poll"
            desk.pass_time(6)
            desk.look_until(lambda _: desk.report().watching == "events" and desk.report().waiting_settle == 1)
            desk.pass_time(2.1)
            (candidate,) = desk.ready_now()
            assert candidate.relative_path == f"after-{victim}"
            Path(candidate.path).unlink()
            desk.inboxes.take_back(candidate, Leave.DONE)


def test_folder_removed_and_made_again_is_watched_again(tmp_path, drop):
    with armed(tmp_path) as desk:
        for _ in range(3):
            drop.rmdir()
            desk.pass_time(6)
            desk.look_until(lambda _: desk.report().alarm)
            drop.mkdir()
            desk.pass_time(6)
            desk.look_until(lambda _: desk.report().watching == "events" and not desk.report().scanning)
            (drop / "x").write_bytes(b"x")
            desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)
            (drop / "x").unlink()
            desk.pass_time(2.1)
            assert desk.ready_now() == []


def test_folder_replaced_behind_our_back_is_watched_again(tmp_path, drop):
    with armed(tmp_path) as desk:
        drop.rename(tmp_path / "old")
        drop.mkdir()
        desk.pass_time(6)
        before = desk.inboxes._folders["a"].health.watcher
        desk.look_until(lambda _: desk.inboxes._folders["a"].health.watcher is not before)
        desk.look_until(lambda _: desk.report().watching == "events" and not desk.report().scanning)
        (drop / "x").write_bytes(b"x")
        desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)


def test_rename_storm_ends_with_every_file_once(quick):
    drop = quick / "drop-a"
    with armed(quick, policy(quick, settle=timedelta(milliseconds=300), watch=Watch.EVENTS)) as desk:

        def storm():
            (drop / "s0").mkdir()
            for number in range(300):
                (drop / "s0" / f"t{number}").write_bytes(b"x")
            for turn in range(20):
                (drop / f"s{turn}").rename(drop / f"s{turn + 1}")
                for number in range(300):
                    (drop / f"s{turn + 1}" / f"t{number}").rename(drop / f"s{turn + 1}" / f"u{number}")
                    (drop / f"s{turn + 1}" / f"u{number}").rename(drop / f"s{turn + 1}" / f"t{number}")

        writer = threading.Thread(target=storm)
        writer.start()
        desk.look_until(lambda _: not writer.is_alive(), limit=60)
        writer.join()
        came = {}

        def note(candidate):
            came[candidate.relative_path] = candidate
            desk.inboxes.take_back(candidate, Leave.DONE)
            Path(candidate.path).unlink()

        desk.look_until(lambda _: len([name for name in came if name.startswith("s20/")]) == 300, on_ready=note)

        assert not [name for name in came if not name.startswith("s20/")]


def test_watchdogs_warning_of_an_overflow_is_heard_by_all(tmp_path, drop):
    with armed(tmp_path) as desk:
        scans = desk.report().scans
        logging.getLogger("watchdog.observers.inotify_c").warning(
            "Inotify queue overflowed; filesystem events were lost"
        )
        desk.pass_time(1)
        desk.look_until(lambda _: desk.report().scans > scans)

        assert desk.report().overflows == 1


def test_hints_stay_bounded_and_say_what_they_left_out():
    rung = []
    hints = Hints("/in", lambda: rung.append(1))
    for number in range(MOST_PATHS + 10):
        hints.file(f"/in/{number % 3}/{number}")
    hints.file("/elsewhere/x")
    paths, folders, lost = hints.take()
    assert len(paths) == MOST_PATHS
    assert folders == {"0": False, "1": False, "2": False}
    assert not lost
    assert len(rung) == 1
    for number in range(MOST_FOLDERS + 1):
        hints.folder(f"/in/{number}")
    paths, folders, lost = hints.take()
    assert len(folders) == MOST_FOLDERS
    assert lost


def test_hints_of_mended_rights_stay_bounded_and_mean_everything_in_the_end():
    hints = Hints("/in", lambda: None)
    hints.mended("/in", is_folder=True)
    hints.mended("/in/a/x", is_folder=False)
    hints.mended("/elsewhere", is_folder=True)
    assert hints.take_mended() == {"": True, "a/x": False}
    for number in range(MOST_FOLDERS + 10):
        hints.mended(f"/in/{number}", is_folder=False)
    mended = hints.take_mended()
    assert mended[""]
    assert len(mended) == MOST_FOLDERS + 1
    assert hints.take_mended() == {}


def test_events_that_nobody_will_read_are_left_out_but_not_forgotten():
    hints = Hints("/in", lambda: None)
    for number in range(MOST_EVENTS):
        assert hints.count()
        hints.file(f"/in/{number}")

    assert not hints.count()
    assert hints.is_drowned
    assert hints.take()[2]
    assert hints.count()


def test_failing_wake_does_not_reach_the_observer(tmp_path, drop):
    def fail():
        raise RuntimeError("no")

    hints = Hints("/in", fail)
    hints.file("/in/x")

    assert hints.take() == (["x"], {}, True)


def test_closing_leaves_no_thread_and_no_descriptor(tmp_path, drop):
    before = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with armed(tmp_path):
            pass
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) != before:
        time.sleep(0.01)

    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before


def test_mount_table_is_read_with_its_escapes():
    table = (
        b"21 1 254:1 / / rw,relatime - ext4 /dev/vda rw\n"
        b"30 21 0:31 / /mnt/CT\\040room rw shared:7 master:1 - cifs //nas/ct\\040x rw,serverino\n"
        b"31 21 0:40 / /mnt/sshfs rw - fuse.sshfs host:/x rw\n"
        b"garbage\n"
        b"32 21 0:33 / /srv\\134x rw - nfs4 nas:/x rw\n"
    )

    mounts = parse_mountinfo(table)

    assert mounts[1] == Mount(
        mount_point="/mnt/CT room", kind="cifs", source="//nas/ct x", options=frozenset({"rw", "serverino"})
    )
    assert [mount.is_remote for mount in mounts] == [False, True, True, True]
    assert mounts[3].mount_point == "/srv\\x"


def test_longest_and_latest_mount_counts(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"1 1 1:1 / / rw - ext4 /dev/vda rw\n"
        b"2 1 1:2 / /mnt rw - xfs /dev/vdb rw\n"
        b"3 1 1:3 / /mnt rw - nfs4 nas:/x rw\n"
        b"4 1 1:4 / /mnt/deep rw - tmpfs tmpfs rw\n"
    )

    def kind(path):
        return mount_of(path, mountinfo=str(table)).kind

    assert [kind(path) for path in ("/mnt", "/mnt/x", "/mnt/deeper", "/mnt/deep/x", "/etc")] == [
        "nfs4", "nfs4", "nfs4", "tmpfs", "ext4",
    ]  # fmt: skip
    assert mount_of("/", mountinfo=str(tmp_path / "missing")) is None


REMOTE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ingestd.fs import mounts
from ingestd.inbox import folder_health
table = Path(sys.argv[2]) / "mountinfo"
table.write_text(f"1 1 1:1 / / rw - ext4 /dev/vda rw\\n2 1 1:2 / {sys.argv[2]}/drop-a rw - nfs4 nas:/x rw\\n")
folder_health.mount_of = lambda path: mounts.mount_of(path, mountinfo=str(table))
from tests.inboxing import Desk, policy
base = Path(sys.argv[2])
(base / "drop-a").mkdir()
for number in range(500):
    (base / "drop-a" / str(number)).write_bytes(b"x")
with Desk(base, policy(base, settle=None)) as desk:
    desk.inboxes.open()
    desk.settle(29)
    early = len(desk.ready_now())
    desk.pass_time(2)
    came = desk.look_until(lambda came: len(came) == 500)
    report = desk.report()
    print(early, len(came), report.watching, report.mount_type)
    folder = desk.inboxes._folders["a"]
    import threading, time
    stuck = threading.Event()
    desk.look_until(lambda _: desk.inboxes._folders["a"]._io.in_flight == 0)
    folder._start(lambda: stuck.wait(60), lambda _: None)
    began = time.monotonic()
    desk.look()
    folder._job_began -= 31
    desk.look()
    print(time.monotonic() - began < 1, desk.report().alarm.startswith("the folder has not answered for 31 s"))
    stuck.set()
    desk.look_until(lambda _: not desk.report().alarm)
    print("back")
"""


def test_remote_mount_is_polled_by_a_thread_that_may_hang_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(Path(__file__).parents[2]), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "inbox." not in line]
    assert lines == ["0 500 poll nfs4", "True True", "back"]


def test_folder_that_an_event_named_and_that_cannot_be_looked_at_is_seen_soon(tmp_path, drop, monkeypatch):
    fstat, failed = os.fstat, []

    def fail(descriptor):
        if not failed and Path(f"/proc/self/fd/{descriptor}").readlink() == drop / "study" / "series":
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fstat(descriptor)

    with armed(tmp_path) as desk:
        desk.scan_again()
        monkeypatch.setattr(os, "fstat", fail)
        (tmp_path / "study" / "series").mkdir(parents=True)
        (tmp_path / "study" / "series" / "x").write_bytes(b"x")
        (tmp_path / "study").rename(drop / "study")

        desk.look_until(lambda _: desk.report().waiting_settle == 1)

    assert failed
