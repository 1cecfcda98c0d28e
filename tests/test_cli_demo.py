"""``ingestd demo`` as a person runs it: what it says of refused files, and where the images can be seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.emulating import get
from tests.emulator_peer import scan
from tests.running import PROGRAM, environment, wait_until

REMARK = "DICOM100: (0010,0020) - The required tag '(0010,0020)' is missing."


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """One file that the server stores and one that it refuses: it has no Patient ID."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "good.dcm").write_bytes(scan())
    (folder / "nobody.dcm").write_bytes(scan({0x00100020: None}))
    return folder


@pytest.fixture
def viewer(tmp_path: Path) -> Path:
    folder = tmp_path / "viewer"
    folder.mkdir()
    (folder / "index.html").write_text("<html>the viewer</html>")
    return folder


def demo(*words: str, cwd: Path, viewer: Path | None = None) -> subprocess.CompletedProcess[str]:
    surroundings = {name: value for name, value in environment().items() if name != "INGESTD_OHIF"}
    surroundings |= {"TMPDIR": str(cwd), "COLUMNS": "400"}
    if viewer is not None:
        surroundings["INGESTD_OHIF"] = str(viewer)
    return subprocess.run(
        [*PROGRAM, "demo", *words], capture_output=True, text=True, timeout=120, check=False, env=surroundings, cwd=cwd
    )


def test_kept_demo_says_where_the_images_are_and_serves_them(files, viewer, tmp_path):
    ran = demo(str(files), "--keep", "--json", "--viewer", str(viewer), cwd=tmp_path)

    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    processes = [psutil.Process(told[name]) for name in ("server_pid", "daemon_pid")]
    try:
        assert b"the viewer" in get(told["viewer"], accept="*/*")
        assert told["url"].startswith(told["viewer"])
        assert told["counts"] == {"CONFIRMED": 1, "FAILED": 1}
        assert [file["remark"] for file in told["files"]] == ["", REMARK]
    finally:
        for process in reversed(processes):
            os.kill(process.pid, signal.SIGTERM)
    wait_until(lambda: not any(process.is_running() for process in processes), what="the end of server and daemon")


def test_demo_that_is_not_kept_shows_remarks_and_that_the_viewer_needs_keep(files, viewer, tmp_path):
    ran = demo(str(files), cwd=tmp_path, viewer=viewer)

    assert ran.returncode == 0, ran.stderr
    assert f"it said: {REMARK}" in ran.stdout
    assert "with --keep" in ran.stdout
    assert "see the images" not in ran.stdout
    assert not list(tmp_path.glob("ingestd-demo-*"))


def test_folder_that_is_no_viewer_is_refused_before_anything_starts(files, tmp_path):
    ran = demo("--viewer", str(files), cwd=tmp_path)

    assert ran.returncode == 2
    assert "there is no index.html" in ran.stderr
