"""What a person decides: retry, discard, replace, admit anyway. Each is legal, or refused with a sentence.

They run in a process of their own beside the daemon, which finds the rows where they left them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Table, or_, select, update

from ingestd.lifecycle import FILE_MOVES, HOLDING, MOVES, UNCONFIRMED, Reason, ServerKind, State

from . import dialect
from .errors import RefusedMove
from .reports import Choice
from .row import CONFIRMED, ENDED, ON_ITS_WAY, SELECT_FILES, UNASKED, ZERO, FileRow, Row, is_not_compared
from .schema import delivery, destination, file, spool, study_sum
from .transaction import Transaction
from .values import OperatorRequest, Retried

# What goes with sending a row as if it had never been sent.
_SENT_AFRESH: dict[str, Any] = {
    "charged": 0,
    "resends": 0,
    "was_stored": 0,
    "alone": 0,
    "confirmed_at": None,
    "being_created_since": None,
    "failure_reason": None,
    "holder_id": None,
}
_RETRIED = "a person asked for another try"

_NOTHING_TO_RETRY = {
    State.SENDING: "row {id} is being sent right now",
    State.STORED: "row {id} was stored by the server and is being confirmed; there is nothing to retry",
    State.CONFIRMED: "row {id} is confirmed on the server; there is nothing to retry",
    State.DUPLICATE: "row {id} has the same content as row {holder}, or is compared with it next; look at that one",
    State.DISCARDED: "row {id} was discarded; drop the file again to have it sent",
}

# These cannot be sent whatever a person asks: nothing can be read, or there is no identity to ask for.
_NEVER_ADMITTED = frozenset(
    {Reason.NOT_DICOM, Reason.DICOMDIR, Reason.ARCHIVE, Reason.NO_UIDS, Reason.UNREADABLE, Reason.KILLED_READER}
)


def _row(tx: Transaction, number: int) -> Row | FileRow:
    row = tx.row(number) or tx.file_row(number)
    if row is None:
        raise RefusedMove(
            number, f"there is no row {number} in this ledger; `ingestd status --files` lists the numbers"
        )
    return row


def _with_file(row: Row | FileRow, what: str) -> None:
    if row.removing_at is not None:
        raise RefusedMove(row.id, f"row {row.id} cannot be {what}: its file was removed on {row.removing_at:%Y-%m-%d}")


def _with_destination(tx: Transaction, row: Row, what: str) -> None:
    """Refuse what nobody would send; while it waited, no ingestd would start with the configuration as it is."""
    name = next(name for name, number in tx.destinations.items() if number == row.destination_id)
    if name not in tx.named:
        raise RefusedMove(
            row.id,
            f"row {row.id} cannot be {what}: the configuration does not name its destination {name} any more; name it"
            f" there again, or give the row up: `ingestd resolve {row.id} --discard`",
        )


def _with_free_identity(tx: Transaction, row: Row, what: str) -> None:
    holder = tx.holder_of(row)
    if holder is not None and holder.id != row.id:
        raise RefusedMove(
            row.id,
            f"row {row.id} cannot be {what}: row {holder.id} ({holder.state}) holds the same UIDs",
            other_id=holder.id,
        )


def _send_soon(tx: Transaction, row: Row, now: datetime) -> None:
    """End the backoff of the row's study: a person who asks for another try does not want to wait for it."""
    tx.counters.set_study(
        row.spool_id, row.destination_id, row.study_id, now, next_attempt_at=None, charged=0, pauses=0
    )


def retry(tx: Transaction, number: int, *, now: datetime) -> State:
    """Have a row tried again; of a REJECTED one a new admission is asked for, which is the daemon's to make."""
    state = _retry(tx, _row(tx, number), now)
    tx.flush()
    return state


