"""A file is one, however many deliveries it has: it is listed once, and kept while one of them is in doubt."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from ingestd.ledger import Choice, Entry, Ledger, moves, queries
from ingestd.lifecycle import Reason, State
from tests.ledger_builders import (
    LATER,
    NOW,
    admit,
    arrival,
    assert_ledger_holds,
    confirm,
    content,
    entry_in,
    open_ledger,
    refusal,
    send,
)
from tests.ledgers import raw, url_of

MUCH_LATER = LATER + timedelta(days=1)
_NUMBERS = count(1001)


@pytest.fixture
def ledger(tmp_path: Path):
    with open_ledger(tmp_path) as opened:
        yield opened


def deliver_elsewhere(ledger: Ledger, delivery_id: int) -> int:
    """Have the file delivered to a second server just as to the first."""
    number = next(_NUMBERS)
    with raw(ledger) as connection:
        connection.execute(
            "INSERT INTO destination (id, name, url) VALUES (2, 'other', 'http://other') ON CONFLICT DO NOTHING"
        )
        connection.execute("CREATE TEMP TABLE more AS SELECT * FROM delivery WHERE id = ?", (delivery_id,))
        connection.execute("UPDATE more SET id = ?, destination_id = 2", (number,))
        connection.execute("INSERT INTO delivery SELECT * FROM more")
    return number


def execute(ledger: Ledger, statement: str, *values: int) -> None:
    with raw(ledger) as connection:
        connection.execute(statement, values)


def numbers(found: list[Entry]) -> list[int]:
    return [entry.delivery_id for entry in found]


def removable(ledger: Ledger) -> list[int]:
    return [row.file_id for row in queries.removable(ledger, before=MUCH_LATER)]


def test_file_with_two_deliveries_is_listed_once_where_it_is_about_the_file(ledger: Ledger):
    delivery_id = entry_in(ledger, State.CONFIRMED)
    other = deliver_elsewhere(ledger, delivery_id)
    dropped_as = arrival(1).relative_path

    assert removable(ledger) == [delivery_id]
    assert [row.delivery_id for row in queries.resting(ledger, before=MUCH_LATER, limit=9)] == [delivery_id]
    assert [row.file_id for row in queries.known_sources(ledger, "in", [dropped_as])[dropped_as]] == [delivery_id]
    assert numbers(queries.find(ledger, dropped_as)) == [delivery_id, other]
    ledger.expect_destinations(None)  # reads which there are
    assert numbers(queries.entries(ledger)) == [other, delivery_id]


def test_file_stays_while_any_of_its_deliveries_is_to_be_looked_at_again(ledger: Ledger):
    delivery_id = entry_in(ledger, State.CONFIRMED)
    other = deliver_elsewhere(ledger, delivery_id)
    execute(ledger, "UPDATE delivery SET next_check_at = 1 WHERE id = ?", other)
    assert removable(ledger) == []

    execute(ledger, "UPDATE delivery SET next_check_at = NULL WHERE id = ?", other)
    assert removable(ledger) == [delivery_id]


def test_what_was_being_removed_comes_again_at_once_and_first(ledger: Ledger):
    """However long it is to be kept: from when it was written that it goes, nobody counts on its bytes."""
    first, second = (entry_in(ledger, State.CONFIRMED, number, study=number) for number in (1, 2))
    execute(ledger, "UPDATE file SET removing_at = 1 WHERE id = ?", second)

    (left,) = queries.removable(ledger, before=NOW - timedelta(days=1))
    assert (left.file_id, left.is_being_removed, len(left.files)) == (second, True, 1)
    assert removable(ledger) == [second, first]
    assert [row.file_id for row in queries.removable(ledger, before=MUCH_LATER, limit=1)] == [second]
    told = queries.entry(ledger, second)
    assert told is not None
    assert told.file is None
    assert queries.paths_known(ledger, [left.files[0].path]) == {left.files[0].path}, "it is no file without a row"

    with ledger.transaction() as tx:
        moves.mark_removed(tx, [second], now=LATER)
    assert removable(ledger) == [first]
    assert queries.paths_known(ledger, [left.files[0].path]) == set()


def test_rendition_that_is_gone_is_no_file_to_remove(ledger: Ledger):
    came = arrival(1)
    (delivery_id,) = admit(ledger, came)
    with ledger.transaction() as tx:
        moves.attach_reencoded(tx, delivery_id, path="explicit/1", content=content("explicit"), now=NOW)
    send(ledger)
    confirm(ledger, delivery_id)
    (row,) = queries.removable(ledger, before=MUCH_LATER)
    assert [each.path for each in row.files] == [came.path, "explicit/1"]
    assert numbers(queries.find(ledger, "explicit/1")) == [delivery_id]

    execute(ledger, "UPDATE rendition SET removed_at = 1")
    (row,) = queries.removable(ledger, before=MUCH_LATER)
    assert [each.path for each in row.files] == [came.path]
    assert queries.paths_known(ledger, ["explicit/1"]) == set()


def test_rendition_of_a_file_whose_bytes_changed_goes_at_once(ledger: Ledger):
    """It lay in the spool for good: known, and never to be removed."""
    (delivery_id,) = admit(ledger, arrival(1))
    with ledger.transaction() as tx:
        moves.attach_reencoded(tx, delivery_id, path="explicit/1", content=content("explicit"), now=NOW)
    send(ledger, state=State.PENDING, reason=Reason.CHANGED, reread=True)
    with ledger.transaction() as tx:
        moves.reread(tx, delivery_id, arrival(1, seed="other"), now=LATER)

    (row,) = queries.removable(ledger, before=NOW - timedelta(days=1))
    assert (row.file_id, [each.path for each in row.files]) == (delivery_id, ["explicit/1"])
    with ledger.transaction() as tx:
        moves.mark_removed(tx, [delivery_id], now=LATER)
    assert queries.paths_known(ledger, ["explicit/1"]) == set()
    assert queries.removable(ledger, before=LATER) == []
    assert_ledger_holds(ledger)


def test_file_is_held_by_what_is_away_where_it_rests_on_it(ledger: Ledger):
    of_both, of_one = (entry_in(ledger, State.CONFIRMED, number) for number in (1, 2))
    let_go = entry_in(ledger, State.DISCARDED, 3)
    deliver_elsewhere(ledger, of_both)

    def may_go(**where: set[int]) -> set[int]:
        return {row.file_id for row in queries.removable(ledger, before=MUCH_LATER, **where)}

    assert may_go(away={2}) == {of_one, let_go}
    assert may_go(away={1}) == may_go(away={1, 2}) == {let_go}
    assert may_go() == {of_both, of_one, let_go}


def test_copy_in_doubt_where_nobody_asks_holds_no_file(ledger: Ledger):
    """Rows to be compared at a destination that the configuration has no more kept their files for ever."""
    delivery_id = entry_in(ledger, State.CONFIRMED, 1)
    elsewhere = deliver_elsewhere(ledger, delivery_id)
    execute(ledger, "UPDATE delivery SET next_check_at = 1, needs_content_check = 1 WHERE id = ?", elsewhere)
    assert removable(ledger) == []

    (row,) = queries.removable(ledger, before=MUCH_LATER, unasked={2})

    assert row.file_id == delivery_id
    with ledger.transaction() as tx:
        assert moves.mark_removing(tx, [delivery_id], now=LATER) == set()
        assert moves.mark_removing(tx, [delivery_id], unasked={2}, now=LATER) == {delivery_id}


def test_what_is_in_doubt_at_one_server_rests_on_the_other_all_the_same(ledger: Ledger):
    """Its doubt may end after this server was looked at for it, and then it goes."""
    delivery_id = entry_in(ledger, State.CONFIRMED, 1)
    elsewhere = deliver_elsewhere(ledger, delivery_id)
    execute(ledger, "UPDATE delivery SET next_check_at = 1 WHERE id = ?", elsewhere)

    assert [row.delivery_id for row in queries.resting(ledger, before=MUCH_LATER)] == [delivery_id]


def test_pages_of_entries_have_each_one_once_and_the_newest_first(ledger: Ledger):
    states = [state for state in State if state is not State.UNROUTED]
    for number, state in enumerate(states, start=1):
        entry_in(ledger, state, number, study=number)
    everything = queries.entries(ledger)

    assert {entry.state for entry in everything} == set(states)
    paged: list[Entry] = []
    while page := queries.entries(ledger, limit=2, after=paged[-1] if paged else None):
        paged += page
    assert paged == everything
    for state in states:
        assert numbers(queries.entries(ledger, Choice(state=state))) == [
            entry.delivery_id for entry in everything if entry.state is state
        ]
        few = queries.entries(ledger, Choice(state=state, modality="CT"))
        assert {entry.state for entry in few} <= {state}
    of_studies = queries.entries(ledger, Choice(modality="CT"))
    assert numbers(of_studies) == [entry.delivery_id for entry in everything if entry.modality == "CT"]


def test_rejected_file_that_was_admitted_anew_tells_both_its_ends(ledger: Ledger):
    with ledger.transaction() as tx:
        (rejected,) = moves.refuse(tx, [refusal(1)], now=NOW)
        moves.admit_anyway(tx, rejected, now=NOW)
    asked = queries.entry(ledger, rejected)
    assert asked is not None
    assert (asked.state, asked.request) == (State.REJECTED, "admit_anyway")

    with ledger.transaction() as tx:
        moves.admit(tx, [arrival(1)], formers={0: rejected}, now=LATER)

    story = queries.story(ledger, rejected)
    assert story is not None
    assert (story.entry.state, story.entry.request, story.entry.removed_at) == (State.DISCARDED, None, LATER)
    assert [event.after for event in story.history] == [State.REJECTED, State.REJECTED, State.DISCARDED]
    assert story.history[-1].reason == Reason.ADMITTED_ANYWAY
    assert queries.paths_known(ledger, [story.entry.path or ""]) == set(), "it is the new row's"
    assert removable(ledger) == []
    assert_ledger_holds(ledger)


def test_number_that_was_never_given_out_names_nothing(ledger: Ledger):
    admit(ledger, arrival(1))
    assert queries.entry(ledger, 99) is None
    assert queries.story(ledger, 99) is None


def test_bytes_that_changed_go_to_no_destination_that_is_no_longer_configured(tmp_path: Path):
    """What waited there could not leave: nobody serves it any more, and the daemon would not have started again."""

    def opened(*names: str) -> Ledger:
        destinations = {name: f"http://{name}.example/v2" for name in names}
        key = tmp_path / "search.key"
        return Ledger.open(url_of(tmp_path), host="a", destinations=destinations, spool=tmp_path, key=key)

    with opened("former", "present") as ledger:
        (number,) = admit(ledger, arrival(1))
        send(ledger.at("former"))
        confirm(ledger.at("former"), number)
        send(ledger.at("present"), state=State.PENDING, reason=Reason.CHANGED, reread=True)
    with opened("present") as ledger:
        (row,) = queries.rows_to_read(ledger)
        with ledger.transaction() as tx:
            moves.reread(tx, row.delivery_id, arrival(1, seed="other"), now=LATER)

        assert [(entry.destination, entry.state) for entry in queries.entries(ledger)] == [
            ("present", State.PENDING),
            ("present", State.DISCARDED),
            ("former", State.CONFIRMED),
        ]
        assert_ledger_holds(ledger)


def test_what_is_to_be_read_is_told_page_by_page_and_nothing_is_passed_over(ledger: Ledger):
    """A page ended with a delivery's number and the next began behind a file's: those in between waited for a round."""
    first, *others = admit(ledger, *(arrival(number) for number in range(1, 5)))
    deliver_elsewhere(ledger, first)
    execute(ledger, "UPDATE delivery SET need = 'reread', queued = 0")

    found: list[int] = []
    while page := queries.rows_to_read(ledger, limit=2, after_id=found[-1] if found else 0):
        found += [row.delivery_id for row in page]

    assert found[:4] == [first, *others]
    assert len(found) == 5
