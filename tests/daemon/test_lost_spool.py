"""The spool is lost for good: by the commands that ``status`` gives, what was in it is told, and new files arrive."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from tests.builders import write_instance
from tests.running import Site, wait_until


def commands_in(text: str) -> list[str]:
    return re.findall(r"`(install -d [^`]+)`", " ".join(text.split()))


@pytest.mark.slow
def test_lost_spool_is_made_anew_by_what_status_and_the_refused_start_say(tmp_path: Path) -> None:
    with Emulator(fsync=False) as server:
        site = Site(tmp_path / "site", server.url)
        server.faults.add("unavailable")
        with site.start() as daemon:
            write_instance(site.drop / "lost")
            site.wait_for({"PENDING": 1})
            shutil.rmtree(site.spool)
            (told,) = wait_until(lambda: commands_in(site.command("status").stdout), what="the daemon's alarm")
            daemon.terminate()
        checked = site.command("check")
        assert commands_in(checked.stdout) == [told]
        refused = site.command("run", "--once")
        assert refused.returncode == ExitCode.CONFIGURATION
        server.faults.clear()

        assert commands_in(refused.stderr) == [told]
        subprocess.run(["sh", "-c", told], check=True)
        write_instance(site.drop / "new")
        # Where hosts share the spool, a file is gone that is not there a minute later either.
        assert site.run_once().returncode == ExitCode.NEEDS_PERSON
        assert site.states() == {"FAILED": 1, "CONFIRMED": 1}
        assert site.entry_of("lost").reason == "gone"
        # Where hosts share the ledger, the key of the search words lay in the spool: that it is another is told.
        assert site.stopped() <= {"key_made_anew"}
