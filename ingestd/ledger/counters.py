"""What is kept in sum so that nobody has to count: deliveries by state and reason, and each study's queue.

What is kept is kept for each destination; what has no delivery is counted under the destination 0.

Changes are gathered in memory during a transaction and written together; the tests count afresh and compare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.engine import Connection

from ingestd.lifecycle import AT_ONCE, UNCONFIRMED, Arrival, BatchLimits, Reason, State, StudyQueue, study_due_at

from . import dialect
from .row import QUEUED, ZERO, FileRow, Row, pieces
from .schema import STATE_COLUMNS, delivery, destination, file, state_count, study_label, study_sum

_ADD_COUNTS = dialect.add_to(state_count, ("entries", "size_bytes"))
_PUT_STUDY = dialect.put_over(study_sum)
_PUT_LABEL = dialect.leave(study_label)
_SELECT_STUDIES = (
    select(study_sum)
    .where(
        dialect.among(study_sum.c.study_id, "study_ids"),
        study_sum.c.destination_id == bindparam("destination_id"),
        study_sum.c.spool_id == bindparam("spool_id"),
    )
    .order_by(study_sum.c.study_id)
    .with_for_update()
)
_SET_DUE = (
    update(study_sum)
    .where(
        study_sum.c.study_id == bindparam("b_study"),
        study_sum.c.destination_id == bindparam("b_destination"),
        study_sum.c.spool_id == bindparam("b_spool"),
    )
    .values(due_at=bindparam("b_due"))
)
# What is still on its way, or has to be compared before anybody can say whether it is to be sent.
COUNTS_WAITING = or_(state_count.c.state.in_(sorted(UNCONFIRMED)), state_count.c.reason == Reason.NOT_COMPARED)
_COUNTED = ("spool_id", "destination_id", "inbox_id", "state", "reason", "slot", "entries", "size_bytes")
_COUNTED_BY = itemgetter("spool_id", "destination_id", "state", "size_bytes")
NO_DESTINATION = 0
_NEW_STUDY: Mapping[str, Any] = {
    **dict.fromkeys(STATE_COLUMNS.values(), 0),
    **dict.fromkeys(
        ("waiting", "waiting_bytes", "priority", "inbox_id", "charged", "pauses", "in_flight", "size_bytes"), 0
    ),
    **dict.fromkeys(("oldest_at", "newest_at", "next_attempt_at"), None),
}
_STUDIES_AT_ONCE = 1000
_LABELS_REMEMBERED = 8_000


@dataclass(slots=True)
class _StudyChange:
    """What a transaction changes in a study's sums."""

    states: dict[State, int] = field(default_factory=dict)
    size_bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    oldest_at: datetime | None = None  # of the rows that joined the queue
    newest_at: datetime | None = None
    priority: int = 0
    inbox_id: int | None = None  # of the last row that joined the queue
    has_left: bool = False  # rows left the queue: its ends have to be looked up
    changed_at: datetime | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def count(self, state: State, rows: int, size: int) -> None:
        """Add so many rows in this state, or take them away."""
        self.states[state] = self.states.get(state, 0) + rows
        self.size_bytes += size

    def enqueue(self, size: int, inbox_id: int, priority: int, admitted_at: datetime) -> None:
        """A row joins the queue."""
        self.waiting += 1
        self.inbox_id = inbox_id
        self.waiting_bytes += size
        self.priority = max(self.priority, priority)
        if self.oldest_at is None or admitted_at < self.oldest_at:
            self.oldest_at = admitted_at
        if self.newest_at is None or admitted_at > self.newest_at:
            self.newest_at = admitted_at


class StudySending(NamedTuple):
    """How a study stands at one destination: its queue, and what its next attempt depends on."""

    study_id: int
    waiting: int
    waiting_bytes: int
    charged: int
    pauses: int
    in_flight: int
    next_attempt_at: datetime | None


def queue_of(row: Mapping[str, Any], study_uid: str = "") -> StudyQueue:
    """Make a StudyQueue of a study's sums, where something is waiting."""
    return StudyQueue(
        study_uid=study_uid,
        waiting=row["waiting"],
        waiting_bytes=row["waiting_bytes"],
        oldest_at=row["oldest_at"],
        newest_at=row["newest_at"],
        next_attempt_at=row["next_attempt_at"],
        charged=row["charged"],
        priority=row["priority"],
        inbox_id=row["inbox_id"],
    )


