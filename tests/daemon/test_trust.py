"""What a server's word "it is there" is worth: trust that copies earn, and what becomes of it when one is not ours.

Real daemons against the embedded server, which cuts, changes or hides what it stored.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestd.clocks import read_clocks
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.stage import Gate
from ingestd.daemon.trust import MOST_IN_ALL, MOST_OF_A_KIND, Comparisons, Trust
from ingestd.emulator import Emulator
from ingestd.inbox import Spool
from ingestd.ledger import Ledger, moves, queries
from ingestd.lifecycle import Content, Identity, Kind, Sameness, ServerKind, State, Unproven
from ingestd.reconciler import Rules, Verify
from ingestd.sender import profile_of
from tests.builders import IMPLICIT, fresh_uid, instance_bytes
from tests.emulating import file_of
from tests.http_server import Conversation, Request, ScriptedServer, answer
from tests.ledgers import url_of
from tests.line.test_line import Image, drop, make_image
from tests.running import Site, wait_until

CT: Kind = ("1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2")
MR: Kind = ("1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.4")
OTHER_SERVER = {"kind": "other", "auth": "none"}


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as one:
        yield one


def site_of(folder: Path, server: Emulator, *, trusted: bool = False, **settings: Any) -> Site:
    """An installation; ``trusted``: as one whose server has matched often enough."""
    site = Site(folder / "site", server.url, **settings)
    if trusted:
        with (
            Ledger.open(site.ledger_url, destinations={"default": server.url}) as ledger,
            ledger.transaction() as tx,
        ):
            moves.count_matches(tx, {CT: MOST_IN_ALL})
    return site


def stopped_because(site: Site) -> dict[str, str]:
    """The notes of the alarms that stand, by kind."""
    with site.ledger() as ledger:
        return {alarm.kind: alarm.note for alarm in queries.status(ledger).alarms}


def wait_for_alarm(site: Site, kind: str, *, stands: bool = True) -> str:
    wait_until(lambda: (kind in stopped_because(site)) is stands, what=f"alarm {kind}: {stands}")
    return stopped_because(site).get(kind, "")


def evidence_of(site: Site, name: str) -> Mapping[str, str]:
    """What the last line of a file's history rests on."""
    (story,) = [story for story in site.stories() if story.entry.relative_path == name]
    return story.history[-1].evidence


def never_confirmed(site: Site) -> bool:
    return all(event.after is not State.CONFIRMED for story in site.stories() for event in story.history)


# Whose it is, and not that it is whole.


