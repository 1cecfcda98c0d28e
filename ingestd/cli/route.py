"""``ingestd route --again``: have what was routed, and was not tried yet, go where the rules say now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .asker import as_typed, how_to_start
from .common import (
    TEXT,
    ExitCode,
    Stop,
    config_option,
    expect_yes,
    host_of,
    json_option,
    ledger_for_moves,
    load_config,
    tell_config,
)
from .output import counted, in_files, plain, print_json
from .working import at_work

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.ledger import Ledger

    from .rerouting import Chosen, RoutingPlan, Sums

_LEFT = {
    "unread": "cannot be read now, or not there",
    "other_bytes": "not what was taken in any more",
    "unwanted": "wanted by no rule any more; a rule with `to: []` lets go of such files",
    "unrouted": "wanted by no rule still; they need a rule, or `ingestd resolve ID --discard`",
}


@click.command("route", short_help="Have files that wait go where the rules say now.")
@config_option
@json_option
@click.option("--again", is_flag=True, required=True, help="Read the files that wait, and apply the rules to them.")
@click.option("--study", type=TEXT, metavar="UID", help="Only those of this study.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(*, config: Path | None, as_json: bool, again: bool, study: str | None, yes: bool) -> int:
    """Have files that wait go where the rules say now; first it shows what would change, and asks.

    Rules are applied when a file is taken in, and a rule changed since changes nothing for it until this is done. It is
    about files that some destination still needs, that no rule wanted, or that a rule let go of; each is read again. A
    file is sent to a destination that is new to it, and what was not tried yet at one that it is not to go to is let
    go. What was tried is left to be proven.
    """
    from ingestd.config import agreement_of

    assert again, "click asks for it"
    settings = tell_config(load_config(config))
    said = agreement_of(settings)
    with ledger_for_moves(settings) as ledger:
        ledger.expect_agreement(said)
        _know_all(settings, ledger)
        from .rerouting import Sums, carry_out, plan_of

        plan = plan_of(settings, ledger, study_uid=study)
        parts = list(plan.parts.values())
        acts = any(part.acts for part in parts)
        if not (as_json and (yes or not acts)):
            for line in _words(plan):
                click.echo(line, err=as_json)
        if acts and not yes:
            expect_yes("do it?")
        files, sums = carry_out(ledger, plan, said) if acts else (0, Sums())
        then = list(_then(settings, ledger)) if sums.gains else []
    left = {why: list(getattr(plan, why)) for why in _LEFT}
    if as_json:
        done: dict[str, Any] = {"files": files, **sums.as_plain()}
        print_json({"plan": [part.as_plain() for part in parts], "done": done, "left": left})
    elif acts:
        click.echo(f"{in_files(files)} routed again{_changes(sums, '')}")
        for line in then:
            click.echo(as_typed(line))
    return ExitCode.NEEDS_PERSON if any(left.values()) else ExitCode.DONE


def _know_all(config: Config, ledger: Ledger) -> None:
    """Stop where the ledger has no number for a destination yet: a daemon that starts, or reloads, gives it one."""
    if new := [name for name in config.destinations if name not in ledger.destinations]:
        names = ", ".join(map(plain, new))
        raise Stop(ExitCode.CONFIGURATION, f"the ledger does not know {names} yet; start ingestd, or reload it, first")


def _then(config: Config, ledger: Ledger) -> Iterator[str]:
    """Say what is to be done for it to be sent, where it is not by itself."""
    from ingestd.ledger import queries

    host, work = host_of(config.spool.path), at_work(config, ledger)
    sender = work.stopped_send
    if host and work.daemon is None and queries.unfinished(ledger, host=host):
        yield f"it is sent as soon as a daemon runs (start it: {how_to_start()})"
    if sender and (waiting := queries.unfinished(ledger, host=sender)):
        yield f"{in_files(waiting)} of `ingestd send` can be sent only by it: run it on the folder again"


def _words(plan: RoutingPlan) -> Iterator[str]:
    for part in plan.parts.values():
        where = ", ".join(map(plain, part.route.destinations)) or "nowhere, on purpose"
        of = counted(len(part.studies), "study", "studies")
        text = plain(part.route.text or "no rules")
        yield f"{text} -> {where}: {in_files(len(part.files))} of {of}{_changes(part, 'would ')}"
        if part.let_go:
            yield f"  {in_files(part.let_go)} would need nobody any more"
    if not plan.parts and not any(getattr(plan, why) for why in _LEFT):
        yield "every file that waits, or that no rule wanted, goes where the rules say"
    for why, words in _LEFT.items():
        ids = getattr(plan, why)
        if ids:
            some = ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")
            yield f"left alone, {as_typed(words)}: {in_files(len(ids))} ({some})"


def _changes(sums: Sums | Chosen, would: str) -> str:
    """Say what changes at which destination, as the end of a line."""
    said = [f"gain {plain(name)}: {in_files(number)}" for name, number in sums.gains.items()]
    stays: Counter[str] = sums.stays.copy()
    for name, number in sums.loses.items():
        stay = stays.pop(name, 0)
        stays_there = f" ({counted(stay, 'stays', 'stay')}: already tried)" if stay else ""
        said.append(f"lose {plain(name)}: {in_files(number)}{stays_there}")
    said = [f"{would}{each}" for each in said]
    for name, number in stays.items():
        said.append(f"{counted(number, 'file stays', 'files stay')} at {plain(name)}: already tried")
    return f"; {'; '.join(said)}" if said else ""
