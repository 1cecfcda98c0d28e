"""What one client may cost the embedded server before it has asked for anything, on both of its ports."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from ingestd.emulator import Emulator
from ingestd.emulator.app import _cut
from ingestd.emulator.http.connection import TRANSPORT
from tests.builders import fresh_uid
from tests.emulator_peer import ANY_FILE, ANY_FILES, BOUNDARY, JSON, Peer, multipart, path_of, scan, stored

HASTY_SECONDS, PATIENT_SECONDS = 0.5, 1.5
LONG = 20.0  # what a broken bound is told from a slow machine by
HEAD = b"GET /v2/changefeed HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
PORTS = ("service", "control")


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False, control_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[Emulator]:
    """Waits for nobody long."""
    with Emulator(fsync=False, control_port=0, patience_seconds=HASTY_SECONDS) as running:
        yield running


@pytest.fixture(scope="module")
def patient() -> Iterator[Emulator]:
    """Waits long enough for a client that means it, also on a busy machine."""
    with Emulator(fsync=False, control_port=0, patience_seconds=PATIENT_SECONDS) as running:
        yield running


def connected(server: Emulator, port: str = "service") -> socket.socket:
    assert server.control_url is not None
    number = server.port if port == "service" else int(server.control_url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", number))
    connection.settimeout(LONG)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes; a reset is a close too."""
    got = b""
    try:
        while piece := connection.recv(1 << 16):
            got += piece
    except ConnectionResetError:
        pass
    return got


def status_of(answer: bytes) -> int | None:
    return int(answer.split(b" ", 2)[1]) if answer else None


def drip(connection: socket.socket, drop: bytes, *, every: float) -> None:
    """Send a drop every so often until the server closes; raises TimeoutError where it never does."""
    give_up_at = time.monotonic() + LONG
    connection.settimeout(every)
    while True:
        if time.monotonic() > give_up_at:
            raise TimeoutError("the server still listens")
        try:
            connection.sendall(drop)
            while connection.recv(1 << 16):
                pass
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return
        return


# Size and count.


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize(
    "head, status",
    [
        (HEAD + b"X-Long: " + b"x" * (64 << 10) + b"\r\n\r\n", 431),
        (HEAD + b"".join(b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in range(64)) + b"\r\n", 431),
        (HEAD + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET /v2/changefeed?" + b"x" * (64 << 10) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    ],
    ids=["a long field", "long fields", "many fields", "a long line"],
)
def test_head_beyond_what_the_service_reads_is_refused(server, port, head, status):
    with connected(server, port) as connection:
        connection.sendall(head)
        assert status_of(all_of(connection)) == status


@pytest.mark.parametrize("port", PORTS)
def test_head_as_long_as_the_service_reads_is_read(server, port):
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 330) for number in range(90))
    with connected(server, port) as connection:
        connection.sendall(HEAD + b"Connection: close\r\n" + fields + b"\r\n")
        assert status_of(all_of(connection)) == (200 if port == "service" else 404)


ENDLESS = {
    "line": (b"GET /", b"x" * 4096),
    "field name": (HEAD, b"x" * 4096),
    "field value": (HEAD + b"X: ", b"x" * 4096),
    "fields": (HEAD, b"X: y\r\n" * 700),
    "empty lines": (b"", b"\r\n" * 2048),
    "chunk extension": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 4096),
    "trailer": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x" * 4096),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 700),
}


def send_for_ever(connection: socket.socket, more: bytes) -> None:
    for _ in range(2000):  # 8 MB, of which the kernel holds some
        connection.sendall(more)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("what", ENDLESS)
