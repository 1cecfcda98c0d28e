"""Reconciler: threads that ask the server, so that a large copy holds up neither the feed nor the daemon."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from ingestd import threads
from ingestd.clocks import boottime
from ingestd.dicomweb import DicomWebClient, DicomWebError
from ingestd.error_location import location_of
from ingestd.outages import pause_of, stops_queries
from ingestd.reconciler.asking import StudyAsker
from ingestd.reconciler.feed import DEFAULT_PARTITION, read_feed
from ingestd.reconciler.questions import Answer, FeedAnswer, FeedQuestion, Question, StudyAnswer, StudyQuestion


class Reconciler:
    """Answers questions on worker threads. Its methods are for the daemon's main thread, and return at once."""

    def __init__(
        self,
        client: DicomWebClient,
        *,
        scratch: Path,
        wake: Callable[[], object],
        utc_now: Callable[[], datetime],
        workers: int = 2,
        partition: str = DEFAULT_PARTITION,
    ) -> None:
        """Start one thread for the feed and ``workers`` for the rest; copies go into ``scratch``, which exists."""
        self._client = client
        self._scratch = scratch
        self._wake = wake
        self._utc_now = utc_now
        self._partition = partition
        self._feed: queue.SimpleQueue[FeedQuestion | None] = queue.SimpleQueue()
        self._studies: queue.SimpleQueue[StudyQuestion | None] = queue.SimpleQueue()
        self._answers: deque[Answer] = deque()
        self._asked = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._answer_studies, name=f"ingestd-ask-{number}", daemon=True)
            for number in range(max(1, workers))
        ]
        self._threads.append(threading.Thread(target=self._answer_feed, name="ingestd-feed", daemon=True))
        for thread in self._threads:
            threads.start(thread)

    @property
    def in_flight(self) -> int:
        """Questions submitted whose answers have not been collected."""
        return self._asked

    def submit(self, question: Question) -> None:
        """Have a question answered; ``wake`` is called when its answer can be collected."""
        assert not self._closed, "nothing is asked of a closed reconciler"
        self._asked += 1
        if isinstance(question, FeedQuestion):
            self._feed.put(question)
        else:
            self._studies.put(question)

    def collect(self) -> list[Answer]:
        """Return the answers that have come since, oldest first; never blocks."""
        collected: list[Answer] = []
        while self._answers:
            collected.append(self._answers.popleft())
        self._asked -= len(collected)
        return collected

    def is_healthy(self) -> bool:
        """Say whether every thread lives; the client's own deadlines end whatever they wait for."""
        return self._closed or all(thread.is_alive() for thread in self._threads)

    def close(self, grace: timedelta) -> None:
        """Answer nothing more; waits up to ``grace`` for what is being asked now."""
        self._closed = True
        self._feed.put(None)
        for _ in self._threads[:-1]:
            self._studies.put(None)
        deadline = boottime() + grace.total_seconds()
        for thread in self._threads:
            thread.join(max(0.0, deadline - boottime()))

    def _answer_feed(self) -> None:
        while (question := self._feed.get()) is not None:
            if self._closed:
                continue
            try:
                answer = read_feed(self._client, question, utc_now=self._utc_now, partition=self._partition)
            except Exception as error:  # noqa: BLE001 - a worker never dies; the daemon is told the place
                answer = FeedAnswer(
                    question=question, asked_at=self._utc_now(), error=f"unexpected {location_of(error)}"
                )
            self._tell(answer)

    def _answer_studies(self) -> None:
        while (question := self._studies.get()) is not None:
            if self._closed:
                continue
            self._tell(self._ask_study(question))

    def _ask_study(self, question: StudyQuestion) -> StudyAnswer:
        asker = StudyAsker(self._client, question, self._scratch, self._utc_now)
        try:
            asker.ask()
        except DicomWebError as error:
            return asker.answer(error=str(error), pause=pause_of(error) if stops_queries(error) else None)
        except Exception as error:  # noqa: BLE001 - as above
            return asker.answer(error=f"unexpected {location_of(error)}")
        return asker.answer()

    def _tell(self, answer: Answer) -> None:
        self._answers.append(answer)
        self._wake()
