"""The sender against a real server, a scripted one with faults, and Orthanc: what is posted, and what becomes of it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.clocks import boottime
from ingestd.dicomweb import BearerAuth, DicomWebClient, Timeouts
from ingestd.emulator import Emulator
from ingestd.instance import file_meta_for
from ingestd.lifecycle import (
    BatchResult,
    Identity,
    Part,
    Pause,
    PauseCause,
    Reason,
    ServerKind,
    ServerProfile,
    State,
)
from ingestd.sender import Sender, probe_profile, profile_of
from tests.builders import CT_IMAGE, EXPLICIT, fresh_uid, instance_bytes
from tests.delivering import batch_of, collect_one, part_of, utc_now, wait_for
from tests.emulating import stores
from tests.http_server import Conversation, ScriptedServer, answer

AZURE = profile_of(ServerKind.AZURE, feed_version=2)
OTHER = profile_of(ServerKind.OTHER)
QUICK = Timeouts(connect=timedelta(seconds=5), read=timedelta(seconds=0.5), total=timedelta(seconds=5), min_rate=10**6)


@pytest.fixture(scope="module")
def emulator():
    with Emulator() as server:
        yield server


def make_part(folder: Path, *, study_uid: str = "", size: int = 0, **more) -> Part:
    identity = Identity(study_uid=study_uid or fresh_uid(1), series_uid=fresh_uid(2), sop_uid=fresh_uid(3))
    path = folder / identity.sop_uid
    path.write_bytes(
        instance_bytes(
            study_uid=identity.study_uid,
            series_uid=identity.series_uid,
            sop_uid=identity.sop_uid,
            pixels=os.urandom(size) if size else None,
        )
    )
    return part_of(path, identity, **more)


def study_of(folder: Path, count: int) -> list[Part]:
    study_uid = fresh_uid(1)
    return [make_part(folder, study_uid=study_uid) for _ in range(count)]


class Posting:
    """A sender for one test; closed at its end."""

    def __init__(
        self, url: str, *, profile: ServerProfile | None = AZURE, client: DicomWebClient | None = None, **more
    ):
        self.woken = threading.Event()
        self.client = client if client is not None else DicomWebClient(url, timeouts=QUICK)
        self.sender = Sender(self.client, profile=profile, wake=self.woken.set, utc_now=utc_now, **more)

    def __enter__(self) -> Sender:
        return self.sender

    def __exit__(self, *_exc: object) -> None:
        self.sender.close(timedelta(seconds=10))
        self.client.close()


def post(url: str, parts: list[Part], **more) -> BatchResult:
    with Posting(url, **more) as sender:
        sender.submit(batch_of(parts))
        return collect_one(sender)


def verdicts(*, stored: list[str] = [], failed: dict[str, int] | None = None) -> bytes:  # noqa: B006 - never changed
    dataset: dict[str, object] = {}
    if failed:
        items = [
            {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}
            for uid, reason in failed.items()
        ]
        dataset["00081198"] = {"vr": "SQ", "Value": items}
    if stored:
        items = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in stored]
        dataset["00081199"] = {"vr": "SQ", "Value": items}
    return json.dumps(dataset).encode()


def test_batch_is_stored_and_each_instance_has_its_outcome(tmp_path, emulator):
    parts = study_of(tmp_path, 3)

    result = post(emulator.url, parts)

    assert [one.state for one in result.outcomes] == [State.STORED] * 3
    assert [part.delivery_id for part in parts] == [one.delivery_id for one in result.outcomes]
    assert (result.http_status, result.answered, result.pause, result.charge_study) == (200, True, None, False)
    assert result.body_bytes_left > result.batch.size_bytes
    assert result.seconds > 0


def test_second_copy_is_already_there_and_its_content_is_to_be_checked(tmp_path, emulator):
    parts = study_of(tmp_path, 2)
    post(emulator.url, parts[:1])

    first, second = post(emulator.url, parts).outcomes

    assert (first.state, first.reason, first.failure_reason) == (State.UNCERTAIN, Reason.ALREADY_THERE, 45070)
    assert State.STORED is second.state


def test_file_without_file_meta_is_sent_with_a_generated_one(tmp_path, emulator):
    identity = Identity(study_uid=fresh_uid(1), series_uid=fresh_uid(2), sop_uid=fresh_uid(3))
    path = tmp_path / "bare"
    path.write_bytes(
        instance_bytes(
            study_uid=identity.study_uid, series_uid=identity.series_uid, sop_uid=identity.sop_uid, meta=False
        )
    )
    part = part_of(path, identity, generated_meta=True, sop_class_uid=CT_IMAGE)

    def file_meta(part: Part) -> bytes:
        return file_meta_for(sop_class_uid=part.sop_class_uid, sop_uid=part.identity.sop_uid, transfer_syntax=EXPLICIT)

    (outcome,) = post(emulator.url, [part], file_meta=file_meta).outcomes

    assert State.STORED is outcome.state
    with DicomWebClient(emulator.url) as client:
        stored = tmp_path / "stored"
        client.retrieve_instance(identity.study_uid, identity.series_uid, identity.sop_uid).save_as(stored)
    assert stored.read_bytes().endswith(path.read_bytes())


def test_changed_file_stops_its_post_and_is_read_again(tmp_path, emulator):
    good, bad = study_of(tmp_path, 2)
    Path(bad.path).write_bytes(Path(bad.path).read_bytes()[:-1] + b"\xaa")

    first, second = post(emulator.url, [good, bad]).outcomes

    assert (second.state, second.reason, second.reread) == (State.PENDING, Reason.CHANGED, True)
    assert first.state in {State.UNCERTAIN, State.PENDING}
    with DicomWebClient(emulator.url) as client:
        assert list(client.find_instances(study_uid=bad.identity.study_uid)) == []


def test_vanished_file_is_gone_and_its_neighbour_goes_back(tmp_path, emulator):
    kept, gone = study_of(tmp_path, 2)
    Path(gone.path).unlink()

    first, second = post(emulator.url, [kept, gone]).outcomes

    assert (second.state, second.reason) == (State.FAILED, Reason.GONE)
    assert first.state in {State.UNCERTAIN, State.PENDING}


def test_replacement_is_put_alone_and_to_be_compared(tmp_path, emulator):
    theirs, others = study_of(tmp_path, 2)
    post(emulator.url, [theirs])
    ours_path = tmp_path / "ours"
    ours_path.write_bytes(Path(theirs.path).read_bytes()[:-1] + b"\x55")
    ours = replace(part_of(ours_path, theirs.identity), replaces=True)

    in_batch = post(emulator.url, [others, ours])
    alone = post(emulator.url, [ours])

    assert [(one.state, one.alone) for one in in_batch.outcomes] == [(State.STORED, False), (State.PENDING, True)]
    (outcome,) = alone.outcomes
    assert (outcome.state, outcome.needs_content_check) == (State.STORED, True)


@pytest.mark.parametrize(
    "fault, states, pause, charge",
    [
        ("drop_after_store", {State.UNCERTAIN}, None, True),
        ("drop_after_body", {State.UNCERTAIN}, None, True),
        ("drop_during_body", {State.UNCERTAIN}, None, True),
        ("half_answer", {State.UNCERTAIN}, None, True),
        ("error_after_store", {State.UNCERTAIN}, None, True),
        ("error_before_store", {State.UNCERTAIN}, None, True),
        ("throttle", {State.PENDING}, PauseCause.THROTTLED, False),
        ("unavailable", {State.UNCERTAIN, State.PENDING}, PauseCause.UNAVAILABLE, False),
        ("processing_failure", {State.PENDING}, None, False),
        ("being_created", {State.PENDING}, None, False),
    ],
)
def test_server_s_faults_end_where_the_table_says(tmp_path, emulator, fault, states, pause, charge):
    emulator.faults.add(fault, count=1, method="POST")
    result = post(emulator.url, [make_part(tmp_path, size=2_000_000)])

    (outcome,) = result.outcomes
    assert outcome.state in states
    assert pause is (result.pause.cause if result.pause else None)
    assert charge == result.charge_study


@pytest.mark.parametrize("fault", ["missing_uid", "foreign_uid"])
def test_instance_that_the_answer_does_not_name_is_uncertain(tmp_path, emulator, fault):
    emulator.faults.add(fault, count=1)
    result = post(emulator.url, study_of(tmp_path, 2))

    assert sorted((one.state for one in result.outcomes), key=[State.STORED, State.UNCERTAIN].index) == [
        State.STORED,
        State.UNCERTAIN,
    ]


def test_server_that_is_not_there_pauses_and_nothing_is_charged(tmp_path):
    with ScriptedServer(b"") as server:
        url = server.url

    result = post(url, [make_part(tmp_path)])

    assert [(one.state, one.charge) for one in result.outcomes] == [(State.PENDING, False)]
    assert result.pause is not None
    assert (result.pause.cause, result.body_bytes_left) == (PauseCause.UNREACHABLE, 0)


def test_query_right_before_the_post_says_what_was_there(tmp_path):
    """On a server that takes duplicates silently, this is what later tells ours from somebody else's."""
    parts = study_of(tmp_path, 3)
    there = json.dumps(
        [
            {
                "0020000D": {"vr": "UI", "Value": [parts[1].identity.study_uid]},
                "0020000E": {"vr": "UI", "Value": [parts[1].identity.series_uid]},
                "00080018": {"vr": "UI", "Value": [parts[1].identity.sop_uid]},
            }
        ]
    ).encode()
    uids = [part.identity.sop_uid for part in parts]
    with ScriptedServer(answer(there), answer(b"[]"), answer(verdicts(stored=uids))) as server:
        result = post(server.url, parts, profile=OTHER)

    assert [request.method for request in server.requests] == ["GET", "GET", "POST"]
    assert [one.evidence["present_before"] for one in result.outcomes] == ["no", "yes", "no"]
    assert [one.state for one in result.outcomes] == [State.STORED] * 3


