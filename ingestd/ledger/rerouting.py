"""Files that were routed are routed again, by a person's word: what was not tried yet goes where the rules say now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from ingestd.lifecycle import Reason, Route, State

from . import dialect
from .admission import add_delivery, look_again_at
from .identity import hash_of
from .queries.routable import Change, change_of, rerouting
from .row import Row, file_columns, identity_of, pieces
from .sameness import judge
from .schema import file, study
from .transaction import Transaction
from .values import Rerouting

_FILES = (
    select(
        *file_columns("id spool_id inbox_id state study_id series_uid sop_uid transfer_syntax digest size_bytes"),
        study.c.uid.label("study_uid"),
        file.c.priority,
    )
    .join_from(file, study, study.c.id == file.c.study_id)
    .where(dialect.among(file.c.id, "ids"), file.c.removing_at.is_(None))
    .order_by(file.c.id)
    .with_for_update(of=file)
)


def route_again(
    tx: Transaction, file_ids: Sequence[int], route: Route, *, also: bool = False, now: datetime
) -> list[Rerouting]:
    """Have these files sent where ``route`` says, and what was not tried yet nowhere else; say what changed for which.

    With ``also`` they go on to wherever else they go.

    What an attempt may have delivered stays and is proven. At a destination that is new to a file it is what the holder
    of its identity makes of it there. A file whose bytes are gone, and one that goes there already, is left alone.
    """
    wanted = [tx.destinations[name] for name in route.destinations]
    names = {number: name for name, number in tx.destinations.items()}
    done: list[Rerouting] = []
    for piece in pieces(file_ids):
        tx.write_rows()
        for each in tx.connection.execute(_FILES, {"ids": piece}).all():
            # Read one by one: what one file gives up another of them may take.
            change = change_of(tx.rows_of_file(each.id), wanted)
            if also:
                change = Change(gains=change.gains, loses=(), stays=change.stays)
            goes_nowhere = each.state == State.UNROUTED and not wanted
            if change.gains or change.loses or goes_nowhere:
                _change(tx, each, change, route, now)
                done.append(rerouting(change, names))
    tx.flush()
    return done


def _change(tx: Transaction, of: Any, change: Change, route: Route, now: datetime) -> None:
    note = f"{route.text} does not send it there"
    tx.move(*change.loses, to=State.DISCARDED, at=now, reason=Reason.BY_RULE, note=note, holder_id=None)
    numbers = list(tx.new_ids(len(change.gains)))
    if of.state is not None:
        # The first delivery of a file has its number.
        numbers[:1] = [of.id] if numbers else []
        _end(tx, of.id, route, now)
    for number, (destination_id, former) in zip(numbers, change.gains.items(), strict=True):
        _gain(tx, of, destination_id, former, number, route, now)
    tx.set_file(of.id, route=route.text)


def _end(tx: Transaction, file_id: int, route: Route, now: datetime) -> None:
    """Have a file that had no delivery told by those that it gets; without any it goes nowhere, on purpose."""
    row = tx.file_row(file_id)
    assert row is not None, "it was read in this transaction"
    if not route.destinations:
        note = f"{route.text} says that it goes nowhere"
        tx.move_file(row, to=State.DISCARDED, at=now, reason=Reason.BY_RULE, note=note)
        return
    tx.note_file(file_id, row.state, at=now, reason=Reason.BY_RULE, note=f"{route.text} sends it now")
    tx.counters.file_left(row, now)
    tx.set_file(file_id, state=None, reason=None, note="", changed_at=None)


def _gain(
    tx: Transaction, of: Any, destination_id: int, former: Row | None, number: int, route: Route, now: datetime
) -> None:
    identity = hash_of(identity_of(of))
    holder = tx.holder_at(destination_id, identity, of)
    state, reason, why = judge(of, holder)
    note = f"{route.text} sends it there now" + (f": {why}" if why else "")
    values: dict[str, Any] = {"reason": reason, "holder_id": holder.id if holder else None}
    if former is not None:
        tx.move(former, to=state, at=now, note=note, replaces=0, **values)
    else:
        values.update(destination_id=destination_id, identity=identity)
        add_delivery(tx, of._mapping, number, state=state, note=note, now=now, **values)  # noqa: SLF001 - its public name
        tx.need(of.id, at=now)
    if holder is not None and reason is Reason.SAME_CONTENT and holder.state is State.CONFIRMED:
        look_again_at(tx, [holder.id], now)
