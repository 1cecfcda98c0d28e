"""What may stand in a log line: a canary is put wherever a patient's name could come from, and must never come out."""

from __future__ import annotations

import ast
import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ingestd import logs
from ingestd.daemon.outage import Outage
from ingestd.dicomweb import BearerAuth, TokenError
from ingestd.ledger import LedgerFull
from ingestd.logs.allowed import fit

PACKAGE = Path(__file__).resolve().parents[2] / "ingestd"
CANARY = "DOE^JOHN"
UID = "1.2.840.113619.2.55.3.604688119.971.1508324001.1"
# Everything a name could travel in.
CANARIES = [CANARY, "DOE_JOHN_19700101.dcm", "/srv/drop/DOE^JOHN/IM0001", UID, "PID-4711-DOE", "geboren 1970-01-01 DOE"]


@pytest.fixture(autouse=True)
def own_logging():
    """Whatever a test configures is taken back."""
    kept = (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning, logging.raiseExceptions)
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning, logging.raiseExceptions = kept
    logging.getLogger().handlers, logging.getLogger().level = handlers, level
    structlog.reset_defaults()


def written(*, form="json", uids="hashed", level="debug") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level=level, form=form, uids=uids, stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_fact_is_one_line_of_json():
    stream = written()

    structlog.get_logger().info("batch.stored", instances=212, seconds=3.14159, bytes=111_149_056, cause="throttled")

    [line] = lines(stream)
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "event": "batch.stored",
        "instances": 212,
        "seconds": 3.142,
        "bytes": 111_149_056,
        "cause": "throttled",
    }


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("canary", CANARIES)
def test_a_name_comes_out_of_no_key(form, canary):
    stream = written(form=form)
    log = structlog.get_logger()

    for key in (*logs.ALLOWED, "patient", "path", "url", "file", canary):
        if key != "event":
            log.info("inbox.admitted", **{key: canary})
            log.info("inbox.admitted", **{key: [canary, {canary: canary}]})
            log.info("inbox.admitted", **{key: Path(canary)})
    log.info(canary)
    log.info("inbox.admitted %s", canary)
    log.bind(patient=canary).info("inbox.admitted")

    assert "DOE" not in stream.getvalue()
    assert UID not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_tells_its_class_and_place_and_nothing_else(form):
    stream = written(form=form)
    patient = CANARY

    def fail():
        value = patient
        try:
            {}[value]
        except KeyError as error:
            raise OSError(28, f"no space for {value}", f"/drop/{value}") from error

    try:
        fail()
    except OSError:
        structlog.get_logger().exception("inbox.not_taken")

    text = stream.getvalue()
    assert "DOE" not in text
    assert "OSError_from_KeyError" in text
    assert "tests.logs.test_logs:" in text
    assert "28" in text


def test_libraries_are_told_by_name_and_place_only():
    stream = written()

    logging.getLogger("urllib3.connectionpool").warning(
        "Retrying %s", f"http://host/studies/{UID}?PatientName={CANARY}"
    )
    logging.getLogger("azure.identity").error("token for %s", CANARY, exc_info=ValueError(CANARY))
    logging.getLogger("pydicom").info("never at this level %s", CANARY)

    first, second = lines(stream)
    assert first["event"] == second["event"] == "library.logged"
    assert (first["logger"], first["level"]) == ("urllib3.connectionpool", "warning")
    assert (second["logger"], second["level"], second["error"]) == ("azure.identity", "error", "ValueError")
    assert first["place"][0].startswith("test_logs:")
    assert "DOE" not in stream.getvalue()


def test_warnings_are_told_by_category_and_place_only():
    stream = written()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure(stream=stream)
        warnings.warn(f"Invalid value for VR UI: '{CANARY}'", UserWarning, stacklevel=1)

    [line] = lines(stream)
    assert (line["event"], line["category"]) == ("library.warned", "UserWarning")
    assert "DOE" not in stream.getvalue()


def test_a_thread_that_dies_leaves_a_line():
    stream = written()

    def die():
        raise RuntimeError(CANARY)

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()

    [line] = lines(stream)
    assert (line["event"], line["error"]) == ("thread.crashed", "RuntimeError")
    assert "DOE" not in stream.getvalue()


def test_a_process_that_dies_leaves_a_line_and_no_traceback():
    code = f"from ingestd import logs; logs.configure(); name = {CANARY!r}; raise RuntimeError(name)"

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)

    [line] = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert json.loads(line)["event"] == "process.crashed"
    assert "DOE" not in ran.stderr


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_value_can_forge_a_line_or_drive_a_terminal(form):
    stream = written(form=form)
    evil = 'x\n{"event": "daemon.stopped"}\r\x1b[2J\x07\u202e\udc80'

    structlog.get_logger().info("inbox.admitted", reason=evil, note=evil, study=evil, inbox=evil)
    structlog.get_logger().info(evil)

    text = stream.getvalue()
    assert len(text.splitlines()) == 2
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    text.encode("utf-8")


