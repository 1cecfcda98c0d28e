"""What the embedded server makes of requests that no client of the service would send."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import requests

from ingestd.emulator import CONTROL_HEADER, Emulator
from tests.emulator_peer import Peer

AUDIENCE = "https://dicom.healthcareapis.azure.com"


# Paths.


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    viewer: Path = tmp_path_factory.mktemp("viewer")
    (viewer / "index.html").write_text("the viewer")
    (viewer / "ring").symlink_to("ring")
    with Emulator(fsync=False, viewer=viewer) as running:
        yield running


@pytest.mark.parametrize("path", ["%00", "a%00.js", "emulator/%00", "a" * 300, "a/" * 2100, "ring"])
def test_path_that_no_file_can_have_is_not_found(viewed, path):
    assert requests.get(f"{viewed.root}/{path}", timeout=30).status_code == 404


@pytest.mark.parametrize("path", ["study/of/the/viewer", "..%2f..%2fetc/passwd"])
def test_path_without_a_file_is_a_page_of_the_viewer(viewed, path):
    assert requests.get(f"{viewed.root}/{path}", timeout=30).text == "the viewer"


# Tokens.


@pytest.fixture(scope="module")
def guarded() -> Iterator[Emulator]:
    with Emulator(fsync=False, auth=True) as running:
        yield running


def signed(server: Emulator, **changes: object) -> str:
    """One of the server's own tokens with other claims, signed as it signs."""
    key = (server.data / "keys" / "signing.pem").read_bytes()
    claims = jwt.decode(server.tokens.token(), options={"verify_signature": False}) | changes
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm="RS256")


def asked_with(server: Emulator, token: str) -> int:
    with Peer(server.root, Authorization=f"Bearer {token}") as peer:
        return peer.get("/studies?PatientID=unknown").status_code


@pytest.mark.parametrize(
    "roles",
    [
        None, 3, True, 1.5, "DICOM Data Owner", {"DICOM Data Owner": 1}, [["DICOM Data Owner"]], [{}], [None], [3],
        [["DICOM Data Owner"], "DICOM Data Owner"], [],
    ],
    ids=repr,
)  # fmt: skip
def test_roles_that_are_no_list_of_names_let_nobody_in(guarded, roles):
    assert asked_with(guarded, signed(guarded, roles=roles)) == 403


def test_roles_may_be_several(guarded):
    assert asked_with(guarded, signed(guarded, roles=["Another", "DICOM Data Reader"])) == 204


@pytest.mark.parametrize(
    "issuer", ["", "https://sts.windows.net/another/", None, 3, [], ["{root}"], "{root}/", "{url}"]
)
def test_token_of_another_issuer_is_unauthorized(guarded, issuer):
    """It is signed by the right key: the key alone does not say whose token it is."""
    if isinstance(issuer, str):
        issuer = issuer.format(root=guarded.root, url=guarded.url)
    elif issuer == ["{root}"]:
        issuer = [guarded.root]

    assert asked_with(guarded, signed(guarded, iss=issuer)) == 401


def test_token_without_an_issuer_is_unauthorized(guarded):
    key = (guarded.data / "keys" / "signing.pem").read_bytes()
    claims = {"aud": AUDIENCE, "exp": 1 << 33, "roles": ["DICOM Data Owner"]}

    assert asked_with(guarded, jwt.encode(claims, key, algorithm="RS256")) == 401


def test_token_is_good_under_every_name_of_the_server(guarded):
    """The issuer is the server, not the name by which it was asked for the token."""
    named = f"http://localhost:{guarded.port}"
    form = {"grant_type": "client_credentials", "client_id": "reader", "client_secret": "reader"}
    token = requests.post(f"{named}/oauth2/v2.0/token", data=form, timeout=30).json()["access_token"]
    configuration = requests.get(f"{named}/.well-known/openid-configuration", timeout=30).json()

    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["iss"] == configuration["issuer"] == guarded.root
    assert asked_with(guarded, token) == 204


# The control port: a browser on the same machine runs pages from anywhere.

OURS = {CONTROL_HEADER: "1"}
THROTTLE = '{"name": "throttle"}'


@pytest.fixture
def control() -> Iterator[Emulator]:
    with Emulator(fsync=False, control_port=0) as running:
        yield running


def asked(server: Emulator, method: str = "GET", path: str = "/faults", **headers: str) -> int:
    body = THROTTLE if method == "POST" else None
    answer = requests.request(method, f"{server.control_url}{path}", data=body, headers=headers, timeout=30)
    return answer.status_code


FOREIGN = ("example.org", "localhost.example.org", "127.0.0.1.example.org", "10.0.0.1", "0.0.0.0", "[::2]", "null")
OWN = ("localhost", "LocalHost", "127.0.0.1", "127.9.8.7", "[::1]")