def _retry(tx: Transaction, row: Row | FileRow, now: datetime) -> State:
    holder_id = _holder_of(row)
    if row.state in _NOTHING_TO_RETRY:
        raise RefusedMove(row.id, _NOTHING_TO_RETRY[row.state].format(id=row.id, holder=holder_id), other_id=holder_id)
    if isinstance(row, FileRow):
        _with_file(row, "retried")
        _ask_daemon(tx, row, OperatorRequest.RETRY, now)
        return row.state
    _with_destination(tx, row, "retried")
    if row.removing_at is not None and row.state not in HOLDING and (same := _kept_duplicates(tx, row)):
        _with_free_identity(tx, row, "retried")
        _send_soon(tx, row, now)
        tx.promote(row.id, same, now)
        return State.PENDING
    _with_file(row, "retried")
    _with_free_identity(tx, row, "retried")
    _send_soon(tx, row, now)
    if row.state is State.PENDING:
        # Waiting for its time: it is let go. What it needs of the reader it still needs.
        tx.change(row, to={"next_attempt_at": None, "charged": 0}, at=now)
        tx.note(row, at=now, reason=Reason.RETRIED, note=_RETRIED)
        return State.PENDING
    # What it was to replace is gone; what may be there by now nobody has looked at.
    replaces: dict[str, Any] = {"replaces": 0} if row.state is State.DELETED else {}
    tx.move(row, to=State.PENDING, at=now, reason=Reason.RETRIED, note=_RETRIED, **replaces, **_SENT_AFRESH, **UNASKED)
    return State.PENDING


def _holder_of(row: Row | FileRow) -> int | None:
    return row.holder_id if isinstance(row, Row) else None


def _kept_duplicates(tx: Transaction, row: Row) -> list[Row]:
    """Read what has the content of a row, and its file still."""
    return tx.rows_on(row.id, dialect.unindexed(delivery.c.state) == State.DUPLICATE, file.c.removing_at.is_(None))


def _ask_daemon(tx: Transaction, row: FileRow, request: OperatorRequest, now: datetime) -> None:
    tx.set_file(row.id, wish=request)
    tx.note_file(
        row.id,
        row.state,
        at=now,
        reason=Reason.RETRIED if request is OperatorRequest.RETRY else Reason.ADMITTED_ANYWAY,
        note="a person asked for it; the daemon will read the file again",
    )


def try_now(tx: Transaction, *, now: datetime) -> int:
    """End every wait that keeps files from being sent: the destination's pause, studies' backoffs, deferred rows."""
    tx.connection.execute(update(destination).where(destination.c.paused_until > now).values(paused_until=now))
    studies = (study_sum.c.spool_id, study_sum.c.destination_id, study_sum.c.study_id)
    waiting = select(*studies).where(study_sum.c.waiting > ZERO, study_sum.c.next_attempt_at > now)
    for spool_id, destination_id, study_id in tx.connection.execute(waiting).all():
        tx.counters.set_study(spool_id, destination_id, study_id, now, next_attempt_at=None)
    deferred = tx.rows(tx.select_rows(delivery.c.next_attempt_at > now))
    for row in deferred:
        tx.change(row, to={"next_attempt_at": None}, at=now)
    tx.flush()
    return len(deferred)


def retry_all(tx: Transaction, choice: Choice, *, now: datetime, limit: int = 1000) -> Retried:
    """Have all rows of a study, state or reason tried again that can be."""
    if choice.study_uid is None and choice.state is None and choice.reason is None:
        raise RefusedMove(0, "say which rows to retry: a study, a state or a reason")
    moved: list[int] = []
    requested: list[int] = []
    refused: list[RefusedMove] = []
    for row in islice(_chosen(tx, choice, limit), limit):
        try:
            state = _retry(tx, row, now)
        except RefusedMove as refusal:
            refused.append(refusal)
        else:
            (moved if state is State.PENDING else requested).append(row.id)
    tx.flush()
    return Retried(moved=tuple(moved), requested=tuple(requested), refused=tuple(refused))


