"""``ingestd reconcile --full``: what only the ledger has, what only the server has, and what differs.

Study by study, within a time budget, and never from memory: the caller gives the ledger's rows a study at a time, and
what is found comes back before the next study is touched. An absence seen here counts like any other: once is a
question, twice is an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import random

from ingestd.clocks import boottime
from ingestd.dicomweb import DicomWebClient, DicomWebError, uid_of
from ingestd.lifecycle import HOLDING, Identity, Pause, State, Unproven
from ingestd.outages import pause_of, stops_queries
from ingestd.reconciler.asking import StudyAsker, list_identities
from ingestd.reconciler.questions import Finding, StudyQuestion

# What the server is said to have; every other row is only known, so that it is not counted as the server's own.
EXPECTED = frozenset({State.STORED, State.CONFIRMED})


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRows:
    """Everything that the ledger has of one study, for an audit."""

    study_uid: str
    rows: tuple[Unproven, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyAudit:
    """How ledger and server compare for one study.

    ``here_only``: rows that the server does not have (asked once: an absence counts when it was seen twice).
    ``there_only``: what the server has and the ledger does not know. ``findings``: everything that was found of the
    rows, copies to compare among them. ``error``: the study could not be audited, or not to its end.
    """

    study_uid: str
    findings: tuple[Finding, ...] = ()
    here_only: tuple[Unproven, ...] = ()
    there_only: tuple[Identity, ...] = ()
    error: str = ""
    pause: Pause | None = None


def audit(
    client: DicomWebClient,
    studies: Iterable[StudyRows],
    *,
    scratch: Path,
    utc_now: Callable[[], datetime],
    share: float = 0.0,
    budget: timedelta | None = None,
    original: bool = False,
) -> Iterator[StudyAudit]:
    """Audit study after study until there is no more, the budget is spent, or the server does not answer.

    ``share`` of the instances (0 none, 1 all) are retrieved and compared; a copy that is not byte for byte ours lies in
    ``scratch`` for the caller. ``original`` as in StudyQuestion. A study that is begun is finished.
    """
    ends_at = None if budget is None else boottime() + budget.total_seconds()
    for study in studies:
        if ends_at is not None and boottime() >= ends_at:
            return
        found = _audit_study(client, study, scratch=scratch, utc_now=utc_now, share=share, original=original)
        yield found
        if found.pause is not None:
            return


def unknown_studies(client: DicomWebClient) -> Iterator[str]:
    """List the studies of the server, for the caller to say which of them its ledger has never heard of.

    Raises DicomWebError where the server cannot be searched.
    """
    for item in client.find_studies(page_size=100):
        if uid := uid_of(item, "StudyInstanceUID"):
            yield uid


def _is_left_unsent(row: Unproven, rows: Sequence[Unproven]) -> bool:
    """Whether it is FAILED, and no other row accounts for what the server has under its UIDs."""
    return row.state is State.FAILED and not any(
        other.identity == row.identity and other.state in HOLDING for other in rows
    )


def _audit_study(
    client: DicomWebClient,
    study: StudyRows,
    *,
    scratch: Path,
    utc_now: Callable[[], datetime],
    share: float,
    original: bool,
) -> StudyAudit:
    findings: list[Finding] = []
    try:
        listed = frozenset(list_identities(client, study.study_uid))
        shown: list[Unproven] = []
        compared: list[Unproven] = []
        for row in study.rows:
            if row.identity in listed and (row.state is State.DELETED or _is_left_unsent(row, study.rows)):
                compared.append(row)  # there all the same: ours, or somebody else's?
            elif row.state in EXPECTED:
                is_drawn = random() < share  # noqa: S311 - a sample, no secret
                (compared if row.needs_content_check or is_drawn else shown).append(row)
        for rows, fetch in ((shown, False), (compared, True)):
            question = StudyQuestion(study_uid=study.study_uid, rows=tuple(rows), fetch=fetch, original=original)
            StudyAsker(client, question, scratch, utc_now, listed=listed, findings=findings).ask()
    except DicomWebError as error:
        pause = pause_of(error) if stops_queries(error) else None
        return StudyAudit(study_uid=study.study_uid, findings=tuple(findings), error=str(error), pause=pause)
    known = {row.identity for row in study.rows}
    return StudyAudit(
        study_uid=study.study_uid,
        findings=tuple(findings),
        here_only=tuple(finding.row for finding in findings if finding.present is False),
        there_only=tuple(sorted(listed - known, key=lambda one: (one.series_uid, one.sop_uid))),
    )
