"""The reader pool: real child processes, real files, real kills."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingestd.instance import Inspection, Verdict, inspect
from ingestd.lifecycle import SourceStat
from ingestd.reader import CompareJob, InspectJob, Job, Read, ReaderLimits, ReaderPool, Readers, ReencodeJob
from ingestd.reader.protocol import ReaderAnswer, encode_answer
from ingestd.reader.reply_buffer import Reply, ReplyBuffer
from ingestd.reader.shared_progress import SharedProgress
from tests.builders import EXPLICIT, IMPLICIT, RLE, element, fresh_uid, instance_bytes, sequence, write_instance
from tests.inline_readers import InlineReaders
from tests.patience import PATIENCE


class Reading:
    """A reader pool and the results that came out of them."""

    def __init__(self, readers: ReaderPool, wake: threading.Event) -> None:
        self.readers = readers
        self._wake = wake

    def results(self, *jobs: Job) -> list[Read]:
        """Submit, wait for all, give back in the order of the jobs."""
        for job in jobs:
            self.readers.submit(job)
        found = self.collect(len(jobs))
        return sorted(found, key=lambda read: jobs.index(read.job))

    def collect(self, count: int) -> list[Read]:
        found: list[Read] = []
        give_up_at = time.monotonic() + PATIENCE
        while len(found) < count:
            assert self._wake.wait(give_up_at - time.monotonic()), f"{len(found)} of {count} came"
            self._wake.clear()
            found += self.readers.collect()
        assert len(found) == count
        return found

    def inspection(self, job: Job) -> Inspection:
        (read,) = self.results(job)
        assert read.inspection is not None
        return read.inspection


@pytest.fixture(scope="module")
def reading() -> Iterator[Reading]:
    """Two children, shared by the tests that do not hurt them."""
    wake = threading.Event()
    readers = ReaderPool(wake=wake.set)
    yield Reading(readers, wake)
    readers.close()


@pytest.fixture
def own_reading() -> Iterator[Callable[..., Reading]]:
    """Makes reader pools of a test's own."""
    made: list[ReaderPool] = []

    def make(*, processes: int = 1, limits: ReaderLimits | None = None) -> Reading:
        wake = threading.Event()
        made.append(ReaderPool(processes=processes, limits=limits, wake=wake.set))
        return Reading(made[-1], wake)

    yield make
    for readers in made:
        readers.close()


def stat_of(path: Path) -> SourceStat:
    found = path.stat()
    return SourceStat(device=found.st_dev, inode=found.st_ino, size_bytes=found.st_size, mtime_ns=found.st_mtime_ns)


def wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up_at, "it did not come to pass"
        time.sleep(0.005)


def test_child_says_what_inspect_says(reading: Reading, tmp_path: Path) -> None:
    for number, transfer_syntax in enumerate([EXPLICIT, IMPLICIT, RLE]):
        path = write_instance(tmp_path / str(number), transfer_syntax=transfer_syntax)
        fd = os.open(path, os.O_RDONLY)
        here = inspect(fd)
        os.close(fd)

        there = reading.inspection(InspectJob(key=number, path=str(path), expect=stat_of(path), durable=True))

        assert there == here


def test_many_files_come_back_each_with_its_own_result(reading: Reading, tmp_path: Path) -> None:
    jobs = []
    for number in range(300):
        path = tmp_path / str(number)
        path.write_bytes(instance_bytes(sop_uid=f"1.2.{number}"))
        jobs.append(InspectJob(key=number, path=str(path)))

    found = reading.results(*jobs)

    assert [read.inspection.sop_uid for read in found if read.inspection] == [f"1.2.{n}" for n in range(300)]
    assert reading.readers.in_flight == 0


def test_readers_without_processes_say_what_a_child_says(reading: Reading, tmp_path: Path) -> None:
    """A simulation that runs in one thread puts them in the pool's place."""
    ours, theirs = write_instance(tmp_path / "ours"), write_instance(tmp_path / "theirs")
    jobs: list[Job] = [
        InspectJob(key=1, path=str(ours), expect=stat_of(ours), durable=True),
        InspectJob(key=2, path=str(tmp_path / "missing")),
        CompareJob(key=3, ours=str(ours), theirs=str(theirs)),
    ]
    woken: list[int] = []
    inline: Readers = (readers := InlineReaders(wake=lambda: woken.append(1)))

    inline.submit_all(jobs)
    for _ in jobs:
        readers.run(-1)

    assert (inline.in_flight, len(woken)) == (3, 3)
    assert inline.collect() == reading.results(*jobs)[::-1]
    assert (inline.in_flight, inline.collect()) == (0, [])
    inline.close()


