"""Parts, batches and rows as the ledger would hand them to sender and reconciler, and a small ledger for one test.

``Row`` keeps of one instance what the real ledger keeps, so that a test can carry it from the post to its end by the
rooms' own functions: nothing here decides anything.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from ingestd.dicomweb import DicomWebClient
from ingestd.instance import inspect
from ingestd.lifecycle import (
    Batch,
    BatchResult,
    Content,
    FeedCursor,
    Identity,
    Outcome,
    Part,
    Reason,
    Sameness,
    Sighting,
    State,
    Unproven,
    compare_content,
)
from ingestd.reconciler import (
    FeedAnswer,
    FeedQuestion,
    NextStep,
    Reconciler,
    Rules,
    StudyAnswer,
    judge,
    judge_comparison,
    plan,
)
from ingestd.sender import Sender
from tests.builders import EXPLICIT
from tests.patience import PATIENCE

_delivery_ids = itertools.count(1)
_tokens = itertools.count(1)


def utc_now() -> datetime:
    return datetime.now(UTC)


def wait_for(what: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Wait until it holds; fails after the limit."""
    give_up_at = time.monotonic() + within
    while not what():
        assert time.monotonic() < give_up_at, "waited in vain"
        threading.Event().wait(0.002)


def content_of(data: bytes, transfer_syntax: str = EXPLICIT) -> Content:
    """A file's digests, its data set found by the length of group 0002 (PS3.10 section 7.1)."""
    offset = 144 + int.from_bytes(data[140:144], "little") if data[128:132] == b"DICM" else 0
    return Content(
        transfer_syntax=transfer_syntax,
        digest=hashlib.sha256(data[offset:]).hexdigest(),
        meta_digest=hashlib.sha256(data[:offset]).hexdigest(),
        dataset_offset=offset,
        size_bytes=len(data),
    )


def part_of(path: Path, identity: Identity, *, transfer_syntax: str = EXPLICIT, **more: object) -> Part:
    return Part(
        delivery_id=next(_delivery_ids),
        identity=identity,
        path=str(path),
        content=content_of(path.read_bytes(), transfer_syntax),
        **more,  # type: ignore[arg-type]
    )


def batch_of(parts: Iterable[Part], *, charged: int = 0) -> Batch:
    parts = tuple(parts)
    number = next(_tokens)
    return Batch(
        attempt_id=number,
        claim_token=f"token-{number}",
        study_uid=parts[0].identity.study_uid,
        parts=parts,
        started_at=utc_now(),
        charged=charged,
    )


def collect_one(sender: Sender) -> BatchResult:
    """Wait for the one post in flight and return what it came to."""
    collected: list[BatchResult] = []

    def came() -> bool:
        collected.extend(sender.collect())
        return bool(collected)

    wait_for(came)
    (result,) = collected
    return result


class Row:
    """One instance between its post and its end, kept as the ledger keeps it."""

    def __init__(self, part: Part, batch: Batch) -> None:
        self.part = part
        self.started_at = batch.started_at
        self.row = Unproven(
            delivery_id=part.delivery_id,
            identity=part.identity,
            state=State.SENDING,
            content=part.content,
            path=Path(part.path),
            first_attempt_at=batch.started_at,
            last_attempt_at=batch.started_at,
            stored_at=None,
        )
        self.history: list[Outcome] = []
        self.absent_since: datetime | None = None

    @property
    def state(self) -> State:
        return self.row.state

    @property
    def reason(self) -> Reason | None:
        return self.history[-1].reason if self.history else None

    def take(self, outcome: Outcome, *, now: datetime) -> None:
        """Carry an outcome out."""
        assert outcome.delivery_id == self.row.delivery_id
        assert outcome.expected in {None, self.row.state}
        self.history.append(outcome)
        before = self.row
        if outcome.state is before.state:
            absent = outcome.reason is Reason.ABSENT
            self.row = replace(
                before,
                checks=before.checks + 1,
                absences=before.absences + 1 if absent else 0,
            )
            self.absent_since = (self.absent_since or now) if absent else None
            return
        self.absent_since = None
        said = outcome.evidence.get("present_before")
        stored = outcome.state is State.STORED
        self.row = replace(
            before,
            state=outcome.state,
            reason=outcome.reason,
            checks=0,
            absences=0,
            stored_at=now if stored else before.stored_at,
            was_stored=before.was_stored or stored,
            present_before={"yes": True, "no": False}.get(said) if said else before.present_before,
            needs_content_check=before.needs_content_check or outcome.needs_content_check,
        )

    def see(self, sighting: Sighting) -> None:
        """Keep what the feed shows, as ``Ledger.record_sightings`` does."""
        if sighting.identity != self.row.identity or (self.row.seen_sequence or 0) >= sighting.sequence:
            return
        self.row = replace(
            self.row,
            seen_sequence=sighting.sequence,
            seen_action=sighting.action,
            seen_state=sighting.state,
            seen_at=sighting.at,
            needs_content_check=self.row.needs_content_check
            or self.row.seen_sequence is not None
            or sighting.disturbed,
        )


