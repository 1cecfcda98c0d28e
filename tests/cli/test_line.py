"""run, send and reconcile against the embedded server, as a shell starts them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from ingestd.ledger import LedgerMissing, queries
from tests.builders import write_instance
from tests.commanding import command_in
from tests.emulating import delete, stores
from tests.ledgers import ON_POSTGRESQL, contents_of
from tests.ports import own_port
from tests.running import PROGRAM, Site, environment, wait_until
from tests.terminals import on_a_terminal, without_colour


@pytest.fixture(scope="module")
def server():
    with Emulator(fsync=False) as running:
        yield running


@pytest.fixture
def site(tmp_path, server):
    return Site(tmp_path / "site", server.url)


def identity_of(site: Site, name: str) -> tuple[str, str, str]:
    identity = site.entry_of(name).identity
    assert identity is not None
    return identity.study_uid, identity.series_uid, identity.sop_uid


def test_run_once_ends_with_1_only_when_a_file_came_to_need_a_person(site):
    write_instance(site.drop / "a")
    write_instance(site.drop / "sub" / "b")
    (site.drop / "readme.txt").write_text("not an image " * 20)
    (site.drop / "cut").write_bytes(write_instance(site.folder / "whole").read_bytes()[:-100])

    first = site.command("run", "--once", "--json", "--timeout", "60s")
    again = site.run_once()

    told = json.loads(first.stdout)
    assert first.returncode == told["exit_code"] == ExitCode.NEEDS_PERSON
    assert told["states"] == {"CONFIRMED": 2, "REJECTED": 2}
    assert ([file["reason"] for file in told["needs_person"]], told["clutter"]) == (["truncated"], 1)
    assert all(json.loads(line)["event"] for line in first.stderr.splitlines())
    assert again.returncode == ExitCode.DONE, again.stderr
    assert "2 CONFIRMED, 2 REJECTED" in again.stdout


def test_archive_needs_a_person_however_it_comes(site, tmp_path):
    """Patients' images inside a zip were clutter: exit code 0, and nobody heard of them."""
    export = tmp_path / "export"
    write_instance(export / "one.dcm")
    archive = Path(shutil.make_archive(str(tmp_path / "study"), "gztar", export))
    dropped = Path(shutil.make_archive(str(site.drop / "study"), "zip", export))

    ran = site.command("run", "--once", "--json", "--timeout", "60s")
    named = site.command("send", "--json", str(archive))
    watched = site.command("status", "--exit-code")

    for done in (ran, named):
        told = json.loads(done.stdout)
        assert done.returncode == told["exit_code"] == ExitCode.NEEDS_PERSON
        assert ([file["reason"] for file in told["needs_person"]], told["clutter"]) == (["archive"], 0)
    assert watched.returncode == ExitCode.NEEDS_PERSON
    (told,) = json.loads(site.command("explain", "--json", str(dropped)).stdout)["files"]
    assert "unpack" in told["next_step"]


def test_a_server_that_is_away_is_a_matter_of_time(tmp_path):
    site = Site(tmp_path / "site", "http://127.0.0.1:9/v2")
    write_instance(site.drop / "a")

    ran = site.command("run", "--once", "--timeout", "1s")
    audited = site.command("reconcile", "--full")

    assert ran.returncode == ExitCode.TIMEOUT
    assert "run it again to go on" in ran.stdout
    assert site.states() == {"PENDING": 1}
    assert audited.returncode == ExitCode.TIMEOUT
    named, why = audited.stderr.splitlines()
    assert named == f"configuration: {site.config_file}"
    assert why.startswith("ingestd: the audit broke off")


