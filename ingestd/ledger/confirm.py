"""What the server shows: sightings in the change feed, and the reconciler's outcomes.

An outcome was made from a row as it was when the server was asked. So ``apply`` decides, for each and in this order:

1. Whether the row is still where it was asked about: in the outcome's ``expected`` state, or where that is left open,
   in one that the server may be asked about and from which the move is legal. Else it is lost: nothing is done, and it
   is asked about again when its time comes. Of two outcomes for one row in one call the first counts.
2. Whether another row has its identity by now, which it would take up again (DELETED -> CONFIRMED): then it stays.
3. An outcome in the row's own state settles nothing (``_not_settled``): asked, and when to ask again. Absences are
   counted, and begin anew once it was seen; whether two are enough is the reconciler's to say, not ours. Any other
   outcome moves the row (``_settled``), with checks and absences at 0.
4. Behind all moves, what follows for others from rows that are CONFIRMED now. A duplicate's file may go only where the
   evidence is newer than its drop: somebody may have deleted the holder on the server, and dropped the file again so
   that it is sent. Where the evidence is older the server is asked once more. And rows that a person would have to look
   at, DELETED or FAILED, need nobody any more where their very file came again and is there.

What may not be changed: ``evidence_at`` is when the server was asked, not when the answer was written; it is taken from
a first confirmation only as it is, since the question may be older than the drop. ``needs_content_check``, once set,
ends with the states it belongs to or with a copy that was the same, never with a mere sighting. A mismatch stays until
a copy matches or the row moves.

``record_sightings`` moves no row. It keeps the newest entry of each identity, never an older one over a newer, has the
row asked about at once, and moves the feed's cursor in the same transaction: a cursor that is ahead of its sightings
would skip them for ever. Two entries of one identity in a read, or one on a row that had one, say that somebody else's
hand was in it: presence alone proves that row no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Any

from sqlalchemy import Update, and_, bindparam, case, literal, or_, select, update

from ingestd.lifecycle import (
    HOLDING,
    MOVES,
    PROVABLE,
    REFUSALS,
    Backoff,
    FeedCursor,
    Identity,
    Outcome,
    Reason,
    Sameness,
    Sighting,
    State,
    Unproven,
)

from . import dialect, queries
from .claims import SERIES_SENT, SOP_SENT
from .destination import set_cursor
from .finish import need_of
from .identity import hash_of
from .row import (
    ENDED,
    HOLDS,
    OF_STUDY,
    SELECT_ROWS,
    UNASKED,
    Row,
    as_json,
    columns,
    identity_of,
    is_not_compared,
    is_same_identity,
    pieces,
)
from .sameness import same_bytes
from .schema import delivery, study
from .transaction import Transaction
from .values import Applied

_GONE = "its bytes are gone, and the server does not have it"
_BETTER = frozenset({State.STORED, State.CONFIRMED})
_AT_DESTINATION = delivery.c.destination_id == bindparam("destination_id")
_GAVE_UP = (
    SELECT_ROWS.where(
        *(_AT_DESTINATION, dialect.among(delivery.c.identity, "identities"), ENDED),
        dialect.unindexed(delivery.c.state).in_([State.DELETED, State.FAILED]),
    )
    .order_by(delivery.c.id)
    .with_for_update(of=delivery)
)


_SELECT_SEEN = (
    select(
        *columns("id state seen_sequence needs_content_check"),
        study.c.uid.label("study_uid"),
        SERIES_SENT.label("series_uid"),
        SOP_SENT.label("sop_uid"),
    )
    .select_from(OF_STUDY)
    .where(_AT_DESTINATION)
    .order_by(delivery.c.id)
    .with_for_update(of=delivery)
)
_HELD_SEEN, _DELETED_SEEN = (
    dialect.LookUpEach(_SELECT_SEEN.where(*those), delivery.c.identity, "identities")
    for those in ((HOLDS,), (ENDED, dialect.unindexed(delivery.c.state) == State.DELETED))
)


def apply(tx: Transaction, outcomes: Sequence[Outcome], *, now: datetime, backoff: Backoff, jitter: float) -> Applied:
    """Carry out what the reconciler found; a row that is not where it was asked about is left alone."""
    rows = tx.rows_by_id(map(attrgetter("delivery_id"), outcomes))
    moved = 0
    confirmed: dict[int, datetime | None] = {}
    proven: list[Row] = []
    taken: set[int] = set()
    for found in outcomes:
        row = rows.get(found.delivery_id)
        outcome = _as_far_as_there_is_a_file(found, row)
        if row is None or row.id in taken or not _is_where_asked(row, outcome) or _is_in_the_way(tx, row, outcome):
            continue
        taken.add(row.id)
        if outcome.state is row.state:
            _not_settled(tx, row, outcome, now, backoff, jitter)
        else:
            _settled(tx, row, outcome, now)
        moved += 1
        if outcome.state is State.CONFIRMED and (row.state is not State.CONFIRMED or _is_seen(outcome)):
            # Asked because of a drop, the answer is newer than the drop; the evidence of a first time may be older.
            fresh = now if row.state is State.CONFIRMED else None
            confirmed[row.id] = outcome.evidence_at or fresh
            proven.append(row)
    tx.write_rows()
    _settle_duplicates(tx, confirmed, now)
    _free_a_person(tx, proven, now)
    tx.flush()
    return Applied(moved=moved, lost=len(outcomes) - moved)


def _as_far_as_there_is_a_file(outcome: Outcome, row: Row | None) -> Outcome:
    """Give up what is to be sent again and whose bytes are gone: another file lies in their place."""
    if row is None or row.removing_at is None or outcome.state is not State.PENDING:
        return outcome
    return replace(outcome, state=State.FAILED, reason=Reason.GONE, note=_GONE)


def _is_where_asked(row: Row, outcome: Outcome) -> bool:
    if outcome.expected is not None:
        return row.state is outcome.expected
    return row.state in PROVABLE and (row.state is outcome.state or (row.state, outcome.state) in MOVES)


def _is_seen(outcome: Outcome) -> bool:
    """Whether an outcome in the row's own state says that the server has it, not only that it could not be told."""
    return outcome.reason is not Reason.ABSENT and (outcome.evidence_at is not None or outcome.wait is None)


