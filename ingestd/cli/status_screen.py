"""What ``ingestd status`` shows a person: the picture, laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ingestd.lifecycle import Reason, State, needs_person

from .advice import MEANING, next_step, words_of
from .asker import as_typed, how_to_start
from .held import waits_for
from .output import ago, clock, in_bytes, in_files, plain, tried_again
from .stopped import BY_AGE
from .tables import Block, Cell, blank, facts, paragraph, styled, table, whole
from .working import described, silence_of, unreached_by

if TYPE_CHECKING:
    from ingestd.ledger import Status
    from ingestd.lifecycle import Jump

    from .status import Picture, StatusFilter
    from .working import AtWork


def drawing(picture: Picture, wanted: StatusFilter) -> Iterator[Block]:
    """Lay the picture out."""
    yield facts(_head(picture))
    if len(picture.destinations) > 1:
        yield blank
        yield _destinations(picture)
    yield from _stopped(picture)
    yield blank
    if picture.unknown:
        yield paragraph(picture.unknown)
    elif picture.status is None:
        yield paragraph(f"There is no ledger at {plain(picture.config.ledger_name)} yet: nothing was taken in.")
    elif wanted.is_anything:
        if not picture.files and not picture.studies:
            yield paragraph(f"no {'file' if wanted.lists_files else 'study'} is like that")
        else:
            yield _files(picture) if wanted.lists_files else _studies(picture)
        if picture.more:
            yield paragraph(
                f"... and more; show up to 1000 with --limit, or narrow the choice (showing {wanted.limit})."
            )
    else:
        heading = "Deliveries>" if len(picture.destinations) > 1 else "Files>"
        yield _states(picture.status, heading)
        yield from _needs_person(picture.status, heading)
        yield from _inboxes(picture)


def _head(picture: Picture) -> Iterator[tuple[str, str | Cell]]:
    yield "Configuration", whole(picture.config.file)
    if len(picture.destinations) == 1:
        (destination,) = picture.destinations
        yield "Server", plain(destination["url"])
        yield "", _health(destination, at=picture.at, tries=not picture.work.is_nobody)
        if held := waits_for(destination, picture.at):
            yield "", held
    if picture.of_destination:
        yield "Counted", plain(f"what goes to {picture.of_destination}")
    yield from _workers(picture.work)
    oldest = picture.oldest_at
    yield "Oldest unconfirmed", ago((picture.at - oldest).total_seconds()) if oldest else "none waits"
    called = picture.status.oldest_needs_person_at if picture.status else None
    if called:
        yield "Needs a person", Cell(f"since {ago((picture.at - called).total_seconds())}", "yellow")
    for jump in (picture.status.jumps if picture.status else ())[:1]:
        yield "Clock", Cell(_in_words(jump, picture.at), "yellow")
    if picture.waiting_for_send:
        files = in_files(picture.waiting_for_send)
        yield "Waits for send", Cell(as_typed(f"{files}: run `ingestd send` on the folder again"), "yellow")


_WORDS = {True: "works", False: "stands by"}


def _workers(work: AtWork) -> Iterator[tuple[str, str | Cell]]:
    if work.daemon is not None:
        late = f", has been silent for {ago(work.late.total_seconds())}" if work.late else ""
        yield "Daemon", Cell(f"running, {work.daemon}{late}", "yellow" if late else "")
    elif work.standing_by:
        yield "Daemon", Cell("not running: who stands by is about to take over", "yellow")
    else:
        silent = f": {silence_of(work.silent)}" if work.silent else ""
        yield "Daemon", Cell(work.unseen or f"not running{silent} (start it: {how_to_start()})", "yellow")
    for worker in work.barred:
        yield "Takes nothing over", Cell(f"{described(worker)}: {plain(worker.bars)}", "yellow")
    for worker in work.cut_off:
        yield "Not reached", Cell(f"by {described(worker)}: {unreached_by(worker)}", "yellow")
    if work.others:
        for number, each in enumerate(work.others):
            yield "" if number else "Others", f"{described(each)}, {_WORDS[each.holds]}"
    elif work.workers is not None and work.daemon is not None:
        if missed := work.missed:
            since = f"{ago(missed.silent.total_seconds())} ago"
            yield (
                "Others",
                Cell(f"nobody; worker {missed.id} on {plain(missed.machine)} last wrote {since}", "yellow"),
            )
        else:
            yield "Others", "nobody"


def _health(destination: Mapping[str, Any], *, at: datetime, tries: bool) -> str | Cell:
    """Say whether a server is sent to; ``tries``: somebody runs who would."""
    if destination["paused"]:
        again = tried_again(destination["paused_until"], at) if tries else "tried again once ingestd runs"
        why = f"{words_of(destination['pause_cause'])}: {plain(destination['pause_note'])}"
        return Cell(f"paused, {why}; {again}", "yellow")
    if destination["last_ok_at"]:
        return f"answered {ago((at - destination['last_ok_at']).total_seconds())} ago"
    return "not sent to yet"


def _destinations(picture: Picture) -> Block:
    health = partial(_health, at=picture.at, tries=not picture.work.is_nobody)
    is_held = any(waits_for(each, picture.at) for each in picture.destinations)
    rows = [
        (
            plain(each["name"]),
            whole(each["url"]),
            plain(each["kind"] or ""),
            each["unconfirmed"],
            ago((picture.at - each["oldest_unconfirmed_at"]).total_seconds()) if each["oldest_unconfirmed_at"] else "",
            health(each) if each["configured"] else Cell("not in this configuration", "yellow"),
            *([waits_for(each, picture.at)] if is_held else []),
        )
        for each in picture.destinations
    ]
    heads = ("Destination", "Server", "Kind", "Unconfirmed>", "Oldest", "Health", *(["Held"] if is_held else []))
    return table(heads, rows)


def _in_words(jump: Jump, now: datetime) -> str:
    way = "back" if jump.by < timedelta(0) else "forward"
    since = ago((now - jump.at).total_seconds())
    return f"was set {way} by {ago(abs(jump.by).total_seconds())}, {since} ago; nothing waits for it"


def _stopped(picture: Picture) -> Iterator[Block]:
    paths = {inbox.inbox: inbox.path for inbox in (picture.status.inboxes if picture.status else ())}
    if picture.stopped:
        yield blank
    for line in picture.stopped:
        where = f" ({plain(paths.get(line.about, line.about))})" if line.about else ""
        lasts = ago((picture.at - line.since).total_seconds())
        since = f"the oldest file has waited for {lasts}" if line.kind in BY_AGE else f"since {lasts}"
        at = f" (destination {plain(line.destination)})" if line.destination and len(picture.destinations) > 1 else ""
        yield paragraph(Cell(f"Stopped because {plain(line.note)}{where}{at}, {since}", "red"))
        yield paragraph(plain(line.next_step), lead="  -> ")


def _states(status: Status, heading: str) -> Block:
    rows = [
        (styled(state), rows, meaning)
        for state, meaning in MEANING.items()
        if (rows := status.states.get(state, 0)) or state is State.CONFIRMED
    ]
    return table(("State", heading, "Meaning"), rows)


def _needs_person(status: Status, heading: str) -> Iterator[Block]:
    sums: dict[tuple[str, str], int] = {}
    for count in status.counts:
        if needs_person(count.state, count.reason) and count.rows:
            key = (str(count.state), count.reason)
            sums[key] = sums.get(key, 0) + count.rows
    if not sums:
        return
    rows = [
        (
            styled(state),
            words_of(reason),
            rows,
            next_step(State(state), Reason(reason) if reason in set(Reason) else None),
        )
        for (state, reason), rows in sorted(sums.items())
    ]
    title = f"Needs a person: {status.needs_person}" + (f" (and {status.clutter} clutter)" if status.clutter else "")
    yield blank
    yield table(("State", "Reason", heading, "What to do"), rows, title=title)
    yield paragraph(as_typed("ID: from `ingestd status --state ...`"))


def _inboxes(picture: Picture) -> Iterator[Block]:
    """Lay out the folders that are looked into: not what a `send` has looked into that is over."""
    assert picture.status is not None, "what is known of folders stands in the ledger"
    configured = {inbox.spool_name for inbox in picture.config.inboxes}
    names, at = picture.names, picture.at
    rows = [
        (
            whole(f"{names[inbox.inbox]}: {inbox.path}" if inbox.inbox in names else inbox.path),
            inbox.watching,
            _words(inbox.counts),
            Cell(plain(inbox.alarm), "red") if inbox.alarm else "ok",
            f"{ago((at - inbox.at).total_seconds())} ago" if inbox.at else "",
        )
        for inbox in picture.status.inboxes
        if inbox.inbox in configured or picture.work.send is not None
    ]
    if rows:
        yield blank
        yield table(("Folder", "Found by", "In it", "Health", "Looked"), rows, title="Folders")


_IN_WORDS = {
    "waiting_settle": "just arrived",
    "waiting_incomplete": "incomplete so far",
    "waiting_writer": "still being written",
    "in_hand": "being taken in",
    "dicomdir": "DICOMDIR",
    "not_regular": "links, pipes or devices",
    "stale_ignored": "of them old",
    "too_deep": "too deep",
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


def _studies(picture: Picture) -> Block:
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
    return table(("Study", "", "Files", "Size>", "Changed"), rows)


def _files(picture: Picture) -> Block:
    several = len(picture.destinations) > 1
    rows = [
        (
            entry.delivery_id,
            *([plain(entry.destination)] * several),
            styled(str(entry.state)),
            words_of(entry.reason),
            entry.modality,
            in_bytes(entry.source.size_bytes),
            _when(entry.changed_at, picture.at),
            whole(entry.relative_path),
        )
        for entry in picture.files
    ]
    headings = ("ID>", *(["To"] * several), "State", "Reason", "", "Size>", "Changed", "From")
    return table(headings, rows)


def _when(at: datetime, now: datetime) -> str:
    age = now - at
    return f"{ago(age.total_seconds())} ago" if age < timedelta(days=1) else clock(at)
