"""Measure the embedded server beside Orthanc: ``python -m tests.benchmarks.bench_emulator``.

    --instances N    stored in the search and feed part (default 100,000)
    --without-many   leave that part out; it takes some minutes

Both servers get the same posts from the same client: 500 KB instances in posts of 50, small ones in posts of 50 and one
by one, over two connections. The embedded server runs as shipped, in a process of its own, fsync on. The working folder
must lie on a disk. The goals: at least Orthanc's rate, small files 600/s, an indexed search under 50 ms, a page of 200
feed entries under 20 ms at any offset, a start in under 1 s.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ingestd.emulator import Emulator
from tests.builders import fresh_uid, instance_bytes
from tests.emulating import EmulatorProcess
from tests.emulator_peer import multipart, scan
from tests.orthanc import Orthanc, why_no_orthanc

CONNECTIONS = 2
RELATED = 'multipart/related; type="application/dicom"; boundary=a-boundary-of-the-tests'
HEADERS = {"Content-Type": RELATED, "Accept": "application/dicom+json"}


def bodies(count: int, per_post: int, *, side: int) -> list[bytes]:
    """Posts of instances of one study; ``side`` is the width and height of a 16-bit picture."""
    study, series = fresh_uid(), fresh_uid()
    return [
        multipart(
            [instance_bytes(rows=side, columns=side, study_uid=study, series_uid=series) for _ in range(per_post)]
        )
        for _ in range(0, count, per_post)
    ]


def post_all(port: int, path: str, posts: list[bytes]) -> float:
    """Send every post over a few connections; how many seconds it took."""
    waiting = list(posts)
    lock = threading.Lock()
    refused: list[str] = []

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                if not waiting or refused:
                    break
                body = waiting.pop()
            connection.request("POST", path, body, HEADERS)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                refused.append(f"{answer.status}: {content[:200]!r}")
        connection.close()

    begun = time.monotonic()
    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if refused:
        raise SystemExit(f"a post was refused: {refused[0]}")
    return time.monotonic() - begun


def get_seconds(port: int, path: str, *, times: int = 15) -> float:
    """The median time of a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    measured = []
    for _ in range(times):
        begun = time.monotonic()
        connection.request("GET", path, headers={"Accept": "application/dicom+json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 204), answer.status
        measured.append(time.monotonic() - begun)
    connection.close()
    return statistics.median(measured)


@contextmanager
def ours(folder: Path) -> Iterator[tuple[int, str, int]]:
    """The embedded server: port, path to post to, process id."""
    with EmulatorProcess(folder / "emulator") as server:
        assert server._process is not None, "it has started"
        yield server.port, "/v2/studies", server._process.pid


@contextmanager
def theirs(folder: Path) -> Iterator[tuple[int, str, int]]:
    """Orthanc, the same."""
    with Orthanc(folder=folder) as server:
        yield server.port, "/dicom-web/studies", server.pid


def stores(count: int) -> None:
    """Store the same posts in both servers and print the rates."""
    kinds = {
        "500 KB, posts of 50": bodies(count, 50, side=500),
        "small, posts of 50": bodies(count * 2, 50, side=16),
        "small, one by one": bodies(count, 1, side=16),
    }
    counts = {name: len(posts) * (1 if "one by one" in name else 50) for name, posts in kinds.items()}
    servers: dict[str, Callable[[Path], object]] = {"emulator": ours}
    if why_no_orthanc():
        print(f"no Orthanc: {why_no_orthanc()}")
    else:
        servers["Orthanc"] = theirs
    for server, start in servers.items():
        for name, posts in kinds.items():
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, start(Path(folder)) as (port, path, pid):  # type: ignore[attr-defined]
                seconds = post_all(port, path, posts)
                memory = psutil.Process(pid).memory_info().rss >> 20
            print(f"{server:10} {name:22} {counts[name] / seconds:7.0f}/s   peak about {memory} MB", flush=True)


def many(instances: int) -> None:
    """Fill a server with small instances, then search and read the feed."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, ours(Path(folder)) as (port, path, _):
        stored = 0
        begun = time.monotonic()
        while stored < instances:
            posts = []
            for number in range(20):
                study, series = fresh_uid(), fresh_uid()
                changes = {0x00100020: ("LO", f"P{stored + number}"), 0x00100010: ("PN", f"Name{stored + number}^A")}
                posts.append(multipart([scan(changes, study=study, series=series) for _ in range(50)]))
            post_all(port, path, posts)
            stored += 1000
        rate = stored / (time.monotonic() - begun)
        print(f"emulator   {stored} instances in {stored // 50} studies stored ({rate:.0f}/s with making them)")
        middle = stored // 2000 * 1000 + 7
        for name, query in {
            "studies by PatientID": f"/v2/studies?PatientID=P{middle}",
            "studies by PatientName": f"/v2/studies?PatientName=name{middle}^a",
            "studies by date, 100 of all": "/v2/studies?StudyDate=20260101-20260103",
            "fuzzy PatientName": f"/v2/studies?PatientName=name{middle}&fuzzymatching=true",
            "instances by PatientID": f"/v2/instances?PatientID=P{middle}",
            "feed, 200 at 0": "/v2/changefeed?limit=200&includeMetadata=false",
            "feed, 200 in the middle": f"/v2/changefeed?limit=200&includeMetadata=false&offset={stored // 2}",
            "feed, the last 200": f"/v2/changefeed?limit=200&includeMetadata=false&offset={stored - 200}",
            "feed, 200 with metadata": f"/v2/changefeed?limit=200&offset={stored - 200}",
            "feed v1, the last 100": f"/v1/changefeed?limit=100&includeMetadata=false&offset={stored - 100}",
        }.items():
            print(f"emulator   {name:28} {get_seconds(port, query) * 1000:7.1f} ms", flush=True)


def start() -> None:
    """Print how long a start in this process takes."""
    measured = []
    for _ in range(5):
        begun = time.monotonic()
        with Emulator():
            measured.append(time.monotonic() - begun)
    print(f"emulator   start                        {statistics.median(measured) * 1000:7.0f} ms")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--without-many", action="store_true")
    parser.add_argument("--stores", type=int, default=1000, help="instances in the store part")
    given = parser.parse_args()
    start()
    stores(given.stores)
    if not given.without_many:
        many(given.instances)


if __name__ == "__main__":
    main()
