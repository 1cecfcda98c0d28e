"""How Python values are kept in columns.

Instants are integer microseconds since 1970 UTC: they order, compare and travel between databases without a word about
time zones. Digests are raw bytes; UIDs, which are nearly all digits, take half a byte for each. A ledger of a million
files is read by its indexes, and what is short in a row is short in them too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlalchemy import BigInteger
from sqlalchemy.types import UserDefinedType

from ingestd.lifecycle import SourceStat

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class _Kept(UserDefinedType[T]):
    """A value that is kept as another: ``keep`` writes it, ``give`` reads it back; NULL is None.

    Without ``give`` what is kept is read as it is, and costs nothing: rows are many, and have many such columns.
    """

    kept_as: ClassVar[str] = "TEXT"
    keep: Callable[[T], Any]
    give: Callable[[Any], T] | None = None

    def bind_processor(self, dialect: Dialect) -> Callable[[T | None], Any]:  # noqa: ARG002 - the same for all
        keep = self.keep
        return lambda value: None if value is None else keep(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], T | None] | None:  # noqa: ARG002
        give = self.give
        if give is None:
            return None
        return lambda value: None if value is None else give(value)


def kept_as(column_type: TypeEngine[Any]) -> str:
    """Say what is in a column of this type, in the words of PostgreSQL: BIGINT, TEXT or BYTEA."""
    if isinstance(column_type, _Kept):
        return column_type.kept_as
    return "BIGINT" if isinstance(column_type, BigInteger) else "TEXT"


class Instant(_Kept[datetime]):
    """Aware UTC in Python, microseconds since 1970 in the table."""

    cache_ok = True
    kept_as = "BIGINT"

    @staticmethod
    def keep(value: datetime) -> int:
        return (value - _EPOCH) // MICROSECOND

    @staticmethod
    def give(value: int) -> datetime:
        return _EPOCH + timedelta(microseconds=value)


class Digest(_Kept[str]):
    """Lower-case hex in Python, raw bytes in the table."""

    cache_ok = True
    kept_as = "BYTEA"
    keep = staticmethod(bytes.fromhex)
    give = staticmethod(bytes.hex)


def _safe(value: str) -> str:
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "?").encode("utf-8", "replace").decode("utf-8")


class SafeText(_Kept[str]):
    """Text that came from elsewhere: what no database takes (lone surrogates, NUL) becomes a question mark."""

    cache_ok = True
    keep = staticmethod(_safe)


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
        ("", "nobody knew whether the server had stored it"),
        ("", "the server had refused it"),
        (" again", "it was confirmed before"),
        (" again", "it had been deleted on the server"),
    )
)
# Likewise, of the reasons in a history and of what a change feed says.
_WORDS = (
    *("stored_answer", "feed", "query", "content_check"),
    *("create", "update", "delete", "current", "replaced", "deleted"),
)
_PLACE = "\x1f"


def _by_place(common: Sequence[str]) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Have each of these texts kept as its place among them, and any other as it is."""
    places = {text: f"{_PLACE}{place}" for place, text in enumerate(common)}
    texts = {place: text for text, place in places.items()}
    return (
        lambda text: places.get(text) or _safe(text).replace(_PLACE, "?"),
        lambda kept: texts.get(kept, kept),
    )


class Note(_Kept[str]):
    """A sentence for a person; one of those that most rows have is kept as its place in the list of them."""

    cache_ok = True
    keep, give = map(staticmethod, _by_place(_SENTENCES))


class Word(_Kept[str]):
    """A reason, or a word of a change feed; the commonest are kept as their places in the list of them."""

    cache_ok = True
    keep, give = map(staticmethod, _by_place(_WORDS))


# Append-only: rows name them by place.
_STATES = (
    *("PENDING", "SENDING", "UNCERTAIN", "STORED", "CONFIRMED", "FAILED", "REJECTED", "UNROUTED", "DUPLICATE"),
    *("CONFLICT", "DELETED", "DISCARDED"),
)
_STATE_PLACES = {state: place for place, state in enumerate(_STATES)}


class StateNumber(_Kept[str]):
    """A ``lifecycle.State`` where rows have many of them, and none is looked for by it."""

    cache_ok = True
    kept_as = "BIGINT"
    keep = staticmethod(_STATE_PLACES.__getitem__)
    give = staticmethod(_STATES.__getitem__)


# Hexadecimal digits that stand for what is no digit; "f" fills the last byte up. "e" is the root of all UIDs that the
# standard gives out (PS3.6): of transfer syntaxes and SOP classes.
_ROOT = "1.2.840.10008."
_PLAIN = b"\xff"  # no text of such digits begins with this


