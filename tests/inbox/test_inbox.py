"""The inboxes: finished files are handed out once, unfinished ones wait, nothing is touched that is not ours."""

import os
import socket
import subprocess
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.inbox import Leave, Take, Watch
from tests.inboxing import Desk, policy, quick_folder, source_of
from tests.running import filesystem_of


@pytest.fixture
def drop(tmp_path):
    folder = tmp_path / "drop-a"
    folder.mkdir()
    return folder


@pytest.fixture
def quick(tmp_path):
    with quick_folder(tmp_path) as folder:
        yield folder


def desk_of(base, *policies, **options):
    return Desk(base, *(policies or (policy(base, watch=Watch.POLL),)), **options)


def put(folder, name, content=b"content"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def append(path, content):
    with path.open("ab") as file:
        file.write(content)


def names(candidates):
    return sorted(candidate.relative_path for candidate in candidates)


def by_ctime(base, *, settle):
    return policy(base, watch=Watch.POLL, settle=timedelta(seconds=settle), by_ctime=True)


def test_file_that_a_person_named_need_not_settle_again(tmp_path, drop):
    put(drop, "x")
    time.sleep(0.1)
    with desk_of(tmp_path, by_ctime(tmp_path, settle=0.05)) as desk:
        desk.settle(0)

        assert names(desk.ready_now()) == ["x"]


def test_file_that_a_person_named_settles_while_it_is_new(tmp_path, drop):
    put(drop, "x")
    with desk_of(tmp_path, by_ctime(tmp_path, settle=60)) as desk:
        desk.settle(30)
        assert desk.ready_now() == []
        append(drop / "x", b"more")
        desk.settle(31)
        assert desk.ready_now() == []
        desk.pass_time(61)

        assert names(desk.ready_now()) == ["x"]


def test_ctime_of_a_network_mount_tells_of_no_time_before(tmp_path, drop, monkeypatch):
    put(drop, "x")
    time.sleep(0.1)
    monkeypatch.setattr("ingestd.fs.mounts.REMOTE", {filesystem_of(drop)})
    with desk_of(tmp_path, by_ctime(tmp_path, settle=0.05)) as desk:
        desk.settle(0)
        assert desk.ready_now() == []
        desk.pass_time(0.1)

        assert names(desk.look_until(bool)) == ["x"]


def test_file_is_handed_out_once_after_its_settle_time(tmp_path, drop):
    put(drop, "study/x")
    with desk_of(tmp_path) as desk:
        desk.settle(1.5)
        assert desk.ready_now() == []
        desk.pass_time(0.6)

        (candidate,) = desk.ready_now()

        assert candidate.relative_path == "study/x"
        assert candidate.path == str(drop / "study" / "x")
        assert candidate.source == source_of(drop / "study" / "x")
        assert not candidate.final
        assert not candidate.in_place
        desk.pass_time(100)
        assert desk.ready_now() == []
        assert desk.report().in_hand == 1
        desk.inboxes.take_back(candidate, Leave.DONE)
        assert desk.report().in_hand == 0


def test_file_still_growing_is_left_alone(tmp_path, drop):
    path = put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(0)
        for _ in range(5):
            append(path, b"more")
            desk.pass_time(2.1)
            assert desk.ready_now() == []
        desk.pass_time(2.1)

        assert names(desk.ready_now()) == ["x"]


@pytest.mark.parametrize("change", ["rewritten in place with the same size", "replaced", "time set back"])
def test_change_that_keeps_the_size_starts_over(tmp_path, drop, change):
    path = put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(1.9)
        if change == "replaced":
            put(tmp_path, "other").replace(path)
        elif change == "time set back":
            os.utime(path, ns=(0, -1_000_000_000))
        else:
            path.write_bytes(b"CONTENT")
            os.utime(path, ns=(5, 5))
        desk.pass_time(0.2)
        assert desk.ready_now() == []
        desk.pass_time(2.1)

        assert desk.ready_now()[0].source == source_of(path)


def test_age_of_the_mtime_means_nothing(tmp_path, drop):
    for name, when in (("old", -(10**18)), ("zero", 0), ("future", 4 * 10**18)):
        os.utime(put(drop, name), ns=(when, when))
    with desk_of(tmp_path) as desk:
        desk.settle(1.9)
        assert desk.ready_now() == []
        desk.pass_time(0.2)

        assert names(desk.ready_now()) == ["future", "old", "zero"]


def test_file_that_a_writer_has_open_waits_until_it_is_closed(tmp_path, drop):
    path = put(drop, "x")
    with desk_of(tmp_path) as desk:
        with path.open("ab"):
            desk.settle(2.1)
            assert desk.ready_now() == []
            assert desk.report().waiting_writer == 1
            desk.pass_time(60)
            assert desk.ready_now() == []
        desk.pass_time(31)

        assert names(desk.ready_now()) == ["x"]


def test_forgotten_descriptor_does_not_hold_a_file_for_ever(tmp_path, drop):
    path = put(drop, "x")
    with path.open("ab"), desk_of(tmp_path) as desk:
        desk.settle(2.1)
        assert desk.ready_now() == []
        desk.pass_time(900)

        (candidate,) = desk.ready_now()

        assert candidate.final


def test_opening_for_writing_during_our_look_harms_neither(tmp_path, drop):
    """A lease that is broken signals its holder; the default signal would kill the daemon."""
    paths = [put(drop, str(number)) for number in range(40)]
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for path in paths:
                append(path, b"")

    writer = threading.Thread(target=write)
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        writer.start()
        try:
            seen = []
            for _ in range(60):
                seen += desk.ready_now()
                desk.pass_time(31)
        finally:
            stop.set()
            writer.join()
        desk.pass_time(31)
        seen += desk.ready_now()

    assert names(seen) == sorted(str(number) for number in range(40))


def test_short_file_waits_until_it_grows(tmp_path, drop):
    path = put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        desk.inboxes.take_back(desk.ready_now()[0], Leave.INCOMPLETE)
        desk.pass_time(600)
        assert desk.ready_now() == []
        assert desk.report().waiting_incomplete == 1
        append(path, b"the rest")
        desk.settle(2.1)

        (candidate,) = desk.ready_now()

        assert not candidate.final
        assert candidate.source.size_bytes == 15


def test_short_file_that_was_removed_is_not_waited_for(tmp_path, drop):
    """It was for ``incomplete_after``, and `status` told of a file that had waited ever longer."""
    path = put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        desk.inboxes.take_back(desk.ready_now()[0], Leave.INCOMPLETE)
        desk.pass_time(31)
        assert desk.ready_now() == []
        assert desk.report().waiting_incomplete == 1
        path.unlink()
        desk.pass_time(31)
        assert desk.ready_now() == []

        report = desk.report()
        assert (report.waiting_incomplete, report.oldest_since, report.vanished) == (0, None, 1)


def test_short_file_that_stays_short_comes_back_as_final(tmp_path, drop):
    put(drop, "x", b"")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        (first,) = desk.ready_now()
        desk.inboxes.take_back(first, Leave.INCOMPLETE)
        desk.pass_time(890)
        assert desk.ready_now() == []
        desk.pass_time(10)

        (second,) = desk.ready_now()

        assert not first.final
        assert second.final


def test_inboxes_that_take_the_place_of_others_know_since_when_a_file_is_as_it_is(tmp_path, drop):
    for name in ("same", "grows", "touched"):
        put(drop, name)
    with Desk(tmp_path, policy(tmp_path)) as desk:
        desk.settle(1.5)
        since = desk.report().oldest_since
    with Desk(tmp_path, policy(tmp_path)) as between:
        between.ahead = desk.ahead
        between.inboxes.take_over(desk.inboxes)  # and is replaced before it saw anything
    put(drop, "grows", content=b"more than before")
    (drop / "touched").chmod(0o640)
    with Desk(tmp_path, policy(tmp_path)) as following:
        following.ahead = desk.ahead
        following.inboxes.take_over(between.inboxes)
        following.settle(0.6)

        assert names(following.ready_now()) == ["same"]
        assert following.report().oldest_since == since
        following.pass_time(1.5)
        assert names(following.ready_now()) == ["grows", "touched"]


def test_growth_begins_the_wait_for_the_rest_anew(tmp_path, drop):
    """A slow writer, minutes between two pieces, is not refused for the time that it took in all."""
    path = drop / "x"
    path.write_bytes(b"short")
    with Desk(tmp_path, policy(tmp_path, incomplete_after=timedelta(minutes=15))) as desk:
        desk.settle()
        for _piece in range(3):
            (candidate,) = desk.ready_now()
            assert not candidate.final
            desk.inboxes.take_back(candidate, Leave.INCOMPLETE)
            desk.pass_time(14 * 60)
            with path.open("ab") as file:
                file.write(b"a piece more")
            desk.settle()

        (candidate,) = desk.ready_now()
        assert not candidate.final
        desk.inboxes.take_back(candidate, Leave.INCOMPLETE)
        desk.pass_time(14 * 60)
        assert desk.ready_now() == []
        desk.pass_time(61)
        (candidate,) = desk.ready_now()
        assert candidate.final


def test_a_file_is_gone_only_if_its_inbox_is_the_folder_that_it_was_and_not_empty(tmp_path, drop):
    """A share that is unmounted leaves an empty folder, or whatever lay there before, and no deletion."""
    (drop / "kept").write_bytes(b"x")
    place = str(drop / "missing")
    with Desk(tmp_path, policy(tmp_path)) as desk:
        desk.settle()
        assert desk.inboxes.tells_gone(place)
        drop.rename(tmp_path / "away")
        assert not desk.inboxes.tells_gone(place)
        drop.mkdir()
        assert not desk.inboxes.tells_gone(place)
        (drop / "another").write_bytes(b"x")
        assert not desk.inboxes.tells_gone(place)
        (drop / "another").unlink()
        drop.rmdir()
        (tmp_path / "away").rename(drop)
        assert desk.inboxes.tells_gone(place)
        (drop / "kept").unlink()
        assert not desk.inboxes.tells_gone(place)


def test_incomplete_after_nothing_makes_every_file_final(tmp_path, drop):
    put(drop, "x")
    with desk_of(tmp_path, policy(tmp_path, watch=Watch.POLL, incomplete_after=timedelta(0))) as desk:
        desk.settle(2.1)

        assert desk.ready_now()[0].final


def test_ignored_names_are_counted_and_left(tmp_path, drop):
    clutter = [
        "a.part", "B.TMP", "c~", "~lock.dcm", ".hidden", "Thumbs.db", "DESKTOP.INI", ".DS_Store", "autorun.inf",
        "notes.txt", ".git/x", "half.tmp/x", "skip/deep/x", ".ingestd-removing/x",
    ]  # fmt: skip
    for name in [*clutter, "x", "part", "tmp", "thumbs", "skip.dcm", "s/y"]:
        put(drop, name)
    mine = policy(tmp_path, watch=Watch.POLL, ignore=("*.txt", "skip/deep"))
    with desk_of(tmp_path, mine) as desk:
        desk.settle(2.1)

        assert names(desk.ready_now()) == ["part", "s/y", "skip.dcm", "thumbs", "tmp", "x"]
        assert desk.report().ignored == len(clutter)
    assert all((drop / name).exists() for name in clutter)


def test_index_of_a_medium_is_counted_and_handed_out(tmp_path, drop):
    put(drop, "cd/DICOMDIR")
    put(drop, "cd/IM1")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)

        assert names(desk.ready_now()) == ["cd/DICOMDIR", "cd/IM1"]
        assert desk.report().dicomdir == 1


