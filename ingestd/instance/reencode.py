"""Write a native data set anew as Explicit VR Little Endian, losslessly and streamed.

Values keep their bytes, swapped where the byte order changes; what changes is how they are framed. Sequences and items
get undefined lengths, as their new size is known only behind them. Group lengths and Length to End (0008,0001) are left
out: they would be wrong. A value too long for the 16-bit length of its VR becomes UN (PS3.5 §6.2.2).
"""

from __future__ import annotations

import array
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ingestd.instance import tags
from ingestd.instance.facts import CannotReencode, InvalidInstance, Verdict
from ingestd.instance.frames import WalkEvent
from ingestd.instance.meta import file_meta_for, uid_text
from ingestd.instance.opening import OpenedFile
from ingestd.instance.source import Progress, ignore_progress
from ingestd.instance.syntax import (
    DEFLATED_EXPLICIT_LITTLE,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    LONG_VRS,
    SHORT_VRS,
    TEXT_VRS,
    UNDEFINED,
    WORD_BYTES,
)
from ingestd.instance.vr import Context, is_sequence, settled_vr
from ingestd.instance.walk import Walker

_FROM = frozenset({IMPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED_EXPLICIT_LITTLE, EXPLICIT_LITTLE})
_SHORT_MOST = 65_534  # the longest even value of a VR with a 16-bit length
_OUT_BYTES = 1 << 18
_TYPECODES = {array.array(code).itemsize: code for code in "HILQ"}
_SHORT_HEADER = struct.Struct("<HH2sH").pack
_LONG_HEADER = struct.Struct("<HH2sHI").pack
_ITEM_BEGIN = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
_ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
_SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
_CONTEXT_TAGS = frozenset({tags.PIXEL_REPRESENTATION, tags.LUT_DESCRIPTOR})


def reencode_explicit(fd: int, out_fd: int, *, progress: Progress = ignore_progress) -> None:
    """Write the object in ``fd`` to ``out_fd`` as an Explicit VR Little Endian file with File Meta of its own.

    Reads the file twice, forward. What was written to ``out_fd`` before an exception is worth nothing. Raises
    CannotReencode where there is no lossless way, InvalidInstance for a file that does not add up, OSError.
    """
    survey = _survey(fd, progress)
    file = OpenedFile(fd, progress=progress)
    file.read_meta()
    window = file.open_dataset()
    walker = Walker(window, encoding=file.encoding, everything=True, is_sequence=is_sequence)
    out = _Out(out_fd, progress)
    out.write(
        file_meta_for(sop_class_uid=survey.sop_class_uid, sop_uid=survey.sop_uid, transfer_syntax=EXPLICIT_LITTLE)
    )
    _Rewriter(walker, out, survey).run()
    out.flush()


@dataclass(slots=True)
class _Survey:
    """What has to be known before the first byte is written."""

    sop_class_uid: str = ""
    sop_uid: str = ""
    pixel_representation: int | None = None
    bits_allocated: int = 0


def _survey(fd: int, progress: Progress) -> _Survey:
    """Walk over the file once, reading a few attributes, and refuse what cannot be re-encoded."""
    survey = _Survey()
    file = OpenedFile(fd, progress=progress)
    file.read_meta()
    window = file.open_dataset()
    if file.transfer_syntax not in _FROM:
        raise CannotReencode("its transfer syntax is not one of the native ones")
    chosen = frozenset(
        {tags.SOP_CLASS_UID, tags.SOP_INSTANCE_UID, tags.PIXEL_REPRESENTATION, tags.BITS_ALLOCATED, tags.PIXEL_DATA}
    )
    walker = Walker(window, encoding=file.encoding, chosen=chosen)
    order: Literal["big", "little"] = "big" if walker.big else "little"
    while (event := walker.advance()) is not WalkEvent.END:
        if event is WalkEvent.FRAGMENTS:
            raise CannotReencode("its pixel data is encapsulated under a native transfer syntax")
        if walker.tag == tags.PIXEL_DATA or walker.length > _OUT_BYTES:
            continue
        value = walker.value()
        if walker.tag == tags.SOP_CLASS_UID:
            survey.sop_class_uid = uid_text(value)
        elif walker.tag == tags.SOP_INSTANCE_UID:
            survey.sop_uid = uid_text(value)
        elif walker.tag == tags.PIXEL_REPRESENTATION and len(value) >= 2:
            survey.pixel_representation = int.from_bytes(value[:2], order)
        elif walker.tag == tags.BITS_ALLOCATED and len(value) >= 2:
            survey.bits_allocated = int.from_bytes(value[:2], order)
    if not survey.sop_class_uid or not survey.sop_uid:
        raise InvalidInstance(Verdict.NO_UIDS, "it has no SOP Class UID or SOP Instance UID")
    return survey


