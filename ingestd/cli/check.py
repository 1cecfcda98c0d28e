"""``ingestd check``: every problem at once, before it is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .asker import as_typed
from .common import ExitCode, config_option, json_option, keep_secrets, load_config
from .output import plain, print_json

if TYPE_CHECKING:
    from .check_result import CheckResult

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "bad": ("PROBLEM", "red")}


@click.command(
    "check", short_help="Look at configuration, folders, disk, ledger, token and server: every problem at once."
)
@config_option
@json_option
@click.option("--for-start", is_flag=True, help="Only judge whether ingestd can start; the server is not asked.")
def command(*, config: Path | None, as_json: bool, for_start: bool) -> int:
    """Look at configuration, folders, disk, ledger, token and server, and say every problem at once.

    Run it as the user that ingestd runs as. It ends with 0 when all is well (notes allowed), 2 when something has to be
    mended, 77 when that is a matter of permission, and 3 when all is well here but the server does not answer: ingestd
    then takes files in, and sends them when it is back.

    With --for-start it ends with an error only for what keeps ingestd from starting (configuration, inboxes, spool and
    ledger, judged as `run` judges them), and with the code that `run` would: 75 when another one has the spool.
    A folder that is not there, a full disk or a missing token are told, too, but ingestd starts, says so in its status,
    and goes on with what it can do. That is what the systemd unit runs first.
    """
    from ingestd.config import ConfigError

    keep_secrets()
    try:
        settings = load_config(config)
    except ConfigError as error:
        if not as_json:
            raise
        told = [{"name": "configuration", "result": "bad", "text": str(problem)} for problem in error.problems]
        print_json({"config": error.file, "checks": told, "exit_code": int(ExitCode.CONFIGURATION)})
        return ExitCode.CONFIGURATION
    from .checks import check_all

    findings = check_all(settings, for_start=for_start)
    found = list(findings if as_json else _telling(findings))
    code = _exit_code(found, for_start=for_start)
    if as_json:
        plains = [finding.as_plain() for finding in found]
        print_json({"config": settings.file, "checks": plains, "exit_code": int(code)})
    else:
        click.echo(f"\n{_sum(found, for_start=for_start)}")
    return code


def _telling(findings: Iterable[CheckResult]) -> Iterator[CheckResult]:
    """Print each finding as it comes: a server that does not answer takes its time."""
    for finding in findings:
        mark, colour = _MARKS[finding.result]
        whose = finding.destination and f"{finding.destination}: "
        click.echo(f"{click.style(f'{mark:<8}', fg=colour)} {finding.name:<12} {whose}{as_typed(plain(finding.text))}")
        if finding.advice:
            click.echo(f"{'':<21} -> {as_typed(plain(finding.advice))}")
        yield finding


def _counted(findings: list[CheckResult], *, for_start: bool) -> list[CheckResult]:
    return [finding for finding in findings if finding.result == "bad" and (finding.blocks or not for_start)]


def _exit_code(findings: list[CheckResult], *, for_start: bool) -> ExitCode:
    codes = {finding.code for finding in _counted(findings, for_start=for_start)}
    for code in (ExitCode.NO_PERMISSION, ExitCode.CONFIGURATION, ExitCode.BUSY, ExitCode.TIMEOUT):
        if code in codes:
            return code
    return ExitCode.DONE


def _sum(findings: list[CheckResult], *, for_start: bool) -> str:
    bad = sum(finding.result == "bad" for finding in findings)
    if not bad:
        return "ready"
    words = f"{bad} to be mended"
    return words if _counted(findings, for_start=for_start) else f"{words}; ingestd can start"