@given(st.text(), st.sampled_from(sorted(logs.ALLOWED)), st.sampled_from(["json", "console"]))
def test_any_value_makes_one_short_printable_line(value, key, form):
    stream = io.StringIO()
    logs.configure(level="debug", form=form, stream=stream)

    if key != "event":
        structlog.get_logger().info("inbox.admitted", **{key: value})
    else:
        structlog.get_logger().info(value)

    text = stream.getvalue()
    assert text.count("\n") == 1
    assert len(text) < 5000
    assert all(char.isprintable() for char in text.replace("\x1b[", "").rstrip("\n"))


@pytest.mark.parametrize(
    "name", ["smith", "john smith", "o'neill", 'a"b', "ct_thorax smith-jones", "x' and smith 'y", "a' smith \"b"]
)
def test_no_file_name_passes_for_a_word_of_ours(name):
    """A file may be called what a sentence could say; only where it stands tells, and Python quotes it there."""
    stream = written()
    errors = []
    for call in (os.rmdir, os.listdir, os.unlink, lambda name: Path(name).replace("elsewhere")):
        with pytest.raises(OSError) as raised:
            call(name)
        errors.append(raised.value)

    for error in errors:
        structlog.get_logger().error(
            "spool.not_removed", note=f"a file could not be removed: {error}", error=str(error)
        )

    said = " ".join(f"{line['note']} {line['error']}" for line in lines(stream))
    assert "no such file or directory" in said.lower()
    assert not [word for word in (*re.findall(r"[a-z]{2,}", name), "elsewhere") if re.search(rf"\b{word}\b", said)]


def test_no_part_of_a_path_that_somebody_chose_passes_for_a_word_of_ours(tmp_path):
    """With a space in it, the path's last word has neither slash nor dot."""
    stream = written()
    file = tmp_path / "keys of john smith"
    errors = []
    for content in (None, b"", b"two\nlines"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(TokenError) as raised:
            BearerAuth(file=file).header()
        errors.append(raised.value)
    for error in errors:
        structlog.get_logger().warning("destination.paused", note=str(error))
    outage = Outage(structlog.get_logger(), file)
    outage.failed(LedgerFull(f"no room is left on the disk of the ledger {file}; nothing was changed"), 0.0)

    notes = [line["note"] for line in lines(stream)]
    assert len(notes) == 4
    assert not [note for note in notes if re.search(r"keys|john|smith", note)], notes
    assert "no such file or directory" in notes[0].lower()
    assert notes[3] == "no room is left on the disk of the ledger; nothing was changed"


@pytest.mark.parametrize("key", ["event", "note"])
def test_the_console_escapes_what_a_value_could_do_to_a_terminal(key):
    """The filter lets no such value through today; the renderer must not rest on that."""
    written(form="console")
    event = {"at": "2026-01-01T00:00:00Z", "level": "info", "event": "a.b", "note": "x"}

    line = structlog.get_config()["processors"][-1](None, "info", {**event, key: "x\x1b[2Jy\nz\u202e"})

    assert "x\\x1b[2Jy\\x0az\\x202e" in line
    assert "\n" not in line
    assert "00:00:00Z" in line, "its zone is told"


@pytest.mark.parametrize(
    "said,told",
    [
        ("the server answered 503, tried again in 12 s", "the server answered 503, tried again in 12 s"),
        ("no connection to http://host/v2: connection refused", "no connection to ... connection refused"),
        ("cannot read /srv/DOE^JOHN.dcm: permission denied", "cannot read ... permission denied"),
        (f"study {UID} is held", "study ... is held"),
        ("HTTP 401 (Azure)", "HTTP 401 (Azure)"),
        ("DOE JOHN", "... ..."),
        ("19700101", "..."),
    ],
)
def test_a_sentence_is_let_through_word_by_word(said, told):
    stream = written()

    structlog.get_logger().warning("destination.paused", note=said)

    assert lines(stream)[0]["note"] == told


@pytest.mark.parametrize("as_said", [str, str.lower], ids=["as it is", "lower case"])
def test_what_the_kernel_says_of_a_failed_call_is_let_through(as_said):
    for code in errno.errorcode:
        said = as_said(os.strerror(code))
        if "." not in said:  # ELIBSCN names a file
            assert fit(f"fsync failed: {said}", "sentence") == f"fsync failed: {said}"
    assert fit("a.out, /srv/drop/IM1 and a/o are files: Input/output error", "sentence") == (
        "... ... and ... are files: Input/output error"
    )


def test_studies_are_named_by_a_keyed_hash_that_outlives_a_restart():
    logs.set_key(b"the site's own")
    name = logs.study_ref(UID)
    stream = written()
    structlog.get_logger().info("batch.stored", study=UID)

    assert re.fullmatch("[0-9a-f]{12}", name)
    assert lines(stream)[0]["study"] == name
    logs.set_key(b"another site's")
    assert logs.study_ref(UID) != name
    logs.set_key(b"the site's own")
    assert logs.study_ref(UID) == name


def test_studies_are_named_by_uid_where_the_configuration_says_so():
    stream = written(uids="plain")

    structlog.get_logger().info("batch.stored", study=logs.study_ref(UID))

    assert lines(stream)[0]["study"] == UID


def test_lines_below_the_level_are_not_written():
    stream = written(level="warning")

    structlog.get_logger().info("inbox.admitted")
    structlog.get_logger().warning("inbox.rejected")

    assert [line["event"] for line in lines(stream)] == ["inbox.rejected"]


class Full(io.StringIO):
    """A stream on a disk that is full until told otherwise."""

    full = True

    def write(self, text):
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_behind_stderr_loses_lines_and_says_how_many():
    stream = Full()
    sink = logs.configure(stream=stream)
    log = structlog.get_logger()

    for _ in range(3):
        log.info("inbox.admitted")
    assert sink.lost == 3
    stream.full = False
    log.info("daemon.stopped")

    assert [(line["event"], line.get("count")) for line in lines(stream)] == [
        ("daemon.stopped", None),
        ("log.lines_lost", 3),
    ]


def test_a_stderr_that_is_closed_stops_nothing():
    code = """
import os, sys
os.close(2)
from ingestd import logs
from ingestd.daemon.outage import Outage
from ingestd.dicomweb import BearerAuth, TokenError
from ingestd.ledger import LedgerFull
from ingestd.logs.allowed import fit
import structlog
sink = logs.configure()
structlog.get_logger().info("daemon.started")
print(sink.lost)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, cwd=PACKAGE.parent
    )

    assert (ran.returncode, ran.stdout) == (0, "1\n")


def test_journald_is_told_how_urgent_each_line_is(tmp_path, monkeypatch):
    """All of it stood there as "info", by the name of "env": `journalctl -p err -t ingestd` showed nothing."""
    with (tmp_path / "stderr").open("w+") as stream:
        there = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
        logs.configure(level="debug", stream=stream)
        log = structlog.get_logger()
        log.debug("feed.read")
        log.info("daemon.started")
        log.warning("clock.set")
        log.error("config.refused")
        for _ in range(3):
            log.error("ledger.failed")
        logs.finish()
        stream.seek(0)
        found = [line.split(">", 1) for line in stream.read().splitlines()]

    assert [(priority, json.loads(line)["event"]) for priority, line in found] == [
        ("<7", "feed.read"),
        ("<6", "daemon.started"),
        ("<4", "clock.set"),
        ("<3", "config.refused"),
        ("<3", "ledger.failed"),
        ("<3", "ledger.failed"),  # those that were held back
    ]


def test_what_does_not_go_to_journald_has_no_priority_before_it(tmp_path, monkeypatch):
    """A service that was started with its stderr sent elsewhere has the journal's name in its environment, too."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:4711")
    with (tmp_path / "stderr").open("w+") as stream:
        logs.configure(stream=stream)
        structlog.get_logger().error("config.refused")
        stream.seek(0)

        assert json.loads(stream.read())["event"] == "config.refused"


def test_a_terminal_gets_readable_lines_and_a_pipe_gets_json():
    code = 'from ingestd import logs; import structlog; logs.configure(); structlog.get_logger().info("daemon.started")'
    leader, follower = os.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=follower, cwd=PACKAGE.parent, check=True)
    os.close(follower)
    seen = os.read(leader, 4096).decode()
    os.close(leader)
    piped = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )

    assert "daemon.started" in seen
    assert "{" not in seen
    assert json.loads(piped.stderr)["event"] == "daemon.started"


