"""What the embedded server makes of requests that no client of the service would send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import requests

from ingestd.emulator import Emulator
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
