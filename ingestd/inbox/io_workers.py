"""Who does the looking: the caller's own thread, or one thread per remote mount.

A network share that does not answer holds whoever touches it in the kernel, where nothing can free them. So each
remote inbox has a thread that alone touches it; a local disk is looked at directly, which costs no switch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from ingestd.clocks import boottime


class IoWorkers:
    """Runs one job at a time and hands its result to what was to be done next."""

    def __init__(self, *, apart: bool, wake: Callable[[], object], name: str) -> None:
        self._apart = apart
        self._wake = wake
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._then: Callable[[Any], None] | None = None
        self._thread: threading.Thread | None = None
        self._began = 0.0

    @property
    def is_apart(self) -> bool:
        """Whether jobs run in a thread of their own."""
        return self._apart

    @property
    def busy_seconds(self) -> float:
        """For how long the job at hand has been running; 0 when there is none."""
        return boottime() - self._began if self._then is not None else 0.0

    @property
    def are_alive(self) -> bool:
        """Whether a job that was started is being worked on, however long it takes."""
        return self._thread is None or self._thread.is_alive()

    def start(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Run ``job``; ``then`` gets its result in a later ``finish``. What the job raises, ``finish`` raises."""
        assert self._then is None, "one job at a time"
        self._then = then
        self._began = boottime()
        if not self._apart:
            self._run(job)
            return
        self._jobs.put(job)
        self._have_thread()

    def _have_thread(self) -> None:
        """Start the thread; where the system has none to give, the job waits for the next look, as for a share."""
        if self._apart and self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return
            self._thread = thread

    def finish(self) -> bool:
        """Pass on the result, if it is there; True when no job is running."""
        if self._then is None:
            return True
        self._have_thread()
        try:
            result, error = self._results.get_nowait()
        except queue.Empty:
            return False
        then, self._then = self._then, None
        if error is not None:
            raise error
        then(result)
        return True

    def close(self) -> None:
        """End the thread after its job; one that hangs is left to the end of the process."""
        if self._thread is not None:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run(job)
            self._wake()

    def _run(self, job: Callable[[], Any]) -> None:
        try:
            self._results.put((job(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            self._results.put((None, error))
