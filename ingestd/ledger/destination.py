"""What is kept of a destination: pauses, its address, how far its feed went, and how far its word is trusted.

Each has one row of ``destination``, of ``feed_cursor`` and of ``verification``, and one of ``trust`` for each kind of
file that was compared there. Everything here is about the transaction's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Exists,
    Update,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from ingestd.lifecycle import FeedCursor, FeedEnd, Kind, Pause, PauseCause, State

from . import dialect
from .column_types import Instant
from .errors import RefusedMove
from .row import HOLDS, IN_SPOOL, ONE, as_json, pieces
from .schema import delivery, destination, feed_cursor, file, trust, verification
from .transaction import Transaction

_PUT_CURSOR = dialect.upsert(feed_cursor)
_MISMATCH = delivery.c.mismatch == ONE
_UNSEEN = dict.fromkeys(("seen_sequence", "seen_action", "seen_state", "seen_at"))
_STATE = dialect.unindexed(delivery.c.state)
_A_SECOND = timedelta(seconds=1)
_OPEN = (State.STORED, State.UNCERTAIN)
_HELD = delivery.alias("held")


def _keeps_file(of: Any) -> Exists:
    """Whether the file of this delivery is in the spool still."""
    return exists().where(file.c.id == of.c.file_id, IN_SPOOL, file.c.removing_at.is_(None))


# The server's copy of it is what lets a file of ours go: its own, or that of a duplicate, which may have outlived it.
_IS_RESTED_ON: ColumnElement[bool] = or_(
    delivery.c.settled_at.is_not(None) & _keeps_file(delivery),
    delivery.c.id.in_(
        select(_HELD.c.holder_id).where(
            literal_column("held.holds = 0"),
            _HELD.c.state == State.DUPLICATE,
            _HELD.c.settled_at.is_not(None),
            _keeps_file(_HELD),
        )
    ),
)


def pause_destination(tx: Transaction, pause: Pause, *, until: datetime, now: datetime) -> None:
    """Put down, for whoever asks, that the destination is not sent to until then, and since when."""
    since = destination.c.paused_since
    tx.set_destination(_destination(tx).where(since.is_(None)).values(paused_since=now))
    tx.set_destination(_destination(tx).values(paused_until=until, pause_cause=pause.cause, pause_note=pause.note))


def resume_destination(tx: Transaction, *, now: datetime) -> None:
    tx.set_destination(
        _destination(tx).values(paused_until=None, pause_cause="", pause_note="", paused_since=None, last_ok_at=now)
    )


def destination_answered(tx: Transaction, *, now: datetime) -> None:
    """Keep when it answered last, to the second: all who send there write this one row."""
    last = destination.c.last_ok_at
    is_new = or_(last.is_(None), last <= now - _A_SECOND, last > now)
    tx.set_destination(_destination(tx).where(is_new).values(last_ok_at=now))


def end_pause(tx: Transaction, *, unless: Iterable[PauseCause], now: datetime) -> None:
    """End the pause that another worker had, may be one that is gone, as it is sent to; not ``unless`` it goes for all.

    One of these causes ends when its time has come.
    """
    is_over = or_(destination.c.pause_cause.not_in(list(unless)), destination.c.paused_until <= now)
    written = (destination.c.paused_since.is_not(None), is_over)
    none = {"paused_until": None, "pause_cause": "", "pause_note": "", "paused_since": None}
    tx.set_destination(_destination(tx).where(*written).values(**none))


def set_destination_kind(tx: Transaction, kind: str) -> None:
    tx.set_destination(_destination(tx).where(destination.c.kind != kind).values(kind=kind))


def set_cursor(tx: Transaction, cursor: FeedCursor, *, now: datetime) -> None:
    """Say how far the change feed was read."""
    tx.connection.execute(
        _PUT_CURSOR,
        {
            "destination_id": tx.destination_id,
            "version": cursor.version,
            "since": cursor.since,
            "sequence": cursor.sequence,
            "moved_at": now,
        },
    )


def new_address(tx: Transaction, url: str, *, now: datetime) -> int:
    """Go on with the server at this address; say how many rows it is asked about for it.

    What is confirmed and lets a kept file go is compared there before that goes; what waits for proof is asked about
    anew, and compared. Nothing that the former address showed of its feed, nor the trust that it had earned, counts at
    the new one.
    Raises RefusedMove where the ledger belongs to that address already, or to none yet, and where another destination
    is there: two at one address could not be told from one that has another name now.
    """
    url = url.rstrip("/")
    former = tx.connection.execute(
        select(destination.c.url).where(destination.c.id == tx.destination_id)
    ).scalar_one_or_none()
    if former is None or former == url:
        raise RefusedMove(0, f"the ledger belongs to {url} already" if former else "the ledger has no server yet")
    other = tx.connection.execute(select(destination.c.name).where(destination.c.url == url)).scalar()
    if other is not None:
        raise RefusedMove(0, f"destination {other} is at {url}; what is to go there goes to that one (`rules`)")
    unknown = dict.fromkeys(("paused_until", "paused_since", "last_ok_at", "highest_sequence", "highest_at"))
    tx.connection.execute(_destination(tx).values(url=url, kind="", pause_cause="", pause_note="", **unknown))
    tx.connection.execute(delete(feed_cursor).where(feed_cursor.c.destination_id == tx.destination_id))
    # The trust that was earned goes: it is another place that answers.
    tx.connection.execute(delete(trust).where(trust.c.destination_id == tx.destination_id))
    _set(tx, ever_matched=0)
    tx.connection.execute(_deliveries(tx).where(delivery.c.seen_sequence.is_not(None)).values(_UNSEEN))
    tx.connection.execute(_deliveries(tx).where(delivery.c.absences > 0).values(absences=0, absent_since=None))
    asked = 0
    # That the server did not have it before our post was said by the former address, too.
    anew = {"needs_content_check": 1, "next_check_at": now}
    for rows in ((_STATE == State.CONFIRMED, _IS_RESTED_ON), (_STATE.in_(_OPEN),)):
        asked += tx.connection.execute(_deliveries(tx).where(HOLDS, *rows).values(anew)).rowcount
    return asked


def seen_end(tx: Transaction, end: FeedEnd) -> None:
    """Keep how far the change feed went, where it went further than ever before."""
    lower = or_(destination.c.highest_sequence.is_(None), destination.c.highest_sequence <= end.sequence)
    tx.set_destination(_destination(tx).where(lower).values(highest_sequence=end.sequence, highest_at=end.at))


def went_back(tx: Transaction, *, to: int | None, end: FeedEnd | None, now: datetime) -> None:
    """Put down that the server has gone back in time, and have everything asked about that it may have lost.

    That is what its feed had shown after the sequence ``to`` (None: it has no feed), what no feed had shown, and
    whatever a kept file rests on. What those entries said holds no more: their sequences are given out again.
    """
    since = (delivery.c.seen_sequence > to, delivery.c.seen_sequence.is_(None)) if to is not None else ()
    there = (HOLDS, _STATE.in_([*_OPEN, State.CONFIRMED]), or_(_IS_RESTED_ON, *since))
    tx.connection.execute(_deliveries(tx).where(*there).values(next_check_at=now))
    if to is not None:
        tx.connection.execute(_deliveries(tx).where(delivery.c.seen_sequence > to).values(_UNSEEN))
    values = {} if end is None else {"highest_sequence": end.sequence, "highest_at": end.at}
    since_when = func.coalesce(destination.c.went_back_at, literal(now, Instant()))
    tx.connection.execute(_destination(tx).values(went_back_at=since_when, **values))


def went_back_settled(tx: Transaction) -> None:
    """All that was asked about is settled: files may go again."""
    tx.connection.execute(_destination(tx).values(went_back_at=None))


def count_matches(tx: Transaction, matches: Mapping[Kind, int]) -> None:
    """Count copies that were fetched and are ours; the first of all lets what had stopped go on."""
    for (transfer_syntax, sop_class_uid), number in matches.items():
        kind = {
            "destination_id": tx.destination_id,
            "transfer_syntax": transfer_syntax,
            "sop_class_uid": sop_class_uid,
        }
        of_kind = (trust.c[name] == value for name, value in kind.items())
        counted = tx.connection.execute(update(trust).where(*of_kind).values(matched=trust.c.matched + number))
        if not counted.rowcount:
            tx.connection.execute(insert(trust), {**kind, "matched": number})
    _set(tx, ever_matched=1, stopped_at=None, studies="")


def mismatch(tx: Transaction, *, studies: Sequence[str], differs: str, stops: bool, now: datetime) -> None:
    """Put down that the server gives back other content than it was sent: all trust in it is gone.

    ``studies``: those that mismatched in a row while nothing ever matched. ``stops``: nothing is compared any more.
    """
    tx.connection.execute(delete(trust).where(trust.c.destination_id == tx.destination_id))
    values: dict[str, Any] = {
        "mismatched_at": func.coalesce(verification.c.mismatched_at, literal(now, Instant())),
        "studies": as_json(studies),
        "differs": differs,
    }
    if stops:
        values["stopped_at"] = func.coalesce(verification.c.stopped_at, literal(now, Instant()))
    _set(tx, **values)


def forgive(tx: Transaction, *, now: datetime) -> None:
    """Let files go again: a person has settled what differed, or has given the trust that the server had not earned."""
    _set(tx, mismatched_at=None, stopped_at=None, studies="", differs="")
    ask_mismatched_again(tx, now=now)


def ask_mismatched_again(tx: Transaction, *, now: datetime) -> int:
    """Have the rows asked about now that stayed STORED because nothing of this server had ever matched."""
    return tx.connection.execute(
        _deliveries(tx).where(_MISMATCH, _STATE == State.STORED).values(next_check_at=now)
    ).rowcount


def recheck(tx: Transaction, delivery_ids: Iterable[int], *, now: datetime) -> None:
    """Have these confirmed rows compared before their files may go."""
    for piece in pieces(list(delivery_ids)):
        tx.connection.execute(
            update(delivery)
            .where(dialect.among(delivery.c.id, "ids"), _STATE == State.CONFIRMED)
            .values(needs_content_check=1, next_check_at=now),
            {"ids": piece},
        )


def _set(tx: Transaction, **values: Any) -> None:
    own = verification.c.destination_id == tx.destination_id
    tx.connection.execute(update(verification).where(own).values(**values))


def _destination(tx: Transaction) -> Update:
    return update(destination).where(destination.c.id == tx.destination_id)


def _deliveries(tx: Transaction) -> Update:
    return update(delivery).where(delivery.c.destination_id == tx.destination_id)
