"""Retrieve Transactions (PS3.18 §10.4, WADO-RS): answers read as they arrive, and files that are whole or absent.

A download into a folder takes as few requests as what is there already allows.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from requests.structures import CaseInsensitiveDict

from ingestd import instance
from ingestd.dicomweb.answers import READ_SIZE, Answer
from ingestd.dicomweb.decoding import HTML_TYPES, JSON_TYPES, DicomJson, Undecodable, datasets_from_json, uid_of
from ingestd.dicomweb.errors import MisconfiguredServer
from ingestd.dicomweb.multipart import BodyPart, Headers, Multipart, content_type_params
from ingestd.fs.durable import new_file, sync_folder, write_all
from ingestd.fs.places import open_file

if TYPE_CHECKING:
    from ingestd.dicomweb.client import DicomWebClient

METADATA_LIMIT = 512 * 1024 * 1024
METADATA_MEMORY_LIMIT = 4 * 1024 * 1024 * 1024  # only people ask for metadata, of studies of any size
COPY_SIZE = 1_048_576
# A UID as it may become a file name: digits and dots, beginning with a digit, so never "." or "..".
SAFE_UID = re.compile(r"[0-9][0-9.]{0,63}\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """The data sets of a study, series or instance without bulk data, and the ETag that names this version of them."""

    items: tuple[DicomJson, ...]
    etag: str = ""
    server_date: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What ``save_to`` did: files it wrote, and files that were there already with the same bytes."""

    written: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()
    replaced: tuple[Path, ...] = ()
    size_bytes: int = 0


class Retrieval:
    """A retrieved answer: iterate over its (headers, file-like) pairs once, or save it. Close it, or use ``with``.

    Nothing is held but the piece being read. Iterating raises Unintelligible where the answer breaks off, in the
    middle of the part it breaks in, and Unavailable where it comes too slowly or the connection breaks.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._multipart: Multipart | None = None
        self.on_bytes: Callable[[int], object] | None = None  # told of each piece that comes, for a progress bar
        self.server_date = answer.server_date
        self.media_type, self._params = content_type_params(answer.headers.get("Content-Type", ""))
        self.size_bytes: int | None = None
        length = answer.headers.get("Content-Length", "")
        if length.isascii() and length.isdecimal() and len(length) < 20:
            self.size_bytes = int(length)  # of the whole body, part headers included
        if self.media_type in HTML_TYPES:
            answer.close()
            raise MisconfiguredServer("the retrieve is answered with a web page", status=answer.status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what has not been read."""
        if self._multipart is not None and self._multipart.is_closed:
            self._answer.read_end()
        self._answer.close()

    def _read(self) -> bytes:
        data = self._answer.read(READ_SIZE)
        if self.on_bytes is not None and data:
            self.on_bytes(len(data))
        return data

    def __iter__(self) -> Iterator[tuple[Headers, BodyPart]]:
        if self.media_type.startswith("multipart/"):
            boundary = self._params.get("boundary", "")
            self._multipart = Multipart(self._read, boundary, error=self._answer.unintelligible)
            yield from self._multipart
            return
        if not self._answer.has_known_end:
            raise self._answer.unintelligible("the answer has neither length nor boundary: its end cannot be told")
        yield CaseInsensitiveDict(self._answer.headers), BodyPart(_Whole(self._read).next_content)

    def only_part(self) -> tuple[Headers, BodyPart]:
        """Return the first part; for answers that have one. Raises Unintelligible if there is none."""
        for headers, part in self:
            return headers, part
        raise self._answer.unintelligible("the answer has no part")

    def save_as(self, path: Path | str) -> int:
        """Write the answer's one part to a new file and return its size in bytes; an unfinished file is removed.

        Raises FileExistsError, Unintelligible (broken off, no part or a second one), Unavailable.
        """
        target = Path(path)
        size = 0
        count = 0
        with self, contextlib.ExitStack() as undo:
            fd = new_file(target)
            undo.callback(target.unlink, missing_ok=True)
            with os.fdopen(fd, "wb", buffering=0) as file:
                for _headers, part in self:
                    count += 1
                    if count > 1:
                        break
                    while chunk := part.next_chunk():
                        write_all(file.fileno(), chunk)
                        size += len(chunk)
            if count != 1:
                raise self._answer.unintelligible("the answer has not exactly one part")
            undo.pop_all()
        return size

    def save_to(self, folder: Path | str, *, on_file: Callable[[Path], object] | None = None) -> Saved:
        """Write each part to ``folder/<study>/<series>/<sop>.dcm``, atomically, and say which.

        The UIDs are read from the part itself, never from what the server calls it. A file that is there already with
        the same bytes is kept; one with other bytes is replaced in one step. What an earlier, broken run left is
        finished by running it again. Raises Unintelligible for an answer without a part and for a part that is no DICOM
        file, and what iterating raises; files finished before stay.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        kept: list[Path] = []
        replaced: list[Path] = []
        size = 0
        with self:
            for _headers, part in self:
                target, what, length = self._save_one(root, part)
                {"written": written, "kept": kept, "replaced": replaced}[what].append(target)
                size += length
                if on_file is not None:
                    on_file(target)
            if not (written or kept or replaced):
                raise self._answer.unintelligible("the answer has no part")
        return Saved(written=tuple(written), kept=tuple(kept), replaced=tuple(replaced), size_bytes=size)

    def _save_one(self, root: Path, part: BodyPart) -> tuple[Path, str, int]:
        temporary = root / f".{secrets.token_hex(8)}.part"
        size = 0
        with contextlib.ExitStack() as undo:
            fd = new_file(temporary)
            undo.callback(temporary.unlink, missing_ok=True)
            with os.fdopen(fd, "r+b", buffering=0) as file:
                while chunk := part.next_chunk():
                    write_all(fd, chunk)
                    size += len(chunk)
                uids = read_uids(fd)
                if uids is None:
                    raise self._answer.unintelligible("a retrieved part is no DICOM file with the three UIDs")
                study, series, sop = uids
                target = root / study / series / f"{sop}.dcm"
                target.parent.mkdir(parents=True, exist_ok=True)
                if _same_bytes(file.fileno(), target, size):
                    return target, "kept", size
                os.fsync(fd)
            what = "replaced" if target.exists() else "written"
            temporary.replace(target)
            undo.pop_all()
        sync_folder(target.parent)
        return target, what, size


class _Whole:
    """Stands in for a Multipart where the whole answer is one part."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._rest = b""

    def next_content(self, limit: int | None = None) -> bytes:
        data = self._rest or self._read()
        if limit is None or len(data) <= limit:
            self._rest = b""
            return data
        self._rest = data[limit:]
        return data[:limit]


