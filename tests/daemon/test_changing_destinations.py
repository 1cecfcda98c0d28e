"""Destinations as the configuration names them: one that is wrong holds up no other; they come and go with a reload."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from ingestd.config import load
from ingestd.daemon.daemon import Daemon as Rooms
from ingestd.daemon.notify import Notifier
from ingestd.daemon.service import _Service
from ingestd.daemon.signals import Asked, Signals
from ingestd.emulator import Emulator
from ingestd.ledger import Ledger
from tests.builders import write_instance
from tests.emulating import stores
from tests.ledgers import agree_anew
from tests.ports import own_port
from tests.running import Daemon, Site, wait_until


@pytest.fixture
def archive() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.fixture
def research() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.fixture
def away() -> str:
    """An address where nobody answers."""
    return f"http://127.0.0.1:{own_port()}/v2"


def name_destinations(site: Site, **urls: str) -> None:
    site.configure()
    config = json.loads(site.config_file.read_text())
    del config["destination"]
    config["destinations"] = {name: {"url": url, "auth": "none"} for name, url in urls.items()}
    site.config_file.write_text(json.dumps(config))


def site_of(folder: Path, **urls: str) -> Site:
    site = Site(folder, "")
    name_destinations(site, **urls)
    return site


def reload(daemon: Daemon) -> str:
    """Have the configuration read again; give what the log says of it."""
    ready, said = daemon.listen().count("READY=1"), len(daemon.log.read_text())
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: daemon.listen().count("READY=1") > ready, what="READY again")
    return daemon.log.read_text()[said:]


def states(site: Site) -> dict[str, str]:
    """Each delivery's state, by what was dropped and the destination."""
    return {f"{entry.relative_path} {entry.destination}": entry.state.value for entry in site.entries()}


def test_one_for_which_files_wait_is_not_taken_away_by_a_reload(tmp_path: Path, archive: Emulator, away: str) -> None:
    site = site_of(tmp_path, archive=archive.url, research=away)
    with site.start() as daemon:
        write_instance(site.drop / "a")
        site.wait_for({"CONFIRMED": 1, "PENDING": 1})
        name_destinations(site, archive=archive.url)

        said = reload(daemon)

        assert "config.refused" in said
        assert "1 file waits for research" in said
        write_instance(site.drop / "b")
        site.wait_for({"CONFIRMED": 2, "PENDING": 2})


def test_one_that_is_misconfigured_delays_nothing_of_another(tmp_path: Path, archive: Emulator) -> None:
    site = site_of(tmp_path, archive=archive.url)
    config = json.loads(site.config_file.read_text())
    (tmp_path / "empty").touch()
    config["destinations"] |= {
        "no_file": {"url": f"{archive.url}/a", "auth": {"kind": "bearer", "token_file": "./nothing"}},
        "no_token": {"url": f"{archive.url}/b", "auth": {"kind": "bearer", "token_file": "./empty"}},
        "no_server": {"url": f"{archive.url}/studies", "auth": "none"},
        "no_authority": {"url": "https://127.0.0.1:9/v2", "auth": "none", "tls": {"ca_file": "./empty"}},
    }
    site.config_file.write_text(json.dumps(config))
    with site.start():
        write_instance(site.drop / "a")

        site.wait_for({"CONFIRMED": 1, "PENDING": 4})

    assert states(site)["a archive"] == "CONFIRMED"


def test_each_line_of_the_log_about_a_server_says_which(tmp_path: Path, archive: Emulator, away: str) -> None:
    site = site_of(tmp_path, archive=archive.url, research=away)
    with site.start() as daemon:
        write_instance(site.drop / "a")
        site.wait_for({"CONFIRMED": 1, "PENDING": 1})
        lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]

    said = {(line["event"], line["destination"]) for line in lines if "destination" in line}
    assert ("batch.stored", "archive") in said
    assert ("destination.paused", "research") in said
    assert {whose for event, whose in said if event.startswith("batch.")} == {"archive"}


def test_one_that_comes_and_goes_has_what_was_dropped_while_it_was_named(
    tmp_path: Path, archive: Emulator, research: Emulator
) -> None:
    site = site_of(tmp_path, archive=archive.url)
    with site.start() as daemon:
        write_instance(site.drop / "a")
        site.wait_for({"CONFIRMED": 1})
        name_destinations(site, archive=archive.url, research=research.url)
        assert "config.refused" not in reload(daemon)
        write_instance(site.drop / "b")
        site.wait_for({"CONFIRMED": 3})
        name_destinations(site, archive=archive.url)
        assert "config.refused" not in reload(daemon)
        write_instance(site.drop / "c")
        site.wait_for({"CONFIRMED": 4})

    assert states(site).keys() == {"a archive", "b archive", "b research", "c archive"}


@pytest.mark.parametrize("exchanged", [False, True], ids=["renamed", "exchanged"])
def test_address_keeps_its_name_over_a_reload(
    tmp_path: Path, archive: Emulator, research: Emulator, exchanged: bool
) -> None:
    """What is routed to a name while the new rooms are built would go to another server; a restart renames one."""
    site = site_of(tmp_path, archive=archive.url, research=research.url)
    with site.start() as daemon:
        if exchanged:
            name_destinations(site, archive=research.url, research=archive.url)
        else:
            name_destinations(site, archive=archive.url, studies=research.url)

        assert "config.refused" in reload(daemon)

        write_instance(site.drop / "a")
        site.wait_for({"CONFIRMED": 2})
    assert states(site).keys() == {"a archive", "a research"}


def test_one_to_which_files_were_sent_while_the_new_rooms_were_built_stays(
    tmp_path: Path, archive: Emulator, away: str
) -> None:
    """Nobody would have sent them, or told of them, until the next start was refused."""
    site = site_of(tmp_path, archive=archive.url, research=away)
    both = load(site.config_file)
    name_destinations(site, archive=archive.url)
    fewer = load(site.config_file)
    rooms = Rooms(both)
    rooms.start()
    agree_anew(site.folder)
    signals = Signals(rooms.wake)
    service = _Service(rooms, signals, Mock(Notifier, watchdog_interval=None), reread=lambda: fewer, adopt=Mock())
    try:
        rooms.gates.claims.shut("test")  # as it is while a post is out
        signals.asked = Asked.RELOAD
        busy = Mock(side_effect=[False])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(rooms.stages), "no_post_is_out", property(lambda _: busy()))
            assert not service.is_over()
        assert service.following is not None
        write_instance(site.drop / "a")

        def is_taken_in() -> bool:
            rooms.loop.tick()
            return site.states() == {"PENDING": 2}

        wait_until(is_taken_in, what="the file")

        assert not service.is_over()
        assert service.following is None
    finally:
        rooms.close()
    with Ledger.open(both.ledger, destinations=both.addresses):
        pass


def test_daemon_that_dies_while_it_sends_to_both_goes_on_at_each(
    tmp_path: Path, archive: Emulator, research: Emulator
) -> None:
    """What was on its way is UNCERTAIN at the one that it was on its way to, and that one is asked."""
    site = site_of(tmp_path, archive=archive.url, research=research.url)
    for number in range(30):
        write_instance(site.drop / str(number))
    with site.start() as daemon:
        wait_until(lambda: site.states().get("SENDING"), what="a post", every=0.001)
        daemon.kill()
    with site.start():
        site.wait_for({"CONFIRMED": 60})

    for server in (archive, research):
        assert len({line["sop"] for line in stores(server.requests)}) == 30
