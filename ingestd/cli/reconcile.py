"""``ingestd reconcile``: ask the server now, about what waits for proof or about everything."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingestd.clocks import boottime
from ingestd.lifecycle import State

from .asker import as_typed
from .common import (
    ExitCode,
    Stop,
    config_option,
    destination_option,
    destinations_named,
    host_of,
    json_option,
    keep_secrets,
    load_config,
    missing_spool,
    need_owner,
    pages,
    tell_config,
)
from .output import counted, plain, print_json, tell_first
from .run import DurationType, set_up_logs
from .working import AtWork, at_work, silence_of

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.ledger import Ledger

    from .audit import Report

# How often the ledger is looked at while the daemon asks.
LOOK_EVERY_SECONDS = 0.3
_UNPROVEN = frozenset({State.SENDING, State.STORED, State.UNCERTAIN})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """What became of a destination's rows that were to be asked about; ``error``: why they could not be."""

    states: dict[str, int]
    waiting: int
    error: str | None


@click.command("reconcile", short_help="Ask the server now whether it has what it should have.")
@config_option
@json_option
@destination_option
@click.option("--full", is_flag=True, help="Audit everything in the ledger: only here, only there, different.")
@click.option(
    "--compare",
    type=click.FloatRange(0, 100),
    default=0,
    metavar="PERCENT",
    help="With --full: fetch so many of the instances back and compare their content.",
)
@click.option(
    "--timeout",
    type=DurationType(),
    default=None,
    help="Stop after this long (1 minute; 1 hour with --full). A study that was begun is finished.",
)
def command(
    *,
    config: Path | None,
    as_json: bool,
    destination: str | None,
    full: bool,
    compare: float,
    timeout: timedelta | None,
) -> int:
    """Ask the server now whether it has what it should have.

    Without --full: every file that is STORED or UNCERTAIN is asked about at once instead of in its turn; nothing is
    sent. With a daemon or `ingestd send` running, each asks about its own files. Where one of several destinations
    cannot be asked, the others are.

    With --full every study of the ledger is compared with the server's: instances that only the ledger has (absent
    twice, they become DELETED), instances and studies that only the server has, and, with --compare, content that
    differs (it becomes a CONFLICT). FAILED files that the server has with the same content are told. It works through
    the studies until it is done or the time is over, and changes nothing on the server.
    """
    keep_secrets()
    settings = tell_config(load_config(config))
    names = list(destinations_named(settings, destination))
    need_owner(settings.spool.path)
    need_owner(settings.ledger_file)
    if missing := missing_spool(settings):
        raise Stop(ExitCode.CONFIGURATION, f"{missing}; mount its disk again, or put the folder back")
    if full:
        return _full(settings, names, share=compare / 100, budget=timeout or timedelta(hours=1), as_json=as_json)
    if compare:
        raise click.UsageError("--compare goes with --full")
    settled = ask_now(settings, names, timeout or timedelta(minutes=1))
    several = len(settings.destinations) > 1
    if as_json:
        # As with --full, one destination alone is told as it always was.
        only = settled[names[0]]
        plains = {name: asdict(each) for name, each in settled.items()}
        print_json({"destinations": plains} if several else {"states": only.states, "waiting": only.waiting})
    else:
        for name, each in settled.items():
            click.echo(f"{name}: {_words(each)}" if several else _words(each))
    if any(each.waiting for each in settled.values()):
        return ExitCode.TIMEOUT
    trouble = any({"FAILED", "CONFLICT", "DELETED"} & each.states.keys() for each in settled.values())
    return ExitCode.NEEDS_PERSON if trouble else ExitCode.DONE


def _words(settled: Settled) -> str:
    if not settled.states and not settled.waiting:
        return "nothing waits for proof"
    told = [f"{count} {state}" for state, count in sorted(settled.states.items())]
    told += [f"{settled.waiting} still not settled"] if settled.waiting else []
    begins = f"cannot be asked: {plain(settled.error)};" if settled.error else "asked:"
    return f"{begins} {', '.join(told)}"


