"""What ``ingestd explain`` shows a person: one file's story, laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ingestd.lifecycle import BY_PERSON, Reason, State

from .advice import MEANING, evidence_in_words, words_of
from .asker import as_typed
from .output import clock, in_bytes, plain
from .tables import Block, Cell, blank, facts, paragraph, styled, table, whole

if TYPE_CHECKING:
    from ingestd.ledger import Attempt, Entry, Event, Story

NOT_COMPARED = "not compared: the server shows that it is there"


class Told(NamedTuple):
    """A delivery's story, whether the server is still to be asked about it, and what to do."""

    story: Story
    next_check: bool
    step: str


def drawing(
    told: Sequence[Told],
    whole_file: Entry,
    folders: Mapping[str, str],
    machines: Mapping[int, str] | None,
    *,
    reference: str,
    several: bool,
) -> Iterator[Block]:
    """Lay out the stories of a file's deliveries.

    ``whole_file`` is the one that says what the file as a whole is, ``folders`` where the inboxes are, ``machines``
    where the workers are (None: none has a number), ``reference`` what the log calls the file's study, ``several`` that
    there are several destinations.
    """
    first = told[0].story.entry
    meaning = f"- {MEANING[whole_file.state]}"
    if len(told) > 1:
        meaning += f" ({', '.join(f'{each.story.entry.destination} {each.story.entry.state}' for each in told)})"
    yield blank
    yield paragraph(
        Cell(f"File {first.file_id if several else first.delivery_id}", "bold"),
        styled(str(whole_file.state)),
        plain(meaning),
    )
    yield blank
    of_delivery = () if several else _facts_of_delivery(first, next_check=told[0].next_check)
    of_copy = () if several else _facts_of_copy(first)
    of_file = _facts(first, folders, reference=reference, route=_route(told, several=several))
    yield facts([*of_delivery, *of_file, *of_copy])
    for each in told:
        if several and each.story.entry.destination:
            yield from _heading(each)
        yield from _delivery(each, machines)


def _heading(told: Told) -> Iterator[Block]:
    entry = told.story.entry
    yield blank
    title = Cell(plain(f"To {entry.destination}, ID {entry.delivery_id}"), "bold")
    yield paragraph(title, styled(str(entry.state)), f"- {MEANING[entry.state]}")
    if rows := [*_facts_of_delivery(entry, next_check=told.next_check), *_facts_of_copy(entry)]:
        yield blank
        yield facts(rows)


def _delivery(told: Told, machines: Mapping[int, str] | None) -> Iterator[Block]:
    story = told.story
    yield blank
    yield table(("At", "", "Became", "Why"), map(_event, story.history), title="History")
    if story.attempts:
        yield blank
        headings = ("Request", "At", *(["Worker"] * (machines is not None)), "Files>", "Size>", "Answer", "Took>", "")
        requests = (_request(attempt, machines) for attempt in story.attempts)
        yield table(headings, requests, title="Requests it was part of")
    for others, words in (
        ([story.holder] if story.holder else [], "It is compared with"),
        (story.duplicates, "Duplicates of it"),
        (story.same_identity, "Others with the same UIDs"),
    ):
        if others:
            rows = [(other.delivery_id, styled(str(other.state)), whole(other.relative_path)) for other in others]
            yield blank
            yield table(("ID>", "State", "From"), rows, title=words)
    yield blank
    yield paragraph(Cell("What to do:", "bold"), plain(told.step))


def _route(told: Sequence[Told], *, several: bool) -> str:
    """Say why the file goes where it goes; "" where there is but one place and no rule."""
    entry = told[0].story.entry
    entries = [each.story.entry for each in told]
    names = [each.destination for each in entries if each.destination and not _went_elsewhere(each)]
    where = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    if entry.route.startswith("rule "):
        return f"{entry.route} sent it {f'to {where}' if where else 'nowhere, on purpose'}"
    if not several:
        return ""
    if entry.route.startswith(BY_PERSON):
        return entry.route
    return f"{entry.route or 'no rules'}: it goes to {where}" if where else entry.route