def test_beside_a_daemon_others_send_and_no_line_names_a_file_or_patient(site, tmp_path):
    canary, patient = "ZZTOPCANARY", "QQPATIENTCANARY"
    folder = site.drop / canary
    write_instance(
        folder / f"{canary}.dcm", patient_id=patient, patient_name=f"{patient}^{patient}", accession_number=patient
    )
    (folder / f"{canary}.cut").write_bytes((folder / f"{canary}.dcm").read_bytes()[:-50])
    (folder / f"{canary}.txt").write_text(canary * 50)
    (folder / f"{canary}.link").symlink_to(canary)
    with site.start() as daemon:
        second = None if ON_POSTGRESQL else site.command("run")  # there it stands by
        status = json.loads(site.command("status", "--json").stdout)
        sent = site.command("send", str(write_instance(tmp_path / "one.dcm")))
        wait_until(lambda: site.states() == {"CONFIRMED": 2, "REJECTED": 2}, what="all settled")
        daemon.terminate()

    if second is not None:
        assert second.returncode == ExitCode.BUSY
        assert str(daemon.pid) in second.stderr
    assert (status["daemon"]["running"], status["daemon"]["pid"]) == (True, daemon.pid)
    assert sent.returncode == ExitCode.DONE, sent.stderr
    said = daemon.log.read_text() + "".join(daemon.heard)
    assert "inbox.rejected" in said
    for word in (canary, patient, identity_of(site, f"{canary}/{canary}.dcm")[0]):
        assert word not in said
    assert patient.encode() not in b"".join(contents_of(site.ledger_url).values())


def looks_of(folder: Path) -> dict[Path, tuple[int, ...]]:
    """What a writer could have changed of the files in a folder."""
    stats = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {path: (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_mode) for path, seen in stats.items()}


def test_send_leaves_the_files_and_sends_nothing_twice(site, server, tmp_path):
    folder = tmp_path / "export"
    for number in range(5):
        write_instance(folder / "deep" / f"image{number}")
    before = looks_of(folder)

    first = site.command("send", "--json", str(folder))
    again = site.command("send", "--json", str(folder))

    assert first.returncode == again.returncode == ExitCode.DONE, first.stderr
    assert json.loads(first.stdout)["states"] == json.loads(again.stdout)["states"] == {"CONFIRMED": 5}
    assert (json.loads(first.stdout)["taken_in"], json.loads(again.stdout)["taken_in"]) == (5, 0)
    # It is looked into no more.
    told = site.command("status")
    assert str(folder) not in told.stdout
    assert str(folder) in site.command("status", "--json").stdout
    assert looks_of(folder) == before
    sent = [line["sop"] for line in stores(server.requests)]
    ours = {entry.identity.sop_uid for entry in site.entries() if entry.identity}
    assert sorted(uid for uid in sent if uid in ours) == sorted(ours)


@pytest.mark.slow
def test_send_tells_what_is_wrong_and_what_was_left_alone(site, tmp_path):
    folder = tmp_path / "export"
    whole = write_instance(folder / "whole")
    (folder / "cut").write_bytes(whole.read_bytes()[:-100])
    (folder / ".hidden").write_bytes(whole.read_bytes())
    (folder / "link").symlink_to("whole")

    ran = site.command("send", str(folder))

    assert ran.returncode == ExitCode.NEEDS_PERSON
    assert "REJECTED cut (truncated" in ran.stdout
    assert "1 ignored, 1 not regular" in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("what", ["link", "pipe", "only hidden", "nothing in it", "hidden inside", "now a link"])
def test_send_names_what_it_was_given_and_took_nothing_of(site, tmp_path, what):
    """Who removes after exit code 0 what was named must not lose what was never looked at."""
    folder = tmp_path / "export"
    image = write_instance(folder / "image")
    named = {"only hidden": tmp_path / "other", "nothing in it": tmp_path / "other"}.get(what, folder / "named")
    if what in {"link", "now a link"}:
        if what == "now a link":  # a row of that path is known from before
            write_instance(named)
            assert site.command("send", str(named)).returncode == ExitCode.DONE
            named.unlink()
        named.symlink_to("image")
    elif what == "pipe":
        os.mkfifo(named)
    elif what == "hidden inside":
        named = image.rename(folder / ".image")
        image = write_instance(folder / "image")
    else:
        named.mkdir()
    if what == "only hidden":
        image.rename(named / ".image")
        image = write_instance(folder / "image")

    whole = [str(folder)] if what == "hidden inside" else [str(image)]
    told = json.loads(site.command("send", "--json", *whole, str(named)).stdout)

    assert told["exit_code"] == ExitCode.NEEDS_PERSON
    assert (told["taken_in"], told["not_taken_in"]) == (1, [str(named)])
    if what != "hidden inside":  # alone it is taken, whatever its name
        again = site.command("send", str(named))
        assert again.returncode == ExitCode.NEEDS_PERSON
        assert f"NOT TAKEN IN {named} (" in again.stdout


