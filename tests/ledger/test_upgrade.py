"""A ledger of 0.1 becomes one of schema 10: nothing of it is lost, and whatever happens on the way, it is whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestd.ledger import upgrade
from ingestd.ledger.column_types import PathText
from ingestd.ledger.identity import hash_of_uids
from ingestd.ledger.migrations import MIGRATIONS
from ingestd.ledger.row import told_evidence
from ingestd.ledger.upgrade import WORDS
from ingestd.lifecycle import BatchLimits, StudyQueue, study_due_at
from tests.former_ledgers import SCHEMA, make_former_ledger
from tests.kept import teach
from tests.recounting import dicts, problems_of_files, problems_of_rows, problems_of_sums, rows_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A row without a delivery is one that was rejected, whatever a person did with it since.
REJECTED = """(state = 'REJECTED' OR id IN (SELECT entry_id FROM old.history WHERE before = 'REJECTED'))"""


def opened(file: Path) -> sqlite3.Connection:
    driver = sqlite3.connect(file, isolation_level=None, timeout=10)
    driver.execute("PRAGMA foreign_keys=ON")
    return driver


@contextmanager
def upgraded(file: Path) -> Iterator[sqlite3.Connection]:
    """Bring it up to date, with its copy attached as ``old``."""
    with closing(opened(file)) as driver:
        upgrade.bring_up_to_date(driver, file)
        driver.execute("ATTACH ? AS old", (str(upgrade.copy_of(file, SCHEMA)),))
        teach(driver)
        yield driver


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_former_ledger(tmp_path / "ledger.db")


def differences(driver: sqlite3.Connection, one: str, other: str) -> list[tuple[object, ...]]:
    return [
        *driver.execute(f"SELECT 'only before', * FROM ({one} EXCEPT {other})"),
        *driver.execute(f"SELECT 'only after', * FROM ({other} EXCEPT {one})"),
    ]


def schema_of(file: Path) -> int:
    with closing(opened(file)) as driver:
        (value,) = driver.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        assert driver.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(value)


def tables_of(driver: sqlite3.Connection) -> dict[str, str]:
    found = driver.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type <> 'trigger'")
    return {name: " ".join(sql.split()) for name, sql in found}


def test_every_kind_of_row_is_in_the_ledger_that_is_migrated(file: Path):
    with closing(opened(file)) as driver:
        states = {state for (state,) in driver.execute("SELECT DISTINCT state FROM instance")}
        assert len(states) == 11
        for some in (
            "host LIMIT 1 OFFSET 1",
            "attempt WHERE finished_at IS NULL",
            "instance WHERE reencoded_path IS NOT NULL AND in_place = 1",
            "instance WHERE reencoded_path IS NULL AND reencoded_digest IS NOT NULL",
            "instance WHERE reencoded_path IS NOT NULL AND in_place = 0",
            "instance WHERE removed_at IS NOT NULL",
            "instance WHERE hold_reason IS NOT NULL",
            "instance WHERE state = 'REJECTED' AND digest IS NOT NULL",
            "instance WHERE state = 'DUPLICATE' AND settled_at IS NOT NULL",
            "instance WHERE wish IS NOT NULL",
            "history WHERE before = 'REJECTED' AND after = 'DISCARDED'",
            *("candidate", "alarm", "clock", "feed_cursor", "trust", "inbox_report"),
        ):
            assert driver.execute(f"SELECT 1 FROM {some}").fetchone(), some


def test_every_file_keeps_its_number_and_what_is_known_of_it(file: Path):
    with closing(opened(file)) as driver:  # a study of two patients, and of nobody
        for number, patient in ((2, "ab" * 16), (3, "")):
            driver.execute("UPDATE instance SET patient_hash = ? WHERE id = ?", (patient, number))
    with upgraded(file) as driver:
        known = (
            "relative_path, path, in_place, source_removed, study_uid, series_uid, sop_uid, sop_class_uid,"
            " transfer_syntax, digest, meta_digest, dataset_offset, size_bytes, modality, station, notes, priority,"
            " admitted_at, wish, removed_at, ctime_ns, source_ctime_ns,"
        )
        ended = f"CASE WHEN {REJECTED} THEN changed_at END"
        kept = known.replace("study_uid", "uid").replace(" path", " told('path', file.path)")
        for name in ("series_uid", "sop_uid", "sop_class_uid", "transfer_syntax"):
            kept = kept.replace(f" {name},", f" told('{name}', {name}),")
        assert not differences(
            driver,
            f"SELECT id, host, inbox, substr(source, instr(source, ':') + 1), {known} {ended},"
            " CASE WHEN digest IS NOT NULL THEN patient_hash END, CASE WHEN digest IS NOT NULL THEN accession_hash END"
            " FROM old.instance",
            f"SELECT file.id, host, name, told('source', source), {kept} changed_at,"
            " CASE WHEN digest IS NOT NULL THEN lower(hex(coalesce(file.patient_hash, study.patient_hash))) END,"
            " CASE WHEN digest IS NOT NULL THEN lower(hex(coalesce(file.accession_hash, study.accession_hash))) END"
            " FROM main.file JOIN spool ON spool.id = file.spool_id JOIN inbox ON inbox.id = inbox_id"
            " LEFT JOIN main.study ON study.id = study_id",
        )
        for identity, *uids in driver.execute(
            "SELECT identity, uid, told('series_uid', series_uid), told('sop_uid', sop_uid) FROM main.delivery"
            " JOIN main.file ON file.id = file_id JOIN main.study ON study.id = delivery.study_id"
        ):
            assert identity == hash_of_uids(*uids)
        (apart,) = driver.execute("SELECT count(*) FROM main.file WHERE patient_hash IS NOT NULL").fetchone()
        assert 0 < apart < driver.execute("SELECT count(*) FROM main.file").fetchone()[0] / 2


def test_every_delivery_is_where_its_row_was(file: Path):
    same = (
        "state, reason, note, holds, need, next_attempt_at, alone, replaces, attempt_id, attempts, charged, stored_at,"
        " confirmed_at, was_stored, resends, checks, absences, next_check_at, seen_sequence, seen_at, compared,"
        " mismatch, settled_at, first_attempt_at, last_attempt_at, failure_reason, unnamed"
    )
    with upgraded(file) as driver:
        assert not differences(
            driver,
            f"SELECT id, id, 1, claim_token, {same} FROM old.instance WHERE NOT {REJECTED}",
            "SELECT id, file_id, destination_id, CASE WHEN claim_token IS NOT NULL THEN lower(hex(claim_token)) END,"
            f" {same} FROM main.delivery",
        )
        assert not differences(
            driver,
            f"SELECT id, state, reason, note FROM old.instance WHERE {REJECTED}",
            "SELECT id, state, reason, note FROM main.file WHERE state IS NOT NULL",
        )
        assert not driver.execute(
            "SELECT 1 FROM main.file WHERE state IS NULL AND (reason, note) <> (NULL, '')"
        ).fetchall()
        assert not differences(
            driver,
            "SELECT id, holder_id FROM old.instance"
            f" WHERE holder_id IN (SELECT id FROM old.instance WHERE NOT {REJECTED})",
            "SELECT id, holder_id FROM main.delivery WHERE holder_id IS NOT NULL",
        )


def test_bytes_are_needed_as_long_as_they_were(file: Path):
    with upgraded(file) as driver:
        assert not differences(
            driver,
            f"SELECT id, settled_at IS NULL AND NOT {REJECTED}, settled_at FROM old.instance",
            "SELECT id, needed_by, unneeded_at FROM main.file",
        )
        assert not differences(
            driver,
            "SELECT id FROM old.instance WHERE removed_at IS NULL AND (in_place = 0 OR reencoded_path IS NOT NULL)",
            "SELECT id FROM main.file WHERE in_spool = 1",
        )


def test_copies_that_are_sent_instead_become_renditions(file: Path):
    with upgraded(file) as driver:
        assert not differences(
            driver,
            "SELECT id, reencoded_path, reencoded_transfer_syntax, reencoded_digest, reencoded_meta_digest,"
            " reencoded_dataset_offset, reencoded_size_bytes, reencoded_ctime_ns, study_uid, sop_uid"
            " FROM old.instance WHERE reencoded_digest IS NOT NULL",
            "SELECT delivery.id, nullif(told('path', rendition.path), ''), told('transfer_syntax', transfer_syntax),"
            " digest, meta_digest, dataset_offset,"
            " rendition.size_bytes, ctime_ns, uid, told('sop_uid', sop_uid) FROM main.delivery"
            " JOIN rendition ON rendition.id = rendition_id JOIN main.study ON study.id = rendition.study_id",
        )
        gone = "SELECT id FROM old.instance WHERE reencoded_digest IS NOT NULL AND"
        assert not differences(
            driver,
            f"{gone} (reencoded_path IS NULL OR removed_at IS NOT NULL)",
            "SELECT file_id FROM rendition WHERE removed_at IS NOT NULL",
        )


def test_path_that_two_rows_name_is_the_newer_ones(file: Path):
    """Such a ledger could not be brought up to date at all."""
    with closing(opened(file)) as driver:
        # Confirmed; sent as a copy; rejected, and wanted; to be read again, twice over.
        former = {5: 8, 18: 22, 28: 31, 34: 37, 35: 37}
        for older, newer in [*former.items(), (3, 41)]:  # and a path in another spool
            path = "(SELECT path FROM instance WHERE id = ?)"
            driver.execute(f"UPDATE instance SET path = {path} WHERE id = ?", (newer, older))

    with upgraded(file) as driver:
        gone = dict(driver.execute("SELECT id, in_spool FROM main.file WHERE removed_at IS NOT NULL AND in_place = 0"))
        before = {number for (number,) in driver.execute("SELECT id FROM old.instance WHERE removed_at IS NOT NULL")}
        assert {number: gone[number] for number in gone.keys() - before} == {5: 0, 18: 1, 28: 0, 34: 0, 35: 0}
        for wanted in (
            "SELECT id FROM main.delivery WHERE need IS NOT NULL",
            "SELECT id FROM file WHERE wish IS NOT NULL",
        ):
            assert not {number for (number,) in driver.execute(wanted)} & gone.keys()
        said = "SELECT file_id, note FROM main.history WHERE reason = 'changed' AND before = after ORDER BY id"
        note = "its bytes are gone; what lies in their place was read as row {}"
        assert dict(driver.execute(said)) == {number: note.format(former[number]) for number in former}
        rows = rows_of(driver)
        assert [*problems_of_sums(driver, rows), *problems_of_rows(driver, rows), *problems_of_files(driver)] == []


def test_what_is_kept_short_since_is_what_it_was(file: Path):
    named = "rejected/in-1/00112233445566778899aabbccddeeff/\udce9.dcm"
    # As schema 12 has them: a sighting in the feed, words, a name that is no UTF-8, a UID that is none.
    with closing(opened(file)) as driver:
        upgrade.add_functions(driver)
        driver.execute("PRAGMA foreign_keys=OFF")
        for statement in (statement for migration in MIGRATIONS[SCHEMA:12] for statement in migration):
            driver.execute(statement.format(**WORDS))
        driver.execute("UPDATE meta SET value = '12' WHERE key = 'schema'")
        for evidence, note in (("[7,1796000000000001]", "\x1f0"), ('{"content": "same"}', "")):
            driver.execute(
                "INSERT INTO history (file_id, delivery_id, at, before, after, reason, note, evidence)"
                " VALUES (1, 1, 5, 'STORED', 'CONFIRMED', 'feed', ?, ?)",
                (note, evidence),
            )
        driver.execute("UPDATE file SET path = ?, sop_uid = '1.2.x-é' WHERE id = 1", (PathText.keep(named),))
        driver.execute("UPDATE delivery SET seen_sequence = 7, seen_action = 'create', seen_state = 'odd' WHERE id = 1")
        known = driver.execute("SELECT count(*) FROM history").fetchone()
        upgrade.bring_up_to_date(driver, file)

        assert driver.execute("SELECT count(*) FROM history").fetchone() == known
        sighting, words = dicts(driver, "SELECT * FROM history ORDER BY id DESC LIMIT 2")[::-1]
        assert (sighting["before"], sighting["after"], sighting["reason"]) == ("STORED", "CONFIRMED", "feed")
        assert (sighting["note"], told_evidence(sighting["evidence"])["sequence"]) == ("\x1f0", "7")
        assert told_evidence(words["evidence"]) == {"content": "same"}
        (kept,) = dicts(driver, "SELECT path, sop_uid FROM file WHERE id = 1")
        assert kept == {"path": named, "sop_uid": "1.2.x-é"}
        (seen,) = dicts(driver, "SELECT seen_action, seen_state FROM delivery WHERE id = 1")
        assert seen == {"seen_action": "create", "seen_state": "odd"}


def test_histories_and_attempts_stay(file: Path):
    with upgraded(file) as driver:
        moves = "at, note, attempt_id"
        assert not differences(
            driver,
            f"SELECT id, entry_id, {moves}, before, after, reason, evidence FROM old.history",
            f"SELECT id, file_id, {moves}, told('before', before), told('after', after), told('reason', reason),"
            " told('evidence', evidence) FROM main.history",
        )
        assert not differences(
            driver,
            "SELECT id, CASE WHEN after <> 'REJECTED' AND entry_id IN"
            f" (SELECT id FROM old.instance WHERE NOT {REJECTED}) THEN entry_id END FROM old.history",
            "SELECT id, delivery_id FROM main.history",
        )
        rest = "started_at, instances, attempt.size_bytes, finished_at, http_status, milliseconds, error, interrupted"
        assert not differences(
            driver,
            f"SELECT id, host, study_uid, claim_token, {rest} FROM old.attempt",
            f"SELECT attempt.id, host, uid, lower(hex(claim_token)), {rest} FROM main.attempt"
            " JOIN spool ON spool.id = spool_id JOIN main.study ON study.id = study_id",
        )


def test_sums_are_what_is_counted(file: Path):
    with upgraded(file) as driver:
        assert not differences(
            driver,
            "SELECT host, inbox, state, coalesce(reason, ''), count(*), sum(coalesce(reencoded_size_bytes, size_bytes))"
            " FROM old.instance GROUP BY 1, 2, 3, 4",
            "SELECT host, name, state, reason, sum(entries), sum(size_bytes) FROM main.state_count"
            " JOIN inbox ON inbox.id = inbox_id JOIN spool ON spool.id = inbox.spool_id GROUP BY 1, 2, 3, 4",
        )
        names = [name for _, name, *_ in driver.execute("PRAGMA main.table_info(study_sum)") if name.startswith("n_")]
        counted = ", ".join(
            f"(SELECT count(*) FROM old.instance WHERE instance.host = former.host AND"
            f" instance.study_uid = former.study_uid AND state = '{name[2:].upper()}')"
            for name in names
        )
        assert not differences(
            driver,
            f"SELECT host, study_uid, {counted} FROM old.study AS former WHERE first_at IS NOT NULL",
            f"SELECT host, uid, {', '.join(f'sum({name})' for name in names)} FROM study_sum"
            " JOIN spool ON spool.id = spool_id JOIN main.study ON study.id = study_id GROUP BY 1, 2",
        )
        assert not differences(
            driver,
            "SELECT study_id, sum(queued), sum(queued * size_bytes) FROM main.delivery GROUP BY study_id",
            "SELECT study_id, sum(waiting), sum(waiting_bytes) FROM study_sum WHERE destination_id = 1 GROUP BY 1",
        )
        for name, following in driver.execute("SELECT name, next FROM sequence"):
            assert driver.execute(f"SELECT coalesce(max(id), 0) + 1 FROM main.{name}").fetchone() == (following,)


def test_what_waits_is_due_when_a_study_of_its_kind_is(file: Path):
    """A study of which all was held by an older ingestd had no time at which it is due, and was never sent."""
    with upgraded(file) as driver:
        limits = BatchLimits()
        rows = driver.execute(
            "SELECT waiting, waiting_bytes, oldest_at, newest_at, next_attempt_at, due_at, uid FROM study_sum"
            " JOIN main.study ON study.id = study_id WHERE waiting > 0"
        ).fetchall()
        assert {"1.2.37", "1.2.38"} <= {row[-1] for row in rows}, "all of these was held"
        for waiting, waiting_bytes, *instants, due_at, uid in rows:
            oldest_at, newest_at, next_attempt_at = (at and EPOCH + timedelta(microseconds=at) for at in instants)
            queue = StudyQueue(
                study_uid=uid,
                waiting=waiting,
                waiting_bytes=waiting_bytes,
                oldest_at=oldest_at,
                newest_at=newest_at,
                next_attempt_at=next_attempt_at,
            )
            assert EPOCH + timedelta(microseconds=due_at) == study_due_at(queue, limits), uid


def test_what_stands_beside_the_rows_stays(file: Path):
    spool, study = "JOIN spool ON spool.id = spool_id", "JOIN main.study ON study.id = study_id"
    # table before: what of it, and the same of its successor
    beside = {
        "alarm": ("host, kind, about, note, since", f"host, kind, about, note, since FROM main.alarm {spool}"),
        "clock": (
            "id, host, at, boot, by_us, last_entry_id",
            f"clock.id, host, at, boot, by_us, last_file_id FROM main.clock {spool}",
        ),
        "feed_cursor": (
            "1, version, since, sequence",
            "destination_id, version, since, sequence FROM main.feed_cursor",
        ),
        "trust": ("1, sop_class_uid, matched", "destination_id, sop_class_uid, matched FROM main.trust"),
        "verification": ("1, ever_matched, differs", "destination_id, ever_matched, differs FROM main.verification"),
        "destination": ("url, paused_until, pause_note", "url, paused_until, pause_note FROM main.destination"),
        "host": ("host, spool, max_bytes", "host, path, max_bytes FROM spool"),
        "study_label": ("kind, value, study_uid", f"kind, value, uid FROM main.study_label {study}"),
        "inbox_report": (
            "host, inbox, path, counts, at",
            f"host, name, inbox.path, counts, at FROM inbox {spool} WHERE at IS NOT NULL",
        ),
        "candidate": (
            "id, host, inbox, relative_path, tries",
            (
                "candidate.id, host, name, relative_path, tries FROM main.candidate"
                " JOIN inbox ON inbox.id = inbox_id JOIN spool ON spool.id = inbox.spool_id"
            ),
        ),
    }
    with upgraded(file) as driver:
        for table, (before, after) in beside.items():
            assert not differences(driver, f"SELECT {before} FROM old.{table}", f"SELECT {after}"), table
        assert not differences(
            driver,
            "SELECT * FROM old.meta WHERE key <> 'schema'",
            "SELECT * FROM main.meta WHERE key <> 'schema'",
        )


def test_tables_are_those_of_a_fresh_ledger(file: Path, tmp_path: Path):
    fresh = make_former_ledger(tmp_path / "fresh.db", rows="")
    with upgraded(file) as driver, closing(opened(fresh)) as other:
        upgrade.bring_up_to_date(other, fresh)
        assert tables_of(driver) == tables_of(other)
        assert driver.execute("PRAGMA foreign_key_check").fetchall() == []
        assert driver.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert schema_of(file) == len(MIGRATIONS)
    assert not upgrade.copy_of(fresh, SCHEMA).exists(), "there is nothing in it to be kept"


@pytest.mark.parametrize(
    "without", [("destination",), ("host",), ("state_count", "study", "study_label"), ("inbox_report",)]
)
def test_rows_stay_where_what_belongs_to_them_is_missing(tmp_path: Path, without: tuple[str, ...]):
    file = make_former_ledger(tmp_path / "ledger.db", without=without)
    with upgraded(file) as driver:
        assert driver.execute("SELECT count(*) FROM main.file").fetchone() == (43,)
        assert driver.execute("SELECT count(*) FROM main.attempt").fetchone() == (12,)
        assert driver.execute("SELECT sum(entries) FROM main.state_count").fetchone() == (43,)
        waiting = driver.execute("SELECT sum(queued) FROM main.delivery").fetchone()
        assert driver.execute("SELECT sum(waiting) FROM study_sum").fetchone() == waiting
