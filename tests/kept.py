"""What the ledger keeps short, told whole: for tests that read its tables with SQL of their own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from ingestd.ledger.column_types import Digits, SpoolPath, StateNumber, Word

_DIGITS = (
    *("series_uid", "sop_uid", "file_series_uid", "file_sop_uid", "sop_class_uid", "transfer_syntax"),
    *("evidence", "source"),
)
_TELL: Mapping[str, Callable[[Any], str]] = {
    # That of a spool itself is text.
    **dict.fromkeys(("path", "reencoded_path"), lambda kept: SpoolPath.give(kept) if isinstance(kept, bytes) else kept),
    **dict.fromkeys(("before", "after"), StateNumber.give),
    **dict.fromkeys(("reason", "seen_action", "seen_state"), Word.give),
    **dict.fromkeys(_DIGITS, Digits.give),
}


def told(column: str, value: Any) -> Any:
    """Give the value of a column as it is in Python."""
    tell = _TELL.get(column)
    return value if tell is None or value is None else tell(value)


def teach(driver: sqlite3.Connection) -> None:
    """Have SQL understand what is kept: ``told(column's name, value)``."""
    driver.create_function("told", 2, told, deterministic=True)
