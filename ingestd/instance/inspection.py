"""Read one file from its first byte to its last, once, and say what it is (DESIGN.md 9.4)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from ingestd.instance import tags
from ingestd.instance.facts import Inspection, InvalidInstance, Verdict
from ingestd.instance.frames import WalkEvent
from ingestd.instance.meta import UIDS_CACHED, uid_text
from ingestd.instance.opening import Digesters, OpenedFile
from ingestd.instance.pixels import PIXEL_ATTRIBUTES, expected_pixel_bytes, has_every_image
from ingestd.instance.runs import KEPT_BYTES
from ingestd.instance.source import Progress, ZeroWatch, ignore_progress
from ingestd.instance.syntax import MAIN_ELEMENTS, MEDIA_STORAGE_DIRECTORY, is_native, main_elements
from ingestd.instance.text import decode_text
from ingestd.instance.walk import Walker

_UIDS = {
    tags.SOP_INSTANCE_UID: "SOP Instance UID",
    tags.STUDY_INSTANCE_UID: "Study Instance UID",
    tags.SERIES_INSTANCE_UID: "Series Instance UID",
}
_KEPT = (
    frozenset(_UIDS)
    | PIXEL_ATTRIBUTES
    | {tags.SPECIFIC_CHARACTER_SET, tags.SOP_CLASS_UID, tags.ACCESSION_NUMBER, tags.MODALITY}
    | {tags.STATION_NAME, tags.INSTITUTION_NAME, tags.INSTITUTIONAL_DEPARTMENT_NAME, tags.STUDY_DESCRIPTION}
    | {tags.PATIENT_ID, tags.PIXEL_DATA_PROVIDER_URL}
)
_CHOSEN = _KEPT | set(tags.PIXELS) | MAIN_ELEMENTS | {tags.DATA_SET_TRAILING_PADDING, tags.DIRECTORY_RECORD_SEQUENCE}
_TEXT_MOST = 64  # LO, SH and CS are shorter; more is cut, as it is for searching and for rules only
# Asked several times for each file, and mostly for the UIDs of the file before.
_UID = lru_cache(UIDS_CACHED)(re.compile(r"(?=\.*[0-9])[0-9.]{1,64}", re.ASCII).fullmatch)
_LEADING_ZERO = lru_cache(UIDS_CACHED)(re.compile(r"(?:^|\.)0[0-9]", re.ASCII).search)
_PAGE = 4096


def inspect(fd: int, *, like: str = "", sha256: bool = False, progress: Progress = ignore_progress) -> Inspection:
    """Read the regular file behind ``fd`` from its beginning to its end and say what it is.

    Reads forward only, every byte once, a few hundred KB in memory at a time. Its digests are taken ``like`` this one
    (``ingestd.digests``), and SHA-256 of the whole file where it is wanted. ``progress`` is called with the number of
    bytes read or inflated since its last call. Raises OSError as the kernel gives it; nothing else.
    """
    return _Inspector(fd, Digesters(like, sha256=sha256), progress).inspect()


@dataclass(slots=True)
class _Found:
    """What the walk has come by."""

    values: dict[int, bytes] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    twice: str = ""  # the name of a UID that stands twice with different values
    pixel_tag: int | None = None
    pixel_bytes: int | None = None  # None: encapsulated
    fragments_at: int = 0  # where in the file the first of them begins
    watch: ZeroWatch = field(default_factory=ZeroWatch)


class _Inspector:
    def __init__(self, fd: int, digesters: Digesters, progress: Progress) -> None:
        self._fd = fd
        self._digesters = digesters
        self._file = OpenedFile(fd, progress=progress, digesters=digesters)
        self._found = _Found()
        self._walker: Walker | None = None

    def inspect(self) -> Inspection:
        file = self._file
        beginning = file.head
        if not beginning:
            return self._result(Verdict.EMPTY, "the file is empty")
        walked = False
        verdict, reason = Verdict.WHOLE, ""
        try:
            file.read_meta()
            if file.meta.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
                verdict, reason = Verdict.DICOMDIR, "a DICOMDIR: an index of files, not an instance"
            else:
                window = file.open_dataset()
                self._walker = Walker(
                    window, encoding=file.encoding, chosen=_CHOSEN, keep=_KEPT, keep_in=self._found.values
                )
                self._collect(self._walker)
                walked = True
        except InvalidInstance as problem:
            verdict, reason = problem.verdict, problem.reason
            if not file.meta.found and not beginning.strip(b"\0") and self._rest_is_zero():
                verdict, reason = Verdict.EMPTY, "the file holds nothing but zeros"
        self._found.present.update(self._found.values)
        file.close_dataset()
        if walked:
            verdict, reason = self._judge()
        return self._result(verdict, reason)

    def _rest_is_zero(self) -> bool:
        while chunk := self._file.feed.read():
            if chunk.strip(b"\0"):
                return False
        return True

    def _collect(self, walker: Walker) -> None:
        found = self._found
        while (event := walker.advance()) is not WalkEvent.END:
            tag = walker.tag
            if event is WalkEvent.FRAGMENTS:
                if tag in tags.PIXELS:
                    found.pixel_tag, found.pixel_bytes = tag, None
                    found.fragments_at = walker.window.base + walker.window.pos
                continue
            if tag in tags.PIXELS:
                found.pixel_tag, found.pixel_bytes = tag, walker.length
                found.watch = ZeroWatch()
                walker.pass_value(found.watch)
            elif tag in _KEPT:
                self._keep(walker, tag)
            else:
                found.present.add(tag)

    def _keep(self, walker: Walker, tag: int) -> None:
        found = self._found
        if walker.length > KEPT_BYTES:
            found.notes.add("long_value")
            found.present.add(tag)
            return
        value = walker.value()
        if tag in found.values:
            found.notes.add("duplicate_element")
            if tag in _UIDS and uid_text(found.values[tag]) != uid_text(value):
                found.twice = _UIDS[tag]
        found.values[tag] = value

    def _judge(self) -> tuple[Verdict, str]:
        """Judge a data set that was walked to its end."""
        verdict, reason = self._judge_content()
        if verdict is Verdict.WHOLE and self._walker is not None and "trailing_bytes" in self._walker.notes:
            return (
                Verdict.ZEROS,
                "behind its pixel data stand bytes that are no element: it may not be written to its end",
            )
        return verdict, reason

    def _judge_content(self) -> tuple[Verdict, str]:
        found = self._found
        assert self._walker is not None, "walked before"
        if tags.DIRECTORY_RECORD_SEQUENCE in found.present:
            return Verdict.DICOMDIR, "a DICOMDIR: an index of files, not an instance"
        problem = self._uid_problem()
        if problem:
            # Elements come in ascending order: what ends before the UIDs' place may have been cut there.
            if self._walker.last_tag < tags.SERIES_INSTANCE_UID and not found.present.issuperset(_UIDS):
                return Verdict.SHORT, "the file ends before the place of its Study and Series Instance UID"
            return Verdict.NO_UIDS, problem
        if tags.DATA_SET_TRAILING_PADDING in found.present:
            found.notes.add("trailing_padding")
        self._note_uids()
        if found.pixel_tag is None:
            return self._judge_without_pixels()
        if self._walker.is_open:
            return self._judge_open()
        if found.pixel_bytes is not None:
            return self._judge_sized(found.pixel_tag, found.pixel_bytes)
        return Verdict.WHOLE, ""

    def _uid_problem(self) -> str:
        found = self._found
        if found.twice:
            return f"it has two different values of {found.twice}"
        for tag, name in _UIDS.items():
            text = uid_text(found.values.get(tag, b""))
            if not text:
                return f"it has no {name}" if tag not in found.present else f"its {name} is empty"
            if not _UID(text):
                return f"its {name} is not a UID"
        if self._file.generated_meta and not _UID(uid_text(found.values.get(tags.SOP_CLASS_UID, b""))):
            return "it has no SOP Class UID"
        return ""

    def _note_uids(self) -> None:
        found, meta = self._found, self._file.meta
        uids = [uid_text(found.values[tag]) for tag in _UIDS]
        sop_class = uid_text(found.values.get(tags.SOP_CLASS_UID, b""))
        if any(_LEADING_ZERO(uid) for uid in uids):
            found.notes.add("uid_leading_zero")
        if not sop_class:
            found.notes.add("no_sop_class")
        if meta.found and (meta.sop_uid != uids[0] or (sop_class and meta.sop_class_uid != sop_class)):
            found.notes.add("meta_uid_differs")

    def _judge_without_pixels(self) -> tuple[Verdict, str]:
        """A file cut between two elements adds up: what its class is for must be there, or it waits for a while."""
        found = self._found
        wanted: Iterable[int] = main_elements(uid_text(found.values.get(tags.SOP_CLASS_UID, b"")))
        if not wanted and {tags.ROWS, tags.COLUMNS, tags.BITS_ALLOCATED} <= found.present:
            wanted = tags.PIXELS
        if not wanted or tags.PIXEL_DATA_PROVIDER_URL in found.present or not found.present.isdisjoint(wanted):
            return Verdict.WHOLE, ""
        if self._walker is not None and "trailing_nulls" in self._walker.notes:
            return Verdict.SHORT, "zeros stand where its main content should be"
        found.notes.add("main_element_missing")
        return Verdict.ZEROS, "what its SOP class is for is not in it: it may not be written to its end yet"

    def _judge_open(self) -> tuple[Verdict, str]:
        """Judge encapsulated pixel data that ends with the file: it was cut off between two fragments, or made so."""
        file = self._file
        if file.inflate is None and has_every_image(self._fd, self._found.fragments_at, file.size, self._found.values):
            return Verdict.ZEROS, "its pixel data ends without a delimiter: it may not be written to its end yet"
        return Verdict.SHORT, "the file ends inside its encapsulated pixel data"

    def _judge_sized(self, tag: int, size: int) -> tuple[Verdict, str]:
        """Judge pixel data of a known length: a file that was cut off does not get here, as it declares what is cut.

        So what is less than its attributes imply was made so; unless its writer has yet to put the true length there.
        """
        found = self._found
        assert self._walker is not None, "walked before"
        least = None
        if tag == tags.PIXEL_DATA and not is_native(self._file.transfer_syntax):
            found.notes.add("pixel_data_defined_length")
        else:
            least = expected_pixel_bytes(tag, found.values, big=self._walker.big)
            if least is None:
                found.notes.add("pixel_data_unchecked")
            elif size > least + 1:
                found.notes.add("pixel_data_longer")
        reason = ""
        if size < (least or 1):
            found.notes.add("pixel_data_shorter")
            implied = f" where its attributes imply {least:,}" if least else ""
            reason = f"its pixel data has {size:,} bytes{implied}: it may not be written to its end yet"
        watch = found.watch
        if watch.seen and (watch.all_zero or (watch.trailing >= _PAGE and self._tail_is_hole())):
            found.notes.add("zero_pixels")
            reason = reason or "its pixel data is zeros to the end: it may not be written to its end yet"
        return (Verdict.ZEROS, reason) if reason else (Verdict.WHOLE, "")

    def _tail_is_hole(self) -> bool:
        """Whether the end of the file was never written, as far as the filesystem can tell."""
        size = os.fstat(self._fd).st_size
        try:
            return size > 0 and os.lseek(self._fd, size - 1, os.SEEK_HOLE) < size
        except OSError:  # not every filesystem can say
            return False

    def _result(self, verdict: Verdict, reason: str) -> Inspection:
        after = os.fstat(self._fd)
        file = self._file
        if _identity(file.stat) != _identity(after) or file.feed.position != after.st_size:
            verdict, reason = Verdict.CHANGED, "the file changed while it was read"
        found, meta = self._found, self._file.meta
        notes = found.notes | file.notes | (set() if self._walker is None else self._walker.notes)
        character_set = found.values.get(tags.SPECIFIC_CHARACTER_SET, b"")
        patient_id, readable = decode_text(found.values.get(tags.PATIENT_ID, b"")[:KEPT_BYTES], character_set)
        if not readable:
            notes.add("patient_id_undecodable")
        accession, readable = decode_text(found.values.get(tags.ACCESSION_NUMBER, b"")[:KEPT_BYTES], character_set)
        if not readable:
            notes.add("accession_undecodable")
        return Inspection(
            verdict=verdict,
            reason_text=reason,
            study_uid=self._uid(tags.STUDY_INSTANCE_UID),
            series_uid=self._uid(tags.SERIES_INSTANCE_UID),
            sop_uid=self._uid(tags.SOP_INSTANCE_UID),
            sop_class_uid=self._uid(tags.SOP_CLASS_UID) or (meta.sop_class_uid if _UID(meta.sop_class_uid) else ""),
            transfer_syntax=file.transfer_syntax if _UID(file.transfer_syntax) else "",
            digest=self._digesters.dataset.text(),
            meta_digest=self._digesters.meta.text(),
            sha256=self._digesters.sha256,
            dataset_offset=meta.end,
            size_bytes=after.st_size,
            device=after.st_dev,
            inode=after.st_ino,
            mtime_ns=after.st_mtime_ns,
            ctime_ns=after.st_ctime_ns if file.stat.st_ctime_ns == after.st_ctime_ns else 0,
            modality=self._text(tags.MODALITY, b""),
            station=self._text(tags.STATION_NAME, character_set),
            institution=self._text(tags.INSTITUTION_NAME, character_set),
            department=self._text(tags.INSTITUTIONAL_DEPARTMENT_NAME, character_set),
            source_ae=meta.source_ae[:_TEXT_MOST],
            study_description=self._text(tags.STUDY_DESCRIPTION, character_set),
            patient_id=patient_id,
            accession_number=accession,
            generated_meta=file.generated_meta,
            notes=tuple(sorted(notes)),
        )

    def _uid(self, tag: int) -> str:
        text = uid_text(self._found.values.get(tag, b""))
        return text if _UID(text) else ""

    def _text(self, tag: int, character_set: bytes) -> str:
        value = self._found.values.get(tag)
        return decode_text(value, character_set)[0][:_TEXT_MOST] if value else ""


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
