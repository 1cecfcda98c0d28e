"""``ingestd destination``: go on with one at another address, or let go of what waits for one that is no more."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingestd.lifecycle import Reason, State
from ingestd.locks import who_runs

from .asker import as_typed
from .common import (
    ExitCode,
    Stop,
    config_option,
    expect_yes,
    json_option,
    ledger_for_moves,
    load_config,
    number_of,
    one_destination,
    tell_config,
)
from .output import in_files, plain, print_json
from .working import described

if TYPE_CHECKING:
    from ingestd.config import Config, Destination
    from ingestd.ledger import Ledger, Transaction

_STAYS = frozenset({State.CONFIRMED, State.DUPLICATE, State.DISCARDED})


@click.group("destination", short_help="Say that a destination moved, or let go of what waits for one.")
def command() -> None:
    """Decide about a destination as a whole.

    `move` goes on with the same server at another address. One for which files wait cannot simply be left out of the
    configuration: no ingestd starts then. `remove` lets go of these files by a person's word.
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
            expect_yes("discard them?")
        discarded = _discard(settings, ledger, number)
    if as_json:
        print_json({"destination": name, "waited": waiting, "discarded": discarded})
    else:
        click.echo(f"{in_files(discarded)} let go at {plain(name)}; each is kept while another destination needs it")
    return ExitCode.DONE


@command.command("move", short_help="The server, with what it has, is at another address now.")
@config_option
@json_option
@click.argument("name")
@click.argument("url")
@click.option("--yes", is_flag=True, help="Do not ask, where nothing was confirmed there that could be looked for.")
def move(*, config: Path | None, as_json: bool, name: str, url: str, yes: bool) -> int:
    """Go on with the same server at another address, after what was confirmed last was found there.

    Up to ten files are retrieved from URL and compared with what was sent; nothing is changed where one of them is not
    there. Then nothing is sent anew: what is still kept is compared there before it goes. The only destination is
    called `default` where it has no name. Stop the daemon first, and name the new address in the configuration.
    """
    from ingestd.ledger import RefusedMove, moves

    settings = tell_config(load_config(config))
    former = one_destination(settings, name)[1]
    try:
        destination = former.at(url)
    except ValueError as error:
        raise Stop(ExitCode.CONFIGURATION, f"{plain(url)} cannot be its address: {plain(error)}") from None
    with ledger_for_moves(settings) as ledger:
        # The only one may have another name there.
        is_only = len(ledger.destinations) == len(settings.destinations) == 1
        whose = next(iter(ledger.destinations)) if is_only else name
        number = number_of(ledger, whose)
        assert number is not None, "a name was given"
        _nobody_runs(settings, ledger)
        looked_at = _look(settings, destination, ledger.at(whose), yes=yes)
        try:
            with ledger.transaction() as tx:
                _nobody_runs(settings, ledger, tx)
                asked = moves.new_address(tx.at(number), destination.url, now=datetime.now(UTC))
        except RefusedMove as refusal:
            raise Stop(ExitCode.CONFIGURATION, str(refusal)) from None
    if as_json:
        print_json({"destination": name, "url": destination.url, "looked_at": looked_at, "asked": asked})
        return ExitCode.DONE
    click.echo(f"{in_files(looked_at)} found there as sent; it is asked about {in_files(asked)} when ingestd runs")
    if former.url != destination.url:
        click.echo(f"name {plain(destination.url)} in the configuration now; ingestd does not start before")
    click.echo(as_typed("what has no file in the spool is asked about by `ingestd reconcile --full`"))
    return ExitCode.DONE


def _look(config: Config, destination: Destination, ledger: Ledger, *, yes: bool) -> int:
    """Say how much of what was confirmed was found there; Stop where something is missing."""
    from .moving import look_at_sample

    sampled = look_at_sample(config, destination, ledger)
    if sampled.error:
        raise Stop(ExitCode.TIMEOUT, f"{plain(destination.url)} could not be asked: {plain(sampled.error)}")
    if sampled.missing:
        numbers = ", ".join(map(str, sampled.missing))
        raise Stop(
            ExitCode.NEEDS_PERSON,
            f"{plain(destination.url)} does not have, or not as it was sent, {in_files(len(sampled.missing))} of the "
            f"{len(sampled.found) + len(sampled.missing)} confirmed last (IDs {numbers}); nothing was changed. Another "
            "server needs a name of its own under `destinations`",
        )
    if not sampled.found and not yes:
        click.echo("nothing was confirmed there yet, so that nobody can say whether it is the same server", err=True)
        expect_yes("go on?")
    return len(sampled.found)


def _nobody_runs(config: Config, ledger: Ledger, tx: Transaction | None = None) -> None:
    """Stop while an ingestd runs: it goes by the configuration that it started with, and may be sending there.

    Within a transaction nobody begins to, and one that only stands still is ended.
    """
    from ingestd.ledger import queries

    living = [each for each in (tx.living() if tx is not None else ledger.workers() or ()) if each.is_alive]
    if living:
        does = {True: "may be sending there", False: "would take over as it was configured"}
        told = "; ".join(f"{described(worker)}, {does[worker.holds]}" for worker in living)
        raise Stop(ExitCode.BUSY, f"{told}; stop {'it' if len(living) == 1 else 'all of them'} first")
    if config.ledger_file is None:
        return
    for spool in {config.spool.path, config.spool.for_send, *queries.spools(ledger).values()}:
        if (pid := who_runs(spool)) is not None:
            raise Stop(ExitCode.BUSY, f"an ingestd may be sending there, process {pid}; stop it first")


def _waiting(ledger: Ledger, name: str) -> dict[str, int]:
    from ingestd.ledger import queries

    waiting: Counter[str] = Counter()
    for each in queries.status(ledger, at=name).counts:
        if each.state not in _STAYS or each.reason == Reason.NOT_COMPARED:
            waiting[each.state] += each.rows
    return dict(+waiting)


def _discard(config: Config, ledger: Ledger, number: int) -> int:
    """Discard some thousand rows to a transaction; what takes their place goes with the next."""
    from ingestd.ledger import moves

    sums = 0
    while True:
        with ledger.transaction() as tx:
            _nobody_runs(config, ledger, tx)
            part = moves.discard_all_at(tx, number, now=datetime.now(UTC))
        if not part:
            return sums
        sums += part