def _chosen(tx: Transaction, choice: Choice, limit: int) -> Iterator[Row | FileRow]:
    """Read what is to be tried again, where its states are listed, each list the oldest first.

    So of two rows with one identity it is the newer that is refused, and says so.
    """
    states = {choice.state} if choice.state else {State.FAILED, State.CONFLICT, State.DELETED, State.REJECTED}
    if choice.state is None and choice.reason is not None:
        states.add(State.UNCERTAIN)
    study_id = tx.study_id(choice.study_uid) if choice.study_uid is not None else None
    if choice.study_uid is not None and study_id is None:
        return
    of_study = [] if study_id is None else [file.c.study_id == study_id]
    where = [*of_study, *_reason_and_age(delivery, choice)]
    at = dialect.unindexed(delivery.c.destination_id)
    if choice.destination is not None:
        where.append(at == choice.destination)
    elif left_out := [number for name, number in tx.destinations.items() if name not in tx.named]:
        where.append(at.not_in(left_out))  # refused, they would be chosen again and again, before all others
    # A study's files are few, and found by it.
    state = dialect.unindexed(delivery.c.state) if of_study else delivery.c.state
    for listed, among in (
        (ENDED, states - HOLDING),
        (ON_ITS_WAY, states & UNCONFIRMED),
        (CONFIRMED, states & {State.CONFIRMED}),
    ):
        if among:
            rows = tx.select_rows(listed, state.in_(sorted(among)), *where)
            yield from tx.rows(rows.order_by(delivery.c.changed_at, delivery.c.id).limit(limit))
    if choice.destination is not None:
        return
    alone = SELECT_FILES.where(file.c.state.in_(sorted(states)), *of_study, *_reason_and_age(file, choice))
    yield from tx.fetch_files(alone.order_by(file.c.changed_at, file.c.id).limit(limit).with_for_update())


def _reason_and_age(table: Table, choice: Choice) -> Iterator[ColumnElement[bool]]:
    if choice.reason is not None:
        yield table.c.reason == choice.reason
    if choice.since is not None:
        yield table.c.changed_at >= choice.since


def discard(tx: Transaction, number: int, *, idle_host: str = "", now: datetime) -> None:
    """Give a row up; its file is kept for `retain` and then removed. ``idle_host`` is one that nobody runs."""
    row = _row(tx, number)
    waits = isinstance(row, Row) and (row.state in UNCONFIRMED or is_not_compared(row))
    is_kept = row.state in (State.CONFIRMED, State.DUPLICATE) and not waits
    moves = FILE_MOVES if isinstance(row, FileRow) else MOVES
    if is_kept or (waits and not _is_of(tx, row, idle_host)) or (row.state, State.DISCARDED) not in moves:
        holder_id = _holder_of(row)
        other = f" of row {holder_id}" if row.state is State.DUPLICATE else ""
        raise RefusedMove(
            number,
            f"row {number} is {row.state}{other}; only FAILED, CONFLICT, REJECTED and DELETED rows can be discarded",
            other_id=holder_id,
        )
    reason, note = Reason.DISCARDED, "a person discarded it"
    if isinstance(row, FileRow):
        tx.move_file(row, to=State.DISCARDED, at=now, reason=reason, note=note, wish=None)
    else:
        tx.move(row, to=State.DISCARDED, at=now, reason=reason, note=note)
    tx.flush()


def discard_all_at(tx: Transaction, destination_id: int, *, now: datetime, limit: int = 1000) -> int:
    """Give up some of what is not proven at a destination; say how many rows. It is for what nobody sends to any more.

    What waits for one of them with the same content takes its place, and is here to be given up the next time.
    """
    here = delivery.c.destination_id == destination_id
    given_up: list[Row] = []
    # A duplicate that is settled is as good as proven.
    is_open = or_(delivery.c.state != State.DUPLICATE, delivery.c.settled_at.is_(None))
    ends = {State.FAILED, State.CONFLICT, State.DELETED, State.DUPLICATE}
    for listed, states in ((ON_ITS_WAY, UNCONFIRMED), (ENDED, ends)):
        wanted = delivery.c.state.in_(sorted(states)), is_open, here
        given_up += tx.rows(tx.select_rows(listed, *wanted).order_by(delivery.c.id).limit(limit))
    note = "a person removed its destination"
    tx.move(*given_up, to=State.DISCARDED, at=now, reason=Reason.DISCARDED, note=note)
    tx.flush()
    return len(given_up)


def _is_of(tx: Transaction, row: Row | FileRow, host: str) -> bool:
    return tx.connection.execute(select(spool.c.host).where(spool.c.id == row.spool_id)).scalar() == host


def replace(tx: Transaction, number: int, *, now: datetime) -> int:
    """Let a CONFLICT take the place of what holds its identity, here and on the server; say who held it (0: no row)."""
    row = _row(tx, number)
    if isinstance(row, FileRow) or row.state is not State.CONFLICT:
        raise RefusedMove(number, f"row {number} is {row.state}; only a CONFLICT can replace another row")
    _with_file(row, "sent in place of another row")
    _with_destination(tx, row, "sent in place of another row")
    _with_server_that_replaces(tx, row)
    holder = tx.holder_of(row)
    if holder is not None:
        _give_way(tx, holder, row, now)
    _send_soon(tx, row, now)
    tx.move(
        row,
        to=State.PENDING,
        at=now,
        reason=Reason.REPLACED,
        note=f"a person had it replace row {holder.id}" if holder else "a person had it replace what the server has",
        replaces=1,
        **_SENT_AFRESH,
    )
    tx.flush()
    return holder.id if holder else 0


