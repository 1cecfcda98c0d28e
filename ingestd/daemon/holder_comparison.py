"""Files whose identity a row at this destination holds with other bytes: whether their content is the same.

The ledger has them as DUPLICATE for the reason NOT_COMPARED, so that a file waits here with a row of its own, and for
this destination alone. It is compared with the holder's file; where that was removed, or is another one by now, with
the copy that the server of a CONFIRMED holder has, for as long as it takes the server to give it. A holder that is not
CONFIRMED is read again before it is sent, or asked about: then it can be compared with, or its place is free, and the
file that waits takes that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TypeAlias

from structlog.typing import FilteringBoundLogger

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.judgement import KILLS_MOST
from ingestd.daemon.reader_client import ReaderClient
from ingestd.daemon.server_copies import Copy, ServerCopies
from ingestd.daemon.stage import Stage
from ingestd.fs.places import remove_scratch
from ingestd.ledger import Ledger, RowToCompare, Transaction, moves, queries
from ingestd.lifecycle import Sameness, State
from ingestd.reader import CompareJob, Read

# So many comparisons at once, and of these so many that wait for the server's copy.
_AT_ONCE = 64
_COPIES_AT_ONCE = 16
# Between two tries to compare with the same holder; a row that waits for one of few copies waits longer.
_AGAIN_SECONDS = 5.0
_COPY_AGAIN_SECONDS = 30.0
# Between two pages of rows, where there are more than one.
_PAGE_SECONDS = 0.1
# What cannot be read for so long is told.
_UNREAD_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tried:
    """What came of comparing a row so far: nothing.

    ``distrusts``: the row whose file it could not be compared with; ``died``: the readers that ended over it;
    ``until`` (``Now.mono``) it is left alone; since ``unread_since`` (inf: it is not so) one of the two cannot be read.
    """

    distrusts: int = 0
    died: int = 0
    until: float = 0.0
    unread_since: float = inf


@dataclass(frozen=True, kw_only=True, slots=True)
class _Comparison:
    """A row with its holder's file, or with ``copy``, the server's copy of that."""

    row: RowToCompare
    copy: Path | None = None


_Answer: TypeAlias = Read | Sameness


def _found(answer: _Answer) -> tuple[Sameness | None, str]:
    """Say what a comparison came to, or why to nothing: both are kept then, never thrown together on a guess."""
    if isinstance(answer, Sameness):
        return None, "the server does not give its copy back"
    if answer.sameness:
        return Sameness(answer.sameness), ""
    return None, answer.waits or answer.refused or answer.cause


class HolderComparison(Stage):
    """Has the readers compare what one destination has twice, and the ledger told. Main thread only."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        reader_client: ReaderClient,
        copies: ServerCopies,
        alarms: Alarms,
        is_lost: Callable[[str], bool],
        log: FilteringBoundLogger,
    ) -> None:
        """``is_lost`` says whether there is no file at a place any more, for certain."""
        self._ledger = ledger
        self._reader_client = reader_client
        self._copies = copies
        self._alarms = alarms
        self._is_lost = is_lost
        self._log = log
        self._in_hand: dict[int, bool] = {}  # by row, whether it waits for the server's copy
        self._answers: list[tuple[_Comparison, _Answer]] = []
        self._tried: dict[int, _Tried] = {}
        self._after_id = 0  # so far the rows were looked through in this round
        self._seen: set[int] = set()  # in this round
        self._look_at = 0.0
        self._mono = 0.0

    @property
    def is_idle(self) -> bool:
        return not self._in_hand

    def next_at(self, now: Now) -> float:
        if self._answers:
            return now.mono
        if len(self._in_hand) >= _AT_ONCE:
            return inf
        if self._after_id:
            return self._look_at
        return min((each.until for row, each in self._tried.items() if row not in self._in_hand), default=inf)

    def collect(self, now: Now) -> None:
        """Take what was compared, and begin with what has to be."""
        self._mono = now.mono
        for comparison, read in self._reader_client.take(self):
            assert isinstance(comparison, _Comparison)
            self._answers.append((comparison, read))
        if now.mono < self._look_at or len(self._in_hand) >= _AT_ONCE:
            return
        rows = queries.rows_to_compare(self._ledger, limit=_AT_ONCE, after_id=self._after_id)
        for row in rows:
            self._seen.add(row.delivery_id)
            tried = self._tried.get(row.delivery_id, _Tried())
            if row.delivery_id not in self._in_hand and tried.until <= now.mono:
                self._begin(row, tried, now)
        self._after_id = rows[-1].delivery_id if len(rows) == _AT_ONCE else 0
        self._look_at = now.mono + _PAGE_SECONDS if self._after_id else 0.0
        if not self._after_id:
            self._tried = {row: tried for row, tried in self._tried.items() if row in self._seen}
            self._seen = set()
            self._tell(now)

    def _tell(self, now: Now) -> None:
        since = min((each.unread_since for each in self._tried.values()), default=inf)
        self._alarms.set(
            "not_compared",
            note="files cannot be compared with those that have their UIDs, because one of the two cannot be read"
            if now.mono - since >= _UNREAD_SECONDS
            else "",
            next_step="let ingestd's user read them and in the folders that they lie in (`ingestd status --state "
            "DUPLICATE --files`), and look at the disk or the share; they are compared by themselves then",
        )

    def _begin(self, row: RowToCompare, tried: _Tried, now: Now) -> None:
        holder, distrusts = row.holder, tried.distrusts
        # A file in place that was altered lies where its former row says that its own lies.
        if holder.path is not None and holder.path != row.path and distrusts != holder.delivery_id:
            self._in_hand[row.delivery_id] = False
            self._ask(_Comparison(row=row))
        elif holder.state is not State.CONFIRMED:
            self._tried[row.delivery_id] = replace(tried, distrusts=0, until=now.mono + _AGAIN_SECONDS)
        elif sum(self._in_hand.values()) >= _COPIES_AT_ONCE:
            self._tried[row.delivery_id] = replace(tried, until=now.mono + _COPY_AGAIN_SECONDS)
        else:
            self._in_hand[row.delivery_id] = True
            self._copies.fetch(holder.delivery_id, partial(self._copied, row))

    def _copied(self, row: RowToCompare, copy: Copy) -> None:
        if isinstance(copy, Path):
            self._ask(_Comparison(row=row, copy=copy))
        elif copy is None:  # its holder is elsewhere by now
            del self._in_hand[row.delivery_id]
            self._tried[row.delivery_id] = _Tried(until=self._mono + _AGAIN_SECONDS)
        else:
            self._answers.append((_Comparison(row=row), copy))

    def _ask(self, comparison: _Comparison) -> None:
        row, copy = comparison.row, comparison.copy
        theirs, digest = (row.holder.path, row.holder.digest) if copy is None else (str(copy), "")
        assert theirs is not None, "a holder without a file is compared by its server's copy"

        def job(key: int) -> CompareJob:
            return CompareJob(key=key, ours=row.path, theirs=theirs, our_digest=row.digest, their_digest=digest)

        self._reader_client.ask(self, comparison, job)

    def write(self, tx: Transaction, now: Now) -> None:
        """Have the ledger told what comparisons came to."""
        if not self._answers:
            return
        here = tx.at(self._ledger.destination_id)
        tried: dict[int, _Tried] = {}
        conflicts: list[int] = []
        for comparison, answer in self._answers:
            row = comparison.row
            if isinstance(answer, Read) and (answer.lost == "ours" or (answer.waits and self._is_lost(row.path))):
                moves.read_before_comparing(here, row.delivery_id, now=now.utc)
            elif isinstance(answer, Read) and (again := self._once_more(comparison, answer, now)) is not None:
                tried[row.delivery_id] = again
            else:
                sameness, why = _found(answer)
                came_to = moves.compared(
                    here,
                    row.delivery_id,
                    holder_id=row.holder.delivery_id,
                    sameness=sameness,
                    why=why,
                    now=now.utc,
                )
                if came_to is State.CONFLICT:
                    conflicts.append(row.file_id)
        tx.on_commit(partial(self._committed, tried, conflicts))

    def _once_more(self, comparison: _Comparison, read: Read, now: Now) -> _Tried | None:
        """Say when to try again what came to nothing; None: it came to something, or will never."""
        row = comparison.row
        tried = self._tried.get(row.delivery_id, _Tried())
        if read.died:
            died = tried.died + 1
            return replace(tried, died=died, until=now.mono + _AGAIN_SECONDS) if died < KILLS_MOST else None
        if not (read.lost or read.waits) or read.not_whole:
            return None
        # A file that is away comes back, or is read again. From their file it goes on to the server's copy, from that
        # to their file.
        distrusts = 0 if comparison.copy else row.holder.delivery_id
        goes_on = distrusts and row.holder.state is State.CONFIRMED
        return replace(
            tried,
            distrusts=distrusts,
            until=now.mono if goes_on else now.mono + _AGAIN_SECONDS,
            unread_since=min(tried.unread_since, now.mono) if read.waits else inf,
        )

    def _committed(self, tried: dict[int, _Tried], conflicts: Sequence[int]) -> None:
        for comparison, _ in self._answers:
            del self._in_hand[comparison.row.delivery_id]
            self._tried.pop(comparison.row.delivery_id, None)
            if comparison.copy is not None:
                remove_scratch(comparison.copy)
        self._answers = []
        self._tried |= tried
        for file_id in conflicts:
            self._log.warning("inbox.conflict_found", file_id=file_id)
