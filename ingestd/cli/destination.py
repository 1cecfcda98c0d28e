"""``ingestd destination remove``: let go of what waits for a destination that the configuration names no more."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingestd.lifecycle import State
from ingestd.locks import who_runs

from .common import ExitCode, Stop, config_option, json_option, ledger_for_moves, load_config, number_of, tell_config
from .output import in_files, plain, print_json

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.ledger import Ledger

_STAYS = frozenset({State.CONFIRMED, State.DUPLICATE, State.DISCARDED})


@click.group("destination", short_help="Let go of what waits for a destination that is no more.")
def command() -> None:
    """Decide about a destination as a whole, where the configuration has, or had, several.

    One for which files wait cannot simply be left out of the configuration: no ingestd starts then. `remove` lets go of
    these files by a person's word.
    """


@command.command("remove", short_help="Let go of what waits for it, after showing how much that is.")
@config_option
@json_option
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(*, config: Path | None, as_json: bool, name: str, yes: bool) -> int:
    """Let go of what waits for a destination that the configuration names no more.

    What is not confirmed there is DISCARDED, and needs no more to be sent to it: each file is kept until no other
    destination needs it, and for `spool.retain`. What is confirmed stays so. Stop the daemon first.
    """
    settings = tell_config(load_config(config))
    if name in settings.destinations:
        raise Stop(ExitCode.CONFIGURATION, f"the configuration names {plain(name)} still; take it out there first")
    with ledger_for_moves(settings) as ledger:
        number = number_of(ledger, name)
        assert number is not None, "a name was given"
        _nobody_runs(settings, ledger)
        waiting = _waiting(ledger, name)
        if waiting and not yes:
            click.echo(
                f"at {plain(name)}: {', '.join(f'{count} {state}' for state, count in waiting.items())}", err=True
            )
            click.confirm("discard them?", abort=True, err=True)
        discarded = _discard(ledger, number)
    if as_json:
        print_json({"destination": name, "waited": waiting, "discarded": discarded})
    else:
        click.echo(f"{in_files(discarded)} let go at {plain(name)}; each is kept while another destination needs it")
    return ExitCode.DONE


def _nobody_runs(config: Config, ledger: Ledger) -> None:
    """Stop while an ingestd runs: it goes by the configuration that it started with, and may be sending there."""
    from ingestd.ledger import queries

    for spool in {config.spool.path, config.spool.for_send, *queries.spools(ledger).values()}:
        if (pid := who_runs(spool)) is not None:
            raise Stop(ExitCode.BUSY, f"an ingestd may be sending there, process {pid}; stop it first")


def _waiting(ledger: Ledger, name: str) -> dict[str, int]:
    from ingestd.ledger import queries

    states = queries.status(ledger, at=name).states
    return {str(state): count for state, count in states.items() if count and state not in _STAYS}


def _discard(ledger: Ledger, number: int) -> int:
    """Discard some thousand rows to a transaction; what takes their place goes with the next."""
    from ingestd.ledger import moves

    sums = 0
    while True:
        with ledger.transaction() as tx:
            part = moves.discard_all_at(tx, number, now=datetime.now(UTC))
        if not part:
            return sums
        sums += part