def test_no_ring_is_lost_between_jobs_that_come_one_by_one(reading: Reading, tmp_path: Path) -> None:
    """The pool also looks around by itself, every two seconds, so a lost ring would only make it slow."""
    path = str(write_instance(tmp_path / "a"))
    began = time.monotonic()

    for number in range(300):
        reading.inspection(InspectJob(key=number, path=path))

    assert time.monotonic() - began < 20


def test_in_flight_counts_until_the_result_is_collected(reading: Reading, tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a")
    reading.readers.submit(InspectJob(key=1, path=str(path)))

    assert reading.readers.in_flight == 1
    reading.collect(1)
    assert reading.readers.in_flight == 0


def test_odd_names_reach_the_child(reading: Reading, tmp_path: Path) -> None:
    for name in [b"line\nfeed", b"not \xff utf-8", "ümlaut\u202e".encode(), b"-rf", b'quote"\\']:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        write_instance(path)

        assert reading.inspection(InspectJob(key=1, path=str(path))).verdict is Verdict.WHOLE


def test_what_is_no_regular_file_is_never_read(reading: Reading, tmp_path: Path) -> None:
    target = write_instance(tmp_path / "target")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()

    for name in ("link", "dangling", "fifo", "folder", "missing", "target/below"):
        found = reading.inspection(InspectJob(key=1, path=str(tmp_path / name)))
        assert (name, found.verdict) == (name, Verdict.UNREADABLE)
        assert str(tmp_path) not in found.reason_text


def test_other_file_than_expected_has_changed(reading: Reading, tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a")
    expect = stat_of(path)
    path.write_bytes(path.read_bytes() + b"x")

    found = reading.inspection(InspectJob(key=1, path=str(path), expect=expect))

    assert (found.verdict, found.size_bytes) == (Verdict.CHANGED, expect.size_bytes + 1)


def test_file_open_for_writing_waits(reading: Reading, tmp_path: Path) -> None:
    path = write_instance(tmp_path / "a")

    with path.open("r+b"):
        (waiting,) = reading.results(InspectJob(key=1, path=str(path)))
    (closed,) = reading.results(InspectJob(key=2, path=str(path)))

    assert (waiting.waits, waiting.inspection) == ("still open for writing", None)
    assert closed.inspection is not None


def test_canonical_digests_tell_the_same_object_apart_from_another(reading: Reading, tmp_path: Path) -> None:
    code = element(0x00080100, "SH", "CODE")

    def write(name: str, *, undefined: bool = False, patient_id: str = "A", transfer_syntax: str = EXPLICIT) -> str:
        extra = b"" if transfer_syntax != EXPLICIT else sequence(0x00400275, [code], undefined=undefined)
        path = tmp_path / name
        write_instance(
            path,
            study_uid="1.2.3",
            series_uid="1.2.4",
            sop_uid="1.2.5",
            extra=extra,
            patient_id=patient_id,
            transfer_syntax=transfer_syntax,
        )
        return str(path)

    ours = write("ours")
    copies = {
        "same": write("copy"),
        "also same": write("undefined", undefined=True),
        "other": write("altered", patient_id="B"),
        "other_encoding": write("implicit", transfer_syntax=IMPLICIT),
        "also other": str(write_instance(tmp_path / "another")),
    }

    for said, theirs in copies.items():
        (read,) = reading.results(CompareJob(key=1, ours=ours, theirs=theirs))
        assert (said, read.sameness) == (said, said.removeprefix("also "))
        assert bool(read.differs) == (read.sameness != "same")
    (read,) = reading.results(CompareJob(key=1, ours=ours, theirs=copies["other"]))
    assert read.differs == "PatientID (0010,0020) differs"


def test_copy_that_is_not_whole_decides_nothing(reading: Reading, tmp_path: Path) -> None:
    ours = write_instance(tmp_path / "ours")
    theirs = tmp_path / "theirs"
    theirs.write_bytes(ours.read_bytes()[:-5])

    missing = tmp_path / "missing"
    for *paths, cut in ((ours, theirs, "theirs"), (ours, missing, ""), (theirs, ours, "ours"), (missing, ours, "")):
        (read,) = reading.results(CompareJob(key=1, ours=str(paths[0]), theirs=str(paths[1])))
        assert read.sameness is None
        assert "cannot be compared" in read.waits
        # Only of a copy that was read is something known: what it is not.
        assert bool(read.differs) == (paths[1] == theirs)
        assert read.not_whole == cut


def test_file_that_is_another_one_by_now_is_not_compared(reading: Reading, tmp_path: Path) -> None:
    ours, theirs = write_instance(tmp_path / "ours"), tmp_path / "theirs"
    theirs.write_bytes(ours.read_bytes())
    (found,) = reading.results(InspectJob(key=1, path=str(ours)))
    assert found.inspection is not None
    same, other = found.inspection.digest, "0" * 64
    former = hashlib.sha256(ours.read_bytes()[found.inspection.dataset_offset :]).hexdigest()

    for digests, lost in (
        *(((same, same), ""), ((other, same), "ours"), ((same, other), "theirs")),
        *(((former, same), ""), ((same, former), ""), ((former, ""), "")),
    ):
        job = CompareJob(key=2, ours=str(ours), theirs=str(theirs), our_digest=digests[0], their_digest=digests[1])
        (read,) = reading.results(job)
        assert (read.lost, read.sameness) == (lost, None if lost else "same")

    # Half written over: not a cut file, but another one.
    theirs.write_bytes(ours.read_bytes()[:-5])
    for paths, digests, lost in (((ours, theirs), ("", same), "theirs"), ((theirs, ours), (same, ""), "ours")):
        job = CompareJob(
            key=3, ours=str(paths[0]), theirs=str(paths[1]), our_digest=digests[0], their_digest=digests[1]
        )
        (read,) = reading.results(job)
        assert (read.lost, read.waits) == (lost, "")


def test_reencoded_file_stands_at_its_destination(reading: Reading, tmp_path: Path) -> None:
    source = write_instance(tmp_path / "source", transfer_syntax=IMPLICIT, sop_uid="1.2.3")
    destination = tmp_path / "destination"
    destination.write_bytes(b"left by a crash")
    (tmp_path / "destination.part").write_bytes(b"left by a crash")

    found = reading.inspection(ReencodeJob(key=1, path=str(source), destination=str(destination)))

    assert (found.verdict, found.transfer_syntax, found.sop_uid) == (Verdict.WHOLE, EXPLICIT, "1.2.3")
    assert found.inode == destination.stat().st_ino
    assert found.size_bytes == destination.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["destination", "source"]
    assert destination.stat().st_mode & 0o777 == 0o600


def test_file_that_cannot_be_reencoded_leaves_nothing_behind(reading: Reading, tmp_path: Path) -> None:
    source = write_instance(tmp_path / "source", transfer_syntax=RLE)

    (read,) = reading.results(ReencodeJob(key=1, path=str(source), destination=str(tmp_path / "destination")))

    assert read.refused
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_reencoding_into_a_folder_that_is_not_there_waits(reading: Reading, tmp_path: Path) -> None:
    source = write_instance(tmp_path / "source", transfer_syntax=IMPLICIT)

    (read,) = reading.results(ReencodeJob(key=1, path=str(source), destination=str(tmp_path / "no" / "such")))

    assert read.waits


def test_killed_child_costs_only_the_job_it_was_at(own_reading: Callable[..., Reading], tmp_path: Path) -> None:
    """The child is stopped inside a long job, with more in line behind it, then killed."""
    reading = own_reading(limits=ReaderLimits(ahead_bytes=1 << 40))
    small = [InspectJob(key=n, path=str(write_instance(tmp_path / str(n))), expect=None) for n in range(5)]
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(instance_bytes(rows=1, columns=1))
        file.truncate(15 << 30)
    long_job = InspectJob(key=99, path=str(large))
    for job in (small[0], long_job, *small[1:]):
        reading.readers.submit(job)
    first = reading.collect(1)
    (pid,) = reading.readers.pids
    wait_until(lambda: cpu_seconds(pid) > 0.2)

    os.kill(pid, signal.SIGKILL)

    rest = reading.collect(5)
    assert first[0].job == small[0]
    assert [read.job for read in rest if read.died] == [long_job]
    assert "signal 9" in next(read.cause for read in rest if read.died)
    assert {read.job.key for read in rest if read.inspection} == {1, 2, 3, 4}
    assert reading.readers.pids != [pid]
    assert reading.readers.is_healthy()


def test_idle_child_that_is_killed_is_replaced(own_reading: Callable[..., Reading], tmp_path: Path) -> None:
    reading = own_reading()
    path = str(write_instance(tmp_path / "a"))
    reading.results(InspectJob(key=1, path=path))
    (pid,) = reading.readers.pids

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: reading.readers.pids not in ([], [pid]))
    (read,) = reading.results(InspectJob(key=2, path=path))
    assert read.inspection is not None


def test_child_that_burns_cpu_past_its_limit_has_died(own_reading: Callable[..., Reading], tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(instance_bytes(rows=1, columns=1))
        file.truncate(15 << 30)
    reading = own_reading(limits=ReaderLimits(seconds=0.2, bytes_per_second=1 << 60))

    (read,) = reading.results(InspectJob(key=1, path=str(large)))

    assert read.died
    assert "CPU" in read.cause


def test_child_that_neither_works_nor_computes_waits(own_reading: Callable[..., Reading], tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(instance_bytes(rows=1, columns=1))
        file.truncate(15 << 30)
    reading = own_reading(limits=ReaderLimits(stall_seconds=0.5))
    job = InspectJob(key=1, path=str(large))
    reading.readers.submit(job)
    wait_until(lambda: len(reading.readers.pids) == 1 and cpu_seconds(reading.readers.pids[0]) > 0.3)

    os.kill(reading.readers.pids[0], signal.SIGSTOP)

    (read,) = reading.collect(1)
    assert (read.died, read.waits) == (False, "reading stalled")


def test_file_that_takes_more_memory_than_allowed_is_hostile(
    own_reading: Callable[..., Reading], tmp_path: Path
) -> None:
    """Twice short of memory, in a fresh child, while the host has plenty: the file's doing. A limit that lets Python
    start, but not read, stands in for a file that no limit of the walk catches.
    """
    reading = own_reading(limits=ReaderLimits(address_space_bytes=40 << 20))
    path = tmp_path / "large-meta"
    meta = element(0x00020102, "OB", bytes(12 << 20))
    content = instance_bytes()
    path.write_bytes(content[:300].replace(content[132:300], meta + content[132:300]) + content[300:])

    (read,) = reading.results(InspectJob(key=1, path=str(path)))

    assert read.inspection is not None
    assert read.inspection.verdict is Verdict.HOSTILE
    assert "memory" in read.inspection.reason_text


def test_answers_that_could_not_be_written_are_not_synced_and_closed_again(tmp_path: Path) -> None:
    """Memory may run out while answers are written, inside the very job that took it: it is answered after that."""
    progress_fd = SharedProgress.create()
    progress = SharedProgress(progress_fd)
    replies = ReplyBuffer(progress, lambda lines: None)
    descriptor = os.open(write_instance(tmp_path / "a"), os.O_RDONLY)
    replies.add(Reply(ReaderAnswer(serial=1, waits="later"), descriptor))
    replies.add(Reply(ReaderAnswer(serial=2, waits=b"what cannot be written")))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        replies.flush()
    other = os.open(tmp_path / "a", os.O_RDONLY)

    with pytest.raises(TypeError):
        replies.flush()

    assert other == descriptor
    os.close(other)  # raises OSError if it was closed
    progress.close()
    os.close(progress_fd)


def test_children_run_within_their_limits(reading: Reading) -> None:
    wait_until(lambda: len(reading.readers.pids) == 2)
    for pid in reading.readers.pids:
        assert resource.prlimit(pid, resource.RLIMIT_AS) == (512 << 20, 512 << 20)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] <= 64
        assert os.getsid(pid) == pid


def test_children_never_import_pydicom_for_plain_files(reading: Reading, tmp_path: Path) -> None:
    reading.results(InspectJob(key=1, path=str(write_instance(tmp_path / "a"))))

    for pid in reading.readers.pids:
        assert "numpy" not in Path(f"/proc/{pid}/maps").read_text()


def test_parent_imports_neither_pydicom_nor_numpy() -> None:
    code = (
        "import sys; from ingestd.reader import ReaderPool, InspectJob\n"
        "readers = ReaderPool(wake=lambda: None); readers.close()\n"
        "print([name for name in ('pydicom', 'numpy') if name in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())

    assert said.stdout.strip() == "[]"


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Even in the middle of a job that would go on for long."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(instance_bytes(rows=1, columns=1))
        file.truncate(15 << 30)
    code = (
        "import sys, time; from ingestd.reader import ReaderPool, InspectJob\n"
        "readers = ReaderPool(wake=lambda: None)\n"
        "readers.submit(InspectJob(key=1, path=sys.argv[1]))\n"
        "while len(readers.pids) < 2: time.sleep(0.01)\n"
        "print(*readers.pids, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(large)], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    wait_until(lambda: any(cpu_seconds(pid) > 0.2 for pid in pids))

    parent.kill()
    parent.wait()
    parent.stdout.close()

    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_children_do_not_get_the_secrets_in_the_environment(
    own_reading: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "canary")
    reading = own_reading()
    wait_until(lambda: len(reading.readers.pids) == 1)

    assert b"canary" not in Path(f"/proc/{reading.readers.pids[0]}/environ").read_bytes()


def is_running(pid: int) -> bool:
    try:
        return stat_words(pid)[0] not in {b"Z", b"X"}
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """CPU time of a running process in user mode."""
    return int(stat_words(pid)[11]) / os.sysconf("SC_CLK_TCK")


def stat_words(pid: int) -> list[bytes]:
    """/proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_close_ends_the_children_and_is_final(tmp_path: Path) -> None:
    readers = ReaderPool(wake=lambda: None)
    wait_until(lambda: len(readers.pids) == 2)
    pids = readers.pids
    before = open_files()

    readers.close()

    assert not any(is_running(pid) for pid in pids)
    assert not readers.is_healthy()
    assert open_files() < before
    with pytest.raises(RuntimeError):
        readers.submit(InspectJob(key=1, path=str(tmp_path)))


@pytest.mark.parametrize("serial", [2, 17], ids=["another file's", "nobody's"])
def test_answer_about_another_file_is_never_taken_for_the_one_in_line(
    own_reading: Callable[..., Reading], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serial: int
) -> None:
    """The first child speaks out of turn; those after it are real ones."""
    spoke = tmp_path / "spoke"
    with write_instance(tmp_path / "other").open("rb") as opened:
        other = inspect(opened.fileno())
    child = tmp_path / "child"
    child.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"if os.path.exists({str(spoke)!r}):\n"
        f"    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
        "sys.stdin.readline(), sys.stdin.readline()\n"  # the limits, the first job
        f"open({str(spoke)!r}, 'w').close()\n"
        f"os.write(1, {encode_answer(ReaderAnswer(serial=serial, inspection=other))!r})\n"
        "sys.stdin.read()\n"
    )
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    uids = [fresh_uid(3), fresh_uid(3)]
    jobs = [InspectJob(key=key, path=str(write_instance(tmp_path / uid, sop_uid=uid))) for key, uid in enumerate(uids)]

    found = own_reading().results(*jobs)

    assert spoke.exists()
    assert [read.inspection and read.inspection.sop_uid for read in found] == uids


def test_children_that_never_start_are_told_and_harm_nothing(
    own_reading: Callable[..., Reading], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    reading = own_reading()
    reading.readers.submit(InspectJob(key=1, path=str(write_instance(tmp_path / "a"))))

    wait_until(lambda: not reading.readers.is_healthy())
    assert reading.readers.in_flight == 1

    monkeypatch.undo()
    (read,) = reading.collect(1)
    assert read.inspection is not None
    assert reading.readers.is_healthy()
