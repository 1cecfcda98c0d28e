"""What a DICOM file is: read it in one forward pass, check that it is all there, take its digests (PS3.10, PS3.5).

Importing this package does not import pydicom; the few functions that need it import it when they are called, and
they are called in the reader's children only.
"""

from __future__ import annotations

from ingestd.instance.canonical import canonical_digest, differing_attributes
from ingestd.instance.facts import NOTES, CannotReencode, Inspection, InvalidInstance, Verdict
from ingestd.instance.inspection import inspect
from ingestd.instance.meta import file_meta_for
from ingestd.instance.naming import read_uids
from ingestd.instance.reencode import reencode_explicit

__all__ = [
    "NOTES",
    "CannotReencode",
    "Inspection",
    "InvalidInstance",
    "Verdict",
    "canonical_digest",
    "differing_attributes",
    "file_meta_for",
    "inspect",
    "read_uids",
    "reencode_explicit",
]
