"""Files that stay in their folder are sent by who sees them."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import gateways
from tests.running import QUICK_INBOX, wait_until


def test_file_that_stays_in_its_folder_is_sent_by_who_sees_it(
    tmp_path: Path, server: Emulator, database: str, monkeypatch: pytest.MonkeyPatch
):
    nas, unmounted = tmp_path / "nas", tmp_path / "unmounted"
    nas.mkdir()
    unmounted.mkdir()
    drop = nas / "drop"
    inboxes = [
        {"path": str(drop), **QUICK_INBOX, "take": "in_place"},
        {"path": str(tmp_path / "drop1"), **QUICK_INBOX},
    ]
    mount = f'mount --bind {shlex.quote(str(unmounted))} {shlex.quote(str(nas))} && exec "$0" "$@"'
    started = subprocess.Popen

    def without_the_share(words: list[str], executable: str, **more: Any) -> subprocess.Popen[bytes]:
        return started(["unshare", "--mount", "sh", "-c", mount, executable, *words[1:]], **more)

    with gateways(tmp_path, server, database, drop=str(drop), more_drops=1, inboxes=inboxes) as two:
        a = two.start("a")
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", without_the_share)
            b = two.start("b", env={"PATH": "/usr/bin:/bin"})
        wait_until(lambda: two.claims().get(two.worker_of(b)) == {"drop1"}, what="its part")

        for _ in range(12):
            two.feed(1)
        two.wait_for(CONFIRMED=12)
        assert two.sql("SELECT DISTINCT worker_id FROM attempt") == [(two.worker_of(a),)]

        (gone,) = two.feed(1, drop=two.drops[1])
        wait_until(lambda: gone.sop_uid in two.posted(), what="what b took in")
        b.kill()
        two.wait_for(CONFIRMED=13)
