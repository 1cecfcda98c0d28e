"""What a DICOM file is: read it in one forward pass, check that it is all there, take its digests (PS3.10, PS3.5).

Importing this package does not import pydicom; the few functions that need it import it when they are called, and
they are called in the reader's children only.
"""

from __future__ import annotations

from ingestd.instance.facts import NOTES, Inspection, Limits, Verdict

__all__ = ["NOTES", "Inspection", "Limits", "Verdict"]
