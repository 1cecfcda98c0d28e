"""How far the server's word is trusted: which copies matched, what a mismatch stops, and what is compared for it.

One server to a ledger, so one row of ``verification``, and one of ``trust`` for each kind that was compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, literal, update

from ingestd.lifecycle import Kind, State

from . import dialect
from .row import ONE, as_json, pieces
from .schema import Instant, instance, trust, verification
from .transaction import Transaction

_MISMATCH = instance.c.mismatch == ONE
_THE_ONE = verification.c.id == 1


def count_matches(tx: Transaction, matches: Mapping[Kind, int]) -> None:
    """Count copies that were fetched and are ours; the first of all lets what had stopped go on."""
    for (transfer_syntax, sop_class_uid), number in matches.items():
        of_kind = (trust.c.transfer_syntax == transfer_syntax, trust.c.sop_class_uid == sop_class_uid)
        counted = tx.connection.execute(update(trust).where(*of_kind).values(matched=trust.c.matched + number))
        if not counted.rowcount:
            values = {"transfer_syntax": transfer_syntax, "sop_class_uid": sop_class_uid, "matched": number}
            tx.connection.execute(insert(trust), values)
    _set(tx, ever_matched=1, stopped_at=None, studies="")


def mismatch(tx: Transaction, *, studies: Sequence[str], differs: str, stops: bool, now: datetime) -> None:
    """Put down that the server gives back other content than it was sent: all trust in it is gone.

    ``studies``: those that mismatched in a row while nothing ever matched. ``stops``: nothing is compared any more.
    """
    tx.connection.execute(delete(trust))
    values: dict[str, Any] = {
        "mismatched_at": func.coalesce(verification.c.mismatched_at, literal(now, Instant())),
        "studies": as_json(studies),
        "differs": differs,
    }
    if stops:
        values["stopped_at"] = func.coalesce(verification.c.stopped_at, literal(now, Instant()))
    _set(tx, **values)


def begin_anew(tx: Transaction) -> None:
    """Take back the trust that was earned: it is another place that answers."""
    tx.connection.execute(delete(trust))
    _set(tx, ever_matched=0)


def forgive(tx: Transaction, *, now: datetime) -> None:
    """Let files go again: a person has settled what differed, or has given the trust that the server had not earned."""
    _set(tx, mismatched_at=None, stopped_at=None, studies="", differs="")
    ask_mismatched_again(tx, now=now)


def ask_mismatched_again(tx: Transaction, *, now: datetime) -> int:
    """Have the rows asked about now that stayed STORED because nothing of this server had ever matched."""
    return tx.connection.execute(
        update(instance).where(_MISMATCH, instance.c.state == State.STORED).values(next_check_at=now)
    ).rowcount


def recheck(tx: Transaction, entry_ids: Iterable[int], *, now: datetime) -> None:
    """Have these confirmed rows compared before their files may go."""
    for piece in pieces(list(entry_ids)):
        tx.connection.execute(
            update(instance)
            .where(dialect.among(instance.c.id, "ids"), dialect.unindexed(instance.c.state) == State.CONFIRMED)
            .values(needs_content_check=1, next_check_at=now),
            {"ids": piece},
        )


def _set(tx: Transaction, **values: Any) -> None:
    tx.connection.execute(update(verification).where(_THE_ONE).values(**values))
