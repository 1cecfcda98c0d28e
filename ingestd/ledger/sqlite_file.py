"""How an SQLite ledger is opened so that a commit is a commit, guarded, checked, and its errors told.

The settings and why (SQLite documentation: pragma, lockingv3, WAL):

- ``journal_mode=DELETE`` with ``synchronous=EXTRA``: FULL does not sync the directory after the journal is unlinked, so
  that a committed transaction may roll back at a power cut; WAL has the reset bug in most installed libraries.
- ``isolation_level=None`` and BEGIN IMMEDIATE: the driver's own BEGIN is deferred, and two SELECT-then-UPDATE writers
  claim the same row.
- ``trusted_schema=OFF``, ``cell_size_check=ON``, ``mmap_size=0``: a damaged file raises instead of misleading.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from ingestd.fs.durable import write_whole
from ingestd.fs.mounts import mount_of
from ingestd.fs.places import MISSING, expect_named

from .errors import BUSY_MS as _BUSY_MS
from .errors import LedgerError, LedgerMissing, disk_failed, failure, is_crashed, may_write, not_whole, permission
from .guards import GUARDS

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_APPLICATION_ID = 0x494E4744  # "INGD"
_HEADER = b"SQLite format 3\0"
# Checked whole at start up to this size (some 0.1 s); beyond it only the header, the size and the ends of the tables.
_CHECKED_WHOLE_BYTES = 16_000_000
# Copied, and steps of SQLite's machine, between two words about how it goes on.
_PAGES_AT_ONCE = 4096
_STEPS_OF_CHECK = 200_000

# Locking on these is a matter of luck, and SQLite's safety rests on locks and on ordered writes.
_NETWORK = frozenset(
    {
        *("9p", "acfs", "afs", "afpfs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.cephfs"),
        *("fuse.curlftpfs", "fuse.davfs2", "fuse.glusterfs", "fuse.goofys", "fuse.rclone", "fuse.s3fs"),
        *("fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3"),
        *("smbfs", "virtiofs", "vboxsf", "vmhgfs"),
    }
)


def ledger_file(url: str) -> Path:
    """Say where the ledger of this URL is; LedgerError if it is no URL of a ledger that we can keep."""
    try:
        parsed: URL = make_url(url)
    except ArgumentError:
        raise LedgerError(
            "the ledger's URL cannot be read; write it like sqlite:////var/lib/ingestd/ledger.db"
        ) from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise LedgerError(
            f"a ledger of kind {parsed.get_backend_name()!r} without a file cannot be kept;"
            " write it like sqlite:////var/lib/ingestd/ledger.db"
        )
    return Path(parsed.database).absolute()


def _refuse_network(file: Path) -> None:
    mount = mount_of(str(file.resolve()))
    if mount is not None and mount.kind in _NETWORK:
        raise LedgerError(
            f"the ledger {file} lies on a network file system ({mount.kind}), where locks and commits cannot be relied"
            " on; put it on a local disk"
        )


def _create(file: Path) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except PermissionError:
        raise permission(file, "create") from None
    except OSError as error:
        raise disk_failed(file, "created", error) from None


def _expect_room(file: Path) -> None:
    """Raise what ``_create`` would, as far as that can be seen without it."""
    if file.is_symlink() and not file.resolve().parent.is_dir():
        raise disk_failed(file, "created", FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    nearest = next(above for above in file.parents if os.path.lexists(above))
    if not nearest.is_dir():
        raise disk_failed(file, "created", NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise permission(file, "create")


def _size_of(file: Path) -> int:
    """Say how large it is, 0 where there is none; refuse what would keep whoever reads it waiting."""
    try:
        return expect_named(file, most=sys.maxsize).st_size
    except MISSING:
        return 0
    except PermissionError:
        raise permission(file, "read") from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise LedgerError(f"{file} is no ledger ({error.strerror}); give the ledger another place") from None
        raise disk_failed(file, "looked at", error) from None


def _look_at(file: Path) -> None:
    """Refuse what is no database at all, in better words than SQLite's."""
    try:
        with file.open("rb") as opened:
            header = opened.read(len(_HEADER))
    except PermissionError:
        raise permission(file, "read") from None
    except OSError as error:
        raise disk_failed(file, "read", error) from None
    if header and header != _HEADER:
        raise LedgerError(
            f"{file} is no ledger (it does not begin like an SQLite database); give the ledger another place"
        )


