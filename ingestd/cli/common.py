"""What every command shares: exit codes, how an error reaches a person, the configuration option, reading the ledger.

Nothing heavy is imported here at the top; see ``ingestd.cli``.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from ingestd.error_location import code_locations
from ingestd.fs.places import may_open

from .asker import as_typed, become, owner_of, user_name
from .output import ReaderGone, plain

if TYPE_CHECKING:
    from ingestd.config import Config, Destination
    from ingestd.ledger import DestinationStatus, Ledger

F = TypeVar("F", bound=Callable[..., Any])
Row = TypeVar("Row")


class ExitCode(IntEnum):
    """What a command's end says to the script around it."""

    DONE = 0
    NEEDS_PERSON = 1
    CONFIGURATION = 2
    TIMEOUT = 3
    INTERNAL = 70
    BUSY = 75
    NO_PERMISSION = 77


EXIT_CODES = {
    ExitCode.DONE: "Done.",
    ExitCode.NEEDS_PERSON: "Done, but some files need a person (clutter that is no DICOM does not count), "
    "or could not be taken in.",
    ExitCode.CONFIGURATION: "The command line, the configuration or what it names is wrong; nothing was done.",
    ExitCode.TIMEOUT: "Not done in time, or the server, or the ledger's, gave no answer.",
    ExitCode.INTERNAL: "A fault in ingestd itself.",
    ExitCode.BUSY: "Another ingestd has the spool; try again later.",
    ExitCode.NO_PERMISSION: "No permission; the message says whom to become, or whose it should be.",
}


class Stop(Exception):
    """Ends the command: one line of what, why and what to do, and an exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def end(run: Callable[[], object]) -> NoReturn:
    """Run a command and exit with its code, each error told in words."""
    try:
        outcome = run()
        sys.stdout.flush()
    except ReaderGone:
        sys.exit(ExitCode.DONE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("ingestd: interrupted", err=True)
        sys.exit(130)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - a person gets a sentence, whatever went wrong
        if os.environ.get("INGESTD_DEBUG") == "1":
            traceback.print_exc()
        code, message = in_words(error)
        click.echo(_for_journal(f"ingestd: {as_typed(message)}"), err=True)
        sys.exit(code)
    sys.exit(outcome if isinstance(outcome, int) else ExitCode.DONE)


def _for_journal(message: str) -> str:
    """Mark what ended a service as an error, where journald reads along."""
    if "JOURNAL_STREAM" in os.environ:
        from ingestd.logs.journal import goes_to_journal, marked

        if goes_to_journal(sys.stderr):
            return marked(message, "error")
    return message


def in_words(error: Exception) -> tuple[ExitCode, str]:
    """Say what an exception means to the person at the terminal, and which exit code it is.

    Rooms are looked for among the modules already imported: an error of theirs cannot come without them.
    """
    if isinstance(error, Stop):
        return error.code, str(error)
    if _is_a(error, "ingestd.config", "ConfigError"):
        if isinstance(error.__cause__, PermissionError):
            return ExitCode.NO_PERMISSION, f"{error}\n  {become(error.__cause__.filename)}"
        return ExitCode.CONFIGURATION, str(error)
    if _is_a(error, "ingestd.ledger", "LedgerAway"):
        return ExitCode.TIMEOUT, str(error)
    if any(_is_a(error, "ingestd.ledger", name) for name in ("LedgerBusy", "LedgerFenced")):
        return ExitCode.BUSY, str(error)
    if _is_a(error, "ingestd.inbox", "SpoolInUse"):
        return ExitCode.BUSY, str(error)
    if _is_a(error, "ingestd.inbox", "SpoolError") or _is_a(error, "ingestd.ledger", "LedgerError"):
        cause = error.__cause__
        place = cause.filename if isinstance(cause, PermissionError) else getattr(error, "file", None)
        return (ExitCode.NO_PERMISSION, f"{error}; {become(place)}") if place else (ExitCode.CONFIGURATION, str(error))
    if _is_a(error, "ingestd.ledger", "RefusedMove") or _is_a(error, "ingestd.inbox", "InboxError"):
        return ExitCode.CONFIGURATION, str(error)
    if _is_a(error, "ingestd.dicomweb", "DicomWebError"):
        return ExitCode.TIMEOUT, str(error)
    if isinstance(error, PermissionError):
        return ExitCode.NO_PERMISSION, f"no permission for {error.filename}; {become(error.filename)}"
    if isinstance(error, OSError) and error.strerror:
        about = f" ({error.filename})" if error.filename else ""
        return ExitCode.CONFIGURATION, f"{error.strerror.lower()}{about}"
    return ExitCode.INTERNAL, (
        f"a fault in ingestd: {type(error).__name__} {_place(error)}; nothing in the ledger is half done. "
        "INGESTD_DEBUG=1 shows more (it may show names of patients)"
    )


def _is_a(error: Exception, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def _place(error: Exception) -> str:
    frames = code_locations(error)
    ours = [place for place in frames if place.startswith("ingestd")]
    return f"at {(ours or frames or ['?'])[-1]}"


def config_option(command: F) -> F:
    """Give a command the option -c, before or after its name; it is passed on as ``config``."""
    option = click.option(
        "-c",
        "--config",
        "config",
        type=click.Path(path_type=Path),
        callback=_own_or_groups,
        help="The configuration file.",
    )
    return option(command)


def _own_or_groups(ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
    above = ctx.find_root().obj
    return value or (above if isinstance(above, Path) else None)


destination_option = click.option("--destination", metavar="NAME", help="Only this one of several `destinations:`.")


class _Text(click.ParamType[str]):
    """Text that is not empty: a script's unset variable would choose everything."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value if value.strip() else self.fail("it is empty; without this option all are chosen", param, ctx)


