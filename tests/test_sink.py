"""The benchmark's null sink must name what it was sent, in C and in Python alike, or the benchmark measures nothing."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.sink import Sink, compile_sink, local_certificate
from tests.builders import IMPLICIT, fresh_uid, instance_bytes

BOUNDARY = "a-boundary"
HEADERS = {"Content-Type": f"multipart/related; boundary={BOUNDARY}"}
SIZES = [1, 60, 400]


@pytest.fixture(params=["C", "Python"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    if request.param == "C" and not shutil.which("cc"):
        pytest.skip("no C compiler here")
    with Sink(compiled=request.param == "C") as running:
        yield running


def multipart(files: list[bytes], *, boundary: str = BOUNDARY, padding: str = "") -> bytes:
    line = f"--{boundary}{padding}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(line + file + b"\r\n" for file in files) + f"--{boundary}--{padding}\r\n".encode()


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


@pytest.mark.parametrize("at", [4, 3_000, 700_000])
def test_sink_takes_no_bytes_of_a_file_for_a_delimiter(sink: Sink, at: int):
    """In the preamble, near the head and beyond what is read at once."""
    others = [
        b"--%b\r\n",  # not at the start of a line
        b"\n--%b\r\n",  # a line ends in CRLF
        b"\r\n-%b\r\n",
        b"\r\n--%bc\r\n",  # another boundary, of which this one is the beginning
        b"\r\n--%b-\r\n",
        b"\r\n--%b--c\r\n",
        b"\r\n--%b" + b" " * 90 + b"c\r\n",
        b"\r\n--%b \n",
        b"--%b--\r\n",
    ]
    uids = [fresh_uid(3) for _ in others]
    files = []
    for uid, other in zip(uids, others, strict=True):
        whole = instance_bytes(sop_uid=uid, rows=700, columns=700)
        held = other.replace(b"%b", BOUNDARY.encode())
        files.append(whole[:at] + held + whole[at + len(held) :])

    assert store(sink, multipart(files), f"multipart/related; boundary={BOUNDARY}") == uids
    assert sink.counts().instances == len(uids)


def test_sink_finds_delimiters_wherever_the_body_is_cut(sink: Sink):
    uids = [fresh_uid(3) for _ in range(3)]
    body = multipart([instance_bytes(sop_uid=uid) for uid in uids])
    at = body.index(b"\r\n--" + BOUNDARY.encode())

    for cut in range(at, at + len(BOUNDARY) + 8):
        assert store(sink, iter([body[:cut], body[cut:]]), f"multipart/related; boundary={BOUNDARY}") == uids
    last = body.rindex(b"\r\n--" + BOUNDARY.encode())
    for cut in range(last, len(body)):
        assert store(sink, iter([body[:cut], body[cut:]]), f"multipart/related; boundary={BOUNDARY}") == uids


def test_sink_passes_over_what_stands_before_and_behind_the_parts(sink: Sink):
    uid = fresh_uid(3)
    other = multipart([instance_bytes(sop_uid=fresh_uid(3))])
    body = b"no --" + BOUNDARY.encode() + b"\r\n" + multipart([instance_bytes(sop_uid=uid)]) + other

    assert store(sink, body, f"multipart/related; boundary={BOUNDARY}") == [uid]
    assert sink.counts().instances == 1
    assert sink.counts().bytes == len(body)


def test_sink_takes_a_last_line_without_an_end(sink: Sink):
    uid = fresh_uid(3)

    body = multipart([instance_bytes(sop_uid=uid)]).removesuffix(b"\r\n")
    assert store(sink, body, f"multipart/related; boundary={BOUNDARY}") == [uid]


@pytest.mark.parametrize(
    "boundary, parameters",
    [
        ("b", "boundary=b"),
        ("b", "Boundary=b ; type=x"),
        ("b", 'type="a;boundary=c"; boundary=b'),
        ("b", "x-boundary=c; boundary=b"),
        ("with space;=", 'boundary="with space;="; type=x'),
        ("a(b", 'boundary="a\\(b"'),
        ("x" * 70, "boundary=" + "x" * 70),
    ],
)
def test_sink_takes_the_boundary_from_the_header(sink: Sink, boundary: str, parameters: str):
    uids = [fresh_uid(3) for _ in range(2)]
    body = multipart([instance_bytes(sop_uid=uid) for uid in uids], boundary=boundary, padding=" \t")

    assert store(sink, body, f"multipart/related; {parameters}") == uids


def test_sink_counts_nothing_of_a_body_that_it_refuses(sink: Sink):
    body = multipart([instance_bytes(), b"no instance"])

    with pytest.raises(urllib.error.HTTPError) as refused:
        store(sink, body, f"multipart/related; boundary={BOUNDARY}")
    with refused.value as error:
        assert error.code == 400
    assert (sink.counts().requests, sink.counts().instances) == (0, 0)


def test_sink_answers_no_body_without_its_closing_delimiter(sink: Sink):
    body = multipart([instance_bytes()])

    for end in (b"--\r\n", b"-\r\n", f"--{BOUNDARY}--\r\n".encode()):
        with pytest.raises(http.client.RemoteDisconnected):
            store(sink, body.removesuffix(end), f"multipart/related; boundary={BOUNDARY}")
    assert (sink.counts().requests, sink.counts().instances) == (0, 0)


@pytest.mark.parametrize("compiled", [True, False])
def test_sink_counts_handshakes_and_which_of_them_went_on_with_a_session(tmp_path: Path, compiled: bool):
    if compiled and not (shutil.which("cc") and compile_sink(tmp_path, tls=True)):
        pytest.skip("no C compiler here, or no headers of OpenSSL")
    uid = fresh_uid(3)
    with Sink(compiled=compiled, tls=local_certificate(tmp_path)) as sink:
        session: ssl.SSLSession | None = None
        context = sink.trust
        assert context is not None
        for _ in range(2):
            plain = socket.create_connection(("127.0.0.1", sink.port), timeout=30)
            with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secure:
                for _ in range(2):
                    connection = http.client.HTTPConnection("127.0.0.1")
                    connection.sock = secure
                    connection.request("POST", "/v2/studies", multipart([instance_bytes(sop_uid=uid)]), HEADERS)
                    assert uid.encode() in connection.getresponse().read()
                session = secure.session
        found = sink.counts()

    assert (found.requests, found.instances) == (4, 4)
    assert (found.handshakes, found.resumed) == (2, 1)
