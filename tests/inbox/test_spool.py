"""The spool: what is taken is durable and whole, what is not taken lies where it lay."""

import errno
import os
import re
import stat
import subprocess
import sys
import threading
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingestd.fs import durable
from ingestd.fs.mounts import free_space
from ingestd.inbox import (
    Expect,
    NotTaken,
    Removal,
    Spool,
    SpoolError,
    SpoolInUse,
    Taken,
    WhyNot,
    new_name,
    remove_folders,
    spool_names,
)
from ingestd.lifecycle import SourceStat
from tests.inboxing import candidate_of, expect_of, set_aside, source_of, take_in, tree


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


@pytest.fixture
def drop(tmp_path):
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another filesystem than the spool."""
    folder = Path("/dev/shm") / f"ingestd-test-{uuid.uuid4().hex}"
    if not folder.parent.is_dir() or folder.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no second filesystem here")
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def put(folder, name, content=b"content"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def append(path, content):
    with path.open("ab") as file:
        file.write(content)


def take(spool, folder, *names, offset=0):
    return take_in(spool, [(candidate_of(folder, name), expect_of(folder / name, offset=offset)) for name in names])


def test_spool_is_its_owners_alone_and_keeps_its_id(tmp_path):
    first = Spool(tmp_path / "deep" / "spool")
    again = Spool(tmp_path / "deep" / "spool")

    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    assert first.host == again.host
    assert str(uuid.UUID(first.host)) == first.host


def failing(code):
    """A system call that fails."""

    def fail(*_args, **_more):
        raise OSError(code, os.strerror(code))

    return fail


def test_removal_that_fails_once_is_finished_by_the_next_try_and_nothing_comes_back(spool, elsewhere, monkeypatch):
    """It lay hidden in our folder, was called gone, and came back as another file at the next start."""
    source = source_of(put(elsewhere, "s/x"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", failing(errno.EIO))
        assert spool.remove_source(elsewhere, "s/x", source) is Removal.WAITS
        assert spool.remove_source(elsewhere, "s/x", source) is Removal.WAITS
    put(elsewhere, "s/y")

    assert spool.remove_source(elsewhere, "s/x", source) is Removal.REMOVED
    spool.recover_removals(elsewhere, [])
    assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == ["y"]


def test_many_processes_that_make_one_spool_agree_on_its_id(tmp_path):
    hosts = []

    def make():
        hosts.append(Spool(tmp_path / "spool").host)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(hosts) == 8
    assert len(set(hosts)) == 1


def test_broken_spool_id_is_refused_and_left(tmp_path, spool):
    (spool.path / "spool.id").write_text("rubbish")

    with pytest.raises(SpoolError, match="UUID"):
        Spool(tmp_path / "spool")
    assert (spool.path / "spool.id").read_text() == "rubbish"


def test_folder_with_other_peoples_files_is_no_spool(tmp_path):
    put(tmp_path / "theirs", "scratch/thesis.txt")

    with pytest.raises(SpoolError, match="not a spool"):
        Spool(tmp_path / "theirs")
    assert tree(tmp_path / "theirs") == {"scratch/thesis.txt"}


def test_spool_under_a_file_is_refused_in_words(tmp_path):
    put(tmp_path, "file")

    with pytest.raises(SpoolError, match="cannot be used"):
        Spool(tmp_path / "file" / "spool")


def test_second_process_is_told_who_holds_the_lock(tmp_path, spool):
    spool.lock()
    code = (
        "import sys; from pathlib import Path; from ingestd.inbox import Spool, SpoolInUse\n"
        "try: Spool(Path(sys.argv[1])).lock()\n"
        "except SpoolInUse as error: print(error.pid)"
    )

    told = subprocess.run([sys.executable, "-c", code, str(spool.path)], capture_output=True, text=True, check=True)

    assert told.stdout.strip() == str(os.getpid())
    spool.unlock()
    other = Spool(spool.path)
    other.lock()
    other.unlock()


def test_lock_is_free_once_its_holder_was_killed(tmp_path, spool):
    code = (
        "import sys, os, signal; from pathlib import Path; from ingestd.inbox import Spool\n"
        "Spool(Path(sys.argv[1])).lock(); os.kill(os.getpid(), signal.SIGKILL)"
    )

    subprocess.run([sys.executable, "-c", code, str(spool.path)], check=False)

    spool.lock()
    spool.unlock()


def test_locking_empties_scratch_and_nothing_else(spool, drop):
    put(spool.scratch(), "half")
    put(spool.scratch(), "folder/half")
    put(drop, "x")
    (taken,) = take(spool, drop, "x")

    spool.lock()

    assert tree(spool.scratch()) == set()
    assert (spool.path / taken.path).exists()
    spool.unlock()


def test_lock_of_a_second_holder_in_the_process_is_refused(spool):
    spool.lock()
    with pytest.raises(SpoolInUse):
        Spool(spool.path).lock()
    spool.unlock()


def test_taken_file_is_renamed_under_a_random_name_with_its_time_kept(spool, drop):
    path = put(drop, "patient^name.dcm")
    os.utime(path, ns=(1, 123_456_789_012_345_678))

    (taken,) = take(spool, drop, "patient^name.dcm")

    assert isinstance(taken, Taken)
    assert taken.source_removed
    assert taken.path.startswith("files/a/")
    assert len(taken.path.rsplit("/", 1)[1]) == 32
    assert tree(drop) == set()
    assert (spool.path / taken.path).stat().st_mtime_ns == 123_456_789_012_345_678


def take_many(spool, drop, count):
    names = [f"{number}.dcm" for number in range(count)]
    for name in names:
        put(drop, name)
    return [taken.path for taken in take(spool, drop, *names)]


def folders_of(paths):
    return Counter(path.rpartition("/")[0] for path in paths)


def test_no_folder_of_the_spool_ever_has_very_many_names(spool, drop, monkeypatch):
    """With a million names in one folder, 3 kB were written for the name of each file."""
    monkeypatch.setattr(spool_names, "NAMES_A_FOLDER", 3)

    taken = folders_of(take_many(spool, drop, 7)) + folders_of(take_many(spool, drop, 2))
    copies = folders_of(str(spool.new_explicit("a").relative_to(spool.path)) for _ in range(4))

    assert sorted(taken.values()) == [3, 3, 3]
    assert sorted(copies.values()) == [1, 3]
    assert all(re.fullmatch("files/a/[0-9a-f]{8}", folder) for folder in taken)
    assert all((spool.path / folder).is_dir() for folder in copies)


def test_what_finds_no_inode_or_quota_is_told_as_what_does_not_fit(spool, drop, monkeypatch):
    """There was free space, so that nothing was low, and nobody was told why nothing came in."""
    put(drop, "x")
    items = [(candidate_of(drop, "x"), expect_of(drop / "x"))]
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing(errno.EDQUOT))
        (brought,) = take_in(spool, items)
    assert (brought.why, spool.wanted_bytes()) == (WhyNot.NO_SPACE, len(b"content"))

    assert isinstance(take_in(spool, items)[0], Taken)
    assert spool.wanted_bytes() == 0


def test_what_is_set_apart_is_one_more_name(spool, drop, monkeypatch):
    monkeypatch.setattr(spool_names, "NAMES_A_FOLDER", 2)
    (path,) = take_many(spool, drop, 1)

    assert sorted(folders_of([spool.set_apart("a", path), *take_many(spool, drop, 2)]).values()) == [1, 2]


def test_emptied_folder_goes_unless_it_is_being_filled(spool, drop, monkeypatch):
    monkeypatch.setattr(spool_names, "NAMES_A_FOLDER", 2)
    paths = take_many(spool, drop, 8)
    first, second, third, fourth = folders_of(paths)
    spool.discard(*paths[:3], *paths[4:])

    left = list(spool.listed())

    assert left == paths[3:4]
    # Of the third somebody may have the name, who is about to move a file there.
    assert set(spool.path.glob("files/a/*")) == {spool.path / folder for folder in (second, third, fourth)}
    assert not (spool.path / first).exists()


def test_each_start_fills_a_folder_of_its_own(spool, drop, monkeypatch):
    """Two starts within a second filled one, in which a new file had those of before looked through again."""
    monkeypatch.setattr(spool_names, "utc_now", lambda: datetime(2026, 1, 2, tzinfo=UTC))

    assert len(folders_of(take_many(spool, drop, 1)) + folders_of(take_many(Spool(spool.path), drop, 1))) == 2


def test_emptied_folder_of_a_former_run_goes(spool, drop):
    (path,) = take_many(spool, drop, 1)
    spool.discard(path)

    assert list(Spool(spool.path).listed()) == []
    assert list(spool.path.glob("files/a/*")) == []


def test_former_file_beside_the_folders_is_listed_and_stays_where_it_lies(spool, drop):
    (newer,) = take_many(spool, drop, 1)
    former = f"files/a/{new_name()}"
    put(spool.path, former)

    (taken,) = spool.take_in([(spool.candidate_at("a", former), expect_of(spool.path / former), new_name())])

    assert taken.path == former
    assert sorted(spool.listed()) == sorted([former, newer])


def test_results_come_in_the_order_of_the_items(spool, drop):
    names = [f"{number % 7}/{number}" for number in range(100)]
    for name in names:
        put(drop, name, name.encode())
    (drop / "3/10").unlink()
    items = [
        (candidate_of(drop, name), expect_of(drop / name))
        if (drop / name).exists()
        else (
            candidate_of(drop, "0/0"),
            Expect(source=source_of(drop / "0/0")),
        )
        for name in names
    ]
    items[10] = (
        type(items[0][0])(inbox="a", relative_path="3/10", path=str(drop / "3/10"), source=items[0][0].source),
        items[0][1],
    )

    results = take_in(spool, items)

    assert [result.candidate.relative_path for result in results] == names
    assert [isinstance(result, NotTaken) for result in results] == [name == "3/10" for name in names]
    assert results[10].why is WhyNot.GONE
    assert all(
        (spool.path / one.path).read_text() == name for one, name in zip(results, names, strict=True) if name != "3/10"
    )


@pytest.mark.parametrize("change", ["grown", "replaced", "link", "fifo", "gone", "folder_is_link", "touched"])
def test_file_that_is_not_what_was_read_is_not_taken(spool, drop, tmp_path, change):
    path = put(drop, "s/x")
    item = (candidate_of(drop, "s/x"), expect_of(path))
    if change == "grown":
        append(path, b"more")
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "folder_is_link":
        (drop / "s").rename(tmp_path / "moved")
        (drop / "s").symlink_to(tmp_path / "moved")
    else:
        path.unlink()
        if change == "replaced":
            put(drop, "s/x", b"CONTENT")
        elif change == "link":
            path.symlink_to(put(tmp_path, "other"))
        elif change == "fifo":
            os.mkfifo(path)
    before = sorted(tree(tmp_path / "moved")) if change == "folder_is_link" else sorted(tree(drop))

    (result,) = take_in(spool, [item])

    assert isinstance(result, NotTaken)
    assert result.why is (WhyNot.GONE if change in {"gone", "folder_is_link"} else WhyNot.CHANGED) or (
        change == "folder_is_link" and result.why is WhyNot.CHANGED
    )
    assert "x" not in result.note.split()
    after = sorted(tree(tmp_path / "moved")) if change == "folder_is_link" else sorted(tree(drop))
    assert before == after
    assert tree(spool.path / "files") == set()


def test_unspeakable_names_are_taken(spool, drop):
    names = [b"\xff\xfe.dcm", b"new\nline", b"-rf", b"a" * 255, "\u202eevil".encode(), b"\x1b[31m", b" ", b"..."]
    for name in names:
        (drop / os.fsdecode(name)).write_bytes(name)

    results = take(spool, drop, *[os.fsdecode(name) for name in names])

    assert all(isinstance(one, Taken) for one in results)
    assert {(spool.path / one.path).read_bytes() for one in results} == set(names)


def test_inbox_name_never_leads_out_of_the_spool(spool, drop):
    put(drop, "x")
    candidate = candidate_of(drop, "x", inbox="../../etc")

    with pytest.raises(ValueError, match="inbox name"):
        take_in(spool, [(candidate, expect_of(drop / "x"))])
    assert tree(drop) == {"x"}


def test_file_from_another_filesystem_is_copied_and_its_source_kept(spool, elsewhere):
    path = put(elsewhere, "s/x", os.urandom(3_000_000))
    os.utime(path, ns=(1, 987_654_321_000_000_001))

    (taken,) = take(spool, elsewhere, "s/x", offset=400)

    assert not taken.source_removed
    assert (spool.path / taken.path).read_bytes() == path.read_bytes()
    assert (spool.path / taken.path).stat().st_mtime_ns == 987_654_321_000_000_001
    assert tree(spool.scratch()) == set()


def test_copy_that_is_not_what_was_read_is_thrown_away(spool, elsewhere):
    path = put(elsewhere, "x", b"a" * 2_000_000)
    expect = expect_of(path, offset=100)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    (result,) = take_in(spool, [(candidate_of(elsewhere, "x"), expect)])

    assert result.why is WhyNot.CHANGED
    assert path.exists()
    assert tree(spool.path / "files") | tree(spool.scratch()) == set()


def test_changed_preamble_is_noticed_by_its_own_digest(spool, elsewhere):
    path = put(elsewhere, "x", b"p" * 132 + b"d" * 1000)
    expect = expect_of(path, offset=132)
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"q")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    (result,) = take_in(spool, [(candidate_of(elsewhere, "x"), expect)])

    assert result.why is WhyNot.CHANGED


def test_source_elsewhere_is_removed_after_its_row(spool, elsewhere):
    path = put(elsewhere, "s/x")
    source = source_of(path)
    take(spool, elsewhere, "s/x")

    assert spool.remove_source(elsewhere, "s/x", source) is Removal.REMOVED
    assert tree(elsewhere) == set()
    assert spool.remove_source(elsewhere, "s/x", source) is Removal.GONE


def test_source_that_was_written_anew_is_not_removed(spool, elsewhere):
    path = put(elsewhere, "x")
    source = source_of(path)
    path.unlink()
    put(elsewhere, "x", b"another study")

    assert spool.remove_source(elsewhere, "x", source) is Removal.CHANGED
    assert (elsewhere / "x").read_bytes() == b"another study"


def test_source_that_a_writer_has_open_waits(spool, elsewhere):
    path = put(elsewhere, "x")
    with path.open("ab"):
        assert spool.remove_source(elsewhere, "x", source_of(path)) is Removal.WAITS
        assert tree(elsewhere) == {"x"}
    assert spool.remove_source(elsewhere, "x", source_of(path)) is Removal.REMOVED


def test_source_whose_copy_is_not_there_any_more_stays(spool, elsewhere):
    """A person had moved the copy: the source, and with it the last of the file, went."""
    path = put(elsewhere, "x")
    expect = expect_of(path)
    (taken,) = take(spool, elsewhere, "x")
    (spool.path / taken.path).unlink()

    removal = spool.remove_source(elsewhere, "x", expect.source, read=expect, copy=taken.path)
    assert removal is Removal.WAITS
    assert tree(elsewhere) == {"x"}
    path.rename(put(elsewhere, ".ingestd-removing/y"))
    assert spool.remove_source(elsewhere, "x", expect.source, read=expect, copy=taken.path) is Removal.WAITS
    assert tree(elsewhere) == {"x"}, "given back, of a removal that was cut short"
    path.rename(put(elsewhere, ".ingestd-removing/y"))
    assert spool.recover_removals(elsewhere, [(expect, taken.path)]) == 1
    (recovered,) = tree(elsewhere)
    assert recovered.startswith("recovered-")
    assert spool.remove_source(elsewhere, "x", expect.source, read=expect, copy=taken.path) is Removal.GONE


def test_source_of_a_folder_that_is_not_mounted_is_not_called_gone(spool, elsewhere):
    path = put(elsewhere, "x")
    source = source_of(path)
    elsewhere.rename(elsewhere.with_name(elsewhere.name + "-away"))

    assert spool.remove_source(elsewhere, "x", source) is Removal.WAITS
    elsewhere.with_name(elsewhere.name + "-away").rename(elsewhere)
    assert spool.remove_source(elsewhere, "x", source) is Removal.REMOVED


def test_removal_cut_short_is_finished_and_a_changed_file_given_back(spool, elsewhere):
    known = put(elsewhere, ".ingestd-removing/11")
    put(elsewhere, ".ingestd-removing/22", b"grown since")

    assert spool.recover_removals(elsewhere, [(expect_of(known), "")]) == 2

    assert tree(elsewhere) == {"recovered-22"}
    assert (elsewhere / "recovered-22").read_bytes() == b"grown since"
    assert spool.recover_removals(elsewhere, []) == 0


def rewrite(path, content):
    """Write to a file as rsync and Samba do: in place, and with the mtime that it had."""
    was = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


@pytest.mark.parametrize("known_by", ["its digest", "its copy", "a copy that is gone"])
def test_file_rewritten_while_it_lay_aside_is_given_back_whatever_its_mtime(spool, elsewhere, known_by):
    """Inode, size and mtime were compared, and the only copy of the newer bytes was removed."""
    same, newer = put(elsewhere, ".ingestd-removing/11", b"a" * 9), put(elsewhere, ".ingestd-removing/22", b"b" * 9)
    read = [expect_of(same), expect_of(newer)]
    copies = ["files/in/11", "files/in/22"]
    if known_by != "its digest":
        read = [replace(one, digest="", meta_digest="") for one in read]
    if known_by != "a copy that is gone":
        put(spool.path, copies[0], b"a" * 9)
        put(spool.path, copies[1], b"b" * 9)
    rewrite(newer, b"B" * 9)
    assert source_of(newer) == read[1].source

    spool.recover_removals(elsewhere, list(zip(read, copies, strict=True)))

    kept = {"recovered-22"} if known_by != "a copy that is gone" else {"recovered-11", "recovered-22"}
    assert tree(elsewhere) == kept
    assert (elsewhere / "recovered-22").read_bytes() == b"B" * 9


def test_file_that_is_being_written_while_it_lies_aside_is_given_back(spool, elsewhere):
    known = put(elsewhere, ".ingestd-removing/11")
    read = expect_of(known)
    with known.open("ab"):
        spool.recover_removals(elsewhere, [(read, "")])

    assert tree(elsewhere) == {"recovered-11"}


def test_file_rewritten_after_its_removal_failed_is_given_back_under_its_own_name(spool, elsewhere, monkeypatch):
    """The second try at its removal looked at inode, size and mtime only."""
    path = put(elsewhere, "s/x", b"a" * 9)
    read = expect_of(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", failing(errno.EIO))
        assert spool.remove_source(elsewhere, "s/x", read.source, read=read) is Removal.WAITS
    (aside,) = (elsewhere / ".ingestd-removing").iterdir()
    rewrite(aside, b"B" * 9)

    assert spool.remove_source(elsewhere, "s/x", read.source, read=read) is Removal.CHANGED
    assert tree(elsewhere) == {"s/x"}
    assert path.read_bytes() == b"B" * 9


@pytest.mark.parametrize("folder", ["still there", "gone"])
def test_file_that_could_not_be_given_back_is_given_back_by_the_next_try(spool, elsewhere, monkeypatch, folder):
    """It lay hidden in our folder until the next start: in no visible state."""
    path = put(elsewhere, "s/x", b"a" * 9)
    read = expect_of(path)
    with path.open("ab") as writer:
        with monkeypatch.context() as patched:
            patched.setattr(durable, "_RENAMEAT2", None)
            patched.setattr(os, "link", failing(errno.EIO))
            found = spool.remove_source(elsewhere, "s/x", read.source)
        assert found is Removal.WAITS
        assert tree(elsewhere) != {"s/x"}
        writer.write(b"newer")
    if folder == "gone":
        path.parent.rmdir()

    again = spool.remove_source(elsewhere, "s/x", read.source, read=read)
    assert again is (Removal.CHANGED if folder == "still there" else Removal.GONE)
    (name,) = tree(elsewhere)
    assert name == "s/x" or (folder == "gone" and name.startswith("recovered-"))
    assert (elsewhere / name).read_bytes() == b"a" * 9 + b"newer"


@pytest.mark.parametrize("how", ["in one step", "by a link"])
def test_file_that_is_given_back_never_has_two_names(tmp_path, monkeypatch, how):
    """It got its new name and kept the old one, and the next start made two files of it."""
    path = put(tmp_path, "aside/x")
    (tmp_path / "drop").mkdir()
    unlink = os.unlink

    def fail(name, **more):
        if name == "x":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(name, **more)

    if how == "by a link":
        monkeypatch.setattr(durable, "_RENAMEAT2", None)
    monkeypatch.setattr(os, "unlink", fail)
    folders = [os.open(tmp_path / name, os.O_RDONLY) for name in ("aside", "drop")]
    try:
        if how == "by a link":
            with pytest.raises(OSError, match="Input/output error"):
                durable.put_back("x", folders[0], "y", folders[1])
            assert tree(tmp_path) == {"aside/x"}
        else:
            assert durable.put_back("x", folders[0], "y", folders[1]) == "y"
            assert tree(tmp_path) == {"drop/y"}
            path.write_bytes(b"another")
            fresh = durable.put_back("x", folders[0], "y", folders[1])
            assert fresh.startswith("y-")
            assert tree(tmp_path) == {"drop/y", f"drop/{fresh}"}
    finally:
        for folder in folders:
            os.close(folder)


def _squat(path, kind):
    """Put something of somebody else's under our folder's name."""
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/tmp")
    else:
        path.mkdir()
        os.chown(path, 12345, 12345)


@pytest.mark.parametrize("kind", ["file", "pipe", "link", "folder of another user"])
def test_name_of_ours_that_somebody_else_has_stops_no_removal(spool, elsewhere, kind):
    """A dropper's empty file ``.ingestd-removing`` stopped all removals on that filesystem, and nobody was told."""
    if kind == "folder of another user" and os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    squatter = elsewhere / ".ingestd-removing"
    _squat(squatter, kind)
    for name in ("x", "y"):
        path = put(elsewhere, name)
        assert spool.remove_source(elsewhere, name, source_of(path)) is Removal.REMOVED

    assert spool.aside.is_squatted(str(elsewhere))
    assert not tree(elsewhere) - {".ingestd-removing"}
    assert os.path.lexists(squatter)
    assert len(list(elsewhere.iterdir())) == 2  # one other name, for both

    squatter.rmdir() if squatter.is_dir() and not squatter.is_symlink() else squatter.unlink()
    spool.aside.look(str(elsewhere))
    assert not spool.aside.is_squatted(str(elsewhere))


