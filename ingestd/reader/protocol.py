"""What is asked of a reader, what comes back, and how both cross the pipes: one JSON value a line.

Files that are read are named by their places (``places``). The parent believes nothing a child says: a child has read
hostile bytes, so every answer is checked again, field by field, before it becomes a Read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any, Protocol, TypeAlias

from ingestd.digests import is_digest
from ingestd.instance.facts import NOTES, Inspection, Verdict
from ingestd.sameness import Sameness, SourceStat

LINE_MOST = 1 << 16
_TEXT_MOST = 4096
_FIELDS = tuple(each.name for each in fields(Inspection))
_values_of = attrgetter(*_FIELDS)
# As JSON has them, by what the dataclass says.
_JSON_TYPES = {"Verdict": str, "str": str, "int": int, "bool": bool, "tuple[str, ...]": list}
_TYPES = [_JSON_TYPES[str(each.type)] for each in fields(Inspection)]
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
_INSPECTED = {"n", "i"}
_uids_of = itemgetter("study_uid", "series_uid", "sop_uid", "sop_class_uid", "transfer_syntax")
_digests_of = itemgetter("digest", "meta_digest", "sha256")
_texts_of = itemgetter(
    *("reason_text", "modality", "station", "institution", "department", "source_ae", "study_description"),
    *("patient_id", "accession_number"),
)
_counts_of = itemgetter("dataset_offset", "size_bytes", "device", "inode")
# ASCII only: file names with surrogates survive as \udcXX, and no value can hold a line feed.
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode
_SAMENESS = (Sameness.SAME.value, Sameness.OTHER.value, Sameness.OTHER_ENCODING.value)  # no set: it may be a list
_OF_TWO = ("", "ours", "theirs")

# Study, series, class and syntax are the same for many files in a row.
_uid = lru_cache(64)(re.compile(r"[0-9.]{0,64}", re.ASCII).fullmatch)


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectJob:
    """Read one file whole and say what it is. ``key`` is the caller's own and comes back untouched.

    With ``expect``, a file that is another one, or has changed, is CHANGED. With ``durable`` the descriptor is
    fsynced after it was read; if that fails the answer is ``waits``, never a verdict. With ``patient``, a file that is
    more hole than data is ZEROS without being read: its writer may still fill it. What has a higher ``priority`` is
    read first. The digests are taken ``like`` this one (``ingestd.digests``); with ``sha256`` that of the file, too.
    """

    key: int
    path: str  # os.fsdecode'd; surrogates are kept
    expect: SourceStat | None = None
    durable: bool = False
    patient: bool = False
    priority: int = 0
    like: str = ""
    sha256: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReencodeJob:
    """Write the file anew as Explicit VR Little Endian at ``destination``, durably, and inspect that.

    A file that is there is replaced; ``destination`` + ".part" may be left behind by a crash.
    """

    key: int
    path: str
    destination: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareJob:
    """Say whether two files hold the same object; the canonical digests are taken only if nothing less decides.

    A file whose data set has another digest than is given here ("": any) is not the one that was meant: it is ``lost``.
    """

    key: int
    ours: str
    theirs: str
    our_digest: str = ""
    their_digest: str = ""


Job: TypeAlias = InspectJob | ReencodeJob | CompareJob


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """What one job came to. Exactly one of the result fields, ``died``, ``waits``, ``refused`` or ``lost`` is set.

    ``inspection`` answers an InspectJob, and a ReencodeJob with the facts of the destination. ``sameness`` is
    "same", "other" or "other_encoding" (Sameness). ``died``: this job killed its child, burnt CPU past its
    limit or met a fault of ours; count it as poison (``cause`` says how, for the log; no names, no values). ``waits``:
    nothing is known of the file; try later. ``refused``: the file was read and the job cannot be done on it (not
    whole, an encoding that is not re-encoded); do not try again. An InspectJob is never refused. ``lost``: "ours" or
    "theirs" is not the file that a CompareJob is about any more.

    ``not_whole`` says beside ``waits`` which of two files, "ours" or "theirs", was read and is no whole object: another
    try will find the same. ``differs`` says beside ``sameness``, in words without patient data, what is not the same,
    and why theirs is not whole.
    """

    job: Job
    inspection: Inspection | None = None
    sameness: str | None = None
    differs: str = ""
    died: bool = False
    cause: str = ""
    waits: str = ""
    refused: str = ""
    lost: str = ""
    not_whole: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderLimits:
    """What a child may use.

    A job that used more CPU time than ``seconds`` + bytes of work / ``bytes_per_second`` has died (bytes of work: read,
    inflated and written so far; its size alone earns it nothing). One that neither used CPU nor did any work for
    ``stall_seconds`` waits; slow is not stalled.
    """

    seconds: float = 10.0
    bytes_per_second: int = 2_500_000
    stall_seconds: float = 120.0
    address_space_bytes: int = 512 << 20
    open_files: int = 64
    ahead_jobs: int = 64  # jobs handed to a child before it has answered the first
    ahead_bytes: int = 8_000_000


class Readers(Protocol):
    """Whoever reads for a daemon: the ReaderPool, or what a simulation puts in its place."""

    def submit_all(self, jobs: Sequence[Job]) -> None: ...
    def collect(self) -> list[Read]: ...
    @property
    def in_flight(self) -> int: ...
    def is_healthy(self) -> bool: ...
    @property
    def trouble(self) -> str: ...
    def close(self) -> None: ...


class ProtocolError(Exception):
    """A child's answer is not one that a sane child gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderAnswer:
    """One answer as it crosses the pipe; ``serial`` is the pool's number of the job."""

    serial: int
    inspection: Inspection | None = None
    sameness: str | None = None
    differs: str = ""  # beside a sameness, or theirs ``not_whole``: in which way theirs is not ours
    waits: str = ""
    refused: str = ""
    lost: str = ""  # which of two files is another one by now
    not_whole: str = ""  # beside ``waits``: which of two files is no whole object
    crashed: str = ""  # an exception of ours: its class and place
    short_of_memory: bool = False