def send(client: DicomWebClient, parts: Iterable[Part], rules: Rules, **settings: object) -> list[Row]:
    """Post the parts in one batch with a sender of their own; one Row each."""
    batch = batch_of(parts)
    sender = Sender(client, profile=rules.profile, wake=lambda: None, utc_now=utc_now, **settings)  # type: ignore[arg-type]
    try:
        sender.submit(batch)
        result = collect_one(sender)
    finally:
        sender.close(timedelta(seconds=5))
    rows = {part.delivery_id: Row(part, batch) for part in batch.parts}
    for outcome in result.outcomes:
        rows[outcome.delivery_id].take(outcome, now=utc_now())
    return list(rows.values())


class Asking:
    """Carries rows to their end by asking the real server; the clock jumps over every wait."""

    def __init__(self, client: DicomWebClient, rules: Rules, scratch: Path) -> None:
        self.rules = rules
        self.scratch = scratch
        self.jumped = timedelta(0)
        self.cursor: FeedCursor | None = None
        self.reconciler = Reconciler(client, scratch=scratch, wake=lambda: None, utc_now=self.now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.reconciler.close(timedelta(seconds=5))

    def now(self) -> datetime:
        return utc_now() + self.jumped

    def read_feed(self, rows: Iterable[Row]) -> FeedAnswer:
        """Read the feed once and let the rows see what it shows."""
        rows = list(rows)
        first = min((row.started_at for row in rows), default=None)
        version = self.rules.profile.feed_version or 2
        self.reconciler.submit(FeedQuestion(cursor=self.cursor, version=version, first_attempt_at=first))
        answer = self._answers(1)[0]
        assert isinstance(answer, FeedAnswer)
        assert answer.error == ""
        self.cursor = answer.cursor or self.cursor
        # The clock that jumps is ours, not the server's.
        offset = (answer.clock_offset or timedelta(0)) + self.jumped
        self.rules = replace(self.rules, clock_offset=offset)
        for row in rows:
            for sighting in answer.sightings:
                row.see(sighting)
        return answer

    def ask_once(self, rows: Iterable[Row]) -> None:
        """One round: the feed, the plan, its questions, the comparisons."""
        by_id = {row.row.delivery_id: row for row in rows}
        if self.rules.profile.has_feed:
            self.read_feed(by_id.values())
        for row in by_id.values():
            if row.absent_since is not None:
                row.row = replace(row.row, absent_for=self.now() - row.absent_since)
        planned = plan([row.row for row in by_id.values()], rules=self.rules, now=self.now())
        outcomes = list(planned.outcomes)
        for question in planned.questions:
            self.reconciler.submit(question)
        for answer in self._answers(len(planned.questions)):
            assert isinstance(answer, StudyAnswer)
            assert answer.error == ""
            for finding in answer.findings:
                verdict = judge(finding, rules=self.rules)
                if verdict is NextStep.COMPARE:
                    (copy,) = finding.copies
                    assert finding.row.path is not None
                    sameness = compare(finding.row.path, copy)
                    copy.unlink()
                    verdict = judge_comparison(finding.row, sameness, rules=self.rules, now=finding.asked_at)
                assert isinstance(verdict, Outcome)
                outcomes.append(verdict)
        assert list(self.scratch.iterdir()) == [], "no copy is left behind"
        for outcome in outcomes:
            by_id[outcome.delivery_id].take(outcome, now=self.now())

    def settle(self, rows: Iterable[Row], *, rounds: int = 12) -> None:
        """Ask, and jump over the waits, until no row is STORED or UNCERTAIN any more."""
        rows = list(rows)
        for _ in range(rounds):
            open_rows = [row for row in rows if row.state in {State.STORED, State.UNCERTAIN}]
            if not open_rows:
                return
            self.ask_once(open_rows)
            waits = [row.history[-1].wait for row in open_rows if row.state in {State.STORED, State.UNCERTAIN}]
            self.jumped += max((wait for wait in waits if wait is not None), default=timedelta(0))

    def _answers(self, count: int) -> list[FeedAnswer | StudyAnswer]:
        answers: list[FeedAnswer | StudyAnswer] = []

        def came() -> bool:
            answers.extend(self.reconciler.collect())
            return len(answers) >= count

        wait_for(came)
        return answers


def compare(ours: Path, theirs: Path) -> Sameness:
    """Compare two files as a reader does, in this process."""
    contents = []
    for path in (ours, theirs):
        fd = os.open(path, os.O_RDONLY)
        try:
            found = inspect(fd)
        finally:
            os.close(fd)
        contents.append(
            Content(
                transfer_syntax=found.transfer_syntax,
                digest=found.digest,
                meta_digest=found.meta_digest,
                dataset_offset=found.dataset_offset,
                size_bytes=found.size_bytes,
            )
        )
    sameness = compare_content(*contents)
    return Sameness.OTHER if sameness is Sameness.COMPARE else sameness
