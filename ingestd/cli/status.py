"""``ingestd status``: what is where, read from the ledger beside a running daemon, in constant time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestd.lifecycle import State

from .common import (
    TEXT,
    ExitCode,
    Stop,
    config_option,
    host_of,
    json_option,
    ledger_for_reading,
    load_config,
)
from .held import limits_of
from .output import plain, print_json
from .working import AtWork, at_work, worker_as_plain

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.ledger import Alarm, Choice, Entry, Ledger, Status, StudySummary


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusFilter:
    """What the command line asks for beyond the sums."""

    study: str | None
    accession: str | None
    patient_id: str | None
    modality: str | None
    state: str | None
    since: datetime | None
    destination: str | None
    files: bool
    limit: int

    @property
    def is_anything(self) -> bool:
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
    work: AtWork
    status: Status | None
    studies: tuple[StudySummary, ...] = ()
    files: tuple[Entry, ...] = ()
    more: bool = False
    unknown: str = ""  # why nothing can be chosen: the ledger does not know what was named
    waiting_for_send: int = 0
    stopped: tuple[Alarm, ...] = ()
    of_destination: str = ""  # whose sums these are; "": of all

    @property
    def names(self) -> dict[str, str]:
        """What the configuration calls its inboxes, those that it calls anything, by what the ledger calls them."""
        return {inbox.spool_name: inbox.name for inbox in self.config.inboxes if inbox.name}

    @property
    def oldest_at(self) -> datetime | None:
        """Since when the oldest unconfirmed file waits, those that no daemon can put down included."""
        # These stand since the oldest file that lies in a folder; since now: none does.
        kinds = {"no_daemon", "other_address", "destination_left_out", "ledger_failed"}
        lying = [line.since for line in self.stopped if line.kind in kinds and line.since < self.at]
        known = self.status.oldest_unconfirmed_at if self.status else None
        if self.of_destination:
            return known
        return min([*lying, *([known] if known is not None else [])], default=None)

    @property
    def destinations(self) -> list[dict[str, Any]]:
        """Say which servers there are and whether each is sent to, by the names of ``--json``.

        Those that the ledger knows come first, then those that only the configuration names.
        """
        found = self.status.destinations if self.status else ()
        named = {url.rstrip("/"): name for name, url in self.config.addresses.items()}
        names = set(self.config.addresses)
        # One that has another name there takes that, unless the ledger knows it already.
        new = {url for url, name in named.items() if name not in {each.name for each in found}}
        known = [
            asdict(each)
            | {"paused": each.paused_since is not None, "configured": each.name in names or each.url in new}
            | self._limits(each.name)
            for each in found
        ]
        met = {each.name for each in found} | {each.url for each in found}
        none = dict.fromkeys(
            ("paused_until", "pause_cause", "pause_note", "paused_since", "last_ok_at", "oldest_unconfirmed_at")
        )
        return known + [
            {"name": name, "url": url, "kind": None, "paused": False, "configured": True}
            | {"unconfirmed": 0, "unconfirmed_bytes": 0}
            | none
            | self._limits(name)
            for url, name in named.items()
            if not {name, url} & met
        ]

    def _limits(self, name: str) -> dict[str, Any]:
        return limits_of(self.config.destinations.get(name), self.at)


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
@click.option("--study", type=TEXT, metavar="UID", help="The files of this study.")
@click.option(
    "--accession", type=TEXT, metavar="NUMBER", help="Studies with this accession number (exactly as in the files)."
)
@click.option("--patient-id", type=TEXT, metavar="ID", help="Studies of this patient id (exactly as in the files).")
@click.option("--modality", type=TEXT, metavar="CT", help="Studies of this modality.")
@click.option("--state", type=click.Choice(list(map(str, State)), case_sensitive=False), help="Files in this state.")
@click.option(
    "--since", callback=_instant, metavar="WHEN", help="Changed since: 24h, 7d, 2026-03-01, 2026-03-01T08:30."
)
@click.option("--destination", metavar="NAME", help="Count and list what goes to this destination only.")
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
    chosen = StatusFilter(**wanted)
    if watch and not as_json:
        return _watch(load_config(config), chosen)
    picture = look(load_config(config), chosen)
    if as_json:
        print_json(as_plain(picture, chosen))
    else:
        from .status_screen import drawing
        from .tables import show

        show(*drawing(picture, chosen))
    if picture.unknown:
        return ExitCode.CONFIGURATION
    calls = bool(picture.stopped or (picture.status and picture.status.needs_person))
    return ExitCode.NEEDS_PERSON if exit_code and calls else ExitCode.DONE


def look(config: Config, wanted: StatusFilter) -> Picture:
    """Read everything once; a ledger that is not there yet is an empty picture."""
    from ingestd.ledger import LedgerMissing

    from .stopped import stopped_because

    try:
        with ledger_for_reading(config) as ledger:
            _expect(wanted.destination, ledger.destinations)
            return _read(config, ledger, wanted)
    except LedgerMissing:
        _expect(wanted.destination, config.destinations)
        at, work = datetime.now(UTC), at_work(config)
        return Picture(
            config=config,
            at=at,
            work=work,
            status=None,
            unknown=unknown(study=wanted.study, accession=wanted.accession, patient_id=wanted.patient_id),
            stopped=stopped_because(config, None, work, rows=0, at=at),
        )


def _expect(name: str | None, known: Iterable[str]) -> None:
    if name is not None and name not in known:
        raise Stop(ExitCode.CONFIGURATION, f"no destination is called {plain(name)}: {', '.join(map(plain, known))}")


def _read(config: Config, ledger: Ledger, wanted: StatusFilter) -> Picture:
    from ingestd.ledger import queries

    from .stopped import stopped_because

    whole = queries.status(ledger)
    status = whole if wanted.destination is None else queries.status(ledger, at=wanted.destination)
    work = at_work(config, ledger)
    studies: list[StudySummary] = []
    files: list[Entry] = []
    if wanted.is_anything:
        choice = _choice(ledger, wanted)
        if wanted.lists_files:
            files = queries.entries(ledger, choice, limit=wanted.limit + 1)
        else:
            studies = queries.studies(ledger, choice, limit=wanted.limit + 1)
    nothing = ""
    if wanted.is_anything and not files and not studies:
        named = _choice(ledger, replace(wanted, modality=None, state=None, since=None))
        if not queries.entries(ledger, named, limit=1):
            nothing = unknown(study=wanted.study, accession=wanted.accession, patient_id=wanted.patient_id)
    at = datetime.now(UTC)
    host = host_of(config.spool.path)
    rows = queries.unfinished(ledger, host=host) if host and work.daemon is None else 0
    waiting_for_send = queries.unfinished(ledger, host=work.stopped_send) if work.stopped_send else 0
    if work.stopped_send and not waiting_for_send:
        # What the last one met with keeps nothing any more; it may have been killed, or its medium be gone for good.
        whole = replace(whole, alarms=queries.alarms(ledger, but_of=work.stopped_send))
    return Picture(
        config=config,
        at=at,
        work=work,
        status=status,
        studies=tuple(studies[: wanted.limit]),
        files=tuple(files[: wanted.limit]),
        more=len(studies) > wanted.limit or len(files) > wanted.limit,
        unknown=nothing,
        waiting_for_send=waiting_for_send,
        stopped=stopped_because(config, whole, work, rows=rows, waiting_for_send=waiting_for_send, at=at),
        of_destination=wanted.destination or "",
    )


def unknown(*, study: str | None = None, accession: str | None = None, patient_id: str | None = None) -> str:
    """Say that the ledger knows nothing by these names; "" where none was given. The names may be a patient's."""
    hashed = [name for name, value in (("accession number", accession), ("patient id", patient_id)) if value]
    names = [f"study ({plain(study)})"] * bool(study) + hashed
    if not names:
        return ""
    exactly = "; it is kept as a keyed hash, and found only as it stands in the files" if hashed else ""
    return f"no file in the ledger has this {' and this '.join(names)}{exactly}"


