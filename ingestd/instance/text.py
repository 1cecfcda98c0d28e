"""Turn the bytes of text values into text; pydicom is asked only for what is not ASCII (PS3.5 §6.1)."""

from __future__ import annotations

import re
import warnings
from functools import cache, lru_cache

_NOT_SPELT = re.compile(r"[^A-Z0-9]")
# What else the defined terms (PS3.3 §C.12.1.1.2) are called: by the parts of ISO 8859, and as other programs do.
_PARTS_OF_8859 = {1: 100, 2: 101, 3: 109, 4: 110, 5: 144, 6: 127, 7: 126, 8: 138, 9: 148, 11: 166}
_OTHER_NAMES = {
    "UTF8": "ISO_IR 192",
    "ISO2022IR192": "ISO_IR 192",
    "LATIN1": "ISO_IR 100",
    "SHIFTJIS": "ISO_IR 13",
    "EUCKR": "ISO 2022 IR 149",
    "GB2312": "GBK",
}


# Patient, station and modality are the same for many files in a row.
@lru_cache(maxsize=64)
def decode_text(value: bytes, character_set: bytes) -> tuple[str, bool]:
    """Give the text, trailing padding stripped, and whether every byte could be decoded as the file says.

    A misspelt character set is taken for what is meant. What no character set names or fits is UTF-8 where it is that,
    and else kept as Latin-1, so that equal bytes stay equal text.
    """
    value = value.rstrip(b" \0")
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip(), True
    # Heavy, and needed by few files: in the reader's child, never in the daemon.
    from pydicom.charset import convert_encodings, decode_bytes, default_encoding  # noqa: PLC0415
    from pydicom.valuerep import TEXT_VR_DELIMS  # noqa: PLC0415

    names = [defined_term(name) for name in character_set.decode("ascii", "replace").rstrip(" \0").split("\\")]
    with warnings.catch_warnings():
        # pydicom warns, with the value in the text, where it falls back to replacement characters.
        warnings.simplefilter("error")
        try:
            encodings = convert_encodings(names)
            if encodings[0] != default_encoding or b"\x1b" in value:
                return decode_bytes(value, encodings, TEXT_VR_DELIMS).strip(), True
            readable = True
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever pydicom makes of a strange character set, the bytes are the answer
            readable = False
    try:
        return value.decode("utf-8").strip(), readable
    except UnicodeDecodeError:
        return value.decode("latin-1").strip(), readable


@cache
def _terms_by_letters() -> dict[str, str]:
    from pydicom.charset import python_encoding  # noqa: PLC0415

    terms = {_NOT_SPELT.sub("", term): term for term in python_encoding}
    # What has an escape sequence only is named without it, too: "ISO_IR 149", "ISO_IR 87".
    terms = {key.replace("2022", ""): term for key, term in terms.items()} | terms
    latin = {f"ISO8859{part}": f"ISO_IR {number}" for part, number in _PARTS_OF_8859.items()}
    return terms | latin | _OTHER_NAMES


def defined_term(name: str) -> str:
    """Give the defined term (PS3.3 §C.12.1.1.2) with these letters and digits, whatever is between; else the name."""
    return _terms_by_letters().get(_NOT_SPELT.sub("", name.upper()), name.strip())
