"""``run --once`` and ``send`` go on as soon as they can."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.config import load
from ingestd.daemon import Daemon, once_policies, run_once
from ingestd.daemon.loop import Wake
from ingestd.emulator import Emulator
from tests.builders import write_instance
from tests.running import Site


def test_nothing_waits_for_the_clock_once_everything_was_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loop waits for was found before: by the quiet period, or the next scan, a second later."""
    seen: list[Daemon] = []
    heard: list[bool] = []
    wait = Wake.wait

    def watched(wake: Wake, seconds: float) -> bool:
        if heard or not seen or not seen[0].progress.flushes:
            return wait(wake, seconds)
        heard.append(wait(wake, 0))
        return heard[0]

    monkeypatch.setattr(Wake, "wait", watched)
    with Emulator() as server:
        # Long enough for the first questions to the server to have been answered.
        site = Site(tmp_path, server.url, inboxes=[{"path": "./drop", "settle": "500ms"}])
        write_instance(site.drop / "image")
        config = load(site.config_file)

        result = run_once(config, timeout=timedelta(seconds=30), policies=once_policies(config), watch=seen.append)

    assert result.taken_in == 1
    assert heard == [True]
