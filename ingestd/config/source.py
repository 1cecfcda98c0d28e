"""YAML text -> plain values that know which line each key stands on; a key that stands twice is a problem."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import yaml

Key = tuple[str | int, ...]

# No configuration is larger; aliases count with what they stand for.
DEEPEST = 32
MOST_VALUES = 20_000
LONGEST_VALUE = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigProblem:
    """One thing wrong with a configuration: where, and what would be right."""

    key: str
    text: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line is not None else ""
        return f"{place}{self.key}: {self.text}" if self.key else f"{place}{self.text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigSource:
    """What a YAML file says, and the line of each key in it (first line is 1)."""

    values: object
    lines: Mapping[Key, int]
    problems: tuple[ConfigProblem, ...] = field(default=())

    def line_of(self, key: Key) -> int | None:
        """Return the line of this key, or of the nearest section around it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key)


def dotted(key: Key) -> str:
    """Write a key as a person would: ``inboxes[0].settle``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def read_yaml(text: str) -> ConfigSource:
    """Parse one YAML document; syntax errors and keys that stand twice come back as problems."""
    try:
        if problem := _excess(text):
            return ConfigSource(values=None, lines={}, problems=(problem,))
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        return ConfigSource(values=None, lines={}, problems=(_syntax_problem(error),))
    except ValueError as error:  # a date or number that YAML recognises and Python cannot hold
        return ConfigSource(
            values=None, lines={}, problems=(ConfigProblem(key="", text=f"cannot be read as YAML: {error}"),)
        )
    lines: dict[Key, int] = {}
    problems = tuple(_walk(node, (), lines)) if node is not None else ()
    return ConfigSource(values=values, lines=lines, problems=problems)


def _excess(text: str) -> ConfigProblem | None:
    """Say what is too much in a text, event by event, before anything is built of it."""
    named: dict[str, int] = {}  # how many values stand for an anchor
    anchors: list[str | None] = []  # of the sections around an event
    sizes = [0]  # of these, and of the document before them
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor: str | None = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(anchor)
            sizes.append(1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = anchors.pop(), sizes.pop()
            sizes[-1] += size
            named |= {anchor: size} if anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            sizes[-1] += named.get(str(anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1
            named |= {anchor: 1} if anchor else {}
        what = ""
        if isinstance(event, yaml.AliasEvent) and anchor in anchors:
            what = "an alias that points into itself"
        elif len(anchors) > DEEPEST:
            what = f"more than {DEEPEST} sections deep; no configuration is"
        elif sum(sizes) > MOST_VALUES:
            what = f"more than {MOST_VALUES} values, aliases counted as what they name; no configuration has"
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_VALUE:
            what = f"a value longer than {LONGEST_VALUE} characters; no configuration has one"
        if what:
            return ConfigProblem(key="", text=what, line=event.start_mark.line + 1 if event.start_mark else None)
    return None


def _walk(node: yaml.Node, key: Key, lines: dict[Key, int]) -> Iterator[ConfigProblem]:
    lines.setdefault(key, node.start_mark.line + 1)
    if len(key) > 16:  # an alias may point to a section around itself
        return
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*key, index), lines)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for name_node, value_node in node.value:
            name, line = str(name_node.value), name_node.start_mark.line + 1
            if name in seen:
                where = f"lines {seen[name]} and {line}" if seen[name] != line else f"line {line}"
                text = f"stands twice, on {where}; keep one"
                yield ConfigProblem(key=dotted((*key, name)), text=text, line=line)
            seen.setdefault(name, line)
            lines.setdefault((*key, name), line)
            yield from _walk(value_node, (*key, name), lines)


def _syntax_problem(error: yaml.YAMLError) -> ConfigProblem:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or "not readable"
    return ConfigProblem(key="", text=f"not valid YAML: {said}", line=mark.line + 1 if mark else None)