def _is_in_the_way(tx: Transaction, row: Row, outcome: Outcome) -> bool:
    """Whether another row holds the identity that this one would take up again."""
    if row.state in HOLDING or outcome.state not in HOLDING:
        return False
    return tx.holder_of(row) is not None


def _not_settled(tx: Transaction, row: Row, outcome: Outcome, now: datetime, backoff: Backoff, jitter: float) -> None:
    """Put down that the server was asked, and when to ask again."""
    checks = row.checks + 1
    wait = outcome.wait if outcome.wait is not None else backoff.wait(checks, jitter=jitter)
    values: dict[str, Any] = {"checks": checks, "next_check_at": now + wait}
    if outcome.reason is Reason.ABSENT:
        values.update(absences=row.absences + 1, absent_since=row.absent_since or now)
    elif outcome.reason in (Reason.FEED, Reason.QUERY, Reason.CONTENT_CHECK):
        values.update(absences=0, absent_since=None)
    if row.state is State.CONFIRMED and _is_seen(outcome):
        # That ends the look.
        values.update(confirmed_at=now, checks=0)
        values["next_check_at"] = now + outcome.wait if outcome.wait is not None else None
    if row.state is State.DELETED and outcome.wait is None:
        values["next_check_at"] = None
    if outcome.state is State.UNCERTAIN and outcome.reason is Reason.ALREADY_THERE:
        values["needs_content_check"] = 1
    if outcome.charge:
        values["charged"] = row.charged + 1
    _learn(row, outcome, values, now)
    tx.change(row, to=values, at=now)
    differs = outcome.sameness not in (None, Sameness.SAME) and row.differs_since is None
    if outcome.reason is Reason.ABSENT or differs:
        # The second sending of a file must be explained by what is on record, and so must a conflict.
        tx.note(row, at=now, reason=outcome.reason, note=outcome.note, evidence=outcome.evidence)


def _learn(row: Row, outcome: Outcome, values: dict[str, Any], now: datetime) -> None:
    """Keep what was found of the server's copy, or that nothing could be; the row's note tells it."""
    if outcome.sameness is Sameness.SAME:
        # Only of a confirmed row is that no move.
        values.update(compared=1, needs_content_check=0, differs_since=None, mismatch=0)
    elif outcome.sameness is not None:
        values.update(differs_since=row.differs_since or now, mismatch=int(outcome.mismatch or row.mismatch))
    if outcome.untold:
        values["untold_since"] = row.untold_since or now
    elif row.untold_since is not None:
        values["untold_since"] = None
    if outcome.noted and row.state is not State.DELETED:
        values["note"] = outcome.note