def test_removal_cut_short_under_another_name_is_finished_too(spool, elsewhere):
    (elsewhere / ".ingestd-removing").write_bytes(b"")
    known = put(elsewhere, ".ingestd-removing-0011/11")
    put(elsewhere, ".ingestd-removing-0011/22", b"grown since")

    assert spool.recover_removals(elsewhere, [(expect_of(known), "")]) == 2

    assert {path.name for path in elsewhere.iterdir()} == {".ingestd-removing", "recovered-22"}


def test_folder_of_ours_that_another_user_made_is_not_looked_into(spool, elsewhere):
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    put(elsewhere, ".ingestd-removing-0011/11")
    os.chown(elsewhere / ".ingestd-removing-0011", 12345, 12345)

    assert spool.recover_removals(elsewhere, []) == 0
    assert tree(elsewhere) == {".ingestd-removing-0011/11"}


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
def test_folder_of_which_nobody_can_say_whose_it_is_is_not_taken_for_ours(spool, elsewhere, monkeypatch, error):
    """Where no folder could be made to see whose it would be, another user's was used, or stayed open each time."""
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    _squat(elsewhere / ".ingestd-removing", "folder of another user")
    left = put(elsewhere, ".ingestd-removing/11")
    source = source_of(put(elsewhere, "x"))
    mkdir = os.mkdir

    def fail(path, *more, **also):
        mkdir(path, *more, **also) if path == ".ingestd-removing" else failing(error)()

    monkeypatch.setattr(os, "mkdir", fail)
    before = len(list(Path("/proc/self/fd").iterdir()))

    assert spool.remove_source(elsewhere, "x", source) is Removal.WAITS
    assert spool.recover_removals(elsewhere, [(expect_of(left), "")]) == 0
    spool.aside.look(str(elsewhere))

    assert tree(elsewhere) == {"x", ".ingestd-removing/11"}
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_only_empty_folders_are_removed_and_none_through_a_link(drop, tmp_path):
    (drop / "a" / "b").mkdir(parents=True)
    put(drop, "full/x")
    (tmp_path / "outside" / "empty").mkdir(parents=True)
    (drop / "link").symlink_to(tmp_path / "outside")

    assert remove_folders(drop, ["a/b", "a", "full", "gone", "link/empty", "../outside/empty"]) == 2
    assert {path.name for path in drop.iterdir()} == {"full", "link"}
    assert (tmp_path / "outside" / "empty").is_dir()