def test_what_was_attempted_before_and_is_there_now_is_compared_and_not_posted_again(tmp_path, emulator):
    """Seen: servers store and answer 413, 400, 404, 403, 429 or "failed 0110H": three posts of each file."""
    there, absent, first_time = study_of(tmp_path, 3)
    post(emulator.url, [there, first_time])
    before = len(emulator.requests)

    again = [replace(there, attempts=1), replace(absent, attempts=1), first_time]
    result = post(emulator.url, again, profile=OTHER)

    by_id = {one.delivery_id: one for one in result.outcomes}
    found = by_id[there.delivery_id]
    assert (found.state, found.reason, found.needs_content_check) == (State.UNCERTAIN, Reason.ALREADY_THERE, True)
    assert (found.charge, found.evidence["present_before"]) == (False, "yes")
    assert by_id[absent.delivery_id].state is State.STORED
    posted = {line["sop"] for line in stores(emulator.requests[before:])}
    assert posted == {absent.identity.sop_uid, first_time.identity.sop_uid}

    alone = post(emulator.url, [replace(there, attempts=1)], profile=OTHER)

    assert [one.reason for one in alone.outcomes] == [Reason.ALREADY_THERE]
    assert (alone.answered, alone.pause, alone.charge_study) == (True, None, False)
    assert sum(line.get("method") == "POST" for line in emulator.requests[before:]) == 1


