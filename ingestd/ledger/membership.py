"""How daemons divide the work on a spool that they share: each has claims, and what an ended one had is free.

A claim names a worker, and is good as long as that one has not ended; the fence keeps whoever was ended from writing
upon it (``postgres``). Claims are given out within transactions that write, one after the other, so that nobody has
what another has. ``daemon.membership`` says who should have what; DESIGN.md 8.15.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingestd.clocks import utc_now

from .column_types import Instant
from .workers import AT_WORK, Beat, beat_from, end_silent

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from .transaction import Transaction

# Proving what was sent, and letting go of what was proven: of all destinations, by one.
UPKEEP = "upkeep"
_INBOX = "inbox "

TABLE = """CREATE TABLE IF NOT EXISTS claim (
    spool_id BIGINT NOT NULL REFERENCES spool (id),
    name TEXT NOT NULL,
    worker_id BIGINT NOT NULL REFERENCES worker (id),
    since BIGINT NOT NULL,
    PRIMARY KEY (spool_id, name)
)"""
_MEMBERS = f"""SELECT worker.id, machine, process, writes, lease_us, alone, bars, sight, reach, wants,
        ARRAY(SELECT name FROM claim WHERE worker_id = worker.id) AS claims
    FROM worker WHERE {AT_WORK} ORDER BY worker.id"""  # noqa: S608 - a condition of ours
_FREE = """DELETE FROM claim USING worker
    WHERE worker.id = claim.worker_id AND claim.spool_id = %s AND ended_at IS NOT NULL"""
_TAKE = "INSERT INTO claim VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
_GIVE = "DELETE FROM claim WHERE spool_id = %s AND worker_id = %s AND name = ANY (%s)"
_SAY = "UPDATE worker SET bars = %s, sight = %s, reach = %s, wants = %s WHERE id = %s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A worker at work on a spool, as it is now."""

    beat: Beat
    bars: str  # what keeps it from taking anything over; "": nothing does
    sight: Mapping[str, int]  # the inboxes whose folders it sees, and how deep that is mounted which they lie on
    reach: Mapping[str, bool]  # the destinations that answered it lately (True), or only failed for long
    wants: int  # bytes of the spool's disk that have to be free for what did not fit there
    claims: frozenset[str]

    @property
    def inboxes(self) -> set[str]:
        """The inboxes that it has claimed."""
        return {name for claim in self.claims if (name := inbox_claimed(claim))}


def inbox_claim(inbox: str) -> str:
    """Name the claim of whoever watches an inbox, takes its files in, and reads them again."""
    return _INBOX + inbox


def inbox_claimed(claim: str) -> str:
    """Say which inbox a claim is of; "": of none."""
    return claim.removeprefix(_INBOX) if claim.startswith(_INBOX) else ""


def members(connection: Connection, spool_id: int) -> Sequence[Member]:
    """List who is at work on a spool."""
    return [
        Member(
            beat=beat_from(row),
            bars=row.bars,
            sight=json.loads(row.sight),
            reach=json.loads(row.reach),
            wants=row.wants,
            claims=frozenset(row.claims),
        )
        for row in connection.exec_driver_sql(_MEMBERS, (spool_id,))
    ]


def others(connection: Connection, worker: int, spool_id: int) -> Sequence[int]:
    """Number those at work on a spool beside this one."""
    asked = f"SELECT id FROM worker WHERE {AT_WORK} AND id <> %s"  # noqa: S608 - a condition of ours
    return connection.exec_driver_sql(asked, (spool_id, worker)).scalars().all()


def end_member(tx: Transaction, silent: Beat) -> bool:
    """End one that has written nothing since it was seen so; say whether it has not. What it had claimed is free."""
    return end_silent(tx.connection, silent)


def claim_work(tx: Transaction, *, takes: Collection[str] = (), gives: Collection[str] = ()) -> None:
    """Give these claims back, and take those that nobody at work has; ``Ledger.members`` says which we got."""
    tx.connection.exec_driver_sql(_FREE, (tx.spool_id,))
    tx.connection.exec_driver_sql(_GIVE, (tx.spool_id, tx.worker, list(gives)))
    now = Instant.keep(utc_now())
    for name in sorted(takes):
        tx.connection.exec_driver_sql(_TAKE, (tx.spool_id, name, tx.worker, now))


def say_sight(tx: Transaction, *, bars: str, sight: Mapping[str, int], reach: Mapping[str, bool], wants: int) -> None:
    """Have the others see what keeps us from taking anything over ("": nothing), which inboxes we see, and how, which
    destinations we reach, and how many bytes of the spool's disk we want for what did not fit.
    """
    said = (bars, json.dumps(sight, sort_keys=True), json.dumps(reach, sort_keys=True), wants)
    tx.connection.exec_driver_sql(_SAY, (*said, tx.worker))
