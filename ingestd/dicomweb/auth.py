"""Who we are to the server: none, a bearer token, basic, Azure, or generic OAuth2 client credentials.

Secrets come from files or environment variables and are never in a message, a repr or a log. An ``Auth`` is shared by
all threads of a client.
"""

from __future__ import annotations

import base64
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ingestd.clocks import boottime, utc_now
from ingestd.dicomweb.decoding import load_json
from ingestd.dicomweb.errors import TokenError
from ingestd.fs.places import read_named

AZURE_SCOPE = "https://dicom.healthcareapis.azure.com/.default"
# A token is renewed this long before it expires; a failure to do so matters only when it is really over.
REFRESH_AHEAD_SECONDS = 300
LEAST_SECONDS_LEFT = 10
# What a token endpoint says of its token's lifetime is believed up to here; a token is fetched anew for the asking.
MOST_LIFETIME_SECONDS = 86_400.0
# After a failed refresh ahead of time the old token is used for this long before the next try.
REFRESH_PAUSE_SECONDS = 30


class Auth(Protocol):
    """Gives the value of the Authorization header."""

    def header(self) -> str | None:
        """Return the header's value, None for no header; raises TokenError when there is none to be had."""

    def renew(self, refused: str | None) -> bool:
        """Throw away what the server refused (401); True if there is something else now, worth one more try."""


class NoAuth:
    """No Authorization header at all."""

    def header(self) -> str | None:
        return None

    def renew(self, refused: str | None) -> bool:  # noqa: ARG002 - the protocol's signature
        return False


class Secret:
    """A secret in a file (read again when it changes), in an environment variable, or given as text."""

    def __init__(self, *, what: str, file: Path | None = None, env: str | None = None, text: str | None = None) -> None:
        if sum(source is not None for source in (file, env, text)) != 1:
            raise ValueError(f"give the {what} by file or by environment variable, one of the two")
        self._given = text
        self._file = file
        self._env = env
        self._what = what
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._text = ""

    def read(self, *, again: bool = False) -> str:
        """Return the secret; raises TokenError if it is missing, empty or not one line of printable ASCII."""
        if self._given is not None:
            text, source = self._given, "text given"
        elif self._env is not None:
            text = os.environ.get(self._env, "").strip()
            source = f"environment variable {self._env}"
        else:
            assert self._file is not None, "one of the two is given"
            text = self._read_file(self._file, again=again)
            source = f"file {str(self._file)!r}"
        if not text:
            raise TokenError(f"no {self._what}: the {source} is empty or not set")
        if not text.isascii() or not text.isprintable():
            raise TokenError(f"no {self._what}: the {source} holds more than one line of plain characters")
        return text

    def _read_file(self, path: Path, *, again: bool) -> str:
        with self._lock:
            try:
                stat = path.stat()
                seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if again or seen != self._seen:
                    self._text = read_named(path).decode("utf-8", "replace").strip()
                    self._seen = seen
            except OSError as error:
                raise _unread(self._what, path, error) from None
            return self._text


def _unread(what: str, path: Path, error: OSError) -> TokenError:
    return TokenError(f"no {what}: cannot read the file {str(path)!r}: {error.strerror or type(error).__name__}")


class BearerAuth:
    """A token somebody else fetches, in a file (read again when it changes) or an environment variable."""

    def __init__(self, *, file: Path | None = None, env: str | None = None) -> None:
        self._secret = Secret(file=file, env=env, what="bearer token")

    def header(self) -> str | None:
        """Return ``Bearer <token>``; a token pasted with that word in front is taken as it is."""
        return _bearer(self._secret.read())

    def renew(self, refused: str | None) -> bool:
        """Read the source again; True if it holds another token now."""
        return _bearer(self._secret.read(again=True)) != refused


def _bearer(token: str) -> str:
    if token[:7].lower() == "bearer ":
        token = token[7:].strip()
    return f"Bearer {token}"


class BasicAuth:
    """User name and password (RFC 7617)."""

    def __init__(self, username: str, *, password_file: Path | None = None, password_env: str | None = None) -> None:
        if ":" in username:
            raise ValueError("a user name for basic authentication may not hold a colon")
        self._username = username
        self._secret = Secret(file=password_file, env=password_env, what="password")

    def header(self) -> str | None:
        """Return ``Basic <user:password in base64>``, both as UTF-8."""
        pair = f"{self._username}:{self._secret.read()}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")

    def renew(self, refused: str | None) -> bool:
        """Read the source again; True if it holds another password now."""
        self._secret.read(again=True)
        return self.header() != refused


@dataclass(frozen=True, slots=True)
class Token:
    """A token and when it ends, in seconds of ``clocks.boottime``: setting the wall clock makes it no older."""

    text: str = field(repr=False)
    expires_at: float


