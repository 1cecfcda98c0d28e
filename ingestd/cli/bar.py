"""The bar of ``ingestd send``: what the server said it stored, what is proven, and what stands in the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from ingestd.clocks import boottime

from .output import counted, in_files, plain, tried_again

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ingestd.inbox import InboxPolicy
    from ingestd.ledger import Alarm, Ledger

# The bar is drawn this often at most; each drawing asks the ledger for its counts.
DRAW_EVERY = timedelta(milliseconds=250)


class Draw(Protocol):
    """Draws how things stand by the ledger, and what stands in the way; now and then, or ``at_once``."""

    def __call__(self, ledger: Ledger, alarms: Iterable[Alarm] = (), *, at_once: bool = False) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BarCounts:
    """How many of the files are where; ``done_bytes`` are of those that the server stored or that came to an end.

    Where there are several destinations, deliveries are counted in the place of files.
    """

    stored: int = 0
    proven: int = 0
    duplicates: int = 0
    not_stored: int = 0
    done_bytes: int = 0
    rows: int = 0
    size_bytes: int = 0

    def in_words(self, files: int, *, several: bool) -> str:
        """Say it in a line; rows of files that lie there no more may be more than the files that do."""
        total = max(files, self.rows) if several else files
        parts = [f"{min(self.stored, total)} stored", f"{min(self.proven, total)} proven"]
        if self.duplicates:
            parts.append(counted(self.duplicates, "duplicate", "duplicates"))
        if self.not_stored:
            parts.append(f"{self.not_stored} not stored")
        deliveries = f"{counted(total, 'delivery', 'deliveries')} of " if several else ""
        return f"{', '.join(parts)}, of {deliveries}{in_files(files)}"


def lying(policies: Sequence[InboxPolicy]) -> tuple[int, int]:
    """Count the files that would be sent, and their bytes, as far as it can be seen: the bar's full length."""
    sizes = [size for policy in policies for size in _sizes(policy)]
    return len(sizes), sum(sizes)


def _sizes(policy: InboxPolicy) -> Iterator[int]:
    from ingestd.inbox import Names

    names = Names(policy.ignore, only=policy.only)
    if policy.only is not None:
        paths = (os.path.join(policy.path, name) for name in policy.only)  # noqa: PTH118 - a million files
    else:
        paths = (
            os.path.join(folder, name)  # noqa: PTH118
            for folder, _, files in os.walk(policy.path)
            for name in files
            if not names.ignores_path(os.path.relpath(os.path.join(folder, name), policy.path))  # noqa: PTH118
        )
    for path in paths:
        try:
            seen = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISREG(seen.st_mode):
            yield seen.st_size


def bar_counts(ledger: Ledger, policies: Sequence[InboxPolicy]) -> BarCounts:
    """Sum up what became of these files, in this run or before: of a folder all its rows, of files named theirs."""
    from ingestd.ledger import queries

    whole = {policy.name for policy in policies if policy.only is None}
    rows = [
        (count.state, count.rows, count.size_bytes) for count in queries.status(ledger).counts if count.inbox in whole
    ]
    for policy in policies:
        if policy.only is not None:
            known = queries.known_sources(ledger, policy.name, policy.only)
            newest = [max(sources, key=lambda source: source.file_id) for sources in known.values() if sources]
            if len(ledger.destinations) > 1:
                deliveries = queries.of_files(ledger, [source.file_id for source in newest])
                rows += [(entry.state, 1, entry.source.size_bytes) for entry in deliveries]
            else:
                rows += [(source.state, 1, source.source.size_bytes) for source in newest]
    return _counted(rows)


def _counted(rows: Iterable[tuple[str, int, int]]) -> BarCounts:
    from ingestd.lifecycle import UNCONFIRMED, State

    stored = proven = duplicates = not_stored = done_bytes = all_rows = all_bytes = 0
    for state, count, size_bytes in rows:
        all_rows += count
        all_bytes += size_bytes
        if state in UNCONFIRMED and state != State.STORED:
            continue
        done_bytes += size_bytes
        if state in {State.STORED, State.CONFIRMED}:
            stored += count
            proven += count if state == State.CONFIRMED else 0
        elif state == State.DUPLICATE:
            duplicates += count
        else:
            not_stored += count
    return BarCounts(
        stored=stored,
        proven=proven,
        duplicates=duplicates,
        not_stored=not_stored,
        done_bytes=done_bytes,
        rows=all_rows,
        size_bytes=all_bytes,
    )


@contextmanager
def shown(policies: Sequence[InboxPolicy]) -> Iterator[Draw]:
    """Show the bar on the terminal of stdout while this lasts; nothing else may be written there meanwhile."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
    from rich.text import Text

    class Bar(Progress):
        """A bar with lines of words below it."""

        words: tuple[Text, ...] = ()

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from self.words

    files, size_bytes = lying(policies)
    drawn_at = 0.0
    columns = (BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    # What others write to stderr is theirs: it may lead into a file.
    with Bar(*columns, console=Console(highlight=False), redirect_stderr=False) as bar:
        task = bar.add_task("", total=size_bytes)

        def draw(ledger: Ledger, alarms: Iterable[Alarm] = (), *, at_once: bool = False) -> None:
            nonlocal drawn_at
            if not at_once and boottime() - drawn_at < DRAW_EVERY.total_seconds():
                return
            drawn_at = boottime()
            sums = bar_counts(ledger, policies)
            trouble = [*_pause(ledger), *(f"stopped because {plain(alarm.note)}" for alarm in alarms)]
            several = len(ledger.destinations) > 1
            bar.words = (
                Text(sums.in_words(files, several=several)),
                *(Text(words, style="yellow") for words in trouble),
            )
            length = max(size_bytes, sums.size_bytes) if several else size_bytes
            bar.update(task, total=length, completed=min(sums.done_bytes, length))

        yield draw


def _pause(ledger: Ledger) -> Iterator[str]:
    from ingestd.ledger import queries

    servers = [found for name in ledger.served if (found := queries.destination(ledger.at(name)))]
    for server in servers:
        if server.paused_since is not None:
            again = tried_again(server.paused_until, datetime.now(UTC))
            where = f" to {plain(server.name)}" if len(servers) > 1 else ""
            yield f"nothing is sent{where} at present: {plain(server.pause_note or server.pause_cause)}; {again}"