def _went_elsewhere(entry: Entry) -> bool:
    """Whether another rule took it from there since."""
    return entry.state is State.DISCARDED and entry.reason == Reason.BY_RULE


def _facts_of_delivery(entry: Entry, *, next_check: bool) -> Iterator[tuple[str, str | Cell]]:
    """Name what is known of how it stands at its destination."""
    why = [words_of(entry.reason)] * bool(entry.reason) + [as_typed(entry.note)] * bool(entry.note)
    if why:
        yield "Reason", plain(": ".join(why))
    if next_check and entry.next_check_at:
        yield "Asked again", clock(entry.next_check_at)
    if entry.failure_reason is not None or entry.warning_reason is not None:
        from ingestd.dicomweb import failure_meaning, warning_meaning

        for name, code, meaning in (
            ("Server refused", entry.failure_reason, failure_meaning),
            ("Server warned", entry.warning_reason, warning_meaning),
        ):
            if code is not None:
                yield name, f"{meaning(code)}, {code} ({code:04X}H)"
    if entry.failed_attributes:
        yield "Attributes", plain(", ".join(entry.failed_attributes))


def _facts(entry: Entry, folders: Mapping[str, str], *, reference: str, route: str) -> Iterator[tuple[str, str | Cell]]:
    """Name what is known of the file; a name of 14 letters at most leaves room for a UID beside it in 80 columns."""
    if route:
        yield "Routed by", plain(route)
    yield "Dropped as", whole(entry.relative_path)
    yield (
        "Dropped into",
        whole(folders.get(entry.inbox, entry.inbox)),
    )  # only its name is known of what `send` was given
    if entry.removed_at:
        yield "Now at", f"removed {clock(entry.removed_at)}, after it was confirmed or let go"
    elif place := entry.file or entry.path:
        yield "Now at", whole(place)
    yield "Size", in_bytes(entry.source.size_bytes)
    if entry.identity:
        yield "Study", plain(entry.identity.study_uid)
        yield "Series", plain(entry.identity.series_uid)
        yield "Instance", plain(entry.identity.sop_uid)
        if reference:
            yield "In the log", f"study={reference}"
    if entry.modality or entry.station:
        yield "From", plain(" ".join(part for part in (entry.modality, entry.station) if part))
    if entry.content:
        yield "Syntax", plain(entry.content.transfer_syntax)
        if entry.sha256:
            yield "File's SHA-256", entry.sha256
    if entry.notes:
        yield "Noted", ", ".join(map(words_of, entry.notes))


def _facts_of_copy(entry: Entry) -> Iterator[tuple[str, str | Cell]]:
    """Name what is known of the copy at its destination."""
    if entry.confirmed_at:
        yield "Server's copy", "compared with this file: the same" if entry.compared else NOT_COMPARED
    if entry.reencoded:
        yield "Sent as", "Explicit VR Little Endian, re-encoded without loss"


def _event(event: Event) -> tuple[object, ...]:
    why = [event.note] * bool(event.note) + list(evidence_in_words(event.evidence))
    reason = words_of(event.reason)
    said = "; ".join(why)
    return (
        clock(event.at),
        f"request {event.attempt_id}" if event.attempt_id else "",
        styled(str(event.after)),
        f"{reason}: {said}" if reason and said else reason or said,
    )


def _request(attempt: Attempt, machines: Mapping[int, str] | None) -> tuple[object, ...]:
    answer = (
        f"HTTP {attempt.http_status}" if attempt.http_status else ("interrupted" if attempt.interrupted else "none")
    )
    took = f"{attempt.seconds:.1f} s" if attempt.seconds is not None else ""
    size = in_bytes(attempt.size_bytes)
    worker = [] if machines is None else [_worker(attempt.worker, machines)]
    at = clock(attempt.started_at)
    return (attempt.attempt_id, at, *worker, attempt.instances, size, answer, took, attempt.error)


def _worker(number: int, machines: Mapping[int, str]) -> str:
    machine = machines.get(number)
    return f"{number} on {plain(machine)}" if machine else str(number or "")