def test_control_port_answers_only_to_names_of_this_machine(control):
    """A name of somebody else's may be made to lead here after its page was loaded: DNS rebinding."""
    for host in (*FOREIGN, "", "[", "a b", "localhost@example.org", "example.org/localhost", "localhost:x"):
        for name in (host, f"{host}:8081"):
            for method, path in (("GET", "/requests"), ("GET", "/faults"), ("POST", "/faults"), ("GET", "/nothing")):
                assert asked(control, method, path, Host=name, **OURS) == 403, (name, method, path)
    assert control.faults.listed() == []

    for host in OWN:
        for name in (host, f"{host}:8081"):
            assert asked(control, Host=name) == 200, name


def test_control_port_answers_to_the_name_that_it_was_given():
    with Emulator(fsync=False, host="0.0.0.0", control_port=0) as server:
        assert asked(server, Host="0.0.0.0") == 200
        assert asked(server, "DELETE", Origin=server.root, **OURS) == 204
        assert asked(server, Host="example.org") == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_control_port_answers_to_the_address_that_it_is_reached_at(host):
    """No name that is looked up anew can be an address; on every interface the caller may well be another machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somewhere:
        try:
            somewhere.connect(("198.51.100.7", 9))  # sends nothing, and is told from where it would
        except OSError:
            pytest.skip("this machine has no address but its own")
        address = somewhere.getsockname()[0]
    with Emulator(fsync=False, host=host, control_port=0) as server:
        control = f"http://{address}:{server.control_url.rpartition(':')[2]}/faults"
        for name, status in ((address, 200), ("198.51.100.7", 403), ("example.org", 403)):
            answer = requests.get(control, headers={"Host": name}, timeout=30)
            assert answer.status_code == status, name
        assert requests.get(control, headers={"Origin": f"http://{address}"}, timeout=30).status_code == 403


def test_control_port_takes_nothing_from_pages_of_others(control):
    for host in FOREIGN:
        for origin in (host, f"http://{host}", f"https://{host}:8081", f"http://{host}, http://localhost"):
            for method in ("GET", "POST", "DELETE"):
                assert asked(control, method, Origin=origin, **OURS) == 403, (origin, method)
    for origin in (
        "",
        "localhost",
        "file://localhost",
        "http://",
        "http://localhost/page",
        "http://localhost@example.org",
    ):
        assert asked(control, "POST", Origin=origin, **OURS) == 403, origin
    assert control.faults.listed() == []

    for host in OWN:
        assert asked(control, "DELETE", Origin=f"http://{host}:3000", **OURS) == 204, host


def test_control_port_changes_nothing_for_a_form(control):
    """A page's form reaches any address of this machine; some browsers say nothing of where it came from."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert asked(control, "POST", **{"Content-Type": kind}) == 403, kind
    assert asked(control, "POST", **{"Content-Type": "application/json"}) == 403
    assert control.faults.listed() == []

    assert asked(control, "POST", **OURS) == 201
    for path in ("/faults", "/faults/throttle"):
        assert asked(control, "DELETE", path) == 403
    assert [each["name"] for each in control.faults.listed()] == ["throttle"]


def test_control_port_says_what_it_misses(control):
    refused = requests.post(f"{control.control_url}/faults", data=THROTTLE, timeout=30)
    assert "X-Ingestd-Control" in refused.text

    refused = requests.get(f"{control.control_url}/faults", headers={"Host": "example.org"}, timeout=30)
    assert "example.org" not in refused.text
    assert "--host" in refused.text


@pytest.mark.parametrize(
    "body",
    [
        "[" * 60_000, "3", "[]", "\0", b"\xff", '{"name": []}', '{"name": "throttle", "count": 1e999}',
        '{"name": "throttle", "count": NaN}', '{"name": "latency", "seconds": 1e999}',
        '{"name": "latency", "seconds": NaN}', '{"name": "latency", "seconds": -1}',
        '{"name": "latency", "seconds": 1e300}',
    ],
    ids=lambda body: str(body[:40]),
)  # fmt: skip
def test_fault_that_makes_no_sense_is_refused_and_not_switched_on(control, body):
    answer = requests.post(f"{control.control_url}/faults", data=body, headers=OURS, timeout=30)

    assert answer.status_code == 400
    assert requests.get(f"{control.control_url}/faults", timeout=30).json() == []


def test_control_port_reads_no_more_than_a_fault_takes(control):
    answer = requests.post(f"{control.control_url}/faults", data=" " * (1 << 20), headers=OURS, timeout=30)

    assert answer.status_code == 413
