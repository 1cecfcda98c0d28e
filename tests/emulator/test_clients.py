"""Other people's clients against the embedded server: dicomweb-client, curl, and OHIF in a browser."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.builders import fresh_uid, instance_bytes
from tests.emulator_peer import Peer, multipart, scan

pydicom = pytest.importorskip("pydicom")
dicomweb_client = pytest.importorskip("dicomweb_client")
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def client(server: Emulator) -> Iterator[object]:
    one = dicomweb_client.DICOMwebClient(server.url)
    yield one
    one._session.close()


def test_every_call_of_dicomweb_client(client):
    study, series, sop = fresh_uid(), fresh_uid(), fresh_uid()
    file = instance_bytes(study_uid=study, series_uid=series, sop_uid=sop, rows=64, columns=64)
    sent = pydicom.dcmread(io.BytesIO(file))

    # Its reader wants a content type without the charset that the service sends, and gives an empty data set.
    client.store_instances([sent])

    assert client.search_for_studies(search_filters={"StudyInstanceUID": study})[0]["0020000D"]["Value"] == [study]
    assert client.search_for_studies(search_filters={"PatientName": "tes"}, fuzzymatching=True, limit=1, offset=0)
    assert client.search_for_series(study)[0]["0020000E"]["Value"] == [series]
    assert client.search_for_series(search_filters={"SeriesInstanceUID": series}, fields=["Modality"])
    assert client.search_for_instances(study, series)[0]["00080018"]["Value"] == [sop]
    assert client.search_for_instances(study)
    assert client.search_for_instances(search_filters={"SOPInstanceUID": sop})
    for got in (
        client.retrieve_study(study)[0],
        client.retrieve_series(study, series)[0],
        client.retrieve_instance(study, series, sop),
    ):
        assert got.PixelData == sent.PixelData
    assert client.retrieve_study_metadata(study)[0]["00080018"]["Value"] == [sop]
    assert client.retrieve_series_metadata(study, series)
    assert client.retrieve_instance_metadata(study, series, sop)["00280010"]["Value"] == [64]
    # Its default for frames, type="*/*", is not acceptable to the service.
    octets = (("application/octet-stream", "*"),)
    assert client.retrieve_instance_frames(study, series, sop, [1], media_types=octets)[0] == sent.PixelData
    assert client.retrieve_instance_rendered(study, series, sop, media_types=("image/png",)).startswith(b"\x89PNG")
    assert (
        client.retrieve_instance_frames_rendered(study, series, sop, [1], media_types=("image/jpeg",))[:2]
        == b"\xff\xd8"
    )
    client.delete_instance(study, series, sop)
    assert client.search_for_studies(search_filters={"StudyInstanceUID": study}) == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_as_in_the_tutorials(server, tmp_path):
    study, series, sop = fresh_uid(), fresh_uid(), fresh_uid()
    file = scan(study=study, series=series, sop=sop)
    (tmp_path / "one.dcm").write_bytes(file)
    (tmp_path / "body").write_bytes(multipart([file]))

    def curl(*words: str) -> str:
        done = subprocess.run(
            ["curl", "-sS", "-w", "\n%{http_code}", *words], capture_output=True, check=True, timeout=30, cwd=tmp_path
        )
        return done.stdout.decode("latin-1").rsplit("\n", 1)[1]

    accept = ("--header", "Accept: application/dicom+json")
    assert (
        curl(f"{server.url}/studies", "--data-binary", "@one.dcm", *accept, "-H", "Content-Type: application/dicom")
        == "200"
    )
    related = 'Content-Type: multipart/related; type="application/dicom"; boundary=a-boundary-of-the-tests'
    assert curl(f"{server.url}/studies/{study}", "--data-binary", "@body", *accept, "-H", related) == "409"
    path = f"{server.url}/studies/{study}/series/{series}/instances/{sop}"
    assert curl(path, "-H", "Accept: application/dicom; transfer-syntax=*", "-o", "got.dcm") == "200"
    assert (tmp_path / "got.dcm").read_bytes()[128:] == file[128:]
    assert curl(f"{path}/metadata", *accept) == "200"
    assert curl(f"{server.url}/studies?PatientID=PID-1", *accept) == "200"
    assert curl(f"{server.url}/changefeed") == "200"
    assert curl("--request", "DELETE", f"{server.url}/studies/{study}") == "204"
    assert (
        curl(f"{server.url}/studies", "--data-binary", "@one.dcm", *accept, "-H", "Content-Type: text/plain") == "415"
    )


def test_page_from_elsewhere_may_use_it_with_cors():
    with Emulator(fsync=False, cors=True) as server, Peer(server.root) as peer:
        asked = peer.call(
            "OPTIONS", "/studies", headers={"Origin": "http://x", "Access-Control-Request-Method": "POST"}
        )
        answer = peer.get("/changefeed", None, headers={"Origin": "http://x"})

    assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (204, "*")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


def test_viewer_files_are_served_with_their_configuration(tmp_path):
    (tmp_path / "index.html").write_text("<html>the viewer</html>")
    (tmp_path / "app.js").write_text("1;")
    with Emulator(fsync=False, viewer=tmp_path) as server, Peer(server.root, "") as peer:
        page, deep, script = (peer.get(path, "*/*") for path in ("", "viewer?StudyInstanceUIDs=1.2", "app.js"))
        config = peer.get("app-config.js", "*/*")

        assert [each.text for each in (page, deep, script)] == ["<html>the viewer</html>"] * 2 + ["1;"]
        assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert f'"qidoRoot": "{server.root}/v2"' in config.text
        assert peer.get("nothing.js", "*/*").status_code == 404
        assert peer.get("%2e%2e/%2e%2e/etc/passwd", "*/*").text == "<html>the viewer</html>"
        assert "Studies" in peer.get("emulator", "*/*").text
        assert peer.get("v2/changefeed", None).status_code == 200


def test_example_of_the_readme_runs_as_it_stands(tmp_path):
    section = README.read_text(encoding="utf-8").partition("## The embedded server\n")[2].partition("\n## ")[0]
    example = section.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "scan.dcm").write_bytes(scan())

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(README.parent)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "\ndropped\n" in done.stdout
    assert "0020000D" in done.stdout
