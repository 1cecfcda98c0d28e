"""A DICOM file without its bulk: where its data set begins, and what stands in it (PS3.10 §7).

Written for this room alone and on purpose not with pydicom (see ``walk``). The file is a memory map, or bytes where it
is small; a deflated one is inflated to disk first, up to a limit.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from .values import DataSet
from .walk import UNDEFINED, Buffer, PixelPlace, StructureWalk, TooMuch, Unreadable, looks_explicit

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

_MOST_INFLATED_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedFile:
    """Everything of a file but its bulk."""

    transfer_syntax: str
    dataset: DataSet
    pixels: PixelPlace | None


@contextmanager
def mapped(file: IO[bytes]) -> Iterator[mmap.mmap]:
    """The file as a read-only memory map; an empty file is Unreadable."""
    try:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise Unreadable("the file is empty") from error
    try:
        yield buffer
    finally:
        buffer.close()


@contextmanager
def contents(source: Path | bytes) -> Iterator[Buffer]:
    """What a file on disk or in memory holds; an empty one is Unreadable."""
    if isinstance(source, bytes):
        if not source:
            raise Unreadable("the file is empty")
        yield source
    else:
        with source.open("rb") as file, mapped(file) as buffer:
            yield buffer


def parse(buffer: Buffer) -> ParsedFile:
    """The structure of a mapped file, or of one in memory; raises Unreadable, or TooMuch where memory has no bound."""
    syntax, offset = _read_meta(buffer)
    if syntax == DEFLATED:
        return _read_deflated(buffer, offset)
    return _read_dataset(buffer, offset, syntax or IMPLICIT_LITTLE)


def dataset_offset_of(buffer: Buffer) -> int:
    """Where the data set begins; raises Unreadable."""
    return _read_meta(buffer)[1]


def _read_meta(buffer: Buffer) -> tuple[str, int]:
    """The transfer syntax, and where the data set begins."""
    at = 132 if buffer[128:132] == b"DICM" else 0
    if at == 0 and buffer[:2] != b"\x02\x00":
        raise Unreadable("neither a preamble nor File Meta Information")
    # Group 0002 is always Explicit VR Little Endian (PS3.10 §7.1). Its end is where another group starts: the
    # group length is often wrong in real files, so it is not believed.
    walk = StructureWalk(buffer, explicit=True, big_endian=False)
    syntax = b""
    end = len(buffer)
    while at + 8 <= end and buffer[at : at + 2] == b"\x02\x00":
        tag, _, length, start = walk.head(at)
        if length == UNDEFINED or start + length > end:
            raise Unreadable("File Meta Information runs past the end of the file")
        if tag == 0x00020010 and length <= 1024:
            syntax = buffer[start : start + length]
        at = start + length
    return syntax.rstrip(b"\0 ").decode("ascii", "replace"), at


def _read_deflated(buffer: Buffer, offset: int) -> ParsedFile:
    with TemporaryFile() as inflated:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        written = 0
        view = memoryview(buffer)
        try:
            at = offset
            pending = b""
            while (at < len(view) or pending) and not inflater.eof:
                if not pending:
                    pending = bytes(view[at : at + (1 << 18)])
                    at += len(pending)
                out = inflater.decompress(pending, 1 << 20)
                pending = inflater.unconsumed_tail
                written += inflated.write(out)
                if written > _MOST_INFLATED_BYTES:
                    raise TooMuch("the data set inflates beyond 8 GiB")
        except zlib.error as error:
            raise Unreadable("the deflated data set cannot be inflated") from error
        finally:
            view.release()
        inflated.flush()
        with mapped(inflated) as plain:
            return _read_dataset(plain, 0, DEFLATED)


def _read_dataset(buffer: Buffer, at: int, syntax: str) -> ParsedFile:
    walk = StructureWalk(buffer, explicit=syntax != IMPLICIT_LITTLE, big_endian=syntax == EXPLICIT_BIG)
    if not walk.explicit and looks_explicit(buffer, at):
        # Files that say implicit and are explicit exist in the wild; fo-dicom looks, too.
        walk.explicit = True
    elif walk.explicit and not walk.big_endian and at + 8 <= len(buffer) and not looks_explicit(buffer, at):
        walk.explicit = False
    elements, _ = walk.dataset(at, len(buffer), depth=0, delimited=False)
    return ParsedFile(
        transfer_syntax=syntax,
        dataset=DataSet(elements, big_endian=walk.big_endian),
        pixels=walk.pixels,
    )
