"""Judges what a client sends of extended query tags, in the service's order and words (AZURE.md 6.2)."""

from __future__ import annotations

from typing import Any

from pydicom.valuerep import VR

from ..dicom.attributes import CORE_BY_TAG, MODALITIES_IN_STUDY, Level
from ..dicom.dictionary import dictionary_vr, is_private, is_private_creator, tag_of
from ..dicom.minimum_rules import INDEXABLE_VRS
from ..errors import Problem

_FIELDS = {"path": "Path", "vr": "VR", "privatecreator": "PrivateCreator", "level": "Level"}
_LEVELS = ", ".join(f"'{level.capitalize()}'" for level in sorted(Level))
# What a reader of JSON calls the beginning of a value that is no string and not null.
_TOKENS = {bool: "True", int: "Number", float: "Number", list: "StartArray", dict: "StartObject"}


def invalid_field(field: str, message: str) -> Problem:
    """The refusal of a body because of one of its fields."""
    return Problem(400, f"The field '{field}' in request body is invalid: {message}")


def unparsable(path: str) -> Problem:
    """The refusal of a path that names no tag."""
    return Problem(400, f"The extended query tag '{path}' is invalid as it cannot be parsed into a valid Dicom Tag.")


def entries_of(body: Any) -> list[dict[str, str]]:
    """The fields of each tag that the body tells of, with lowercase names; raises Problem 400.

    A path that begins with "$" is the reader's of the JSON, one without is that of the check of what was read.
    """
    if not isinstance(body, list) or not all(isinstance(each, dict) for each in body):
        raise invalid_field("$", "The JSON value could not be converted to a list of extended query tags.")
    entries = [_read(f"$[{number}]", each) for number, each in enumerate(body)]
    for number, entry in enumerate(entries):
        for required in ("path", "level"):
            if not entry.get(required, "").strip():
                raise invalid_field(
                    f"[{number}].{_FIELDS[required]}",
                    f"The Dicom Tag Property {_FIELDS[required]} must be specified and must not be null, empty or "
                    "whitespace.",
                )
    return entries


def _read(place: str, given: dict[str, Any]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in given.items():
        known = name.lower()
        if known not in _FIELDS or value is None:
            continue
        if not isinstance(value, str):
            token = "False" if value is False else _TOKENS[type(value)]
            raise invalid_field(f"{place}.{name}", f"Expected token type 'String' but read '{token}' instead.")
        if known == "level" and value.lower() not in set(Level):
            raise invalid_field(
                f"{place}.{name}", f"Expected value '{value}' to be one of the following values: [{_LEVELS}]"
            )
        fields[known] = value
    return fields


def query_status(body: Any) -> str:
    """Whether a tag shall be ``enabled`` or ``disabled``; raises Problem 400."""
    if not isinstance(body, dict):
        raise invalid_field("$", "The JSON value could not be converted to the status of a tag.")
    status = None
    for name, value in body.items():
        if name.lower() != "querystatus" or value is None:
            continue
        status = value.lower() if isinstance(value, str) else ""
        if status not in ("enabled", "disabled"):
            raise invalid_field(f"$.{name}", 'The value is not valid. It need to be one of "Disabled","Enabled".')
    for name in body:
        if name.lower() != "querystatus":
            raise invalid_field(name, f'The field is not supported: "{name}".')
    if status is None:
        raise invalid_field("QueryStatus", "The QueryStatus field is required.")
    return status


def checked(entries: list[dict[str, str]]) -> list[dict[str, str]]:
    """The tags as they are kept, each with its eight hex digits and its VR; raises Problem 400."""
    found: list[dict[str, str]] = []
    for entry in entries:
        tag = _checked(entry)
        if any(tag["path"] == other["path"] for other in found):
            raise Problem(400, f"The extended query tag '{entry['path']}' has been specified before.")
        found.append(tag)
    if not found:
        raise Problem(400, "The extended query tag(s) is missing.")
    return found


def _checked(entry: dict[str, str]) -> dict[str, str]:
    path = entry["path"]
    if "." in path:
        raise Problem(
            400,
            f"Dicom element '{path}' failed validation for VR 'SQ': Sequential dicom tags are currently not supported.",
        )
    tag = tag_of(path)
    if tag is None:
        raise unparsable(path)
    if tag in CORE_BY_TAG or tag == MODALITIES_IN_STUDY:
        raise Problem(400, f"The query tag '{path}' is already supported.")
    creator = entry.get("privatecreator", "").strip()
    _check_creator(path, tag, creator)
    vr = _vr(path, tag, entry.get("vr", "").strip())
    kept = {"path": f"{tag:08X}", "vr": vr, "level": entry["level"].lower()}
    return kept | {"privatecreator": creator} if creator else kept


def _check_creator(path: str, tag: int, creator: str) -> None:
    if not is_private(tag) or is_private_creator(tag):
        kind = "private identification code" if is_private(tag) else "standard tag"
        if creator:
            raise Problem(400, f"The private creator is not empty for {kind} '{path}'.")
    elif not creator:
        raise Problem(400, f"The private creator for private tag '{path}' is missing.")
    elif len(creator) > 64 or "\\" in creator:
        raise Problem(400, f"The private creator for tag '{path}' is not a valid LO attribute.")


def _vr(path: str, tag: int, given: str) -> str:
    vr = given.upper()
    if vr and vr not in VR.__members__:
        raise Problem(400, f"The VR code '{given}' for tag '{path}' is invalid.")
    expected = ["LO"] if is_private_creator(tag) else (dictionary_vr(tag) or "").split(" or ")
    if not vr and not expected[0]:
        raise Problem(400, f"The vr for tag '{path}' is missing.")
    if vr and expected[0] and vr not in expected:
        raise Problem(
            400,
            f"The VR code '{given}' is incorrectly specified for '{path}'. The expected VR code for it is "
            f"'{expected[0]}'. Retry this request either with the correct VR code or without specifying it.",
        )
    vr = vr or expected[0]
    if vr not in INDEXABLE_VRS:
        raise Problem(400, f"The VR code '{vr}' specified for tag '{path}' is not supported.")
    return vr
