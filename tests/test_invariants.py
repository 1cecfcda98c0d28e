"""The invariants decide over the program, so they are held themselves: each is broken once, and says so."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestd.ledger import NewCandidate, moves
from ingestd.lifecycle import Content, Reason, State
from tests.builders import dataset_bytes, part10
from tests.emulating import Identity
from tests.invariants import Invariants, World, digest_of
from tests.kept import told
from tests.ledger_builders import (
    LATER,
    NOW,
    admit,
    apply,
    arrival,
    confirm,
    identity,
    open_ledger,
    outcome,
    refusal,
    send,
    source,
)
from tests.torture.feeding import Kind, Written

SENT_AT = LATER + timedelta(seconds=1)
CONFIRMED_AT = LATER + timedelta(seconds=2)
HOUR = timedelta(hours=1)


@dataclass
class FakeServer:
    """A server that has what a test puts into it, and a log that a test writes."""

    log: list[dict[str, Any]] = field(default_factory=list)
    has: dict[Identity, bytes] = field(default_factory=dict)

    def stores(self) -> list[dict[str, Any]]:
        return self.log

    def content(self, identity: Identity) -> bytes | None:
        return self.has.get(identity)

    def took(self, file: Written, content: bytes, *, at: datetime = SENT_AT, sha256: str = "") -> None:
        uids = {"study": file.study_uid, "series": file.series_uid, "sop": file.sop_uid}
        said = {"at": at.isoformat(), "sha256": sha256 or file.sha256, "result": "stored", "reason": None}
        self.log.append({**uids, **said})
        self.has[file.identity] = content


class House:
    """A ledger with its spool and drop folder, made by hand, and what must be true of it."""

    def __init__(self, folder: Path) -> None:
        self.ledger = open_ledger(folder)
        self.file = folder / "ledger.db"
        self.server = FakeServer()
        self.written: list[Written] = []
        self.world = World(
            spool=folder / "spool-host-a", drop=folder / "drop", servers={"default": self.server}, written=self.written
        )
        self.world.drop.mkdir()
        self.invariants = Invariants(self.world)
        self.reading = sqlite3.connect(self.file, isolation_level=None)

    def close(self) -> None:
        self.reading.close()
        self.ledger.close()

    def takes(self, number: int, *, pixels: int = 1, in_place: bool = False) -> tuple[int, Written, bytes]:
        """Take in an instance, alone in its study: its row, what was written, and the file's content."""
        uids = identity(number, study=number)
        names = {"study_uid": uids.study_uid, "series_uid": uids.series_uid, "sop_uid": uids.sop_uid}
        dataset = dataset_bytes(**names, rows=16, columns=16, pixels=bytes([pixels]) * 512)
        content = part10(dataset, sop_uid=uids.sop_uid)
        offset = len(content) - len(dataset)
        came = arrival(number, study=number, relative_path=f"IM{len(self.written) + 1}")
        if in_place:
            came = replace(came, in_place=True, path=str(self.world.drop / came.relative_path))
        place = self.world.spool / came.path  # which is the path itself where that is absolute
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        holds = Content(
            transfer_syntax=came.content.transfer_syntax,
            digest=hashlib.sha256(dataset).hexdigest(),
            meta_digest=hashlib.sha256(content[:offset]).hexdigest(),
            dataset_offset=offset,
            size_bytes=len(content),
        )
        # Other bytes of one encoding want a comparison; another encoding says at once that it is a conflict.
        same = not any(file.identity == tuple(names.values()) for file in self.written) or pixels == 1
        holds = holds if same else replace(holds, transfer_syntax="1.2.840.10008.1.2.4.70")
        (delivery_id,) = admit(self.ledger, replace(came, content=holds))
        self.written.append(Written(name=came.relative_path, kind=Kind.NEW, **names, sha256=holds.digest))
        return delivery_id, self.written[-1], content

    def delivers(self, number: int, *, pixels: int = 1) -> tuple[int, Written]:
        """Take in an instance and bring it to CONFIRMED."""
        delivery_id, file, content = self.takes(number, pixels=pixels)
        send(self.ledger, number)
        self.server.took(file, content)
        confirm(self.ledger, delivery_id, now=CONFIRMED_AT)
        return delivery_id, file

    def said(self, *, now: datetime = CONFIRMED_AT) -> str:
        return "\n".join(self.invariants.check(self.reading, now=now))

    def said_at_the_end(self) -> str:
        return "\n".join(self.invariants.check_end(self.reading))

    def place(self, delivery_id: int) -> Path:
        (path,) = self.reading.execute("SELECT path FROM file WHERE id = ?", (delivery_id,)).fetchone()
        return self.world.spool / str(told("path", path))

    def breaks(self, sql: str, *values: object) -> None:
        """Write what no move would."""
        with closing(sqlite3.connect(self.file)) as ledger:
            for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                ledger.execute(f"DROP TRIGGER {name}")
            ledger.execute("PRAGMA ignore_check_constraints = ON")
            ledger.execute(sql, values)
            ledger.commit()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """An empty one."""
    made = House(tmp_path)
    yield made
    made.close()


