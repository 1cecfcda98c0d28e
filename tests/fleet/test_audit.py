"""What an audit writes beside others: it works on no spool, so that nobody waits for its end."""

from __future__ import annotations

import subprocess

from tests.builders import fresh_uid
from tests.fleet.gateways import Gateways
from tests.running import PROGRAM, environment, wait_until

WAITING = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def test_audit_that_waits_for_the_word_of_another_address_finds_nothing_by_the_former(both: Gateways):
    """It had looked which address holds, and waited then for who said another: what matched became that one's trust."""
    both.feed(2, study=fresh_uid(1))
    site = both.site("a")
    assert site.run_once().returncode == 0
    words = [*PROGRAM, "reconcile", "-c", str(site.config_file), "--full", "--compare", "100"]

    both.server.faults.add("latency", method="GET", seconds=1.0)
    asked = len(both.server.requests)
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as audit:
        wait_until(lambda: len(both.server.requests) > asked, what="the audit")
        with both.writing() as other:
            wait_until(lambda: both.sql(WAITING) == [(True,)], what="that it waits to write")
            moved = "UPDATE destination SET url = 'http://127.0.0.1:9/v2'; DELETE FROM trust"
            other.execute(moved)
        _, said = audit.communicate(timeout=60)

    assert (audit.returncode, both.sql("SELECT * FROM trust")) == (2, []), said
