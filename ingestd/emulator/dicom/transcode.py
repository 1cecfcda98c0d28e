"""Transcoding to the two transfer syntaxes the service offers: Explicit VR Little Endian and JPEG 2000 Lossless.

pydicom does it with its pixel plugins; those come with the extra ``pixels`` and are imported only when needed.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from ..errors import Problem
from .parser import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

JPEG_2000 = "1.2.840.10008.1.2.4.90"
NOT_SUPPORTED = "The specified transcoding is not supported."
NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
# AZURE.md 2.1: what the service decodes. Deflated is ours: it needs no codec.
SOURCES = NATIVE | {
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    JPEG_2000,
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
}

# What the extra ``pixels`` installs, by the names that are imported.
_CODECS = ("numpy", "PIL", "pylibjpeg", "openjpeg", "gdcm")

# One at a time: a transcoding may take several times the limit in memory, and warnings are silenced process-wide.
_one_at_a_time = threading.Lock()


@contextmanager
def quietly() -> Iterator[None]:
    """Alone, and without pydicom's warnings: real files give many, and they quote values."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_INSTEAD_OF_TRANSCODING = (
    ". The entire instance can be retrieved with the original transfer syntax by specifying 'transfer-syntax=*' in "
    "the Accept header."
)
INSTEAD_OF_RENDERING = (
    " for rendering. Please retrieve the whole file in the original transfer syntax instead of rendering to image "
    "media type."
)


def check_size(size: int, limit: int, instead: str = _INSTEAD_OF_TRANSCODING) -> None:
    """Raise Problem 406 for a file too large to decode in memory, with what to do instead."""
    if size > limit:
        raise Problem(406, f"Requested DICOM instance size is above the supported limit of {limit}{instead}")


def undecodable(sentence: str) -> Problem:
    """The 406 for pixels that could not be decoded or encoded; where no file could be, it says what is not installed.

    A codec may raise anything on a broken file, and what pydicom raises without its codecs looks no different.
    """
    missing = [name for name in _CODECS if not _is_installed(name)]
    more = f" (Not installed here: {', '.join(missing)}. They come with: pip install 'ingestd[pixels]')"
    return Problem(406, sentence + (more if missing else ""))


def _is_installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def transcoded(file: IO[bytes], size: int, syntax: str, *, limit: int) -> IO[bytes]:
    """The file in another transfer syntax, as a temporary file at its start; raises Problem 406."""
    check_size(size, limit)
    with quietly():
        try:
            dataset = convert(file, syntax)
            result = TemporaryFile()  # noqa: SIM115 - the answer closes it when it has been sent
            dataset.save_as(result, enforce_file_format=True)
        except Problem:
            raise
        except Exception as error:
            raise undecodable(NOT_SUPPORTED) from error
    result.seek(0)
    return result


def convert(file: IO[bytes], syntax: str) -> FileDataset:
    """The file's data set in another transfer syntax; raises Problem 406 for a source the service cannot decode."""
    import pydicom  # noqa: PLC0415 - with its codecs, only when somebody asks for another transfer syntax
    from pydicom.uid import UID  # noqa: PLC0415

    dataset = pydicom.dcmread(file)
    source = UID(str(dataset.file_meta.TransferSyntaxUID))
    if source not in SOURCES or (syntax == JPEG_2000 and "PixelData" not in dataset):
        raise Problem(406, NOT_SUPPORTED)
    if source == EXPLICIT_BIG:
        dataset = _little_endian(dataset)
    if source not in NATIVE and "PixelData" in dataset:
        dataset.decompress(generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE)
    if syntax == JPEG_2000:
        if dataset.get("PhotometricInterpretation") == "RGB":
            dataset.PhotometricInterpretation = (
                "YBR_RCT"  # the encoder transforms colors then, as fo-dicom's says it does
            )
        dataset.compress(JPEG_2000, generate_instance_uid=False)
    return dataset


_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def _little_endian(dataset: FileDataset) -> FileDataset:
    # pydicom refuses to change the byte order because it does not touch values of these VRs; here they are swapped.
    from pydicom.dataset import FileDataset as Dataset_  # noqa: PLC0415

    plain = Dataset_("", {}, preamble=dataset.preamble, file_meta=dataset.file_meta)
    for element in dataset:
        plain.add(element)
    _swap(plain)
    if "PixelData" in plain and plain.get("BitsAllocated", 8) > 8 and plain["PixelData"].VR == "OB":
        plain["PixelData"].VR = "OW"
    return plain


def _swap(dataset: Dataset) -> None:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _swap(item)
                item.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
        width = _WORDS.get(element.VR)
        if width is not None and isinstance(element.value, bytes):
            element.value = swapped(element.value, width)


def swapped(value: bytes, width: int) -> bytes:
    result = bytearray(len(value))
    for offset in range(width):
        result[offset::width] = value[width - 1 - offset :: width]
    return bytes(result)
