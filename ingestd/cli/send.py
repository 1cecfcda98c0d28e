"""``ingestd send``: files or folders once, from where they lie, with a progress bar; run again, it goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import bar
from .common import ExitCode, Stop, config_option, json_option, keep_secrets, load_config, need_owner, one_destination
from .output import plain
from .run import DurationType, begin_log

if TYPE_CHECKING:
    from ingestd.daemon import Daemon


@click.command("send", short_help="Send files or folders once, leave them where they are, and say what became of them.")
@config_option
@json_option
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--to", multiple=True, metavar="NAME", help="To this destination, whatever the rules say; once for each.")
@click.option("--timeout", type=DurationType(), default="1d", show_default=True, help="Give up after this long.")
def command(
    *, config: Path | None, as_json: bool, paths: tuple[Path, ...], to: tuple[str, ...], timeout: timedelta
) -> int:
    """Send files or folders once, leave them where they are, and say what became of them.

    Everything goes through the ledger as with the daemon, and may run beside it: each file is checked, sent with its
    study, and followed until the server shows it. Interrupted or run again, it goes on where it stopped and sends
    nothing twice. It reads as the user who calls it, and needs the ledger to be that user's. With `--to` all of it goes
    there, and so does what was sent from there before, to elsewhere.

    On a terminal a bar stands in the place of the log, which `2>send.log` keeps.
    """
    from ingestd.daemon import run_once, sending_config, sending_policies
    from ingestd.ledger import queries

    keep_secrets()
    settings = load_config(config)
    for name in to:
        one_destination(settings, name)
    need_owner(settings.spool.path)
    need_owner(settings.ledger_file)
    _refuse_own_folders(paths, settings.spool.path)
    try:
        policies = sending_policies(paths)
    except FileNotFoundError as error:
        raise Stop(ExitCode.CONFIGURATION, f"there is no {plain(error.filename)}; nothing was sent") from None
    sending = sending_config(settings)
    from .run_summary import look_back, tell

    names = {policy.name: policy.only for policy in policies}
    left_alone: dict[str, int] = {}
    has_bar = not as_json and sys.stdout.isatty()
    with ExitStack() as stack:
        log = None
        if has_bar and sys.stderr.isatty():  # the bar's own terminal
            log = stack.enter_context(Path(os.devnull).open("w", encoding="ascii"))
        begin_log(settings, stream=log)
        draw = stack.enter_context(bar.shown(policies)) if has_bar else None

        def watch(daemon: Daemon) -> None:
            took_all = daemon.stages.admission.is_idle
            if draw is not None:
                draw(
                    daemon.ledger,
                    daemon.stages.alarms.standing,
                    at_once=took_all and not queries.unfinished(daemon.ledger),
                )
            if took_all:
                left_alone.update(_left_alone(daemon))

        result = run_once(sending, timeout=timeout, policies=policies, named=paths, to=to, watch=watch)
    outcome = look_back(sending, result, inboxes=names, left_alone=left_alone)
    tell(outcome, as_json=as_json)
    return outcome.code


def _left_alone(daemon: Daemon) -> dict[str, int]:
    sums = {"ignored": 0, "not_regular": 0, "unreadable": 0}
    for report in daemon.workers.inboxes.reports():
        sums["ignored"] += report.ignored
        sums["not_regular"] += report.not_regular
        sums["unreadable"] += report.unreadable
    return sums


def _refuse_own_folders(paths: Sequence[Path], spool: Path) -> None:
    for path in paths:
        real = Path(os.path.realpath(path))
        if real.is_relative_to(os.path.realpath(spool)) or Path(os.path.realpath(spool)).is_relative_to(real):
            raise Stop(ExitCode.CONFIGURATION, f"{plain(path)} is, or has in it, ingestd's own spool; name another")
