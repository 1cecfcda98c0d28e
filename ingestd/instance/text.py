"""Turn the bytes of text values into text; pydicom is asked only for what is not ASCII (PS3.5 §6.1)."""

from __future__ import annotations

import warnings
from functools import lru_cache


# Patient, station and modality are the same for many files in a row.
@lru_cache(maxsize=64)
def decode_text(value: bytes, character_set: bytes) -> tuple[str, bool]:
    """Give the text, trailing padding stripped, and whether every byte could be decoded as the file says.

    What cannot be decoded is kept as Latin-1, so that equal bytes stay equal text.
    """
    value = value.rstrip(b" \0")
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip(), True
    # Heavy, and needed by few files: in the reader's child, never in the daemon.
    from pydicom.charset import convert_encodings, decode_bytes  # noqa: PLC0415
    from pydicom.valuerep import TEXT_VR_DELIMS  # noqa: PLC0415

    names = [name.strip() for name in character_set.decode("ascii", "replace").rstrip(" \0").split("\\")]
    with warnings.catch_warnings():
        # pydicom warns, with the value in the text, where it falls back to replacement characters.
        warnings.simplefilter("error")
        try:
            return decode_bytes(value, convert_encodings(names), TEXT_VR_DELIMS).strip(), True
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever pydicom makes of a strange character set, the bytes are the answer
            return value.decode("latin-1").strip(), False
