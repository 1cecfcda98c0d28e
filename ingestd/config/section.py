"""What a section of the configuration is, and the types of the values in it."""

from __future__ import annotations

import os
import re
from datetime import time, timedelta
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from .units import parse_duration, parse_hours, parse_rate, parse_share, parse_size


def _base(info: ValidationInfo) -> Path:
    context = info.context if isinstance(info.context, dict) else {}
    return Path(context.get("base") or Path.cwd())


def absolute(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError("must be a path")
    if "\0" in str(value):
        raise ValueError("must be a path without a NUL character")
    # normpath, not resolve: a link in the configuration stays the admin's to move.
    return Path(os.path.normpath(_base(info) / Path(value).expanduser()))


def _not_negative(value: timedelta) -> timedelta:
    if value < timedelta(0):
        raise ValueError("must not be negative")
    return value


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than nothing")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", value, re.ASCII):
        raise ValueError("must be a name: at most 32 small letters, digits, - and _, a letter or digit first")
    return value


def _time_zone(value: object) -> ZoneInfo:
    # Each machine says anew what these are; and a zone of right/ is ahead by the leap seconds.
    if value in ("localtime", "posixrules", "Factory") or str(value).startswith("right/"):
        raise ValueError("must be the time zone of a place, like Europe/Zurich, or UTC")
    try:
        return ZoneInfo(str(value))
    except (KeyError, ValueError, OSError):  # unknown, no name at all, a folder of the zones
        text = "must be a time zone that this machine knows (its package tzdata), like Europe/Zurich"
        raise ValueError(text) from None


def without_empty(value: Any, sections: set[str]) -> Any:
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
Rate = Annotated[int, BeforeValidator(parse_rate)]
Hours = Annotated[tuple[time, time], BeforeValidator(parse_hours)]
TimeZone = Annotated[ZoneInfo, BeforeValidator(_time_zone)]
Percentage = Annotated[float, BeforeValidator(parse_share)]
FilePath = Annotated[Path, BeforeValidator(absolute)]
Name = Annotated[str, AfterValidator(_name)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """A frozen section: unknown keys are errors, nothing is coerced."""

    # Built when it is first used: what is only part of another section is then never built for itself.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True)
