"""DICOM JSON (PS3.18 Annex F) and the Native DICOM Model in XML (PS3.19 Annex A.1), read from an untrusted server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DicomJson = dict[str, Any]  # {"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, ...}

ACCEPT_JSON = "application/dicom+json"

NESTING_LIMIT = 64
# What one answer may take when it is parsed: two bytes of text may make an object of hundreds.
MEMORY_LIMIT = 512 * 1024 * 1024
XML_NESTING_LIMIT = 4 * NESTING_LIMIT

JSON_TYPES = frozenset({"application/dicom+json", "application/json"})
XML_TYPES = frozenset({"application/dicom+xml", "application/xml", "text/xml"})
HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
TEXT_TYPES = JSON_TYPES | XML_TYPES | {"text/plain"}

# The few attributes that are told apart by name here; any other may be given as eight hex digits.
TAGS: Mapping[str, str] = {
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "SOPInstanceUID": "00080018",
    "SOPClassUID": "00080016",
    "PatientID": "00100020",
    "PatientName": "00100010",
    "AccessionNumber": "00080050",
    "Modality": "00080060",
    "ModalitiesInStudy": "00080061",
    "StudyDate": "00080020",
    "StudyDescription": "00081030",
    "NumberOfStudyRelatedInstances": "00201208",
    "NumberOfSeriesRelatedInstances": "00201209",
    "AvailableTransferSyntaxUID": "00083002",
}


_CONTAINERS = frozenset({dict, list})  # the types that JSON is parsed to, and no others
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


class Undecodable(ValueError):
    """The text is not what it should be; the message holds nothing of it."""


def load_json(text: bytes, *, unique_keys: bool = False, memory_limit: int = MEMORY_LIMIT) -> Any:
    """Parse JSON from a stranger: UTF-8, at most NESTING_LIMIT deep and so many bytes large; raises Undecodable.

    ``unique_keys`` refuses an object that has a key twice, where the last one would silently win.
    """
    if memory_of(text) > memory_limit:
        raise Undecodable("JSON that would take too much memory")
    try:
        parsed = json.loads(
            text.decode("utf-8-sig"),
            object_pairs_hook=_unique if unique_keys else None,
            parse_constant=str,  # NaN and the infinities, which some servers write bare: as texts, like the service
        )
    except RecursionError:
        raise Undecodable("JSON that is nested too deeply") from None
    except ValueError:
        raise Undecodable("no valid JSON") from None
    level = [parsed] if type(parsed) in _CONTAINERS else []
    for _ in range(NESTING_LIMIT + 1):
        level = [
            value
            for item in level
            for value in (item.values() if type(item) is dict else item)
            if type(value) in _CONTAINERS
        ]
        if not level:
            return parsed
    raise Undecodable("JSON that is nested too deeply")


def memory_of(text: bytes) -> int:
    """Say how much memory this JSON takes at most when it is parsed: by what CPython's objects are large.

    What stands inside strings counts as well, so that nothing has to be parsed for it.
    """
    # One character beyond the first plane makes every one of a string four bytes wide, and all of it is one at first.
    wide = len(text) if text.isascii() else 4 * len(text)
    objects, lists, quotes, commas = (text.count(mark) for mark in (b"{", b"[", b'"', b","))
    return wide + 184 * objects + 88 * lists + 25 * quotes + 40 * commas


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError
    return fields


def datasets_from_json(text: bytes, *, unique_keys: bool = False, memory_limit: int = MEMORY_LIMIT) -> list[DicomJson]:
    """Read an array of DICOM JSON data sets, or one alone; tags become upper case. Raises Undecodable."""
    parsed = load_json(text, unique_keys=unique_keys, memory_limit=memory_limit) if text.strip() else []
    items = parsed if isinstance(parsed, list) else [parsed]
    return checked_datasets(items, "JSON that is no DICOM data set")


def checked_datasets(items: Iterable[Any], otherwise: str) -> list[DicomJson]:
    """Give data sets with their tags in upper case; raises Undecodable, saying ``otherwise``, for what is none."""
    datasets: list[DicomJson] = []
    for item in items:
        if not isinstance(item, dict):
            raise Undecodable(otherwise)
        dataset: DicomJson = {}
        for tag, element in item.items():
            if not isinstance(element, dict):
                raise Undecodable(otherwise)
            dataset[tag.upper()] = element
        datasets.append(dataset)
    return datasets


def datasets_from_xml(text: bytes) -> list[DicomJson]:
    """Read one Native DICOM Model as DICOM JSON; document types, and so entities, are refused. Raises Undecodable."""
    reader = _XmlReader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(text, True)
    except expat.ExpatError:
        raise Undecodable("no valid XML") from None
    if reader.root is None:
        raise Undecodable("XML that is no DICOM data set")
    return [reader.root]


class _XmlReader:
    """Builds the JSON shape while expat reads: a stack of data sets and elements."""

    def __init__(self) -> None:
        self.root: DicomJson | None = None
        self._datasets: list[DicomJson] = []
        self._elements: list[dict[str, Any]] = []
        self._depth = 0
        self._value: str | None = None

    def refuse(self, *_args: object) -> None:
        raise Undecodable("XML with a document type")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > XML_NESTING_LIMIT:
            raise Undecodable("XML that is nested too deeply")
        match name.rpartition(" ")[2]:
            case "NativeDicomModel" if self._depth == 1:
                self.root = {}
                self._datasets.append(self.root)
            case "DicomAttribute" if self._datasets:
                element: dict[str, Any] = {"vr": attributes.get("vr", "UN")}
                self._datasets[-1][attributes.get("tag", "").upper()] = element
                self._elements.append(element)
            case "Item" if self._elements:
                item: DicomJson = {}
                self._elements[-1].setdefault("Value", []).append(item)
                self._datasets.append(item)
            case "Value":
                self._value = ""

    def end(self, name: str) -> None:
        self._depth -= 1
        match name.rpartition(" ")[2]:
            case "DicomAttribute" if self._elements:
                self._elements.pop()
            case "Item" if self._datasets:
                self._datasets.pop()
            case "Value" if self._elements and self._value is not None:
                self._elements[-1].setdefault("Value", []).append(self._value)
                self._value = None

    def text(self, text: str) -> None:
        if self._value is not None:
            self._value += text


def tag_of(name: str) -> str:
    """Return the eight hex digits of an attribute given by keyword or tag; raises ValueError for an unknown keyword."""
    if len(name) == 8 and _HEX_DIGITS.issuperset(name):
        return name.upper()
    known = TAGS.get(name)
    if known is not None:
        return known
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415 - only for keywords outside the little table

    tag = tag_for_keyword(name)
    if tag is None:
        raise ValueError(f"no DICOM attribute has the keyword {name!r}")
    return f"{tag:08X}"


def keyword_of(tag: str) -> str:
    """Return the keyword of an attribute given by eight hex digits, "" if it has none."""
    from pydicom.datadict import keyword_for_tag  # noqa: PLC0415 - only for people who read tables

    try:
        return keyword_for_tag(int(tag, 16))
    except ValueError:
        return ""


def json_of(values: Mapping[str, str]) -> DicomJson:
    """Build a DICOM JSON data set from keywords and values as text; raises ValueError for what does not fit."""
    from pydicom.dataset import Dataset  # noqa: PLC0415 - as to_dataset

    dataset = Dataset()
    for keyword, value in values.items():
        tag_of(keyword)
        try:
            setattr(dataset, keyword, value)
        except Exception:  # noqa: BLE001 - pydicom raises several kinds, and quotes the value
            raise ValueError(f"{keyword} does not take this value") from None
    parsed: DicomJson = dataset.to_json_dict()
    if len(parsed) != len(values):
        raise ValueError("attributes are named by keyword here, such as PatientName")
    return parsed


def values_of(item: Mapping[str, Any], name: str) -> Sequence[Any]:
    """Return an attribute's values, () if it is absent, empty or misshapen."""
    return values_at(item, tag_of(name))


