"""``ingestd retry``: give files that need a person another try, one by one or all of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .asker import how_to_start
from .common import (
    TEXT,
    ExitCode,
    Stop,
    config_option,
    destination_option,
    json_option,
    ledger_for_moves,
    load_config,
    number_of,
    tell_config,
)
from .operator_moves import Refusals, one_by_one, why_not_readable
from .output import in_files, print_json
from .working import at_work

if TYPE_CHECKING:
    from ingestd.ledger import Choice, Entry, Ledger

RETRIABLE = ("FAILED", "CONFLICT", "DELETED", "UNCERTAIN", "REJECTED")


@click.command("retry", short_help="Give files that need a person another try.")
@config_option
@json_option
@click.argument("ids", nargs=-1, type=click.IntRange(1, 2**63 - 1), metavar="[ID]...")
@click.option("--study", type=TEXT, metavar="UID", help="All of this study.")
@click.option("--state", type=click.Choice(RETRIABLE, case_sensitive=False), help="All in this state.")
@click.option("--reason", type=TEXT, metavar="WORDS", help="All with this reason, as `ingestd status` shows it.")
@destination_option
@click.option("--now", "now", is_flag=True, help="Wait no longer: try the server, and all that waits for it, at once.")
def command(
    *,
    config: Path | None,
    as_json: bool,
    ids: tuple[int, ...],
    study: str | None,
    state: str | None,
    reason: str | None,
    destination: str | None,
    now: bool,
) -> int:
    """Give files that need a person another try.

    Files are named by their numbers, or chosen by study, state and reason together. A file that was FAILED, DELETED,
    UNCERTAIN or in CONFLICT is sent again; one that was REJECTED is read again first. This works beside a running
    daemon, which acts on it within seconds; what `ingestd send` took in waits for its next run. Refused, with the
    reason, where another file holds the same UIDs.

    With --now, alone or with files, no wait is sat out: a pause of the server ends, and what waits to be tried again
    is due. For who has just mended the server, the network or the account.
    """
    from ingestd.ledger import moves, queries

    chosen = study is not None or state is not None or reason is not None
    if bool(ids) == chosen and not (now and not chosen):
        raise click.UsageError("name files by ID, or choose them by --study, --state, --reason; one of the two")
    if destination is not None and not chosen:
        raise click.UsageError("--destination goes with --study, --state or --reason")
    settings = tell_config(load_config(config))
    with ledger_for_moves(settings) as ledger:
        if now:
            with ledger.transaction() as tx:
                moves.try_now(tx, now=datetime.now(UTC))
        if not chosen:
            moved, requested, refused = _one_by_one(ledger, ids)
        else:
            choice = replace(_choice(study, state, reason), destination=number_of(ledger, destination))
            if study is not None and not queries.entries(ledger, replace(choice, state=None, reason=None), limit=1):
                from .status import unknown

                raise Stop(ExitCode.CONFIGURATION, unknown(study=study))
            moved, requested, refused = _all_of(ledger, choice)
        work = at_work(settings, ledger)
        by_send = _taken_by_send(ledger, (*moved, *requested), work.stopped_send)
    if as_json:
        refusals = [{"id": number, "why": why} for number, why in refused]
        print_json({"sent_again": moved, "read_again": requested, "refused": refusals})
    else:
        but = ""
        if work.daemon is None:
            but = f"but {work.unseen}" if work.unseen else f"as soon as a daemon runs (start it: {how_to_start()})"
        if now:
            click.echo("the server, and all that waits for it, is tried at once" + (but and f", {but}"))
        if ids or chosen:
            _tell(moved, requested, refused, by_send=by_send, but=but)
    return ExitCode.NEEDS_PERSON if refused else ExitCode.DONE


def _choice(study: str | None, state: str | None, reason: str | None) -> Choice:
    from ingestd.ledger import Choice
    from ingestd.lifecycle import Reason, State

    from .advice import reason_called

    known = None if reason is None else reason_called(reason)
    if reason is not None and known is None:
        raise Stop(ExitCode.CONFIGURATION, f"no reason is called {reason}; there are {', '.join(sorted(Reason))}")
    return Choice(study_uid=study, state=State(state.upper()) if state else None, reason=known)


Result = tuple[list[int], list[int], Refusals]


def _one_by_one(ledger: Ledger, ids: Sequence[int]) -> Result:
    from ingestd.ledger import moves
    from ingestd.lifecycle import State

    def why_not(entry: Entry) -> str:
        why = why_not_readable(entry) if entry.state is State.REJECTED else ""
        return why and f"read again: its file {why}"

    after, refused = one_by_one(ledger, ids, partial(moves.retry, now=datetime.now(UTC)), why_not=why_not)
    moved = [number for number, state in after.items() if state is not State.REJECTED]
    return moved, [number for number in after if number not in moved], refused


def _all_of(ledger: Ledger, choice: Choice) -> Result:
    """Retry everything the choice has, some thousand rows to a transaction, so that the daemon can write in between."""
    from ingestd.ledger import moves

    moved: list[int] = []
    requested: list[int] = []
    refused: dict[int, str] = {}
    while True:
        with ledger.transaction() as tx:
            part = moves.retry_all(tx, choice, now=datetime.now(UTC))
        fresh = [row for row in part.requested if row not in requested]
        # A row in whose place another is sent stays where it is, and is chosen again.
        told = {*refused, *moved, *part.moved}
        new_refusals = {refusal.number: str(refusal) for refusal in part.refused if refusal.number not in told}
        moved += part.moved
        requested += fresh
        refused |= new_refusals
        if not part.moved and not fresh and not new_refusals:
            return moved, requested, sorted(refused.items())


def _taken_by_send(ledger: Ledger, ids: Sequence[int], host: str) -> set[int]:
    """Say which of these rows wait for another ``ingestd send``."""
    from ingestd.ledger import queries

    if not host:
        return set()
    return {number for number in ids if (entry := queries.entry(ledger, number)) is not None and entry.host == host}


def _tell(moved: list[int], requested: list[int], refused: Refusals, *, by_send: set[int], but: str) -> None:
    for number, why in refused:
        click.echo(f"file {number}: not retried: {why}")
    sent, read = (sum(1 for number in ids if number not in by_send) for ids in (moved, requested))
    if sent:
        click.echo(f"{in_files(sent)} will be sent again")
    if read:
        click.echo(f"{in_files(read)} will be read again")
    if not moved and not requested and not refused:
        click.echo("no file is like that")
    if by_send:
        click.echo(f"{in_files(len(by_send))} of `ingestd send` can be sent only by it: run it on the folder again")
    if (sent or read) and but:
        click.echo(but)
