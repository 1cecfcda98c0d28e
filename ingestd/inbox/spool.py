"""The daemon's own folder: its id, its lock, and what lies in it.

::

  <spool>/            0700
    spool.id          a UUID: the ``host`` of this spool's rows
    lock              flocked by the one daemon that takes and sends
    files/<inbox>/<32 hex>                 admitted files; the path says the inbox, nothing of the file's name is kept
    rejected/<inbox>/<32 hex>/<basename>   set aside, where a person can see it
    explicit/<inbox>/<32 hex>              re-encoded copies
    scratch/                               emptied at the start

A file without a row is work not begun (G2): ``orphans`` finds it. Every method may be called from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from ingestd.fs.durable import sync_folder, write_once
from ingestd.fs.mounts import FreeSpace, free_space, is_read_only
from ingestd.fs.open_files import hold_off_writers
from ingestd.fs.places import MISSING, open_file
from ingestd.lifecycle import SourceStat

from . import removal, takein
from .aside import Aside
from .copying import source_is_unchanged
from .types import (
    Brought,
    Candidate,
    Expect,
    LetGo,
    Removal,
    SpoolError,
    SpoolInUse,
    WasRead,
    check_inbox_name,
)

ROOMS = ("files", "rejected", "explicit", "scratch")
KNOWN_AT_ONCE = 1_000
_LOCK_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Spool:
    """One spool folder, made if it is missing.

    Raises SpoolError when it cannot be made, or when what is there is somebody else's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None
        self.low_water = 0  # bytes of its disk that no copy may use
        self._aside = Aside()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_foreign()
            if self.path.stat().st_uid == os.geteuid():
                self.path.chmod(0o700)
            self.host = self._read_id() or self._make_id()
            for room in ROOMS:
                (self.path / room).mkdir(mode=0o700, exist_ok=True)
            self.device = self.path.stat().st_dev
            self._mounted = {room for room in ROOMS if (self.path / room).stat().st_dev != self.device}
        except OSError as error:
            raise _unusable(self.path, error) from error

    @classmethod
    def rehearse(cls, path: Path) -> str | None:
        """Raise the SpoolError of making or locking the spool at this path, and change nothing; return its id, if any.

        Whether another process has it is not asked: for that the lock would have to be touched.
        """
        spool = cls.__new__(cls)
        spool.path = path.absolute()
        try:
            nearest = next(above for above in (spool.path, *spool.path.parents) if os.path.lexists(above))
            _open_folder(nearest)
            if nearest != spool.path:
                return None
            spool._refuse_foreign()  # noqa: SLF001 - our own
            host = spool._read_id()  # noqa: SLF001 - our own
            for room in ROOMS:
                if os.path.lexists(spool.path / room):
                    _open_folder(spool.path / room)
            if os.path.lexists(spool.path / "lock"):
                os.close(os.open(spool.path / "lock", _LOCK_FLAGS))
        except OSError as error:
            raise _unusable(spool.path, error) from error
        return host

    def trouble(self) -> str:
        """Say what became of the folder under us, "" when nothing did; a disk that is mounted again is as before."""
        room = ROOMS[0]
        try:
            if self._read_id() != self.host:
                return "the spool is not there: its disk is not mounted, or its folder was removed"
            device = self.path.stat().st_dev
            for room in ROOMS:
                found = (self.path / room).lstat()
                if not stat.S_ISDIR(found.st_mode) or (found.st_dev != device) != (room in self._mounted):
                    return f"the spool's folder '{room}' is another than at the start"
        except FileNotFoundError:
            return f"the spool's folder '{room}' is not there"
        except (OSError, SpoolError):
            return "the spool cannot be read"
        self.device = device
        return ""

    def barred(self) -> str:
        """Say why we may not write here, "" where we may; what is not there is told by ``trouble``."""
        with contextlib.suppress(OSError):
            for folder in (*(self.path / room for room in ROOMS), *(self.path / "files").iterdir()):
                if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
                    is_mount = is_read_only(folder)
                    why = "its disk is mounted read-only" if is_mount else "the rights of its folders forbid it"
                    return f"the spool may not be written: {why}"
        return ""

    def tells_gone(self, place: str) -> bool:
        """Whether a file of ours that is not found is gone for good, and not only the spool that it lies in."""
        return not place.startswith(f"{self.path}/") or not self.trouble()

    def lock(self) -> None:
        """Become the one process that takes and sends, and empty ``scratch``; raises SpoolInUse."""
        file = self.path / "lock"
        try:
            descriptor = os.open(file, _LOCK_FLAGS | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(descriptor, 32).partition(b"\n")[0]
                raise SpoolInUse(self.path, int(holder) if holder.isdigit() else None) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            file = self.path / "scratch"
            self.empty_scratch()
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise _unusable(self.path, error, file) from error
            raise
        self._lock = descriptor

    def unlock(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # closing it is what lets go
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def tell(self, trouble: str) -> None:
        """Put down in the lock, beside our process id, what keeps the ledger from being written; "": nothing does.

        Whoever asks cannot be told through the ledger. What is written stays within the block that the lock has.
        """
        if self._lock is not None:
            text = f"{os.getpid()}\n{trouble[:2000]}\n" if trouble else f"{os.getpid()}\n"
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, os.pwrite(self._lock, text.encode(), 0))

    def is_here(self, source: SourceStat) -> bool:
        """Whether the file is on the spool's own filesystem: then it is renamed, and its reader has to fsync it."""
        return source.device == self.device

    def take_in(self, items: Sequence[tuple[Candidate, Expect]]) -> list[Brought]:
        """Bring files into ``files/<inbox>/``; those reported as taken are durable there.

        On the spool's filesystem a file is renamed; its reader must have fsynced it. From elsewhere it is copied, and
        the copy checked against the digests; its source stays until ``remove_source``. A file that lies in ``files/``
        already stays where it is. Whatever is NotTaken lies where it lay; what is Stranded lies in the spool, and is
        to be adopted. Results come in the order of ``items``.
        """
        return takein.bring(self.path, self.device, items, room="files", low_water=self.low_water)

    def set_aside(self, items: Sequence[tuple[Candidate, Expect]]) -> list[Brought]:
        """Bring files into ``rejected/<inbox>/<random>/``, under their own names, like ``take_in``."""
        return takein.bring(self.path, self.device, items, room="rejected", low_water=self.low_water)

    def remove_source(
        self, root: Path, relative_path: str, source: SourceStat, *, read: Expect | None = None, copy: str = ""
    ) -> Removal:
        """Remove a source that was copied and whose row is committed, if it still is what was copied.

        ``root`` is the inbox's folder, ``source`` what the row remembers. With ``read``, a ctime other than its own
        has the content decide: by its digests, or by ``copy``, the path of the copy, where it has none. A copy that is
        named and not there keeps its source, which may be the last there is; "": it was let go of by rule.
        """
        place = self.path / copy if copy else None
        is_last = bool(copy) and not self._is_there(copy)
        return removal.remove(root, relative_path, source, self._aside, read=read, copy=place, is_last=is_last)

    def recover_removals(self, root: Path, unremoved: Sequence[tuple[Expect, str]]) -> int:
        """Finish removals that a crash cut short, and say how many.

        ``unremoved`` says of each row whose source is still to go what was read of it, and the path of its copy. A file
        that holds nothing of that was written to meanwhile: it goes back into the inbox under a fresh name.
        """
        kept = [(read, self.path / copy) for read, copy in unremoved if (self._is_there(copy) if copy else read.digest)]
        return removal.recover(root, kept, self._aside)

    def _is_there(self, copy: str) -> bool:
        try:
            return self.stat(copy) is not None
        except OSError:
            return False

    def remove_folders(self, root: Path, folders: Sequence[str]) -> int:
        """Remove folders of an inbox, in this order, that are empty still; say how many."""
        return removal.remove_folders(root, folders)

    def is_squatted(self, root: Path) -> bool:
        """Whether somebody else has the name of our folder in this inbox, so that another one is used."""
        return self._aside.is_squatted(str(root))

    def look_aside(self, root: Path) -> None:
        """See whether that still is so; by whoever removes sources."""
        self._aside.look(str(root))

    def discard(self, *paths: str) -> None:
        """Remove files of ours; one that is gone already is fine.

        Raises ValueError, before anything is touched, for a path outside our own rooms, and SpoolError when a file
        could not be removed; the others are.
        """
        for path in paths:
            _check_ours(path)
        folders: set[Path] = set()
        failed: OSError | None = None
        for path in paths:
            place = self.path / path
            try:
                place.unlink(missing_ok=True)
                folders.add(place.parent)
                if path.startswith("rejected/"):
                    with contextlib.suppress(OSError):
                        place.parent.rmdir()
                        folders.discard(place.parent)
                        folders.add(place.parent.parent)
            except OSError as error:
                failed = error
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                sync_folder(folder)
        if failed is not None:
            raise SpoolError(f"a spool file could not be removed: {os.strerror(failed.errno or errno.EIO).lower()}")

    def let_go(self, files: Sequence[tuple[str, WasRead]]) -> list[LetGo]:
        """Remove files of ours that still are what they were when they were read, answers in their order.

        Where the kernel grants a lease (our own files, or CAP_LEASE) nobody can write between the look and the unlink.
        """
        for path, _ in files:
            _check_ours(path)
        if self.trouble():
            # What is not found is not gone.
            return [LetGo.STUCK] * len(files)
        folders: set[Path] = set()
        answers: list[LetGo] = []
        for path, then in files:
            place = self.path / path
            answer = _let_go(place, then)
            answers.append(answer)
            if answer is LetGo.GONE:
                folders.add(place.parent)
                if path.startswith("rejected/"):
                    with contextlib.suppress(OSError):
                        place.parent.rmdir()
                        folders.discard(place.parent)
                        folders.add(place.parent.parent)
        for folder in folders:
            with contextlib.suppress(OSError):
                sync_folder(folder)
        return answers

    def set_apart(self, inbox: str, path: str) -> str:
        """Give a file of ours, whose row has done with it, a name of its own in ``files/``; say which.

        A file without a row is work not begun: whatever happens next, it is found and taken in. Raises OSError.
        """
        _check_ours(path)
        folder = self.path / "files" / check_inbox_name(inbox)
        folder.mkdir(mode=0o700, exist_ok=True)
        own = secrets.token_hex(16)
        place = self.path / path
        place.rename(folder / own)
        sync_folder(folder)
        if path.startswith("rejected/"):
            with contextlib.suppress(OSError):
                place.parent.rmdir()
        elif place.parent != folder:
            sync_folder(place.parent)
        return f"files/{inbox}/{own}"

    def listed(self) -> Iterator[str]:
        """List the paths of what lies in ``files/`` and ``rejected/``, as far as it can be listed, bit by bit."""
        yield from self._listed("files", depth=2)
        yield from self._listed("rejected", depth=3)

    def is_needless_copy(self, path: str) -> bool:
        """Whether this is a copy without a row whose source still lies unchanged in its inbox."""
        return source_is_unchanged(self.path / path)

    def orphans(self, known: Callable[[list[str]], set[str]]) -> Iterator[Candidate]:
        """Find the files in ``files/`` and ``rejected/`` that no row knows, as candidates that need not settle.

        ``known`` says which of at most 1,000 paths the ledger knows. For the start: to be gone on with only while no
        file is between ``take_in`` and its row, which would be mistaken for one. A copy whose source still lies
        unchanged in its inbox is discarded, for the source will be taken; so is a re-encoded copy that had no row when
        this was called.
        """
        return self._orphans(list(self._listed("explicit", depth=2)), known)

    def _orphans(self, explicit: list[str], known: Callable[[list[str]], set[str]]) -> Iterator[Candidate]:
        for path in self._unknown(chain(self._listed("files", depth=2), self._listed("rejected", depth=3)), known):
            if self.is_needless_copy(path):
                self.discard(path)
                continue
            candidate = self._candidate(path)
            if candidate is not None:
                yield candidate
        for path in self._unknown(iter(explicit), known):
            self.discard(path)

    def candidate_at(self, inbox: str, path: str) -> Candidate | None:
        """Make a candidate of a file of ours; None when it is gone.

        For a file that was changed here (settle it by ``Inboxes.observe``) or that a person admits anyway.
        """
        candidate = self._candidate(path)
        return candidate if candidate is not None and candidate.inbox == inbox else None

    def stat(self, path: str) -> SourceStat | None:
        """Look at a file of ours; None when it is gone or not a regular file. Raises OSError where nobody can say."""
        _check_ours(path)
        try:
            found = (self.path / path).lstat()
        except MISSING:
            if trouble := self.trouble():
                raise OSError(errno.ESTALE, trouble) from None
            return None
        return SourceStat.of(found) if stat.S_ISREG(found.st_mode) else None

    def new_explicit(self, inbox: str) -> Path:
        """Name a fresh file for a re-encoded copy, in a folder that exists."""
        folder = self.path / "explicit" / check_inbox_name(inbox)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / secrets.token_hex(16)

    def new_scratch(self) -> Path:
        """Name a fresh file that does not outlive this run."""
        return self.path / "scratch" / secrets.token_hex(16)

    def scratch(self) -> Path:
        """Give the folder that is emptied at the start."""
        return self.path / "scratch"

    def free(self) -> FreeSpace:
        """Say what is left for us on the spool's filesystem."""
        return free_space(self.path)

    def free_bytes(self) -> int:
        """Say how many bytes are left for us."""
        return self.free().free_bytes

    def _refuse_foreign(self) -> None:
        # The rooms first: another process that is just making this spool makes its id before them.
        theirs = [room for room in ROOMS if (self.path / room).exists()]
        if theirs and not (self.path / "spool.id").exists():
            raise SpoolError(f"{self.path} has a folder {theirs[0]!r} but no spool.id: not a spool of ours")

    def _read_id(self) -> str | None:
        try:
            text = (self.path / "spool.id").read_text("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        try:
            return str(uuid.UUID(text))
        except ValueError as error:
            raise SpoolError(f"{self.path / 'spool.id'} does not hold a UUID; restore it") from error

    def _make_id(self) -> str:
        """Write the id whole and durable, or take the one that another process has just written."""
        write_once(self.path / "spool.id", f"{uuid.uuid4()}\n".encode())
        sync_folder(self.path.parent)
        made = self._read_id()
        assert made is not None
        return made

    def empty_scratch(self) -> None:
        """Remove what a former run, or the rooms before a new configuration, left in ``scratch``."""
        with os.scandir(self.path / "scratch") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)  # noqa: PTH108 - a path string at hand

    def _listed(self, room: str, *, depth: int) -> Iterator[str]:
        """List the regular files exactly ``depth`` levels down; nothing else there is ours."""

        def below(folder: str, levels: int) -> Iterator[str]:
            try:
                entries = os.scandir(self.path / folder)
            except MISSING:
                return
            with entries:
                for entry in entries:
                    if levels > 1 and entry.is_dir(follow_symlinks=False):
                        yield from below(f"{folder}/{entry.name}", levels - 1)
                    elif levels == 1 and entry.is_file(follow_symlinks=False):
                        yield f"{folder}/{entry.name}"

        return below(room, depth)

    def _unknown(self, paths: Iterator[str], known: Callable[[list[str]], set[str]]) -> Iterator[str]:
        chunk: list[str] = []
        for path in paths:
            chunk.append(path)
            if len(chunk) == KNOWN_AT_ONCE:
                yield from sorted(set(chunk) - known(chunk))
                chunk = []
        if chunk:
            yield from sorted(set(chunk) - known(chunk))

    def _candidate(self, path: str) -> Candidate | None:
        source = self.stat(path)
        if source is None:
            return None
        inbox = path.split("/")[1]
        return Candidate(
            inbox=inbox, relative_path=path, path=self.path / path, source=source, final=True, in_spool=True
        )


def _let_go(place: Path, then: WasRead) -> LetGo:
    try:
        descriptor = open_file(str(place))
    except MISSING:
        return LetGo.GONE
    except OSError:
        return LetGo.STUCK
    try:
        if hold_off_writers(descriptor):
            return LetGo.WRITER
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return LetGo.STUCK
        if not then.is_of(found):
            return LetGo.CHANGED
        place.unlink(missing_ok=True)
    except OSError:
        return LetGo.STUCK
    finally:
        os.close(descriptor)
    return LetGo.GONE


def _unusable(spool: Path, error: OSError, file: Path | None = None) -> SpoolError:
    """Say what the system answered, and for which file of the spool; ``file`` where the error itself does not know."""
    why = (error.strerror or type(error).__name__).lower()
    return SpoolError(f"the spool {spool} cannot be used: {why} ({error.filename or file or spool})")


def _open_folder(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _check_ours(path: str) -> None:
    """Refuse a path that does not lie in one of our rooms: an ``in_place`` file is never touched."""
    parts = path.split("/")
    if parts[0] not in ROOMS or len(parts) < 2 or any(part in {"", ".", ".."} for part in parts):
        raise ValueError("not a path of the spool's own rooms")