@pytest.mark.slow
def test_part_of_an_instance_is_not_taken_for_all_of_it_where_no_verdict_was_read(tmp_path: Path, server: Emulator):
    """The post breaks off, and a lenient server keeps what came of it: it is there, and it is not the file."""
    site = site_of(tmp_path, server, trusted=True, destination=OTHER_SERVER)
    image = make_image()
    server.faults.add("drop_after_store", count=1, method="POST")
    server.faults.add("cut_stored", count=1, bytes=len(image.content) * 4 // 10)
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFLICT": 1})

    assert never_confirmed(site)
    assert evidence_of(site, "image")["content"] == "not_whole"


@pytest.mark.parametrize("settings", [{}, {"destination": OTHER_SERVER}, {"reconcile": {"verify": "content"}}])
def test_copy_that_is_not_whole_is_a_conflict_when_it_came_twice(
    tmp_path: Path, server: Emulator, settings: dict[str, Any]
):
    """A server that drops the last byte of a file: seen to be there, and "its copy could not be compared" for ever."""
    site = site_of(tmp_path, server, **settings)
    server.faults.add("cut_stored", count=1)
    drop(site, "image", make_image().content)

    with site.start():
        site.wait_for({"CONFLICT": 1})

    assert never_confirmed(site)
    (story,) = site.stories()
    looks = [event for event in story.history if event.evidence.get("content") == "not_whole"]
    assert [event.after for event in looks] == [State.STORED, State.CONFLICT]
    assert looks[1].at - looks[0].at >= timedelta(milliseconds=500)
    assert "no whole object" in story.entry.note


# How trust is earned.


def row_of(number: int, kind: Kind = CT, *, study: str = "1.1", state: State = State.STORED, **more: Any) -> Unproven:
    content = Content(transfer_syntax=kind[0], digest="d", meta_digest="m", dataset_offset=144, size_bytes=1000)
    at = datetime.now(UTC)
    return Unproven(
        delivery_id=number,
        identity=Identity(study_uid=study, series_uid="1.2", sop_uid=f"1.3.{number}"),
        state=state,
        content=content,
        path="/nowhere",
        first_attempt_at=at,
        last_attempt_at=at,
        stored_at=at,
        sop_class_uid=kind[1],
        present_before=False,
        **more,
    )


class Trusting:
    """Trust on a ledger of its own, and what it lets be compared."""

    def __init__(self, folder: Path, *, sample: float = 0.0) -> None:
        spool = Spool(folder / "spool")
        self.ledger = Ledger.open(
            url_of(folder),
            host=spool.host,
            spool=spool.path,
            destinations={"default": "http://pacs.example/v2"},
            key=folder / "search.key",
        )
        self.removals = Gate()
        self.trust = Trust(
            ledger=self.ledger,
            alarms=Alarms(),
            removals=self.removals,
            sample=sample,
            grace=timedelta(minutes=15),
        )

    def matched(self, **kinds: int) -> None:
        with self.ledger.transaction() as tx:
            moves.count_matches(tx, {{"ct": CT, "mr": MR}[name]: count for name, count in kinds.items()})
        self.trust.start()

    def compared(self, *rows: Unproven, profile: ServerKind = ServerKind.AZURE, verify: Verify = Verify.AUTO) -> list:
        rules = Rules(profile=profile_of(profile), verify=verify)
        return [(row.delivery_id, row.sampled) for row in self.choose(rows, rules)]

    def choose(self, rows: Sequence[Unproven], rules: Rules) -> list[Unproven]:
        with self.ledger.transaction() as tx:
            return self.trust.choose(tx, rows, rules, Comparisons(queries.standing(tx)))


@pytest.fixture
def trusting(tmp_path: Path) -> Trusting:
    return Trusting(tmp_path)


def test_every_file_is_compared_until_enough_of_all_and_of_its_kind_have_matched(trusting: Trusting):
    row = row_of(1)
    for profile in ServerKind:
        assert trusting.compared(row, profile=profile) == [(1, profile is not ServerKind.ORTHANC)]

    trusting.matched(ct=MOST_IN_ALL - 1)
    assert trusting.compared(row) == [(1, True)]

    trusting.matched(mr=MOST_OF_A_KIND - 1)
    mr = row_of(2, MR)
    assert trusting.compared(row_of(1), mr) == [(1, True), (2, True)], "one of every study, and one more of its kind"

    trusting.matched(mr=1)
    # One of the study is compared.
    assert trusting.compared(row_of(1), row_of(2), mr) == [(1, True), (2, False), (2, False)]


def test_nothing_is_confirmed_by_presence_while_the_first_comparisons_are_under_way(trusting: Trusting):
    """Else a server that alters everything would see thousands confirmed before the first comparison ends."""
    rows = [row_of(number) for number in range(1, 3001)]

    first = trusting.choose(rows, Rules(profile=profile_of(ServerKind.AZURE)))
    trusting.trust.begin(first)
    left = [row for row in rows if row.delivery_id > len(first)]

    assert [row.sampled for row in first] == [True] * MOST_IN_ALL
    assert trusting.compared(*left) == []
    assert trusting.compared(row_of(9001, MR)) == [(9001, True)], "of its kind none is under way"
    trusting.trust.end(1)
    assert trusting.compared(*left) == [(MOST_IN_ALL + 1, True)]


def test_sample_is_drawn_by_a_key_that_no_server_knows(tmp_path: Path):
    drawn = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        trusting = Trusting(tmp_path / name, sample=0.1)
        trusting.matched(ct=MOST_IN_ALL)
        rows = [row_of(number) for number in range(1, 2001)]
        chosen = {number for number, sampled in trusting.compared(*rows) if sampled}
        assert chosen == {number for number, sampled in trusting.compared(*rows) if sampled}
        assert 100 < len(chosen) < 320
        drawn.append(chosen)

    assert len(drawn[0] & drawn[1]) < 80


def test_a_mismatch_is_forgiven_only_if_all_is_settled_still_when_that_is_written(trusting: Trusting):
    """Between the look at the ledger and the transaction another host may have met the next one."""
    rules = Rules(profile=profile_of(ServerKind.AZURE))
    with trusting.ledger.transaction() as tx:
        moves.mismatch(tx, studies=(), differs="its pixels", stops=False, now=datetime.now(UTC))
    trusting.trust.gather(read_clocks(), rules, is_busy=False)
    assert trusting.trust.has_work
    with trusting.ledger.transaction() as tx:
        moves.mismatch(tx, studies=(), differs="its pixels", stops=True, now=datetime.now(UTC))

    with trusting.ledger.transaction() as tx:
        comparisons = Comparisons(queries.standing(tx))
        trusting.trust.record(tx, read_clocks(), rules, comparisons)
        tx.on_commit(lambda: trusting.trust.committed(comparisons))

    assert queries.standing(trusting.ledger).mismatched_at is not None
    assert not trusting.removals.is_open
    assert not trusting.trust.has_work


def test_nothing_is_confirmed_by_presence_in_the_transaction_that_finds_a_mismatch(trusting: Trusting):
    trusting.matched(ct=MOST_IN_ALL)
    compared, waiting = row_of(1), [row_of(2), row_of(3)]
    rules = Rules(profile=profile_of(ServerKind.AZURE))
    with trusting.ledger.transaction() as tx:
        comparisons = Comparisons(queries.standing(tx))
        assert [row.sampled for row in trusting.trust.choose(tx, waiting, rules, comparisons)] == [True, False]
        trusting.trust.judge(tx, compared, Sameness.OTHER, comparisons, rules=rules, at=datetime.now(UTC))

        assert [row.sampled for row in trusting.trust.choose(tx, waiting, rules, comparisons)] == [True, True]


def test_content_and_presence_leave_nothing_to_choose(trusting: Trusting):
    for verify in (Verify.CONTENT, Verify.PRESENCE):
        assert trusting.compared(row_of(1), verify=verify) == [(1, False)]


def test_explain_tells_a_file_that_was_compared_from_one_that_was_not(tmp_path: Path, server: Emulator):
    site = site_of(tmp_path, server, trusted=True, reconcile={"sample": "0%"})
    study_uid = fresh_uid(1)
    drop(site, "first", make_image(study_uid=study_uid).content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})
        drop(site, "second", make_image(study_uid=study_uid).content)
        site.wait_for({"CONFIRMED": 2})

    words_of = {True: "compared with this file: the same", False: "not compared: the server shows that it is there"}
    for name, compared in (("first", True), ("second", False)):
        told = json.loads(site.command("explain", name, "--json").stdout)["files"][0]
        assert told["compared"] is compared
        assert told["history"][-1]["evidence"]["content"] == ("same" if compared else "not compared")
        assert words_of[compared] in " ".join(site.command("explain", name).stdout.split())


