"""What is kept in sum so that nobody has to count: rows by inbox, state and reason, and each study's queue and states.

Changes are gathered in memory during a transaction and written together; the tests count afresh and compare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.engine import Connection

from ingestd.lifecycle import Arrival, BatchLimits, State, StudyQueue, study_due_at

from . import dialect
from .row import QUEUED, Row, pieces
from .schema import STATE_COLUMNS, instance, state_count, study, study_label

_ADD_COUNTS = dialect.add_to(state_count, ("entries", "held", "size_bytes"))
_PUT_STUDY = dialect.upsert(study)
_PUT_LABEL = dialect.insert_missing(study_label)
_SELECT_STUDIES = (
    select(study)
    .where(study.c.host == bindparam("host"), dialect.among(study.c.study_uid, "study_uids"))
    .with_for_update()
)
_SET_DUE = (
    update(study)
    .where(study.c.host == bindparam("b_host"), study.c.study_uid == bindparam("b_study"))
    .values(due_at=bindparam("b_due"))
)
_COUNTED = ("host", "inbox", "state", "reason", "entries", "held", "size_bytes")
_NEW_STUDY: Mapping[str, Any] = {
    **dict.fromkeys(STATE_COLUMNS.values(), 0),
    **dict.fromkeys(("waiting", "waiting_bytes", "priority", "charged", "pauses", "in_flight", "size_bytes"), 0),
    **dict.fromkeys(("oldest_at", "newest_at", "next_attempt_at"), None),
}
_STUDIES_AT_ONCE = 1000
_LABELS_REMEMBERED = 20_000


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
    has_left: bool = False  # rows left the queue: its ends have to be looked up
    changed_at: datetime | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def count(self, state: State, rows: int, size: int) -> None:
        """Add so many rows in this state, or take them away."""
        self.states[state] = self.states.get(state, 0) + rows
        self.size_bytes += size

    def enqueue(self, size: int, priority: int, admitted_at: datetime) -> None:
        """A row joins the queue."""
        self.waiting += 1
        self.waiting_bytes += size
        self.priority = max(self.priority, priority)
        if self.oldest_at is None or admitted_at < self.oldest_at:
            self.oldest_at = admitted_at
        if self.newest_at is None or admitted_at > self.newest_at:
            self.newest_at = admitted_at


def queue_of(row: Mapping[str, Any]) -> StudyQueue:
    """Make a StudyQueue of a study's row with something waiting."""
    return StudyQueue(
        study_uid=row["study_uid"],
        waiting=row["waiting"],
        waiting_bytes=row["waiting_bytes"],
        oldest_at=row["oldest_at"],
        newest_at=row["newest_at"],
        next_attempt_at=row["next_attempt_at"],
        charged=row["charged"],
        priority=row["priority"],
    )