def test_nothing_is_said_where_all_went_well_at_any_moment_of_it(house: House):
    delivery_id, file, content = house.takes(1)
    assert house.said() == ""
    send(house.ledger, 1)
    house.server.took(file, content)
    assert house.said() == ""
    confirm(house.ledger, delivery_id, now=CONFIRMED_AT)
    house.takes(1)
    house.takes(1, pixels=2)
    assert house.said() == ""
    assert house.said_at_the_end() == ""
    assert house.invariants.findings.states == {"CONFIRMED": 1, "DUPLICATE": 1, "CONFLICT": 1}


def test_what_was_said_is_said_once(house: House):
    delivery_id, *_ = house.takes(1)
    house.place(delivery_id).unlink()

    assert house.said() != ""
    house.takes(2)
    assert house.said() == ""
    assert len(house.invariants.findings.violations) == 1


# G1


def test_row_without_its_file_is_said(house: House):
    delivery_id, *_ = house.takes(1)
    house.place(delivery_id).unlink()

    assert "row 1 (PENDING): its file is gone" in house.said()


def test_file_with_another_content_is_said(house: House):
    delivery_id, _, content = house.takes(1)
    house.place(delivery_id).write_bytes(content[:-1] + b"x")

    assert "row 1 (PENDING): its file has another content" in house.said()


def test_copy_that_is_sent_instead_and_is_gone_is_said(house: House):
    house.takes(1)
    house.breaks(
        "INSERT INTO rendition (id, file_id, recipe, path, study_id, series_uid, sop_uid, transfer_syntax, digest,"
        " meta_digest, dataset_offset, size_bytes, made_at) SELECT 1, id, 'explicit_vr', x'6578706c69636974', study_id,"
        " series_uid, sop_uid, transfer_syntax, digest, meta_digest, dataset_offset, size_bytes, 1 FROM file"
    )
    house.breaks("UPDATE delivery SET rendition_id = 1")

    assert "row 1 (PENDING): its file is gone" in house.said()


def test_content_on_the_wire_that_no_row_has_is_said(house: House):
    _, file, content = house.takes(1)
    send(house.ledger, 1)
    house.server.took(file, content, sha256="00" * 32)

    assert "with a content that no row has" in house.said()


def test_file_that_somebody_else_damaged_is_not_said(house: House):
    delivery_id, *_ = house.takes(1)
    house.place(delivery_id).unlink()
    house.world.damaged.add(str(house.place(delivery_id)))

    assert house.said() == ""


def test_file_that_stays_where_it_is_and_is_gone_is_said(house: House):
    delivery_id, *_ = house.takes(1, in_place=True)
    assert house.said() == ""
    house.place(delivery_id).unlink()

    assert "row 1 (PENDING): its file is gone" in house.said()


