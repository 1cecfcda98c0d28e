"""The parent believes nothing a child says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ingestd.instance import Inspection, Verdict
from ingestd.lifecycle import SourceStat
from ingestd.reader import CompareJob, InspectJob, ReaderLimits, ReencodeJob
from ingestd.reader.protocol import (
    ProtocolError,
    ReaderAnswer,
    decode_answer,
    decode_job,
    decode_limits,
    encode_answer,
    encode_job,
    encode_limits,
)

FOUND = Inspection(
    verdict=Verdict.WHOLE,
    study_uid="1.2.3",
    series_uid="1.2.4",
    sop_uid="1.2.5",
    sop_class_uid="1.2.6",
    transfer_syntax="1.2.840.10008.1.2.1",
    digest="0" * 64,
    meta_digest="f" * 64,
    dataset_offset=300,
    size_bytes=5000,
    device=1,
    inode=2,
    mtime_ns=-3,
    modality="CT",
    station="Straße",
    institution="\u00c9cole",
    department="ER",
    source_ae="CT_ER",
    study_description="HEAD",
    patient_id="\u0394",
    notes=("odd_length",),
)


@pytest.mark.parametrize(
    "answer",
    [
        ReaderAnswer(serial=1, inspection=FOUND),
        ReaderAnswer(serial=3, sameness="other_encoding"),
        ReaderAnswer(serial=4, waits="later"),
        ReaderAnswer(serial=5, refused="never"),
        ReaderAnswer(serial=6, crashed="ValueError at walk.py:1"),
        ReaderAnswer(serial=7, short_of_memory=True),
        ReaderAnswer(serial=8, lost="theirs"),
    ],
)
def test_answers_arrive_as_they_were_sent(answer: ReaderAnswer) -> None:
    line = encode_answer(answer)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_answer(line) == answer


@pytest.mark.parametrize(
    "job",
    [
        InspectJob(key=9, path='/a\udcff\n"', durable=True),
        InspectJob(key=9, path="/a", expect=SourceStat(device=1, inode=2, size_bytes=3, mtime_ns=-4)),
        ReencodeJob(key=9, path="/a", destination="/b"),
        CompareJob(key=9, ours="/a", theirs="/b"),
        CompareJob(key=9, ours="/a", theirs="/b", our_digest="a" * 64, their_digest="b" * 64),
    ],
)
def test_jobs_arrive_as_they_were_sent(job: InspectJob | ReencodeJob | CompareJob) -> None:
    line = encode_job(17, job)

    assert line.count(b"\n") == 1
    assert decode_job(line) == (17, replace(job, key=17))


def test_limits_arrive_as_they_were_sent() -> None:
    limits = ReaderLimits(address_space_bytes=5, open_files=6)

    assert decode_limits(encode_limits(limits, 11)) == (11, limits)


def spoilt(**fields: Any) -> bytes:
    """An inspection's line with other values in these fields."""
    names = list(Inspection.__dataclass_fields__)
    content = json.loads(encode_answer(ReaderAnswer(serial=1, inspection=FOUND)))
    for name, value in fields.items():
        content["i"][names.index(name)] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"{}",
        b'{"n":-1,"w":"x"}',
        b'{"n":true,"w":"x"}',
        b'{"n":"1","w":"x"}',
        b'{"n":1}',
        b'{"n":1,"w":"x","r":"y"}',
        b'{"n":1,"w":7}',
        b'{"n":1,"c":"short"}',
        b'{"n":1,"c":7}',
        b'{"n":1,"s":"perhaps"}',
        b'{"n":1,"s":[]}',
        b'{"n":1,"i":[]}',
        b'{"n":1,"i":{}}',
        json.dumps({"n": 1, "w": "x" * 10_000}).encode(),
        spoilt(verdict="fine"),
        spoilt(verdict=[]),
        spoilt(study_uid="../../etc/passwd"),
        spoilt(study_uid="1" * 65),
        spoilt(sop_uid=None),
        spoilt(digest="0" * 63),
        spoilt(digest="G" * 64),
        spoilt(size_bytes=-1),
        spoilt(size_bytes=1.5),
        spoilt(mtime_ns="now"),
        spoilt(generated_meta=1),
        spoilt(patient_id="x" * 10_000),
        spoilt(notes="odd_length"),
        spoilt(notes=["<script>"]),
        spoilt(notes=[["odd_length"]]),
        b"\xff\xfe",
    ],
)
def test_answer_that_no_sane_child_gives_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(line)
