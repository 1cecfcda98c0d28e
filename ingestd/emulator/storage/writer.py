"""The one writer of stores: every round it takes all posts that wait and commits them in one group.

A flush to the disk costs the same for one post as for many, and so does a turn of the interpreter's lock; so whoever
comes while a group is being committed is in the next one (as in the write-ahead logs of databases). Posts are taken in
the order in which they came, at most ``GROUP`` parts of each a round, so that a long one does not hold up the others.

What a client sees is as if each had been alone. Two posts that bring the same instance are never in one group, nor is
one that meets a fault with any other, and one whose commit a fault delays is done elsewhere. Where a group cannot be
committed each of its posts is tried alone, and what goes wrong then is the answer to that one.
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

from ..services.upload import Part
from .archive import Service
from .store import GROUP, account_for, commit, look_ahead
from .store_job import Entry, Post, StoreRequest

_Outcome = list[Entry] | Exception


class _Waiting:
    """A post, and where its answer is waited for."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[list[Entry]] = self.loop.create_future()


class Writer:
    """The writer of one server, a thread."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._waiting: deque[_Waiting] = deque()
        self._elsewhere: list[threading.Thread] = []
        self._leads = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="emulator-writer", daemon=True)
        self._thread.start()

    async def store(self, request: StoreRequest, parts: Sequence[Part]) -> list[Entry]:
        """Store these parts and say what became of each; durable when this returns."""
        if not parts:
            return []
        waiting = _Waiting(Post(request=request, parts=parts))
        self._queue_when_looked_at(waiting)
        with anyio.CancelScope(shield=True):  # the writer must not lose the parts under its hands
            await waiting.outcome
        return waiting.outcome.result()

    def _queue_when_looked_at(self, waiting: _Waiting) -> None:
        """Queue a post as soon as none of its parts is being looked at.

        Whoever looks at the last one is a thread that may wait, and stores it at once where nobody else is storing.
        """
        unseen = [part.looked_at for part in waiting.post.parts if part.looked_at is not None]
        left = itertools.count(len(unseen) - 1, -1)
        here = threading.get_ident()

        def seen(_: object) -> None:
            if next(left):
                return
            if threading.get_ident() == here or not self._leads.acquire(blocking=False):
                self._queue.put(waiting)
                return
            try:
                self._lead(waiting)
            finally:
                self._leads.release()

        if not unseen:
            self._queue.put(waiting)
        for looked_at in unseen:
            looked_at.add_done_callback(seen)

    def close(self) -> None:
        """Store what still waits, then end."""
        self._queue.put(None)
        self._thread.join()
        with self._leads:
            pass  # whoever else was storing has ended
        for thread in self._elsewhere:
            thread.join()

    def _run(self) -> None:
        while (came := self._queue.get()) is not None:
            with self._leads:
                self._lead(came)

    def _lead(self, came: _Waiting) -> None:
        """Store this post and all that come meanwhile; by one thread at a time."""
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
        if any(entry.commit_seconds for waiting in taken for entry in waiting.post.group):
            self._elsewhere = [thread for thread in self._elsewhere if thread.is_alive()]
            self._elsewhere.append(threading.Thread(target=self._store_all, args=taken, name="emulator-delayed"))
            self._elsewhere[-1].start()
            return
        _tell(self._stored(taken))

    def _next_group(self) -> list[_Waiting]:
        """Those that wait, oldest first, as far as they go together."""
        taken: list[_Waiting] = []
        identities: set[tuple[object, ...]] = set()
        parts = 0
        while self._waiting and parts < GROUP:
            waiting = self._waiting[0]
            try:
                look_ahead(self._service, waiting.post)
            except Exception as error:  # noqa: BLE001 - it is the answer to this post, and nobody else's
                self._waiting.popleft()
                _tell([(waiting, error)])
                continue
            mine = waiting.post.identities()
            if taken and (waiting.post.has_faults or not identities.isdisjoint(mine)):
                break
            taken.append(self._waiting.popleft())
            if waiting.post.has_faults:
                break
            identities |= mine
            parts += len(waiting.post.group)
        return taken

    def _stored(self, taken: list[_Waiting]) -> list[tuple[_Waiting, _Outcome]]:
        """Store what was taken; the outcomes of those that are done."""
        posts = [waiting.post for waiting in taken]
        try:
            commit(self._service, posts)
        except Exception as error:  # noqa: BLE001 - it is the answer where there is but one post
            if len(taken) == 1:
                return [(taken[0], error)]
            return [outcome for waiting in taken for outcome in self._stored([waiting])]
        try:
            account_for(self._service, posts)
        except Exception as error:  # noqa: BLE001 - all of it is stored, and none of it can be answered for
            return [(waiting, error) for waiting in taken]
        self._waiting.extend(waiting for waiting in taken if not waiting.post.is_done)
        return [(waiting, waiting.post.entries) for waiting in taken if waiting.post.is_done]

    def _store_all(self, waiting: _Waiting) -> None:
        """Store all of one post here and now, however long that takes."""
        try:
            while not waiting.post.is_done:
                look_ahead(self._service, waiting.post)
                commit(self._service, [waiting.post])
                account_for(self._service, [waiting.post])
        except Exception as error:  # noqa: BLE001 - it is the answer
            _tell([(waiting, error)])
        else:
            _tell([(waiting, waiting.post.entries)])


def _tell(outcomes: list[tuple[_Waiting, _Outcome]]) -> None:
    if outcomes:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            outcomes[0][0].loop.call_soon_threadsafe(_hear, outcomes)


def _hear(outcomes: list[tuple[_Waiting, _Outcome]]) -> None:
    for waiting, outcome in outcomes:
        if waiting.outcome.done():
            continue
        if isinstance(outcome, Exception):
            waiting.outcome.set_exception(outcome)
        else:
            waiting.outcome.set_result(outcome)