def _with_server_that_replaces(tx: Transaction, row: Row) -> None:
    """Refuse what is known to end in 405, before the row that holds the identity gives way for nothing."""
    kind = select(destination.c.kind).where(destination.c.id == row.destination_id)
    if tx.connection.execute(kind).scalar() == ServerKind.ORTHANC:
        raise RefusedMove(
            row.id,
            f"the server, an Orthanc, cannot replace what it has; to have row {row.id} there instead, delete the other "
            f"on the server, then `ingestd reconcile --full` and `ingestd retry {row.id}`",
            other_id=row.holder_id,
        )


def _give_way(tx: Transaction, holder: Row, row: Row, now: datetime) -> None:
    if holder.state is State.SENDING:
        raise RefusedMove(
            row.id,
            f"row {holder.id}, which holds the same UIDs, is being sent right now; try again when that is over",
            other_id=holder.id,
        )
    duplicates = tx.rows_on(
        holder.id, dialect.unindexed(delivery.c.state) == State.DUPLICATE, delivery.c.settled_at.is_(None)
    )
    tx.move(
        holder,
        to=State.DISCARDED,
        at=now,
        reason=Reason.REPLACED,
        note=f"a person had row {row.id} replace it",
        gives_up=False,
    )
    # What has the replaced content shares its lot.
    for duplicate in duplicates:
        if is_not_compared(duplicate):
            tx.point_to(duplicate, row, at=now)
            continue
        tx.change(duplicate, to={"settled_at": now}, at=now)
        tx.note(
            duplicate,
            at=now,
            reason=Reason.REPLACED,
            note=f"a person had row {row.id} replace row {holder.id}, which has the same content",
        )
    # Other files that are in conflict with the former holder are so with its successor.
    for other in tx.rows_on(holder.id, dialect.unindexed(delivery.c.state) == State.CONFLICT):
        if other.id != row.id:
            tx.change(other, to={"holder_id": row.id}, at=now)


def admit_anyway(tx: Transaction, number: int, *, now: datetime) -> None:
    """Have a REJECTED file admitted although something is wrong with it; the daemon makes the new row."""
    row = _row(tx, number)
    if not isinstance(row, FileRow) or row.state is not State.REJECTED:
        raise RefusedMove(number, f"row {number} is {row.state}; only a REJECTED file can be admitted anyway")
    if row.reason in _NEVER_ADMITTED:
        raise RefusedMove(number, f"row {number} was rejected as {row.reason}: there is nothing in it to send")
    _with_file(row, "admitted")
    _ask_daemon(tx, row, OperatorRequest.ADMIT_ANYWAY, now)
    tx.flush()


def readmitted(tx: Transaction, file_id: int, new_id: int, *, now: datetime) -> None:
    """Close a row without a delivery whose file is another row now. Its path is that row's business."""
    row = tx.file_row(file_id)
    if row is None:
        return
    # What lies in the spool is the new row's.
    left: dict[str, Any] = {} if row.in_place else {"removing_at": now, "removed_at": now, "in_spool": 0}
    if row.state is State.DISCARDED:
        # A person let go of it meanwhile.
        if left and row.removing_at is None:
            tx.set_file(row.id, **left)
        return
    tx.move_file(
        row,
        to=State.DISCARDED,
        at=now,
        reason=Reason.ADMITTED_ANYWAY if row.wish == OperatorRequest.ADMIT_ANYWAY else Reason.RETRIED,
        note=f"its file was admitted anew as row {new_id}",
        wish=None,
        **left,
    )
    tx.flush()


def request_failed(tx: Transaction, file_id: int, *, note: str, now: datetime) -> None:
    """Put down why a person's request could not be carried out; the row stays REJECTED."""
    row = tx.file_row(file_id)
    if row is None or row.wish is None:
        return
    tx.set_file(row.id, wish=None, note=note)
    tx.note_file(row.id, row.state, at=now, reason=row.reason or "", note=note)
    tx.flush()
