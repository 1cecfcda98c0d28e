"""WADO-RS frames (AZURE.md 2.1): single frames of an instance, as stored or transcoded."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import IO, Any

from starlette.responses import Response, StreamingResponse

from ..dicom.parser import DEFLATED, EXPLICIT_LITTLE, Header, read_header
from ..dicom.transcode import JPEG_2000, NOT_SUPPORTED, SOURCES, check_size, convert, quietly, undecodable
from ..dicom.values import numbers_of, strings_of, text_of
from ..errors import FRAME_NOT_FOUND, INTERNAL, Problem
from ..http.request import Action, Call, Route, route
from ..storage.files import Kept
from ..storage.instances import Stored, find
from .wado import Offer, Wanted, choose, wants_original

_OCTETS = "application/octet-stream"
_OFFERS = (
    Offer(_OCTETS, multipart=False, default_syntax=EXPLICIT_LITTLE, syntaxes=frozenset({"*", EXPLICIT_LITTLE})),
    Offer(_OCTETS, multipart=True, default_syntax=EXPLICIT_LITTLE, syntaxes=frozenset({"*", EXPLICIT_LITTLE})),
    Offer("image/jp2", multipart=True, default_syntax=JPEG_2000, syntaxes=frozenset({JPEG_2000})),
)
_BAD_FRAMES = (
    "The specified frames value is not valid. At least one frame must be present, and all requested frames must "
    "have value greater than 0."
)
_ONE_FRAME = "The accept header is supported for single frame retrieval, use multi-part accept header instead."
_ROWS, _COLUMNS, _SAMPLES, _BITS, _FRAMES = 0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280008
_PHOTOMETRIC = 0x00280004


def frame_numbers(text: str) -> list[int]:
    """The frames of a path segment such as ``1,3``; raises Problem 400."""
    numbers = []
    for part in text.split(","):
        stripped = part.strip()
        if not re.fullmatch(r"[0-9]{1,9}", stripped) or int(stripped) < 1:
            raise Problem(400, _BAD_FRAMES)
        numbers.append(int(stripped))
    return numbers


def get_frames(call: Call) -> Response:
    """``GET .../instances/{instance}/frames/{frames}``."""
    numbers = frame_numbers(call.params["frames"])
    wanted = choose(call.header("accept"), _OFFERS)
    if not wanted.multipart and len(numbers) > 1:
        raise Problem(400, _ONE_FRAME)
    stored = find(call)[0]
    kept = call.service.kept(stored.version(original=wants_original(call)))
    header = header_of_stored(kept)
    if header.pixels is None or max(numbers) > frame_count(header):
        raise Problem(404, FRAME_NOT_FOUND)
    frames, syntax = _frames(call, stored, kept, header, numbers, wanted)
    content_type = f"{wanted.media_type}; transfer-syntax={syntax}"
    if not wanted.multipart:
        return Response(next(frames), media_type=content_type)
    boundary = str(uuid.uuid4())
    first = next(frames)  # what cannot be given still gets its status

    def body() -> Iterator[bytes]:
        for number, frame in enumerate(_chained(first, frames)):
            opening = "" if number == 0 else "\r\n"
            yield f"{opening}--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
            yield frame
        yield f"\r\n--{boundary}--\r\n".encode()

    return StreamingResponse(body(), media_type=f'multipart/related; boundary="{boundary}"')


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def header_of_stored(kept: Kept) -> Header:
    """A stored file's structure; a vanished file is the service's 500."""
    try:
        return read_header(kept)
    except FileNotFoundError as error:
        raise Problem(500, INTERNAL) from error


def frame_count(header: Header) -> int:
    """How many frames the file says it has."""
    element = header.element(_FRAMES)
    strings = strings_of(element, text_of(header.elements)) if element is not None else []
    number = strings[0].strip() if strings else ""
    return int(number) if re.fullmatch(r"[0-9]{1,9}", number) else 1


def _number(header: Header, tag: int, default: int = 0) -> int:
    element = header.element(tag)
    numbers = numbers_of(element, big_endian=header.big_endian) if element is not None and element.vr == "US" else []
    return int(numbers[0]) if numbers else default


def _frames(
    call: Call, stored: Stored, kept: Kept, header: Header, numbers: list[int], wanted: Wanted
) -> tuple[Iterator[bytes], str]:
    as_stored = wanted.syntax in ("*", stored.transfer_syntax)
    if as_stored and stored.transfer_syntax != DEFLATED:
        return _original(kept, header, numbers), stored.transfer_syntax
    check_size(stored.size_bytes, call.service.settings.max_transcode_bytes)
    if stored.transfer_syntax not in SOURCES and not as_stored:
        raise Problem(406, NOT_SUPPORTED)
    target = JPEG_2000 if wanted.syntax == JPEG_2000 else EXPLICIT_LITTLE
    shown = stored.transfer_syntax if as_stored else target
    return iter(_converted(kept, header, numbers, target)), shown


def _original(kept: Kept, header: Header, numbers: list[int]) -> Iterator[bytes]:
    assert header.pixels is not None, "the caller looked"
    with kept.open() as file:
        if header.pixels.length is None:
            from pydicom.encaps import get_frame  # noqa: PLC0415 - only encapsulated files need it

            for number in numbers:
                file.seek(header.pixels.offset)
                yield get_frame(file, number - 1, number_of_frames=frame_count(header))
            return
        for number in numbers:
            yield _native(file, header.pixels.offset, header.pixels.length, header, number - 1)


def _native(file: IO[bytes], offset: int, length: int, header: Header, index: int) -> bytes:
    pixels = _number(header, _ROWS) * _number(header, _COLUMNS) * _number(header, _SAMPLES, 1)
    bits = pixels * _number(header, _BITS, 8)
    photometric = header.element(_PHOTOMETRIC)
    if photometric is not None and (photometric.value or b"").startswith(b"YBR_FULL_422"):
        bits = bits * 2 // 3
    first, last = index * bits, (index + 1) * bits
    if (last + 7) // 8 > length:
        raise Problem(404, FRAME_NOT_FOUND)
    file.seek(offset + first // 8)
    content = file.read((last + 7) // 8 - first // 8)
    if first % 8 == 0 and bits % 8 == 0:
        return content
    # Bit-packed frames need not begin on a byte (PS3.5 §8.1.1).
    shifted = int.from_bytes(content, "little") >> (first % 8)
    return (shifted & ((1 << bits) - 1)).to_bytes((bits + 7) // 8, "little")


def _converted(kept: Kept, header: Header, numbers: list[int], target: str) -> list[bytes]:
    with quietly(), kept.open() as file:
        try:
            dataset: Any = convert(file, target)
            if target == JPEG_2000:
                from pydicom.encaps import get_frame  # noqa: PLC0415

                count = frame_count(header)
                return [get_frame(dataset.PixelData, number - 1, number_of_frames=count) for number in numbers]
            size = len(dataset.PixelData) // frame_count(header)
            return [bytes(dataset.PixelData[(number - 1) * size : number * size]) for number in numbers]
        except Problem:
            raise
        except Exception as error:
            raise undecodable(NOT_SUPPORTED) from error


_INSTANCE = "studies/{study}/series/{series}/instances/{instance}"
ROUTES: list[Route] = [route("GET", f"{_INSTANCE}/frames/{{frames}}", get_frames, Action.READ)]
