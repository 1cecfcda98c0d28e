"""Locks of a PostgreSQL ledger: on all of it, or on the studies that a transaction changes.

Who says which studies it changes holds the lock of all who write for sharing, and one for each of these studies; who
does not say so holds the lock of all alone. So two who change files of other studies write side by side, and whoever
changes what is not of studies (claims of work, the clock's settings, a person's commands) has the ledger for itself.
All that a file's rows say of others is said of files of the same study: who holds an identity, whose duplicate it is,
the study's queue and sums. So what is read of a study under its lock still holds when it is written upon.

At the beginning they are waited for, in the order of their keys, so that no two wait for each other. Later none is
waited for: a further study is locked where nobody else has it, or is left for another turn (``try_lock``).

They are advisory locks, by the UID: a study that is new has no row to lock. Two UIDs with the same key wait for each
other without need. They end with their transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

# Any number that nobody else uses in this database: "INGD".
LOCK = 0x494E4744
# So many studies have locks of their own in a transaction: the server has room for 64 each (max_locks_per_transaction).
MOST_STUDIES = 48
_ALL = f"{LOCK}, hashtext(current_schema())"
# Ledgers in other schemas of a database have other studies.
_KEY = "key # hashtextextended(current_schema(), 0)"
_TRY = f"SELECT pg_try_advisory_xact_lock({_KEY}) FROM unnest(%s::BIGINT[]) AS key"  # noqa: S608 - a term of ours


def key_of(study_uid: str) -> int:
    """Name a study by 64 bits."""
    return int.from_bytes(blake2b(study_uid.encode(), digest_size=8).digest(), signed=True)


def waiting_for(studies: Iterable[str] | None) -> Sequence[str]:
    """Give the statements that wait for the locks of these studies; None: for that of all."""
    if studies is None:
        return [f"SELECT pg_advisory_xact_lock({_ALL})"]
    shared = f"SELECT pg_advisory_xact_lock_shared({_ALL})"
    keys = ",".join(map(str, sorted(map(key_of, studies))))
    of_studies = f"SELECT pg_advisory_xact_lock({_KEY}) FROM unnest('{{{keys}}}'::BIGINT[]) AS key"  # noqa: S608 - numbers
    return [shared, of_studies] if keys else [shared]


def try_lock(connection: Connection, studies: Collection[str]) -> set[str]:
    """Lock those of these studies that nobody else has locked, and say which."""
    wanted = list(studies)
    got = connection.exec_driver_sql(_TRY, ([key_of(each) for each in wanted],)).scalars().all()
    return {study for study, is_ours in zip(wanted, got, strict=True) if is_ours}
