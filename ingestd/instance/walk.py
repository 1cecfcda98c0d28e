"""The structural walk: every element, item and fragment from the first to the end of the stream (PS3.5 §7).

One forward pass, no recursion, no value longer than asked for in memory. What it holds against a file is only what
cannot be right: a length that reaches behind the end of the file, content of undefined length without its end,
limits exceeded. All else that real equipment writes is walked over, and noted (G7):

- an element longer than the item of known length that holds it: the item's length counts, the rest of it is opaque;
- implicit elements inside explicit content, and the other way round; unknown VRs; 16-bit lengths where 32 belong;
  whether a data set is written with such (old fo-dicom: SV, UV) is found out once, by whether it walks to its end so;
- delimiters that are missing, carry a length or stand where none can be; UN of undefined length, whose content is
  implicit little endian (PS3.5 §6.2.2 note 3) unless its first element shows a VR.

``advance`` is called until it says END. It stops at elements the caller has chosen and, for callers that want to
rewrite the data set (``everything``), at every element and at the begin and end of sequences, items and fragments.
Stopping costs: short values that are only wanted as they are can be kept on the way (``keep``). A walk that keeps one
does not stop there, unless the element is long, stands there a second time or lies across two windows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NoReturn

from ingestd.instance.errors import InvalidInstance
from ingestd.instance.facts import Limits, Verdict
from ingestd.instance.frames import Everything, Frame, Kind, WalkEvent
from ingestd.instance.headers import (
    Header,
    begins_element,
    choose_header,
    looks_like_vr,
    may_follow_pixels,
    odd_headers,
    other_headers,
)
from ingestd.instance.source import Window, ZeroWatch
from ingestd.instance.syntax import (
    ITEM,
    ITEM_DELIMITER,
    LONG_VRS,
    PIXEL_DATA,
    PIXELS,
    SEQUENCE_DELIMITER,
    SHORT_VRS,
    UNDEFINED,
    YOUNG_VRS,
    Encoding,
)

_EXPLICIT_LITTLE = struct.Struct("<HH2sH").unpack_from
_EXPLICIT_BIG = struct.Struct(">HH2sH").unpack_from
_IMPLICIT_LITTLE = struct.Struct("<HHI").unpack_from
_IMPLICIT_BIG = struct.Struct(">HHI").unpack_from
_UINT32_LITTLE = struct.Struct("<I").unpack_from
_UINT32_BIG = struct.Struct(">I").unpack_from

# Their values may be fragments when their length is undefined (PS3.5 Annex A.4).
_FRAGMENT_VRS = frozenset((b"OB", b"OW", b"OD", b"OF", b"OL", b"OV"))
_PLAIN_LONG_VRS = LONG_VRS - YOUNG_VRS - {b"SQ"}
# A reading that comes to the end with one of these has lost its way and found back, or never lost it.
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
_KNOWN_VRS = SHORT_VRS | LONG_VRS
_ITEM_LITTLE = b"\xfe\xff\x00\xe0"
_ITEM_BIG = b"\xff\xfe\xe0\x00"
# What content of undefined length begins with when it is made of items: an item, or at once its delimiter.
_BEGINS_LITTLE = (_ITEM_LITTLE, b"\xfe\xff\xdd\xe0")
_BEGINS_BIG = (_ITEM_BIG, b"\xff\xfe\xe0\xdd")
# Bytes behind the pixel data that are no element are passed over up to a block; more may be another file's.
_TAIL_BYTES = 4096
# A value that is kept on the way is no longer than this; a longer one is handed out.
KEPT_BYTES = 1024


class Walker:
    """Walks one data set. After ELEMENT, FRAGMENT and OPAQUE: ``tag``, ``vr`` (b"" if implicit), ``length``."""

    def __init__(
        self,
        window: Window,
        *,
        encoding: Encoding,
        limits: Limits,
        chosen: Container[int] = frozenset(),
        keep: Container[int] = frozenset(),
        keep_in: dict[int, bytes] | None = None,
        everything: bool = False,
        is_sequence: Callable[[int], bool] | None = None,
    ) -> None:
        self.window = window
        self.notes: set[str] = set()
        self.tag = 0
        self.vr = b""
        self.length = 0
        self.depth = 0
        self.last_tag = 0  # the last element at the top level
        self.is_open = False  # the stream ended behind a fragment of its pixel data, without their delimiter
        self.implicit = encoding is Encoding.IMPLICIT_LITTLE
        self.big = encoding is Encoding.EXPLICIT_BIG
        self._top = self.implicit, self.big
        self._limits = limits
        self._chosen = Everything() if everything else chosen
        # Of the chosen ones, those whose first value goes into ``keep_in`` without stopping the walk where it can.
        self._keep = keep
        self._kept = {} if keep_in is None else keep_in
        self._everything = everything
        # Whether an element of known length that begins with an item is a sequence: asked for implicit elements and
        # UN. None: implicit ones are, UN is not.
        self._is_sequence = is_sequence
        self._plain_vrs = _PLAIN_LONG_VRS if is_sequence is None else _PLAIN_LONG_VRS - {b"UN"}
        self._young_vrs = YOUNG_VRS
        self._with_short_forms: bool | None = None  # None: nothing has made us ask yet
        self._short_vrs: frozenset[bytes] = frozenset()  # those of which a 16-bit length was seen
        self._frame: Frame | None = None
        self._stack: list[Frame | None] = []
        self._value_end: int | None = None

    # What the caller may do with the value in hand.

    def value(self) -> bytes:
        """Give the whole value; the caller has looked at ``length`` first."""
        self.window.fill(self.length)
        at = self.window.pos
        value = self.window.buf[at : at + self.length]
        if len(value) < self.length:
            self._ends_early()
        return value

    def chunks(self) -> Iterator[bytes]:
        """Give the value piece by piece."""
        left = self.length
        for chunk in self.window.chunks(self.length):
            left -= len(chunk)
            yield chunk
        if left:
            self._ends_early()

    def pass_value(self, watch: ZeroWatch) -> None:
        """Go over the value, showing it to ``watch``."""
        if not self.window.skip(self.length, watch):
            self._ends_early()

    # The walk.

    def advance(self) -> WalkEvent:
        """Go on to the next thing the caller wants to know of.

        Raises InvalidInstance, SHORT or HOSTILE.
        """
        window = self.window
        if self._value_end is not None:
            behind = self._value_end - window.base - window.pos
            self._value_end = None
            if behind and not window.skip(behind):
                self._ends_early()
        while True:
            frame = self._frame
            event: WalkEvent | None
            if frame is not None and frame.kind is not Kind.ITEM:
                event = self._between_items(frame)
            elif self.implicit:
                event = self._run_implicit() or self._step()
            else:
                event = self._run_explicit() or self._step()
            if event is not None:
                return event

    def _run_explicit(self) -> WalkEvent | None:
        """Go over elements that lie whole in the window and are as they should be: nearly all of them."""
        window = self.window
        buf, pos = window.buf, window.pos
        frame = self._frame
        limit = len(buf)
        if frame is not None and frame.bound is not None:
            limit = min(limit, frame.bound - window.base)
        header = _EXPLICIT_BIG if self.big else _EXPLICIT_LITTLE
        uint32 = _UINT32_BIG if self.big else _UINT32_LITTLE
        chosen = self._chosen if frame is None or self._everything else ()
        keep, kept = self._keep, self._kept
        plain, young = self._plain_vrs, self._young_vrs
        odd, tag = 0, self.last_tag
        found = False
        while pos + 8 <= limit:
            group, number, vr, length = header(buf, pos)
            if vr in SHORT_VRS:
                start = pos + 8
            elif (vr in plain and pos + 12 <= limit and not length) or (
                vr in young and pos + 12 <= limit and not length and buf[pos + 12 : pos + 14] not in _KNOWN_VRS
            ):
                length = uint32(buf, pos + 8)[0]
                start = pos + 12
            else:
                break
            after = start + length
            if after > limit:
                break
            odd |= length
            tag = group << 16 | number
            if tag in chosen:
                if length > KEPT_BYTES or tag not in keep or tag in kept:
                    found = True
                    pos = start
                    break
                kept[tag] = buf[start:after]
            pos = after
        window.pos = pos
        self._ran(odd, tag)
        if not found:
            return None
        return self._hand_out(tag, vr, length)

    def _run_implicit(self) -> WalkEvent | None:
        """The same for implicit elements; what looks like a sequence is left to ``_step``."""
        window = self.window
        buf, pos = window.buf, window.pos
        frame = self._frame
        limit = len(buf)
        if frame is not None and frame.bound is not None:
            limit = min(limit, frame.bound - window.base)
        header = _IMPLICIT_BIG if self.big else _IMPLICIT_LITTLE
        item = _ITEM_BIG if self.big else _ITEM_LITTLE
        chosen = self._chosen if frame is None or self._everything else ()
        keep, kept = self._keep, self._kept
        odd, tag = 0, self.last_tag
        found = False
        while pos + 8 <= limit:
            group, number, length = header(buf, pos)
            after = pos + 8 + length
            if after > limit or group in (0xFFFE, 0) or (length >= 8 and buf[pos + 8 : pos + 12] == item):
                break
            odd |= length
            tag = group << 16 | number
            if tag in chosen:
                if length > KEPT_BYTES or tag not in keep or tag in kept:
                    found = True
                    pos += 8
                    break
                kept[tag] = buf[pos + 8 : after]
            pos = after
        window.pos = pos
        self._ran(odd, tag)
        if not found:
            return None
        return self._hand_out(tag, b"", length)

    def _ran(self, odd: int, tag: int) -> None:
        if odd & 1:
            self.notes.add("odd_length")
        if self._frame is None:
            self.last_tag = tag

    def _hand_out(self, tag: int, vr: bytes, length: int, event: WalkEvent = WalkEvent.ELEMENT) -> WalkEvent:
        """Stop at the value that begins at the window's position."""
        self.tag, self.vr, self.length = tag, vr, length
        self._value_end = self.window.base + self.window.pos + length
        return event

    def _step(self) -> WalkEvent | None:
        """Take one step that is not the common one: an end, a long value, a sequence, an oddity."""
        window, frame = self.window, self._frame
        at = window.base + window.pos
        if frame is not None and frame.bound is not None and at + 8 > frame.bound:
            return self._leave_bounded(frame)
        if self.last_tag in PIXELS and frame is None and self._is_tail():
            return WalkEvent.END
        if not window.fill(8):
            return self._at_end()
        buf, pos = window.buf, window.pos
        group, number, length = (_IMPLICIT_BIG if self.big else _IMPLICIT_LITTLE)(buf, pos)
        tag = group << 16 | number
        if group == 0xFFFE:
            return self._delimiter(tag, length)
        if tag == 0 and length == 0:
            return self._zeros()
        vr = b""
        header_bytes = 8
        if not self.implicit:
            vr = buf[pos + 4 : pos + 6]
            if vr in SHORT_VRS:
                length = (_EXPLICIT_BIG if self.big else _EXPLICIT_LITTLE)(buf, pos)[3]
            elif vr in LONG_VRS:
                form = self._plain_form(at, vr) or self._long_vr_form(tag, vr)
                if form is None:
                    return self._too_long()
                header_bytes, length = form
            else:
                vr, header_bytes, length = self._choose_header(tag, odd_headers(buf, pos, big=self.big))
        if length != UNDEFINED and not self._fits(at + header_bytes + length):
            others = other_headers(window.buf, window.pos, big=self.big, implicit=self.implicit)
            vr, header_bytes, length = self._choose_header(tag, [Header(vr, header_bytes, length, ""), *others])
            if length != UNDEFINED and not self._fits(at + header_bytes + length):
                return self._too_long()
        if frame is None:
            self.last_tag = tag
        window.pos += header_bytes
        if length == UNDEFINED:
            return self._undefined(tag, vr)
        if length & 1:
            self.notes.add("odd_length")
        if self._holds_items(tag, vr, length):
            return self._enter(Kind.SEQUENCE, tag, vr, length)
        if tag in (self._chosen if frame is None or self._everything else ()):
            return self._hand_out(tag, vr, length)
        if not window.skip(length):
            self._ends_early()
        return None

    def _plain_form(self, at: int, vr: bytes) -> tuple[int, int] | None:
        """Read the same as ``_long_vr_form`` where nothing is odd; None where something is."""
        window = self.window
        if self._with_short_forms or vr in YOUNG_VRS or not self._fits(at + 12) or not window.fill(12):
            return None
        length = self._uint32(8)
        if window.buf[window.pos + 6] or window.buf[window.pos + 7]:
            return None
        return (12, length) if length == UNDEFINED or self._fits(at + 12 + length) else None

    def _long_vr_form(self, tag: int, vr: bytes) -> tuple[int, int] | None:
        """Say how many bytes the header of a VR with a 32-bit length has, and that length; None: it does not fit.

        Some writers gave it 16 bits, where two reserved bytes belong. That the other reading fits proves nothing: half
        a value is then taken for a length. So at the first header that may be one, the rest is walked ahead.
        """
        window = self.window
        at = window.base + window.pos
        reserved = int.from_bytes(window.buf[window.pos + 6 : window.pos + 8], "big" if self.big else "little")
        length = self._uint32(8) if self._fits(at + 12) and window.fill(12) else None
        fits = length is not None and (length == UNDEFINED or self._fits(at + 12 + length))
        may_be_empty = not reserved and (vr in YOUNG_VRS or vr in self._short_vrs or not fits)
        is_odd = reserved or (may_be_empty and begins_element(window, 8, tag, big=self.big))
        if is_odd and self._with_short_forms is None:
            self._find_form(tag, reserved)
        if self._with_short_forms and reserved and self._fits(at + 8 + reserved):
            self._short_vrs |= {vr}
            self.notes.add("short_form_length")
            return 8, reserved
        if self._with_short_forms and may_be_empty and self._is_empty_short_form(tag, vr):
            self.notes.add("short_form_length")
            return 8, 0
        return None if length is None else (12, length)

    def _is_empty_short_form(self, tag: int, vr: bytes) -> bool:
        """Whether the next element, or the end, follows at once on a header without reserved bytes."""
        behind = self.window.base + self.window.pos + 8
        # At the end of the file it may as well be a header that was cut off.
        end = self._frame.bound if self._frame else self.window.size if vr in self._short_vrs else None
        return behind == end or begins_element(self.window, 8, tag, big=self.big)

    def _find_form(self, tag: int, reserved: int) -> None:
        """Settle for the whole data set whether it has 16-bit lengths where 32 belong: whether it can be walked so."""
        ahead = self._ahead_with_short_forms()
        try:
            while ahead.advance() is not WalkEvent.END:
                pass
        except InvalidInstance:
            self._with_short_forms = False
        else:
            is_followed = begins_element(self.window, 8 + reserved, tag, big=self.big)
            self._with_short_forms = is_followed or ahead.notes.isdisjoint(_ASTRAY)
        if self._with_short_forms:
            self._plain_vrs = self._young_vrs = frozenset()

    def _ahead_with_short_forms(self) -> Walker:
        """Give a walker at the same place that goes on by itself, stopping nowhere, with 16-bit lengths."""
        ahead = Walker(
            self.window.fork(),
            encoding=Encoding.EXPLICIT_LITTLE,
            limits=self._limits,
            is_sequence=self._is_sequence,
        )
        ahead.implicit, ahead.big, ahead._top = self.implicit, self.big, self._top
        ahead.depth, ahead.last_tag = self.depth, self.last_tag
        ahead._frame, ahead._stack = self._frame, list(self._stack)
        ahead._with_short_forms = True
        ahead._plain_vrs = ahead._young_vrs = frozenset()
        return ahead

    def _uint32(self, ahead: int) -> int:
        value: int = (_UINT32_BIG if self.big else _UINT32_LITTLE)(self.window.buf, self.window.pos + ahead)[0]
        return value

    def _fits(self, end: int) -> bool:
        """Whether something may reach up to this offset; where only the end of the stream will tell, it may."""
        frame = self._frame
        if frame is not None and frame.bound is not None:
            return end <= frame.bound
        return self.window.size is None or end <= self.window.size

    def _holds_items(self, tag: int, vr: bytes, length: int) -> bool:
        """Whether an element of known length is to be entered as a sequence."""
        if vr == b"SQ":
            return True
        if vr not in (b"", b"UN") or length < 8 or not self.window.fill(4):
            return False
        pos = self.window.pos
        item = _ITEM_BIG if self.big and not vr else _ITEM_LITTLE
        if self.window.buf[pos : pos + 4] != item:
            return False
        return not vr if self._is_sequence is None else self._is_sequence(tag)

    def _undefined(self, tag: int, vr: bytes) -> WalkEvent | None:
        """Begin content of undefined length; the window stands at its first byte."""
        window = self.window
        if not window.fill(8):
            self._ends_early()
        first = window.buf[window.pos : window.pos + 4]
        if (tag == PIXEL_DATA or vr in _FRAGMENT_VRS) and first in (_BEGINS_BIG if self.big else _BEGINS_LITTLE):
            return self._enter(Kind.FRAGMENTS, tag, vr, UNDEFINED)
        if (
            vr == b"SQ"
            or (vr == b"UN" and first in _BEGINS_LITTLE)
            or (vr == b"" and first in (_BEGINS_BIG if self.big else _BEGINS_LITTLE))
        ):
            return self._enter(Kind.SEQUENCE, tag, vr, UNDEFINED)
        return self._search_delimiter()

    def _search_delimiter(self) -> WalkEvent | None:
        """Go over content of undefined length that is no items, to its delimiter."""
        window, frame = self.window, self._frame
        if self._everything:
            raise InvalidInstance(Verdict.SHORT, "content of undefined length is not made of items")
        self.notes.add("fragment_outside_item")
        delimiter = (_BEGINS_BIG if self.big else _BEGINS_LITTLE)[1] + bytes(4)
        if not window.find(delimiter, before=None if frame is None else frame.bound):
            raise InvalidInstance(Verdict.SHORT, "content of undefined length does not come to its end")
        window.pos += 8
        return None

    def _enter(self, kind: Kind, tag: int, vr: bytes, length: int) -> WalkEvent | None:
        """Go into a sequence or a run of fragments; the window stands at its first item."""
        parent = self._frame
        bound = None if parent is None else parent.bound
        end = None if length == UNDEFINED else self.window.base + self.window.pos + length
        self.depth += 1
        if self.depth > self._limits.nesting:
            raise InvalidInstance(Verdict.HOSTILE, f"sequences nested deeper than {self._limits.nesting}")
        implicit, big = self.implicit, self.big
        if vr == b"UN":
            implicit, big = True, False  # PS3.5 §6.2.2 note 3, whatever the transfer syntax
        self._push(Frame(kind, end=end, bound=bound if end is None else end, implicit=implicit, big=big, tag=tag))
        self.tag, self.vr, self.length = tag, vr, length
        if self._everything or (parent is None and tag in self._chosen):
            return WalkEvent.SEQUENCE if kind is Kind.SEQUENCE else WalkEvent.FRAGMENTS
        return None

    def _push(self, frame: Frame) -> None:
        self._stack.append(self._frame)
        self._frame = frame
        self.implicit, self.big = frame.implicit, frame.big

    def _pop(self) -> WalkEvent | None:
        """Leave the innermost sequence, item or fragments; the window stands behind it."""
        frame = self._frame
        assert frame is not None, "only called inside one"
        parent = self._stack.pop()
        self._frame = parent
        if frame.kind is not Kind.ITEM:
            self.depth -= 1
        self.implicit, self.big = self._top if parent is None else (parent.implicit, parent.big)
        if not self._everything:
            return None
        self.tag = frame.tag
        if frame.kind is Kind.ITEM:
            return WalkEvent.ITEM_END
        return WalkEvent.SEQUENCE_END if frame.kind is Kind.SEQUENCE else WalkEvent.FRAGMENTS_END

    def _leave_bounded(self, frame: Frame) -> WalkEvent | None:
        """Leave what has come to its known end; a few bytes too little for a header are passed over first."""
        assert frame.bound is not None, "only called where the end is known"
        left = frame.bound - self.window.base - self.window.pos
        if left:
            return self._too_long()
        if frame.end is None:
            self.notes.add("missing_delimiter")
        return self._pop()

    def _too_long(self) -> WalkEvent | None:
        """Give up the rest of what we are in: its own length counts, the element's does not."""
        frame = self._frame
        if frame is None or frame.bound is None:
            self._ends_early()
        self.notes.add("inner_overrun")
        left = frame.bound - self.window.base - self.window.pos
        if self._everything:
            return self._hand_out(frame.tag, b"", left, WalkEvent.OPAQUE)
        if not self.window.skip(left):
            self._ends_early()
        return None

    def _ends_early(self) -> NoReturn:
        raise InvalidInstance(Verdict.SHORT, "the file ends before its lengths say")

    def _at_end(self) -> WalkEvent | None:
        """Fewer bytes are left in the stream than any header has."""
        frame, window = self._frame, self.window
        if frame is not None and frame.kind is Kind.FRAGMENTS and frame.tag == PIXEL_DATA and len(self._stack) == 1:
            self.is_open = window.pos == len(window.buf)  # whether an image is missing, only the fragments tell
        if self.is_open and frame is not None:
            self.notes.add("missing_delimiter")
            return self._pop()
        if frame is not None:
            raise InvalidInstance(Verdict.SHORT, "the file ends inside a sequence or inside encapsulated pixel data")
        rest = window.buf[window.pos :]
        if rest.strip(b"\0"):
            self._ends_early()
        if rest:
            self.notes.add("trailing_nulls")
        return WalkEvent.END

    def _is_tail(self) -> bool:
        """Pass over what stands behind the pixel data where no element begins so, nor a file; say whether it did."""
        window = self.window
        window.fill(_TAIL_BYTES)
        rest = window.buf[window.pos :]
        if not rest.strip(b"\0") or len(rest) >= _TAIL_BYTES or b"DICM" in rest:
            return False
        if may_follow_pixels(rest, implicit=self.implicit, big=self.big):
            return False
        self.notes.add("trailing_bytes")
        window.pos = len(window.buf)
        return True

    def _zeros(self) -> WalkEvent | None:
        """Zeros stand where an element should: padding to the end of the file or item, or something torn."""
        frame = self._frame
        if frame is not None and frame.bound is not None:
            return self._too_long()
        if frame is not None or not self.window.rest_is_zero():
            raise InvalidInstance(Verdict.SHORT, "zeros stand where an element should be")
        self.notes.add("trailing_nulls")
        return WalkEvent.END

    def _delimiter(self, tag: int, length: int) -> WalkEvent | None:
        """A delimiter or item where elements are expected."""
        frame = self._frame
        if frame is not None and frame.end is None:
            if tag == ITEM_DELIMITER:
                self._check_delimiter(length)
                self.window.pos += 8
                return self._pop()
            if tag in (SEQUENCE_DELIMITER, ITEM):
                self.notes.add("missing_delimiter")
                return self._pop()
        self.notes.add("stray_delimiter")
        self.window.pos += 8
        return None

    def _check_delimiter(self, length: int) -> None:
        if length:
            self.notes.add("delimiter_length")

    def _between_items(self, frame: Frame) -> WalkEvent | None:
        """Take the next item or fragment, or the end of them."""
        window = self.window
        at = window.base + window.pos
        if frame.bound is not None and at + 8 > frame.bound:
            return self._leave_bounded(frame)
        if not window.fill(8):
            return self._at_end()
        group, number, length = (_IMPLICIT_BIG if self.big else _IMPLICIT_LITTLE)(window.buf, window.pos)
        tag = group << 16 | number
        if tag == ITEM:
            return self._begin_item(frame, length)
        if tag == SEQUENCE_DELIMITER:
            self._check_delimiter(length)
            window.pos += 8
            if frame.end is None:
                return self._pop()
            self.notes.add("stray_delimiter")
            return None
        if tag == ITEM_DELIMITER:
            self.notes.add("stray_delimiter")
            window.pos += 8
            return None
        if frame.bound is not None:
            return self._too_long()
        if frame.kind is Kind.SEQUENCE and begins_element(window, 0, frame.tag, big=self.big):
            self.notes.add("missing_delimiter")
            return self._pop()
        what = "encapsulated pixel data" if frame.kind is Kind.FRAGMENTS else "a sequence"
        raise InvalidInstance(Verdict.SHORT, f"{what} is torn: it does not come to its delimiter")

    def _begin_item(self, frame: Frame, length: int) -> WalkEvent | None:
        window = self.window
        end = None if length == UNDEFINED else window.base + window.pos + 8 + length
        if frame.kind is Kind.FRAGMENTS:
            if end is None:
                raise InvalidInstance(Verdict.SHORT, "a fragment of encapsulated pixel data has no length")
            if not self._fits(end):
                return self._too_long()
            window.pos += 8
            if self._everything:
                return self._hand_out(frame.tag, b"", length, WalkEvent.FRAGMENT)
            if not window.skip(length):
                self._ends_early()
            return None
        if end is not None and not self._fits(end):
            if frame.bound is None:
                self._ends_early()
            self.notes.add("inner_overrun")
            end = frame.bound
        window.pos += 8
        bound = frame.bound if end is None else end
        implicit = self._item_is_implicit(frame, bound)
        self._push(Frame(Kind.ITEM, end=end, bound=bound, implicit=implicit, big=frame.big, tag=frame.tag))
        return WalkEvent.ITEM if self._everything else None

    def _item_is_implicit(self, frame: Frame, bound: int | None) -> bool:
        """Look at the first element of an item: some writers change the encoding inside sequences."""
        window = self.window
        if (bound is not None and bound - window.base - window.pos < 8) or not window.fill(8):
            return frame.implicit
        first = window.buf[window.pos : window.pos + 8]
        if first[:2] in (b"\xfe\xff", b"\xff\xfe") or not first.strip(b"\0"):
            return frame.implicit
        vr = first[4:6]
        if frame.implicit and vr in _KNOWN_VRS:
            self.notes.add("explicit_inside_implicit")
            return False
        if not frame.implicit and not looks_like_vr(vr):
            length = self._uint32(4)
            if length == UNDEFINED or bound is None or length <= bound - window.base - window.pos - 8:
                self.notes.add("private_implicit")
                return True
        return frame.implicit

    def _choose_header(self, tag: int, candidates: Sequence[Header]) -> tuple[bytes, int, int]:
        bound = None if self._frame is None else self._frame.bound
        chosen = choose_header(self.window, tag, candidates, fits=self._fits, bound=bound, big=self.big)
        if chosen.note:
            self.notes.add(chosen.note)
        return chosen.vr, chosen.header_bytes, chosen.length
