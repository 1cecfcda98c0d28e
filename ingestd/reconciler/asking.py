"""Asking the server about a study's instances: listed by a query, there when retrieved, and with which content.

Absent is what the query lacks *and* a GET answers with 404; anything less is "could not be told". A server that cannot
be searched at all proves no absence: its 404 may only mean that it has no retrieve either. What a query lists and a GET
of the instance does not find (Orthanc, where the SOP Instance UID stands in two series) is looked for in the series.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from ingestd.clocks import boottime
from ingestd.dicomweb import DicomWebClient, DicomWebError, NotFound, Retrieval, Unintelligible, uid_of
from ingestd.digests import HeadAndRest
from ingestd.fs.durable import new_file, write_all
from ingestd.lifecycle import Content, Identity, Pause, Sameness, Unproven
from ingestd.outages import stops_queries
from ingestd.reconciler.questions import Finding, StudyAnswer, StudyQuestion

# Up to so many rows, a query for each instance costs less than listing a study of any size.
FEW_ROWS = 3
# Copies up to this size are looked at in memory and only put on disk if they differ.
IN_MEMORY_BYTES = 4_000_000
# An answer is broken off beyond so many times our file's size and this: no encoding makes so much of one object.
COPY_GROWTH = 8
COPY_SPARE_BYTES = 64_000_000
# No study has more instances; a listing without an end is no listing.
MOST_LISTED = 1_000_000
# A series is looked through for one instance up to this size.
SERIES_BYTES = 16_000_000_000
# An instance's UID stands within so many bytes from its beginning.
HEAD_BYTES = 1 << 16
# Of what a server has under the UIDs of one instance, so many copies are compared.
MOST_COPIES = 4


def list_identities(client: DicomWebClient, study_uid: str, row: Unproven | None = None) -> Iterator[Identity]:
    """List what the server says it has of a study, or whether it has one instance; pages by itself."""
    series_uid = row.identity.series_uid if row is not None else None
    filters = {"SOPInstanceUID": row.identity.sop_uid} if row is not None else None
    for count, item in enumerate(client.find_instances(filters, study_uid=study_uid, series_uid=series_uid)):
        if count >= MOST_LISTED:
            raise Unintelligible(f"the server lists more than {MOST_LISTED} instances of one study")
        yield Identity(
            study_uid=study_uid,
            series_uid=series_uid or uid_of(item, "SeriesInstanceUID"),
            sop_uid=uid_of(item, "SOPInstanceUID"),
        )


@dataclass(slots=True)
class StudyAsker:
    """Answers one StudyQuestion, row by row; what it found before a failure counts.

    ``listed`` is what a query has shown already; where none was made, one is made when it is first needed.
    """

    client: DicomWebClient
    question: StudyQuestion
    scratch: Path
    utc_now: Callable[[], datetime]
    listed: frozenset[Identity] | None = None
    findings: list[Finding] = field(default_factory=list)
    clock_offset: timedelta | None = None
    asked_boot: float = 0.0
    cannot_be_searched: bool = False

    def ask(self) -> None:
        """Find out about every row; raises the DicomWebErrors that concern the server as a whole."""
        for row in self.question.rows:
            asked_at, self.asked_boot = self.utc_now(), boottime()
            if not self.question.fetch and self._is_listed(row):
                self.findings.append(Finding(row=row, present=True, asked_at=asked_at))
            else:
                self.findings.append(self._retrieve(row, asked_at))

    def answer(self, *, error: str = "", pause: Pause | None = None) -> StudyAnswer:
        return StudyAnswer(
            question=self.question,
            findings=tuple(self.findings),
            clock_offset=self.clock_offset,
            pause=pause,
            error=error,
        )

    def _is_listed(self, row: Unproven) -> bool | None:
        """Say whether a query lists it; None where queries cannot tell."""
        if self.listed is None and not self.cannot_be_searched:
            try:
                self.listed = frozenset(self._list_wanted())
            except DicomWebError as error:
                if stops_queries(error):
                    raise
                self.cannot_be_searched = True
        return None if self.listed is None else row.identity in self.listed

    def _list_wanted(self) -> set[Identity]:
        """List what of the question's rows the server says it has."""
        study_uid, rows = self.question.study_uid, self.question.rows
        found: set[Identity] = set()
        if len(rows) <= FEW_ROWS:
            for row in rows:
                found.update(list_identities(self.client, study_uid, row))
            return found
        wanted = {row.identity for row in rows}
        for identity in list_identities(self.client, study_uid):
            if identity in wanted:
                found.add(identity)
                if len(found) == len(wanted):
                    break
        return found

    def _retrieve(self, row: Unproven, asked_at: datetime) -> Finding:
        try:
            return self._look_at_copy(row, asked_at)
        except NotFound:
            return self._not_found(row, asked_at)
        except _TooLarge:
            return Finding(row=row, present=True, asked_at=asked_at, sameness=Sameness.OTHER)
        except DicomWebError as error:
            if stops_queries(error):
                raise
            return Finding(row=row, present=None, asked_at=asked_at, note=f"its copy could not be had: {error}")
        except OSError as error:
            why = error.strerror or type(error).__name__
            note = f"its copy could not be kept for the comparison: {why}"
            return Finding(row=row, present=None, asked_at=asked_at, note=note, is_ours=True)

    def _not_found(self, row: Unproven, asked_at: datetime) -> Finding:
        listed = self._is_listed(row)
        if listed is False:
            return Finding(row=row, present=False, asked_at=asked_at, asked_boot=self.asked_boot)
        if listed:
            return self._look_in_series(row, asked_at)
        note = "it cannot be retrieved (404), and this server cannot be searched: absence is not proven so"
        return Finding(row=row, present=None, asked_at=asked_at, note=note)

    def _look_in_series(self, row: Unproven, asked_at: datetime) -> Finding:
        """Find an instance among its series, which takes a request that brings all of it."""
        note = "a query lists it, but it cannot be retrieved (404), alone or with its series"
        uids = row.identity
        try:
            with self.client.retrieve_series(
                uids.study_uid, uids.series_uid, original=self.question.original
            ) as retrieval:
                retrieval.on_bytes = _Allowance(SERIES_BYTES).take
                finding = self._compare_parts(row, retrieval, asked_at, named=uids.sop_uid)
        except (NotFound, _TooLarge):
            return Finding(row=row, present=None, asked_at=asked_at, note=note)
        except DicomWebError as error:
            if stops_queries(error):
                raise
            return Finding(row=row, present=None, asked_at=asked_at, note=f"{note}: {error}")
        return finding if finding is not None else Finding(row=row, present=None, asked_at=asked_at, note=note)

    def _look_at_copy(self, row: Unproven, asked_at: datetime) -> Finding:
        uids = row.identity
        with self.client.retrieve_instance(
            uids.study_uid, uids.series_uid, uids.sop_uid, original=self.question.original
        ) as retrieval:
            if retrieval.server_date is not None:
                self.clock_offset = retrieval.server_date - asked_at
            retrieval.on_bytes = _Allowance(COPY_GROWTH * row.content.size_bytes + COPY_SPARE_BYTES).take
            if not self.question.fetch:
                retrieval.only_part()
                if self._is_listed(row) is False:
                    # It may be found under its SOP Instance UID alone, in another series: no proof of this identity.
                    note = "it can be retrieved, but a query does not list it"
                    return Finding(row=row, present=None, asked_at=asked_at, note=note)
                return Finding(row=row, present=True, asked_at=asked_at)
            finding = self._compare_parts(row, retrieval, asked_at)
        if finding is None:
            note = "its copy could not be had: the server's answer has no part"
            return Finding(row=row, present=None, asked_at=asked_at, note=note)
        return finding

    def _compare_parts(
        self, row: Unproven, retrieval: Retrieval, asked_at: datetime, *, named: str = ""
    ) -> Finding | None:
        """Look at every part, or at those that begin with the UID ``named``; None where there is none.

        There are several where a server tells objects apart by more than their UIDs (Orthanc: by the PatientID).
        """
        others: list[Path] = []
        try:
            for _headers, part in retrieval:
                with _Copy(self.scratch / f"copy-{row.delivery_id}-{secrets.token_hex(8)}", row.content) as copy:
                    while chunk := part.next_chunk():
                        copy.write(chunk)
                    if copy.is_same() and not self.question.keep:
                        _remove(others)
                        return Finding(row=row, present=True, asked_at=asked_at, sameness=Sameness.SAME)
                    if len(others) < MOST_COPIES and copy.names(named):
                        others.append(copy.keep())
        except BaseException:
            _remove(others)
            raise
        if not others:
            return None
        return Finding(row=row, present=True, asked_at=asked_at, copies=tuple(others))


