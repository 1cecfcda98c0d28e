"""What every operation of ``ingestd dicomweb`` shares: which server, who we are, and how its answers are told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from .common import ExitCode, Stop, keep_secrets, load_config, one_destination, tell_config
from .output import plain, print_json

if TYPE_CHECKING:
    from ingestd.dicomweb import Auth, DicomWebClient

F = TypeVar("F", bound=Callable[..., Any])

_WIDEST = 120  # letters of a value beside its tag


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """Which server, and who we are to it: options of the group."""

    config: Path | None
    destination: str | None
    url: str | None
    token_file: Path | None
    token_env: str | None
    azure: str | None
    user: str | None
    password_file: Path | None
    connection_info: bool
    ca: Path | None
    cert: Path | None
    key: Path | None
    partition: str | None

    def open(self) -> DicomWebClient:
        """Return the client that the options or the configuration describe."""
        from ingestd.dicomweb import DicomWebClient, Tls

        keep_secrets()
        if self.url is None:
            if self._auth_options():
                raise click.UsageError("options for authentication go with --url; else the configuration says it all")
            from ingestd.daemon.settings import client_of

            _, server = one_destination(tell_config(load_config(self.config)), self.destination)
            client = client_of(server)
            if self.partition is None:
                return client
            raise click.UsageError("--partition goes with --url")
        if self.destination is not None:
            raise click.UsageError("--destination names one of the configuration, and --url another server")
        try:
            return DicomWebClient(
                self.url,
                auth=self._auth(),
                tls=Tls(ca=self.ca, client_certificate=self.cert, client_key=self.key),
                partition=self.partition,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    def _auth_options(self) -> list[object]:
        given = (self.token_file, self.token_env, self.azure, self.user, self.connection_info or None)
        return [option for option in given if option is not None]

    def _auth(self) -> Auth:
        from ingestd.dicomweb import AzureAuth, BasicAuth, BearerAuth, ConnectionInfo, NoAuth

        if len(self._auth_options()) > 1:
            raise click.UsageError("choose one way of authentication")
        if self.token_file is not None or self.token_env is not None:
            return BearerAuth(file=self.token_file, env=self.token_env)
        if self.azure is not None:
            return AzureAuth(self.azure)
        if self.user is not None:
            if self.password_file is None:
                raise click.UsageError("--user needs --password-file")
            return BasicAuth(self.user, password_file=self.password_file)
        if self.connection_info:
            try:
                return ConnectionInfo.from_environment().auth()
            except ValueError as error:
                raise click.UsageError(str(error)) from None
        return NoAuth()


class OperationGroup(click.Group):
    """Tells what a server's answer means, with its own words, and as an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the operations in the order they were added: those that everybody needs first."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the operation."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            stop = _in_words(error)
            if stop is None:
                raise
            raise stop from None


def _in_words(error: Exception) -> Stop | None:
    module = sys.modules.get("ingestd.dicomweb")
    if module is None or not isinstance(error, module.DicomWebError):
        return None
    kinds = (
        (module.NotAuthorized, ExitCode.NO_PERMISSION),
        (module.NotFound, ExitCode.NEEDS_PERSON),
        (module.Refused, ExitCode.CONFIGURATION),
        (module.MisconfiguredServer, ExitCode.CONFIGURATION),
        (module.FileChanged, ExitCode.NEEDS_PERSON),
    )
    code = next((code for kind, code in kinds if isinstance(error, kind)), ExitCode.TIMEOUT)
    said = plain(error.server_text.strip())
    return Stop(code, f"{error}; it says: {said}" if said else str(error))


def operation(function: F) -> F:
    """Give an operation the client as its first argument, closed afterwards."""

    def run(*args: Any, **kwargs: Any) -> Any:
        connection = click.get_current_context().find_object(ServerOptions)
        assert connection is not None, "operations stand below the group, which makes one"
        with connection.open() as client:
            return function(client, *args, **kwargs)

    return update_wrapper(run, function)  # type: ignore[return-value]  # the client is what the wrapper adds


def uids(*, least: int = 1) -> Callable[[F], F]:
    """Give a command the arguments STUDY [SERIES [INSTANCE]]."""

    def decorate(function: F) -> F:
        for number, name in reversed(list(enumerate(("study", "series", "instance")))):
            function = click.argument(name, required=number < least)(function)
        return function

    return decorate


def pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Read KEYWORD=VALUE arguments."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{plain(text)} is no KEYWORD=VALUE")
        found[name] = value
    return found


class Progress:
    """A progress bar on stderr where a person looks at it, nothing elsewhere."""

    def __init__(self, what: str, total: Callable[[], int | None] = lambda: None) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=total())

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, size_bytes: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, size_bytes)


def tell_found(
    items: Sequence[Any], show: Callable[[Any], None], *, as_json: bool, nothing: str = "nothing on the server matches"
) -> int:
    """Print what was found, as JSON or by ``show``; nothing found is said, and no good end of a search."""
    if as_json:
        print_json(items)
    elif items:
        show(items)
    else:
        click.echo(nothing, err=True)
    return ExitCode.DONE if items else ExitCode.NEEDS_PERSON


def print_lines(texts: Iterable[object]) -> None:
    for text in texts:
        click.echo(plain(text))


def text_of(element: Mapping[str, Any] | None) -> str:
    """Say an element's values in one line."""
    if not isinstance(element, Mapping):
        return ""
    values = element.get("Value")
    if not isinstance(values, list):
        return "(bulk data)" if "BulkDataURI" in element or "InlineBinary" in element else ""
    return "\\".join(_value(value) for value in values)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        names = [str(value[kind]) for kind in ("Alphabetic", "Ideographic", "Phonetic") if value.get(kind)]
        return "=".join(names) if names or not value else f"(item of {len(value)} elements)"
    return "" if value is None else str(value)


def print_dataset(item: Mapping[str, Any]) -> None:
    """Print a data set's elements, one a line."""
    from ingestd.dicomweb import keyword_of

    from .tables import show, table

    rows = []
    for tag, element in sorted(item.items()):
        text = plain(text_of(element))
        shown = text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
        rows.append((tag, keyword_of(tag), str(element.get("vr", "")), shown))
    show(table(["tag", "keyword", "VR", "value"], rows))


def print_results(items: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print search results; ``columns`` are tags and their headings, empty columns are left out."""
    from .tables import show, table

    used = {tag: heading for tag, heading in columns.items() if any(text_of(item.get(tag)) for item in items)}
    show(table(list(used.values()), [[text_of(item.get(tag)) for tag in used] for item in items]))
