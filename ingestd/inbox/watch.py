"""The watchdog Observer of one drop folder, as a source of hints.

An event names a path to look at soon; losing one costs latency and nothing else. So the observer may fail, run out of
watches or drown, and the room goes on. What it must never do is raise into watchdog's threads, grow without bound, or
hide that it lost something.

watchdog 7.1 keeps every event in an unbounded queue and, told to watch moves, holds the queue for half a second after
each file that leaves, as every file that we take does. Hence the three small subclasses: they ask the kernel for less,
turn an event into a hint at once, and leave out the flood that nobody will read.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyEmitter, InotifyWatchGroup
from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchCallback,
    inotify_add_watch,
)
from watchdog.observers.inotify_c import WatchDescriptor as Descriptor

from ingestd import threads
from ingestd.clocks import boottime
from ingestd.fs.places import PASS, open_folder

from .hints import Hints

DISARM_MOST = 30.0  # seconds to wait for an observer's end before the next begins
ARM_ALONE_MOST = 30.0  # seconds to wait for others to be armed: one of them may hang

_OVERFLOW_LOGGER = "watchdog.observers.inotify_c"
_NEWS = Mask(
    InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_CREATE  # folders, and hard links, which nobody closes
    | InotifyConstants.IN_ATTRIB  # other rights, another owner
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF  # a folder that left goes on raising events in its old name
    | InotifyConstants.IN_ONLYDIR
)
_FILE_NEWS = (
    InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_ATTRIB
)
# A hundred threads that arm would keep one another, and the first scan, waiting for the interpreter.
_one_by_one = threading.Lock()
_OUT_OF_WATCHES = frozenset({errno.ENOSPC, errno.ENOMEM})


class _Reader(InotifyFD):
    """watchdog's inotify reader that leaves out what nobody will look at, and counts what it could not watch.

    It watches folders of the inbox only: none that a link leads to, and none that has left.
    """

    def __init__(self, hints: Hints) -> None:
        super().__init__()
        self._hints = hints

    def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> Descriptor:
        with self._opened(path) as folder:
            try:
                return super().add_callback(folder, Mask(mask & ~InotifyConstants.IN_DONT_FOLLOW), callback, id_)
            except OSError as error:
                # watchdog passes over this for every folder but the topmost, and says nothing.
                if error.errno in _OUT_OF_WATCHES:
                    self._hints.unwatched += 1
                raise

    def handle_event(self, event: InotifyEvent) -> None:
        if event.is_queue_overflow:
            super().handle_event(event)  # watches everything anew, so that the scan below comes after it
            self._hints.lose(overflow=True)
            return
        if event.is_move_self:
            self._let_go_of(event.wd)
            return
        if event.mask & _FILE_NEWS and not event.is_directory and not self._hints.count():
            return
        if event.is_attrib and event.is_directory and event.name and not self._is_watched(event):
            # It could not be watched, nor what is in it; from now on it may be as if it had just come.
            event = replace(event, mask=Mask(InotifyConstants.IN_CREATE | InotifyConstants.IN_ISDIR))
        super().handle_event(event)

    def _is_watched(self, event: InotifyEvent) -> bool:
        """Whether the folder that this event names is watched itself."""
        with self._lock:
            watch = self._watch_for_wd.get(event.wd)
            groups = list(watch.callbacks.values()) if watch is not None else []
        for group in groups:
            assert isinstance(group, InotifyWatchGroup), "the emitter makes no other"
            with group._lock:  # noqa: SLF001 - watchdog does not tell what it watches
                above = group._active_callbacks_by_watch.get(event.wd)  # noqa: SLF001
                # Where the kernel refuses (EACCES), watchdog keeps -1.
                if above is None or group._active_callbacks_by_path.get(above + b"/" + event.name, -1) < 0:  # noqa: SLF001
                    return False
        return True

    def _let_go_of(self, moved: Descriptor) -> None:
        """Watch a folder that was moved no longer, nor what is below it, unless it lies where its events say."""
        with self._lock:
            watch = self._watch_for_wd.get(moved)
        for group in list(watch.callbacks.values()) if watch is not None else []:
            assert isinstance(group, InotifyWatchGroup), "the emitter makes no other"
            with group._lock:  # noqa: SLF001 - watchdog has no way to let go of a folder
                paths = group._active_callbacks_by_watch  # noqa: SLF001
                path = paths.get(moved)
                # The inbox's own folder is looked after by whoever armed us.
                if path is None or path == group.path or self._watch_of(path) == moved:
                    continue
                below = path + b"/"
                group._remove_callbacks(  # noqa: SLF001
                    [wd for wd, each in paths.items() if each == path or each.startswith(below)]
                )

    def _watch_of(self, path: bytes) -> int:
        """Ask the kernel which watch is that of the folder that lies at this path now; -1 where there is none."""
        try:
            with self._opened(path) as folder:
                return inotify_add_watch(self._inotify_fd, folder, _NEWS)
        except OSError:
            return -1

    @contextlib.contextmanager
    def _opened(self, path: bytes) -> Iterator[bytes]:
        """Open a folder of the inbox, through no link, and give it a name for the kernel."""
        root = self._hints.root
        folder = open_folder(root, os.fsdecode(path)[len(root) :].strip("/"), PASS)
        try:
            yield b"/proc/self/fd/%d" % folder
        finally:
            os.close(folder)


class _Emitter(InotifyEmitter):
    """watchdog's emitter that makes hints instead of queueing events for another thread."""

    def __init__(self, *arguments: Any, hints: Hints, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._hints = hints

    def get_event_mask_from_filter(self) -> Mask:
        return _NEWS

    def queue_event(self, event: FileSystemEvent) -> None:
        hint(self._hints, event)


class _Observer(BaseObserver):
    """An inotify observer with one reader of its own."""

    def __init__(self, hints: Hints) -> None:
        self.reader = _Reader(hints)
        self.reader.start()
        super().__init__(_Emitter, inotify_fd=self.reader, hints=hints)

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self.reader.stop()
        self.reader.join()


class _Handler(FileSystemEventHandler):
    """Makes hints of the events that come the long way round, should a later watchdog queue them all the same."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints

    def on_any_event(self, event: FileSystemEvent) -> None:
        hint(self._hints, event)


def hint(hints: Hints, event: FileSystemEvent) -> None:
    """Turn an event into a hint; whatever goes wrong, the thread it runs in lives on."""
    if event.is_synthetic:
        # What watchdog found in a folder that came: it named the folder before, and our own walk finds the same.
        return
    try:
        if event.event_type in {"created", "closed", "moved"}:
            path = os.fsdecode(event.dest_path or event.src_path)
            if event.is_directory:
                hints.folder(path)
            else:
                hints.file(path)
        elif event.event_type == "attrib":
            hints.mended(os.fsdecode(event.src_path), is_folder=event.is_directory)
        elif event.event_type == "deleted" and event.is_directory:
            hints.lose()
    except Exception:  # noqa: BLE001 - see Hints._ring
        hints.lose()


class _OverflowEar(logging.Handler):
    """Hears watchdog's warning that the kernel's queue overflowed, and tells every observer's hints.

    The reader above sees the overflow itself; this is the second way, the documented one.
    """

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.listening: weakref.WeakSet[Hints] = weakref.WeakSet()

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in str(record.msg).lower():
            for hints in list(self.listening):
                hints.lose(overflow=True)


_ear = _OverflowEar()


def _listen(hints: Hints) -> None:
    logger = logging.getLogger(_OVERFLOW_LOGGER)
    if _ear not in logger.handlers:
        logger.addHandler(_ear)
    if not logger.isEnabledFor(logging.WARNING):
        logger.setLevel(logging.WARNING)
    _ear.listening.add(hints)


class Watcher:
    """Arms an observer for one folder, in a thread of its own: a deep tree may take minutes.

    ``state`` is ``arming``, ``armed``, ``failed`` or ``stopped``; ``note`` says why it failed.
    """

    def __init__(self, root: str, wake: Callable[[], object]) -> None:
        self.root = os.path.realpath(root)  # a watch on a link would see nothing
        self.hints = Hints(self.root, wake)
        self.state = "arming"
        self.note = ""
        self.failed_at: float | None = None
        self._wake = wake
        self._observer: _Observer | None = None
        self._lock = threading.Lock()
        self._after: threading.Thread | None = None
        self._thread = threading.Thread(target=self._arm, name="inbox-arm", daemon=True)

    def start(self, *, wait: float, after: threading.Thread | None = None) -> None:
        """Begin to arm, and wait up to ``wait`` seconds for it.

        ``after``: an earlier observer's end, waited for first, because the kernel counts its watches until then.
        """
        self._after = after
        # The text holds a folder's name, and the event is harmless: the same folder was seen twice.
        warnings.filterwarnings("ignore", message="Callback with id", category=RuntimeWarning)
        _listen(self.hints)
        try:
            threads.start(self._thread)
        except threads.NoThread as error:
            self._fail(error)
            return
        self._thread.join(wait)

    @property
    def is_watching(self) -> bool:
        """Whether events come: armed, and every thread of the observer alive."""
        observer = self._observer
        return (
            self.state == "armed"
            and observer is not None
            and observer.is_alive()
            and observer.reader.is_alive()
            and bool(observer.emitters)
            and all(emitter.is_alive() for emitter in list(observer.emitters))
        )

    def stop(self) -> threading.Thread | None:
        """Let go of everything, in the thread that is returned: another may hang."""
        with self._lock:
            self.state = "stopped"
            observer, self._observer = self._observer, None
        _ear.listening.discard(self.hints)
        return _stop(observer) if observer is not None else None

    def _fail(self, error: Exception) -> None:
        self.state = "failed"
        self.note = _why(error)
        self.failed_at = boottime()

    def _arm(self) -> None:
        observer: _Observer | None = None
        try:
            if self._after is not None:
                self._after.join(DISARM_MOST)
            is_alone = _one_by_one.acquire(timeout=ARM_ALONE_MOST)
            try:
                observer = _Observer(self.hints)
                observer.schedule(_Handler(self.hints), self.root, recursive=True)
                observer.start()
            finally:
                if is_alone:
                    _one_by_one.release()
        except Exception as error:  # noqa: BLE001 - whatever it is, the scan goes on without events
            with self._lock:
                if self.state == "arming":
                    self._fail(error)
            if observer is not None:
                _stop(observer)
        else:
            with self._lock:
                wanted = self.state == "arming"
                if wanted:
                    self._observer = observer
                    self.state = "armed"
            if not wanted:
                _stop(observer)
        with contextlib.suppress(Exception):
            self._wake()


def _stop(observer: _Observer) -> threading.Thread | None:
    def let_go() -> None:
        with contextlib.suppress(Exception):
            if observer.is_alive():
                observer.stop()
            else:
                observer.on_thread_stop()

    thread = threading.Thread(target=let_go, name="inbox-disarm", daemon=True)
    try:
        threads.start(thread)
    except threads.NoThread:
        let_go()
        return None
    return thread


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the limit of inotify watches is reached (fs.inotify.max_user_watches)"
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return "the limit of inotify instances or open files is reached (fs.inotify.max_user_instances)"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__
