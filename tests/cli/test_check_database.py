"""What `check` says of the server that a ledger in PostgreSQL is kept in, and of the share that a spool lies on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ingestd.cli.check_database import judged
from ingestd.cli.check_folders import shared_spool
from ingestd.cli.common import ExitCode
from ingestd.fs.mounts import Mount
from ingestd.ledger.postgres_facts import ServerFacts, facts_of
from tests.commanding import CONFIG, command_in
from tests.postgres import Cluster
from tests.running import wait_until

GOOD = ServerFacts(
    version="17.2",
    off=[],
    synchronous_commit="on",
    standbys=0,
    waits_for_standbys=False,
    is_standby=False,
    schema="public",
    may_create=True,
    mixes_sessions=False,
    is_local=False,
    has_tls=True,
    verifies=True,
)


@pytest.fixture
def command(tmp_path, capfd, database):
    (tmp_path / "drop").mkdir()
    (tmp_path / "config.yaml").write_text(CONFIG.replace("sqlite:///ledger.db", database) + "lease: 3s\n")
    return command_in(tmp_path, capfd)


@pytest.fixture
def guest(cluster, database):
    """A role that may nothing, and the URL by which it comes."""
    name = database.rpartition("/")[2]
    cluster.execute(f"CREATE ROLE guest_of_{name} LOGIN")
    yield f"guest_of_{name}", database.replace("postgres@", f"guest_of_{name}@")
    cluster.drop(name)
    cluster.execute(f"DROP ROLE guest_of_{name}")


def said(found) -> list[tuple[str, str]]:
    return [(each.result, each.text) for each in found]


@pytest.fixture
def risks(cluster):
    """The tests' own server as one that nobody should have."""
    for change, is_now in (("SET full_page_writes = off", "off"), ("RESET full_page_writes", "on")):
        cluster.execute(f"ALTER SYSTEM {change}")
        cluster.execute("SELECT pg_reload_conf()")
        wait_until(lambda: cluster.execute("SHOW full_page_writes") == [(is_now,)], what="the setting")  # noqa: B023
        if is_now == "off":
            yield


@pytest.mark.usefixtures("risks")
def test_what_a_server_risks_is_told_and_keeps_no_ingestd_from_starting(command, cluster):
    ran = command("check", "--for-start", "--json")

    lines = [(each["result"], each["text"]) for each in ran.json["checks"] if each["name"] == "database"]
    assert ran.code == ExitCode.DONE
    assert lines[0] == ("ok", f"PostgreSQL {cluster.execute('SHOW server_version')[0][0]}")
    (bad,) = [text for result, text in lines if result == "bad"]
    assert "full_page_writes" in bad
    assert any(result == "note" and text.startswith("lease is 3 s") for result, text in lines)


def test_a_role_that_may_not_make_tables_is_told_before_the_first_start(cluster, guest):
    role, url = guest
    cluster.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database=url.rpartition("/")[2])

    facts = facts_of(url)

    assert (facts.schema, facts.may_create) == ("public", False)
    assert any("may not make tables in schema public" in text for result, text in said(judged(facts)))
    cluster.execute(f"GRANT CREATE ON SCHEMA public TO {role}", database=url.rpartition("/")[2])
    assert facts_of(url).may_create


def test_what_others_set_for_the_role_is_told_although_our_sessions_have_another(cluster, guest):
    role, url = guest
    cluster.execute(f"ALTER ROLE {role} SET synchronous_commit = off")

    facts = facts_of(url)

    assert facts.synchronous_commit == "off"
    assert any(result == "note" and "synchronous_commit is off" in text for result, text in said(judged(facts)))


def test_a_schema_that_is_not_there_is_told(database):
    facts = facts_of(f"{database}?options=-csearch_path%3Dnowhere")

    assert facts.schema == ""
    assert any("no schema of the role's search_path" in text for _, text in said(judged(facts)))


def test_sessions_of_ones_own_are_not_taken_for_a_poolers(database):
    facts = facts_of(database)

    assert not facts.mixes_sessions
    assert facts.is_local


def test_standbys_that_no_commit_waits_for_are_told(tmp_path):
    with Cluster(tmp_path / "primary") as primary:
        primary.make("ledger")
        assert facts_of(primary.url("ledger")).standbys == 0
        standby = primary.standby(tmp_path / "standby")

        facts = facts_of(primary.url("ledger"))
        assert (facts.standbys, facts.waits_for_standbys, facts.is_standby) == (1, False, False)
        assert any("1 standby follows" in text for result, text in said(judged(facts)) if result == "note")
        assert facts_of(standby.url("ledger")).is_standby

        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")
        facts = facts_of(primary.url("ledger"))
        assert facts.waits_for_standbys
        assert not any("standby" in text for _, text in said(judged(facts)))


@pytest.mark.parametrize(
    "what, results, words",
    [
        ({}, [], ""),
        ({"off": ["fsync", "full_page_writes"]}, ["bad"], "fsync and full_page_writes are off"),
        ({"mixes_sessions": True}, ["bad"], "pooler"),
        ({"has_tls": False, "verifies": False}, ["note"], "not encrypted"),
        ({"verifies": False}, ["note"], "does not prove"),
        ({"has_tls": False, "verifies": False, "is_local": True}, [], ""),
        ({"is_standby": True, "may_create": False}, ["bad"], "standby"),
        ({"standbys": 2, "waits_for_standbys": True}, [], ""),
    ],
)
def test_each_of_these_is_told_and_nothing_else(what, results, words):
    found = said(judged(replace(GOOD, **what)))

    assert [result for result, _ in found] == results
    assert all(words in text for _, text in found)


@pytest.mark.parametrize(
    "kind, options, has_lock, words",
    [
        ("nfs4", "rw,vers=4.2,hard,local_lock=none", True, []),
        ("nfs4", "rw,vers=4.2,soft,local_lock=none", False, ["mounted soft"]),
        ("nfs", "rw,vers=3,softerr,nolock,local_lock=all", True, ["mounted softerr", "keeps locks to this machine"]),
        ("nfs", "rw,vers=3,hard,nolock,local_lock=all", False, []),  # nobody locks it
        ("cifs", "rw,vers=3.1.1,serverino,soft", False, []),
        ("cifs", "rw,vers=3.1.1,soft", False, ["no file numbers of its server"]),
        ("ceph", "rw", True, []),
    ],
)
def test_how_a_share_is_mounted_is_judged(kind, options, has_lock, words):
    mount = Mount(mount_point="/srv/ingestd", kind=kind, source="nas:/ingestd", options=frozenset(options.split(",")))

    found = said(shared_spool(mount, has_lock=has_lock))

    assert [result for result, _ in found] == ["note"] * len(words)
    assert all(word in text for (_, text), word in zip(found, words, strict=True))
