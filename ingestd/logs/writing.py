"""Where log lines go, and how the libraries' lines, warnings and crashes get there by the same filter."""

from __future__ import annotations

import atexit
import faulthandler
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import MutableMapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog

from ingestd.error_location import code_locations

from .allowed import ALLOWED, LONGEST_VALUE, WITHHELD, fit, is_place, name_studies
from .journal import goes_to_journal, marked
from .repeats import Repeats

LONGEST_LINE = 4000
DEEPEST_TRACE = 12

_Event = MutableMapping[str, Any]
_put_time = structlog.processors.TimeStamper(fmt="iso", utc=True, key="at")


class _State:
    """What ``configure`` chose; one process has one log."""

    def __init__(self) -> None:
        self.repeats: Repeats | None = None


class Sink:
    """Writes whole lines to a stream; a stream that cannot be written loses lines, which are counted, and no more.

    A full disk behind stderr must not stop files from being sent.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.is_journal = goes_to_journal(stream)
        self._lock = threading.Lock()
        self.lost = 0
        self._lost_told = 0

    def write(self, line: str, level: str = "info") -> None:
        """Write one line; once lines were lost, the next one that succeeds is followed by their number."""
        with self._lock:
            if self._put(line, level) and self.lost > self._lost_told:
                told = self.lost
                if self._put(json.dumps({"event": "log.lines_lost", "level": "warning", "count": told}), "warning"):
                    self._lost_told = told

    def _put(self, line: str, level: str) -> bool:
        line = marked(line, level) if self.is_journal else line
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
        self.debug, self.info, self.warning, self.error = (
            partial(sink.write, level=level) for level in ("debug", "info", "warning", "error")
        )
        self.msg, self.critical, self.exception = self.info, self.error, self.error


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
    if _state.repeats is None:
        atexit.register(finish)
    finish()
    stream = sys.stderr if stream is None else stream
    sink = Sink(stream)
    name_studies(plain=uids == "plain")
    pretty = form == "console" or (form == "auto" and stream is not None and stream.isatty())
    render = _render_console if pretty else _render_json

    def tell(event: dict[str, Any]) -> None:
        level = str(event["level"])
        sink.write(render(None, "", _stamp(None, "", event)), level)

    _state.repeats = repeats = Repeats(tell)
    structlog.configure(
        processors=[_keep_allowed, repeats, _stamp, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: SinkLogger(sink),
        cache_logger_on_first_use=False,
    )
    _catch_libraries()
    return sink


def catch_up() -> None:
    """Write how often faults came meanwhile that do not come again; to be called now and then."""
    if _state.repeats:
        _state.repeats.catch_up()


def finish() -> None:
    """Write how often faults came whose lines were held back, before this log ends."""
    if _state.repeats:
        _state.repeats.finish()


def _keep_allowed(_logger: object, method: str, event: _Event) -> _Event:
    kept: dict[str, Any] = {"level": "error" if method in {"exception", "critical"} else method}
    exception = _exception_of(event.pop("exc_info", None))
    for key, value in event.items():
        shape = ALLOWED.get(key)
        if shape is not None and value is not None:
            kept[key] = fit(value, shape)
    if exception is not None:
        kept["error"] = _class_chain(exception)
        kept["place"] = _code_places(exception)
        if isinstance(exception, OSError) and exception.errno is not None:
            kept["errno"] = exception.errno
    kept.setdefault("event", WITHHELD)
    return kept


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
    places = code_locations(exception)[-DEEPEST_TRACE:]
    return [place if is_place(place) else WITHHELD for place in places]


def _stamp(_logger: object, _method: str, event: _Event) -> _Event:
    _put_time(None, "", event)
    return {"at": event.pop("at"), "level": event.pop("level"), "event": event.pop("event"), **event}


def _render_json(_logger: object, _method: str, event: _Event) -> str:
    capped = {key: _cap(value) for key, value in event.items()}
    line = json.dumps(capped)  # ASCII: no control character, no lone surrogate gets through
    return line if len(line) <= LONGEST_LINE else json.dumps({"at": event["at"], "event": "log.line_too_long"})


_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31"}


def _render_console(_logger: object, _method: str, event: _Event) -> str:
    level, at = str(event.pop("level")), str(event.pop("at"))
    name = event.pop("event")
    keys = " ".join(f"\x1b[36m{key}\x1b[0m={_escape(_cap(value))}" for key, value in event.items())
    line = f"\x1b[2m{at[11:19]}Z\x1b[0m \x1b[{_COLOURS.get(level, '0')}m{level:<7}\x1b[0m {_escape(name):<28} {keys}"
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
