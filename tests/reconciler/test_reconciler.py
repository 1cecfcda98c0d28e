"""The reconciler against real servers: what it asks, what it finds, and that no altered copy is ever CONFIRMED."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.dicomweb import ChangeFeedEntry, DicomWebClient, Timeouts
from ingestd.emulator import Emulator
from ingestd.lifecycle import FeedCursor, FeedEnd, Identity, Part, PauseCause, Reason, Sameness, ServerKind, State
from ingestd.reconciler import (
    FeedAnswer,
    FeedQuestion,
    Finding,
    Rules,
    StudyAnswer,
    StudyQuestion,
    StudyRows,
    Verify,
    audit,
    unknown_studies,
)
from ingestd.reconciler.asking import StudyAsker
from ingestd.reconciler.feed import MOST_PAGES, newest_sightings, read_feed
from ingestd.sender import probe_profile, profile_of
from tests.builders import EXPLICIT, fresh_uid, instance_bytes
from tests.delivering import Asking, Row, batch_of, content_of, part_of, send, utc_now
from tests.http_server import Conversation, ScriptedServer, answer
from tests.orthanc import Orthanc, requires_orthanc

AZURE = profile_of(ServerKind.AZURE, feed_version=2)
AZURE_V1 = profile_of(ServerKind.AZURE, feed_version=1)
ORTHANC = profile_of(ServerKind.ORTHANC)
OTHER = profile_of(ServerKind.OTHER)
QUICK = Timeouts(connect=timedelta(seconds=5), read=timedelta(seconds=5), total=timedelta(seconds=10))
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as server:
        yield server


def make(folder: Path, *, like: Part | None = None, pixels: bytes | None = None, study_uid: str = "", **more) -> Part:
    """A part; ``like`` another: the same UIDs, other pixels."""
    identity = (
        like.identity
        if like is not None
        else Identity(study_uid=study_uid or fresh_uid(1), series_uid=fresh_uid(2), sop_uid=fresh_uid(3))
    )
    path = folder / f"{identity.sop_uid}-{os.urandom(4).hex()}"
    path.write_bytes(
        instance_bytes(
            study_uid=identity.study_uid,
            series_uid=identity.series_uid,
            sop_uid=identity.sop_uid,
            pixels=pixels if pixels is not None else os.urandom(512),
            **more,
        )
    )
    return part_of(path, identity, transfer_syntax=more.get("transfer_syntax", EXPLICIT))


def uids(part: Part) -> tuple[str, str, str]:
    return part.identity.study_uid, part.identity.series_uid, part.identity.sop_uid


class Site:
    """A server and what ingestd does with it, in a few words."""

    def __init__(
        self, url: str, rules: Rules, scratch: Path, *, delete_by_rest: Callable[[str], None] | None = None
    ) -> None:
        self.delete_by_rest = delete_by_rest
        self.client = DicomWebClient(url, timeouts=QUICK)
        self.rules = rules
        self.asking = Asking(self.client, rules, scratch)

    def __enter__(self) -> Site:  # noqa: PYI034 - tests
        return self

    def __exit__(self, *_exc: object) -> None:
        self.asking.__exit__()
        self.client.close()

    def send(self, *parts: Part) -> list[Row]:
        return send(self.client, parts, self.rules)

    def store_behind_our_back(self, part: Part) -> None:
        self.client.store([part.path])

    def delete(self, part: Part) -> None:
        if self.delete_by_rest is not None:
            self.delete_by_rest(part.identity.sop_uid)
        else:
            self.client.delete(*uids(part))

    def settle(self, rows: list[Row]) -> None:
        self.asking.settle(rows)

    def deliver(self, *parts: Part) -> list[Row]:
        rows = self.send(*parts)
        self.settle(rows)
        return rows


@pytest.fixture(params=["v2", "v1"])
def azure(request: pytest.FixtureRequest, emulator: Emulator, scratch: Path) -> Iterator[Site]:
    profile = AZURE if request.param == "v2" else AZURE_V1
    with Site(f"{emulator.root}/{request.param}", Rules(profile=profile), scratch) as site:
        yield site


@pytest.fixture(scope="module")
def one_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(folder=tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def at_orthanc(one_orthanc: Orthanc, scratch: Path) -> Iterator[Site]:
    with Site(one_orthanc.url, Rules(profile=ORTHANC), scratch, delete_by_rest=one_orthanc.delete) as site:
        yield site


# What holds on the emulator and on Orthanc alike runs against both.
@pytest.fixture(params=["v2", pytest.param("orthanc", marks=[pytest.mark.orthanc, requires_orthanc])])
def site(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Site]:
    if request.param == "orthanc":
        yield request.getfixturevalue("at_orthanc")
        return
    with Site(request.getfixturevalue("emulator").url, Rules(profile=AZURE), scratch) as one:
        yield one


def test_what_was_stored_is_confirmed_by_the_change_feed(tmp_path, azure):
    study_uid = fresh_uid(1)
    rows = azure.deliver(*(make(tmp_path, study_uid=study_uid) for _ in range(3)))

    assert [(row.state, row.reason) for row in rows] == [(State.CONFIRMED, Reason.FEED)] * 3


@pytest.mark.orthanc
@requires_orthanc
def test_what_was_stored_is_confirmed_by_its_content_on_orthanc(tmp_path, at_orthanc):
    study_uid = fresh_uid(1)
    rows = at_orthanc.deliver(*(make(tmp_path, study_uid=study_uid) for _ in range(3)))

    assert [(row.state, row.reason) for row in rows] == [(State.CONFIRMED, Reason.CONTENT_CHECK)] * 3


@pytest.mark.orthanc
@requires_orthanc
def test_orthanc_is_known_and_keeps_the_older_object_without_a_word(tmp_path, at_orthanc):
    """Why it is asked before the post, and compared after: both posts are answered with 200 and listed as stored."""
    older = make(tmp_path)

    (first,), (second,) = at_orthanc.send(older), at_orthanc.send(make(tmp_path, like=older))

    assert probe_profile(at_orthanc.client) == ORTHANC
    assert [(row.state, row.history[-1].evidence["present_before"]) for row in (first, second)] == [
        (State.STORED, "no"),
        (State.STORED, "yes"),
    ]


@pytest.mark.orthanc
@requires_orthanc
def test_absent_before_and_present_after_confirms_on_a_server_of_unknown_kind(tmp_path, one_orthanc, scratch):
    with Site(one_orthanc.url, Rules(profile=OTHER), scratch) as unknown:
        study_uid = fresh_uid(1)
        rows = unknown.deliver(*(make(tmp_path, study_uid=study_uid) for _ in range(5)))

    assert [(row.state, row.reason) for row in rows] == [(State.CONFIRMED, Reason.QUERY)] * 5


def test_second_delivery_of_the_same_content_is_confirmed_as_already_there(tmp_path, site):
    part = make(tmp_path)
    site.store_behind_our_back(part)

    (row,) = site.deliver(part)

    assert State.CONFIRMED is row.state
    assert row.reason in {Reason.ALREADY_THERE, Reason.CONTENT_CHECK}


def test_other_file_meta_around_the_same_data_set_is_the_same_content(tmp_path, site):
    """The managed service zeroes the preamble; exports of one object differ in group 0002."""
    part = make(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(b"I" * 128 + Path(part.path).read_bytes()[128:])
    site.store_behind_our_back(part_of(other, part.identity))

    (row,) = site.deliver(part)

    assert State.CONFIRMED is row.state


def test_altered_copy_stored_before_ours_is_a_conflict(tmp_path, site):
    ours = make(tmp_path)
    site.store_behind_our_back(make(tmp_path, like=ours))

    (row,) = site.deliver(ours)

    assert (row.state, row.reason) == (State.CONFLICT, Reason.OTHER_CONTENT)


def test_same_pixels_in_another_encoding_are_for_a_person_to_judge(tmp_path, site):
    ours = make(tmp_path, pixels=b"\1\2" * 256)
    site.store_behind_our_back(make(tmp_path, like=ours, pixels=b"\1\2" * 256, transfer_syntax="1.2.840.10008.1.2"))

    (row,) = site.deliver(ours)

    assert (row.state, row.reason) == (State.CONFLICT, Reason.OTHER_ENCODING)


def test_altered_copy_that_takes_our_place_before_we_look_is_a_conflict(tmp_path, site):
    ours = make(tmp_path)
    (row,) = site.send(ours)
    assert State.STORED is row.state
    site.delete(ours)
    site.store_behind_our_back(make(tmp_path, like=ours))

    site.settle([row])

    assert (row.state, row.reason) == (State.CONFLICT, Reason.OTHER_CONTENT)


def test_altered_copy_that_takes_our_place_between_two_reads_of_the_feed_is_a_conflict(tmp_path, azure):
    """The feed was read while ours was there; what counts is what is there when the row is judged."""
    ours = make(tmp_path)
    (row,) = azure.send(ours)
    azure.asking.read_feed([row])
    azure.delete(ours)
    azure.store_behind_our_back(make(tmp_path, like=ours))

    azure.settle([row])

    assert (row.state, row.reason) == (State.CONFLICT, Reason.OTHER_CONTENT)


def test_our_own_file_deleted_and_stored_again_by_somebody_is_confirmed_by_its_content(tmp_path, azure):
    ours = make(tmp_path)
    (row,) = azure.send(ours)
    azure.delete(ours)
    azure.store_behind_our_back(ours)

    azure.settle([row])

    assert (row.state, row.reason) == (State.CONFIRMED, Reason.CONTENT_CHECK)


class Interloper:
    """A loopback server that lets ``do`` happen between the query and the post of one batch, then passes all on."""

    def __init__(self, upstream: str, do: Callable[[], object]) -> None:
        self._upstream = upstream
        self._do = do
        self._done = False
        self.server = ScriptedServer(self._pass_on)

    def _pass_on(self, conversation: Conversation) -> None:
        body = conversation.read_body()
        request = conversation.request
        if request.method == "POST" and not self._done:
            self._done = True
            self._do()
        path = request.target.removeprefix("/v2")
        headers = {name: request.headers[name] for name in ("content-type", "accept") if name in request.headers}
        upstream = urllib.request.Request(
            self._upstream + path, data=body or None, headers=headers, method=request.method
        )
        try:
            with urllib.request.urlopen(upstream, timeout=20) as got:
                status, said, kind = got.status, got.read(), got.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            with error:
                status, said, kind = error.code, error.read(), error.headers.get("Content-Type", "")
        conversation.send(answer(said, status=f"{status} Passed On", content_type=kind))


@pytest.mark.orthanc
@requires_orthanc
def test_altered_copy_stored_between_the_query_and_the_post_is_a_conflict(tmp_path, one_orthanc, scratch):
    """Orthanc lists our post as stored and keeps theirs, and the query before it had found nothing."""
    ours = make(tmp_path)
    theirs = make(tmp_path, like=ours)
    with DicomWebClient(one_orthanc.url) as direct:
        interloper = Interloper(one_orthanc.url, lambda: direct.store([theirs.path]))
        with interloper.server, Site(interloper.server.url, Rules(profile=ORTHANC), scratch) as racing:
            (row,) = racing.send(ours)
            assert (row.state, row.history[-1].evidence["present_before"]) == (State.STORED, "no")

            racing.settle([row])

    assert (row.state, row.reason) == (State.CONFLICT, Reason.OTHER_CONTENT)


@pytest.mark.parametrize("theirs_is_altered", [True, False])
def test_lost_answer_with_somebody_else_s_post_under_way_is_settled_by_content(
    tmp_path, emulator, scratch, theirs_is_altered
):
    """A Create entry newer than our attempt is no proof: it may be theirs, and the lost answer our refusal."""
    ours = make(tmp_path)
    theirs = make(tmp_path, like=ours) if theirs_is_altered else ours

    def hang_up(conversation: Conversation) -> None:
        conversation.read_body()
        with DicomWebClient(emulator.url) as direct:
            direct.store([theirs.path])
        conversation.hang_up(reset=True)

    with ScriptedServer(hang_up) as server, DicomWebClient(server.url) as client:
        (row,) = send(client, [ours], Rules(profile=AZURE))
    assert (row.state, row.reason) == (State.UNCERTAIN, Reason.NO_VERDICT)

    with Site(emulator.url, Rules(profile=AZURE), scratch) as azure:
        azure.settle([row])

    assert (State.CONFLICT if theirs_is_altered else State.CONFIRMED) is row.state


@pytest.mark.parametrize("fault", ["drop_after_store", "half_answer", "error_after_store"])
def test_lost_answer_to_what_was_stored_is_confirmed_without_a_second_post(tmp_path, emulator, scratch, fault):
    emulator.faults.add(fault, count=1, method="POST")
    before = len(emulator.requests)
    with Site(emulator.url, Rules(profile=AZURE), scratch) as azure:
        study_uid = fresh_uid(1)
        rows = azure.send(*(make(tmp_path, study_uid=study_uid) for _ in range(2)))
        assert [row.state for row in rows] == [State.UNCERTAIN] * 2

        azure.settle(rows)

        assert [(row.state, row.reason) for row in rows] == [(State.CONFIRMED, Reason.CONTENT_CHECK)] * 2
        posts = [line for line in emulator.requests[before:] if line.get("method") == "POST"]
    assert len(posts) == 1


def test_lost_answer_to_what_was_not_stored_is_sent_again_after_two_absences(tmp_path, emulator, scratch):
    emulator.faults.add("drop_after_body", count=1, method="POST")
    with Site(emulator.url, Rules(profile=AZURE), scratch) as azure:
        (row,) = azure.send(make(tmp_path))
        began = azure.asking.now()

        azure.settle([row])

        assert (row.state, row.reason) == (State.PENDING, Reason.ABSENT)
        assert [one.state for one in row.history] == [State.UNCERTAIN, State.UNCERTAIN, State.PENDING]
        assert azure.asking.now() - began >= AZURE.absence_wait


def test_what_the_server_loses_after_its_answer_is_noticed_and_sent_again(tmp_path, emulator, scratch):
    emulator.faults.add("lose_stored", count=1)
    with Site(emulator.url, Rules(profile=AZURE), scratch) as azure:
        (row,) = azure.send(make(tmp_path))
        assert State.STORED is row.state

        azure.settle([row])

    reasons = [one.reason for one in row.history]
    assert [reason for number, reason in enumerate(reasons) if number == 0 or reason is not Reason.STORED_ANSWER] == [
        Reason.STORED_ANSWER,
        Reason.NOT_SHOWN,
        Reason.ABSENT,
        Reason.ABSENT,
    ]
    assert State.PENDING is row.state


def test_deletion_on_the_server_is_told_by_the_feed(tmp_path, azure):
    stored, confirmed = make(tmp_path), make(tmp_path)
    (first,) = azure.send(stored)
    (second,) = azure.deliver(confirmed)
    azure.delete(stored)
    azure.delete(confirmed)
    for row in (first, second):
        # The server deleted well after it had answered; here both happen within the margin between two clocks.
        earlier = row.started_at - timedelta(minutes=5)
        row.row = replace(row.row, stored_at=earlier, last_attempt_at=earlier)

    azure.asking.ask_once([first, second])

    assert (first.state, first.reason) == (State.DELETED, Reason.FEED)
    assert (second.state, second.reason) == (State.DELETED, Reason.FEED)


def test_deletion_at_about_the_time_of_the_post_is_asked_about(tmp_path, azure):
    stored, confirmed = make(tmp_path), make(tmp_path)
    rows = [*azure.send(stored), *azure.deliver(confirmed)]
    azure.delete(stored)
    azure.delete(confirmed)

    azure.asking.ask_once(rows)

    assert [(row.state, row.reason) for row in rows] == [(State.DELETED, Reason.FEED)] * 2


def test_deletion_is_found_by_asking_twice_where_no_feed_tells(tmp_path, site):
    part = make(tmp_path)
    (row,) = site.deliver(part)
    assert State.CONFIRMED is row.state
    site.delete(part)
    row.row = replace(row.row, seen_sequence=None, seen_state=None, seen_action=None, seen_at=None)
    site.rules = site.asking.rules = replace(
        site.rules, profile=replace(site.rules.profile, has_feed=False, feed_version=None)
    )

    site.asking.ask_once([row])
    assert (row.state, row.reason) == (State.CONFIRMED, Reason.ABSENT)
    site.asking.jumped += timedelta(minutes=1)
    site.asking.ask_once([row])

    assert (row.state, row.reason) == (State.DELETED, Reason.ABSENT)


def test_deleted_row_that_is_there_again_is_confirmed_only_with_our_content(tmp_path, azure):
    ours, others = make(tmp_path), make(tmp_path)
    rows = [*azure.deliver(ours), *azure.deliver(others)]
    for part, row in zip((ours, others), rows, strict=True):
        azure.delete(part)
        row.row = replace(row.row, state=State.DELETED)
    azure.store_behind_our_back(ours)
    azure.store_behind_our_back(make(tmp_path, like=others))

    azure.asking.ask_once(rows)

    assert [row.state for row in rows] == [State.CONFIRMED, State.DELETED]


def test_verify_content_retrieves_what_the_feed_would_have_been_enough_for(tmp_path, emulator, scratch):
    with Site(emulator.url, Rules(profile=AZURE, verify=Verify.CONTENT), scratch) as azure:
        (row,) = azure.deliver(make(tmp_path))

    assert (row.state, row.reason) == (State.CONFIRMED, Reason.CONTENT_CHECK)


def test_server_that_alters_what_it_stores_is_found_by_verify_content(tmp_path, emulator, scratch):
    emulator.faults.add("alter_stored", count=1)
    with Site(emulator.url, Rules(profile=AZURE, verify=Verify.CONTENT), scratch) as azure:
        (row,) = azure.deliver(make(tmp_path))

    assert (row.state, row.reason) == (State.CONFLICT, Reason.OTHER_CONTENT)


def entry(sequence: int, *, at: datetime = NOW, sop: str = "3", action: str = "create", state: str = "current", **more):
    return ChangeFeedEntry(
        sequence=sequence, study_uid="1", series_uid="2", sop_uid=sop, action=action, state=state, at=at, **more
    )


def feed_json(*entries: ChangeFeedEntry) -> bytes:
    return json.dumps(
        [
            {
                "Sequence": one.sequence,
                "StudyInstanceUid": one.study_uid,
                "seriesInstanceUid": one.series_uid,
                "sopInstanceUID": one.sop_uid,
                "Action": one.action.title(),
                "state": one.state.upper(),
                "timestamp": one.at.isoformat(),
                "partitionName": one.partition or "Microsoft.Default",
            }
            for one in entries
        ]
    ).encode()


def feed_page(*entries: ChangeFeedEntry, date: str = "Wed, 04 Mar 2026 05:06:07 GMT") -> bytes:
    return answer(feed_json(*entries), content_type="application/json", headers={"Date": date})


def read(server: ScriptedServer, **question) -> FeedAnswer:
    facts = {"cursor": None, "version": 2} | question
    url = server.url.replace("/v2", f"/v{facts['version']}")
    with DicomWebClient(url, timeouts=QUICK) as client:
        return read_feed(client, FeedQuestion(**facts), utc_now=lambda: NOW - timedelta(hours=1))


def params(server: ScriptedServer, index: int = -1) -> dict[str, str]:
    query = server.requests[index].target.partition("?")[2]
    return dict(urllib.parse.parse_qsl(query))


def test_newest_entry_of_an_identity_counts_and_several_disturb():
    sightings = newest_sightings(
        [entry(9, sop="4"), entry(7, state="replaced"), entry(8, action="delete", state="replaced"), entry(10)]
    )

    assert [
        (one.identity.sop_uid, one.sequence, one.disturbed) for one in sorted(sightings, key=lambda one: one.sequence)
    ] == [("4", 9, False), ("3", 10, True)]


def test_cursor_stays_behind_the_server_s_clock_by_the_lag():
    since = NOW - timedelta(minutes=20)
    with ScriptedServer(feed_page(entry(1), entry(2, sop="4"))) as server:
        got = read(server, cursor=FeedCursor(version=2, since=since), elapsed=timedelta(minutes=20))

    assert FeedCursor(version=2, since=NOW - timedelta(seconds=60)) == got.cursor
    assert (True, timedelta(hours=1), 2) == (got.complete, got.clock_offset, len(got.sightings))
    assert (params(server)) == {
        "includemetadata": "false",
        "offset": "0",
        "limit": "200",
        "startTime": "2026-03-04T04:46:07.000000Z",
    }


A_DAY_AHEAD = "Thu, 05 Mar 2026 05:06:07 GMT"


def test_cursor_goes_no_further_than_what_was_seen_or_the_time_that_passed():
    """One Date a day ahead moved it a day ahead, and the feed showed nothing for a day."""
    since = NOW - timedelta(minutes=2)
    with ScriptedServer(feed_page(date=A_DAY_AHEAD)) as server:
        nothing = read(server, cursor=FeedCursor(version=2, since=since))
        some_time = read(server, cursor=FeedCursor(version=2, since=since), elapsed=timedelta(seconds=10))
    seen = entry(1, at=NOW - timedelta(seconds=30))
    with ScriptedServer(feed_page(seen, date=A_DAY_AHEAD)) as server:
        newest = read(server, cursor=FeedCursor(version=2, since=since), elapsed=timedelta(seconds=10))

    assert FeedCursor(version=2, since=since) == nothing.cursor
    assert FeedCursor(version=2, since=since + timedelta(seconds=10)) == some_time.cursor
    assert FeedCursor(version=2, since=seen.at) == newest.cursor


def test_cursor_that_lies_before_the_server_s_clock_goes_back_to_what_was_not_read():
    ahead, last_read = NOW + timedelta(days=1), NOW - timedelta(minutes=40)
    here = NOW - timedelta(hours=1)  # our clock
    with ScriptedServer(feed_page(), feed_page(entry(1))) as server:
        got = read(
            server,
            cursor=FeedCursor(version=2, since=ahead),
            cursor_moved_at=here - timedelta(minutes=40),
            elapsed=timedelta(hours=1),
        )

    assert params(server)["startTime"] == (last_read - timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert len(got.sightings) == 1
    assert FeedCursor(version=2, since=NOW - timedelta(seconds=60)) == got.cursor


SEEN = FeedEnd(sequence=9, at=NOW - timedelta(minutes=20))


@pytest.mark.parametrize(
    "latest, entries, expected",
    [
        (9, {}, None),
        (8, {}, 8),
        (10, {10: 1}, None),
        (None, {}, 0),
        # What was entered since has the sequences again of what was lost.
        (8, {7: 2, 8: 1}, 6),
        # It has come further than ever by the time that we look.
        (12, {8: 3, 9: 3, 10: 2, 12: 1}, 7),
        # Stamped before it could be seen, as usual.
        (10, {8: 18, 10: 1}, None),
    ],
)
def test_feed_that_is_not_the_one_that_was_read_is_told_with_where_it_parted(latest, entries, expected):
    listed = [entry(at, sop=str(at), at=NOW - timedelta(minutes=age)) for at, age in entries.items()]

    def step(conversation: Conversation) -> None:
        conversation.read_body()
        if not conversation.request.target.partition("?")[0].endswith("/latest"):
            conversation.send(feed_page(*listed))
        elif latest is None:
            conversation.send(answer(status="204 No Content", content_type=""))
        else:
            newest = entry(latest, at=NOW - timedelta(minutes=1))
            conversation.send(answer(feed_json(newest)[1:-1], content_type="application/json"))

    with ScriptedServer(step) as server:
        got = read(server, cursor=FeedCursor(version=2, since=NOW - timedelta(hours=1)), end=SEEN)

    assert expected == got.went_back_to
    assert got.end is not None
    assert (latest or 0) == got.end.sequence


def test_entries_stamped_while_the_server_s_clock_was_ahead_are_no_feed_that_began_again():
    feed = feed_page(entry(5, sop="5", at=NOW + timedelta(days=1)), entry(9, at=NOW - timedelta(minutes=20)))
    latest = answer(feed_json(entry(9, at=NOW - timedelta(minutes=20)))[1:-1], content_type="application/json")
    with ScriptedServer(feed, feed, latest) as server:
        since = FeedCursor(version=2, since=NOW - timedelta(hours=1))
        end = read(server, cursor=since).end
        got = read(server, cursor=since, end=end)

    assert end == FeedEnd(sequence=9, at=NOW + timedelta(days=1))
    assert (got.end, got.went_back_to) == (end, None)


def test_feed_whose_latest_entry_cannot_be_read_tells_no_end():
    with ScriptedServer(feed_page(), answer(b"{}", content_type="application/json")) as server:
        got = read(server, cursor=FeedCursor(version=2, since=NOW - timedelta(hours=1)), end=SEEN)

    assert (got.end, got.went_back_to, got.complete) == (None, None, True)


def test_first_cursor_is_ten_minutes_before_the_first_attempt_on_the_server_s_clock():
    with ScriptedServer(feed_page()) as server:
        read(server, first_attempt_at=NOW - timedelta(hours=2))

    assert params(server)["startTime"] == "2026-03-04T03:56:07.000000Z", "our clock is an hour behind the server's"


def test_feed_is_paged_by_offset_within_a_window_that_ends():
    many = [entry(number, sop=str(number), at=NOW - timedelta(minutes=5)) for number in range(450)]
    pages = [feed_page(*many[:200]), feed_page(*many[200:400]), feed_page(*many[400:])]
    with ScriptedServer(*pages) as server:
        got = read(server, cursor=FeedCursor(version=2, since=NOW - timedelta(hours=9)))

    assert len(got.sightings) == 450
    assert [params(server, index)["offset"] for index in range(3)] == ["0", "200", "400"]
    assert [params(server, index).get("endTime") for index in range(3)] == [
        None,
        "2026-03-04T05:06:08.000000Z",
        "2026-03-04T05:06:08.000000Z",
    ]


def test_backlog_is_read_in_portions_that_are_written_down_in_between():
    full = [
        entry(number, sop=str(number), at=NOW - timedelta(days=1) + timedelta(seconds=number)) for number in range(200)
    ]
    with ScriptedServer(feed_page(*full)) as server:
        got = read(server, cursor=FeedCursor(version=2, since=NOW - timedelta(days=2)))

    assert (got.complete, len(server.requests)) == (False, 50)
    assert FeedCursor(version=2, since=full[-1].at) == got.cursor


def test_a_burst_within_the_lag_is_read_to_its_end_and_not_from_its_beginning_again():
    """Seen with 20,000 files in half a minute: each answer had the first 10,000, and the next began where it did."""
    young = [
        entry(number, sop=str(number), at=NOW - timedelta(milliseconds=50_000 - number)) for number in range(10_050)
    ]
    pages = [feed_page(*young[at : at + 200]) for at in range(0, len(young), 200)]
    with ScriptedServer(*pages) as server:
        got = read(server, cursor=FeedCursor(version=2, since=NOW - timedelta(minutes=2)))

    assert (True, len(young)) == (got.complete, len(got.sightings))
    assert FeedCursor(version=2, since=NOW - timedelta(seconds=60)) == got.cursor


def test_first_version_reads_a_burst_within_the_lag_to_its_end():
    feed = {at: entry(at, sop=str(at), at=NOW - timedelta(seconds=10)) for at in range(1, 5_150)}
    with ScriptedServer(first_version(feed)) as server:
        got = read(server, version=1, cursor=FeedCursor(version=1, sequence=0))

    assert (True, len(feed)) == (got.complete, len(got.sightings))
    assert FeedCursor(version=1, sequence=0) == got.cursor


def test_feed_that_breaks_off_keeps_the_cursor_and_gives_what_was_seen():
    many = [entry(number, sop=str(number)) for number in range(200)]
    with ScriptedServer(feed_page(*many), answer(status="503 Busy")) as server:
        got = read(server, cursor=FeedCursor(version=2, since=NOW - timedelta(hours=9)))

    assert (got.cursor, got.complete, len(got.sightings)) == (None, False, 200)
    assert got.error
    assert got.pause is not None
    assert PauseCause.UNAVAILABLE is got.pause.cause


def spoilt(page: bytes, *sequences: int) -> bytes:
    """The same page with entries that have no time."""
    head, _, body = page.partition(b"\r\n\r\n")
    entries = [one | {"timestamp": None} if one["Sequence"] in sequences else one for one in json.loads(body)]
    date = head.decode().partition("Date: ")[2].partition("\r\n")[0]
    return answer(json.dumps(entries).encode(), content_type="application/json", headers={"Date": date})


def test_feed_entry_that_cannot_be_read_is_counted_and_stepped_over():
    """One such entry blinded the feed for ever."""
    many = [entry(number, sop=str(number), at=NOW - timedelta(minutes=5)) for number in range(450)]
    pages = [
        spoilt(feed_page(*many[:200]), *range(200)),
        spoilt(feed_page(*many[200:400]), 399),
        feed_page(*many[400:]),
    ]
    with ScriptedServer(*pages) as server:
        got = read(server, cursor=FeedCursor(version=2, since=NOW - timedelta(hours=9)), elapsed=timedelta(hours=9))

    assert (len(got.sightings), got.unreadable, got.complete, got.error) == (249, 201, True, "")
    assert FeedCursor(version=2, since=NOW - timedelta(seconds=60)) == got.cursor
    assert [params(server, index)["offset"] for index in range(3)] == ["0", "200", "400"]


@pytest.mark.parametrize("readable", [True, False])
def test_feed_that_gives_nothing_new_for_ever_is_given_up(readable):
    since = NOW - timedelta(hours=1)
    full = feed_page(*(entry(number, sop=str(number), at=since) for number in range(200)))
    with ScriptedServer(full if readable else spoilt(full, *range(200))) as server:
        got = read(server, cursor=FeedCursor(version=2, since=since))

    assert (got.cursor, got.complete) == (None, False)
    assert "nothing new" in got.error
    assert len(server.requests) <= 110


@pytest.mark.parametrize("cursor", [FeedCursor(version=1, sequence=4), None], ids=["cursor", "none"])
def test_first_version_reads_on_where_the_latest_entry_cannot_be_read(cursor):
    old = NOW - timedelta(minutes=9)
    feed = {at: entry(at, sop=str(at), at=old) for at in (5, 6, 90, 120)}
    honest = first_version(feed)

    def step(conversation: Conversation) -> None:
        if conversation.request.target.partition("?")[0].endswith("/latest"):
            conversation.read_body()
            conversation.send(answer(b'{"Sequence": 121}', content_type="application/json"))
        else:
            honest(conversation)

    with ScriptedServer(step) as server:
        got = read(server, version=1, cursor=cursor)

    if cursor is None:
        assert "latest entry" in got.error
    else:
        assert sorted(one.sequence for one in got.sightings) == [5, 6, 90, 120]
        assert (FeedCursor(version=1, sequence=120), True) == (got.cursor, got.complete)


def test_other_partitions_are_somebody_else_s():
    with ScriptedServer(feed_page(entry(1), entry(2, sop="4", partition="other"))) as server:
        got = read(server, cursor=FeedCursor(version=2, since=NOW))

    assert [one.identity.sop_uid for one in got.sightings] == ["3"]


def first_version(feed: dict[int, ChangeFeedEntry]) -> Callable[[Conversation], None]:
    """A feed as v1 has it: a page is the entries of a range of sequences."""

    def step(conversation: Conversation) -> None:
        conversation.read_body()
        path, _, query = conversation.request.target.partition("?")
        if path.endswith("/latest"):
            latest = json.loads(feed_json(feed[max(feed)]))[0] if feed else None
            conversation.send(
                answer(json.dumps(latest).encode(), content_type="application/json")
                if latest
                else answer(status="204 No Content", content_type="")
            )
            return
        asked = dict(urllib.parse.parse_qsl(query))
        offset, limit = int(asked["offset"]), int(asked["limit"])
        conversation.send(feed_page(*(feed[at] for at in sorted(feed) if offset < at <= offset + limit)))

    return step


def test_first_version_reads_on_over_empty_pages_to_the_latest_sequence():
    old = NOW - timedelta(minutes=9)
    feed = {at: entry(at, sop=str(at), at=old) for at in (5, 6, 1006, 1100)}
    with ScriptedServer(first_version(feed)) as server:
        got = read(server, version=1, cursor=FeedCursor(version=1, sequence=4))

    assert sorted(one.sequence for one in got.sightings) == [5, 6, 1006, 1100]
    assert (FeedCursor(version=1, sequence=1100), True) == (got.cursor, got.complete)


def test_first_version_that_says_it_goes_on_for_ever_is_read_to_where_it_does():
    """It was read on and on without a pause, and the cursor went past whatever was to come."""
    old = NOW - timedelta(minutes=9)
    honest = first_version({at: entry(at, sop=str(at), at=old) for at in (5, 6, 1006)})
    latest = json.dumps({**json.loads(feed_json(entry(1, at=old)))[0], "Sequence": (1 << 63) - 1}).encode()

    def step(conversation: Conversation) -> None:
        if conversation.request.target.partition("?")[0].endswith("/latest"):
            conversation.read_body()
            conversation.send(answer(latest, content_type="application/json"))
        else:
            honest(conversation)

    with ScriptedServer(step) as server:
        got = read(server, version=1, cursor=FeedCursor(version=1, sequence=4))

    assert sorted(one.sequence for one in got.sightings) == [5, 6, 1006]
    assert (got.cursor, got.complete) == (None, False)
    assert "no entry" in got.error
    assert len(server.requests) <= 2 * MOST_PAGES


def test_first_version_s_cursor_stays_before_what_is_younger_than_the_lag():
    feed = {at: entry(at, sop=str(at), at=NOW - timedelta(seconds=age)) for at, age in ((5, 300), (6, 61), (8, 10))}
    with ScriptedServer(first_version(feed)) as server:
        got = read(server, version=1, cursor=FeedCursor(version=1, sequence=1))

    assert (3, FeedCursor(version=1, sequence=6)) == (len(got.sightings), got.cursor)


@pytest.mark.parametrize("version", [1, 2])
def test_first_reading_begins_before_now_whatever_our_clock_was_at_the_first_attempt(version):
    """It was set back since: the feed was read from a time to come, and nothing was ever seen."""
    feed = {at: entry(at, sop=str(at), at=NOW - timedelta(seconds=1400 - at)) for at in range(1, 1400)}
    with ScriptedServer(first_version(feed) if version == 1 else feed_page()) as server:
        got = read(server, version=version, first_attempt_at=NOW + timedelta(hours=3))
        if version == 2:
            assert datetime.fromisoformat(params(server)["startTime"]) <= NOW - timedelta(minutes=9)

    assert got.error == ""
    if version == 1:
        assert {one.sequence for one in got.sightings} >= set(range(1400 - 540, 1400))


def test_first_version_s_first_cursor_lies_before_the_first_attempt():
    start = NOW - timedelta(days=1)
    feed = {at: entry(at, sop=str(at), at=start + timedelta(minutes=at)) for at in range(1, 1400)}
    with ScriptedServer(first_version(feed)) as server:
        got = read(server, version=1, first_attempt_at=NOW - timedelta(hours=5))

    wanted = [at for at, one in feed.items() if one.at >= NOW - timedelta(hours=4, minutes=10)]
    assert set(wanted) <= {one.sequence for one in got.sightings}
    assert len(got.sightings) < len(feed)


def test_first_version_of_a_server_that_went_back_is_read_from_where_it_parted():
    """Its cursor lay behind the end of the feed, so that nothing was ever seen again."""
    old, young = NOW - timedelta(hours=2), NOW - timedelta(minutes=5)
    feed = {at: entry(at, sop=str(at), at=young if at > 400 else old) for at in range(1, 500)}
    with ScriptedServer(first_version(feed)) as server:
        got = read(
            server,
            version=1,
            cursor=FeedCursor(version=1, sequence=2000),
            end=FeedEnd(sequence=2000, at=NOW - timedelta(hours=1)),
        )

    assert got.went_back_to == 400
    assert set(range(401, 500)) <= {one.sequence for one in got.sightings}
    assert FeedCursor(version=1, sequence=499) == got.cursor


def test_first_version_of_an_empty_server_begins_at_nought():
    with ScriptedServer(first_version({})) as server:
        assert FeedCursor(version=1, sequence=0) == read(server, version=1).cursor


def ask(url: str, scratch: Path, parts: list[Part], *, fetch: bool) -> StudyAnswer:
    batch = batch_of(parts)
    rows = tuple(replace(Row(part, batch).row, state=State.UNCERTAIN) for part in parts)
    question = StudyQuestion(study_uid=parts[0].identity.study_uid, rows=rows, fetch=fetch)
    with Asking(DicomWebClient(url, timeouts=QUICK), Rules(profile=OTHER), scratch) as asking:
        asking.reconciler.submit(question)
        (got,) = asking._answers(1)
    assert isinstance(got, StudyAnswer)
    return got


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("fetch", [True, False])
def test_absent_takes_both_the_query_and_a_404(tmp_path, scratch, count, fetch):
    study_uid = fresh_uid(1)
    parts = [make(tmp_path, study_uid=study_uid) for _ in range(count)]

    def neither(conversation: Conversation) -> None:
        conversation.read_body()
        is_query = "/instances/" not in conversation.request.target
        conversation.send(answer(b"[]") if is_query else answer(status="404 Not Found"))

    with ScriptedServer(neither) as server:
        got = ask(server.url, scratch, parts, fetch=fetch)

    assert [False] * count == [finding.present for finding in got.findings]
    retrieved = [request for request in server.requests if "/instances/" in request.target]
    assert count == len(retrieved)


@pytest.mark.parametrize("fetch", [True, False])
@pytest.mark.parametrize("query", ["404 Not Found", "400 Bad Request", "501 Not Implemented", "500 Broken"])
def test_server_that_cannot_be_searched_proves_no_absence(tmp_path, scratch, query, fetch):
    """Something that answers 404 to everything would have every file sent again and again."""

    def only_404(conversation: Conversation) -> None:
        conversation.read_body()
        is_query = "/instances/" not in conversation.request.target
        conversation.send(answer(status=query if is_query else "404 Not Found"))

    with ScriptedServer(only_404) as server:
        got = ask(server.url, scratch, [make(tmp_path)], fetch=fetch)

    assert [finding.present for finding in got.findings] == [None]


def test_retrievable_but_not_listed_is_no_proof_of_this_identity(tmp_path, scratch):
    part = make(tmp_path)

    def step(conversation: Conversation) -> None:
        conversation.read_body()
        is_query = "/instances/" not in conversation.request.target
        file = answer(Path(part.path).read_bytes(), content_type="application/dicom")
        conversation.send(answer(b"[]") if is_query else file)

    with ScriptedServer(step) as server:
        assert [one.present for one in ask(server.url, scratch, [part], fetch=False).findings] == [None]
        assert [one.present for one in ask(server.url, scratch, [part], fetch=True).findings] == [True]


def test_one_instance_that_cannot_be_had_does_not_hide_the_others(tmp_path, emulator, scratch):
    study_uid = fresh_uid(1)
    parts = [make(tmp_path, study_uid=study_uid) for _ in range(3)]
    broken = parts[1].identity.sop_uid

    def step(conversation: Conversation) -> None:
        conversation.read_body()
        target = conversation.request.target
        if broken in target:
            conversation.send(answer(status="500 Lost"))
            return
        part = next(one for one in parts if one.identity.sop_uid in target)
        conversation.send(answer(Path(part.path).read_bytes(), content_type="application/dicom"))

    with ScriptedServer(step) as server:
        got = ask(server.url, scratch, parts, fetch=True)

    assert [finding.present for finding in got.findings] == [True, None, True]
    assert got.error == ""


def test_server_that_goes_away_leaves_rows_without_a_finding(tmp_path, scratch):
    study_uid = fresh_uid(1)
    parts = [make(tmp_path, study_uid=study_uid) for _ in range(3)]
    file = answer(Path(parts[0].path).read_bytes(), content_type="application/dicom")
    with ScriptedServer(file, lambda conversation: conversation.hang_up()) as server:
        got = ask(server.url, scratch, parts, fetch=True)

    assert len(got.findings) == 1
    assert got.pause is not None
    assert PauseCause.UNREACHABLE is got.pause.cause
    assert got.error


def test_large_copy_that_differs_is_whole_on_disk_and_an_equal_one_is_not_there(tmp_path, scratch):
    ours = make(tmp_path, pixels=os.urandom(6_000_000), rows=1000, columns=3000)
    theirs = Path(ours.path).read_bytes()[:-2] + b"\0\0"
    Path(ours.path).write_bytes(Path(ours.path).read_bytes()[:-2] + b"\1\1")
    ours = replace(ours, content=content_of(Path(ours.path).read_bytes()))

    for content, is_same in ((theirs, False), (Path(ours.path).read_bytes(), True)):
        with ScriptedServer(answer(content, content_type="application/dicom")) as server:
            (finding,) = ask(server.url, scratch, [ours], fetch=True).findings

        assert (True, is_same) == (finding.present, finding.sameness is not None)
        assert (not finding.copies) == is_same
        for copy in finding.copies:
            assert theirs == copy.read_bytes()
            copy.unlink()
    assert list(scratch.iterdir()) == []


def several(*copies: bytes) -> bytes:
    """A whole multipart answer with these files."""
    parts = b"".join(b"\r\n--abc\r\nContent-Type: application/dicom\r\n\r\n" + copy for copy in copies)
    return answer(parts + b"\r\n--abc--\r\n", content_type="multipart/related; boundary=abc")


def test_any_of_several_copies_of_an_instance_may_be_ours(tmp_path, scratch):
    """Orthanc has several under the same UIDs where the PatientID differs, and gives all of them."""
    ours = make(tmp_path)
    content, theirs = Path(ours.path).read_bytes(), Path(make(tmp_path, like=ours).path).read_bytes()
    with ScriptedServer(several(theirs, content)) as server:
        (finding,) = ask(server.url, scratch, [ours], fetch=True).findings
    assert (finding.sameness, finding.copies) == (Sameness.SAME, ())

    rewritten = b"\1" + content[1:]
    with ScriptedServer(several(theirs, rewritten)) as server:
        (finding,) = ask(server.url, scratch, [ours], fetch=True).findings

    assert finding.sameness is None
    assert [copy.read_bytes() for copy in finding.copies] == [theirs, rewritten]


def test_instance_not_found_alone_is_looked_for_in_its_series(tmp_path, scratch):
    """Orthanc answers 404 to an instance whose SOP Instance UID stands in two series, and lists it in both."""
    ours = make(tmp_path)
    beside = Path(make(tmp_path).path).read_bytes()
    altered = Path(make(tmp_path, like=ours).path).read_bytes()
    content = Path(ours.path).read_bytes()
    listed = [{"0020000E": {"Value": [ours.identity.series_uid]}, "00080018": {"Value": [ours.identity.sop_uid]}}]

    def ask_with(series: bytes) -> Finding:
        def step(conversation: Conversation) -> None:
            conversation.read_body()
            target = conversation.request.target
            if "?" in target:
                conversation.send(
                    answer(json.dumps(listed if "offset=0" in target or "offset" not in target else []).encode())
                )
            else:
                conversation.send(answer(status="404 Not Found") if "/instances/" in target else series)

        with ScriptedServer(step) as server:
            (finding,) = ask(server.url, scratch, [ours], fetch=True).findings
        return finding

    assert ask_with(several(beside, content)).sameness is Sameness.SAME
    other = ask_with(several(beside, altered))
    assert [copy.read_bytes() for copy in other.copies] == [altered]
    for nothing in (several(beside), answer(status="404 Not Found")):
        finding = ask_with(nothing)
        assert (finding.present, finding.copies) == (None, ())
        assert "with its series" in finding.note


@pytest.mark.parametrize("parts", [1, 10_000], ids=["one part", "many parts"])
def test_answer_far_larger_than_our_file_is_broken_off_and_is_other_content(tmp_path, scratch, monkeypatch, parts):
    """A server that sends without an end filled the disk and kept a thread for ever."""
    monkeypatch.setattr("ingestd.reconciler.asking.COPY_SPARE_BYTES", 8_000_000)
    ours = make(tmp_path)
    begin = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/related; boundary=abc\r\n\r\n"
    part = b"\r\n--abc\r\nContent-Type: application/dicom\r\n\r\n" + bytes(1_000_000)
    sent: list[int] = []

    def step(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(begin + part)
        try:
            while True:
                conversation.send(part if parts > 1 else bytes(1_000_000))
                sent.append(1_000_000)
        except OSError:
            pass

    with ScriptedServer(step) as server:
        (finding,) = ask(server.url, scratch, [ours], fetch=True).findings

    assert (finding.present, finding.sameness, finding.copies) == (True, Sameness.OTHER, ())
    assert sum(sent) < 64_000_000
    assert list(scratch.iterdir()) == []


def test_listing_of_one_study_that_never_ends_is_given_up(tmp_path, scratch, monkeypatch):
    monkeypatch.setattr("ingestd.reconciler.asking.MOST_LISTED", 1000)
    parts = [make(tmp_path, study_uid="1.2.3") for _ in range(5)]
    names = iter(range(10**9))

    def step(conversation: Conversation) -> None:
        conversation.read_body()
        if "?" not in conversation.request.target:
            conversation.send(answer(status="404 Not Found"))
            return
        items = [{"00080018": {"vr": "UI", "Value": [f"1.{next(names)}"]}} for _ in range(200)]
        conversation.send(answer(json.dumps(items).encode()))

    with ScriptedServer(step) as server:
        got = ask(server.url, scratch, parts, fetch=False)

    assert [finding.present for finding in got.findings] == [None] * 5
    assert len(server.requests) < 20


def test_copy_that_breaks_off_leaves_nothing_in_scratch(tmp_path, scratch):
    ours = make(tmp_path, pixels=os.urandom(6_000_000), rows=1000, columns=3000)
    cut = answer(Path(ours.path).read_bytes()[:5_500_000], length=6_000_000, content_type="application/dicom")

    def step(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(cut)
        conversation.hang_up()

    with ScriptedServer(step) as server:
        got = ask(server.url, scratch, [ours], fetch=True)

    assert [finding.present for finding in got.findings] == [None]
    assert list(scratch.iterdir()) == []


def test_scratch_without_room_says_so_and_proves_nothing(tmp_path, emulator):
    part = make(tmp_path)
    with DicomWebClient(emulator.url) as client:
        client.store([make(tmp_path, like=part).path])
        row = replace(Row(part, batch_of([part])).row, state=State.UNCERTAIN)
        question = StudyQuestion(study_uid=part.identity.study_uid, rows=(row,), fetch=True)
        asker = StudyAsker(client, question, tmp_path / "not there", utc_now)

        asker.ask()

    assert [finding.present for finding in asker.findings] == [None]
    assert "No such file" in asker.findings[0].note


def test_audit_tells_what_only_one_side_has_and_what_differs(tmp_path, site, scratch):
    study_uid = fresh_uid(1)
    both, here, altered, there = (make(tmp_path, study_uid=study_uid) for _ in range(4))
    site.store_behind_our_back(both)
    site.store_behind_our_back(make(tmp_path, like=altered))
    site.store_behind_our_back(there)
    batch = batch_of([both, here, altered])
    rows = tuple(replace(Row(part, batch).row, state=State.CONFIRMED) for part in batch.parts)

    (found,) = audit(
        site.client,
        [StudyRows(study_uid=study_uid, rows=rows)],
        scratch=scratch,
        utc_now=utc_now,
        share=1.0,
    )

    assert [here.delivery_id] == [row.delivery_id for row in found.here_only]
    assert (there.identity,) == found.there_only
    (differs,) = (finding for finding in found.findings if finding.copies)
    assert altered.delivery_id == differs.row.delivery_id
    assert found.error == ""
    assert study_uid in set(unknown_studies(site.client))


def test_audit_without_a_share_only_looks_at_what_is_listed(tmp_path, site, scratch):
    part = make(tmp_path)
    site.store_behind_our_back(make(tmp_path, like=part))
    row = replace(Row(part, batch_of([part])).row, state=State.CONFIRMED)
    study = StudyRows(study_uid=part.identity.study_uid, rows=(row,))

    (found,) = audit(site.client, [study], scratch=scratch, utc_now=utc_now)

    assert [(finding.present, finding.copies) for finding in found.findings] == [(True, ())]
    assert (found.here_only, found.there_only) == ((), ())


def test_audit_stops_when_its_time_is_up_or_the_server_is_gone(tmp_path, site, scratch):
    part = make(tmp_path)
    row = replace(Row(part, batch_of([part])).row, state=State.CONFIRMED)
    study = StudyRows(study_uid=part.identity.study_uid, rows=(row,))

    assert list(audit(site.client, [study], scratch=scratch, utc_now=utc_now, budget=timedelta(0))) == []

    with ScriptedServer(b"") as server:
        url = server.url
    with DicomWebClient(url, timeouts=QUICK) as nobody:
        (found,) = audit(nobody, [study, study], scratch=scratch, utc_now=utc_now)
    assert found.pause is not None
    assert (found.here_only, found.findings) == ((), ())
