"""A pause of a worker that is gone does not stay where another sends."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.fleet.gateways import Gateways, stopped
from tests.running import wait_until

_PAUSED = "SELECT pause_cause, paused_since FROM destination WHERE paused_since IS NOT NULL"
_PAUSE = (
    "UPDATE destination SET paused_since = 1, paused_until = 2, pause_cause = 'unreachable', pause_note = 'no route'"
)


def test_pause_of_another_ends_where_we_send(both: Gateways):
    both.start("a")
    both.feed(1)
    both.wait_confirmed()
    both.sql(_PAUSE)  # as by a worker that did not reach the server, and was killed

    both.feed(1)
    both.wait_confirmed()

    wait_until(lambda: not both.sql(_PAUSED), what="the end of the pause")


@pytest.mark.slow
def test_pause_that_another_ended_for_all_is_told_again_once_that_one_is_gone(both: Gateways):
    """Nothing told why the file waited, and `retry --now` ended no pause that was not told."""
    patient: dict[str, Any] = {"retry": {"base": "10m", "cap": "10m"}, "lease": "20s"}
    a, b = both.start("a", **patient), both.start("b", **patient)
    site = both.site("a", **patient)
    both.server.faults.add("error_before_store", status=401)

    def are_paused() -> bool:
        both.feed()
        return all('"destination.paused"' in each.tail(200) for each in (a, b))

    wait_until(are_paused, what="both pauses", every=0.5)
    both.server.faults.clear()
    with stopped(b):
        assert site.command("retry", "--now").returncode == 0
        wait_until(lambda: '"destination.resumed"' in a.tail(200), what="that it goes on")
        wait_until(lambda: both.sql("SELECT pause_cause FROM destination") == [("",)], what="that it is told")
    both.wait_confirmed()
    assert a.terminate() == 0

    both.feed()
    wait_until(lambda: both.sql("SELECT pause_cause FROM destination") != [("",)], what="the word of it")
    assert "nothing is sent to the server" in site.command("status").stdout
    assert site.command("retry", "--now").returncode == 0
    both.wait_confirmed()


@pytest.mark.slow
def test_wait_that_the_server_asked_another_for_outlasts_our_pause(both: Gateways):
    """Nothing is left to be posted, so that our pause ends without a post, which says nothing of theirs."""
    both.server.faults.add("unavailable")
    both.start("a")
    both.feed()
    both.wait_for(PENDING=1)
    wait_until(lambda: both.sql(_PAUSED), what="the pause")
    (file,) = (each for each in (both.spool / "files").rglob("*") if each.is_file())
    file.unlink()
    both.server.faults.clear()
    asked = "UPDATE destination SET pause_cause = 'throttled', paused_until = paused_until + 3600000000"
    both.sql(asked)

    both.wait_for(FAILED=1)
    time.sleep(1)
    assert [cause for cause, _ in both.sql(_PAUSED)] == ["throttled"]
