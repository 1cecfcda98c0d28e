"""The configuration as one frozen object: a class is a section, an attribute a key, in the order a file meets them.

Checks here look at values only; whether a folder exists or a server answers is asked by ``ingestd check``.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    ValidationInfo,
    model_validator,
)

from .units import Share, parse_duration, parse_share, parse_size

AZURE_HOST = ".dicom.azurehealthcareapis.com"
AZURE_SCOPE = "https://dicom.healthcareapis.azure.com/.default"


def _base(info: ValidationInfo) -> Path:
    context = info.context if isinstance(info.context, dict) else {}
    return Path(context.get("base") or Path.cwd())


def _absolute(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError("must be a path")
    if "\0" in str(value):
        raise ValueError("must be a path without a NUL character")
    # normpath, not resolve: a link in the configuration stays the admin's to move.
    return Path(os.path.normpath(_base(info) / Path(value).expanduser()))


def _ledger_url(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str) or not value.startswith("sqlite:///"):
        raise ValueError("must be sqlite:///FILE (relative to this file's folder) or sqlite:////ABSOLUTE/FILE")
    name = value.removeprefix("sqlite:///")
    if not name or name.startswith(":memory:") or "?" in name or "#" in name:
        raise ValueError("must name a file: what it records has to outlive the process")
    return f"sqlite:///{_absolute(name, info)}"


def _not_negative(value: timedelta) -> timedelta:
    if value < timedelta(0):
        raise ValueError("must not be negative")
    return value


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than nothing")
    return value


def _without_empty(value: Any, sections: set[str]) -> Any:
    """Take a section whose keys are all commented out, which YAML reads as null, for one that is not there."""
    if not isinstance(value, dict):
        return value
    return {name: inside for name, inside in value.items() if inside is not None or name not in sections}


def _auto_is_none(value: object) -> object:
    return None if value == "auto" else value


Duration = Annotated[timedelta, AfterValidator(_positive), BeforeValidator(parse_duration)]
DurationOrZero = Annotated[timedelta, AfterValidator(_not_negative), BeforeValidator(parse_duration)]
# ``auto`` in the file is None here: the room that uses it chooses.
AutoDuration = Annotated[DurationOrZero | None, BeforeValidator(_auto_is_none)]
Size = Annotated[int, BeforeValidator(parse_size)]
Percentage = Annotated[float, BeforeValidator(parse_share)]
FilePath = Annotated[Path, BeforeValidator(_absolute)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """A frozen section: unknown keys are errors, nothing is coerced."""

    # Built when it is first used: what is only part of another section is then never built for itself.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True)


class Inbox(Section):
    """One watched folder."""

    path: FilePath
    take: Literal["move", "in_place"] = "move"
    settle: AutoDuration = None
    incomplete_after: Duration = timedelta(minutes=15)
    watch: Literal["auto", "events", "poll"] = "auto"
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    ignore: Annotated[tuple[str, ...], Strict(strict=False)] = ()
    emptied_folders: Literal["keep", "remove"] = "keep"

    @model_validator(mode="after")
    def _touch_nothing_in_place(self) -> Inbox:
        if self.emptied_folders == "remove" and self.take == "in_place":
            raise ValueError("emptied_folders: remove goes with take: move only; with in_place nothing is touched")
        return self

    @property
    def name(self) -> str:
        """A short name for this folder, the same as long as its path is the same; safe inside a path."""
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", self.path.name).strip("-")[:32] or "inbox"
        return f"{plain}-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8]}"


class SpoolSettings(Section):
    """The daemon's own folder; ``spool: PATH`` means ``{path: PATH}``."""

    path: FilePath
    retain: DurationOrZero = timedelta(hours=24)
    low_water: Size = 1_000_000_000

    @property
    def for_send(self) -> Path:
        """The folder in which ``ingestd send`` keeps a spool id and lock of its own."""
        return self.path / "send"

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, (str, Path)) else value


