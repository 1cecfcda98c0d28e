"""What a person sees of who works, with a ledger in PostgreSQL: real workers of it, of this process and of others."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from ingestd.cli.common import ExitCode
from ingestd.config import Config, load
from ingestd.daemon.loop import Wake
from ingestd.daemon.notify import Notifier
from ingestd.daemon.signals import Signals
from ingestd.daemon.standing_by import wait_for_turn
from ingestd.inbox import Spool
from ingestd.ledger import UPKEEP, Ledger, Writer, inbox_claim, moves
from ingestd.lifecycle import State
from tests.builders import write_instance
from tests.commanding import CONFIG, command_in
from tests.ledger_builders import entry_in
from tests.running import wait_until

LEASE = timedelta(seconds=60)
HERE = os.uname().nodename


class Workers:
    """A folder with a configuration, and workers of its ledger."""

    def __init__(self, folder, url):
        self.folder, self.url = folder, url
        (folder / "drop").mkdir()
        self.configure(url)
        self.host = Spool(self.config.spool.path).host

    def configure(self, url: str) -> None:
        (self.folder / "config.yaml").write_text(CONFIG.replace("sqlite:///ledger.db", url))

    @property
    def config(self) -> Config:
        return load(self.folder / "config.yaml")

    def works(self, *, shares: bool = False) -> Ledger:
        """This process works, until it closes it."""
        config = self.config
        ledger = Ledger.open(
            config.ledger,
            host=self.host,
            spool=config.spool.path,
            destinations=config.addresses,
            key=config.spool.search_key,
            writer=Writer(self.host, lease=LEASE, shares=shares),
        )
        Spool(config.spool.path).share_scratch(ledger.worker, lambda: ())
        return ledger

    @contextmanager
    def stands_by(self) -> Iterator[int]:
        """Another process stands by; its number."""
        pid = os.fork()
        if not pid:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                wake = Wake()
                with (signals := Signals(wake)).caught():
                    wait_for_turn(self.config, wake, signals, Notifier(), lambda: False)
            finally:
                os._exit(0)
        try:
            # Not before it has seen the spool: it writes its row once more then.
            standing = "SELECT id FROM worker WHERE holds = 0 AND id > 0 AND ended_at IS NULL AND bars = ''"
            wait_until(lambda: self.do(standing).fetchall(), what="who stands by")
            yield pid
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)

    def is_killed_at_work(self, state: State = State.CONFIRMED) -> int:
        """A process ends without a word that had brought a file into this state; its number."""
        pid = os.fork()
        if not pid:
            try:
                entry_in(self.works(), state)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        return pid

    def do(self, sql: str) -> psycopg.Cursor:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(sql)

    def is_elsewhere(self, worker: int, machine: str, *, silent: str = "0 s") -> None:
        """A worker is of another machine, and wrote last so long ago."""
        put = (
            f"machine = '{machine}', process = 'other-boot:1:77:5', wrote_at = clock_timestamp() - interval '{silent}'"
        )
        self.do(f"UPDATE worker SET {put} WHERE id = {worker}")


@pytest.fixture
def workers(tmp_path, database):
    return Workers(tmp_path, database)


@pytest.fixture
def command(tmp_path, capfd):
    return command_in(tmp_path, capfd)


def stopped(command) -> dict[str, dict]:
    return {line["kind"]: line for line in command("status", "--json").json["stopped_because"]}


def test_before_the_first_start_nobody_works(command, workers):
    said = command("status", "--json").json
    assert said["daemon"] == {"running": False, "pid": None}
    assert said["workers"] == []
    assert "not running (start it" in command("status").out
    ran = command("workers")
    assert (ran.code, "is empty" in ran.err) == (ExitCode.CONFIGURATION, True)


def test_who_works_and_who_stands_by_is_told_by_every_command(command, workers):
    dropped = str(write_instance(workers.folder / "drop" / "image"))
    with workers.works(), workers.stands_by() as other:
        screen = command("status").out
        assert f"running, process {os.getpid()} on {HERE} (worker 1)" in screen
        assert f"worker 2, process {other} on {HERE}, stands by" in screen
        said = command("status", "--json").json
        assert said["daemon"] == {"running": True, "pid": os.getpid(), "machine": HERE, "worker": 1}
        assert [(each["worker"], each["does"]) for each in said["workers"]] == [(2, "stands_by"), (1, "works")]
        assert said["stopped_because"] == []
        listed = command("workers", "--json").json["workers"]
        assert [(each["worker"], each["does"], each["lease_seconds"]) for each in listed] == [
            (1, "works", 60),
            (2, "stands_by", 60),
        ]
        shown = command("workers").out
        assert [line.split()[:3] for line in shown.splitlines() if line.endswith(("works", "stands by"))] == [
            ["1", HERE, str(os.getpid())],
            ["2", HERE, str(other)],
        ]
        said = command("check").out
        assert f"running, process {os.getpid()} on {HERE} (worker 1); 1 other would go on in its place" in said
        for ran in (command("retry", "--now"), command("explain", dropped)):
            assert "start it" not in ran.out + ran.err

    assert command("status", "--json").json["daemon"]["running"] is False
    assert set(stopped(command)) == {"no_daemon"}
    assert "start it" in command("retry", "--now").out
    assert [each["why_ended"] for each in command("workers", "--json").json["workers"]] == ["stopped", "stopped"]
    assert "nobody works (start it" in command("workers").out


def test_what_each_has_of_the_work_is_told(command, workers):
    (inbox,) = workers.config.inboxes
    with workers.works(shares=True) as first, workers.works(shares=True), workers.works(shares=True):
        with first.transaction() as tx:
            moves.claim_work(tx, takes=[inbox_claim(inbox.spool_name), UPKEEP])
        others = [f"worker {number}, process {os.getpid()} on {HERE}, works\n" for number in (3, 2)]
        assert f"(worker 1)\nOthers              {others[0]}                    {others[1]}" in command("status").out
        shown = command("workers").out
        assert f"works; takes from {inbox.path}; proves and removes\n" in shown
        listed = command("workers", "--json").json["workers"]
        assert [(each["does"], len(each["claims"])) for each in listed] == [("works", 0), ("works", 0), ("works", 2)]


def test_who_gets_no_answer_of_a_destination_is_told(command, workers):
    with workers.works(shares=True) as ledger:
        with ledger.transaction() as tx:
            moves.say_sight(tx, bars="", sight={}, reach={"archive": True, "default": False}, wants=0)
        assert "works; no answer of default\n" in command("workers").out
        assert command("workers", "--json").json["workers"][0]["unreached"] == ["default"]
        told = f"Not reached         by worker 1, process {os.getpid()} on {HERE}: no answer of default\n"
        assert told in command("status").out


def test_which_worker_sent_is_told(command, workers):
    with workers.works() as ledger:
        entry_in(ledger, State.STORED)
        workers.is_elsewhere(1, "pacs-a")
        assert re.search(r"Worker +Files .*\n1 .* 1 on pacs-a +1 ", command("explain", "1").out)
        (sent,) = command("explain", "1", "--json").json["files"][0]["requests"]
        assert (sent["worker"], sent["machine"]) == (1, "pacs-a")
    workers.do("DELETE FROM worker WHERE id = 1")  # after a month
    (sent,) = command("explain", "1", "--json").json["files"][0]["requests"]
    assert (sent["worker"], sent["machine"]) == (1, None)


def test_a_worker_of_another_machine_is_seen_and_its_spool_need_not_be_here(command, workers):
    with workers.works():
        workers.is_elsewhere(1, "pacs-a")
        shutil.move(workers.config.spool.path, workers.folder / "away")
        assert "running, process 77 on pacs-a (worker 1)" in command("status").out
        assert stopped(command) == {}


def test_a_worker_that_misses_its_beat_stands_out_before_its_lease_is_over(command, workers):
    with workers.works():
        workers.is_elsewhere(1, "pacs-a", silent="40 s")
        (line,) = (line for line in command("workers").out.splitlines() if "pacs-a" in line)
        assert line.endswith("works; has been silent for 40 s")
        assert "(worker 1), has been silent for 40 s\n" in command("status").out


def test_a_worker_that_is_silent_for_its_lease_is_told_where_files_wait(command, workers):
    write_instance(workers.folder / "drop" / "image")
    with workers.works():
        workers.is_elsewhere(1, "pacs-a", silent="5 min")
        line = stopped(command)["no_daemon"]
        assert "worker 1, process 77 on pacs-a, has been silent for 5 min" in line["note"]
        assert "pacs-a" in line["next_step"]
        assert re.search(r"files wait in [^,]*, the oldest\s+file\s+has\s+waited\s+for\s+\d+ s", command("status").out)
        assert command("workers", "--json").json["workers"][0]["does"] == "silent"

        with workers.stands_by():
            assert "worker 2" in stopped(command)["no_daemon"]["next_step"]
            assert "about to take over" in command("status").out


def test_a_worker_that_was_killed_here_is_told_at_once(command, workers):
    pid = workers.is_killed_at_work()

    assert command("status", "--json").json["daemon"]["running"] is False
    assert f"worker 1, process {pid} on {HERE}, is gone" in command("status").out
    assert command("workers", "--json").json["workers"][0]["does"] == "gone"
    assert command("reconcile").out == "nothing waits for proof\n"


def test_what_a_killed_worker_was_sending_is_asked_about_by_the_command_itself(command, workers):
    workers.is_killed_at_work(State.SENDING)
    assert command("reconcile").code == ExitCode.TIMEOUT  # no server is there to be asked


def test_what_a_worker_is_sending_is_its_own_to_ask_about(command, workers):
    with workers.works() as ledger:
        entry_in(ledger, State.SENDING)
        assert command("reconcile").out == "nothing waits for proof\n"


def test_reconcile_takes_nothing_from_a_silent_worker_that_may_be_at_work_still(command, workers):
    with workers.works() as ledger:
        entry_in(ledger, State.STORED)
        workers.is_elsewhere(1, "pacs-a", silent="5 min")
        ran = command("reconcile")
        assert (ran.code, "worker 1, process 77 on pacs-a" in ran.err) == (ExitCode.BUSY, True)


def test_nobody_standing_by_is_told_where_another_machine_did_today(command, workers):
    with workers.works():
        assert "Others              nobody\n" in command("status").out
        with workers.stands_by():
            workers.is_elsewhere(2, "pacs-b", silent="2 h")
        assert "nobody; worker 2 on pacs-b last wrote 2 h ago" in command("status").out


def test_who_works_is_found_behind_any_number_of_sends(command, workers):
    """The last fifty starts were looked at: a `send` each few minutes, and the daemon was not running."""
    with workers.works():
        workers.do(
            "INSERT INTO worker (id, spool_id, machine, process, began_at, lease_us, ended_at) SELECT"
            " nextval('worker_number'), spool_id, machine, process, began_at, lease_us, 1 FROM worker,"
            " generate_series(1, 60) WHERE id = 1"
        )
        assert command("status", "--json").json["daemon"]["running"] is True
        assert "... and 11 more" in command("workers").out


def test_send_makes_no_spool_and_no_key_where_the_share_is_not_mounted(command, workers):
    workers.works().close()
    spool = workers.config.spool.path
    spool.rename(workers.folder / "away")

    ran = command("send", str(workers.folder / "drop"))

    assert (ran.code, "is not there, or has another id" in ran.err) == (ExitCode.CONFIGURATION, True), ran
    assert not spool.exists()
    spool.mkdir()
    assert command("resolve", "--new-key").code == ExitCode.CONFIGURATION
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("is_there", [False, True])
def test_spool_of_which_the_share_is_not_mounted_is_not_called_well(command, workers, is_there):
    workers.works().close()
    spool = workers.config.spool.path
    spool.rename(workers.folder / "away")
    if is_there:
        spool.mkdir(mode=0o700)

    ran = command("check", "--for-start")

    assert (ran.code, "is not there, or has another id" in ran.out) == (ExitCode.CONFIGURATION, True), ran
    assert not [line for line in ran.out.splitlines() if line.startswith("ok") and line.split()[1] == "spool"]


def test_an_address_is_not_changed_under_who_would_take_over(command, workers):
    with workers.works(), workers.stands_by():
        ran = command("destination", "move", "default", "http://127.0.0.1:1/x")
        assert (ran.code, [name in ran.err for name in ("worker 1", "worker 2", "stop all of them")]) == (
            ExitCode.BUSY,
            [True] * 3,
        )


@pytest.mark.parametrize("words", [("status",), ("workers",), ("retry", "--now"), ("explain", "1"), ("reconcile",)])
def test_a_database_that_is_away_is_told_and_not_taken_for_nobody(command, workers, words):
    workers.configure("postgresql://postgres@127.0.0.1:1/away")

    ran = command(*words)

    assert ran.code == ExitCode.TIMEOUT
    assert "cannot be reached" in ran.err
    assert "files wait where they are, and each worker goes on once it answers" in ran.err
    assert "start it" not in ran.out + ran.err


def test_a_start_waits_for_a_database_that_is_away(command, workers):
    workers.configure("postgresql://postgres@127.0.0.1:1/away")

    assert command("check", "--for-start").code == ExitCode.DONE
    ran = command("check")
    assert "cannot be reached" in ran.out
    assert ran.code == ExitCode.TIMEOUT


def test_a_start_beside_a_worker_would_stand_by(command, workers):
    with workers.works():
        ran = command("check", "--for-start")
        assert (ran.code, "this one would" in ran.out) == (ExitCode.DONE, True)
        workers.is_elsewhere(1, "pacs-a", silent="5 min")
        assert command("check", "--for-start").code == ExitCode.DONE


def test_an_sqlite_ledger_has_one_daemon(tmp_path, command):
    (tmp_path / "drop").mkdir()
    (tmp_path / "config.yaml").write_text(CONFIG)
    spool = Spool(tmp_path / "spool")

    assert "it does not run (start it" in command("workers").out
    assert command("workers", "--json").json["daemon"] == {"running": False, "pid": None}
    assert command("status", "--json").json["workers"] is None
    with (spool.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert f"it runs, process {os.getpid()}" in command("workers").out
    assert "Stands by" not in command("status").out


def test_adopt_names_what_changes_and_what_goes_and_who_differs_is_told_whose_holds(command, workers):
    file = workers.folder / "config.yaml"
    former = file.read_text()
    workers.works().close()

    assert command("config", "adopt").out.startswith("this configuration holds now; it is new in: destinations")
    file.write_text(former.replace("path: ./drop", "path: ./other"))
    said = command("config", "adopt").out
    assert re.search(r"; it is new in: inboxes.other-\w+\nno longer there, for any machine: inboxes.drop-\w+\n", said)
    assert f"until now that of {HERE} held, since 20" in said
    assert command("config", "adopt").out == "this configuration holds already; nothing was changed\n"

    file.write_text(former)
    differs = next(line for line in command("check").out.splitlines() if "it differs in" in line)
    assert re.search(r"it differs in inboxes.drop-\w+, inboxes.other-\w+", differs)
    assert f"UTC, as {HERE} has it: make this file equal to that one's" in differs


def test_adopt_tells_another_name_of_a_destination_as_that(command, workers):
    file = workers.folder / "config.yaml"
    workers.works().close()
    command("config", "adopt")
    file.write_text(re.sub(r"^destination: (.*)$", r"destinations: {pacs: \1}", file.read_text(), flags=re.MULTILINE))

    said = command("config", "adopt").out

    assert said.startswith(
        "this configuration holds now\ndestinations.default is called destinations.pacs, and is as it was\nuntil now"
    )


def test_process_that_began_anew_has_one_line(command, workers):
    """Each `config adopt` left a line "ended" more of every worker, for a day."""
    for _ in range(3):
        workers.works().close()

    assert command("workers").out.count("ended") == 1
    assert len(command("workers", "--json").json["workers"]) == 3


def test_adopt_refuses_what_no_start_would_take(command, workers):
    workers.works().close()
    file = workers.folder / "config.yaml"
    command("config", "adopt")
    former = file.read_text()
    file.write_text(re.sub(r"http://[^\s\"]+", "http://127.0.0.1:9/other", former))

    ran = command("config", "adopt")

    assert (ran.code, "and what it knows of files there says nothing about" in ran.err) == (
        ExitCode.CONFIGURATION,
        True,
    )
    file.write_text(former)
    assert command("config", "adopt").out == "this configuration holds already; nothing was changed\n"
