"""The count at the end. It believes only what was written, what the server's log says it took, and what it has now.

It reads the ledger with SQL of its own, so that the program's way of reading cannot hide what the program did.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Protocol

from ingestd.lifecycle import MOVES, State
from tests.emulating import Identity, dataset_of, file_of
from tests.running import Site
from tests.torture.feeding import Kind, Written
from tests.torture.watching import Watch, ledger_copy

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Two clocks of one machine, read by two processes: an event may seem this much earlier than its cause.
CLOCK_SLACK = timedelta(milliseconds=50)


@dataclass(kw_only=True)
class Findings:
    """What the count found; ``violations`` is empty when every promise was kept."""

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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the ledger, as far as counting needs it."""

    entry_id: int
    state: str
    reason: str
    identity: Identity
    digest: str
    path: str
    relative_path: str
    source_removed: bool
    removed: bool
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Move:
    """One line of a row's history."""

    at: datetime
    before: str | None
    after: str
    reason: str
    attempt_id: int | None
    evidence: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One Store Transaction as the ledger has it."""

    started_at: datetime
    finished_at: datetime | None
    body_bytes_left: int | None


class Archive(Protocol):
    """A server, and which instances it was sent."""

    @property
    def url(self) -> str:
        """The DICOMweb root."""

    def stores(self) -> list[dict[str, Any]]:
        """One line for each instance that some request brought, in order."""


def check_everything(site: Site, server: Archive, written: Sequence[Written], findings: Findings) -> None:
    """Hold the end against the truth and write every broken promise into ``findings``."""
    with ledger_copy(site) as ledger:
        if ledger is None:
            findings.violations.append("there is no ledger")
            return
        ledger.row_factory = sqlite3.Row
        _Check(site, server, written, findings, ledger).run()


class _Check:
    def __init__(
        self,
        site: Site,
        server: Archive,
        written: Sequence[Written],
        findings: Findings,
        ledger: sqlite3.Connection,
    ) -> None:
        self._site = site
        self._server = server
        self._written = written
        self._findings = findings
        self._ledger = ledger
        self._rows = list(_rows(ledger))
        self._history = _history(ledger)
        self._attempts = _attempts(ledger)
        self._stores: dict[Identity, list[dict[str, Any]]] = defaultdict(list)
        for line in server.stores():
            self._stores[line["study"], line["series"], line["sop"]].append(line)

    def run(self) -> None:
        self._findings.states.update(row.state for row in self._rows)
        self._ledger_is_sound()
        self._nothing_is_left_over()
        self._every_file_has_one_end()
        self._every_name_is_one_row()
        for row in self._rows:
            self._history_is_legal(row)
            self._file_is_kept(row)
        for identity in {row.identity for row in self._rows if row.state == State.CONFIRMED}:
            self._server_has_it(identity)
        self._every_post_is_explained()

    def _say(self, text: str) -> None:
        self._findings.violations.append(text)

    def _ledger_is_sound(self) -> None:
        answer = [row[0] for row in self._ledger.execute("PRAGMA integrity_check")]
        if answer != ["ok"]:
            self._say(f"integrity_check: {answer[:3]}")
        if broken := self._ledger.execute("PRAGMA foreign_key_check").fetchall():
            self._say(f"foreign_key_check: {len(broken)} rows")
        counted = Counter[str]()
        for state, rows in self._ledger.execute("SELECT state, sum(entries) FROM state_count GROUP BY state"):
            if rows:
                counted[state] = rows
        if counted != self._findings.states:
            self._say(f"the kept counts say {dict(counted)}, the rows {dict(self._findings.states)}")

    def _nothing_is_left_over(self) -> None:
        if left := self._ledger.execute("SELECT count(*) FROM candidate").fetchone()[0]:
            self._say(f"{left} candidates are left over")
        if dropped := [path.name for path in self._site.drop.iterdir() if not path.name.startswith(".")]:
            self._say(f"{len(dropped)} files still lie in the drop folder, {dropped[0]} among them")
        known = {row.path for row in self._rows if not row.removed}
        if orphans := Watch(self._site).spool_files() - known:
            self._say(f"{len(orphans)} files in the spool belong to no row")

    def _every_file_has_one_end(self) -> None:
        """As many rows as files, of each content of each identity: one delivered, the others called what they are."""
        wanted: dict[Identity, Counter[str]] = defaultdict(Counter)
        for file in self._written:
            if file.sop_uid:
                wanted[file.identity][file.sha256] += 1
        found: dict[Identity, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in self._rows:
            if row.state != State.REJECTED:
                found[row.identity][row.digest].append(row)
        for identity in wanted.keys() | found.keys():
            self._contents_agree(identity, wanted[identity], found[identity])
        broken = Counter(file.kind for file in self._written if not file.sop_uid)
        rejected = Counter(row.reason for row in self._rows if row.state == State.REJECTED)
        expected = Counter({"truncated": broken[Kind.TRUNCATED], "not_dicom": broken[Kind.CLUTTER]})
        if rejected != +expected:
            self._say(f"rejected {dict(rejected)}, written {dict(expected)}")

    def _contents_agree(self, identity: Identity, wanted: Counter[str], found: dict[str, list[Row]]) -> None:
        name = identity[2]
        rows_found = {digest: len(rows) for digest, rows in found.items()}
        if rows_found != dict(wanted):
            self._say(f"{name}: files written {list(wanted.values())}, rows {list(rows_found.values())}")
            return
        holders = {digest for digest, rows in found.items() if any(row.state == State.CONFIRMED for row in rows)}
        if len(holders) != 1:
            states = sorted(row.state for rows in found.values() for row in rows)
            self._say(f"{name}: {len(holders)} contents are CONFIRMED; its rows are {states}")
            return
        for digest, rows in found.items():
            ends = Counter(row.state for row in rows)
            if digest in holders and ends != +Counter(CONFIRMED=1, DUPLICATE=len(rows) - 1):
                self._say(f"{name}: the delivered content's rows are {dict(ends)}")
            if digest not in holders and ends != Counter(CONFLICT=len(rows)):
                self._say(f"{name}: another content's rows are {dict(ends)}, not CONFLICT")

    def _every_name_is_one_row(self) -> None:
        """A file is found by the name it was dropped under, once, whatever happened to it on its way."""
        names = Counter(row.relative_path for row in self._rows)
        for file in self._written:
            if names[file.name] != 1:
                self._say(f"{file.name} was dropped once and has {names[file.name]} rows of that name")

    def _history_is_legal(self, row: Row) -> None:
        before: str | None = None
        for move in self._history[row.entry_id]:
            if move.before != before:
                self._say(f"row {row.entry_id}: a move from {move.before} when it was in {before}")
            pair = (State(before) if before else None, State(move.after))
            if pair not in MOVES and pair[0] != pair[1]:
                self._say(f"row {row.entry_id}: no legal move {before} -> {move.after}")
            before = move.after
            self._findings.uncertain += move.after == State.UNCERTAIN
        if before != row.state:
            self._say(f"row {row.entry_id}: its history ends in {before}, it is in {row.state}")

    def _file_is_kept(self, row: Row) -> None:
        """Nothing was old enough to be removed, so every row's file must be there, with its content."""
        file = self._site.spool / row.path
        if row.removed or not file.is_file():
            self._say(f"row {row.entry_id} ({row.state}): its file is gone")
        elif row.state != State.REJECTED:
            content = file.read_bytes()
            if hashlib.sha256(dataset_of(content)).hexdigest() != row.digest:
                self._say(f"row {row.entry_id} ({row.state}): its file has another content")

    def _server_has_it(self, identity: Identity) -> None:
        """CONFIRMED means: the server gives exactly that data set, and took it in before it was confirmed."""
        row = next(row for row in self._rows if row.identity == identity and row.state == State.CONFIRMED)
        content = file_of(self._server.url, identity)
        if content is None:
            self._say(f"row {row.entry_id} is CONFIRMED and the server has no such instance")
            return
        if hashlib.sha256(dataset_of(content)).hexdigest() != row.digest:
            self._say(f"row {row.entry_id} is CONFIRMED and the server has another content")
        stored = [line for line in self._stores[identity] if line["result"] == "stored"]
        confirmed = [move.at for move in self._history[row.entry_id] if move.after == State.CONFIRMED]
        if not stored or confirmed[0] + CLOCK_SLACK < _instant(stored[0]["at"]):
            self._say(f"row {row.entry_id} was CONFIRMED before the server had stored it")

    def _every_post_is_explained(self) -> None:
        """Each time the server was sent an instance, an attempt said so before, and a second one has evidence."""
        self._findings.attempts = len(self._attempts)
        rows_of: dict[Identity, list[Row]] = defaultdict(list)
        for row in self._rows:
            rows_of[row.identity].append(row)
        for identity, lines in self._stores.items():
            self._findings.posts += len(lines)
            self._findings.refused += sum(line["reason"] == 45070 for line in lines)
            sendings = sorted(
                (self._attempts[move.attempt_id].started_at, row.entry_id, move.attempt_id)
                for row in rows_of[identity]
                for move in self._history[row.entry_id]
                if move.after == State.SENDING and move.attempt_id is not None and move.attempt_id in self._attempts
            )
            self._posts_have_attempts(identity, lines, sendings)
        for row in self._rows:
            self._second_sends_have_evidence(row)

    def _posts_have_attempts(
        self, identity: Identity, lines: list[dict[str, Any]], sendings: list[tuple[datetime, int, int]]
    ) -> None:
        used: Counter[int] = Counter()
        for line in lines:
            before = [sending for sending in sendings if sending[0] <= _instant(line["at"])]
            if not before:
                self._say(f"{identity[2]} reached the server before any attempt was recorded")
                continue
            used[before[-1][2]] += 1
        if any(count > 1 for count in used.values()):
            self._say(f"{identity[2]} was posted twice in one attempt")

    def _second_sends_have_evidence(self, row: Row) -> None:
        """Between two SENDINGs of a row stands a proof that the first did not deliver."""
        moves = self._history[row.entry_id]
        sendings = [at for at, move in enumerate(moves) if move.after == State.SENDING]
        stored_at = min(
            (_instant(line["at"]) for line in self._stores[row.identity] if line["result"] == "stored"), default=None
        )
        for first, second in pairwise(sendings):
            back = [move for move in moves[first + 1 : second] if move.after == State.PENDING]
            attempt = self._attempts.get(moves[first].attempt_id or 0)
            if not back or attempt is None:
                self._say(f"row {row.entry_id} was sent again without having come back")
                continue
            self._findings.sent_again += 1
            nothing_left = attempt.finished_at is not None and attempt.body_bytes_left == 0
            if back[0].before == State.SENDING and nothing_left:
                continue
            if back[0].before != State.UNCERTAIN or back[0].reason != "absent":
                self._say(f"row {row.entry_id} was sent again because of {back[0].before} {back[0].reason!r}")
            elif stored_at is not None and stored_at + CLOCK_SLACK < back[0].at:
                self._say(f"row {row.entry_id} was called absent after the server had stored it")