def read_metadata(answer: Answer) -> Metadata:
    """Read a metadata answer; raises Unintelligible, or MisconfiguredServer for a web page."""
    if answer.media_type in HTML_TYPES:
        raise MisconfiguredServer("the metadata is answered with a web page", status=answer.status)
    body = answer.read_all(METADATA_LIMIT)
    if answer.media_type not in JSON_TYPES:
        raise answer.unintelligible("the metadata is not DICOM JSON")
    try:
        items = datasets_from_json(body, memory_limit=METADATA_MEMORY_LIMIT)
    except Undecodable as error:
        raise answer.unintelligible(f"the metadata is {error}") from None
    return Metadata(items=tuple(items), etag=answer.headers.get("ETag", ""), server_date=answer.server_date)


def read_uids(fd: int) -> tuple[str, str, str] | None:
    """Read the UIDs of an open file from its start, and no further; None if it is no DICOM file or lacks one.

    They are digits and dots, so that no file that is named by them lies elsewhere.
    """
    uids = instance.read_uids(fd)
    return uids if uids is not None and all(map(SAFE_UID.match, uids)) else None


def _same_bytes(fd: int, target: Path, size: int) -> bool:
    try:
        other = open_file(str(target))
    except OSError:
        return False
    with os.fdopen(other, "rb", buffering=0) as there:
        if os.fstat(other).st_size != size:
            return False
        position = 0
        while position < size:
            ours = os.pread(fd, COPY_SIZE, position)
            if not ours or ours != there.read(len(ours)):
                return False
            position += len(ours)
    return True


def download(
    client: DicomWebClient,
    folder: Path,
    target: tuple[str, str | None, str | None],
    *,
    on_file: Callable[[Path], object] | None,
    on_bytes: Callable[[int], object] | None,
) -> Saved:
    """Save what is not in the folder yet of a study, series or instance; a file there is whole, or had no name yet."""
    study, series, sop = target

    def save(retrieval: Retrieval) -> Saved:
        retrieval.on_bytes = on_bytes
        return retrieval.save_to(folder, on_file=on_file)

    if sop is not None:
        if series is None:
            raise ValueError("an instance needs its series")
        return save(client.retrieve_instance(study, series, sop))

    def whole() -> Saved:
        return save(client.retrieve_study(study) if series is None else client.retrieve_series(study, series))

    begun = folder / study if series is None else folder / study / series
    if not SAFE_UID.match(study) or not (series is None or SAFE_UID.match(series)) or not begun.is_dir():
        return whole()
    written: list[Path] = []
    kept: list[Path] = []
    size = 0
    for item in client.find_instances(study_uid=study, series_uid=series):
        its_series = uid_of(item, "SeriesInstanceUID") or series
        its_sop = uid_of(item, "SOPInstanceUID")
        if not its_series or not SAFE_UID.match(its_series) or not SAFE_UID.match(its_sop):
            # The server names instances otherwise than one may name a file: take the whole again.
            return whole()
        path = folder / study / its_series / f"{its_sop}.dcm"
        if path.is_file():
            kept.append(path)
            continue
        saved = save(client.retrieve_instance(study, its_series, its_sop))
        written.extend(saved.written)
        size += saved.size_bytes
    if not (written or kept):
        return whole()  # nothing is listed: whether there is nothing, only a retrieve can say (404)
    return Saved(written=tuple(written), kept=tuple(kept), size_bytes=size)
