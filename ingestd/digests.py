"""What a file's bytes are known by: BLAKE3 for the machine, SHA-256 for people.

Sameness, the check of what leaves and the comparison with a server's copy go by BLAKE3-256: collision resistant as
SHA-256 is (whoever drops a file may hold its descriptor still, so that nothing less will do), at a quarter of its cost.
It is written as a multihash in hex (algorithm 0x1e, 0x20 bytes of digest), so that each digest says what it is one of.
64 digits without such a head are SHA-256: ledgers of before hold those, and rows keep what they have. Two digests of
unlike algorithms say nothing of each other; what has to be held against an earlier one is taken ``like`` it.

SHA-256 of the whole file is what `sha256sum` prints, and what a person or another program can check.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from blake3 import blake3

_BLAKE3 = "1e20"
_SHA256_DIGITS = 64
is_digest = re.compile(rf"(?:{_BLAKE3})?[0-9a-f]{{64}}", re.ASCII).fullmatch


class Digester:
    """Takes a digest of bytes as they come: of the algorithm that ``like`` is of, else BLAKE3."""

    __slots__ = ("_head", "_hexdigest", "update")

    def __init__(self, like: str = "") -> None:
        is_former = len(like) == _SHA256_DIGITS
        hasher = hashlib.sha256() if is_former else blake3()
        self._head = "" if is_former else _BLAKE3
        self._hexdigest: Callable[[], str] = hasher.hexdigest
        self.update: Callable[[bytes | memoryview], object] = hasher.update

    def text(self) -> str:
        """Give the digest of all bytes so far."""
        return self._head + self._hexdigest()


class HeadAndRest:
    """The digests of the bytes before an offset, and of those from there on, of the algorithm that ``like`` is of."""

    __slots__ = ("_head", "_head_left", "_rest")

    def __init__(self, offset: int, *, like: str) -> None:
        self._head, self._rest = Digester(like), Digester(like)
        self._head_left = offset

    def update(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        if self._head_left:
            view = memoryview(chunk)
            self._head.update(view[: self._head_left])
            self._rest.update(view[self._head_left :])
            self._head_left -= min(self._head_left, len(chunk))
        else:
            self._rest.update(chunk)

    def texts(self) -> tuple[str, str]:
        """Give both digests of all bytes so far."""
        return self._head.text(), self._rest.text()
