"""What a single run came to, for ``run --once`` and ``send``: the sums, what needs a person, and the exit code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .asker import as_typed
from .common import ExitCode, ledger_for_reading, pages
from .output import counted, in_files, plain, print_json, tell_first

if TYPE_CHECKING:
    from ingestd.config import Config
    from ingestd.daemon import OnceResult
    from ingestd.ledger import Entry, Ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What became of the files of one run. ``states`` are all rows of its inboxes, or of the whole ledger.

    ``several``: the ledger knows several destinations.
    """

    result: OnceResult
    states: dict[str, int]
    needs_person: tuple[Entry, ...]
    clutter: int
    left_alone: dict[str, int]
    several: bool

    @property
    def code(self) -> ExitCode:
        """The exit code: not done before needs a person, and what could not be taken in is a person's too."""
        if not self.result.done:
            return ExitCode.TIMEOUT
        calls = self.needs_person or self.result.left or self.result.not_taken_in or self.result.alarms
        return ExitCode.NEEDS_PERSON if calls else ExitCode.DONE


def look_back(
    config: Config,
    result: OnceResult,
    *,
    inboxes: Mapping[str, Collection[str] | None] | None = None,
    left_alone: dict[str, int] | None = None,
) -> RunSummary:
    """Read from the ledger what became of the rows that this run took in or found waiting.

    A row needs a person for this run if anything happened to it while the run lasted, whatever the clocks said. With
    ``inboxes``, and the files that were named in each (None: all), so does one that did before, while its file lies
    there as it was.
    """
    from ingestd.ledger import queries
    from ingestd.lifecycle import Reason, needs_person

    states: dict[str, int] = {}
    with ledger_for_reading(config) as ledger:
        for count in queries.status(ledger).counts:
            if inboxes is None or count.inbox in inboxes:
                states[str(count.state)] = states.get(str(count.state), 0) + count.rows
        several = len(ledger.destinations) > 1
        called = queries.called_since(ledger, result.last_event_before)
        ours = called if inboxes is None else _named(ledger, inboxes, frozenset(entry.delivery_id for entry in called))
        calling = [entry for entry in ours if needs_person(entry.state, entry.reason)]
        found = [entry for entry in calling if entry.reason not in {Reason.NOT_DICOM, Reason.DICOMDIR}]
        clutter = len(calling) - len(found)
    return RunSummary(
        result=result,
        states={state: count for state, count in states.items() if count},
        needs_person=tuple(found),
        clutter=clutter,
        left_alone={name: count for name, count in (left_alone or {}).items() if count},
        several=several,
    )


def _named(ledger: Ledger, inboxes: Mapping[str, Collection[str] | None], called: frozenset[int]) -> list[Entry]:
    from ingestd.ledger import Choice, queries
    from ingestd.lifecycle import NEEDS_PERSON

    choices = (partial(queries.entries, ledger, Choice(state=state)) for state in sorted(NEEDS_PERSON))
    return [entry for ask in choices for page in pages(ask) for entry in page if _is_named(entry, inboxes, called)]


def _is_named(entry: Entry, inboxes: Mapping[str, Collection[str] | None], called: frozenset[int]) -> bool:
    from ingestd.fs.places import below_of, look
    from ingestd.lifecycle import SourceStat

    if entry.inbox not in inboxes:
        return False
    names = inboxes[entry.inbox]
    if names is not None and entry.relative_path not in names:
        return False
    if entry.delivery_id in called:
        return True
    if entry.path is None or not entry.in_place:
        return False
    try:
        found = SourceStat.of(look(below_of(entry.path, entry.relative_path)))
    except OSError:
        return False
    return found.looks_like(entry.source)


def tell(summary: RunSummary, *, as_json: bool) -> None:
    """Print what the run came to."""
    if as_json:
        print_json(_as_plain(summary))
        return
    from .advice import advice_for, words_of

    sums = ", ".join(f"{count} {state}" for state, count in sorted(summary.states.items(), key=lambda each: -each[1]))
    in_all = "deliveries in all" if summary.several else "in all"
    click.echo(f"taken in now: {summary.result.taken_in}; {in_all}: {sums or 'nothing'}")
    if summary.left_alone or summary.clutter:
        words = [f"{count} {name.replace('_', ' ')}" for name, count in summary.left_alone.items()]
        words += [f"{in_files(summary.clutter)} without an image"] if summary.clutter else []
        click.echo(f"left alone: {', '.join(words)}")

    def about(entry: Entry) -> str:
        why = f"{words_of(entry.reason)}: {entry.note}" if entry.note else words_of(entry.reason)
        at = f" to {plain(entry.destination)}" if summary.several and entry.destination else ""
        return f"{entry.state} {plain(entry.relative_path)}{at} ({plain(why)})\n    -> {plain(advice_for(entry))}"

    tell_first(summary.needs_person, about, rest=as_typed(": `ingestd status`"))
    reason = "(it cannot be read, or not be moved out of its folder)"
    tell_first(summary.result.left, lambda path: f"LEFT {plain(path)} {reason}")
    tell_first(summary.result.not_taken_in, lambda path: f"NOT TAKEN IN {plain(path)} ({_why_not(Path(path))})")
    for alarm in summary.result.alarms:
        where = f" ({plain(alarm.about)})" if alarm.about else ""
        at = f" (destination {plain(alarm.destination)})" if summary.several and alarm.destination else ""
        click.echo(f"  stopped because {as_typed(plain(alarm.note))}{where}{at}")
        click.echo(f"    -> {as_typed(plain(alarm.next_step))}")
    if not summary.result.done:
        why = "stopped" if summary.result.stopped else "not done in time"
        left = summary.result.unfinished
        are = ("delivery is", "deliveries are") if summary.several else ("file is", "files are")
        on_the_way = f"{counted(left, *are)} still on the way"
        click.echo(f"{why}: {on_the_way if left else 'not all is looked through and taken in'}; run it again to go on")


def _why_not(path: Path) -> str:
    if path.is_dir():
        return "there is no file in it but links and names that are left alone: name these one by one"
    if path.is_symlink():
        return "it is a link, and none is followed: name the file that it leads to"
    if not path.is_file():
        return "it is no regular file"
    return "it was left alone for its name or its place, or cannot be read: name it by itself"


def _as_plain(summary: RunSummary) -> dict[str, Any]:
    from .status import entry_as_plain

    return {
        "done": summary.result.done,
        "stopped": summary.result.stopped,
        "taken_in": summary.result.taken_in,
        "unfinished": summary.result.unfinished,
        "states": summary.states,
        "needs_person": [entry_as_plain(entry) for entry in summary.needs_person],
        "clutter": summary.clutter,
        "left_alone": summary.left_alone,
        "left": list(summary.result.left),
        "not_taken_in": list(summary.result.not_taken_in),
        "stopped_because": [
            {
                "kind": alarm.kind,
                "about": alarm.about,
                "destination": alarm.destination,
                "note": as_typed(alarm.note),
                "next_step": as_typed(alarm.next_step),
            }
            for alarm in summary.result.alarms
        ],
        "exit_code": int(summary.code),
    }