def open_engine(file: Path, *, create: bool, read_only: bool, rehearsal: bool = False) -> Engine:
    """Make the engine of one ledger: one connection, opened as this module's head says; ``rehearsal``: make no file."""
    if rehearsal and not os.path.exists(file):  # noqa: PTH110 - Path.exists raises where a folder is closed
        _refuse_network(file)
        _expect_room(file)
        raise LedgerMissing(f"there is no ledger at {file} yet; `ingestd run` makes it")
    if _size_of(file) == 0 and not rehearsal:
        if read_only or not create:
            raise LedgerMissing(f"there is no ledger at {file} yet; `ingestd run` makes it")
        _refuse_network(file)
        _create(file)
    elif not read_only:
        _refuse_network(file)
        if not may_write(file):
            raise permission(file, "write")
    _look_at(file)
    mode = "ro" if read_only else "rw"

    def connect() -> sqlite3.Connection:
        try:
            return connect_once()
        except sqlite3.DatabaseError as error:
            if not (read_only and is_crashed(error)):
                raise failure(error, file) from None
        # A read-only connection may not undo the transaction of a writer that died, so another one has to.
        _roll_back_crashed(file)
        try:
            return connect_once()
        except sqlite3.DatabaseError as error:
            raise failure(error, file) from None

    def connect_once() -> sqlite3.Connection:
        # file: URI, so that a read-only open is one, and a vanished file is not made anew in silence.
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(file))}?mode={mode}", uri=True, isolation_level=None, cached_statements=256
        )
        # For lists of digests, which travel as JSON: SQLite has an unhex of its own since 3.41 only.
        connection.create_function("from_hex", 1, from_hex, deterministic=True)
        try:
            _prepare(connection, file, read_only=read_only)
        except BaseException:
            connection.close()
            raise
        return connection

    return create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)


def from_hex(text: str | None) -> bytes | None:
    """Give the bytes of a digest in hex (a function of SQL)."""
    return None if text is None else bytes.fromhex(text)


def _prepare(connection: sqlite3.Connection, file: Path, *, read_only: bool) -> None:
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    connection.execute("PRAGMA mmap_size=0")
    connection.execute("PRAGMA temp_store=MEMORY")
    # Pages of 8 MB stay in memory; a transaction that changes more is written early only from 16 MB on.
    connection.execute("PRAGMA cache_size=-8000")
    connection.execute("PRAGMA cache_spill=4000")
    if read_only:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return
    mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    connection.execute("PRAGMA synchronous=EXTRA")
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    if mode != "delete" or synchronous != 3:
        raise LedgerError(
            f"the ledger {file} cannot be opened safely: SQLite answers journal_mode={mode}, synchronous={synchronous}"
            " where delete and 3 (EXTRA) were asked for; is another program using it?"
        )


def _roll_back_crashed(file: Path) -> None:
    try:
        connection = sqlite3.connect(f"file:{quote(os.fsencode(file))}?mode=rw", uri=True, isolation_level=None)
        try:
            connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise failure(error, file) from None


def mark_as_ours(connection: Connection) -> None:
    connection.exec_driver_sql(f"PRAGMA application_id={_APPLICATION_ID}")


def has_tables(connection: Connection, file: Path) -> bool:
    """Whether this database has the ledger's tables; LedgerError if it has somebody else's."""
    application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
    tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())
    if not tables:
        return False
    if application != _APPLICATION_ID or "meta" not in tables:
        raise LedgerError(f"{file} is a database of another program; give the ledger another place")
    return True


def rows_changed(connection: Connection) -> int:
    """Say how many rows this connection has changed since it was opened."""
    return driver_of(connection).total_changes


