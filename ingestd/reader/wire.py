"""What crosses the pipes: one JSON value a line, jobs down, answers up.

The parent believes nothing a child says: a child has read hostile bytes, so every answer is checked again, field by
field, before it becomes a Read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any

from ingestd.instance.facts import NOTES, Inspection, Limits, Verdict
from ingestd.lifecycle import Sameness, SourceStat
from ingestd.reader.jobs import CanonicalJob, CompareJob, InspectJob, Job, ReaderLimits, ReencodeJob

LINE_MOST = 1 << 16
_TEXT_MOST = 4096
_KINDS: dict[str, type[Job]] = {
    "inspect": InspectJob,
    "canonical": CanonicalJob,
    "reencode": ReencodeJob,
    "compare": CompareJob,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_FIELDS = tuple(each.name for each in fields(Inspection))
_values_of = attrgetter(*_FIELDS)
# As JSON has them, by what the dataclass says.
_JSON_TYPES = {"Verdict": str, "str": str, "int": int, "bool": bool, "tuple[str, ...]": list}
_TYPES = [_JSON_TYPES[str(each.type)] for each in fields(Inspection)]
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
_INSPECTED = {"n", "i"}
_uids_of = itemgetter("study_uid", "series_uid", "sop_uid", "sop_class_uid", "transfer_syntax")
_digests_of = itemgetter("digest", "meta_digest")
_texts_of = itemgetter("reason_text", "modality", "station", "patient_id", "accession_number")
_counts_of = itemgetter("dataset_offset", "size_bytes", "device", "inode")
# ASCII only: file names with surrogates survive as \udcXX, and no value can hold a line feed.
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode
_SAMENESS = frozenset({Sameness.SAME.value, Sameness.OTHER.value, Sameness.OTHER_ENCODING.value})
_LOST = ("", "ours", "theirs")

# Study, series, class and syntax are the same for many files in a row.
_uid = lru_cache(64)(re.compile(r"[0-9.]{0,64}", re.ASCII).fullmatch)
_digest = re.compile(r"(?:[0-9a-f]{64})?", re.ASCII).fullmatch


class Unintelligible(Exception):
    """A child's answer is not one that a sane child gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer as it crosses the pipe; ``serial`` is the supervisor's number of the job."""

    serial: int
    inspection: Inspection | None = None
    canonical: str | None = None
    sameness: str | None = None
    differs: str = ""  # beside a sameness or ``waits``: in which way theirs is not ours
    waits: str = ""
    refused: str = ""
    lost: str = ""  # which of two files is another one by now
    crashed: str = ""  # an exception of ours: its class and place
    short_of_memory: bool = False


def encode_limits(limits: ReaderLimits, board_fd: int) -> bytes:
    """The first line a child reads."""
    instance = limits.instance
    return _line(
        [
            board_fd,
            limits.address_space_bytes,
            limits.open_files,
            instance.nesting,
            instance.inflated_bytes,
            instance.meta_bytes,
        ]
    )


def decode_limits(line: bytes) -> tuple[int, ReaderLimits]:
    """The other end of ``encode_limits``: the board's descriptor, and the limits."""
    board_fd, address_space, open_files, nesting, inflated, meta = json.loads(line)
    instance = Limits(nesting=nesting, inflated_bytes=inflated, meta_bytes=meta)
    return board_fd, ReaderLimits(address_space_bytes=address_space, open_files=open_files, instance=instance)


def encode_job(serial: int, job: Job) -> bytes:
    """One line that asks for this job."""
    name = _NAMES[type(job)]
    if isinstance(job, InspectJob):
        expect = job.expect
        stat = None if expect is None else [expect.device, expect.inode, expect.size_bytes, expect.mtime_ns]
        return _line([serial, name, job.path, stat, job.durable, job.patient])
    if isinstance(job, CanonicalJob):
        return _line([serial, name, job.path])
    if isinstance(job, ReencodeJob):
        return _line([serial, name, job.path, job.destination])
    return _line([serial, name, job.ours, job.theirs, job.our_digest, job.their_digest])


