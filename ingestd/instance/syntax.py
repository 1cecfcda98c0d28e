"""The standard's tables that reading a file needs: transfer syntaxes, value representations, what a class is for."""

from __future__ import annotations

from enum import Enum

from ingestd.instance.tags import PIXELS

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
GE_PRIVATE_IMPLICIT = "1.2.840.113619.5.2"  # implicit little endian, but for the bytes of its pixel data

# The whole data set is one deflate stream (PS3.5 Annex A.5; the JPIP ones: A.6, A.12).
DEFLATED = frozenset({DEFLATED_EXPLICIT_LITTLE, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

_NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED_EXPLICIT_LITTLE, EXPLICIT_BIG, GE_PRIVATE_IMPLICIT})


def is_native(transfer_syntax: str) -> bool:
    """Whether pixel data of this transfer syntax is not compressed, so that its attributes say how long it is."""
    return transfer_syntax in _NATIVE


class Encoding(Enum):
    """How the elements of a data set are written (PS3.5 §7.1, §7.3)."""

    EXPLICIT_LITTLE = "explicit_little"
    IMPLICIT_LITTLE = "implicit_little"
    EXPLICIT_BIG = "explicit_big"


def encoding_of(transfer_syntax: str) -> Encoding:
    """Say how a data set of this transfer syntax is written; every syntax but three is Explicit VR Little Endian."""
    if transfer_syntax in (IMPLICIT_LITTLE, GE_PRIVATE_IMPLICIT):
        return Encoding.IMPLICIT_LITTLE
    if transfer_syntax == EXPLICIT_BIG:
        return Encoding.EXPLICIT_BIG
    return Encoding.EXPLICIT_LITTLE


# PS3.5 Table 7.1-2 and Table 7.1-1: VRs with a 16-bit length, and those with two reserved bytes and a 32-bit length.
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
# Those of them that were added to the standard late; writers that did not know them took them for short ones.
YOUNG_VRS = frozenset(b"OV SV UC UR UT UV".split())
# Padded with trailing spaces; UI and what senders mix up with it, with NULs (PS3.5 §6.2).
TEXT_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())
# Bytes to swap as one when the byte order changes (PS3.5 §7.3). Not listed: nothing to swap.
WORD_BYTES = {
    **dict.fromkeys((b"AT", b"OW", b"SS", b"US"), 2),
    **dict.fromkeys((b"FL", b"OF", b"OL", b"SL", b"UL"), 4),
    **dict.fromkeys((b"FD", b"OD", b"OV", b"SV", b"UV"), 8),
}

UNDEFINED = 0xFFFFFFFF

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Storage classes whose instances are images (PS3.4 Table B.5-1), by what follows the common root.
_IMAGE_CLASSES = frozenset(
    {
        *("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "2", "2.1", "2.2", "3", "3.1", "4", "4.1", "4.3", "4.4"),
        *("5", "6", "6.1", "6.2", "6.3", "7", "7.1", "7.2", "7.3", "7.4", "12.1", "12.1.1", "12.2", "12.2.1"),
        *("12.3", "13.1.1", "13.1.2", "13.1.3", "13.1.4", "13.1.5", "14.1", "14.2", "20", "30", "66.4"),
        *("77.1", "77.2", "77.1.1", "77.1.1.1", "77.1.2", "77.1.2.1", "77.1.3", "77.1.4"),
        *("77.1.4.1", "77.1.5.1", "77.1.5.2", "77.1.5.4", "77.1.5.5", "77.1.5.6"),
        *("77.1.5.7", "77.1.6", "77.1.7", "77.1.8", "77.1.9", "81.1", "82.1", "128", "128.1", "130"),
        *("481.1", "481.23", "481.24", "501.1", "501.2.1", "501.2.2", "501.4", "501.5", "601.1", "601.2"),
    }
)
# What other classes are made to carry (PS3.3); where several are given, one of them is enough.
_OTHER_CLASSES = {
    "4.2": (0x56000020,),  # Spectroscopy Data
    "66.1": (0x00700308,),  # Registration Sequence
    "66.2": (0x0070031C,),  # Fiducial Set Sequence
    "66.3": (0x00640002,),  # Deformable Registration Sequence
    "66.5": (0x00660002,),  # Surface Sequence
    "481.2": (*PIXELS, 0x30040050),  # RT Dose: a grid, or nothing but DVH Sequence
    "481.3": (0x30060080,),  # RT ROI Observations Sequence
    "481.4": (0x30080020,),  # Treatment Session Beam Sequence
    "481.5": (0x300A00B0, 0x300A0230),  # Beam Sequence, Application Setup Sequence
    "481.6": (0x30080110,),  # Treatment Session Application Setup Sequence
    "481.8": (0x300A03A2,),  # Ion Beam Sequence
    "481.9": (0x30080021,),  # Treatment Session Ion Beam Sequence
}
_CLASSES_BELOW = {
    "9.": (0x54000100,),  # waveforms: Waveform Sequence
    "88.": (0x0040A730,),  # structured reports: Content Sequence
    "104.": (0x00420011,),  # encapsulated PDF, CDA, STL, OBJ, MTL: Encapsulated Document
}
_NO_WAVEFORMS = "9.100."  # presentation states of waveforms

MAIN_ELEMENTS = frozenset(
    tag for tags in (*_OTHER_CLASSES.values(), *_CLASSES_BELOW.values()) for tag in tags if tag not in PIXELS
)


def main_elements(sop_class_uid: str) -> tuple[int, ...]:
    """Give the elements one of which an instance of this class is made to carry; none where that cannot be said.

    A file cut exactly between two elements adds up; only the missing main element shows it.
    """
    if not sop_class_uid.startswith(_STORAGE):
        return ()
    rest = sop_class_uid[len(_STORAGE) :]
    if rest in _IMAGE_CLASSES:
        return PIXELS
    if rest in _OTHER_CLASSES:
        return _OTHER_CLASSES[rest]
    if rest.startswith(_NO_WAVEFORMS):
        return ()
    return next((tags for prefix, tags in _CLASSES_BELOW.items() if rest.startswith(prefix)), ())