def ask_now(config: Config, names: list[str], timeout: timedelta) -> dict[str, Settled]:
    """Have all that waits for proof at these destinations asked about now, by who has it in hand or by ourselves.

    The daemon's files and those of ``ingestd send`` are two processes' business, on one ledger. Where one of several
    destinations is away, what waits there is not waited for; where the only one is, DicomWebError may be raised.
    """
    from ingestd.daemon import sending_config
    from ingestd.inbox import Spool
    from ingestd.ledger import moves

    from .audit import open_as_daemon

    deadline = boottime() + timeout.total_seconds()
    asked: dict[str, list[int]] = {name: [] for name in names}
    away: dict[str, str] = {}
    with open_as_daemon(config, Spool(config.spool.path)) as ledger:
        for whose in (config, sending_config(config)):
            host, work = host_of(whose.spool.path), at_work(config, ledger)
            if not host:
                continue
            is_idle = (work.daemon if whose is config else work.send) is None
            theirs = _unproven_ids(ledger, host, names, crashed=is_idle)
            if len(config.destinations) > 1:
                away |= _who_is_away(config, theirs.keys() - away.keys())
            everyone = [delivery_id for ids in theirs.values() for delivery_id in ids]
            for start in range(0, len(everyone), 1000):
                with ledger.transaction() as tx:
                    moves.check_again(tx, everyone[start : start + 1000], at=datetime.now(UTC))
            there = _but(away, theirs)
            if there and is_idle:
                _expect_free(work)
                _ask_ourselves(whose, there, deadline)
            for name, ids in theirs.items():
                asked[name] += ids
        while _waiting(ledger, _but(away, asked)) and boottime() < deadline:
            time.sleep(LOOK_EVERY_SECONDS)
        return {name: _what_became(ledger, ids, away.get(name)) for name, ids in asked.items()}


def _expect_free(work: AtWork) -> None:
    """Stop where the daemon's rows are still those of a silent one, which nobody may end who has not stood by."""
    if work.daemon is None and work.silent is not None and not work.silent.is_gone:
        text = f"{silence_of(work.silent)}, and may be at work still; start ingestd, which takes over, and try again"
        raise Stop(ExitCode.BUSY, text)


def _unproven_ids(ledger: Ledger, host: str, names: list[str], *, crashed: bool) -> dict[str, list[int]]:
    """Say which rows of a host wait for proof, by destination.

    Without its process, what is SENDING was left so by a crash: nobody knows whether it arrived.
    """
    from ingestd.ledger import Choice, queries

    found: dict[str, list[int]] = {}
    for state in (State.STORED, State.UNCERTAIN, *([State.SENDING] if crashed else [])):
        for page in pages(partial(queries.entries, ledger, Choice(state=state))):
            for entry in page:
                if entry.host == host and entry.destination in names:
                    found.setdefault(entry.destination, []).append(entry.delivery_id)
    return found


