"""Values of data elements as text and as DICOM JSON (PS3.18 Annex F), the way fo-dicom writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from contextlib import suppress
from operator import itemgetter
from struct import Struct, iter_unpack, pack
from typing import Any

from pydicom.charset import CODES_TO_ENCODINGS, python_encoding

from .parser import BULK_VRS, Element

Json = dict[str, Any]

# PS3.5 Table 6.2-1: multi-valued by backslash; the others in TEXT are one value whatever they hold.
SPLIT_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UC", "UI"})
TEXT_VRS = SPLIT_VRS | {"LT", "ST", "UT", "UR"}
_CODED_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_NUMBERS = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q"}
_WIDTH = {vr: Struct("<" + code).size for vr, code in _NUMBERS.items()}
_DECIMAL = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*\Z")
_FLOAT = Struct("<f")
_BY_TAG = itemgetter(0)
_INTEGER = re.compile(r"\s*[+-]?\d+\s*\Z")
_PN_DELIMITER, _DELIMITER = re.compile(rb"[\\^=\r\n\t\f]"), re.compile(rb"[\\\r\n\t\f]")
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
SPECIFIC_CHARACTER_SET = 0x00080005
# By the letters and digits of the term alone: "ISO IR 192" is a misspelling that a device sends for years.
_NOT_SPELT = re.compile(r"[^A-Z0-9]")
_ENCODINGS = {_NOT_SPELT.sub("", term): str(encoding) for term, encoding in python_encoding.items()}
_ENCODINGS = {term.replace("2022", ""): encoding for term, encoding in _ENCODINGS.items()} | _ENCODINGS
_ENCODINGS |= {f"ISO8859{part}": f"iso8859_{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11)}
_ENCODINGS |= {"UTF8": "utf8", "ISO2022IR192": "utf8", "LATIN1": "latin_1"}
_ENCODINGS |= {"SHIFTJIS": "shift_jis", "EUCKR": "euc_kr", "GB2312": "gbk"}


class Text:
    """Turns bytes into text by the Specific Character Set in force (PS3.5 §6.1)."""

    def __init__(self, terms: Iterable[str] = ()) -> None:
        self._encodings = [_ENCODINGS.get(_NOT_SPELT.sub("", term.upper()), "iso8859") for term in terms] or ["iso8859"]

    def decode(self, value: bytes, vr: str) -> str:
        """The value as text; what cannot be decoded becomes a replacement character, never an error."""
        if b"\x1b" not in value:
            if value.isascii():
                return value.decode("ascii")
            if vr not in _CODED_VRS:
                return value.decode("iso8859")
            if self._encodings[0] == "iso8859":  # nothing, or nothing known, is named
                with suppress(UnicodeDecodeError):
                    return value.decode("utf8")
            return value.decode(self._encodings[0], "replace")
        if vr not in _CODED_VRS or len(self._encodings) == 1:
            return value.decode("iso8859" if vr not in _CODED_VRS else self._encodings[0], "replace")
        initial, *escaped = value.split(b"\x1b")
        pieces = [initial.decode(self._encodings[0], "replace")]
        pieces.extend(self._escaped(b"\x1b" + fragment, vr) for fragment in escaped)
        return "".join(pieces)

    def _escaped(self, fragment: bytes, vr: str) -> str:
        size = next((size for size in (4, 3) if fragment[:size] in CODES_TO_ENCODINGS), 0)
        encoding = str(CODES_TO_ENCODINGS.get(fragment[:size], "iso8859"))
        if encoding.startswith("iso2022"):
            # A codec that reads the escape sequence itself. Bytes of its characters are those of delimiters; a true
            # one stands behind the next escape sequence (PS3.5 §6.1.2.5.3).
            return fragment.decode(encoding, "replace")
        # The initial state returns at every delimiter.
        delimiter = (_PN_DELIMITER if vr == "PN" else _DELIMITER).search(fragment, size)
        end = delimiter.start() if delimiter else len(fragment)
        return fragment[size:end].decode(encoding, "replace") + fragment[end:].decode(self._encodings[0], "replace")


METADATA_TEXT = Text(["ISO_IR 192"])


def text_of(elements: list[Element], outer: Text | None = None) -> Text:
    """The text decoder of a data set: its own Specific Character Set, or the one of what surrounds it."""
    for element in elements:
        if element.tag == SPECIFIC_CHARACTER_SET and element.value is not None:
            return Text(element.value.decode("ascii", "replace").rstrip("\0 ").split("\\"))
        if element.tag > SPECIFIC_CHARACTER_SET:
            break
    return outer or Text()


def strings_of(element: Element, text: Text) -> list[str]:
    """The values of a text element, padding of the VR removed; none for an empty one."""
    if not element.value:
        return []
    whole = text.decode(element.value, element.vr)
    padding = "\0" if element.vr == "UI" else " "
    if element.vr in SPLIT_VRS:
        if "\\" not in whole:
            stripped = whole.rstrip(padding)
            return [stripped] if stripped else []
        return [part.rstrip(padding) for part in whole.split("\\")]
    stripped = whole.rstrip(" ")
    return [stripped] if stripped else []


def numbers_of(element: Element, *, big_endian: bool) -> list[int | float]:
    """The values of a binary number element; an incomplete last one is left out."""
    width = _WIDTH[element.vr]
    value = element.value or b""
    whole = value[: len(value) - len(value) % width]
    order = ">" if big_endian else "<"
    return [number for (number,) in iter_unpack(order + _NUMBERS[element.vr], whole)]


def is_number(vr: str) -> bool:
    """Whether values of this VR are binary numbers."""
    return vr in _NUMBERS


def width_of(vr: str) -> int:
    """How many bytes one value of a binary number VR takes."""
    return _WIDTH[vr]


def person_name(value: str) -> Json:
    """A person name as DICOM JSON's object of component groups."""
    groups = value.split("=")
    return {name: group for name, group in zip(_NAME_GROUPS, groups, strict=False) if group}


