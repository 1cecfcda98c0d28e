"""A worker whose way to the server is cut gives the proving to one that reaches it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import Gateways, through
from tests.running import Daemon, wait_until
from tests.wire import Wire


@pytest.fixture
def way(server: Emulator) -> Iterator[Wire]:
    """The way to the server, which knows by their tokens whom it carries."""
    with Wire(urlsplit(server.url).port or 0) as wire:
        yield wire


def with_its_own_token(two: Gateways, name: str, way: Wire, **settings: Any) -> Daemon:
    url = urlsplit(two.server.url)._replace(netloc=f"127.0.0.1:{way.port}").geturl()
    destination = {"url": url, "auth": {"kind": "bearer", "token_env": "ITS_TOKEN"}}
    return two.start(name, env={**os.environ, "ITS_TOKEN": f"of-{name}"}, destination=destination, **settings)


def upkeep_of(two: Gateways) -> list[int]:
    return [worker for worker, claims in two.claims().items() if "upkeep" in claims]


@pytest.mark.slow
def test_what_waits_for_proof_is_proven_by_who_reaches_the_server(both: Gateways, way: Wire):
    a = with_its_own_token(both, "a", way)
    both.feed(1)
    both.wait_confirmed()
    b = with_its_own_token(both, "b", way)
    way.barred = b"of-a"

    both.feed(2)
    both.wait_confirmed()
    assert upkeep_of(both) == [both.worker_of(b)]
    way.barred = b""
    both.feed(2)
    both.wait_confirmed()

    assert upkeep_of(both) == [both.worker_of(b)], "it stays where it is"
    assert a.is_running()
    wait_until(lambda: not both.sql("SELECT kind FROM alarm"), what="the end of all alarms")
    assert both.check() == []


@pytest.mark.slow
def test_who_has_nothing_to_send_looks_whether_it_reaches_the_server(both: Gateways, way: Wire):
    a, b = with_its_own_token(both, "a", way), with_its_own_token(both, "b", way)
    wait_until(lambda: upkeep_of(both), what="the upkeep")
    (first,) = upkeep_of(both)
    both.feed(1)
    both.wait_confirmed()

    way.barred = b"of-a" if first == both.worker_of(a) else b"of-b"
    both.sql("UPDATE delivery SET next_check_at = 1")  # asked for once more
    (other,) = {both.worker_of(a), both.worker_of(b)} - {first}
    wait_until(lambda: upkeep_of(both) == [other], what="the upkeep at the other one")


@pytest.mark.slow
def test_proving_is_given_though_the_database_was_away_just_when_it_was_to_be(
    both: Gateways, database: str, way: Wire, wire: Wire
):
    """It was tried once: who did not reach the server kept it, and a configuration was told of as refused."""
    a = with_its_own_token(both, "a", way, ledger=through(database, wire.port))
    both.feed(1)
    both.wait_confirmed()
    b = with_its_own_token(both, "b", way)
    way.barred = b"of-a"
    wire.delay_seconds = 0.01
    both.feed(2)
    wait_until(lambda: "upkeep.given_up" in a.log.read_text(), what="the decision", every=0.005)

    wire.refuse(True)
    wire.cut()
    wait_until(lambda: "ledger.failed" in a.log.read_text(), what="the word of it")
    wire.delay_seconds = 0.0
    wire.refuse(False)

    both.wait_confirmed()
    assert upkeep_of(both) == [both.worker_of(b)]
    assert "config_refused" not in a.log.read_text()
    assert a.is_running()
