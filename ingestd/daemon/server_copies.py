"""The server's copies of confirmed rows, for whoever compares one with a file of its own.

A copy is asked for until the server gives it; who waits is told once what became of it. A crash leaves copies in
scratch, which start-up empties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from typing import TypeAlias

from ingestd.clocks import Now
from ingestd.daemon.server_questions import ASK_AGAIN, Asker, ServerQuestions
from ingestd.daemon.stage import Stage
from ingestd.fs.places import remove_scratch
from ingestd.ledger import Ledger, Transaction, moves, queries
from ingestd.lifecycle import Backoff, Sameness, State
from ingestd.reconciler import Rules, StudyAnswer, StudyQuestion

# A copy that cannot be had is asked for ever more rarely.
_FETCH_AGAIN = Backoff(base=ASK_AGAIN)
# A copy that the server does not have is asked for again after this long: its row is looked at meanwhile.
_FETCH_ABSENT_AGAIN = timedelta(seconds=2)

# What becomes of a wanted copy: its place; None where the row is not CONFIRMED any more; or that it is no copy of ours.
Copy: TypeAlias = Path | Sameness | None


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Who waits for the server's copy of a row."""

    delivery_id: int
    done: Callable[[Copy], object]
    at: float = 0.0  # when to ask (``Now.mono``)
    asked: int = 0  # times in a row that it could not be had
    untold_at: float | None = None  # the first of these (``Now.mono``)


class ServerCopies(Stage):
    """Fetches copies for others, and tells them."""

    def __init__(self, questions: ServerQuestions, ledger: Ledger) -> None:
        self._questions = questions
        self._ledger = ledger
        self._fetches: list[_Fetch] = []  # to be asked for
        self._asking = 0  # until the answer is written
        self._answers: list[tuple[StudyAnswer, _Fetch]] = []

    @property
    def is_idle(self) -> bool:
        return not (self._fetches or self._asking)

    def fetch(self, delivery_id: int, done: Callable[[Copy], object]) -> None:
        """Fetch the server's copy of a confirmed row; ``done`` gets its path in scratch, and unlinks it.

        Asked again until the server gives it. One that cannot be had for the grace time, though the server can be
        asked, cannot be compared with, and ``done`` gets Sameness.OTHER. A copy that the server has no more makes the
        row itself be looked at again: it becomes DELETED, and ``done`` gets None, as for any row that is not CONFIRMED
        by then.
        """
        self._fetches.append(_Fetch(delivery_id, done))

    def collect(self, now: Now) -> None:
        """Take the copies that came, and ask for those that are due."""
        for answer, fetch in self._questions.take(Asker.SERVER_COPIES):
            assert isinstance(answer, StudyAnswer)
            assert isinstance(fetch, _Fetch)
            self._answers.append((answer, fetch))
        rules = self._questions.rules
        if rules is not None and any(now.mono >= fetch.at for fetch in self._fetches):
            self._ask(now, rules)

    def next_at(self, now: Now) -> float:  # noqa: ARG002 - the times are known
        return min((fetch.at for fetch in self._fetches), default=inf) if self._questions.rules is not None else inf

    def _ask(self, now: Now, rules: Rules) -> None:
        wanted = [fetch for fetch in self._fetches if now.mono >= fetch.at]
        rows = {
            row.delivery_id: row for row in queries.unproven_rows(self._ledger, (fetch.delivery_id for fetch in wanted))
        }
        self._fetches = [fetch for fetch in self._fetches if now.mono < fetch.at]
        for fetch in wanted:
            row = rows.get(fetch.delivery_id)
            if row is None or row.state is not State.CONFIRMED:
                fetch.done(None)
                continue
            question = StudyQuestion(
                study_uid=row.identity.study_uid,
                rows=(row,),
                fetch=True,
                original=rules.profile.gives_original,
                keep=True,
            )
            self._asking += 1
            self._questions.ask(Asker.SERVER_COPIES, question, fetch)

    def write(self, tx: Transaction, now: Now) -> None:
        """Have the rows looked at whose copies the server has no more, and tell who waits."""
        tx = tx.at(self._ledger.destination_id)
        if not self._answers:
            return
        told: list[tuple[_Fetch, Copy]] = []
        again: list[_Fetch] = []
        needless: list[Path] = []
        for answer, fetch in self._answers:
            copies = [copy for finding in answer.findings for copy in finding.copies]
            needless += copies[1:]
            if copies:
                told.append((fetch, copies[0]))
            elif not answer.findings:
                # The server could not be asked at all; that says nothing of its copy.
                wait = max(ASK_AGAIN, self._questions.wait_after(answer, now))
                again.append(replace(fetch, at=now.mono + wait.total_seconds()))
            elif any(finding.present is False for finding in answer.findings):
                moves.check_again(tx, [fetch.delivery_id], at=now.utc)
                again.append(replace(fetch, at=now.mono + _FETCH_ABSENT_AGAIN.total_seconds()))
            elif (later := self._once_more(fetch, now)) is not None:
                again.append(later)
            else:
                told.append((fetch, Sameness.OTHER))
        tx.on_commit(partial(self._committed, told, again, needless))

    def _once_more(self, fetch: _Fetch, now: Now) -> _Fetch | None:
        """Wait ever longer for a copy that cannot be had, or is far too large for one, and no longer than the grace."""
        assert self._questions.rules is not None
        since = now.mono if fetch.untold_at is None else fetch.untold_at
        left = self._questions.rules.grace.total_seconds() - (now.mono - since)
        if left <= 0:
            return None
        wait = min(left, _FETCH_AGAIN.wait(fetch.asked + 1, jitter=0.0).total_seconds())
        return replace(fetch, at=now.mono + wait, asked=fetch.asked + 1, untold_at=since)

    def _committed(
        self, told: Sequence[tuple[_Fetch, Copy]], again: Sequence[_Fetch], needless: Sequence[Path]
    ) -> None:
        self._asking -= len(self._answers)
        self._answers = []
        self._fetches += again
        for fetch, copy in told:
            fetch.done(copy)
        for unwanted in needless:
            remove_scratch(unwanted)
