"""Whether a file that stays in its inbox is the one that a row knows.

Its name, size and mtime do not say so: another instance may lie there with all three (exports set the mtime). A new
inode or ctime makes it be read again; is it what the row knows, the row takes the new ones over, and nothing is taken
in. Where a mount numbers its inodes anew (failover, FUSE), so that many in a row prove unchanged, they are ignored
there, until a file proves to be another after all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import structlog

from ingestd.daemon.steps import Seen
from ingestd.inbox import Candidate
from ingestd.ledger import KnownSource, Ledger, Transaction, queries
from ingestd.reader import Inspection

UNCHANGED_MOST = 20
# Files of one mount that may be doubted in a second for their inodes alone, while nobody knows what those say there.
_DOUBTED_AT_ONCE = UNCHANGED_MOST
_DOUBT_EVERY_SECONDS = 1.0


@dataclass(slots=True)
class _Mount:
    """What new inodes have meant on one mount so far."""

    unchanged: int = 0  # so many files in a row had a new inode and proved to be what they were
    ignored: bool = False
    has_changed: bool = False  # the last that was read again was another
    doubted: int = 0  # in this second
    second: float = 0.0


@dataclass(slots=True)
class Asked:
    """What became of files that the ledger was asked about: the others are new, or in doubt."""

    known: list[Candidate] = field(default_factory=list)
    put_off: list[Candidate] = field(default_factory=list)  # to be asked about again


class InPlace:
    """Compares what was seen with what rows know. Main thread only."""

    def __init__(self) -> None:
        """Know nothing of any mount."""
        self._mounts: dict[int, _Mount] = {}
        self._log = structlog.get_logger()

    def known(self, ledger: Ledger, candidates: Sequence[Candidate], *, mono: float) -> Asked:
        """Say which of these files some row knows, and of which nobody can say it yet."""
        asked = Asked()
        for candidate, known in _rows_by_name(ledger, candidates):
            if candidate.in_place:
                self._judge(candidate, known, asked, mono=mono)
            elif any(row.source == candidate.source and not row.source_removed for row in known):
                asked.known.append(candidate)
        return asked

    def _judge(self, candidate: Candidate, rows: Sequence[KnownSource], asked: Asked, *, mono: float) -> None:
        """Put the candidate where it belongs; one in doubt is read again."""
        mount = self._mounts.setdefault(candidate.source.device, _Mount())
        same_ctime = [row for row in _alike(rows, candidate) if _has_ctime(row, candidate)]
        if any(mount.ignored or row.source.inode == candidate.source.inode for row in same_ctime):
            asked.known.append(candidate)
        elif same_ctime and not self._may_doubt(mount, mono):
            asked.put_off.append(candidate)

    def ignores_inodes(self, device: int) -> bool:
        mount = self._mounts.get(device)
        return mount is not None and mount.ignored

    def learn(self, candidate: Candidate, row: KnownSource | None) -> None:
        """Count a file that was read again, and was what ``row`` knows, or no row does."""
        source = candidate.source
        mount = self._mounts.setdefault(source.device, _Mount())
        if row is None:
            mount.unchanged, mount.has_changed = 0, True
            if mount.ignored:
                mount.ignored = False
                self._log.info("inbox.inodes_count", inbox=candidate.inbox)
        elif row.source.inode != source.inode:
            mount.unchanged, mount.has_changed = mount.unchanged + 1, False
            if mount.unchanged >= UNCHANGED_MOST and not mount.ignored:
                mount.ignored = True
                self._log.warning("inbox.inodes_ignored", inbox=candidate.inbox, files=mount.unchanged)

    def _may_doubt(self, mount: _Mount, mono: float) -> bool:
        """Say whether one more file may be read again for its inode alone: a whole archive, for nothing, would be."""
        if mount.has_changed:
            return True
        if mono - mount.second >= _DOUBT_EVERY_SECONDS:
            mount.second, mount.doubted = mono, 0
        mount.doubted += 1
        return mount.doubted <= _DOUBTED_AT_ONCE


def doubts(tx: Transaction, candidates: Sequence[Candidate]) -> dict[Candidate, tuple[KnownSource, ...]]:
    """Say of files in place which rows each may be.

    Asked whenever one is about to be read: since the ledger was asked whether it knows it, it may have changed, or have
    been read and given back.
    """
    return {candidate: _alike(rows, candidate) for candidate, rows in _rows_by_name(tx, candidates)}


def recognised(seen: Seen, found: Inspection, reason: str | None) -> KnownSource | None:
    """Say which of the rows that a file may be it is, by its bytes; a refused one by the ``reason`` to refuse it."""
    for row in seen.doubts:
        if row.digests == (found.meta_digest, found.digest) if row.digests else row.reason == reason:
            return row
    return None


def _rows_by_name(
    ledger: Ledger | Transaction, candidates: Sequence[Candidate]
) -> Iterator[tuple[Candidate, Sequence[KnownSource]]]:
    by_inbox: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_inbox.setdefault(candidate.inbox, []).append(candidate)
    for inbox, here in by_inbox.items():
        rows = queries.known_sources(ledger, inbox, [candidate.relative_path for candidate in here])
        for candidate in here:
            yield candidate, rows.get(candidate.relative_path, ())


def _alike(rows: Sequence[KnownSource], candidate: Candidate) -> tuple[KnownSource, ...]:
    return tuple(row for row in rows if row.source.looks_like(candidate.source))


def _has_ctime(row: KnownSource, candidate: Candidate) -> bool:
    """Whether nothing was written into it since; one that did not stand still while it was read is read once more."""
    is_kept = 0 < candidate.ctime_ns < 1 << 63  # by the ledger
    return not is_kept or row.ctime_ns == candidate.ctime_ns
