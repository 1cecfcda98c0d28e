"""A row of a file as the moves see it, and the small things that every statement over such rows uses."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Column, ColumnElement, literal_column

from ingestd.fs import places
from ingestd.lifecycle import Content, Identity, Jump, State

from . import dialect
from .schema import instance

T = TypeVar("T")


def columns(names: str) -> tuple[Column[Any], ...]:
    """Give these columns of ``instance``."""
    return tuple(instance.c[name] for name in names.split())


class Row(NamedTuple):
    """What a move needs to know of the row that it moves."""

    id: int
    host: str
    state: State
    reason: str | None
    inbox: str
    in_place: int
    study_uid: str | None
    series_uid: str | None
    sop_uid: str | None
    transfer_syntax: str | None
    digest: str | None
    size_bytes: int
    priority: int
    admitted_at: datetime
    queued: int
    hold_reason: str | None
    need: str | None
    next_attempt_at: datetime | None
    claim_token: str | None
    attempts: int
    charged: int
    was_stored: int
    resends: int
    absences: int
    absent_since: datetime | None
    checks: int
    seen_sequence: int | None
    being_created_since: datetime | None
    holder_id: int | None
    wish: str | None
    settled_at: datetime | None
    removed_at: datetime | None
    mismatch: int
    differs_since: datetime | None
    untold_since: datetime | None
    unnamed: int

    @property
    def identity(self) -> Identity | None:
        """The three UIDs, where the row has them."""
        if self.study_uid is None or self.series_uid is None or self.sop_uid is None:
            return None
        return Identity(study_uid=self.study_uid, series_uid=self.series_uid, sop_uid=self.sop_uid)


ID = attrgetter("id")
ROW = tuple(instance.c[name] for name in Row._fields)
_STATE = Row._fields.index("state")
_STATES = {state.value: state for state in State}

# The server was never asked about it, or is to be asked as if it had not been.
UNASKED: Mapping[str, Any] = MappingProxyType({"checks": 0, "absences": 0, "absent_since": None})


def make_row(values: Sequence[Any]) -> Row:
    """Make a Row of what a statement with the columns ``ROW`` gave."""
    fields = list(values)
    fields[_STATE] = _STATES[fields[_STATE]]
    return Row(*fields)


def tuple_of(columns: Sequence[Column[Any]]) -> Callable[..., Any]:
    """Build a named tuple for what a statement gives: where many names are read, in a tenth of the time."""
    named: Callable[..., Any] = namedtuple  # noqa: PYI024 - the columns are known when it runs
    made: Callable[..., Any] = named("Read", [column.name for column in columns])
    return made


# A partial index is used only where the statement says its condition literally.
ONE: ColumnElement[int] = literal_column("1")
ZERO: ColumnElement[int] = literal_column("0")
HOLDS = instance.c.holds == ONE
QUEUED = instance.c.queued == ONE
ON_ITS_WAY: ColumnElement[bool] = literal_column("holds = 1 AND confirmed_at IS NULL")
# Something in the spool: the file, or the Explicit VR copy of one that stays in place.
HAS_OWN_FILE: ColumnElement[bool] = literal_column("(in_place = 0 OR reencoded_path IS NOT NULL)")


CONTENT = columns("transfer_syntax digest meta_digest dataset_offset size_bytes")
COPY = columns(
    "reencoded_path reencoded_transfer_syntax reencoded_digest reencoded_meta_digest reencoded_dataset_offset"
    " reencoded_size_bytes"
)
IDENTITY = (instance.c.study_uid, instance.c.series_uid, instance.c.sop_uid)
# Where a file came from and where it lies.
PLACE = columns("inbox relative_path source path in_place priority")


def content_of(row: Any) -> Content:
    return Content(
        transfer_syntax=row.transfer_syntax,
        digest=row.digest,
        meta_digest=row.meta_digest,
        dataset_offset=row.dataset_offset,
        size_bytes=row.size_bytes,
    )


def content_of_copy(row: Any) -> Content:
    """Gather the Content of a row's Explicit VR copy."""
    return Content(
        transfer_syntax=row.reencoded_transfer_syntax,
        digest=row.reencoded_digest,
        meta_digest=row.reencoded_meta_digest,
        dataset_offset=row.reencoded_dataset_offset,
        size_bytes=row.reencoded_size_bytes,
    )


def identity_of(row: Any) -> Identity:
    return Identity(study_uid=row.study_uid, series_uid=row.series_uid, sop_uid=row.sop_uid)


def place_of(row: Any) -> dict[str, Any]:
    """Gather, by name, what the columns ``PLACE`` say."""
    return {
        "inbox": row.inbox,
        "relative_path": row.relative_path,
        "source": row.source,
        "path": row.path,
        "in_place": bool(row.in_place),
        "priority": row.priority,
    }


def pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a long list so that each piece fits into one statement."""
    for start in range(0, len(items), dialect.CHUNK):
        yield items[start : start + dialect.CHUNK]


def as_json(value: Mapping[str, Any] | Sequence[str]) -> str:
    """Write a small value into one column; nothing at all when it is empty."""
    return json.dumps(dict(value) if isinstance(value, Mapping) else list(value)) if value else ""


def file_of(spool: Path | None, path: str, *, in_place: bool) -> Path:
    """Say, to show it, where a row's file is: in place, or in its host's spool."""
    return Path(path if in_place else path_of(spool, path))


def path_of(spool: Path | None, path: str) -> str:
    """Say where in its host's spool a file is: a string, for a tenth of the price of a Path."""
    assert spool is not None, "a ledger that hands out files was opened with its spool"
    return f"{spool}/{path}"


def reach_of(spool: Path | None, path: str, *, in_place: bool, relative_path: str) -> str:
    """Say how a row's file is reached (a place, see ``places``): below its inbox, or in its host's spool."""
    return places.below_of(path, relative_path) if in_place else path_of(spool, path)


# What the rows of one move have in common; what a move sets then depends on nothing else.
_ALIKE = itemgetter(
    *(
        Row._fields.index(name)
        for name in (
            "host",
            "state",
            "reason",
            "inbox",
            "study_uid",
            "priority",
            "queued",
            "hold_reason",
            "need",
            "next_attempt_at",
            "claim_token",
            "settled_at",
            "mismatch",
            "differs_since",
            "untold_since",
        )
    )
)


def same_bytes(one: Row, other: Row) -> bool:
    return one.digest == other.digest and one.transfer_syntax == other.transfer_syntax


def alike(rows: Sequence[Row]) -> Iterable[Sequence[Row]]:
    """Put the rows together on which a move has the same effect."""
    if len(rows) == 1:
        return (rows,)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_ALIKE(row), []).append(row)
    return groups.values()


def jump_of(row: Any) -> Jump:
    """Make a Jump of a line of the clock."""
    return Jump(
        at=row.at,
        by=timedelta(microseconds=row.by_us),
        last_entry_id=row.last_entry_id,
        last_attempt_id=row.last_attempt_id,
    )