def test_what_never_ends_and_is_no_body_is_cut(server, port, what):
    """The parser keeps a field until it is whole; nobody else would notice how long it has become."""
    begin, more = ENDLESS[what]
    with connected(server, port) as connection:
        connection.sendall(begin.replace(b"GET", b"POST"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(connection, more)
    assert requests.get(f"{server.root}/health/check", timeout=LONG).status_code == 200


def test_trailer_is_no_field_of_the_head():
    """What comes in one piece is parsed to its end before anybody looks at the head."""
    with Emulator(fsync=False, auth=True, control_port=0) as guarded, connected(guarded) as connection:
        head = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        connection.sendall(head + b"Authorization: Bearer %s\r\n\r\n" % guarded.tokens.token().encode())
        assert status_of(all_of(connection)) == 401


# Seconds.


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize(
    "begin, drop, answers",
    [
        (b"", b"", []),
        (b"GET /v2/change", b"", [408]),
        (HEAD, b"", [408]),
        (HEAD, b"X: y\r\n", [408]),
        (b"", b"\r\n", []),
        (HEAD + b"\r\n", b"\r\n", [200]),
        (HEAD + b"\r\n", b"G", [200, 400]),
        (HEAD + b"Content-Length: 1000000\r\n\r\n", b"x", [200]),
    ],
    ids=[
        "nothing", "half a line", "half a head", "a dripping head", "dripping empty lines",
        "dripping empty lines after an answer", "nonsense after an answer", "a dripping body that nobody reads",
    ],
)  # fmt: skip
def test_client_that_asks_for_nothing_is_not_waited_for(hasty, port, begin, drop, answers):
    with connected(hasty, port) as connection:
        connection.sendall(begin.replace(b"/v2/changefeed", b"/faults") if port == "control" else begin)
        if drop:
            drip(connection, drop, every=HASTY_SECONDS / 10)
        else:
            got = all_of(connection)
            assert [int(each[:3]) for each in got.split(b"HTTP/1.1 ")[1:]] == answers


@pytest.mark.parametrize("drop", [b"", b"x"])
@pytest.mark.parametrize("port", PORTS)
def test_body_that_stands_still_or_drips_is_not_waited_for(hasty, port, drop):
    body = multipart([scan()])
    path = b"/v2/studies" if port == "service" else b"/faults"
    head = (
        f"Host: localhost\r\nX-Ingestd-Control: 1\r\nAccept: {JSON}\r\nContent-Length: {len(body) + 9999}\r\n"
        f"Content-Type: multipart/related; boundary={BOUNDARY}\r\n\r\n"
    ).encode()
    at = len(hasty.requests)
    with connected(hasty, port) as connection:
        connection.sendall(b"POST " + path + b" HTTP/1.1\r\n" + head + body)
        if drop:
            drip(connection, drop, every=HASTY_SECONDS / 10)
        else:
            assert status_of(all_of(connection)) == 408
    if port == "service":
        assert [line.get("status") for line in hasty.requests[at:]] == [408]
        assert list((hasty.data / "incoming").iterdir()) == []


def test_body_that_comes_slowly_but_comes_is_taken(patient):
    body = multipart([scan()]) + b"\r\n" + b"x" * 4000
    head = (
        f"POST /v2/studies HTTP/1.1\r\nHost: localhost\r\nAccept: {JSON}\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\nContent-Type: multipart/related; boundary={BOUNDARY}\r\n\r\n"
    ).encode()
    began_at = time.monotonic()
    with connected(patient) as connection:
        connection.sendall(head)
        for at in range(0, len(body), 250):
            connection.sendall(body[at : at + 250])
            time.sleep(PATIENT_SECONDS / 8)
        assert status_of(all_of(connection)) == 200
    assert time.monotonic() - began_at > 2 * PATIENT_SECONDS


@pytest.mark.slow
def test_server_that_is_slow_itself_does_not_blame_the_client(patient):
    patient.faults.add("bandwidth", count=1, bytes=2000)
    patient.faults.add("latency", count=1, seconds=3 * PATIENT_SECONDS)
    with Peer(patient.root) as peer:
        assert peer.store(scan({0x7FE00010: ("OB", bytes(4000))})).status_code == 200


@pytest.mark.parametrize("connection_field", ["", "Connection: close\r\n"])
def test_client_that_does_not_read_its_answer_is_not_waited_for(patient, connection_field):
    """What the kernel does not take stays in memory, and what waits for it with it."""
    study, size = fresh_uid(), 16_000_000
    with Peer(patient.root) as peer:
        assert peer.store(scan({0x7FE00010: ("OB", bytes(size))}, study=study)).status_code == 200
    at = len(patient.requests)
    with connected(patient) as connection:
        head = f"GET /v2/studies/{study} HTTP/1.1\r\nHost: localhost\r\nAccept: {ANY_FILES}\r\n{connection_field}\r\n"
        connection.sendall(head.encode())
        give_up_at = time.monotonic() + LONG
        while len(patient.requests) == at:
            assert time.monotonic() < give_up_at, "the answer still waits for its reader"
            time.sleep(0.01)
        assert len(all_of(connection)) < size


def is_open_at_the_server(connection: socket.socket) -> bool:
    """Whether the other end is established, as the kernel tells it (proc_net_tcp: state 01)."""
    ports = [f":{number[1]:04X}" for number in (connection.getpeername(), connection.getsockname())]
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return any(line[3] == "01" for line in lines if line[1].endswith(ports[0]) and line[2].endswith(ports[1]))


def wait_until_let_go(connection: socket.socket) -> None:
    give_up_at = time.monotonic() + LONG
    while is_open_at_the_server(connection):
        assert time.monotonic() < give_up_at, "the server still keeps what nobody reads"
        time.sleep(0.01)


def ask_without_reading(server: Emulator, size: int) -> socket.socket:
    """The file's first bytes are asked for by a client that the kernel keeps little for."""
    connection = socket.socket()
    connection.settimeout(LONG)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.connect(("127.0.0.1", server.port))
    head = f"GET /large.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nRange: bytes=0-{size - 1}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def test_last_bytes_of_an_answer_wait_for_nobody_either(tmp_path):
    """An answer whose rest is small is complete for the server, and its connection closed, long before it is read."""
    size = 16_000_000
    (tmp_path / "index.html").touch()
    (tmp_path / "large.bin").write_bytes(bytes(size))
    with Emulator(fsync=False, viewer=tmp_path, patience_seconds=HASTY_SECONDS) as server:
        with ask_without_reading(server, size) as connection:
            wait_until_let_go(connection)
            kept_by_the_kernel = len(all_of(connection))
        assert kept_by_the_kernel < size

        with ExitStack() as stack:
            sizes = range(kept_by_the_kernel, kept_by_the_kernel + (64 << 10), 8 << 10)
            for connection in [stack.enter_context(ask_without_reading(server, each)) for each in sizes]:
                wait_until_let_go(connection)


# Connections.


@pytest.mark.parametrize("port", PORTS)
def test_half_open_connections_keep_nobody_out(server, port):
    held = []
    try:
        for _ in range(300):
            connection = connected(server, port)
            held.append(connection)
            connection.sendall(HEAD)
        assert requests.get(f"{server.root}/health/check", timeout=LONG).status_code == 200
        first, last = held[0], held[-1]
        assert all_of(first) == b"", "who has waited longest makes room"
        last.sendall(b"Connection: close\r\n\r\n")
        assert status_of(all_of(last)) in (200, 404)
    finally:
        for connection in held:
            connection.close()


@pytest.mark.slow
def test_connection_beyond_those_that_are_answered_is_told_to_come_again():
    with Emulator(fsync=False, control_port=0) as server:
        server.faults.add("latency", seconds=LONG / 4)
        held = [connected(server) for _ in range(256)]
        try:
            for connection in held:
                connection.sendall(HEAD + b"\r\n")
            give_up_at = time.monotonic() + LONG
            while server.faults.listed()[0]["fired"] < len(held):
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
            with connected(server) as connection:
                assert status_of(all_of(connection)) == 503
        finally:
            for connection in held:
                connection.close()


def test_answer_that_is_still_being_read_makes_room_for_nobody():
    with Emulator(fsync=False, control_port=0) as server, Peer(server.root) as peer:
        assert peer.store(scan({0x00189999: ("UT", b"x" * 16_000_000)})).status_code in (200, 202)
        at = len(server.requests)
        with connected(server) as reader, ExitStack() as stack:
            reader.sendall(HEAD.replace(b"changefeed", b"changefeed?limit=1") + b"Connection: close\r\n\r\n")
            give_up_at = time.monotonic() + LONG
            while len(server.requests) == at:
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
            for _ in range(260):
                stack.enter_context(connected(server))
            head, _, body = all_of(reader).partition(b"\r\n\r\n")
            assert len(body) > 16_000_000
            assert b"content-length: %d" % len(body) in head


# What is offered besides, and not taken up.


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
@pytest.mark.parametrize("size", [64, 1_000_000])
def test_request_is_answered_whatever_protocol_it_offers_to_go_on_with(server, offer, size):
    """Java's client offers h2c with every request that is not encrypted."""
    fields = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": offer, "HTTP2-Settings": "AAEAAEAAAAIAAAAB"}
    with Peer(server.root) as peer:
        for _ in range(3):
            file = scan({0x7FE00010: ("OB", bytes(size))})
            answer = peer.store(file, **fields)
            assert answer.status_code == 200
            assert peer.get(path_of(stored(answer)[0]), ANY_FILE, headers=fields).content[128:] == file[128:]


def test_requests_that_are_sent_before_the_answers_offer_another_protocol_too(server):
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    file = scan()
    store = b"POST /v2/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dicom\r\n" + offer
    store += b"Accept: application/dicom+json\r\nContent-Length: %d\r\n\r\n" % len(file) + file
    with connected(server) as connection:
        connection.sendall(HEAD + offer + b"\r\n" + store + HEAD + offer + b"Connection: close\r\n\r\n")
        assert all_of(connection).count(b"HTTP/1.1 200 OK") == 3


SIGNALLED_AT_ONCE = """
import os, signal, sys
from ingestd.emulator import Emulator
from ingestd.emulator.app import _cut
from ingestd.emulator.http.connection import TRANSPORT

start = Emulator._start

def started(emulator):
    server = start(emulator)
    os.kill(os.getpid(), signal.SIGTERM)
    return server

Emulator._start = started
Emulator(fsync=False).serve(lambda emulator: print(emulator.data))
"""


def test_signal_that_comes_as_soon_as_it_listens_ends_it_in_order():
    ran = subprocess.run([sys.executable, "-c", SIGNALLED_AT_ONCE], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert not Path(ran.stdout.strip()).exists(), "its temporary folder goes with it"


def test_client_that_was_gone_before_it_could_be_cut_is_no_error():
    ended = socket.socket()
    ended.close()
    aborted: list[bool] = []
    transport = SimpleNamespace(get_extra_info=lambda _: ended, abort=lambda: aborted.append(True))

    _cut({TRANSPORT: transport})

    assert aborted == [True]