class _Out:
    """Collects small writes into large ones."""

    def __init__(self, fd: int, progress: Progress) -> None:
        self._fd = fd
        self._progress = progress
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        if self._size >= _OUT_BYTES:
            self.flush()

    def flush(self) -> None:
        view = memoryview(b"".join(self._held))
        self._progress(len(view))
        self._held.clear()
        self._size = 0
        while view:
            view = view[os.write(self._fd, view) :]


class _Rewriter:
    def __init__(self, walker: Walker, out: _Out, survey: _Survey) -> None:
        self._walker = walker
        self._out = out
        self._bits_allocated = survey.bits_allocated
        self._contexts = [Context(pixel_representation=survey.pixel_representation)]

    def run(self) -> None:
        walker, out = self._walker, self._out
        while (event := walker.advance()) is not WalkEvent.END:
            if event is WalkEvent.ELEMENT:
                self._element()
            elif event is WalkEvent.SEQUENCE:
                out.write(_long_header(walker.tag, b"SQ", UNDEFINED))
            elif event is WalkEvent.ITEM:
                self._contexts.append(Context())
                out.write(_ITEM_BEGIN)
            elif event is WalkEvent.ITEM_END:
                self._contexts.pop()
                out.write(_ITEM_END)
            elif event is WalkEvent.SEQUENCE_END:
                out.write(_SEQUENCE_END)
            elif event is WalkEvent.OPAQUE:
                raise CannotReencode("one of its sequences cannot be read as elements")
            else:
                raise CannotReencode("it holds encapsulated data")

    def _element(self) -> None:
        walker = self._walker
        tag, length = walker.tag, walker.length
        if tag & 0xFFFF == 0 or tag == tags.LENGTH_TO_END:
            return
        vr = walker.vr
        if vr not in SHORT_VRS and vr not in LONG_VRS:
            vr = settled_vr(tag, self._contexts)
        if vr == b"SQ":
            # A sequence by the dictionary whose content is not items: kept as the bytes it is, or as an empty one.
            vr = b"UN" if length else b"SQ"
        word = self._word_bytes(tag, vr) if walker.big else 1
        padded = length + (length & 1)
        if vr in SHORT_VRS and padded <= _SHORT_MOST:
            self._out.write(_SHORT_HEADER(tag >> 16, tag & 0xFFFF, vr, padded))
        else:
            self._out.write(_long_header(tag, vr if vr in LONG_VRS else b"UN", padded))
        if tag in _CONTEXT_TAGS:
            self._learn(tag, walker.value())
        for chunk in _swapped(walker.chunks(), word):
            self._out.write(chunk)
        if length & 1:
            self._out.write(b" " if vr in TEXT_VRS and vr != b"UI" else b"\0")

    def _word_bytes(self, tag: int, vr: bytes) -> int:
        # Cells of 32 and 64 bits come in words of their own size, as writers of big endian files do it (PS3.5 Annex D
        # left it to the VR; files are found with whole cells swapped).
        if tag == tags.PIXEL_DATA and vr == b"OW" and self._bits_allocated in (32, 64):
            return self._bits_allocated // 8
        return WORD_BYTES.get(vr, 1)

    def _learn(self, tag: int, value: bytes) -> None:
        if len(value) < 2:
            return
        number = int.from_bytes(value[:2], "big" if self._walker.big else "little")
        if tag == tags.PIXEL_REPRESENTATION:
            self._contexts[-1].pixel_representation = number
        else:
            self._contexts[-1].lut_entries = number


def _long_header(tag: int, vr: bytes, length: int) -> bytes:
    return _LONG_HEADER(tag >> 16, tag & 0xFFFF, vr, 0, length)


def _swapped(chunks: Iterable[bytes], word: int) -> Iterable[bytes]:
    """Swap the bytes of every word of so many bytes; what is too short for a word at the end stays as it is."""
    if word == 1:
        yield from chunks
        return
    left = b""
    for chunk in chunks:
        joined = left + chunk
        whole = len(joined) - len(joined) % word
        words = array.array(_TYPECODES[word], joined[:whole])
        words.byteswap()
        yield words.tobytes()
        left = joined[whole:]
    if left:
        yield left