# G2


def test_file_that_is_nowhere_is_said_and_one_that_lies_anywhere_is_not(house: House):
    _, file, content = house.takes(1)
    house.written.append(replace(file, name="LOST", sha256=digest_of(b"lost")))
    assert "LOST was dropped, and is neither in the drop folder" in house.said()

    for place in (
        house.world.drop / "DROPPED",
        house.world.spool / "files/in/0",
        house.world.spool / "rejected/in/0/ASIDE",
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content[:-1] + place.name[:1].encode())
    house.written += [
        replace(file, name="DROPPED"),
        replace(file, name="ORPHAN", sha256=digest_of(content[:-1] + b"0")),
        Written(name="ASIDE", kind=Kind.TRUNCATED),
    ]
    assert house.said() == ""


# G3


def test_file_that_went_before_its_time_is_said_and_after_it_is_not(house: House):
    house.world.retain = HOUR
    first, _ = house.delivers(1)
    second, _ = house.delivers(2)
    assert house.said() == ""

    house.place(first).unlink()
    assert "row 1 (CONFIRMED): its file is gone" in house.said(now=CONFIRMED_AT + HOUR / 2)
    house.place(second).unlink()
    assert house.said(now=CONFIRMED_AT + HOUR) == ""


def test_file_that_is_needed_still_is_said_however_old(house: House):
    house.world.retain = HOUR
    house.takes(1)
    house.breaks("UPDATE file SET removing_at = admitted_at")

    assert "row 1 (PENDING): its file is gone" in house.said(now=NOW + 24 * HOUR)


def test_nothing_may_go_where_nothing_is_old_enough(house: House):
    delivery_id, _ = house.delivers(1)
    house.place(delivery_id).unlink()

    assert "row 1 (CONFIRMED): its file is gone" in house.said(now=NOW + 24 * HOUR)


# G4


@pytest.mark.parametrize(
    "sql, said",
    [
        ("UPDATE delivery SET state = 'STORED', next_check_at = 1", "its history ends in PENDING, it is in STORED"),
        ("UPDATE delivery SET claim_token = x'00'", "has a claim token, or none"),
        ("UPDATE delivery SET queued = 0", "is queued, or is not, as it should be"),
        ("UPDATE state_count SET entries = 7", "the kept counts say"),
        ("UPDATE study_sum SET waiting = 2", "kept and counted differ in {'waiting'"),
        ("UPDATE history SET after = 4", "no legal move None -> CONFIRMED"),
        ("UPDATE history SET before = 5", "a move from FAILED when it was in None"),
        (
            "INSERT INTO history (file_id, delivery_id, at, after, evidence) VALUES (7, 7, 1, 0, x'')",
            "row 7: its history ends in PENDING, it is in None",
        ),
        (
            "INSERT INTO history (file_id, at, before, after, evidence) VALUES (1, 1, 6, 11, x'')",
            "row 1: a move from REJECTED when it was in None",
        ),
        ("UPDATE delivery SET size_bytes = 7", "row 1 (PENDING) is not what its file or rendition is"),
        ("UPDATE delivery SET identity = zeroblob(16)", "row 1 (PENDING) has another identity than its UIDs"),
        ("UPDATE file SET state = 'REJECTED', changed_at = 1", "file 1 has neither an end nor a delivery, or both"),
        ("UPDATE file SET needed_by = 2", "file 1 is needed by 1 deliveries and counts 2"),
        ("UPDATE file SET unneeded_at = 1", "file 1 is unneeded, or is not, as it should be"),
        ("UPDATE file SET in_spool = 0", "file 1 lies in the spool, or does not, as it should"),
        ("UPDATE sequence SET next = 1 WHERE name = 'file'", "the sequence of file is at 1, and file has 1"),
    ],
)
def test_row_that_moved_by_no_rule_is_said(house: House, sql: str, said: str):
    house.takes(1)
    house.breaks(sql)

    assert said in house.said()


