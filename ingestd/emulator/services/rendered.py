"""WADO-RS rendered images (AZURE.md 2.3): one frame as JPEG or PNG, with the window the file asks for."""

from __future__ import annotations

import io
import re
from typing import Any

from starlette.responses import Response

from ..dicom.transcode import INSTEAD_OF_RENDERING, check_size, quietly, undecodable
from ..errors import NOT_ACCEPTABLE, Problem
from ..http.request import Action, Route, ServiceRequest, route
from ..storage.files import StoredFile
from .frames import find_file, frame_numbers, with_frame

_SEVERAL_ACCEPTS = "The request contains multiple accept headers, which is not supported."
_KINDS = {"image/jpeg": "JPEG", "image/png": "PNG"}
_BAD_QUALITY = "Image quality must be between 1 and 100 inclusive"


def get_rendered(request: ServiceRequest) -> Response:
    """``GET .../instances/{instance}[/frames/{frame}]/rendered``."""
    kind = _kind(request.header("accept"))
    quality = _quality(request.parameter("quality"))
    numbers = frame_numbers(request.params.get("frames", "1"))
    if len(numbers) > 1:
        raise Problem(400, "Only one frame can be rendered at a time.")
    row, file = find_file(request)
    with_frame(file, numbers[0])
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


_INSTANCE = "studies/{study}/series/{series}/instances/{instance}"
ROUTES: list[Route] = [
    route("GET", f"{_INSTANCE}/rendered", get_rendered, Action.READ),
    route("GET", f"{_INSTANCE}/frames/{{frames}}/rendered", get_rendered, Action.READ),
]
