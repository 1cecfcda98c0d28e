"""A person's decision about rows, carried out one by one; first a look at each file: what is promised must be there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from ingestd.digests import HeadAndRest
from ingestd.fs.places import MISSING, below_of, look, open_file

from .output import plain

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.ledger import Entry, Ledger, Transaction

After = TypeVar("After")
Refusals = list[tuple[int, str]]  # rows, and why the decision is not carried out on them

_READ_SIZE = 1_048_576


def one_by_one(
    ledger: Ledger, ids: Iterable[int], move: Callable[[Transaction, int], After], *, why_not: Callable[[Entry], str]
) -> tuple[dict[int, After], Refusals]:
    """Make the move for each row in a transaction of its own; say what it gave for each, and what was refused.

    ``why_not`` looks at the row first, and ends the sentence "row 7 cannot be ...": what gave way does not come back.
    """
    from ingestd.ledger import RefusedMove, queries

    done: dict[int, After] = {}
    refused: Refusals = []
    for number in dict.fromkeys(ids):
        entry = queries.entry(ledger, number)
        if entry is not None and (why := why_not(entry)):
            refused.append((number, f"row {number} cannot be {why}"))
            continue
        try:
            with ledger.transaction() as tx:
                done[number] = move(tx, number)
        except RefusedMove as refusal:
            refused.append((number, str(refusal)))
    return done, refused


def why_not_readable(entry: Entry) -> str:
    """Say why the row's file cannot be read, as the end of a sentence; "" where it can, or is nobody's to say."""
    if entry.file is None:
        return ""
    try:
        found = look(_place(entry, entry.file))
    except OSError as error:
        return _unseen(entry, error)
    return "" if stat.S_ISREG(found.st_mode) else f"is no regular file: {plain(entry.file)}"


def why_not_the_same(entry: Entry) -> str:
    """Say why the row's file is not what the row was made of, as the end of a sentence; "" where it is, byte by byte.

    The whole file is read.
    """
    if (why := why_not_readable(entry)) or entry.file is None or entry.content is None:
        return why
    content = entry.content
    try:
        descriptor = open_file(_place(entry, entry.file))
    except OSError as error:
        return _unseen(entry, error)
    digests, size = HeadAndRest(content.dataset_offset, like=content.digest), 0
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        try:
            while size <= content.size_bytes and (chunk := file.read(_READ_SIZE)):
                digests.update(chunk)
                size += len(chunk)
        except OSError as error:
            return _unseen(entry, error)
    if size == content.size_bytes and digests.texts() == (content.meta_digest, content.digest):
        return ""
    return f"is not what it was when it was taken in: {plain(entry.file)}; drop it again, or let go of the row"


def _place(entry: Entry, file: Path) -> str:
    return below_of(str(file), entry.relative_path) if entry.in_place else str(file)


def _unseen(entry: Entry, error: OSError) -> str:
    if isinstance(error, MISSING):
        return f"is not there: {plain(entry.file)}"
    return f"cannot be read ({error.strerror or type(error).__name__}): {plain(entry.file)}"
