"""What a share does to one worker: answers that were lost, names that are remembered, a folder that is away."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ingestd.fs import durable
from ingestd.inbox import LetGo, NotTaken, Removal, Spool, Taken, WasRead, WhyNot, missing
from tests.inboxing import candidate_of, expect_of, set_aside, source_of, take_in, tree

LOST = pytest.mark.parametrize("code", [errno.ENOENT, errno.EEXIST, errno.EIO], ids=["ENOENT", "EEXIST", "EIO"])


@pytest.fixture
def here(shares):
    return shares[0]


@pytest.fixture
def there(shares):
    return shares[1]


@pytest.fixture
def spool(here):
    made = Spool(here.path / "spool")
    made.is_shared = True
    return made


@pytest.fixture
def drop(here):
    """An inbox on the spool's share."""
    folder = here.path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """An inbox on a filesystem of its own."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def put(folder: Path, name: str = "x", content: bytes = b"content") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def take(spool: Spool, folder: Path, how=take_in):
    (result,) = how(spool, [(candidate_of(folder, "x"), expect_of(folder / "x"))])
    return result


def files_in(spool: Spool) -> set[str]:
    return tree(spool.path) - {"spool.id", "lock"}


def kept(spool: Spool, folder: Path) -> str:
    """A file that was taken in, by its path in the spool."""
    put(folder)
    taken = take(spool, folder)
    assert isinstance(taken, Taken)
    return taken.path


def was_read(spool: Spool, path: str) -> WasRead:
    found = (spool.path / path).lstat()
    return WasRead(size_bytes=found.st_size, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns)


@LOST
@pytest.mark.parametrize("how", [take_in, set_aside])
def test_file_that_was_renamed_is_taken_whatever_the_answer_was(here, spool, drop, code, how):
    """It was called gone, or not taken, and lay in the spool without a row."""
    put(drop)
    here.loses("rename", code)

    taken = take(spool, drop, how)

    assert isinstance(taken, Taken), taken
    assert files_in(spool) == {taken.path}
    assert (spool.path / taken.path).read_bytes() == b"content"
    assert tree(drop) == set()


@LOST
@pytest.mark.parametrize("call", ["create", "rename"])
def test_file_that_was_copied_is_taken_whatever_the_answer_was(here, spool, elsewhere, call, code):
    put(elsewhere)
    here.loses(call, code)

    taken = take(spool, elsewhere)

    assert isinstance(taken, Taken), taken
    assert files_in(spool) == {taken.path}
    assert (spool.path / taken.path).read_bytes() == b"content"


@LOST
@pytest.mark.parametrize("how", [take_in, set_aside])
def test_folder_that_was_made_is_there_whatever_the_answer_was(here, spool, drop, code, how):
    put(drop)
    here.loses("mkdir", code, times=2)

    assert isinstance(take(spool, drop, how), Taken)


@LOST
def test_spool_whose_id_was_linked_is_made_whatever_the_answer_was(here, code):
    here.loses("link", code)

    made = Spool(here.path / "new")

    assert made.host == Spool(here.path / "new").host
    assert tree(made.path) == {"spool.id"}


def given_back(folder: Path, wanted: str = "y") -> str:
    """Give ``x`` in ``aside`` the name it is to have in ``drop``."""
    folders = [os.open(folder / name, os.O_RDONLY) for name in ("aside", "drop")]
    try:
        return durable.put_back("x", folders[0], wanted, folders[1])
    finally:
        for each in folders:
            os.close(each)


@pytest.fixture
def aside(here, drop):
    folder = here.path / "aside"
    folder.mkdir()
    put(folder)
    return folder


@LOST
@pytest.mark.parametrize("call", ["rename", "link", "unlink"])
def test_file_that_was_given_back_has_one_name_whatever_the_answer_was(here, drop, aside, call, code):
    """Its last name was removed where an unlink that was done said EIO; a link that was done left it two."""
    if call != "rename":
        here.knows_no_flags()
    here.loses(call, code)

    assert given_back(here.path) == "y"

    assert tree(here.path) == {"drop/y"}
    assert (drop / "y").read_bytes() == b"content"


@pytest.mark.parametrize("knows", ["flags", "links", "neither"])
def test_giving_back_replaces_nothing_whatever_the_share_knows(here, there, drop, aside, knows):
    """Another host gave its file that name just now, which this one does not know of yet."""
    if knows != "flags":
        here.knows_no_flags()
    if knows == "neither":
        here.knows_no_links()
    assert not (drop / "y").exists()
    put(there.path / "drop", "y", b"another")

    name = given_back(here.path)

    assert name.startswith("y-")
    assert (there.path / "drop" / "y").read_bytes() == b"another"
    assert (there.path / "drop" / name).read_bytes() == b"content"
    assert tree(aside) == set()


@LOST
@pytest.mark.parametrize("call", ["rename", "unlink"])
def test_source_that_was_removed_is_removed_whatever_the_answer_was(tmp_path, here, drop, call, code):
    """It was called gone, lay aside, and came back as another file at the next start."""
    spool = Spool(tmp_path / "spool")
    source = source_of(put(drop))
    here.loses(call, code)

    assert spool.remove_source(drop, "x", source) is Removal.REMOVED
    assert spool.recover_removals(drop, []) == 0
    assert tree(drop) == set()


@LOST
def test_kept_file_that_was_removed_is_gone_whatever_the_answer_was(here, spool, drop, code):
    path = kept(spool, drop)
    known = was_read(spool, path)
    here.loses("unlink", code)

    assert spool.let_go([(path, known)]) == [LetGo.GONE]
    assert files_in(spool) == set()


@LOST
def test_needless_file_that_was_removed_is_gone_whatever_the_answer_was(here, spool, drop, code):
    path = kept(spool, drop)
    here.loses("unlink", code)

    spool.discard(path)

    assert files_in(spool) == set()


@LOST
def test_file_that_was_set_apart_is_told_whatever_the_answer_was(here, spool, drop, code):
    path = kept(spool, drop)
    here.loses("rename", code)

    own = spool.set_apart("a", path)

    assert files_in(spool) == {own}


def test_file_that_another_host_brought_is_no_missing_one(here, there, spool, drop, monkeypatch):
    """This one had looked for it before, and is told for a minute that it is not there."""
    path = f"{kept(spool, drop).rpartition('/')[0]}/brought"
    place = str(spool.path / path)
    assert not os.path.lexists(place)
    put(there.path / "spool" / path.rpartition("/")[0], "brought")
    assert not os.path.lexists(place)

    monkeypatch.setattr(missing, "SURE_SECONDS", 0.0)
    assert not spool.tells_gone(place)
    assert spool.stat(path) is not None


def test_file_is_gone_once_it_was_missing_twice_a_minute_apart(there, spool, drop, monkeypatch):
    path = kept(spool, drop)
    place, known = str(spool.path / path), was_read(spool, path)
    (there.path / "spool" / path).unlink()
    other = f"{path[:-1]}x"  # this host never saw it, so that it does not take it for one that is there
    now = float(round(missing.boottime()))  # of others the sum of two waits may come out less
    monkeypatch.setattr(missing, "boottime", lambda: now)

    for seconds in (59.0, 1.0):
        assert not spool.tells_gone(place)
        assert spool.let_go([(path, known)]) == [LetGo.MISSING]
        with pytest.raises(OSError, match="not found"):
            spool.stat(other)
        now += seconds

    assert spool.tells_gone(place)
    assert spool.stat(other) is None
    assert spool.let_go([(path, known)]) == [LetGo.GONE]


@pytest.mark.parametrize("fault", ["stale", "failing", "empty"])
def test_nothing_is_gone_of_a_spool_that_is_away_for_this_host_only(here, spool, drop, monkeypatch, fault):
    path = kept(spool, drop)
    place, known = str(spool.path / path), was_read(spool, path)
    monkeypatch.setattr(missing, "SURE_SECONDS", 0.0)
    if fault == "empty":
        here.is_empty()
    else:
        here.fails(errno.ESTALE if fault == "stale" else errno.EIO)

    assert spool.trouble()
    assert not spool.tells_gone(place)
    assert spool.let_go([(path, known)]) == [LetGo.STUCK]
    with pytest.raises(OSError, match=r"not found|Stale|Input"):
        spool.stat(path)
    result = take_in(spool, [(candidate_of(Path("/proc/self"), "stat"), expect_of("/dev/null"))])[0]
    assert isinstance(result, NotTaken)

    here.heals()
    assert not spool.trouble()
    assert files_in(spool) == {path}
    assert spool.let_go([(path, known)]) == [LetGo.GONE]


def test_spool_that_may_only_be_read_here_leaves_files_where_they_lie(here, spool, drop, elsewhere):
    path = kept(spool, drop)
    put(elsewhere)
    here.is_read_only()

    assert spool.barred()
    assert not spool.trouble()
    result = take(spool, elsewhere)
    assert isinstance(result, NotTaken)
    assert result.why is WhyNot.NO_SPOOL
    assert tree(elsewhere) == {"x"}

    here.heals()
    assert not spool.barred()
    assert isinstance(take(spool, elsewhere), Taken)
    assert path in files_in(spool)


def test_spool_that_another_host_has_just_made_is_the_same_one(here, there):
    """This one had looked for it before, and is told for a minute that there is none."""
    (here.path / "spool").mkdir()
    assert not (there.path / "spool" / "spool.id").exists()
    made = Spool(here.path / "spool")

    assert Spool(there.path / "spool").host == made.host


def test_copy_that_was_made_when_the_lease_was_over_is_not_put_into_the_spool(spool, elsewhere):
    """Another worker has taken the file in by then, of which this one would have become a second."""
    put(elsewhere)
    answers = iter([True, False])
    spool.may_act = lambda: next(answers)

    result = take(spool, elsewhere)

    assert isinstance(result, NotTaken)
    assert result.why is WhyNot.NO_SPOOL
    assert files_in(spool) == set()
    assert tree(elsewhere) == {"x"}
