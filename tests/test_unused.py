"""Nothing is there that nobody uses: what only tests call is no part of the house.

Told by names: a name that stands somewhere else in the package, for whatever, counts as used.
"""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.test_imports import dotted, modules, parsed

# Rooms that are libraries for other programs too: what their doors give may be used by nobody here.
PUBLIC = ("dicomweb", "emulator")
# Imported as it is by programs that had the former SDK (README).
SDK = "dicomweb.sdk"
# How a test gets at what nobody else needs: the reader processes to be killed.
FOR_TESTS = {"ReaderPool.pids"}
# What is to go; nothing is added here.
UNUSED = {"Rework.in_work"}
# Decorators that leave a function one that somebody has to call; any other one hands it to a library.
PLAIN = ("abstractmethod", "cache", "classmethod", "contextmanager", "lru_cache", "property", "staticmethod", "wraps")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def uses_in(tree: ast.AST) -> Counter[str]:
    read = [node for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Load)]
    return Counter(node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in read)


def definitions(node: ast.AST, of: ast.ClassDef | None = None) -> Iterator[tuple[Definition, ast.ClassDef | None]]:
    """Every function and class with the class that it stands in, but for what classes inside functions have."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child, of
            yield from ((found, None) for found, holder in definitions(child) if not holder)
        elif isinstance(child, ast.ClassDef):
            yield child, of
            yield from definitions(child, child)
        else:
            yield from definitions(child, of)


def is_a_librarys(path: Path, found: Definition, of: ast.ClassDef | None) -> bool:
    """Whether a library calls it: it was handed over by a decorator, or stands in a library's method's place."""
    names = [ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in found.decorator_list]
    if not isinstance(found, ast.ClassDef) and not set(names) <= set(PLAIN):
        return True
    holder = getattr(importlib.import_module(f"ingestd.{dotted(path)}"), of.name, None) if of else None
    bases = () if holder is None else holder.__mro__[1:]
    return any(found.name in vars(base) for base in bases if not base.__module__.startswith("ingestd"))


def is_public(path: Path, found: Definition, of: ast.ClassDef | None) -> bool:
    room = dotted(path).partition(".")[0]
    if dotted(path) == SDK or room not in PUBLIC:
        return dotted(path) == SDK
    return (of or found).name in importlib.import_module(f"ingestd.{room}").__all__ and not found.name.startswith("_")


def test_nothing_is_there_that_nobody_uses():
    used = Counter[str]()
    for path in modules():
        used += uses_in(parsed(path))
    unused = set()
    for path in modules():
        if dotted(path) == "__main__":
            continue
        for found, of in definitions(parsed(path)):
            if found.name.startswith("__") or used[found.name] > uses_in(found)[found.name]:
                continue
            if not is_a_librarys(path, found, of) and not is_public(path, found, of):
                unused.add(f"{of.name}.{found.name}" if of else found.name)
        for node in parsed(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            unused |= {name.id for name in targets if isinstance(name, ast.Name) and not used[name.id]} - {"__all__"}

    assert unused - FOR_TESTS <= UNUSED
    assert unused >= FOR_TESTS
