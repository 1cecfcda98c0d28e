"""A PostgreSQL server, as a URL names it: how it is connected to, told from another one, and its errors told.

The settings and why (PostgreSQL documentation: runtime-config-client, runtime-config-wal, libpq-connect):

- The driver commits by itself (``autocommit``): a read is one SELECT in one round trip. What writes sends BEGIN with
  the lock and the fence, in one more.
- ``synchronous_commit`` that is off or local is on for us: a commit that was answered outlives server and standby.
- ``idle_in_transaction_session_timeout``: who holds the lock and stands still is ended, and what it did is undone; so
  does whoever waited for the lock (``postgres``).
  ``lock_timeout``, ``statement_timeout``, ``tcp_user_timeout``: nobody waits for ever.
- ``default_transaction_isolation``: a transaction that has one snapshot takes it before it waits for its lock, and sees
  nothing of what was written until it got that.
- ``datestyle``, ``standard_conforming_strings``, ``array_nulls``: by others psycopg reads no dates, sends other bytes
  than it was given, and "NULL" for nothing.
- ``jit``: compiling a statement takes longer than it does.

**A failover.** A standby that takes the server's place, or a backup that is restored, is on a timeline of its own, and
may lack what was committed last. A connection to such a one is refused to whoever was on the other, which ends; who
starts finds in ``meta`` which one this host knew last, and has the destinations asked before anything is sent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.pool import NullPool

from ingestd.clocks import Clock, boottime

from .errors import LedgerAway, LedgerBusy, LedgerError, LedgerFenced, LedgerFull

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.types.numeric import Int8Dumper
except ImportError:
    raise LedgerError(
        "a ledger in PostgreSQL needs psycopg, which is not installed; install it beside ingestd:"
        " `pip install 'psycopg[binary]'`"
    ) from None

from . import pipeline

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine, ExceptionContext

__all__ = ["BUSY_SECONDS", "Server", "driver_of", "psycopg"]

BUSY_SECONDS = 10
_PREPARED = 500
# After a host that answered nothing for so long nobody tries anew for as long as that took, up to a limit: a turn of
# the loop asks several times.
_NO_ANSWER_SECONDS, _REST_SECONDS_MOST = 1.0, 10.0
_SETTINGS = f"""SET lock_timeout = '{BUSY_SECONDS}s';
    SET statement_timeout = '120s';
    SET idle_in_transaction_session_timeout = '20s';
    SET default_transaction_isolation = 'read committed';
    SET client_encoding = 'UTF8';
    SET datestyle = 'ISO';
    SET standard_conforming_strings = on;
    SET array_nulls = on;
    SET jit = off;
    SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') IN ('off', 'local')"""
_CONNECTION = {
    "connect_timeout": "10",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "application_name": "ingestd",
}
# Which cluster it is, and which timeline: another one has another history. And the schema, of which the locks are.
_SERVER = """SELECT CASE WHEN pg_is_in_recovery() THEN NULL
    ELSE system_identifier || ':' || left(pg_walfile_name(pg_current_wal_lsn()), 8) END, coalesce(current_schema(), '')
    FROM pg_control_system()"""
# What passes by itself, by the class of SQLSTATE or as a whole: no connection, or a server that stops or starts; a lock
# that took too long, a deadlock, a statement that others kept waiting. 25P04 is PostgreSQL 17's `transaction_timeout`.
_AWAY = ("08", "57P", "25P03", "25P04", "53300")
_BUSY = ("55P03", "40", "57014")
# What does not pass, in the server's and libpq's words: they come without a SQLSTATE.
_LASTING = (
    *("does not exist", "no password", "password authentication", "no pg_hba.conf", "certificate"),
    *("does not support SSL", "invalid"),
)
_FULL = ("53100", "53200")
_READ_ONLY = "25006"
# Said to who asks, and by the log.
_WAITED_FOR = (
    "see to its server, or to the way there; files wait where they are, and each worker goes on once it answers"
)


class _NotConnectedError(psycopg.OperationalError):
    """What SQLAlchemy takes for an error of the driver's, wherever it connects anew, and ``failure`` for what it is."""

    def __init__(self, told: LedgerError) -> None:
        super().__init__()
        self.told = told