class BatchSection(Section):
    """When a study is due, and how much one request carries at most."""

    quiet_period: DurationOrZero = timedelta(seconds=5)
    max_wait: DurationOrZero = timedelta(seconds=60)
    max_bytes: Annotated[Size, Field(ge=1_000_000, le=4_000_000_000)] = 64_000_000
    max_instances: Annotated[int, Field(ge=1, le=1000)] = 200


class NoAuthSettings(Section):
    """The server asks for nothing."""

    kind: Literal["none"] = "none"


class BearerAuthSettings(Section):
    """A bearer token that something else keeps fresh in a file or in the environment."""

    kind: Literal["bearer"]
    token_file: FilePath | None = None
    token_env: EnvironmentName | None = None

    @model_validator(mode="after")
    def _one_source(self) -> BearerAuthSettings:
        if (self.token_file is None) == (self.token_env is None):
            raise ValueError("kind bearer needs either token_file or token_env")
        return self


class BasicAuthSettings(Section):
    """User name and password."""

    kind: Literal["basic"]
    username: Annotated[str, Field(min_length=1)]
    password_file: FilePath | None = None
    password_env: EnvironmentName | None = None

    @model_validator(mode="after")
    def _one_source(self) -> BasicAuthSettings:
        if (self.password_file is None) == (self.password_env is None):
            raise ValueError("kind basic needs either password_file or password_env")
        if ":" in self.username:
            raise ValueError("username must not contain a colon (RFC 7617)")
        return self


class AzureAuthSettings(Section):
    """Microsoft Entra ID, by azure-identity."""

    kind: Literal["azure"]
    credential: Literal["default", "managed_identity", "workload", "secret", "certificate", "cli"] = "default"
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret_file: FilePath | None = None
    certificate_file: FilePath | None = None
    scope: Annotated[str, Field(min_length=1)] = AZURE_SCOPE

    @model_validator(mode="after")
    def _keys_fit_credential(self) -> AzureAuthSettings:
        needed = {
            "secret": ("tenant_id", "client_id", "client_secret_file"),
            "certificate": ("tenant_id", "client_id", "certificate_file"),
        }.get(self.credential, ())
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"credential {self.credential} needs {', '.join(missing)}")
        allowed = {
            "default": ("tenant_id", "client_id"),
            "managed_identity": ("client_id",),
            "workload": ("tenant_id", "client_id"),
            "cli": ("tenant_id",),
        }.get(self.credential, needed)
        names = ("tenant_id", "client_id", "client_secret_file", "certificate_file")
        idle = [name for name in names if getattr(self, name) is not None and name not in allowed]
        if idle:
            raise ValueError(f"credential {self.credential} does not use {', '.join(idle)}; take it out")
        return self


class OAuth2AuthSettings(Section):
    """Client credentials from any OAuth2 token endpoint (RFC 6749 §4.4)."""

    kind: Literal["oauth2"]
    token_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    client_id: Annotated[str, Field(min_length=1)]
    client_secret_file: FilePath | None = None
    client_secret_env: EnvironmentName | None = None
    scope: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> OAuth2AuthSettings:
        if (self.client_secret_file is None) == (self.client_secret_env is None):
            raise ValueError("kind oauth2 needs either client_secret_file or client_secret_env")
        return self


Auth = Annotated[
    NoAuthSettings | BearerAuthSettings | BasicAuthSettings | AzureAuthSettings | OAuth2AuthSettings,
    Field(discriminator="kind"),
]


class TlsSection(Section):
    """Which certificate authority to trust, and who we are."""

    ca_file: FilePath | None = None
    client_cert: FilePath | None = None
    client_key: FilePath | None = None

    @model_validator(mode="after")
    def _key_has_certificate(self) -> TlsSection:
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("client_key needs client_cert")
        return self


def _server_url(value: str) -> str:
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError("must be an address without spaces or control characters")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is no address: {error}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError("must be an http:// or https:// address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry a user name or password; use auth")
    if parts.query or parts.fragment:
        raise ValueError("must end with the path, without ? or #")
    if host.endswith(AZURE_HOST):
        if parts.scheme != "https":
            raise ValueError("must be https:// for the Azure DICOM service: it takes a token, and http would show it")
        if parts.path.rstrip("/") not in {"/v1", "/v2"}:
            raise ValueError(f"the Azure DICOM service wants a version in the path; write https://{host}/v2")
    return value.rstrip("/")


