"""Routing again in the ledger: what was tried stays, an identity is held once, and the counts stay right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingestd.ledger import Ledger, RefusedMove, Rerouting, moves, queries
from ingestd.lifecycle import BY_PERSON, Reason, Route, State
from tests.ledger_builders import (
    BACKOFF,
    LATER,
    LIMITS,
    NOW,
    arrival,
    assert_ledger_holds,
    finish,
    outcome,
    remove,
    result_of,
)
from tests.ledgers import url_of

BOTH = Route(rule=1, text="rule 1 (inbox er)", destinations=("archive", "research"))
ARCHIVE = Route(rule=2, text="rule 2 (everything)", destinations=("archive",))
RESEARCH = Route(rule=3, text="rule 3 (everything)", destinations=("research",))
NOWHERE = Route(rule=4, text="rule 4 (modality CT)", destinations=())
UNROUTED = Route(rule=None, text="no rule wants it", destinations=())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(
        url_of(tmp_path),
        host="host-a",
        destinations={"archive": "http://archive/v2", "research": "http://research/v2"},
        spool=tmp_path / "spool",
        key=tmp_path / "search.key",
        limits=LIMITS,
    ) as ledger:
        yield ledger
        assert_ledger_holds(ledger)


def admit(ledger: Ledger, number: int, route: Route, **more: object) -> int:
    with ledger.transaction() as tx:
        [admitted] = moves.admit(tx, [replace(arrival(number, **more), route=route)], now=NOW)  # type: ignore[arg-type]
    assert admitted.number is not None
    return admitted.number


def again(ledger: Ledger, route: Route, *file_ids: int) -> list[Rerouting]:
    with ledger.transaction() as tx:
        return moves.route_again(tx, file_ids, route, now=LATER)


def states(ledger: Ledger) -> dict[int, dict[str, State]]:
    found: dict[int, dict[str, State]] = defaultdict(dict)
    for entry in queries.entries(ledger):
        found[entry.file_id][entry.destination] = entry.state
    return dict(found)


def send(ledger: Ledger, name: str, state: State, **more: object) -> None:
    at = ledger.at(name)
    with at.transaction() as tx:
        batch = moves.claim(tx, "1.2.1", now=LATER)
    assert batch is not None
    with at.transaction() as tx:
        finish(tx, result_of(batch, state, **more))


def confirm(ledger: Ledger, name: str, delivery_id: int) -> None:
    send(ledger, name, State.STORED)
    with ledger.at(name).transaction() as tx:
        moves.apply(tx, [outcome(delivery_id, State.CONFIRMED)], now=LATER, backoff=BACKOFF, jitter=0.0)


@pytest.mark.parametrize("state", [State.PENDING, State.UNCERTAIN, State.STORED, State.FAILED])
def test_what_was_tried_stays_where_it_is(ledger: Ledger, state: State) -> None:
    file_id = admit(ledger, 1, ARCHIVE)
    send(ledger, "archive", state)

    assert again(ledger, RESEARCH, file_id) == [Rerouting(gains=("research",), stays=("archive",))]

    assert states(ledger) == {file_id: {"archive": state, "research": State.PENDING}}
    assert again(ledger, RESEARCH, file_id) == []


def test_what_is_being_sent_stays_where_it_is(ledger: Ledger) -> None:
    file_id = admit(ledger, 1, ARCHIVE)
    with ledger.at("archive").transaction() as tx:
        assert moves.claim(tx, "1.2.1", now=LATER) is not None

    again(ledger, RESEARCH, file_id)

    assert states(ledger) == {file_id: {"archive": State.SENDING, "research": State.PENDING}}


def test_who_waited_for_what_is_let_go_takes_its_place(ledger: Ledger) -> None:
    first = admit(ledger, 1, ARCHIVE)
    second = admit(ledger, 1, BOTH)
    assert states(ledger)[second] == {"archive": State.DUPLICATE, "research": State.PENDING}

    assert again(ledger, RESEARCH, first) == [Rerouting(gains=("research",), loses=("archive",))]

    assert states(ledger) == {
        first: {"archive": State.DISCARDED, "research": State.DUPLICATE},
        second: {"archive": State.PENDING, "research": State.PENDING},
    }


@pytest.mark.parametrize("order", [1, -1])
def test_holder_and_duplicate_are_let_go_in_either_order(ledger: Ledger, order: int) -> None:
    files = [admit(ledger, 1, ARCHIVE), admit(ledger, 1, ARCHIVE)]

    for file_id in files[::order]:
        again(ledger, RESEARCH, file_id)

    assert [each["archive"] for each in states(ledger).values()] == [State.DISCARDED] * 2
    assert sorted(each["research"] for each in states(ledger).values()) == [State.DUPLICATE, State.PENDING]


def test_gained_destination_is_what_the_holder_makes_of_it_there(ledger: Ledger) -> None:
    held = admit(ledger, 1, RESEARCH)
    same, other = admit(ledger, 1, ARCHIVE), admit(ledger, 2, ARCHIVE)
    encoded = admit(ledger, 3, ARCHIVE, transfer_syntax="1.2.840.10008.1.2")
    admit(ledger, 2, RESEARCH, seed="others")
    admit(ledger, 3, RESEARCH)

    again(ledger, BOTH, same, other, encoded)

    found = states(ledger)
    assert found[held] == {"research": State.PENDING}
    assert [found[each]["research"] for each in (same, other, encoded)] == [*[State.DUPLICATE] * 2, State.CONFLICT]
    reasons = {entry.file_id: entry.reason for entry in queries.entries(ledger) if entry.destination == "research"}
    wanted = [Reason.SAME_CONTENT, Reason.NOT_COMPARED, Reason.OTHER_ENCODING]
    assert [reasons[each] for each in (same, other, encoded)] == wanted


def test_confirmed_holder_is_asked_about_again(ledger: Ledger) -> None:
    """What was deleted there since is sent, as when the file is dropped again."""
    held = admit(ledger, 1, RESEARCH)
    confirm(ledger, "research", held)
    file_id = admit(ledger, 1, ARCHIVE)

    again(ledger, BOTH, file_id)

    assert states(ledger)[file_id]["research"] is State.DUPLICATE
    entry = queries.entry(ledger, held)
    assert entry is not None
    assert entry.next_check_at == LATER


def test_file_that_no_rule_wanted_is_told_by_its_deliveries(ledger: Ledger) -> None:
    file_id = admit(ledger, 1, UNROUTED)
    assert queries.status(ledger).needs_person == 1

    assert again(ledger, BOTH, file_id) == [Rerouting(gains=("archive", "research"))]

    assert states(ledger) == {file_id: {"archive": State.PENDING, "research": State.PENDING}}
    assert queries.status(ledger).needs_person == 0
    assert {entry.route for entry in queries.entries(ledger)} == {BOTH.text}
    assert {entry.reason for entry in queries.entries(ledger)} == {None}


def test_what_a_person_discarded_stays_so(ledger: Ledger) -> None:
    file_id = admit(ledger, 1, BOTH)
    send(ledger, "research", State.FAILED)
    [failed] = [entry.delivery_id for entry in queries.entries(ledger) if entry.state is State.FAILED]
    with ledger.transaction() as tx:
        moves.discard(tx, failed, now=LATER)

    assert again(ledger, BOTH, file_id) == []

    assert states(ledger)[file_id]["research"] is State.DISCARDED


def test_what_a_rule_let_go_of_comes_back_as_what_it_is_there(ledger: Ledger) -> None:
    file_id = admit(ledger, 1, BOTH)
    again(ledger, NOWHERE, file_id)
    assert states(ledger)[file_id] == {"archive": State.DISCARDED, "research": State.DISCARDED}
    assert [each.file_id for each in queries.routable(ledger)] == [file_id]
    same, other = admit(ledger, 1, ARCHIVE), admit(ledger, 1, RESEARCH, seed="others")

    again(ledger, BOTH, file_id)

    assert states(ledger) == {
        file_id: {"archive": State.DUPLICATE, "research": State.DUPLICATE},
        same: {"archive": State.PENDING},
        other: {"research": State.PENDING},
    }


def test_other_bytes_at_its_place_go_where_the_file_was_sent_last(ledger: Ledger) -> None:
    """They went where any rule had ever sent it."""
    file_id = admit(ledger, 1, BOTH)
    again(ledger, ARCHIVE, file_id)

    with ledger.transaction() as tx:
        read = moves.reread(tx, file_id, arrival(1, seed="others"), now=LATER)

    assert read.number is not None
    assert states(ledger)[read.number] == {"archive": State.PENDING}


def test_file_whose_bytes_are_gone_is_left_alone(ledger: Ledger) -> None:
    file_id = admit(ledger, 1, NOWHERE)
    with ledger.transaction() as tx:
        assert remove(tx, file_id) == 1

    assert queries.routable(ledger) == []
    assert again(ledger, BOTH, file_id) == []


def test_only_what_waits_is_listed_and_nothing_that_a_person_sent(ledger: Ledger) -> None:
    confirm(ledger, "archive", admit(ledger, 1, ARCHIVE))
    sent = Route(rule=None, text=f"{BY_PERSON} sent it to archive", destinations=("archive",))
    admit(ledger, 2, sent)
    waits, unrouted = admit(ledger, 3, ARCHIVE), admit(ledger, 4, UNROUTED, study=2)

    assert [each.file_id for each in queries.routable(ledger)] == [waits, unrouted]
    assert [each.file_id for each in queries.routable(ledger, limit=1, after=waits)] == [unrouted]
    assert [each.file_id for each in queries.routable(ledger, study_uid="1.2.2")] == [unrouted]
    assert queries.routable(ledger, study_uid="1.2.3") == []


def test_duplicate_is_discarded_by_no_other_word(ledger: Ledger) -> None:
    admit(ledger, 1, ARCHIVE)
    duplicate = admit(ledger, 1, ARCHIVE)

    with pytest.raises(RefusedMove, match="is DUPLICATE of row"), ledger.transaction() as tx:
        moves.discard(tx, duplicate, now=LATER)
