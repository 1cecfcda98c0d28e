"""What a PostgreSQL server and its settings mean for a ledger in it, for ``ingestd check``: looked at, not judged."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from .postgres import Postgres
from .postgres_server import driver_of, psycopg

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy.engine import Connection

# What our own session has set says nothing of the others: the role's and the database's is ``reset_val``.
_ASKED = """SELECT current_setting('server_version') AS version,
    array_remove(ARRAY[CASE current_setting('fsync') WHEN 'off' THEN 'fsync' END,
        CASE current_setting('full_page_writes') WHEN 'off' THEN 'full_page_writes' END], NULL) AS off,
    (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous_commit,
    (SELECT count(*) FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup') AS standbys,
    current_setting('synchronous_standby_names') <> '' AS waits_for_standbys,
    pg_is_in_recovery() AS is_standby,
    coalesce(current_schema(), '') AS schema,
    coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create"""
_VERIFYING = ("verify-full", "verify-ca")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """A PostgreSQL server as it answers this role now."""

    version: str
    off: list[str]  # which settings are off without which a crash of the server damages it
    synchronous_commit: str  # as sessions of this role have it from the start
    standbys: int
    waits_for_standbys: bool
    is_standby: bool
    schema: str  # "": none of the role's search_path is there
    may_create: bool
    mixes_sessions: bool  # a pooler gives each transaction any session
    is_local: bool
    has_tls: bool
    verifies: bool  # that it is the server which is meant


def facts_of(url: str) -> ServerFacts:
    """Look at the server of this URL, whether it has a ledger or not; raises LedgerError."""
    database = Postgres(url)
    engine = database.open_engine(create=True, read_only=True)
    try:
        with engine.connect() as one, engine.connect() as other:
            row = one.exec_driver_sql(_ASKED).mappings().one()
            # Between two transactions of ours its server's session is free, and the next one gets it.
            numbers = [_session_number(each) for each in (one, other, one)]
            driver = driver_of(one)
            return ServerFacts(
                **row,
                mixes_sessions=numbers[0] == numbers[1] or numbers[0] != numbers[2],
                is_local=_is_local(driver),
                has_tls=bool(driver.pgconn.ssl_in_use),
                verifies=driver.info.get_parameters().get("sslmode") in _VERIFYING,
            )
    except DBAPIError as error:
        raise database.failure(error.orig) from None
    finally:
        engine.dispose()


def _session_number(connection: Connection) -> int:
    number: int = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    return number


def _is_local(driver: psycopg.Connection[Any]) -> bool:
    address = driver.info.hostaddr
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback
