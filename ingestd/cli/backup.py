"""``ingestd backup``: what cannot be had again, copied while the daemon runs, for a backup program to take along."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import copyfile

import click

from .asker import as_typed
from .frame import (
    ExitCode,
    Stop,
    config_option,
    in_bytes,
    json_option,
    ledger_for_reading,
    load_config,
    plain,
    print_json,
    tell_config,
)


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
    from ingestd.ledger import put

    settings = tell_config(load_config(config))
    folder = folder.absolute()
    if folder.resolve() == settings.ledger_file.parent.resolve():
        raise Stop(ExitCode.CONFIGURATION, f"the ledger itself lies in {folder}; name another folder, on another disk")
    with ledger_for_reading(settings) as ledger:
        key_copied = ledger.back_up(_made(_made(folder) / "ledger"))
    # By the spool's id a ledger that is put back knows the files that it speaks of as its own.
    for spool, place in ((settings.spool.path, "spool"), (settings.spool.for_send, "spool/send")):
        if (spool / "spool.id").exists():
            put(_made(folder / place) / "spool.id", partial(copyfile, spool / "spool.id"))
    size = (folder / "ledger" / settings.ledger_file.name).stat().st_size
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
