"""Two bind mounts of one filesystem: the same device number, and yet no rename between them.

That is what systemd's ReadWritePaths makes of two folders, and a container of two volumes on one disk.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from tests.builders import write_instance
from tests.running import PROGRAM, QUICK_INBOX, Site, environment

SHARED = Path("/dev/shm")


def in_a_namespace(*commands: str) -> list[str]:
    """Run shell commands where mounts are nobody else's."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(commands)]


def why_not() -> str:
    if os.geteuid() != 0:
        return "only root can mount"
    try:
        ran = subprocess.run(in_a_namespace("mount --bind /tmp /tmp"), capture_output=True, check=False)
    except FileNotFoundError:
        return "unshare is not installed (Debian package util-linux)"
    return "" if ran.returncode == 0 else "mounting is not allowed here"


def test_a_refused_file_from_another_filesystem_is_refused_once(tmp_path):
    """Its copy lies in rejected/; unless the row remembers the source, each scan would refuse that anew."""
    if not SHARED.is_dir() or SHARED.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem here")
    with tempfile.TemporaryDirectory(dir=SHARED) as drop:
        site = Site(tmp_path / "site", "http://127.0.0.1:9/v2", inboxes=[{"path": drop, **QUICK_INBOX}])
        Path(drop, "readme.txt").write_text("not an image " * 20)

        assert site.run_once().returncode == 0
        assert site.run_once().returncode == 0

        assert list(Path(drop).rglob("*.txt")) == []
    assert site.states() == {"REJECTED": 1}


def test_a_spool_on_a_disk_that_is_mounted_read_only_is_no_matter_of_permission(tmp_path):
    """What a disk becomes after an error; "become the user root", said root."""
    if reason := why_not():
        pytest.skip(reason)
    site = Site(tmp_path / "site", "http://127.0.0.1:9/v2")
    site.spool.mkdir(mode=0o700)
    spool = shlex.quote(str(site.spool))
    check = shlex.join([*PROGRAM, "check", "-c", str(site.config_file)])

    ran = subprocess.run(
        in_a_namespace(f"mount --bind {spool} {spool}", f"mount -o remount,ro,bind {spool}", check),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )

    [line] = [line for line in ran.stdout.splitlines() if line.startswith("PROBLEM  spool")]
    assert "mounted read-only" in line, ran.stdout
    assert ran.returncode == ExitCode.CONFIGURATION


@pytest.mark.slow
def test_files_are_copied_where_a_rename_cannot_be(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    with Emulator(fsync=False) as server:
        site = Site(tmp_path / "site", server.url)
        site.spool.mkdir(mode=0o700)
        for number in range(20):
            write_instance(site.drop / f"deep{number % 3}" / f"image{number}")
        (site.drop / "readme.txt").write_text("not an image " * 20)
        binds = [
            f"mount --bind {shlex.quote(str(folder))} {shlex.quote(str(folder))}" for folder in (site.drop, site.spool)
        ]
        run = [*PROGRAM, "run", "-c", str(site.config_file), "--once", "--timeout", "60s"]

        ran = subprocess.run(
            in_a_namespace(*binds, shlex.join(run), shlex.join(run)),
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
        )

    assert ran.returncode == 0, ran.stderr
    assert site.states() == {"CONFIRMED": 20, "REJECTED": 1}
    assert [path for path in site.drop.rglob("*") if path.is_file()] == []
