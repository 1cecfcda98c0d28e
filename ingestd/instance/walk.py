"""The structural walk: every element, item and fragment from the first to the end of the stream (PS3.5 §7).

Theory of operation. A data set is a list of elements, each with a tag, sometimes a VR, a length and a value. A value
may be a sequence of items, and an item a data set again; encapsulated pixel data is a run of fragments. Lengths are
known, or undefined (FFFFFFFF) and ended by a delimiter. Whether a file is whole is the question whether all of these
lengths and delimiters add up to exactly its end; no value has to be understood for that.

The walk goes forward once, without recursion. It stands at ``window.base + window.pos``, an offset that only grows, and
holds a window of the stream; no value longer than asked for is in memory. Around it is a stack of *frames*, innermost
in ``_frame`` (None: the top level): a sequence, an item or a run of fragments. A frame's ``end`` is where its own
length says it ends (None: its delimiter does), its ``bound`` the nearest known end around it. So "does this fit" is
asked of one number, and what belies it is found where it stands and not at the end of the file.

``advance`` turns one wheel until there is something to tell:

- among elements (top level, item): ``_run`` passes over those that are as they should be and lie whole in the window,
  in one tight loop (``runs``); that is nearly all of a file, and its cost. What it stops at takes one ``_step``: the
  header is read as it was meant (``headers``), a sequence is entered, a long value is passed over, an end is taken;
- among items (sequence, fragments): ``_between_items`` takes the next item, fragment or delimiter.

Both push and pop frames, and what is pushed brings its own encoding: some writers change it inside sequences, and the
content of UN of undefined length is implicit little endian (PS3.5 §6.2.2 note 3) unless its first element shows a VR.

What is held against a file is only what cannot be right: a length that reaches behind the end of the file, content of
undefined length that does not come to its delimiter, limits exceeded. All else that real equipment writes is walked
over, and put down in ``notes`` (G7):

- an element longer than the item of known length that holds it: the item's length counts, the rest of it is opaque;
- implicit elements inside explicit content, and the other way round; unknown VRs; 16-bit lengths where 32 belong;
- delimiters that are missing, carry a length or stand where none can be;
- zeros, or a few bytes of a transfer, behind the last element.

The walk stops at elements the caller has chosen and, for callers that want to rewrite the data set (``everything``), at
every element and at the begin and end of sequences, items and fragments. Stopping costs: short values that are only
wanted as they are can be kept on the way (``keep``). A walk that keeps one does not stop there, unless the element is
long, stands there a second time or lies across two windows. A value that the caller has not read by the next
``advance`` is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator
from typing import NoReturn

from ingestd.instance.facts import NESTING_MOST, InvalidInstance, Verdict
from ingestd.instance.frames import Everything, Frame, Kind, WalkEvent, fits
from ingestd.instance.headers import (
    HeaderReader,
    begins_element,
    may_follow_pixels,
)
from ingestd.instance.runs import ITEM_BIG, ITEM_LITTLE, Wanted, run_explicit, run_implicit
from ingestd.instance.source import Window, ZeroWatch
from ingestd.instance.syntax import UNDEFINED, Encoding
from ingestd.instance.tags import ITEM, ITEM_DELIMITER, PIXEL_DATA, PIXELS, SEQUENCE_DELIMITER

_TAG_LITTLE = struct.Struct("<HHI").unpack_from
_TAG_BIG = struct.Struct(">HHI").unpack_from
# Their values may be fragments when their length is undefined (PS3.5 Annex A.4).
_FRAGMENT_VRS = frozenset((b"OB", b"OW", b"OD", b"OF", b"OL", b"OV"))
# What content of undefined length begins with when it is made of items: an item, or at once its delimiter.
_BEGINS_LITTLE = (ITEM_LITTLE, b"\xfe\xff\xdd\xe0")
_BEGINS_BIG = (ITEM_BIG, b"\xff\xfe\xe0\xdd")
# Bytes behind the pixel data that are no element are passed over up to a block; more may be another file's.
_TAIL_BYTES = 4096
_NOTHING = Wanted((), (), {})


class Walker:
    """Walks one data set. After ELEMENT, FRAGMENT and OPAQUE: ``tag``, ``vr`` (b"" if implicit), ``length``."""

    def __init__(
        self,
        window: Window,
        *,
        encoding: Encoding,
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
        self._wanted = Wanted(Everything() if everything else chosen, keep, {} if keep_in is None else keep_in)
        self._everything = everything
        # Whether an element of known length that begins with an item is a sequence: asked for implicit elements and
        # UN. None: implicit ones are, UN is not.
        self._is_sequence = is_sequence
        self._headers = HeaderReader(window, self.notes, enters_unknown=is_sequence is not None)
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
            else:
                event = self._run() or self._step()
            if event is not None:
                return event

    def _run(self) -> WalkEvent | None:
        """Go over elements that are as they should be, to one that the caller wants or that takes a step of its own."""
        window, frame = self.window, self._frame
        limit = len(window.buf)
        if frame is not None and frame.bound is not None:
            limit = min(limit, frame.bound - window.base)
        if limit - window.pos < 8:
            return None
        wanted = self._wanted if frame is None or self._everything else _NOTHING
        if self.implicit:
            tag, vr, length, odd, found = run_implicit(window, limit, wanted, big=self.big, tag=self.last_tag)
        else:
            tag, vr, length, odd, found = run_explicit(
                window, limit, wanted, self._headers, big=self.big, tag=self.last_tag
            )
        if odd:
            self.notes.add("odd_length")
        if frame is None:
            self.last_tag = tag
        return self._hand_out(tag, vr, length) if found else None

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
        group, number, length = (_TAG_BIG if self.big else _TAG_LITTLE)(buf, pos)
        tag = group << 16 | number
        if group == 0xFFFE:
            return self._delimiter(tag, length)
        if tag == 0 and length == 0:
            return self._zeros()
        header = self._headers.read(tag, frame, self._walk_ahead, implicit=self.implicit, big=self.big)
        if header is None:
            return self._too_long()
        vr, header_bytes, length = header
        if frame is None:
            self.last_tag = tag
        window.pos += header_bytes
        if length == UNDEFINED:
            return self._undefined(tag, vr)
        if length & 1:
            self.notes.add("odd_length")
        if self._holds_items(tag, vr, length):
            return self._enter(Kind.SEQUENCE, tag, vr, length)
        if (frame is None or self._everything) and tag in self._wanted.chosen:
            return self._hand_out(tag, vr, length)
        if not window.skip(length):
            self._ends_early()
        return None

    def _walk_ahead(self) -> set[str] | None:
        """Walk the rest with 16-bit lengths, by another walker that stops nowhere; its notes, None where it cannot."""
        ahead = Walker(
            self.window.fork(),
            encoding=Encoding.EXPLICIT_LITTLE,
            is_sequence=self._is_sequence,
        )
        ahead.implicit, ahead.big, ahead._top = self.implicit, self.big, self._top
        ahead.depth, ahead.last_tag = self.depth, self.last_tag
        ahead._frame, ahead._stack = self._frame, list(self._stack)
        ahead._headers.use_short_forms()
        try:
            while ahead.advance() is not WalkEvent.END:
                pass
        except InvalidInstance:
            return None
        return ahead.notes

    def _holds_items(self, tag: int, vr: bytes, length: int) -> bool:
        """Whether an element of known length is to be entered as a sequence."""
        if vr == b"SQ":
            return True
        if vr not in (b"", b"UN") or length < 8 or not self.window.fill(4):
            return False
        pos = self.window.pos
        item = ITEM_BIG if self.big and not vr else ITEM_LITTLE
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
        if self.depth > NESTING_MOST:
            raise InvalidInstance(Verdict.HOSTILE, f"sequences nested deeper than {NESTING_MOST}")
        implicit, big = self.implicit, self.big
        if vr == b"UN":
            implicit, big = True, False  # PS3.5 §6.2.2 note 3, whatever the transfer syntax
        self._push(Frame(kind, end=end, bound=bound if end is None else end, implicit=implicit, big=big, tag=tag))
        self.tag, self.vr, self.length = tag, vr, length
        if self._everything or (parent is None and tag in self._wanted.chosen):
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
                if length:
                    self.notes.add("delimiter_length")
                self.window.pos += 8
                return self._pop()
            if tag in (SEQUENCE_DELIMITER, ITEM):
                self.notes.add("missing_delimiter")
                return self._pop()
        self.notes.add("stray_delimiter")
        self.window.pos += 8
        return None

    def _between_items(self, frame: Frame) -> WalkEvent | None:
        """Take the next item or fragment, or the end of them."""
        window = self.window
        at = window.base + window.pos
        if frame.bound is not None and at + 8 > frame.bound:
            return self._leave_bounded(frame)
        if not window.fill(8):
            return self._at_end()
        group, number, length = (_TAG_BIG if self.big else _TAG_LITTLE)(window.buf, window.pos)
        tag = group << 16 | number
        if tag == ITEM:
            return self._begin_item(frame, length)
        if tag == SEQUENCE_DELIMITER:
            if length:
                self.notes.add("delimiter_length")
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
            if not fits(end, frame, window):
                return self._too_long()
            window.pos += 8
            if self._everything:
                return self._hand_out(frame.tag, b"", length, WalkEvent.FRAGMENT)
            if not window.skip(length):
                self._ends_early()
            return None
        if end is not None and not fits(end, frame, window):
            if frame.bound is None:
                self._ends_early()
            self.notes.add("inner_overrun")
            end = frame.bound
        window.pos += 8
        bound = frame.bound if end is None else end
        implicit = self._headers.item_is_implicit(frame, bound)
        self._push(Frame(Kind.ITEM, end=end, bound=bound, implicit=implicit, big=frame.big, tag=frame.tag))
        return WalkEvent.ITEM if self._everything else None
