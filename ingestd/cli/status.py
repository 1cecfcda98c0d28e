"""``ingestd status``: what is where, read from the ledger beside a running daemon, in constant time."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestd.locks import who_runs

from .asker import as_typed, how_to_start
from .frame import (
    ExitCode,
    Stop,
    ago,
    config_option,
    host_of,
    in_bytes,
    in_files,
    json_option,
    ledger_for_reading,
    load_config,
    missing_spool,
    plain,
    print_json,
    stopped_send,
)
from .stopped import stopped_because

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ingestd.config import Config
    from ingestd.ledger import Alarm, Choice, Entry, Ledger, Status, StudySummary
    from ingestd.lifecycle import Jump

STATES = (
    "PENDING",
    "SENDING",
    "UNCERTAIN",
    "STORED",
    "CONFIRMED",
    "FAILED",
    "REJECTED",
    "DUPLICATE",
    "CONFLICT",
    "DELETED",
    "DISCARDED",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the command line asks for beyond the sums."""

    study: str | None
    accession: str | None
    patient_id: str | None
    modality: str | None
    state: str | None
    since: datetime | None
    files: bool
    limit: int

    @property
    def is_anything(self) -> bool:
        """Whether studies or files are to be listed at all."""
        narrowed = (self.study, self.accession, self.patient_id, self.modality, self.state, self.since)
        return self.files or any(value is not None for value in narrowed)

    @property
    def lists_files(self) -> bool:
        """Whether files are listed rather than studies: a file set aside need not have a study."""
        return self.files or self.study is not None or self.state is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Everything one look found."""

    config: Config
    at: datetime
    pid: int | None
    status: Status | None
    studies: tuple[StudySummary, ...] = ()
    files: tuple[Entry, ...] = ()
    more: bool = False
    waiting_for_send: int = 0
    stopped: tuple[Alarm, ...] = ()

    @property
    def spool_away(self) -> str:
        """Say why nobody can see whether a daemon runs, "" where it is seen."""
        return missing_spool(self.config) if self.pid is None else ""

    @property
    def oldest_at(self) -> datetime | None:
        """Since when the oldest unconfirmed file waits, those that no daemon can put down included."""
        lying = [line.since for line in self.stopped if line.kind in {"no_daemon", "ledger_failed"}]
        known = self.status.oldest_unconfirmed_at if self.status else None
        return min([*lying, *([known] if known is not None else [])], default=None)


def _instant(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    from ingestd.config import parse_duration

    try:
        return datetime.now(UTC) - parse_duration(value)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter("neither a duration like 24h nor a date like 2026-03-01 or 2026-03-01T08:30") from None
    return found.astimezone(UTC)  # without a zone it is local time


@click.command("status", short_help="Show what is where: counts, studies, files, the server, the folders.")
@config_option
@json_option
@click.option("--study", metavar="UID", help="The files of this study.")
@click.option("--accession", metavar="NUMBER", help="Studies with this accession number (exactly as in the files).")
@click.option("--patient-id", metavar="ID", help="Studies of this patient id (exactly as in the files).")
@click.option("--modality", metavar="CT", help="Studies of this modality.")
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), help="Files in this state.")
@click.option(
    "--since", callback=_instant, metavar="WHEN", help="Changed since: 24h, 7d, 2026-03-01, 2026-03-01T08:30."
)
@click.option("--files", is_flag=True, help="List files instead of studies.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="List at most so many.")
@click.option("--watch", is_flag=True, help="Look again each second until interrupted.")
@click.option("--exit-code", is_flag=True, help="End with 1 when files need a person or cannot go on (for monitoring).")
def command(*, config: Path | None, as_json: bool, watch: bool, exit_code: bool, **wanted: Any) -> int:
    """Show what is where.

    Without a filter: how many files are in which state, what needs a person and why, whether the server is being sent
    to, and how each folder is doing. With a filter: the studies or files it chooses, newest change first.

    Patient ids and accession numbers are kept only as keyed hashes, so they must be given exactly.
    """
    chosen = Wanted(**wanted)
    if watch and not as_json:
        return _watch(load_config(config), chosen)
    picture = look(load_config(config), chosen)
    if as_json:
        print_json(as_plain(picture, chosen))
    else:
        show(picture, chosen)
    calls = bool(picture.stopped or (picture.status and picture.status.needs_person))
    return ExitCode.NEEDS_PERSON if exit_code and calls else ExitCode.DONE


def look(config: Config, wanted: Wanted) -> Picture:
    """Read everything once; a ledger that is not there yet is an empty picture."""
    from ingestd.ledger import LedgerMissing

    pid = who_runs(config.spool.path)
    try:
        with ledger_for_reading(config) as ledger:
            return _read(config, ledger, wanted, pid)
    except LedgerMissing:
        at = datetime.now(UTC)
        return Picture(
            config=config, at=at, pid=pid, status=None, stopped=stopped_because(config, None, pid=pid, rows=0, at=at)
        )


def _read(config: Config, ledger: Ledger, wanted: Wanted, pid: int | None) -> Picture:
    status = ledger.status()
    sender = stopped_send(config)
    studies: list[StudySummary] = []
    files: list[Entry] = []
    if wanted.is_anything:
        choice = _choice(ledger, wanted)
        if wanted.lists_files:
            files = ledger.entries(choice, limit=wanted.limit + 1)
        else:
            studies = ledger.studies(choice, limit=wanted.limit + 1)
    at = datetime.now(UTC)
    host = host_of(config.spool.path)
    rows = ledger.unfinished(host=host) if host and pid is None else 0
    waiting_for_send = ledger.unfinished(host=sender) if sender else 0
    return Picture(
        config=config,
        at=at,
        pid=pid,
        status=status,
        studies=tuple(studies[: wanted.limit]),
        files=tuple(files[: wanted.limit]),
        more=len(studies) > wanted.limit or len(files) > wanted.limit,
        waiting_for_send=waiting_for_send,
        stopped=stopped_because(config, status, pid=pid, rows=rows, waiting_for_send=waiting_for_send, at=at),
    )


def _choice(ledger: Ledger, wanted: Wanted) -> Choice:
    from ingestd.ledger import Choice
    from ingestd.lifecycle import State

    return Choice(
        study_uid=wanted.study,
        accession_hash=ledger.search_hash("accession", wanted.accession) if wanted.accession else None,
        patient_hash=ledger.search_hash("patient", wanted.patient_id) if wanted.patient_id else None,
        modality=wanted.modality.upper() if wanted.modality else None,
        state=State(wanted.state.upper()) if wanted.state else None,
        since=wanted.since,
    )


def as_plain(picture: Picture, wanted: Wanted) -> dict[str, Any]:
    """Return the picture as JSON values; these names are a contract."""
    status = picture.status
    oldest = picture.oldest_at
    called = status.oldest_needs_person_at if status else None
    value: dict[str, Any] = {
        "config": picture.config.file,
        "states": dict.fromkeys(STATES, 0) | ({str(s): n for s, n in status.states.items()} if status else {}),
        "healthy": not picture.stopped,
        "stopped_because": [asdict(line) for line in picture.stopped],
        "needs_person": status.needs_person if status else 0,
        "held": status.held if status else 0,
        "clutter": status.clutter if status else 0,
        "studies_waiting": status.studies_waiting if status else 0,
        "waiting_for_send": picture.waiting_for_send,
        "oldest_unconfirmed_at": oldest,
        "oldest_unconfirmed_seconds": (picture.at - oldest).total_seconds() if oldest else None,
        "oldest_needs_person_at": called,
        "oldest_needs_person_seconds": (picture.at - called).total_seconds() if called else None,
        "clock_jumps": [
            {"at": jump.at, "seconds": jump.by.total_seconds()} for jump in (status.jumps if status else ())
        ],
        "destination": _destination(picture),
        "daemon": {"running": None if picture.spool_away else picture.pid is not None, "pid": picture.pid},
        "inboxes": [
            {"name": inbox.inbox, "path": inbox.path, "alarm": inbox.alarm, "watching": inbox.watching}
            | {"counts": dict(inbox.counts), "at": inbox.at}
            for inbox in (status.inboxes if status else ())
        ],
        "ledger": {"url": picture.config.ledger, "exists": status is not None},
    }
    if wanted.is_anything:
        if wanted.lists_files:
            value["files"] = [entry_as_plain(entry) for entry in picture.files]
        else:
            value["studies"] = [_study_as_plain(study) for study in picture.studies]
        value["more"] = picture.more
    return value


def _destination(picture: Picture) -> dict[str, Any]:
    found = picture.status.destination if picture.status else None
    if found is None:
        names = ("paused_until", "pause_cause", "pause_note", "paused_since", "last_ok_at")
        return {"url": picture.config.destination.url, "kind": None, "paused": False} | dict.fromkeys(names)
    return asdict(found) | {"paused": found.paused_since is not None}


def entry_as_plain(entry: Entry) -> dict[str, Any]:
    """Return a row of the ledger as JSON values."""
    from .advice import next_step

    identity = entry.identity
    return {
        "id": entry.entry_id,
        "state": str(entry.state),
        "reason": str(entry.reason) if entry.reason else None,
        "note": entry.note,
        "next_step": next_step(entry.state, entry.reason, entry_id=entry.entry_id, held=entry.hold_reason),
        "study_uid": identity.study_uid if identity else None,
        "series_uid": identity.series_uid if identity else None,
        "sop_uid": identity.sop_uid if identity else None,
        "sop_class_uid": entry.sop_class_uid or None,
        "modality": entry.modality or None,
        "station": entry.station or None,
        "inbox": entry.inbox,
        "source": entry.relative_path,
        "file": str(entry.file) if entry.file else None,
        "size_bytes": entry.source.size_bytes,
        "transfer_syntax": entry.content.transfer_syntax if entry.content else None,
        "digest": entry.content.digest if entry.content else None,
        "notes": list(entry.notes),
        "priority": entry.priority,
        "admitted_at": entry.admitted_at,
        "changed_at": entry.changed_at,
        "stored_at": entry.stored_at,
        "confirmed_at": entry.confirmed_at,
        "removed_at": entry.removed_at,
        "attempts": entry.attempts,
        "charged": entry.charged,
        "next_attempt_at": entry.next_attempt_at,
        "next_check_at": entry.next_check_at,
        "held": entry.hold_reason,
        "holder_id": entry.holder_id,
        "failure_reason": entry.failure_reason,
        "warning_reason": entry.warning_reason,
        "failed_attributes": list(entry.failed_attributes),
        "reencoded": entry.reencoded,
        "compared": entry.compared,
    }


def _study_as_plain(study: StudySummary) -> dict[str, Any]:
    return asdict(study) | {
        "states": {str(state): count for state, count in study.states.items() if count},
        "modalities": list(study.modalities),
    }


def _watch(config: Config, wanted: Wanted) -> int:
    from rich.live import Live

    from .tables import console

    if not sys.stdout.isatty():
        raise Stop(
            ExitCode.CONFIGURATION, "--watch needs a terminal; leave it out, or use --json in a loop of your own"
        )
    out = console()
    try:
        with Live(_drawing(look(config, wanted), wanted), console=out, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_drawing(look(config, wanted), wanted), refresh=True)
                time.sleep(1)
    except KeyboardInterrupt:
        return ExitCode.DONE


def show(picture: Picture, wanted: Wanted) -> None:
    """Print the picture for a person."""
    from .tables import console

    out: Console = console()
    out.print(_drawing(picture, wanted))


def _drawing(picture: Picture, wanted: Wanted) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_head(picture), *_stopped(picture)]
    if picture.status is None:
        parts.append(Text(f"\nThere is no ledger at {plain(picture.config.ledger_file)} yet: nothing was taken in."))
    elif wanted.is_anything:
        parts.append(_files(picture) if wanted.lists_files else _studies(picture))
        if picture.more:
            parts.append(
                Text(f"... and more; show up to 1000 with --limit, or narrow the choice (showing {wanted.limit}).")
            )
    else:
        parts += [_states(picture.status), *_needs_person(picture.status), *_inboxes(picture)]
    return Group(*parts)


def _head(picture: Picture) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    destination = _destination(picture)
    if destination["paused"]:
        left = (destination["paused_until"] - picture.at).total_seconds() if destination["paused_until"] else 0
        state = Text(f"paused, {destination['pause_cause']}: {plain(destination['pause_note'])}", style="yellow")
        state.append(f"; tried again in {ago(left)}" if left > 0 else "; being tried again")
    elif destination["last_ok_at"]:
        state = Text(f"answered {ago((picture.at - destination['last_ok_at']).total_seconds())} ago")
    else:
        state = Text("not sent to yet")
    grid.add_row("Configuration", Text(plain(picture.config.file)))
    grid.add_row("Server", Text(plain(destination["url"])))
    grid.add_row("", state)
    idle = picture.spool_away or f"not running (start it: {how_to_start()})"
    running = f"running, process {picture.pid}" if picture.pid else idle
    grid.add_row("Daemon", Text(running, style="" if picture.pid else "yellow"))
    oldest = picture.oldest_at
    age = ago((picture.at - oldest).total_seconds()) if oldest else "none waits"
    grid.add_row("Oldest unconfirmed", Text(age))
    called = picture.status.oldest_needs_person_at if picture.status else None
    if called:
        grid.add_row("Needs a person", Text(f"since {ago((picture.at - called).total_seconds())}", style="yellow"))
    for jump in (picture.status.jumps if picture.status else ())[:1]:
        grid.add_row("Clock", Text(_in_words(jump, picture.at), style="yellow"))
    if picture.waiting_for_send:
        files = in_files(picture.waiting_for_send)
        grid.add_row(
            "Waits for send", Text(as_typed(f"{files}: run `ingestd send` on the folder again"), style="yellow")
        )
    return grid


def _in_words(jump: Jump, now: datetime) -> str:
    way = "back" if jump.by < timedelta(0) else "forward"
    since = ago((now - jump.at).total_seconds())
    return f"was set {way} by {ago(abs(jump.by).total_seconds())}, {since} ago; nothing waits for it"


def _stopped(picture: Picture) -> list[RenderableType]:
    from rich.text import Text

    paths = {inbox.inbox: inbox.path for inbox in (picture.status.inboxes if picture.status else ())}
    lines: list[RenderableType] = []
    for line in picture.stopped:
        where = f" ({plain(paths.get(line.about, line.about))})" if line.about else ""
        since = ago((picture.at - line.since).total_seconds())
        lines.append(Text(f"Stopped because {plain(line.note)}{where}, since {since}", style="red"))
        lines.append(Text(f"  -> {plain(line.next_step)}"))
    return [Text(""), *lines] if lines else []


def _states(status: Status) -> RenderableType:
    from .advice import MEANING
    from .tables import styled, table

    rows = [(styled(str(state)), status.states.get(state, 0), meaning) for state, meaning in MEANING.items()]
    return table(("\nState", "\nFiles>", "\nMeaning"), [row for row in rows if row[1] or row[0].plain == "CONFIRMED"])


def _needs_person(status: Status) -> list[RenderableType]:
    from ingestd.lifecycle import Reason, needs_person

    from .advice import next_step
    from .tables import styled, table

    sums: dict[tuple[str, str], int] = {}
    for count in status.counts:
        if needs_person(count.state, count.reason) and count.rows:
            key = (str(count.state), count.reason)
            sums[key] = sums.get(key, 0) + count.rows
    if not sums and not status.held:
        return []
    from ingestd.lifecycle import State

    rows = [
        (styled(state), reason, rows, next_step(State(state), Reason(reason) if reason in set(Reason) else None))
        for (state, reason), rows in sorted(sums.items())
    ]
    if status.held:
        rows.append((styled("PENDING"), "held", status.held, as_typed("see `ingestd explain` of one of them")))
    title = f"\nNeeds a person: {status.needs_person}" + (f" (and {status.clutter} clutter)" if status.clutter else "")
    return [
        table(
            ("State", "Reason", "Files>", as_typed("What to do (ID: from `ingestd status --state ...`)")),
            rows,
            title=title,
        )
    ]


def _inboxes(picture: Picture) -> list[RenderableType]:
    from rich.text import Text

    from .tables import table

    status = picture.status
    assert status is not None  # _drawing has looked
    rows = [
        (
            inbox.path,
            inbox.watching,
            _words(inbox.counts),
            Text(plain(inbox.alarm), style="red") if inbox.alarm else "ok",
            ago((picture.at - inbox.at).total_seconds()) + " ago" if inbox.at else "",
        )
        for inbox in status.inboxes
    ]
    return [table(("Folder", "Found by", "In it", "Health", "Looked"), rows, title="\nFolders")] if rows else []


_IN_WORDS = {
    "waiting_settle": "just arrived",
    "waiting_incomplete": "incomplete so far",
    "waiting_writer": "still being written",
    "in_hand": "being taken in",
    "dicomdir": "DICOMDIR",
    "not_regular": "links, pipes or devices",
    "stale_ignored": "of them old",
    "too_deep": "folders too deep",
    "other_device": "folders mounted from elsewhere",
}
# What counts on; the rest is of the moment, or of the last complete scan.
_SINCE_THE_START = {
    "files_seen": "seen",
    "vanished": "vanished",
    "found_by_scan": "found by scan only",
    "overflows": "event overflows",
}


def _words(counts: Mapping[str, int]) -> str:
    """Say what is in a folder now, and what came since the daemon started looking at it."""
    now = [
        f"{count} {_IN_WORDS.get(name, name.replace('_', ' '))}"
        for name, count in counts.items()
        if count and name not in _SINCE_THE_START and name != "scans"
    ]
    since = [f"{count} {words}" for name, words in _SINCE_THE_START.items() if (count := counts.get(name))]
    said = ", ".join(now) or "nothing"
    return said + (f"; since the start {', '.join(since)}" if since else "")


def _studies(picture: Picture) -> RenderableType:
    from .tables import table

    rows = [
        (
            study.study_uid,
            " ".join(study.modalities),
            ", ".join(f"{count} {state}" for state, count in study.states.items() if count),
            in_bytes(study.size_bytes),
            _when(study.changed_at, picture.at),
        )
        for study in picture.studies
    ]
    return table(("\nStudy", "\n", "\nFiles", "\nSize>", "\nChanged"), rows, title="" if rows else "\nNo such study.")


def _files(picture: Picture) -> RenderableType:
    from .tables import styled, table

    rows = [
        (
            entry.entry_id,
            styled(str(entry.state)),
            entry.reason or "",
            entry.modality,
            in_bytes(entry.source.size_bytes),
            _when(entry.changed_at, picture.at),
            entry.relative_path,
        )
        for entry in picture.files
    ]
    headings = ("\nID>", "\nState", "\nReason", "\n", "\nSize>", "\nChanged", "\nFrom")
    return table(headings, rows, title="" if rows else "\nNo such file.")


def _when(at: datetime, now: datetime) -> str:
    age = now - at
    if age < timedelta(days=1):
        return f"{ago(age.total_seconds())} ago"
    return at.astimezone().strftime("%Y-%m-%d %H:%M")
