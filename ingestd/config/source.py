"""YAML text -> plain values that know which line each key stands on; a key that stands twice is a problem."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import yaml

Key = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where, and what would be right."""

    key: str
    text: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line is not None else ""
        return f"{place}{self.key}: {self.text}" if self.key else f"{place}{self.text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a YAML file says, and the line of each key in it (first line is 1)."""

    values: object
    lines: Mapping[Key, int]
    problems: tuple[Problem, ...] = field(default=())

    def line_of(self, key: Key) -> int | None:
        """Return the line of this key, or of the nearest section around it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key)


def dotted(key: Key) -> str:
    """Write a key as a person would: ``inboxes[0].settle``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def read_yaml(text: str) -> Source:
    """Parse one YAML document; syntax errors and keys that stand twice come back as problems."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        return Source(values=None, lines={}, problems=(_syntax_problem(error),))
    except ValueError as error:  # a date or number that YAML recognises and Python cannot hold
        return Source(values=None, lines={}, problems=(Problem(key="", text=f"cannot be read as YAML: {error}"),))
    lines: dict[Key, int] = {}
    problems = tuple(_walk(node, (), lines)) if node is not None else ()
    return Source(values=values, lines=lines, problems=problems)


def _walk(node: yaml.Node, key: Key, lines: dict[Key, int]) -> Iterator[Problem]:
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
                yield Problem(key=dotted((*key, name)), text=text, line=line)
            seen.setdefault(name, line)
            lines.setdefault((*key, name), line)
            yield from _walk(value_node, (*key, name), lines)


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or "not readable"
    return Problem(key="", text=f"not valid YAML: {said}", line=mark.line + 1 if mark else None)
