"""A server that stores and answers searches, and gives nothing back: an alarm within the minute, and no file's fault.

Real daemons against the embedded server, with something in front of it that answers some of what is asked for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.daemon.daemon import Daemon
from ingestd.daemon.unanswered import Unanswered
from ingestd.dicomweb import DicomWebClient
from ingestd.emulator import Emulator
from ingestd.ledger import Alarm, moves, queries
from ingestd.lifecycle import State
from ingestd.reconciler import StudyQuestion
from ingestd.reconciler.asking import StudyAsker
from tests.daemon.test_trust import _ask
from tests.daemon.test_verification import rooms, somebody_else, turn_until, utc_now
from tests.http_server import Conversation, Request, ScriptedServer, answer
from tests.line.test_line import drop, make_image
from tests.reconciler.test_decide import row_of
from tests.running import Site, wait_until
from tests.serving import only_server

FORBIDDEN = answer(b"no", status="403 Forbidden", content_type="text/plain")
HANG_UP = b""
BROKEN = answer(b"\0" * 10, content_type="application/dicom", length=1000)
NO_PART = answer(content_type='multipart/related; type="application/dicom"; boundary=abc')


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as one:
        yield one


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run of failures be told after a second, and what could not be asked be asked again as soon."""
    monkeypatch.setattr("ingestd.daemon.unanswered._TELL_AFTER_SECONDS", 1.0)
    monkeypatch.setattr("ingestd.daemon.verification.ASK_AGAIN", timedelta(seconds=1))


def is_retrieve(request: Request) -> bool:
    return request.method == "GET" and "/series/" in request.target and "?" not in request.target


def is_feed(request: Request) -> bool:
    return "/changefeed" in request.target


def is_search(request: Request) -> bool:
    return request.method == "GET" and "/studies/" in request.target and "?" in request.target


class Withholding:
    """Something in front of a server that answers the requests ``of`` a kind for it, while told to."""

    def __init__(self, upstream: str, said: bytes, *, of: Callable[[Request], bool] = is_retrieve) -> None:
        self._upstream = upstream
        self.said = said
        self._of = of
        self.withholds = True
        self.withheld = 0
        self.has_stored = False
        self.server = ScriptedServer(self._pass_on)

    def _pass_on(self, conversation: Conversation) -> None:
        body = conversation.read_body()
        if self.withholds and self._of(conversation.request):
            self.withheld += 1
            if self.said != HANG_UP:
                conversation.send(self.said)
            if self.said in (HANG_UP, BROKEN):
                conversation.hang_up()
            return
        self.has_stored = self.has_stored or bool(body)
        status, said, kind = _ask(self._upstream, conversation.request, body)
        conversation.send(answer(said, status=f"{status} Passed On", content_type=kind))


def alarm_of(daemon: Daemon, kind: str = "not_retrieved") -> Alarm | None:
    return next((alarm for alarm in daemon.stages.alarms.standing if alarm.kind == kind), None)


def ask_now(daemon: Daemon, site: Site) -> None:
    with somebody_else(site) as other, other.transaction() as tx:
        moves.check_again(tx, [entry.delivery_id for entry in queries.entries(daemon.ledger)], at=utc_now())


AWAY = {"answered 503", "the connection was cut"}
QUICK = {"answered 403 Forbidden", "application/json, which is no DICOM", "breaks off before its end"}


@pytest.mark.parametrize(
    "said, words",
    [
        # One of each kind in the default run: who may not, no DICOM, no end.
        pytest.param(said, words, marks=() if words in QUICK else pytest.mark.slow, id=words)
        for said, words in (
            (FORBIDDEN, "answered 403 Forbidden"),
            (answer(status="401 Unauthorized"), "answered 401 Unauthorized"),
            (
                answer(status="302 Found", headers={"Location": "http://127.0.0.1:9/login"}),
                "redirects are not followed",
            ),
            (answer(b"<html>", content_type="text/html"), "web page"),
            (answer(status="404 Not Found"), "a query lists it"),
            (answer(status="500 Internal Server Error"), "answered 500"),
            (answer(status="503 Service Unavailable"), "answered 503"),
            (NO_PART, "its boundary does not occur"),
            (answer(b'{"message": "later"}', content_type="application/json"), "application/json, which is no DICOM"),
            (answer(b"try later", content_type="text/plain"), "text/plain, which is no DICOM"),
            (BROKEN, "breaks off before its end"),
            (HANG_UP, "the connection was cut"),
        )
    ],
)
def test_server_that_gives_no_copy_back_is_told_and_the_first_copy_ends_it(
    tmp_path: Path, server: Emulator, soon: None, said: bytes, words: str
):
    """Rows stayed STORED or UNCERTAIN with nothing but their age to tell it, and `explain` said "nothing to do"."""
    server.faults.add("drop_after_store", count=1, method="POST")
    gateway = Withholding(server.url, said)
    with gateway.server as front:
        site = Site(tmp_path / "site", front.url, reconcile={"grace": "15m"})
        for number in range(3):
            drop(site, f"image{number}", make_image().content)
        with rooms(site) as daemon:
            turn_until(daemon, lambda: alarm_of(daemon), what="an alarm")
            alarm = alarm_of(daemon)
            assert alarm is not None
            assert words in alarm.note
            # Of one that is away rights say nothing.
            assert ("right to read" in alarm.next_step) is (words not in AWAY)
            assert "look at the server" in alarm.next_step
            assert {entry.state for entry in queries.entries(daemon.ledger)} <= {State.STORED, State.UNCERTAIN}
            assert any(words in entry.note for entry in queries.entries(daemon.ledger))

            gateway.withholds = False
            ask_now(daemon, site)
            turn_until(daemon, lambda: queries.counts(daemon.ledger)[State.CONFIRMED], what="the first copy")
            assert alarm_of(daemon) is None


