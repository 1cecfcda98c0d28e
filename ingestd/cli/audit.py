"""The whole ledger against the server, study by study: for ``ingestd reconcile --full``.

The reconciler looks and judges; here its findings are married to the ledger, as the daemon does it for rows that are
due. It runs beside a daemon: each move is the table's own, and a row that the daemon moved meanwhile is left alone.
"""

from __future__ import annotations

import queue
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from ingestd.clocks import boottime
from ingestd.config import Config, agreement_of
from ingestd.daemon.copy_comparison import sameness_of
from ingestd.daemon.sending import sending_config
from ingestd.daemon.settings import backoff_of, client_of, profile_from, reader_limits_of, rules_of
from ingestd.dicomweb import DicomWebClient, DicomWebError
from ingestd.inbox import Spool
from ingestd.ledger import Choice, Ledger, moves, queries
from ingestd.lifecycle import Identity, Kind, Outcome, Sameness, State, Unproven
from ingestd.reader import CompareJob, ReaderPool
from ingestd.reconciler import (
    Finding,
    NextStep,
    Rules,
    StudyAudit,
    StudyRows,
    audit,
    judge,
    judge_comparison,
    may_be_foreign,
    unknown_studies,
)
from ingestd.sender import probe_profile

from .common import pages


@dataclass(kw_only=True)
class Report:
    """What the audit found."""

    studies_known: int = 0
    studies: int = 0
    agree: int = 0
    compared: int = 0
    here_only: list[Unproven] = field(default_factory=list)
    different: list[Unproven] = field(default_factory=list)
    failed_but_there: list[Unproven] = field(default_factory=list)
    not_told: list[Unproven] = field(default_factory=list)
    there_only: list[Identity] = field(default_factory=list)
    studies_there_only: list[str] = field(default_factory=list)
    is_complete: bool = False
    error: str = ""

    def as_plain(self) -> dict[str, Any]:
        return {
            "studies_known": self.studies_known,
            "studies": self.studies,
            "agree": self.agree,
            "compared": self.compared,
            "here_only": [_row(row) for row in self.here_only],
            "different": [_row(row) for row in self.different],
            "failed_but_there": [_row(row) for row in self.failed_but_there],
            "not_told": [_row(row) for row in self.not_told],
            "there_only": [_identity(one) for one in self.there_only],
            "studies_there_only": self.studies_there_only,
            "complete": self.is_complete,
            "error": self.error or None,
        }


def _row(row: Unproven) -> dict[str, Any]:
    return {"id": row.delivery_id, "state": str(row.state)} | _identity(row.identity)


def _identity(identity: Identity) -> dict[str, str]:
    return {"study_uid": identity.study_uid, "series_uid": identity.series_uid, "sop_uid": identity.sop_uid}


def open_as_daemon(config: Config, spool: Spool) -> Ledger:
    """Open the ledger as the daemon of this spool sees it, and beside that: rows with their files, the destinations."""
    return Ledger.open(
        config.ledger,
        host=spool.host,
        spool=spool.path,
        destinations=config.addresses,
        create=False,
        key=config.spool.search_key,
        beside=True,
        agreement=agreement_of(sending_config(config)),  # it takes nothing from the folders
    )


def audit_all(
    config: Config, name: str, *, share: float, budget: timedelta, progress: Callable[[int, int], None] | None
) -> Report:
    """Audit one destination study by study until all are done, the budget is spent, or it does not answer."""
    with ExitStack() as stack:
        spool = Spool(config.spool.path)
        ledger = stack.enter_context(open_as_daemon(config, spool))
        client = stack.enter_context(client_of(config.destinations[name]))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audit-", dir=spool.path)))
        auditor = _Auditor(config, name, ledger, client, stack, progress)
        try:
            auditor.run(scratch, share=share, budget=budget)
        except DicomWebError as error:
            auditor.report.error = str(error)
        return auditor.report


