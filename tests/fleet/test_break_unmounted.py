"""A folder that a share is to be mounted on is there without it, too."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import gateways
from tests.running import wait_until


@pytest.mark.xfail(strict=True, reason="an empty folder that nothing is mounted on counts as seen")
def test_folder_whose_share_is_not_mounted_here_is_taken_from_by_who_has_it(
    tmp_path: Path, server: Emulator, database: str, monkeypatch: pytest.MonkeyPatch
):
    drop, unmounted = tmp_path / "z", tmp_path / "unmounted"
    unmounted.mkdir()
    mount = f'mount --bind {shlex.quote(str(unmounted))} {shlex.quote(str(drop))} && exec "$0" "$@"'
    started = subprocess.Popen

    def without_the_share(words: list[str], executable: str, **more: Any) -> subprocess.Popen[bytes]:
        return started(["unshare", "--mount", "sh", "-c", mount, executable, *words[1:]], **more)

    with gateways(tmp_path, server, database, drop=str(drop), more_drops=1) as two:
        two.start("a")
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", without_the_share)
            b = two.start("b", env={"PATH": "/usr/bin:/bin"})
        wait_until(lambda: two.claims().get(two.worker_of(b), set()) - {"upkeep"}, what="its part")

        two.feed(3)
        two.wait_confirmed(within_seconds=40)
