"""A delivery, and its file, as the moves see them, and the small things that every statement over such rows uses."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Column, ColumnElement, literal_column, select

from ingestd.fs import places
from ingestd.lifecycle import Content, Identity, Jump, Reason, State

from . import dialect
from .column_types import Instant
from .schema import delivery, file, rendition, study

T = TypeVar("T")


def columns(names: str) -> tuple[Column[Any], ...]:
    """Give these columns, of the delivery where it has one of that name, else of the file."""
    return tuple(delivery.c[name] if name in delivery.c else file.c[name] for name in names.split())


def file_columns(names: str) -> tuple[Column[Any], ...]:
    """Give these columns of ``file``."""
    return tuple(file.c[name] for name in names.split())


# A delivery with its file; with what was sent in the file's stead, where there is something; with its study.
DELIVERED = delivery.join(file, file.c.id == delivery.c.file_id)
RENDERED = DELIVERED.outerjoin(rendition, rendition.c.id == delivery.c.rendition_id)
OF_STUDY = RENDERED.join(study, study.c.id == delivery.c.study_id)
# A file with its study, where it has one.
FILED = file.outerjoin(study, study.c.id == file.c.study_id)


class Row(NamedTuple):
    """What a move needs to know of the delivery that it moves, and of its file."""

    id: int
    file_id: int
    destination_id: int
    spool_id: int
    state: State
    reason: str | None
    inbox_id: int
    in_place: int
    study_id: int
    series_uid: str
    sop_uid: str
    identity: str  # by what it is looked up (``identity.hash_of``)
    transfer_syntax: str
    digest: str
    size_bytes: int
    priority: int
    admitted_at: datetime
    queued: int
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
    settled_at: datetime | None
    removing_at: datetime | None  # since then its file's bytes are gone
    mismatch: int
    differs_since: datetime | None
    untold_since: datetime | None
    unnamed: int


class FileRow(NamedTuple):
    """What a move needs to know of a file that has no delivery."""

    id: int
    spool_id: int
    state: State
    reason: str | None
    inbox_id: int
    in_place: int
    study_id: int | None
    size_bytes: int
    wish: str | None
    removing_at: datetime | None


ID = attrgetter("id")
ROW = columns(" ".join(Row._fields))
FILE_ROW = file_columns(" ".join(FileRow._fields))
_STATE = Row._fields.index("state")
_FILE_STATE = FileRow._fields.index("state")
_STATES = {state.value: state for state in State}

# The server was never asked about it, or is to be asked as if it had not been.
UNASKED: Mapping[str, Any] = MappingProxyType({"checks": 0, "absences": 0, "absent_since": None})


def make_row(values: Sequence[Any]) -> Row:
    """Make a Row of what a statement with the columns ``ROW`` gave."""
    fields = list(values)
    fields[_STATE] = _STATES[fields[_STATE]]
    return Row(*fields)


def make_file_row(values: Sequence[Any]) -> FileRow:
    """Make a FileRow of what a statement with the columns ``FILE_ROW`` gave."""
    fields = list(values)
    fields[_FILE_STATE] = _STATES[fields[_FILE_STATE]]
    return FileRow(*fields)


def tuple_of(columns: Sequence[Column[Any] | ColumnElement[Any]]) -> Callable[..., Any]:
    """Build a named tuple for what a statement gives: where many names are read, in a tenth of the time."""
    named: Callable[..., Any] = namedtuple  # noqa: PYI024 - the columns are known when it runs
    made: Callable[..., Any] = named("Read", [column.name for column in columns])
    return made


# A partial index is used only where the statement says its condition literally.
ONE: ColumnElement[int] = literal_column("1")
ZERO: ColumnElement[int] = literal_column("0")
HOLDS = delivery.c.holds == ONE
QUEUED = delivery.c.queued == ONE
ON_ITS_WAY: ColumnElement[bool] = literal_column("delivery.holds = 1 AND delivery.confirmed_at IS NULL")
CONFIRMED: ColumnElement[bool] = literal_column("delivery.holds = 1 AND delivery.confirmed_at IS NOT NULL")
ENDED: ColumnElement[bool] = literal_column("delivery.holds = 0")
# It is a DUPLICATE then.
NOT_COMPARED: ColumnElement[bool] = literal_column("delivery.reason = 'not_compared'")
# Something of it lies in the spool: the file, or what was sent in the stead of one that stays in place.
IN_SPOOL: ColumnElement[bool] = literal_column("file.in_spool = 1")


# What a proof by the feed rests on: its entry, and that nobody compared the contents.
_OF_SIGHTING = {"sequence", "server_time", "content"}
_NOT_COMPARED = "not compared"

CONTENT = file_columns("transfer_syntax digest meta_digest dataset_offset size_bytes")
_SENT = "path transfer_syntax digest meta_digest dataset_offset size_bytes ctime_ns"
# What is sent in the file's stead, as ``sent_...``; NULL where it is the file itself.
RENDITION: tuple[ColumnElement[Any], ...] = (
    *(rendition.c[name].label(f"sent_{name}") for name in _SENT.split()),
    rendition.c.removed_at.label("sent_removed_at"),
)
# The three UIDs, where the study is joined.
IDENTITY: tuple[ColumnElement[Any], ...] = (
    study.c.uid.label("study_uid"),
    file.c.series_uid,
    file.c.sop_uid,
)
# Where a file came from and where it lies.
PLACE = file_columns("inbox_id relative_path source path in_place priority")


def content_of(row: Any) -> Content:
    return Content(
        transfer_syntax=row.transfer_syntax,
        digest=row.digest,
        meta_digest=row.meta_digest,
        dataset_offset=row.dataset_offset,
        size_bytes=row.size_bytes,
    )


def content_sent(row: Any) -> Content:
    """Gather the Content of what is sent: that of the rendition, else that of the file."""
    if row.sent_digest is None:
        return content_of(row)
    return Content(
        transfer_syntax=row.sent_transfer_syntax,
        digest=row.sent_digest,
        meta_digest=row.sent_meta_digest,
        dataset_offset=row.sent_dataset_offset,
        size_bytes=row.sent_size_bytes,
    )


def identity_of(row: Any) -> Identity:
    return Identity(study_uid=row.study_uid, series_uid=row.series_uid, sop_uid=row.sop_uid)


def is_not_compared(row: Row) -> bool:
    """Whether it has to be found out yet if this has the content of the row that holds its identity."""
    return row.state is State.DUPLICATE and row.reason == Reason.NOT_COMPARED


def waits_with_its_file(row: Row) -> bool:
    """Whether a row waits to be sent, or to be compared."""
    return row.state is State.PENDING or is_not_compared(row)


def is_same_identity(one: Any, other: Any) -> bool:
    """Whether two deliveries or files are of one instance: by their UIDs, not only by what these are looked up by."""
    return (one.study_id, one.series_uid, one.sop_uid) == (other.study_id, other.series_uid, other.sop_uid)


def was_let_go_by_rule(row: Row) -> bool:
    """Whether the file was sent there, until it was routed again."""
    return row.state is State.DISCARDED and row.reason == Reason.BY_RULE


def place_of(row: Any, inbox: str) -> dict[str, Any]:
    """Gather, by name, what the columns ``PLACE`` say; ``inbox`` is the name of the one that they name."""
    return {
        "inbox": inbox,
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


def kept_evidence(evidence: Mapping[str, str]) -> str:
    """Write what a move rests on into one column: words by name, or the two numbers of a sighting in the feed."""
    if evidence.keys() == _OF_SIGHTING and evidence["sequence"].isdecimal():
        numbers = f"{evidence['sequence']}:{Instant.keep(datetime.fromisoformat(evidence['server_time']))}"
        if told_evidence(numbers) == evidence:
            return numbers
    return as_json(evidence)


def told_evidence(kept: str) -> Mapping[str, str]:
    """Give back by name what ``kept_evidence`` wrote."""
    if not kept.startswith("{"):
        sequence, is_sighting, at = kept.partition(":")
        server_time = Instant.give(int(at)).isoformat() if is_sighting else ""
        return {"sequence": sequence, "server_time": server_time, "content": _NOT_COMPARED} if is_sighting else {}
    words: Mapping[str, str] = json.loads(kept)
    return words


def file_of(spool: Path | None, path: str, *, in_place: bool) -> Path:
    """Say, to show it, where a row's file is: in place, or in its spool."""
    return Path(path if in_place else path_of(spool, path))


def path_of(spool: Path | None, path: str) -> str:
    """Say where in its spool a file is: a string, for a tenth of the price of a Path."""
    assert spool is not None, "a ledger that hands out files was opened with its spool"
    return f"{spool}/{path}"


def reach_of(spool: Path | None, path: str, *, in_place: bool, relative_path: str) -> str:
    """Say how a row's file is reached (a place, see ``places``): below its inbox, or in its spool."""
    return places.below_of(path, relative_path) if in_place else path_of(spool, path)


# What the rows of one move have in common; what a move sets then depends on nothing else.
_ALIKE = itemgetter(
    *(
        Row._fields.index(name)
        for name in (
            "destination_id",
            "spool_id",
            "state",
            "reason",
            "inbox_id",
            "study_id",
            "priority",
            "queued",
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
        last_file_id=row.last_file_id,
        last_attempt_id=row.last_attempt_id,
    )


SELECT_ROWS = select(*ROW).select_from(DELIVERED)
SELECT_FILES = select(*FILE_ROW)
