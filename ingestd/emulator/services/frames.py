"""WADO-RS of single frames: as stored or transcoded (AZURE.md 2.1), or rendered as JPEG or PNG (AZURE.md 2.3)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from starlette.responses import Response, StreamingResponse

from ..dicom.parser import DEFLATED, EXPLICIT_LITTLE, ParsedFile, mapped, parse
from ..dicom.transcode import (
    INSTEAD_OF_RENDERING,
    JPEG_2000,
    NOT_SUPPORTED,
    SOURCES,
    check_size,
    convert,
    quietly,
    undecodable,
)
from ..dicom.walk import PixelPlace
from ..errors import INTERNAL, NOT_ACCEPTABLE, Problem
from ..http.accept import Offer, Representation, choose
from ..http.answers import multipart
from ..http.request import Action, Route, ServiceRequest, route
from ..storage.files import StoredFile
from ..storage.instances import InstanceRow
from .wado import RESOURCES, find, wants_original

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
_FRAME_NOT_FOUND = "The specified frame cannot be found."
_ROWS, _COLUMNS, _SAMPLES, _BITS, _FRAMES = 0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280008
_PHOTOMETRIC = 0x00280004


def _frame_numbers(text: str) -> list[int]:
    """The frames of a path segment such as ``1,3``; raises Problem 400."""
    numbers = []
    for part in text.split(","):
        stripped = part.strip()
        if not re.fullmatch(r"[0-9]{1,9}", stripped) or int(stripped) < 1:
            raise Problem(400, _BAD_FRAMES)
        numbers.append(int(stripped))
    return numbers


def get_frames(request: ServiceRequest) -> Response:
    """``GET .../instances/{instance}/frames/{frames}``."""
    numbers = _frame_numbers(request.params["frames"])
    chosen = choose(request.header("accept"), _OFFERS)
    if not chosen.multipart and len(numbers) > 1:
        raise Problem(400, _ONE_FRAME)
    row, file = _find_file(request)
    parsed, pixels = _with_frame(file, max(numbers))
    frames, syntax = _frames(request, row, file, parsed, pixels, numbers, chosen)
    content_type = f"{chosen.media_type}; transfer-syntax={syntax}"
    first = next(frames)  # what cannot be given still gets its status
    if not chosen.multipart:
        return Response(first, media_type=content_type)
    media_type, body = multipart((content_type, [frame]) for frame in chain([first], frames))
    return StreamingResponse(body, media_type=media_type)


def _find_file(request: ServiceRequest) -> tuple[InstanceRow, StoredFile]:
    """The instance that the path names, and the file of the version asked for; raises Problem 404."""
    row = find(request)[0]
    return row, request.archive.file(row.version(original=wants_original(request)))


def _with_frame(file: StoredFile, number: int) -> tuple[ParsedFile, PixelPlace]:
    """A stored file's structure where it has that frame, else Problem 404; a vanished file is the service's 500."""
    try:
        with file.open() as opened, mapped(opened) as buffer:
            parsed = parse(buffer)
    except FileNotFoundError as error:
        raise Problem(500, INTERNAL) from error
    if parsed.pixels is None or number > _frame_count(parsed):
        raise Problem(404, _FRAME_NOT_FOUND)
    return parsed, parsed.pixels


def _frame_count(parsed: ParsedFile) -> int:
    strings = parsed.dataset.strings(_FRAMES)
    number = strings[0].strip() if strings else ""
    return int(number) if re.fullmatch(r"[0-9]{1,9}", number) else 1


def _frames(
    request: ServiceRequest,
    row: InstanceRow,
    file: StoredFile,
    parsed: ParsedFile,
    pixels: PixelPlace,
    numbers: list[int],
    chosen: Representation,
) -> tuple[Iterator[bytes], str]:
    as_stored = chosen.syntax in ("*", row.transfer_syntax)
    if as_stored and row.transfer_syntax != DEFLATED:
        return _original(file, parsed, pixels, numbers), row.transfer_syntax
    check_size(row.size_bytes, request.archive.settings.max_transcode_bytes)
    if row.transfer_syntax not in SOURCES and not as_stored:
        raise Problem(406, NOT_SUPPORTED)
    target = JPEG_2000 if chosen.syntax == JPEG_2000 else EXPLICIT_LITTLE
    frames = _converted(file, numbers, target, count=_frame_count(parsed))
    return iter(frames), row.transfer_syntax if as_stored else target


def _original(file: StoredFile, parsed: ParsedFile, pixels: PixelPlace, numbers: list[int]) -> Iterator[bytes]:
    with file.open() as opened:
        if pixels.length is None:
            from pydicom.encaps import get_frame  # noqa: PLC0415 - only encapsulated files need it

            for number in numbers:
                opened.seek(pixels.offset)
                yield get_frame(opened, number - 1, number_of_frames=_frame_count(parsed))
            return
        for number in numbers:
            yield _native(opened, pixels.offset, pixels.length, parsed, number - 1)


def _native(file: IO[bytes], offset: int, length: int, parsed: ParsedFile, index: int) -> bytes:
    def number(tag: int, default: int = 0) -> int:
        numbers = parsed.dataset.numbers(tag, "US")
        return int(numbers[0]) if numbers else default

    bits = number(_ROWS) * number(_COLUMNS) * number(_SAMPLES, 1) * number(_BITS, 8)
    photometric = parsed.dataset.by_tag.get(_PHOTOMETRIC)
    if photometric is not None and (photometric.value or b"").startswith(b"YBR_FULL_422"):
        bits = bits * 2 // 3
    first, last = index * bits, (index + 1) * bits
    if (last + 7) // 8 > length:
        raise Problem(404, _FRAME_NOT_FOUND)
    file.seek(offset + first // 8)
    content = file.read((last + 7) // 8 - first // 8)
    if first % 8 == 0 and bits % 8 == 0:
        return content
    # Bit-packed frames need not begin on a byte (PS3.5 §8.1.1).
    shifted = int.from_bytes(content, "little") >> (first % 8)
    return (shifted & ((1 << bits) - 1)).to_bytes((bits + 7) // 8, "little")


def _converted(file: StoredFile, numbers: list[int], target: str, *, count: int) -> list[bytes]:
    with quietly(), file.open() as opened:
        try:
            dataset: Any = convert(opened, target)
            if target == JPEG_2000:
                from pydicom.encaps import get_frame  # noqa: PLC0415

                return [get_frame(dataset.PixelData, number - 1, number_of_frames=count) for number in numbers]
            size = len(dataset.PixelData) // count
            return [bytes(dataset.PixelData[(number - 1) * size : number * size]) for number in numbers]
        except Problem:
            raise
        except Exception as error:
            raise undecodable(NOT_SUPPORTED) from error


_SEVERAL_ACCEPTS = "The request contains multiple accept headers, which is not supported."
_KINDS = {"image/jpeg": "JPEG", "image/png": "PNG"}
_BAD_QUALITY = "Image quality must be between 1 and 100 inclusive"


def get_rendered(request: ServiceRequest) -> Response:
    """``GET .../instances/{instance}[/frames/{frame}]/rendered``."""
    kind = _kind(request.header("accept"))
    quality = _quality(request.parameter("quality"))
    numbers = _frame_numbers(request.params.get("frames", "1"))
    if len(numbers) > 1:
        raise Problem(400, "Only one frame can be rendered at a time.")
    row, file = _find_file(request)
    _with_frame(file, numbers[0])
    check_size(row.size_bytes, request.archive.settings.max_transcode_bytes, INSTEAD_OF_RENDERING)
    with quietly():
        try:
            image = _rendered(file, numbers[0] - 1, kind, quality)
        except Exception as error:
            raise undecodable(NOT_ACCEPTABLE) from error  # AZURE.md 2.3
    return Response(image, media_type=kind)


def _kind(accept: str | None) -> str:
    if accept is None or not accept.strip():
        return "image/jpeg"
    if "," in accept:
        raise Problem(406, _SEVERAL_ACCEPTS)
    kind = accept.split(";")[0].strip().lower()
    if kind not in _KINDS:
        raise Problem(406, NOT_ACCEPTABLE)
    return kind


def _quality(text: str | None) -> int:
    if text is None:
        return 100
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or not 1 <= int(text) <= 100:
        raise Problem(400, _BAD_QUALITY)
    return int(text)


def _rendered(file: StoredFile, index: int, kind: str, quality: int) -> bytes:
    import numpy  # noqa: ICN001, PLC0415 - heavy, and only here
    from PIL import Image  # noqa: PLC0415
    from pydicom import dcmread  # noqa: PLC0415
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut  # noqa: PLC0415
    from pydicom.pixels.utils import pixel_array  # noqa: PLC0415

    with file.open() as opened:
        dataset = dcmread(opened)
        pixels: Any = pixel_array(dataset, index=index)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 2:
        pixels = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset).astype(numpy.float64)
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (pixels - low) * (255.0 / ((high - low) or 1.0))
        if photometric == "MONOCHROME1":
            pixels = 255.0 - pixels
    elif pixels.dtype.itemsize > 1:
        pixels = pixels >> (8 * (pixels.dtype.itemsize - 1))
    image = Image.fromarray(pixels.astype(numpy.uint8))
    result = io.BytesIO()
    settings: dict[str, Any] = {"quality": quality} if kind == "image/jpeg" else {}
    image.save(result, format=_KINDS[kind], **settings)
    return result.getvalue()


_INSTANCE = RESOURCES[-1]
ROUTES: list[Route] = [
    route("GET", f"{_INSTANCE}/frames/{{frames}}", get_frames, Action.READ),
    route("GET", f"{_INSTANCE}/rendered", get_rendered, Action.READ),
    route("GET", f"{_INSTANCE}/frames/{{frames}}/rendered", get_rendered, Action.READ),
]
