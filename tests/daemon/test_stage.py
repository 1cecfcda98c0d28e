"""What ``Stage`` promises of every stage: a transaction that fails leaves it as it was, to write the same again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ingestd.clocks import read_clocks
from ingestd.daemon.daemon import Daemon
from ingestd.emulator import Emulator
from ingestd.ledger import queries
from ingestd.lifecycle import State
from tests.builders import write_instance
from tests.daemon.test_verification import rooms
from tests.running import Site, wait_until
from tests.serving import only_server


class TornAwayError(Exception):
    """The ledger could not commit."""


def fields_of(daemon: Daemon) -> dict[str, object]:
    """Give the fields of each stage and its parts, and what the lists, sets and dictionaries among them hold."""
    stages = daemon.stages
    parts = (
        only_server(daemon).verification._trust,
        only_server(daemon).posting.post_results,
        only_server(daemon).posting.destination,
    )
    return {
        f"{type(each).__name__}.{name}": value.copy() if isinstance(value, list | set | dict) else value
        for each in (*stages.all, *parts)
        for name, value in vars(each).items()
    }


def turn_with_torn_transactions(daemon: Daemon) -> None:
    """One tick whose transaction fails at its end, and is then made again from the same findings."""
    now, stages = read_clocks(), daemon.stages.all
    for stage in stages:
        stage.collect(now)
    before = fields_of(daemon)
    with suppress(TornAwayError), daemon.ledger.transaction() as tx:
        for stage in stages:
            stage.write(tx, now)
        raise TornAwayError
    after = fields_of(daemon)
    assert {name: (before[name], value) for name, value in after.items() if value != before[name]} == {}
    with daemon.ledger.transaction() as tx:
        for stage in stages:
            stage.write(tx, now)


def test_writing_changes_no_field_and_what_failed_is_written_again(tmp_path: Path):
    with Emulator(fsync=False) as server:
        site = Site(tmp_path / "site", server.url, reconcile={"interval": "1s", "lag": "0s"})
        for number in range(3):
            write_instance(site.drop / str(number))
        (site.drop / "junk").write_bytes(b"no DICOM")
        with rooms(site) as daemon:

            def is_done() -> bool:
                turn_with_torn_transactions(daemon)
                counts = queries.counts(daemon.ledger)
                return counts.get(State.CONFIRMED, 0) == 3 and not only_server(daemon).posting.in_hand

            wait_until(is_done, what="the proof", every=0.02)
