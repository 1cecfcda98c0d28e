"""``run --once`` says what it left behind, and does not end with 0 then."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.cli.run_summary import look_back
from ingestd.emulator import Emulator
from tests.daemon.test_promise import configure, image, run_until
from tests.running import Site
from tests.torture.failing import Fault, Injector, NoCompilerError, compile_library


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.fixture
def site(tmp_path: Path, server: Emulator) -> Site:
    return Site(tmp_path / "site", server.url)


def test_folder_that_is_away_does_not_end_with_0(site: Site) -> None:
    """It said "taken in now: 0; in all: nothing" and ended with 0."""
    site.drop.rename(site.folder / "gone")

    ran = site.run_once()

    assert ran.returncode == ExitCode.NEEDS_PERSON
    assert "stopped because the folder is not there" in ran.stdout


@pytest.mark.parametrize("call", ["open", "rename"])
def test_file_that_can_be_neither_read_nor_moved_is_named(site: Site, tmp_path: Path, call: str) -> None:
    try:
        library = compile_library(tmp_path)
    except NoCompilerError as error:
        if os.environ.get("INGESTD_REQUIRE_PEERS") == "1":
            raise
        pytest.skip(str(error))
    (site.drop / "image").write_bytes(image())
    fault = Fault(call=call, error=errno.EIO, place="drop", nth=1, times=0, seconds=60, process="any")
    injector = Injector(library, tmp_path / "rule", fault, f"{site.drop}/image")

    ran = site.command("run", "--once", "--json", "--timeout", "20s", env=injector.environment)

    assert injector.failed > 0
    assert ran.returncode == ExitCode.NEEDS_PERSON
    assert json.loads(ran.stdout)["left"] == [str(site.drop / "image")]


def test_folder_that_may_not_be_changed_is_told(site: Site) -> None:
    (site.drop / "image").write_bytes(image())
    if subprocess.run(["chattr", "+i", site.drop], check=False, capture_output=True).returncode:
        pytest.skip("no immutable folders here")
    try:
        ran = site.run_once()
    finally:
        subprocess.run(["chattr", "-i", site.drop], check=True)

    assert ran.returncode == ExitCode.NEEDS_PERSON
    assert f"LEFT {site.drop / 'image'}" in ran.stdout
    assert site.run_once().returncode == ExitCode.DONE


@pytest.mark.slow
def test_run_that_is_not_done_ends_with_3_also_when_a_file_needs_a_person(tmp_path: Path, server: Emulator) -> None:
    config = configure(tmp_path, server)
    (tmp_path / "drop" / "image").write_bytes(image()[:-2])  # cut off: it waits, and is then rejected
    (tmp_path / "drop" / "whole").write_bytes(image())
    run_until(config, lambda ended: look_back(config, ended).states.get("CONFIRMED"))
    (tmp_path / "drop" / "other").write_bytes(image(first_pixel=1))  # a conflict: needs a person

    outcome = look_back(config, run_until(config, lambda ended: look_back(config, ended).needs_person))

    assert not outcome.result.done
    assert outcome.code is ExitCode.TIMEOUT