class _Auditor:
    """One audit under way."""

    def __init__(
        self,
        config: Config,
        name: str,
        ledger: Ledger,
        client: DicomWebClient,
        stack: ExitStack,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.report = Report()
        self._config = config
        self._destination = config.destinations[name]
        self._whole, self._ledger = ledger, ledger.at(name)
        self._client = client
        self._progress = progress
        self._comparer = stack.enter_context(Comparer(config))
        # Of the study under way: copies that matched, and what differs in one that did not.
        self._matches: Counter[Kind] = Counter()
        self._differs: str | None = None

    def run(self, scratch: Path, *, share: float, budget: timedelta) -> None:
        """Audit every study of the ledger, then ask which other studies the server has."""
        report = self.report
        ends_at = boottime() + budget.total_seconds()
        profile = profile_from(self._destination) or probe_profile(self._client)
        jump = next(iter(queries.jumps(self._ledger, limit=1)), None)
        rules = replace(rules_of(self._config, self._destination, profile), jump=jump)
        known = sorted(set(self._study_uids()))
        report.studies_known = len(known)

        def audited(studies: Iterable[str], share: float) -> Iterator[StudyAudit]:
            return audit(
                self._client,
                (StudyRows(study_uid=uid, rows=tuple(self._rows_of(uid))) for uid in studies),
                scratch=scratch,
                utc_now=_now,
                share=share,
                budget=timedelta(seconds=ends_at - boottime()),
                original=profile.gives_original,
            )

        for found in audited(known, share):
            self._take(found, rules)
            if found.error:
                report.error = found.error
                return
            if self._progress is not None:
                self._progress(report.studies, report.studies_known)
        if report.studies < report.studies_known:
            return
        self._look_again(audited, rules, ends_at)
        ours = set(known)
        for uid in unknown_studies(self._client):
            if uid not in ours:
                report.studies_there_only.append(uid)
            if boottime() >= ends_at:
                return
        report.is_complete = True

    def _look_again(
        self, audited: Callable[[Iterable[str], float], Iterator[StudyAudit]], rules: Rules, ends_at: float
    ) -> None:
        """Look a second time for what was absent: only that proves it, and makes the row DELETED."""
        absent = self.report.here_only
        if not absent:
            return
        wait = max(rules.wait_between_absences(row) for row in absent).total_seconds() + 0.1
        if boottime() + wait >= ends_at:
            return
        began = boottime()
        time.sleep(wait)
        for found in audited(sorted({row.identity.study_uid for row in absent}), 0.0):
            gone = {row.delivery_id for row in absent}
            self._apply([finding for finding in found.findings if finding.row.delivery_id in gone], rules, began)

    def _study_uids(self) -> Iterator[str]:
        here = Choice(destination=self._ledger.destination_id)
        for page in pages(partial(queries.studies, self._ledger, here, limit=1000)):
            yield from (study.study_uid for study in page)

    def _rows_of(self, study_uid: str) -> Iterator[Unproven]:
        here = Choice(study_uid=study_uid, destination=self._ledger.destination_id)
        for page in pages(partial(queries.entries, self._ledger, here)):
            rows = queries.unproven_rows(self._ledger, [entry.delivery_id for entry in page])
            # What waits for its proof is the daemon's: here it is proven only where it is compared.
            yield from (replace(row, sampled=row.state is State.STORED) for row in rows)

    def _take(self, found: StudyAudit, rules: Rules) -> None:
        report = self.report
        settled = ((finding.row, self._settle(finding, rules)) for finding in found.findings)
        self._write([(row, outcome) for row, outcome in settled if outcome is not None])
        self._matches.clear()
        self._differs = None
        report.here_only += found.here_only
        report.there_only += found.there_only
        report.studies += 1

    def _apply(self, findings: Iterable[Finding], rules: Rules, seen_absent: float) -> None:
        judged: list[tuple[Unproven, Outcome | NextStep]] = []
        for finding in findings:
            if finding.present is False:
                row = replace(finding.row, absent_for=timedelta(seconds=finding.asked_boot - seen_absent))
                judged.append((finding.row, judge(replace(finding, row=row), rules=rules)))
        self._write([(row, outcome) for row, outcome in judged if isinstance(outcome, Outcome)])

    def _write(self, judged: list[tuple[Unproven, Outcome]]) -> None:
        """Have the outcomes carried out whose rows are still as they were judged."""
        if judged:
            with self._ledger.transaction() as tx:
                rows = {
                    row.delivery_id: row for row in queries.unproven_rows(tx, [row.delivery_id for row, _ in judged])
                }
                # Begun by then. A person may have said meanwhile that the server is elsewhere: this one is not asked
                # any more.
                self._whole.expect_destinations(self._config.addresses)
                # Whether it is to be compared is this audit's own, and nothing of the row's.
                outcomes = [
                    outcome for row, outcome in judged if replace(row, sampled=False) == rows.get(row.delivery_id)
                ]
                moves.apply(tx, outcomes, now=_now(), backoff=backoff_of(self._config), jitter=0.0)
                if self._matches:
                    moves.count_matches(tx, self._matches)
                if self._differs is not None:
                    moves.mismatch(tx, studies=(), differs=self._differs, stops=False, now=_now())

    def _settle(self, finding: Finding, rules: Rules) -> Outcome | None:
        """Judge one finding, comparing the fetched copy where that is what it takes."""
        report = self.report
        sameness, differs = finding.sameness, ""
        for copy in finding.copies:
            if finding.row.path is not None and sameness is not Sameness.SAME:
                sameness, differs = self._comparer.compare(finding.row.path, str(copy))
            copy.unlink(missing_ok=True)
        report.compared += sameness is not None
        if finding.row.state is State.FAILED:
            self._take_failed(finding.row, sameness)
            return None
        judged = judge(finding, rules=rules)
        if judged is NextStep.COMPARE and sameness is not None:
            judged = judge_comparison(finding.row, sameness, rules=rules, now=_now(), differs=differs)
        if sameness is Sameness.SAME:
            self._matches[finding.row.kind] += 1
        if not isinstance(judged, Outcome):
            # There, and nothing more was asked; or fetched, and it could not be compared now.
            settled = finding.present is True and not finding.copies
            self._count(finding, agrees=settled)
            return None
        if judged.state is State.CONFLICT:
            report.different.append(finding.row)
            if finding.row.state is not State.UNCERTAIN and not may_be_foreign(finding.row, rules):
                self._differs = differs
                judged = replace(judged, mismatch=True)
        elif finding.present is not False:
            self._count(finding, agrees=finding.present is True)
        return judged

    def _take_failed(self, row: Unproven, sameness: Sameness | None) -> None:
        """Tell of a file that was given up and is there; only a person's retry moves it."""
        report = self.report
        found = {Sameness.SAME: report.failed_but_there, None: report.not_told}.get(sameness, report.different)
        found.append(row)

    def _count(self, finding: Finding, *, agrees: bool) -> None:
        if agrees:
            self.report.agree += 1
        else:
            self.report.not_told.append(finding.row)


class Comparer:
    """A reader process that compares files, one at a time; it is started by the first."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def _readers(self) -> ReaderPool:
        limits = reader_limits_of(self._config)
        pool = ReaderPool(processes=1, limits=limits, wake=lambda: self._bell.put(None))
        self._stack.callback(pool.close)
        return pool

    def compare(self, ours: str, theirs: str) -> tuple[Sameness | None, str]:
        """Say how two files compare, and what differs; None where that could not be told."""
        self._readers.submit(CompareJob(key=0, ours=ours, theirs=theirs))
        while True:
            self._bell.get()
            for read in self._readers.collect():
                return sameness_of(read)


def _now() -> datetime:
    return datetime.now(UTC)
