"""The measurements themselves: each runs the daemon as shipped and returns plain figures."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingestd.ledger import Ledger, queries
from ingestd.lifecycle import State
from tests.benchmarks.baselines import through_orthanc, tutorial_loop
from tests.benchmarks.files import FileSet, make_backlog, make_ct, make_multiframe, make_one, make_small
from tests.benchmarks.memory import PeakMemory
from tests.benchmarks.sink import Sink
from tests.ports import own_port
from tests.running import PROGRAM, Daemon, Site, environment, remove_tree, wait_until

SETTLE_SECONDS = QUIET_SECONDS = 0.1
# Everything else is what a new installation has.
SETTINGS = {
    "inboxes": [{"path": "./drop", "settle": "100ms"}],
    "batch": {"quiet_period": "100ms", "max_wait": "60s"},
    "retry": {"base": "5s", "cap": "15m"},
    # The null sink keeps nothing that could be compared, and the way to STORED is what is measured.
    "reconcile": {"interval": "10s", "lag": "60s", "grace": "15m", "absence_wait": "10s", "verify": "presence"},
    "shutdown_grace": "30s",
}
ARRIVED = (State.STORED, State.CONFIRMED)
LONGEST_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything is made."""

    ct_files: int = 1_000
    small_files: int = 5_000
    small_studies: int = 100
    sustained_ct_files: int = 10_000
    sustained_small_files: int = 100_000
    multiframe_bytes: int = 2_000_000_000
    backlog_files: int = 100_000
    loop_files: int = 100
    lone_files: int = 20
    growth_files: int = 100_000
    repeat: int = 3


QUICK_SIZES = Sizes(
    ct_files=200,
    small_files=1_000,
    small_studies=20,
    sustained_ct_files=500,
    sustained_small_files=3_000,
    multiframe_bytes=200_000_000,
    backlog_files=5_000,
    loop_files=40,
    lone_files=5,
    growth_files=20_000,
    repeat=1,
)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Files per second over the same files, each way; medians over the repetitions."""

    files: int
    size_bytes: int
    ingestd: float
    tutorial: float
    orthanc: float | None = None


@dataclass(frozen=True, kw_only=True)
class Second:
    """Files per second to one destination and to two, taken in turn: medians, and the median of each turn's share."""

    one: float
    two: float
    kept: float


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a heavy input came to."""

    peak_bytes: int
    processes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What a great many waiting files came to."""

    admission: Peak
    delivery: Peak
    ready_seconds: float
    status_seconds: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Lone files: seconds from the drop to STORED, less settle time, quiet period and the server's own time."""

    median: float
    worst: float


