"""Element headers that are not as the transfer syntax asks: the ways in which they may be meant (PS3.5 §7.1)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from ingestd.instance.frames import Frame, fits
from ingestd.instance.source import Window
from ingestd.instance.syntax import LONG_VRS, SHORT_VRS, UNDEFINED, YOUNG_VRS
from ingestd.instance.tags import ITEM, ITEM_DELIMITER, PIXEL_DATA, SEQUENCE_DELIMITER

_LOOK_AHEAD = 1 << 16
_DELIMITERS = 0xFFFE
KNOWN_VRS = SHORT_VRS | LONG_VRS
_PLAIN_VRS = LONG_VRS - YOUNG_VRS - {b"SQ"}
_PLAIN_VRS_ENTERED = _PLAIN_VRS - {b"UN"}
# A walk with short forms that comes to its end with one of these has lost its way and found back, or never lost it.
_ASTRAY = frozenset(
    (
        "fragment_outside_item",
        "inner_overrun",
        "missing_delimiter",
        "private_implicit",
        "stray_delimiter",
        "trailing_bytes",
        "unknown_vr",
    )
)
# Walks to the end with short forms; gives the notes of that walk, None where it fails.
WalkAhead: TypeAlias = Callable[[], set[str] | None]


class Header(NamedTuple):
    """One reading of an element's header; ``vr`` is b"" for an implicit one, ``note`` the word for what is odd."""

    vr: bytes
    header_bytes: int
    length: int
    note: str


def looks_like_vr(vr: bytes) -> bool:
    """Whether these two bytes are capital letters, as every VR is and will be."""
    return len(vr) == 2 and 0x41 <= vr[0] <= 0x5A and 0x41 <= vr[1] <= 0x5A


def begins_element(window: Window, ahead: int, tag: int, *, big: bool) -> bool:
    """Whether so many bytes ahead an explicit element that may follow on ``tag``, or a delimiter, begins."""
    if not window.fill(ahead + 8):
        return False
    at = window.pos + ahead
    group, number, vr = struct.unpack_from((">" if big else "<") + "HH2s", window.buf, at)
    following = group << 16 | number
    if group == _DELIMITERS:
        return following in (ITEM, ITEM_DELIMITER, SEQUENCE_DELIMITER)
    return following > tag and (vr in SHORT_VRS or vr in LONG_VRS)


def may_follow_pixels(rest: bytes, *, implicit: bool, big: bool) -> bool:
    """Whether what stands behind pixel data may be an element, whole or cut: a transfer leaves line ends and blocks."""
    if not rest.strip(b"\r\n "):
        return False
    group = int.from_bytes(rest[:2], "big" if big else "little")
    if len(rest) < 2 or group == _DELIMITERS:
        return True
    return PIXEL_DATA >> 16 <= group < _DELIMITERS and (implicit or len(rest) < 6 or looks_like_vr(rest[4:6]))


def odd_headers(buf: bytes, pos: int, *, big: bool) -> list[Header]:
    """Give the readings of an explicit header whose VR the standard does not know, the likeliest first.

    New VRs have a 32-bit length (PS3.5 §7.1.2), but old ones invented by vendors had 16 bits, as have the blanks and
    question marks that some toolkits write; and no letters at all is mostly an implicit element (private sequences).
    """
    implicit = Header(b"", 8, _uint32(buf, pos + 4, big=big), "private_implicit")
    vr = buf[pos + 4 : pos + 6]
    order = ">" if big else "<"
    short = Header(vr, 8, struct.unpack_from(order + "H", buf, pos + 6)[0], "unknown_vr")
    readings = [implicit, short]
    if looks_like_vr(vr):
        readings = [short, implicit]
        if buf[pos + 6 : pos + 8] == b"\0\0" and len(buf) - pos >= 12:
            readings.insert(0, Header(vr, 12, _uint32(buf, pos + 8, big=big), "unknown_vr"))
    return readings


def other_headers(buf: bytes, pos: int, *, big: bool, implicit: bool) -> list[Header]:
    """Give other readings of a header that is well-formed but whose length reaches too far."""
    order = ">" if big else "<"
    vr = buf[pos + 4 : pos + 6]
    short_length = struct.unpack_from(order + "H", buf, pos + 6)[0]
    if implicit:
        if vr in SHORT_VRS:
            return [Header(vr, 8, short_length, "explicit_inside_implicit")]
        if vr in LONG_VRS and len(buf) - pos >= 12:
            return [Header(vr, 12, _uint32(buf, pos + 8, big=big), "explicit_inside_implicit")]
        return []
    if vr in LONG_VRS and short_length:  # the two reserved bytes hold something
        return [Header(vr, 8, short_length, "short_form_length")]
    return []