EVENT = re.compile(r"[a-z_]+\.[a-z_.]+")


def first_texts(call: ast.Call) -> list[str]:
    """The texts that a call's first argument may be: ``"a.b"``, or either side of ``"a.b" if x else "a.c"``."""
    first = call.args[0] if call.args else None
    texts = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
    return [text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str)]


def logged_keys() -> list[tuple[str, str]]:
    """(place, key) for each keyword of each call of a logger in the package, found in its source."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "structlog" not in path.read_text(encoding="utf-8") or path.parent.name == "logs":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and any(EVENT.fullmatch(name) for name in first_texts(node)):
                place = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                found += [(place, keyword.arg or "**") for keyword in node.keywords]
    return found


def test_every_key_that_the_rooms_log_is_allowed():
    """A key that is not in the list is silently left out of the line: its author wants to know."""
    strangers = [(place, key) for place, key in logged_keys() if key not in {*logs.ALLOWED, "exc_info", "key"}]

    assert strangers == []


def own_sentences() -> list[str]:
    """What the rooms below the commands say in ``note``, ``alarm`` and ``error``, without what they fill in."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in {"cli", "emulator"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in {"note", "alarm", "error"}:
                found += [each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
    return [text for text in found if isinstance(text, str) and " " in text.strip()]


def test_no_word_of_our_own_sentences_is_cut_out_of_a_line():
    """`ingestd check` and low_water were: what was left named nothing that somebody could do."""
    sentences = own_sentences()
    cut = [text for text in sentences if "..." in str(fit(text.strip(" ,;:()`"), "sentence")) and "..." not in text]

    assert len(sentences) > 50
    assert cut == []
