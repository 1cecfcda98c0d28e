"""A file that is here never waits for one with the same content that another process was to send and nobody runs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from ingestd.ledger import LedgerMissing, queries
from ingestd.lifecycle import State
from tests.emulating import file_of
from tests.line.test_line import Image, make_image
from tests.running import PROGRAM, Site, environment, wait_until


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, server: Emulator) -> Site:
    return Site(tmp_path / "site", server.url, spool={"retain": "0s"})


def interrupt_send(site: Site, image: Image, *, when: Callable[[], object]) -> None:
    """Kill a ``send`` of this image when that is so, and take the medium out."""
    folder = site.folder / "medium"
    folder.mkdir()
    (folder / "image").write_bytes(image.content)
    words = [*PROGRAM, "send", "-c", str(site.config_file), str(folder)]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sending:
        try:
            wait_until(lambda: is_so(when), what="the state that it is killed in")
        finally:
            sending.kill()
    shutil.rmtree(folder)


def is_so(when: Callable[[], object]) -> object:
    try:
        return when()
    except LedgerMissing:  # it is being made
        return False


def is_there(server: Emulator, image: Image) -> bool:
    return file_of(server.url, image.identity) is not None


FAULTS: dict[str, tuple[str, dict[str, object]]] = {
    "PENDING": ("unavailable", {}),
    "SENDING": ("bandwidth", {"bytes": 1}),
    "UNCERTAIN": ("drop_after_body", {"method": "POST"}),
    "STORED": ("late_feed", {"seconds": 600}),
}


@pytest.mark.parametrize(
    "state", [pytest.param(each, marks=pytest.mark.slow if each != "STORED" else ()) for each in FAULTS]
)
def test_a_dropped_file_waits_for_no_row_that_only_another_send_would_send(site: Site, server: Emulator, state: str):
    """It was a DUPLICATE of it, "nothing to do", for ever; the server was well, and `status --exit-code` said 0."""
    image = make_image()
    name, values = FAULTS[state]
    server.faults.add(name, **values)
    site.configure(reconcile={"interval": "10m", "absence_wait": "10m", "grace": "20m"})
    interrupt_send(site, image, when=lambda: site.states() == {state: 1} and (state != "PENDING" or is_paused(site)))
    server.faults.clear()
    site.configure(spool={"retain": "0s"})

    with site.start():
        site.command("retry", "--now")
        (site.drop / "again").write_bytes(image.content)
        site.wait_for({"CONFIRMED": 1, "DUPLICATE": 1})

        assert is_there(server, image)
        assert site.entry_of("again").state is State.CONFIRMED
        assert site.command("status", "--exit-code").returncode == ExitCode.DONE
        assert site.status()["waiting_for_send"] == 0


def is_paused(site: Site) -> bool:
    with site.ledger() as ledger:
        destination = queries.destination(ledger)
    return destination is not None and destination.paused_until is not None


@pytest.mark.slow
def test_what_waits_for_a_send_that_runs_is_left_to_it_and_taken_over_when_it_ended(site: Site, server: Emulator):
    image = make_image()
    server.faults.add("unavailable")
    interrupt_send(site, image, when=lambda: site.states() == {"PENDING": 1} and is_paused(site))
    server.faults.clear()
    other = make_image()

    lock = os.open(site.spool / "send" / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with site.start():
            site.command("retry", "--now")
            (site.drop / "again").write_bytes(image.content)
            wait_until(lambda: site.states() == {"PENDING": 1, "DUPLICATE": 1}, what="the duplicate")
            (site.drop / "other").write_bytes(other.content)
            site.wait_for({"PENDING": 1, "DUPLICATE": 1, "CONFIRMED": 1})
    finally:
        os.close(lock)

    # As an older version left it behind.
    with site.start():
        site.wait_for({"CONFIRMED": 2, "DUPLICATE": 1})
    assert is_there(server, image)


@pytest.mark.slow
def test_a_single_run_does_not_end_before_it_took_over_what_waits(site: Site, server: Emulator):
    image = make_image()
    server.faults.add("unavailable")
    interrupt_send(site, image, when=lambda: site.states() == {"PENDING": 1} and is_paused(site))
    server.faults.clear()
    site.command("retry", "--now")
    (site.drop / "again").write_bytes(image.content)

    ran = site.run_once()

    assert ran.returncode == ExitCode.DONE, ran
    assert site.states() == {"CONFIRMED": 1, "DUPLICATE": 1}
    assert is_there(server, image)


@pytest.mark.slow
def test_send_does_not_end_well_while_its_file_waits_for_a_daemon_that_does_not_run(site: Site, server: Emulator):
    image = make_image()
    server.faults.add("unavailable")
    (site.drop / "image").write_bytes(image.content)
    with site.start():
        wait_until(lambda: site.states() == {"PENDING": 1} and is_paused(site), what="the pause")
    server.faults.clear()
    site.command("retry", "--now")
    (site.folder / "again").write_bytes(image.content)

    ran = site.command("send", str(site.folder / "again"))

    assert ran.returncode == ExitCode.DONE, ran
    assert is_there(server, image)
    with site.start():
        site.wait_for({"CONFIRMED": 1, "DUPLICATE": 1})
        wait_until(lambda: not [each for each in (site.spool / "files").rglob("*") if each.is_file()], what="room")