class Server:
    """One server, or a cluster of which one may be written; opened and named as ``database.Database`` asks."""

    def __init__(self, url: str) -> None:
        try:
            said = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise LedgerError("the ledger's URL cannot be read; write it like postgresql://HOST/DATABASE") from None
        if said.pop("password", None) is not None:
            raise LedgerError(
                "the ledger's URL has a password in it, where many may read it; put it into ~/.pgpass, or into"
                " PGPASSWORD or PGPASSFILE of the environment"
            )
        if not said.get("dbname"):
            raise LedgerError("the ledger's URL names no database; write it like postgresql://HOST/DATABASE")
        # What the URL leaves out libpq takes from the environment, and an address has it ask for no name.
        given = {each.keyword.decode(): each.val for each in psycopg.pq.Conninfo.get_defaults()}
        places = [said.get(key) or (given[key] or b"").decode() for key in ("hostaddr", "host")]
        self._hosts = str(places[0] or places[1])
        if "service" in said or not all(map(_is_local, self._hosts.split(","))):
            said.setdefault("sslmode", "verify-full")
        self._server = ""  # which one it is, and on which timeline: known once it was reached
        self._schema = ""
        self._said = {**_CONNECTION, **{name: str(value) for name, value in said.items()}}
        self.name = _name_of(said)
        self.clock = Clock()

    def open_engine(self, *, create: bool, read_only: bool, rehearsal: bool = False) -> Engine:  # noqa: ARG002
        said = dict(self._said)
        if not read_only and "," in self._hosts:
            said.setdefault("target_session_attrs", "read-write")
        conninfo = make_conninfo(**said)
        rests_until, told = 0.0, LedgerError()

        def connect() -> psycopg.Connection[Any]:
            nonlocal rests_until, told
            began = boottime()
            if began < rests_until:
                raise _NotConnectedError(told)
            try:
                driver = pipeline.PipelinedConnection.connect(conninfo, autocommit=True)
            except psycopg.Error as error:
                told, now = self._not_connected(error), boottime()
                if now - began >= _NO_ANSWER_SECONDS:
                    rests_until = now + min(now - began, _REST_SECONDS_MOST)
                raise _NotConnectedError(told) from None
            try:
                driver.prepared_max = _PREPARED
                # One width for all integers, or each would be a statement of its own to prepare.
                driver.adapters.register_dumper(int, Int8Dumper)
                driver.execute(_SETTINGS, prepare=False)
                if read_only:
                    driver.execute("SET default_transaction_read_only = on", prepare=False)
                else:
                    self._expect_same_server(driver)
            except BaseException as error:
                driver.close()
                if isinstance(error, LedgerError):
                    raise _NotConnectedError(error) from None
                raise
            return driver

        engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool, hide_parameters=True)
        event.listen(engine, "handle_error", _hide_values)
        pipeline.install(engine)
        return engine

    def _expect_same_server(self, driver: psycopg.Connection[Any]) -> None:
        row = driver.execute(_SERVER, prepare=False).fetchone()
        assert row is not None, "it is one line"
        if row[0] is None:
            raise self._is_standby()
        if self._server not in ("", row[0]):
            raise LedgerFenced(
                f"the server of the ledger {self.name} is another than before (a failover, or a restored backup), and"
                " may lack what was committed last; started again, the destinations are asked for what waits"
            )
        if self._schema not in ("", row[1]):
            raise LedgerFenced(
                f"the role's search_path has another schema first than before, where the ledger {self.name} is not; put"
                " it back, and start again"
            )
        self._server, self._schema = row

    def _not_connected(self, error: psycopg.Error) -> LedgerError:
        why = " ".join(next(iter(str(error).splitlines()), "").split())
        text = f"the ledger {self.name} cannot be reached: {why}"
        if any(said in why for said in _LASTING):
            return LedgerError(f"{text}; that does not pass by itself: see README, A ledger in PostgreSQL")
        return LedgerAway(f"{text}; {_WAITED_FOR}")

    def failure(self, error: BaseException | None) -> LedgerError:
        """Tell a person what the driver's error means for the ledger; its text may have values in it, and is left out.

        What is no passing failure of the server is ours, or of its disk: the code says which (PostgreSQL
        documentation, appendix A).
        """
        if isinstance(error, _NotConnectedError):
            return error.told
        code = getattr(error, "sqlstate", None) or ""
        if code.startswith(_AWAY) or (isinstance(error, psycopg.OperationalError) and not code):
            return LedgerAway(f"the ledger {self.name} did not answer ({code or 'no connection'}); {_WAITED_FOR}")
        if code.startswith(_BUSY):
            return LedgerBusy(f"the ledger {self.name} is in use by others ({code}); nothing was changed, try again")
        if code.startswith(_FULL):
            return LedgerFull(f"no room is left for the ledger {self.name} ({code}); nothing was changed")
        if code == _READ_ONLY:
            return LedgerAway(
                f"the ledger {self.name} may only be read: its server has `default_transaction_read_only` on, as"
                f" some have whose disk is nearly full, or became a standby; {_WAITED_FOR}"
            )
        what = code or type(error).__name__
        return LedgerError(f"the ledger {self.name} cannot be used: {what}; the server's log has the reason")

    def _is_standby(self) -> LedgerError:
        return LedgerAway(
            f"the ledger {self.name} is on a standby, which may only be read; name all its hosts in the URL, so that"
            " the one that may be written is found"
        )


def driver_of(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _hide_values(context: ExceptionContext) -> None:
    """Leave the code of an error: the server's words may have the values of a row in them, and a traceback shows them.

    SQLite's have none.
    """
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            error.args = (getattr(context.original_exception, "sqlstate", None) or "",)


def _name_of(said: Mapping[str, Any]) -> str:
    """Write the URL without what only says how to connect."""
    user = f"{said['user']}@" if said.get("user") else ""
    hosts, ports = (str(said.get(key) or "").split(",") for key in ("host", "port"))
    ports = ports * len(hosts) if len(ports) == 1 else ports
    places = [host + (f":{port}" if port else "") for host, port in zip(hosts, ports, strict=False)]
    return f"postgresql://{user}{','.join(places)}/{said['dbname']}"


def _is_local(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
