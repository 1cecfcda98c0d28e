"""``ingestd demo`` as a person runs it: what it says of refused files, and where the images can be seen."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.emulating import get
from tests.emulator_peer import scan
from tests.running import PROGRAM, environment, wait_until

REMARK = "DICOM100: (0010,0020) - The required tag '(0010,0020)' is missing."


def start(*words: str, cwd: Path, viewer: Path | None = None) -> subprocess.Popen[str]:
    surroundings = {name: value for name, value in environment().items() if name != "INGESTD_OHIF"}
    surroundings |= {"TMPDIR": str(cwd), "COLUMNS": "400"}
    if viewer is not None:
        surroundings["INGESTD_OHIF"] = str(viewer)
    return subprocess.Popen(
        [*PROGRAM, "demo", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings, cwd=cwd,
    )  # fmt: skip


class Demos(NamedTuple):
    """What two demos said: one that is kept, with --json, and one that is not; the viewer is given to both."""

    kept: str
    plain: str
    folder: Path


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demos]:
    """Both at once, on a file that the server stores and one that it refuses: it has no Patient ID."""
    folder = tmp_path_factory.mktemp("demo")
    files, viewer = folder / "files", folder / "viewer"
    files.mkdir()
    viewer.mkdir()
    (files / "good.dcm").write_bytes(scan())
    (files / "nobody.dcm").write_bytes(scan({0x00100020: None}))
    (viewer / "index.html").write_text("<html>the viewer</html>")
    kept = start(str(files), "--keep", "--json", "--viewer", str(viewer), cwd=folder)
    plain = start(str(files), cwd=folder, viewer=viewer)
    said = [process.communicate(timeout=120) for process in (kept, plain)]

    assert kept.returncode == 0, said
    told = json.loads(said[0][0])
    processes = [psutil.Process(told[name]) for name in ("daemon_pid", "server_pid")]
    try:
        assert plain.returncode == 0, said
        yield Demos(said[0][0], said[1][0], folder)
    finally:
        for process in processes:
            process.terminate()
    wait_until(lambda: not any(process.is_running() for process in processes), what="the end of server and daemon")


def test_kept_demo_says_where_the_images_are_and_serves_them(demos):
    told = json.loads(demos.kept)

    assert b"the viewer" in get(told["viewer"], accept="*/*")
    assert told["url"].startswith(told["viewer"])
    assert told["counts"] == {"CONFIRMED": 1, "FAILED": 1}
    assert [file["remark"] for file in told["files"]] == ["", REMARK]


def test_demo_that_is_not_kept_shows_remarks_and_that_the_viewer_needs_keep(demos):
    assert f"it said: {REMARK}" in demos.plain
    assert demos.plain.rstrip().endswith(
        "with --keep both stay, each file can be asked about and the images can be looked at"
    )
    assert "see the images" not in demos.plain
    assert [str(path) for path in demos.folder.glob("ingestd-demo-*")] == [json.loads(demos.kept)["folder"]]


def test_folder_that_is_no_viewer_is_refused_before_anything_starts(tmp_path):
    process = start("--viewer", str(tmp_path), cwd=tmp_path)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "there is no index.html" in said
