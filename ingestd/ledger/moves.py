"""Everything that can be written, in one list: one method per move, each carried out in the module it names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType

from ingestd.lifecycle import (
    Arrival,
    Backoff,
    Batch,
    BatchLimits,
    BatchResult,
    Content,
    FeedCursor,
    FeedEnd,
    Kind,
    Outcome,
    Pause,
    Refusal,
    Sighting,
    SourceStat,
    State,
)

from . import admission, claims, clock, decisions, evidence, going_back, moving, returns, takeover, trust, upkeep
from .transaction import Transaction
from .values import (
    Admitted,
    Alarm,
    Applied,
    Choice,
    ClockLine,
    Finished,
    InboxSummary,
    Judged,
    NewCandidate,
    Recovered,
    Retried,
)

_NONE_JUDGED: Mapping[int, Judged] = MappingProxyType({})


class Moves:
    """One write transaction: what these methods do is committed together when the block ends, or not at all."""

    def __init__(self, tx: Transaction, *, first_candidate_id: int) -> None:
        self._tx = tx
        self.first_candidate_id = first_candidate_id

    def recover(self, *, now: datetime) -> Recovered:
        """Settle what a process that died left open; at start, under the spool's lock, before anything else."""
        return claims.recover(self._tx, now=now)

    def wake(self, *, now: datetime) -> int:
        """Let up to 1,000 deferred rows whose time has come join the queue of their study."""
        return claims.wake(self._tx, now=now)

    def add_candidates(self, candidates: Sequence[NewCandidate], *, now: datetime) -> list[int]:
        """Put down which files are about to be read; the same file as before keeps its id and its tries."""
        ids = admission.add_candidates(self._tx, candidates, first_id=self.first_candidate_id, now=now)
        # An id that was given out is not given out again by this process: a late answer must not meet another file.
        self.first_candidate_id = max([self.first_candidate_id, *(each + 1 for each in ids)])
        return ids

    def candidate_died(self, candidate_id: int) -> int:
        """Count a reader that this file killed, and say how many it were so far."""
        return admission.candidate_died(self._tx, candidate_id)

    def drop_candidates(self, candidate_ids: Iterable[int]) -> None:
        """Forget files that vanished or changed before there was a verdict."""
        admission.drop_candidates(self._tx, candidate_ids)

    def admit(
        self, arrivals: Sequence[Arrival], *, judged: Mapping[int, Judged] = _NONE_JUDGED, now: datetime
    ) -> list[Admitted]:
        """Make rows of files that were read whole, answers in the order of the arrivals.

        ``judged`` has, by position in ``arrivals``, what a comparison with the holder came to; it counts only while
        that row still holds the identity.
        """
        return admission.admit(self._tx, arrivals, judged=judged, now=now)

    def refuse(self, refusals: Sequence[Refusal], *, now: datetime) -> list[int]:
        """Make REJECTED rows of files that are not to be sent; their ids, in order."""
        return admission.refuse(self._tx, refusals, now=now)

    def reread(self, entry_id: int, arrival: Arrival, *, judged: Judged | None = None, now: datetime) -> Admitted:
        """Take over what a PENDING row's changed file now holds.

        ``entry_id`` is None in the answer when nothing was done: the row is elsewhere by now, or ``needs_compare``.
        """
        return admission.reread(self._tx, entry_id, arrival, judged=judged, now=now)

    def reread_refused(self, entry_id: int, refusal: Refusal, *, now: datetime) -> bool:
        """Reject a PENDING row whose changed file is no whole DICOM file any more."""
        return admission.reread_refused(self._tx, entry_id, refusal, now=now)

    def claim(self, study_uid: str, *, now: datetime, limits: BatchLimits | None = None) -> Batch | None:
        """Take the next batch of a study, or None if there is nothing to take. It is not asked whether it is quiet."""
        return claims.claim(self._tx, study_uid, now=now, limits=limits)

    def finish(
        self,
        result: BatchResult,
        *,
        now: datetime,
        backoff: Backoff,
        jitter: float,
        study_wait: timedelta | None = None,
    ) -> Finished:
        """Carry out what became of a batch: rows, attempt, study.

        With ``charge_study`` the study waits as the backoff says, or ``study_wait``; an answer without a charge
        ends its backoff. A part without an outcome becomes UNCERTAIN.
        """
        return returns.finish(self._tx, result, now=now, backoff=backoff, jitter=jitter, study_wait=study_wait)

    def charge_study(self, study_uid: str, *, now: datetime, backoff: Backoff, jitter: float) -> datetime:
        """Move a study on that pauses of the destination keep meeting in flight; say until when."""
        return returns.charge_study(self._tx, study_uid, now=now, backoff=backoff, jitter=jitter)

    def apply(self, outcomes: Sequence[Outcome], *, now: datetime, backoff: Backoff, jitter: float) -> Applied:
        """Carry out what the reconciler found. An outcome in the row's own state means "asked, not settled"."""
        return evidence.apply(self._tx, outcomes, now=now, backoff=backoff, jitter=jitter)

    def check_again(self, entry_ids: Iterable[int], *, at: datetime, note: str = "") -> int:
        """Have these rows asked about at that time, without counting a check; ``note``: why they could not be now."""
        return evidence.check_again(self._tx, entry_ids, at=at, note=note)

    def audit(self, study_uid: str, *, now: datetime) -> int:
        """Have everything of a study that should be on the server asked about; how many rows that is."""
        return evidence.audit(self._tx, study_uid, now=now)

    def take_over(self, entry_ids: Iterable[int], *, hosts: Collection[str], now: datetime) -> int:
        """Have duplicates sent in place of what waits for ``hosts``, which nobody runs; how many that were."""
        return takeover.take_over(self._tx, entry_ids, hosts=hosts, now=now)

    def record_sightings(
        self, sightings: Sequence[Sighting], *, now: datetime, cursor: FeedCursor | None = None
    ) -> int:
        """Keep what the change feed shows on the rows, whatever their state; how many rows learnt something new."""
        return evidence.record_sightings(self._tx, sightings, now=now, cursor=cursor)

    def set_cursor(self, cursor: FeedCursor, *, now: datetime) -> None:
        """Say how far the change feed was read."""
        evidence.set_cursor(self._tx, cursor, now=now)

    def seen_end(self, end: FeedEnd) -> None:
        """Keep how far the change feed went, where it went further than ever before."""
        going_back.seen_end(self._tx, end)

    def went_back(self, *, to: int | None, end: FeedEnd | None, now: datetime) -> None:
        """Put down that the server was restored from a backup, and have all asked about that it may have lost."""
        going_back.went_back(self._tx, to=to, end=end, now=now)

    def went_back_settled(self) -> None:
        """Put down that all that was asked about for it is settled."""
        going_back.is_settled(self._tx)

    def count_matches(self, matches: Mapping[Kind, int]) -> None:
        """Count copies that were fetched and are ours: that is what trust is earned by."""
        trust.count_matches(self._tx, matches)

    def mismatch(self, *, studies: Sequence[str], differs: str, stops: bool, now: datetime) -> None:
        """Put down that the server gives back other content than it was sent: all trust in it is gone."""
        trust.mismatch(self._tx, studies=studies, differs=differs, stops=stops, now=now)

    def forgive(self, *, now: datetime) -> None:
        """Let files go again after a mismatch, and ask about those that stayed STORED for it."""
        trust.forgive(self._tx, now=now)

    def ask_mismatched_again(self, *, now: datetime) -> int:
        """Have the rows asked about now that stayed STORED because nothing of this server had ever matched."""
        return trust.ask_mismatched_again(self._tx, now=now)

    def recheck(self, entry_ids: Iterable[int], *, now: datetime) -> None:
        """Have these confirmed rows compared before their files may go."""
        trust.recheck(self._tx, entry_ids, now=now)

    def attach_reencoded(self, entry_id: int, *, path: str, content: Content, ctime_ns: int = 0, now: datetime) -> bool:
        """Have the Explicit VR copy sent instead; False if the row is elsewhere by now. ``path`` is in the spool."""
        return upkeep.attach_reencoded(self._tx, entry_id, path=path, content=content, ctime_ns=ctime_ns, now=now)

    def reencode_failed(self, entry_id: int, *, note: str, now: datetime) -> bool:
        """Have the server asked for a refused row that cannot be re-encoded, before it is FAILED: UNCERTAIN."""
        return upkeep.reencode_failed(self._tx, entry_id, note=note, now=now)

    def read_no_more(self, entry_id: int, *, now: datetime) -> bool:
        """Let a PENDING row that waits to be read go on without: its file vanished, and who sends it has that asked."""
        return upkeep.read_no_more(self._tx, entry_id, now=now)

    def fail_gone(self, entry_ids: Iterable[int], *, note: str, now: datetime) -> int:
        """Give UNCERTAIN rows up whose file vanished, and which the server was asked about: FAILED ``gone``."""
        return upkeep.fail_gone(self._tx, entry_ids, note=note, now=now)

    def hold(self, entry_ids: Iterable[int], *, reason: str, now: datetime) -> int:
        """Keep PENDING rows from being due; they count as needing a person."""
        return upkeep.hold(self._tx, entry_ids, reason=reason, now=now)

    def unhold(self, entry_ids: Iterable[int], *, now: datetime) -> int:
        """Let held rows go."""
        return upkeep.unhold(self._tx, entry_ids, now=now)

    def mark_source_removed(self, entry_ids: Iterable[int]) -> None:
        """Say that the copied sources of these rows are removed from their inbox."""
        upkeep.mark_source_removed(self._tx, entry_ids)

    def mark_removed(self, entry_ids: Iterable[int], *, now: datetime) -> int:
        """Say that the spool files of these settled rows are gone; rows that need their file are passed over (G3)."""
        return upkeep.mark_removed(self._tx, entry_ids, now=now)

    def refresh_source(self, entry_id: int, *, source: SourceStat, ctime_ns: int) -> None:
        """Put down what the kernel says now of a file in place that proved to be what the row knows."""
        upkeep.refresh_source(self._tx, entry_id, source=source, ctime_ns=ctime_ns)

    def written_after(self, entry_ids: Iterable[int], *, now: datetime) -> None:
        """Put down that other bytes than the settled ones were found in these rows' files; they are new arrivals."""
        upkeep.written_after(self._tx, entry_ids, now=now)

    def pause_destination(self, pause: Pause, *, until: datetime, now: datetime) -> None:
        """Put down that the destination is not sent to until then; when it began is kept over pauses in a row."""
        upkeep.pause_destination(self._tx, pause, until=until, now=now)

    def resume_destination(self, *, now: datetime) -> None:
        """Put down that the destination is sent to again."""
        upkeep.resume_destination(self._tx, now=now)

    def destination_answered(self, *, now: datetime) -> None:
        """Put down that the destination gave a readable answer."""
        upkeep.destination_answered(self._tx, now=now)

    def set_destination_kind(self, kind: str) -> None:
        """Put down which server it is."""
        upkeep.set_destination_kind(self._tx, kind)

    def new_address(self, url: str, *, now: datetime) -> int:
        """A person: go on with the server at this address; how many rows it is asked about. Raises RefusedMove."""
        return moving.new_address(self._tx, url, now=now)

    def put_alarms(self, alarms: Iterable[Alarm]) -> None:
        """Keep what keeps this host's files from being confirmed or removed; in place of all that was kept before."""
        upkeep.put_alarms(self._tx, alarms)

    def put_clock(self, line: ClockLine) -> None:
        """Put down what the wall clock was set to, and move the waits that pace along with it."""
        clock.put_clock(self._tx, line)

    def inbox_report(self, summary: InboxSummary, *, now: datetime) -> None:
        """Keep what the last look into an inbox found, for `status`."""
        upkeep.put_inbox_report(self._tx, summary, now=now)

    def retry(self, entry_id: int, *, now: datetime) -> State:
        """A person: have a row tried again. Raises RefusedMove."""
        return decisions.retry(self._tx, entry_id, now=now)

    def retry_all(self, choice: Choice, *, now: datetime, limit: int = 1000) -> Retried:
        """A person: have all rows of a study, state or reason tried again that can be."""
        return decisions.retry_all(self._tx, choice, now=now, limit=limit)

    def try_now(self, *, now: datetime) -> int:
        """A person: wait no longer for anything that is to be sent; how many single rows were waiting."""
        return decisions.try_now(self._tx, now=now)

    def discard(self, entry_id: int, *, idle_host: str = "", now: datetime) -> None:
        """A person: give a row up; of ``idle_host``, which nobody runs, also what is on its way. Raises RefusedMove."""
        decisions.discard(self._tx, entry_id, idle_host=idle_host, now=now)

    def replace(self, entry_id: int, *, now: datetime) -> int:
        """A person: let a CONFLICT replace what holds its identity; that row, or 0. Raises RefusedMove."""
        return decisions.replace(self._tx, entry_id, now=now)

    def admit_anyway(self, entry_id: int, *, now: datetime) -> None:
        """A person: have a REJECTED file sent all the same. Raises RefusedMove."""
        decisions.admit_anyway(self._tx, entry_id, now=now)

    def readmitted(self, entry_id: int, new_entry_id: int, *, now: datetime) -> None:
        """Close a REJECTED row whose file was admitted anew."""
        decisions.readmitted(self._tx, entry_id, new_entry_id, now=now)

    def wish_failed(self, entry_id: int, *, note: str, now: datetime) -> None:
        """Put down why a person's wish could not be carried out."""
        decisions.wish_failed(self._tx, entry_id, note=note, now=now)