def to_json(
    elements: list[Element], *, big_endian: bool, text: Text | None = None, without: frozenset[int] = frozenset()
) -> Json:
    """A data set as DICOM JSON without bulk, group lengths and the given tags; keys ascending."""
    decoder = text_of(elements, text)
    answer: Json = {}
    for element in sorted(elements, key=_BY_TAG):
        tag, vr = element.tag, element.vr
        if vr in BULK_VRS or tag & 0xFFFF == 0 or tag in without:
            continue
        if vr == "SQ":
            items = [to_json(item, big_endian=big_endian, text=decoder) for item in element.items or ()]
            answer[f"{tag:08X}"] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
            continue
        values = json_values(element, decoder, big_endian=big_endian)
        answer[f"{tag:08X}"] = {"vr": vr, "Value": values} if values else {"vr": vr}
    return answer


def json_values(element: Element, text: Text, *, big_endian: bool) -> list[Any]:
    """The values of one element that is neither bulk nor a sequence, as JSON."""
    vr = element.vr
    if vr in _NUMBERS:
        numbers = numbers_of(element, big_endian=big_endian)
        return [_finite(_shortest(number) if vr == "FL" else number) for number in numbers]
    if vr == "AT":
        value = element.value or b""
        order = ">HH" if big_endian else "<HH"
        return [f"{group:04X}{number:04X}" for group, number in iter_unpack(order, value[: len(value) & ~3])]
    strings = strings_of(element, text)
    if vr == "PN":
        return [person_name(value) or None for value in strings]
    if vr == "DS":
        return [_decimal(value) for value in strings]
    if vr == "IS":
        return [int(value) if _is_integer(value) else value or None for value in strings]
    return [value or None for value in strings]


def elements_of(metadata: Json) -> list[Element]:
    """A data set of DICOM JSON as elements again, text in ``METADATA_TEXT`` and numbers little endian; no items."""
    return [
        Element(int(key, 16), entry["vr"], _value_of(entry["vr"], entry.get("Value", [])), None)
        for key, entry in metadata.items()
    ]


def _value_of(vr: str, values: list[Any]) -> bytes | None:
    if vr in _NUMBERS:
        whole = vr not in ("FD", "FL")
        return b"".join(pack("<" + _NUMBERS[vr], value if whole else float(value)) for value in values)
    if vr not in TEXT_VRS:
        return None
    text = "\\".join(map(_plain, values))
    return text.encode("utf-8" if vr in _CODED_VRS else "latin-1", "replace")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "=".join(str(value.get(group) or "") for group in _NAME_GROUPS).rstrip("=")
    return "" if value is None else str(value)


def _shortest(number: float) -> float:
    # What .NET writes of 32 bits: the digits it takes to tell the number from its neighbours, not those of a double.
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if _FLOAT.pack(short) == _FLOAT.pack(number):
            return short
    return float(f"{number:.9g}")


def _finite(number: float) -> float | str:
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number


def _is_integer(value: str) -> bool:
    return len(value) < 18 and _INTEGER.match(value) is not None


def _decimal(value: str) -> int | float | str | None:
    if _is_integer(value):
        return int(value)
    if _DECIMAL.match(value):
        number = float(value)
        return number if math.isfinite(number) else value
    return value or None
