"""Copied sources leave their drop folder once the row of the copy is committed, and so do the folders they emptied."""

from __future__ import annotations

from functools import partial

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.mover import Mover
from ingestd.daemon.stage import Stage
from ingestd.inbox import Expect, Inboxes, InboxPolicy, Removal, Take
from ingestd.ledger import Ledger, Transaction, UnremovedSource, moves, queries

_TIDY_EVERY_SECONDS = 5.0
_SQUATTED = "somebody else has the name of our own folder in a drop folder; sources are removed by way of another name"
_SQUATTED_STEP = "remove or rename what lies there as .ingestd-removing, and see who may write to the drop folder"
# A source that a writer has open, or whose share hiccups, is removed within this time.
_STAYS_SECONDS = 60.0
_AT_ONCE = 1000
_STAYS = "files that were copied and recorded cannot be removed from the drop folder"
_STAYS_STEP = (
    "let ingestd's user write in the drop folder and the folders in it, see that nobody keeps the files open, and look "
    "at the share; they are removed by themselves, and nothing is sent twice. One whose copy was taken out of the "
    "spool is kept: rename it to have it taken in anew"
)


class SourceRemoval(Stage):
    """Removes sources whose copies have their rows."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        inboxes: Inboxes,
        mover: Mover[int],
        policies: tuple[InboxPolicy, ...],
        alarms: Alarms,
        assignment: Assignment,
    ) -> None:
        self._assignment = assignment
        self._settled: frozenset[str] = frozenset()  # inboxes in which the removals of the last run are settled
        self._ledger = ledger
        self._inboxes = inboxes
        self._mover = mover
        self._alarms = alarms
        self._roots = {policy.name: policy.path for policy in policies}
        self._moving = {policy.name for policy in policies if policy.take is Take.MOVE}
        self._removing: dict[int, str] = {}  # rows, and the inbox that each source lies in
        # Rows whose source could not be removed: since when, the oldest first, and the inbox that each lies in.
        self._staying: dict[int, tuple[float, str]] = {}
        self._stays_most = _STAYS_SECONDS
        self._up_to = 0  # so far the rows of copied sources have been gone through, this time round
        self._gone: list[tuple[int, str]] = []
        self._tidy_at = 0.0

    def start(self) -> None:
        self._settle()

    def _settle(self) -> None:
        """Settle the removals that the last run, or whoever had an inbox before, did not finish."""
        new, self._settled = self._assignment.watched - self._settled, self._assignment.watched
        if not new:
            return
        unremoved = [(_what_was_read(row), row.path) for row in queries.unremoved_sources(self._ledger)]
        for name in new & self._roots.keys():
            self._mover.recover_removals(self._roots[name], unremoved)

    def has_in_hand(self, inbox: str) -> bool:
        """Whether something is being removed from an inbox."""
        under_way = inbox in self._removing.values() or any(name == inbox for _, name in self._gone)
        return under_way or (inbox in self._roots and self._mover.is_busy_in(self._roots[inbox]))

    def hurry(self) -> None:
        self._tidy_at = 0.0

    def hurry_to_the_end(self) -> None:
        """Tidy up at the next tick, the last time; what cannot be removed then is told."""
        self._tidy_at = self._stays_most = 0.0

    @property
    def is_tidy(self) -> bool:
        """Whether it was tidied up since that was asked for, and nothing is left of it under way."""
        return self._tidy_at > 0.0 and self.is_idle

    @property
    def is_idle(self) -> bool:
        return not (self._removing or self._gone)

    def collect(self, now: Now) -> None:
        """Take what was removed, and order what may be."""
        for file_id, removal in self._mover.collect_removals():
            inbox = self._removing.pop(file_id)
            if removal is Removal.WAITS:
                self._staying.setdefault(file_id, (now.mono, inbox))
            else:
                self._staying.pop(file_id, None)
                self._gone.append((file_id, inbox))
        # What another has now is that one's to remove, and to tell of.
        ours = self._assignment.has
        self._staying = {file_id: each for file_id, each in self._staying.items() if ours(each[1])}
        oldest, _ = next(iter(self._staying.values()), (None, ""))
        stays = oldest is not None and now.mono - oldest >= self._stays_most
        self._alarms.set("not_removed", note=_STAYS if stays else "", next_step=_STAYS_STEP)
        if now.mono >= self._tidy_at and not self._gone:
            self._tidy_at = now.mono + _TIDY_EVERY_SECONDS
            self._settle()
            self._remove_sources()
            self._look_for_squatters()
            self._remove_emptied()

    def write(self, tx: Transaction, now: Now) -> None:  # noqa: ARG002 - nothing of it has a time
        """Write which sources are gone."""
        if self._gone:
            moves.mark_source_removed(tx, [file_id for file_id, _ in self._gone])
            tx.on_commit(partial(self._forget, len(self._gone)))

    def next_at(self, now: Now) -> float:  # noqa: ARG002
        return self._tidy_at

    def _forget(self, written: int) -> None:
        del self._gone[:written]

    def _remove_sources(self) -> None:
        # However many stay, the others get their turn.
        unremoved = queries.unremoved_sources(self._ledger, after_id=self._up_to, limit=_AT_ONCE)
        self._up_to = unremoved[-1].file_id if len(unremoved) == _AT_ONCE else 0
        for source in unremoved:
            root = self._roots.get(source.inbox) if self._assignment.has(source.inbox) else None
            if root is None or source.inbox not in self._moving or source.file_id in self._removing:
                continue
            self._removing[source.file_id] = source.inbox
            read = _what_was_read(source)
            self._mover.remove_source(source.file_id, root, source.relative_path, read, source.path)

    def _remove_emptied(self) -> None:
        for inbox, folders in self._inboxes.take_emptied():
            ours = queries.emptied_by_us(self._ledger, inbox, folders)
            if ours:
                self._inboxes.folders_leave(inbox, len(ours))
                self._mover.remove_folders(inbox, self._roots[inbox], ours)

    def _look_for_squatters(self) -> None:
        for inbox in self._moving & self._assignment.watched:
            is_squatted = self._mover.is_squatted(self._roots[inbox])
            self._alarms.set("name_squatted", inbox, note=_SQUATTED if is_squatted else "", next_step=_SQUATTED_STEP)
            if is_squatted and not self._removing:
                self._mover.look_aside(self._roots[inbox])


def _what_was_read(source: UnremovedSource) -> Expect:
    """Say what a source held when it was copied, as its row remembers it."""
    content = source.content
    if content is None:
        return Expect(source=source.source, ctime_ns=source.ctime_ns)
    return Expect(
        source=source.source,
        ctime_ns=source.ctime_ns,
        digest=content.digest,
        meta_digest=content.meta_digest,
        dataset_offset=content.dataset_offset,
    )
