"""Find the configuration file, read it, and say everything that is wrong with it at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ingestd.fs.places import read_named

from .destination import (
    AzureAuthSettings,
    BasicAuthSettings,
    BearerAuthSettings,
    Destination,
    OAuth2AuthSettings,
    address_problems,
)
from .guarding import others_who_may_write
from .model import Config, Inbox
from .rules import RuleSection, name_problems
from .section import Section
from .source import ConfigProblem, ConfigSource, Key, dotted, read_yaml
from .units import format_size

VARIABLE = "INGESTD_CONFIG"
PLACES = (Path("config.yaml"), Path("/etc/ingestd/config.yaml"))

_AUTH_KINDS = ("none", "bearer", "basic", "azure", "oauth2")
_SECRETS = {
    "password": "password_file or password_env",
    "token": "token_file or token_env",
    "client_secret": "client_secret_file",
    "secret": "client_secret_file",
}
# Bare numbers are refused for these types, though code may give bytes as an int.
_SIZES = {("spool", "low_water"), ("batch", "max_bytes"), ("reader", "memory")}

# Where the sections of one kind stand, "" for a name or a number.
_ROOTS: dict[Key, type[Section]] = {
    ("inboxes", ""): Inbox,
    ("destination",): Destination,
    ("destinations", ""): Destination,
    ("rules", ""): RuleSection,
}


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` has every reason."""

    def __init__(self, problems: Sequence[ConfigProblem], *, file: Path | None = None) -> None:
        self.problems = tuple(problems)
        self.file = file
        super().__init__(str(self))

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        head = f"{self.file}: {count}" if self.file else "no configuration"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


def find_file(explicit: Path | None = None) -> Path:
    """Return the configuration file to use: ``explicit``, $INGESTD_CONFIG, ./config.yaml, /etc/ingestd/config.yaml.

    One that nobody named is refused where somebody else may write it: it decides where our secrets are sent.
    """
    if explicit is not None:
        return explicit
    if named := os.environ.get(VARIABLE):
        return Path(named)
    for place in PLACES:
        if _is_there(place):
            _refuse_strangers(place)
            return place
    if not _may_look_around():
        text = "this user may not enter the folder where you are; name the file with -c FILE, or go to another folder"
        raise ConfigError([ConfigProblem(key="", text=text)])
    text = f"looked at ${VARIABLE} (not set), ./config.yaml and /etc/ingestd/config.yaml; name one with -c FILE"
    raise ConfigError([ConfigProblem(key="", text=text)])


def _is_there(place: Path) -> bool:
    try:
        return place.is_file()
    except PermissionError:
        if place.is_absolute():
            raise
        # `sudo -u ingestd` out of somebody's closed home: whoever may not enter it keeps no configuration there.
        return False


def _may_look_around() -> bool:
    return os.access(".", os.X_OK, effective_ids=True)


def _refuse_strangers(place: Path) -> None:
    """Refuse, and do not go on to the next place: another configuration means other files, and another ledger."""
    if who := others_who_may_write(place, trusted=(os.geteuid(),)):
        text = f"not taken as found by itself: {who}; mend that, or name it with -c FILE if it can be trusted"
        raise ConfigError([ConfigProblem(key="", text=text)], file=Path(os.path.abspath(place)))  # noqa: PTH100


def load(path: Path | None = None) -> Config:
    """Read the configuration file and return it checked; raises ConfigError with every problem.

    Relative paths in it count from the file's own folder.
    """
    file = find_file(path)
    try:
        text = read_named(file).decode("utf-8")
    except OSError as error:
        raise ConfigError([ConfigProblem(key="", text=f"cannot be read: {error.strerror}")], file=file) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([ConfigProblem(key="", text="not UTF-8 text", line=line)], file=file) from error
    file = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow a link to the file
    return parse(text, base=file.parent, file=file).of_file(file)


def parse(text: str, *, base: Path, file: Path | None = None) -> Config:
    """Turn YAML text into a Config, relative paths counting from ``base``; raises ConfigError."""
    source = read_yaml(text)
    if source.problems and source.values is None:
        raise ConfigError(source.problems, file=file)
    if not isinstance(source.values, dict):
        said = "is empty" if source.values is None else "must be a mapping of keys to values"
        raise ConfigError([*source.problems, ConfigProblem(key="", text=f"the configuration {said}")], file=file)
    problems = [*source.problems, *_bare_sizes(source)]
    config: Config | None = None
    try:
        config = Config.model_validate(source.values, context={"base": base})
    except ValidationError as error:
        # Beside a faulty item pydantic also calls its list too short.
        lists = {details["loc"][0] for details in error.errors() if len(details["loc"]) > 1}
        details_told = [d for d in error.errors() if d["type"] != "too_short" or d["loc"][0] not in lists]
        problems += [_problem(details, source) for details in details_told]
    problems += _folder_problems(source, base)
    problems += _name_problems(source)
    if problems or config is None:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0), file=file)
    return config


def _bare_sizes(source: ConfigSource) -> Iterator[ConfigProblem]:
    assert isinstance(source.values, dict)  # parse() has looked
    for section, name in sorted(_SIZES):
        inside = source.values.get(section)
        if isinstance(inside, dict) and type(inside.get(name)) is int:
            line = source.line_of((section, name))
            yield ConfigProblem(
                key=f"{section}.{name}", text="must be a size with its unit, like 64MB or 256MiB", line=line
            )


def _problem(details: ErrorDetails, source: ConfigSource) -> ConfigProblem:
    key = _as_written(_without_tags(details["loc"]), source)
    return ConfigProblem(key=dotted(key), text=_sentence(details, key), line=source.line_of(key))


