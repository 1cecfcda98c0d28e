"""What the rules of now make of files that were routed before. What rules match is in no ledger: each is read anew."""

from __future__ import annotations

import queue
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ingestd.config import Config
from ingestd.daemon.settings import reader_limits_of, routing_of
from ingestd.ledger import Ledger, Rerouting, RoutableFile, moves, queries
from ingestd.lifecycle import Route, State
from ingestd.reader import Inspection, InspectJob, ReaderPool

# Files to a transaction: the daemon writes in between.
_AT_ONCE = 500


@dataclass(kw_only=True)
class Sums:
    """For how many files what changes, by destination."""

    gains: Counter[str] = field(default_factory=Counter)
    loses: Counter[str] = field(default_factory=Counter)
    stays: Counter[str] = field(default_factory=Counter)

    def add(self, change: Rerouting) -> None:
        self.gains.update(change.gains)
        self.loses.update(change.loses)
        self.stays.update(change.stays)

    def as_plain(self) -> dict[str, Any]:
        return {"gains": dict(self.gains), "loses": dict(self.loses), "stays": dict(self.stays)}


@dataclass(kw_only=True)
class Chosen(Sums):
    """The files that one rule chooses now, and that do not go where it says; eight bytes for each."""

    route: Route
    files: array[int] = field(default_factory=lambda: array("q"))
    studies: set[int] = field(default_factory=set)
    let_go: int = 0  # that no rule wanted, and that go nowhere on purpose now

    @property
    def acts(self) -> bool:
        """Whether anything of it is to be changed: what stays, stays."""
        return bool(self.gains or self.loses or self.let_go)

    def as_plain(self) -> dict[str, Any]:
        destinations = list(self.route.destinations)
        counts = {"files": len(self.files), "studies": len(self.studies), "let_go": self.let_go}
        return {"route": self.route.text, "destinations": destinations, **counts, **super().as_plain()}


@dataclass(kw_only=True)
class RoutingPlan:
    """What routing again would do, and which files it leaves alone, by why."""

    parts: dict[Route, Chosen] = field(default_factory=dict)
    unread: array[int] = field(default_factory=lambda: array("q"))  # not there, or not to be read now
    other_bytes: array[int] = field(default_factory=lambda: array("q"))  # not what was taken in
    unwanted: array[int] = field(default_factory=lambda: array("q"))  # sent somewhere, and no rule wants them any more
    unrouted: array[int] = field(default_factory=lambda: array("q"))  # no rule wants them, as before


def plan_of(config: Config, ledger: Ledger, *, study_uid: str | None) -> RoutingPlan:
    """Read every file that may still go elsewhere, and say what the rules of now make of it; nothing is changed."""
    plan = RoutingPlan()
    choose = routing_of(config)
    bell: queue.SimpleQueue[None] = queue.SimpleQueue()
    pool = ReaderPool(processes=config.reader.processes, limits=reader_limits_of(config), wake=lambda: bell.put(None))
    with closing(pool):
        for page in _pages(ledger, study_uid):
            found = _read(pool, bell, page)
            wanted: dict[int, Route] = {}
            for each in page:
                read = found.get(each.file_id)
                if read is None:
                    plan.unread.append(each.file_id)
                elif not _is_the_same(each, read):
                    plan.other_bytes.append(each.file_id)
                else:
                    wanted[each.file_id] = choose(each.inbox, each.relative_path, read)
            _take(plan, ledger, page, wanted)
    return plan


def _pages(ledger: Ledger, study_uid: str | None) -> Iterator[Sequence[RoutableFile]]:
    # What comes meanwhile is routed by whoever takes it in.
    after, last = 0, queries.last_id(ledger)
    while after < last and (page := queries.routable(ledger, study_uid=study_uid, after=after, limit=_AT_ONCE)):
        yield page
        after = page[-1].file_id


def _read(pool: ReaderPool, bell: queue.SimpleQueue[None], files: Iterable[RoutableFile]) -> dict[int, Inspection]:
    """Read these files whole; one that is not there, or cannot be read now, is absent."""
    jobs = [
        InspectJob(key=each.file_id, path=each.path, like=each.content.digest)
        for each in files
        if each.path is not None
    ]
    pool.submit_all(jobs)
    found: dict[int, Inspection] = {}
    left = len(jobs)
    while left:
        bell.get()
        for read in pool.collect():
            left -= 1
            if read.inspection is not None and read.inspection.digest:
                found[read.job.key] = read.inspection
    return found


def _is_the_same(file: RoutableFile, found: Inspection) -> bool:
    was = file.content
    return (found.digest, found.meta_digest, found.transfer_syntax) == (
        was.digest,
        was.meta_digest,
        was.transfer_syntax,
    )


def _take(plan: RoutingPlan, ledger: Ledger, page: Sequence[RoutableFile], wanted: Mapping[int, Route]) -> None:
    changes = queries.reroutings(ledger, {each: route.destinations for each, route in wanted.items()})
    for each in page:
        route = wanted.get(each.file_id)
        change = changes.get(each.file_id, Rerouting())
        if route is None:
            continue
        is_unwanted = route.rule is None and not route.destinations
        goes_nowhere = each.state is State.UNROUTED and not route.destinations and not is_unwanted
        if is_unwanted and (change.loses or change.stays):
            plan.unwanted.append(each.file_id)
        elif is_unwanted and each.state is State.UNROUTED:
            plan.unrouted.append(each.file_id)
        elif not is_unwanted and (any(change) or goes_nowhere):
            part = plan.parts.setdefault(route, Chosen(route=route))
            part.files.append(each.file_id)
            part.studies.add(each.study_id)
            part.add(change)
            part.let_go += goes_nowhere


def carry_out(ledger: Ledger, plan: RoutingPlan, agreement: Mapping[str, str]) -> tuple[int, Sums]:
    """Have the files go where the plan says, as far as they still are as they were; say of how many what changed.

    Raises LedgerDiffers where all have agreed upon another configuration than ``agreement``: no daemon might serve
    where they would go.
    """
    files, sums = 0, Sums()
    for part in plan.parts.values():
        for start in range(0, len(part.files), _AT_ONCE):
            some = list(part.files[start : start + _AT_ONCE])
            with ledger.transaction() as tx:
                tx.expect_agreed(agreement)
                done = moves.route_again(tx, some, part.route, now=datetime.now(UTC))
            files += len(done)
            for change in done:
                sums.add(change)
    return files, sums
