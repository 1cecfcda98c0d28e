"""README's chapters on a ledger in PostgreSQL and on two gateways, run as they stand there on empty Debians.

PostgreSQL is Debian's, on a machine of its own that is the file server as well; a folder of ours stands for the share.
Only addresses are put in. Both gateways are made from one machine on which the chapter's commands were run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.debian import (
    CHECKOUT,
    Machine,
    blocks,
    chapter,
    empty_debian,
    layered,
    make_room,
    remove_room,
    waited_for,
)
from tests.emulating import EmulatorProcess
from tests.running import wait_until

pytestmark = pytest.mark.slow

INSTALL, FIRST = "Run it under systemd", "sudo tee /etc/ingestd/config.yaml"
DATABASE, NETWORK = "db.example.org", "192.0.2.0/24"
SHARE, MOUNTED = "/export/ingestd", "/srv/ingestd"
A_SCAN = "/opt/ingestd/lib/python3*/site-packages/pydicom/data/test_files/MR_small.dcm"
ANOTHER = "/opt/ingestd/lib/python3*/site-packages/pydicom/data/test_files/CT_small.dcm"


@dataclass(frozen=True)
class Site:
    """A database, and the disk of a machine on which ingestd is installed and not started yet."""

    folder: Path
    layers: tuple[Path, ...]
    database: Machine
    certificate: str
    port: str

    def as_filled_in(self, commands: str, server: EmulatorProcess) -> str:
        """Put the addresses into a chapter's commands."""
        filled = commands.replace(f"{DATABASE}/", f"{DATABASE}:{self.port}/").replace(":5432:", f":{self.port}:")
        return filled.replace("https://dicom.example.org/dicom-web", server.url)

    def lend_certificate(self, machine: Machine) -> None:
        """Bring the database's certificate into a machine's checkout."""
        (machine.tree / CHECKOUT.lstrip("/") / "db.pem").write_text(self.certificate)

    @contextmanager
    def machine(self, name: str, *layers: Path, has_share: bool = True) -> Iterator[Machine]:
        """Start a machine on a layer of its own above these, and those that all have."""
        shares = {self.folder / "share": MOUNTED} if has_share else {}
        with (
            layered(self.folder / name, *(layers or self.layers)) as tree,
            Machine(tree, name, shares=shares, hosts=[DATABASE]) as machine,
        ):
            yield machine


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("gateways") / "disks"
    make_room(folder)
    (folder / "share").mkdir()
    with ExitStack() as stack:
        empty = stack.enter_context(empty_debian(tmp_path_factory))
        tree = stack.enter_context(layered(folder / "database", empty))
        database = stack.enter_context(Machine(tree, DATABASE, shares={folder / "share": SHARE}))
        with ThreadPoolExecutor() as both:
            installed = both.submit(_installed, folder / "installed", empty)
            database.does(chapter("Its database").replace(NETWORK, "127.0.0.0/8"))
            upper = installed.result()
        certificate = database.does("cat /etc/ssl/certs/ssl-cert-snakeoil.pem")
        port = database.does("sudo -iu postgres psql -At -c 'SHOW port'").strip()
        yield Site(folder, (upper, empty), database, certificate, port)
    remove_room(folder)


@pytest.fixture
def server(tmp_path) -> Iterator[EmulatorProcess]:
    with EmulatorProcess(tmp_path / "server") as running:
        yield running


def _installed(folder: Path, empty: Path) -> Path:
    """Install ingestd on an empty machine, up to where the chapter's own configuration comes."""
    lines = chapter(INSTALL)
    assert [lines.count(FIRST), lines.count("pip install .")] == [1, 1]
    lines = lines.partition(FIRST)[0].replace("pip install .", "pip install '.[postgres]'")
    with layered(folder, empty) as tree, Machine(tree) as machine:
        machine.does(f"{blocks('Each gateway')[0]}\n{lines}")
    return folder / "upper"


def works(machine: Machine) -> bool:
    """Whether it is this one that works."""
    said = json.loads(machine.does("sudo -u ingestd ingestd status --json"))
    return bool(said["daemon"].get("machine") == machine.name)


def stored(server: EmulatorProcess) -> list[str]:
    """What became of each file that was sent; what `check` tries a server with has no UIDs."""
    return [line["result"] for line in server.stores() if line["sop"]]


def test_a_ledger_is_moved_into_the_database_and_gone_on_with(site, server):
    with site.machine("moved", has_share=False) as machine:
        site.lend_certificate(machine)
        lines = chapter(INSTALL).partition(FIRST)
        machine.does(site.as_filled_in(f"{lines[1]}{lines[2]}", server))
        machine.does(f"sudo -u ingestd cp {A_SCAN} {MOUNTED}/drop/")
        waited_for(machine, CONFIRMED=1)

        machine.does(site.as_filled_in(chapter("Move to it"), server))

        waited_for(machine, CONFIRMED=1)
        machine.does(f"sudo -u ingestd cp {ANOTHER} {MOUNTED}/drop/")
        waited_for(machine, CONFIRMED=2)
        found = machine.does("sudo -u ingestd ingestd status --patient-id 1CT1 --json")
        assert len(json.loads(found)["studies"]) == 1, "found by patient, with the key"
    site.database.does("sudo -iu postgres dropdb ingestd; sudo -iu postgres createdb -O ingestd ingestd")


def test_what_was_dropped_at_a_gateway_that_lost_its_power_is_confirmed_by_the_other(site, server):
    dropped, told = blocks("See one take over")
    site.database.does(chapter("The share"))
    with site.machine("gateway") as gateway:
        site.lend_certificate(gateway)
        said = gateway.does(site.as_filled_in(blocks("Each gateway")[1], server))
        assert re.search(r"gateway .* works", said), said
    both = (site.folder / "gateway/upper", *site.layers)
    with site.machine("pacs-a", *both) as first, site.machine("pacs-b", *both) as second:
        assert works(first)
        first.does(dropped)
        first.lose_power()

        wait_until(
            partial(stored, server),
            what="the file, from the other",
            every=1.0,
        )
        waited_for(second, CONFIRMED=1)

        said = second.does(told)
        assert re.search(r"pacs-b .* works", said), said
        assert re.search(r"pacs-a .* ended .*: silent", said), said
        with Machine(first.tree, "pacs-a", shares=first.shares, hosts=[DATABASE]) as again:
            second.does(f"sudo systemctl stop ingestd; sudo -u ingestd cp {A_SCAN} {MOUNTED}/drop/")
            wait_until(partial(works, again), what="the one that is back")
            waited_for(again, CONFIRMED=2)
        assert stored(server) == ["stored"] * 2, "each was sent once"