def values_at(item: Mapping[str, Any], tag: str) -> Sequence[Any]:
    """Return the values at a tag given as eight upper-case hex digits; else as ``values_of``."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, (dict, Mapping)) else None
    return values if isinstance(values, list) else ()


def value_of(item: Mapping[str, Any], name: str) -> Any:
    """Return an attribute's first value, None if there is none."""
    return value_at(item, tag_of(name))


def value_at(item: Mapping[str, Any], tag: str) -> Any:
    """Return the first value at a tag given as eight upper-case hex digits, None if there is none."""
    values = values_at(item, tag)
    return values[0] if values else None


def uid_of(item: Mapping[str, Any], name: str) -> str:
    """Return a UID without its padding, "" if there is none."""
    return uid_at(item, tag_of(name))


def uid_at(item: Mapping[str, Any], tag: str) -> str:
    """Return the UID at a tag given as eight upper-case hex digits, "" if there is none."""
    value = value_at(item, tag)
    return value.strip(" \0") if isinstance(value, str) else ""


def to_dataset(item: Mapping[str, Any]) -> Dataset:
    """Turn one DICOM JSON data set into a pydicom Dataset; bulk data URIs stay away (empty values)."""
    from pydicom.dataset import Dataset  # noqa: PLC0415 - 20 MB that only callers who want data sets pay

    return Dataset.from_json(dict(item), bulk_data_uri_handler=lambda *_args: None)


def to_datasets(items: Iterable[Mapping[str, Any]]) -> list[Dataset]:
    """Turn DICOM JSON data sets into pydicom Datasets."""
    return [to_dataset(item) for item in items]