def _rows(ledger: sqlite3.Connection) -> Iterator[Row]:
    for row in ledger.execute("SELECT * FROM instance ORDER BY id"):
        yield Row(
            entry_id=row["id"],
            state=row["state"],
            reason=row["reason"] or "",
            identity=(row["study_uid"] or "", row["series_uid"] or "", row["sop_uid"] or ""),
            digest=row["digest"].hex() if row["digest"] else "",
            path=row["path"],
            relative_path=row["relative_path"],
            source_removed=bool(row["source_removed"]),
            removed=row["removed_at"] is not None,
            size_bytes=row["size_bytes"],
        )


def _history(ledger: sqlite3.Connection) -> dict[int, list[Move]]:
    history: dict[int, list[Move]] = defaultdict(list)
    for row in ledger.execute("SELECT * FROM history ORDER BY id"):
        history[row["entry_id"]].append(
            Move(
                at=EPOCH + timedelta(microseconds=row["at"]),
                before=row["before"],
                after=row["after"],
                reason=row["reason"],
                attempt_id=row["attempt_id"],
                evidence=json.loads(row["evidence"] or "{}"),
            )
        )
    return history


def _attempts(ledger: sqlite3.Connection) -> dict[int, Attempt]:
    return {
        row["id"]: Attempt(
            started_at=EPOCH + timedelta(microseconds=row["started_at"]),
            finished_at=_microseconds(row["finished_at"]),
            body_bytes_left=row["body_bytes_left"],
        )
        for row in ledger.execute("SELECT * FROM attempt")
    }


def _microseconds(value: int | None) -> datetime | None:
    return None if value is None else EPOCH + timedelta(microseconds=value)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