def test_what_is_to_replace_something_is_posted_though_it_is_there(tmp_path, emulator):
    part = make_part(tmp_path)
    post(emulator.url, [part])

    (outcome,) = post(emulator.url, [replace(part, attempts=1, replaces=True)], profile=OTHER).outcomes

    assert outcome.state is State.STORED


@pytest.mark.parametrize("status", ["404 Not Found", "400 Bad Request", "500 Internal Server Error", "501 No"])
def test_server_that_cannot_be_searched_is_posted_to_all_the_same(tmp_path, status):
    part = make_part(tmp_path)
    with ScriptedServer(answer(status=status), answer(verdicts(stored=[part.identity.sop_uid]))) as server:
        (outcome,) = post(server.url, [part], profile=OTHER).outcomes

    assert (outcome.state, outcome.evidence) == (State.STORED, {})


@pytest.mark.parametrize(
    "status, cause",
    [
        ("401 No", PauseCause.NOT_AUTHORIZED),
        ("429 Slow", PauseCause.THROTTLED),
        ("503 Busy", PauseCause.UNAVAILABLE),
        ("302 Elsewhere", PauseCause.MISCONFIGURED),
    ],
)
def test_query_that_fails_for_everybody_keeps_the_post_back(tmp_path, status, cause):
    with ScriptedServer(answer(status=status)) as server:
        result = post(server.url, [make_part(tmp_path)], profile=OTHER)

    assert [request.method for request in server.requests] == ["GET"]
    assert [(one.state, one.charge) for one in result.outcomes] == [(State.PENDING, False)]
    assert result.pause is not None
    assert cause is result.pause.cause


