"""Tokens on request: a key of the emulator's own, a token endpoint, and the service's two roles (AZURE.md 8).

So that 401, 403, expiry and refresh can be tried for real: ``POST /oauth2/v2.0/token`` with client credentials gives
a signed token, ``/.well-known/openid-configuration`` and ``/discovery/v2.0/keys`` say how to check it. Two clients
exist from the start: ``owner`` (secret ``owner``) may do everything, ``reader`` (secret ``reader``) may read. The
issuer is one, as the service's is, by whatever name the server was asked for the token.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from starlette.responses import Response

from ..errors import Problem
from ..http.answers import PlainJson
from ..http.request import Action, Body, Route, ServiceRequest, route

AUDIENCE = "https://dicom.healthcareapis.azure.com"
_ROLES: dict[str, frozenset[Action]] = {
    "DICOM Data Owner": frozenset(Action),
    "DICOM Data Reader": frozenset({Action.READ, Action.NONE}),
}
_CLIENTS = {"owner": ("owner", "DICOM Data Owner"), "reader": ("reader", "DICOM Data Reader"), "nobody": ("nobody", "")}


class Tokens:
    """Makes and checks the tokens of one server; the key is kept in its data folder."""

    def __init__(self, data: Path, *, issuer: str, lifetime_seconds: int) -> None:
        self.issuer = issuer
        self.lifetime_seconds = lifetime_seconds
        path = data / "keys" / "signing.pem"
        if path.exists():
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            assert isinstance(key, rsa.RSAPrivateKey), "we wrote it"
            self._key = key
        else:
            self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(
                self._key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )

    def token(self, *, role: str = "DICOM Data Owner", lifetime_seconds: float | None = None) -> str:
        """A signed token with a role; a negative lifetime makes one that has expired."""
        now = time.time()
        lifetime = self.lifetime_seconds if lifetime_seconds is None else lifetime_seconds
        claims = {
            "aud": AUDIENCE,
            "iss": self.issuer,
            "iat": int(now),
            "nbf": int(now) - 60,
            "exp": int(now + lifetime),
            "jti": uuid.uuid4().hex,
            "roles": [role] if role else [],
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": "emulator"})

    def authenticate(self, request: ServiceRequest) -> None:
        self._claims(request)

    def authorize(self, request: ServiceRequest, action: Action) -> None:
        """Raise Problem 403 where the token's roles do not allow the action."""
        roles = self._claims(request).get("roles")
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            roles = []  # of any other shape it names no role
        if not any(action in _ROLES.get(role, ()) for role in roles):
            raise Problem(403, "Authorization failed.")

    def _claims(self, request: ServiceRequest) -> dict[str, Any]:
        scheme, _, token = (request.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthorized(request)
        try:
            claims: dict[str, Any] = jwt.decode(
                token.strip(),
                self._key.public_key(),
                algorithms=["RS256"],
                audience=AUDIENCE,
                issuer=self.issuer,
                options={"require": ["exp", "aud", "iss"]},
            )
        except jwt.InvalidTokenError as error:
            raise _unauthorized(request, error) from error
        return claims

    def routes(self) -> tuple[Route, ...]:
        """The rows of the routing table that only a server with tokens has."""
        form = {"body": Body.SMALL, "consumes": ("application/x-www-form-urlencoded",)}
        return (
            route("POST", "oauth2/v2.0/token", self.post_token, Action.NONE, **form),
            route("POST", "{tenant}/oauth2/v2.0/token", self.post_token, Action.NONE, **form),
            route("GET", "discovery/v2.0/keys", self.get_keys, Action.NONE),
            route("GET", ".well-known/openid-configuration", self.get_configuration, Action.NONE),
            route("GET", "{tenant}/v2.0/.well-known/openid-configuration", self.get_configuration, Action.NONE),
        )

    def post_token(self, request: ServiceRequest) -> Response:
        """``POST /oauth2/v2.0/token`` or ``/{tenant}/oauth2/v2.0/token``: client credentials (RFC 6749 §4.4)."""
        form = {name: values[0] for name, values in parse_qs(request.content.decode("utf-8", "replace")).items()}
        if form.get("grant_type") != "client_credentials":
            return _oauth_error("unsupported_grant_type")
        secret, role = _CLIENTS.get(form.get("client_id", ""), (None, ""))
        if secret is None or form.get("client_secret") != secret:
            return _oauth_error("invalid_client", status=401)
        if form.get("scope", f"{AUDIENCE}/.default") not in (f"{AUDIENCE}/.default", f"{AUDIENCE}//.default"):
            return _oauth_error("invalid_scope")
        return PlainJson(
            {
                "token_type": "Bearer",
                "expires_in": self.lifetime_seconds,
                "ext_expires_in": self.lifetime_seconds,
                "access_token": self.token(role=role),
            }
        )

    def get_keys(self, _: ServiceRequest) -> Response:
        """``GET /discovery/v2.0/keys``: the public key as a JSON Web Key Set."""
        numbers = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "emulator", "n": numbers["n"], "e": numbers["e"]}
        return PlainJson({"keys": [key]})

    def get_configuration(self, request: ServiceRequest) -> Response:
        """``GET /.well-known/openid-configuration``."""
        origin = request.origin
        return PlainJson(
            {
                "issuer": self.issuer,
                "token_endpoint": f"{origin}/oauth2/v2.0/token",
                "authorization_endpoint": f"{origin}/oauth2/v2.0/authorize",
                "jwks_uri": f"{origin}/discovery/v2.0/keys",
                "grant_types_supported": ["client_credentials"],
                "response_types_supported": ["token"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )


def _unauthorized(request: ServiceRequest, error: Exception | None = None) -> Problem:
    challenge = (
        f'Bearer authorization_uri="{request.origin}/oauth2/v2.0/authorize", resource_id="{AUDIENCE}", '
        f'realm="{AUDIENCE}"'
    )
    if isinstance(error, jwt.ExpiredSignatureError):
        challenge += ', error="invalid_token", error_description="The token expired"'
    elif error is not None:
        challenge += ', error="invalid_token"'
    return Problem(401, headers={"WWW-Authenticate": challenge})


def _oauth_error(code: str, *, status: int = 400) -> Response:
    return PlainJson({"error": code, "error_description": f"The request was refused: {code}."}, status_code=status)
