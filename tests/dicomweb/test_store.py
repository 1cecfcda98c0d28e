"""Store: what leaves the machine, what its answer means, and what is known when there is none."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import threading
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestd.dicomweb import (
    BearerAuth,
    DicomWebClient,
    DicomWebError,
    FileChanged,
    MisconfiguredServer,
    NotAuthorized,
    NotFound,
    Refused,
    StorePart,
    Throttled,
    Timeouts,
    Tls,
    TooLarge,
    Unavailable,
    Unintelligible,
    failure_meaning,
)
from ingestd.dicomweb.connections import SEND_SIZE, HttpSession, _Connection
from ingestd.dicomweb.deadlines import Flight
from ingestd.dicomweb.store_body import READ_SIZE, SEND_FROM, WITHHELD, StoreBody
from tests.builders import instance_bytes
from tests.http_server import Conversation, ScriptedServer, answer, certificate, server_context

KEEPALIVE = (
    *(socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT),
    *(socket.TCP_USER_TIMEOUT, socket.TCP_NODELAY),
)
QUICK = Timeouts(connect=timedelta(seconds=5), read=timedelta(seconds=5), total=timedelta(seconds=0.4), min_rate=10**8)


def part_of(
    path: Path, content: bytes, *, sop_uid: str | None = "1.2.3", offset: int = 140, **more: bytes
) -> StorePart:
    path.write_bytes(content)
    return StorePart(
        path=path,
        size_bytes=len(content),
        sop_uid=sop_uid,
        dataset_offset=offset,
        digest=hashlib.sha256(content[offset:]).hexdigest(),
        meta_digest=hashlib.sha256(content[:offset]).hexdigest(),
        **more,
    )


def parts_of(folder: Path, sizes: Sequence[int]) -> list[StorePart]:
    return [
        part_of(folder / str(number), os.urandom(size), sop_uid=f"1.2.{number}") for number, size in enumerate(sizes)
    ]


def verdicts(*, stored: Sequence[str] = (), failed: Sequence[tuple[str | None, int]] = ()) -> bytes:
    dataset: dict[str, object] = {}
    if failed:
        items = []
        for uid, reason in failed:
            item: dict[str, object] = {"00081197": {"vr": "US", "Value": [reason]}}
            if uid is not None:
                item["00081155"] = {"vr": "UI", "Value": [uid]}
            items.append(item)
        dataset["00081198"] = {"vr": "SQ", "Value": items}
    if stored:
        items = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in stored]
        dataset["00081199"] = {"vr": "SQ", "Value": items}
    return json.dumps(dataset).encode()


def multipart_contents(body: bytes, content_type: str) -> list[bytes]:
    boundary = content_type.partition("boundary=")[2].encode()
    pieces = body.split(b"--" + boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    contents = []
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        assert head == b"\r\nContent-Type: application/dicom"
        assert content.endswith(b"\r\n")
        contents.append(content[:-2])
    return contents


@pytest.mark.parametrize(
    "sizes",
    [[1], [0, 5, 0], [200_000] * 9, [SEND_FROM + 1], [WITHHELD, WITHHELD + 1, 3 * SEND_FROM + 7, 10], [1000] * 300],
)
def test_body_is_as_long_as_it_says_and_holds_every_file_unchanged(tmp_path, sizes):
    body = StoreBody(parts_of(tmp_path, sizes))

    sent = b"".join(bytes(piece) for piece in body)

    assert len(body) == len(sent)
    assert [part.path.read_bytes() for part in body.parts] == multipart_contents(sent, body.content_type)
    assert sent == b"".join(bytes(piece) for piece in body), "the same again from the start"


def test_boundary_is_random_and_differs_between_requests(tmp_path):
    parts = parts_of(tmp_path, [10])

    assert StoreBody(parts).content_type != StoreBody(parts).content_type
    assert len(StoreBody(parts).content_type.partition("boundary=")[2]) == 32


def test_generated_file_meta_stands_before_the_data_set(tmp_path):
    part = part_of(tmp_path / "bare", b"data set", offset=0, prefix=b"P" * (2 * SEND_FROM))

    with ScriptedServer(answer(verdicts(stored=["1.2.3"]))) as server, DicomWebClient(server.url) as client:
        client.store([part])

    (request,) = server.requests
    content = multipart_contents(request.body, request.headers["content-type"])
    assert content == [b"P" * (2 * SEND_FROM) + b"data set"]


def test_store_says_what_became_of_each_instance(tmp_path):
    """Warnings, failures with remarks, failures without a UID, foreign UIDs and silence are told apart."""
    parts = parts_of(tmp_path, [500] * 5)
    dataset = json.loads(verdicts(stored=["1.2.0", "1.2.1 ", "9.9"], failed=[(" 1.2.2", 45070), (None, 43264)]))
    dataset["00081199"]["Value"][0]["00081196"] = {"vr": "US", "Value": [1]}
    dataset["00081199"]["Value"][0]["00741048"] = {
        "vr": "SQ",
        "Value": [{"00000902": {"vr": "LO", "Value": ["DICOM100: (0010,0020) - missing"]}}],
    }
    reply = answer(
        json.dumps(dataset).encode(), status="202 Accepted", headers={"Date": "Sat, 21 Nov 2026 10:00:00 GMT"}
    )

    with ScriptedServer(reply) as server, DicomWebClient(server.url) as client:
        result = client.store(parts)

    assert set(result.stored) == {"1.2.0", "1.2.1"}
    assert result.stored["1.2.0"].warning_reason == 1
    assert result.stored["1.2.0"].failed_attributes == ("DICOM100: (0010,0020) - missing",)
    assert result.failed["1.2.2"].reason == 0xB00E
    assert result.failed["1.2.2"].meaning == "already exists"
    assert result.anonymous_failures == (43264,)
    assert result.foreign == ("9.9",)
    assert result.unnamed == ("1.2.3", "1.2.4")
    assert result.server_date == datetime(2026, 11, 21, 10, tzinfo=UTC)
    assert result.body_bytes_left == len(server.requests[0].body)
    assert not result.is_all_stored


def test_instance_named_as_stored_and_as_failed_has_no_verdict(tmp_path):
    reply = answer(verdicts(stored=["1.2.0"], failed=[("1.2.0", 272)]), status="202 Accepted")

    with ScriptedServer(reply) as server, DicomWebClient(server.url) as client:
        result = client.store(parts_of(tmp_path, [10]))

    assert (dict(result.stored), dict(result.failed)) == ({}, {})
    assert result.contradicted == ("1.2.0",)


def test_dicom_xml_answer_is_read_as_well(tmp_path):
    xml = b"""<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
      <DicomAttribute tag="00081198" vr="SQ"><Item number="1">
        <DicomAttribute tag="00081155" vr="UI"><Value number="1">1.2.1</Value></DicomAttribute>
        <DicomAttribute tag="00081197" vr="US"><Value number="1">272</Value></DicomAttribute></Item></DicomAttribute>
      <DicomAttribute tag="00081199" vr="SQ"><Item number="1">
        <DicomAttribute tag="00081155" vr="UI"><Value number="1">1.2.0</Value></DicomAttribute></Item></DicomAttribute>
      </NativeDicomModel>"""

    with (
        ScriptedServer(answer(xml, content_type="application/dicom+xml; charset=utf-8")) as server,
        DicomWebClient(server.url) as client,
    ):
        result = client.store(parts_of(tmp_path, [10, 10]))

    assert list(result.stored) == ["1.2.0"]
    assert result.failed["1.2.1"].reason == 0x0110


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><NativeDicomModel>&a;</NativeDicomModel>'


@pytest.mark.parametrize(
    "reply, error",
    [
        (answer(b"{", status="200 OK"), Unintelligible),
        (answer(b"[" * 100_000 + b"]" * 100_000), Unintelligible),
        (answer(b'{"00081199":' + b'{"a":' * 70 + b"1" + b"}" * 71), Unintelligible),
        (answer(b'{"00081199": {"vr": "SQ"}, "00081199": {"vr": "SQ"}}'), Unintelligible),
        (answer(b'{"00081199": {"vr": "SQ", "Value": ["1.2.0"]}}'), Unintelligible),
        (answer(b"[{}, {}]"), Unintelligible),
        (answer(b"\xff\xfe{}"), Unintelligible),
        (answer(BOMB, content_type="application/dicom+xml"), Unintelligible),
        (answer(b"<a>" * 1000, content_type="application/dicom+xml"), Unintelligible),
        (answer(b"OK", content_type="text/plain"), Unintelligible),
        (answer(b"{}", content_type=""), Unintelligible),
        (answer(b'{"00081199"', length=5000) + b"", Unintelligible),
        (answer(b"", status="204 No Content", content_type=""), Unintelligible),
        (answer(b"{}", headers={"Content-Encoding": "gzip"}), Unintelligible),
        (answer(b" " * (16 * 1024 * 1024 + 1)), Unintelligible),
        (answer(b"<html>Log in</html>", content_type="text/html; charset=utf-8"), MisconfiguredServer),
        (answer(b"", status="302 Found", headers={"Location": "/login"}), MisconfiguredServer),
        (answer(b"", status="307 Temporary Redirect", headers={"Location": "/elsewhere"}), MisconfiguredServer),
        (answer(b"no", status="400 Bad Request", content_type="text/plain"), Refused),
        (answer(b"no", status="415 Unsupported Media Type", content_type="text/plain"), Refused),
        (answer(b"no", status="404 Not Found", content_type="text/plain"), NotFound),
        (answer(b"no", status="413 Content Too Large", content_type="text/plain"), TooLarge),
        (answer(b"", status="401 Unauthorized"), NotAuthorized),
        (answer(b"", status="403 Forbidden"), NotAuthorized),
        (answer(b"", status="429 Too Many Requests"), Throttled),
        (answer(b"", status="500 Internal Server Error"), Unavailable),
        (answer(b"", status="503 Service Unavailable"), Unavailable),
        (answer(b"", status="424 Failed Dependency"), Unavailable),
        (b"this is not HTTP at all\r\n\r\n", Unintelligible),
        (b"HTTP/1.1 200 OK\r\nConte", Unintelligible),
    ],
)
def test_every_other_answer_is_an_error_of_its_class(tmp_path, reply, error):
    def play(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(reply)
        conversation.hang_up()

    with (
        ScriptedServer(play) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(DicomWebError) as raised,
    ):
        client.store(parts_of(tmp_path, [3000]))

    assert type(raised.value) is error
    assert raised.value.body_bytes_left == len(server.requests[0].body)
    assert raised.value.nothing_was_stored == (error in {NotAuthorized, Throttled, TooLarge})
    assert len(server.requests) == 1, "nothing is repeated, nothing is followed"


def test_400_that_names_instances_is_read_like_any_answer(tmp_path):
    reply = answer(verdicts(failed=[("1.2.0", 0xC122)]), status="400 Bad Request")

    with ScriptedServer(reply) as server, DicomWebClient(server.url) as client:
        result = client.store(parts_of(tmp_path, [10]))

    assert result.failed["1.2.0"].meaning == "transfer syntax not supported"


@pytest.mark.parametrize("text, seconds", [("7", 7), ("-3", None), ("9" * 30, 10**9), ("soon", None), ("0", 0)])
def test_retry_after_is_read_and_left_to_the_caller_to_clamp(tmp_path, text, seconds):
    reply = answer(b"", status="429 Too Many Requests", headers={"Retry-After": text})

    with ScriptedServer(reply) as server, DicomWebClient(server.url) as client, pytest.raises(Throttled) as raised:
        client.store(parts_of(tmp_path, [10]))

    assert raised.value.retry_after == (None if seconds is None else timedelta(seconds=seconds))


def test_retry_after_as_a_date_counts_from_the_servers_clock(tmp_path):
    headers = {"Date": "Sat, 21 Nov 2020 10:00:00 GMT", "Retry-After": "Sat, 21 Nov 2020 10:01:30 GMT"}

    with (
        ScriptedServer(answer(b"", status="503 Service Unavailable", headers=headers)) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unavailable) as raised,
    ):
        client.store(parts_of(tmp_path, [10]))

    assert raised.value.retry_after == timedelta(seconds=90)


@pytest.mark.parametrize("size", [100, WITHHELD - 1, WITHHELD + 1, 5 * SEND_FROM])
@pytest.mark.parametrize("where", ["meta", "content"])
def test_end_of_a_changed_file_never_leaves(tmp_path, size, where):
    before, changed = parts_of(tmp_path, [20_000, size + 140])
    with changed.path.open("r+b") as file:
        file.seek(3 if where == "meta" else size + 100)
        file.write(b"!!!!!!!!!!")
    received = bytearray()

    def play(conversation: Conversation) -> None:
        received.extend(conversation.wait_for_end())

    with (
        ScriptedServer(play) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(FileChanged) as raised,
    ):
        client.store([before, changed])

    assert (raised.value.why, raised.value.part_index, raised.value.sop_uid) == (where, 1, "1.2.1")
    assert changed.path.read_bytes()[-WITHHELD:] not in received
    assert raised.value.body_bytes_left >= len(received)
    if size < WITHHELD:
        assert raised.value.body_bytes_left == 0, "small parts are checked before anything of their buffer leaves"


@pytest.mark.parametrize("ahead", [0, 1023, 1024, 1025, 50_000])
@pytest.mark.parametrize("reads", [3, 4, 5, 6, 10])
def test_end_of_a_changed_file_is_withheld_however_its_reads_fill_the_buffer(tmp_path, ahead, reads):
    """Also where the last read brings the buffer to its brim: 1024 bytes ahead and five reads do."""
    for beyond in (-1, 0, 1, WITHHELD):
        changed = part_of(tmp_path / "changed", os.urandom(reads * READ_SIZE + beyond), prefix=bytes(ahead))
        with changed.path.open("r+b") as file:
            file.seek(200)
            file.write(b"!!!!!!!!!!")
        left: list[int] = []

        with pytest.raises(FileChanged):
            left.extend(len(piece) for piece in StoreBody([changed], single=True))

        assert sum(left) <= ahead + changed.size_bytes - WITHHELD


@pytest.mark.parametrize(
    "deed, why",
    [
        (lambda path: path.unlink(), "gone"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "size"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "size"),
        (
            lambda path: (path.rename(path.with_suffix(".away")), path.symlink_to(path.with_suffix(".away"))),
            "gone",
        ),
        (lambda path: (path.unlink(), os.mkfifo(path)), "gone"),
        (lambda path: (path.unlink(), path.mkdir()), "gone"),
    ],
)
def test_file_that_is_no_longer_what_it_was_is_not_sent(tmp_path, deed, why):
    (part,) = parts_of(tmp_path, [1000])
    deed(part.path)

    with (
        ScriptedServer(answer(b"")) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(FileChanged) as raised,
    ):
        client.store([part])

    assert raised.value.why == why
    assert raised.value.nothing_was_stored
    assert str(tmp_path) not in str(raised.value)


def test_plain_paths_and_open_files_can_be_stored_from_where_they_stand(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"from a path")
    reply = answer(verdicts(stored=["1.2.3", "1.2.4"]))

    with ScriptedServer(reply) as server, DicomWebClient(server.url) as client:
        opened = io.BytesIO(b"skipped, from memory")
        opened.seek(9)
        result = client.store([path, opened])

    (request,) = server.requests
    assert multipart_contents(request.body, request.headers["content-type"]) == [b"from a path", b"from memory"]
    assert set(result.stored) == {"1.2.3", "1.2.4"}, "UIDs that the caller did not know are taken from the answer"


def test_single_part_store_is_the_file_and_nothing_else(tmp_path):
    (part,) = parts_of(tmp_path, [70_000])

    with ScriptedServer(answer(verdicts(stored=["1.2.0"]))) as server, DicomWebClient(server.url) as client:
        client.store(
            [part],
            single=True,
            study_uid="1.2",
            upsert=True,
            expire_after=timedelta(days=1),
            meta={"LO-00091001": "x"},
        )

    (request,) = server.requests
    assert request.line == "PUT /v2/studies/1.2 HTTP/1.1"
    assert request.headers["content-type"] == "application/dicom"
    assert request.headers["msdicom-expiry-time-milliseconds"] == "86400000"
    assert request.headers["msdicom-meta-lo-00091001"] == "x"
    assert request.body == part.path.read_bytes()


def test_nothing_leaves_when_nobody_listens(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with (
        DicomWebClient(f"http://127.0.0.1:{port}/v2") as client,
        pytest.raises(Unavailable) as raised,
    ):
        client.store(parts_of(tmp_path, [10]))

    assert raised.value.nothing_was_stored
    assert "refused" in str(raised.value)


@pytest.mark.parametrize("read_first", [1, 300_000])
@pytest.mark.parametrize("reset", [False, True])
def test_connection_cut_during_the_upload_says_how_much_may_have_left(tmp_path, read_first, reset):
    parts = parts_of(tmp_path, [8_000_000])

    def play(conversation: Conversation) -> None:
        conversation.read_body(read_first)
        conversation.hang_up(reset=reset)

    with (
        ScriptedServer(play) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unavailable) as raised,
    ):
        client.store(parts)

    assert raised.value.body_bytes_left >= read_first
    assert not raised.value.nothing_was_stored
    assert not raised.value.timed_out


def test_reset_in_the_first_piece_of_the_body_does_not_read_as_nothing_left():
    """What was begun may have left: counted after it was sent, a reset meanwhile would read as "proven not sent"."""

    def play(conversation: Conversation) -> None:
        conversation.read_body(1)
        conversation.hang_up(reset=True)

    small = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]
    with ScriptedServer(play) as server, Flight(QUICK, size_bytes=10**9) as flight:
        server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection = _Connection("127.0.0.1", server.port, timeout=10, socket_options=small)
        with pytest.raises(OSError):
            connection.request("POST", "/", body=[bytes(SEND_SIZE), bytes(10)], headers={"Content-Length": "262154"})
        connection.close()

    assert flight.body_bytes_left == SEND_SIZE


def test_a_peer_that_is_gone_without_a_word_is_noticed_by_the_kernel():
    with (
        ScriptedServer(answer(b"[]")) as server,
        HttpSession(timeouts=QUICK, verify=True, cert=None) as session,
        session.get(server.url, stream=True) as response,
    ):
        found = response.raw.connection.sock
        kept = [found.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE]
        is_kept_alive = found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    assert is_kept_alive
    assert kept == [20, 10, 3, 5000, 1]


def test_no_cookie_of_a_server_comes_back_to_it(tmp_path):
    """A load balancer's cookie would bind all of us to one back end, and somebody else's session would be kept."""
    said = {"Set-Cookie": "session=abc; Path=/"}
    with (
        ScriptedServer(answer(verdicts(stored=["1.2.0"]), headers=said)) as server,
        DicomWebClient(server.url) as client,
    ):
        for _ in range(2):
            client.store(parts_of(tmp_path, [10]))

    assert [request.headers.get("cookie") for request in server.requests] == [None, None]


def test_answer_that_never_comes_ends_at_the_deadline(tmp_path):
    with (
        ScriptedServer(lambda conversation: conversation.wait_for_end()) as server,
        DicomWebClient(server.url, timeouts=QUICK) as client,
        pytest.raises(Unavailable) as raised,
    ):
        client.store(parts_of(tmp_path, [100]))

    assert raised.value.timed_out
    assert not raised.value.nothing_was_stored


def drip(data: bytes, stop: threading.Event) -> object:
    def play(conversation: Conversation) -> None:
        conversation.read_body()
        for number in range(len(data)):
            conversation.send(data[number : number + 1])
            if stop.wait(0.02):
                return

    return play


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX-Slow: " + b"y" * 10_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 500,
        answer(b" " * 10_000),
    ],
)
def test_answer_that_drips_ends_at_the_deadline(tmp_path, data):
    """A byte at a time keeps every socket timeout happy for ever; only the request's own deadline ends it."""
    stop = threading.Event()
    with ScriptedServer(drip(data, stop)) as server, DicomWebClient(server.url, timeouts=QUICK) as client:
        with pytest.raises(Unavailable) as raised:
            client.store(parts_of(tmp_path, [100]))
        stop.set()

    assert raised.value.timed_out
    assert raised.value.body_bytes_left == len(server.requests[0].body)