class _TooLarge(Exception):
    """The answer is far larger than what it should be a copy of."""


@dataclass(slots=True)
class _Allowance:
    """How many bytes may still come."""

    left: int

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _TooLarge


def _remove(copies: list[Path]) -> None:
    for copy in copies:
        copy.unlink(missing_ok=True)


class _Copy:
    """A retrieved copy on its way to disk, digested as our own file was: before and after the same offset.

    Where both digests are equal it *is* our file, byte by byte, and need not be read by anybody else.
    """

    def __init__(self, path: Path, ours: Content) -> None:
        self._path = path
        self._ours = ours
        self._digests = HeadAndRest(ours.dataset_offset, like=ours.digest)
        self._size = 0
        self._head = bytearray()
        self._held = bytearray()
        self._fd: int | None = None
        self._is_kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            if not self._is_kept:
                self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        self._digests.update(chunk)
        self._head += memoryview(chunk)[: max(0, HEAD_BYTES - self._size)]
        self._size += len(chunk)
        self._held += chunk
        if len(self._held) > IN_MEMORY_BYTES:
            self._spill()

    def is_same(self) -> bool:
        ours = self._ours
        return self._size == ours.size_bytes and self._digests.texts() == (ours.meta_digest, ours.digest)

    def names(self, uid: str) -> bool:
        """Say whether this UID stands in its beginning, as that of an instance does."""
        return not uid or re.search(rb"(?<![0-9.])%s(?![0-9.])" % re.escape(uid.encode()), self._head) is not None

    def keep(self) -> Path:
        """Put all of it on disk and leave it there."""
        self._spill()
        self._is_kept = True
        return self._path

    def _spill(self) -> None:
        if self._fd is None:
            self._fd = new_file(self._path)
        write_all(self._fd, self._held)
        self._held = bytearray()
