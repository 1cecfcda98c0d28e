"""What the server is sent at once is kept by all together, though there are more workers than that."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.builders import fresh_uid
from tests.fleet.gateways import gateways
from tests.fleet.test_division import divided

# How many of the posts before each were still out when it began; who waits for the others' transaction began before it.
_OUT = """SELECT max(out) FROM (SELECT (SELECT count(*) FROM attempt AS other
    WHERE other.id <> attempt.id AND other.started_at <= attempt.started_at
        AND other.finished_at > attempt.started_at + 300000) AS out FROM attempt) AS each"""


@pytest.mark.slow
def test_max_posts_is_kept_by_more_workers_than_that(tmp_path: Path, server: Emulator, database: str):
    destination = {"url": server.url, "auth": "none", "max_posts": 1}
    with gateways(tmp_path, server, database, more_drops=2, destination=destination) as three:
        divided(three, *(three.start(name) for name in ("a", "b", "c")))
        server.faults.add("latency", seconds=0.5, method="POST")
        for drop in three.drops:
            for _ in range(3):
                three.feed(1, drop=drop, study=fresh_uid(1))
        three.wait_confirmed()

        assert three.sql(_OUT) == [(0,)]
        assert set(three.posted().values()) == {1}