def _settled(tx: Transaction, row: Row, outcome: Outcome, now: datetime) -> None:
    later = now + outcome.wait if outcome.wait is not None else now
    values: dict[str, Any] = {
        **UNASKED,
        # A row that moved for the better begins to count anew.
        "charged": 0 if outcome.state in _BETTER else row.charged + int(outcome.charge),
    }
    after = outcome.state
    if after is State.PENDING:
        values["next_attempt_at"] = now + outcome.wait if outcome.wait is not None else None
        values["need"] = need_of(outcome)
        if outcome.reason is Reason.ABSENT:
            # Whether it travels alone is what its last post said.
            values["resends"] = row.resends + 1
        else:
            values["alone"] = int(outcome.alone)
    elif after is State.STORED:
        values.update(next_check_at=later, stored_at=now, was_stored=1)
    elif after is State.UNCERTAIN:
        values["next_check_at"] = later
    elif after is State.CONFIRMED:
        values["confirmed_at"] = now
    if after is State.CONFIRMED or row.state is State.CONFIRMED:
        values["compared"] = int(after is State.CONFIRMED and outcome.sameness is Sameness.SAME)
    if outcome.mismatch:
        values["mismatch"] = 1
    if after not in (State.STORED, State.UNCERTAIN):
        values["needs_content_check"] = 0
    elif outcome.reason is Reason.ALREADY_THERE:
        values["needs_content_check"] = 1
    if outcome.failure_reason is not None:
        values["failure_reason"] = outcome.failure_reason
    if outcome.warning_reason is not None:
        values.update(warning_reason=outcome.warning_reason, failed_attributes=as_json(outcome.failed_attributes))
    tx.move(row, to=after, at=now, reason=outcome.reason, note=outcome.note, evidence=outcome.evidence, **values)


def _settle_duplicates(tx: Transaction, confirmed: dict[int, datetime | None], now: datetime) -> None:
    """Let go of the files of duplicates dropped before the evidence; for the others the server is asked again."""
    again: dict[int, None] = {}
    duplicates: list[Row] = []
    for piece in pieces(list(confirmed)):
        found = tx.rows(
            tx.select_rows(
                delivery.c.holder_id.is_not(None),
                delivery.c.holder_id.in_(piece),
                dialect.unindexed(delivery.c.state) == State.DUPLICATE,
                delivery.c.settled_at.is_(None),
            )
        )
        duplicates += [each for each in found if not is_not_compared(each)]
    if duplicates:
        jump = tx.jump
        for duplicate in duplicates:
            assert duplicate.holder_id is not None, "the statement asked for it"
            evidence_at = confirmed[duplicate.holder_id]
            # Dropped before the clock was set, it is older than what was seen since, whatever the times say.
            is_across = jump is not None and duplicate.file_id <= jump.last_file_id
            dropped_at = jump.at if jump is not None and is_across else duplicate.admitted_at
            if evidence_at is not None and dropped_at <= evidence_at:
                tx.change(duplicate, to={"settled_at": now}, at=now)
            else:
                again[duplicate.holder_id] = None
    if again:
        tx.write_rows()
        check_again(tx, again, at=now)


def _free_a_person(tx: Transaction, confirmed: Sequence[Row], now: datetime) -> None:
    """Say of DELETED and FAILED rows that their very file was dropped again, and is on the server now."""
    by_identity = {row.identity: row for row in confirmed}
    for piece in pieces(list(by_identity)):
        for former in tx.rows(_GAVE_UP, destination_id=tx.destination_id, identities=piece):
            again = by_identity[former.identity]
            if again.id > former.id and is_same_identity(again, former) and same_bytes(again, former):
                reason, note = Reason.DROPPED_AGAIN, f"its file was dropped again as row {again.id}, which is confirmed"
                tx.change(former, to={"reason": reason, "note": note, "changed_at": now}, at=now)
                tx.note(former, at=now, reason=reason, note=note)


