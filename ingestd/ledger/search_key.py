"""The key of the search words, in a file of its own: a copy of the ledger alone tells nobody who was examined.

It lies beside an SQLite ledger; that of one in PostgreSQL in the spool, for all who work there.

A PatientID or AccessionNumber is kept as a keyed hash. The ledger has the key's mark, by which it is known again: a key
that was lost and made anew finds nothing of what was taken in before, and a person has to be told.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Literal

from sqlalchemy import delete, select

from ingestd.fs.durable import write_once, write_whole
from ingestd.fs.places import read_named

from .errors import LedgerError, LedgerMissing
from .schema import alarm, meta, state_count
from .session import PUT_META, Session
from .values import KEY_MADE_ANEW

_LEAST_BYTES = 32
_IN_META = "search_key"
_MARK = select(meta.c.value).where(meta.c.key == _IN_META)
_WORDS_MOST = 1000


class _CutShortError(Exception):
    """The key is shorter than any that was ever made."""


def _read(file: Path) -> bytes:
    key = read_named(file)
    if len(key) < _LEAST_BYTES:
        raise _CutShortError
    return key


def copy_key(file: Path, place: Path) -> None:
    """Have a ledger's key lie at another place, too; raises LedgerError, also where another key lies there."""
    try:
        key = _read(file)
        write_once(place, key)
        is_other = _read(place) != key
    except (OSError, _CutShortError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is cut short"
        raise LedgerError(f"the key of the search words, {file}, cannot be copied to {place}: {why}") from None
    if is_other:
        raise LedgerError(
            f"another key of search words than that of the ledger, {file}, lies at {place}; nothing was moved: move it"
            " away, if it is of no ledger that is used"
        )


def _mark_of(key: bytes) -> str:
    """Say by what word the ledger knows this key again: nothing of the key can be told from it."""
    return hmac.digest(key, b"mark of the search key", "sha256")[:16].hex()


class SearchKey:
    """The key in this file, read when it is first needed, and made where there is none and ``may_make``."""

    def __init__(self, session: Session, file: Path | None, *, may_make: bool) -> None:
        self._session = session
        self._may_make = may_make
        self._place = file
        self._known: bytes | None = None
        self._words: dict[tuple[str, str], str] = {}  # by kind and value; files of a study share theirs
        # Whether the key of a filled ledger was gone when this one was opened to take files in.
        self.was_missing = False

    @property
    def _file(self) -> Path:
        if self._place is None:
            raise LedgerError("the key of the search words lies in the spool, and nobody said where that is")
        return self._place

    @property
    def where(self) -> str:
        """Say to a person where it lies."""
        beside = self._session.database.key_file() is not None
        return "the ledger's .key file" if beside else f"{self._file.name} in the spool"

    def hash(self, kind: Literal["patient", "accession"], value: str) -> str:
        """Say under which word a PatientID or AccessionNumber is kept, "" for an empty value; raises LedgerError."""
        word = self._words.get((kind, value))
        if word is None:
            if len(self._words) >= _WORDS_MOST:
                self._words.clear()
            trimmed = value.strip(" \0")
            said = f"{kind}\0{trimmed}".encode("utf-8", "replace")
            word = hmac.new(self._key(), said, hashlib.sha256).hexdigest()[:32] if trimmed else ""
            self._words[kind, value] = word
        return word

    def place_in_sample(self, sop_uid: str) -> float:
        """Say where in [0, 1) an instance stands among all: by a keyed hash, so that no server can tell which are few.

        The same for one instance each time that it is asked.
        """
        drawn = hmac.digest(self._key(), b"sample\0" + sop_uid.encode("utf-8", "replace"), "sha256")
        return int.from_bytes(drawn[:7]) / (1 << 56)

    @property
    def is_another(self) -> bool:
        """Whether what was taken in before is kept by another key than this one."""
        return self._known is not None and self._mark() != _mark_of(self._known)

    def follow(self) -> None:
        """Go by the key that a person has agreed to since ours was read; where another lies there, ours stays."""
        with suppress(OSError, _CutShortError):
            if self.is_another and _mark_of(key := _read(self._file)) == self._mark():
                self._known = key
                self._words.clear()

    def accept(self) -> None:
        """A person: go on with the key that is there now, whatever was taken in before. Raises LedgerError."""
        with self._session.begin():
            self._put_mark(_mark_of(self._read_or_make()))
            self._session.connection.execute(delete(alarm).where(alarm.c.kind == KEY_MADE_ANEW))

    def expect(self, *, rehearsal: bool) -> None:
        """Have the key at hand, and its mark in the ledger; within a transaction of whoever takes files in."""
        there = os.path.lexists(self._file)
        self.was_missing = not there and self._is_filled()
        if there or not rehearsal:
            key = self._key()
            if self._mark() is None:
                # Of a ledger older than the mark: a key that is lost is known again by nobody.
                self._put_mark("" if self.was_missing else _mark_of(key))

    def back_up(self, folder: Path) -> bool:
        """Copy the key into this folder, if it is the ledger's own, and say whether it is; raises OSError.

        Another one, or none, does not take the place of a former copy.
        """
        try:
            key = _read(self._file)
        except (OSError, _CutShortError):
            return False
        if self._mark() not in (None, _mark_of(key)):
            return False
        write_whole(folder / self._file.name, lambda scratch: scratch.write_bytes(key))
        return True

    def _key(self) -> bytes:
        if self._known is None:
            self._known = self._read_or_make()
        return self._known

    def _read_or_make(self) -> bytes:
        file = self._file
        try:
            if self._may_make and not file.exists():
                if self._is_filled():
                    import structlog  # noqa: PLC0415 - 0.03 s of `ingestd status`, for a line that few see

                    # Taking files in goes on; but what was taken in is no longer found by patient or accession.
                    structlog.get_logger().error("ledger.key_made_anew", why="key_was_missing")
                # Whole or not at all, whoever else is at it.
                write_once(file, secrets.token_bytes(_LEAST_BYTES))
            return _read(file)
        except FileNotFoundError:
            if not self._is_filled():
                raise LedgerMissing(f"the key of the search words, {file}, is not there yet") from None
            raise LedgerError(
                f"the key of the search words, {file}, is missing, so that nobody can be searched for; put it back"
                " from a backup of the ledger's folder"
            ) from None
        except OSError as error:
            raise LedgerError(f"the key of the search words, {file}, cannot be used: {error.strerror}") from None
        except _CutShortError:
            raise LedgerError(
                f"the key of the search words, {file}, is cut short; put it back from the backup of the"
                " ledger's folder (where there is none: move it away, start ingestd, and `ingestd resolve --new-key`)"
            ) from None

    def _mark(self) -> str | None:
        rows = self._session.fetch_cached(_MARK)
        return rows[0].value if rows else None

    def _put_mark(self, mark: str) -> None:
        self._session.connection.execute(PUT_META, {"key": _IN_META, "value": mark})

    def _is_filled(self) -> bool:
        return bool(sum(row.entries for row in self._session.fetch_all(select(state_count.c.entries))))
