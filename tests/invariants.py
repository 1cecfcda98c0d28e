"""G1 to G7 (DESIGN.md 4.5), said by somebody who believes nothing that ingestd says of itself.

What is believed: which files were written, what the server's log says it took, what the server has now, and what lies
on the disk. The ledger is read with SQL of its own, so that the program's way of reading cannot hide what it did.

``Invariants.check`` holds at any moment at which nobody is in the middle of a step: after each step of a simulation,
after each kill. It is cheap where little has happened: only new lines of the histories and of the server's log are
looked at, a file is read once as it is, and nothing at all is done where neither ledger nor disk nor log has moved.
``Invariants.check_end`` holds as well when nothing is on its way any more: every file has its end, and nothing is left.

Violations are said once each, in ``Findings.violations``; both checks return those that are new.

    G1  a row that needs its file has it, with the content of its digest; what the server took is what some row holds
    G2  each file that was written is in sight: in the drop folder, in a row, or in the spool, where a start finds it
    G3  a row's file is gone only where the row was settled and ``retain`` has passed
    G4  a row's history is a chain of legal moves that ends where the row is; an identity is held once; sums are true
    G5  the server was sent nothing without an attempt on record, nothing twice by one, and nothing again unexplained
    G6  CONFIRMED: the server had stored it, and has it as it was written; DELETED: somebody deleted it
    G7  what was written whole is not REJECTED
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from blake3 import blake3

from ingestd.lifecycle import State
from tests.emulating import Identity, dataset_of
from tests.recounting import (
    GIVEN_UP,
    Life,
    Row,
    at,
    dicts,
    known_paths,
    life_of,
    problems_of_files,
    problems_of_history,
    problems_of_rows,
    problems_of_sums,
    rows_of,
)

# Two clocks of one machine, read by two processes: an event may seem this much earlier than its cause.
CLOCK_SLACK = timedelta(milliseconds=50)
ALREADY_EXISTS = 45070
ROOMS = ("files", "rejected", "explicit")
# These may lose their file by rule, once they are settled.
_MAY_GO = frozenset({State.CONFIRMED, State.DISCARDED, State.DUPLICATE, State.DELETED})
_DIGESTS = ("digest", "reencoded_digest")

Line: TypeAlias = Mapping[str, Any]
# An instance at a destination: its name ("": of a file that goes nowhere), and the three UIDs.
Held: TypeAlias = tuple[str, str, str, str]


class Server(Protocol):
    """A server, which tells what it was sent and gives what it has."""

    def stores(self) -> Sequence[Line]:
        """One line for each instance that some request brought, in order (see ``ingestd.emulator``, request log)."""

    def content(self, identity: Identity) -> bytes | None:
        """The file it gives for an instance, as it was stored; None where it has none."""


class Dropped(Protocol):
    """One file that was written whole into the drop folder, under a name that no other had."""

    name: str
    sop_uid: str  # "": no whole instance
    sha256: str  # of its data set's bytes

    @property
    def identity(self) -> Identity:
        """Its three UIDs."""

    @property
    def rejected_as(self) -> str:
        """With which reason it has to be REJECTED; "": it is whole."""


@dataclass(kw_only=True)
class World:
    """What is true, whatever ingestd says. Everything may grow and change between two checks.

    ``servers`` by the name of the destination. ``goes_to`` says for which of them a file is, by the rules; without it
    each is for all. ``retain`` None: nothing is old enough to be removed. ``explained``: reasons beside absence that
    may have a file sent again; a server without faults gives none. ``meddled``: instances that somebody else deleted,
    altered or stored on one of them. ``damaged``: files (absolute paths) that somebody else removed or wrote to.
    ``clocks_agree``: ledger and server's log are of one clock, so that their times can be put in order. ``stays``: what
    lies in the drop folder is not ingestd's to touch. ``away``: destinations that cannot be asked at the moment.
    """

    spool: Path
    drop: Path
    servers: Mapping[str, Server]
    written: Sequence[Dropped]
    goes_to: Callable[[Any], Collection[str]] | None = None
    retain: timedelta | None = None
    explained: frozenset[str] = frozenset()
    meddled: set[Held] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    clocks_agree: bool = True
    stays: bool = False
    away: Collection[str] = ()
    more_drops: Sequence[Path] = ()  # beside ``drop``


@dataclass(kw_only=True)
class Findings:
    """What was found; ``violations`` is empty when every promise was kept."""

    violations: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    posts: int = 0  # instances the server took in and answered for, or meant to
    sent_again: int = 0  # of those, not the first of their row
    refused: int = 0  # of those, refused because the server had the instance
    attempts: int = 0
    uncertain: int = 0  # how often a row became UNCERTAIN

    def __str__(self) -> str:
        states = ", ".join(f"{state} {rows}" for state, rows in sorted(self.states.items()))
        return (
            f"rows: {states}; instances posted {self.posts}, again with evidence {self.sent_again}, "
            f"refused as there already {self.refused}; attempts {self.attempts}, times UNCERTAIN {self.uncertain}"
        )


class Invariants:
    """Holds one installation against its world, as often as it is asked to."""

    def __init__(self, world: World, findings: Findings | None = None) -> None:
        self._world = world
        self.findings = findings or Findings()
        self._said: set[str] = set()
        self._seen: object = None  # what everything looked like when it was looked at last
        self._files: set[str] = set()  # in the spool's rooms, by path relative to it
        self._rows: dict[int, Row] = {}
        self._attempts: dict[int, Row] = {}
        self._moves: dict[Life, list[Row]] = defaultdict(list)
        self._last_move = 0
        self._new_moves: list[Row] = []
        self._stores: dict[Held, list[Line]] = defaultdict(list)
        self._stores_seen: Counter[str] = Counter()
        self._new_stores: list[tuple[Held, Line]] = []
        self._could_go: set[int] = set()
        self._digests: dict[tuple[str, int, int, int, int], str] = {}
        self._written: Sequence[Dropped] = ()
        self._lying: set[str] = set()  # in the drop folder, by path relative to it
        self._by_identity: dict[Held, list[Row]] = {}
        self._known: set[str] = set()  # files that are there by what the ledger says
        self._succeeded: set[int] = set()  # rows whose file is another row's now, with other bytes

    def check(self, ledger: sqlite3.Connection | None, *, now: datetime | None = None) -> list[str]:
        """Hold this moment against the world; ``now`` is the ledger's clock, wanted with ``World.retain``.

        ``ledger`` is a connection that nobody writes through; the same one each time makes it cheap.
        """
        said = len(self.findings.violations)
        if self._look(ledger):
            if ledger is not None:
                self._say(problems_of_sums(ledger, self._rows))
                self._say(problems_of_rows(ledger, self._rows))
                self._say(problems_of_files(ledger))
                self._say(_targets_of_two(ledger, self._known))
            self._say(self._histories())
            self._say(self._files_of_rows(now))
            self._say(self._files_out_of_sight())
            if self._world.stays:
                self._say(self._files_touched())
            self._say(self._posts_without_intent())
            self._say(self._sent_again())
            self._say(self._proofs())
            self._say(self._false_rejections())
        return self.findings.violations[said:]

    def check_end(self, ledger: sqlite3.Connection | None, *, now: datetime | None = None) -> list[str]:
        """Hold the end against the world: nothing is on its way any more."""
        said = len(self.findings.violations)
        if ledger is None:
            self._say(["there is no ledger"])
            return self.findings.violations[said:]
        self.check(ledger, now=now)
        self.findings.states = Counter(row["state"] for row in self._rows.values())
        self.findings.attempts = len(self._attempts)
        self._say(_damage(ledger))
        self._say(self._left_over(ledger))
        self._say(self._ends())
        self._say(self._names())
        for row in self._rows.values():
            if row["state"] == State.CONFIRMED:
                self._say(self._not_on_the_server(row))
            elif row["state"] == State.FAILED:
                self._say(self._given_up_for_nothing(row))
        return self.findings.violations[said:]

    def _say(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text not in self._said:
                self._said.add(text)
                self.findings.violations.append(text)

    def _look(self, ledger: sqlite3.Connection | None) -> bool:
        """Take in how everything is now; False where it is as it was at the last look."""
        # First of all: what is written meanwhile is not missed.
        self._written = tuple(self._world.written)
        files = dict(_signs_in(self._world.spool))
        drops = (self._world.drop, *self._world.more_drops)
        lying = {path for drop in drops for path in _files_in(drop)}
        stores = {name: server.stores() for name, server in self._world.servers.items()}
        taken = {name: len(lines) for name, lines in stores.items()}
        version = ledger.execute("PRAGMA data_version").fetchone()[0] if ledger is not None else 0
        # The connection itself, too: what another one calls its version says nothing.
        seen = (ledger, version, files, lying, taken, len(self._written))
        if seen == self._seen:
            return False
        self._seen, self._files, self._lying = seen, set(files), lying
        self._new_stores = [
            ((name, line["study"], line["series"], line["sop"]), line)
            for name, lines in stores.items()
            for line in lines[self._stores_seen[name] :]
        ]
        self._stores_seen = Counter(taken)
        for held, line in self._new_stores:
            self._stores[held].append(line)
        if ledger is not None:
            self._read(ledger)
        return True

    def _read(self, ledger: sqlite3.Connection) -> None:
        ledger.row_factory = sqlite3.Row
        self._rows, self._known = rows_of(ledger), known_paths(ledger)
        self._succeeded = set(_succeeded(self._rows.values()))
        self._attempts = {row["id"]: row for row in ledger.execute("SELECT * FROM attempt")}
        self._by_identity = defaultdict(list)
        for row in self._rows.values():
            self._by_identity[_held(row)].append(row)
        self._new_moves = [*dicts(ledger, "SELECT * FROM history WHERE id > ? ORDER BY id", self._last_move)]
        known = sum(map(len, self._moves.values()))
        if ledger.execute("SELECT count(*) FROM history WHERE id <= ?", (self._last_move,)).fetchone()[0] != known:
            self._say(["lines of the history that were committed are gone"])
        for move in self._new_moves:
            self._moves[life_of(move)].append(move)
            self._last_move = move["id"]

    # G4

    def _histories(self) -> Iterator[str]:
        self.findings.uncertain += sum(move["after"] == State.UNCERTAIN for move in self._new_moves)
        moved = set(map(life_of, self._new_moves))
        # A state that no line tells of is one that its row was not moved to by the rules.
        lives = {life_of(row): row["state"] for row in self._rows.values()}
        strayed = {life for life, state in lives.items() if self._state_told(life) != state}
        for life in moved | strayed:
            yield from problems_of_history(life, self._moves[life], self._rows)

    def _state_told(self, life: Life) -> str | None:
        moves = self._moves[life]
        return moves[-1]["after"] if moves else None

    def _row_of(self, life: Life) -> Row | None:
        file_id, delivery_id = life
        row = self._rows.get(file_id if delivery_id is None else delivery_id)
        return row if row is not None and life_of(row) == life else None

    # G1 and G3

    def _files_of_rows(self, now: datetime | None) -> Iterator[str]:
        for row in self._rows.values():
            if row["id"] in self._succeeded:
                continue
            # One file may be the file of several rows: each of them says so where it needs it still.
            may_be_gone = self._may_be_gone(row, now)
            for place, digest, is_removed in self._places_of(row):
                if str(place) in self._world.damaged:
                    continue
                if is_removed or not place.is_file():
                    if not may_be_gone:
                        yield f"row {row['id']} ({row['state']}): its file is gone"
                elif digest and row["need"] != "reread" and self._digest_at(place) != _sha256_of(digest):
                    yield f"row {row['id']} ({row['state']}): its file has another content"

    def _places_of(self, row: Row) -> Iterator[tuple[Path, bytes, bool]]:
        """Where a row's files lie, the digest each must have (none: nobody can say), whether it is called gone."""
        was_read = row["digest"] is not None and row["state"] != State.REJECTED
        is_removed = row["removing_at"] is not None
        yield _place_of(row), row["digest"] if was_read else b"", is_removed
        if row["reencoded_digest"]:
            is_removed = is_removed or row["reencoded_removed_at"] is not None
            yield Path(row["spool"], row["reencoded_path"]), row["reencoded_digest"], is_removed

    def _may_be_gone(self, row: Row, now: datetime | None) -> bool:
        if row["state"] == State.FAILED and row["reason"] == "gone":
            return True
        if self._world.retain is None:
            return False
        if row["state"] == State.DISCARDED and row["reason"] in {"retried", "admitted_anyway"}:
            return True  # its file is another row's now
        if row["state"] == State.DISCARDED and row["removed_at"] is not None and row["path"] in self._known:
            return True  # likewise, and a person let go of it before it was
        if row["settled_at"] is not None and now is not None and at(row["settled_at"]) + self._world.retain <= now:
            self._could_go.add(row["id"])
        may_go = row["state"] in _MAY_GO or (row["state"], row["reason"]) in GIVEN_UP
        return may_go and row["id"] in self._could_go

    def _digest_at(self, place: Path) -> str:
        found = place.stat()
        key = (str(place), *_signs_of(found))
        if key not in self._digests:
            self._digests[key] = digest_of(place.read_bytes())
        return self._digests[key]

    # G2

    def _files_out_of_sight(self) -> Iterator[str]:
        names = {row["relative_path"] for row in self._rows.values()}
        unseen = [file for file in self._written if file.name not in names and file.name not in self._lying]
        if not unseen:
            return
        orphans = self._orphans()
        called = {path.rpartition("/")[2] for path in orphans}
        held = Counter(self._digest_at(self._world.spool / path) for path in orphans)
        for file in unseen:
            if file.name in called:
                continue
            held[file.sha256] -= 1
            if held[file.sha256] < 0:
                yield f"{file.name} was dropped, and is neither in the drop folder, nor in a row, nor in the spool"

    def _files_touched(self) -> Iterator[str]:
        for file in self._written:
            place = self._world.drop / file.name
            if str(place) in self._world.damaged:
                continue
            if file.name not in self._lying:
                yield f"{file.name} was to stay where it is, and is gone"
            elif file.sha256 and not file.rejected_as and self._digest_at(place) != file.sha256:
                yield f"{file.name} was to stay as it is, and has another content"

    def _orphans(self) -> set[str]:
        """Give the spool's files that no row knows."""
        return self._files - self._known

    # G5

    def _posts_without_intent(self) -> Iterator[str]:
        """Each time a server was sent an instance, an attempt said so before."""
        self.findings.posts += len(self._new_stores)
        self.findings.refused += sum(line["reason"] == ALREADY_EXISTS for _, line in self._new_stores)
        written: dict[Identity, set[str]] = defaultdict(set)
        for file in self._written if self._new_stores else ():
            written[file.identity].add(file.sha256)
        for held in {held for held, _ in self._new_stores}:
            yield from self._posts_without_attempt(held)
            yield from self._posts_of_another_content(held, written[held[1:]])

    def _posts_without_attempt(self, held: Held) -> Iterator[str]:
        sendings = sorted(
            (at(self._attempts[move["attempt_id"]]["started_at"]), move["attempt_id"])
            for row in self._by_identity.get(held, ())
            for move in self._moves[life_of(row)]
            if move["after"] == State.SENDING and move["attempt_id"] in self._attempts
        )
        used: Counter[int] = Counter()
        for number, line in enumerate(self._stores[held]):
            if self._world.clocks_agree:
                before = [attempt_id for started_at, attempt_id in sendings if started_at <= _instant(line["at"])]
            else:
                before = [attempt_id for _, attempt_id in sendings[: number + 1]]
            if not before:
                yield f"{held[-1]} reached the server before any attempt was recorded"
                continue
            used[before[-1]] += 1
        if not self._is_meddled(held) and any(count > 1 for count in used.values()):
            yield f"{held[-1]} was posted twice in one attempt"

    def _posts_of_another_content(self, held: Held, written: set[str]) -> Iterator[str]:
        """What left is what some digest says (G1)."""
        rows = self._by_identity.get(held, ())
        if any(row["reencoded_digest"] for row in rows) and (content := self._content(held)) is not None:
            digest_of(content)
        ours = written.union(*map(_digests_of, rows))
        if not self._is_meddled(held) and any(line["sha256"] not in ours for line in self._stores[held]):
            yield f"{held[-1]} reached the server with a content that no row has"

    def _is_meddled(self, held: Held) -> bool:
        return held in self._world.meddled

    def _sent_again(self) -> Iterator[str]:
        """Between two SENDINGs of a row stands a proof that the first did not deliver."""
        new = {move["id"] for move in self._new_moves if move["after"] == State.SENDING}
        for life in {life_of(move) for move in self._new_moves if move["id"] in new}:
            moves = self._moves[life]
            row = self._row_of(life)
            sendings = [place for place, move in enumerate(moves) if move["after"] == State.SENDING]
            for first, second in pairwise(sendings):
                if row is not None and moves[second]["id"] in new:
                    yield from self._not_explained(row, moves[first], moves[first + 1 : second])

    def _not_explained(self, row: Row, sending: Row, between: Sequence[Row]) -> Iterator[str]:
        back = next((move for move in between if move["after"] == State.PENDING), None)
        attempt = self._attempts.get(sending["attempt_id"] or 0)
        if back is None or attempt is None:
            yield f"row {row['id']} was sent again without having come back"
            return
        self.findings.sent_again += 1
        nothing_left = attempt["finished_at"] is not None and attempt["body_bytes_left"] == 0
        if (back["before"] == State.SENDING and nothing_left) or back["reason"] in self._world.explained:
            return
        held = _held(row)
        if back["before"] != State.UNCERTAIN or back["reason"] != "absent":
            yield f"row {row['id']} was sent again because of {back['before']} {back['reason']!r}"
        elif self._world.clocks_agree and not self._is_meddled(held):
            stored_at = self._stored_at(held)
            if stored_at is not None and stored_at + CLOCK_SLACK < at(back["at"]):
                yield f"row {row['id']} was called absent after the server had stored it"

    # G6

    def _proofs(self) -> Iterator[str]:
        for move in self._new_moves:
            row = self._row_of(life_of(move))
            if row is None:
                continue
            held = _held(row)
            if move["after"] == State.CONFIRMED and move["before"] != State.CONFIRMED:
                yield from self._confirmed_too_soon(row, at(move["at"]))
                if row["state"] == State.CONFIRMED and row["destination"] not in self._world.away:
                    yield from self._not_on_the_server(row)
            elif move["after"] == State.STORED and not self._stores[held]:
                yield f"row {row['id']} was called STORED, and nothing of it had reached the server"
            elif move["after"] == State.DELETED and not self._is_meddled(held):
                yield f"row {row['id']} was called DELETED, and nobody had deleted it"

    def _confirmed_too_soon(self, row: Row, when: datetime) -> Iterator[str]:
        if self._is_meddled(_held(row)):
            return
        stored_at = self._stored_at(_held(row), surely=False)
        if stored_at is None or (self._world.clocks_agree and when + CLOCK_SLACK < stored_at):
            yield f"row {row['id']} was CONFIRMED before the server had stored it"

    def _not_on_the_server(self, row: Row) -> Iterator[str]:
        """CONFIRMED means: the server gives exactly that data set."""
        held = _held(row)
        if self._is_meddled(held):
            return
        content = self._content(held)
        if content is None:
            yield f"row {row['id']} is CONFIRMED and the server has no such instance"
        elif digest_of(content) not in _digests_of(row):
            yield f"row {row['id']} is CONFIRMED and the server has another content"

    def _given_up_for_nothing(self, row: Row) -> Iterator[str]:
        held = _held(row)
        content = self._content(held) if not self._is_meddled(held) else None
        if content is not None and digest_of(content) in _digests_of(row):
            yield f"row {row['id']} is FAILED and the server has it"

    def _content(self, held: Held) -> bytes | None:
        return self._world.servers[held[0]].content(held[1:])

    def _stored_at(self, held: Held, *, surely: bool = True) -> datetime | None:
        """When the server had stored it; where that need not be sure, a post that nobody saw answered may have."""
        if surely:
            times = [line.get("answered_at", line["at"]) for line in self._stores[held] if line["result"] == "stored"]
        else:
            times = [line["at"] for line in self._stores[held] if line["result"] in {"stored", "unanswered"}]
        return min(map(_instant, times), default=None)

    # G7

    def _false_rejections(self) -> Iterator[str]:
        whole = {file.name for file in self._written if not file.rejected_as}
        for row in self._rows.values():
            if row["state"] == State.REJECTED and row["relative_path"] in whole:
                yield f"{row['relative_path']} was written whole and is REJECTED ({row['reason']})"

    # The end

    def _left_over(self, ledger: sqlite3.Connection) -> Iterator[str]:
        if left := ledger.execute("SELECT count(*) FROM candidate").fetchone()[0]:
            yield f"{left} candidates are left over"
        dropped = sorted(name for name in self._lying if not name.startswith("."))
        if dropped and not self._world.stays:
            yield f"{len(dropped)} files still lie in the drop folder, {dropped[0]} among them"
        if orphans := self._orphans():
            yield f"{len(orphans)} files in the spool belong to no row"

    def _ends(self) -> Iterator[str]:
        """As many rows as files, of each content of each identity: one delivered, the others called what they are.

        Not counted is what a file was before its bytes changed: that was never written whole, or is what it is now.
        """
        goes_to = self._world.goes_to
        wanted: dict[Held, Counter[str]] = defaultdict(Counter)
        for file in self._written:
            names = self._world.servers if goes_to is None or not file.sop_uid else goes_to(file) or {""}
            for name in names if file.sop_uid else ():
                wanted[name, *file.identity][file.sha256] += 1
        found: dict[Held, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in self._rows.values():
            if row["state"] != State.REJECTED and row["id"] not in self._succeeded:
                found[_held(row)][_sha256_of(row["digest"]) if row["digest"] else ""].append(row)
        for held in wanted.keys() | found.keys():
            yield from self._ends_of(held, wanted[held], found[held])
        expected = Counter(file.rejected_as for file in self._written if file.rejected_as)
        rejected = Counter(row["reason"] for row in self._rows.values() if row["state"] == State.REJECTED)
        if rejected != expected:
            yield f"rejected {dict(rejected)}, written {dict(expected)}"

    def _ends_of(self, held: Held, wanted: Counter[str], found: dict[str, list[Row]]) -> Iterator[str]:
        name = held[-1]
        if (rows_found := {digest: len(rows) for digest, rows in found.items()}) != dict(wanted):
            yield f"{name}: files written {list(wanted.values())}, rows {list(rows_found.values())}"
            return
        if self._is_meddled(held):
            return
        if not held[0]:
            reasons = {row["reason"] for rows in found.values() for row in rows}
            if reasons != {"by_rule"}:
                yield f"{name} is for no destination, and its rows ended as {sorted(map(str, reasons))}"
            return
        holders = {digest for digest, rows in found.items() if any(row["state"] == State.CONFIRMED for row in rows)}
        if len(holders) != 1:
            states = sorted(row["state"] for rows in found.values() for row in rows)
            yield f"{name}: {len(holders)} contents are CONFIRMED; its rows are {states}"
            return
        for digest, rows in found.items():
            ends = Counter(row["state"] for row in rows)
            if digest in holders and ends != +Counter(CONFIRMED=1, DUPLICATE=len(rows) - 1):
                yield f"{name}: the delivered content's rows are {dict(ends)}"
            if digest not in holders and ends != Counter(CONFLICT=len(rows)):
                yield f"{name}: another content's rows are {dict(ends)}, not CONFLICT"

    def _names(self) -> Iterator[str]:
        """A file is found by the name it was dropped under, once, whatever happened to it on its way."""
        files = {row["file_id"]: row for row in self._rows.values() if row["id"] not in self._succeeded}
        names = Counter(row["relative_path"] for row in files.values())
        for file in self._written:
            if names[file.name] != 1:
                yield f"{file.name} was dropped once and has {names[file.name]} rows of that name"


def _succeeded(rows: Iterable[Row]) -> Iterator[int]:
    """Give the rows whose file was found to hold other bytes before they had arrived, and is another row's since.

    Nothing else may leave a name with two rows, and a row that was never confirmed without its file.
    """
    files: dict[tuple[int, str], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        files[row["inbox_id"], row["relative_path"]][row["file_id"]] = row
    for row in rows:
        if row["delivery_id"] is None or (row["state"], row["reason"]) != (State.DISCARDED, "changed"):
            continue
        of_name = files[row["inbox_id"], row["relative_path"]]
        next_file = min((file_id for file_id in of_name if file_id > row["file_id"]), default=None)
        if row["removed_at"] is not None and next_file is not None and _contents(of_name[next_file]) != _contents(row):
            yield row["id"]


_READ_OF_A_FILE = ("digest", "meta_digest", "transfer_syntax", "file_study_id", "file_series_uid", "file_sop_uid")


def _contents(row: Row) -> tuple[Any, ...]:
    """What was read of a file; of one that is REJECTED that is nothing."""
    return tuple(row[name] for name in _READ_OF_A_FILE)


def _place_of(row: Row) -> Path:
    return Path(row["path"]) if row["in_place"] else Path(row["spool"], row["path"])


def _damage(ledger: sqlite3.Connection) -> Iterator[str]:
    answer = [row[0] for row in ledger.execute("PRAGMA integrity_check")]
    if answer != ["ok"]:
        yield f"integrity_check: {answer[:3]}"
    if broken := ledger.execute("PRAGMA foreign_key_check").fetchall():
        yield f"foreign_key_check: {len(broken)} rows"


# The SHA-256 of each data set that was met, by the BLAKE3 that a row has of it.
_SHA256: dict[str, str] = {}


def digest_of(content: bytes) -> str:
    """SHA-256 of a file's data set; of all of it where it has no File Meta."""
    dataset = dataset_of(content) if content[128:132] == b"DICM" else content
    return _SHA256.setdefault("1e20" + blake3(dataset).hexdigest(), hashlib.sha256(dataset).hexdigest())


def _sha256_of(digest: bytes) -> str:
    """Say which SHA-256 a row means; former rows have that itself. What no data set met has stays what it is."""
    return _SHA256.get(digest.hex(), digest.hex())


def _digests_of(row: Row) -> set[str]:
    """What of a row may be on the server: its file, or the copy that was written anew of it."""
    return {_sha256_of(row[name]) for name in _DIGESTS if row[name] is not None}


def _files_in(root: Path, below: str = "") -> Iterator[str]:
    """Every file below a folder, by its path relative to the root."""
    start = len(str(root)) + 1
    for folder, _, names in os.walk(root / below):
        yield from (f"{folder}/{name}"[start:] for name in names)


def _signs_in(spool: Path) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Every file in ingestd's care, by its path relative to the spool, and how it looks."""
    for room in ROOMS:
        for path in _files_in(spool, room):
            with suppress(FileNotFoundError):  # of a reader that outlives its daemon for a moment
                yield path, _signs_of(os.lstat(f"{spool}/{path}"))


def _signs_of(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _held(row: Row) -> Held:
    return row["destination"], row["study_uid"] or "", row["series_uid"] or "", row["sop_uid"] or ""


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _targets_of_two(ledger: sqlite3.Connection, known: Iterable[str]) -> Iterator[str]:
    """Each place in the spool is wanted by one candidate, and by none that a row has its file at."""
    wanted = "SELECT inbox.name, target FROM candidate JOIN inbox ON inbox.id = inbox_id WHERE target != ''"
    targets = Counter(f"{inbox}/{target}" for inbox, target in ledger.execute(wanted))
    if targets:
        taken = {"/".join(path.split("/")[1:3]) for path in known}
        yield from (f"{each} is the target of {n} candidates" for each, n in targets.items() if n > 1)
        yield from (f"{each} is a candidate's target, and a row's file" for each in targets.keys() & taken)
