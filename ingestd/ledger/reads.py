"""What the daemon asks of its own host's rows. Each question is one SELECT, served by an index and fetched whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, func, literal_column, or_, select
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Executable

from ingestd import lifecycle
from ingestd.lifecycle import (
    Content,
    FeedCursor,
    Identity,
    Reason,
    State,
    StudyQueue,
    Unproven,
    order_studies,
)

from .schema import attempt, candidate, destination, feed_cursor, host, instance, state_count, study
from .sums import queue_of
from .transaction import HOLDS, ZERO, file_of, pieces
from .values import (
    DestinationStatus,
    Holder,
    KnownSource,
    LeftCandidate,
    Need,
    ReaderNeed,
    RejectedFile,
    Removable,
    UnremovedSource,
    Wish,
    Wished,
)

UNCONFIRMED: ColumnElement[bool] = literal_column("holds = 1 AND confirmed_at IS NULL")
# Something in the spool: the file, or the Explicit VR copy of one that stays in place.
HAS_OWN_FILE: ColumnElement[bool] = literal_column("(in_place = 0 OR reencoded_path IS NOT NULL)")
_REJECTED: ColumnElement[bool] = literal_column("state = 'REJECTED'")
_CONFIRMED: ColumnElement[bool] = literal_column("state = 'CONFIRMED'")
_WAITING = study.c.waiting > ZERO
_CONTENT = (
    instance.c.transfer_syntax,
    instance.c.digest,
    instance.c.meta_digest,
    instance.c.dataset_offset,
    instance.c.size_bytes,
)
_IDENTITY = (instance.c.study_uid, instance.c.series_uid, instance.c.sop_uid)
_PLACE = (instance.c.inbox, instance.c.relative_path, instance.c.source, instance.c.path, instance.c.in_place)
_UNPROVEN = (
    instance.c.id,
    instance.c.host,
    instance.c.state,
    instance.c.reason,
    instance.c.path,
    instance.c.in_place,
    instance.c.removed_at,
    instance.c.first_attempt_at,
    instance.c.last_attempt_at,
    instance.c.stored_at,
    instance.c.present_before,
    instance.c.was_stored,
    instance.c.resends,
    instance.c.charged,
    instance.c.absences,
    instance.c.absent_since,
    instance.c.checks,
    instance.c.seen_sequence,
    instance.c.seen_action,
    instance.c.seen_state,
    instance.c.seen_at,
    instance.c.needs_content_check,
    instance.c.reencoded_path,
    instance.c.reencoded_transfer_syntax,
    instance.c.reencoded_digest,
    instance.c.reencoded_meta_digest,
    instance.c.reencoded_dataset_offset,
    instance.c.reencoded_size_bytes,
    *_IDENTITY,
    *_CONTENT,
)


def content_of(row: Any) -> Content:
    """Gather a row's Content."""
    return Content(
        transfer_syntax=row.transfer_syntax,
        digest=row.digest,
        meta_digest=row.meta_digest,
        dataset_offset=row.dataset_offset,
        size_bytes=row.size_bytes,
    )


def identity_of(row: Any) -> Identity:
    """Gather a row's Identity."""
    return Identity(study_uid=row.study_uid, series_uid=row.series_uid, sop_uid=row.sop_uid)


