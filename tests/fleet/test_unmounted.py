"""A folder that a share is to be mounted on is there without it, too."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import gateways
from tests.running import wait_until


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_folder_whose_share_is_not_mounted_here_is_taken_from_by_who_has_it(
    tmp_path: Path, server: Emulator, database: str, monkeypatch: pytest.MonkeyPatch
):
    bare, share = tmp_path / "a-bare", tmp_path / "share"
    share.mkdir()
    mount = f'mount --bind {shlex.quote(str(share))} {shlex.quote(str(bare))} && exec "$0" "$@"'
    started = subprocess.Popen

    def with_the_share(words: list[str], executable: str, **more: Any) -> subprocess.Popen[bytes]:
        return started(["unshare", "--mount", "sh", "-c", mount, executable, *words[1:]], **more)

    with gateways(tmp_path, server, database, drop=str(bare), more_drops=1) as two:
        here = two.drops[1]
        a = two.start("a")
        wait_until(lambda: len(two.claims().get(two.worker_of(a), set())) == 3, what="all that there is")
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", with_the_share)
            b = two.start("b", env={"PATH": os.environ["PATH"]})
        wait_until(lambda: two.claims().get(two.worker_of(b)) == {bare.name}, what="what it alone has mounted")
        assert two.claims()[two.worker_of(a)] == {here.name, "upkeep"}

        two.feed(3, drop=share)
        two.wait_confirmed()
