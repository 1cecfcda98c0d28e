"""What the commands show a person, on terminals of 80 and 160 columns and in a pipe."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache

import pytest

from ingestd.cli.advice import next_step, reason_called, words_of
from ingestd.cli.tables import table, whole
from ingestd.lifecycle import Reason, State
from tests.commanding import Rows
from tests.running import PROGRAM, environment
from tests.terminals import on_a_terminal, without_colour

STUDY = "1.3.6.1.4.1.14519.5.2.1.7009.2403.459871463890123655012348889912"
assert len(STUDY) == 64, "as long as a UID may be"
SCREENS = ["status", "status --files", "status --since 7d", f"status --study {STUDY}", "explain 1", "explain 2"]
# As far as it is seen from UTC: 2026-03-01 08:30:00+05:30.
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?(\S*)")


def uid(number: int) -> str:
    return f"{STUDY[:-2]}{number:02}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ledger with long UIDs in it, of which a file was confirmed, one refused, and one waits."""
    rows = Rows(tmp_path_factory.mktemp("screens"))
    posted = {"present_before": "no"}
    confirmed = rows.admit("a folder/deep/confirmed.dcm", study=STUDY, uid=uid(1))
    rows.finish(rows.claim(STUDY), State.STORED, Reason.STORED_ANSWER, evidence=posted)
    rows.prove(confirmed, State.CONFIRMED, Reason.CONTENT_CHECK)
    rows.admit("refused.dcm", study=STUDY, uid=uid(2))
    rows.finish(rows.claim(STUDY), State.FAILED, Reason.REFUSED, failure_reason=0x0120, evidence=posted)
    rows.admit("waits.dcm", study=STUDY, uid=uid(3))
    rows.refuse("cut.dcm")
    rows.report(files_seen=12, ignored=2)
    rows.close()
    return rows.folder


@cache
def shown(folder, words, width):
    """What a command shows on a terminal of this width, or, without one, writes into a pipe; run once."""
    arguments = ["-c", str(folder / "config.yaml"), *words.split()]
    env = {"TZ": "IST-5:30"}
    if width:
        code, seen = on_a_terminal(*arguments, width=width, env=env)
    else:
        ran = subprocess.run(
            [*PROGRAM, *arguments], capture_output=True, text=True, check=False, env=environment(env), cwd=folder
        )
        code, seen = ran.returncode, ran.stdout
    assert code == 0, seen
    return without_colour(seen)


@pytest.mark.parametrize("width", [80, 160, None])
@pytest.mark.parametrize("words", SCREENS)
def test_what_has_to_be_copied_is_never_broken(folder, words, width):
    lines = shown(folder, words, width).splitlines()

    if width:
        # What is copied as one is one word, however long the place is that this program is called by.
        assert [line for line in lines if len(line) > width and len(re.sub("`[^`]+`", "`", line).split()) > 2] == []
    told = "\n".join(lines)
    wanted = {
        "explain 1": [STUDY, uid(1), "a folder/deep/confirmed.dcm", str(folder / "spool/files")],
        "explain 2": [STUDY, uid(2)],
        "status": [str(folder / "config.yaml"), str(folder / "drop")],
        "status --files": ["a folder/deep/confirmed.dcm"],
        "status --since 7d": [STUDY],
    }.get(words, [])
    assert [each for each in wanted if each not in told] == []
    assert [line for line in lines if line.count("`") % 2] == [], "a command stands on one line"
    assert [line for line in lines if line != line.rstrip()] == []


def test_each_row_is_one_line_in_a_pipe(folder):
    [row] = [line for line in shown(folder, "status --since 7d", None).splitlines() if STUDY in line]

    assert "1 CONFIRMED" in row
    assert "CT" in row


def test_short_words_are_not_folded_for_a_long_one_beside_them():
    heads = ("Folder", "Found by", "In it", "Looked")
    row = (whole("/srv/ingestd/modalities/computed-tomography/one/of/drop"), "events", "nothing; 3 seen", "1 s ago")
    shown = ["".join(text for text, _ in line).split() for line in table(heads, [row])(80)]
    assert shown[-1] == ["events", "nothing;", "3", "seen", "1", "s", "ago"]


@pytest.mark.parametrize("width", [80, None])
@pytest.mark.parametrize("words", ["explain 1", "explain 2"])
def test_every_instant_has_its_zone(folder, words, width):
    zones = _INSTANT.findall(shown(folder, words, width))

    assert set(zones) == {"+05:30"}


@pytest.mark.parametrize("words", [*SCREENS[:4], "explain 1", "explain 2", "explain 3", "explain 4"])
def test_no_code_of_the_ledger_is_shown_as_such(folder, words):
    told = shown(folder, words, None)

    assert re.findall(r"[^\s/.`]*[a-z]_[a-z]+", told.replace(str(folder), "")) == []


def test_the_history_says_in_words_what_each_move_rests_on(folder):
    told = shown(folder, "explain 1", None)

    assert "content compared: found by asking" in told
    assert "the server did not have it before the post" in told


def test_every_reason_is_found_by_its_code_and_by_its_words():
    for reason in Reason:
        assert reason_called(reason) is reason_called(words_of(reason).upper()) is reason
    assert reason_called("nonsense") is None


@pytest.mark.parametrize("how", ["explain", "status --json"])
def test_advice_on_what_was_given_up_names_the_reason(folder, how):
    if how == "explain":
        said = shown(folder, "explain 2", None).partition("What to do:")[2]
    else:
        listed = json.loads(shown(folder, "status --files --json --state FAILED", None))["files"]
        [said] = [each["next_step"] for each in listed]

    assert "will not have it (missing attribute, 0120H)" in said
    assert "above" not in said


@pytest.mark.parametrize("state", [State.FAILED, State.REJECTED])
@pytest.mark.parametrize("reason", [None, *Reason])
def test_advice_points_at_nothing_that_is_not_there(state, reason):
    """Where many files are told of in one line, each one's reason is a command away."""
    said = next_step(state, reason)

    assert "above" not in said
    if reason in {None, Reason.REFUSED, Reason.SERVER_ERROR} and state is State.FAILED:
        assert "explain ID`" in said