def _packed(text: str) -> bytes:
    if not text.isascii() or text.strip("0123456789.:-"):
        return _PLAIN + _safe(text).encode()
    digits = text.replace(_ROOT, "e").replace(".", "a").replace(":", "b").replace("-", "c")
    return bytes.fromhex(digits if len(digits) % 2 == 0 else f"{digits}f")


def _unpacked(kept: bytes) -> str:
    if kept[:1] == _PLAIN:
        return kept[1:].decode()
    return kept.hex().rstrip("f").replace("a", ".").replace("b", ":").replace("c", "-").replace("e", _ROOT)


class Digits(_Kept[str]):
    """Text that is nearly always digits, with few signs between them: half a byte a character."""

    cache_ok = True
    kept_as = "BYTEA"
    keep = staticmethod(_packed)
    give = staticmethod(_unpacked)


class Uid(Digits):
    """A UID (PS3.5 section 9): ``hex()`` in SQL shows it, with "A" for the dots."""

    cache_ok = True


# A file name is bytes to the kernel. Python shows what is no UTF-8 as lone surrogates (PEP 383), which no database
# takes: each such byte is kept as U+FFFD and its two hex digits, and a U+FFFD of the name itself as U+FFFD and "--".
_MARK = "\N{REPLACEMENT CHARACTER}"


class PathText(_Kept[str]):
    """A file's path (os.fsdecode), whatever bytes it is made of."""

    cache_ok = True

    @staticmethod
    def keep(value: str) -> str:
        if value.isascii():
            return value
        marked = value.replace(_MARK, _MARK + "--")
        return "".join(
            f"{_MARK}{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else letter for letter in marked
        )

    @staticmethod
    def give(value: str) -> str:
        if _MARK not in value:
            return value
        first, *others = value.split(_MARK)
        return first + "".join(
            (_MARK if part[:2] == "--" else chr(0xDC00 + int(part[:2], 16))) + part[2:] for part in others
        )


_SPOOL_NAME = re.compile("/([0-9a-f]{32})(?![^/])")
_IN_FOLDER = re.compile("((?:files|explicit)/[^/]+)/([0-9a-f]{8})/([0-9a-f]{32})")


class SpoolPath(_Kept[str]):
    """The path of a file in its spool: its bytes, with the hexadecimal names of file and folder as what they say.

    ``files/in/<8 hex>/<32 hex>`` is ``files/in``, NUL, 4 and 16 bytes; without the folder ``files/in/``, NUL and 16. No
    path has a NUL of its own (os.fsencode: whatever bytes it is made of).
    """

    cache_ok = True
    kept_as = "BYTEA"

    @staticmethod
    def keep(value: str) -> bytes:
        if (found := _IN_FOLDER.fullmatch(value)) is not None:
            return os.fsencode(found[1]) + b"\0" + bytes.fromhex(found[2] + found[3])
        if (found := _SPOOL_NAME.search(value)) is None:
            return os.fsencode(value)
        before, after = value[: found.start(1)], value[found.end(1) :]
        return os.fsencode(before) + b"\0" + bytes.fromhex(found[1]) + os.fsencode(after)

    @staticmethod
    def give(value: bytes) -> str:
        before, is_short, rest = value.partition(b"\0")
        if not is_short:
            return os.fsdecode(before)
        if before.endswith(b"/"):
            return f"{os.fsdecode(before)}{rest[:16].hex()}{os.fsdecode(rest[16:])}"
        return f"{os.fsdecode(before)}/{rest[:4].hex()}/{rest[4:].hex()}"


class Stat(_Kept[SourceStat]):
    """What the kernel said of a file, as "inode:size:mtime_ns"; the device has another number after a remount.

    No integers, because an inode may be unsigned and an mtime beyond the year 2262: neither fits a database's.
    """

    cache_ok = True
    kept_as = "BYTEA"

    @staticmethod
    def keep(value: SourceStat) -> bytes:
        return _packed(f"{value.inode}:{value.size_bytes}:{value.mtime_ns}")

    @staticmethod
    def give(value: bytes) -> SourceStat:
        inode, size_bytes, mtime_ns = map(int, _unpacked(value).split(":"))
        return SourceStat(inode=inode, size_bytes=size_bytes, mtime_ns=mtime_ns)


class Nanoseconds(_Kept[int]):
    """An instant of the kernel's; one beyond the year 2262, which no database's integer holds, is kept as 0."""

    cache_ok = True
    kept_as = "BIGINT"

    @staticmethod
    def keep(value: int) -> int:
        return value if 0 < value < 1 << 63 else 0