def version(connection: Connection, file: Path) -> int:
    """Name the state that others have left the ledger in: another one as soon as another connection has committed."""
    try:
        (number,) = driver_of(connection).execute("PRAGMA data_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise failure(error, file) from None
    return int(number)


def driver_of(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def install_guards(connection: Connection) -> None:
    """Have the database itself refuse what ``guards`` name."""
    found = dict(
        tuple(row) for row in connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    )
    for guard in GUARDS:
        # instr, not IN: in a trigger the list of an IN is made anew for every row.
        legal = f" WHEN instr('{guard.legal}', ' ' || OLD.state || '>' || NEW.state || ' ') = 0" if guard.legal else ""
        wanted = (
            f"CREATE TRIGGER {guard.name} BEFORE {guard.event} ON {guard.table}{legal}"
            f" BEGIN SELECT RAISE(ABORT, '{guard.why}'); END"
        )
        if found.get(guard.name) != wanted:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {guard.name}")
            connection.exec_driver_sql(wanted)


def check_quickly(connection: Connection, file: Path) -> None:
    """Raise LedgerError if the file is damaged, as far as a look of bounded cost can tell.

    A small ledger is checked whole; of a large one both ends of every table and index are read.
    """
    if _size_of(file) <= _CHECKED_WHOLE_BYTES:
        found = check_whole(connection)
        if found:
            raise not_whole(file, found)
        return
    names = connection.exec_driver_sql(
        "SELECT type, name, tbl_name FROM sqlite_master WHERE type IN ('table', 'index') AND name NOT LIKE 'sqlite_%'"
    ).all()
    for kind, name, table in names:
        if kind == "table":
            for order in ("ASC", "DESC"):
                connection.exec_driver_sql(f"SELECT * FROM {name} ORDER BY rowid {order} LIMIT 1").all()  # noqa: S608
            continue
        columns = connection.exec_driver_sql(f"PRAGMA index_info({name})").all()
        where = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).scalar_one()
        _, partial, condition = where.partition(" WHERE ")
        for order in ("ASC", "DESC"):
            by = ", ".join(f"{column[2]} {order}" for column in columns)
            connection.exec_driver_sql(
                f"SELECT rowid FROM {table} INDEXED BY {name}{partial}{condition} ORDER BY {by} LIMIT 1"  # noqa: S608
            ).all()


def check_whole(connection: Connection) -> list[str]:
    """Read every page and say what is wrong; empty when nothing is. Takes a second for some 200 MB."""
    answer = [str(line) for line in connection.exec_driver_sql("PRAGMA quick_check(20)").scalars()]
    return [] if answer == ["ok"] else answer


def reading(file: Path) -> sqlite3.Connection:
    """Open the ledger once more, for reading only; raises LedgerError."""
    try:
        return sqlite3.connect(f"file:{quote(os.fsencode(file))}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.DatabaseError as error:
        raise failure(error, file) from None


def copy(ledger: sqlite3.Connection, file: Path, place: Path, *, told: Callable[[], None] | None = None) -> None:
    """Copy the ledger to this place, in place of a former copy, as soon as the new one is whole and durable.

    Whoever writes the ledger waits as long as the copying takes; where ``told`` is called while it goes on, whoever
    calls holds the lock: else each writer would make it begin anew. Raises LedgerError where the copy would be damaged.
    """

    def fill(scratch: Path) -> None:
        with closing(sqlite3.connect(scratch, isolation_level=None)) as target:
            try:
                if told is None:
                    ledger.backup(target)
                else:
                    ledger.backup(target, pages=_PAGES_AT_ONCE, progress=lambda *_: told())
                    target.set_progress_handler(told, _STEPS_OF_CHECK)
                (found,) = target.execute("PRAGMA quick_check(1)").fetchone()
            except sqlite3.DatabaseError as error:
                full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
                raise failure(error, place if full else file) from None
        if found != "ok":
            raise LedgerError(f"the ledger {file} is damaged ({found}); what lay at {place} was left as it was")

    write_whole(place, fill)
