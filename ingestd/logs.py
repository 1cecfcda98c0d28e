"""How log lines are written, and what may never stand in one.

A modality puts the patient's name into file names, libraries put file names, URLs and values into messages and
exceptions, and logs travel to where none of that may go. So nothing is searched for and blotted out: only keys in
``ALLOWED`` are written, each only with the shape of value it is meant for, and everything else is left out or
replaced by ``WITHHELD``. Messages of libraries, warnings and exceptions are never written: only who, which class,
and where in the code.

A new key is added to ``ALLOWED`` (``tests/test_logs.py`` finds uses of keys that are not there).
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import re
import secrets
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from enum import Enum
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog

WITHHELD = "<withheld>"
LONGEST_VALUE = 160
LONGEST_LINE = 4000
DEEPEST_TRACE = 12

_EVENT = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,48}")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]{1,255}")
_VERSION = re.compile(r"[A-Za-z0-9.+-]{1,32}")
_UID = re.compile(r"[0-9.]{1,64}")
_REF = re.compile(r"[0-9a-f]{12}")

Shape = Literal["event", "number", "sentence", "word", "name", "study", "host", "version", "numbers", "words"]

# A sentence of our own is let through word by word: lower case, small numbers, and these. A file name, a path, an
# address, a UID or a patient's name has upper case, slashes, dots or carets in it, and becomes an ellipsis.
_LOWER = r"[(\[\"']?[a-z][a-z'-]{0,30}[)\]\"']?[,.;:?]?"
_SMALL_NUMBER = r"[(]?[<>=~]?\d{1,4}(\.\d{1,3})?[%)]?[,.;:]?"
_ERROR_CLASS = r"[A-Z][A-Za-z]{2,40}(Error|Exception|Warning)[,.;:]?"
_SENTENCE_WORD = re.compile(rf"{_LOWER}|{_SMALL_NUMBER}|{_ERROR_CLASS}|[-+=]")
_PROPER = frozenset(
    "A Authorization Azure B Content-Length Content-Type DELETE DICOM DICOMDIR DICOMweb DNS Date EOF Entra File "  # noqa: SIM905
    "FileChanged GB GET GiB HTML HTTP HTTPS I/O ID It JSON KiB LedgerBusy LedgerFull MB Meta MiB MisconfiguredServer NFS "
    "No NotAuthorized NotFound OK Orthanc POST PUT QIDO QIDO-RS Refused Retry-After SMB SOP SQLite SSL STOW STOW-RS TCP "
    "TLS The Throttled TooLarge UID UIDs URL Unavailable Unintelligible VR WADO-RS XML and/or kB".split()
)
ELLIPSIS = "..."

# key: the shape that its value must have. Words are machine words of our own, never text from a file or a server.
ALLOWED: Mapping[str, Shape] = {
    "event": "event",
    "level": "word",
    # what it is about
    "entry_id": "number",
    "entries": "numbers",
    "holder_id": "number",
    "candidate_id": "number",
    "attempt_id": "number",
    "attempt": "number",
    "study": "study",
    "inbox": "name",
    "host": "host",
    "port": "number",
    "pid": "number",
    "version": "version",
    # what happened to it
    "state": "word",
    "before": "word",
    "after": "word",
    "reason": "word",
    "cause": "word",
    "evidence": "word",
    "verdict": "word",
    "why": "word",
    "note": "sentence",
    "notes": "words",
    "action": "word",
    "phase": "word",
    "signal": "word",
    "kind": "word",
    "take": "word",
    "watching": "word",
    "alarm": "sentence",
    "tag": "word",
    "status": "number",
    "exit_code": "number",
    "errno": "number",
    "schema": "number",
    "schema_before": "number",
    "api_version": "number",
    "failure_reason": "number",
    "warning_reason": "number",
    "sequence": "number",
    # how many, how much, how long
    "count": "number",
    "files": "number",
    "rows": "number",
    "problems": "number",
    "instances": "number",
    "studies": "number",
    "bytes": "number",
    "bytes_free": "number",
    "bytes_low_water": "number",
    "bytes_left": "number",
    "seconds": "number",
    "wait_seconds": "number",
    "age_seconds": "number",
    "retry_after_seconds": "number",
    "clock_skew_seconds": "number",
    "tries": "number",
    "charged": "number",
    "pauses": "number",
    "absences": "number",
    "checks": "number",
    "posts": "number",
    "limit": "number",
    "lost": "number",
    "moved": "number",
    "uncertain": "number",
    "confirmed": "number",
    "stored": "number",
    "pending": "number",
    "failed": "number",
    "rejected": "number",
    "duplicate": "number",
    "conflict": "number",
    "deleted": "number",
    "waiting": "number",
    "ignored": "number",
    "unreadable": "number",
    "unreadable_folders": "number",
    "not_regular": "number",
    "low_water": "number",
    "candidates": "number",
    "attempts": "number",
    "readers": "number",
    "inboxes": "number",
    "has_feed": "number",
    "refuses_duplicates": "number",
    # where in the code; written by this module alone
    "error": "sentence",
    "category": "word",
    "logger": "host",
    "place": "words",
}

_Event = MutableMapping[str, Any]


class _State:
    """What ``configure`` chose; one process has one log."""

    def __init__(self) -> None:
        self.key = secrets.token_bytes(32)
        self.plain_uids = False
        self.sink: Sink | None = None


class Sink:
    """Writes whole lines to a stream; a stream that cannot be written loses lines, which are counted, and no more.

    A full disk behind stderr must not stop files from being sent.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.lost = 0
        self._lost_told = 0

    def write(self, line: str) -> None:
        """Write one line; once lines were lost, the next one that succeeds is followed by their number."""
        with self._lock:
            if self._put(line) and self.lost > self._lost_told:
                told = self.lost
                if self._put(json.dumps({"event": "log.lines_lost", "level": "warning", "count": told})):
                    self._lost_told = told

    def _put(self, line: str) -> bool:
        try:
            assert self._stream is not None
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError, AssertionError):  # full, gone, closed, never there
            self.lost += 1
            return False
        return True