TEXT = _Text()
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def load_config(path: Path | None) -> Config:
    """Read the configuration, or raise ConfigError with every problem."""
    from ingestd.config import load

    return load(path)


def destinations_named(config: Config, name: str | None) -> dict[str, Destination]:
    """Return the destination of this name, or all where none was named; Stop where there is none of it."""
    if name is None:
        return dict(config.destinations)
    if name not in config.destinations:
        there = ", ".join(config.destinations)
        raise Stop(ExitCode.CONFIGURATION, f"no destination is called {plain(name)}; there are {there}")
    return {name: config.destinations[name]}


def one_destination(config: Config, name: str | None) -> tuple[str, Destination]:
    """Return the destination that is meant, with its name; Stop where there are several and none was named."""
    found = list(destinations_named(config, name).items())
    if len(found) > 1:
        raise Stop(ExitCode.CONFIGURATION, f"say which with --destination; there are {', '.join(config.destinations)}")
    return found[0]


def is_left_out(config: Config, known: DestinationStatus) -> bool:
    """Whether the configuration names neither this destination of the ledger nor its address."""
    urls = {url.rstrip("/") for url in config.addresses.values()}
    return known.name not in config.addresses and known.url not in urls


def number_of(ledger: Ledger, name: str | None) -> int | None:
    """Return the ledger's number of the destination of this name, None where none was named; Stop where it has none."""
    if name is not None and name not in ledger.destinations:
        there = ", ".join(ledger.destinations)
        raise Stop(ExitCode.CONFIGURATION, f"the ledger has no destination {plain(name)}; it has {there}")
    return None if name is None else ledger.destinations[name]


def tell_config(config: Config) -> Config:
    """Say on stderr which configuration a command goes by, where neither its answer nor its log does."""
    click.echo(f"configuration: {plain(config.file)}", err=True)
    return config


def need_owner(path: Path | None) -> None:
    """Stop unless what is at ``path`` is ours: writing as another user leaves files that the daemon cannot use.

    This holds for root, too. None is a ledger that is no file: its server says who may.
    """
    if path is None:
        return
    try:
        owner = path.stat().st_uid
    except FileNotFoundError:
        return
    if owner != os.geteuid():
        raise Stop(
            ExitCode.NO_PERMISSION, f"{path} belongs to {owner_of(path)} and you are {user_name()}; {become(path)}"
        )


def keep_secrets() -> None:
    """Before a token is read or a file is sent: whatever becomes of this process, no core file shows them."""
    from ingestd.reader.cores import leave_no_core

    leave_no_core()


@contextmanager
def ledger_for_reading(config: Config) -> Iterator[Ledger]:
    """Open the ledger for looking at; raises LedgerMissing where there is none, Stop where we may not."""
    from ingestd.ledger import Ledger

    file = config.ledger_file
    for place in (file.parent, file) if file is not None else ():
        if _is_closed(place):
            raise Stop(ExitCode.NO_PERMISSION, f"no permission to read the ledger {file}; {become(place)}")
    with Ledger.open(config.ledger, read_only=True, key=config.spool.search_key) as ledger:
        yield ledger


@contextmanager
def ledger_for_moves(config: Config) -> Iterator[Ledger]:
    """Open the ledger for a person's moves, beside a running daemon or without one."""
    from ingestd.ledger import Ledger

    file = config.ledger_file
    if file is None:
        need_owner(config.spool.path)
    elif _exists(file):
        need_owner(file)
    elif not os.access(file.parent, os.X_OK) and _exists(file.parent):
        raise Stop(ExitCode.NO_PERMISSION, f"no permission to read the ledger {file}; {become(file.parent)}")
    with Ledger.open(config.ledger, create=False, key=config.spool.search_key) as ledger:
        ledger.serve(config.addresses)
        yield ledger


def pages(ask: Callable[..., Sequence[Row]]) -> Iterator[Sequence[Row]]:
    """Go through all that a query of the ledger lists, page by page: ``ask(after=...)`` gives the next one."""
    last: Row | None = None
    while page := ask(after=last):
        yield page
        last = page[-1]


def _is_closed(path: Path) -> bool:
    try:
        return not may_open(path)
    except OSError:
        return False  # not there, or a disk that fails: who opens the ledger says so


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def expect_yes(question: str) -> None:
    """Ask at the terminal; raises Exit unless the answer is yes, and Stop where stdin ends without one."""
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as abort:
        if abort.__context__ is None:  # the answer was no
            click.echo("nothing was done", err=True)
            raise click.exceptions.Exit(130) from None
        if not isinstance(abort.__context__, EOFError):
            raise
        click.echo(err=True)  # the question's line
        text = "nobody is here to answer, and nothing was done; --yes answers beforehand"
        raise Stop(ExitCode.CONFIGURATION, text) from None


def host_of(spool: Path) -> str:
    """Return the host that the rows of this spool have in the ledger; "" where we may not read it."""
    try:
        return (spool / "spool.id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def missing_spool(config: Config) -> str:
    """Say that the spool is not where the configuration has it, so that nobody sees who runs; "" where it is.

    Also "" where there is no ledger file either: nothing has ever run.
    """
    path, file = config.spool.path, config.ledger_file
    if any(_exists(place / "spool.id") for place in (path, config.spool.for_send)):
        return ""
    if file is not None and not _exists(file):
        return ""
    only = "" if file is None else ", and whether an ingestd runs is only seen there"
    return f"the spool is not at {plain(path)}{only}"