def test_history_that_was_committed_and_is_gone_is_said(house: House):
    house.takes(1)
    assert house.said() == ""
    house.breaks("DELETE FROM history")

    assert "lines of the history that were committed are gone" in house.said()


def test_identity_that_two_rows_hold_is_said(house: House):
    house.takes(1)
    house.takes(1)
    house.breaks("DROP INDEX delivery_holds")
    house.breaks("UPDATE delivery SET state = 'PENDING', holds = 1")

    assert "1.2.1.1.1 is held by 2 rows" in house.said()


def test_duplicate_that_waits_for_nobody_is_said(house: House):
    house.takes(1)
    house.takes(1)
    house.breaks("UPDATE delivery SET holder_id = 99 WHERE id = 2")

    assert "row 2 (DUPLICATE) waits for a row that delivers nothing" in house.said()


# G5


def test_post_without_an_attempt_is_said(house: House):
    _, file, content = house.takes(1)
    house.server.took(file, content)

    assert "reached the server before any attempt was recorded" in house.said()


def test_post_before_its_attempt_is_said(house: House):
    _, file, content = house.takes(1)
    send(house.ledger, 1)
    house.server.took(file, content, at=LATER - timedelta(seconds=1))

    assert "reached the server before any attempt was recorded" in house.said()


@pytest.mark.parametrize("clocks_agree", [True, False])
def test_two_posts_by_one_attempt_are_said(house: House, clocks_agree: bool):
    house.world.clocks_agree = clocks_agree
    _, file, content = house.takes(1)
    send(house.ledger, 1)
    house.server.took(file, content)
    assert house.said() == ""

    house.server.took(file, content)
    assert "was posted twice in one attempt" in house.said()


def test_row_in_sending_without_its_attempt_is_said(house: House):
    house.takes(1)
    with house.ledger.transaction() as tx:
        assert moves.claim(tx, "1.2.1", now=LATER) is not None
    assert house.said() == ""

    house.breaks("UPDATE attempt SET finished_at = 1")
    assert "row 1 (SENDING) has no attempt that is under way" in house.said()


def test_second_sending_is_said_unless_something_explains_it(house: House):
    house.takes(1)
    send(house.ledger, 1, state=State.PENDING, reason=Reason.SERVER_ERROR, body_bytes_left=1000)
    send(house.ledger, 1, now=LATER + HOUR)
    assert "row 1 was sent again because of SENDING 'server_error'" in house.said()

    house.world.explained = frozenset({"server_error"})
    house.takes(2)
    send(house.ledger, 2, state=State.PENDING, reason=Reason.SERVER_ERROR, body_bytes_left=1000)
    send(house.ledger, 2, now=LATER + HOUR)
    house.takes(3)
    send(house.ledger, 3, state=State.PENDING, reason=Reason.NOT_SENT)
    send(house.ledger, 3, now=LATER + HOUR)
    assert "sent again" not in house.said()
    assert house.invariants.findings.sent_again == 3


def test_absence_of_what_the_server_had_is_said(house: House):
    delivery_id, file, content = house.takes(1)
    send(house.ledger, 1, state=State.UNCERTAIN, reason=Reason.NO_VERDICT, body_bytes_left=1000)
    house.server.took(file, content)
    assert house.said() == ""

    apply(house.ledger, outcome(delivery_id, State.PENDING, Reason.ABSENT), now=LATER + HOUR)
    send(house.ledger, 1, now=LATER + 2 * HOUR)
    assert "row 1 was called absent after the server had stored it" in house.said()


def test_sending_again_without_coming_back_is_said(house: House):
    house.takes(1)
    send(house.ledger, 1)
    (attempt_id,) = house.reading.execute("SELECT id FROM attempt").fetchone()
    house.breaks(
        "INSERT INTO history (file_id, delivery_id, at, before, after, attempt_id, evidence)"
        " VALUES (1, 1, 1, 3, 1, ?, x'')",
        attempt_id,
    )

    assert "row 1 was sent again without having come back" in house.said()