# What becomes of it when a copy is not ours.


@pytest.mark.slow
def test_mismatch_on_a_trusted_server_calls_a_person_and_compares_what_was_not(tmp_path: Path, server: Emulator):
    """Until the mismatch is known nothing may go: on a busy machine what was to be compared had gone by then."""
    site = site_of(tmp_path, server, trusted=True, reconcile={"sample": "0%"})
    study_uid = fresh_uid(1)
    drop(site, "first", make_image(study_uid=study_uid).content)
    with site.start() as daemon:
        site.wait_for({"CONFIRMED": 1})
        server.faults.add("change_stored", count=1)
        drop(site, "unseen", make_image(study_uid=study_uid).content)
        site.wait_for({"CONFIRMED": 2})
        drop(site, "whole", make_image(study_uid=study_uid).content)
        site.wait_for({"CONFIRMED": 3})
        assert [entry.compared for entry in site.entries()] == [True, False, False]

        server.faults.add("change_stored", count=1)
        drop(site, "seen", make_image().content)
        # The one of whose study none was compared is found out, and with it the one that presence had confirmed.
        site.wait_for({"CONFIRMED": 2, "CONFLICT": 2})
        note = wait_for_alarm(site, "mismatch")
        site.configure(reconcile={"sample": "0%"}, spool={"retain": "0s"})
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: daemon.listen().count("READY=1") == 2, what="READY again")
        wait_until(lambda: site.entry_of("whole").compared, what="the comparison of what was not compared")

        # All is compared from now on, and nothing goes before a person has looked.
        drop(site, "later", make_image(study_uid=study_uid).content)
        site.wait_for({"CONFIRMED": 3, "CONFLICT": 2})
        assert site.command("status", "--exit-code").returncode == 1
        later = site.entry_of("later")
        time.sleep(12)  # so often the server is looked at for what may go
        kept = [entry.file is not None and entry.file.exists() for entry in site.entries()]

        for name in ("unseen", "seen"):
            site.command("resolve", str(site.entry_of(name).delivery_id), "--discard")
        wait_for_alarm(site, "mismatch", stands=False)
        wait_until(lambda: all(entry.removed_at for entry in site.entries()), what="files that go")

    assert "PatientName (0010,0010) differs" in note
    assert later.compared
    assert kept[1:] == [True] * 4, "the first had matched, and may have gone before"
    assert site.entry_of("unseen").state is State.DISCARDED


