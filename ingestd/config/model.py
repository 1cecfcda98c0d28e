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
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, Strict, ValidationInfo, model_validator

from ingestd.lifecycle import AT_ONCE

from .destination import Destination
from .rules import SHORT_FORM, RuleSection
from .section import (
    AutoDuration,
    Duration,
    DurationOrZero,
    FilePath,
    Name,
    Percentage,
    Section,
    Size,
    absolute,
    without_empty,
)
from .units import Share

_POSTGRESQL = ("postgresql://", "postgres://")


def _ledger_url(value: object, info: ValidationInfo) -> str:
    if isinstance(value, str) and value.startswith(_POSTGRESQL):
        return _postgresql_url(value)
    if not isinstance(value, str) or not value.startswith("sqlite:///"):
        raise ValueError(
            "must be sqlite:///FILE (relative to this file's folder), sqlite:////ABSOLUTE/FILE or"
            " postgresql://HOST/DATABASE"
        )
    name = value.removeprefix("sqlite:///")
    if not name or name.startswith(":memory:") or "?" in name or "#" in name:
        raise ValueError("must name a file: what it records has to outlive the process")
    return f"sqlite:///{absolute(name, info)}"


def _postgresql_url(value: str) -> str:
    parts = urlsplit(value)
    if ("@" in parts.netloc and ":" in parts.netloc.rpartition("@")[0]) or "password" in parse_qs(parts.query):
        raise ValueError("must be without a password; that goes into ~/.pgpass, or PGPASSFILE of the environment")
    if not parts.path.strip("/"):
        raise ValueError("must name a database, like postgresql://HOST/DATABASE")
    return value


def _lease(value: timedelta) -> timedelta:
    if not timedelta(seconds=2) <= value <= timedelta(minutes=10):
        raise ValueError("must be from 2s to 10m")
    return value


def _priority(value: object) -> int:
    if value == "at_once":
        return AT_ONCE
    if type(value) is not int or not -100 <= value <= 100:
        raise ValueError("must be a whole number from -100 to 100, or at_once")
    return value


class Inbox(Section):
    """One watched folder."""

    path: FilePath
    name: Name | None = None
    take: Literal["move", "in_place"] = "move"
    settle: AutoDuration = None
    incomplete_after: Duration = timedelta(minutes=15)
    watch: Literal["auto", "events", "poll"] = "auto"
    priority: Annotated[int, BeforeValidator(_priority)] = 0
    ignore: Annotated[tuple[str, ...], Strict(strict=False)] = ()
    emptied_folders: Literal["keep", "remove"] = "keep"

    @model_validator(mode="after")
    def _touch_nothing_in_place(self) -> Inbox:
        if self.emptied_folders == "remove" and self.take == "in_place":
            raise ValueError("emptied_folders: remove goes with take: move only; with in_place nothing is touched")
        return self

    @property
    def spool_name(self) -> str:
        """What spool and ledger call this folder: the same as long as its path is the same; safe inside a path."""
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", self.path.name).strip("-")[:32] or "inbox"
        return f"{plain}-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8]}"


class SpoolSettings(Section):
    """The daemon's own folder; ``spool: PATH`` means ``{path: PATH}``."""

    path: FilePath
    retain: DurationOrZero = timedelta(hours=24)
    low_water: Size = 1_000_000_000
    _search_key: Path = PrivateAttr()

    def model_post_init(self, _context: object, /) -> None:
        self._search_key = self.path / "search.key"

    @property
    def search_key(self) -> Path:
        """Where the key of the search words lies of a ledger that is no file; that of ``send``, too."""
        return self._search_key

    @property
    def is_for_send(self) -> bool:
        """Whether this is the one of ``send``, inside the daemon's."""
        return self._search_key.parent != self.path

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
    sha256: bool = True


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
    destinations: Annotated[dict[Name, Destination], Field(min_length=1)]
    rules: Annotated[tuple[RuleSection, ...], Strict(strict=False)] = ()
    retry: RetrySection = RetrySection()
    reconcile: ReconcileSection = ReconcileSection()
    reader: ReaderSection = ReaderSection()
    ledger: Annotated[str, BeforeValidator(_ledger_url)]
    shutdown_grace: DurationOrZero = timedelta(seconds=30)
    lease: Annotated[Duration, AfterValidator(_lease)] = timedelta(seconds=60)
    logging: LoggingSection = LoggingSection()
    _origin: _Origin = PrivateAttr(_Origin())

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        return without_empty(value, {"batch", "rules", "retry", "reconcile", "reader", "logging"})

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Take ``destination: ...`` for one of several; where both stand it is left, and refused."""
        if not isinstance(value, dict) or "destination" not in value or "destinations" in value:
            return value
        others = {name: inside for name, inside in value.items() if name != "destination"}
        return others | {"destinations": {SHORT_FORM: value["destination"]}}

    def of_file(self, file: Path) -> Config:
        """Remember which file this was read from."""
        self._origin = _Origin(file)
        return self

    @property
    def file(self) -> Path | None:
        """The file that this was read from, None for what code made."""
        return self._origin.file

    @property
    def destination(self) -> Destination:
        """The only destination; whoever can do with several asks ``destinations``."""
        (only,) = self.destinations.values()
        return only

    @property
    def addresses(self) -> dict[str, str]:
        """The URL of each destination, by its name."""
        return {name: each.url for name, each in self.destinations.items()}

    @property
    def ledger_file(self) -> Path | None:
        """The file that the ledger's URL names; None: it is in a database server."""
        return None if self.ledger.startswith(_POSTGRESQL) else Path(self.ledger.removeprefix("sqlite:///"))

    @property
    def ledger_name(self) -> str:
        """What people know the ledger by: its file, or its URL without options."""
        if self.ledger_file is not None:
            return str(self.ledger_file)
        parts = urlsplit(self.ledger)
        return f"postgresql://{parts.netloc}{parts.path}"
