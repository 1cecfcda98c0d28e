"""What of the work on a spool is done here: all of it, or our share where several daemons work on one spool.

An inbox is of one daemon: whoever has it watches it, takes its files in, looks after those that lie in the spool
without a row, reads its rows' files again, and removes what was copied. The upkeep of all (proof, comparison,
retention) is of one. Posts are everybody's: each claims batches of whatever study is due.

``membership`` keeps it by what the ledger says; the others read it, and follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ingestd.daemon.reach import Reach


class Assignment:
    """The share of this process. Main thread only."""

    def __init__(self, inboxes: Iterable[str], *, reach: Mapping[str, Reach], is_whole: bool) -> None:
        """``reach`` tells of each destination, by its name."""
        self.configured = frozenset(inboxes)
        self.is_whole = is_whole
        self.inboxes = self.configured if is_whole else frozenset()
        self.upkeep = is_whole
        self.leaving: frozenset[str] = frozenset()  # inboxes that another is to have, once nothing is in hand of them
        self.elsewhere: frozenset[str] = frozenset()  # inboxes that others have
        self.workers = 1  # at work on the spool
        self.wanted_elsewhere = 0  # bytes of its disk that one of them has not found free
        self.reach = reach
        self.unreached: frozenset[str] = frozenset()  # the destinations that one of them does not reach
        self.reached_elsewhere: frozenset[str] = frozenset()  # those that answered another one lately
        self.gives_upkeep = False  # another is to have it, once rooms are made anew that have nothing of it in hand

    def take_over(self, before: Assignment) -> None:
        """Have what another of this process had, of what is configured now."""
        if not self.is_whole:
            self.inboxes = before.inboxes & self.configured
            self.upkeep = before.upkeep and not before.gives_upkeep
            self.elsewhere = before.elsewhere
            self.workers = before.workers
            for name in self.reach.keys() & before.reach.keys():
                self.reach[name].take_over(before.reach[name])

    @property
    def watched(self) -> frozenset[str]:
        """The inboxes that are ours to take from."""
        return self.inboxes - self.leaving

    def has(self, inbox: str) -> bool:
        """Whether files of this inbox are ours; those of one that is configured no more are of who has the upkeep.

        Whoever has it still has not read the new configuration yet.
        """
        return inbox in self.watched or (self.upkeep and inbox not in self.configured | self.elsewhere)
