"""``ingestd explain``: the whole history of one file, and what to do next."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .asker import as_typed, how_to_start
from .common import (
    ExitCode,
    Stop,
    config_option,
    host_of,
    is_left_out,
    json_option,
    ledger_for_reading,
    load_config,
    pages,
    tell_config,
)
from .held import limits_of, waits_for
from .output import ago, plain, print_json
from .working import AtWork, at_work

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.ledger import Alarm, DestinationStatus, Entry, Ledger, Story

# A study UID names hundreds of rows; their whole stories are asked for one by one.
MOST_STORIES = 10
# The alarms of a server that answers nothing of what would prove a file.
_UNANSWERED = ("not_retrieved", "not_searched", "feed_not_read")
# How a log line names a study (``logs.study_ref``).
_REFERENCE = re.compile(r"[0-9a-f]{12}")
_IN_LOG = re.compile(r"(?:study|(?:file|delivery|entry)_id)=(?P<value>.+)")


@click.command("explain", short_help="Tell the whole history of a file, and what to do next.")
@config_option
@json_option
@click.argument("what", metavar="PATH|UID|ID")
def command(*, config: Path | None, as_json: bool, what: str) -> int:
    """Tell the whole history of a file, and what to do next.

    It is named by its path (where it was dropped, or where it lies now) or the end of it (im0.dcm), by its SOP Instance
    UID (or the UID of its series or study), by its number in the ledger, or by the name that the log has for its study
    (study=4521a78fed84).
    """
    from ingestd.ledger import queries

    settings = load_config(config)
    if not as_json:
        tell_config(settings)
    with ledger_for_reading(settings) as ledger:
        entries = find(settings, ledger, what)
        file_ids = list(dict.fromkeys(entry.file_id for entry in entries))
        told = queries.of_files(ledger, file_ids[:MOST_STORIES])
        stories = [story for entry in told if (story := queries.story(ledger, entry.delivery_id))]
        servers = queries.destinations(ledger)
        senders = {attempt.worker for story in stories for attempt in story.attempts} - {0}
        machines = ledger.machines(senders) if senders else None
        work = at_work(settings, ledger)
        standing = queries.alarms(ledger, but_of=work.stopped_send)
        unanswered = [alarm for alarm in standing if alarm.kind in _UNANSWERED]
    if not stories:
        raise Stop(ExitCode.CONFIGURATION, why_unknown(settings, what, work))
    files = [[story for story in stories if story.entry.file_id == each] for each in file_ids[:MOST_STORIES]]
    if as_json:
        plains = [
            story_as_plain(story, unanswered, machines)
            | {"file_state": telling([each.entry for each in deliveries]).state}
            for deliveries in files
            for story in deliveries
        ]
        print_json({"config": settings.file, "files": plains, "found": len(file_ids)})
        return ExitCode.DONE
    knows_references, present = _know_references(settings), Present.of(settings, servers, work)
    folders = {inbox.spool_name: str(inbox.path) for inbox in settings.inboxes}
    from ingestd.logs import study_ref

    from .explain_screen import Told, drawing
    from .tables import show

    for deliveries in files:
        entry = deliveries[0].entry
        reference = study_ref(entry.identity.study_uid) if entry.identity and knows_references else ""
        each_told = [
            Told(story, _waits_for_proof(story.entry), present.step(story, unanswered)) for story in deliveries
        ]
        whole = telling([story.entry for story in deliveries])
        several = len(servers) > 1
        show(*drawing(each_told, whole, folders, machines, reference=reference, several=several))
    if len(file_ids) > len(files):
        rest = len(file_ids) - len(files)
        click.echo(as_typed(f"... and {rest} more: list them with `ingestd status --study`, and explain one by its ID"))
    return ExitCode.DONE


def telling(entries: Sequence[Entry]) -> Entry:
    """Give the delivery that says what the file as a whole is.

    It is the one that needs a person, else the one that has come least far; what was let go of says it only where all
    was. CONFIRMED says that all others are.
    """
    from ingestd.lifecycle import State, needs_person

    order = [State.PENDING, State.SENDING, State.UNCERTAIN, State.STORED, State.DUPLICATE, State.CONFIRMED]

    def rank(entry: Entry) -> tuple[bool, int]:
        calls = needs_person(entry.state, entry.reason)
        return not calls, order.index(entry.state) if entry.state in order else len(order)

    return min(entries, key=rank)


def find(config: Config, ledger: Ledger, what: str) -> list[Entry]:
    """Find rows by number, UID or path, or by what a log line calls a study or a row (``study=...``).

    A path is tried as written, as seen from its inbox, and from the spool; a name without its folders finds every file
    that is called so, unless a file lies there by that very path and was not taken in yet.
    """
    from ingestd.ledger import queries

    found = queries.find(ledger, what)
    named = None if found else _IN_LOG.fullmatch(what)
    if named:
        what = named["value"]
        found = queries.find(ledger, what)
    if not found and _REFERENCE.fullmatch(what):
        found = _by_reference(config, ledger, what)
    if found and "/" not in what and _looks_like_path(what):
        others = queries.find_named(ledger, what)
        return sorted(
            {entry.delivery_id: entry for entry in (*found, *others)}.values(), key=lambda entry: entry.delivery_id
        )
    if found or (named and not _looks_like_path(what)):
        return found
    path = Path(os.path.abspath(what))  # noqa: PTH100 - resolve() would follow the file's own link
    for inbox in config.inboxes:
        if path.is_relative_to(inbox.path):
            relative = str(path.relative_to(inbox.path))
            if found := [entry for entry in queries.find_path(ledger, relative) if entry.inbox == inbox.spool_name]:
                return found
    if path.is_relative_to(config.spool.path):
        return queries.find_path(ledger, str(path.relative_to(config.spool.path)))
    if (found := queries.find_path(ledger, str(path))) or Path(what).is_absolute() or _lies_in_an_inbox(config, what):
        return found
    return queries.find_named(ledger, os.path.normpath(what))


def _lies_in_an_inbox(config: Config, what: str) -> bool:
    path = _as_dropped(config, what)
    return os.path.lexists(path) and any(path.is_relative_to(inbox.path) for inbox in config.inboxes)


def _by_reference(config: Config, ledger: Ledger, reference: str) -> list[Entry]:
    """Find the study that the log calls by this reference; its UID is in no log, so every study is tried."""
    from ingestd.ledger import queries
    from ingestd.logs import study_ref

    if not _know_references(config):
        return []
    for page in pages(partial(queries.studies, ledger, limit=1000)):
        for study in page:
            if study_ref(study.study_uid) == reference:
                return queries.find(ledger, study.study_uid)
    return []


def _know_references(config: Config) -> bool:
    """Take the key of the log's references, the spool's own id, where we may read it."""
    from ingestd.logs import set_key

    host = host_of(config.spool.path)
    if host:
        set_key(host.encode())
    return bool(host)


def _looks_like_path(what: str) -> bool:
    return not (what.isdigit() or set(what) <= set("0123456789.")) or os.path.lexists(what)


def why_unknown(config: Config, what: str, work: AtWork) -> str:
    """Say why the ledger has no such file, as far as the file itself tells."""
    path = _as_dropped(config, what)
    shown = plain(what)
    if not os.path.lexists(path):
        return (
            f"the ledger knows nothing of {shown}, and there is no file of that name; "
            "`ingestd status --files` lists the numbers of the latest files, with --state or --study those of others"
        )
    inbox = next((inbox for inbox in config.inboxes if path.is_relative_to(inbox.path)), None)
    if inbox is None:
        watched = ", ".join(plain(each.path) for each in config.inboxes)
        return f"{shown} was not sent, and " + (
            f"is in none of the watched folders ({watched})" if watched else "no folder is watched"
        )
    if path.is_dir() and not path.is_symlink():
        return f"{shown} is a folder; name a file in it, or list the latest with `ingestd status --files`"
    if path.is_symlink() or not path.is_file():
        return f"{shown} is no regular file; ingestd follows no links and opens no devices, and leaves it where it is"
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in inbox.ignore):
        return f"{shown} is left alone: its name matches `ignore` of its folder"
    if path.name.startswith(".") or path.name.endswith(("~", ".part", ".tmp")):
        return f"{shown} is left alone: names like this are used while a file is being written"
    if not os.access(path, os.R_OK):
        return f"{shown} cannot be read by this user; is it readable for the one that ingestd runs as?"
    if work.daemon is None:
        why = work.unseen or f"no daemon is running (start it: {how_to_start()})"
        return f"{shown} was not taken in yet: {why}"
    return (
        f"{shown} was not taken in yet: it is taken once it lay unchanged for a while, and, where it is empty or ends "
        f"too early, given up after {ago(inbox.incomplete_after.total_seconds())}"
    )


def _as_dropped(config: Config, what: str) -> Path:
    """Return the path that is meant: as written, or else as seen from an inbox, the way the ledger names files."""
    path = Path(os.path.abspath(what))  # noqa: PTH100 - as in find()
    seen_from_inboxes = [Path(os.path.normpath(inbox.path / what)) for inbox in config.inboxes]
    for each in (path, *(other for other in seen_from_inboxes if not Path(what).is_absolute())):
        if os.path.lexists(each):
            return each
    return path


def story_as_plain(story: Story, unanswered: Sequence[Alarm], machines: Mapping[int, str] | None) -> dict[str, Any]:
    from .status import entry_as_plain

    return entry_as_plain(story.entry) | {
        "next_step": _step(story, unanswered),
        "history": [
            {
                "at": event.at,
                "from": str(event.before) if event.before else None,
                "to": str(event.after),
                "reason": event.reason,
                "note": event.note,
                "attempt_id": event.attempt_id,
                "evidence": dict(event.evidence),
            }
            for event in story.history
        ],
        "requests": [
            {
                "attempt_id": attempt.attempt_id,
                "started_at": attempt.started_at,
                "finished_at": attempt.finished_at,
                "instances": attempt.instances,
                "size_bytes": attempt.size_bytes,
                "http_status": attempt.http_status,
                "body_bytes_left": attempt.body_bytes_left,
                "seconds": attempt.seconds,
                "error": attempt.error,
                "interrupted": attempt.interrupted,
            }
            | ({} if machines is None else {"worker": attempt.worker, "machine": machines.get(attempt.worker) or None})
            for attempt in story.attempts
        ],
        "holder": _short(story.holder) if story.holder else None,
        "duplicates": [_short(entry) for entry in story.duplicates],
        "same_identity": [_short(entry) for entry in story.same_identity],
    }


def _short(entry: Entry) -> dict[str, Any]:
    return {"id": entry.delivery_id, "state": str(entry.state), "inbox": entry.inbox, "source": entry.relative_path}


def _step(story: Story, unanswered: Sequence[Alarm]) -> str:
    from ingestd.lifecycle import GIVES_IDENTITY_UP, HOLDING, State

    from .advice import advice_for, alone_in_conflict

    entry, holder = story.entry, story.holder
    is_held = any(other.state in HOLDING for other in story.same_identity)
    if entry.state is State.CONFLICT and holder is not None and holder.state in GIVES_IDENTITY_UP and not is_held:
        return alone_in_conflict(entry, holder)
    alarm = next((each for each in unanswered if each.destination in ("", entry.destination)), None)
    if alarm is not None and _waits_for_proof(entry):
        return alarm.next_step
    return advice_for(entry)


@dataclass(frozen=True, kw_only=True, slots=True)
class Present:
    """What keeps rows from going on just now, by their destination, and whose rows wait for another ``send``."""

    start: str  # how to start the daemon that nobody runs; "": somebody does
    left_out: frozenset[str]
    paused: Mapping[str, str]
    held: Mapping[str, str]
    sender: str  # the host of rows that only another ``send`` moves; "": none does
    of_send: str  # the host of all that came by ``send``: no window holds them

    @classmethod
    def of(cls, config: Config, servers: Sequence[DestinationStatus], work: AtWork) -> Present:
        """Look at the configuration and at how the destinations stand."""
        at = datetime.now(UTC)
        limits = {each.name: asdict(each) | limits_of(config.destinations.get(each.name), at) for each in servers}
        return cls(
            start=how_to_start() if work.is_nobody else "",
            left_out=frozenset(each.name for each in servers if is_left_out(config, each)),
            paused={each.name: each.pause_note or str(each.pause_cause) for each in servers if each.paused_since},
            held={name: waits_for(each, at) for name, each in limits.items()},
            sender=work.stopped_send,
            of_send=host_of(config.spool.for_send),
        )

    def step(self, story: Story, unanswered: Sequence[Alarm]) -> str:
        """Say what to do about a row, and what keeps it at present."""
        from ingestd.lifecycle import UNCONFIRMED, Reason

        from .advice import AFTER_SEND

        entry = story.entry
        waits = entry.state in UNCONFIRMED or entry.reason is Reason.NOT_COMPARED
        if entry.host == self.sender and (entry.request or waits):
            return as_typed(AFTER_SEND)
        keeps = list(self._keeps(entry)) if waits else []
        return as_typed(_step(story, unanswered) + ("; but " if keeps else "") + "; ".join(keeps))

    def _keeps(self, entry: Entry) -> Iterator[str]:
        from ingestd.lifecycle import AT_ONCE, State

        if entry.destination in self.left_out:
            yield "the configuration does not name its destination any more; see `ingestd status`"
            return
        if self.start:
            yield f"no ingestd runs (start it: {self.start})"
        is_exempt = entry.priority >= AT_ONCE or entry.host == self.of_send
        if entry.state is State.PENDING and not is_exempt and (held := self.held.get(entry.destination)):
            yield held
        if why := self.paused.get(entry.destination):
            yield f"nothing is sent at present: {why}; see `ingestd status`"


def _waits_for_proof(entry: Entry) -> bool:
    from ingestd.lifecycle import State

    return entry.state in (State.STORED, State.UNCERTAIN)
