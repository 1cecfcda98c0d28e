"""Retrieving, searching and the feed from servers that break off, lie or ramble."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import tracemalloc
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.dicomweb import (
    DicomWebClient,
    DicomWebError,
    MisconfiguredServer,
    NotFound,
    Timeouts,
    Unavailable,
    Unintelligible,
    uid_of,
)
from tests.builders import instance_bytes
from tests.http_server import Conversation, ScriptedServer, answer

MULTIPART = 'multipart/related; type="application/dicom"; boundary=abc'
QUICK = Timeouts(read=timedelta(seconds=5), total=timedelta(seconds=0.4), min_rate=10**8)


def multipart(*contents: bytes, closed: bool = True) -> bytes:
    body = b"".join(b"\r\n--abc\r\nContent-Type: application/dicom\r\n\r\n" + content for content in contents)
    return body + (b"\r\n--abc--\r\n" if closed else b"")


def chunked(body: bytes, *, size: int = 1000, complete: bool = True) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {MULTIPART}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + (b"0\r\n\r\n" if complete else b"")


def once(data: bytes) -> object:
    """Send these bytes and hang up."""

    def play(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(data)
        conversation.hang_up()

    return play


FILES = [instance_bytes(rows=64, columns=64) for _ in range(2)]


@pytest.mark.parametrize(
    "reply",
    [
        answer(multipart(*FILES), content_type=MULTIPART),
        chunked(multipart(*FILES)),
        chunked(multipart(*FILES), size=7),
        b"HTTP/1.1 200 OK\r\nContent-Type: " + MULTIPART.encode() + b"\r\n\r\n" + multipart(*FILES),
    ],
)
def test_parts_arrive_whole_whatever_frames_the_body(reply, tmp_path):
    with ScriptedServer(once(reply)) as server, DicomWebClient(server.url) as client:
        saved = client.retrieve_study("1.2").save_to(tmp_path)

    assert sorted(path.read_bytes() for path in saved.written) == sorted(FILES)
    assert server.requests[0].headers["accept"] == 'multipart/related; type="application/dicom"; transfer-syntax=*'


def test_an_answer_without_a_part_is_never_a_retrieved_study(tmp_path):
    with (
        ScriptedServer(once(answer(multipart(), content_type=MULTIPART))) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unintelligible, match="no part"),
    ):
        client.retrieve_study("1.2").save_to(tmp_path)


@pytest.mark.parametrize(
    "reply",
    [
        answer(multipart(*FILES, closed=False), content_type=MULTIPART),
        answer(multipart(*FILES), content_type=MULTIPART)[:-6000],
        chunked(multipart(*FILES), complete=False)[:-6000],
        chunked(multipart(*FILES, closed=False)),
        b"HTTP/1.1 200 OK\r\nContent-Type: " + MULTIPART.encode() + b"\r\n\r\n" + multipart(*FILES)[:-6000],
    ],
)
def test_part_that_breaks_off_never_becomes_a_file(reply, tmp_path):
    with (
        ScriptedServer(once(reply)) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unintelligible, match="breaks off"),
    ):
        client.retrieve_study("1.2").save_to(tmp_path)

    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in left] == FILES[:1], "the first one was whole; nothing is left of the second"


def test_single_part_is_taken_and_its_length_believed(tmp_path):
    whole = answer(FILES[0], content_type="application/dicom; transfer-syntax=1.2.840.10008.1.2.1")

    with ScriptedServer(whole, once(whole[:-100])) as server, DicomWebClient(server.url) as client:
        assert client.retrieve_instance("1", "2", "3").save_as(tmp_path / "a") == len(FILES[0])
        with pytest.raises(Unintelligible):
            client.retrieve_instance("1", "2", "3").save_as(tmp_path / "b")
        retrieval = client.retrieve_instance("1", "2", "3")
        with pytest.raises(FileExistsError):
            retrieval.save_as(tmp_path / "a")

    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == FILES[0]


def test_single_part_without_any_end_is_not_believed(tmp_path):
    endless = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\n\r\n" + FILES[0]

    with (
        ScriptedServer(once(endless)) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unintelligible, match="neither length nor boundary"),
    ):
        client.retrieve_instance("1", "2", "3").save_as(tmp_path / "a")

    assert list(tmp_path.iterdir()) == []


def test_second_part_where_one_is_expected_is_an_error(tmp_path):
    reply = answer(multipart(*FILES), content_type=MULTIPART)

    with (
        ScriptedServer(reply) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unintelligible, match="exactly one part"),
    ):
        client.retrieve_instance("1", "2", "3").save_as(tmp_path / "a")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sop_uid", ["../../../../tmp/evil", "..", ".", "1/2", "a", "1" * 65])
def test_uids_in_a_file_never_lead_out_of_the_folder(sop_uid, tmp_path):
    hostile = instance_bytes(sop_uid=sop_uid)
    reply = answer(multipart(hostile), content_type=MULTIPART)

    with (
        ScriptedServer(reply) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unintelligible, match="no DICOM file"),
    ):
        client.retrieve_study("1.2").save_to(tmp_path / "in")

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_web_page_instead_of_a_study_is_a_configuration_fault():
    with (
        ScriptedServer(answer(b"<html>", content_type="text/html")) as server,
        DicomWebClient(server.url) as client,
    ):
        for ask in (
            lambda: client.retrieve_study("1"),
            lambda: client.retrieve_metadata("1"),
            client.search_studies,
            client.change_feed,
            client.change_feed_latest,
        ):
            with pytest.raises(MisconfiguredServer, match="web page"):
                ask()


def test_slow_reader_is_not_mistaken_for_a_slow_server():
    """The clock of a retrieve runs only while bytes are waited for."""
    reply = answer(multipart(b"x" * 3_000_000), content_type=MULTIPART)
    pause = threading.Event()

    with (
        ScriptedServer(reply) as server,
        DicomWebClient(server.url, timeouts=QUICK) as client,
        client.retrieve_study("1.2") as retrieval,
    ):
        size = 0
        for _, part in retrieval:
            while chunk := part.next_chunk():
                size += len(chunk)
                if size < 500_000:
                    pause.wait(0.3)

    assert size == 3_000_000


def test_slow_server_is_given_up_in_the_middle_of_a_part():
    stop = threading.Event()

    def play(conversation: Conversation) -> None:
        conversation.send(f"HTTP/1.1 200 OK\r\nContent-Type: {MULTIPART}\r\n\r\n--abc\r\n\r\n".encode())
        while not stop.wait(0.01):
            conversation.send(b"x")

    with ScriptedServer(play) as server, DicomWebClient(server.url, timeouts=QUICK) as client:
        began = time.monotonic()
        with client.retrieve_study("1.2") as retrieval, pytest.raises(Unavailable) as raised:
            retrieval.only_part()[1].read()
        took = time.monotonic() - began
        stop.set()

    assert raised.value.timed_out
    assert took < 3


def test_given_up_retrieval_does_not_disturb_the_next_request():
    reply = answer(multipart(b"x" * 3_000_000), content_type=MULTIPART)

    with ScriptedServer(reply, answer(b"[]")) as server, DicomWebClient(server.url) as client:
        with client.retrieve_study("1.2") as retrieval:
            retrieval.only_part()[1].read(10)
        assert len(client.search_studies()) == 0

    assert server.connections == 2


@pytest.mark.parametrize("size", [7, 100_000])
def test_chunked_retrieval_keeps_its_connection(size):
    """Its last chunk is empty, and was never read: each copy that was fetched to compare cost a connection."""
    with ScriptedServer(chunked(multipart(*FILES), size=size)) as server, DicomWebClient(server.url) as client:
        for _ in range(3):
            with client.retrieve_study("1.2") as retrieval:
                assert [part.read() for _, part in retrieval] == FILES

    assert server.connections == 1


def test_end_that_does_not_come_delays_nobody_and_makes_no_answer_a_bad_one():
    stop = threading.Event()

    def play(conversation: Conversation) -> None:
        conversation.send(chunked(multipart(*FILES), complete=False))
        stop.wait(20)

    with ScriptedServer(play, answer(b"[]")) as server, DicomWebClient(server.url) as client:
        began = time.monotonic()
        with client.retrieve_study("1.2") as retrieval:
            assert [part.read() for _, part in retrieval] == FILES
        took = time.monotonic() - began
        assert len(client.search_studies()) == 0
        stop.set()

    assert server.connections == 2
    assert took < 5


@pytest.mark.parametrize("said", [b"HTTP/1.1 204 No Content\r\n\r\n", answer(status="204 No Content", content_type="")])
def test_answer_without_a_body_keeps_its_connection(said):
    """Each search that found nothing, and each DELETE, cost the next request a connection and a handshake."""
    with ScriptedServer(said) as server, DicomWebClient(server.url) as client:
        for _ in range(3):
            assert len(client.search_studies()) == 0
            client.delete("1.2")

    assert server.connections == 1


@pytest.mark.parametrize(
    "said",
    [
        answer(b"hello", status="204 No Content", content_type=""),
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_body_that_an_answer_may_not_have_does_not_disturb_the_next_request(said):
    with ScriptedServer(said, answer(b"[]")) as server, DicomWebClient(server.url) as client:
        for _ in range(2):
            assert len(client.search_studies()) == 0

    assert server.connections == 2


def test_large_retrieval_needs_little_memory(tmp_path):
    size = 200_000_000
    reply = f"HTTP/1.1 200 OK\r\nContent-Type: {MULTIPART}\r\n\r\n--abc\r\n\r\n".encode()

    def play(conversation: Conversation) -> None:
        conversation.send(reply)
        for _ in range(size // 1_000_000):
            conversation.send(bytes(1_000_000))
        conversation.send(b"\r\n--abc--")
        conversation.hang_up()

    with (
        ScriptedServer(play) as server,
        DicomWebClient(server.url) as client,
        client.retrieve_study("1.2") as retrieval,
    ):
        _, part = retrieval.only_part()
        tracemalloc.start()
        length = 0
        while chunk := part.next_chunk():
            length += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert length == size
    assert peak < 8_000_000


@pytest.mark.parametrize(
    "body",
    [b"{", b"[1]", b'[{"0020000D": 1}]', b'"x"', b"[" * 5000, b"[[[]]]", b'[{"0020000D": {"vr": "UI"}}'],
)
def test_search_answer_that_is_no_dicom_json_is_unintelligible(body):
    with (
        ScriptedServer(answer(body)) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unintelligible),
    ):
        client.search_studies()


def studies(*uids: str) -> bytes:
    return answer(json.dumps([{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in uids]).encode())


def test_iterator_goes_on_after_a_short_page_and_drops_repeated_rows():
    """A server may give less than asked for, and rows move between pages while instances arrive."""
    pages = [studies("1", "2"), studies("2", "3"), studies(), answer(b"", status="204 No Content")]

    with ScriptedServer(*pages) as server, DicomWebClient(server.url) as client:
        found = [uid_of(item, "StudyInstanceUID") for item in client.find_studies(page_size=50)]

    assert found == ["1", "2", "3"]
    assert [request.target for request in server.requests] == [
        "/v2/studies?limit=50",
        "/v2/studies?limit=50&offset=2",
        "/v2/studies?limit=50&offset=4",
    ]


def test_iterator_ends_where_a_server_ignores_the_offset():
    with ScriptedServer(studies("1", "2")) as server, DicomWebClient(server.url) as client:
        assert len(list(client.find_studies())) == 2

    assert len(server.requests) == 2


def test_uid_in_a_path_cannot_climb_out_of_its_place():
    with ScriptedServer(answer(b"", status="404 Not Found")) as server, DicomWebClient(server.url) as client:
        with pytest.raises(NotFound):
            client.delete("../changefeed?x=1#y")
        for bad in ("", ".", ".."):
            with pytest.raises(ValueError, match="empty"):
                client.delete(bad)

    assert server.requests[0].target == "/v2/studies/..%2Fchangefeed%3Fx%3D1%23y"


FEED_ENTRY = {
    "Sequence": 7,
    "StudyInstanceUid": "1 ",
    "SeriesInstanceUID": "2",
    "sopInstanceUid": "3",
    "Action": "CREATE",
    "timestamp": "2026-05-01T10:00:00.1234567+02:00",
    "state": "current",
}


def test_feed_entry_is_read_whatever_the_case_of_its_names():
    with (
        ScriptedServer(answer(json.dumps([FEED_ENTRY]).encode(), content_type="application/json")) as server,
        DicomWebClient(server.url) as client,
    ):
        (entry,) = client.change_feed().entries

    assert (entry.sequence, entry.study_uid, entry.action, entry.state) == (7, "1", "create", "current")
    assert entry.at.isoformat() == "2026-05-01T08:00:00.123456+00:00"


@pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error", "410 Gone", "501 Not Implemented"])
def test_messages_of_reads_name_the_route_and_no_uid(status):
    with ScriptedServer(answer(b"1.2.3.canary", status=status)) as server, DicomWebClient(server.url) as client:
        for ask in (
            lambda: client.retrieve_study("1.2.3.canary"),
            lambda: client.retrieve_metadata("1.2.3.canary", "1.2.3.canary"),
            lambda: client.search_instances({"PatientID": "canary"}, study_uid="1.2.3.canary"),
            lambda: client.delete("1", "2", "1.2.3.canary"),
        ):
            with pytest.raises(DicomWebError) as raised:
                ask()
            assert "canary" not in str(raised.value)
            assert "{study}" in str(raised.value)


def test_original_and_etag_are_asked_for_in_headers():
    reply = answer(b"[]", headers={"ETag": "7-1"})
    audit = {"X-MS-AZUREDICOM-AUDIT-who": "me"}
    with ScriptedServer(reply) as server, DicomWebClient(server.url, headers=audit) as client:
        found = client.retrieve_metadata("1", etag="6-1", original=True, external=True)

    assert found is not None
    assert found.etag == "7-1"
    assert server.requests[0].headers["if-none-match"] == "6-1"
    assert server.requests[0].headers["msdicom-request-original"] == "true"
    assert server.requests[0].headers["msdicom-request-meta"] == "true"
    assert server.requests[0].headers["x-ms-azuredicom-audit-who"] == "me"
    with pytest.raises(ValueError, match="use auth"):
        DicomWebClient(server.url, headers={"authorization": "Bearer x"})


def test_importing_the_client_costs_neither_pydicom_nor_azure(tmp_path: Path):
    import subprocess
    import sys

    code = "import ingestd.dicomweb, sys; print([m for m in ('pydicom', 'azure', 'numpy', 'rich') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_digest_of_what_comes_is_that_of_what_was_sent():
    content = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(100_000))
    reply = answer(multipart(content), content_type=MULTIPART)

    with (
        ScriptedServer(reply) as server,
        DicomWebClient(server.url) as client,
        client.retrieve_study("1.2") as retrieval,
    ):
        digest = hashlib.file_digest(retrieval.only_part()[1], "sha256")

    assert digest.digest() == hashlib.sha256(content).digest()
