"""Reconciler: asks the server on workers, so that a large copy holds up neither the feed nor the daemon."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from ingestd.clocks import boottime
from ingestd.dicomweb import DicomWebClient, DicomWebError
from ingestd.error_location import location_of
from ingestd.outages import pause_of, stops_queries
from ingestd.reconciler.asking import StudyAsker
from ingestd.reconciler.feed import read_feed
from ingestd.reconciler.questions import Answer, FeedAnswer, FeedQuestion, Question, StudyAnswer, StudyQuestion
from ingestd.workers import Workers, start_all


class Reconciler:
    """Answers questions on worker threads. Its methods are for the daemon's main thread, and return at once."""

    def __init__(
        self,
        client: DicomWebClient,
        *,
        scratch: Path,
        wake: Callable[[], object],
        utc_now: Callable[[], datetime],
    ) -> None:
        """Start one thread for the feed and two for the rest; copies go into ``scratch``, which exists."""
        self._client = client
        self._scratch = scratch
        self._utc_now = utc_now
        self._closed = False
        self._feed = Workers[Answer]("ingestd-feed", wake=wake)
        self._studies = Workers[Answer]("ingestd-ask", wake=wake, threads=2)
        start_all(self._feed, self._studies)

    @property
    def in_flight(self) -> int:
        """Questions submitted whose answers have not been collected."""
        return self._feed.in_flight + self._studies.in_flight

    def submit(self, question: Question) -> None:
        """Have a question answered; ``wake`` is called when its answer can be collected."""
        if isinstance(question, FeedQuestion):
            self._feed.submit(partial(self._answer_feed, question))
        else:
            self._studies.submit(partial(self._answer_study, question))

    def collect(self) -> list[Answer]:
        """Return the answers that have come since, the feed's first; never blocks."""
        return [*self._feed.collect(), *self._studies.collect()]

    def is_healthy(self) -> bool:
        """Say whether every thread lives; the client's own deadlines end whatever they wait for."""
        return self._feed.is_healthy() and self._studies.is_healthy()

    def close(self, grace: timedelta) -> None:
        """Answer nothing more; waits up to ``grace`` for what is being asked now."""
        self._closed = True
        deadline = boottime() + grace.total_seconds()
        self._studies.close(grace.total_seconds())
        self._feed.close(max(0.0, deadline - boottime()))

    def _answer_feed(self, question: FeedQuestion) -> FeedAnswer:
        try:
            return read_feed(self._client, question, utc_now=self._utc_now)
        except Exception as error:  # noqa: BLE001 - a worker never dies; the daemon is told the place
            return FeedAnswer(question=question, asked_at=self._utc_now(), error=f"unexpected {location_of(error)}")

    def _answer_study(self, question: StudyQuestion) -> StudyAnswer:
        asker = StudyAsker(self._client, question, self._scratch, self._utc_now)
        try:
            if not self._closed:  # what stood in line then is asked of nobody
                asker.ask()
        except DicomWebError as error:
            return asker.answer(error=str(error), pause=pause_of(error) if stops_queries(error) else None)
        except Exception as error:  # noqa: BLE001 - as above
            return asker.answer(error=f"unexpected {location_of(error)}")
        return asker.answer()