class FetchedAuth:
    """A token that we fetch ourselves, ahead of its end; one thread fetches, the others wait for it.

    Subclasses say how to fetch. What is known of its end may be wrong, as clocks are: a 401 decides, not the
    cache.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._not_before = 0.0  # no refresh ahead of time before this

    def fetch(self) -> Token:
        """Fetch a new token; raises TokenError."""
        raise NotImplementedError

    def forget(self) -> None:
        """Throw away whatever could give the same token again."""

    def header(self) -> str | None:
        """Return ``Bearer <token>``, fetching or refreshing it first where it is time to."""
        token = self._token
        if token is not None and token.expires_at - boottime() > REFRESH_AHEAD_SECONDS:
            return f"Bearer {token.text}"
        with self._lock:
            return f"Bearer {self._fresh().text}"

    def _fresh(self) -> Token:
        left = 0.0 if self._token is None else self._token.expires_at - boottime()
        if self._token is not None and (
            left > REFRESH_AHEAD_SECONDS or (left > LEAST_SECONDS_LEFT and boottime() < self._not_before)
        ):
            return self._token
        try:
            self._token = self.fetch()
        except TokenError:
            if self._token is None or left <= LEAST_SECONDS_LEFT:
                raise
            self._not_before = boottime() + REFRESH_PAUSE_SECONDS
        else:
            # A token that is short-lived from birth is not fetched anew for each request.
            self._not_before = boottime() + REFRESH_PAUSE_SECONDS
        return self._token

    def renew(self, refused: str | None) -> bool:
        """Throw the refused token and its credential away and fetch anew; True if there is another one now."""
        with self._lock:
            if self._token is not None and f"Bearer {self._token.text}" == refused:
                self._token = None
                self.forget()
            return f"Bearer {self._fresh().text}" != refused


AZURE_CREDENTIALS = ("default", "managed_identity", "workload", "secret", "certificate", "cli")


class AzureAuth(FetchedAuth):
    """A token from Microsoft Entra ID through azure-identity.

    ``credential`` is one of AZURE_CREDENTIALS. ``secret`` and ``certificate`` are a service principal and need
    ``tenant_id`` and ``client_id``; ``managed_identity`` takes ``client_id`` for a user-assigned one. Prefer the
    explicit kinds: ``default`` walks through everything it knows.
    """

    def __init__(
        self,
        credential: str = "default",
        *,
        scope: str = AZURE_SCOPE,
        tenant_id: str | None = None,
        client_id: str | None = None,
        secret_file: Path | None = None,
        secret_env: str | None = None,
        certificate_file: Path | None = None,
        authority: str | None = None,
    ) -> None:
        super().__init__()
        if credential not in AZURE_CREDENTIALS:
            raise ValueError(f"no Azure credential of kind {credential!r}; there are {', '.join(AZURE_CREDENTIALS)}")
        if credential in {"secret", "certificate"} and not (tenant_id and client_id):
            raise ValueError(f"Azure credential {credential!r} needs tenant_id and client_id")
        if credential == "certificate" and certificate_file is None:
            raise ValueError("Azure credential 'certificate' needs certificate_file")
        self._kind = credential
        self.scope = scope
        self._tenant_id = tenant_id
        self._client_id = client_id
        self._secret = (
            Secret(file=secret_file, env=secret_env, what="client secret") if credential == "secret" else None
        )
        self._certificate_file = certificate_file
        self._authority = authority
        self._credential: Any = None

    def fetch(self) -> Token:
        """Ask azure-identity for a token; raises TokenError with the kind of credential and the class of the error."""
        try:
            if self._credential is None:
                self._credential = self._build()
            token = self._credential.get_token(self.scope)
        except TokenError:
            raise
        except Exception as error:  # noqa: BLE001 - azure-identity raises many kinds; any of them means no token
            self._credential = None
            # Its texts hold tenant, client and correlation ids, and for some kinds the output of other programs.
            raise TokenError(
                f"no token from azure-identity ({self._kind}) for scope {self.scope}: {type(error).__name__}; "
                "check the credential, the tenant and the network to the identity service",
                server_text=str(error)[:2000],
            ) from None
        # The library gives a wall clock's time, which may be set between now and then.
        return Token(token.token, boottime() + float(token.expires_on) - utc_now().timestamp())

    def forget(self) -> None:
        """Throw the credential object away: its cache would give the refused token again."""
        credential, self._credential = self._credential, None
        if credential is not None and hasattr(credential, "close"):
            credential.close()

    def _build(self) -> Any:
        import azure.identity as azure  # noqa: PLC0415 - half a second and 60 MB that nobody else should pay

        options: dict[str, Any] = {"connection_timeout": 5, "read_timeout": 10, "retry_total": 2}
        if self._authority is not None:
            options["authority"] = self._authority
        match self._kind:
            case "managed_identity":
                return azure.ManagedIdentityCredential(client_id=self._client_id, **options)
            case "workload":
                return azure.WorkloadIdentityCredential(
                    **_given(tenant_id=self._tenant_id, client_id=self._client_id), **options
                )
            case "secret":
                assert self._secret is not None, "made for this kind"
                secret = self._secret.read()
                return azure.ClientSecretCredential(self._tenant_id or "", self._client_id or "", secret, **options)
            case "certificate":
                assert self._certificate_file is not None, "asked for at the start"
                try:
                    options["certificate_data"] = read_named(self._certificate_file)
                except OSError as error:
                    raise _unread("certificate", self._certificate_file, error) from None
                return azure.CertificateCredential(self._tenant_id or "", self._client_id or "", **options)
            case "cli":
                return azure.AzureCliCredential(tenant_id=self._tenant_id or "", process_timeout=20)
            case _:
                return azure.DefaultAzureCredential(process_timeout=20, **options)


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def token_from_json(answer: bytes, *, what: str) -> Token:
    """Read a token endpoint's answer (RFC 6749 section 5.1); raises TokenError."""
    try:
        fields = load_json(answer)
        text = fields["access_token"]
        lifetime = float(fields.get("expires_in", 300))
    except OverflowError:
        lifetime = MOST_LIFETIME_SECONDS
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TokenError(f"no token from {what}: its answer holds no access_token") from None
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text:
        raise TokenError(f"no token from {what}: its access_token is not plain text")
    # max first: a lifetime that is no number (NaN) is none.
    return Token(text, boottime() + min(max(0.0, lifetime), MOST_LIFETIME_SECONDS))
