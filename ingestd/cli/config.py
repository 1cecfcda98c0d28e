"""``ingestd config adopt``: what this configuration says holds for all machines that share the ledger."""

from __future__ import annotations

from pathlib import Path

import click

from .common import ExitCode, Stop, config_option, json_option, ledger_for_moves, load_config, tell_config
from .output import plain, print_json


@click.group("config", short_help="Say that this configuration holds for all machines that share a ledger.")
def command() -> None:
    """Decide about the configuration of several machines, which share a ledger in PostgreSQL.

    Inboxes, destinations (but for how each machine logs in there), rules, `spool.retain` and `reconcile` have to be the
    same on all. A machine whose file says otherwise stands by, and tells in its log and in `ingestd check`.
    """


@command.command("adopt", short_help="Have this one hold, and tell what changes.")
@config_option
@json_option
def adopt(*, config: Path | None, as_json: bool) -> int:
    """Have this configuration hold for all machines that share the ledger, and tell which sections change by it.

    Change the file on each machine, then `ingestd config adopt` on one: those that run read theirs anew by themselves.
    """
    from ingestd.config import agreement_of

    settings = tell_config(load_config(config))
    if settings.ledger_file is not None:
        raise Stop(ExitCode.CONFIGURATION, "nobody shares an SQLite ledger: change the file, and reload")
    with ledger_for_moves(settings) as ledger:
        said = agreement_of(settings)
        former = ledger.agree(said, settings.addresses)
    before = former.said if former is not None else {}
    gone = sorted(before.keys() - said.keys())
    keys = former.differing(said) if former is not None else sorted(said)
    came = {digest: key for key, digest in said.items() if key not in before}
    renamed = {key: came[before[key]] for key in gone if before[key] in came}
    if as_json:
        print_json({"changed": keys, "gone": gone, "renamed": renamed})
        return 0
    if not keys:
        click.echo("this configuration holds already; nothing was changed")
        return 0
    new = [key for key in keys if key in said and key not in renamed.values()]
    click.echo("this configuration holds now" + (f"; it is new in: {', '.join(new)}" if new else ""))
    for key, name in renamed.items():
        click.echo(f"{key} is called {name}, and is as it was")
    if gone := [key for key in gone if key not in renamed]:
        click.echo(f"no longer there, for any machine: {', '.join(gone)}")
    if former is not None:
        click.echo(f"until now that of {plain(former.machine)} held, since {former.at:%Y-%m-%d %H:%M} UTC")
    return 0
