"""What the daemon asks of its own host's rows. Each question is one SELECT, served by an index and fetched whole."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, exists, func, literal_column, or_, select

from ingestd import lifecycle
from ingestd.lifecycle import (
    FeedCursor,
    FeedEnd,
    Identity,
    Jump,
    Reason,
    Standing,
    State,
)

from . import dialect
from .due import Due
from .row import CONTENT, HOLDS, ONE, PLACE, ZERO, content_of, jump_of, pieces, place_of, reach_of
from .schema import (
    attempt,
    candidate,
    clock,
    destination,
    feed_cursor,
    history,
    instance,
    state_count,
    trust,
    verification,
)
from .schema import host as host_table
from .values import (
    ClockLine,
    DestinationStatus,
    Holder,
    KeptFile,
    KnownSource,
    LeftCandidate,
    RejectedFile,
    Removable,
    Resting,
    UnremovedSource,
)

UNCONFIRMED: ColumnElement[bool] = literal_column("holds = 1 AND confirmed_at IS NULL")
# Something in the spool: the file, or the Explicit VR copy of one that stays in place.
HAS_OWN_FILE: ColumnElement[bool] = literal_column("(in_place = 0 OR reencoded_path IS NOT NULL)")
_WAITS: ColumnElement[bool] = literal_column(
    "instance.state = 'DUPLICATE' AND instance.settled_at IS NULL AND instance.removed_at IS NULL"
)
_COMPARED = instance.c.compared == ONE
_MISMATCH = instance.c.mismatch == ONE
_REJECTED: ColumnElement[bool] = literal_column("state = 'REJECTED'")


_TAKEN_FROM = (
    select(instance.c.id)
    .where(
        instance.c.relative_path >= bindparam("first"),
        instance.c.relative_path < bindparam("end"),
        instance.c.inbox == bindparam("inbox"),
        instance.c.host == bindparam("host"),
        instance.c.in_place == ZERO,
        instance.c.source_removed == 1,
    )
    .limit(1)
)
_KNOWN = (
    instance.c.id,
    instance.c.state,
    instance.c.reason,
    instance.c.source_removed,
    instance.c.ctime_ns,
    instance.c.digest,
    instance.c.meta_digest,
    *PLACE,
)
_NEWEST_CONFIRMED = (
    select(instance.c.id)
    .where(instance.c.state == State.CONFIRMED)
    .order_by(instance.c.changed_at.desc(), instance.c.id.desc())
    .limit(1)
)
_HOLDER = instance.alias("holder")
_RESTS_ON = instance.alias("rests_on")
_HOLDER_IS_IN_DOUBT = exists().where(
    _HOLDER.c.id == instance.c.holder_id,
    or_(
        dialect.unindexed(_HOLDER.c.state).not_in([State.CONFIRMED, State.DISCARDED]),
        _HOLDER.c.next_check_at.is_not(None),
    ),
)
_HELD = instance.alias("held")
# The server's copy of it is what lets a file of ours go: its own, or that of a duplicate, which may have outlived it.
IS_RESTED_ON: ColumnElement[bool] = or_(
    and_(instance.c.settled_at.is_not(None), instance.c.removed_at.is_(None), HAS_OWN_FILE),
    instance.c.id.in_(
        select(_HELD.c.holder_id).where(
            _HELD.c.state == State.DUPLICATE,
            _HELD.c.settled_at.is_not(None),
            _HELD.c.removed_at.is_(None),
            _HELD.c.in_place == 0,
        )
    ),
)
_WAITING_ELSEWHERE = (
    select(instance.c.id, _HOLDER.c.host)
    .select_from(instance)
    .join(_HOLDER, literal_column("+instance.holder_id") == _HOLDER.c.id)
    .where(
        _WAITS,
        instance.c.host == bindparam("host"),
        literal_column("+holder.host") != bindparam("host"),
        literal_column("+holder.holds = 1 AND +holder.confirmed_at IS NULL"),
    )
    .order_by(instance.c.id)
    .limit(bindparam("limit"))
)
_DESTINATION = select(destination)
_VERIFICATION = select(verification).where(verification.c.id == 1)
_TRUST = select(trust)
_ANY_UNTOLD = (
    select(instance.c.id).where(instance.c.untold_since.is_not(None), instance.c.host == bindparam("host")).limit(1)
)
_KEPT = (instance.c.settled_at.is_not(None), instance.c.removed_at.is_(None), HAS_OWN_FILE)
_KEPT_LONGEST = (
    select(instance.c.settled_at)
    .where(*_KEPT, instance.c.host == bindparam("host"))
    .order_by(instance.c.settled_at)
    .limit(1)
)
_LOOKS = (
    select(instance.c.id).where(literal_column("state = 'CONFIRMED'"), instance.c.next_check_at.is_not(None)).limit(1)
)


class Reads(Due):
    """The questions of the daemon; ``Ledger`` has them all."""

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
                select(*_KNOWN).where(
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
                        ctime_ns=row.ctime_ns,
                        digests=None if row.digest is None else (row.meta_digest, row.digest),
                        reason=row.reason,
                    )
                )
        return dict(found)

    def emptied_by_us(self, inbox: str, folders: Iterable[str]) -> list[str]:
        """Say out of which of these folders of an inbox files were taken, in their order."""
        return [folder for folder in folders if self._one(_TAKEN_FROM, self._range_of(inbox, folder)) is not None]

    def _range_of(self, inbox: str, folder: str) -> dict[str, str]:
        # All that begins with the folder and a slash; a zero is what comes after a slash.
        return {"host": self._host, "inbox": inbox, "first": folder + "/", "end": folder + "0"}

    def unremoved_sources(self, *, after_id: int = 0, limit: int = 1000) -> list[UnremovedSource]:
        """Say which copied sources are still to be removed from their inbox, in the order of their rows."""
        rows = self._all(
            select(instance.c.id, *PLACE, *CONTENT, instance.c.source_ctime_ns, instance.c.removed_at)
            .where(
                instance.c.source_removed == ZERO,
                instance.c.in_place == ZERO,
                instance.c.host == self._host,
                instance.c.id > after_id,
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
                path=row.path if row.removed_at is None else "",
                content=content_of(row) if row.digest is not None else None,
                ctime_ns=row.source_ctime_ns,
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

    def removable(self, *, before: datetime, ahead_of: datetime | None = None, limit: int = 1000) -> list[Removable]:
        """Say which files in the spool have not been needed since ``before``, the longest first (G3).

        ``ahead_of`` asks instead for those that seem to be needed until a time to come: from before the clock was set.
        """
        settled_at = instance.c.settled_at
        if ahead_of is None and not self._is_kept_since(before):
            return []
        rows = self._all(
            select(
                instance.c.id,
                instance.c.state,
                *PLACE,
                *CONTENT,
                instance.c.ctime_ns,
                instance.c.reencoded_path,
                instance.c.reencoded_digest,
                instance.c.reencoded_meta_digest,
                instance.c.reencoded_size_bytes,
                instance.c.reencoded_ctime_ns,
            )
            .where(*self._may_go(settled_at <= before if ahead_of is None else settled_at > ahead_of))
            .order_by(instance.c.settled_at)
            .limit(limit)
        )
        return [
            Removable(
                entry_id=row.id,
                state=State(row.state),
                inbox=row.inbox,
                relative_path=row.relative_path,
                files=tuple(_kept_files(row)),
                size_bytes=row.size_bytes,
            )
            for row in rows
        ]

    def resting(self, *, before: datetime, limit: int = 1) -> list[Resting]:
        """Say what the first of these files rest on, in the order in which they stopped being needed."""
        if not self._is_kept_since(before):
            return []
        held = select(_RESTS_ON.c.settled_at).where(_RESTS_ON.c.id == instance.c.holder_id).scalar_subquery()
        since = func.coalesce(held, instance.c.settled_at).label("confirmed_at")
        rows = self._all(
            select(func.coalesce(instance.c.holder_id, instance.c.id).label("id"), instance.c.settled_at, since)
            .where(
                *self._may_go(instance.c.settled_at <= before),
                dialect.unindexed(instance.c.state).in_([State.CONFIRMED, State.DUPLICATE]),
            )
            .order_by(instance.c.settled_at)
            .limit(limit)
        )
        return [Resting(entry_id=row.id, settled_at=row.settled_at, confirmed_at=row.confirmed_at) for row in rows]

    def _is_kept_since(self, before: datetime) -> bool:
        """Whether any file is kept that has not been needed since then; costs nothing while the ledger is the same."""
        rows = self._remembered(_KEPT_LONGEST, host=self._host)
        return bool(rows) and rows[0].settled_at <= before

    def _may_go(self, since: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        return (
            *_KEPT,
            instance.c.host == self._host,
            since,
            # What is to be looked at again may be the only copy.
            or_(dialect.unindexed(instance.c.state) != State.CONFIRMED, instance.c.next_check_at.is_(None)),
            or_(dialect.unindexed(instance.c.state) != State.DUPLICATE, ~_HOLDER_IS_IN_DOUBT),
        )

    def rejected_files(self, *, after_id: int = 0, limit: int = 1000) -> list[RejectedFile]:
        """List the files set aside, by id."""
        rows = self._all(
            select(instance.c.id, instance.c.reason, *PLACE)
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
                reason=Reason(row.reason),
                **place_of(row),
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
        in_place, relative_path = bool(row.in_place), row.relative_path
        return Holder(
            entry_id=row.id,
            state=State(row.state),
            path=reach_of(self._spool, row.path, in_place=in_place, relative_path=relative_path) if has_file else None,
            content=content_of(row),
            canonical_digest=row.canonical_digest,
        )

    def cursor(self) -> FeedCursor | None:
        """Say how far the change feed was read."""
        row = self._one(select(feed_cursor))
        return FeedCursor(version=row.version, since=row.since, sequence=row.sequence) if row else None

    def cursor_moved_at(self) -> datetime | None:
        """Say when the change feed's cursor was put where it is."""
        row = self._one(select(feed_cursor.c.moved_at))
        return row.moved_at if row else None

    def feed_end(self) -> FeedEnd | None:
        """Say how far the change feed ever went; None where that was never seen."""
        rows = self._remembered(_DESTINATION)
        if not rows or rows[0].highest_sequence is None:
            return None
        return FeedEnd(sequence=rows[0].highest_sequence, at=rows[0].highest_at)

    def went_back_at(self) -> datetime | None:
        """Say since when the server is known to have gone back, while what it may have lost is not settled."""
        rows = self._remembered(_DESTINATION)
        return rows[0].went_back_at if rows else None

    def newest_confirmed(self) -> int | None:
        """Give the row that became CONFIRMED last, of whatever host."""
        row = self._one(_NEWEST_CONFIRMED)
        return row.id if row else None

    def has_looks(self) -> bool:
        """Whether a confirmed row is still to be looked at again, of whatever host."""
        return self._one(_LOOKS) is not None

    def standing(self) -> Standing:
        """Say how far this server's word is trusted."""
        (row,) = self._remembered(_VERIFICATION)
        kinds = self._remembered(_TRUST)
        return Standing(
            matched={(kind.transfer_syntax, kind.sop_class_uid): kind.matched for kind in kinds},
            ever_matched=bool(row.ever_matched),
            mismatched_at=row.mismatched_at,
            stopped_at=row.stopped_at,
            studies=tuple(json.loads(row.studies)) if row.studies else (),
            differs=row.differs,
        )

    def studies_compared(self, study_uids: Iterable[str]) -> set[str]:
        """Say of which of these studies an instance was confirmed by a comparison."""
        found: set[str] = set()
        for piece in pieces(list(study_uids)):
            some = select(instance.c.study_uid).distinct().where(_COMPARED, instance.c.study_uid.in_(piece))
            found.update(row.study_uid for row in self._all(some))
        return found

    def uncompared(
        self, *, before: datetime, after: datetime | None = None, limit: int = 1000, host: str | None = None
    ) -> list[tuple[int, datetime]]:
        """Say which rows, with their instants, were confirmed without a comparison and still have their own file.

        Those confirmed from ``after`` to ``before``, in this order; rows that are about to be compared do not count.
        """
        rows = self._all(
            select(instance.c.id, instance.c.settled_at)
            .where(
                instance.c.settled_at.is_not(None),
                instance.c.removed_at.is_(None),
                instance.c.host == (self._host if host is None else host),
                instance.c.settled_at <= before,
                *(() if after is None else (instance.c.settled_at >= after,)),
                HAS_OWN_FILE,
                dialect.unindexed(instance.c.state) == State.CONFIRMED,
                dialect.unindexed(instance.c.compared) == 0,
                instance.c.needs_content_check == 0,
            )
            .order_by(instance.c.settled_at)
            .limit(limit)
        )
        return [(row.id, row.settled_at) for row in rows]

    def has_uncompared(self, *, before: datetime) -> bool:
        """Whether any host has such a row."""
        return any(self.uncompared(before=before, limit=1, host=row.host) for row in self._all(select(host_table)))

    def has_mismatched(self) -> bool:
        """Whether a person has still to settle a file that the server is to blame for, or one is to be compared."""
        mismatched = select(instance.c.id).where(_MISMATCH)
        unchecked = select(instance.c.id).where(
            literal_column("state = 'CONFIRMED'"),
            instance.c.next_check_at.is_not(None),
            instance.c.needs_content_check == 1,
            instance.c.removed_at.is_(None),
        )
        return any(self._one(rows.limit(1)) is not None for rows in (mismatched, unchecked))

    def others_on_their_way(self, study_uids: Iterable[str]) -> bool:
        """Whether a file of another study than these is still to be proven."""
        others = select(instance.c.id).where(UNCONFIRMED, instance.c.study_uid.not_in(list(study_uids)))
        return self._one(others.limit(1)) is not None

    def untold(self, *, longer_than: timedelta, now: datetime) -> tuple[int, str]:
        """Count the rows of which the server could not tell for so long, and give the oldest one's note.

        What seems to be so since a time to come is so since before the clock was set back, and counts.
        """
        if not self._remembered(_ANY_UNTOLD, host=self._host):
            return 0, ""
        since = instance.c.untold_since
        late = (since.is_not(None), instance.c.host == self._host, or_(since <= now - longer_than, since > now))
        oldest = self._one(select(instance.c.note).where(*late).order_by(instance.c.untold_since).limit(1))
        if oldest is None:
            return 0, ""
        return int(self._one(select(func.count().label("rows")).where(*late)).rows), oldest.note

    def clock(self) -> ClockLine | None:
        """Say what is known of this host's wall clock."""
        row = self._one(select(clock).where(clock.c.host == self._host).order_by(clock.c.id.desc()).limit(1))
        if row is None:
            return None
        return ClockLine(boot=row.boot, offset=timedelta(microseconds=row.offset_us), jump=jump_of(row))

    def jumps(self, *, limit: int = 10) -> list[Jump]:
        """Say when this host's wall clock was set, the last time first."""
        own = select(clock).where(clock.c.host == self._host, clock.c.by_us != ZERO)
        return [jump_of(row) for row in self._all(own.order_by(clock.c.id.desc()).limit(limit))]

    def newest_at(self) -> datetime | None:
        """Say when the last thing happened that is on record."""
        row = self._one(select(history.c.at).where(history.c.id == select(func.max(history.c.id)).scalar_subquery()))
        return row.at if row else None

    def last_attempt_id(self) -> int:
        """Say the newest attempt's id; 0 before the first."""
        row = self._one(select(func.max(attempt.c.id).label("id")))
        return row.id or 0

    def first_attempt_at(self) -> datetime | None:
        """Say when the first Store Transaction of this ledger began."""
        row = self._one(select(attempt.c.started_at).order_by(attempt.c.id).limit(1))
        return row.started_at if row else None

    def unfinished(self, *, up_to_id: int | None = None, host: str | None = None) -> int:
        """Count the rows of this host, or of another, that are still on their way and wait for no person."""
        host = self._host if host is None else host
        if up_to_id is None:
            waiting = func.coalesce(func.sum(state_count.c.entries - state_count.c.held), 0)
            row = self._one(
                select(waiting.label("rows")).where(
                    state_count.c.host == host, state_count.c.state.in_(list(lifecycle.UNCONFIRMED))
                )
            )
        else:
            row = self._one(
                select(func.count().label("rows")).where(
                    UNCONFIRMED,
                    instance.c.host == host,
                    instance.c.hold_reason.is_(None),
                    instance.c.id <= up_to_id,
                )
            )
        return int(row.rows)

    def waiting_elsewhere(self, *, limit: int = 500) -> list[tuple[int, str]]:
        """List duplicates of ours whose holder is another host's, and on its way: their ids, and that host."""
        rows = self._remembered(_WAITING_ELSEWHERE, host=self._host, limit=limit)
        return [(row.id, row.host) for row in rows]

    def last_id(self) -> int:
        """Say the newest row's id; 0 in an empty ledger."""
        row = self._one(select(func.max(instance.c.id).label("id")))
        return row.id or 0

    def last_event_id(self) -> int:
        """Say the number of what happened last, in the order of happening; 0 in an empty ledger."""
        row = self._one(select(func.max(history.c.id).label("id")))
        return row.id or 0

    def destination(self) -> DestinationStatus | None:
        """Say where this ledger delivers to, and whether it is sent to."""
        rows = self._remembered(_DESTINATION)
        if not rows:
            return None
        row = rows[0]
        return DestinationStatus(
            url=row.url,
            kind=row.kind,
            paused_until=row.paused_until,
            pause_cause=row.pause_cause,
            pause_note=row.pause_note,
            paused_since=row.paused_since,
            last_ok_at=row.last_ok_at,
        )


def _kept_files(row: Any) -> Iterator[KeptFile]:
    if not row.in_place:
        yield KeptFile(
            path=row.path,
            size_bytes=row.source.size_bytes,
            mtime_ns=row.source.mtime_ns,
            ctime_ns=row.ctime_ns,
            digests=None if row.digest is None else (row.meta_digest, row.digest),
        )
    if row.reencoded_path is not None:
        yield KeptFile(
            path=row.reencoded_path,
            size_bytes=row.reencoded_size_bytes,
            mtime_ns=None,
            ctime_ns=row.reencoded_ctime_ns,
            digests=(row.reencoded_meta_digest, row.reencoded_digest),
        )
