"""Rows whose digests are SHA-256, as all were once: their files are held against those, and keep them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.config import Config, load
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, queries
from ingestd.lifecycle import Reason, State
from tests.daemon.test_promise import configure, image, run, running, states, turn
from tests.ledgers import agree_anew, raw


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def make_former(config: Config, content: bytes) -> None:
    """Give all rows the digests that an earlier ingestd would have written of this file."""
    with raw(config.ledger) as connection:
        (offset,) = connection.execute("SELECT DISTINCT dataset_offset FROM file").fetchone()
        digests = hashlib.sha256(content[:offset]).digest(), hashlib.sha256(content[offset:]).digest()
        connection.execute("UPDATE file SET meta_digest = ?, digest = ?, sha256 = NULL", digests)


def digests(config: Config) -> set[int]:
    """How many digits the digests have that rows hold: 64 are SHA-256."""
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return {len(entry.content.digest) for entry in queries.entries(ledger) if entry.content}


def reasons(config: Config) -> set[str]:
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return {str(entry.reason) for entry in queries.entries(ledger) if entry.state is State.DUPLICATE}


def test_file_that_waits_is_sent_and_its_copy_compared(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server, verify="content")
    server.faults.add("unavailable")
    (tmp_path / "drop" / "image").write_bytes(image())
    with running(config) as daemon:
        turn(daemon, lambda: states(config) == {"PENDING": 1})
    make_former(config, image())
    server.faults.clear()

    assert run(config).done

    assert states(config) == {"CONFIRMED": 1}
    assert digests(config) == {64}
    with Ledger.open(config.ledger, read_only=True) as ledger:
        (entry,) = queries.entries(ledger)
        assert entry.compared


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("pixel, became", [(0, "DUPLICATE"), (1, "CONFLICT")])
def test_new_drop_is_compared_with_such_a_holder(
    kept: bool, pixel: int, became: str, tmp_path: Path, server: Emulator
) -> None:
    """Their digests say nothing of each other, which is no reason to call them different."""
    config = configure(tmp_path, server, retain="24h" if kept else "0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    make_former(config, image())
    (tmp_path / "drop" / "again").write_bytes(image(first_pixel=pixel))

    assert run(config).done

    assert states(config) == {"CONFIRMED": 1, became: 1}
    assert digests(config) == {64, 68}
    assert reasons(config) <= {Reason.SAME_CONTENT}


def test_kept_file_whose_ctime_moved_is_read_and_goes(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server)
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    make_former(config, image())
    (kept,) = (path for path in (tmp_path / "spool" / "files").rglob("*") if path.is_file())
    kept.chmod(0o600)
    config.file.write_text(config.file.read_text().replace("retain: 24h", "retain: 0s"))
    agree_anew(tmp_path)

    with running(load(config.file)) as daemon:
        turn(daemon, lambda: daemon.stages.retention.hurry() or not kept.exists())

    assert not [path for path in (tmp_path / "spool" / "files").rglob("*") if path.is_file()]


def test_touched_file_in_place_is_what_it_was(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server, take="in_place")
    dropped = tmp_path / "drop" / "image"
    dropped.write_bytes(image())
    run(config)
    make_former(config, image())
    was = dropped.stat()
    dropped.unlink()
    dropped.write_bytes(image())
    os.utime(dropped, ns=(was.st_atime_ns, was.st_mtime_ns))

    assert run(config).done

    assert states(config) == {"CONFIRMED": 1}
