"""The ledger: what became of every file, in one SQL database; every SQL statement of the program is in this room.

It knows nothing of folders, readers, servers or clocks: plain values in (``lifecycle`` and ``values``), plain values
out, ``now`` (aware UTC) an argument everywhere. The daemon writes from one thread; a person's moves in other
processes slip in between. Instants are stored as integer microseconds since 1970 UTC.

Opening::

    Ledger.open(url, *, host="", destination=None, spool=None, limits=None, create=True, read_only=False) -> Ledger
        url: "sqlite:////abs/path". host: the spool's id, spool: its folder (absolute paths are made from it), limits:
        BatchLimits; all three are given by `run` and `send`, and by nobody else (status, retry, ...). destination: the
        URL this ledger delivers to; recorded by the first, another one is refused (OtherDestination). read_only: works
        beside a writing daemon and with read permission alone.
        Raises LedgerError (LedgerMissing when not there and create=False or read_only), with what to do in the message.
    ledger.close(); `with Ledger.open(...) as ledger:` closes
    ledger.set_limits(limits)                       a reread configuration (SIGHUP)
    ledger.key_is_another ; ledger.accept_key()     the key of these words is not the one of before; go on with it
    ledger.search_hash(kind, value) -> str          kind "patient" | "accession"; keyed, "" for an empty value
    ledger.back_up(folder) -> bool                  ledger and key, copied while others write; False: not its own key
    ledger.check_integrity() -> list[str]           every page read; empty when all is well

Writing: ``with ledger.write() as moves:`` is one transaction, BEGIN IMMEDIATE ... COMMIT; an exception rolls all of it
back. Many moves in one transaction cost little; an fsync each. LedgerBusy and LedgerFull are worth another try.
On Moves (``now`` is keyword-only everywhere)::

    recover(*, now) -> Recovered                    at start, under the spool's lock, before anything else
    wake(*, now) -> int                             deferred rows (Outcome.wait) whose time came; once a tick
    add_candidates(candidates: Sequence[NewCandidate], *, now) -> list[int]
        the same file as before keeps its id and its tries
    candidate_died(candidate_id) -> int             the tries so far; 2 = reject it (Reason.KILLED_READER)
    drop_candidates(candidate_ids) -> None          file vanished or changed: no verdict
    admit(arrivals: Sequence[Arrival], *, judged: Mapping[int, Judged] = {}, now) -> list[Admitted]
        in order of arrivals; judged: position in arrivals -> what a comparison came to, which counts only while that
        row still holds the identity.
    refuse(refusals: Sequence[Refusal], *, now) -> list[int]
    claim(study_uid, *, now, limits=None) -> Batch | None           None: nothing to be had there
    finish(result: BatchResult, *, now, backoff: Backoff, jitter: float, study_wait: timedelta | None = None)
        -> Finished. charge_study moves the study on by backoff (or study_wait); answered without charge clears it.
    charge_study(study_uid, *, now, backoff, jitter) -> datetime    met in flight by three pauses
    apply(outcomes: Sequence[Outcome], *, now, backoff: Backoff, jitter: float) -> Applied
        the reconciler's. Outcome.state equal to the row's own is "asked, not settled": checks + 1, next_check_at =
        now + (wait or backoff); reason ABSENT counts absences; on CONFIRMED, with evidence_at or without a wait, it is
        fresh evidence (duplicates' files become removable) and ends the check. Outcome.expected (the state asked
        about) and Outcome.evidence_at should be given: a row found elsewhere is left alone and counted as lost.
    check_again(entry_ids, *, at, note="") -> int   next_check_at, without counting a check (server not reachable)
    record_sightings(sightings: Sequence[Sighting], *, now, cursor: FeedCursor | None = None) -> int
        kept on the row whatever its state; rows in STORED, UNCERTAIN, CONFIRMED, DELETED come up in unproven() at
        once. The cursor is advanced in the same transaction.
    set_cursor(cursor: FeedCursor, *, now) -> None
    seen_end(end: FeedEnd) -> None                  kept where it is higher than ever before
    went_back(*, to: int | None, end: FeedEnd | None, now) -> None
        the server was restored from a backup: what its feed had shown after ``to``, and all that is kept, is asked
        about; until ``went_back_settled()``
    audit(study_uid, *, now) -> int                 its CONFIRMED and STORED rows come up in unproven() at once
    reread(entry_id, arrival: Arrival, *, judged: Judged | None = None, now) -> Admitted      need REREAD, read whole
    reread_refused(entry_id, refusal: Refusal, *, now) -> bool      no longer a whole DICOM file
    attach_reencoded(entry_id, *, path, content: Content, ctime_ns=0, now) -> bool            path relative to the spool
    reencode_failed(entry_id, *, note, now) -> bool UNCERTAIN `refused`, with the note
    read_no_more(entry_id, *, now) -> bool          a need whose file vanished: sending it has the server asked
    fail_gone(entry_ids, *, note, now) -> int       UNCERTAIN rows whose file vanished
    hold(entry_ids, *, reason: str, now) -> int ; unhold(entry_ids, *, now) -> int
    mark_source_removed(entry_ids) -> None ; mark_removed(entry_ids, *, now) -> int
    refresh_source(entry_id, *, source: SourceStat, ctime_ns)           a file in place, read again, is what it was
    written_after(entry_ids, *, now)                other bytes lay where their settled files had been: in the history
    take_over(entry_ids, *, hosts, now) -> int      duplicates are sent in place of what waits for hosts nobody runs
    readmitted(entry_id, new_entry_id, *, now)      the REJECTED row whose file was admitted anew becomes DISCARDED
    wish_failed(entry_id, *, note, now)             the wish is cleared, the note goes into note and history
    pause_destination(pause: Pause, *, until: datetime, now) ; resume_destination(*, now) ; destination_answered(*, now)
    new_address(url, *, now) -> int                 the server moved there; how many rows it is asked about
    set_destination_kind(kind) ; inbox_report(summary: InboxSummary, *, now)
    put_clock(line: ClockLine) -> None              one line; backoffs and checks move along with the clock
    put_alarms(alarms: Iterable[Alarm]) -> None     all that stand on this host now; `status` prints them
    retry(entry_id, *, now) -> State                PENDING; or REJECTED still, with the wish recorded
    retry_all(choice: Choice, *, now, limit=1000) -> Retried        by study, state, reason (at least one of them)
    discard(entry_id, *, idle_host="", now) ; admit_anyway(entry_id, *, now)
    replace(entry_id, *, now) -> int                the former holder, 0 if none; the batch's part says ``replaces``
        the person's moves raise RefusedMove with a sentence, and change nothing.

Reading, for the daemon (this host's rows; each one SELECT, fetched whole)::

    studies_due(*, now, flush=False, limit=100) -> list[StudyQueue]                           in the order to be served
    next_study_at(*, now, flush=False) -> datetime | None ; next_wake_at(*, now) -> datetime | None  (deferred rows)
    unproven(*, now, limit=1000) -> list[Unproven] ; next_check_at(*, now) -> datetime | None
    needs_reader(*, limit=1000, after_id=0) -> list[ReaderNeed] ; wishes(*, limit=1000) -> list[Wished]
    left_candidates(*, limit=1000, after_id=0) -> list[LeftCandidate]
    known_sources(inbox, relative_paths) -> dict[str, list[KnownSource]]
    emptied_by_us(inbox, folders) -> list[str]                          those that files were taken out of
    unremoved_sources(*, limit=1000, after_id=0) -> list[UnremovedSource]
    paths_known(paths: Sequence[str]) -> set[str]   of paths relative to this spool, those some row has
    removable(*, before: datetime, ahead_of=None, limit=1000) -> list[Removable]              before = now - retain
    resting(*, before: datetime, limit=1) -> list[Resting]    the confirmed rows that these files rest on
    clock() -> ClockLine | None ; jumps(*, limit=10) -> list[Jump] ; newest_at() -> datetime | None ; last_attempt_id()
    rejected_files(*, after_id=0, limit=1000) -> list[RejectedFile]
    holder(identity: Identity) -> Holder | None ; unproven_rows(entry_ids) -> list[Unproven]
    cursor() -> FeedCursor | None ; cursor_moved_at() -> datetime | None ; feed_end() -> FeedEnd | None
    first_attempt_at() -> datetime | None
    waiting_elsewhere(*, limit=500) -> list[tuple[int, str]]    duplicates of what another host was to send; which
    went_back_at() -> datetime | None ; newest_confirmed() -> int | None ; has_looks() -> bool     of all hosts
    unfinished(*, up_to_id=None, host=None) -> int                  rows on their way that wait for no person
    last_id() -> int ; destination() -> DestinationStatus | None
    last_event_id() -> int ; called_since(event_id) -> list[Entry]  rows that need a person by what happened after it

Reading, for people (all hosts)::

    counts() -> dict[State, int] ; status() -> Status ; oldest_unconfirmed_at() -> datetime | None
    studies(choice=Choice(), *, limit=100, after: StudySummary | None = None) -> list[StudySummary]
    entries(choice=Choice(), *, limit=1000, after: Entry | None = None) -> list[Entry]        newest change first, both
    find(text) -> list[Entry]                       entry id, any of the three UIDs, or a path (source or spool)
    entry(entry_id) -> Entry | None ; story(entry_id) -> Story | None ; spools() -> dict[str, Path]

An identity is held once over all hosts; every row carries its host, and claims, checks, removals and recovery keep
to the own one. A Ledger belongs to the thread that opened it.
"""

