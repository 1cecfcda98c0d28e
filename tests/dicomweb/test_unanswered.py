"""Where no answer comes, a person reads what was tried, on what, what came back, and what to do."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingestd.dicomweb import DicomWebClient, DicomWebError, Timeouts, Tls
from ingestd.outages import pause_of, stops_posts
from tests.builders import write_instance
from tests.http_server import Conversation, ScriptedServer, certificate, server_context
from tests.ports import own_port

# Names of exceptions, of system calls' errors, and what libraries say for themselves.
JARGON = re.compile(r"[A-Z][a-z]+[A-Z]|Error|errno|urllib3|ssl|_|\bE[A-Z]{3,}\b")


@contextlib.contextmanager
def unknown_name(_folder: Path) -> Iterator[DicomWebClient]:
    yield DicomWebClient("http://archive.invalid/v2")


@contextlib.contextmanager
def closed_port(_folder: Path) -> Iterator[DicomWebClient]:
    yield DicomWebClient(f"http://127.0.0.1:{own_port()}/v2")


@contextlib.contextmanager
def no_way(_folder: Path) -> Iterator[DicomWebClient]:
    yield DicomWebClient("http://255.255.255.255/v2")


@contextlib.contextmanager
def swallowing_firewall(_folder: Path) -> Iterator[DicomWebClient]:
    """A full queue drops who knocks, as a firewall does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as waiting:
        for _ in range(2):
            first = waiting.enter_context(socket.socket())
            first.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                first.connect(listener.getsockname())
        short = Timeouts(connect=timedelta(seconds=0.3))
        yield DicomWebClient(f"http://127.0.0.1:{listener.getsockname()[1]}/v2", timeouts=short)


@contextlib.contextmanager
def hanging_server(_folder: Path) -> Iterator[DicomWebClient]:
    with ScriptedServer(Conversation.wait_for_end) as server:
        yield DicomWebClient(server.url, timeouts=Timeouts(read=timedelta(seconds=0.3)))


@contextlib.contextmanager
def slow_server(_folder: Path) -> Iterator[DicomWebClient]:
    with ScriptedServer(Conversation.wait_for_end) as server:
        yield DicomWebClient(server.url, timeouts=Timeouts(total=timedelta(seconds=0.3)))


@contextlib.contextmanager
def reset(_folder: Path) -> Iterator[DicomWebClient]:
    with ScriptedServer(lambda conversation: conversation.hang_up(reset=True)) as server:
        yield DicomWebClient(server.url)


@contextlib.contextmanager
def hang_up(_folder: Path) -> Iterator[DicomWebClient]:
    with ScriptedServer(Conversation.hang_up) as server:
        yield DicomWebClient(server.url)


@contextlib.contextmanager
def private_authority(folder: Path) -> Iterator[DicomWebClient]:
    with ScriptedServer(b"", tls=server_context(certificate(folder, "server"))) as server:
        yield DicomWebClient(server.url)


@contextlib.contextmanager
def certificate_of_another(folder: Path) -> Iterator[DicomWebClient]:
    cert = certificate(folder, "server", san="DNS:elsewhere.example")
    with ScriptedServer(b"", tls=server_context(cert)) as server:
        yield DicomWebClient(server.url, tls=Tls(ca=cert[0]))


@contextlib.contextmanager
def certificate_that_is_over(folder: Path) -> Iterator[DicomWebClient]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    made = datetime.now(UTC) - timedelta(days=9)
    made_out = x509.CertificateBuilder(name, name, key.public_key(), 1).not_valid_before(made)
    made_out = made_out.add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
    )
    signed = made_out.not_valid_after(made + timedelta(days=1)).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    both = folder / "both.pem"
    both.write_bytes(signed.public_bytes(pem) + private)
    with ScriptedServer(b"", tls=server_context((both, both))) as server:
        yield DicomWebClient(server.url, tls=Tls(ca=both))


CASES = {
    unknown_name: ("name", "DNS"),
    closed_port: ("the connection is refused", "start the server"),
    no_way: ("no way leads there", "network"),
    swallowing_firewall: ("nothing answers at that address", "firewall"),
    hanging_server: ("no answer came in 0.3 s", "look at the server"),
    slow_server: ("took too long", "look at the server"),
    reset: ("the connection was cut", "look at the server"),
    hang_up: ("the connection was cut", "look at the server"),
    private_authority: ("certificate is not trusted", "ca_file"),
    certificate_of_another: ("certificate is made for another name", "address"),
    certificate_that_is_over: ("certificate is no longer valid", "renew"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_server_that_gives_no_answer_is_told_in_plain_words(tmp_path, case):
    happened, remedy = CASES[case]
    with case(tmp_path) as client, client, pytest.raises(DicomWebError) as raised:
        client.search_studies()

    attempted, _, told = str(raised.value).partition(f" on {client.base_url.split('/')[2]}: ")
    assert attempted == "GET /studies"
    assert happened in told.partition("; ")[0]
    assert remedy in told.partition("; ")[2]
    assert not JARGON.search(told.replace("ca_file", "")), told
    assert "body" not in told, "a request that has none"
    assert stops_posts(raised.value)
    assert pause_of(raised.value).note == str(raised.value), "it says everything by itself, and says it once"


UNKNOWN = "the outcome is unknown: .* the server has to be searched for it before it is sent again"


def test_store_without_an_answer_says_whether_its_outcome_is_known(tmp_path):
    scan = write_instance(tmp_path / "scan")
    with closed_port(tmp_path) as client, pytest.raises(DicomWebError, match="nothing of it had left"):
        client.store([scan])
    with reset(tmp_path) as client, pytest.raises(DicomWebError, match=UNKNOWN):
        client.store([scan])
