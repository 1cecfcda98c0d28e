"""The server moves to another address: nothing is sent anew, and no proof is taken on trust there."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger, moves, queries
from tests.builders import write_instance
from tests.emulating import EmulatorProcess, delete, file_of, post, stores
from tests.ledgers import raw
from tests.running import PROGRAM, Site, environment, wait_until

NAMES = ("a", "b", "c")
MOVE = ("destination", "move", "default", "http://127.0.0.1:9/v2")
STUDY = "1.2.826.0.1.3680043.10.1451.9"


def delivered(site: Site) -> None:
    for name in NAMES:
        write_instance(site.drop / name)
    assert site.run_once().returncode == 0
    assert site.states() == {"CONFIRMED": len(NAMES)}


def move_unseen(site: Site) -> None:
    """Go on at the address that the configuration has, without a look at what is there."""
    with Ledger.open(site.ledger_url, create=False) as ledger, ledger.transaction() as tx:
        moves.new_address(tx, site.url, now=datetime.now(UTC))


def settled_duplicates(site: Site) -> int:
    with raw(site.ledger_url) as ledger:
        asked = "SELECT count(*) FROM delivery WHERE state = 'DUPLICATE' AND settled_at IS NOT NULL"
        return int(ledger.execute(asked).fetchone()[0])


def asked_for_by_nobody(site: Site) -> list[str]:
    """The confirmed files but for the last, the newest and the last that was changed."""
    with raw(site.ledger_url) as ledger:
        orders = ("settled_at", "delivery.id", "delivery.changed_at")
        of_confirmed = """SELECT relative_path FROM delivery JOIN file ON file.id = file_id
            WHERE delivery.state = 'CONFIRMED' ORDER BY"""
        by = [[name for (name,) in ledger.execute(f"{of_confirmed} {order}")] for order in orders]
    return [name for name in by[0] if name not in {names[-1] for names in by}]


@pytest.fixture
def moved(tmp_path):
    """A site whose files are confirmed, and their server at another address with all that it has."""
    with Emulator(tmp_path / "former", fsync=False) as former:
        site = Site(tmp_path / "site", former.url)
        delivered(site)
    shutil.copytree(tmp_path / "former", tmp_path / "moved")
    with Emulator(tmp_path / "moved", fsync=False) as server:
        site.url = server.url
        site.configure()
        yield site, server


def test_a_new_address_is_refused_with_the_command_that_says_it_is_the_same_server(moved):
    site, _ = moved

    refused = site.command("run", "--once")

    assert refused.returncode == ExitCode.CONFIGURATION
    assert "ingestd destination move NAME URL`" in refused.stderr


@pytest.mark.slow
def test_nothing_is_sent_anew_and_what_is_kept_is_compared_at_the_new_address(moved):
    site, server = moved
    before = len(stores(server.requests))

    said = site.command("destination", "move", "default", server.url)
    assert said.returncode == 0, said.stderr
    assert "3 files found there as sent; it is asked about 3 files" in said.stdout
    site.configure(spool={"retain": "0s"})
    with site.start():
        wait_until(lambda: all(entry.removed_at for entry in site.entries()), what="the removals")
        write_instance(site.drop / "later")
        site.wait_for({"CONFIRMED": 4})

    assert all(entry.compared for entry in site.entries())
    assert len(stores(server.requests)) == before + 1


def test_an_address_that_has_nothing_of_ours_is_not_taken(moved):
    site, _ = moved
    with Emulator(fsync=False) as empty:
        said = site.command("destination", "move", "default", empty.url)

        assert said.returncode == ExitCode.NEEDS_PERSON
        assert "does not have, or not as it was sent, 3 files of the 3 confirmed last (IDs 1, 2, 3)" in said.stderr
    said = site.command("destination", "move", "default", "http://127.0.0.1:9/v2")
    assert (said.returncode, "could not be asked" in said.stderr) == (ExitCode.TIMEOUT, True)


def test_a_copy_that_is_not_what_was_sent_is_not_taken_for_it(moved, tmp_path):
    site, server = moved
    entry = site.entries()[0]
    identity = (entry.identity.study_uid, entry.identity.series_uid, entry.identity.sop_uid)
    content = file_of(server.url, identity)
    delete(server.url, identity)
    post(server.url, content[:-1] + bytes([content[-1] ^ 1]))

    said = site.command("destination", "move", "default", server.url)

    assert (said.returncode, f"(IDs {entry.delivery_id})" in said.stderr) == (ExitCode.NEEDS_PERSON, True)


def test_no_file_goes_that_the_new_address_does_not_show(moved):
    """What was kept would have gone after `retain`."""
    site, _ = moved
    with Emulator(fsync=False) as empty:
        site.url = empty.url
        site.configure(spool={"retain": "0s"})
        move_unseen(site)
        with site.start():
            wait_until(lambda: site.states() == {"DELETED": 3}, what="absence")

        assert not any(entry.removed_at for entry in site.entries())
        assert site.command("retry", "--state", "DELETED").returncode == 0
        assert site.run_once().returncode == 0
        assert site.states() == {"CONFIRMED": 3}


@pytest.mark.slow
def test_no_file_goes_that_the_move_has_lost(tmp_path):
    """Of three confirmed in one second the last was asked for, and told for all."""
    with Emulator(fsync=False) as former, Emulator(fsync=False) as server:
        site, others = Site(tmp_path / "site", former.url), Site(tmp_path / "others", server.url)
        for name in NAMES:
            write_instance(site.drop / name, study_uid=STUDY)
            shutil.copy(site.drop / name, others.drop)
        assert site.run_once().returncode == 0
        lost, kept, _ = [entry.relative_path for entry in site.entries()]
        (others.drop / lost).unlink()
        assert others.run_once().returncode == 0
        site.url = server.url
        site.configure(spool={"retain": "0s"})
        move_unseen(site)
        with site.start():
            wait_until(lambda: site.states().get("DELETED"), what="what was lost")
            wait_until(lambda: site.entry_of(kept).removed_at, what="the removals")

        assert site.states() == {"DELETED": 1, "CONFIRMED": 2}
        assert not site.entry_of(lost).removed_at


def test_a_new_address_is_not_taken_while_somebody_sends_to_the_former(tmp_path):
    with Emulator(fsync=False) as server:
        site = Site(tmp_path / "site", server.url)
        with site.start():
            assert site.command(*MOVE).returncode == ExitCode.BUSY


def test_a_new_address_is_not_taken_while_another_spool_of_the_ledger_sends_to_the_former(tmp_path):
    """It went on there, and its rows were CONFIRMED by what the former address had shown."""
    with Emulator(fsync=False) as server:
        site, other = Site(tmp_path / "site", server.url), Site(tmp_path / "other", server.url)
        other.configure(ledger=site.ledger_url)
        with other.start():
            assert site.command(*MOVE).returncode == ExitCode.BUSY
        assert site.command(*MOVE, "--yes").returncode == ExitCode.DONE


@pytest.mark.slow
def test_what_an_audit_finds_at_the_former_address_does_not_count_at_the_new(tmp_path):
    """It is in no spool's lock, and went on after the move: its matches were trust that the new address had earned."""
    with EmulatorProcess(tmp_path / "server") as server:
        site = Site(tmp_path / "site", server.url)
        for number in range(6):
            write_instance(site.drop / str(number))
        assert site.run_once().returncode == 0
        server.stop()
        server.start("--fault", "latency=seconds:0.5")
        words = [*PROGRAM, "reconcile", "-c", str(site.config_file), "--full", "--compare", "100"]
        asked = len(server.lines())
        with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as audit:
            wait_until(lambda: len(server.lines()) > asked, what="the audit")
            site.url = "http://127.0.0.1:9/v2"
            site.configure()
            move_unseen(site)
            _, said = audit.communicate(timeout=60)

        assert audit.returncode == ExitCode.CONFIGURATION, said
        assert b"is http://127.0.0.1:9/v2 in the ledger" in said
        with site.ledger() as ledger:
            assert not queries.standing(ledger).matched


