"""OAuth2 client credentials (RFC 6749 §4.4), and the connection info of the older DicomClient SDK.

The token endpoint is another host than the DICOMweb server, with its own transport: our secret goes only there, the
token only to the server.
"""

from __future__ import annotations

import ast
import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote_plus, urlencode

from ingestd.dicomweb.auth import FetchedAuth, Secret, Token, token_from_json
from ingestd.dicomweb.deadlines import Timeouts
from ingestd.dicomweb.decoding import load_json
from ingestd.dicomweb.errors import DicomWebError, TokenError
from ingestd.dicomweb.transport import Tls, Transport

TOKEN_TIMEOUTS = Timeouts(
    connect=timedelta(seconds=10), read=timedelta(seconds=10), total=timedelta(seconds=20), min_rate=10_000
)
ANSWER_LIMIT = 1_048_576
# RFC 6749 sections 4.1.2.1 and 5.2, and what Microsoft Entra adds to them.
ERROR_CODES = frozenset(
    {
        *("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type"),
        *("invalid_scope", "access_denied", "unsupported_response_type", "server_error", "temporarily_unavailable"),
        *("interaction_required", "consent_required", "invalid_resource"),
    }
)
_REMEDIES = {
    "invalid_client": "the client id or its secret is wrong, or the secret has expired: have a new one made",
    "unauthorized_client": "this client may not ask for a token by its secret: have its registration changed",
    **dict.fromkeys(("invalid_scope", "invalid_resource"), "it knows no such scope: have the scope corrected"),
}
CONNECTION_INFO = "AUTH_CONNECTION_INFO"
CONNECTION_KEYS = ("authority", "client_id", "client_secret", "oauth_resource")


class OAuth2Auth(FetchedAuth):
    """A token from any OAuth2 server, for a client with an id and a secret.

    ``token_url`` is the token endpoint itself. The secret goes in the request's body, or with ``basic`` in its
    Authorization header (RFC 6749 §2.3.1); ``more`` are further form fields such as ``audience``.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        *,
        secret_file: Path | None = None,
        secret_env: str | None = None,
        secret: str | None = None,
        scope: str | None = None,
        basic: bool = False,
        more: Mapping[str, str] | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__()
        self._transport = Transport(token_url, tls=tls, timeouts=TOKEN_TIMEOUTS)
        self._client_id = client_id
        self._secret = Secret(file=secret_file, env=secret_env, text=secret, what="client secret")
        self._scope = scope
        self._basic = basic
        self._more = dict(more or {})

    def fetch(self) -> Token:
        """Ask the token endpoint; raises TokenError."""
        form = {"grant_type": "client_credentials", **self._more}
        if self._scope is not None:
            form["scope"] = self._scope
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        secret = self._secret.read()
        if self._basic:
            pair = f"{quote_plus(self._client_id)}:{quote_plus(secret)}".encode("ascii")
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode("ascii")
        else:
            form |= {"client_id": self._client_id, "client_secret": secret}
        try:
            with self._transport.send(
                "POST", "", route="(token)", headers=headers, body=urlencode(form).encode("ascii")
            ) as answer:
                return token_from_json(answer.read_all(ANSWER_LIMIT), what=self._transport.host)
        except TokenError:
            raise
        except DicomWebError as error:
            raise TokenError(
                f"no token from {self._transport.host}: {_why(error)}", server_text=error.server_text
            ) from None


def _why(error: DicomWebError) -> str:
    """Say what a token endpoint said, as far as the standard has a word for it: other words are the server's own."""
    if error.status is None:
        return str(error)
    try:
        code = load_json(error.server_text.encode())["error"]
    except (ValueError, KeyError, TypeError):
        code = ""
    known = isinstance(code, str) and code in ERROR_CODES
    if not known:
        return f"it answered {error.status}"
    remedy = _REMEDIES.get(code)
    return f"it answered {error.status} {code}" + (f"; {remedy}" if remedy else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionInfo:
    """What the older SDK took from AUTH_CONNECTION_INFO."""

    authority: str
    client_id: str
    client_secret: str = field(repr=False)
    oauth_resource: str

    @classmethod
    def parse(cls, text: str) -> ConnectionInfo:
        """Read JSON, or the Python literal it was, without evaluating code; raises ValueError, never quoting it."""
        fields: object = None
        for read in (json.loads, ast.literal_eval):
            try:
                fields = read(text)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
        if not isinstance(fields, dict):
            raise ValueError(f"{CONNECTION_INFO} is neither JSON nor a Python dictionary")  # noqa: TRY004 - a wrong text
        missing = [key for key in CONNECTION_KEYS if not isinstance(fields.get(key), str) or not fields[key].strip()]
        if missing:
            raise ValueError(f"{CONNECTION_INFO} lacks {', '.join(missing)}")
        return cls(**{key: fields[key].strip() for key in CONNECTION_KEYS})

    @classmethod
    def from_environment(cls, name: str = CONNECTION_INFO) -> ConnectionInfo:
        """Read the environment variable; raises ValueError if it is not set or cannot be read."""
        text = os.environ.get(name, "")
        if not text.strip():
            raise ValueError(f"the environment variable {name} is not set")
        return cls.parse(text)

    @property
    def scope(self) -> str:
        """The resource, ``api://...`` or not, as the scope that today's endpoint takes."""
        resource = self.oauth_resource.rstrip("/")
        return resource if resource.endswith("/.default") else f"{resource}/.default"

    @property
    def token_url(self) -> str:
        """The token endpoint of the authority (which names the tenant)."""
        authority = self.authority.rstrip("/")
        for ending in ("/oauth2/v2.0/token", "/oauth2/token"):
            authority = authority.removesuffix(ending)
        return f"{authority}/oauth2/v2.0/token"

    def auth(self, *, tls: Tls | None = None) -> OAuth2Auth:
        return OAuth2Auth(self.token_url, self.client_id, secret=self.client_secret, scope=self.scope, tls=tls)
