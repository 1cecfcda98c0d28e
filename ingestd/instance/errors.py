"""The errors of this room."""

from __future__ import annotations

from ingestd.instance.facts import Verdict


class InvalidInstance(Exception):
    """The file is not a whole DICOM object; ``verdict`` says in which way, ``reason`` in words without patient data."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason


class CannotReencode(Exception):
    """There is no lossless way to Explicit VR Little Endian for this file that does not touch its pixels."""