def test_set_aside_keeps_the_name_and_can_be_taken_after_all(spool, drop):
    put(drop, "s/report.pdf", b"%PDF")
    put(drop, "t/report.pdf", b"%PDF2")

    aside = set_aside(
        spool,
        [
            (candidate_of(drop, name), Expect(source=source_of(drop / name)))
            for name in ("s/report.pdf", "t/report.pdf")
        ],
    )

    assert [one.path.rsplit("/", 1)[1] for one in aside] == ["report.pdf", "report.pdf"]
    assert tree(drop) == set()
    candidate = spool.candidate_at("a", aside[0].path)
    (taken,) = take_in(spool, [(candidate, expect_of(candidate.path))])
    assert taken.path.startswith("files/a/")
    assert tree(spool.path / "rejected") == {aside[1].path.removeprefix("rejected/")}
    assert len(list((spool.path / "rejected" / "a").iterdir())) == 1
    assert spool.candidate_at("a", aside[0].path) is None


def test_setting_aside_again_leaves_the_file_where_it_is(spool, drop):
    put(drop, "x")
    (aside,) = set_aside(spool, [(candidate_of(drop, "x"), Expect(source=source_of(drop / "x")))])
    candidate = spool.candidate_at("a", aside.path)

    (again,) = set_aside(spool, [(candidate, Expect(source=candidate.source))])

    assert again.path == aside.path