class Destination(Section):
    """The server; ``auth: NAME`` means ``{kind: NAME}``."""

    url: Annotated[str, AfterValidator(_server_url)]
    kind: Literal["auto", "azure", "orthanc", "other"] = "auto"
    auth: Auth = NoAuthSettings()
    tls: TlsSection = TlsSection()
    api_version: Literal["auto", 1, 2] = "auto"
    implicit_vr: Literal["fallback", "always", "never"] = "fallback"
    max_posts: Annotated[int, Field(ge=1, le=64)] = 4

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("auth"), str):
            value = {**value, "auth": {"kind": value["auth"]}}
        return _without_empty(value, {"tls"})

    @model_validator(mode="after")
    def _parts_fit(self) -> Destination:
        plain = self.url.startswith("http://")
        if plain and self.tls != TlsSection():
            raise ValueError("tls has no meaning for an http:// url; use https:// or take tls out")
        if plain and self.auth.kind == "azure" and urlsplit(self.url).hostname not in {"127.0.0.1", "localhost", "::1"}:
            raise ValueError("auth azure needs an https:// url: http would show the token to the network")
        said = re.search(r"/v([12])$", self.url)
        if said and self.api_version not in {"auto", int(said[1])}:
            raise ValueError(f"api_version {self.api_version} contradicts the url, which ends in /v{said[1]}")
        return self


class RetrySection(Section):
    """How long to wait between tries, and when to give one file up."""

    base: Duration = timedelta(seconds=5)
    cap: Duration = timedelta(minutes=15)
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 10

    @model_validator(mode="after")
    def _cap_is_not_below_base(self) -> RetrySection:
        if self.cap < self.base:
            raise ValueError("cap must not be shorter than base")
        return self


class ReconcileSection(Section):
    """How the server is asked whether a file is really there."""

    verify: Literal["auto", "content", "presence"] = "auto"
    sample: Percentage = Share(0.01)
    interval: Duration = timedelta(seconds=10)
    lag: DurationOrZero = timedelta(seconds=60)
    grace: Duration = timedelta(minutes=15)
    absence_wait: AutoDuration = None


class ReaderSection(Section):
    """The processes that read and check files."""

    processes: Annotated[int, Field(ge=1, le=32)] = 2
    memory: Annotated[Size, Field(ge=128 * 1024 * 1024)] = 512 * 1024 * 1024


class LoggingSection(Section):
    """What is written to stderr, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    uids: Literal["hashed", "plain"] = "hashed"


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a configuration was read from; two that say the same are equal, wherever they stand."""

    file: Path | None = field(default=None, compare=False)


class Config(Section):
    """Everything ingestd is told."""

    # Left out where only `ingestd send` is used; the daemon wants at least one.
    inboxes: Annotated[tuple[Inbox, ...], Strict(strict=False), Field(min_length=1)] = ()
    spool: SpoolSettings
    batch: BatchSection = BatchSection()
    destination: Destination
    retry: RetrySection = RetrySection()
    reconcile: ReconcileSection = ReconcileSection()
    reader: ReaderSection = ReaderSection()
    ledger: Annotated[str, BeforeValidator(_ledger_url)]
    shutdown_grace: DurationOrZero = timedelta(seconds=30)
    logging: LoggingSection = LoggingSection()
    _origin: _Origin = PrivateAttr(_Origin())

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        return _without_empty(value, {"batch", "retry", "reconcile", "reader", "logging"})

    def of_file(self, file: Path) -> Config:
        """Remember which file this was read from."""
        self._origin = _Origin(file)
        return self

    @property
    def file(self) -> Path | None:
        """The file that this was read from, None for what code made."""
        return self._origin.file

    @property
    def ledger_file(self) -> Path:
        """The file that the ledger's URL names."""
        return Path(self.ledger.removeprefix("sqlite:///"))
