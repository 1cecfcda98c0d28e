"""What became of each instance of a Store Transaction (PS3.18 §10.5.3), read strictly.

A status code is evidence of nothing: only an instance that was asked for and is named in the parsed answer has a
verdict. What is named twice with different verdicts has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ingestd.dicomweb.answers import Answer
from ingestd.dicomweb.decoding import (
    HTML_TYPES,
    JSON_TYPES,
    XML_TYPES,
    DicomJson,
    Undecodable,
    checked_datasets,
    datasets_from_json,
    datasets_from_xml,
    uid_at,
    value_at,
    values_at,
)
from ingestd.dicomweb.errors import DicomWebError, MisconfiguredServer, Refused

ANSWER_LIMIT = 16 * 1024 * 1024
COMMENT_LIMIT = 1_024
COMMENTS_LIMIT = 64

FAILED_SOP_SEQUENCE = "00081198"
REFERENCED_SOP_SEQUENCE = "00081199"
REFERENCED_SOP_CLASS_UID = "00081150"
REFERENCED_SOP_INSTANCE_UID = "00081155"
RETRIEVE_URL = "00081190"
WARNING_REASON = "00081196"
FAILURE_REASON = "00081197"
FAILED_ATTRIBUTES_SEQUENCE = "00741048"
ERROR_COMMENT = "00000902"

# PS3.18 Table I.2-2, PS3.4 Table B.2-1, PS3.7 Annex C, and the Azure service's own (AZURE.md 1.6).
FAILURE_MEANINGS: Mapping[int, str] = {
    0x0110: "processing failure",
    0x0111: "duplicate SOP instance",
    0x0117: "invalid object instance",
    0x0120: "missing attribute",
    0x0121: "missing attribute value",
    0x0122: "referenced SOP class not supported",
    0x0124: "not authorized",
    0x0131: "duplicate transaction UID",
    0x0137: "referenced transfer syntax not supported",
    0x0139: "referenced MIME type not supported",
    0x0211: "unrecognized operation",
    0x0213: "resource limitation",
    0xA700: "out of resources",
    0xA900: "data set does not match its SOP class, or does not validate",
    0xA901: "study UID differs from the one in the URL",
    0xB00E: "already exists",
    0xB00F: "is being created by another request",
    0xC000: "cannot be understood",
    0xC122: "transfer syntax not supported",
    0xC409: "conflicts with what is stored",
}
FAILURE_RANGES: Sequence[tuple[int, int, str]] = (
    (0xA700, 0xA7FF, "out of resources"),
    (0xA800, 0xA8FF, "SOP class not supported"),
    (0xA900, 0xA9FF, "data set does not match its SOP class"),
    (0xC000, 0xCFFF, "cannot be understood"),
)
WARNING_MEANINGS: Mapping[int, str] = {
    0x0001: "stored, but values do not validate",  # Azure v2
    0xB000: "stored, with some elements coerced",
    0xB006: "stored, with some elements discarded",
    0xB007: "stored, but the data set does not match its SOP class",
}


def failure_meaning(reason: int) -> str:
    """Say in words what a Failure Reason (0008,1197) means."""
    known = FAILURE_MEANINGS.get(reason)
    if known is not None:
        return known
    for first, last, meaning in FAILURE_RANGES:
        if first <= reason <= last:
            return meaning
    return f"reason {reason} ({reason:04X}H), which no standard names"


def warning_meaning(reason: int) -> str:
    """Say in words what a Warning Reason (0008,1196) means."""
    return WARNING_MEANINGS.get(reason, f"stored, with warning {reason} ({reason:04X}H)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """The server names this instance as stored; ``failed_attributes`` are its remarks and may hold patient data."""

    warning_reason: int | None = None
    failed_attributes: tuple[str, ...] = ()
    retrieve_url: str = ""
    sop_class_uid: str = ""

    @property
    def meaning(self) -> str:
        """The warning in words, "stored" if there is none."""
        return "stored" if self.warning_reason is None else warning_meaning(self.warning_reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The server names this instance as not stored; ``failed_attributes`` may hold patient data."""

    reason: int
    failed_attributes: tuple[str, ...] = ()
    sop_class_uid: str = ""

    @property
    def meaning(self) -> str:
        """The reason in words."""
        return failure_meaning(self.reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreResult:
    """The verdicts of one Store Transaction, by SOP Instance UID; an instance that is in neither mapping has none.

    ``anonymous_failures`` are reasons given without a UID (an unreadable part). ``foreign`` are UIDs that nobody asked
    about, ``contradicted`` those named both as stored and as failed, ``unnamed`` those asked for and not named at all.
    ``is_module`` says that the answer is a Store Instances Response Module (PS3.18 table I.2-1) at all, as far as an
    attribute of it is there.
    """

    status: int
    stored: Mapping[str, Stored] = field(default_factory=dict)
    failed: Mapping[str, Failed] = field(default_factory=dict)
    anonymous_failures: tuple[int, ...] = ()
    foreign: tuple[str, ...] = ()
    contradicted: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    server_date: datetime | None = None
    body_bytes_left: int = 0
    retrieve_url: str = ""
    warning_header: str = ""
    is_module: bool = True

    @property
    def is_all_stored(self) -> bool:
        """Whether every instance has the verdict stored."""
        return bool(self.stored) and not (self.failed or self.anonymous_failures or self.contradicted or self.unnamed)


def read_store_answer(answer: Answer, asked: Sequence[str | None], *, what: str) -> StoreResult:
    """Read the answer to a store of instances with these SOP Instance UIDs (None: unknown to the caller).

    Raises Unintelligible where it cannot be read, MisconfiguredServer where it is a web page, and Refused for a 400,
    unless it names instances in an answer of the standard's form.
    """
    if answer.status == 204:
        raise answer.unintelligible("the server says that it found no instance in the request")
    if answer.status != 400:
        return _read(answer, asked, what)
    try:
        result = _read(answer, asked, what)
    except DicomWebError as error:
        raise _refused(error, what) from None
    if result.stored or result.failed or result.anonymous_failures:
        return result
    raise _refused(answer.unintelligible(""), what)


def _refused(error: DicomWebError, what: str) -> Refused:
    return Refused(
        f"{what}: the server answered 400 Bad Request; the request is not valid in the server's eyes",
        status=400,
        body_bytes_left=error.body_bytes_left,
        server_date=error.server_date,
        server_text=error.server_text,
    )


def _read(answer: Answer, asked: Sequence[str | None], what: str) -> StoreResult:
    media_type = answer.media_type
    if media_type in HTML_TYPES:
        raise MisconfiguredServer(
            f"{what}: the server answered {answer.status} with a web page; is this the DICOMweb address?",
            status=answer.status,
            body_bytes_left=answer.body_bytes_left,
            server_date=answer.server_date,
        )
    body = answer.read_all(ANSWER_LIMIT)
    if media_type not in JSON_TYPES and media_type not in XML_TYPES:
        kind = media_type if media_type in {"text/plain", "application/octet-stream"} else "another type"
        raise answer.unintelligible(
            f"the answer ({answer.status}) is {kind if media_type else 'of no type'}, not DICOM JSON or XML",
            server_text=body[:2000].decode("utf-8", "replace"),
        )
    try:
        datasets = datasets_from_json(body, unique_keys=True) if media_type in JSON_TYPES else datasets_from_xml(body)
        if len(datasets) == 1:
            return _judge(datasets[0], answer, asked)
    except Undecodable as error:
        raise answer.unintelligible(f"the answer ({answer.status}) is {error}") from None
    raise answer.unintelligible(f"the answer ({answer.status}) is not one data set")


def _judge(dataset: DicomJson, answer: Answer, asked: Sequence[str | None]) -> StoreResult:
    stored: dict[str, Stored] = {}
    failed: dict[str, Failed] = {}
    anonymous: list[int] = []
    foreign: list[str] = []
    ours = [uid.strip(" \0") for uid in asked if uid is not None]
    asked_for = set(ours)
    takes_any = len(ours) < len(asked)
    for item in _items(dataset, REFERENCED_SOP_SEQUENCE):
        uid = uid_at(item, REFERENCED_SOP_INSTANCE_UID)
        if uid and (takes_any or uid in asked_for):
            stored[uid] = _stored(item)
        else:
            foreign.append(uid)
    for item in _items(dataset, FAILED_SOP_SEQUENCE):
        uid = uid_at(item, REFERENCED_SOP_INSTANCE_UID)
        reason = _code(item, FAILURE_REASON)
        if uid and (takes_any or uid in asked_for):
            # A failure without a readable reason is still a failure: processing failure, the one that is tried again.
            failed[uid] = Failed(
                reason=0x0110 if reason is None else reason,
                failed_attributes=_comments(item),
                sop_class_uid=uid_at(item, REFERENCED_SOP_CLASS_UID),
            )
        elif uid:
            foreign.append(uid)
        else:
            anonymous.append(0x0110 if reason is None else reason)
    contradicted = [uid for uid in stored if uid in failed and ours.count(uid) < 2]
    for uid in contradicted:
        del stored[uid], failed[uid]
    named = stored.keys() | failed.keys() | set(contradicted)
    url = value_at(dataset, RETRIEVE_URL)
    return StoreResult(
        status=answer.status,
        stored=stored,
        failed=failed,
        anonymous_failures=tuple(anonymous),
        foreign=tuple(foreign),
        contradicted=tuple(contradicted),
        unnamed=tuple(uid for uid in dict.fromkeys(ours) if uid not in named),
        server_date=answer.server_date,
        body_bytes_left=answer.body_bytes_left,
        retrieve_url=url if isinstance(url, str) else "",
        warning_header=answer.headers.get("Warning", ""),
        is_module=not {RETRIEVE_URL, FAILED_SOP_SEQUENCE, REFERENCED_SOP_SEQUENCE}.isdisjoint(dataset),
    )


def _stored(item: Mapping[str, Any]) -> Stored:
    url = value_at(item, RETRIEVE_URL)
    return Stored(
        warning_reason=_code(item, WARNING_REASON),
        failed_attributes=_comments(item),
        retrieve_url=url if isinstance(url, str) else "",
        sop_class_uid=uid_at(item, REFERENCED_SOP_CLASS_UID),
    )


def _items(dataset: Mapping[str, Any], sequence: str) -> list[DicomJson]:
    element = dataset.get(sequence)
    if element is None:
        return []
    items = element.get("Value", [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Undecodable("a data set whose sequence is none")
    return checked_datasets(items, "a data set whose sequence items are none")


def _code(item: Mapping[str, Any], tag: str) -> int | None:
    value = value_at(item, tag)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        value = int(value.strip()[:9])  # XML, and servers that write numbers as text
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= 0xFFFF else None  # VR US


def _comments(item: Mapping[str, Any]) -> tuple[str, ...]:
    comments: list[str] = []
    for failed in _items(item, FAILED_ATTRIBUTES_SEQUENCE):
        comments.extend(str(value)[:COMMENT_LIMIT] for value in values_at(failed, ERROR_COMMENT))
    return tuple(comments[:COMMENTS_LIMIT])
