"""Transcoding to the two transfer syntaxes the service offers: Explicit VR Little Endian and JPEG 2000 Lossless.

pydicom does it with its pixel plugins; those come with the extra ``pixels`` and are imported only when needed.
"""

from __future__ import annotations

import warnings
from tempfile import TemporaryFile
from typing import IO

from .dataset import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
)
from .errors import Problem

JPEG_2000 = "1.2.840.10008.1.2.4.90"
NOT_SUPPORTED = "The specified transcoding is not supported."
_NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
# Facts page 2.1: what the service decodes. Deflated is ours: it needs no codec.
SOURCES = _NATIVE | {
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    JPEG_2000,
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
}


def transcoded(file: IO[bytes], size: int, syntax: str, *, limit: int) -> IO[bytes]:
    """The file in another transfer syntax, as a temporary file; raises Problem 406."""
    if size > limit:
        raise Problem(406, f"The file is larger than the limit of {limit} bytes for transcoding.")
    import pydicom  # noqa: PLC0415 - with its codecs, only when somebody asks for another transfer syntax
    from pydicom.uid import UID  # noqa: PLC0415

    result = TemporaryFile()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file)
            source = UID(str(dataset.file_meta.TransferSyntaxUID))
            if source not in SOURCES:
                raise Problem(406, NOT_SUPPORTED)
            if "PixelData" in dataset:
                if source not in _NATIVE:
                    dataset.decompress(generate_instance_uid=False)
                if syntax == JPEG_2000:
                    _as_explicit(dataset)
                    dataset.compress(JPEG_2000, generate_instance_uid=False)
                else:
                    _as_explicit(dataset)
            elif syntax == JPEG_2000:
                raise Problem(406, NOT_SUPPORTED)
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
            dataset.save_as(result, enforce_file_format=True, implicit_vr=False, little_endian=True)
    except Problem:
        result.close()
        raise
    except Exception as error:  # a codec may raise anything on a broken file; the answer is the same
        result.close()
        raise Problem(406, NOT_SUPPORTED) from error
    return result


def _as_explicit(dataset: object) -> None:
    """Nothing to do."""
