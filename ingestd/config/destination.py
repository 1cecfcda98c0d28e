"""A DICOMweb server: where it is, who we are to it, and how it is treated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator

from ingestd.lifecycle import TimeWindow

from .section import EnvironmentName, FilePath, Hours, Rate, Section, TimeZone, without_empty
from .source import Key

AZURE_HOST = ".dicom.azurehealthcareapis.com"
AZURE_SCOPE = "https://dicom.healthcareapis.azure.com/.default"


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
    implicit_vr: Literal["fallback", "never"] = "fallback"
    max_posts: Annotated[int, Field(ge=1, le=64)] = 4
    required: bool = True
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    verify: Literal["auto", "content", "presence"] | None = None  # None: as ``reconcile.verify`` says
    rate: Rate | None = None
    window: Hours | None = None
    time_zone: TimeZone | None = None

    def at(self, url: str) -> Destination:
        """Give the same at another address; raises ValueError, which says why, for what cannot be its address."""
        fits = {name: getattr(self, name) for name in ("auth", "tls", "api_version")}
        try:
            there = Destination.model_validate({"url": url, **fits})
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self.model_copy(update={"url": there.url})

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("auth"), str):
            value = {**value, "auth": {"kind": value["auth"]}}
        return without_empty(value, {"tls"})

    @property
    def hours(self) -> TimeWindow | None:
        """When it is sent to; None: at any time."""
        if self.window is None or self.time_zone is None:
            return None
        opens, closes = self.window
        return TimeWindow(opens=opens, closes=closes, zone=self.time_zone)

    @model_validator(mode="after")
    def _window_has_zone(self) -> Destination:
        if (self.window is None) != (self.time_zone is None):
            raise ValueError("window and time_zone go together: the one says which hours, the other whose")
        return self

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


def address_problems(values: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Tell, of a file's raw values, each destination at the address of another, as the ledger compares addresses."""
    several = values.get("destinations")
    met: dict[str, object] = {}
    for name, inside in several.items() if isinstance(several, dict) else ():
        url = inside.get("url") if isinstance(inside, dict) else None
        if isinstance(url, str) and (other := met.setdefault(url.rstrip("/"), name)) is not name:
            text = (
                f"is the address of {other}, too, so that files would go there twice; keep one, and name it in `rules`"
            )
            yield ("destinations", name, "url"), text
