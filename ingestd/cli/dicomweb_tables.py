"""DICOM JSON as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .output import plain
from .tables import show, table

WIDEST = 120


def text_of(element: Mapping[str, Any] | None) -> str:
    """Say an element's values in one line."""
    if not isinstance(element, Mapping):
        return ""
    values = element.get("Value")
    if not isinstance(values, list):
        return "(bulk data)" if "BulkDataURI" in element or "InlineBinary" in element else ""
    return "\\".join(_value(value) for value in values)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        names = [str(value[kind]) for kind in ("Alphabetic", "Ideographic", "Phonetic") if value.get(kind)]
        return "=".join(names) if names or not value else f"(item of {len(value)} elements)"
    return "" if value is None else str(value)


def print_dataset(item: Mapping[str, Any]) -> None:
    """Print a data set's elements, one a line."""
    from ingestd.dicomweb import keyword_of

    rows = []
    for tag, element in sorted(item.items()):
        text = plain(text_of(element))
        shown = text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
        rows.append((tag, keyword_of(tag), str(element.get("vr", "")), shown))
    show(table(["tag", "keyword", "VR", "value"], rows))


def print_results(items: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print search results; ``columns`` are tags and their headings, empty columns are left out."""
    used = {tag: heading for tag, heading in columns.items() if any(text_of(item.get(tag)) for item in items)}
    show(table(list(used.values()), [[text_of(item.get(tag)) for tag in used] for item in items]))
