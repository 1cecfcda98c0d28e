"""What else happens to rows: held, re-encoded, gone, removed; and what is kept of destination and inboxes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import delete, insert, update

from ingestd.lifecycle import Content, Reason, SourceStat, State

from . import dialect
from .row import UNASKED, pieces
from .schema import alarm, inbox_report, instance
from .transaction import Transaction
from .values import Alarm, InboxSummary, PendingRead

_PUT_REPORT = dialect.upsert(inbox_report)


def attach_reencoded(
    tx: Transaction, entry_id: int, *, path: str, content: Content, ctime_ns: int = 0, now: datetime
) -> bool:
    """Have the Explicit VR copy sent instead; its digest is on record before a byte of it leaves."""
    row = tx.row(entry_id)
    if row is None or row.state is not State.PENDING:
        return False
    note = "re-encoded without loss to Explicit VR Little Endian"
    tx.change(
        row,
        to={
            "need": None,
            "reencoded_path": path,
            "reencoded_transfer_syntax": content.transfer_syntax,
            "reencoded_digest": content.digest,
            "reencoded_meta_digest": content.meta_digest,
            "reencoded_dataset_offset": content.dataset_offset,
            "reencoded_size_bytes": content.size_bytes,
            "reencoded_ctime_ns": ctime_ns,
            "note": note,
        },
        at=now,
    )
    tx.note(row, at=now, reason=Reason.REENCODED, note=note)
    tx.flush()
    return True


def reencode_failed(tx: Transaction, entry_id: int, *, note: str, now: datetime) -> bool:
    """Have the server asked for a row that it refused and that cannot be re-encoded: the last before it is FAILED."""
    row = tx.row(entry_id)
    if row is None or row.state is not State.PENDING or row.need != PendingRead.REENCODE:
        return False
    asked = {"next_check_at": now, "needs_content_check": 1, **UNASKED}
    tx.move(row, to=State.UNCERTAIN, at=now, reason=Reason.REFUSED, note=note, **asked)
    tx.flush()
    return True


def read_no_more(tx: Transaction, entry_id: int, *, now: datetime) -> bool:
    """Let a row go on to be sent that waits to be read before, and whose file vanished: so the server is asked."""
    row = tx.row(entry_id)
    if row is None or row.state is not State.PENDING or row.need is None:
        return False
    tx.change(row, to={"need": None}, at=now)
    tx.flush()
    return True


def fail_gone(tx: Transaction, entry_ids: Iterable[int], *, note: str, now: datetime) -> int:
    """Give rows up whose file vanished, and which the server was asked about."""
    rows = [row for row in tx.rows_by_id(entry_ids).values() if row.state is State.UNCERTAIN]
    for row in rows:
        tx.move(row, to=State.FAILED, at=now, reason=Reason.GONE, note=note)
    tx.flush()
    return len(rows)


def mark_source_removed(tx: Transaction, entry_ids: Iterable[int]) -> None:
    for piece in pieces(list(entry_ids)):
        tx.connection.execute(update(instance).where(instance.c.id.in_(piece)).values(source_removed=1))


def mark_removed(tx: Transaction, entry_ids: Iterable[int], *, now: datetime) -> int:
    """Say that the spool files of these settled rows are gone. Nothing else may lose its file (G3)."""
    removed = 0
    for piece in pieces(list(entry_ids)):
        settled = (
            instance.c.id.in_(piece),
            # By id alone: the index over the settled rows has all that are kept for `retain`.
            dialect.unindexed(instance.c.host) == tx.host,
            instance.c.settled_at.is_not(None),
            instance.c.removed_at.is_(None),
        )
        removed += tx.connection.execute(
            update(instance).where(*settled, instance.c.in_place == 0).values(removed_at=now)
        ).rowcount
        # A file in place stays; only the copy that was sent in its stead is gone. Its digests go on counting.
        removed += tx.connection.execute(
            update(instance)
            .where(*settled, instance.c.in_place == 1, instance.c.reencoded_path.is_not(None))
            .values(reencoded_path=None)
        ).rowcount
    return removed


def refresh_source(tx: Transaction, entry_id: int, *, source: SourceStat, ctime_ns: int) -> None:
    """Take over what the kernel says now of a file in place that was read again and is what the row knows."""
    tx.write_rows()
    tx.connection.execute(
        update(instance)
        .where(instance.c.id == entry_id, instance.c.host == tx.host, instance.c.in_place == 1)
        .values(source=source, ctime_ns=ctime_ns)
    )


def written_after(tx: Transaction, entry_ids: Iterable[int], *, now: datetime) -> None:
    """Put down that these rows' files were written to after all was settled, and are new arrivals now."""
    note = "its file was written to after that; the bytes that lay there are a new arrival, under a number of their own"
    for row in tx.rows_by_id(entry_ids).values():
        tx.note(row, at=now, reason=Reason.CHANGED, note=note)


def put_alarms(tx: Transaction, alarms: Iterable[Alarm]) -> None:
    """Keep what keeps this host's files from being confirmed or removed, in place of what was kept before."""
    tx.connection.execute(delete(alarm).where(alarm.c.host == tx.host))
    rows = [{"host": tx.host, **asdict(each)} for each in alarms]
    if rows:
        tx.connection.execute(insert(alarm), rows)


def put_inbox_report(tx: Transaction, summary: InboxSummary, *, now: datetime) -> None:
    """Keep what the last look into an inbox found."""
    tx.connection.execute(
        _PUT_REPORT,
        {
            "host": tx.host,
            "inbox": summary.inbox,
            "path": summary.path,
            "alarm": summary.alarm,
            "watching": summary.watching,
            "counts": json.dumps(dict(summary.counts)),
            "oldest_at": summary.oldest_at,
            "at": now,
        },
    )
