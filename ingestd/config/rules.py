"""The rules that say where a file goes (``lifecycle/routing.py`` applies them), and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Strict

from ingestd.lifecycle import CONDITIONS, Rule, matches, may_name_sop_class

from .section import Section
from .source import Key

SHORT_FORM = "default"  # what the one of ``destination:`` is called


def _globs(value: object) -> tuple[str, ...]:
    globs = [value] if isinstance(value, str) else value
    if not isinstance(globs, (list, tuple)) or not all(isinstance(glob, str) for glob in globs):
        raise ValueError('must be a glob or a list of globs, in quotes where YAML sees something else, like "NO"')
    if not globs:
        raise ValueError("must have at least one entry")
    if not all(glob.isprintable() for glob in globs):
        raise ValueError("must be printable text")
    return tuple(globs)


def _sop_classes(globs: tuple[str, ...]) -> tuple[str, ...]:
    for glob in globs:
        if not may_name_sop_class(glob):
            raise ValueError(f"no SOP class of stored objects is called {glob}; one that is not known is named by UID")
    return globs


Globs = Annotated[tuple[str, ...], BeforeValidator(_globs)]


class WhenSection(Section):
    """What a rule asks for: globs, of which one must match; what is not named matches all."""

    inbox: Globs | None = None
    folder: Globs | None = None
    modality: Globs | None = None
    station: Globs | None = None
    institution: Globs | None = None
    department: Globs | None = None
    source_ae: Globs | None = None
    sop_class: Annotated[Globs, AfterValidator(_sop_classes)] | None = None
    study_description: Globs | None = None


class RuleSection(Section):
    """One rule: files that are so go there; an empty ``to`` is on purpose nowhere."""

    when: WhenSection
    to: Annotated[tuple[str, ...], Strict(strict=False)]

    @property
    def rule(self) -> Rule:
        """The same as it is applied."""
        asked = {name: getattr(self.when, name) for name in CONDITIONS}
        return Rule(when={name: globs for name, globs in asked.items() if globs is not None}, to=self.to)


def name_problems(values: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Tell, of a file's raw values, each name in a rule that nothing has, and each inbox's name that stands twice."""
    names: list[str] = []
    for index, inbox in enumerate(_mappings(values.get("inboxes"))):
        name = inbox.get("name")
        if isinstance(name, str) and name in names:
            yield ("inboxes", index, "name"), f"{name} is the name of another inbox, too"
        names += [name] if isinstance(name, str) else []
    several = values.get("destinations")
    destinations = [*several] if isinstance(several, dict) else [SHORT_FORM]
    for index, rule in enumerate(_mappings(values.get("rules"))):
        when, to = rule.get("when"), rule.get("to")
        inboxes = when.get("inbox") if isinstance(when, dict) else None
        for glob in [inboxes] if isinstance(inboxes, str) else inboxes if isinstance(inboxes, list) else ():
            if isinstance(glob, str) and not any(matches(name, glob) for name in names):
                beside = f"none has a name: write `name: {glob}` beside its path"
                known = f"named are {', '.join(names)}" if names else beside
                yield ("rules", index, "when", "inbox"), f"no inbox is called {glob}; {known}"
        named = to if isinstance(to, list) else []
        for at, name in enumerate(named):
            if isinstance(name, str) and name not in destinations:
                text = f"no destination is called {name}; there is {', '.join(map(str, destinations))}"
                yield ("rules", index, "to", at), text
            elif name in named[:at]:
                yield ("rules", index, "to", at), f"{name} stands twice; keep one"


def _mappings(values: object) -> Iterator[Mapping[str, Any]]:
    for value in values if isinstance(values, list) else []:
        yield value if isinstance(value, dict) else {}