def test_change_of_a_rejected_file_shows(spool, drop):
    put(drop, "x")
    (aside,) = set_aside(spool, [(candidate_of(drop, "x"), Expect(source=source_of(drop / "x")))])
    before = spool.stat(aside.path)
    append(spool.path / aside.path, b"the rest")

    assert spool.stat(aside.path) != before
    assert spool.candidate_at("a", aside.path).source == spool.stat(aside.path)


def test_failed_setting_aside_leaves_no_empty_folder(spool, drop):
    path = put(drop, "x")
    expect = Expect(source=SourceStat(device=1, inode=2, size_bytes=3, mtime_ns=4))

    (result,) = set_aside(spool, [(candidate_of(drop, "x"), expect)])

    assert result.why is WhyNot.CHANGED
    assert path.exists()
    assert not (spool.path / "rejected" / "a").exists() or list((spool.path / "rejected" / "a").iterdir()) == []


def test_files_without_rows_are_found_and_stay_where_they_are_when_taken(spool, drop):
    for name in ("1", "2", "3"):
        put(drop, name, name.encode())
    taken = take(spool, drop, "1", "2", "3")
    put(drop, "no")
    (aside,) = set_aside(spool, [(candidate_of(drop, "no"), Expect(source=source_of(drop / "no")))])
    put(spool.path, "explicit/a/0123")

    found = [one for one in spool.orphans(lambda paths: {taken[1].path} & set(paths)) if one is not None]

    assert {one.relative_path for one in found} == {taken[0].path, taken[2].path, aside.path}
    assert all(one.inbox == "a" and one.in_spool and one.final for one in found)
    assert tree(spool.path / "explicit") == set()
    (again,) = take_in(spool, [(found[0], expect_of(found[0].path))])
    assert again.path == found[0].relative_path


