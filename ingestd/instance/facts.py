"""What reading a file can tell: verdicts, limits and the facts themselves. Plain types, no pydicom, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What became of reading one file; the value is what crosses the pipe from the reader's child."""

    WHOLE = "whole"
    SHORT = "short"  # ends before its lengths say
    EMPTY = "empty"  # no byte, or zeros only
    ZEROS = "zeros"  # may not be written to its end yet though it adds up: waits, then is admitted with its notes
    NOT_DICOM = "not_dicom"
    DICOMDIR = "dicomdir"
    ARCHIVE = "archive"  # holds other files, which may be DICOM
    HOSTILE = "hostile"  # beyond a limit that no real object comes near
    NO_UIDS = "no_uids"
    CHANGED = "changed"  # another file, or changed while it was read
    UNREADABLE = "unreadable"  # cannot be opened, or is no regular file; says nothing about its content


# Where a file stops being an object and becomes an attack: on cost alone, never on counts or ratios. However much a
# file holds many of, it is walked in the same memory; its time is bounded where the readers are.
NESTING_MOST = 64  # sequences inside sequences
INFLATED_MOST = 8 << 30  # bytes of a deflated data set
META_MOST = 16 << 20  # bytes of preamble and group 0002


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What one file is. Facts that were reached before a bad verdict are filled in; the others are empty.

    ``digest`` is that of the bytes from ``dataset_offset`` to the end of the file as stored (a deflated data set stays
    deflated), ``meta_digest`` that of the bytes before (``ingestd.digests``), ``sha256`` that of all, in hex.
    ``device`` to ``ctime_ns`` are the kernel's, of the descriptor that was read, after it was read; ``ctime_ns`` is 0
    where it changed meanwhile. ``patient_id`` and ``accession_number`` are patient data: they may be hashed, never kept
    or logged. ``institution`` to ``study_description`` are for the rules that say where a file goes, and are neither
    kept nor logged: people write names into them.
    """

    verdict: Verdict
    reason_text: str = ""  # a sentence that a person understands, without patient data; "" when WHOLE
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sop_class_uid: str = ""
    transfer_syntax: str = ""
    digest: str = ""
    meta_digest: str = ""
    sha256: str = ""
    dataset_offset: int = 0
    size_bytes: int = 0
    device: int = 0
    inode: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    modality: str = ""
    station: str = ""
    institution: str = ""
    department: str = ""
    source_ae: str = ""  # as group 0002 has it; many writers leave it empty
    study_description: str = ""
    patient_id: str = ""
    accession_number: str = ""
    generated_meta: bool = False  # no File Meta in the file: file_meta_for() gives the bytes to put in front
    notes: tuple[str, ...] = ()  # machine words, see NOTES


# Every word that ``Inspection.notes`` may hold, and what it means. None of them keeps a file from being admitted.
NOTES: dict[str, str] = {
    "accession_undecodable": "the accession number could not be decoded with the character set the file names",
    "delimiter_length": "a delimiter carries a length",
    "duplicate_element": "an attribute stands in the data set twice, with the same value",
    "encoding_differs": "the data set is not encoded as its transfer syntax says",
    "explicit_inside_implicit": "elements with explicit VR inside implicit content",
    "fragment_outside_item": "bytes that are no item inside content of undefined length",
    "generated_meta": "no preamble and no File Meta; generated in front when sent",
    "group_length_differs": "the File Meta group length is wrong",
    "inner_overrun": "an element is longer than the item that holds it",
    "long_value": "an identifying attribute is longer than any legal value",
    "main_element_missing": "what the SOP class is for (pixel data, document, waveform, content) is not there",
    "meta_implicit": "the File Meta group is encoded with implicit VR",
    "meta_uid_differs": "File Meta and data set name different instances; the data set's UIDs count",
    "missing_delimiter": "a sequence, item or pixel data of undefined length lacks its delimiter",
    "no_group_length": "the File Meta group has no group length",
    "no_preamble": "File Meta without the preamble and prefix",
    "no_sop_class": "no SOP Class UID",
    "no_transfer_syntax": "no Transfer Syntax UID in File Meta; found out from the data set",
    "odd_length": "a value of odd length",
    "patient_id_undecodable": "the patient ID could not be decoded with the character set the file names",
    "pixel_data_defined_length": "compressed pixel data with a length of its own, not ended by a delimiter",
    "pixel_data_longer": "native pixel data is longer than rows, columns, frames, samples and bits imply",
    "pixel_data_shorter": "pixel data is empty, or shorter than rows, columns, frames, samples and bits imply",
    "pixel_data_unchecked": "native pixel data without the attributes that say how long it must be",
    "private_implicit": "elements with implicit VR inside explicit content",
    "short_form_length": "a 16-bit length where the VR asks for 32 bits",
    "stray_delimiter": "a delimiter or item where none can be",
    "trailing_after_deflate": "bytes after the end of the deflated data set",
    "trailing_bytes": "bytes after the pixel data that are no element",
    "trailing_nulls": "zeros after the last element",
    "trailing_padding": "Data Set Trailing Padding (FFFC,FFFC)",
    "uid_leading_zero": "a UID component with a leading zero",
    "unknown_vr": "a VR that the standard does not know",
    "zero_pixels": "pixel data is all zeros, or the end of the file was never written",
    "zlib_wrapper": "the deflated data set has a zlib header",
}


class InvalidInstance(Exception):
    """The file is not a whole DICOM object; ``verdict`` says in which way, ``reason`` in words without patient data."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason


class CannotReencode(Exception):
    """There is no lossless way to Explicit VR Little Endian for this file that does not touch its pixels."""