def take_unproven(tx: Transaction, rows: Sequence[Unproven]) -> list[Unproven]:
    """Have the studies of these rows to ourselves; give those that others neither change now nor have since changed."""
    if not tx.is_of_studies:
        return list(rows)
    # What is claimed behind this has to find room, too.
    first = islice(dict.fromkeys(row.identity.study_uid for row in rows), max(1, tx.room // 2))
    ours = tx.may_change(first)
    of_ours = [row for row in rows if row.identity.study_uid in ours]
    # Until these were locked others may have changed them.
    as_it_is = {row.delivery_id: row for row in queries.unproven_rows(tx, [row.delivery_id for row in of_ours])}
    return [row for row in of_ours if as_it_is[row.delivery_id] == row]


def check_again(tx: Transaction, delivery_ids: Iterable[int], *, at: datetime, note: str = "") -> int:
    """Have these rows asked about at that time, without counting a check; ``note``: why they could not be now."""
    values: dict[str, Any] = {"next_check_at": at}
    if note:
        # What one was refused with is all that is known of it; what another was confirmed by is its proof.
        waits = delivery.c.state.in_([State.STORED, State.UNCERTAIN])
        may_take = and_(waits, or_(delivery.c.reason.is_(None), delivery.c.reason.not_in(REFUSALS)))
        values["note"] = case((may_take, literal(note, delivery.c.note.type)), else_=delivery.c.note)
    changed = 0
    for piece in pieces(list(delivery_ids)):
        changed += tx.connection.execute(
            update(delivery)
            .where(dialect.among(delivery.c.id, "ids"), dialect.unindexed(delivery.c.state).in_(PROVABLE))
            .values(values),
            {"ids": piece},
        ).rowcount
    return changed


def record_sightings(
    tx: Transaction, sightings: Sequence[Sighting], *, now: datetime, cursor: FeedCursor | None = None
) -> int:
    """Keep on the rows what the change feed shows of them, and advance its cursor in the same transaction."""
    newest: dict[Identity, Sighting] = {}
    disturbed: set[Identity] = set()
    for sighting in sightings:
        former = newest.get(sighting.identity)
        if former is None or sighting.sequence > former.sequence:
            newest[sighting.identity] = sighting
        if sighting.disturbed or (former is not None and former.sequence != sighting.sequence):
            disturbed.add(sighting.identity)
    updates: dict[bool, list[dict[str, Any]]] = defaultdict(list)
    for identity, row in _rows_seen(tx, newest).items():
        sighting = newest[identity]
        if row.seen_sequence is not None and row.seen_sequence >= sighting.sequence:
            continue
        params = {
            "b_id": row.id,
            "b_sequence": sighting.sequence,
            "b_action": sighting.action,
            "b_state": sighting.state,
            "b_at": sighting.at,
            "b_content": int(row.needs_content_check or row.seen_sequence is not None or identity in disturbed),
        }
        updates[row.state in PROVABLE].append(params)
    for provable, seen in updates.items():
        (_SEE_AND_CHECK if provable else _SEE).run(tx.connection, seen, {"b_check": now} if provable else {})
    if cursor is not None:
        set_cursor(tx, cursor, now=now)
    return sum(map(len, updates.values()))


_SEEN = {
    "b_id": delivery.c.id,
    "b_sequence": delivery.c.seen_sequence,
    "b_action": delivery.c.seen_action,
    "b_state": delivery.c.seen_state,
    "b_at": delivery.c.seen_at,
    "b_content": delivery.c.needs_content_check,
}


def _see(of: Mapping[str, Any]) -> Update:
    return (
        update(delivery)
        .where(delivery.c.id == of["b_id"])
        .values(
            seen_sequence=of["b_sequence"],
            seen_action=of["b_action"],
            seen_state=of["b_state"],
            seen_at=of["b_at"],
            needs_content_check=of["b_content"],
        )
    )


_SEE = dialect.ForEach(_SEEN, _see)
_SEE_AND_CHECK = dialect.ForEach(_SEEN, lambda of: _see(of).values(next_check_at=bindparam("b_check")))


def _rows_seen(tx: Transaction, newest: Mapping[Identity, Sighting]) -> dict[Identity, Any]:
    """Read the rows that these sightings are about: who holds the identity, else the latest that was DELETED.

    A row that is neither cannot come back on its own, whatever the server shows.
    """
    found: dict[Identity, Any] = {}
    for statement in (_HELD_SEEN, _DELETED_SEEN):
        wanted = {hash_of(identity): identity for identity in newest if identity not in found}
        for piece in pieces(list(wanted)):
            asked = {"destination_id": tx.destination_id, "identities": piece}
            rows = {identity_of(row): row for row in statement.run(tx.connection, asked)}
            found |= {identity: rows[identity] for identity in rows.keys() & newest.keys()}
    return found