def _who_is_away(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Say which of these destinations cannot be asked now, and why."""
    from ingestd.daemon.settings import client_of
    from ingestd.dicomweb import DicomWebError
    from ingestd.sender import probe_profile

    away = {}
    for name in names:
        with client_of(config.destinations[name]) as client:
            try:
                probe_profile(client)
            except DicomWebError as error:
                away[name] = str(error)
    return away


def _but(away: Container[str], asked: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {name: ids for name, ids in asked.items() if ids and name not in away}


def _states(ledger: Ledger, asked: list[int]) -> Iterator[State]:
    from ingestd.ledger import queries

    for start in range(0, len(asked), 1000):
        yield from (row.state for row in queries.unproven_rows(ledger, asked[start : start + 1000]))


def _waiting(ledger: Ledger, asked: Mapping[str, list[int]]) -> bool:
    return any(state in _UNPROVEN for ids in asked.values() for state in _states(ledger, ids))


def _what_became(ledger: Ledger, asked: list[int], error: str | None) -> Settled:
    counts = Counter(_states(ledger, asked))
    waiting = sum(counts.pop(state, 0) for state in _UNPROVEN)
    return Settled(states={str(state): count for state, count in counts.items()}, waiting=waiting, error=error)


def _ask_ourselves(config: Config, asked: Mapping[str, list[int]], deadline: float) -> None:
    """Run the daemon's rooms without inboxes, and without sending, until these rows, by destination, are settled."""
    from ingestd.daemon import Daemon
    from ingestd.sender import probe_profile

    set_up_logs(config)
    daemon = Daemon(config, policies=())
    try:
        daemon.gates.claims.shut("reconcile")
        daemon.progress.flushes = True
        for server in map(daemon.workers.servers.__getitem__, asked):
            server.sender.profile = server.sender.profile or probe_profile(server.client)
        daemon.start()
        stages, ledger = daemon.stages, daemon.ledger
        asking = [stages.servers[name].verification for name in asked]
        daemon.loop.run_until(
            lambda: all(stage.is_idle for stage in asking) and not _waiting(ledger, asked), deadline=deadline
        )
    finally:
        daemon.close()


def _full(config: Config, names: list[str], *, share: float, budget: timedelta, as_json: bool) -> int:
    from .audit import audit_all

    set_up_logs(config)
    told = None if as_json else _told_study
    ends_at = boottime() + budget.total_seconds()
    reports: dict[str, Report] = {}
    for name in names:
        left = timedelta(seconds=ends_at - boottime())
        reports[name] = report = audit_all(config, name, share=share, budget=left, progress=told)
        if not as_json:
            if len(config.destinations) > 1:
                click.echo(f"{name}:")
            _tell(report)
    if as_json:
        # One destination alone is told as it always was.
        plains = {name: report.as_plain() for name, report in reports.items()}
        print_json(plains[names[0]] if len(config.destinations) == 1 else {"destinations": plains})
    return _end_of(reports, several=len(config.destinations) > 1)


def _end_of(reports: dict[str, Report], *, several: bool) -> ExitCode:
    if broken := [
        f"{name}: {report.error}" if several else report.error for name, report in reports.items() if report.error
    ]:
        raise Stop(ExitCode.TIMEOUT, f"the audit broke off: {'; '.join(broken)}")
    if not all(report.is_complete for report in reports.values()):
        return ExitCode.TIMEOUT
    found = any(each.here_only or each.different or each.failed_but_there for each in reports.values())
    return ExitCode.NEEDS_PERSON if found else ExitCode.DONE


def _told_study(done: int, of: int) -> None:
    if done % 100 == 0 or done == of:
        click.echo(f"  {done} of {counted(of, 'study', 'studies')}", err=True)


def _tell(report: Report) -> None:
    studies = counted(report.studies_known, "study", "studies")
    agree = counted(report.agree, "instance agrees", "instances agree")
    click.echo(f"audited {report.studies} of {studies}: {agree}")
    if report.compared:
        click.echo(f"content compared: {report.compared}")
    _list(
        "only here (absent on the server)", [f"{row.delivery_id}  {row.identity.sop_uid}" for row in report.here_only]
    )
    _list("different content", [f"{row.delivery_id}  {row.identity.sop_uid}" for row in report.different])
    _list("FAILED here, and there with the same content", [f"{row.delivery_id}" for row in report.failed_but_there])
    _list("not told (ask again later)", [f"{row.delivery_id}  {row.identity.sop_uid}" for row in report.not_told])
    _list("only there, in studies of ours", [one.sop_uid for one in report.there_only])
    _list("studies only there", report.studies_there_only)
    if report.failed_but_there:
        click.echo(as_typed("`ingestd retry ID` has these compared once more and confirmed, without a post"))
    if report.here_only:
        click.echo(as_typed("what was absent twice is DELETED now: `ingestd status --state DELETED`"))
    if not report.is_complete and not report.error:
        click.echo("the time was over first: give it more with --timeout")


def _list(title: str, lines: list[str]) -> None:
    if lines:
        click.echo(f"{title}: {len(lines)}")
        tell_first(lines, plain, rest=" (--json has all)")
