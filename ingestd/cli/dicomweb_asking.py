"""The operations of ``ingestd dicomweb`` that ask: searches and the change feed."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestd.clocks import boottime

from .common import ExitCode, json_option
from .dicomweb_common import operation, pairs, print_lines, print_results, tell_found
from .output import clock, end_if_unread, plain
from .run import DurationType

if TYPE_CHECKING:
    from ingestd.dicomweb import ChangeFeedEntry, DicomWebClient

# A kill may repeat what was printed in this time; the cursor is too large to be written for each entry.
KEEP_EVERY_SECONDS = 1.0

COLUMNS = {
    "studies": {
        "0020000D": "study",
        "00080020": "date",
        "00080061": "modalities",
        "00100020": "patient id",
        "00100010": "patient",
        "00080050": "accession",
        "00081030": "description",
        "00201208": "instances",
    },
    "series": {
        "0020000D": "study",
        "0020000E": "series",
        "00080060": "modality",
        "0008103E": "description",
        "00201209": "instances",
    },
    "instances": {
        "0020000D": "study",
        "0020000E": "series",
        "00080018": "instance",
        "00080016": "class",
        "00200013": "number",
    },
}


@click.command()
@click.argument("level", type=click.Choice(list(COLUMNS)))
@click.argument("filters", nargs=-1, metavar="[KEYWORD=VALUE]...")
@click.option("--study", metavar="UID", help="In this study only (for series and instances).")
@click.option("--series", metavar="UID", help="In this series only (for instances).")
@click.option("--include", multiple=True, metavar="KEYWORD", help="Return this attribute too, or `all`. Repeatable.")
@click.option("--fuzzy", is_flag=True, help="Match names by the beginnings of their parts.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many results.")
@click.option("--all", "everything", is_flag=True, help="All results, however many.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Leave out the first so many.")
@json_option
@operation
def search(
    client: DicomWebClient,
    *,
    level: str,
    filters: tuple[str, ...],
    study: str | None,
    series: str | None,
    include: tuple[str, ...],
    fuzzy: bool,
    limit: int,
    everything: bool,
    offset: int,
    as_json: bool,
) -> int:
    """Search for studies, series or instances; code 1 if nothing matches.

    \b
    ingestd dicomweb search studies PatientID=4711 StudyDate=20260101-20260131
    ingestd dicomweb search instances --study 1.2.3 --all --json
    """  # noqa: D301 - \b is the sign that click wants, not a backslash
    options: Any = {
        "filters": pairs(filters),
        "include": include,
        "fuzzy": True if fuzzy else None,
        "offset": offset,
        "most": None if everything else limit,
    }
    if not everything:
        options["page_size"] = min(limit, 200)
    if level == "studies":
        if study or series:
            raise click.UsageError("--study and --series go with series and instances")
        found = client.find_studies(**options)
    elif level == "series":
        if series:
            raise click.UsageError("--series goes with instances")
        found = client.find_series(study_uid=study, **options)
    else:
        if series and not study:
            raise click.UsageError("--series needs --study")
        found = client.find_instances(study_uid=study, series_uid=series, **options)
    items = list(found)
    columns = dict(COLUMNS[level])
    columns |= {tag: name for tag, name in _included(include).items() if tag not in columns}
    code = tell_found(items, partial(print_results, columns=columns), as_json=as_json)
    if items and not as_json:
        click.echo(f"{len(items)} {level}", err=True)
    return code


def _included(names: tuple[str, ...]) -> dict[str, str]:
    from ingestd.dicomweb import tag_of

    columns: dict[str, str] = {}
    for name in names:
        try:
            columns[tag_of(name)] = name
        except ValueError:
            continue  # "all", or what only the server knows
    return columns


@click.command("patient-studies")
@click.argument("patient_id")
@json_option
@operation
def patient_studies(client: DicomWebClient, *, patient_id: str, as_json: bool) -> int:
    """List the Study Instance UIDs of a patient, one a line; code 1 if there are none."""
    from ingestd.dicomweb import uid_of

    found = client.find_studies({"PatientID": patient_id}, include=["StudyInstanceUID"])
    uids = [uid_of(item, "StudyInstanceUID") for item in found]
    return tell_found(uids, print_lines, as_json=as_json)


@click.command()
@click.option("--since", metavar="TIME", help="From this time on: 2026-11-21T10:00:00Z, or 2h for two hours ago.")
@click.option("--cursor", type=click.Path(path_type=Path), help="Go on where this file says, and keep it up to date.")
@click.option("--follow", is_flag=True, help="Wait for more until interrupted.")
@click.option("--every", type=DurationType(), default=timedelta(seconds=5), help="With --follow: ask so often (5s).")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many.")
@json_option
@operation
def changes(
    client: DicomWebClient,
    *,
    since: str | None,
    cursor: Path | None,
    follow: bool,
    every: timedelta,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show the change feed, oldest first.

    With --json each entry is a line of JSON. Entries that become visible late are shown when they do, each once, also
    over restarts with --cursor.
    """
    from ingestd.dicomweb import Follower

    try:
        if cursor is not None and cursor.exists():
            follower = Follower(client, cursor.read_text(encoding="ascii"))
        elif since is not None:
            follower = Follower.from_time(client, _moment(since))
        else:
            follower = client.follow()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    stop = threading.Event()
    if not follow:
        stop.set()
    kept_at = boottime()
    try:
        for shown, entry in enumerate(_entries(follower, every, stop), 1):
            _print_entry(entry, as_json=as_json)
            if cursor is not None and boottime() - kept_at > KEEP_EVERY_SECONDS:
                _keep(cursor, follower.cursor)
                kept_at = boottime()
            if shown == limit:
                break
    finally:  # also when interrupted: what was printed is not printed again
        if cursor is not None:
            _keep(cursor, follower.cursor)


def _entries(follower: Any, every: timedelta, stop: threading.Event) -> Iterator[ChangeFeedEntry]:
    if stop.is_set():
        yield from follower.once()
    else:
        yield from follower.entries(every=every, stop=stop)


def _keep(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="ascii")
    temporary.replace(path)


def _moment(text: str) -> datetime:
    if text[-1:] in "smhd" and text[:-1].isdecimal():
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}[text[-1]]
        return datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * unit)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError("--since is a time such as 2026-11-21T10:00:00Z, or 30m, 2h, 1d ago") from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.astimezone().astimezone(UTC)


def _fields(entry: ChangeFeedEntry) -> dict[str, object]:
    return {
        "sequence": entry.sequence,
        "at": entry.at.isoformat().replace("+00:00", "Z"),
        "action": entry.action,
        "state": entry.state,
        "study_uid": entry.study_uid,
        "series_uid": entry.series_uid,
        "sop_uid": entry.sop_uid,
        "partition": entry.partition,
    }


def _print_entry(entry: ChangeFeedEntry, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_fields(entry)))
    else:
        uids = f"{entry.study_uid}/{entry.series_uid}/{entry.sop_uid}"
        click.echo(plain(f"{entry.sequence} {clock(entry.at)} {entry.action} {entry.state} {uids}"))
    sys.stdout.flush()
    end_if_unread()


@click.command()
@json_option
@operation
def latest(client: DicomWebClient, *, as_json: bool) -> int:
    """Show the newest entry of the change feed.

    Nothing, and exit code 1, if the server has never stored anything.
    """
    entry = client.change_feed_latest()
    if entry is None:
        click.echo("the server has never stored anything", err=True)
        return ExitCode.NEEDS_PERSON
    _print_entry(entry, as_json=as_json)
    return ExitCode.DONE
