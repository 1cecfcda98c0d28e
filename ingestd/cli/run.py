"""``ingestd run``: the daemon, for ever or once."""

from __future__ import annotations

import secrets
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from .common import ExitCode, config_option, host_of, in_words, json_option, keep_secrets, load_config, need_owner

if TYPE_CHECKING:
    from ingestd.config import Config


class DurationType(click.ParamType[timedelta]):
    """A duration with its unit, as in the configuration."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it, or say what is expected."""
        from ingestd.config import parse_duration

        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


@click.command("run", short_help="Watch the folders and send what arrives: the daemon.")
@config_option
@json_option
@click.option("--once", is_flag=True, help="Take in what is there, send it, see it proven, and end.")
@click.option(
    "--timeout",
    type=DurationType(),
    default="15m",
    show_default=True,
    help="With --once: give up after this long. What is on its way then stays so, and is gone on with next time.",
)
def command(*, config: Path | None, as_json: bool, once: bool, timeout: timedelta) -> int:
    """Watch the folders and send what arrives, until it is told to stop.

    SIGTERM and Ctrl-C finish the requests on their way (shutdown_grace) and end; SIGHUP reads the configuration again
    and keeps the old one if the new one is wrong. Nothing is lost by any way of ending it, kill -9 included.

    With --once it ends when everything that was waiting, and everything it took in, is settled: 0, or 1 when some of
    these files need a person, or 3 when the time was over first.
    """
    keep_secrets()
    settings = load_config(config)
    need_owner(settings.spool.path)
    begin_log(settings)
    if once:
        return _once(settings, timeout, as_json=as_json)
    from ingestd.daemon import run_forever, tell_crash

    try:
        run_forever(settings, reread=lambda: load_config(config), adopt=begin_log)
    except Exception as error:
        if in_words(error)[0] is ExitCode.INTERNAL:
            # The journal gets the place in the code; the line that follows is for whoever stands at a terminal.
            tell_crash()
        raise
    return ExitCode.DONE


def begin_log(config: Config, *, stream: TextIO | None = None) -> None:
    """Set up the log, on stderr or ``stream``, and say in it which configuration holds."""
    import structlog

    set_up_logs(config, stream=stream)
    structlog.get_logger().info("config.read", config=str(config.file))


def set_up_logs(config: Config, *, stream: TextIO | None = None) -> None:
    """Send every line through the filter; by the spool's own secret id, studies keep their short names for good."""
    from ingestd import logs
    from ingestd.inbox import Spool

    logs.configure(level=config.logging.level, form=config.logging.format, uids=config.logging.uids, stream=stream)
    # One that several machines share is made by whoever asks the ledger first.
    host = Spool(config.spool.path).host if config.ledger_file is not None else host_of(config.spool.path)
    logs.set_key((host or secrets.token_hex()).encode())


def _once(config: Config, timeout: timedelta, *, as_json: bool) -> int:
    from ingestd.daemon import once_policies, run_once

    from .run_summary import look_back, tell

    result = run_once(config, timeout=timeout, policies=once_policies(config))
    outcome = look_back(config, result)
    tell(outcome, as_json=as_json)
    return outcome.code
