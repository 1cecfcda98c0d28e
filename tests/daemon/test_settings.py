"""The configuration reaches the client: each kind of authentication becomes the one it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd.config import load
from ingestd.daemon import settings
from ingestd.dicomweb import AzureAuth, BasicAuth, BearerAuth, NoAuth, OAuth2Auth


@pytest.mark.parametrize(
    "auth,expected",
    [
        ("none", NoAuth),
        ("{kind: bearer, token_env: TOKEN}", BearerAuth),
        ("{kind: basic, username: u, password_env: PASSWORD}", BasicAuth),
        ("{kind: azure, credential: cli}", AzureAuth),
        ("{kind: oauth2, token_url: 'https://login/token', client_id: c, client_secret_env: SECRET}", OAuth2Auth),
    ],
)
def test_each_kind_of_auth_becomes_the_one_it_names(tmp_path: Path, auth: str, expected: type) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "inboxes: [{path: drop}]\nspool: spool\nledger: sqlite:///ledger.db\n"
        f"destination: {{url: 'https://host/v2', auth: {auth}}}\n"
    )

    assert isinstance(settings.auth_of(load(file).destination), expected)
