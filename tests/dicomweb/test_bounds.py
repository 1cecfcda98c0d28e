"""Every value from a server is bounded before it is used: what no sane server sends neither ends nor fills anything."""

from __future__ import annotations

import json
import time
import tracemalloc
from datetime import timedelta

import pytest

from ingestd.clocks import boottime
from ingestd.dicomweb import DicomWebClient, DicomWebError, TokenError, Unintelligible, uid_of
from ingestd.dicomweb.answers import parse_http_date
from ingestd.dicomweb.auth import token_from_json
from ingestd.dicomweb.decoding import Undecodable, datasets_from_json, load_json, to_dataset
from ingestd.dicomweb.failures import parse_retry_after
from ingestd.dicomweb.oauth import OAuth2Auth
from ingestd.dicomweb.sdk import expiry_of
from tests.builders import write_instance
from tests.http_server import Conversation, ScriptedServer, answer

FEED_ENTRY = {
    "sequence": 7,
    "studyInstanceUid": "1",
    "seriesInstanceUid": "2",
    "sopInstanceUid": "3",
    "action": "create",
    "timestamp": "2026-05-01T10:00:00.1234567Z",
    "state": "current",
}
# What an entry of the feed may have instead of one of its values.
NO_ENTRIES = [
    {"sequence": 2**63},
    {"sequence": 10**400},
    {"sequence": -1},
    {"sequence": None},
    {"sequence": "7"},
    {"sequence": True},
    {"timestamp": None},
    {"timestamp": "yesterday"},
    {"timestamp": "0001-01-01T00:00:00"},
    {"timestamp": "0001-01-01T00:00:00+14:00"},
    {"timestamp": "9999-12-31T23:59:59-14:00"},
    {"timestamp": "2300-01-01T00:00:00Z"},
    {"sopInstanceUid": ""},
    {"sopInstanceUid": None},
    {"sopInstanceUid": "1" * 100_000},
    {"studyInstanceUid": 1},
    {"action": None},
    {"action": {"a": ["b"]}},
    {"state": "x" * 100_000},
]


def feed_page(*entries: object) -> bytes:
    return answer(json.dumps(entries).encode(), content_type="application/json")


@pytest.mark.parametrize("change", NO_ENTRIES, ids=lambda change: str(change)[:40])
def test_feed_entry_that_is_none_is_counted_and_stepped_over(change):
    entries = [FEED_ENTRY | {"sequence": 5}, FEED_ENTRY | change, FEED_ENTRY | {"sequence": 9}]

    with ScriptedServer(feed_page(*entries)) as server, DicomWebClient(server.url) as client:
        page = client.change_feed()

    assert [entry.sequence for entry in page.entries] == [5, 9]
    assert (page.unreadable, page.size) == (1, 3)


@pytest.mark.parametrize("other", [[], None, 7, "x", [[]]])
def test_whatever_stands_in_place_of_a_feed_entry_is_counted(other):
    with ScriptedServer(feed_page(other, FEED_ENTRY)) as server, DicomWebClient(server.url) as client:
        page = client.change_feed()

    assert ([entry.sequence for entry in page.entries], page.unreadable) == ([7], 1)


@pytest.mark.parametrize("change", NO_ENTRIES, ids=lambda change: str(change)[:40])
def test_latest_feed_entry_that_is_none_is_unintelligible(change):
    reply = answer(json.dumps(FEED_ENTRY | change).encode(), content_type="application/json")

    with (
        ScriptedServer(reply) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unintelligible),
    ):
        client.change_feed_latest()


def test_follower_gives_what_can_be_read_of_a_feed_and_ends():
    """By sequence and by offset: an entry that cannot be read is one of the page all the same."""
    many = [FEED_ENTRY | {"sequence": at, "sopInstanceUid": str(at)} for at in range(1, 250)]
    broken = [entry | {"timestamp": None} if entry["sequence"] % 100 == 0 else entry for entry in many]

    def page(conversation: Conversation) -> None:
        conversation.read_body()
        offset = int(conversation.request.target.partition("offset=")[2].partition("&")[0])
        conversation.send(feed_page(*broken[offset : offset + 200]))

    with ScriptedServer(page) as server, DicomWebClient(server.url) as client:
        found = client.follow().read()

    assert [entry.sequence for entry in found] == [at for at in range(1, 250) if at % 100]


@pytest.mark.parametrize("change", [{}, {"timestamp": None}], ids=["read", "unreadable"])
def test_feed_that_gives_the_same_page_for_ever_is_given_up(change):
    full = [FEED_ENTRY | {"sequence": at, "sopInstanceUid": str(at)} | change for at in range(200)]

    with (
        ScriptedServer(feed_page(*full)) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(Unintelligible),
    ):
        client.follow().read()

    assert len(server.requests) < 100