def _without_tags(loc: Key) -> Key:
    """Drop what pydantic adds to a key for itself: the chosen kind of auth, and branches of ``X | None``."""
    if _is_auth(loc[:3]) and len(loc) > 3 and loc[3] in _AUTH_KINDS:
        loc = loc[:3] + loc[4:]
    return tuple(part for part in loc if not (isinstance(part, str) and ("[" in part or part == "constrained-str")))


def _as_written(key: Key, source: ConfigSource) -> Key:
    """Name a key of the one destination as it was written, or would be."""
    if isinstance(source.values, dict) and "destinations" not in source.values and key[:1] == ("destinations",):
        return ("destination", *key[2:])
    return key


def _is_auth(section: Key) -> bool:
    return section == ("destination", "auth") or (section[:1] == ("destinations",) and section[2:] == ("auth",))


def _sentence(details: ErrorDetails, key: Key) -> str:
    context: Mapping[str, Any] = details.get("ctx", {})
    match details["type"]:
        case "missing" if key[-2:-1] == ("auth",) or key[-1] != "kind":
            return "is required"
        case "union_tag_not_found":
            return f"needs kind: one of {', '.join(_AUTH_KINDS)}"
        case "union_tag_invalid":
            return f"kind must be one of {', '.join(_AUTH_KINDS)}"
        case "extra_forbidden":
            return _unknown_key(key)
        case "value_error":
            return str(context.get("error", details["msg"]))
        case "literal_error":
            return f"must be one of {str(context['expected']).replace(' or ', ', ').replace(chr(39), '')}"
        case "int_type" | "int_from_float":
            return "must be a whole number"
        case "string_type":
            return "must be text"
        case "tuple_type" | "list_type":
            return "must be a list"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a section with keys of its own"
        case "too_short":
            return "must have at least one entry"
        case "string_too_short":
            return "must not be empty"
        case "string_pattern_mismatch":
            return "must be the name of an environment variable"
        case "greater_than_equal":
            return f"must be at least {_amount(context['ge'], key)}"
        case "less_than_equal":
            return f"must be at most {_amount(context['le'], key)}"
        case _:
            return str(details["msg"])


def _amount(value: int, key: Key) -> str:
    return format_size(value) if key in _SIZES else str(value)


def _unknown_key(key: Key) -> str:
    name = str(key[-1])
    if key == ("destination",):
        return "is the short form of one of destinations, which stands here too; keep one of them"
    if name in _SECRETS and _is_auth(key[:-1]):
        return f"secrets do not belong into this file; use {_SECRETS[name]}"
    near = difflib.get_close_matches(name, _keys_of(key[:-1]), n=1)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key"


def _keys_of(section: Key) -> list[str]:
    if _is_auth(section):
        return sorted(
            {
                name
                for kind in (BearerAuthSettings, BasicAuthSettings, AzureAuthSettings, OAuth2AuthSettings)
                for name in kind.model_fields
            }
        )
    model: type[Section] = Config
    for start, of in _ROOTS.items():
        if section[:1] == start[:1] and len(section) >= len(start):
            model, section = of, section[len(start) :]
    for part in section:
        field = model.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Section):
            return []
        model = field.annotation
    return [*model.model_fields, *(("destination",) if model is Config else ())]


def _name_problems(source: ConfigSource) -> Iterator[ConfigProblem]:
    assert isinstance(source.values, dict)  # parse() has looked
    for key, text in (*address_problems(source.values), *name_problems(source.values)):
        yield ConfigProblem(key=dotted(key), text=text, line=source.line_of(key))


def _folder_problems(source: ConfigSource, base: Path) -> Iterator[ConfigProblem]:
    """Refuse folders inside one another; looks at the raw values, so that it also speaks beside other problems.

    An inbox inside the spool would take in what was taken in, for ever.
    """
    assert isinstance(source.values, dict)  # parse() has looked
    folders = [(key, _real(value, base)) for key, value in _raw_folders(source.values)]
    for (one_key, one), (other_key, other) in combinations(folders, 2):
        if "ledger" in (one_key[0], other_key[0]) and "spool" in (one_key[0], other_key[0]):
            continue  # the ledger may live in the spool
        if one == other:
            text = f"is the same folder as {dotted(other_key)}; each needs its own"
        elif one.is_relative_to(other):
            text = f"lies inside {dotted(other_key)}; put it elsewhere"
        elif other.is_relative_to(one):
            text = f"has {dotted(other_key)} inside it; put one of them elsewhere"
        else:
            continue
        yield ConfigProblem(key=dotted(one_key), text=text, line=source.line_of(one_key))


def _raw_folders(values: Mapping[str, object]) -> Iterator[tuple[Key, str]]:
    inboxes = values.get("inboxes")
    for index, inbox in enumerate(inboxes if isinstance(inboxes, list) else []):
        if isinstance(inbox, dict) and isinstance(inbox.get("path"), str):
            yield ("inboxes", index, "path"), inbox["path"]
    spool = values.get("spool")
    if isinstance(spool, str):
        yield ("spool",), spool
    elif isinstance(spool, dict) and isinstance(spool.get("path"), str):
        yield ("spool", "path"), spool["path"]
    ledger = values.get("ledger")
    if isinstance(ledger, str) and ledger.startswith("sqlite:///"):
        yield ("ledger",), ledger.removeprefix("sqlite:///")


def _real(value: str, base: Path) -> Path:
    # realpath, so that a link cannot hide that two names are one folder.
    return Path(os.path.realpath(base / Path(value).expanduser()))


__all__ = ["PLACES", "VARIABLE", "ConfigError", "find_file", "load", "parse"]