# G6


def confirmed_unstored(house: House) -> None:
    delivery_id, *_ = house.takes(1)
    send(house.ledger, 1)
    confirm(house.ledger, delivery_id)


def confirmed_too_soon(house: House) -> None:
    delivery_id, file, content = house.takes(1)
    send(house.ledger, 1)
    confirm(house.ledger, delivery_id)
    house.server.took(file, content, at=LATER + HOUR)


def not_there(house: House) -> None:
    house.delivers(1)
    house.server.has.clear()


def other_content(house: House) -> None:
    _, file = house.delivers(1)
    house.server.has[file.identity] += b"x"


def stored_unsent(house: House) -> None:
    house.takes(1)
    send(house.ledger, 1)


def deleted_by_nobody(house: House) -> None:
    delivery_id, _ = house.delivers(1)
    apply(house.ledger, outcome(delivery_id, State.DELETED, Reason.FEED))


@pytest.mark.parametrize(
    "harm, said",
    [
        (confirmed_unstored, "row 1 was CONFIRMED before the server had stored it"),
        (confirmed_too_soon, "row 1 was CONFIRMED before the server had stored it"),
        (not_there, "row 1 is CONFIRMED and the server has no such instance"),
        (other_content, "row 1 is CONFIRMED and the server has another content"),
        (stored_unsent, "row 1 was called STORED, and nothing of it had reached the server"),
        (deleted_by_nobody, "row 1 was called DELETED, and nobody had deleted it"),
    ],
)
def test_row_that_says_of_the_server_what_is_not_so_is_said(house: House, harm: Callable[[House], None], said: str):
    harm(house)

    assert said in house.said()


def test_what_somebody_else_did_on_the_server_is_not_said(house: House):
    deleted_by_nobody(house)
    house.world.meddled.add(("default", *house.written[0].identity))

    assert house.said() == ""


def test_confirmed_row_is_looked_at_once_more_at_the_end(house: House):
    house.delivers(1)
    assert house.said() == ""
    house.server.has.clear()

    assert "row 1 is CONFIRMED and the server has no such instance" in house.said_at_the_end()


def test_file_that_was_given_up_and_is_there_is_said(house: House):
    _, file, content = house.takes(1)
    send(house.ledger, 1, state=State.FAILED, reason=Reason.REFUSED)
    house.server.took(file, content)

    assert "row 1 is FAILED and the server has it" in house.said_at_the_end()


# G7


def test_whole_file_that_is_rejected_is_said_and_a_broken_one_is_not(house: House):
    with house.ledger.transaction() as tx:
        moves.refuse(tx, [refusal(1)], now=NOW)
    place = house.place(1)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"cut")
    house.written.append(Written(name="bad/IM00001", kind=Kind.TRUNCATED))
    assert house.said() == ""

    house.written[-1] = replace(house.written[-1], kind=Kind.NEW, sop_uid="1.2.3")
    house.takes(2)
    assert "bad/IM00001 was written whole and is REJECTED (truncated)" in house.said()


# Where a file is to lie


def test_place_in_the_spool_that_two_files_want_is_said(house: House):
    house.takes(1)
    taken = house.place(1).name
    names = [("IM1", "0" * 32), ("IM2", "1" * 32)]
    with house.ledger.transaction() as tx:
        files = [NewCandidate(inbox="in", relative_path=name, source=source(), target=to) for name, to in names]
        moves.add_candidates(tx, files, now=NOW)
    assert house.said() == ""

    house.breaks(f"UPDATE candidate SET target = '{names[1][1]}' WHERE target = '{names[0][1]}'")
    assert f"in/{names[1][1]} is the target of 2 candidates" in house.said()
    house.breaks(f"UPDATE candidate SET target = '{taken}' WHERE relative_path = 'IM1'")
    assert f"in/{taken} is a candidate's target, and a row's file" in house.said()


