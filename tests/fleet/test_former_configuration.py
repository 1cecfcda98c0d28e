"""A command by a configuration that holds no more brings no file to a destination that was taken out.

Nobody would send it, and no configuration without that destination could start while it waits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from ingestd.emulator import Emulator
from tests.builders import fresh_uid, write_instance
from tests.fleet.gateways import Gateways, gateways
from tests.running import QUICK_INBOX, Daemon, Site, wait_until

TO_ARCHIVE = {"when": {"inbox": "ward"}, "to": ["archive"]}


class Research(NamedTuple):
    """A gateway whose file forgot that ``research`` was taken out, and what is to be done there."""

    two: Gateways
    server: Emulator
    former: dict[str, Any]
    now: dict[str, Any]

    def taken_out(self, daemon: Daemon) -> Site:
        """Have the configuration without it adopted, and read by a daemon; give the gateway that forgot it."""
        site = self.two.site("a", **self.now)
        assert site.command("config", "adopt").returncode == 0
        wait_until(lambda: '"config.reread"' in daemon.tail(), what="that it is read")
        return self.two.site("b", **self.former)

    def expect_start(self, daemon: Daemon) -> None:
        """Find that a daemon starts without it."""
        assert daemon.terminate() == 0
        self.two.start("a", **self.now)


@pytest.fixture
def research(tmp_path: Path, server: Emulator, database: str) -> Iterator[Research]:
    with Emulator(fsync=False) as other, gateways(tmp_path, server, database, more_drops=1) as two:
        archive = {"archive": {"url": server.url, "auth": "none"}}
        named = zip(("ward", "lab"), two.drops, strict=True)
        inboxes = [{"name": name, "path": str(drop), **QUICK_INBOX} for name, drop in named]
        former = {"inboxes": inboxes, "destinations": {**archive, "research": {"url": other.url, "auth": "none"}}}
        yield Research(two, other, former, {"inboxes": inboxes, "destinations": archive})


@pytest.mark.slow
def test_send_by_another_configuration_than_all_agreed_upon_is_refused(tmp_path: Path, research: Research):
    a = research.two.start("a", **research.former)
    forgotten = research.taken_out(a)
    (tmp_path / "disc").mkdir()
    write_instance(tmp_path / "disc" / "one", study_uid=fresh_uid(1), series_uid=fresh_uid(2), sop_uid=fresh_uid(3))

    said = forgotten.command("send", "--to", "research", str(tmp_path / "disc"))

    assert (said.returncode, research.two.states()) == (2, {})
    assert "it differs in destinations.research" in said.stderr
    assert research.two.site("a", **research.now).command("send", str(tmp_path / "disc")).returncode == 0
    research.expect_start(a)


def test_send_says_for_nobody_else_what_all_have_to_say_alike(tmp_path: Path, both: Gateways):
    (tmp_path / "disc").mkdir()
    write_instance(tmp_path / "disc" / "one", study_uid=fresh_uid(1), series_uid=fresh_uid(2), sop_uid=fresh_uid(3))
    assert both.site("a", reconcile={"verify": "presence"}).command("send", str(tmp_path / "disc")).returncode == 0

    both.start("b")
    assert both.site("a", reconcile={"verify": "presence"}).command("send", str(tmp_path / "disc")).returncode == 0


def test_nothing_is_routed_again_by_another_configuration_than_all_agreed_upon(research: Research):
    a = research.two.start("a", **research.former, rules=[TO_ARCHIVE])
    research.two.feed(drop=research.two.drops[1])
    is_there = "SELECT count(*) FROM file WHERE state = 'UNROUTED'"
    wait_until(lambda: research.two.sql(is_there) == [(1,)], what="a file that no rule wants")
    research.now["rules"] = [TO_ARCHIVE]
    research.former["rules"] = [{"when": {"inbox": "lab"}, "to": ["research"]}]
    forgotten = research.taken_out(a)

    said = forgotten.command("route", "--again", "--yes")

    assert (said.returncode, research.two.states()) == (2, {})
    assert "it differs in destinations.research, rules" in said.stderr
    research.expect_start(a)


def test_what_was_deleted_at_a_destination_that_was_taken_out_is_not_sent_there_again(research: Research):
    a = research.two.start("a", **research.former)
    research.two.feed()
    research.two.wait_for(CONFIRMED=2)
    study = research.two.written[0].study_uid
    assert requests.delete(f"{research.server.url}/studies/{study}", timeout=10).status_code == 204
    research.two.site("a", **research.former).command("reconcile", "--full")
    research.two.wait_for(CONFIRMED=1, DELETED=1)
    forgotten = research.taken_out(a)

    (number,) = research.two.sql("SELECT id FROM delivery WHERE state = 'DELETED'")[0]

    all_of_them = forgotten.command("retry", "--state", "DELETED")
    said = forgotten.command("retry", str(number))

    assert (all_of_them.stdout, said.returncode) == ("no file is like that\n", 1)
    assert "the configuration does not name its destination research any more" in said.stdout
    assert research.two.states() == {"CONFIRMED": 1, "DELETED": 1}
    research.expect_start(a)


def test_reconcile_by_a_configuration_that_holds_no_more_gives_no_destination_its_former_name(both: Gateways):
    url = {"url": both.server.url, "auth": "none"}
    assert both.site("a", destinations={"archive": url}).run_once().returncode == 0
    site = both.site("a", destinations={"pacs": url})
    assert site.command("config", "adopt").returncode == 0
    assert site.run_once().returncode == 0

    said = both.site("b", destinations={"archive": url}).command("reconcile")

    assert (said.returncode, both.sql("SELECT name FROM destination")) == (2, [("pacs",)])
    assert "it differs in destinations.archive, destinations.pacs" in said.stderr
    assert site.command("reconcile").returncode == 0


def test_configuration_without_drop_folders_is_another_than_one_that_has_some(both: Gateways):
    assert both.site("a").run_once().returncode == 0
    site = both.site("b")
    settings = json.loads(site.config_file.read_text())
    del settings["inboxes"]
    site.config_file.write_text(json.dumps(settings))

    said = site.command("route", "--again")

    assert (said.returncode, "it differs in inboxes" in said.stderr) == (2, True), said
