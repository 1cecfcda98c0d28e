"""The server's copies against our files: what the readers are given for it, and what they come to.

A copy is compared with the row's file; by its digests alone where the file is gone or was altered since it was sent:
such a file says nothing of what was. Of several copies that the server has under one name one has to be ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ingestd.daemon.judgement import ADMISSIBLE
from ingestd.daemon.reader_client import ReaderClient
from ingestd.fs.places import remove_scratch
from ingestd.lifecycle import Sameness, compare_content
from ingestd.reader import CompareJob, InspectJob, Read, Verdict
from ingestd.reconciler import Finding


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What a finding's copies came to; the last of them is still the caller's to unlink."""

    finding: Finding
    sameness: Sameness | None  # None: nothing could be told
    differs: str = ""
    waits: str = ""  # why nothing could be


class CopyComparison:
    """Has the readers compare. Main thread only."""

    def __init__(self, reader_client: ReaderClient, is_lost: Callable[[str | None], bool]) -> None:
        """``is_lost`` says whether a row's file is gone for certain."""
        self._reader_client = reader_client
        self._is_lost = is_lost

    def start(self, finding: Finding) -> None:
        """Have the first of a finding's copies compared."""
        ours, theirs, digest = finding.row.path, str(finding.copies[0]), finding.row.content.digest
        if ours is None:
            self._inspect(finding)
            return
        self._reader_client.ask(
            self, finding, lambda key: CompareJob(key=key, ours=ours, theirs=theirs, our_digest=digest)
        )

    def take(self) -> list[Compared]:
        """Go on with what needs another look; give what has come to an end."""
        ended: list[Compared] = []
        for finding, read in self._reader_client.take(self):
            assert isinstance(finding, Finding)
            compared = self.result_of(finding, read)
            if compared is not None:
                ended.append(compared)
        return ended

    def result_of(self, finding: Finding, read: Read) -> Compared | None:
        """Say what a reader's answer comes to; None where another look was begun."""
        is_of_both = isinstance(read.job, CompareJob)
        if read.lost or (is_of_both and self._is_lost(finding.row.path)):
            self._inspect(finding)
            return None
        sameness, differs = _sameness(finding, read)
        first, *others = finding.copies
        if sameness is not Sameness.SAME and others:
            remove_scratch(first)
            self.start(replace(finding, copies=tuple(others)))
            return None
        return Compared(finding=finding, sameness=sameness, differs=differs, waits=read.waits)

    def _inspect(self, finding: Finding) -> None:
        theirs, like = str(finding.copies[0]), finding.row.content.digest
        self._reader_client.ask(self, finding, lambda key: InspectJob(key=key, path=theirs, like=like))


def _sameness(finding: Finding, read: Read) -> tuple[Sameness | None, str]:
    """Say how the copy compares with the row, and what differs; None when nothing could be told."""
    found = read.inspection
    if found is None:
        return (Sameness.OTHER, read.refused) if read.refused else sameness_of(read)
    if found.verdict in (Verdict.CHANGED, Verdict.UNREADABLE):
        return None, ""
    if found.verdict not in ADMISSIBLE:
        return Sameness.NOT_WHOLE, found.reason_text
    theirs = replace(
        finding.row.content,
        transfer_syntax=found.transfer_syntax,
        digest=found.digest,
        meta_digest=found.meta_digest,
    )
    compared = compare_content(finding.row.content, theirs)
    # Our bytes are gone: a canonical digest of ours cannot be had, so unequal bytes are a person's to judge.
    return Sameness.OTHER if compared is Sameness.COMPARE else compared, ""


def sameness_of(read: Read) -> tuple[Sameness | None, str]:
    """Say how a server's copy compares with our file, and what differs; None when nothing could be told."""
    if read.sameness:
        return Sameness(read.sameness), read.differs
    # Read whole from an answer that was complete: this is what the server has.
    return (Sameness.NOT_WHOLE, read.differs) if read.waits and read.differs else (None, "")
