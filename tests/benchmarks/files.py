"""The benchmark's own DICOM files: made from one template each, with UIDs and pixels patched in.

Every file is a whole, legal object with UIDs of its own; only the names and the noise are invented. Making them must
be quick, because every measurement takes a fresh set: ingestd moves what it is given.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.10.1451"
# Same length for every number, so that a template can be patched in place.
FIRST = 10_000_000
WRITE_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class FileSet:
    """A folder of files, their study folders in order, and what they come to."""

    folder: Path
    studies: tuple[tuple[Path, ...], ...]
    size_bytes: int

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, study by study."""
        return tuple(path for study in self.studies for path in study)

    def __len__(self) -> int:
        return sum(len(study) for study in self.studies)


def make_ct(folder: Path, *, files: int = 1_000, studies: int = 4) -> FileSet:
    """Write CT-like images of 512 x 512 x 16 bit."""
    return _make(folder, files=files, studies=studies, kind=1, rows=512)


def make_small(folder: Path, *, files: int = 5_000, studies: int = 100, turn: int = 0) -> FileSet:
    """Write small images of 64 x 64 x 16 bit; each ``turn`` has studies and instances of its own."""
    return _make(folder, files=files, studies=studies, kind=2, rows=64, turn=turn)


def make_backlog(folder: Path, *, files: int = 100_000, studies: int = 1_000) -> FileSet:
    """Write tiny images of 16 x 16 x 16 bit, to fill a folder."""
    return _make(folder, files=files, studies=studies, kind=3, rows=16)


def make_multiframe(folder: Path, *, size_bytes: int = 2_000_000_000) -> FileSet:
    """Write one enhanced CT of at least ``size_bytes``: as many frames of 512 x 512 x 16 bit as that takes."""
    frame_bytes = 512 * 512 * 2
    frames = -(-size_bytes // frame_bytes)
    template = _Template(rows=512, frames=frames, pixel_bytes=b"")
    header = template.patched(kind=4, study=0, number=0)
    # The template holds an empty Pixel Data (7FE0,0010); its last four bytes are the length.
    header = header[:-4] + (frames * frame_bytes).to_bytes(4, "little")
    noise = os.urandom(WRITE_BYTES)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "multiframe.dcm"
    left = frames * frame_bytes
    with path.open("wb") as file:
        file.write(header)
        while left:
            left -= file.write(noise[: min(left, len(noise))])
    return FileSet(folder=folder, studies=((path,),), size_bytes=path.stat().st_size)


def make_one(path: Path, *, number: int) -> Path:
    """Write one small image of a study of its own at ``path``, by rename, as a careful sender does."""
    template = _Template(rows=64, frames=0, pixel_bytes=os.urandom(64 * 64 * 2))
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(template.patched(kind=5, study=number, number=number))
    aside.rename(path)
    return path


def _make(folder: Path, *, files: int, studies: int, kind: int, rows: int, turn: int = 0) -> FileSet:
    noise = os.urandom(rows * rows * 2)
    template = _Template(rows=rows, frames=0, pixel_bytes=noise)
    made: list[tuple[Path, ...]] = []
    size_bytes = 0
    numbers = iter(range(turn * files, (turn + 1) * files))
    for study, count in enumerate(_shares(files, studies)):
        study_folder = folder / f"study{study:04d}"
        study_folder.mkdir(parents=True)
        paths = []
        for _ in range(count):
            number = next(numbers)
            path = study_folder / f"IM{number:06d}"
            with path.open("wb", buffering=0) as file:
                size_bytes += file.write(template.patched(kind=kind, study=turn * studies + study, number=number))
            paths.append(path)
        made.append(tuple(paths))
    return FileSet(folder=folder, studies=tuple(made), size_bytes=size_bytes)


def _shares(files: int, studies: int) -> Iterator[int]:
    for study in range(studies):
        yield files * (study + 1) // studies - files * study // studies


class _Template:
    """One encoded file whose UIDs and first pixels are overwritten for every copy."""

    def __init__(self, *, rows: int, frames: int, pixel_bytes: bytes) -> None:
        self._uids = {name: _uid(9, place, 0) for place, name in enumerate(("study", "series", "sop"))}
        content = _encode(self._uids, rows=rows, frames=frames, pixel_bytes=pixel_bytes)
        self._content = bytearray(content)
        self._places = {name: _places(content, uid.encode()) for name, uid in self._uids.items()}
        self._pixels_at = len(content) - len(pixel_bytes) if pixel_bytes else None

    def patched(self, *, kind: int, study: int, number: int) -> bytes:
        """Return the file with the UIDs of this study and number, and pixels that no other number has."""
        values = {"study": _uid(kind, 1, study), "series": _uid(kind, 2, study), "sop": _uid(kind, 3, number)}
        for name, value in values.items():
            for at in self._places[name]:
                self._content[at : at + len(value)] = value.encode()
        if self._pixels_at is not None:
            self._content[self._pixels_at : self._pixels_at + 8] = (number + 1).to_bytes(8, "little")
        return bytes(self._content)


def _uid(kind: int, level: int, number: int) -> str:
    return f"{ROOT}.{kind}.{level}.{FIRST + number}"


def _places(content: bytes, wanted: bytes) -> list[int]:
    places = []
    at = content.find(wanted)
    while at >= 0:
        places.append(at)
        at = content.find(wanted, at + 1)
    return places


def _encode(uids: dict[str, str], *, rows: int, frames: int, pixel_bytes: bytes) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = EnhancedCTImageStorage if frames else CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uids["sop"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = uids["sop"]
    data.StudyDate, data.StudyTime = "20260102", "030405"
    data.AccessionNumber = "A1"
    data.Modality = "CT"
    data.Manufacturer, data.StationName = "Benchmark", "BENCH1"
    data.ReferringPhysicianName = "Nobody"
    data.StudyDescription, data.SeriesDescription = "Benchmark study", "Noise"
    data.PatientName, data.PatientID = "Nobody^Nil", "BENCH"
    data.PatientBirthDate, data.PatientSex = "19700101", "O"
    data.SliceThickness, data.KVP = "1.0", "120"
    data.StudyInstanceUID, data.SeriesInstanceUID = uids["study"], uids["series"]
    data.StudyID, data.SeriesNumber, data.InstanceNumber = "1", "1", "1"
    data.ImagePositionPatient, data.ImageOrientationPatient = ["0", "0", "0"], ["1", "0", "0", "0", "1", "0"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    if frames:
        data.NumberOfFrames = str(frames)
    data.Rows = data.Columns = rows
    data.PixelSpacing = ["0.7", "0.7"]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.WindowCenter, data.WindowWidth = "40", "400"
    data.RescaleIntercept, data.RescaleSlope = "-1024", "1"
    data.add_new(0x7FE00010, "OW", pixel_bytes)
    encoded = io.BytesIO()
    data.save_as(encoded, enforce_file_format=True)
    return encoded.getvalue()
