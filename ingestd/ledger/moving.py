"""The server has another address: what is known of files there goes on to hold, as far as the server bears it out."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import and_, delete, or_, select, update

from ingestd.lifecycle import State

from . import trust
from .reads import HAS_OWN_FILE
from .schema import destination, feed_cursor, instance
from .transaction import Transaction
from .values import RefusedMove

_OPEN = (State.STORED, State.UNCERTAIN)


def new_address(tx: Transaction, url: str, *, now: datetime) -> int:
    """Go on with the server at this address; say how many rows it is asked about for it.

    What is confirmed and whose file is kept is compared there before the file goes; what waits for proof is asked about
    anew. Nothing that the former address showed of its feed, nor the trust that it had earned, counts at the new one.
    Raises RefusedMove where the ledger belongs to that address already, or to none yet.
    """
    url = url.rstrip("/")
    former = tx.connection.execute(select(destination.c.url)).scalar_one_or_none()
    if former is None or former == url:
        raise RefusedMove(0, f"the ledger belongs to {url} already" if former else "the ledger has no server yet")
    unknown = dict.fromkeys(("paused_until", "paused_since", "last_ok_at", "highest_sequence", "highest_at"))
    tx.connection.execute(update(destination).values(url=url, kind="", pause_cause="", pause_note="", **unknown))
    tx.connection.execute(delete(feed_cursor))
    trust.begin_anew(tx)
    nothing = dict.fromkeys(("seen_sequence", "seen_action", "seen_state", "seen_at"))
    tx.connection.execute(update(instance).where(instance.c.seen_sequence.is_not(None)).values(nothing))
    tx.connection.execute(update(instance).where(instance.c.absences > 0).values(absences=0, absent_since=None))
    kept = and_(
        instance.c.state == State.CONFIRMED, instance.c.settled_at.is_not(None), instance.c.removed_at.is_(None)
    )
    compared = tx.connection.execute(
        update(instance).where(kept, HAS_OWN_FILE).values(needs_content_check=1, next_check_at=now)
    ).rowcount
    open_rows = or_(*(instance.c.state == state for state in _OPEN))
    return compared + tx.connection.execute(update(instance).where(open_rows).values(next_check_at=now)).rowcount