@pytest.mark.slow
def test_server_that_alters_everything_is_one_finding_and_no_conflict(tmp_path: Path, server: Emulator):
    site = site_of(tmp_path, server)
    server.faults.add("change_stored")
    images = [make_image() for _ in range(8)]
    for number, image in enumerate(images):
        drop(site, f"image{number}", image.content)

    with site.start() as daemon:
        note = wait_for_alarm(site, "verification_stopped")
        site.wait_for({"STORED": 8})
        told = json.loads(site.command("status", "--json").stdout)
        gets = len(server.requests)
        drop(site, "later", make_image().content)
        site.wait_for({"STORED": 9})
        states = {event.after for story in site.stories() for event in story.history}
        daemon.terminate()

    assert "PatientName (0010,0010) differs" in note
    assert [(each["kind"], each["note"]) for each in told["stopped_because"]] == [("verification_stopped", note)]
    assert told["healthy"] is False
    assert State.CONFLICT not in states
    assert State.CONFIRMED not in states
    assert not [
        line for line in server.requests[gets:] if "/instances/" in line.get("path", "") and line["method"] == "GET"
    ]

    # A person decides: the server may do so.
    site.configure(reconcile={"verify": "presence"})
    with site.start():
        site.wait_for({"CONFIRMED": 9})
        wait_for_alarm(site, "verification_stopped", stands=False)


@pytest.mark.slow
def test_altering_server_that_was_mended_is_trusted_anew_and_what_it_altered_is_told(tmp_path: Path, server: Emulator):
    site = site_of(tmp_path, server, reconcile={"grace": "2s"})
    server.faults.add("change_stored")
    for number in range(5):
        drop(site, f"image{number}", make_image().content)

    with site.start():
        wait_for_alarm(site, "verification_stopped")
        server.faults.clear()
        drop(site, "later", make_image().content)
        site.wait_for({"CONFIRMED": 1, "CONFLICT": 5})
        wait_for_alarm(site, "mismatch")

    assert site.entry_of("later").state is State.CONFIRMED


# An answer without an end.


@pytest.mark.slow
def test_file_of_which_the_server_cannot_tell_is_told_of_after_the_grace_time(tmp_path: Path, server: Emulator):
    site = site_of(tmp_path, server, reconcile={"grace": "1s"})
    image = make_image()
    server.faults.add("half_answer", method="GET", path=f"/instances/{image.sop_uid}")
    drop(site, "image", image.content)

    with site.start():
        note = wait_for_alarm(site, "not_told")
        assert site.command("status", "--exit-code").returncode == 1
        assert "its copy could not be had" in note
        assert "its copy could not be had" in site.entry_of("image").note
        server.faults.clear()
        site.wait_for({"CONFIRMED": 1})
        wait_for_alarm(site, "not_told", stands=False)


def test_instance_that_is_listed_and_not_found_alone_is_found_in_its_series(tmp_path: Path, server: Emulator):
    """Orthanc answers 404 where the SOP Instance UID stands in two series."""
    site = site_of(tmp_path, server)
    image, beside = make_image(), make_image()
    beside = Image((image.identity[0], image.identity[1], beside.identity[2]), beside.content)
    server.faults.add("not_found", method="GET", path=f"/instances/{image.sop_uid}")
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})

    assert site.entries()[0].compared
    server.faults.clear()
    assert file_of(server.url, image.identity) is not None


@pytest.mark.slow
def test_file_that_the_server_answers_nothing_about_is_refused_in_the_end(tmp_path: Path, server: Emulator):
    """Orthanc answers 200 with both sequences empty to what it cannot parse: it was sent again and again."""
    site = site_of(tmp_path, server, reconcile={"absence_wait": "100ms"})
    image = make_image()
    for fault in ("missing_uid", "lose_stored"):
        server.faults.add(fault, uid=image.sop_uid)
    drop(site, "image", image.content)

    with site.start():
        site.wait_for({"FAILED": 1})

    (story,) = site.stories()
    assert story.entry.reason == "refused"
    assert len(story.attempts) == 3
    assert "without naming it" in story.entry.note


@pytest.mark.slow
def test_implicit_vr_that_the_server_answers_nothing_about_is_sent_as_explicit_vr(tmp_path: Path, server: Emulator):
    site = site_of(tmp_path, server, reconcile={"absence_wait": "100ms"})
    identity = (fresh_uid(1), fresh_uid(2), fresh_uid(3))
    content = instance_bytes(
        study_uid=identity[0], series_uid=identity[1], sop_uid=identity[2], transfer_syntax=IMPLICIT
    )
    for fault in ("missing_uid", "lose_stored"):
        server.faults.add(fault, uid=identity[2], count=1)
    drop(site, "image", content)

    with site.start():
        site.wait_for({"CONFIRMED": 1})

    (entry,) = site.entries()
    assert entry.reencoded
    assert entry.compared


