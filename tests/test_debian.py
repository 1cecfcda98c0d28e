"""README's chapters for administrators, run as they stand there on an empty Debian 12 with a systemd of its own.

Only the server's address, which nobody can copy, is put in. Each chapter finds the machine as the chapter on systemd
left it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.debian import (
    Machine,
    chapter,
    empty_debian,
    layered,
    make_room,
    remove_room,
    waited_for,
)
from tests.emulating import EmulatorProcess
from tests.patience import PATIENCE

pytestmark = pytest.mark.slow

ADDRESS = "https://dicom.example.org/dicom-web"
NEW_ADDRESS = "https://archive.example.org/dicom-web"
INSTALL = "Run it under systemd"
A_SCAN = "/opt/ingestd/lib/python3*/site-packages/pydicom/data/test_files/CT_small.dcm"
ANOTHER = "/opt/ingestd/lib/python3*/site-packages/pydicom/data/test_files/MR_small.dcm"


@dataclass(frozen=True)
class Installed:
    """What the chapter on systemd made of an empty Debian: its layers, and what its commands said."""

    layers: tuple[Path, ...]
    server: EmulatorProcess
    code: int
    said: str


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Iterator[Installed]:
    """A Debian, made once for this file, on which the chapter's commands were run."""
    folder = tmp_path_factory.mktemp("installed") / "disks"
    make_room(folder)
    with empty_debian(tmp_path_factory) as empty, EmulatorProcess(folder / "server") as server:
        with layered(folder / "installed", empty) as tree, Machine(tree) as machine:
            ran = machine.runs(as_filled_in(INSTALL, server.url))
            said = f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}\n{machine.log()}"
        yield Installed(layers=(folder / "installed/upper", empty), server=server, code=ran.returncode, said=said)
    remove_room(folder)


@pytest.fixture
def machine(installed, tmp_path) -> Iterator[Machine]:
    """A machine on which ingestd was installed, booted anew."""
    assert installed.code == 0, installed.said
    with layered(tmp_path / "layer", *installed.layers) as tree, Machine(tree) as machine:
        yield machine


def as_filled_in(heading: str, address: str, new_address: str = "") -> str:
    """The chapter's commands with the server's addresses in them."""
    commands = chapter(heading)
    assert [commands.count(ADDRESS), commands.count(NEW_ADDRESS)] == [1, 2 * bool(new_address)]
    return commands.replace(ADDRESS, address).replace(NEW_ADDRESS, new_address)


def drop(machine: Machine, scan: str = A_SCAN) -> None:
    """Deliver a file as a modality would."""
    machine.does(f"sudo cp {scan} /srv/ingestd/drop/")


def test_every_command_of_the_systemd_chapter_works_as_written_on_an_empty_debian(installed):
    """`/etc/sysusers.d` does not exist there, and then `ingestd` was on no PATH."""
    assert installed.code == 0, installed.said
    assert "CONFIRMED" in installed.said, "the last command, `status`, did not print its table"


def test_what_is_dropped_on_that_machine_is_confirmed(machine):
    drop(machine)

    waited_for(machine, CONFIRMED=1)

    assert machine.does("systemctl is-active ingestd").strip() == "active"


def test_the_journal_has_errors_as_errors_by_the_name_of_ingestd(machine):
    machine.does("echo 'nothing: known' | sudo tee -a /etc/ingestd/config.yaml; sudo systemctl reload ingestd")
    errors = "sudo journalctl --boot --no-pager -o cat -p err -t ingestd"
    deadline = time.monotonic() + PATIENCE
    while "alarm.raised" not in (said := machine.does(errors)) and time.monotonic() < deadline:
        time.sleep(0.2)

    assert [json.loads(line)["event"] for line in said.splitlines()] == ["config.refused", "alarm.raised"]