class Reads:
    """The questions of the daemon; ``Ledger`` has them all."""

    def __init__(self, connection: Connection, *, host: str, spool: Path | None) -> None:
        self._connection = connection
        self._host = host
        self._spool = spool
        self._spools: dict[str, Path] = {}

    def _all(self, statement: Executable) -> Sequence[Any]:
        raise NotImplementedError

    def _one(self, statement: Executable) -> Any:
        rows = self._all(statement)
        return rows[0] if rows else None

    def studies_due(self, *, now: datetime, flush: bool = False, limit: int = 100) -> list[StudyQueue]:
        """Say which studies are due, in the order to be served; ``flush`` waits for no quiet.

        One that is in trouble and has a batch out is not due.
        """
        free = or_(study.c.charged == 0, study.c.in_flight == 0)
        found: list[StudyQueue] = []
        for priority in self._priorities():
            where: list[ColumnElement[bool]] = [
                _WAITING,
                study.c.host == self._host,
                study.c.priority == priority,
                free,
            ]
            if flush:
                where.append(or_(study.c.next_attempt_at.is_(None), study.c.next_attempt_at <= now))
            else:
                where.append(study.c.due_at <= now)
            rows = self._all(select(study).where(*where).order_by(study.c.due_at).limit(limit))
            found += [queue_of(dict(row._mapping)) for row in rows]  # noqa: SLF001
        return order_studies(found, now=now)[:limit]

    def _priorities(self) -> list[int]:
        # A skip over the index: few priorities, many studies.
        priorities: list[int] = []
        where: list[ColumnElement[bool]] = [_WAITING, study.c.host == self._host]
        while True:
            row = self._one(select(study.c.priority).where(*where).order_by(study.c.priority.desc()).limit(1))
            if row is None:
                return priorities
            priorities.append(row.priority)
            where = [_WAITING, study.c.host == self._host, study.c.priority < row.priority]

    def next_study_at(self, *, flush: bool = False) -> datetime | None:
        """Say when the next study is due; with ``flush``, when the next backoff of a study ends.

        Studies in trouble with a batch out do not count: its end is what they wait for.
        """
        free = or_(study.c.charged == 0, study.c.in_flight == 0)
        at = func.coalesce(study.c.next_attempt_at, study.c.oldest_at) if flush else study.c.due_at
        earliest: datetime | None = None
        for priority in self._priorities():
            where = (_WAITING, study.c.host == self._host, study.c.priority == priority, free)
            row = self._one(select(at.label("at")).where(*where).order_by(study.c.due_at).limit(1))
            if row is not None and row.at is not None and (earliest is None or row.at < earliest):
                earliest = row.at
        return earliest

    def next_wake_at(self) -> datetime | None:
        """Say when the next deferred row's time comes."""
        row = self._one(
            select(instance.c.next_attempt_at)
            .where(instance.c.next_attempt_at.is_not(None), instance.c.host == self._host)
            .order_by(instance.c.next_attempt_at)
            .limit(1)
        )
        return row.next_attempt_at if row else None

    def unproven(self, *, now: datetime, limit: int = 1000) -> list[Unproven]:
        """Say which rows the server is to be asked about now, the longest due first.

        Also confirmed rows of other hosts, which may not run: a drop of ours may wait to hear that one is gone.
        """
        found: list[Unproven] = []
        for whose in (instance.c.host == self._host, self._confirmed_elsewhere()):
            rows = self._all(
                select(*_UNPROVEN)
                .where(instance.c.next_check_at.is_not(None), whose, instance.c.next_check_at <= now)
                .order_by(instance.c.next_check_at)
                .limit(limit - len(found))
            )
            found += [self._unproven(row) for row in rows]
        return found

    def _confirmed_elsewhere(self) -> ColumnElement[bool]:
        return and_(_CONFIRMED, instance.c.host != self._host)

    def _spool_for(self, name: str) -> Path | None:
        if name == self._host:
            return self._spool
        if name not in self._spools:
            rows = self._all(select(host.c.host, host.c.spool))
            self._spools.update((row.host, Path(row.spool)) for row in rows if row.spool)
        return self._spools.get(name)

    def unproven_rows(self, entry_ids: Iterable[int]) -> list[Unproven]:
        """Read these rows as the reconciler sees them, due or not; only those that have content to prove."""
        found: list[Unproven] = []
        for piece in pieces(list(entry_ids)):
            rows = self._all(select(*_UNPROVEN).where(instance.c.id.in_(piece), instance.c.digest.is_not(None)))
            found += [self._unproven(row) for row in rows if row.study_uid is not None]
        return found

    def _unproven(self, row: Any) -> Unproven:
        content, path = content_of(row), row.path
        in_place = bool(row.in_place)
        if row.reencoded_digest is not None:
            path, in_place = row.reencoded_path, False
            content = Content(
                transfer_syntax=row.reencoded_transfer_syntax,
                digest=row.reencoded_digest,
                meta_digest=row.reencoded_meta_digest,
                dataset_offset=row.reencoded_dataset_offset,
                size_bytes=row.reencoded_size_bytes,
            )
        return Unproven(
            entry_id=row.id,
            identity=identity_of(row),
            state=State(row.state),
            content=content,
            path=None if path is None or row.removed_at is not None else self._file_of(row.host, path, in_place),
            first_attempt_at=row.first_attempt_at,
            last_attempt_at=row.last_attempt_at,
            stored_at=row.stored_at,
            reason=Reason(row.reason) if row.reason else None,
            present_before=None if row.present_before is None else bool(row.present_before),
            was_stored=bool(row.was_stored),
            resends=row.resends,
            charged=row.charged,
            absences=row.absences,
            absent_since=row.absent_since,
            checks=row.checks,
            seen_sequence=row.seen_sequence,
            seen_action=row.seen_action,
            seen_state=row.seen_state,
            seen_at=row.seen_at,
            needs_content_check=bool(row.needs_content_check),
        )

    def _file_of(self, name: str, path: str, in_place: bool) -> Path | None:  # noqa: FBT001 - as the row has it
        spool = self._spool_for(name)
        return file_of(spool, path, in_place=in_place) if in_place or spool is not None else None

    def next_check_at(self) -> datetime | None:
        """Say when the server is to be asked next."""
        times = []
        for whose in (instance.c.host == self._host, self._confirmed_elsewhere()):
            row = self._one(
                select(instance.c.next_check_at)
                .where(instance.c.next_check_at.is_not(None), whose)
                .order_by(instance.c.next_check_at)
                .limit(1)
            )
            if row is not None:
                times.append(row.next_check_at)
        return min(times, default=None)

    def needs_reader(self, *, limit: int = 1000, after_id: int = 0) -> list[ReaderNeed]:
        """Say which PENDING rows the reader has to look at before they can be sent, by id."""
        rows = self._all(
            select(instance.c.id, instance.c.need, instance.c.priority, *_PLACE, *_IDENTITY, *_CONTENT)
            .where(instance.c.need.is_not(None), instance.c.host == self._host, instance.c.id > after_id)
            .order_by(instance.c.id)
            .limit(limit)
        )
        return [
            ReaderNeed(
                entry_id=row.id,
                need=Need(row.need),
                inbox=row.inbox,
                relative_path=row.relative_path,
                path=file_of(self._spool, row.path, in_place=bool(row.in_place)),
                in_place=bool(row.in_place),
                source=row.source,
                identity=identity_of(row),
                content=content_of(row),
                priority=row.priority,
            )
            for row in rows
        ]

    def wishes(self, *, limit: int = 1000) -> list[Wished]:
        """Say which REJECTED rows a person wants admitted."""
        rows = self._all(
            select(instance.c.id, instance.c.wish, instance.c.reason, instance.c.priority, *_PLACE)
            .where(instance.c.wish.is_not(None), instance.c.host == self._host)
            .order_by(instance.c.id)
            .limit(limit)
        )
        return [
            Wished(
                entry_id=row.id,
                wish=Wish(row.wish),
                inbox=row.inbox,
                relative_path=row.relative_path,
                path=row.path,
                in_place=bool(row.in_place),
                source=row.source,
                reason=Reason(row.reason),
                priority=row.priority,
            )
            for row in rows
        ]

    def left_candidates(self, *, limit: int = 1000, after_id: int = 0) -> list[LeftCandidate]:
        """Say which files were being read when the process ended, by id."""
        rows = self._all(
            select(candidate)
            .where(candidate.c.host == self._host, candidate.c.id > after_id)
            .order_by(candidate.c.id)
            .limit(limit)
        )
        return [
            LeftCandidate(
                candidate_id=row.id,
                inbox=row.inbox,
                relative_path=row.relative_path,
                source=row.source,
                tries=row.tries,
            )
            for row in rows
        ]

    def known_sources(self, inbox: str, relative_paths: Iterable[str]) -> dict[str, list[KnownSource]]:
        """Say which rows came from these paths of an inbox; paths without any are absent."""
        found: dict[str, list[KnownSource]] = defaultdict(list)
        for piece in pieces(list(relative_paths)):
            rows = self._all(
                select(instance.c.id, instance.c.state, instance.c.source_removed, *_PLACE).where(
                    instance.c.relative_path.in_(piece),
                    instance.c.inbox == inbox,
                    instance.c.host == self._host,
                )
            )
            for row in rows:
                found[row.relative_path].append(
                    KnownSource(
                        entry_id=row.id,
                        state=State(row.state),
                        source=row.source,
                        in_place=bool(row.in_place),
                        source_removed=bool(row.source_removed),
                    )
                )
        return dict(found)

    def unremoved_sources(self, *, limit: int = 1000) -> list[UnremovedSource]:
        """Say which copied sources are still to be removed from their inbox."""
        rows = self._all(
            select(instance.c.id, *_PLACE, *_CONTENT)
            .where(
                instance.c.source_removed == ZERO,
                instance.c.in_place == ZERO,
                instance.c.host == self._host,
            )
            .order_by(instance.c.id)
            .limit(limit)
        )
        return [
            UnremovedSource(
                entry_id=row.id,
                inbox=row.inbox,
                relative_path=row.relative_path,
                source=row.source,
                path=row.path,
                content=content_of(row) if row.digest is not None else None,
            )
            for row in rows
        ]

    def paths_known(self, paths: Sequence[str]) -> set[str]:
        """Say which of these paths in the own spool belong to a row that still has its file."""
        known: set[str] = set()
        for piece in pieces(paths):
            known.update(
                row.path
                for row in self._all(
                    select(instance.c.path).where(
                        instance.c.path.in_(piece),
                        instance.c.removed_at.is_(None),
                        instance.c.in_place == ZERO,
                        instance.c.host == self._host,
                    )
                )
            )
            known.update(
                row.reencoded_path
                for row in self._all(
                    select(instance.c.reencoded_path).where(
                        instance.c.reencoded_path.is_not(None),
                        instance.c.reencoded_path.in_(piece),
                        instance.c.removed_at.is_(None),
                        instance.c.host == self._host,
                    )
                )
            )
        return known

    def removable(self, *, before: datetime, limit: int = 1000) -> list[Removable]:
        """Say which files in the spool have not been needed since ``before``, the longest first (G3)."""
        rows = self._all(
            select(
                instance.c.id,
                instance.c.state,
                instance.c.path,
                instance.c.in_place,
                instance.c.reencoded_path,
                instance.c.size_bytes,
            )
            .where(
                instance.c.settled_at.is_not(None),
                instance.c.removed_at.is_(None),
                instance.c.host == self._host,
                instance.c.settled_at <= before,
                HAS_OWN_FILE,
            )
            .order_by(instance.c.settled_at)
            .limit(limit)
        )
        return [
            Removable(
                entry_id=row.id,
                state=State(row.state),
                paths=tuple(
                    path for path in (None if row.in_place else row.path, row.reencoded_path) if path is not None
                ),
                size_bytes=row.size_bytes,
            )
            for row in rows
        ]

    def rejected_files(self, *, after_id: int = 0, limit: int = 1000) -> list[RejectedFile]:
        """List the files set aside, by id."""
        rows = self._all(
            select(instance.c.id, instance.c.reason, instance.c.priority, *_PLACE)
            .where(
                _REJECTED,
                instance.c.host == self._host,
                instance.c.id > after_id,
                instance.c.removed_at.is_(None),
            )
            .order_by(instance.c.id)
            .limit(limit)
        )
        return [
            RejectedFile(
                entry_id=row.id,
                inbox=row.inbox,
                relative_path=row.relative_path,
                path=row.path,
                in_place=bool(row.in_place),
                source=row.source,
                reason=Reason(row.reason),
                priority=row.priority,
            )
            for row in rows
        ]

    def holder(self, identity: Identity) -> Holder | None:
        """Say which row holds this identity; its ``path`` is None also where another host has the file."""
        row = self._one(
            select(instance).where(
                HOLDS,
                instance.c.sop_uid == identity.sop_uid,
                instance.c.series_uid == identity.series_uid,
                instance.c.study_uid == identity.study_uid,
            )
        )
        if row is None:
            return None
        has_file = row.removed_at is None and (row.in_place or row.host == self._host)
        return Holder(
            entry_id=row.id,
            state=State(row.state),
            path=file_of(self._spool, row.path, in_place=bool(row.in_place)) if has_file else None,
            content=content_of(row),
            canonical_digest=row.canonical_digest,
        )

    def cursor(self) -> FeedCursor | None:
        """Say how far the change feed was read."""
        row = self._one(select(feed_cursor))
        return FeedCursor(version=row.version, since=row.since, sequence=row.sequence) if row else None

    def first_attempt_at(self) -> datetime | None:
        """Say when the first Store Transaction of this ledger began."""
        row = self._one(select(attempt.c.started_at).order_by(attempt.c.id).limit(1))
        return row.started_at if row else None

    def unfinished(self, *, up_to_id: int | None = None) -> int:
        """Count this host's rows that are still on their way and wait for no person."""
        if up_to_id is None:
            waiting = func.coalesce(func.sum(state_count.c.entries - state_count.c.held), 0)
            row = self._one(
                select(waiting.label("rows")).where(
                    state_count.c.host == self._host, state_count.c.state.in_(list(lifecycle.UNCONFIRMED))
                )
            )
        else:
            row = self._one(
                select(func.count().label("rows")).where(
                    UNCONFIRMED,
                    instance.c.host == self._host,
                    instance.c.hold_reason.is_(None),
                    instance.c.id <= up_to_id,
                )
            )
        return int(row.rows)

    def last_id(self) -> int:
        """Say the newest row's id; 0 in an empty ledger."""
        row = self._one(select(func.max(instance.c.id).label("id")))
        return row.id or 0

    def destination(self) -> DestinationStatus | None:
        """Say where this ledger delivers to, and whether it is sent to."""
        row = self._one(select(destination))
        if row is None:
            return None
        return DestinationStatus(
            url=row.url,
            kind=row.kind,
            paused_until=row.paused_until,
            pause_cause=row.pause_cause,
            pause_note=row.pause_note,
            paused_since=row.paused_since,
            last_ok_at=row.last_ok_at,
        )