@pytest.mark.slow
def test_server_that_refuses_to_be_read_is_told_within_a_minute_with_what_to_do(tmp_path: Path, server: Emulator):
    gateway = Withholding(server.url, FORBIDDEN)
    with gateway.server as front:
        site = Site(tmp_path / "site", front.url, reconcile={"grace": "15m"})
        drop(site, "image", make_image().content)
        with site.start():
            wait_until(lambda: gateway.withheld, what="a retrieve")
            wait_until(lambda: site.stopped() == {"not_retrieved"}, what="an alarm")
            assert site.command("status", "--exit-code").returncode == 1
            said = " ".join(site.command("explain", "1").stdout.split())
            assert "its copy could not be had" in said
            assert "answered 403 Forbidden" in said
            assert "Asked again" in said
            assert "right to read" in said
            assert "What to do: nothing" not in said

            gateway.withholds = False
            assert site.command("reconcile").returncode == 0
            site.wait_for({"CONFIRMED": 1})
            wait_until(lambda: not site.stopped(), what="the end of the alarm")


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [answer(status="404 Not Found"), answer(status="500 Internal Server Error"), BROKEN],
    ids=["not found", "error", "broken"],
)
def test_one_file_that_the_server_cannot_give_back_is_no_outage(
    tmp_path: Path, server: Emulator, soon: None, said: bytes
):
    """That ends by the grace time, when it is told as one file."""
    image = make_image()
    gateway = Withholding(
        server.url, said, of=lambda request: is_retrieve(request) and image.identity[1] in request.target
    )
    with gateway.server as front:
        site = Site(tmp_path / "site", front.url, reconcile={"grace": "3s"})
        drop(site, "image", image.content)
        for number in range(3):
            drop(site, f"other{number}", make_image().content)
        with rooms(site) as daemon:
            turn_until(daemon, lambda: queries.counts(daemon.ledger)[State.CONFIRMED] == 3, what="the others")

            def is_told() -> Alarm | None:
                assert alarm_of(daemon) is None
                return alarm_of(daemon, "not_told")

            turn_until(daemon, is_told, what="the end of its grace time")
            assert gateway.withheld >= 2
            (entry,) = (entry for entry in queries.entries(daemon.ledger) if entry.state is not State.CONFIRMED)
            assert entry.state is State.STORED


def test_server_that_cannot_be_searched_is_told_where_that_is_what_proves(tmp_path: Path, server: Emulator, soon: None):
    """Before each post it is searched, too, which pauses the sending: this one refuses from the post on."""
    gateway = Withholding(server.url, FORBIDDEN, of=lambda request: is_search(request) and gateway.has_stored)
    with gateway.server as front:
        site = Site(
            tmp_path / "site",
            front.url,
            destination={"kind": "other"},
            reconcile={"verify": "presence", "grace": "15m"},
        )
        drop(site, "image", make_image().content)
        with rooms(site) as daemon:
            turn_until(daemon, lambda: alarm_of(daemon, "not_searched"), what="an alarm")
            (entry,) = queries.entries(daemon.ledger)
            assert (entry.state, "403" in entry.note) == (State.STORED, True)

            gateway.withholds = False
            ask_now(daemon, site)
            turn_until(daemon, lambda: queries.counts(daemon.ledger)[State.CONFIRMED], what="an answer")
            assert not daemon.stages.alarms.standing


