"""Trust in what the server gives back: earned by copies that matched, kept by a sample, lost by one that did not.

Which rows are compared is chosen here, and what a copy that is not ours means is decided here: another sender's object
is that file's conflict; anything else is the server's doing. Then nothing is trusted any more, no file that rests on
it is removed, and what was confirmed without a comparison is compared before its file may go, until a person has
settled it. A server of which nothing ever matched is one finding, not a conflict in each file: after five studies
comparing stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.stage import Gate
from ingestd.ledger import Ledger, Transaction, moves, queries
from ingestd.lifecycle import Kind, Outcome, Sameness, Standing, State, Unproven
from ingestd.reconciler import (
    Rules,
    Verify,
    judge_comparison,
    left_until_second_look,
    look_once_more,
    may_be_foreign,
    needs_comparison,
)

# So many copies have to match, of each transfer syntax and SOP class and in all, before presence is enough.
MOST_OF_A_KIND = 20
MOST_IN_ALL = 1000
# So many studies in a row, with nothing that ever matched, are enough to know the server by.
STUDIES_IN_A_ROW = 5
# The kinds of its alarms.
MISMATCH, STOPPED, NOT_TOLD = "mismatch", "verification_stopped", "not_told"
_LOOK_EVERY_SECONDS = 2.0
# Confirmed rows that are looked at again at once after a mismatch: what arrives meanwhile is proven beside them.
_RECHECK_AT_ONCE = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """What is put down of a copy for which the server is to blame."""

    studies: tuple[str, ...]
    differs: str
    stops: bool


@dataclass(slots=True)
class Comparisons:
    """What the comparisons of one transaction say of the server, over the standing that it began with."""

    standing: Standing
    matches: Counter[Kind] = field(default_factory=Counter)
    mismatch: Mismatch | None = None
    probed_at: float | None = None  # when a row was chosen although comparing has stopped (``Now.mono``)

    @property
    def ever_matched(self) -> bool:
        return self.standing.ever_matched or bool(self.matches)


class Trust:
    """What is known of this server's trustworthiness, as the ledger keeps it. Main thread only."""

    def __init__(self, *, ledger: Ledger, alarms: Alarms, removals: Gate, sample: float, grace: timedelta) -> None:
        """Join the rooms; ``sample`` is the share that is compared whatever the trust.

        While our files may be the only ones that are whole, ``removals`` is shut: those of what rests on this server.
        """
        self._ledger = ledger
        self._alarms = alarms
        self._removals = removals
        self._sample = sample
        self._grace = grace
        self._standing = Standing()
        self._comparing: dict[int, Unproven] = {}
        self._recheck: list[tuple[int, datetime]] = []
        self._rechecked_to: datetime | None = None
        self._forgives = False
        self._look_at = self._probe_at = 0.0

    def start(self) -> None:
        """Take up where the last run ended."""
        self._standing = queries.standing(self._ledger)
        self._tell()

    @property
    def has_work(self) -> bool:
        """Whether a transaction is wanted."""
        return bool(self._recheck) or self._forgives

    def choose(
        self, tx: Transaction, rows: Sequence[Unproven], rules: Rules, comparisons: Comparisons
    ) -> list[Unproven]:
        """Mark the rows that are compared to earn or to keep the trust.

        Those that wait for the comparisons under way are left out, to be chosen again when these have come to an end.
        """
        if rules.verify is not Verify.AUTO:
            return list(rows)
        standing = comparisons.standing
        stored = [row for row in rows if row.state is State.STORED and not needs_comparison(row, rules)]
        if standing.mismatched_at is not None or comparisons.mismatch is not None:
            return _marked(rows, {row.delivery_id for row in stored})
        in_all = MOST_IN_ALL - sum(standing.matched.values())
        to_come = in_all - len(self._comparing)
        under_way = Counter(row.kind for row in self._comparing.values())
        marked: set[int] = set()
        waiting: set[int] = set()
        trusted: list[Unproven] = []
        for row in stored:
            of_kind = MOST_OF_A_KIND - standing.matched.get(row.kind, 0)
            if in_all <= 0 and of_kind <= 0:
                trusted.append(row)
            elif to_come > 0 or of_kind > under_way[row.kind]:
                marked.add(row.delivery_id)
                under_way[row.kind] += 1
                to_come -= 1
            else:
                waiting.add(row.delivery_id)
        marked.update(self._sampled(tx, trusted))
        return _marked([row for row in rows if row.delivery_id not in waiting], marked)

    def _sampled(self, tx: Transaction, rows: Sequence[Unproven]) -> Iterable[int]:
        """Choose the sample, and at least one instance of every study."""
        studies = queries.studies_compared(tx, {row.identity.study_uid for row in rows}) if rows else set()
        studies.update(row.identity.study_uid for row in self._comparing.values())
        for row in rows:
            study_uid = row.identity.study_uid
            if study_uid not in studies or self._ledger.search_key.place_in_sample(row.identity.sop_uid) < self._sample:
                studies.add(study_uid)
                yield row.delivery_id

    def begin(self, rows: Iterable[Unproven]) -> None:
        """These rows are being asked about."""
        self._comparing.update((row.delivery_id, row) for row in rows if row.sampled)

    def end(self, delivery_id: int) -> None:
        """Nothing is being asked of this row any more."""
        self._comparing.pop(delivery_id, None)

    def probe(self, tx: Transaction, now: Now, comparisons: Comparisons, *, asked: Container[int]) -> list[Unproven]:
        """While comparing has stopped: the one row that is compared all the same, once in the grace time.

        It is the newest: what a server has altered stays so when it is mended.
        """
        if now.mono < self._probe_at:
            return []
        newest = [row for row in queries.newest_stored(tx) if row.delivery_id not in asked]
        found = moves.take_unproven(tx, newest)
        if len(found) == len(newest):  # else in the next turn
            comparisons.probed_at = now.mono
        return [replace(row, sampled=True) for row in found]

    def judge(
        self,
        tx: Transaction,
        row: Unproven,
        sameness: Sameness,
        comparisons: Comparisons,
        *,
        rules: Rules,
        at: datetime,
        differs: str = "",
    ) -> Outcome:
        """Say what a comparison comes to, and add to ``comparisons`` what it says of the server."""
        outcome = judge_comparison(row, sameness, rules=rules, now=at, differs=differs)
        if sameness is Sameness.SAME:
            comparisons.matches[row.kind] += 1
            return outcome
        if outcome.state is not State.CONFLICT or rules.verify is Verify.PRESENCE:
            return outcome
        if row.state is State.CONFIRMED and comparisons.standing.mismatched_at is not None:
            # Looked at for nothing but the mismatch before.
            return replace(outcome, mismatch=True)
        if may_be_foreign(row, rules) or (comparisons.ever_matched and row.state is State.UNCERTAIN):
            return outcome
        if comparisons.ever_matched:
            comparisons.mismatch = Mismatch(studies=(), differs=differs, stops=False)
            return replace(outcome, mismatch=True)
        # Nothing of this server has ever matched: is it this file, or the server's way?
        assert outcome.sameness is not None, "it was compared"
        known = comparisons.mismatch.studies if comparisons.mismatch is not None else comparisons.standing.studies
        studies = tuple(dict.fromkeys((*known, row.identity.study_uid)))[:STUDIES_IN_A_ROW]
        stops = comparisons.standing.stopped_at is not None or len(studies) >= STUDIES_IN_A_ROW
        comparisons.mismatch = Mismatch(studies=studies, differs=differs, stops=stops)
        if stops and row.state is not State.CONFIRMED:
            note = f"{outcome.note}; so it was in {STUDIES_IN_A_ROW} studies in a row: see `ingestd status`"
            return replace(look_once_more(row, outcome.sameness, note, wait=self._grace), mismatch=True)
        left = left_until_second_look(row, rules=rules, now=at)
        may_wait = row.differs_since is None or at - rules.surely_since(row.differs_since, at) < self._grace
        if left <= timedelta(0) and may_wait and queries.others_on_their_way(tx, studies):
            left = rules.between_looks
        if left > timedelta(0) and row.state is not State.CONFIRMED:
            note = f"{outcome.note}; nothing of this server has matched yet, so that it is looked at once more"
            return replace(look_once_more(row, outcome.sameness, note, wait=left), mismatch=True)
        return replace(outcome, mismatch=True)

    def gather(self, now: Now, rules: Rules, *, is_busy: bool) -> None:
        """Look now and then what stands, and what is to be compared before files may go; writes nothing."""
        if now.mono < self._look_at or self.has_work:
            return
        self._look_at = now.mono + _LOOK_EVERY_SECONDS
        self._standing = standing = queries.standing(self._ledger)
        self._tell()
        rows, note = queries.untold(self._ledger, longer_than=self._grace, now=now.utc)
        self._alarms.set(
            NOT_TOLD,
            note=f"the server could not tell of {rows} file{'s' * (rows != 1)} for long: {note}" if rows else "",
            next_step="look at the server; `ingestd status --state STORED --files` and `--state UNCERTAIN` list them, "
            "and they are asked about again by themselves",
        )
        if standing.mismatched_at is None:
            self._rechecked_to = None
        elif rules.verify is Verify.PRESENCE:
            self._forgives = True
        elif standing.stopped_at is None and not is_busy:
            before, after = standing.mismatched_at, self._rechecked_to
            self._recheck = queries.uncompared(self._ledger, before=before, after=after, limit=_RECHECK_AT_ONCE)
            if not self._recheck:
                self._forgives = _all_is_settled(self._ledger, standing)

    def record(self, tx: Transaction, now: Now, rules: Rules, comparisons: Comparisons) -> None:
        """Write what the comparisons of this transaction say of the server."""
        standing, found = comparisons.standing, comparisons.mismatch
        if comparisons.matches:
            moves.count_matches(tx, comparisons.matches)
            if not standing.ever_matched:
                moves.ask_mismatched_again(tx, now=now.utc)
        if found is not None:
            moves.mismatch(tx, studies=found.studies, differs=found.differs, stops=found.stops, now=now.utc)
        # What was gathered is judged again: a person, or another host, may have settled it since.
        if standing.mismatched_at is None:
            return
        if self._recheck:
            moves.recheck(tx, [delivery_id for delivery_id, _ in self._recheck], now=now.utc)
        if self._forgives and found is None and (rules.verify is Verify.PRESENCE or _all_is_settled(tx, standing)):
            moves.forgive(tx, now=now.utc)

    def committed(self, comparisons: Comparisons) -> None:
        """It is durable."""
        if comparisons.probed_at is not None:
            self._probe_at = comparisons.probed_at + self._grace.total_seconds()
        if self._recheck:
            self._rechecked_to = self._recheck[-1][1]
        if comparisons.matches or comparisons.mismatch is not None or self.has_work:
            self._standing = queries.standing(self._ledger)
            self._tell()
        self._recheck, self._forgives = [], False

    def _tell(self) -> None:
        standing = self._standing
        self._removals.set(MISMATCH, is_open=standing.mismatched_at is None)
        differs = standing.differs or "they could not be compared"
        self._alarms.set(
            STOPPED,
            note=""
            if standing.stopped_at is None
            else f"the server gave back other content than it was sent, in {STUDIES_IN_A_ROW} studies in a row and in "
            f"every file that was compared ({differs}): nothing more is compared, and no file that it has is removed",
            next_step="mend the server, then wait: the newest file is compared now and then; or, if it changes what it "
            "stores on purpose, say `reconcile.verify: presence` and restart",
        )
        self._alarms.set(
            MISMATCH,
            note=""
            if standing.mismatched_at is None or standing.stopped_at is not None
            else f"the server gave back other content than it was sent ({differs}): everything is compared now, and "
            "no file that it has is removed",
            next_step="look at the server and at `ingestd status --state CONFLICT --files`; files are removed again "
            "when each of these was resolved (`ingestd retry` or `ingestd resolve`) and all else was compared",
        )


def _all_is_settled(ledger: Ledger | Transaction, standing: Standing) -> bool:
    """Whether nothing is left for a person to settle or to be compared for a mismatch."""
    before = standing.mismatched_at
    return (
        before is not None
        and standing.stopped_at is None
        and not queries.has_mismatched(ledger)
        and not queries.has_uncompared(ledger, before=before)
    )


def _marked(rows: Iterable[Unproven], marked: set[int]) -> list[Unproven]:
    return [replace(row, sampled=True) if row.delivery_id in marked else row for row in rows]
