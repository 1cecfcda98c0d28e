"""``ingestd ledger``: move a filled ledger from its SQLite file into a PostgreSQL server."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from ingestd.locks import who_runs

from .common import (
    ExitCode,
    Stop,
    config_option,
    json_option,
    load_config,
    missing_spool,
    need_owner,
    tell_config,
)
from .output import in_bytes, plain, print_json


@click.group("ledger", short_help="Move a filled ledger from its SQLite file into a PostgreSQL server.")
def command() -> None:
    """Decide where the ledger is kept.

    `move` takes a filled ledger out of its SQLite file into a PostgreSQL server, whole or not at all, and closes the
    former one. The files in the spool stay where they are.
    """


@command.command("move", short_help="Take a filled ledger over into a PostgreSQL server.")
@config_option
@json_option
@click.argument("sqlite_url")
@click.argument("postgres_url")
def move(*, config: Path | None, as_json: bool, sqlite_url: str, postgres_url: str) -> int:
    """Take the ledger at SQLITE_URL over into the database of POSTGRES_URL, which has none yet.

    The configuration names one of the two, and the spool. Stop the daemon first. Every row is read back from the server
    and compared before the former ledger is closed: its file stays, and no ingestd uses it any more. Interrupted, call
    it again: until it ends well at most one of the two is used. The key of the search words is copied into the spool.
    """
    from ingestd.ledger.moving import move as move_ledger
    from ingestd.ledger.sqlite import Sqlite

    settings = tell_config(load_config(config))
    file = Sqlite(sqlite_url).file
    if file != settings.ledger_file and postgres_url != settings.ledger:
        raise Stop(
            ExitCode.CONFIGURATION,
            f"the ledger of this configuration is {plain(settings.ledger)}, which is neither of the two",
        )
    if missing := missing_spool(settings):
        raise Stop(ExitCode.CONFIGURATION, f"{missing}; nothing was done")
    need_owner(settings.spool.path)
    need_owner(file)
    for spool in (settings.spool.path, settings.spool.for_send):
        _expect_idle(spool)
    moved = move_ledger(
        sqlite_url,
        postgres_url,
        key=settings.spool.search_key,
        expect_idle=_expect_idle,
        tell=partial(click.echo, err=True),
    )
    if as_json:
        print_json({"ledger": postgres_url, "rows": moved.rows, "bytes": moved.size_bytes, "seconds": moved.seconds})
        return ExitCode.DONE
    click.echo(
        f"moved {sum(moved.rows.values()):,} rows ({in_bytes(moved.size_bytes)}), of {moved.rows['file']:,} files, in"
        f" {moved.seconds:.0f} s; each was compared with what the server gives back"
    )
    if postgres_url != settings.ledger:
        click.echo(f"put `ledger: {plain(postgres_url)}` into the configuration now; ingestd does not start before")
    click.echo(f"start ingestd; {plain(file)} is used no more, and may go once the server's backup has the ledger")
    return ExitCode.DONE


def _expect_idle(spool: Path) -> None:
    if (pid := who_runs(spool)) is not None:
        raise Stop(ExitCode.BUSY, f"an ingestd runs on the spool {plain(spool)}, process {pid}; stop it first")