def test_only_regular_files_are_taken(tmp_path, drop):
    outside = put(tmp_path, "outside/secret")
    (drop / "link").symlink_to(outside)
    (drop / "dangling").symlink_to(tmp_path / "nowhere")
    (drop / "folder").symlink_to(outside.parent)
    os.mkfifo(drop / "fifo.dcm")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(drop / "socket"))
    if os.geteuid() == 0:
        os.mknod(drop / "device", 0o20666, os.makedev(1, 3))
    else:
        os.mkfifo(drop / "device")
    put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)

        assert names(desk.ready_now()) == ["x"]
        assert desk.report().not_regular == 6
    assert len(list(drop.iterdir())) == 7


def test_file_swapped_for_something_else_while_it_settles_is_forgotten(tmp_path, drop):
    for name in ("link", "fifo", "folder", "gone"):
        put(drop, name)
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        for path in drop.iterdir():
            path.unlink()
        (drop / "link").symlink_to(put(tmp_path, "outside"))
        os.mkfifo(drop / "fifo")
        (drop / "folder").mkdir()

        assert desk.ready_now() == []
        assert desk.report().waiting_settle == 0
        assert desk.report().vanished == 1


def test_hard_link_is_taken_like_any_file(tmp_path, drop):
    os.link(put(tmp_path, "archive/x"), drop / "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        (taken,) = desk.take(desk.ready_now())

        assert (desk.spool.path / taken.path).exists()
    assert (tmp_path / "archive" / "x").exists()


def test_names_of_every_kind_and_deep_folders_are_found(tmp_path, drop):
    wanted = {
        b"\xff\xfe",
        b"new\nline",
        b"a" * 255,
        "\u202eevil".encode(),
        b"\x1b[31m",
        b" ",
        b"-rf",
        b"..dcm"[1:] + b"x",
    }
    wanted.discard(b".dcmx")
    for name in wanted:
        (drop / os.fsdecode(name)).write_bytes(b"x")
    put(drop, "/".join(["d"] * 32) + "/x")
    put(drop, "e/" + "/".join(["d"] * 32) + "/x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        came = {os.fsencode(one.relative_path) for one in desk.ready_now()}

        assert came == wanted | {b"/".join([b"d"] * 32) + b"/x"}
        assert desk.report().too_deep == 1


def test_empty_folders_are_left_alone(tmp_path, drop):
    put(drop, "study/series/x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        came = desk.ready_now()
        desk.take(came)
        desk.inboxes.take_back(came[0], Leave.DONE)
        desk.settle(2.1)

    assert (drop / "study" / "series").is_dir()


def test_folders_that_lay_empty_long_enough_are_told_the_deepest_first(tmp_path, drop):
    put(drop, "a/b/c/x").unlink()
    put(drop, "a/full/x")
    put(drop, "hidden/.x")
    put(drop, "d/e/x").unlink()
    (drop / "d" / "link").symlink_to(drop)
    with desk_of(tmp_path, policy(tmp_path, watch=Watch.POLL, emptied_after=timedelta(seconds=-1))) as desk:
        desk.scan_again()
        [(inbox, emptied)] = desk.inboxes.take_emptied()

        assert inbox == "a"
        assert emptied[emptied.index("a/b/c") :][:2] == ["a/b/c", "a/b"]
        assert sorted(emptied) == ["a/b", "a/b/c", "d/e"]
        assert desk.inboxes.take_emptied() == []


def test_emptiness_of_our_own_making_is_no_alarm(tmp_path, drop):
    (drop / "a" / "b").mkdir(parents=True)
    (drop / "c").mkdir()
    with desk_of(tmp_path) as desk:
        desk.scan_again()
        for ours, folders in ((2, ["a/b", "a"]), (1, ["c"])):
            desk.inboxes.folders_leave("a", ours)
            for folder in folders:
                (drop / folder).rmdir()
        desk.scan_again()

        assert desk.report().alarm == ""


def test_folders_are_not_told_before_their_time_nor_without_being_asked_for(tmp_path, drop):
    put(drop, "a/x").unlink()
    for after in (timedelta(days=1), None):
        with desk_of(tmp_path, policy(tmp_path, watch=Watch.POLL, emptied_after=after)) as desk:
            desk.scan_again()
            assert desk.inboxes.take_emptied() == []


def test_spool_and_other_inboxes_inside_are_not_scanned(tmp_path):
    base = tmp_path / "drop-a"
    (base / "inner").mkdir(parents=True)
    put(base, "spool/files/a/0123")
    put(base, "spool/spool.id", b"00000000-0000-4000-8000-000000000000")
    put(base, "inner/y")
    put(base, "x")
    with Desk(
        base, policy(tmp_path, watch=Watch.POLL), policy(tmp_path, "b", path=base / "inner", watch=Watch.POLL)
    ) as desk:
        desk.settle(2.1)
        came = desk.ready_now()

    assert sorted((one.inbox, one.relative_path) for one in came) == [("a", "x"), ("b", "y")]


def test_inboxes_that_cannot_go_together_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    for policies, word in (
        ((policy(tmp_path), policy(tmp_path, path=tmp_path / "x")), "named"),
        ((policy(tmp_path), policy(tmp_path, "b", path=tmp_path / "x" / ".." / "drop-a")), "one folder"),
        ((policy(tmp_path, path=tmp_path / "spool" / "files"),), "inside the spool"),
    ):
        with pytest.raises(ValueError, match=word):
            Desk(tmp_path, *policies)
    with pytest.raises(ValueError, match="inbox name"):
        policy(tmp_path, "../x", path=tmp_path)


def test_unreadable_file_is_reported_and_tried_again(tmp_path, drop):
    put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        desk.inboxes.take_back(desk.ready_now()[0], Leave.UNREADABLE)
        assert desk.ready_now() == []
        assert desk.report().unreadable == 1
        desk.pass_time(1.1)
        (candidate,) = desk.ready_now()
        desk.inboxes.take_back(candidate, Leave.UNREADABLE)
        desk.pass_time(1.1)
        assert desk.ready_now() == []
        desk.pass_time(1)

        assert names(desk.ready_now()) == ["x"]
        assert desk.report().unreadable == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_what_may_not_be_opened_is_left_and_reported():
    base = Path("/var/tmp") / f"ingestd-test-{uuid.uuid4().hex}"
    base.mkdir()
    put(base, "drop-a/secret").chmod(0o000)
    put(base, "drop-a/closed/x").parent.chmod(0o700)
    put(base, "drop-a/open")
    os.chown(base, 65534, 65534)
    os.seteuid(65534)
    try:
        with desk_of(base) as desk:
            desk.settle(2.1)

            assert names(desk.ready_now()) == ["open"]
            assert desk.report().unreadable == 2
            desk.settle(31)
            assert desk.ready_now() == []
    finally:
        os.seteuid(0)
        subprocess.run(["rm", "-rf", str(base)], check=True)


def test_changed_file_is_observed_anew(tmp_path, drop):
    path = put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        (candidate,) = desk.ready_now()
        append(path, b"more")
        desk.inboxes.take_back(candidate, Leave.AGAIN)
        assert desk.ready_now() == []
        desk.pass_time(2.1)

        (second,) = desk.ready_now()

        assert second.source == source_of(path)


def test_name_that_is_used_again_while_we_have_the_first_file_is_seen(tmp_path, drop):
    put(drop, "IM0001")
    with Desk(tmp_path, policy(tmp_path)) as desk:
        desk.inboxes.open()
        desk.settle(2.1)
        came = desk.ready_now()
        desk.take(came)
        put(drop, "IM0001", b"the next study")
        desk.scan_again()
        desk.inboxes.take_back(came[0], Leave.DONE)
        desk.look_until(lambda _: desk.report().waiting_settle == 1, limit=5)
        desk.pass_time(2.1)

        assert [one.source.size_bytes for one in desk.ready_now()] == [14]


def test_file_in_place_is_asked_about_and_never_touched(tmp_path, drop):
    for number in range(30):
        put(drop, f"{number % 3}/{number}")
    rows = set()
    with desk_of(tmp_path, policy(tmp_path, take=Take.IN_PLACE, watch=Watch.POLL)) as desk:
        known = lambda one: (one.relative_path, one.source.mtime_ns) in rows  # noqa: E731
        desk.settle(2.1, known=known)
        came = desk.ready_now()
        assert len(came) == 30
        assert all(one.in_place for one in came)
        for one in came:
            rows.add((one.relative_path, one.source.mtime_ns))
            desk.inboxes.take_back(one, Leave.DONE)
        desk.settle(2.1, known=known)
        assert desk.report().waiting_settle == 0
        assert desk.report().files_seen == 30
        os.utime(drop / "1" / "1", ns=(7, 7))
        desk.settle(2.1, known=known)

        assert names(desk.ready_now()) == ["1/1"]
    assert sum(1 for path in drop.rglob("*") if path.is_file()) == 30


def test_source_elsewhere_that_waits_for_removal_is_not_admitted_again(tmp_path):
    elsewhere = Path("/dev/shm") / f"ingestd-test-{uuid.uuid4().hex}"
    if not elsewhere.parent.is_dir() or elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no second filesystem here")
    try:
        put(elsewhere, "x")
        put(elsewhere, "y")
        with desk_of(tmp_path, policy(tmp_path, path=elsewhere, watch=Watch.POLL)) as desk:
            desk.settle(2.1, known=lambda one: one.relative_path == "x")

            assert names(desk.ready_now()) == ["y"]
    finally:
        subprocess.run(["rm", "-rf", str(elsewhere)], check=True)


def test_more_files_than_are_tracked_all_come(quick):
    tmp_path, drop = quick, quick / "drop-a"
    for number in range(3_000):
        put(drop, f"{number % 7}/{number}", b"")
    with desk_of(tmp_path, track_most=100) as desk:
        came = set()
        for _ in range(200):
            for one in desk.ready_now():
                came.add(one.relative_path)
                Path(one.path).unlink()
                desk.inboxes.take_back(one, Leave.DONE)
            report = desk.report()
            assert report.waiting_settle + report.in_hand <= 100
            desk.pass_time(2.1)
            if len(came) == 3_000:
                break

    assert len(came) == 3_000


def test_files_that_wait_for_their_rest_do_not_keep_out_the_others(tmp_path, drop):
    for number in range(300):
        put(drop, f"short{number}", b"")
    with desk_of(tmp_path, track_most=50) as desk:
        came = []
        put(drop, "whole")
        for _ in range(100):
            for one in desk.ready_now():
                if one.relative_path == "whole":
                    came.append(one)
                desk.inboxes.take_back(one, Leave.INCOMPLETE)
            if came:
                break
            desk.pass_time(31)

    assert names(came) == ["whole"]


def test_each_look_is_short_and_the_rest_follows(quick):
    tmp_path, drop = quick, quick / "drop-a"
    drop.mkdir()
    for number in range(8_000):
        (drop / str(number)).touch()
    with desk_of(tmp_path) as desk:
        longest = 0.0
        looks = 0
        while desk.report().scans == 0:
            began = time.thread_time()
            seen = desk.look()
            longest = max(longest, time.thread_time() - began)
            looks += 1
            assert looks < 1_000
            assert desk.report().scans or seen.next_at <= desk.now

    assert longest < 0.2


def test_room_bounds_what_is_handed_out(tmp_path, drop):
    for number in range(100):
        put(drop, str(number))
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        none = desk.look(0)
        assert none.ready == ()
        assert none.next_at is None or none.next_at > desk.now
        came = [*desk.look(30).ready, *desk.look(30).ready]

        assert len(came) == 60
        assert len({one.relative_path for one in came}) == 60


def test_inboxes_take_turns(tmp_path):
    several = [policy(tmp_path, name, watch=Watch.POLL) for name in "abc"]
    for one in several:
        for number in range(500 if one.name == "a" else 40):
            put(one.path, str(number))
    with desk_of(tmp_path, *several) as desk:
        desk.settle(2.1)
        came = [one for _ in range(4) for one in desk.look(48).ready]

    assert {inbox: sum(one.inbox == inbox for one in came) for inbox in "bc"} == {"b": 40, "c": 40}
    assert sum(one.inbox == "a" for one in came) >= 48


def test_important_inbox_goes_first_however_long_the_other_has_waited_and_does_not_starve_it(tmp_path):
    several = [policy(tmp_path, "a", watch=Watch.POLL), policy(tmp_path, "stat", watch=Watch.POLL, priority=5)]
    put(several[0].path, "waits")
    put(several[0].path, "waits, too")
    with desk_of(tmp_path, *several) as desk:
        desk.settle(2.1)
        desk.pass_time(3600)
        for number in range(20):
            put(several[1].path, f"{number}")
        desk.settle(2.1)
        served = [one for _ in range(8) for one in desk.look(1).ready]

    assert [one.inbox for one in served] == ["stat", "stat", "stat", "a"] * 2
    assert {(one.inbox, one.priority) for one in served} == {("stat", 5), ("a", 0)}


def test_vanished_folder_is_an_alarm_and_comes_back_by_itself(tmp_path, drop):
    put(drop, "x")
    with Desk(tmp_path, policy(tmp_path)) as desk:
        desk.inboxes.open()
        desk.settle(0)
        drop.rename(tmp_path / "away")
        desk.pass_time(6)
        desk.look_until(lambda _: desk.report().alarm)
        assert desk.report().alarm == "the folder is not there"
        desk.pass_time(600)
        assert desk.ready_now() == []
        put(tmp_path, "away/y")
        (tmp_path / "away").rename(drop)
        desk.pass_time(6)
        desk.look_until(lambda _: not desk.report().alarm)
        desk.look_until(lambda _: desk.report().watching == "events")
        desk.settle(2.1)

        assert names(desk.ready_now()) == ["x", "y"]
        assert desk.report().alarm == ""


def test_folder_that_is_not_there_at_the_start_is_waited_for(tmp_path, drop):
    drop.rmdir()
    with desk_of(tmp_path) as desk:
        drop.rmdir()
        desk.inboxes.open()
        desk.look_until(lambda _: desk.report().alarm)
        put(drop, "x")
        desk.pass_time(6)
        desk.look_until(lambda _: not desk.report().alarm)
        desk.settle(2.1)

        assert names(desk.ready_now()) == ["x"]


def test_file_where_a_folder_should_be_is_an_alarm(tmp_path, drop):
    with desk_of(tmp_path) as desk:
        drop.rmdir()
        put(tmp_path, "drop-a")
        desk.look_until(lambda _: desk.report().alarm)

        assert desk.report().alarm == "what is there is not a folder"


def test_sudden_emptiness_is_an_alarm_but_our_own_taking_is_not(tmp_path, drop):
    for number in range(20):
        put(drop, str(number))
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        came = desk.ready_now()
        desk.take(came)
        for one in came:
            desk.inboxes.take_back(one, Leave.DONE)
        desk.settle(0)
        assert desk.report().alarm == ""
        for number in range(20):
            put(drop, str(number))
        desk.settle(0)
        for path in drop.iterdir():
            path.unlink()
        desk.settle(3)
        assert desk.ready_now() == []
        assert desk.report().alarm == "empty, where 20 files were: unmounted?"
        assert desk.report().vanished == 20
        put(drop, "x")
        desk.settle(2.1)

        assert desk.report().alarm == ""
        assert names(desk.ready_now()) == ["x"]


MOUNTS = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0
assert libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0
from tests.inboxing import Desk, policy
base = Path(sys.argv[2])
share = base / "drop-a"
share.mkdir()
def say(*words): print(*words, end='\\0')
def mount(): assert libc.mount(b"tmpfs", os.fsencode(share), b"tmpfs", 0, b"size=1m") == 0
mount()
(share / "x").write_bytes(b"x")
with Desk(base, policy(base)) as desk:
    desk.inboxes.open()
    desk.settle(0)
    say(desk.report().mount_type, desk.report().alarm or "fine")
    desk.look_until(lambda _: not desk.report().scanning)
    assert libc.umount2(os.fsencode(share), 0) == 0, "a walk keeps the share busy"
    desk.pass_time(6)
    desk.look_until(lambda _: desk.report().alarm)
    say(desk.report().alarm)
    (share / "under").write_bytes(b"u")
    desk.settle(2.1)
    say([one.relative_path for one in desk.ready_now()])
    mount()
    (share / "y").write_bytes(b"y")
    desk.pass_time(6)
    desk.look_until(lambda _: not desk.report().alarm and desk.report().watching == "events")
    desk.settle(2.1)
    say(sorted(one.relative_path for one in desk.ready_now()), desk.report().watching)
    os.mkdir(share / "sub")
    inner = share / "sub"
    assert libc.mount(b"tmpfs", os.fsencode(inner), b"tmpfs", 0, b"size=1m") == 0
    (inner / "other").write_bytes(b"y")
    desk.settle(2.1)
    desk.settle(2.1)
    say([one.relative_path for one in desk.ready_now()], desk.report().other_device)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_share_that_is_unmounted_and_comes_back(tmp_path):
    done = subprocess.run(
        [os.sys.executable, "-c", MOUNTS, str(Path(__file__).parents[2]), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    before, alarm, under, after, inner = [part.rsplit("\n", 1)[-1] for part in done.stdout.split("\0")[:5]]
    assert before == "tmpfs fine"
    assert alarm.startswith("no longer mounted (was tmpfs, now ")
    assert under == "['under']"
    assert after == "['y'] events"
    assert inner == "[] 1"


def test_file_whose_rights_were_mended_is_tried_again_at_once(tmp_path, drop):
    """Its ctime tells; it waited for up to ten minutes, while somebody stood beside it."""
    put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        for _ in range(3):
            [candidate] = desk.ready_now()
            desk.inboxes.take_back(candidate, Leave.UNREADABLE)
            desk.scan_again()
            assert desk.ready_now() == [], "nothing was mended"
            desk.pass_time(61)
        [candidate] = desk.ready_now()
        desk.inboxes.take_back(candidate, Leave.UNREADABLE)

        (drop / "x").chmod(0o600)
        desk.scan_again()

        assert [one.relative_path for one in desk.ready_now()] == ["x"]


def test_file_that_could_not_be_opened_is_tried_again_within_seconds_and_ever_later(tmp_path, drop):
    """A fault that passed at once (EIO, a share that stammered) cost it half a minute."""
    put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        waits = []
        [candidate] = desk.ready_now()
        for _ in range(8):
            desk.inboxes.take_back(candidate, Leave.UNREADABLE)
            failed_at = desk.now
            while not (ready := desk.ready_now()):
                desk.pass_time(0.5)
            waits.append(desk.now - failed_at)
            [candidate] = ready
    assert waits[0] < 2, waits
    assert waits[:-1] == sorted(waits[:-1]), waits
    assert 59 < waits[-1] < 62, waits


def test_file_that_we_gave_back_is_not_taken_for_mended_again_and_again(tmp_path, drop):
    """A rename into the spool and back, on a failing disk, sets the ctime too: it was tried without any wait."""
    put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        tries = 0
        for _ in range(30):
            for candidate in desk.ready_now():
                (drop / "x").rename(tmp_path / "x")
                (tmp_path / "x").rename(drop / "x")
                desk.inboxes.take_back(candidate, Leave.UNREADABLE)
                tries += 1
            desk.scan_again()
            desk.pass_time(0.1)
        assert tries <= 6, "within 3 s; waits grow from one second"


def test_drained_means_scanned_since_and_everything_decided(tmp_path, drop):
    put(drop, "x")
    put(drop, "short", b"")
    with desk_of(tmp_path) as desk:
        start = desk.now
        assert not desk.inboxes.is_drained(start)
        desk.settle(2.1)
        assert not desk.inboxes.is_drained(start)
        came = {one.relative_path: one for one in desk.ready_now()}
        (drop / "x").unlink()
        desk.inboxes.take_back(came["x"], Leave.DONE)
        desk.inboxes.take_back(came["short"], Leave.INCOMPLETE)
        assert not desk.inboxes.is_drained(start)
        desk.pass_time(901)
        (short,) = desk.ready_now()
        (drop / "short").unlink()
        desk.inboxes.take_back(short, Leave.DONE)

        assert desk.inboxes.is_drained(start)
        assert not desk.inboxes.is_drained(desk.now + 1)


def test_missing_inbox_does_not_keep_once_from_ending(tmp_path, drop):
    with desk_of(tmp_path) as desk:
        drop.rmdir()
        desk.look_until(lambda _: desk.report().alarm)

        assert desk.inboxes.is_drained(desk.now)
        assert desk.report().alarm


def test_file_in_the_spool_can_be_settled_like_a_new_one(tmp_path, drop):
    put(drop, "x")
    with desk_of(tmp_path) as desk:
        desk.settle(2.1)
        came = desk.ready_now()
        (taken,) = desk.take(came)
        desk.inboxes.take_back(came[0], Leave.DONE)
        orphan = next(desk.spool.orphans(lambda _: set()))
        append(Path(orphan.path), b"written through an old descriptor")
        desk.inboxes.take_back(orphan, Leave.AGAIN)
        assert desk.ready_now() == []
        desk.pass_time(2.1)
        desk.ready_now()
        desk.pass_time(2.1)
        later = desk.ready_now() or desk.ready_now()

        assert [one.relative_path for one in later] in ([taken.path], [])
        assert not later or later[0].in_spool


def test_named_files_alone_are_seen(tmp_path, drop):
    for name in ("x", ".hidden", "other", "folder/x"):
        put(drop, name)
    mine = policy(tmp_path, watch=Watch.POLL, only=frozenset({"x", ".hidden"}))
    with desk_of(tmp_path, mine) as desk:
        desk.settle(2.1)

        assert names(desk.ready_now()) == [".hidden", "x"]
        assert desk.report().ignored == 0


def test_closing_the_file_ends_the_wait_for_its_writer_at_once(tmp_path, drop):
    path = put(drop, "x")
    with Desk(tmp_path, policy(tmp_path)) as desk:
        desk.inboxes.open()
        with path.open("ab"):
            desk.settle(2.1)
            desk.ready_now()
            desk.pass_time(40)
            assert desk.ready_now() == []
            desk.pass_time(1)

        assert names(desk.look_until(len, limit=5)) == ["x"]