_Key: TypeAlias = tuple[int, int, int]
_KEY = ("spool_id", "destination_id", "study_id")


class Counters:
    """The pending changes of one transaction."""

    def __init__(
        self, limits_of: Callable[[int], BatchLimits], labels_known: set[tuple[str, str, int]], *, slot: int = 0
    ) -> None:
        """``slot``: which part of the sums is ours, where others add to them at the same time."""
        self._limits_of = limits_of
        self._slot = slot
        self._labels_known = labels_known
        self._counts: dict[tuple[int, int, int, State, str], dict[str, Any]] = {}
        self._studies: dict[_Key, _StudyChange] = {}
        self._labels: set[tuple[str, str, int]] = set()
        # Rows of studies as this transaction has read or written them: nobody else writes these until its end.
        self._known: dict[_Key, dict[str, Any]] = {}

    def file_added(self, values: Mapping[str, Any], at: datetime) -> None:
        """Count a new file that has no delivery; ``values`` are its columns."""
        self._count_file(
            values["spool_id"], values["inbox_id"], values["state"], values["reason"], 1, values["size_bytes"]
        )
        if values["study_id"] is not None:
            change = self._of(values["spool_id"], NO_DESTINATION, values["study_id"], at)
            change.count(values["state"], 1, values["size_bytes"])

    def file_changed(self, row: FileRow, state: State, reason: str | None, at: datetime) -> None:
        """Count a file without a delivery anew: it is as it was read, and comes to this state."""
        self.file_left(row, at)
        self._count_file(row.spool_id, row.inbox_id, state, reason, 1, row.size_bytes)
        if row.study_id is not None:
            self._of(row.spool_id, NO_DESTINATION, row.study_id, at).count(state, 1, row.size_bytes)

    def file_left(self, row: FileRow, at: datetime) -> None:
        """Count a file no more that had no delivery, and gets some."""
        self._count_file(row.spool_id, row.inbox_id, row.state, row.reason, -1, -row.size_bytes)
        if row.study_id is not None:
            self._of(row.spool_id, NO_DESTINATION, row.study_id, at).count(row.state, -1, -row.size_bytes)

    def _count_file(self, spool: int, inbox: int, state: State, reason: str | None, files: int, size: int) -> None:
        self._count(spool, NO_DESTINATION, inbox, state, reason or "", files, size)

    def delivery_added(self, values: Mapping[str, Any], inbox_id: int, priority: int, at: datetime) -> None:
        """Count a new delivery; ``values`` are its columns."""
        spool, to, state, size = _COUNTED_BY(values)
        self._count(spool, to, inbox_id, state, values["reason"] or "", 1, size)
        change = self._of(spool, to, values["study_id"], at)
        change.count(state, 1, size)
        if values["queued"]:
            change.enqueue(size, inbox_id, priority, values["admitted_at"])

    def rows_changed(
        self, rows: Sequence[Row], values: Mapping[str, Any], after: State, queued: int, at: datetime
    ) -> None:
        """Count deliveries that are alike anew: they are as they were read, and ``values`` is what they are set to.

        One that is sent in another rendition has another size.
        """
        row, number, size = rows[0], len(rows), 0
        for each in rows:
            size += each.size_bytes
        size_after = values["size_bytes"] * number if "size_bytes" in values else size
        reason, reason_after = row.reason or "", values.get("reason", row.reason) or ""
        spool, to = row.spool_id, row.destination_id
        if (row.state, reason, size) != (after, reason_after, size_after):
            self._count(spool, to, row.inbox_id, row.state, reason, -number, -size)
            self._count(spool, to, row.inbox_id, after, reason_after, number, size_after)
        if after is not row.state or size != size_after:
            change = self._of(spool, to, row.study_id, at)
            change.count(row.state, -number, -size)
            change.count(after, number, size_after)
        if row.queued != queued or (queued and size != size_after):
            change = self._of(spool, to, row.study_id, at)
            if row.queued:
                change.waiting -= number
                change.waiting_bytes -= size
                change.has_left = True
            if queued:
                for each in rows:
                    size = values.get("size_bytes", each.size_bytes)
                    change.enqueue(size, row.inbox_id, row.priority, each.admitted_at)

    def _count(self, spool: int, to: int, inbox: int, state: State, reason: str, entries: int, size: int) -> None:
        """Add to the number of rows of an inbox that are in a state for a reason."""
        key = (spool, to, inbox, state, reason)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = dict(zip(_COUNTED, (*key, self._slot, 0, 0), strict=True))
        counts["entries"] += entries
        counts["size_bytes"] += size

    def _of(self, spool_id: int, destination_id: int, study_id: int, at: datetime) -> _StudyChange:
        key = (spool_id, destination_id, study_id)
        change = self._studies.get(key)
        if change is None:
            change = self._studies[key] = _StudyChange()
        if change.changed_at is None or at > change.changed_at:
            change.changed_at = at
        return change

    def set_study(self, spool_id: int, destination_id: int, study_id: int, at: datetime, **values: Any) -> None:
        """Set columns of a study's sums that are no sums: its backoff, its counters."""
        self._of(spool_id, destination_id, study_id, at).values.update(values)

    def label(self, arrival: Arrival, study_id: int) -> None:
        """Let a study be found by what its files say."""
        for label in (
            ("modality", arrival.modality, study_id),
            ("patient", arrival.patient_hash, study_id),
            ("accession", arrival.accession_hash, study_id),
            ("series", arrival.identity.series_uid, study_id),
        ):
            if label[1] and label not in self._labels_known:
                self._labels.add(label)

    def has_changed(self, spool_id: int, destination_id: int, study_id: int) -> bool:
        """Whether something about this study was gathered and not written yet."""
        return (spool_id, destination_id, study_id) in self._studies

    def sending_of(
        self, connection: Connection, spool_id: int, destination_id: int, study_id: int
    ) -> StudySending | None:
        """Read how a study stands, as it was last written; None if there is no such study."""
        self._read_studies(connection, spool_id, destination_id, [study_id])
        row = self._known.get((spool_id, destination_id, study_id))
        return None if row is None else StudySending(*(row[name] for name in StudySending._fields))

    def forget_studies(self) -> None:
        """Other statements have written rows of studies."""
        self._known.clear()

    def _read_studies(
        self, connection: Connection, spool_id: int, destination_id: int, study_ids: Iterable[int]
    ) -> None:
        key = {"spool_id": spool_id, "destination_id": destination_id}
        missing = [each for each in study_ids if (spool_id, destination_id, each) not in self._known]
        for piece in pieces(missing):
            for row in connection.execute(_SELECT_STUDIES, {**key, "study_ids": piece}):
                self._known[spool_id, destination_id, row.study_id] = dict(row._mapping)  # noqa: SLF001 - its public name

    def flush(self, connection: Connection) -> None:
        """Write what was gathered of studies, in the order of the keys; the rows must have been written before."""
        if self._studies:
            changes, self._studies = self._studies, {}
            dialect.insert_rows(connection, study_sum, self._changed_studies(connection, changes), _PUT_STUDY)
            if len(self._known) > _STUDIES_AT_ONCE:
                self._known.clear()
        if self._labels:
            labels = sorted(self._labels)
            rows = [{"kind": kind, "value": value, "study_id": of} for kind, value, of in labels]
            dialect.insert_rows(connection, study_label, rows, _PUT_LABEL)
            if len(self._labels_known) > _LABELS_REMEMBERED:
                self._labels_known.clear()
            # Remembered although the transaction may still roll back: they are forgotten then.
            self._labels_known |= self._labels
            self._labels.clear()

    def flush_counts(self, connection: Connection) -> None:
        """Write how many rows there are, in the order of the keys."""
        if self._counts:
            counts = [self._counts[key] for key in sorted(self._counts)]
            dialect.insert_rows(connection, state_count, counts, _ADD_COUNTS)
            self._counts.clear()

    def _changed_studies(self, connection: Connection, changes: dict[_Key, _StudyChange]) -> list[dict[str, Any]]:
        by_queue: dict[tuple[int, int], list[int]] = defaultdict(list)
        for spool_id, destination_id, study_id in sorted(changes):
            by_queue[spool_id, destination_id].append(study_id)
        rows = []
        for (spool_id, destination_id), study_ids in by_queue.items():
            limits = self._limits_of(spool_id)
            self._read_studies(connection, spool_id, destination_id, study_ids)
            for study_id in study_ids:
                key = (spool_id, destination_id, study_id)
                change = changes[key]
                row = self._known.get(key)
                if row is None:
                    at = {"first_at": change.changed_at, "changed_at": change.changed_at}
                    row = self._known[key] = {**_NEW_STUDY, **dict(zip(_KEY, key, strict=True)), **at}
                _carry_out(connection, row, change)
                row["due_at"] = study_due_at(queue_of(row), limits) if row["waiting"] else None
                rows.append(row)
        return rows


