"""What ``ingestd check`` says of the PostgreSQL server that the ledger is kept in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from ingestd.config import Config

from .check_result import CheckResult, bad, note, ok
from .output import ago, counted, plain

if TYPE_CHECKING:
    from ingestd.ledger.postgres_facts import ServerFacts

_LEAST_LEASE = timedelta(seconds=30)


def database(config: Config) -> Iterator[CheckResult]:
    from ingestd.ledger import LedgerError
    from ingestd.ledger.postgres_facts import facts_of

    try:
        facts = facts_of(config.ledger)
    except LedgerError:
        return  # as is told of the ledger
    yield ok("database", f"PostgreSQL {plain(facts.version)}")
    yield from judged(facts)
    if config.lease < _LEAST_LEASE:
        text = (
            f"lease is {ago(config.lease.total_seconds())}, and a failover of the database takes longer: who works is"
        )
        text += " ended by it"
        yield note("database", text, "30s or more, unless you have measured what yours takes")


def judged(facts: ServerFacts) -> Iterator[CheckResult]:
    """Say what is wrong with it, or may be."""
    if facts.off:
        are = "are" if facts.off[1:] else "is"
        text = f"{' and '.join(facts.off)} {are} off: a crash of its machine may lose or damage what was committed"
        yield bad("database", text, "set it to on, the default, in postgresql.conf")
    if facts.synchronous_commit in ("off", "local"):
        text = f"synchronous_commit is {facts.synchronous_commit} for this role; ingestd sets it to on for its sessions"
        yield note("database", text)
    if facts.is_standby:
        text = "it is a standby, which may only be read"
        yield bad("database", text, "name all its hosts in the URL, so that the one that may be written is found")
    if facts.standbys and not facts.waits_for_standbys:
        text = (
            f"{counted(facts.standbys, 'standby follows', 'standbys follow')}, and no commit waits for one: a failover"
            " may lose the last ones"
        )
        yield note("database", text, "set synchronous_standby_names (Patroni: synchronous_mode)")
    if not facts.schema:
        yield bad("database", "no schema of the role's search_path is there", "make it: CREATE SCHEMA ...")
    elif not facts.may_create and not facts.is_standby:
        text = f"the role may not make tables in schema {plain(facts.schema)}; a first start and a newer version do"
        yield bad("database", text, f"as its owner: GRANT CREATE ON SCHEMA {plain(facts.schema)} TO the role")
    if facts.mixes_sessions:
        text = "a pooler gives each transaction another session, and what ingestd sets for its own is lost"
        yield bad("database", text, "connect to the server itself, or have it pool sessions (pool_mode = session)")
    if not facts.is_local and not facts.has_tls:
        text = "what is said to it is not encrypted, and the ledger has UIDs and names of files in it"
        yield note("database", text, "take sslmode out of the URL: it is verify-full then")
    elif not facts.is_local and not facts.verifies:
        text = "TLS does not prove that it is the server which is meant"
        yield note("database", text, "take sslmode out of the URL: it is verify-full then")