def test_query_is_not_made_where_the_server_refuses_duplicates(tmp_path):
    part = make_part(tmp_path)
    with ScriptedServer(answer(verdicts(stored=[part.identity.sop_uid]))) as server:
        (outcome,) = post(server.url, [part]).outcomes

    assert [request.method for request in server.requests] == ["POST"]
    assert outcome.evidence == {}


def test_whole_post_refused_is_said_so(tmp_path):
    with ScriptedServer(answer(b"no", status="415 Unsupported", content_type="text/plain")) as server:
        result = post(server.url, study_of(tmp_path, 2))

    assert (result.whole_batch_refused, result.charge_study, result.http_status) == (True, True, 415)


def test_error_of_our_own_leaves_no_row_in_sending(tmp_path):
    def broken(part: Part) -> bytes:
        raise KeyError(part.identity.sop_uid)

    part = replace(make_part(tmp_path), generated_meta=True)
    with ScriptedServer(b"") as server:
        result = post(server.url, [part], file_meta=broken)

    assert [one.state for one in result.outcomes] == [State.UNCERTAIN]
    assert result.error.startswith("unexpected KeyError at test_sender.py:")
    assert part.identity.sop_uid not in result.error


def holding(gate: threading.Event) -> Callable[[Conversation], None]:
    """A step that answers a post only when the gate is opened, naming nothing."""

    def step(conversation: Conversation) -> None:
        conversation.read_body()
        gate.wait(20)
        conversation.send(answer(verdicts(failed={"9.9": 272})))

    return step


def test_no_more_is_free_than_the_limit_allows(tmp_path):
    gate = threading.Event()
    with ScriptedServer(holding(gate)) as server, Posting(server.url) as sender:
        assert (sender.limit, sender.free) == (4, 4)
        for _ in range(4):
            sender.submit(batch_of([make_part(tmp_path)]))

        assert (sender.free, sender.in_flight) == (0, 4)
        assert sender.is_healthy()
        gate.set()
        wait_for(lambda: not (sender.collect(), sender.in_flight)[1])
        assert sender.free == sender.limit


def test_post_that_waits_for_a_slow_line_is_healthy(tmp_path, monkeypatch):
    """A million bytes at 10 kB/s, among four posts that share it, are 400 seconds."""
    gate = threading.Event()
    with ScriptedServer(holding(gate)) as server:
        for rate, seconds, healthy in ((None, 300, False), (10_000, 300, True), (10_000, 2000, False)):
            client = DicomWebClient(server.url, timeouts=QUICK, rate=rate)
            sender = Posting(server.url, client=client, most_posts=4).sender
            sender.submit(batch_of([make_part(tmp_path, size=1_000_000)]))
            with monkeypatch.context() as later:
                later.setattr("ingestd.sender.sender.boottime", lambda ahead=seconds: boottime() + ahead)
                assert sender.is_healthy() is healthy
            sender.close(timedelta(0))
        gate.set()


def test_post_that_has_ended_is_healthy_however_long_nobody_collects_it(tmp_path, monkeypatch):
    """While a lost COMMIT cannot be settled nothing is collected: the service manager ended a worker that waited."""
    gate = threading.Event()
    with ScriptedServer(holding(gate)) as server, Posting(server.url) as sender:
        sender.submit(batch_of([make_part(tmp_path)]))
        monkeypatch.setattr("ingestd.sender.sender.boottime", lambda: boottime() + 2000)
        assert not sender.is_healthy()
        gate.set()
        wait_for(sender.is_healthy)
        assert sender.in_flight == 1


def test_limit_is_halved_by_a_server_that_has_too_much_to_do(tmp_path):
    with ScriptedServer(answer(status="503 Busy")) as server, Posting(server.url) as sender:
        sender.submit(batch_of([make_part(tmp_path)]))
        collect_one(sender)

        assert (sender.limit, sender.free) == (2, 2)


