"""Measure the embedded server beside Orthanc: ``python -m tests.benchmarks.bench_emulator``.

    --instances N    stored in the search and feed part (default 100,000)
    --without-many   leave that part out; it takes some minutes
    --only-posts     nothing but instances posted one by one
    --rounds N       turns of each server in that part (default 7)

Both servers get the same posts from the same client: 500 KB instances and small ones in posts of 50 over two
connections, and instances of 4 KB and 500 KB one by one from one client and from eight. What is posted one by one goes
to both servers in turns, and the ratio is the median of the turns' ratios, so that a machine that others use does not
decide it. The embedded server runs as shipped, in a process of its own, fsync on. The working folder must lie on a
disk. The goals: at least Orthanc's rate, small files 600/s, an indexed search under 50 ms, a page of 200 feed entries
under 20 ms at any offset, a start in under 1 s.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import socket
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
CLIENTS = (1, 8)
# A 16-bit picture's side and how many such instances one turn posts.
ONE_BY_ONE = {"4 KB": (40, 240), "500 KB": (500, 96)}
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
    }
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
            print(f"{server:10} {name:22} {len(posts) * 50 / seconds:7.0f}/s   peak about {memory} MB", flush=True)


def one_by_one(rounds: int) -> None:
    """Post instances one by one to both servers in turns and print the rates and their ratio."""
    if reason := why_no_orthanc():
        print(f"one by one: {reason}")
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name, ours(Path(name)) as mine, theirs(Path(name)) as orthanc:
        for size, (side, count) in ONE_BY_ONE.items():
            for clients in CLIENTS:
                rates: list[tuple[float, float]] = []
                for turn in range(rounds + 1):
                    pair = [0.0, 0.0]
                    for which in (0, 1) if turn % 2 else (1, 0):
                        port, path, _ = (mine, orthanc)[which]
                        pair[which] = count / _post_raw(port, path, bodies(count, 1, side=side), clients=clients)
                    rates.append((pair[0], pair[1]))
                rates = rates[1:]  # the first turn opens files and fills caches
                ratios = [own / other for own, other in rates]
                print(
                    f"one by one {size:>6}, {clients} client{'s' * (clients > 1):1}"
                    f"  emulator {statistics.median(own for own, _ in rates):6.0f}/s"
                    f"  Orthanc {statistics.median(other for _, other in rates):6.0f}/s"
                    f"  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )


def _post_raw(port: int, path: str, posts: list[bytes], *, clients: int) -> float:
    """Seconds for these posts over so many connections, from a client that takes as little of the processor as can be.

    ``http.client`` spends as long on a post as the servers do, and by eight threads it is what is measured.
    """
    head = "\r\n".join([f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *(f"{k}: {v}" for k, v in HEADERS.items())])
    waiting = [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for body in posts]
    refused: list[bytes] = []

    def send(connection: socket.socket) -> None:
        while not refused:
            try:
                connection.sendall(waiting.pop())
            except IndexError:
                return
            answer = connection.recv(65536)
            while not _is_whole(answer):
                more = connection.recv(65536)
                answer += more
                if not more:
                    break
            if not answer.startswith(b"HTTP/1.1 200"):
                refused.append(answer)

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(clients)]
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begun
    if refused:
        raise SystemExit(f"a post was refused: {refused[0]!r}")
    return seconds


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return bool(end and length and len(body) >= int(length[1]))


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
    parser.add_argument("--only-posts", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if given.only_posts:
        one_by_one(given.rounds)
        return
    start()
    stores(given.stores)
    one_by_one(given.rounds)
    if not given.without_many:
        many(given.instances)


if __name__ == "__main__":
    main()