def test_ledger_is_asked_about_a_thousand_files_at_a_time(spool):
    folder = spool.path / "files" / "a"
    folder.mkdir()
    for number in range(2_500):
        (folder / f"{number:032x}").touch()
    asked = []

    found = list(spool.orphans(lambda paths: asked.append(len(paths)) or set(paths[:-1])))

    assert sorted(asked) == [500, 1_000, 1_000]
    assert [one is None for one in found] == [False, True] * 3


@pytest.mark.parametrize("bring, room", [(take_in, "files/a"), (set_aside, "rejected/a")])
def test_copy_that_cannot_be_looked_at_where_it_landed_is_not_left_there(spool, elsewhere, monkeypatch, bring, room):
    put(elsewhere, "x")
    fstat = os.fstat

    def fail(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(spool.path / room):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", fail)
    (result,) = bring(spool, [(candidate_of(elsewhere, "x"), expect_of(elsewhere / "x"))])

    assert result.why is WhyNot.ERROR
    assert tree(elsewhere) == {"x"}
    assert tree(spool.path / "files") | tree(spool.path / "rejected") | tree(spool.path / "scratch") == set()


def test_discard_removes_only_what_is_ours(spool, drop, tmp_path):
    put(drop, "x")
    outside = put(tmp_path, "archive/study")
    (taken,) = take(spool, drop, "x")
    put(drop, "y")
    (aside,) = set_aside(spool, [(candidate_of(drop, "y"), Expect(source=source_of(drop / "y")))])

    for path in (str(outside), "../archive/study", "files/../../archive/study", "spool.id", "lock", "files/", "files"):
        with pytest.raises(ValueError, match="not a path"):
            spool.discard(taken.path, path)
    assert (spool.path / taken.path).exists()
    spool.discard(taken.path, aside.path, "files/a/0000")

    assert tree(spool.path) == {"spool.id"}
    assert list((spool.path / "rejected" / "a").iterdir()) == []
    assert outside.exists()


def test_free_space_is_what_this_user_may_use(spool):
    free = free_space(spool.path)

    assert free.free_bytes > 0
    assert spool.free_bytes() > 0
    assert free.free_inodes is None or free.free_inodes > 0


SMALL = """
import ctypes, os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0
assert libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0
base = Path(sys.argv[3])
for name in ("spool", "drop"):
    (base / name).mkdir()
assert libc.mount(b"tmpfs", os.fsencode(base / "spool"), b"tmpfs", 0, b"size=256k") == 0
from tests.inboxing import candidate_of, expect_of, take_in, tree
from ingestd.inbox import Spool
spool = Spool(base / "spool")
for number in range(4):
    (base / "drop" / str(number)).write_bytes(os.urandom(100_000))
results = take_in(spool, [(candidate_of(base / "drop", str(n)), expect_of(base / "drop" / str(n))) for n in range(4)])
outcomes = sorted(str(getattr(one, "why", "taken")) for one in results)
print(outcomes, sorted(tree(base / "drop")), len(tree(spool.scratch())))
spool.discard(*[one.path for one in results if hasattr(one, "path")])
left = [one.candidate for one in results if not hasattr(one, "path")]
again = take_in(spool, [(one, expect_of(one.path)) for one in left])
print([str(getattr(one, "why", "taken")) for one in again])
assert libc.mount(b"none", os.fsencode(base / "spool"), None, 0x20 | 0x1, None) == 0
os.unlink(base / "drop" / "0"); (base / "drop" / "0").write_bytes(b"new")
(one,) = take_in(spool, [(candidate_of(base / "drop", "0"), expect_of(base / "drop" / "0"))])
print(one.why, one.note)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_full_disk_leaves_sources_untouched_and_goes_on_when_there_is_room(tmp_path):
    root = Path(__file__).parents[1]

    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(root), str(root.parent), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    full, again, read_only = done.stdout.splitlines()
    assert full == "['no_room', 'no_room', 'taken', 'taken'] ['0', '1', '2', '3'] 0"
    assert again == "['taken', 'taken']"
    assert read_only == "no_spool a folder of the spool may not be written: read-only file system"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_folder_that_may_not_be_written_leaves_the_file():
    base = Path("/var/tmp") / f"ingestd-test-{uuid.uuid4().hex}"
    path = put(base, "drop/x")
    os.chown(base, 65534, 65534)
    try:
        os.seteuid(65534)
        (result,) = take_in(Spool(base / "spool"), [(candidate_of(base / "drop", "x"), expect_of(path))])
        os.seteuid(0)

        assert result.why is WhyNot.ERROR
        assert result.note == "permission denied"
        assert tree(base / "drop") == {"x"}
    finally:
        os.seteuid(0)
        subprocess.run(["rm", "-rf", str(base)], check=True)


def test_empty_digest_is_not_checked(spool, elsewhere):
    put(elsewhere, "x", b"")

    (result,) = set_aside(spool, [(candidate_of(elsewhere, "x"), Expect(source=source_of(elsewhere / "x")))])

    assert isinstance(result, Taken)
    assert not result.source_removed


def test_failing_fsync_gives_the_files_back(spool, drop, monkeypatch):
    put(drop, "x")
    item = (candidate_of(drop, "x"), expect_of(drop / "x"))
    (spool.path / "files" / "a").mkdir()

    def fail(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    (result,) = take_in(spool, [item])

    assert result.why is WhyNot.ERROR
    assert tree(drop) == {"x"}
    assert tree(spool.path / "files") == set()


def test_names_are_given_out_in_the_order_of_time():
    """The ledger's index of paths had each random name on a page of its own, journaled and written at each commit."""
    names = [new_name() for _ in range(20_000)]

    assert {len(name) for name in names} == {32}
    assert len(set(names)) == len(names)
    assert names[0][:12] < names[-1][:12]
    assert [name[:12] for name in names] == sorted(name[:12] for name in names)
