"""Which files may still be sent elsewhere, and which of a file's deliveries another choice would touch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import bindparam, exists, or_, select

from ingestd.lifecycle import BY_PERSON, Reason, State

from .. import dialect
from ..row import (
    CONTENT,
    FILED,
    IDENTITY,
    SELECT_ROWS,
    Row,
    content_of,
    file_columns,
    identity_of,
    make_row,
    reach_of,
    was_let_go_by_rule,
)
from ..schema import delivery, file
from ..session import Queryable
from ..values import Rerouting, RoutableFile

_LET_GO_BY_RULE = exists().where(
    delivery.c.file_id == file.c.id,
    dialect.unindexed(delivery.c.state) == State.DISCARDED,
    delivery.c.reason == Reason.BY_RULE,
)
# By the file's number alone, page by page: a person asks it, once in a while.
_ROUTABLE = (
    select(
        *file_columns("id spool_id inbox_id relative_path path in_place study_id"),
        dialect.unindexed(file.c.state).label("state"),
        *IDENTITY,
        *CONTENT,
    )
    .select_from(FILED)
    .where(
        file.c.id > bindparam("after"),
        file.c.removing_at.is_(None),
        ~file.c.route.startswith(BY_PERSON),
        or_(
            file.c.needed_by > 0,
            dialect.unindexed(file.c.state) == State.UNROUTED,
            file.c.reason == Reason.BY_RULE,
            _LET_GO_BY_RULE,
        ),
    )
    .order_by(file.c.id)
    .limit(bindparam("limit"))
)
_OF_STUDY = _ROUTABLE.where(file.c.study_id == bindparam("study_id"))
_DELIVERIES = SELECT_ROWS.where(dialect.among(delivery.c.file_id, "ids")).order_by(delivery.c.id)


class Change(NamedTuple):
    """What another choice makes of a file's deliveries."""

    gains: Mapping[int, Row | None]  # by destination; the delivery that a rule took from there before
    loses: Sequence[Row]  # nothing of these was tried
    stays: Sequence[Row]  # of these something was, or a person decided: they go on where they are


def change_of(rows: Sequence[Row], wanted: Collection[int]) -> Change:
    """Say what changes for a file with these deliveries that is wanted at these destinations, and at no others."""
    at = {row.destination_id: row for row in rows}
    others = [row for row in rows if row.destination_id not in wanted and row.settled_at is None]
    untried = [row for row in others if row.attempts == 0 and row.state in (State.PENDING, State.DUPLICATE)]
    return Change(
        gains={each: at.get(each) for each in wanted if each not in at or was_let_go_by_rule(at[each])},
        loses=untried,
        stays=[row for row in others if row not in untried],
    )


def routable(
    ledger: Queryable, *, study_uid: str | None = None, after: int = 0, limit: int = 500
) -> list[RoutableFile]:
    """List files of which something may still be sent elsewhere, or nowhere; what a person sent is not among them.

    That is what still needs its bytes at some destination, what no rule wanted, and what a rule let go of; as long as
    the bytes are there.
    """
    study_id = None if study_uid is None else ledger.study_id(study_uid)
    if study_uid is not None and study_id is None:
        return []
    of_study = {} if study_id is None else {"study_id": study_id}
    rows = ledger.fetch_all(_OF_STUDY if of_study else _ROUTABLE, {"after": after, "limit": limit, **of_study})
    found = []
    for row in rows:
        spool, in_place = ledger.spool_of(row.spool_id), bool(row.in_place)
        has_place = in_place or spool is not None
        found.append(
            RoutableFile(
                file_id=row.id,
                study_id=row.study_id,
                state=State(row.state) if row.state else None,
                inbox=ledger.inbox_of(row.inbox_id),
                relative_path=row.relative_path,
                path=reach_of(spool, row.path, in_place=in_place, relative_path=row.relative_path)
                if has_place
                else None,
                identity=identity_of(row),
                content=content_of(row),
            )
        )
    return found


def reroutings(ledger: Queryable, wanted: Mapping[int, Sequence[str]]) -> dict[int, Rerouting]:
    """Say what changes for these files, each with where it is wanted; one that goes there already is absent."""
    names = {number: name for name, number in ledger.destinations.items()}
    of: dict[int, list[Row]] = {each: [] for each in wanted}
    for found in ledger.fetch_all(_DELIVERIES, {"ids": list(wanted)}):
        row = make_row(found)
        of[row.file_id].append(row)
    changes = {
        each: rerouting(change_of(rows, [ledger.destinations[name] for name in wanted[each]]), names)
        for each, rows in of.items()
    }
    return {each: change for each, change in changes.items() if any(change)}


def rerouting(change: Change, names: Mapping[int, str]) -> Rerouting:
    """Name the destinations of a change."""
    return Rerouting(
        gains=tuple(names[each] for each in change.gains),
        loses=tuple(names[row.destination_id] for row in change.loses),
        stays=tuple(names[row.destination_id] for row in change.stays),
    )
