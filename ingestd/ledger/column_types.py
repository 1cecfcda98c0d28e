"""How Python values are kept in columns.

Instants are integer microseconds since 1970 UTC: they order, compare and travel between databases without a word about
time zones. Digests are raw bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.types import UserDefinedType

from ingestd.lifecycle import SourceStat

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class _Kept(UserDefinedType[T]):
    """A value that is kept as another: ``_keep`` writes it, ``_give`` reads it back; NULL is None.

    Without ``_give`` what is kept is read as it is, and costs nothing: rows are many, and have many such columns.
    """

    _keep: Callable[[T], Any]
    _give: Callable[[Any], T] | None = None

    def bind_processor(self, dialect: Dialect) -> Callable[[T | None], Any]:  # noqa: ARG002 - the same for all
        keep = self._keep
        return lambda value: None if value is None else keep(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], T | None] | None:  # noqa: ARG002
        give = self._give
        if give is None:
            return None
        return lambda value: None if value is None else give(value)


class Instant(_Kept[datetime]):
    """Aware UTC in Python, microseconds since 1970 in the table."""

    cache_ok = True

    @staticmethod
    def _keep(value: datetime) -> int:
        return (value - _EPOCH) // MICROSECOND

    @staticmethod
    def _give(value: int) -> datetime:
        return _EPOCH + timedelta(microseconds=value)


class Digest(_Kept[str]):
    """Lower-case hex in Python, raw bytes in the table."""

    cache_ok = True
    _keep = staticmethod(bytes.fromhex)
    _give = staticmethod(bytes.hex)


def _safe(value: str) -> str:
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "?").encode("utf-8", "replace").decode("utf-8")


class SafeText(_Kept[str]):
    """Text that came from elsewhere: what no database takes (lone surrogates, NUL) becomes a question mark."""

    cache_ok = True
    _keep = staticmethod(_safe)


# What nearly every row says in the end, twice: beside itself and in its history. Append-only: rows name them by place.
_SENTENCES = tuple(
    f"confirmed{again}: {how} ({before})"
    for how in (
        "the server's change feed shows it",
        "the server has it when asked",
        "the server's copy was retrieved and has the same content",
    )
    for again, before in (
        ("", "the server had answered that it stored it"),
        ("", "the answer to the post had not been read"),
        ("", "the server had refused it"),
        (" again", "it was confirmed before"),
        (" again", "it had been deleted on the server"),
    )
)
_SENTENCE = "\x1f"
_PLACES = {sentence: f"{_SENTENCE}{place}" for place, sentence in enumerate(_SENTENCES)}
_AT_PLACES = {place: sentence for sentence, place in _PLACES.items()}


class Note(_Kept[str]):
    """A sentence for a person; one of those that most rows have is kept as its place in the list of them."""

    cache_ok = True

    @staticmethod
    def _keep(value: str) -> str:
        return _PLACES.get(value) or _safe(value).replace(_SENTENCE, "?")

    @staticmethod
    def _give(value: str) -> str:
        return _AT_PLACES.get(value, value)


# A file name is bytes to the kernel. Python shows what is no UTF-8 as lone surrogates (PEP 383), which no database
# takes: each such byte is kept as U+FFFD and its two hex digits, and a U+FFFD of the name itself as U+FFFD and "--".
_MARK = "\N{REPLACEMENT CHARACTER}"


class PathText(_Kept[str]):
    """A file's path (os.fsdecode), whatever bytes it is made of."""

    cache_ok = True

    @staticmethod
    def _keep(value: str) -> str:
        if value.isascii():
            return value
        marked = value.replace(_MARK, _MARK + "--")
        return "".join(
            f"{_MARK}{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else letter for letter in marked
        )

    @staticmethod
    def _give(value: str) -> str:
        if _MARK not in value:
            return value
        first, *others = value.split(_MARK)
        return first + "".join(
            (_MARK if part[:2] == "--" else chr(0xDC00 + int(part[:2], 16))) + part[2:] for part in others
        )


class Stat(_Kept[SourceStat]):
    """What the kernel said of a file, as "inode:size:mtime_ns"; the device has another number after a remount.

    Text, because an inode may be unsigned and an mtime beyond the year 2262: neither fits a database's integer.
    """

    cache_ok = True

    @staticmethod
    def _keep(value: SourceStat) -> str:
        return f"{value.inode}:{value.size_bytes}:{value.mtime_ns}"

    @staticmethod
    def _give(value: str) -> SourceStat:
        inode, size_bytes, mtime_ns = map(int, value.split(":"))
        return SourceStat(inode=inode, size_bytes=size_bytes, mtime_ns=mtime_ns)


class Nanoseconds(_Kept[int]):
    """An instant of the kernel's; one beyond the year 2262, which no database's integer holds, is kept as 0."""

    cache_ok = True

    @staticmethod
    def _keep(value: int) -> int:
        return value if 0 < value < 1 << 63 else 0
