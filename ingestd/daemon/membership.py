"""Who works on a spool with us, and which part of the work is ours (DESIGN.md 8.15).

Every daemon looks at the others by the same rule, and takes and gives only what is its own: nobody is told anything.
Of the inboxes each has at most as many as all would have in equal parts, rounded up, as far as the others see their
folders, or nobody does. What nobody has is taken by whoever has fewer; who has more, since another has come, or sees a
folder no more that another sees, stops to take from it, and gives it up when nothing of it is in hand. One that writes
nothing for its lease is ended by whoever saw it silent, in one transaction with the settling of what it had out. Then
what it had is free.

The upkeep is of one. Where that one does not reach a destination for a while, and another does, who fails at none that
it does not fail at, it has its rooms made anew (``service``) and gives the upkeep up with nothing of it in hand.

What is ours is what the ledger says at each look, not what we asked for: a claim that was lost on the way is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from math import inf
from typing import NamedTuple

import structlog

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.assignment import Assignment
from ingestd.daemon.outage import AWAY
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Gates, Stage
from ingestd.inbox import UNSEEN, Inboxes
from ingestd.ledger import UPKEEP, Beat, Ledger, LedgerError, Member, Transaction, inbox_claim, moves

_LOOK_EVERY_SECONDS = 1.0
_LOOKS_A_LEASE = 10
_ENDING = "it is ending"
# Until the first look at a folder has ended.
_SOON_SECONDS = 0.05
# A post of whoever was silent may still be on its way, in the kernel's hands, when its place is taken.
AFTER_SILENCE = timedelta(seconds=60)


def divide(
    wanted: Collection[str], had: Mapping[int, Collection[str]], seen: Mapping[int, Collection[str]], ours: int
) -> tuple[list[str], list[str]]:
    """Say which inboxes we are to take and which to give up; we are ``ours``.

    Each worker ``had`` some, and has ``seen`` the folders of some. What only we see is ours, beyond our part as well.
    What nobody sees is shared as if all did: whoever has it tells of it, and looks after what of it lies in the spool.
    """
    unseen = set(wanted).difference(*seen.values())
    seen = {number: unseen.union(names) for number, names in seen.items()}
    most = -(-len(wanted) // max(1, len(had)))

    def has_room(number: int) -> bool:
        return sum(name in wanted for name in had[number]) < most

    def for_another(name: str) -> bool:
        return any(number != ours and name in seen[number] and has_room(number) for number in had)

    own = sorted(name for name in had[ours] if name in wanted)
    gives = [name for name in own if name not in seen[ours]]
    keeps = [name for name in own if name not in gives]
    for name in reversed([each for each in keeps if for_another(each)]):
        if len(keeps) > most:
            keeps.remove(name)
            gives.append(name)
    takes: list[str] = []
    taken = {name for names in had.values() for name in names}
    for name in sorted(each for each in wanted if each not in taken and each in seen[ours]):
        if len(keeps) + len(takes) < most or not for_another(name):
            takes.append(name)
    return takes, gives


def seen_by(sight: Mapping[int, Mapping[str, int]]) -> dict[int, set[str]]:
    """Say which inboxes each worker sees: where another has something mounted, not the bare folder under it."""
    deepest: dict[str, int] = {}
    for each in sight.values():
        for name, depth in each.items():
            deepest[name] = max(depth, deepest.get(name, depth))
    return {number: {name for name, depth in each.items() if depth == deepest[name]} for number, each in sight.items()}


def stands_back(reach: Mapping[int, Mapping[str, bool]], ours: int) -> bool:
    """Say whether the upkeep is rather another's than ours, by which destinations answer each (True) or fail (False).

    Whoever reaches one that we fail at has to fail at none that we do not: of two who each fail at another one the one
    that has it keeps it.
    """
    fails = {number: {name for name, answers in each.items() if not answers} for number, each in reach.items()}
    return any(
        fails[other] <= fails[ours] and any(reach[other].get(name) for name in fails[ours])
        for other in reach.keys() - {ours}
    )


class _Sight(NamedTuple):
    """What we have the others see, as ``moves.say_sight`` has it."""

    bars: str
    sight: Mapping[str, int]
    reach: Mapping[str, bool]
    wants: int


class Membership(Stage):
    """Keeps the ``Assignment`` of a daemon that shares its spool."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        assignment: Assignment,
        disk: SpoolDisk,
        inboxes: Inboxes,
        alarms: Alarms,
        gates: Gates,
        in_place: Collection[str],
        lease: timedelta,
        is_in_hand: Callable[[str], bool],
    ) -> None:
        """``is_in_hand`` says whether a file of this inbox is on its way here.

        Files of those ``in_place`` are sent from their folders: by none who does not see them, where another does.
        """
        self._ledger = ledger
        self._assignment = assignment
        self._disk = disk
        self._inboxes = inboxes
        self._alarms = alarms
        self._gates = gates
        self._in_place = frozenset(in_place)
        self._is_in_hand = is_in_hand
        self._every = min(_LOOK_EVERY_SECONDS, lease.total_seconds() / _LOOKS_A_LEASE)
        self._look_at = 0.0
        # Each of the others, and since when it is so (``Now.mono``); None: nobody was looked at just before.
        self._seen: dict[int, tuple[Beat, float]] | None = None
        self._has_missed = False  # one who was there is no more
        self._may_have_missed = False
        self._silent: list[Beat] = []
        self._takes: list[str] = []
        self._gives: list[str] = []
        self._sight: _Sight | None = None  # what is to be said anew of what we see
        self._another_since = inf  # that the upkeep is rather another's (``Now.mono``)
        self._leaves = False
        self._unknown: frozenset[str] = frozenset()  # inboxes of which nobody here knows yet whether they are seen
        self._log = structlog.get_logger()

    def leave(self) -> None:
        """Give up all that is ours, while what is being sent comes to its end."""
        self._leaves, self._look_at = True, 0.0

    def next_at(self, now: Now) -> float:  # noqa: ARG002 - the time is known
        return inf if self._assignment.is_whole else self._look_at

    def collect(self, now: Now) -> None:
        """Look who is there, what is ours, and what should be."""
        if self._assignment.is_whole or now.mono < self._look_at:
            return
        if self._gates.intake.is_shut_by(AWAY):
            self._seen = None  # nobody could write, whoever of us is the first to be answered again
        try:
            members = self._ledger.members()
        except LedgerError:
            # What was not seen for a while says nothing of whether it beats.
            self._seen = None
            raise
        self._look_at = now.mono + self._every
        ours = next((each for each in members if each.beat.id == self._ledger.worker), None)
        if ours is None:
            return  # we were ended: the next transaction says so
        self._note_silent(members, now)
        self._assign(ours, members, self._look_around(ours, now), now)

    def _look_around(self, ours: Member, now: Now) -> _Sight:
        """Say which inboxes we see, and how, and what we reach."""
        known = self._inboxes.seen(now.mono)
        self._unknown = self._assignment.configured - known.keys()
        if self._unknown:
            self._look_at = min(self._look_at, now.mono + _SOON_SECONDS)
        trouble = _ENDING if self._leaves else self._disk.trouble
        sight = {name: depth for name, depth in known.items() if depth != UNSEEN}
        answered = {name: each.has_answered(now) for name, each in self._assignment.reach.items()}
        reach = {name: answers for name, answers in answered.items() if answers is not None}
        seen = _Sight(trouble, sight, reach, self._disk.wanted_bytes)
        self._sight = seen if seen != (ours.bars, ours.sight, ours.reach, ours.wants) else None
        return seen

    def _note_silent(self, members: Sequence[Member], now: Now) -> None:
        others = [each.beat for each in members if each.beat.id != self._ledger.worker]
        former, seen = self._seen or {}, {}
        for beat in others:
            known, since = former.get(beat.id, (beat, now.mono))
            seen[beat.id] = (beat, since if known == beat else now.mono)
        self._has_missed |= bool(former.keys() - seen.keys())
        self._may_have_missed |= self._seen is None
        if self._has_missed or self._may_have_missed:
            self._alarms.renew()  # what one who is gone met with stands no longer
        self._seen = seen
        self._silent = [
            beat for beat, since in seen.values() if now.mono - since >= beat.lease.total_seconds() or beat.is_gone
        ]

    def _assign(self, ours: Member, members: Sequence[Member], seen: _Sight, now: Now) -> None:
        mine = self._assignment
        silent = {beat.id for beat in self._silent}
        there = [each for each in members if each.beat.id not in silent]
        mine.workers = len(there)
        mine.wanted_elsewhere = max((each.wants for each in there if each is not ours), default=0)
        mine.elsewhere = frozenset[str]().union(*(each.inboxes for each in members if each is not ours))
        self._ledger.in_turns = len(members) > 1
        self._note(mine.configured & ours.inboxes)
        # What one has who is not well stays its own until it ends; it takes nothing more where another is.
        well = [each for each in there if not each.bars and each is not ours]
        able = [*well, ours] if self._disk.stands and not (self._disk.trouble and well) else well
        of_able = {each.beat.id: each.inboxes for each in able}
        left = mine.configured.difference(*(each.inboxes for each in there if each.beat.id not in of_able))
        sees = seen_by({each.beat.id: seen.sight if each is ours else each.sight for each in (*able, ours)})
        unseen_here = self._in_place - sees[ours.beat.id]
        self._gates.claims.set(
            "unseen", is_open=unseen_here.isdisjoint({name for each in sees.values() for name in each})
        )
        takes, surplus = divide(left, of_able, sees, ours.beat.id) if ours in able else ([], [])
        if self._leaves:
            takes, surplus = [], sorted(mine.inboxes)
        mine.leaving = frozenset(surplus)
        given_up = (*surplus, *(ours.inboxes - mine.configured))
        self._gives = [inbox_claim(name) for name in given_up if not self._is_in_hand(name)]
        self._takes = [inbox_claim(name) for name in takes if name not in self._unknown]
        reach = {each.beat.id: each.reach for each in (*there, ours)} | {ours.beat.id: seen.reach}
        mine.unreached = frozenset(name for each in reach.values() for name, answers in each.items() if not answers)
        answered = ((name, answers) for each in well for name, answers in each.reach.items())
        mine.reached_elsewhere = frozenset(name for name, answers in answered if answers)
        for_another = stands_back({each.beat.id: reach[each.beat.id] for each in (*able, ours)}, ours.beat.id)
        self._note_upkeep(is_ours=UPKEEP in ours.claims, for_another=for_another, now=now)
        if UPKEEP in ours.claims:
            self._gives += [UPKEEP] * (self._leaves or not mine.upkeep)
        elif ours in able and not (self._leaves or for_another or any(UPKEEP in each.claims for each in there)):
            self._takes.append(UPKEEP)

    def _note_upkeep(self, *, is_ours: bool, for_another: bool, now: Now) -> None:
        """Take the upkeep up where it is ours and no other is to have it; rooms that have it go on until they end.

        A server that was away for all is answered again to whoever asks first: we ask once more, too.
        """
        mine = self._assignment
        since = self._another_since = min(self._another_since, now.mono) if for_another else inf
        gives = for_another and all(each.was_asked_after(since, now) for each in mine.reach.values())
        has = is_ours and (mine.upkeep or not for_another)
        if has and not mine.upkeep:
            self._log.info("upkeep.claimed")
        if has and gives and not mine.gives_upkeep:
            self._log.warning("upkeep.given_up", note="another worker reaches a server that this one does not reach")
        mine.upkeep, mine.gives_upkeep = has, has and gives

    def _note(self, inboxes: frozenset[str]) -> None:
        """Take up what is ours now, and tell what has come and gone."""
        mine = self._assignment
        for inbox in sorted(inboxes - mine.inboxes):
            self._log.info("inbox.claimed", inbox=inbox)
        for inbox in sorted(mine.inboxes - inboxes):
            self._log.info("inbox.given_up", inbox=inbox)
        mine.inboxes = inboxes

    def write(self, tx: Transaction, now: Now) -> None:
        """End who is silent, settle what it had out, and have the claims be as they should."""
        has_lost = self._has_missed or self._may_have_missed
        if not (self._silent or self._takes or self._gives or self._sight or has_lost):
            return
        if self._sight is not None:
            bars, sight, reach, wants = self._sight
            moves.say_sight(tx, bars=bars, sight=sight, reach=reach, wants=wants)
        ended = [beat for beat in self._silent if moves.end_member(tx, beat)]
        if ended or has_lost:
            # Who ended by itself may have had to let its posts go just now.
            is_over = ended and not self._has_missed and all(beat.is_gone for beat in ended)
            wait = timedelta(0) if is_over else AFTER_SILENCE
            moves.recover(tx, now=now.utc, wait=wait, has_begun=True)
        moves.claim_work(tx, takes=self._takes, gives=self._gives)
        tx.on_commit(partial(self._committed, ended))

    def _committed(self, ended: Sequence[Beat]) -> None:
        for beat in ended:
            self._log.warning("worker.ended", worker=beat.id, note="gone" if beat.is_gone else "silent")
        self._silent, self._takes, self._gives, self._sight = [], [], [], None
        self._has_missed = self._may_have_missed = False
        self._look_at = 0.0  # what is ours now