@pytest.mark.slow
def test_no_duplicates_file_goes_that_the_new_address_does_not_show(tmp_path):
    """Dropped again after its holder's file had gone, it is the only copy, and was let go by the former address.

    What is lost is none of those that are asked for before any file goes: the last and the newest.
    """
    names = [*NAMES, "d", "e"]
    with Emulator(fsync=False) as former, Emulator(fsync=False) as server:
        site, others = Site(tmp_path / "site", former.url), Site(tmp_path / "others", server.url)
        site.configure(spool={"retain": "0s"})
        for name in names:
            write_instance(tmp_path / "medium" / name, study_uid=STUDY)
            shutil.copy(tmp_path / "medium" / name, site.drop)
        with site.start():
            wait_until(
                lambda: [bool(entry.removed_at) for entry in site.entries()] == [True] * len(names),
                what="the removals",
            )
        site.configure()
        for name in names:
            shutil.copy(tmp_path / "medium" / name, site.drop)
        with site.start():
            wait_until(lambda: settled_duplicates(site) == len(names), what="that they may go")
        lost, kept = asked_for_by_nobody(site)[:2]
        for name in set(names) - {lost}:
            shutil.copy(tmp_path / "medium" / name, others.drop)
        assert others.run_once().returncode == 0
        site.url = server.url
        site.configure(spool={"retain": "0s"})
        move_unseen(site)
        with site.start():
            wait_until(lambda: site.entry_of(kept).removed_at, what="the removals")
            site.wait_for({"CONFIRMED": 4, "DELETED": 1, "DUPLICATE": 5})

        assert not site.entry_of(lost).removed_at
        assert site.command("retry", "--state", "DELETED").returncode == 0
        assert site.run_once().returncode == 0
        assert site.entry_of(lost).state == "CONFIRMED"


def test_the_address_that_the_ledger_has_is_no_new_one(tmp_path):
    with Emulator(fsync=False) as server:
        site = Site(tmp_path / "site", server.url)
        delivered(site)

        said = site.command("destination", "move", "default", server.url)

    assert said.returncode == ExitCode.CONFIGURATION
    assert "already" in said.stderr