class SinkLogger:
    """What structlog hands finished lines to."""

    def __init__(self, sink: Sink) -> None:
        self.msg = sink.write

    debug = info = warning = error = critical = exception = property(lambda self: self.msg)


class LibraryHandler(logging.Handler):
    """Turns what libraries log into a line of our own that says who and where, never what."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's level, logger and place."""
        keys: dict[str, Any] = {"logger": record.name, "place": (f"{record.module}:{record.lineno}",)}
        if record.exc_info and record.exc_info[0]:
            keys["error"] = record.exc_info[0].__name__
        level = record.levelname.lower() if record.levelno in logging.getLevelNamesMapping().values() else "warning"
        structlog.get_logger().log(logging.getLevelNamesMapping()[level.upper()], "library.logged", **keys)


_state = _State()


def configure(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    form: Literal["auto", "json", "console"] = "auto",
    uids: Literal["hashed", "plain"] = "hashed",
    stream: TextIO | None = None,
) -> Sink:
    """Send every line of this process, ours and the libraries', through the filter to ``stream`` (stderr).

    May be called again (SIGHUP). Returns the sink, which counts the lines that could not be written.
    """
    stream = sys.stderr if stream is None else stream
    sink = Sink(stream)
    _state.sink, _state.plain_uids = sink, uids == "plain"
    pretty = form == "console" or (form == "auto" and stream is not None and stream.isatty())
    structlog.configure(
        processors=[_keep_allowed, _stamp, _render_console if pretty else _render_json],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: SinkLogger(sink),
        cache_logger_on_first_use=False,
    )
    _catch_libraries()
    return sink


def set_key(key: bytes) -> None:
    """Choose the key of ``study_ref``: the same key, the same references after a restart. Until then it is random."""
    _state.key = key


def study_ref(uid: str) -> str:
    """Return how logs name a study: a short keyed hash of its UID, or the UID itself with ``logging.uids: plain``."""
    if _state.plain_uids:
        return uid
    return hashlib.blake2b(uid.encode("utf-8", "surrogateescape"), key=_state.key[:64], digest_size=6).hexdigest()


def lines_lost() -> int:
    """Return how many lines could not be written since the last ``configure``."""
    return _state.sink.lost if _state.sink else 0


def _keep_allowed(_logger: object, method: str, event: _Event) -> _Event:
    kept: dict[str, Any] = {"level": "error" if method in {"exception", "critical"} else method}
    exception = _exception_of(event.pop("exc_info", None))
    for key, value in event.items():
        shape = ALLOWED.get(key)
        if shape is not None and value is not None:
            kept[key] = _fit(value, shape)
    if exception is not None:
        kept["error"] = _class_chain(exception)
        kept["place"] = _code_places(exception)
        if isinstance(exception, OSError) and exception.errno is not None:
            kept["errno"] = exception.errno
    kept.setdefault("event", WITHHELD)
    return kept


def _fit(value: object, shape: Shape) -> object:
    """Return the value if it has the shape, else WITHHELD."""
    if isinstance(value, Enum):
        value = value.value
    match shape:
        case "number":
            if isinstance(value, timedelta):
                return round(value.total_seconds(), 3)
            if isinstance(value, float):
                return round(value, 3)
            return value if isinstance(value, int) else WITHHELD
        case "numbers":
            fits = isinstance(value, (list, tuple)) and all(isinstance(item, int) for item in value)
            return list(value)[:20] if fits and isinstance(value, (list, tuple)) else WITHHELD
        case "words":
            items = value if isinstance(value, (list, tuple, set, frozenset)) else ()
            return [item if _is_place(item) else WITHHELD for item in items][:DEEPEST_TRACE]
        case "sentence":
            return _sentence(value) if isinstance(value, str) else WITHHELD
        case "study":
            if not isinstance(value, str):
                return WITHHELD
            if _REF.fullmatch(value):
                return value
            return study_ref(value) if _UID.fullmatch(value) else WITHHELD
    pattern = {"event": _EVENT, "word": _WORD, "name": _NAME, "host": _HOST, "version": _VERSION}[shape]
    return value if isinstance(value, str) and pattern.fullmatch(value) else WITHHELD


