"""A pause that was told ends with what it was about, also where nothing is left that could be posted."""

from __future__ import annotations

from pathlib import Path

from ingestd.emulator import Emulator
from tests.builders import write_instance
from tests.running import Site, wait_until


def test_pause_ends_where_the_server_answers_and_nothing_waits_to_be_posted(tmp_path: Path) -> None:
    """Only a post ended it: `status` said for ever that nothing is sent to a server that answered every question."""
    with Emulator(fsync=False) as server:
        site = Site(tmp_path / "site", server.url)
        server.faults.add("unavailable")
        write_instance(site.drop / "image")
        with site.start():
            site.wait_for({"PENDING": 1})
            wait_until(lambda: site.status()["destination"]["paused"], what="the pause")
            for file in (site.spool / "files").rglob("*"):
                if file.is_file():
                    file.unlink()
            server.faults.clear()

            wait_until(lambda: site.states() == {"FAILED": 1}, what="the word that it is gone")
            wait_until(lambda: not site.status()["destination"]["paused"], what="its end")
