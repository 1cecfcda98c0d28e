"""The commands. Each has a module of its own that is imported when it is called, and imports what is heavy itself.

``ingestd --help`` therefore answers at once: it needs click and the table below, nothing else (a test holds this).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from ingestd import __version__

from .asker import typed
from .common import EXIT_CODES, end
from .output import outlive_readers

# name: (module, what it does). The module has the command under the attribute ``command``.
COMMANDS = {
    "demo": ("ingestd.cli.demo", "See it work: real files, an embedded server, and what became of each file."),
    "run": ("ingestd.cli.run", "Watch the folders and send what arrives: the daemon."),
    "send": ("ingestd.cli.send", "Send files or folders once, leave them where they are, and say what became of them."),
    "status": ("ingestd.cli.status", "Show what is where: counts, studies, files, the server, the folders."),
    "explain": ("ingestd.cli.explain", "Tell the whole history of a file, and what to do next."),
    "retry": ("ingestd.cli.retry", "Give files that need a person another try."),
    "resolve": ("ingestd.cli.resolve", "Decide what becomes of a file that ingestd may not decide about."),
    "reconcile": ("ingestd.cli.reconcile", "Ask the server now whether it has what it should have."),
    "destination": ("ingestd.cli.destination", "Say that a destination moved, or let go of what waits for one."),
    "route": ("ingestd.cli.route", "Have files that wait go where the rules say now."),
    "config": ("ingestd.cli.config", "Say that this configuration holds for all machines that share a ledger."),
    "workers": ("ingestd.cli.workers", "Show who works on a ledger in PostgreSQL, at what, and who ended."),
    "check": (
        "ingestd.cli.check",
        "Look at configuration, folders, disk, ledger, token and server: every problem at once.",
    ),
    "backup": ("ingestd.cli.backup", "Copy the ledger, its key and the spool's id, beside a running daemon."),
    "ledger": ("ingestd.cli.ledger", "Move a filled ledger from its SQLite file into a PostgreSQL server."),
    "emulate": ("ingestd.cli.emulate", "Run the embedded server, a stand-in for the Azure DICOM service."),
    "dicomweb": ("ingestd.cli.dicomweb", "Speak to a DICOMweb server by hand, one operation at a time."),
}
# Objects made and not freed before the collector looks at the youngest: more than any command makes by importing.
_YOUNG_OBJECTS = 200_000


class Commands(click.Group):
    """The group that imports a command's module when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order a newcomer needs them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return its command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)  # every module in the table has one
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes."""
        del ctx
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), sentence) for code, sentence in EXIT_CODES.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="The configuration. Else: $INGESTD_CONFIG, ./config.yaml, /etc/ingestd/config.yaml.",
)
@click.version_option(__version__, "--version", prog_name="ingestd", message="%(prog)s %(version)s")
@click.pass_context
def commands(ctx: click.Context, config: Path | None) -> None:
    """Take DICOM files from watched folders to a DICOMweb server, and prove that they arrived.

    Start with `ingestd demo`. Then copy config.example.yaml to config.yaml, and: `ingestd check`, `ingestd run`.
    """
    ctx.obj = config
    if ctx.invoked_subcommand == "run":
        # It would end us; kept back, it is heard as soon as the daemon stands, which then reads what changed meanwhile.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code; nothing ever shows a traceback, save with INGESTD_DEBUG=1."""
    if arguments is None:
        # The process is ours. Looking for garbage among all that imports make, which stays, took a third of `status`,
        # half of it at the very end; whoever goes on for long says how often to look.
        gc.set_threshold(_YOUNG_OBJECTS)
        atexit.register(gc.freeze)
        outlive_readers()
    typed(sys.argv[1:] if arguments is None else arguments)
    end(lambda: commands.main(args=arguments, prog_name="ingestd", standalone_mode=False))
