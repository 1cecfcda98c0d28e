"""What keeps files from being confirmed, for ``status``: the daemon's own alarms, and what is only seen from outside.

One rule (README, "Every day"): whatever keeps a file that lies in an inbox from being confirmed beyond the time that
its own rule allows it is a line "Stopped because ...", with the next step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ingestd.ledger import OTHER_ADDRESS_STEP, Alarm
from ingestd.locks import ledger_trouble

from .asker import as_typed, how_to_start
from .common import is_left_out
from .held import is_held, limits_of
from .output import counted, in_files, plain
from .working import described, silence_of

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.ledger import DestinationStatus, Status

    from .working import AtWork

# A pause that the server asked for, or a hiccup, is not told before it lasts this long; a person's is told at once.
_SHORT_PAUSE = timedelta(minutes=1)
_A_PERSONS = frozenset({"misconfigured", "not_authorized", "no_token"})
# What is told as soon as it is seen, and stands as long as the oldest file has waited for.
BY_AGE = frozenset({"no_daemon", "other_address", "destination_left_out", "too_old"})
# Entries of a drop folder that are looked at for a file while no daemon looks.
_LOOKED_AT_MOST = 5_000
_UNFINISHED = (".part", ".tmp", "~", "thumbs.db", "desktop.ini", "autorun.inf")


def stopped_because(
    config: Config, status: Status | None, work: AtWork, *, rows: int, waiting_for_send: int = 0, at: datetime
) -> tuple[Alarm, ...]:
    """Say what keeps files from being confirmed, the oldest first.

    ``rows`` are the daemon's that are on their way, ``waiting_for_send`` those that only another ``send`` would send.
    """
    lines = list(status.alarms) if status is not None else []
    if work.daemon is None:
        if work.unseen:
            lines += _spool_away(work.unseen, lines, at)
        elif others := [*_other_addresses(config, status, at), *_left_out(config, status, at)]:
            lines += others
        else:
            lines += _no_daemon(config, status, work, rows=rows, at=at)
    elif work.workers is None and (trouble := ledger_trouble(config.spool.path)):
        lines.append(_ledger_fails(config, *trouble))
    if waiting_for_send:
        lines += _waits_for_send(config, waiting_for_send, at=at)
    if status is not None:
        tries = not work.is_nobody
        for destination in status.destinations:
            lines += _paused(config, destination, tries=tries, at=at)
        lines += _too_old(config, status, at=at)
    lines = [replace(line, note=as_typed(line.note), next_step=as_typed(line.next_step)) for line in lines]
    return tuple(sorted(lines, key=lambda line: line.since))


def _spool_away(missing: str, lines: list[Alarm], at: datetime) -> Iterator[Alarm]:
    if not any(line.kind == "spool" for line in lines):  # the daemon that runs may have seen it
        yield Alarm(
            kind="spool",
            about="",
            note=missing,
            next_step="mount its disk again, or put the folder back: an ingestd that runs goes on by itself; or mend "
            "`spool` in the configuration; where it is lost for good, `ingestd check` says what to do",
            since=at,
        )


def _other_addresses(config: Config, status: Status | None, at: datetime) -> Iterator[Alarm]:
    """Tell of addresses with which no ingestd would start."""
    for known in status.destinations if status else ():
        named = config.addresses.get(known.name, "").rstrip("/")
        if named and known.url not in ("", named):
            yield Alarm(
                kind="other_address",
                about="",
                note=f"no ingestd starts with this configuration: it names the server {named}, and the ledger's is"
                f" {known.url}",
                next_step=OTHER_ADDRESS_STEP,
                since=min(_lying(config).values(), default=at),
                destination=known.name,
            )


def _left_out(config: Config, status: Status | None, at: datetime) -> Iterator[Alarm]:
    """Tell of destinations that the configuration may not leave out, because files wait for them."""
    for known in status.destinations if status else ():
        if known.unconfirmed and is_left_out(config, known):
            yield Alarm(
                kind="destination_left_out",
                about="",
                note="no ingestd starts with this configuration: it does not name the destination"
                f" {known.name} any more, for which {counted(known.unconfirmed, 'file waits', 'files wait')}",
                next_step=f"put it back, or let go of them with `ingestd destination remove {known.name}`",
                since=min([*_lying(config).values(), known.oldest_unconfirmed_at or at]),
                destination=known.name,
            )


def _no_daemon(config: Config, status: Status | None, work: AtWork, *, rows: int, at: datetime) -> Iterator[Alarm]:
    lying = _lying(config)
    if rows or lying:
        known = status.oldest_unconfirmed_at if status is not None and rows else None
        where = ", ".join(plain(path) for path in lying)
        who, step = _who_ended(work)
        yield Alarm(
            kind="no_daemon",
            about="",
            note=f"no ingestd {who}, and files wait" + (f" in {where}" if lying else " to be sent or proven"),
            next_step=step,
            since=min([*lying.values(), *([known] if known is not None else [])], default=at),
        )


def _who_ended(work: AtWork) -> tuple[str, str]:
    """Say that nobody works, of whoever did last, and what to do."""
    if work.standing_by:
        standing = described(work.standing_by[0])
        return "works", f"{standing}, takes over by itself; where it does not: journalctl -u ingestd, on its machine"
    if work.silent is None:
        return "runs", f"start it: {how_to_start()}; why it ended: journalctl -u ingestd"
    became = f"what became of that one: journalctl -u ingestd, on {plain(work.silent.machine)}"
    return f"works ({silence_of(work.silent)})", f"start one: {how_to_start()}; {became}"


def _ledger_fails(config: Config, trouble: str, since: datetime) -> Alarm:
    return Alarm(
        kind="ledger_failed",
        about="",
        note=f"the ingestd that runs cannot write its ledger, so that nothing is taken in or sent: {trouble}",
        next_step="make room on the ledger's disk, or mend what is named; it goes on by itself",
        since=min([since, *_lying(config).values()]),
    )


def _lying(config: Config) -> dict[Path, datetime]:
    """Say in which folders files lie that would be taken in, and since when the oldest does."""
    return {
        inbox.path: oldest
        for inbox in config.inboxes
        if inbox.take == "move" and (oldest := oldest_file(inbox.path)) is not None
    }


def _waits_for_send(config: Config, rows: int, *, at: datetime) -> Iterator[Alarm]:
    try:
        # The last one wrote to it when it began, and when it ended if it was not killed.
        since = datetime.fromtimestamp((config.spool.for_send / "lock").stat().st_mtime, UTC)
    except OSError:
        since = at
    if timedelta(0) < at - since < _SHORT_PAUSE:
        return  # whoever interrupted it is about to go on
    yield Alarm(
        kind="waits_for_send",
        about="",
        note=f"{in_files(rows)} came by `ingestd send`, which ended before all was confirmed",
        next_step="run `ingestd send` on the folder again (`ingestd status --files` lists them); where it is gone for"
        " good, drop the files into an inbox, or `ingestd resolve ID --discard`",
        since=min(since, at),
    )


def oldest_file(root: Path) -> datetime | None:
    """Say since when the oldest file that would be taken in lies there, as far as a look at some thousand tells."""
    oldest: float | None = None
    for entry in islice(_files(root), _LOOKED_AT_MOST):
        if entry is None or entry.name.startswith(".") or entry.name.lower().endswith(_UNFINISHED):
            continue
        with suppress(OSError):  # gone meanwhile
            changed = entry.stat(follow_symlinks=False).st_ctime
            oldest = changed if oldest is None else min(oldest, changed)
    return None if oldest is None else datetime.fromtimestamp(oldest, UTC)


def _files(root: Path) -> Iterator[os.DirEntry[str] | None]:
    """Walk over what the scan would look at: None for a folder, and for what is no regular file."""
    folders = [str(root)]
    while folders:
        yield None
        with suppress(OSError), os.scandir(folders.pop()) as entries:  # one that is closed to us is no file that waits
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders += [entry.path] * (not entry.name.startswith("."))
                else:
                    yield entry if entry.is_file(follow_symlinks=False) else None


def _paused(config: Config, destination: DestinationStatus, *, tries: bool, at: datetime) -> Iterator[Alarm]:
    since, cause = destination.paused_since, str(destination.pause_cause)
    if is_left_out(config, destination) and not (tries and destination.unconfirmed):
        return  # nobody is to send there
    # In a closed window nothing is sent anyway, and no post can end the pause.
    is_closed = limits_of(config.destinations.get(destination.name), at)["opens_at"] is not None
    if since is None or (cause not in _A_PERSONS and (is_closed or at - since < _SHORT_PAUSE)):
        return
    again = "sending goes on by itself, and at once with `ingestd retry --now`" if tries else "then start ingestd"
    persons = f"mend that; `ingestd check` looks at it; {again}"
    yield Alarm(
        kind="paused",
        about="",
        note=f"nothing is sent to the server: {destination.pause_note or cause}",
        next_step=persons if cause in _A_PERSONS else f"look whether the server works; {again}",
        since=since,
        destination=destination.name,
    )


def _too_old(config: Config, status: Status, *, at: datetime) -> Iterator[Alarm]:
    """Tell of the oldest file by its age alone, whatever keeps it but its destination's window or rate."""
    waits = max((inbox.incomplete_after for inbox in config.inboxes), default=timedelta(0))
    allowed = (
        config.batch.quiet_period + config.batch.max_wait + max(config.reconcile.grace, waits) + timedelta(minutes=1)
    )
    waiting = [(each.oldest_at, "") for each in status.inboxes if each.oldest_at is not None]
    waiting += [
        (each.oldest_unconfirmed_at, each.name)
        for each in status.destinations
        if each.oldest_unconfirmed_at is not None
        and not is_held(config.destinations.get(each.name), each, allowed=allowed, at=at)
    ]
    oldest, destination = min(waiting, default=(at, ""))
    if at - oldest <= allowed:
        return
    yield Alarm(
        kind="too_old",
        about="",
        note="files are not confirmed in the time that they are allowed",
        next_step="`ingestd status --files` lists what is on its way, and `ingestd explain ID` says what keeps it",
        since=oldest,
        destination=destination,
    )
