"""The one writer of stores: group commit, as in the write-ahead logs of databases.

**Why groups.** A flush to the disk costs the same for one job as for many, and so does a turn of the interpreter's
lock. So whoever comes while a group is being committed is in the next one, and the more clients store at once, the less
each of them waits for flushes.

**A job's way.** ``store`` runs on the event loop. Parts that lie on disk are being examined by the archive's worker
threads meanwhile; the job is queued when the last of them is done. Then one thread at a time *leads*: it holds
``_leading``, takes all that waits, and goes round until nothing does. That is the thread that examined the last part,
if it finds nobody leading (a lone client's store then changes threads no more than it must), or else the writer's own
thread, which sleeps on the queue. Nothing can be left behind: whoever cannot lead puts the job into the queue, and
either the leader takes it from there in its next round or the writer's thread does, as soon as the leader is through.
The outcomes go back to the event loop in one call for the whole group.

**A round.** Jobs are taken in the order in which they came, at most ``GROUP`` parts of each, so that a long one does
not hold up the others; a job with more parts waits again, behind those that came meanwhile. All of a group is one
transaction (``store``): durable when it returns, or not there at all.

**What never shares a group**, so that what a client sees is as if each job had been alone:

- two jobs that bring the same instance: the second has to meet the first one's row;
- a job that meets a fault, with any other: nobody else shall suffer from it;
- a job whose commit a fault delays is not even stored here: a thread of its own does that, and the others go on.

**When it goes wrong.** If a group cannot be committed, nothing of it is: each of its jobs is tried alone, and what goes
wrong then is the answer to that one. If it is committed and cannot be written into the log, all of it is stored, and
every job of it is answered with that error: the client does not know, and has to ask.

**The end.** ``close`` is called when nothing new can come: a None in the queue ends the thread, after everything before
it; a leader that finds the None puts it back for the thread.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

import anyio

from .archive import Archive
from .store import GROUP, commit, fill_group, report
from .store_job import PartResult, StoreJob, StoreRequest, UploadedPart

_Outcome = list[PartResult] | Exception


class _Waiting:
    """A job, and where its answer is waited for."""

    def __init__(self, job: StoreJob) -> None:
        self.job = job
        self.loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[list[PartResult]] = self.loop.create_future()


class Writer:
    """The writer of one server, a thread."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._waiting: deque[_Waiting] = deque()
        self._elsewhere: list[threading.Thread] = []
        self._leading = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="emulator-writer", daemon=True)
        self._thread.start()

    async def store(self, request: StoreRequest, parts: Sequence[UploadedPart]) -> list[PartResult]:
        """Store these parts and say what became of each; durable when this returns."""
        if not parts:
            return []
        waiting = _Waiting(StoreJob(request=request, parts=parts))
        self._queue_when_examined(waiting)
        with anyio.CancelScope(shield=True):  # the writer must not lose the parts under its hands
            await waiting.outcome
        return waiting.outcome.result()

    def _queue_when_examined(self, waiting: _Waiting) -> None:
        """Queue a job as soon as none of its parts is being examined, or lead at once where nobody does."""
        unfinished = [part.examined for part in waiting.job.parts if part.examined is not None]
        left = itertools.count(len(unfinished) - 1, -1)
        loop_thread = threading.get_ident()  # which must not wait for the disk

        def examined(_: object) -> None:
            if next(left):
                return
            if threading.get_ident() == loop_thread or not self._leading.acquire(blocking=False):
                self._queue.put(waiting)
                return
            try:
                self._lead(waiting)
            finally:
                self._leading.release()

        if not unfinished:
            self._queue.put(waiting)
        for future in unfinished:
            future.add_done_callback(examined)

    def close(self) -> None:
        """Store what still waits, then end."""
        self._queue.put(None)
        self._thread.join()
        with self._leading:
            pass  # whoever else was leading has ended
        for thread in self._elsewhere:
            thread.join()

    def _run(self) -> None:
        while (came := self._queue.get()) is not None:
            with self._leading:
                self._lead(came)

    def _lead(self, came: _Waiting) -> None:
        """Store this job and all that come meanwhile; by one thread at a time."""
        self._waiting.append(came)
        while self._waiting:
            with suppress(Empty):
                while (came_too := self._queue.get_nowait()) is not None:
                    self._waiting.append(came_too)
                self._queue.put(None)  # for the thread that is to end
            self._round()

    def _round(self) -> None:
        taken = self._next_group()
        if not taken:
            return
        if any(result.commit_seconds for waiting in taken for result in waiting.job.group):
            self._elsewhere = [thread for thread in self._elsewhere if thread.is_alive()]
            self._elsewhere.append(threading.Thread(target=self._store_all, args=taken, name="emulator-delayed"))
            self._elsewhere[-1].start()
            return
        _deliver(self._stored(taken))

    def _next_group(self) -> list[_Waiting]:
        """Those that wait, oldest first, as far as they go together."""
        taken: list[_Waiting] = []
        identities: set[tuple[object, ...]] = set()
        parts = 0
        while self._waiting and parts < GROUP:
            waiting = self._waiting[0]
            try:
                fill_group(self._archive, waiting.job)
            except Exception as error:  # noqa: BLE001 - it is the answer to this job, and nobody else's
                self._waiting.popleft()
                _deliver([(waiting, error)])
                continue
            mine = waiting.job.identities()
            if taken and (waiting.job.has_faults or not identities.isdisjoint(mine)):
                break
            taken.append(self._waiting.popleft())
            if waiting.job.has_faults:
                break
            identities |= mine
            parts += len(waiting.job.group)
        return taken

    def _stored(self, taken: list[_Waiting]) -> list[tuple[_Waiting, _Outcome]]:
        """Store what was taken; the outcomes of those that are done."""
        jobs = [waiting.job for waiting in taken]
        try:
            commit(self._archive, jobs)
        except Exception as error:  # noqa: BLE001 - it is the answer where there is but one job
            if len(taken) == 1:
                return [(taken[0], error)]
            return [outcome for waiting in taken for outcome in self._stored([waiting])]
        try:
            report(self._archive, jobs)
        except Exception as error:  # noqa: BLE001 - all of it is stored, and none of it can be answered for
            return [(waiting, error) for waiting in taken]
        self._waiting.extend(waiting for waiting in taken if not waiting.job.is_done)
        return [(waiting, waiting.job.results) for waiting in taken if waiting.job.is_done]

    def _store_all(self, waiting: _Waiting) -> None:
        """Store all of one job here and now, however long that takes."""
        try:
            while not waiting.job.is_done:
                fill_group(self._archive, waiting.job)
                commit(self._archive, [waiting.job])
                report(self._archive, [waiting.job])
        except Exception as error:  # noqa: BLE001 - it is the answer
            _deliver([(waiting, error)])
        else:
            _deliver([(waiting, waiting.job.results)])


def _deliver(outcomes: list[tuple[_Waiting, _Outcome]]) -> None:
    if outcomes:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            outcomes[0][0].loop.call_soon_threadsafe(_set_outcomes, outcomes)


def _set_outcomes(outcomes: list[tuple[_Waiting, _Outcome]]) -> None:
    for waiting, outcome in outcomes:
        if waiting.outcome.done():
            continue
        if isinstance(outcome, Exception):
            waiting.outcome.set_exception(outcome)
        else:
            waiting.outcome.set_result(outcome)
