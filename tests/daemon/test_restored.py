"""A ledger put back from a backup older than ``retain``: its waiting rows were sent since, and their files removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.config import Config, load
from ingestd.emulator import Emulator
from ingestd.inbox import Spool
from ingestd.ledger import Ledger, moves, queries
from ingestd.lifecycle import Backoff, BatchLimits, BatchResult, Outcome, Reason, State
from tests.daemon.test_promise import IDENTITY, configure, image, run, running, turn
from tests.emulating import delete
from tests.ledgers import contents_of, put_back

STUDY = IDENTITY[0]


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


def states(config: Config) -> list[tuple[State, Reason | None]]:
    with Ledger.open(config.ledger, read_only=True) as ledger:
        return [(entry.state, entry.reason) for entry in queries.entries(ledger)]


# Sent once, and to be read before it is sent again: what it asks of a reader.
TO_BE_READ = {
    "reread": Outcome(delivery_id=0, state=State.PENDING, reason=Reason.CHANGED, reread=True),
    "reencode": Outcome(delivery_id=0, state=State.PENDING, reason=Reason.REENCODED, reencode=True, alone=True),
}


def go_on(config: Config, state: State | str) -> None:
    """Bring the one waiting row of a ledger to where a backup may have met it."""
    if state is State.PENDING:
        return
    spool = Spool(config.spool.path)
    limits = BatchLimits(quiet_period=timedelta(0))
    key = config.spool.search_key
    with Ledger.open(config.ledger, host=spool.host, spool=spool.path, limits=limits, key=key) as ledger:
        [entry] = queries.entries(ledger)
        at = entry.changed_at + timedelta(hours=2)
        with ledger.transaction() as tx:
            batch = moves.claim(tx, STUDY, now=at)
        assert batch is not None
        if state is State.SENDING:
            return
        came_to = TO_BE_READ.get(state, Outcome(delivery_id=0, state=State.STORED, reason=Reason.STORED_ANSWER))
        result = BatchResult(
            batch=batch,
            outcomes=(replace(came_to, delivery_id=entry.delivery_id),),
            finished_at=at,
            http_status=200,
            body_bytes_left=1000,
            seconds=0.1,
            answered=True,
        )
        with ledger.transaction() as tx:
            moves.finish(tx, result, now=at, backoff=Backoff(), jitter=0.0)


def backed_up_and_sent(folder: Path, server: Emulator, state: State | str) -> tuple[Config, Mapping[str, bytes]]:
    """Take a file in, copy the ledger aside in this state, send the file, and see it confirmed and our copy removed."""
    config = configure(folder, server, retain="0s")
    file = folder / "config.yaml"
    quick = file.read_text()
    file.write_text(quick.replace("quiet_period: 50ms", "quiet_period: 1h, max_wait: 2h"))
    (folder / "drop" / "image").write_bytes(image())
    with running(load(file)) as daemon:
        turn(daemon, lambda: states(config) == [(State.PENDING, None)])
    file.write_text(quick)
    slow = contents_of(config.ledger)
    go_on(config, state)
    backup = contents_of(config.ledger)
    put_back(config.ledger, slow)
    run(config)
    assert [state for state, _ in states(config)] == [State.CONFIRMED]
    assert not [path for path in (folder / "spool" / "files").rglob("*") if path.is_file()]
    return config, backup


@pytest.mark.parametrize("state", [State.PENDING, State.SENDING, State.STORED, *TO_BE_READ])
def test_row_of_an_old_backup_is_confirmed_where_the_server_has_it_and_our_file_is_removed(tmp_path, server, state):
    config, backup = backed_up_and_sent(tmp_path, server, state)

    put_back(config.ledger, backup)
    result = run(config)

    assert result.done
    assert [state for state, _ in states(config)] == [State.CONFIRMED]


@pytest.mark.parametrize("state", [State.PENDING, *TO_BE_READ])
def test_row_of_an_old_backup_is_failed_as_gone_where_the_server_does_not_have_it_either(tmp_path, server, state):
    config, backup = backed_up_and_sent(tmp_path, server, state)
    delete(server.url, IDENTITY)

    put_back(config.ledger, backup)
    result = run(config)

    assert result.done
    assert states(config) == [(State.FAILED, Reason.GONE)]