def test_server_that_reads_a_little_at_a_time_is_given_up(tmp_path):
    stop = threading.Event()

    def play(conversation: Conversation) -> None:
        while not stop.wait(0.02):
            conversation.read_body(16)

    with ScriptedServer(play) as server, DicomWebClient(server.url, timeouts=QUICK) as client:
        with pytest.raises(Unavailable) as raised:
            client.store(parts_of(tmp_path, [20_000_000]))
        stop.set()

    assert raised.value.timed_out
    assert 0 < raised.value.body_bytes_left < 20_000_000


def test_early_refusal_is_read_although_the_body_is_not_finished(tmp_path):
    """A 413 that comes at once is not lost in the reset that follows when the server does not read on."""

    def play(conversation: Conversation) -> None:
        conversation.send(answer(b"too large", status="413 Content Too Large", content_type="text/plain"))
        conversation.sock.shutdown(socket.SHUT_WR)
        conversation.wait_for_end()

    with (
        ScriptedServer(play) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(TooLarge) as raised,
    ):
        client.store(parts_of(tmp_path, [50_000_000]))

    assert raised.value.body_bytes_left < 50_000_000
    assert raised.value.nothing_was_stored


def test_interim_answers_do_not_stop_the_body(tmp_path):
    def play(conversation: Conversation) -> None:
        conversation.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        conversation.read_body()
        conversation.send(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(verdicts(stored=["1.2.0"])))

    with ScriptedServer(play) as server, DicomWebClient(server.url) as client:
        result = client.store(parts_of(tmp_path, [5_000_000]))

    assert result.is_all_stored
    assert len(server.requests[0].body) == result.body_bytes_left