# A file whose bytes changed


def read_again(house: House) -> int:
    """Let a file that is still to be sent have other bytes, and be read again: the row that it is now."""
    delivery_id, was, content = house.takes(1)
    send(house.ledger, 1, state=State.PENDING, reason=Reason.NOT_SENT)
    place = house.place(delivery_id)
    place.write_bytes(content[:-1] + b"x")
    digest = digest_of(place.read_bytes())
    came = arrival(1, relative_path=was.name)
    came = replace(came, path=str(place.relative_to(house.world.spool)), content=replace(came.content, digest=digest))
    with house.ledger.transaction() as tx:
        answer = moves.reread(tx, delivery_id, came, now=LATER)
    house.written[-1] = replace(was, sha256=digest)
    assert answer.number is not None
    return answer.number


def test_file_whose_bytes_changed_may_have_two_rows(house: House):
    delivery_id = read_again(house)
    assert house.said() == ""

    send(house.ledger, 1, now=LATER + HOUR)
    house.server.took(house.written[0], house.place(delivery_id).read_bytes(), at=LATER + HOUR)
    confirm(house.ledger, delivery_id, now=LATER + 2 * HOUR)
    assert house.said_at_the_end() == ""


_SAME_CONTENT = """UPDATE file SET (digest, meta_digest) = (SELECT digest, meta_digest FROM file WHERE id = 2)
    WHERE id = 1"""


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE delivery SET reason = 'discarded' WHERE id = 1",
        "UPDATE file SET removed_at = NULL WHERE id = 1",
        "UPDATE file SET relative_path = 'another' WHERE id = 2",
        _SAME_CONTENT,
    ],
)
def test_row_that_lost_its_file_to_no_other_content_is_said(house: House, sql: str):
    read_again(house)
    house.breaks("DROP INDEX file_path")
    house.breaks(sql)

    said = house.said_at_the_end()
    assert "row 1 (DISCARDED): its file is gone" in said
    assert "1.2.1.1.1: files written [1]" in said


# The end


def test_what_is_left_over_is_said_at_the_end(house: House):
    house.delivers(1)
    (house.world.drop / "LEFT").write_bytes(b"x")
    (house.world.spool / "files" / "in" / ("f" * 32)).write_bytes(b"y")
    with house.ledger.transaction() as tx:
        moves.add_candidates(tx, [NewCandidate(inbox="in", relative_path="r", source=source())], now=NOW)
    assert house.said() == ""

    said = house.said_at_the_end()
    assert "1 candidates are left over" in said
    assert "1 files still lie in the drop folder, LEFT among them" in said
    assert "1 files in the spool belong to no row" in said


def test_ends_that_do_not_add_up_are_said(house: House):
    house.delivers(1)
    house.takes(2)
    house.written += [
        replace(house.written[0], name="SECOND"),
        Written(name="CUT", kind=Kind.TRUNCATED),
    ]

    said = house.said_at_the_end()
    assert "1.2.1.1.1: files written [2], rows [1]" in said
    assert "SECOND was dropped once and has 0 rows of that name" in said
    assert "1.2.2.1.2: 0 contents are CONFIRMED; its rows are ['PENDING']" in said
    assert "rejected {}, written {'truncated': 1}" in said


def test_there_has_to_be_a_ledger_at_the_end(house: House):
    assert house.invariants.check(None) == []
    assert house.invariants.check_end(None) == ["there is no ledger"]


def test_file_at_a_destination_that_no_rule_names_is_said_and_so_is_one_that_is_missing(house: House):
    _, file = house.delivers(1)
    house.world.goes_to = lambda _: ()
    assert f"{file.sop_uid}: files written [1], rows []" in house.said_at_the_end()

    house.world.goes_to = lambda _: ("default", "archive")
    said = Invariants(house.world).check_end(house.reading)
    assert said == [f"{file.sop_uid}: files written [1], rows []"]
