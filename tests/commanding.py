"""ingestd's commands called as a shell calls them, and a ledger with a row in every state to ask them about."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestd.cli import main
from ingestd.config import Config, load
from ingestd.inbox import Spool
from ingestd.ledger import InboxSummary, Ledger, moves, queries
from ingestd.lifecycle import (
    Arrival,
    Backoff,
    Batch,
    BatchLimits,
    BatchResult,
    Content,
    Identity,
    Outcome,
    Pause,
    PauseCause,
    Reason,
    Refusal,
    Route,
    Sameness,
    SourceStat,
    State,
)
from tests.ledgers import ON_POSTGRESQL, placed

STUDY = "1.2.826.0.1.3680043.10.1451.1"
OTHER_STUDY = "1.2.826.0.1.3680043.10.1451.2"
CONFIG = """\
inboxes:
  - path: ./drop
spool: {path: ./spool, low_water: 1MB}
destination: {url: "http://127.0.0.1:9/v2", auth: none}
ledger: sqlite:///ledger.db
"""


@dataclass(frozen=True)
class Ran:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Ran]


def command_in(folder: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """A function that runs one command line with this folder's configuration, in this process."""

    def run(*words: str) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["-c", str(folder / "config.yaml"), *words])
        said = capfd.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be another user for a while, in this process: an interpreter of root's may not be nobody's to start."""
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


class Rows:
    """A ledger in a folder, filled through its own moves."""

    def __init__(self, folder: Path, text: str = CONFIG, *, of_send: bool = False) -> None:
        (folder / "drop").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(placed(text, folder))
        self.folder = folder
        self.config: Config = load(folder / "config.yaml")
        self.inbox = self.config.inboxes[0].spool_name
        self.spool = Spool(self.config.spool.for_send if of_send else self.config.spool.path)
        self.now = datetime.now(UTC) - timedelta(minutes=10)
        self.ledger = self._opened()
        if ON_POSTGRESQL:
            # Who writes there as this host, and not beside it, is a daemon that runs.
            self.ledger.close()
            self.ledger = self._opened(beside=True)
        self._inode = 0

    def _opened(self, *, beside: bool = False) -> Ledger:
        return Ledger.open(
            self.config.ledger,
            host=self.spool.host,
            destinations=self.config.addresses,
            spool=self.spool.path,
            limits=BatchLimits(quiet_period=timedelta(0)),
            key=self.config.spool.search_key,
            beside=beside,
        )

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Have somebody work on the spool as a daemon does: it holds the lock, or is known by the ledger."""
        if ON_POSTGRESQL:
            with self._opened():
                yield
            return
        with (self.spool.path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def close(self) -> None:
        self.ledger.close()

    def at(self, name: str) -> Rows:
        """The same rows: what is claimed, proven and paused is so at this destination."""
        view = copy.copy(self)
        view.ledger = self.ledger.at(name)
        return view

    def _source(self) -> SourceStat:
        self._inode += 1
        return SourceStat(device=1, inode=self._inode, size_bytes=1000, mtime_ns=self._inode)

    def _path(self, content: bytes = b"") -> str:
        path = self.spool.path / "files" / self.inbox / f"{self._inode:032x}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path.relative_to(self.spool.path))

    def admit(
        self,
        name: str,
        *,
        study: str = STUDY,
        uid: str = "",
        content: str = "",
        patient: str = "PID",
        accession: str = "ACC",
        modality: str = "CT",
        sameness: Sameness | None = None,
        route: Route | None = None,
        priority: int = 0,
    ) -> int:
        """A file taken in: PENDING, or DUPLICATE or CONFLICT as its identity is held by equal or other content."""
        source = self._source()
        meta = bytes(300)
        dataset = (content or str(self._inode)).encode().ljust(700)
        uid = uid or f"{study}.3.{self._inode}"
        arrival = Arrival(
            candidate_id=None,
            inbox=self.inbox,
            relative_path=name,
            source=source,
            path=self._path(meta + dataset),
            in_place=False,
            source_removed=True,
            identity=Identity(study_uid=study, series_uid=f"{study}.2", sop_uid=uid),
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            content=Content(
                transfer_syntax="1.2.840.10008.1.2.1",
                digest=hashlib.sha256(dataset).hexdigest(),
                meta_digest=hashlib.sha256(meta).hexdigest(),
                dataset_offset=len(meta),
                size_bytes=1000,
            ),
            modality=modality,
            station="SCANNER1",
            patient_hash=self.ledger.search_key.hash("patient", patient),
            accession_hash=self.ledger.search_key.hash("accession", accession),
            notes=("trailing_padding",),
            route=route,
            priority=priority,
        )
        with self.ledger.transaction() as tx:
            [admitted] = moves.admit(tx, [arrival], now=self.now)
        assert admitted.number is not None
        for row in queries.rows_to_compare(self.ledger, limit=100):
            with self.ledger.transaction() as tx:
                holder_id, found = row.holder.delivery_id, sameness or Sameness.OTHER
                moves.compared(tx, row.delivery_id, holder_id=holder_id, sameness=found, now=self.now)
        return admitted.number

    def refuse(self, name: str, reason: Reason = Reason.TRUNCATED, note: str = "it ends too early") -> int:
        """A file set aside."""
        refusal = Refusal(
            candidate_id=None,
            inbox=self.inbox,
            relative_path=name,
            source=self._source(),
            path=self._path(),
            in_place=False,
            reason=reason,
            note=note,
        )
        with self.ledger.transaction() as tx:
            [delivery_id] = moves.refuse(tx, [refusal], now=self.now)
        return delivery_id

    def claim(self, study: str = STUDY) -> Batch:
        """A study's waiting files on their way."""
        with self.ledger.transaction() as tx:
            batch = moves.claim(tx, study, now=self.now + timedelta(minutes=1))
        assert batch is not None
        return batch

    def finish(self, batch: Batch, state: State, reason: Reason, **more: Any) -> None:
        """What the server answered for all of a batch."""
        outcomes = tuple(
            Outcome(delivery_id=part.delivery_id, state=state, reason=reason, note="said the server", **more)
            for part in batch.parts
        )
        at = self.now + timedelta(minutes=2)
        result = BatchResult(
            batch=batch,
            outcomes=outcomes,
            finished_at=at,
            http_status=409 if state is State.FAILED else 200,
            body_bytes_left=3000,
            seconds=1.5,
            answered=True,
        )
        with self.ledger.transaction() as tx:
            moves.finish(tx, result, now=at, backoff=Backoff(), jitter=0.0)
            moves.destination_answered(tx, now=at)

    def send(self, name: str, state: State, reason: Reason, *, study: str = OTHER_STUDY, **more: Any) -> int:
        """One file taken in, posted, and answered."""
        delivery_id = self.admit(name, study=study)
        self.finish(self.claim(study), state, reason, **more)
        return delivery_id

    def prove(self, delivery_id: int, state: State, reason: Reason) -> None:
        """What the reconciler found of a file."""
        with self.ledger.transaction() as tx:
            moves.apply(
                tx,
                [Outcome(delivery_id=delivery_id, state=state, reason=reason, note="found by asking")],
                now=self.now + timedelta(minutes=3),
                backoff=Backoff(),
                jitter=0.0,
            )

    def pause(self) -> None:
        """The server is away."""
        pause = Pause(cause=PauseCause.UNREACHABLE, note="connection refused")
        with self.ledger.transaction() as tx:
            moves.pause_destination(tx, pause, until=datetime.now(UTC) + timedelta(minutes=5), now=self.now)

    def report(self, *, oldest_at: datetime | None = None, **counts: int) -> None:
        """What the inbox looked like."""
        summary = InboxSummary(
            inbox=self.inbox,
            path=str(self.config.inboxes[0].path),
            alarm="",
            watching="events",
            counts=counts,
            oldest_at=oldest_at,
            at=self.now,
        )
        with self.ledger.transaction() as tx:
            moves.put_inbox_reports(tx, [summary], now=self.now)