@pytest.mark.slow
def test_send_says_again_what_needs_a_person_until_it_is_mended(site, tmp_path):
    """Who empties a folder after exit code 0 must not lose what the server never got."""
    folder = tmp_path / "export"
    whole = write_instance(folder / "whole").read_bytes()
    (folder / "cut").write_bytes(whole[:-100])
    assert site.command("send", str(folder)).returncode == ExitCode.NEEDS_PERSON

    again = site.command("send", str(folder))
    of_another = site.command("send", str(folder / "whole"))
    (folder / "cut").write_bytes(write_instance(tmp_path / "other").read_bytes())
    mended = site.command("send", str(folder))

    assert again.returncode == ExitCode.NEEDS_PERSON
    assert "taken in now: 0" in again.stdout
    assert "REJECTED cut (truncated" in again.stdout
    assert of_another.returncode == ExitCode.DONE, of_another.stdout
    assert mended.returncode == ExitCode.DONE, mended.stdout


def test_send_and_what_tells_of_it_need_no_inboxes(site, tmp_path):
    settings = json.loads(site.config_file.read_text())
    del settings["inboxes"]
    site.config_file.write_text(json.dumps(settings))
    image = write_instance(tmp_path / "export" / "image")

    sent = site.command("send", str(image.parent))
    told = [
        site.command(*words) for words in (("explain", str(image)), ("explain", "image"), ("status", "--exit-code"))
    ]
    unknown = site.command("explain", str(tmp_path))
    checked = site.command("check", "--json")
    ran = site.command("run", "--once")

    assert sent.returncode == ExitCode.DONE, sent.stderr
    assert site.states() == {"CONFIRMED": 1}
    assert [each.returncode for each in told] == [ExitCode.DONE] * 3, told
    assert "no folder is watched" in unknown.stderr
    assert checked.returncode == ExitCode.DONE, checked.stdout
    assert [check["result"] for check in json.loads(checked.stdout)["checks"] if check["name"] == "inboxes"] == ["note"]
    assert ran.returncode == ExitCode.CONFIGURATION
    assert "no folder is watched" in ran.stderr


@pytest.mark.parametrize("what", ["nothing/here", "spool", "."])
def test_send_refuses_what_it_cannot_mean(site, capfd, monkeypatch, what):
    (site.folder / "spool").mkdir()
    monkeypatch.chdir(site.folder)

    said = command_in(site.folder, capfd)("send", what)

    assert said.code == ExitCode.CONFIGURATION
    assert len(said.err.splitlines()) == 1


def is_under_way(site: Site) -> bool:
    try:
        return bool(site.states().get("CONFIRMED"))
    except LedgerMissing:  # it is being made
        return False