def _carry_out(connection: Connection, row: dict[str, Any], change: _StudyChange) -> None:
    for state, number in change.states.items():
        row[STATE_COLUMNS[state]] += number
    row["size_bytes"] += change.size_bytes
    row["waiting"] += change.waiting
    row["waiting_bytes"] += change.waiting_bytes
    if change.inbox_id is not None:
        row["inbox_id"] = change.inbox_id
    assert row["waiting"] >= 0, "rows leave a queue only once"
    if change.changed_at is not None and change.changed_at > row["changed_at"]:
        row["changed_at"] = change.changed_at
    if row["waiting"] == 0:
        row["oldest_at"] = row["newest_at"] = None
        row["priority"] = 0
    elif change.has_left:
        row["oldest_at"], row["newest_at"] = _ends_of_queue(connection, row)
        row["priority"] = max(row["priority"], change.priority)
        if row["priority"] >= AT_ONCE:  # what is left of it may have to wait for the window
            row["priority"] = _highest_priority(connection, row)
    else:
        if change.oldest_at is not None and (row["oldest_at"] is None or change.oldest_at < row["oldest_at"]):
            row["oldest_at"] = change.oldest_at
        if change.newest_at is not None and (row["newest_at"] is None or change.newest_at > row["newest_at"]):
            row["newest_at"] = change.newest_at
        row["priority"] = max(row["priority"], change.priority)
    row.update(change.values)


