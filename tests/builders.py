"""DICOM files made for tests, byte by byte, without pydicom: valid by default, and as odd as a test asks.

``write_instance`` and ``instance_bytes`` make whole objects from a few words; ``element``, ``sequence`` and ``part10``
are what they are made of, for tests that need other shapes.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
NATIVE = frozenset({EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED})

_LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_TEXT_PAD = {"UI": b"\0", "OB": b"\0", "UN": b"\0"}
_ROOT = "1.2.826.0.1.3680043.10.1.999"
_numbers = itertools.count(1)


def fresh_uid(kind: int = 0) -> str:
    """A UID that no other call in this process gives."""
    return f"{_ROOT}.{kind}.{next(_numbers)}"


def element(
    tag: int,
    vr: str,
    value: bytes | str | int,
    *,
    transfer_syntax: str = EXPLICIT,
    length: int | None = None,
    pad: bool = True,
) -> bytes:
    """One data element; ``length`` overrides the declared length (0xFFFFFFFF: undefined)."""
    order = ">" if transfer_syntax == BIG_ENDIAN else "<"
    if isinstance(value, int):
        value = struct.pack(order + {"US": "H", "SS": "h", "UL": "I", "SL": "i"}[vr], value)
    elif isinstance(value, str):
        value = value.encode("latin-1")
    if pad and len(value) % 2:
        value += _TEXT_PAD.get(vr, b" ")
    declared = len(value) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if transfer_syntax == IMPLICIT:
        return head + struct.pack("<I", declared) + value
    if vr in _LONG:
        return head + vr.encode("ascii") + b"\0\0" + struct.pack(order + "I", declared) + value
    return head + vr.encode("ascii") + struct.pack(order + "H", declared) + value


def item(content: bytes, *, transfer_syntax: str = EXPLICIT, undefined: bool = False) -> bytes:
    """One item of a sequence, or one fragment."""
    order = ">" if transfer_syntax == BIG_ENDIAN else "<"
    if undefined:
        return struct.pack(order + "HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + content + delimiter(0xE00D, transfer_syntax)
    return struct.pack(order + "HHI", 0xFFFE, 0xE000, len(content)) + content


def delimiter(number: int, transfer_syntax: str = EXPLICIT) -> bytes:
    """An item (0xE00D) or sequence (0xE0DD) delimiter."""
    return struct.pack((">" if transfer_syntax == BIG_ENDIAN else "<") + "HHI", 0xFFFE, number, 0)


def sequence(
    tag: int, items: Sequence[bytes], *, transfer_syntax: str = EXPLICIT, undefined: bool = False, vr: str = "SQ"
) -> bytes:
    """A sequence of ready-made item contents, with all its lengths defined or all undefined."""
    content = b"".join(item(each, transfer_syntax=transfer_syntax, undefined=undefined) for each in items)
    if undefined:
        content += delimiter(0xE0DD, transfer_syntax)
        return element(tag, vr, content, transfer_syntax=transfer_syntax, length=0xFFFFFFFF, pad=False)
    return element(tag, vr, content, transfer_syntax=transfer_syntax, pad=False)


def encapsulated(fragments: Sequence[bytes], *, tag: int = 0x7FE00010, vr: str = "OB") -> bytes:
    """Pixel data of undefined length: an empty offset table, the fragments, the delimiter (PS3.5 Annex A.4)."""
    padded = [each + b"\0" * (len(each) % 2) for each in fragments]
    return (
        element(tag, vr, b"", length=0xFFFFFFFF) + b"".join(item(each) for each in [b"", *padded]) + delimiter(0xE0DD)
    )


def file_meta(
    *, sop_class: str = CT_IMAGE, sop_uid: str, transfer_syntax: str = EXPLICIT, preamble: bytes = b""
) -> bytes:
    """Preamble, prefix and group 0002."""
    group = (
        element(0x00020001, "OB", b"\0\1")
        + element(0x00020002, "UI", sop_class)
        + element(0x00020003, "UI", sop_uid)
        + element(0x00020010, "UI", transfer_syntax)
        + element(0x00020012, "UI", f"{_ROOT}.0")
    )
    length = element(0x00020000, "UL", len(group))
    return preamble.ljust(128, b"\0") + b"DICM" + length + group


def part10(dataset: bytes, *, sop_class: str = CT_IMAGE, sop_uid: str, transfer_syntax: str = EXPLICIT) -> bytes:
    """A whole file around ready-made data set bytes; deflates them where the transfer syntax says so."""
    if transfer_syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        dataset = packer.compress(dataset) + packer.flush()
        dataset += b"\0" * (len(dataset) % 2)
    return file_meta(sop_class=sop_class, sop_uid=sop_uid, transfer_syntax=transfer_syntax) + dataset


def dataset_bytes(
    *,
    study_uid: str,
    series_uid: str,
    sop_uid: str,
    sop_class: str = CT_IMAGE,
    rows: int = 16,
    columns: int = 16,
    bits: int = 16,
    frames: int = 1,
    samples: int = 1,
    transfer_syntax: str = EXPLICIT,
    patient_id: str | None = "PID-1",
    patient_name: str = "Test^Patient",
    accession_number: str = "ACC-1",
    modality: str = "CT",
    station: str = "STATION",
    instance_number: int = 1,
    pixels: bytes | None = None,
    extra: bytes = b"",
) -> bytes:
    """The data set's bytes, not deflated. ``extra`` are ready-made elements put right before the pixel data."""
    inner = EXPLICIT if transfer_syntax not in {IMPLICIT, BIG_ENDIAN} else transfer_syntax

    def one(tag: int, vr: str, value: bytes | str | int) -> bytes:
        return element(tag, vr, value, transfer_syntax=inner)

    parts = [
        one(0x00080005, "CS", "ISO_IR 100"),
        one(0x00080016, "UI", sop_class),
        one(0x00080018, "UI", sop_uid),
        one(0x00080020, "DA", "20260102"),
        one(0x00080030, "TM", "101112"),
        one(0x00080050, "SH", accession_number),
        one(0x00080060, "CS", modality),
        one(0x00080070, "LO", "ingestd tests"),
        one(0x00081010, "SH", station),
        one(0x00100010, "PN", patient_name),
    ]
    if patient_id is not None:
        parts.append(one(0x00100020, "LO", patient_id))
    parts += [
        one(0x00100030, "DA", "19700101"),
        one(0x00100040, "CS", "O"),
        one(0x0020000D, "UI", study_uid),
        one(0x0020000E, "UI", series_uid),
        one(0x00200010, "SH", "1"),
        one(0x00200011, "IS", "1"),
        one(0x00200013, "IS", str(instance_number)),
        one(0x00280002, "US", samples),
        one(0x00280004, "CS", "MONOCHROME2" if samples == 1 else "RGB"),
    ]
    if samples > 1:
        parts.append(one(0x00280006, "US", 0))
    if frames > 1:
        parts.append(one(0x00280008, "IS", str(frames)))
    parts += [
        one(0x00280010, "US", rows),
        one(0x00280011, "US", columns),
        one(0x00280100, "US", bits),
        one(0x00280101, "US", bits),
        one(0x00280102, "US", bits - 1),
        one(0x00280103, "US", 0),
        extra,
    ]
    if pixels is None:
        size = (rows * columns * samples * frames * bits + 7) // 8
        pixels = (bytes(range(1, 252)) * (size // 251 + 1))[:size]
    if transfer_syntax in NATIVE:
        parts.append(one(0x7FE00010, "OW" if bits > 8 or inner == IMPLICIT else "OB", pixels))
    else:
        share = max(2, len(pixels) // frames)
        parts.append(encapsulated([pixels[at : at + share] for at in range(0, len(pixels), share)] or [b""]))
    return b"".join(parts)


def instance_bytes(
    *,
    study_uid: str = "",
    series_uid: str = "",
    sop_uid: str = "",
    sop_class: str = CT_IMAGE,
    rows: int = 16,
    columns: int = 16,
    bits: int = 16,
    frames: int = 1,
    samples: int = 1,
    transfer_syntax: str = EXPLICIT,
    patient_id: str | None = "PID-1",
    patient_name: str = "Test^Patient",
    accession_number: str = "ACC-1",
    modality: str = "CT",
    station: str = "STATION",
    instance_number: int = 1,
    pixels: bytes | None = None,
    extra: bytes = b"",
    meta: bool = True,
) -> bytes:
    """A whole, valid file (or, without ``meta``, a bare data set). UIDs not given are fresh."""
    sop_uid = sop_uid or fresh_uid(3)
    dataset = dataset_bytes(
        study_uid=study_uid or fresh_uid(1),
        series_uid=series_uid or fresh_uid(2),
        sop_uid=sop_uid,
        sop_class=sop_class,
        rows=rows,
        columns=columns,
        bits=bits,
        frames=frames,
        samples=samples,
        transfer_syntax=transfer_syntax,
        patient_id=patient_id,
        patient_name=patient_name,
        accession_number=accession_number,
        modality=modality,
        station=station,
        instance_number=instance_number,
        pixels=pixels,
        extra=extra,
    )
    if not meta:
        return dataset
    return part10(dataset, sop_class=sop_class, sop_uid=sop_uid, transfer_syntax=transfer_syntax)


def write_instance(
    path: Path,
    *,
    study_uid: str = "",
    series_uid: str = "",
    sop_uid: str = "",
    sop_class: str = CT_IMAGE,
    rows: int = 16,
    columns: int = 16,
    bits: int = 16,
    frames: int = 1,
    samples: int = 1,
    transfer_syntax: str = EXPLICIT,
    patient_id: str | None = "PID-1",
    patient_name: str = "Test^Patient",
    accession_number: str = "ACC-1",
    modality: str = "CT",
    station: str = "STATION",
    instance_number: int = 1,
    pixels: bytes | None = None,
    extra: bytes = b"",
    meta: bool = True,
) -> Path:
    """Write ``instance_bytes(...)`` to ``path`` (its folders are made) and give the path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        instance_bytes(
            study_uid=study_uid,
            series_uid=series_uid,
            sop_uid=sop_uid,
            sop_class=sop_class,
            rows=rows,
            columns=columns,
            bits=bits,
            frames=frames,
            samples=samples,
            transfer_syntax=transfer_syntax,
            patient_id=patient_id,
            patient_name=patient_name,
            accession_number=accession_number,
            modality=modality,
            station=station,
            instance_number=instance_number,
            pixels=pixels,
            extra=extra,
            meta=meta,
        )
    )
    return path