def encode_limits(limits: ReaderLimits, progress_fd: int) -> bytes:
    """Make the first line a child reads."""
    return _line([progress_fd, limits.address_space_bytes, limits.open_files])


def decode_limits(line: bytes) -> tuple[int, ReaderLimits]:
    """Give the descriptor of the SharedProgress, and the limits."""
    progress_fd, address_space, open_files = json.loads(line)
    return progress_fd, ReaderLimits(address_space_bytes=address_space, open_files=open_files)


def encode_job(serial: int, job: Job) -> bytes:
    """Make the line that asks for this job."""
    if isinstance(job, InspectJob):
        expect = job.expect
        stat = None if expect is None else [expect.device, expect.inode, expect.size_bytes, expect.mtime_ns]
        return _line([serial, "inspect", job.path, stat, job.durable, job.patient, job.like, job.sha256])
    if isinstance(job, ReencodeJob):
        return _line([serial, "reencode", job.path, job.destination])
    return _line([serial, "compare", job.ours, job.theirs, job.our_digest, job.their_digest])


def decode_job(line: bytes) -> tuple[int, Job]:
    """Give a job and its serial, which stands in for the caller's key."""
    serial, name, *rest = _from_json(line.decode("ascii"))
    if name == "inspect":
        path, stat, durable, patient, like, sha256 = rest
        expect = None
        if stat is not None:
            expect = SourceStat(device=stat[0], inode=stat[1], size_bytes=stat[2], mtime_ns=stat[3])
        return serial, InspectJob(
            key=serial, path=path, expect=expect, durable=durable, patient=patient, like=like, sha256=sha256
        )
    if name == "reencode":
        return serial, ReencodeJob(key=serial, path=rest[0], destination=rest[1])
    ours, theirs, our_digest, their_digest = rest
    return serial, CompareJob(key=serial, ours=ours, theirs=theirs, our_digest=our_digest, their_digest=their_digest)


