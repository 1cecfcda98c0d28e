"""``ingestd workers``: who works on the ledger, at what, who stands by, and who ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .asker import how_to_start
from .common import ExitCode, config_option, host_of, json_option, ledger_for_reading, load_config
from .output import ago, plain, print_json
from .working import at_work, does, unreached_by, worker_as_plain

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.ledger import Worker

    from .tables import Block, Cell

# One that cannot start is started again every few seconds, all day.
_MOST_SHOWN = 50
_ORDER = ("works", "stands_by", "barred", "silent", "gone", "ended")


@click.command("workers", short_help="Show who works on a ledger in PostgreSQL, at what, and who ended.")
@config_option
@json_option
def command(*, config: Path | None, as_json: bool) -> int:
    """Show who works on a ledger in PostgreSQL, at what, who stands by, and who ended within a day.

    Each start of `run`, `run --once` or `send` is a worker with a number of its own. Those that `run` share the work:
    each inbox is taken from by one, one proves and removes, and all send. Where one ends, or writes nothing for its
    lease, the others go on in its place. One stands by where it may not begin yet. Of a destination of which it gets no
    answer for three leases, one says so. `Wrote` is by the database's clock: whoever lives writes six times in its
    lease at the least. A `send` that ended by itself, and what a process was before it read its configuration anew, is
    only in --json.

    An SQLite ledger has one daemon, which is told.
    """
    settings = load_config(config)
    if settings.ledger_file is not None:
        return _only_daemon(settings, as_json=as_json)
    from ingestd.ledger import queries

    with ledger_for_reading(settings) as ledger:
        workers = sorted(ledger.workers() or (), key=lambda worker: _ORDER.index(does(worker)))
        spools = {host: str(path) for host, path in queries.spools(ledger).items()}
    if as_json:
        plains = [worker_as_plain(worker) | {"spool": spools.get(worker.host)} for worker in workers]
        print_json({"config": settings.file, "ledger": settings.ledger_name, "workers": plains})
        return ExitCode.DONE
    from .tables import blank, facts, paragraph, show, whole

    of_send = host_of(settings.spool.for_send)
    last = {(each.machine, each.process): each.id for each in sorted(workers, key=attrgetter("id"))}
    # A `send` that is over has told its own end, and a process that began anew (by another configuration) goes on.
    workers = [
        each
        for each in workers
        if each.why_ended != "stopped" or (each.host != of_send and each.id == last[each.machine, each.process])
    ]
    head = facts([("Configuration", whole(settings.file)), ("Ledger", whole(settings.ledger_name))])
    show(head, blank, _table(settings, workers[:_MOST_SHOWN], spools, of_send))
    if len(workers) > _MOST_SHOWN:
        show(paragraph(f"... and {len(workers) - _MOST_SHOWN} more (--json has all)"))
    if not any(does(worker) == "works" for worker in workers):
        show(paragraph(f"nobody works (start it: {how_to_start()})"))
    return ExitCode.DONE


def _only_daemon(config: Config, *, as_json: bool) -> int:
    work = at_work(config)
    if as_json:
        print_json({"config": config.file, "ledger": config.ledger_name, "workers": None, "daemon": work.as_plain()})
        return ExitCode.DONE
    runs = f"it runs, {work.daemon}" if work.daemon else work.unseen or f"it does not run (start it: {how_to_start()})"
    click.echo(f"a ledger in SQLite has one daemon, and nobody stands by: {runs}")
    return ExitCode.DONE


def _table(config: Config, workers: Sequence[Worker], spools: Mapping[str, str], of_send: str) -> Block:
    from .tables import table, whole

    now = datetime.now(UTC)
    hosts = {worker.host for worker in workers}
    folders = {inbox.spool_name: str(inbox.path) for inbox in config.inboxes}
    # Installations that share nothing but the ledger.
    several = len(hosts - {of_send}) > 1
    rows = [
        (
            worker.id,
            plain(worker.machine),
            worker.process,
            *([whole(spools.get(worker.host, "?"))] * several),
            f"{ago((now - worker.began_at).total_seconds())} ago",
            f"{ago(worker.silent.total_seconds())} ago",
            ago(worker.lease.total_seconds()),
            _doing(worker, now, sends=worker.host == of_send, folders=folders),
        )
        for worker in workers
    ]
    heads = ("Worker>", "Machine", "Process>", *(["Spool"] * several), "Began", "Wrote", "Lease", "Does")
    return table(heads, rows)


def _doing(worker: Worker, now: datetime, *, sends: bool, folders: Mapping[str, str]) -> Cell:
    from ingestd.ledger import UPKEEP, inbox_claimed

    from .tables import Cell

    doing = does(worker)
    if worker.ended_at is not None:
        since = ago((now - worker.ended_at).total_seconds())
        return Cell(f"ended {since} ago: {worker.why_ended}", "dim")
    inboxes = [folders.get(name, name) for each in worker.claims if (name := inbox_claimed(each))]
    parts = [
        "sends" if sends else "works",
        *([f"has been silent for {ago(worker.silent.total_seconds())}"] if worker.is_late else []),
        *([f"takes from {', '.join(inboxes)}"] if inboxes else []),
        *(["proves and removes"] if UPKEEP in worker.claims else []),
        *([unreached_by(worker)] if worker.unreached else []),
    ]
    words = {
        "works": plain("; ".join(parts)),
        "stands_by": "stands by",
        "barred": f"takes nothing over: {plain(worker.bars)}",
        "silent": "silent: whoever takes over ends it",
        "gone": "its process is gone",
    }
    styles = {"works": "yellow" if worker.unreached or worker.is_late else "green", "stands_by": "cyan"}
    return Cell(words[doing], styles.get(doing, "yellow"))
