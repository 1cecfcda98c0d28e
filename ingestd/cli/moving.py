"""Whether a server at another address has what was confirmed at the former one: a sample of it, compared."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ingestd.config import Config, Destination
from ingestd.daemon.settings import client_of, profile_from
from ingestd.dicomweb import DicomWebError
from ingestd.ledger import Ledger, queries
from ingestd.lifecycle import Sameness, Unproven
from ingestd.reconciler import Finding, StudyRows, audit
from ingestd.sender import probe_profile

from .audit import Comparer

# The newest: a copy of the server that was made too early lacks these.
_SAMPLE = 10
_AT_MOST = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """What a look at the new address came to: rows that are there with our content, and those that are not."""

    found: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    error: str = ""


def look_at_sample(config: Config, destination: Destination, ledger: Ledger) -> Sampled:
    """Ask this server for what was confirmed last; ``ledger`` is the one that the destination has."""
    rows = queries.unproven_rows(ledger, queries.newest_confirmed(ledger, limit=_SAMPLE))
    if not rows:
        return Sampled()
    by_study: dict[str, list[Unproven]] = defaultdict(list)
    for row in rows:
        by_study[row.identity.study_uid].append(row)
    found: list[int] = []
    try:
        with ExitStack() as stack:
            client = stack.enter_context(client_of(destination))
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="move-", dir=config.spool.path)))
            comparer = stack.enter_context(Comparer(config))
            profile = profile_from(destination) or probe_profile(client)
            for study in audit(
                client,
                [StudyRows(study_uid=uid, rows=tuple(each)) for uid, each in by_study.items()],
                scratch=scratch,
                utc_now=lambda: datetime.now(UTC),
                share=1.0,
                budget=_AT_MOST,
                original=profile.gives_original,
            ):
                if study.error:
                    return Sampled(error=study.error)
                found += [each.row.delivery_id for each in study.findings if _is_ours(each, comparer)]
    except DicomWebError as error:
        return Sampled(error=str(error))
    return Sampled(found=tuple(found), missing=tuple(sorted({row.delivery_id for row in rows} - set(found))))


def _is_ours(finding: Finding, comparer: Comparer) -> bool:
    """Whether the server's copy has our content; where our file is gone, by its digest alone."""
    if finding.sameness is Sameness.SAME:
        return True
    ours = finding.row.path
    return ours is not None and any(comparer.compare(ours, str(copy))[0] is Sameness.SAME for copy in finding.copies)