def encode_answer(answer: ReaderAnswer) -> bytes:
    """Make the line with an answer; only what is set is sent."""
    content: dict[str, Any] = {"n": answer.serial}
    if answer.inspection is not None:
        content["i"] = _values_of(answer.inspection)
    others = {
        "s": answer.sameness,
        "d": answer.differs,
        "w": answer.waits,
        "r": answer.refused,
        "l": answer.lost,
        "h": answer.not_whole,
        "x": answer.crashed,
        "m": answer.short_of_memory,
    }
    return _line(content | {key: value for key, value in others.items() if value})


def decode_answer(line: bytes) -> ReaderAnswer:
    """Check an answer and take it in. Raises ProtocolError."""
    try:
        content: Any = _from_json(line.decode("ascii"))
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(content, dict) or type(content.get("n")) is not int or content["n"] < 0:
        raise ProtocolError("no serial number")
    if content.keys() == _INSPECTED:  # nearly every answer
        return ReaderAnswer(serial=content["n"], inspection=_inspection(content["i"]))
    sameness, lost, not_whole = content.get("s"), content.get("l", ""), content.get("h", "")
    if sameness is not None and sameness not in _SAMENESS:
        raise ProtocolError("no sameness")
    if lost not in _OF_TWO or not_whole not in _OF_TWO:
        raise ProtocolError("neither of the two files")
    answer = ReaderAnswer(
        serial=content["n"],
        inspection=None if content.get("i") is None else _inspection(content["i"]),
        sameness=sameness,
        differs=_text(content.get("d", "")),
        waits=_text(content.get("w", "")),
        refused=_text(content.get("r", "")),
        lost=lost,
        not_whole=not_whole,
        crashed=_text(content.get("x", "")),
        short_of_memory=content.get("m") is True,
    )
    said = (sameness, lost, answer.waits, answer.refused, answer.crashed, answer.inspection, answer.short_of_memory)
    if sum(map(bool, said)) != 1:
        raise ProtocolError("not exactly one answer")
    return answer


def read_of(job: Job, answer: ReaderAnswer) -> Read:
    """Say what a job came to, by an answer other than ``short_of_memory``."""
    if answer.crashed:
        return Read(job=job, died=True, cause=f"internal error: {answer.crashed}")
    if answer.refused and isinstance(job, InspectJob):
        return Read(job=job, died=True, cause="an inspection was refused")
    return Read(
        job=job,
        inspection=answer.inspection,
        sameness=answer.sameness,
        differs=answer.differs,
        waits=answer.waits,
        refused=answer.refused,
        lost=answer.lost,
        not_whole=answer.not_whole,
    )


def _inspection(values: Any) -> Inspection:
    """Check the fields of an Inspection, first by their types; the order is that of the dataclass."""
    if not isinstance(values, list) or list(map(type, values)) != _TYPES:
        raise ProtocolError("no inspection")
    named: dict[str, Any] = dict(zip(_FIELDS, values, strict=True))
    if named["verdict"] not in _VERDICTS:
        raise ProtocolError("no verdict")
    if not all(map(_uid, _uids_of(named))):
        raise ProtocolError("no UID")
    if not all(not each or is_digest(each) for each in _digests_of(named)):
        raise ProtocolError("no digest")
    if max(map(len, _texts_of(named))) > _TEXT_MOST:
        raise ProtocolError("no text")
    if min(_counts_of(named)) < 0:
        raise ProtocolError("no count")
    notes = named["notes"]
    if notes and not all(isinstance(note, str) and note in NOTES for note in notes):
        raise ProtocolError("no notes")
    named["verdict"] = _VERDICTS[named["verdict"]]
    named["notes"] = tuple(notes)
    return Inspection(**named)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_MOST:
        raise ProtocolError("no text")
    return value


def _line(content: Any) -> bytes:
    return _to_json(content).encode("ascii") + b"\n"