def test_whoever_asks_there_is_told_a_command_that_works_for_them(machine):
    """An administrator was told to become root; what `status` advised then was no command of anybody's."""
    refused = machine.runs("ingestd status")
    advised = refused.stderr.rpartition("become the user ingestd: ")[2].strip()

    assert refused.returncode == 77
    assert advised == "sudo -u ingestd ingestd status"
    assert "CONFIRMED" in machine.does(advised)
    unknown = machine.runs("sudo -u ingestd ingestd explain 4711").stderr
    assert "`sudo -u ingestd ingestd status --files`" in unknown
    machine.does("sudo systemctl stop ingestd")
    assert "start it: sudo systemctl start ingestd" in machine.does(advised)


def test_the_chapter_on_upgrading_keeps_all_that_was_there(machine):
    drop(machine)
    waited_for(machine, CONFIRMED=1)

    machine.does(chapter("Upgrade"))

    waited_for(machine, CONFIRMED=1)
    drop(machine, ANOTHER)
    waited_for(machine, CONFIRMED=2)


def test_what_the_chapter_on_backups_made_is_put_back_by_the_next_one(machine):
    drop(machine)
    waited_for(machine, CONFIRMED=1)
    machine.does(chapter("Back up"))
    drop(machine, ANOTHER)
    waited_for(machine, CONFIRMED=2)
    machine.does(
        "sudo systemctl stop ingestd; sudo sh -c 'rm -r /var/lib/ingestd/* /srv/ingestd/spool/*'; "
        "sudo diff -r /etc/ingestd /var/backups/ingestd-config"
    )

    machine.does(chapter("Put the ledger back"))

    waited_for(machine, CONFIRMED=1)
    found = machine.does("sudo -u ingestd ingestd status --patient-id 1CT1 --json")
    assert len(json.loads(found)["studies"]) == 1, "found by patient, with the key"
    drop(machine, ANOTHER)
    waited_for(machine, CONFIRMED=2)


def test_the_chapter_on_another_address_sends_nothing_anew(machine, installed, tmp_path):
    drop(machine)
    waited_for(machine, CONFIRMED=1)
    installed.server.stop()
    shutil.copytree(installed.server.data, tmp_path / "moved")
    installed.server.start()
    with EmulatorProcess(tmp_path / "moved") as moved:
        before = len(moved.stores())

        machine.does(as_filled_in("The server moves to another address", installed.server.url, moved.url))

        waited_for(machine, CONFIRMED=1)
        assert len(moved.stores()) == before
        drop(machine, ANOTHER)
        waited_for(machine, CONFIRMED=2)


def test_the_chapter_on_uninstalling_leaves_only_what_was_dropped_and_saved(machine):
    machine.does(chapter("Back up"))
    machine.does("sudo systemctl stop ingestd")
    drop(machine)

    machine.does(chapter("Uninstall"))

    left = machine.does("sudo find /etc /opt /run /srv /usr /var -path '*ingestd*' -not -path '/var/log/*' | sort")
    assert machine.runs("getent passwd ingestd || getent group ingestd ingestd-drop").returncode != 0
    assert [path for path in left.split() if not path.startswith("/var/backups/ingestd")] == [
        "/srv/ingestd",
        "/srv/ingestd/drop",
        "/srv/ingestd/drop/CT_small.dcm",
    ]


def test_a_spool_of_roots_is_given_back_by_the_command_that_is_advised(machine):
    """ "become the user root", said `check`; what root then ran made the ledger root's as well."""
    machine.does("sudo systemctl stop ingestd; sudo chown -R root: /srv/ingestd/spool")
    told = machine.runs("sudo -u ingestd ingestd check")
    advised = next(line.partition(": sudo ")[2] for line in told.stdout.splitlines() if ": sudo " in line)

    assert told.returncode == 77
    assert "-u root" not in told.stdout
    machine.does(f"sudo {advised}; sudo systemctl start ingestd")
    drop(machine)
    waited_for(machine, CONFIRMED=1)