class Silencing:
    """Something in front of a server that answers every post for it while told to, and passes nothing on then."""

    def __init__(self, upstream: str, said: bytes, *, stores: bool = False) -> None:
        self._upstream = upstream
        self._said = said
        self._stores = stores
        self.is_silent = True
        self.posts = 0
        self.server = ScriptedServer(self._pass_on)

    def _pass_on(self, conversation: Conversation) -> None:
        body = conversation.read_body()
        self.posts += bool(body)
        if body and self.is_silent:
            if self._stores:
                _ask(self._upstream, conversation.request, body)
            conversation.send(self._said)
            return
        status, said, kind = _ask(self._upstream, conversation.request, body)
        conversation.send(answer(said, status=f"{status} Passed On", content_type=kind))


def _ask(upstream: str, request: Request, body: bytes, **more: str) -> tuple[int, bytes, str]:
    headers = {name: request.headers[name] for name in ("content-type", "accept") if name in request.headers}
    url = upstream + request.target.removeprefix("/v2")
    asked = urllib.request.Request(url, data=body or None, headers={**headers, **more}, method=request.method)
    try:
        with urllib.request.urlopen(asked, timeout=20) as got:
            return got.status, got.read(), got.headers.get("Content-Type", "")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers.get("Content-Type", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "said, was_well",
    [
        (answer(b"{}"), False),
        (answer(b"{}"), True),
        (answer(status="204 No Content", content_type=""), False),
        (answer(b"OK", content_type="text/plain"), False),
    ],
    ids=["empty object", "empty object after others were stored", "no content", "text"],
)
def test_server_that_names_no_instance_of_any_post_is_an_outage(
    tmp_path: Path, server: Emulator, said: bytes, was_well: bool
):
    """A gateway that swallowed every post made every file FAILED within the minute, or was never told of."""
    gateway = Silencing(server.url, said)
    with gateway.server as front:
        site = Site(tmp_path / "site", front.url, reconcile={"absence_wait": "100ms"})
        with site.start():
            if was_well:
                gateway.is_silent = False
                drop(site, "before", make_image().content)
                site.wait_for({"CONFIRMED": 1})
                gateway.is_silent, gateway.posts = True, 0
            for number in range(12):
                drop(site, f"image{number}", make_image().content)
            wait_until(lambda: "silent" in site.stopped(), what="an alarm")
            wait_until(lambda: gateway.posts >= 16, what="many posts")
            assert not {"FAILED", "CONFLICT"} & set(site.states())
            assert site.status()["destination"]["paused"]

            gateway.is_silent = False
            site.wait_for({"CONFIRMED": 12 + was_well})
            wait_until(lambda: "silent" not in site.stopped(), what="the end of the alarm")


@pytest.mark.slow
def test_server_that_stores_without_a_word_is_no_outage(tmp_path: Path, server: Emulator):
    with Silencing(server.url, answer(b"{}"), stores=True).server as front:
        site = Site(tmp_path / "site", front.url)
        with site.start():
            for number in range(12):
                drop(site, f"image{number}", make_image().content)
            site.wait_for({"CONFIRMED": 12})
            wait_until(lambda: not site.stopped(), what="the end of any alarm")


class Doubling:
    """A server in front of another one that has two copies of each instance: a changed one, and one rewritten."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.server = ScriptedServer(self._pass_on)

    def _pass_on(self, conversation: Conversation) -> None:
        body = conversation.read_body()
        request = conversation.request
        is_copy = request.method == "GET" and "/instances/" in request.target
        more = {"accept": "application/dicom; transfer-syntax=*"} if is_copy else {}
        status, said, kind = _ask(self._upstream, request, body, **more)
        if is_copy and status == 200:
            start = b"\r\n--abc\r\nContent-Type: application/dicom\r\n\r\n"
            changed = said[:-1] + bytes([said[-1] ^ 1])
            said = start + changed + start + b"\1" + said[1:] + b"\r\n--abc--\r\n"
            kind = "multipart/related; boundary=abc"
        conversation.send(answer(said, status=f"{status} Passed On", content_type=kind))


def test_file_is_confirmed_by_any_of_several_copies_of_it(tmp_path: Path, server: Emulator):
    with Doubling(server.url).server as doubling:
        site = Site(tmp_path / "site", doubling.url, reconcile={"verify": "content"})
        drop(site, "image", make_image().content)

        with site.start():
            site.wait_for({"CONFIRMED": 1})

    assert site.entries()[0].compared
    assert not list((site.spool / "scratch").rglob("copy-*"))