def test_feed_that_cannot_be_read_is_told(tmp_path: Path, server: Emulator, soon: None):
    """What it would prove waited up to four times the grace time, with nothing but its age to tell it."""
    gateway = Withholding(server.url, FORBIDDEN, of=lambda request: is_feed(request) and gateway.has_stored)
    with gateway.server as front:
        site = Site(tmp_path / "site", front.url, reconcile={"grace": "15m", "interval": "1s"})
        drop(site, "image", make_image().content)
        with rooms(site) as daemon:
            turn_until(daemon, lambda: alarm_of(daemon, "feed_not_read"), what="an alarm")
            alarm = alarm_of(daemon, "feed_not_read")
            assert alarm is not None
            assert "answered 403 Forbidden" in alarm.note
            assert "reconcile" not in alarm.next_step  # which wakes rows, and no feed

            gateway.withholds = False
            only_server(daemon).feed_reading.read_soon()
            turn_until(daemon, lambda: alarm_of(daemon, "feed_not_read") is None, what="the feed")


@pytest.mark.parametrize("of", [is_retrieve, pytest.param(is_feed, marks=pytest.mark.slow)], ids=["copies", "the feed"])
@pytest.mark.parametrize(
    "said, most",
    [
        (answer(status="401 Unauthorized"), 10),
        (answer(status="429 Too Many Requests", headers={"Retry-After": "60"}), 2),
    ],
    ids=["401", "429"],
)
def test_server_that_lets_nobody_in_is_asked_ever_more_rarely(
    tmp_path: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch, said: bytes, most: int, of: Callable[..., bool]
):
    """Accounts are locked for trying, and a server that is throttling says when it wants to be asked."""
    monkeypatch.setattr("ingestd.daemon.verification.ASK_AGAIN", timedelta(milliseconds=100))
    gateway = Withholding(server.url, said, of=lambda request: of(request) and gateway.has_stored)
    with gateway.server as front:
        site = Site(tmp_path / "site", front.url, reconcile={"grace": "15m", "interval": "1s"})
        drop(site, "image", make_image().content)
        with rooms(site) as daemon:
            for stage in (only_server(daemon).verification, only_server(daemon).feed_reading):
                stage._interval = timedelta(milliseconds=100)
            turn_until(daemon, lambda: gateway.withheld, what="a question")
            until = time.monotonic() + 4

            def is_over() -> bool:
                # As what looks whether kept files may go does, again and again.
                only_server(daemon).feed_reading.read_soon()
                return time.monotonic() > until

            turn_until(daemon, is_over, what="four seconds")
            assert gateway.withheld <= most
            assert queries.counts(daemon.ledger)[State.STORED] == 1


def test_alarm_ends_with_the_last_file_that_waits_for_it(tmp_path: Path, server: Emulator, soon: None):
    """Nothing is asked for any more then, so that no answer would ever end it."""
    server.faults.add("drop_after_store", count=1, method="POST")
    gateway = Withholding(server.url, FORBIDDEN)
    with gateway.server as front:
        site = Site(tmp_path / "site", front.url, reconcile={"grace": "15m"})
        drop(site, "image", make_image().content)
        with rooms(site) as daemon:
            turn_until(daemon, lambda: alarm_of(daemon), what="an alarm")

            daemon.gates.claims.shut("test")
            (entry,) = queries.entries(daemon.ledger)
            with somebody_else(site) as other, other.transaction() as tx:
                assert moves.retry(tx, entry.delivery_id, now=utc_now()) is State.PENDING
            turn_until(daemon, lambda: alarm_of(daemon) is None, what="the end of the alarm")
            assert [entry.state for entry in queries.entries(daemon.ledger)] == [State.PENDING]


@pytest.mark.parametrize(
    "said, words, is_told",
    [
        (answer(b"\0" * 5_000_000, content_type="application/dicom"), "could not be kept", False),
        (answer(status="500 Internal Server Error"), "could not be had", True),
    ],
    ids=["ours", "the server's"],
)
def test_copy_that_we_cannot_keep_is_not_told_as_the_servers_fault(
    tmp_path: Path, said: bytes, words: str, is_told: bool
):
    """It is too large to be looked at in memory, and there is no folder to put it into."""
    rows = tuple(row_of(delivery_id=number) for number in range(3))
    alarms = Alarms()
    unanswered = Unanswered(alarms, "not_retrieved", wanted="gives back nothing", again="soon")
    with ScriptedServer(said) as front, DicomWebClient(front.url) as client:
        for mono in (0.0, 60.0):
            asker = StudyAsker(client, StudyQuestion(study_uid="1.1", rows=rows, fetch=True), tmp_path / "no", utc_now)
            asker.ask()
            assert all(words in finding.note for finding in asker.findings)
            unanswered.take(asker.answer(), Now(utc=utc_now(), mono=mono))

    assert alarms.stands("not_retrieved") is is_told
