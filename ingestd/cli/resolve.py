"""``ingestd resolve``: decide what ingestd may not decide by itself; each decision is a line in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import (
    ExitCode,
    Stop,
    config_option,
    json_option,
    ledger_for_moves,
    load_config,
    missing_spool,
    tell_config,
)
from .operator_moves import Refusals, one_by_one, why_not_readable, why_not_the_same
from .output import plain, print_json
from .working import at_work

if TYPE_CHECKING:
    from ingestd.ledger import Entry, Ledger, Transaction

SAID = {
    "discard": "let go; the file is kept for the retain time",
    "replace": "will be sent in place of the other",
    "admit_anyway": "will be read again and taken as it is",
}


@click.command("resolve", short_help="Decide what becomes of a file that ingestd may not decide about.")
@config_option
@json_option
@click.argument("ids", nargs=-1, type=click.IntRange(1, 2**63 - 1), metavar="ID...")
@click.option(
    "--discard",
    "decision",
    flag_value="discard",
    help="Let go of a FAILED, CONFLICT, REJECTED or DELETED file, or one that waits for `send`.",
)
@click.option(
    "--replace", "decision", flag_value="replace", help="Send a CONFLICT file in place of the one that holds its UIDs."
)
@click.option(
    "--admit-anyway", "decision", flag_value="admit_anyway", help="Take a REJECTED file as it is, if it has its UIDs."
)
@click.option(
    "--new-key", "decision", flag_value="new_key", help="Go on with another key of the search words; takes no ID."
)
def command(*, config: Path | None, as_json: bool, ids: tuple[int, ...], decision: str | None) -> int:
    """Decide what becomes of a file that ingestd may not decide about.

    Nothing is deleted by this at once: a discarded file is kept for `spool.retain`, and the ledger keeps its history.
    """
    if decision is None:
        raise click.UsageError("say what to do: --discard, --replace, --admit-anyway or --new-key")
    if bool(ids) is (decision == "new_key"):
        raise click.UsageError("--new-key is about no file" if ids else "say of which files: ID...")
    settings = tell_config(load_config(config))
    if decision == "new_key":
        if settings.ledger_file is None and (missing := missing_spool(settings)):
            raise Stop(ExitCode.CONFIGURATION, f"{missing}, and the key lies in it; mount it first")
        with ledger_for_moves(settings) as ledger:
            ledger.search_key.accept()
        if as_json:
            print_json({"decision": decision, "done": [], "refused": []})
        else:
            click.echo("the key that is there now is used; who was taken in by another is not found by it")
        return ExitCode.DONE
    with ledger_for_moves(settings) as ledger:
        done, refused = decide(ledger, ids, decision, idle_host=at_work(settings, ledger).stopped_send)
        to = _servers(ledger, done) if len(settings.destinations) > 1 else {}
    if as_json:
        refusals = [{"id": number, "why": why} for number, why in refused]
        print_json({"decision": decision, "done": done, "refused": refusals})
    else:
        for number in done:
            where = f" at {plain(to[number])}" if to.get(number) else ""
            click.echo(f"file {number}{where}: {SAID[decision]}")
        for number, why in refused:
            click.echo(f"file {number}: not done: {why}")
    return ExitCode.NEEDS_PERSON if refused else ExitCode.DONE


def _servers(ledger: Ledger, numbers: Sequence[int]) -> dict[int, str]:
    """Say at which destination each of these was decided about: its other deliveries are decided about on their own."""
    from ingestd.ledger import queries

    entries = (queries.entry(ledger, number) for number in numbers)
    return {entry.delivery_id: entry.destination for entry in entries if entry is not None}


def decide(ledger: Ledger, ids: Sequence[int], decision: str, *, idle_host: str) -> tuple[list[int], Refusals]:
    """Carry the decision out; of ``idle_host``, which nobody runs, also what is on its way can be discarded."""
    from ingestd.ledger import moves

    def move(tx: Transaction, number: int) -> None:
        now = datetime.now(UTC)
        match decision:
            case "discard":
                moves.discard(tx, number, idle_host=idle_host, now=now)
            case "replace":
                moves.replace(tx, number, now=now)
            case _:
                moves.admit_anyway(tx, number, now=now)

    done, refused = one_by_one(ledger, ids, move, why_not=partial(_why_not, decision))
    return list(done), refused


def _why_not(decision: str, entry: Entry) -> str:
    from ingestd.lifecycle import State

    if decision == "replace" and entry.state is State.CONFLICT and (why := why_not_the_same(entry)):
        return f"sent in place of another row: its file {why}"
    if decision == "admit_anyway" and entry.state is State.REJECTED and (why := why_not_readable(entry)):
        return f"admitted: its file {why}"
    return ""
