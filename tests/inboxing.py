"""What the tests of the inbox room share: a spool, inboxes, and a caller that drives them as the daemon would."""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Self

from ingestd.clocks import boottime
from ingestd.inbox import (
    Brought,
    Candidate,
    Expect,
    Inboxes,
    InboxPolicy,
    InboxReport,
    Look,
    NotTaken,
    Spool,
    Taken,
    new_name,
)
from ingestd.lifecycle import SourceStat
from tests.patience import PATIENCE


def source_of(path: Path) -> SourceStat:
    found = path.lstat()
    return SourceStat(device=found.st_dev, inode=found.st_ino, size_bytes=found.st_size, mtime_ns=found.st_mtime_ns)


def expect_of(path: str | Path, *, offset: int = 0) -> Expect:
    path = Path(path)
    content = path.read_bytes()
    return Expect(
        source=source_of(path),
        digest=hashlib.sha256(content[offset:]).hexdigest(),
        meta_digest=hashlib.sha256(content[:offset]).hexdigest(),
        dataset_offset=offset,
    )


def candidate_of(root: Path, relative: str, *, inbox: str = "a") -> Candidate:
    return Candidate(inbox=inbox, relative_path=relative, path=str(root / relative), source=source_of(root / relative))


def tree(folder: Path) -> set[str]:
    """Every file below a folder, by its relative path."""
    return {os.path.relpath(f"{top}/{name}", folder) for top, _folders, names in os.walk(folder) for name in names}


@contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where making ten thousand files takes no time; ``otherwise`` where there is none."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield otherwise
        return
    folder = shared / f"ingestd-test-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def scan_now(inboxes: Inboxes) -> None:
    """Have every inbox scanned in full at once."""
    for folder in inboxes._folders.values():
        folder.scans.want_at_once()


class Desk:
    """One spool and its inboxes on a clock that only moves when told (``pass_time``) or on the real one."""

    def __init__(self, base: Path, *policies: InboxPolicy, real_clock: bool = False, **options: object) -> None:
        self.tokens: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.spool = Spool(base / "spool")
        for policy in policies:
            policy.path.mkdir(parents=True, exist_ok=True)
        self.inboxes = Inboxes(policies, spool=self.spool.path, wake=lambda: self.tokens.put(1), **options)
        self.ahead = 0.0
        self.real_clock = real_clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.inboxes.close()

    @property
    def now(self) -> float:
        return boottime() + self.ahead

    def pass_time(self, seconds: float) -> None:
        self.ahead += seconds

    def report(self, name: str = "a") -> InboxReport:
        return next(report for report in self.inboxes.reports() if report.inbox == name)

    def look(self, room: int = 1_000) -> Look:
        return self.inboxes.look(now=self.now, room=room)

    def look_until(
        self,
        condition: Callable[[Sequence[Candidate]], object],
        *,
        limit: float = PATIENCE,
        room: int = 1_000,
        known: Callable[[Candidate], bool] = lambda _: False,
        on_ready: Callable[[Candidate], object] = lambda _: None,
    ) -> list[Candidate]:
        """Look again and again, as the daemon does, until the condition on what came is met."""
        came: list[Candidate] = []
        end = time.monotonic() + limit
        while time.monotonic() < end:
            while not self.tokens.empty():
                self.tokens.get()
            seen = self.look(room)
            if seen.asked:
                self.inboxes.answer_known(seen.asked, {one for one in seen.asked if known(one)})
            for candidate in seen.ready:
                came.append(candidate)
                on_ready(candidate)
            if condition(came):
                return came
            if not seen.ready and not seen.asked:
                wait = 0.1 if seen.next_at is None else min(0.1, seen.next_at - self.now)
                if wait > 0:
                    try:
                        self.tokens.get(timeout=wait)
                    except queue.Empty:
                        pass
        raise AssertionError(f"not within {limit} s: {len(came)} came; {self.inboxes.reports()}")

    def scan_again(self, known: Callable[[Candidate], bool] = lambda _: False) -> None:
        """Have every inbox scanned in full, and the ledger's answers given."""
        scan_now(self.inboxes)
        scans = [report.scans for report in self.inboxes.reports()]

        def are_scanned(_came: object) -> bool:
            pairs = zip(self.inboxes.reports(), scans, strict=True)
            return all(report.scans > before or report.alarm for report, before in pairs)

        self.look_until(are_scanned, room=0, known=known)
        while asked := self.look(0).asked:
            self.inboxes.answer_known(asked, {one for one in asked if known(one)})

    def settle(self, seconds: float = 2.0, known: Callable[[Candidate], bool] = lambda _: False) -> None:
        """See all that is there, then let the settle time pass."""
        self.scan_again(known)
        self.pass_time(seconds)

    def ready_now(self, room: int = 1_000) -> list[Candidate]:
        """What is handed out without time passing."""
        came: list[Candidate] = []
        for _ in range(200):
            seen = self.look(room - len(came))
            if seen.asked:
                self.inboxes.answer_known(seen.asked, set())
            came += seen.ready
            if not seen.ready and not seen.asked and (seen.next_at is None or seen.next_at > self.now):
                break
        return came

    def take(self, candidates: Sequence[Candidate]) -> list[Taken | NotTaken]:
        return take_in(self.spool, [(one, expect_of(one.path)) for one in candidates])


def policy(base: Path, name: str = "a", **options: object) -> InboxPolicy:
    options.setdefault("settle", timedelta(seconds=2))
    options.setdefault("path", base / f"drop-{name}")
    return InboxPolicy(name=name, **options)


def take_in(spool: Spool, items: Sequence[tuple[Candidate, Expect]]) -> list[Brought]:
    """Bring files into the spool, under names that nobody asks about."""
    return spool.take_in([(*item, new_name()) for item in items])


def set_aside(spool: Spool, items: Sequence[tuple[Candidate, Expect]]) -> list[Brought]:
    """Set files aside, likewise."""
    return spool.set_aside([(*item, new_name()) for item in items])
