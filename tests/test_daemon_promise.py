"""What once broke the promise between the rooms: runs of the whole line in this process, on the embedded server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.config import Config, load
from ingestd.daemon import OnceResult, once_policies, run_once
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger
from tests.builders import instance_bytes
from tests.emulating import delete

IDENTITY = ("1.2.3", "1.2.3.4", "1.2.3.4.5")


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def image(*, first_pixel: int = 0) -> bytes:
    """One object; with other pixels it is the same identity, altered."""
    pixels = bytes([first_pixel]) + bytes(range(1, 128)) * 4 + bytes(3)
    study_uid, series_uid, sop_uid = IDENTITY
    return instance_bytes(
        study_uid=study_uid, series_uid=series_uid, sop_uid=sop_uid, rows=16, columns=16, pixels=pixels
    )


def configure(folder: Path, server: Emulator, *, take: str = "move", retain: str = "24h", kind: str = "auto") -> Config:
    """One inbox beside its spool, with the patience of a test."""
    (folder / "drop").mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(
        f"inboxes: [{{path: drop, take: {take}, settle: 50ms}}]\n"
        f"spool: {{path: spool, low_water: 1MB, retain: {retain}}}\n"
        "batch: {quiet_period: 50ms}\n"
        "retry: {base: 200ms, cap: 1s}\n"
        f'destination: {{url: "{server.url}", kind: {kind}}}\n'
        "reconcile: {interval: 100ms, lag: 1s, absence_wait: 200ms}\n"
        "shutdown_grace: 5s\n"
        "ledger: sqlite:///ledger.db\n"
    )
    return load(file)


def run(config: Config, *, seconds: float = 20) -> OnceResult:
    return run_once(config, timeout=timedelta(seconds=seconds), policies=once_policies(config))


def states(config: Config) -> dict[str, int]:
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return dict(Counter(entry.state.value for entry in ledger.entries()))


def test_file_in_place_that_is_altered_after_it_was_confirmed_is_a_conflict(tmp_path: Path, server: Emulator) -> None:
    """It was compared with its own row's path, which is itself, and so it was "the same content"."""
    config = configure(tmp_path, server, take="in_place")
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    (tmp_path / "drop" / "image").write_bytes(image(first_pixel=1))

    result = run(config)

    assert result.done
    assert states(config) == {"CONFIRMED": 1, "CONFLICT": 1}


def test_altered_object_is_a_conflict_also_when_the_first_ones_file_is_gone(tmp_path: Path, server: Emulator) -> None:
    """The server's copy was byte for byte the row's own, so none was kept, and it was asked for again for ever."""
    config = configure(tmp_path, server, retain="0s")
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    assert [path for path in (tmp_path / "spool" / "files").rglob("*") if path.is_file()] == []
    (tmp_path / "drop" / "image").write_bytes(image(first_pixel=1))
    (tmp_path / "drop" / "once more").write_bytes(image(first_pixel=1))
    (tmp_path / "drop" / "and another").write_bytes(image(first_pixel=2))

    result = run(config)

    assert result.done
    assert states(config) == {"CONFIRMED": 1, "CONFLICT": 3}


@pytest.mark.parametrize("kind", ["azure", "other"])
def test_altered_object_is_sent_when_the_first_one_was_deleted_on_the_server(
    tmp_path: Path, server: Emulator, kind: str
) -> None:
    """It waited for the copy of an object that was gone, and nobody told it that its identity was free."""
    config = configure(tmp_path, server, retain="0s", kind=kind)
    (tmp_path / "drop" / "image").write_bytes(image())
    run(config)
    delete(server.url, IDENTITY)
    (tmp_path / "drop" / "image").write_bytes(image(first_pixel=1))

    result = run(config)

    assert result.done
    assert states(config) == {"DELETED": 1, "CONFIRMED": 1}
