"""``ingestd backup``: what cannot be had again, copied while the daemon runs, for a backup program to take along."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

import click

from .asker import as_typed
from .common import ExitCode, Stop, config_option, json_option, ledger_for_reading, load_config, tell_config
from .output import in_bytes, plain, print_json

if TYPE_CHECKING:
    from ingestd.config import Config


@click.command("backup", short_help="Copy the ledger, its key and the spool's id, beside a running daemon.")
@config_option
@json_option
@click.argument("folder", type=click.Path(path_type=Path))
def command(*, config: Path | None, as_json: bool, folder: Path) -> int:
    """Copy the ledger, its key and the spool's id into FOLDER, in place of former copies, beside a running daemon.

    In FOLDER, which is made where it is missing, `ledger` has what belongs into the ledger's folder and `spool` what
    belongs into the spool, for this user alone. Each copy takes its former's place only when it is whole and on the
    disk, and a damaged ledger leaves the former copy as it is. The files in the spool are not copied.
    """
    from ingestd.fs.durable import write_whole

    settings = tell_config(load_config(config))
    file = settings.ledger_file
    if file is None:
        raise Stop(
            ExitCode.CONFIGURATION,
            f"the ledger {settings.ledger_name} is backed up by the means of its server (pg_basebackup, pg_dump); copy"
            f" beside it {settings.spool.path / 'spool.id'} and {settings.spool.search_key}",
        )
    folder = folder.absolute()
    _expect_apart(folder, settings, file)
    with ledger_for_reading(settings) as ledger, _one_at_a_time(file.parent):
        key_copied = ledger.back_up(_made(_made(folder) / "ledger"))
        # By the spool's id a ledger that is put back knows the files that it speaks of as its own.
        for spool, place in ((settings.spool.path, "spool"), (settings.spool.for_send, "spool/send")):
            if (spool / "spool.id").exists():
                write_whole(_made(folder / place) / "spool.id", partial(copyfile, spool / "spool.id"))
    size = (folder / "ledger" / file.name).stat().st_size
    if as_json:
        print_json({"folder": folder, "ledger_bytes": size, "key_copied": key_copied})
    else:
        key = ", its key" if key_copied else ""
        click.echo(f"copied into {plain(folder)}: the ledger ({in_bytes(size)}){key} and the spool's id")
    if not key_copied:
        click.echo(as_typed("the key was left out: it is not the one of this ledger; see `ingestd status`"), err=True)
        return ExitCode.NEEDS_PERSON
    return ExitCode.DONE


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _expect_apart(folder: Path, config: Config, ledger: Path) -> None:
    """Refuse a folder in which a copy would take the place of what is copied, or be taken in as a file."""
    places = [place.resolve() for place in (folder, folder / "ledger", folder / "spool", folder / "spool" / "send")]
    if not {ledger.parent.resolve(), ledger.resolve().parent}.isdisjoint(places[:2]):
        raise Stop(ExitCode.CONFIGURATION, f"the ledger itself lies in {folder}; name another folder, on another disk")
    for other in (config.spool.path, *(inbox.path for inbox in config.inboxes)):
        if any(place.is_relative_to(other.resolve()) for place in places):
            raise Stop(ExitCode.CONFIGURATION, f"{folder} and {other} are not apart; name another folder")


@contextmanager
def _one_at_a_time(ledgers_folder: Path) -> Iterator[None]:
    """Hold off other backups of this ledger: its own folder is on a disk on which locks work, FOLDER may not be."""
    descriptor = os.open(ledgers_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Stop(ExitCode.BUSY, "another backup of this ledger is at work; try again when it has ended") from None
    try:
        yield
    finally:
        os.close(descriptor)