def _choice(ledger: Ledger, wanted: StatusFilter) -> Choice:
    from ingestd.ledger import Choice

    return Choice(
        study_uid=wanted.study,
        accession_hash=ledger.search_key.hash("accession", wanted.accession) if wanted.accession else None,
        patient_hash=ledger.search_key.hash("patient", wanted.patient_id) if wanted.patient_id else None,
        modality=wanted.modality.upper() if wanted.modality else None,
        state=State(wanted.state.upper()) if wanted.state else None,
        since=wanted.since,
        destination=ledger.destinations[wanted.destination] if wanted.destination else None,
    )


def as_plain(picture: Picture, wanted: StatusFilter) -> dict[str, Any]:
    """Return the picture as JSON values; these names are a contract."""
    status = picture.status
    oldest = picture.oldest_at
    called = status.oldest_needs_person_at if status else None
    value: dict[str, Any] = {
        "config": picture.config.file,
        "states": dict.fromkeys(map(str, State), 0) | ({str(s): n for s, n in status.states.items()} if status else {}),
        "healthy": not picture.stopped,
        "stopped_because": [asdict(line) for line in picture.stopped],
        "needs_person": status.needs_person if status else 0,
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
        "destination": picture.destinations[0],
        "destinations": picture.destinations,
        "daemon": picture.work.as_plain(),
        "workers": (
            None
            if picture.work.workers is None
            else [worker_as_plain(each) for each in picture.work.workers if each.is_alive]
        ),
        "inboxes": [
            {
                "name": inbox.inbox,
                "called": picture.names.get(inbox.inbox),
                "path": inbox.path,
                "alarm": inbox.alarm,
                "watching": inbox.watching,
            }
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


def entry_as_plain(entry: Entry) -> dict[str, Any]:
    from .advice import advice_for

    identity = entry.identity
    return {
        "id": entry.delivery_id,
        "file_id": entry.file_id,
        "destination": entry.destination or None,
        "route": entry.route or None,
        "state": str(entry.state),
        "reason": str(entry.reason) if entry.reason else None,
        "note": entry.note,
        "next_step": advice_for(entry),
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
        "sha256": entry.sha256 or None,
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


def _watch(config: Config, wanted: StatusFilter) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from .status_screen import drawing
    from .tables import lines_of

    if not sys.stdout.isatty():
        raise Stop(
            ExitCode.CONFIGURATION, "--watch needs a terminal; leave it out, or use --json in a loop of your own"
        )
    try:
        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while True:
                lines = "\n".join(lines_of(drawing(look(config, wanted), wanted)))
                live.update(Text.from_ansi(lines, no_wrap=True, overflow="crop"), refresh=True)
                time.sleep(1)
    except KeyboardInterrupt:
        return ExitCode.DONE
