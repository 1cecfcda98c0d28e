"""What else happens to rows: held, re-encoded, gone, removed; and what is kept of destination and inboxes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select, update

from ingestd.lifecycle import Content, Reason, SourceStat, State

from . import dialect
from .column_types import Instant
from .counters import NO_DESTINATION
from .queries.files import STILL_MAY_GO
from .row import UNASKED, Row, pieces, waits_with_its_file
from .schema import alarm, delivery, file, inbox, rendition
from .transaction import Transaction
from .values import Alarm, InboxSummary, PendingRead

_EXPLICIT_VR = "explicit_vr"
_NOT_COMPARED = "its bytes are gone; whether they were what row {holder} has, nobody can say any more"
_NO_ROOM = "the disk was full, and no destination that is required wanted its file"
_PUT_RENDITION = dialect.upsert(rendition)
_FORMER = select(rendition.c.id, rendition.c.removed_at).where(
    rendition.c.file_id == bindparam("file_id"), rendition.c.recipe == bindparam("recipe")
)
_PUT_INBOX_REPORT = update(inbox).where(inbox.c.id == bindparam("inbox_id"))
_MARK_REMOVING = update(file).where(dialect.among(file.c.id, "ids")).values(removing_at=bindparam("at"))
_MARK_REMOVED = (
    update(file)
    .where(
        dialect.among(file.c.id, "ids"),
        # By id alone: the index over what is not needed has all that is kept for `retain`.
        dialect.unindexed(file.c.spool_id) == bindparam("own"),
        dialect.unindexed(file.c.unneeded_at).is_not(None),
        dialect.unindexed(file.c.in_spool) == 1,
        file.c.removing_at.is_not(None),
    )
    .values(in_spool=0, removed_at=func.coalesce(file.c.removed_at, bindparam("at", type_=Instant())))
    .returning(file.c.id)
)
_RENDITIONS_GONE = (
    update(rendition)
    .where(dialect.among(rendition.c.file_id, "ids"), rendition.c.removed_at.is_(None))
    .values(removed_at=bindparam("at"))
)
_OF_FILE = select(file.c.study_id, file.c.series_uid, file.c.sop_uid).where(file.c.id == bindparam("id"))


def attach_reencoded(
    tx: Transaction, delivery_id: int, *, path: str, content: Content, ctime_ns: int = 0, now: datetime
) -> bool:
    """Have the Explicit VR copy sent instead; its digest is on record before a byte of it leaves.

    Say whether this copy is needed: where the file has one already, that is sent.
    """
    row = tx.row(delivery_id)
    if row is None or row.state is not State.PENDING:
        return False
    former = tx.connection.execute(_FORMER, {"file_id": row.file_id, "recipe": _EXPLICIT_VR}).one_or_none()
    is_new = former is None or former.removed_at is not None
    number = tx.next_number("rendition") if former is None else former.id
    if is_new:
        as_sent = dict(tx.connection.execute(_OF_FILE, {"id": row.file_id}).one()._mapping)  # noqa: SLF001 - its name
        made = {
            "id": number,
            "file_id": row.file_id,
            "recipe": _EXPLICIT_VR,
            "path": path,
            **as_sent,
            "transfer_syntax": content.transfer_syntax,
            "digest": content.digest,
            "meta_digest": content.meta_digest,
            "dataset_offset": content.dataset_offset,
            "size_bytes": content.size_bytes,
            "made_at": now,
            "removed_at": None,
            "ctime_ns": ctime_ns,
        }
        tx.connection.execute(_PUT_RENDITION, made)
        tx.set_file(row.file_id, in_spool=1)
    size = content.size_bytes if is_new else _size_of(tx, number)
    note = "re-encoded without loss to Explicit VR Little Endian"
    tx.change(row, to={"need": None, "rendition_id": number, "size_bytes": size, "note": note}, at=now)
    tx.note(row, at=now, reason=Reason.REENCODED, note=note)
    tx.flush()
    return is_new


def _size_of(tx: Transaction, rendition_id: int) -> int:
    size: int = tx.connection.execute(select(rendition.c.size_bytes).where(rendition.c.id == rendition_id)).scalar_one()
    return size


def reencode_failed(tx: Transaction, delivery_id: int, *, note: str, now: datetime) -> bool:
    """Have the server asked for a row that it refused and that cannot be re-encoded: the last before it is FAILED."""
    row = tx.row(delivery_id)
    if row is None or row.state is not State.PENDING or row.need != PendingRead.REENCODE:
        return False
    asked = {"next_check_at": now, "needs_content_check": 1, **UNASKED}
    tx.move(row, to=State.UNCERTAIN, at=now, reason=Reason.REFUSED, note=note, **asked)
    tx.flush()
    return True


def read_no_more(tx: Transaction, delivery_id: int, *, now: datetime) -> bool:
    """Let a row go on that waits to be read before, and whose file vanished.

    It is sent, so that the server is asked; one that had to be compared is for a person.
    """
    row = tx.row(delivery_id)
    if row is None or row.need is None or row.state not in (State.PENDING, State.DUPLICATE):
        return False
    if row.state is State.DUPLICATE:
        tx.move(row, to=State.CONFLICT, at=now, reason=Reason.GONE, note=_NOT_COMPARED.format(holder=row.holder_id))
    else:
        tx.change(row, to={"need": None}, at=now)
    tx.flush()
    return True


def fail_gone(tx: Transaction, delivery_ids: Iterable[int], *, note: str, now: datetime) -> int:
    """Give rows up whose file vanished, and which the server was asked about."""
    rows = [row for row in tx.rows_by_id(delivery_ids).values() if row.state is State.UNCERTAIN]
    for row in rows:
        tx.move(row, to=State.FAILED, at=now, reason=Reason.GONE, note=note)
    tx.flush()
    return len(rows)


def give_up_for_room(tx: Transaction, file_ids: Iterable[int], *, at: Collection[int], now: datetime) -> int:
    """Give up at these destinations what waits of files that nobody else needs; say how many deliveries.

    They need the bytes no more from then on, so that these may go. What is wanted otherwise meanwhile is left alone.
    """
    by_file: defaultdict[int, list[Row]] = defaultdict(list)
    for piece in pieces(list(file_ids)):
        wanted = dialect.among(delivery.c.file_id, "ids"), dialect.unindexed(delivery.c.settled_at).is_(None)
        for row in tx.rows(tx.select_rows(*wanted).order_by(delivery.c.id), ids=piece):
            by_file[row.file_id].append(row)
    given_up = 0
    for rows in by_file.values():
        if all(waits_with_its_file(row) and row.destination_id in at for row in rows):
            tx.move(*rows, to=State.FAILED, at=now, reason=Reason.NO_ROOM, note=_NO_ROOM, settled_at=now)
            given_up += len(rows)
    tx.flush()
    return given_up


def mark_source_removed(tx: Transaction, file_ids: Iterable[int]) -> None:
    for piece in pieces(list(file_ids)):
        marked = update(file).where(dialect.among(file.c.id, "ids")).values(source_removed=1)
        tx.connection.execute(marked, {"ids": piece})


def mark_removing(
    tx: Transaction, file_ids: Iterable[int], *, unasked: Collection[int] = (), now: datetime
) -> set[int]:
    """Say for good that the bytes of these files go, before they do; give those that may go still (G3).

    From here on nobody counts on them. A file that stays in place keeps its own; what was sent in its stead goes, is
    gone for whoever sends it anew meanwhile, and is nobody's where it lies there still (an orphan, discarded).
    ``unasked``: destinations at which a copy in doubt holds nothing.
    """
    may_go: dict[int, int] = {}
    asked = {"spool_id": tx.spool_id, "unasked": sorted(unasked)}
    for piece in pieces(list(file_ids)):
        rows = tx.connection.execute(STILL_MAY_GO, {**asked, "ids": piece})
        may_go.update((row.id, row.in_place) for row in rows)
    for piece in pieces(sorted(may_go)):
        if go := [each for each in piece if not may_go[each]]:
            dialect.write(tx.connection, _MARK_REMOVING, {"ids": go, "at": now})
        if in_place := [each for each in piece if may_go[each]]:
            _have_gone(tx, in_place, now)
    return set(may_go)


def mark_removed(tx: Transaction, file_ids: Iterable[int], *, now: datetime) -> int:
    """Say that what lay in the spool of these files is gone. Nothing that is needed may lose its file (G3)."""
    removed = 0
    for piece in pieces(list(file_ids)):
        asked = {"own": tx.spool_id, "ids": piece, "at": now}
        gone = tx.connection.execute(_MARK_REMOVED, asked).scalars().all()
        if gone:
            dialect.write(tx.connection, _RENDITIONS_GONE, {"ids": gone, "at": now})
        removed += len(gone)
    return removed


def _have_gone(tx: Transaction, file_ids: Sequence[int], now: datetime) -> None:
    """Put down that nothing of these files that stay in place lies in the spool any more."""
    these = {"ids": file_ids}
    tx.connection.execute(update(file).where(dialect.among(file.c.id, "ids")).values(in_spool=0), these)
    tx.connection.execute(_RENDITIONS_GONE, {**these, "at": now})


def refresh_source(tx: Transaction, file_id: int, *, source: SourceStat, ctime_ns: int) -> None:
    """Take over what the kernel says now of a file in place that was read again and is what the row knows."""
    tx.write_rows()
    tx.connection.execute(
        update(file)
        .where(file.c.id == file_id, dialect.unindexed(file.c.spool_id) == tx.spool_id, file.c.in_place == 1)
        .values(source=source, ctime_ns=ctime_ns)
    )


def written_after(tx: Transaction, file_ids: Iterable[int], *, now: datetime) -> None:
    """Put down that these rows' files were written to after all was settled, and are new arrivals now."""
    note = "its file was written to after that; the bytes that lay there are a new arrival, under a number of their own"
    numbers = list(file_ids)
    for row in tx.rows_by_id(numbers).values():
        tx.note(row, at=now, reason=Reason.CHANGED, note=note)
    for number in numbers:
        if (ended := tx.file_row(number)) is not None:
            tx.note_file(number, ended.state, at=now, reason=Reason.CHANGED, note=note)


def put_alarms(tx: Transaction, alarms: Iterable[Alarm]) -> None:
    """Keep what keeps this spool's files from being confirmed or removed, in place of what was kept before.

    What others at work on it met with stays.
    """
    tx.connection.execute(delete(alarm).where(alarm.c.spool_id == tx.spool_id, alarm.c.worker_id.not_in(tx.others())))
    rows = []
    for each in map(asdict, alarms):
        number = tx.destinations.get(each.pop("destination"), NO_DESTINATION)
        rows.append({"spool_id": tx.spool_id, "worker_id": tx.worker, "destination_id": number, **each})
    if rows:
        tx.connection.execute(insert(alarm), rows)


def put_inbox_reports(tx: Transaction, summaries: Iterable[InboxSummary], *, now: datetime) -> None:
    """Keep what the last look into each of these inboxes found."""
    rows = [
        {
            "inbox_id": tx.inbox_id(summary.inbox),
            "path": summary.path,
            "alarm": summary.alarm,
            "watching": summary.watching,
            "counts": json.dumps(dict(summary.counts)),
            "oldest_at": summary.oldest_at,
            "at": now,
        }
        for summary in summaries
    ]
    if rows:
        tx.connection.execute(_PUT_INBOX_REPORT, rows)
