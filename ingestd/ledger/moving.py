"""The server has another address: what is known of files there goes on to hold, as far as the server bears it out."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import and_, delete, select, update

from ingestd.lifecycle import State

from . import trust
from .reads import IS_RESTED_ON
from .schema import destination, feed_cursor, instance
from .transaction import Transaction
from .values import RefusedMove

_OPEN = (State.STORED, State.UNCERTAIN)


def new_address(tx: Transaction, url: str, *, now: datetime) -> int:
    """Go on with the server at this address; say how many rows it is asked about for it.

    What is confirmed and lets a kept file go is compared there before that goes; what waits for proof is asked about
    anew, and compared. Nothing that the former address showed of its feed, nor the trust that it had earned, counts at
    the new one.
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
    asked = 0
    # That the server did not have it before our post was said by the former address, too.
    anew = {"needs_content_check": 1, "next_check_at": now}
    for rows in (and_(instance.c.state == State.CONFIRMED, IS_RESTED_ON), instance.c.state.in_(_OPEN)):
        asked += tx.connection.execute(update(instance).where(rows).values(anew)).rowcount
    return asked
