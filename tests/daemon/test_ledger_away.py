"""The database of the ledger is away when ingestd is to start: it starts, waits, and is given the time for it."""

from __future__ import annotations

from tests.postgres import Cluster
from tests.running import Site, wait_until

SERVER = "http://127.0.0.1:9/v2"
EXTENDED = "EXTEND_TIMEOUT_USEC=900000000"


def test_a_database_that_is_away_keeps_nobody_from_starting_who_waits_for_it(tmp_path):
    """After `TimeoutStartSec` systemd ended a start that only waited, and `status` had no word of why."""
    with Cluster(tmp_path / "postgres") as cluster:
        cluster.make("ledger")
        site = Site(tmp_path / "site", SERVER, ledger=cluster.url("ledger"))
        cluster.stop()

        checked = site.command("check", "--for-start")
        with site.start(wait=False) as daemon:
            wait_until(lambda: EXTENDED in daemon.listen(), what="more time to start")
            assert "STATUS=the ledger is away, and is waited for" in daemon.heard
            assert "READY=1" not in daemon.heard
            cluster.start()
            daemon.wait_ready()

    assert checked.returncode == 0, checked.stdout
    assert "ingestd starts, and waits for it" in checked.stdout


def test_a_password_that_is_missing_does_not_pass_by_itself(tmp_path, monkeypatch):
    """It was waited for like a server that is away."""
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    with Cluster(tmp_path / "postgres") as cluster:
        cluster.execute("CREATE ROLE guest LOGIN PASSWORD 'secret'")
        rules = cluster.data / "pg_hba.conf"
        rules.write_text(f"host all guest 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        cluster.execute("SELECT pg_reload_conf()")
        site = Site(tmp_path / "site", SERVER, ledger=cluster.url("postgres").replace("postgres@", "guest@"))

        checked = site.command("check", "--for-start")

    assert checked.returncode == 2, checked.stdout
    assert "that does not pass by itself: see README" in checked.stdout