def _uint16(buf: bytes, pos: int, *, big: bool) -> int:
    return int.from_bytes(buf[pos : pos + 2], "big" if big else "little")


def _uint32(buf: bytes, pos: int, *, big: bool) -> int:
    return int.from_bytes(buf[pos : pos + 4], "big" if big else "little")


class HeaderReader:
    """Reads the headers of one data set as they were meant, and learns on the way how its writer wrote them.

    Some writers gave a VR with a 32-bit length 16 bits, where two reserved bytes belong (old fo-dicom: SV, UV). That
    this reading fits proves nothing: half a value is then taken for a length. So at the first header that may be one
    the rest is walked ahead, once for the whole data set: it is written so if it can be walked so to its end.

    Of ``plain_vrs`` a header without reserved bytes needs no second look, of ``young_vrs`` one that no element follows
    at once: a walk may pass over them by itself.
    """

    __slots__ = ("_notes", "_seen_short", "_window", "_with_short_forms", "plain_vrs", "young_vrs")

    def __init__(self, window: Window, notes: set[str], *, enters_unknown: bool) -> None:
        self._window = window
        self._notes = notes
        self._with_short_forms: bool | None = None  # None: nothing has made us ask yet
        self._seen_short: frozenset[bytes] = frozenset()  # VRs of which a 16-bit length was seen
        self.plain_vrs = _PLAIN_VRS_ENTERED if enters_unknown else _PLAIN_VRS
        self.young_vrs = YOUNG_VRS

    def use_short_forms(self) -> None:
        """Take 16-bit lengths as they come."""
        self._with_short_forms = True
        self.plain_vrs = self.young_vrs = frozenset()

    def read(
        self, tag: int, frame: Frame | None, walk_ahead: WalkAhead, *, implicit: bool, big: bool
    ) -> tuple[bytes, int, int] | None:
        """Read the VR, the header's size and the length at the window's position, where 8 bytes stand.

        None where the length fits in no reading. ``walk_ahead`` is lent: kept, it would tie reader and walker into a
        cycle, and a file's whole window would lie about until the collector of garbage comes by.
        """
        window = self._window
        buf, pos = window.buf, window.pos
        at = window.base + pos
        vr, header_bytes = b"", 8
        if implicit:
            length = _uint32(buf, pos + 4, big=big)
        else:
            vr = buf[pos + 4 : pos + 6]
            if vr in SHORT_VRS:
                length = _uint16(buf, pos + 6, big=big)
            elif vr in LONG_VRS:
                plain = self._plain_length(vr, frame, big=big)
                if plain is not None:
                    return vr, 12, plain
                form = self._odd_form(tag, vr, frame, walk_ahead, big=big)
                if form is None:
                    return None
                header_bytes, length = form
            else:
                vr, header_bytes, length, _ = self._choose(tag, odd_headers(buf, pos, big=big), frame, big=big)
        if length != UNDEFINED and not fits(at + header_bytes + length, frame, window):
            others = other_headers(window.buf, window.pos, big=big, implicit=implicit)
            candidates = [Header(vr, header_bytes, length, ""), *others]
            vr, header_bytes, length, _ = self._choose(tag, candidates, frame, big=big)
            if length != UNDEFINED and not fits(at + header_bytes + length, frame, window):
                return None
        return vr, header_bytes, length

    def _plain_length(self, vr: bytes, frame: Frame | None, *, big: bool) -> int | None:
        """Read the 32-bit length of a header in which nothing is odd; None where something is."""
        window = self._window
        if self._with_short_forms or vr in YOUNG_VRS or not window.fill(12):
            return None
        buf, pos = window.buf, window.pos
        if buf[pos + 6] or buf[pos + 7]:
            return None
        length = _uint32(buf, pos + 8, big=big)
        end = window.base + pos + 12 + (0 if length == UNDEFINED else length)
        return length if fits(end, frame, window) else None

    def _odd_form(
        self, tag: int, vr: bytes, frame: Frame | None, walk_ahead: WalkAhead, *, big: bool
    ) -> tuple[int, int] | None:
        """Say how many bytes the header of a VR with a 32-bit length has, and that length; None: it does not fit."""
        window = self._window
        at = window.base + window.pos
        reserved = _uint16(window.buf, window.pos + 6, big=big)
        length = None
        if fits(at + 12, frame, window) and window.fill(12):
            length = _uint32(window.buf, window.pos + 8, big=big)
        is_fitting = length is not None and (length == UNDEFINED or fits(at + 12 + length, frame, window))
        may_be_empty = not reserved and (vr in YOUNG_VRS or vr in self._seen_short or not is_fitting)
        is_odd = reserved or (may_be_empty and begins_element(window, 8, tag, big=big))
        if is_odd and self._with_short_forms is None:
            self._ask_for_short_forms(tag, reserved, walk_ahead, big=big)
        if self._with_short_forms and reserved and fits(at + 8 + reserved, frame, window):
            self._seen_short |= {vr}
            self._notes.add("short_form_length")
            return 8, reserved
        if self._with_short_forms and may_be_empty and self._is_empty_short_form(tag, vr, frame, big=big):
            self._notes.add("short_form_length")
            return 8, 0
        return None if length is None else (12, length)

    def _is_empty_short_form(self, tag: int, vr: bytes, frame: Frame | None, *, big: bool) -> bool:
        """Whether the next element, or the end, follows at once on a header without reserved bytes."""
        behind = self._window.base + self._window.pos + 8
        # At the end of the file it may as well be a header that was cut off.
        end = frame.bound if frame else self._window.size if vr in self._seen_short else None
        return behind == end or begins_element(self._window, 8, tag, big=big)

    def _ask_for_short_forms(self, tag: int, reserved: int, walk_ahead: WalkAhead, *, big: bool) -> None:
        notes = walk_ahead()
        self._with_short_forms = notes is not None and (
            begins_element(self._window, 8 + reserved, tag, big=big) or notes.isdisjoint(_ASTRAY)
        )
        if self._with_short_forms:
            self.use_short_forms()

    def _choose(self, tag: int, candidates: Sequence[Header], frame: Frame | None, *, big: bool) -> Header:
        """Choose among the readings of the header at the window's position: by what fits, and what would follow."""
        window = self._window
        at = window.base + window.pos
        bound = None if frame is None else frame.bound
        fitting = [
            each
            for each in candidates
            if (
                each.vr in (b"", b"SQ", b"UN")
                if each.length == UNDEFINED
                else fits(at + each.header_bytes + each.length, frame, window)
            )
        ]
        followed = (each for each in fitting if _is_followed(window, tag, each, bound=bound, big=big))
        chosen = next(followed, None) or (fitting or candidates)[0]
        if chosen.note:
            self._notes.add(chosen.note)
        return chosen

    def item_is_implicit(self, frame: Frame, bound: int | None) -> bool:
        """Look at the first element of an item of this sequence: some writers change the encoding inside sequences."""
        window = self._window
        if (bound is not None and bound - window.base - window.pos < 8) or not window.fill(8):
            return frame.implicit
        first = window.buf[window.pos : window.pos + 8]
        if first[:2] in (b"\xfe\xff", b"\xff\xfe") or not first.strip(b"\0"):
            return frame.implicit
        vr = first[4:6]
        if frame.implicit and vr in KNOWN_VRS:
            self._notes.add("explicit_inside_implicit")
            return False
        if not frame.implicit and not looks_like_vr(vr):
            length = _uint32(window.buf, window.pos + 4, big=frame.big)
            if length == UNDEFINED or bound is None or length <= bound - window.base - window.pos - 8:
                self._notes.add("private_implicit")
                return True
        return frame.implicit


def _is_followed(window: Window, tag: int, header: Header, *, bound: int | None, big: bool) -> bool:
    """Whether an element that may come after ``tag``, a delimiter or the end stands behind this reading of it."""
    if header.length > _LOOK_AHEAD:
        return header.length != UNDEFINED
    after = header.header_bytes + header.length
    if bound == window.base + window.pos + after:
        return True
    if not window.fill(after + 8):
        return len(window.buf) - window.pos == after
    order = ">" if big else "<"
    group, number = struct.unpack_from(order + "HH", window.buf, window.pos + after)
    following: int = group << 16 | number
    return following >= tag
