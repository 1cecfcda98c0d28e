"""Looks at one spooled part: can it be read, may it be stored, what is it called, what goes into the index.

The outcome is plain values; nothing here touches the index. Versions differ as AZURE.md 1.7 says: version 1 refuses
what breaks a rule of an indexed attribute, version 2 stores it, warns, and leaves the attribute out of the metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..dicom import parser, validation
from ..dicom.attributes import (
    CORE,
    PATIENT_ID,
    REQUIRED,
    SERIES_UID,
    SOP_CLASS,
    SOP_UID,
    STUDY_UID,
    Level,
)
from ..dicom.collation import fold
from ..dicom.parser import Element, Header
from ..dicom.values import METADATA_TEXT, Json, Text, elements_of, is_number, numbers_of, strings_of, text_of, to_json
from ..errors import TooMuch, Unreadable

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


@dataclass(frozen=True, slots=True)
class Tag:
    """An extended query tag as far as storing and searching need it."""

    key: int
    tag: int
    vr: str
    level: Level
    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """What an extended query tag has as its value in one instance."""

    tag: Tag
    value: str | float
    folded: str | float


@dataclass(kw_only=True, slots=True)
class Examined:
    """One part, looked at; ``failure`` is 0 when it may be stored."""

    source: Path | bytes
    size_bytes: int
    failure: int = 0
    mismatch: int = VALIDATION_FAILED  # the reason for a part of another study than the path's
    warning: int = 0
    comments: list[str] = field(default_factory=list)
    readable: bool = False
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sop_class_uid: str = ""
    transfer_syntax: str = ""
    several_values: bool = False
    dataset_sha256: str = ""  # empty where it cannot be read that far
    metadata: bytes = b""
    columns: dict[str, str] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)

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
    """Look at one part of a store under ``/v{version}/studies[/{study_uid}]``; never raises for its content."""
    found = Examined(source=source, size_bytes=len(source) if isinstance(source, bytes) else source.stat().st_size)
    found.mismatch = mismatch
    try:
        with parser.contents(source) as buffer:
            found.dataset_sha256 = _digest(buffer) if hashed else ""
            header = parser.header_of(buffer)
    except Unreadable:
        found.failure = VALIDATION_FAILED
        return found
    except (TooMuch, MemoryError, RecursionError):
        found.failure = PROCESSING_FAILURE
        return found
    found.readable = True
    found.transfer_syntax = header.transfer_syntax
    if version == 1:
        _judge_v1(found, header, study_uid=study_uid, tags=tags)
    else:
        _judge_v2(found, header, study_uid=study_uid, tags=tags)
    return found


def _digest(buffer: parser.Buffer) -> str:
    """The SHA-256 of what follows group 0002, in hex."""
    with memoryview(buffer) as view, view[parser.dataset_offset_of(buffer) :] as content:
        return hashlib.sha256(content).hexdigest()


def _identify(found: Examined, by_tag: Mapping[int, Element], text: Text) -> None:
    def first(tag: int) -> str:
        element = by_tag.get(tag)
        strings = strings_of(element, text) if element is not None else []
        return strings[0].rstrip(" \0") if strings else ""

    found.study_uid, found.series_uid = first(STUDY_UID), first(SERIES_UID)
    found.sop_uid, found.sop_class_uid = first(SOP_UID), first(SOP_CLASS)


def _refuse(found: Examined, message: str) -> None:
    found.failure = VALIDATION_FAILED
    found.comments = [message]


def _comment(tag: int, message: str) -> str:
    return f"DICOM100: {validation.tag_text(tag)} - {message}"


def _by_tag(header: Header) -> dict[int, Element]:
    return {element.tag: element for element in header.elements}


def _required_value(by_tag: Mapping[int, Element], tag: int, text: Text, *, strip_nul: bool) -> str | None:
    element = by_tag.get(tag)
    if element is None or element.vr == "SQ":
        return None
    strings = strings_of(element, text)
    if len(strings) != 1:
        return None
    return strings[0].rstrip("\0") if strip_nul else strings[0]


def _lacks_required(found: Examined, by_tag: Mapping[int, Element], text: Text, *, version: int) -> bool:
    for tag in REQUIRED:
        if version == 2 and tag == PATIENT_ID:
            present = tag in by_tag
        else:
            value = _required_value(by_tag, tag, text, strip_nul=True)
            present = bool(value and value.strip(" "))
        if not present:
            _refuse(found, _comment(tag, validation.missing(tag)))
            return True
    return False


def _is_elsewhere(found: Examined, study_uid: str | None) -> bool:
    if study_uid is None or found.study_uid == study_uid.rstrip(" "):
        return False
    _refuse(found, _comment(STUDY_UID, _MISMATCH_TEXT))
    found.failure = found.mismatch
    return True


def _judge_v1(found: Examined, header: Header, *, study_uid: str | None, tags: Sequence[Tag]) -> None:
    text, by_tag = text_of(header.elements), _by_tag(header)
    _identify(found, by_tag, text)
    if _lacks_required(found, by_tag, text, version=1) or _is_elsewhere(found, study_uid):
        return
    failures = []
    names = {SOP_CLASS: ("SOPClassUID", "UI")}
    names |= {attribute.tag: (attribute.keyword, attribute.vr) for attribute in CORE}
    names |= {tag.tag: (tag.name, tag.vr) for tag in tags}
    for tag, (name, vr) in names.items():
        element = by_tag.get(tag)
        if element is None or element.vr == "SQ":
            continue
        message = validation.minimum(element, text, name=name, vr=vr) or _trailing_nul(element, text)
        if message is not None:
            failures.append(_comment(tag, message))
        elif not is_number(vr) and len(strings_of(element, text)) > 1:
            found.several_values = True
    if failures:
        found.failure, found.comments = VALIDATION_FAILED, failures
        return
    if header.transfer_syntax == parser.IMPLICIT_LITTLE:
        found.warning = CLASS_MISMATCH
    _index(found, header, by_tag, text, tags=tags, without=frozenset())


def _trailing_nul(element: Element, text: Text) -> str | None:
    # Version 1 knows no leniency: a NUL is a control character (AZURE.md 9, StoreTransactionTestsV1).
    if element.vr not in ("LO", "PN"):
        return None
    strings = strings_of(element, text)
    if strings and strings[0].endswith("\0"):
        return (
            f"Dicom element '{validation.keyword_of(element.tag)}' failed validation for VR '{element.vr}': "
            "Value contains invalid character."
        )
    return None


def _judge_v2(found: Examined, header: Header, *, study_uid: str | None, tags: Sequence[Tag]) -> None:
    text, by_tag = text_of(header.elements), _by_tag(header)
    _identify(found, by_tag, text)
    if _lacks_required(found, by_tag, text, version=2) or _is_elsewhere(found, study_uid):
        return
    for tag in REQUIRED:
        message = validation.minimum(by_tag[tag], text)
        if message is not None:
            _refuse(found, _comment(tag, message))
            return
    warnings: dict[int, str] = {}
    patients = strings_of(by_tag[PATIENT_ID], text)
    # Of the required attributes only this one can have several values here; then it is the header that warns.
    found.several_values = len(patients) > 1
    if not (patients and patients[0].rstrip("\0")):
        warnings[PATIENT_ID] = validation.missing(PATIENT_ID)
    for tag, message in validation.full(header.elements, skip=frozenset(REQUIRED), big_endian=header.big_endian):
        warnings.setdefault(tag, message)
    found.comments = [_comment(tag, message) for tag, message in warnings.items()]
    for tag_ in tags:
        element = by_tag.get(tag_.tag)
        if element is not None and element.vr != "SQ" and tag_.tag not in warnings:
            message = validation.minimum(element, text, name=tag_.name, vr=tag_.vr)
            if message is not None:
                warnings[tag_.tag] = message
                found.comments.append(_comment(tag_.tag, message))
    if header.transfer_syntax == parser.IMPLICIT_LITTLE:
        found.warning = CLASS_MISMATCH
    elif found.comments:
        found.warning = HAS_WARNINGS
    _index(found, header, by_tag, text, tags=tags, without=frozenset(warnings) - {PATIENT_ID})


def _index(
    found: Examined,
    header: Header,
    by_tag: Mapping[int, Element],
    text: Text,
    *,
    tags: Sequence[Tag],
    without: frozenset[int],
) -> None:
    metadata = to_json(header.elements, big_endian=header.big_endian, without=without)
    found.metadata = _dump(metadata)
    kept = {tag: element for tag, element in by_tag.items() if tag not in without} if without else by_tag
    found.columns = _columns(kept, text)
    found.values = list(tag_values(kept, text, tags=tags, big_endian=header.big_endian))


def change_metadata(found: Examined, metadata: Json, *, tags: Sequence[Tag]) -> None:
    """Give an instance this metadata in place of its own, and index what it holds."""
    found.metadata = _dump(metadata)
    by_tag = {element.tag: element for element in elements_of(metadata)}
    found.columns = _columns(by_tag, METADATA_TEXT)
    found.values = list(tag_values(by_tag, METADATA_TEXT, tags=tags, big_endian=False))


def _dump(metadata: Json) -> bytes:
    return json.dumps(metadata, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _columns(by_tag: Mapping[int, Element], text: Text) -> dict[str, str]:
    columns = {}
    for attribute in CORE:
        element = by_tag.get(attribute.tag)
        if element is None:
            continue
        strings = strings_of(element, text) if element.vr == attribute.vr else []
        if strings and strings[0].rstrip("\0 "):
            columns[attribute.column] = strings[0]
    return columns


def tag_values(by_tag: Mapping[int, Element], text: Text, *, tags: Sequence[Tag], big_endian: bool) -> list[Value]:
    """The extended query tags' values in one data set, first values only."""
    values = []
    for tag in tags:
        element = by_tag.get(tag.tag)
        if element is None or element.vr != tag.vr:
            continue
        if is_number(tag.vr):
            numbers = numbers_of(element, big_endian=big_endian)
            if numbers:
                values.append(Value(tag, numbers[0], numbers[0]))
            continue
        strings = strings_of(element, text)
        if strings and strings[0]:
            folded = comparable(strings[0], tag.vr)
            if folded is not None:
                values.append(Value(tag, strings[0], folded))
    return values


def comparable(value: str, vr: str) -> str | float | None:
    """A text value in the form in which searches compare it; None when it is none of its VR."""
    if vr == "DT":
        return validation.parse_datetime(value)
    if vr == "TM":
        return validation.parse_time(value)
    if vr == "IS":
        return validation.parse_integer(value)
    return fold(value, vr)