class Bench:
    """Runs measurements in a folder that lies on a real disk."""

    def __init__(self, folder: Path, sizes: Sizes, *, say: Callable[[str], None], orthanc: bool) -> None:
        self._folder = folder
        self._sizes = sizes
        self._say = say
        self._orthanc = orthanc

    def ct(self) -> Rates:
        """CT images in four studies against a server that answers at once."""
        return self._rates("CT", lambda folder: make_ct(folder, files=self._sizes.ct_files))

    def small(self) -> Rates:
        """Small images in many studies against a server that answers at once."""
        return self._rates("small", self._make_small)

    def slow_server(self) -> tuple[Rates, Rates]:
        """Small images and CT images against a server that takes 50 ms to answer; the loop takes a sample of them."""
        found = []
        for name, make in (("small", self._make_small), ("CT", self._make_ct)):
            with Sink(delay_ms=50) as sink:
                seconds = [self._through_ingestd(make, sink) for _ in range(self._sizes.repeat)]
                files = make(self._fresh("loop"))
                sample = files.files[: self._sizes.loop_files]
                loop = tutorial_loop(sample, sink)
            rates = Rates(
                files=len(files),
                size_bytes=files.size_bytes,
                ingestd=len(files) / statistics.median(seconds),
                tutorial=len(sample) / loop,
            )
            self._say(f"{name}, 50 ms: ingestd {rates.ingestd:.0f}/s, loop {rates.tutorial:.1f}/s")
            found.append(rates)
        return found[0], found[1]

    def second_ct(self) -> Second:
        """What a second destination leaves of the rate of CT images."""
        return self._second("CT", self._make_ct)

    def second_small(self) -> Second:
        """What a second destination leaves of the rate of small images."""
        return self._second("small", self._make_small)

    def multiframe(self) -> Peak:
        """One huge file."""
        with Sink() as sink, self._daemon(sink.url) as daemon, PeakMemory(daemon.pid) as memory:
            files = make_multiframe(self._fresh("staging"), size_bytes=self._sizes.multiframe_bytes)
            seconds = self._deliver(daemon.site, files)
        peak = Peak(peak_bytes=memory.peak_bytes, processes=memory.most_processes, seconds=seconds)
        self._say(f"{files.size_bytes / 1e9:.1f} GB file: {peak.peak_bytes / 1e6:.0f} MB, {seconds:.1f} s")
        return peak

    def backlog(self) -> Backlog:
        """Fill the ledger while the server is away, start again, and deliver all of it when the server is back."""
        files = make_backlog(self._fresh("staging"), files=self._sizes.backlog_files)
        port = own_port()
        site = self._site(f"http://127.0.0.1:{port}/v2")
        with site.start() as daemon, PeakMemory(daemon.pid) as memory:
            started = time.perf_counter()
            files.folder.rename(site.drop / "in")
            with open_ledger(site) as ledger:
                waited_for(ledger, len(files), State.PENDING)
            admission_seconds = time.perf_counter() - started
            self._say(f"backlog: {len(files)} files admitted in {admission_seconds:.1f} s")
            daemon.terminate(within_seconds=60)
        admission = Peak(peak_bytes=memory.peak_bytes, processes=memory.most_processes, seconds=admission_seconds)
        status_seconds = self._command_seconds("status", "-c", str(site.config_file))
        with Sink(port=port) as sink:
            started = time.perf_counter()
            daemon = site.start(wait=False)
            with daemon, PeakMemory(daemon.pid) as memory:
                ready_seconds = daemon.wait_ready(within_seconds=120)
                with open_ledger(site) as ledger:
                    waited_for(ledger, len(files), *ARRIVED)
                delivery_seconds = time.perf_counter() - started
                daemon.terminate(within_seconds=60)
            assert sink.counts().instances == len(files), "every file was sent once"
        delivery = Peak(peak_bytes=memory.peak_bytes, processes=memory.most_processes, seconds=delivery_seconds)
        self._say(
            f"backlog: ready in {ready_seconds:.2f} s, delivered in {delivery_seconds:.1f} s, "
            f"peaks {admission.peak_bytes / 1e6:.0f} and {delivery.peak_bytes / 1e6:.0f} MB"
        )
        return Backlog(
            admission=admission, delivery=delivery, ready_seconds=ready_seconds, status_seconds=status_seconds
        )

    def lone(self) -> Latency:
        """One file at a time, the daemon idle before each."""
        seconds = []
        with Sink() as sink, self._daemon(sink.url) as daemon, open_ledger(daemon.site) as ledger:
            for number in range(self._sizes.lone_files + 1):
                before = sink.counts().seconds
                started = time.perf_counter()
                make_one(daemon.site.drop / f"lone{number:03d}", number=number)
                waited_for(ledger, number + 1, *ARRIVED, every=0.002)
                taken = time.perf_counter() - started
                server = sink.counts().seconds - before
                seconds.append(taken - SETTLE_SECONDS - QUIET_SECONDS - server)
        # The first one opens connections and warms the readers up; a lone file on a running system does not.
        latency = Latency(median=statistics.median(seconds[1:]), worst=max(seconds[1:]))
        self._say(f"lone file: {latency.median * 1e3:.0f} ms median, {latency.worst * 1e3:.0f} ms worst")
        return latency

    def help_seconds(self) -> float:
        """``ingestd --help``, median of several starts."""
        return self._command_seconds("--help")

    def _rates(self, name: str, make: Callable[[Path], FileSet]) -> Rates:
        ours: list[float] = []
        orthanc: list[float] = []
        tutorial: list[float] = []
        for _ in range(self._sizes.repeat):
            with Sink() as sink:
                files = make(self._fresh("baseline"))
                if self._orthanc:
                    os.sync()
                    orthanc.append(len(files) / through_orthanc(files, sink, self._folder))
                os.sync()
                tutorial.append(len(files) / tutorial_loop(files.files, sink))
                remove_tree(files.folder)
                ours.append(len(files) / self._through_ingestd(make, sink))
            said = f"orthanc {orthanc[-1]:.0f}/s, " if orthanc else ""
            self._say(f"{name}: ingestd {ours[-1]:.0f}/s, {said}tutorial {tutorial[-1]:.0f}/s")
        return Rates(
            files=len(files),
            size_bytes=files.size_bytes,
            ingestd=statistics.median(ours),
            orthanc=statistics.median(orthanc) if orthanc else None,
            tutorial=statistics.median(tutorial),
        )

    def _second(self, name: str, make: Callable[[Path], FileSet]) -> Second:
        rates: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(self._sizes.repeat):
            # Each goes first in every other turn: a machine that becomes slower is slower for both.
            for destinations in (1, 2) if turn % 2 == 0 else (2, 1):
                with ExitStack() as running:
                    sinks = [running.enter_context(Sink()) for _ in range(destinations)]
                    seconds = self._through_ingestd(make, *sinks)
                    (files,) = {sink.counts().instances for sink in sinks}  # each got every file, once
                rates[destinations].append(files / seconds)
            self._say(f"{name}: one destination {rates[1][-1]:.0f}/s, two {rates[2][-1]:.0f}/s")
        kept = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
        return Second(one=statistics.median(rates[1]), two=statistics.median(rates[2]), kept=kept)

    def _through_ingestd(self, make: Callable[[Path], FileSet], *sinks: Sink) -> float:
        """Seconds from the files' appearance in the drop folder, all at once, to the last STORED at the last sink."""
        with self._daemon(*(sink.url for sink in sinks)) as daemon:
            return self._deliver(daemon.site, make(self._fresh("staging")), destinations=len(sinks))

    def _deliver(self, site: Site, files: FileSet, *, destinations: int = 1) -> float:
        # What was written a moment ago is the maker's work, not that of whoever takes it from here.
        os.sync()
        with open_ledger(site) as ledger:
            started = time.perf_counter()
            files.folder.rename(site.drop / "in")
            waited_for(ledger, destinations * len(files), *ARRIVED)
            return time.perf_counter() - started

    @contextmanager
    def _daemon(self, *urls: str) -> Iterator[Daemon]:
        with self._site(*urls).start() as daemon:
            yield daemon
            daemon.terminate(within_seconds=60)

    def _site(self, *urls: str) -> Site:
        servers = {f"sink{number}": {"url": url, "auth": "none"} for number, url in enumerate(urls)}
        several = {"destinations": servers} if len(urls) > 1 else {}
        return Site(self._fresh("site"), urls[0], **SETTINGS, **several)

    def _make_small(self, folder: Path) -> FileSet:
        return make_small(folder, files=self._sizes.small_files, studies=self._sizes.small_studies)

    def _make_ct(self, folder: Path) -> FileSet:
        return make_ct(folder, files=self._sizes.ct_files)

    def _fresh(self, name: str) -> Path:
        folder = self._folder / name
        remove_tree(folder)
        return folder

    def _command_seconds(self, *words: str) -> float:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([*PROGRAM, *words], check=True, capture_output=True, env=environment(), cwd=self._folder)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)


@contextmanager
def open_ledger(site: Site) -> Iterator[Ledger]:
    """The ledger of a running daemon, to watch its counts."""
    wait_until(site.ledger_file.exists, what="the ledger")
    with site.ledger() as ledger:
        yield ledger


def waited_for(ledger: Ledger, rows: int, *states: State, every: float = 0.02) -> None:
    """Return when so many rows are in these states."""
    what = f"{rows} rows {' or '.join(states)}"

    def are_there() -> bool:
        counts = queries.counts(ledger)
        there = sum(counts.get(state, 0) for state in states)
        return there >= rows

    wait_until(are_there, what=what, within_seconds=LONGEST_SECONDS, every=every)
