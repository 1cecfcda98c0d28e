"""A pause of a worker that is gone does not stay where another sends."""

from __future__ import annotations

from tests.fleet.gateways import Gateways
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

    wait_until(lambda: not both.sql(_PAUSED), what="the end of the pause", within_seconds=15)