def test_send_interrupted_goes_on_where_it_stopped(site, tmp_path):
    folder = tmp_path / "export"
    for number in range(40):
        write_instance(folder / f"image{number}")
    with subprocess.Popen(
        [*PROGRAM, "send", "-c", str(site.config_file), str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as sending:
        wait_until(lambda: is_under_way(site) or sending.poll() is not None, what="a first file confirmed")
        sending.send_signal(signal.SIGINT)

    ran = site.command("send", str(folder))

    assert sending.returncode in {ExitCode.TIMEOUT, ExitCode.DONE}
    assert ran.returncode == ExitCode.DONE, ran.stderr
    assert site.states() == {"CONFIRMED": 40}


def sums_in(seen: str) -> list[str]:
    """What the bar said, one after the other."""
    return re.findall(r"\d+ stored[^\r\n]*", without_colour(seen))


@pytest.mark.parametrize("width", [80, pytest.param(160, marks=pytest.mark.slow)])
def test_the_bar_of_send_counts_what_is_stored_and_what_is_proven(site, tmp_path, width):
    folder = tmp_path / "export"
    for number in range(3):
        write_instance(folder / f"image{number}")
    shutil.copy(folder / "image0", folder / "image0 again")
    (folder / "cut").write_bytes((folder / "image0").read_bytes()[:-100])
    (folder / ".hidden").touch()
    (folder / "link").symlink_to("image0")

    code, seen = on_a_terminal("send", "-c", str(site.config_file), str(folder), width=width)

    assert code == ExitCode.NEEDS_PERSON, seen
    told = sums_in(seen)
    assert all(each.endswith(", of 5 files") for each in told)
    assert told[-1] == "3 stored, 3 proven, 1 duplicate, 1 not stored, of 5 files"
    assert max(len(line) for line in without_colour(seen).replace("\r", "\n").split("\n") if "━" in line) <= width


def test_the_bar_of_send_counts_the_files_that_were_named(site, tmp_path):
    """What was sent from the same folder before is not of this run."""
    first, second = (write_instance(tmp_path / "export" / name) for name in ("first", "second"))
    on_a_terminal("send", "-c", str(site.config_file), str(first))

    _, seen = on_a_terminal("send", "-c", str(site.config_file), str(second))

    # A fast run may be over by the time that the bar is first drawn.
    told = sums_in(seen)
    assert told[-1] == "1 stored, 1 proven, of 1 file"
    before = ("0 stored, 0 proven, of 1 file", "1 stored, 0 proven, of 1 file")
    assert set(told) <= {*before, told[-1]}


@pytest.mark.parametrize("form", ["auto", "json", "console"])
def test_no_log_line_pushes_through_the_bar_of_send(site, tmp_path, form):
    site.configure(logging={"format": form})
    write_instance(tmp_path / "export" / "image")
    words = ("send", "-c", str(site.config_file), str(tmp_path / "export"))
    log = tmp_path / "log"

    code, seen = on_a_terminal(*words)
    again, seen_again = on_a_terminal(*words, stderr=log)

    assert code == again == ExitCode.DONE
    for shown in (seen, seen_again):
        assert "config.read" not in shown
        assert "1 stored, 1 proven, of 1 file" in shown
    assert "config.read" in log.read_text(), "what stands in no bar's way is written"


def test_the_bar_of_send_says_what_stands_in_the_way(tmp_path):
    site = Site(tmp_path / "site", "http://127.0.0.1:9/v2", retry={"base": "30s", "cap": "30s"})
    image = write_instance(tmp_path / "export" / "image")
    words = ("send", "-c", str(site.config_file), str(image))

    code, seen = on_a_terminal(*words, until="nothing is sent at present", interrupt=True)

    assert code == ExitCode.TIMEOUT
    assert "nothing is sent at present: " in seen
    assert "tried again in " in seen


@pytest.mark.parametrize("taken", [True, False])
def test_explain_tells_what_sha256sum_prints(tmp_path, taken):
    with Emulator(fsync=False) as server:
        site = Site(tmp_path / "site", server.url, reader={"sha256": taken})
        image = write_instance(site.drop / "image")
        printed = hashlib.sha256(image.read_bytes()).hexdigest()
        assert site.command("run", "--once").returncode == ExitCode.DONE

        (told,) = json.loads(site.command("explain", "1", "--json").stdout)["files"]
        assert told["sha256"] == (printed if taken else None)
        assert (f"File's SHA-256  {printed}" in site.command("explain", "1").stdout) == taken


def test_watching_draws_until_interrupted(site):
    code, seen = on_a_terminal(
        "status", "-c", str(site.config_file), "--watch", until="Oldest unconfirmed", interrupt=True
    )

    assert code == ExitCode.DONE, seen


@pytest.mark.slow
@pytest.mark.parametrize("beside_a_daemon", [False, True])
def test_reconcile_asks_at_once_and_sends_nothing(tmp_path, beside_a_daemon):
    """The server takes a file and drops the connection: the row is UNCERTAIN, and the server has it."""
    with Emulator(faults=["drop_after_store=1", "late_feed=seconds:4"], fsync=False) as server:
        site = Site(tmp_path / "site", server.url, reconcile={"interval": "10m"}, retry={"base": "10m", "cap": "10m"})
        write_instance(site.drop / "image")
        with site.start():
            wait_until(lambda: site.states().get("UNCERTAIN"), what="an unread answer")
        attempts = sum(entry.attempts for entry in site.entries())
        if beside_a_daemon:
            with site.start():
                ran = site.command("reconcile", "--timeout", "30s")
        else:
            ran = site.command("reconcile", "--timeout", "30s")
        nothing = site.command("reconcile")

    assert ran.returncode == ExitCode.DONE, ran
    assert site.states() == {"CONFIRMED": 1}
    assert sum(entry.attempts for entry in site.entries()) == attempts
    assert (nothing.returncode, nothing.stdout) == (ExitCode.DONE, "nothing waits for proof\n")


def test_retry_now_has_a_paused_daemon_try_the_server_at_once(tmp_path):
    """The wait is half a minute at least, and a person who has just mended the server does not want to sit it out."""
    server = Emulator(port=own_port(), fsync=False)
    site = Site(tmp_path / "site", server.url, retry={"base": "10m", "cap": "10m"})
    write_instance(site.drop / "image")
    with site.start():
        wait_until(lambda: site.states().get("PENDING"), what="the file")
        wait_until(lambda: paused(site), what="the pause")
        with server:
            ran = site.command("retry", "--now")
            site.wait_for({"CONFIRMED": 1})

    assert ran.returncode == ExitCode.DONE, ran
    assert "tried at once" in ran.stdout


def paused(site: Site) -> bool:
    with site.ledger() as ledger:
        destination = queries.destination(ledger)
    return destination is not None and destination.paused_until is not None


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_reconcile_asks_about_what_send_posted_too(tmp_path, interrupted):
    """Seen: beside a running ``send`` with 208 files to prove it said that nothing waits for proof."""
    with Emulator(faults=["late_feed=seconds:4"], fsync=False) as server:
        site = Site(tmp_path / "site", server.url, reconcile={"interval": "10m"})
        site.run_once()
        archive = tmp_path / "archive"
        archive.mkdir()
        write_instance(archive / "image")
        words = [*PROGRAM, "send", "-c", str(site.config_file), str(archive)]
        with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as send:
            wait_until(lambda: site.states().get("STORED"), what="the answer to the post")
            if interrupted:
                send.kill()
                send.wait()
            ran = site.command("reconcile", "--timeout", "30s")
            send.wait(30)

    assert (ran.returncode, ran.stdout) == (ExitCode.DONE, "asked: 1 CONFIRMED\n"), ran
    assert site.states() == {"CONFIRMED": 1}


@pytest.mark.slow
def test_the_full_audit_tells_only_here_and_content(site, server):
    study = "1.2.826.0.1.3680043.10.1451.77"
    for number in range(4):
        write_instance(site.drop / f"image{number}", study_uid=study)
    site.run_once()
    clean = site.command("reconcile", "--full", "--compare", "100", "--json")
    delete(server.url, identity_of(site, "image1"))

    ran = site.command("reconcile", "--full", "--json")

    first, second = json.loads(clean.stdout), json.loads(ran.stdout)
    assert clean.returncode == ExitCode.DONE, clean.stderr
    assert (first["agree"], first["compared"], first["here_only"], first["complete"]) == (4, 4, [], True)
    assert ran.returncode == ExitCode.NEEDS_PERSON
    assert [row["sop_uid"] for row in second["here_only"]] == [identity_of(site, "image1")[2]]
    assert second["agree"] == 3
    assert site.states() == {"CONFIRMED": 3, "DELETED": 1}
