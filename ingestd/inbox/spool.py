"""The daemon's own folder: its id, its lock, and what lies in it.

::

  <spool>/            0700
    spool.id          a UUID: the ``host`` of this spool's rows
    lock              flocked by the one daemon that takes and sends
    spool.ledger      which ledger it belongs to, where that is shared by several machines
    search.key        its key of the search words (``ledger.search_key``)
    files/<inbox>/<8 hex>/<32 hex>         admitted files; the path says the inbox, nothing of the file's name is kept
    rejected/<inbox>/<32 hex>/<basename>   set aside, where a person can see it
    explicit/<inbox>/<8 hex>/<32 hex>      re-encoded copies
    scratch/                               emptied at the start; a folder for each worker where several have it

The 32 hex are the file's target: its candidate row has it before it is brought here. The 8 are the folder that was
being filled then (``spool_names``); what former versions took in has none, and stays where it lies. A file without a
row is work not begun (G2): ``orphans`` finds it. Every method may be called from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from ingestd.clocks import boottime
from ingestd.fs.durable import rename_to_ours, sync_folder, unlink_ours, write_once
from ingestd.fs.mounts import free_space, is_read_only
from ingestd.fs.places import MISSING, look_anew
from ingestd.lifecycle import SourceStat

from . import removal, removal_of_ours, takein
from .missing import Missing
from .spool_folder import LEDGER, ROOMS, SpoolLock, ledger_of, make_spool, read_id, unusable
from .spool_listing import OfInbox, PassesBy, list_room, lists_all, of_all
from .spool_names import FoldersToFill, make_folder, new_name
from .types import (
    Brought,
    Candidate,
    Expect,
    LetGo,
    NotTaken,
    Removal,
    SpoolError,
    Wanted,
    WasRead,
    WhyNot,
)

KNOWN_AT_ONCE = 1_000
# It is tried again sooner than this.
_WANTED_FOR_SECONDS = 120.0


class Spool:
    """One spool folder, made if it is missing.

    Raises SpoolError when it cannot be made, or when what is there is somebody else's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.low_water = 0  # bytes of its disk that no copy may use
        self.is_shared = False  # with other hosts
        self._missing = Missing()
        self._scratch = ""  # our own part of that room
        # Whether what the ledger has given us is still ours to act upon.
        self.may_act: Callable[[], bool] = lambda: True
        # What did not fit, by its place, and when that was (boot clock); movers write it.
        self._did_not_fit: dict[str, tuple[int, float]] = {}
        self._lock = SpoolLock(self.path)
        self._to_fill = FoldersToFill(self.path)
        self.aside = removal.Aside()
        try:
            self.host = make_spool(self.path)
            self.device = self.path.stat().st_dev
            self._mounted = {room for room in ROOMS if (self.path / room).stat().st_dev != self.device}
        except OSError as error:
            raise unusable(self.path, error) from error

    def trouble(self) -> str:
        """Say what became of the folder under us, "" when nothing did; a disk that is mounted again is as before."""
        room = ROOMS[0]
        try:
            if read_id(self.path) != self.host:
                return "the spool is not there: its disk is not mounted, or its folder was removed"
            device = self.path.stat().st_dev
            for room in ROOMS:
                found = (self.path / room).lstat()
                if not stat.S_ISDIR(found.st_mode) or (found.st_dev != device) != (room in self._mounted):
                    return f"the spool's folder '{room}' is another than at the start"
            if self._scratch:
                # Where the spool was made anew, another worker has made what all have.
                room = f"scratch/{self._scratch}"
                self.scratch().lstat()
        except FileNotFoundError:
            return f"the spool's folder '{room}' is not there"
        except (OSError, SpoolError):
            return "the spool cannot be read"
        self.device = device
        return ""

    def barred(self) -> str:
        """Say why we may not write here, "" where we may; what is not there is told by ``trouble``."""
        in_use = [self.path / each for each in self._to_fill.in_use()]
        with contextlib.suppress(OSError):
            for folder in (*in_use, *(each.parent for each in in_use)):
                if os.path.lexists(folder) and not stat.S_ISDIR(folder.lstat().st_mode):
                    taken = folder.relative_to(self.path)
                    return f"the spool may not be written: what stands in the place of its folder {taken} is no folder"
            for folder in (*(self.path / room for room in ROOMS), *in_use, *(self.path / "files").iterdir()):
                if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
                    is_mount = is_read_only(folder)
                    why = "its disk is mounted read-only" if is_mount else "the rights of its folders forbid it"
                    return f"the spool may not be written: {why}"
        return ""

    def tells_gone(self, place: str) -> bool:
        """Whether a file that is not found is gone for good, and not only the spool that it lies in.

        Where hosts share the spool, any file; it is looked for once more (``missing``), and may be gone only later.
        """
        if place.startswith(f"{self.path}/") and self.trouble():
            return False
        return not self.is_shared or self._missing.is_gone(place)

    @property
    def ledger(self) -> str:
        """Say to which ledger it belongs, of those that several machines share; "": to none. Raises OSError."""
        return ledger_of(self.path)

    def belong_to(self, ledger: str) -> None:
        """Put down that it belongs to this ledger, if to none yet; raises OSError."""
        write_once(self.path / LEDGER, f"{ledger}\n".encode())

    def lock(self) -> None:
        """Become the one process that takes and sends, and empty ``scratch``; raises SpoolInUse."""
        self._lock.take()
        try:
            self.empty_scratch()
        except OSError as error:
            self._lock.release()
            raise unusable(self.path, error, self.scratch()) from error

    def unlock(self) -> None:
        self._lock.release()

    def tell(self, trouble: str) -> None:
        """Put down in the lock what keeps the ledger from being written, "" nothing: who asks cannot learn it there."""
        self._lock.tell(trouble)

    def take_in(self, items: Sequence[Wanted]) -> list[Brought]:
        """Bring files into ``files/<inbox>/<8 hex>/``, under their targets; those reported as taken are durable there.

        On the spool's filesystem a file is renamed; its reader must have fsynced it. From elsewhere it is copied, and
        the copy checked against the digests; its source stays until ``remove_source``. A file that lies in ``files/``
        already stays where it is. Whatever is NotTaken lies where it lay; what is Stranded lies in the spool, and is
        to be adopted. Results come in the order of ``items``.
        """
        return self._bring(items, room="files")

    def set_aside(self, items: Sequence[Wanted]) -> list[Brought]:
        """Bring files into ``rejected/<inbox>/<target>/`` like ``take_in``, under the names they were dropped under."""
        return self._bring(items, room="rejected")

    def _bring(self, items: Sequence[Wanted], *, room: str) -> list[Brought]:
        folder_for = partial(self._to_fill.next, room) if room == "files" else lambda inbox: f"{room}/{inbox}"
        results = takein.bring(
            self.path,
            self.device,
            items,
            room=room,
            folder_for=folder_for,
            scratch=str(self.scratch().relative_to(self.path)),
            low_water=self.low_water,
            may_act=self.may_act,
        )
        for (candidate, expect, _), brought in zip(items, results, strict=True):
            if isinstance(brought, NotTaken) and brought.why in {WhyNot.NO_ROOM, WhyNot.NO_SPACE}:
                self._did_not_fit[candidate.place] = (expect.source.size_bytes, boottime())
            else:
                self._did_not_fit.pop(candidate.place, None)
        return results

    def remove_source(
        self, root: Path, relative_path: str, source: SourceStat, *, read: Expect | None = None, copy: str = ""
    ) -> Removal:
        """Remove a source that was copied and whose row is committed, if it still is what was copied.

        ``root`` is the inbox's folder, ``source`` what the row remembers. With ``read``, a ctime other than its own
        has the content decide: by its digests, or by ``copy``, the path of the copy, where it has none. A copy that is
        named and not there keeps its source, which may be the last there is; "": it was let go of by rule.
        """
        place = self.path / copy if copy else None
        copied = removal.Copied(source=source, read=read, copy=place, is_last=bool(copy) and not self._is_there(copy))
        return removal.remove(root, relative_path, copied, self.aside)

    def recover_removals(self, root: Path, unremoved: Sequence[tuple[Expect, str]]) -> int:
        """Finish removals that a crash cut short, and say how many.

        ``unremoved`` says of each row whose source is still to go what was read of it, and the path of its copy. A file
        that holds nothing of that was written to meanwhile: it goes back into the inbox under a fresh name.
        """
        kept = [
            removal.Copied(source=read.source, read=read, copy=self.path / copy)
            for read, copy in unremoved
            if (self._is_there(copy) if copy else read.digest)
        ]
        return removal.recover(root, kept, self.aside)

    def _is_there(self, copy: str) -> bool:
        try:
            return self.stat(copy) is not None
        except OSError:
            return False

    def discard(self, *paths: str) -> None:
        """Remove files of ours; one that is gone already is fine.

        Raises ValueError, before anything is touched, for a path outside our own rooms, and OSError when a file could
        not be removed; the others are.
        """
        for path in paths:
            _check_ours(path)
        self._expect_to_act()
        folders: set[Path] = set()
        failed: OSError | None = None
        for path in paths:
            try:
                unlink_ours(str(self.path / path))
            except OSError as error:
                failed = error
            else:
                self._note_removed(path, folders)
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                sync_folder(folder)
        if failed is not None:
            raise OSError(failed.errno or errno.EIO, "a spool file could not be removed")  # a name may be a patient's

    def let_go(self, files: Sequence[tuple[str, WasRead]]) -> list[LetGo]:
        """Remove files of ours that still are what they were when they were read, answers in their order.

        Where the kernel grants a lease (our own files, or CAP_LEASE) nobody can write between the look and the unlink.
        """
        for path, _ in files:
            _check_ours(path)
        if self.trouble() or not self.may_act():
            # What is not found is not gone.
            return [LetGo.STUCK] * len(files)
        folders: set[Path] = set()
        answers: list[LetGo] = []
        for path, then in files:
            answer = removal_of_ours.let_go(self.path / path, then)
            if answer is LetGo.MISSING and self.tells_gone(str(self.path / path)):
                answer = LetGo.GONE
            answers.append(answer)
            if answer is LetGo.GONE:
                self._note_removed(path, folders)
        if self.trouble():
            return [LetGo.STUCK] * len(files)  # nobody knows which of them went, and which only were not found
        for folder in folders:
            with contextlib.suppress(OSError):
                sync_folder(folder)
        return answers

    def _expect_to_act(self) -> None:
        if not self.may_act():
            raise OSError(errno.EAGAIN, "another worker may have taken over")

    def _note_removed(self, path: str, folders: set[Path]) -> None:
        """Add the folder that is to be synced for a file that is gone; in ``rejected/`` its own folder goes with it."""
        folder = (self.path / path).parent
        if path.startswith("rejected/"):
            with contextlib.suppress(OSError):
                folder.rmdir()
                folder = folder.parent
        folders.add(folder)

    def set_apart(self, inbox: str, path: str) -> str:
        """Give a file of ours, whose row has done with it, a name of its own in ``files/``; say which.

        A file without a row is work not begun: whatever happens next, it is found and taken in. Raises OSError.
        """
        _check_ours(path)
        self._expect_to_act()
        folder = make_folder(self.path, self._to_fill.next("files", inbox))
        own = folder / new_name()
        place = self.path / path
        rename_to_ours(str(place), None, str(own), None)
        sync_folder(folder)
        if path.startswith("rejected/"):
            with contextlib.suppress(OSError):
                place.parent.rmdir()
        elif place.parent != folder:
            sync_folder(place.parent)
        return str(own.relative_to(self.path))

    def listed(self, passes_by: PassesBy = lists_all, *, of: OfInbox = of_all) -> Iterator[str]:
        """List the paths of what lies in ``files/`` and ``rejected/``, as far as it can be listed, bit by bit.

        A folder in ``files/`` that was emptied and is not filled any more goes. See ``PassesBy``.
        """
        yield from self._listed("files", passes_by, of)
        yield from self._listed("rejected", passes_by, of)

    def orphans(
        self, known: Callable[[list[str]], set[str]], passes_by: PassesBy = lists_all, *, of: OfInbox = of_all
    ) -> Iterator[Candidate | None]:
        """Find the files in ``files/`` and ``rejected/`` that no row knows, as candidates that need not settle.

        None comes after each thousand that was looked at: with a million files nobody else waits for all of them.
        ``known`` says which of at most 1,000 paths the ledger knows. For the start: to be gone on with only while no
        file is between ``take_in`` and its row, which would be mistaken for one. A re-encoded copy that had no row when
        this was called is discarded.
        """
        explicit = list(self._listed("explicit", lists_all, of))
        return self._orphans(explicit, known, self.listed(passes_by, of=of))

    def _orphans(
        self, explicit: list[str], known: Callable[[list[str]], set[str]], listed: Iterator[str]
    ) -> Iterator[Candidate | None]:
        for paths in self._unknown(listed, known):
            for path in paths:
                candidate = self.candidate_at(path.split("/")[1], path)
                if candidate is not None:
                    yield candidate
            yield None
        for paths in self._unknown(iter(explicit), known):
            for path in paths:
                self.discard(path)

    def candidate_at(self, inbox: str, path: str) -> Candidate | None:
        """Make a candidate of a file of ours; None when it is gone.

        For a file that was changed here (settle it by ``Inboxes.observe``) or that a person admits anyway.
        """
        source = self.stat(path)
        if source is None or path.split("/")[1] != inbox:
            return None
        return Candidate(
            inbox=inbox, relative_path=path, path=str(self.path / path), source=source, final=True, in_spool=True
        )

    def stat(self, path: str) -> SourceStat | None:
        """Look at a file of ours; None when it is gone or not a regular file. Raises OSError where nobody can say."""
        _check_ours(path)
        try:
            found = (self.path / path).lstat()
        except MISSING:
            if not self.tells_gone(str(self.path / path)):
                raise OSError(errno.ESTALE, "it is not found, which does not say that it is gone") from None
            return None
        return SourceStat.of(found) if stat.S_ISREG(found.st_mode) else None

    def new_explicit(self, inbox: str) -> Path:
        """Name a fresh file for a re-encoded copy, in a folder that exists."""
        return make_folder(self.path, self._to_fill.next("explicit", inbox)) / new_name()

    def scratch(self) -> Path:
        return self.path / "scratch" / self._scratch

    def free_bytes(self) -> int:
        """Say how many bytes are left for us on the spool's filesystem."""
        return free_space(self.path).free_bytes

    def wanted_bytes(self) -> int:
        """Say for how much there has to be room for what did not fit: for all of it, but not for very much at once.

        What was not tried again for long is there no more, and what is larger than the disk will never fit.
        """
        long_ago, most = boottime() - _WANTED_FOR_SECONDS, free_space(self.path).size_bytes - self.low_water
        sizes = [size for size, at in list(self._did_not_fit.values()) if at > long_ago and size <= most]
        return min(sum(sizes), max(*sizes, self.low_water)) if sizes else 0

    def share_scratch(self, own: int, others: Callable[[], Collection[int]]) -> None:
        """Have a part of ``scratch`` for this worker, and remove those of all but the others; raises OSError.

        They are asked for once it was seen what is there: whoever has come since then made its part after that.
        """
        self._scratch = ""
        left = set(os.listdir(self.scratch()))  # noqa: PTH208 - names are wanted
        theirs = {str(each) for each in others()}
        self.empty_scratch(only=left - theirs)
        self._scratch = str(own)
        self.scratch().mkdir(mode=0o700, exist_ok=True)

    def lacks(self, workers: Iterable[int]) -> int | None:
        """Number one whose part of ``scratch`` is not here, and who works on another spool; None: all have theirs.

        A ``scratch`` on a disk of its own may be each machine's own. Raises OSError.
        """
        if "scratch" in self._mounted:
            return None
        return next((each for each in workers if look_anew(str(self.path / "scratch" / str(each))) is None), None)

    def empty_scratch(self, *, only: Collection[str] | None = None) -> None:
        """Remove what a former run, or the rooms before a new configuration, left in ``scratch``, or ``only`` these."""
        with os.scandir(self.scratch()) as entries:
            for entry in entries:
                if only is not None and entry.name not in only:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)  # noqa: PTH108 - a path string at hand

    def _listed(self, room: str, passes_by: PassesBy, of: OfInbox) -> Iterator[str]:
        return list_room(self.path, room, of=of, in_use=self._to_fill.in_use, passes_by=passes_by)

    def _unknown(self, paths: Iterator[str], known: Callable[[list[str]], set[str]]) -> Iterator[list[str]]:
        while chunk := list(islice(paths, KNOWN_AT_ONCE)):
            yield sorted(set(chunk) - known(chunk))


def _check_ours(path: str) -> None:
    """Refuse a path that does not lie in one of our rooms: an ``in_place`` file is never touched."""
    parts = path.split("/")
    if parts[0] not in ROOMS or len(parts) < 2 or any(part in {"", ".", ".."} for part in parts):
        raise ValueError("not a path of the spool's own rooms")
