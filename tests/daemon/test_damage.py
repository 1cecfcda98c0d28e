"""What becomes of a row whose file is damaged after it was admitted: a person is told, whatever the file is now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from ingestd.emulator import Emulator
from ingestd.ledger import Choice, Ledger, queries
from ingestd.lifecycle import State
from tests.daemon.test_promise import configure, image, running, states, turn
from tests.ledgers import raw


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def without_sop_uid(content: bytes) -> bytes:
    at = content.rindex(b"\x08\x00\x18\x00UI")
    return content[:at] + content[at + 8 + content[at + 6] :]


def as_text(content: bytes) -> bytes:
    return b"no image any more".ljust(len(content), b".")


def as_directory(content: bytes) -> bytes:
    """The File Meta of a DICOMDIR: its SOP class is Media Storage Directory Storage (PS3.10 section 8.6)."""
    return content.replace(b"1.2.840.10008.5.1.4.1.1.2\x00", b"1.2.840.10008.1.3.10\x00\x00\x00\x00\x00\x00", 1)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (without_sop_uid, "no_uids"),
        (as_text, "changed"),
        (as_directory, None),
        (lambda content: content[:600], "truncated"),
    ],
)
def test_file_damaged_after_it_was_admitted_needs_a_person(
    tmp_path: Path, server: Emulator, damage, reason: str | None
) -> None:
    """It ended as ``not_dicom``, which is clutter: nobody needed to look, exit 0, and no line in the log."""
    config = configure(tmp_path, server)
    (tmp_path / "drop" / "image").write_bytes(image())
    with structlog.testing.capture_logs() as logged, running(config) as daemon:
        daemon.gates.claims.shut("test")
        turn(daemon, lambda: states(config) == {"PENDING": 1})
        (kept,) = (tmp_path / "spool" / "files").glob("*/*/*")
        kept.write_bytes(damage(image()))
        daemon.gates.claims.open("test")
        turn(daemon, lambda: states(config) == {"DISCARDED": 1, "REJECTED": 1})

    with Ledger.open(config.ledger, read_only=True) as ledger:
        (entry,) = queries.entries(ledger, Choice(state=State.REJECTED))
        status = queries.status(ledger)
    assert reason in (None, str(entry.reason))
    assert (status.needs_person, status.clutter) == (1, 0)
    assert "inbox.rejected" in {line["event"] for line in logged}


@pytest.mark.slow
def test_bytes_written_after_confirmation_that_are_no_image_need_a_person(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        daemon.gates.removals.shut("test")
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1})
        (kept,) = (tmp_path / "spool" / "files").glob("*/*/*")
        kept.write_bytes(as_text(image()))
        daemon.gates.removals.open("test")
        daemon.stages.retention.hurry()
        turn(daemon, lambda: states(config) == {"CONFIRMED": 1, "REJECTED": 1})

    with Ledger.open(config.ledger, read_only=True) as ledger:
        status = queries.status(ledger)
    assert (status.needs_person, status.clutter) == (1, 0)


def test_file_that_its_disk_has_altered_is_not_sent(tmp_path: Path, server: Emulator) -> None:
    """One bit turned over, and no time moved with it: it was read again, sent, and CONFIRMED."""
    config = configure(tmp_path, server)
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        daemon.gates.claims.shut("test")
        turn(daemon, lambda: states(config) == {"PENDING": 1})
        (kept,) = (tmp_path / "spool" / "files").glob("*/*/*")
        was = kept.stat()
        with kept.open("r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"\x40")
        os.utime(kept, ns=(was.st_atime_ns, was.st_mtime_ns))
        # Only a disk alters bytes without the file's ctime; so the row is given the one that it has now.
        with raw(config.ledger) as connection:
            connection.execute("UPDATE file SET ctime_ns = ?", (kept.stat().st_ctime_ns,))
        daemon.gates.claims.open("test")
        turn(daemon, lambda: states(config) == {"DISCARDED": 1, "REJECTED": 1})

    with Ledger.open(config.ledger, read_only=True) as ledger:
        (entry,) = queries.entries(ledger, Choice(state=State.REJECTED))
    assert "its disk has altered them" in (entry.note or "")