def test_stale_connection_is_noticed_and_not_used(tmp_path):
    """The server closes an idle connection; the next request opens a new one instead of losing its body in the old."""
    closed = threading.Event()

    def play(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(answer(verdicts(stored=["1.2.0"])))
        conversation.hang_up()
        closed.set()

    with ScriptedServer(play) as server, DicomWebClient(server.url) as client:
        client.store(parts_of(tmp_path, [10]))
        assert closed.wait(5)
        result = client.store(parts_of(tmp_path, [10]))

    assert result.is_all_stored
    assert server.connections == 2


def test_connection_is_kept_between_requests_and_dropped_when_idle(tmp_path):
    reply = answer(verdicts(stored=["1.2.0"]))
    hasty = Timeouts(idle=timedelta(0))

    with ScriptedServer(reply) as server, DicomWebClient(server.url) as client:
        for _ in range(3):
            client.store(parts_of(tmp_path, [10]))
    with ScriptedServer(reply) as other, DicomWebClient(other.url, timeouts=hasty) as client:
        for _ in range(3):
            client.store(parts_of(tmp_path, [10]))

    assert (server.connections, other.connections) == (1, 3)


def test_environment_does_not_matter(tmp_path, monkeypatch):
    """A .netrc would replace the token, a proxy variable send it elsewhere."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login who password canary\n")
    (tmp_path / "netrc").chmod(0o600)
    (tmp_path / "token").write_text("our-token\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    with (
        ScriptedServer(answer(verdicts(stored=["1.2.0"]))) as server,
        DicomWebClient(server.url, auth=BearerAuth(file=tmp_path / "token")) as client,
    ):
        client.store(parts_of(tmp_path, [10]))

    assert server.requests[0].headers["authorization"] == "Bearer our-token"
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_error_texts_hold_no_uid_no_path_and_no_words_of_the_server(tmp_path):
    canary = "1.2.826.77.canary"
    replies = [
        answer(f"no {canary}".encode(), status="400 Bad Request", content_type="text/plain"),
        answer(f"no {canary}".encode(), status="404 Not Found", content_type="text/plain"),
        answer(f"no {canary}".encode(), status="500 Oops " + canary, content_type="text/plain"),
        answer(canary.encode(), content_type="text/plain; x=" + canary),
        answer(canary.encode()),
        canary.encode() + b"\r\n\r\n",
        lambda conversation: conversation.hang_up(reset=True),
    ]

    with ScriptedServer(*replies) as server, DicomWebClient(server.url) as client:
        for _ in replies:
            with pytest.raises(DicomWebError) as raised:
                client.store(parts_of(tmp_path, [10]), study_uid=canary)
            assert canary not in str(raised.value)
            assert canary not in repr(raised.value)
            assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_large_file_is_never_whole_in_memory(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(300_000_000)
    body = StoreBody([StorePart.of(path)])

    tracemalloc.start()
    size = sum(len(piece) for piece in body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size == len(body)
    assert peak < 4_000_000


def test_many_files_need_one_descriptor(tmp_path):
    body = StoreBody(parts_of(tmp_path, [300_000] * 20))
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))

    most = max(len(list(descriptors.iterdir())) for _ in body)

    assert most <= before + 2


@pytest.mark.parametrize("reason, meaning", [(272, "processing failure"), (0xA912, "does not match"), (1, "1")])
def test_failure_reasons_are_told_in_words(reason, meaning):
    assert meaning in failure_meaning(reason)


def test_real_instances_survive_the_way(tmp_path):
    contents = [instance_bytes(rows=64, columns=64) for _ in range(3)]
    parts = [part_of(tmp_path / str(number), content) for number, content in enumerate(contents)]

    with ScriptedServer(answer(verdicts(stored=["1.2.3"]))) as server, DicomWebClient(server.url) as client:
        client.store(parts)

    assert contents == multipart_contents(server.requests[0].body, server.requests[0].headers["content-type"])


@pytest.mark.parametrize(
    "status, words",
    [
        ("403 Forbidden", "DICOM Data Owner"),
        ("401 Unauthorized", "audience"),
        ("406 Not Acceptable", "Accept"),
        ("415 Unsupported Media Type", "Content-Type"),
        ("413 Content Too Large", "smaller"),
        ("405 Method Not Allowed", "does not have this operation"),
        ("301 Moved Permanently", "final address"),
    ],
)
def test_message_says_what_to_do(tmp_path, status, words):
    with (
        ScriptedServer(answer(b"", status=status)) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(DicomWebError, match=words) as raised,
    ):
        client.store(parts_of(tmp_path, [10]))

    assert str(raised.value).startswith(f"POST /studies on 127.0.0.1:{server.port}: the server answered {status[:3]}")


def test_missing_version_is_suggested_where_the_url_has_no_path(tmp_path):
    with (
        ScriptedServer(answer(b"", status="404 Not Found")) as server,
        DicomWebClient(f"http://127.0.0.1:{server.port}") as client,
        pytest.raises(NotFound, match="/v2"),
    ):
        client.store(parts_of(tmp_path, [10]))


@pytest.mark.parametrize("with_tls", [False, True])
def test_refusal_of_a_server_that_reads_no_more_is_found_after_the_stall(tmp_path, with_tls):
    """Under TLS an early answer cannot be seen without reading; it is looked for when the upload stands still."""
    stop = threading.Event()

    def play(conversation: Conversation) -> None:
        conversation.read_body(1)
        conversation.send(answer(b"", status="413 Content Too Large", content_type=""))
        stop.wait(20)
        conversation.hang_up(reset=True)

    tls = server_context(cert := certificate(tmp_path, "server")) if with_tls else None
    with (
        ScriptedServer(play, tls=tls) as server,
        DicomWebClient(
            server.url,
            tls=Tls(ca=cert[0]) if with_tls else None,
            timeouts=Timeouts(connect=timedelta(seconds=0.5)),
        ) as client,
    ):
        with pytest.raises(TooLarge) as raised:
            client.store(parts_of(tmp_path, [50_000_000]))
        stop.set()

    assert raised.value.nothing_was_stored
    assert raised.value.body_bytes_left < 50_000_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1.2.0", "9.9"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["00081198", "00081199", "00081155", "00081197", "00081196", "00741048", "00000902", "Value", "vr"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_no_answer_whatever_makes_an_instance_stored_that_was_not_asked_for(tmp_path):
    replies = [b""]
    parts = parts_of(tmp_path, [10])

    def play(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(answer(replies[0]))

    with ScriptedServer(play) as server, DicomWebClient(server.url) as client:

        @settings(max_examples=150, suppress_health_check=list(HealthCheck))
        @given(st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40)))
        def hold(reply):
            replies[0] = reply
            try:
                result = client.store(parts)
            except Unintelligible:
                return
            assert set(result.stored) | set(result.failed) <= {"1.2.0"}
            assert bool(result.unnamed) == (not (result.stored or result.failed or result.contradicted)), (
                "each instance is named, or said to be unnamed"
            )

        hold()
    assert server.errors == []