def decode_job(line: bytes) -> tuple[int, Job]:
    """The other end of ``encode_job``; the serial stands in for the caller's key."""
    serial, name, *rest = _from_json(line.decode("ascii"))
    if name == "inspect":
        path, stat, durable, patient = rest
        expect = None
        if stat is not None:
            expect = SourceStat(device=stat[0], inode=stat[1], size_bytes=stat[2], mtime_ns=stat[3])
        return serial, InspectJob(key=serial, path=path, expect=expect, durable=durable, patient=patient)
    if name == "canonical":
        return serial, CanonicalJob(key=serial, path=rest[0])
    if name == "reencode":
        return serial, ReencodeJob(key=serial, path=rest[0], destination=rest[1])
    ours, theirs, our_digest, their_digest = rest
    return serial, CompareJob(key=serial, ours=ours, theirs=theirs, our_digest=our_digest, their_digest=their_digest)


def encode_answer(answer: Answer) -> bytes:
    """One line with an answer; only what is set is sent."""
    content: dict[str, Any] = {"n": answer.serial}
    if answer.inspection is not None:
        content["i"] = _values_of(answer.inspection)
    if answer.canonical is not None:
        content["c"] = answer.canonical
    if answer.sameness is not None:
        content["s"] = answer.sameness
    if answer.differs:
        content["d"] = answer.differs
    if answer.waits:
        content["w"] = answer.waits
    if answer.refused:
        content["r"] = answer.refused
    if answer.lost:
        content["l"] = answer.lost
    if answer.crashed:
        content["x"] = answer.crashed
    if answer.short_of_memory:
        content["m"] = True
    return _line(content)


def decode_answer(line: bytes) -> Answer:
    """Check an answer and take it in. Raises Unintelligible."""
    try:
        content: Any = _from_json(line.decode("ascii"))
    except (ValueError, RecursionError):
        raise Unintelligible("not JSON") from None
    if not isinstance(content, dict) or not _is_count(content.get("n")):
        raise Unintelligible("no serial number")
    if content.keys() == _INSPECTED:  # nearly every answer
        return Answer(serial=content["n"], inspection=_inspection(content["i"]))
    return _other_answer(content)


def _other_answer(content: dict[str, Any]) -> Answer:
    canonical, sameness = content.get("c"), content.get("s")
    if canonical is not None and (not isinstance(canonical, str) or not canonical or not _digest(canonical)):
        raise Unintelligible("no digest")
    if sameness is not None and sameness not in _SAMENESS:
        raise Unintelligible("no sameness")
    if content.get("l", "") not in _LOST:
        raise Unintelligible("neither of the two files")
    answer = Answer(
        serial=content["n"],
        inspection=None if content.get("i") is None else _inspection(content["i"]),
        canonical=canonical,
        sameness=sameness,
        differs=_text(content.get("d", "")),
        waits=_text(content.get("w", "")),
        refused=_text(content.get("r", "")),
        lost=content.get("l", ""),
        crashed=_text(content.get("x", "")),
        short_of_memory=content.get("m") is True,
    )
    texts = (answer.canonical, answer.sameness, answer.waits, answer.refused, answer.lost, answer.crashed)
    if (answer.inspection is not None) + answer.short_of_memory + sum(bool(text) for text in texts) != 1:
        raise Unintelligible("not exactly one answer")
    return answer


def _inspection(values: Any) -> Inspection:
    """Check the fields of an Inspection, first by their types; the order is that of the dataclass."""
    if not isinstance(values, list) or [type(value) for value in values] != _TYPES:
        raise Unintelligible("no inspection")
    named: dict[str, Any] = dict(zip(_FIELDS, values, strict=True))
    if named["verdict"] not in _VERDICTS:
        raise Unintelligible("no verdict")
    if not all(map(_uid, _uids_of(named))):
        raise Unintelligible("no UID")
    if not all(map(_digest, _digests_of(named))):
        raise Unintelligible("no digest")
    if max(map(len, _texts_of(named))) > _TEXT_MOST:
        raise Unintelligible("no text")
    if min(_counts_of(named)) < 0:
        raise Unintelligible("no count")
    notes = named["notes"]
    if notes and not all(isinstance(note, str) and note in NOTES for note in notes):
        raise Unintelligible("no notes")
    named["verdict"] = _VERDICTS[named["verdict"]]
    named["notes"] = tuple(notes)
    return Inspection(**named)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_MOST:
        raise Unintelligible("no text")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _line(content: Any) -> bytes:
    return _to_json(content).encode("ascii") + b"\n"
