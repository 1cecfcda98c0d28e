"""What a user would do instead of ingestd, as fast as it can honestly be done.

``through_orthanc``: a watch folder's files posted to an Orthanc by parallel clients, which forwards each study by
STOW to the same sink as soon as the study is complete. ``tutorial_loop``: ``plain_client`` here.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.files import FileSet
from tests.benchmarks.plain_client import post_all
from tests.benchmarks.sink import Sink
from tests.orthanc import Orthanc

RECEIVING_CLIENTS = 4
FORWARDING_JOBS = 4


def through_orthanc(files: FileSet, sink: Sink, folder: Path) -> float:
    """Seconds from the first file posted to Orthanc until the sink has all of them."""
    before = sink.counts().instances
    settings = {"ConcurrentJobs": FORWARDING_JOBS, "JobsHistorySize": len(files.studies) + 1}
    with Orthanc(folder=folder, forward_to=sink.url, settings=settings) as orthanc:
        started = time.perf_counter()
        relay = _Relay(files, orthanc)
        relay.run()
        seconds = time.perf_counter() - started
    arrived = sink.counts().instances - before
    if arrived != len(files):
        raise RuntimeError(f"Orthanc forwarded {arrived} of {len(files)} instances")
    return seconds


def tutorial_loop(paths: Sequence[Path], sink: Sink) -> float:
    """Seconds for the tutorial's loop: one session, one file, one multipart POST at a time."""
    before = sink.counts().instances
    started = time.perf_counter()
    post_all(sink.url, paths)
    seconds = time.perf_counter() - started
    arrived = sink.counts().instances - before
    if arrived != len(paths):
        raise RuntimeError(f"the tutorial's loop stored {arrived} of {len(paths)} instances")
    return seconds


class _Relay:
    """Parallel posts to Orthanc, study by study; each study that is complete is queued for forwarding at once."""

    def __init__(self, files: FileSet, orthanc: Orthanc) -> None:
        self._orthanc = orthanc
        self._posts: queue.SimpleQueue[tuple[int, Path]] = queue.SimpleQueue()
        self._missing = [len(study) for study in files.studies]
        self._lock = threading.Lock()
        self._jobs: list[str] = []
        self._failures: list[Exception] = []
        for number, study in enumerate(files.studies):
            for path in study:
                self._posts.put((number, path))

    def run(self) -> None:
        clients = [threading.Thread(target=self._receive) for _ in range(RECEIVING_CLIENTS)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        if self._failures:
            raise self._failures[0]
        for job in self._jobs:
            self._orthanc.wait_for_job(job)

    def _receive(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._orthanc.port)
        try:
            while not self._failures:
                self._post(connection, *self._posts.get_nowait())
        except queue.Empty:
            pass
        except Exception as error:  # noqa: BLE001 - raised again by run, which is what waits for this thread
            self._failures.append(error)
        finally:
            connection.close()

    def _post(self, connection: http.client.HTTPConnection, number: int, path: Path) -> None:
        connection.request("POST", "/instances", body=path.read_bytes(), headers={"Content-Type": "application/dicom"})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        if said.get("Status") != "Success":
            raise RuntimeError(f"Orthanc answered {answer.status}, {said.get('Status')}")
        with self._lock:
            self._missing[number] -= 1
            complete = not self._missing[number]
        if complete:
            self._jobs.append(self._orthanc.forward(said["ParentStudy"]))