class Counters:
    """The pending changes of one transaction."""

    def __init__(self, limits_of: Callable[[str], BatchLimits], labels_known: set[tuple[str, str, str]]) -> None:
        self._limits_of = limits_of
        self._labels_known = labels_known
        self._counts: dict[tuple[str, str, State, str], dict[str, Any]] = {}
        self._studies: dict[tuple[str, str], _StudyChange] = {}
        self._labels: set[tuple[str, str, str]] = set()

    def row_added(self, values: Mapping[str, Any], at: datetime) -> None:
        """Count a new row; ``values`` are its columns."""
        host, state, size = values["host"], values["state"], values["size_bytes"]
        self._count(host, values["inbox"], state, values["reason"] or "", 1, 0, size)
        if values["study_uid"] is not None:
            change = self._of(host, values["study_uid"], at)
            change.count(state, 1, size)
            if values["queued"]:
                change.enqueue(size, values["priority"], values["admitted_at"])

    def rows_changed(
        self, rows: Sequence[Row], values: Mapping[str, Any], after: State, queued: int, at: datetime
    ) -> None:
        """Count rows that are alike anew: they are as they were read, and ``values`` is what they are set to.

        A row that was read again may have another size, and belong to another study.
        """
        row, number, size = rows[0], len(rows), 0
        for each in rows:
            size += each.size_bytes
        size_after = values["size_bytes"] * number if "size_bytes" in values else size
        reason, reason_after = row.reason or "", values.get("reason", row.reason) or ""
        held = number * (row.hold_reason is not None)
        held_after = number * (values.get("hold_reason", row.hold_reason) is not None)
        if (row.state, reason, held, size) != (after, reason_after, held_after, size_after):
            self._count(row.host, row.inbox, row.state, reason, -number, -held, -size)
            self._count(row.host, row.inbox, after, reason_after, number, held_after, size_after)
        study_after = values.get("study_uid", row.study_uid)
        is_other_file = (row.study_uid, size) != (study_after, size_after)
        if after is not row.state or is_other_file:
            if row.study_uid is not None:
                self._of(row.host, row.study_uid, at).count(row.state, -number, -size)
            if study_after is not None:
                self._of(row.host, study_after, at).count(after, number, size_after)
        if row.queued != queued or is_other_file:
            if row.queued:
                assert row.study_uid is not None, "what is queued has its identity"
                change = self._of(row.host, row.study_uid, at)
                change.waiting -= number
                change.waiting_bytes -= size
                change.has_left = True
            if queued:
                change = self._of(row.host, study_after, at)
                for each in rows:
                    change.enqueue(values.get("size_bytes", each.size_bytes), row.priority, each.admitted_at)

    def _count(self, host: str, inbox: str, state: State, reason: str, entries: int, held: int, size: int) -> None:
        """Add to the number of rows of an inbox that are in a state for a reason."""
        key = (host, inbox, state, reason)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = dict(zip(_COUNTED, (*key, 0, 0, 0), strict=True))
        counts["entries"] += entries
        counts["held"] += held
        counts["size_bytes"] += size

    def _of(self, host: str, study_uid: str, at: datetime) -> _StudyChange:
        change = self._studies.get((host, study_uid))
        if change is None:
            change = self._studies[host, study_uid] = _StudyChange()
        if change.changed_at is None or at > change.changed_at:
            change.changed_at = at
        return change

    def set_study(self, host: str, study_uid: str, at: datetime, **values: Any) -> None:
        """Set columns of a study that are no sums: its backoff, its counters."""
        self._of(host, study_uid, at).values.update(values)

    def label(self, arrival: Arrival) -> None:
        """Let a study be found by what its files say."""
        study_uid = arrival.identity.study_uid
        for label in (
            ("modality", arrival.modality, study_uid),
            ("patient", arrival.patient_hash, study_uid),
            ("accession", arrival.accession_hash, study_uid),
            ("series", arrival.identity.series_uid, study_uid),
        ):
            if label[1] and label not in self._labels_known:
                self._labels.add(label)

    def has_changed(self, host: str, study_uid: str) -> bool:
        """Whether something about this study was gathered and not written yet."""
        return (host, study_uid) in self._studies

    def flush(self, connection: Connection) -> None:
        """Write everything gathered. The rows themselves must have been written before."""
        if self._counts:
            connection.execute(_ADD_COUNTS, list(self._counts.values()))
            self._counts.clear()
        if self._labels:
            connection.execute(
                _PUT_LABEL, [{"kind": kind, "value": value, "study_uid": uid} for kind, value, uid in self._labels]
            )
            if len(self._labels_known) > _LABELS_REMEMBERED:
                self._labels_known.clear()
            # Remembered although the transaction may still roll back: they are forgotten then.
            self._labels_known |= self._labels
            self._labels.clear()
        if self._studies:
            changes, self._studies = self._studies, {}
            connection.execute(_PUT_STUDY, self._changed_studies(connection, changes))

    def _changed_studies(
        self, connection: Connection, changes: dict[tuple[str, str], _StudyChange]
    ) -> list[dict[str, Any]]:
        by_host: dict[str, list[str]] = defaultdict(list)
        for host, study_uid in changes:
            by_host[host].append(study_uid)
        rows = []
        for host, study_uids in by_host.items():
            limits = self._limits_of(host)
            found: dict[str, dict[str, Any]] = {}
            for piece in pieces(study_uids):
                for asked in connection.execute(_SELECT_STUDIES, {"host": host, "study_uids": piece}):
                    found[asked.study_uid] = dict(asked._mapping)  # noqa: SLF001 - its public name
            for study_uid in study_uids:
                change = changes[host, study_uid]
                row = found.get(study_uid)
                if row is None:
                    row = {**_NEW_STUDY, "host": host, "study_uid": study_uid}
                    row["first_at"] = row["changed_at"] = change.changed_at
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
    assert row["waiting"] >= 0, "rows leave a queue only once"
    if change.changed_at is not None and change.changed_at > row["changed_at"]:
        row["changed_at"] = change.changed_at
    if row["waiting"] == 0:
        row["oldest_at"] = row["newest_at"] = None
        row["priority"] = 0
    elif change.has_left:
        row["oldest_at"], row["newest_at"] = _ends_of_queue(connection, row["host"], row["study_uid"])
        row["priority"] = max(row["priority"], change.priority)
    else:
        if change.oldest_at is not None and (row["oldest_at"] is None or change.oldest_at < row["oldest_at"]):
            row["oldest_at"] = change.oldest_at
        if change.newest_at is not None and (row["newest_at"] is None or change.newest_at > row["newest_at"]):
            row["newest_at"] = change.newest_at
        row["priority"] = max(row["priority"], change.priority)
    row.update(change.values)


def _ends_of_queue(connection: Connection, host: str, study_uid: str) -> tuple[datetime, datetime]:
    queue = select(instance.c.admitted_at).where(QUEUED, instance.c.host == host, instance.c.study_uid == study_uid)
    oldest = connection.execute(queue.order_by(instance.c.admitted_at).limit(1)).scalar_one()
    newest = connection.execute(queue.order_by(instance.c.admitted_at.desc()).limit(1)).scalar_one()
    return oldest, newest


def set_due_again(connection: Connection, host: str, limits: BatchLimits) -> None:
    """Have the waiting studies of a host due by other limits, or by other waits."""
    after = ""
    while True:
        rows = connection.execute(
            select(study)
            .where(study.c.host == host, study.c.study_uid > after, study.c.waiting > 0)
            .order_by(study.c.study_uid)
            .limit(_STUDIES_AT_ONCE)
        ).all()
        if not rows:
            return
        after = rows[-1].study_uid
        due = [(row.study_uid, study_due_at(queue_of(dict(row._mapping)), limits)) for row in rows]  # noqa: SLF001
        connection.execute(_SET_DUE, [{"b_host": host, "b_study": uid, "b_due": due_at} for uid, due_at in due])