from typing import TYPE_CHECKING

from .ledger import Ledger
from .values import (
    KEY_MADE_ANEW,
    OTHER_ADDRESS_STEP,
    Admitted,
    Alarm,
    Applied,
    Attempt,
    Choice,
    ClockLine,
    Count,
    DestinationStatus,
    Entry,
    Event,
    Finished,
    Holder,
    InboxSummary,
    Judged,
    KeptFile,
    KnownSource,
    LedgerBusy,
    LedgerError,
    LedgerFull,
    LedgerMissing,
    LedgerOlder,
    LedgerPermission,
    LedgerUnread,
    LeftCandidate,
    Need,
    NewCandidate,
    OtherDestination,
    ReaderNeed,
    Recovered,
    RefusedMove,
    RejectedFile,
    Removable,
    Resting,
    Retried,
    Status,
    Story,
    StudySummary,
    UnremovedSource,
    Wish,
    Wished,
)

if TYPE_CHECKING:
    from .transaction import Transaction
else:

    def __getattr__(name: str) -> object:
        """Import what writes when somebody asks for it: a command that only reads starts sooner."""
        if name != "Transaction":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .transaction import Transaction  # noqa: PLC0415

        return Transaction


__all__ = [
    "KEY_MADE_ANEW",
    "OTHER_ADDRESS_STEP",
    "Admitted",
    "Alarm",
    "Applied",
    "Attempt",
    "Choice",
    "ClockLine",
    "Count",
    "DestinationStatus",
    "Entry",
    "Event",
    "Finished",
    "Holder",
    "InboxSummary",
    "Judged",
    "KeptFile",
    "KnownSource",
    "Ledger",
    "LedgerBusy",
    "LedgerError",
    "LedgerFull",
    "LedgerMissing",
    "LedgerOlder",
    "LedgerPermission",
    "LedgerUnread",
    "LeftCandidate",
    "Need",
    "NewCandidate",
    "OtherDestination",
    "ReaderNeed",
    "Recovered",
    "RefusedMove",
    "RejectedFile",
    "Removable",
    "Resting",
    "Retried",
    "Status",
    "Story",
    "StudySummary",
    "Transaction",
    "UnremovedSource",
    "Wish",
    "Wished",
]