def _sentence(text: str) -> str:
    words = (word if _SENTENCE_WORD.fullmatch(word) or _bare(word) in _PROPER else ELLIPSIS for word in text.split())
    return " ".join(words)[:LONGEST_VALUE]


def _bare(word: str) -> str:
    return word.strip("()[]\"',.;:")


def _is_place(item: object) -> bool:
    return isinstance(item, str) and re.fullmatch(r"[A-Za-z0-9_.<>-]{1,80}(:\d{1,7})?", item) is not None


def _exception_of(found: object) -> BaseException | None:
    if isinstance(found, BaseException):
        return found
    if isinstance(found, tuple) and len(found) == 3 and isinstance(found[1], BaseException):
        return found[1]
    return sys.exception() if found else None


def _class_chain(exception: BaseException) -> str:
    """Name the class, and what caused it: never ``str(exception)``, which holds names, values and URLs."""
    names: list[str] = []
    at: BaseException | None = exception
    while at is not None and len(names) < 4:
        names.append(type(at).__qualname__)
        at = at.__cause__ or at.__context__
    return "_from_".join(re.sub(r"[^A-Za-z0-9_]", "_", name) for name in names)[:LONGEST_VALUE]


def _code_places(exception: BaseException) -> list[str]:
    """Say where in the code, innermost last: ``ingestd.ledger.moves:214``; no values, no source lines."""
    found = [
        f"{_module_of(frame.f_globals, frame.f_code.co_filename)}:{line}"
        for frame, line in traceback.walk_tb(exception.__traceback__)
    ]
    return [place if _is_place(place) else WITHHELD for place in found[-DEEPEST_TRACE:]]


def _module_of(names: Mapping[str, Any], file: str) -> str:
    module = names.get("__name__")
    if module in (None, "__main__"):
        return file.rpartition("/")[2].removesuffix(".py")
    return str(module)


def _stamp(_logger: object, _method: str, event: _Event) -> _Event:
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True)(None, "", dict(event))
    return {"at": stamped.pop("timestamp"), "level": stamped.pop("level"), "event": stamped.pop("event"), **stamped}


def _render_json(_logger: object, _method: str, event: _Event) -> str:
    capped = {key: _cap(value) for key, value in event.items()}
    line = json.dumps(capped)  # ASCII: no control character, no lone surrogate gets through
    return line if len(line) <= LONGEST_LINE else json.dumps({"at": event["at"], "event": "log.line_too_long"})


_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31"}


def _render_console(_logger: object, _method: str, event: _Event) -> str:
    level, at = str(event.pop("level")), str(event.pop("at"))
    name = event.pop("event")
    keys = " ".join(f"\x1b[36m{key}\x1b[0m={_escape(_cap(value))}" for key, value in event.items())
    line = f"\x1b[2m{at[11:19]}\x1b[0m \x1b[{_COLOURS.get(level, '0')}m{level:<7}\x1b[0m {_escape(name):<28} {keys}"
    return line.rstrip()[:LONGEST_LINE]


def _cap(value: object) -> object:
    return value[: LONGEST_VALUE - 1] + "…" if isinstance(value, str) and len(value) > LONGEST_VALUE else value


def _escape(value: object) -> str:
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(value))


def _catch_libraries() -> None:
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, LibraryHandler)]
    root.addHandler(LibraryHandler(level=logging.WARNING))
    root.setLevel(logging.WARNING)
    logging.raiseExceptions = False  # else a handler's own failure is printed with the record in it
    warnings.showwarning = _show_warning
    sys.excepthook = _show_crash
    threading.excepthook = _show_thread_crash
    sys.unraisablehook = _show_unraisable
    try:
        faulthandler.enable()  # files, lines and functions only
    except (OSError, ValueError, AttributeError, RuntimeError):
        pass  # no real stderr: nothing to write a dying word to


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del message, file, line  # what it says may be a value of a file
    place = f"{filename.rpartition('/')[2].removesuffix('.py')}:{lineno}"
    structlog.get_logger().warning("library.warned", category=category.__name__, place=(place,))


def _show_crash(_kind: type[BaseException], value: BaseException, _trace: TracebackType | None) -> None:
    structlog.get_logger().error("process.crashed", exc_info=value)


def _show_thread_crash(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        structlog.get_logger().error("thread.crashed", exc_info=args.exc_value)


def _show_unraisable(args: Any) -> None:
    structlog.get_logger().warning("process.swallowed", exc_info=args.exc_value)
