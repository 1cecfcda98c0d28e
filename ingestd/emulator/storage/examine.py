"""Looks at one uploaded part: can it be read, may it be stored, what is it called, what goes into the index.

The outcome is plain values; nothing here touches the index. Versions differ as AZURE.md 1.7 says: version 1 refuses
what breaks a rule of an indexed attribute, version 2 stores it, warns, and leaves the attribute out of the metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..dicom import parser
from ..dicom.attributes import CORE, PATIENT_ID, REQUIRED, SERIES_UID, SOP_CLASS, SOP_UID, STUDY_UID
from ..dicom.dicom_json import Json, from_json, json_bytes, to_json
from ..dicom.dictionary import keyword_of
from ..dicom.full_rules import broken_rules
from ..dicom.minimum_rules import comment, failed, minimum, missing
from ..dicom.values import NUMBER_VRS, DataSet
from ..dicom.walk import TooMuch, Unreadable
from .tags import Tag, TagValue, tag_values

# Failure reasons (AZURE.md 1.6; PS3.18 Table I.2-2).
PROCESSING_FAILURE = 0x0110  # 272
VALIDATION_FAILED = 0xA900  # 43264
STUDY_MISMATCH = 0xA901  # 43265, what the managed service's documents say; source and its tests have 43264
ALREADY_EXISTS = 0xB00E  # 45070
BEING_CREATED = 0xB00F  # 45071
# Warning reasons.
CLASS_MISMATCH = 0xB007  # 45063
HAS_WARNINGS = 1

_MISMATCH_TEXT = "The StudyInstanceUid in the payload does not match the specified StudyInstanceUid."


@dataclass(kw_only=True, slots=True)
class Examined:
    """One part, looked at; ``failure`` is 0 when it may be stored."""

    source: Path | bytes
    size_bytes: int
    failure: int = 0
    warning: int = 0
    comments: list[str] = field(default_factory=list)
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sop_class_uid: str = ""
    transfer_syntax: str = ""
    several_values: bool = False
    dataset_sha256: str = ""  # empty where it cannot be read that far
    metadata: bytes = b""
    columns: dict[str, str] = field(default_factory=dict)
    values: list[TagValue] = field(default_factory=list)

    @property
    def identity(self) -> tuple[str, str, str]:
        """Study, series and SOP Instance UID as the index compares them."""
        return self.study_uid, self.series_uid, self.sop_uid


def examine(
    source: Path | bytes,
    *,
    version: int,
    study_uid: str | None,
    tags: Sequence[Tag],
    mismatch: int = VALIDATION_FAILED,
    hashed: bool = True,
) -> Examined:
    """Look at one part of a store under ``/v{version}/studies[/{study_uid}]``; never raises for its content.

    ``mismatch`` is the reason for a part of another study than the path's.
    """
    found = Examined(source=source, size_bytes=len(source) if isinstance(source, bytes) else source.stat().st_size)
    try:
        with parser.contents(source) as buffer:
            if hashed:
                with memoryview(buffer) as view, view[parser.dataset_offset_of(buffer) :] as content:
                    found.dataset_sha256 = hashlib.sha256(content).hexdigest()
            parsed = parser.parse(buffer)
    except Unreadable:
        found.failure = VALIDATION_FAILED
        return found
    except (TooMuch, MemoryError, RecursionError):
        found.failure = PROCESSING_FAILURE
        return found
    found.transfer_syntax = parsed.transfer_syntax
    _identify(found, parsed.dataset)
    absent = _missing_attribute(parsed.dataset, version)
    if absent is not None:
        found.failure, found.comments = VALIDATION_FAILED, [comment(absent, missing(absent))]
    elif study_uid is not None and found.study_uid != study_uid.rstrip(" "):
        found.failure, found.comments = mismatch, [comment(STUDY_UID, _MISMATCH_TEXT)]
    elif version == 1:
        _judge_v1(found, parsed.dataset, tags)
    else:
        _judge_v2(found, parsed.dataset, tags)
    return found


def change_metadata(found: Examined, metadata: Json, tags: Sequence[Tag]) -> None:
    """Give an instance this metadata in place of its own, and index what it holds."""
    _index(found, metadata, from_json(metadata), tags, without=frozenset())


def _identify(found: Examined, dataset: DataSet) -> None:
    def first(tag: int) -> str:
        strings = dataset.strings(tag)
        return strings[0].rstrip(" \0") if strings else ""

    found.study_uid, found.series_uid = first(STUDY_UID), first(SERIES_UID)
    found.sop_uid, found.sop_class_uid = first(SOP_UID), first(SOP_CLASS)


def _missing_attribute(dataset: DataSet, version: int) -> int | None:
    """The first required attribute that is not there with exactly one value; a Patient ID may be empty in version 2."""
    for tag in REQUIRED:
        if version == 2 and tag == PATIENT_ID:
            is_there = tag in dataset.by_tag
        else:
            strings = dataset.strings(tag)
            is_there = len(strings) == 1 and bool(strings[0].rstrip("\0").strip(" "))
        if not is_there:
            return tag
    return None


def _judge_v1(found: Examined, dataset: DataSet, tags: Sequence[Tag]) -> None:
    names = {SOP_CLASS: ("SOPClassUID", "UI")}
    names |= {attribute.tag: (attribute.keyword, attribute.vr) for attribute in CORE}
    names |= {tag.tag: (tag.name, tag.vr) for tag in tags}
    for tag, (name, vr) in names.items():
        element = dataset.by_tag.get(tag)
        if element is None or element.vr == "SQ":
            continue
        strings = dataset.strings(tag) if element.vr not in NUMBER_VRS else []
        message = minimum(element, dataset.text, name=name, vr=vr)
        # Version 1 knows no leniency: a NUL is a control character (AZURE.md 9, StoreTransactionTestsV1).
        if message is None and element.vr in ("LO", "PN") and strings and strings[0].endswith("\0"):
            message = failed(keyword_of(tag), element.vr, "Value contains invalid character.")
        if message is not None:
            found.failure = VALIDATION_FAILED
            found.comments.append(comment(tag, message))
        elif len(strings) > 1:
            found.several_values = True
    if found.failure:
        return
    if found.transfer_syntax == parser.IMPLICIT_LITTLE:
        found.warning = CLASS_MISMATCH
    _index(found, to_json(dataset), dataset, tags, without=frozenset())


def _judge_v2(found: Examined, dataset: DataSet, tags: Sequence[Tag]) -> None:
    for tag in REQUIRED:
        message = minimum(dataset.by_tag[tag], dataset.text)
        if message is not None:
            found.failure, found.comments = VALIDATION_FAILED, [comment(tag, message)]
            return
    warnings: dict[int, str] = {}
    patients = dataset.strings(PATIENT_ID)
    # Of the required attributes only this one can have several values here; then it is the header that warns.
    found.several_values = len(patients) > 1
    if not (patients and patients[0].rstrip("\0")):
        warnings[PATIENT_ID] = missing(PATIENT_ID)
    for tag, broken in broken_rules(dataset, skip=frozenset(REQUIRED)):
        warnings.setdefault(tag, broken)
    for extended in tags:
        element = dataset.by_tag.get(extended.tag)
        if element is not None and element.vr != "SQ" and extended.tag not in warnings:
            message = minimum(element, dataset.text, name=extended.name, vr=extended.vr)
            if message is not None:
                warnings[extended.tag] = message
    found.comments = [comment(tag, message) for tag, message in warnings.items()]
    if found.transfer_syntax == parser.IMPLICIT_LITTLE:
        found.warning = CLASS_MISMATCH
    elif found.comments:
        found.warning = HAS_WARNINGS
    without = frozenset(warnings) - {PATIENT_ID}
    _index(found, to_json(dataset, without=without), dataset, tags, without=without)


def _index(found: Examined, metadata: Json, dataset: DataSet, tags: Sequence[Tag], *, without: frozenset[int]) -> None:
    found.metadata, found.columns = json_bytes(metadata), {}
    for attribute in CORE:
        element = dataset.by_tag.get(attribute.tag)
        if element is not None and element.vr == attribute.vr and attribute.tag not in without:
            strings = dataset.strings(attribute.tag)
            if strings and strings[0].rstrip("\0 "):
                found.columns[attribute.column] = strings[0]
    found.values = tag_values(dataset, tags, without=without)