def test_close_says_how_many_posts_were_given_up(tmp_path):
    gate = threading.Event()
    try:
        with ScriptedServer(holding(gate)) as server:
            posting = Posting(server.url)
            posting.sender.submit(batch_of([make_part(tmp_path)]))
            wait_for(lambda: server.requests)

            assert posting.sender.close(timedelta(0)) == 1
            assert posting.sender.free == 0
            gate.set()
            wait_for(posting.sender.collect)
    finally:
        gate.set()
        posting.client.close()


def test_close_waits_for_what_ends_in_time(tmp_path, emulator):
    posting = Posting(emulator.url)
    posting.sender.submit(batch_of([make_part(tmp_path)]))

    assert posting.sender.close(timedelta(seconds=10)) == 0
    (result,) = posting.sender.collect()
    assert [one.state for one in result.outcomes] == [State.STORED]
    posting.client.close()


def test_token_is_fetched_before_anything_is_claimed(tmp_path):
    token = tmp_path / "token"
    with ScriptedServer(b"") as server:
        client = DicomWebClient(server.url, auth=BearerAuth(file=token))
        with Posting(server.url, client=client) as sender:
            answers: list[bool | Pause] = []
            assert sender.prepare() is False

            def refused() -> bool:
                answers.append(sender.prepare())
                return isinstance(answers[-1], Pause)

            wait_for(refused)
            pause = answers[-1]
            assert isinstance(pause, Pause)
            assert PauseCause.NO_TOKEN is pause.cause
            token.write_text("secret")
            wait_for(lambda: sender.prepare() is True)
    assert server.requests == []


def probe(sender: Sender):
    sender.submit_probe()
    found = []
    wait_for(lambda: found.append(sender.collect_probe()) or found[-1])
    return found[-1]


def test_probe_finds_the_profile_before_anything_may_be_sent(emulator):
    with Posting(emulator.url, profile=None) as sender:
        assert sender.free == 0
        found = probe(sender)

        assert None is found.pause
        assert AZURE == found.profile == sender.profile
        assert sender.free == 4


def test_probe_of_a_server_that_is_not_there_gives_the_pause():
    with ScriptedServer(b"") as server:
        url = server.url
    with Posting(url, profile=None) as sender:
        found = probe(sender)

        assert found.pause is not None
        assert (found.pause.cause, found.profile) == (PauseCause.UNREACHABLE, None)
        assert sender.free == 0


@pytest.mark.parametrize(
    "status, cause",
    [
        ("200 OK", None),
        ("404 Not Found", None),
        ("403 No", PauseCause.NOT_AUTHORIZED),
        ("500 Broken", PauseCause.UNAVAILABLE),
        ("503 Busy", PauseCause.UNAVAILABLE),
    ],
)
def test_half_open_probe_is_one_cheap_get(status, cause):
    for profile, path in ((AZURE, "/v2/changefeed/latest"), (OTHER, "/v2/studies")):
        with ScriptedServer(answer(b"[]", status=status)) as server, Posting(server.url, profile=profile) as sender:
            found = probe(sender)

        assert cause is (found.pause.cause if found.pause else None)
        assert [request.method for request in server.requests] == ["GET"]
        assert server.requests[0].target.startswith(path)
        assert found.profile is None, "what was configured is not asked for"


def test_server_that_says_yes_to_everything_is_no_azure():
    """A bare 204 to any GET, an empty object: neither is a change feed."""
    for said in (answer(status="204 No Content"), answer(b"{}"), answer(b"[]", content_type="text/html")):
        with ScriptedServer(said) as server, DicomWebClient(server.url) as client:
            try:
                kind = probe_profile(client).kind
            except Exception as error:  # noqa: BLE001 - a web page is a configuration fault
                assert "Misconfigured" in type(error).__name__  # noqa: PT017 - one of two right answers
            else:
                assert ServerKind.AZURE is not kind


def test_emulator_s_first_version_has_the_first_version_s_feed(emulator):
    with DicomWebClient(f"{emulator.root}/v1") as client:
        assert profile_of(ServerKind.AZURE, feed_version=1) == probe_profile(client)