def _ends_of_queue(connection: Connection, row: Mapping[str, Any]) -> tuple[datetime, datetime]:
    at = delivery.c.admitted_at
    queue = select(at).where(
        QUEUED, *(delivery.c[name] == row[name] for name in ("destination_id", "spool_id", "study_id"))
    )
    ends = [queue.order_by(order).limit(1).scalar_subquery() for order in (at, at.desc())]
    oldest, newest = connection.execute(select(*ends)).one()
    return oldest, newest


def _highest_priority(connection: Connection, row: Mapping[str, Any]) -> int:
    highest = (
        select(func.max(file.c.priority))
        .join_from(delivery, file, file.c.id == delivery.c.file_id)
        .where(QUEUED, *(delivery.c[name] == row[name] for name in ("destination_id", "spool_id", "study_id")))
    )
    return int(connection.execute(highest).scalar_one())


def set_due_again(connection: Connection, spool_id: int, limits: BatchLimits) -> None:
    """Have the waiting studies of a spool due by other limits, or by other waits."""
    for (destination_id,) in connection.execute(select(destination.c.id)).all():
        after = 0
        while True:
            rows = connection.execute(
                select(study_sum)
                .where(
                    study_sum.c.destination_id == destination_id,
                    study_sum.c.spool_id == spool_id,
                    study_sum.c.study_id > after,
                    study_sum.c.waiting > ZERO,
                )
                .order_by(study_sum.c.study_id)
                .limit(_STUDIES_AT_ONCE)
            ).all()
            if not rows:
                break
            after = rows[-1].study_id
            key = {"b_destination": destination_id, "b_spool": spool_id}
            due = [(row.study_id, study_due_at(queue_of(dict(row._mapping)), limits)) for row in rows]  # noqa: SLF001
            connection.execute(_SET_DUE, [{**key, "b_study": each, "b_due": due_at} for each, due_at in due])
