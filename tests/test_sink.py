"""The benchmark's null sink must name what it was sent, in C and in Python alike, or the benchmark measures nothing."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.benchmarks.sink import Sink
from tests.builders import IMPLICIT, fresh_uid, instance_bytes

BOUNDARY = "a-boundary"
SIZES = [1, 60, 400]


@pytest.fixture(params=["C", "Python"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    if request.param == "C" and not shutil.which("cc"):
        pytest.skip("no C compiler here")
    with Sink(compiled=request.param == "C") as running:
        yield running


def multipart(files: list[bytes]) -> bytes:
    parts = [f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file + b"\r\n" for file in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def store(sink: Sink, body: bytes | Iterator[bytes], content_type: str) -> list[str]:
    request = urllib.request.Request(
        f"{sink.url}/studies", data=body, method="POST", headers={"Content-Type": content_type}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        items = json.load(answer)["00081199"]["Value"]
    return [item["00081155"]["Value"][0] for item in items]


def test_sink_names_every_instance_of_a_multipart_body(sink: Sink):
    uids = [fresh_uid(3) for _ in range(300)]
    files = [instance_bytes(sop_uid=uid, rows=size, columns=size) for uid, size in zip(uids, SIZES * 100, strict=True)]

    named = store(sink, multipart(files), f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"')

    assert named == uids
    assert sink.counts().instances == 300


def test_sink_names_every_instance_of_a_chunked_body(sink: Sink):
    uids = [fresh_uid(3) for _ in range(20)]
    body = multipart([instance_bytes(sop_uid=uid) for uid in uids])
    chunks = iter([body[at : at + 777] for at in range(0, len(body), 777)])

    assert store(sink, chunks, f"multipart/related; boundary={BOUNDARY}") == uids


def test_sink_names_a_single_instance_and_one_without_file_meta(sink: Sink):
    uid = fresh_uid(3)

    assert store(sink, instance_bytes(sop_uid=uid), "application/dicom") == [uid]
    assert store(sink, instance_bytes(sop_uid=uid, meta=False), "application/dicom") == [uid]
    bare = instance_bytes(sop_uid=uid, meta=False, transfer_syntax=IMPLICIT)
    assert store(sink, bare, "application/dicom") == [uid]


def test_sink_is_taken_for_a_server_with_a_change_feed(sink: Sink):
    with urllib.request.urlopen(f"{sink.url}/changefeed?limit=1", timeout=30) as answer:
        assert json.load(answer) == []
    with urllib.request.urlopen(f"{sink.url}/changefeed/latest", timeout=30) as answer:
        assert answer.status == 204
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{sink.url}/studies/1/series/2/instances/3", timeout=30)
    with refused.value as error:
        assert error.code == 404