@pytest.mark.parametrize(
    "many, how_many, last",
    [
        (b"[[],[]],", 6_000_000, b"[]"),
        (b"{},", 15_000_000, b"{}"),
        (b'"",', 15_000_000, b'""'),
        (b"1,", 25_000_000, b"1"),
        (b"a", 140_000_000, "\U0001f600".encode() + b'"'),
    ],
    ids=["lists", "objects", "texts", "numbers", "wide text"],
)
def test_json_that_would_take_much_memory_is_refused_before_it_does(many, how_many, last):
    text = (b'["' if many == b"a" else b"[") + many * how_many + last + b"]"
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(Undecodable, match="memory"):
        load_json(text)
    took = time.monotonic() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1_000_000
    assert took < 5


def test_numbers_that_are_none_are_read_as_the_service_spells_them():
    """Some servers write them bare, which no strict reader takes: nor what we would write of them."""
    bare = b'[{"00189079": {"vr": "FD", "Value": [Infinity, -Infinity, NaN, 0.5]}}]'

    (found,) = datasets_from_json(bare)

    assert found["00189079"]["Value"] == ["Infinity", "-Infinity", "NaN", 0.5]
    assert [str(value) for value in to_dataset(found)[0x00189079].value] == ["inf", "-inf", "nan", "0.5"]


@pytest.mark.slow
def test_json_of_a_large_study_is_read():
    item = {f"0008{at:04X}": {"vr": "UI", "Value": ["1.2.826.0.1.3680043.10.1451.12345"]} for at in range(20)}

    assert len(load_json(json.dumps([item] * 20_000).encode())) == 20_000


def test_error_of_a_token_endpoint_may_be_nested_deeply():
    with (
        ScriptedServer(answer(b"[" * 1900, status="400 Bad Request")) as tokens,
        pytest.raises(TokenError, match="answered 400"),
    ):
        OAuth2Auth(tokens.url, "me", secret="x").header()


@pytest.mark.parametrize("lifetime", [10**400, 1e308, float("inf"), float("nan"), -5, "1e999", "nan"])
def test_lifetime_of_a_token_is_bounded(lifetime):
    before = boottime()

    token = token_from_json(json.dumps({"access_token": "t", "expires_in": lifetime}).encode(), what="here")

    assert before <= token.expires_at <= boottime() + timedelta(days=1).total_seconds()


def test_expiry_in_a_token_that_no_clock_has_says_nothing():
    import base64

    payload = base64.urlsafe_b64encode(json.dumps({"exp": 10**400}).encode()).decode()

    assert expiry_of(f"x.{payload}.x") == 0


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 1066 00:00:00 +2359",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 99999999999 23:59:59 GMT",
        "Thu, 31 Dec 1899 23:59:59 GMT",
    ],
)
def test_date_that_no_clock_has_is_none(date):
    assert parse_http_date(date) is None
    assert parse_retry_after(date, now=None) is None


def test_codes_of_a_store_that_no_table_can_hold_are_failures_without_a_reason(tmp_path):
    """The ledger keeps them: what does not fit 16 bits is none of the standard's."""
    path = write_instance(tmp_path / "a", sop_uid="1.2.3")
    for code in (2**63, 10**400, -1, 0x10000):
        item = {
            "00081155": {"vr": "UI", "Value": ["1.2.3"]},
            "00081197": {"vr": "US", "Value": [code]},
            "00081196": {"vr": "US", "Value": [code]},
        }
        for sequence in ("00081198", "00081199"):
            reply = answer(json.dumps({sequence: {"vr": "SQ", "Value": [item]}}).encode())
            with ScriptedServer(reply) as server, DicomWebClient(server.url) as client:
                result = client.store([path])

            assert [failed.reason for failed in result.failed.values()] == [0x0110] * (sequence == "00081198")
            assert [stored.warning_reason for stored in result.stored.values()] == [None] * (sequence == "00081199")


def studies(*uids: str) -> bytes:
    return answer(json.dumps([{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in uids]).encode())


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_search_whose_pages_come_round_again_ends(period):
    pages = [studies(f"{at}.1", f"{at}.2") for at in range(1, period + 1)]

    with ScriptedServer(*pages * 3, studies("never reached")) as server, DicomWebClient(server.url) as client:
        found = [uid_of(item, "StudyInstanceUID") for item in client.find_studies()]

    assert found == [f"{at}.{of}" for at in range(1, period + 1) for of in (1, 2)]
    assert len(server.requests) == period + 1


def test_search_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr("ingestd.dicomweb.searching.MOST_RESULTS", 100)
    counted = iter(range(10_000))

    def page(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(studies(*(str(next(counted)) for _ in range(30))))

    with (
        ScriptedServer(page) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(DicomWebError, match="more than 100"),
    ):
        list(client.find_studies())

    assert len(server.requests) == 4
