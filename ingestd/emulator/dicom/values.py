"""Values of data elements as text and numbers, the way fo-dicom reads them (PS3.5 §6)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from struct import Struct, iter_unpack

from pydicom.charset import CODES_TO_ENCODINGS, python_encoding

from .walk import Element

# PS3.5 Table 6.2-1: multi-valued by backslash; the others in TEXT are one value whatever they hold.
SPLIT_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UC", "UI"})
TEXT_VRS = SPLIT_VRS | {"LT", "ST", "UT", "UR"}
CODED_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
# Binary numbers: what ``struct`` calls one value, and how many bytes it takes.
NUMBER_VRS = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q"}
WIDTHS = {vr: Struct("<" + code).size for vr, code in NUMBER_VRS.items()}
_PN_DELIMITER, _DELIMITER = re.compile(rb"[\\^=\r\n\t\f]"), re.compile(rb"[\\\r\n\t\f]")
_SPECIFIC_CHARACTER_SET = 0x00080005
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
            if vr not in CODED_VRS:
                return value.decode("iso8859")
            if self._encodings[0] == "iso8859":  # nothing, or nothing known, is named
                with suppress(UnicodeDecodeError):
                    return value.decode("utf8")
            return value.decode(self._encodings[0], "replace")
        if vr not in CODED_VRS or len(self._encodings) == 1:
            return value.decode("iso8859" if vr not in CODED_VRS else self._encodings[0], "replace")
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


def text_of(elements: list[Element], outer: Text | None = None) -> Text:
    """The text decoder of a data set: its own Specific Character Set, or the one of what surrounds it."""
    for element in elements:
        if element.tag == _SPECIFIC_CHARACTER_SET and element.value is not None:
            return Text(element.value.decode("ascii", "replace").rstrip("\0 ").split("\\"))
        if element.tag > _SPECIFIC_CHARACTER_SET:
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
    width = WIDTHS[element.vr]
    value = element.value or b""
    whole = value[: len(value) - len(value) % width]
    return [number for (number,) in iter_unpack((">" if big_endian else "<") + NUMBER_VRS[element.vr], whole)]


class DataSet:
    """The elements of a file or of its metadata, and how their values are read."""

    def __init__(self, elements: list[Element], *, big_endian: bool = False, text: Text | None = None) -> None:
        self.elements = elements
        self.big_endian = big_endian
        self.by_tag = {element.tag: element for element in elements}
        self.text = text or text_of(elements)

    def strings(self, tag: int) -> list[str]:
        """A text attribute's values; none where it is absent or empty."""
        element = self.by_tag.get(tag)
        return [] if element is None else strings_of(element, self.text)

    def numbers(self, tag: int, vr: str) -> list[int | float]:
        """A binary attribute's values; none where it is absent, or of another VR."""
        element = self.by_tag.get(tag)
        return numbers_of(element, big_endian=self.big_endian) if element is not None and element.vr == vr else []
