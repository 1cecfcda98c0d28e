"""What the server is asked, and by whom: one place that hands over questions, sorts the answers, and learns from them.

It holds the ``rules`` by which all answers are judged, as they are now: of which kind the server is, how far its clock
is from ours, when its feed was last read to the end. When somebody sets the wall clock, what was measured by the old
one moves along, and who asked before that learns it by ``clock_sets``. Nothing is asked before there are rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from math import inf

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.reach import Reach
from ingestd.daemon.stage import Stage
from ingestd.daemon.unanswered import Unanswered
from ingestd.daemon.wallclock import WallClock
from ingestd.lifecycle import ServerProfile
from ingestd.reconciler import Answer, Question, Reconciler, Rules, StudyAnswer

# A server that could not be asked is asked again after this long.
ASK_AGAIN = timedelta(seconds=10)


class Asker(StrEnum):
    """Who asks."""

    FEED_READING = "feed_reading"
    SERVER_COPIES = "server_copies"
    VERIFICATION = "verification"


class ServerQuestions(Stage):
    """Hands questions to the reconciler, whose answers nobody else may collect. Main thread only."""

    def __init__(
        self,
        *,
        reconciler: Reconciler,
        alarms: Alarms,
        wall: WallClock,
        rules_of: Callable[[ServerProfile], Rules],
        profile: Callable[[], ServerProfile | None],
        longest_wait: timedelta,
        reach: Reach,
    ) -> None:
        """``profile`` is None until it is known; a server that answers nothing is left alone up to ``longest_wait``."""
        self._reconciler = reconciler
        self._wall = wall
        self._rules_of = rules_of
        self._profile = profile
        self._longest_wait = longest_wait
        self._reach = reach
        self._set_by = wall.set_by
        at_once = "and at once with `ingestd reconcile`"
        # By whether a question wants copies, and not only to know what is there.
        self._unanswered = {
            True: Unanswered(alarms, "not_retrieved", wanted="gives back nothing of what it stored", again=at_once),
            False: Unanswered(alarms, "not_searched", wanted="does not say what it has", again=at_once),
        }
        # By the question's own identity: two may ask the same.
        self._asked: dict[int, tuple[Question, Asker, object, int]] = {}
        self._answers: defaultdict[Asker, list[tuple[Answer, object]]] = defaultdict(list)
        self.rules: Rules | None = None
        self.clock_sets = 0  # how often the wall clock was set in this run
        self.answered = 0  # answers that came in this run

    def ask(self, asker: Asker, question: Question, context: object = None) -> None:
        """Have it asked; its answer comes back with ``context`` to who ``take``s for this asker."""
        self._asked[id(question)] = (question, asker, context, self.clock_sets)
        self._reconciler.submit(question)

    def take(self, asker: Asker) -> list[tuple[Answer, object]]:
        """Take the answers to one asker, with the contexts they were asked in."""
        return self._answers.pop(asker, [])

    def collect(self, now: Now) -> None:
        """Follow the wall clock and the server's profile, and sort what was answered."""
        by = self._wall.set_by - self._set_by
        if by:
            self._set_by += by
            self.clock_sets += 1
            if self.rules is not None:
                read_at = self.rules.feed_read_at + by if self.rules.feed_read_at is not None else None
                offset = self.rules.clock_offset - by
                self.rules = replace(self.rules, jump=self._wall.jump, clock_offset=offset, feed_read_at=read_at)
        profile = self._new_profile()
        if profile is not None:
            self.rules = replace(self._rules_of(profile), jump=self._wall.jump)
        for answer in self._reconciler.collect():
            _, asker, context, clock_sets = self._asked.pop(id(answer.question))
            self.answered += 1
            if _is_answered(answer):
                self._reach.take(None, now)
            if answer.pause is not None:
                self._reach.take(answer.pause, now)
            if self.rules is not None and answer.clock_offset is not None and clock_sets == self.clock_sets:
                self.rules = replace(self.rules, clock_offset=answer.clock_offset)
            if isinstance(answer, StudyAnswer):
                self._unanswered[answer.question.fetch].take(answer, now)
            self._answers[asker].append((answer, context))

    def next_at(self, now: Now) -> float:
        # A probe that was just collected may have found it.
        return inf if self._new_profile() is None else now.mono

    def _new_profile(self) -> ServerProfile | None:
        profile = self._profile()
        return None if self.rules is not None and self.rules.profile == profile else profile

    def feed_was_read(self, at: datetime) -> None:
        """What the feed shows was written to its end at this time: what is absent from it is absent."""
        if self.rules is not None:
            self.rules = replace(self.rules, feed_read_at=at)

    def wait_after(self, answer: StudyAnswer, now: Now) -> timedelta:
        """Say how long a server that answered nothing of this is left alone."""
        return self._unanswered[answer.question.fetch].wait(answer.pause, now, cap=self._longest_wait)

    def nothing_waits(self) -> None:
        """Nothing waits for an answer any more: that none came is no alarm."""
        for each in self._unanswered.values():
            each.end()


def _is_answered(answer: Answer) -> bool:
    """Whether the server told any of what it was asked for."""
    if isinstance(answer, StudyAnswer):
        return any(finding.present is not None for finding in answer.findings)
    return not answer.error
