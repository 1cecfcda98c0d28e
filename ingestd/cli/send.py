"""``ingestd send``: files or folders once, from where they lie, with a progress bar; run again, it goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingestd.clocks import boottime

from .frame import ExitCode, Stop, config_option, json_option, keep_secrets, load_config, need_owner, plain
from .run import DurationType, begin_log

if TYPE_CHECKING:
    from ingestd.daemon import Daemon

Draw = Callable[["Daemon | None"], None]
# The bar is drawn this often at most; each drawing asks the ledger for its counts.
DRAW_EVERY = timedelta(milliseconds=250)


@click.command("send", short_help="Send files or folders once, leave them where they are, and say what became of them.")
@config_option
@json_option
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--timeout", type=DurationType(), default="1d", show_default=True, help="Give up after this long.")
def command(*, config: Path | None, as_json: bool, paths: tuple[Path, ...], timeout: timedelta) -> int:
    """Send files or folders once, leave them where they are, and say what became of them.

    Everything goes through the ledger as with the daemon, and may run beside it: each file is checked, sent with its
    study, and followed until the server shows it. Interrupted or run again, it goes on where it stopped and sends
    nothing twice. It reads as the user who calls it, and needs the ledger to be that user's.
    """
    from ingestd.daemon import run_once, sending_config, sending_policies

    keep_secrets()
    settings = load_config(config)
    need_owner(settings.spool.path)
    need_owner(settings.ledger_file)
    _refuse_own_folders(paths, settings.spool.path)
    try:
        policies = sending_policies(paths)
    except FileNotFoundError as error:
        raise Stop(ExitCode.CONFIGURATION, f"there is no {plain(error.filename)}; nothing was sent") from None
    sending = sending_config(settings)
    from .outcome import look_back, tell

    names = {policy.name: policy.only for policy in policies}
    left_alone: dict[str, int] = {}
    with _watching(paths, names, shown=not as_json and sys.stdout.isatty()) as draw:
        # Inside, because the bar puts what is written to stderr above itself.
        begin_log(settings)

        def watch(daemon: Daemon) -> None:
            draw(daemon)
            if daemon.intake.is_idle:
                left_alone.update(_left_alone(daemon))

        result = run_once(sending, timeout=timeout, policies=policies, named=paths, watch=watch)
        if result.done:
            draw(None)
    outcome = look_back(sending, result, inboxes=names, left_alone=left_alone)
    tell(outcome, as_json=as_json)
    return outcome.code


def _left_alone(daemon: Daemon) -> dict[str, int]:
    sums = {"ignored": 0, "not_regular": 0, "unreadable": 0}
    for report in daemon.inboxes.reports():
        sums["ignored"] += report.ignored
        sums["not_regular"] += report.not_regular
        sums["unreadable"] += report.unreadable
    return sums


def _refuse_own_folders(paths: Sequence[Path], spool: Path) -> None:
    for path in paths:
        real = Path(os.path.realpath(path))
        if real.is_relative_to(os.path.realpath(spool)) or Path(os.path.realpath(spool)).is_relative_to(real):
            raise Stop(ExitCode.CONFIGURATION, f"{plain(path)} is, or has in it, ingestd's own spool; name another")


@dataclass(frozen=True, slots=True)
class Size:
    """Files and bytes."""

    files: int = 0
    size_bytes: int = 0


def count(paths: Sequence[Path]) -> Size:
    """Count what lies under these paths, as far as it can be seen; the bar's full length."""
    files = size_bytes = 0
    for path in {Path(os.path.abspath(path)) for path in paths}:  # noqa: PTH100 - a link stays the person's own way
        if not path.is_dir():
            files, size_bytes = files + 1, size_bytes + path.lstat().st_size
            continue
        for folder, _, names in os.walk(path):
            for name in names:
                try:
                    size_bytes += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - a million files
                except OSError:
                    continue
                files += 1
    return Size(files, size_bytes)


def settled(daemon: Daemon, names: Collection[str]) -> Size:
    """Say how much of these inboxes has come to an end, whatever end, in this run or before."""
    from ingestd.lifecycle import UNCONFIRMED

    ended = [row for row in daemon.ledger.status().counts if row.inbox in names and row.state not in UNCONFIRMED]
    return Size(sum(row.rows for row in ended), sum(row.size_bytes for row in ended))


@contextmanager
def _watching(paths: Sequence[Path], names: Collection[str], *, shown: bool) -> Iterator[Draw]:
    """Show a bar of files, bytes, rate and time left, fed by the daemon's ticks; None draws the end."""
    if not shown:
        yield lambda _daemon: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    total = count(paths)
    columns = (
        BarColumn(),
        TextColumn("{task.fields[files]} files"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    drawn_at = 0.0
    with Progress(*columns, console=Console(highlight=False)) as bar:
        task = bar.add_task("", total=total.size_bytes, files=f"0/{total.files}")

        def draw(daemon: Daemon | None) -> None:
            nonlocal drawn_at
            if daemon is None:
                bar.update(task, completed=total.size_bytes, files=f"{total.files}/{total.files}")
                return
            if boottime() - drawn_at < DRAW_EVERY.total_seconds():
                return
            drawn_at = boottime()
            done = settled(daemon, names)
            files = f"{min(done.files, total.files)}/{total.files}"
            bar.update(task, completed=min(done.size_bytes, total.size_bytes), files=files)

        yield draw
