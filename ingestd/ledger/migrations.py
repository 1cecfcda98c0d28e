"""How the tables came to be: an append-only list. What was released is never edited; a change is a new entry.

Each entry is a tuple of SQL statements. ``{int}``, ``{key}``, ``{bytes}`` and ``{strict}`` are the dialect's words for
an integer of 64 bits, a row id that is given out in order, raw bytes, and "types are enforced".
"""

from __future__ import annotations

_STATES = (
    "'PENDING', 'SENDING', 'UNCERTAIN', 'STORED', 'CONFIRMED', 'FAILED', 'REJECTED', 'DUPLICATE', 'CONFLICT', "
    "'DELETED', 'DISCARDED'"
)
_HOLDING = "'PENDING', 'SENDING', 'UNCERTAIN', 'STORED', 'CONFIRMED'"

_FIRST = (
    """CREATE TABLE host (
        host TEXT NOT NULL PRIMARY KEY,
        spool TEXT NOT NULL,
        quiet_period_us {int} NOT NULL,
        max_wait_us {int} NOT NULL,
        max_bytes {int} NOT NULL,
        max_instances {int} NOT NULL
    ) {strict}""",
    """CREATE TABLE destination (
        url TEXT NOT NULL PRIMARY KEY,
        kind TEXT NOT NULL DEFAULT '',
        paused_until {int},
        pause_cause TEXT NOT NULL DEFAULT '',
        pause_note TEXT NOT NULL DEFAULT '',
        paused_since {int},
        last_ok_at {int}
    ) {strict}""",
    """CREATE TABLE candidate (
        id {key},
        host TEXT NOT NULL,
        inbox TEXT NOT NULL,
        relative_path TEXT NOT NULL,
        source TEXT NOT NULL,
        tries {int} NOT NULL DEFAULT 0,
        since {int} NOT NULL,
        UNIQUE (host, inbox, relative_path)
    ) {strict}""",
    f"""CREATE TABLE instance (
        id {{key}},
        host TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ({_STATES})),
        reason TEXT,
        note TEXT NOT NULL DEFAULT '',
        holds {{int}} NOT NULL CHECK (holds = CASE WHEN state IN ({_HOLDING}) THEN 1 ELSE 0 END),
        inbox TEXT NOT NULL,
        relative_path TEXT NOT NULL,
        source TEXT NOT NULL,
        source_removed {{int}} NOT NULL DEFAULT 1,
        path TEXT NOT NULL,
        in_place {{int}} NOT NULL,
        study_uid TEXT,
        series_uid TEXT,
        sop_uid TEXT,
        sop_class_uid TEXT,
        transfer_syntax TEXT,
        digest {{bytes}},
        meta_digest {{bytes}},
        canonical_digest {{bytes}},
        dataset_offset {{int}},
        size_bytes {{int}} NOT NULL,
        modality TEXT NOT NULL DEFAULT '',
        station TEXT NOT NULL DEFAULT '',
        patient_hash TEXT NOT NULL DEFAULT '',
        accession_hash TEXT NOT NULL DEFAULT '',
        notes TEXT NOT NULL DEFAULT '',
        priority {{int}} NOT NULL DEFAULT 0,
        admitted_at {{int}} NOT NULL,
        changed_at {{int}} NOT NULL,
        queued {{int}} NOT NULL DEFAULT 0 CHECK (queued = 0 OR (state = 'PENDING' AND hold_reason IS NULL
            AND need IS NULL AND next_attempt_at IS NULL)),
        hold_reason TEXT,
        need TEXT CHECK (need IN ('reread', 'reencode')),
        next_attempt_at {{int}},
        alone {{int}} NOT NULL DEFAULT 0,
        replaces {{int}} NOT NULL DEFAULT 0,
        being_created_since {{int}},
        claim_token TEXT CHECK (claim_token IS NULL OR state = 'SENDING'),
        attempt_id {{int}},
        attempts {{int}} NOT NULL DEFAULT 0,
        charged {{int}} NOT NULL DEFAULT 0,
        first_attempt_at {{int}},
        last_attempt_at {{int}},
        stored_at {{int}},
        confirmed_at {{int}},
        was_stored {{int}} NOT NULL DEFAULT 0,
        resends {{int}} NOT NULL DEFAULT 0,
        present_before {{int}},
        needs_content_check {{int}} NOT NULL DEFAULT 0,
        checks {{int}} NOT NULL DEFAULT 0,
        absences {{int}} NOT NULL DEFAULT 0,
        absent_since {{int}},
        next_check_at {{int}},
        seen_sequence {{int}},
        seen_action TEXT,
        seen_state TEXT,
        seen_at {{int}},
        failure_reason {{int}},
        warning_reason {{int}},
        failed_attributes TEXT NOT NULL DEFAULT '',
        reencoded_path TEXT,
        reencoded_transfer_syntax TEXT,
        reencoded_digest {{bytes}},
        reencoded_meta_digest {{bytes}},
        reencoded_dataset_offset {{int}},
        reencoded_size_bytes {{int}},
        holder_id {{int}} REFERENCES instance (id),
        wish TEXT CHECK (wish IN ('retry', 'admit_anyway')),
        settled_at {{int}},
        removed_at {{int}},
        CHECK (confirmed_at IS NULL OR state NOT IN ('PENDING', 'SENDING', 'UNCERTAIN', 'STORED')),
        CHECK (state <> 'CONFIRMED' OR confirmed_at IS NOT NULL),
        CHECK (holds = 0 OR (study_uid IS NOT NULL AND series_uid IS NOT NULL AND sop_uid IS NOT NULL
            AND transfer_syntax IS NOT NULL AND digest IS NOT NULL AND meta_digest IS NOT NULL
            AND dataset_offset IS NOT NULL))
    ) {{strict}}""",
    # An identity is held once.
    "CREATE UNIQUE INDEX instance_holds ON instance (sop_uid, series_uid, study_uid) WHERE holds = 1",
    "CREATE INDEX instance_sop ON instance (sop_uid)",
    "CREATE INDEX instance_study ON instance (study_uid)",
    "CREATE INDEX instance_source ON instance (relative_path)",
    "CREATE INDEX instance_state ON instance (state, changed_at, id)",
    # Still on its way: it holds its identity and was not confirmed. Not by state, as above.
    "CREATE INDEX instance_unconfirmed ON instance (admitted_at) WHERE holds = 1 AND confirmed_at IS NULL",
    "CREATE INDEX instance_queue ON instance (host, study_uid, admitted_at, id) WHERE queued = 1",
    "CREATE INDEX instance_deferred ON instance (host, next_attempt_at) WHERE next_attempt_at IS NOT NULL",
    "CREATE INDEX instance_check ON instance (host, next_check_at) WHERE next_check_at IS NOT NULL",
    "CREATE INDEX instance_need ON instance (host, id) WHERE need IS NOT NULL",
    "CREATE INDEX instance_wish ON instance (host, id) WHERE wish IS NOT NULL",
    "CREATE INDEX instance_holder ON instance (holder_id) WHERE holder_id IS NOT NULL",
    "CREATE INDEX instance_source_left ON instance (host, id) WHERE source_removed = 0 AND in_place = 0",
    "CREATE INDEX instance_file ON instance (path) WHERE removed_at IS NULL AND in_place = 0",
    "CREATE INDEX instance_copy ON instance (reencoded_path) WHERE reencoded_path IS NOT NULL",
    """CREATE INDEX instance_settled ON instance (host, settled_at)
        WHERE settled_at IS NOT NULL AND removed_at IS NULL AND (in_place = 0 OR reencoded_path IS NOT NULL)""",
    "CREATE INDEX instance_rejected ON instance (host, id) WHERE state = 'REJECTED' AND removed_at IS NULL",
    """CREATE TABLE history (
        id {key},
        entry_id {int} NOT NULL,
        at {int} NOT NULL,
        before TEXT,
        after TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        note TEXT NOT NULL DEFAULT '',
        attempt_id {int},
        evidence TEXT NOT NULL DEFAULT ''
    ) {strict}""",
    "CREATE INDEX history_entry ON history (entry_id, id)",
    """CREATE TABLE attempt (
        id {key},
        host TEXT NOT NULL,
        study_uid TEXT NOT NULL,
        claim_token TEXT NOT NULL,
        started_at {int} NOT NULL,
        instances {int} NOT NULL,
        size_bytes {int} NOT NULL,
        finished_at {int},
        http_status {int},
        body_bytes_left {int},
        milliseconds {int},
        error TEXT NOT NULL DEFAULT '',
        interrupted {int} NOT NULL DEFAULT 0
    ) {strict}""",
    "CREATE INDEX attempt_open ON attempt (host) WHERE finished_at IS NULL",
    """CREATE TABLE feed_cursor (
        id {int} NOT NULL PRIMARY KEY CHECK (id = 1),
        version {int} NOT NULL,
        since {int},
        sequence {int},
        moved_at {int} NOT NULL
    ) {strict}""",
    """CREATE TABLE state_count (
        host TEXT NOT NULL,
        inbox TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        entries {int} NOT NULL,
        held {int} NOT NULL,
        size_bytes {int} NOT NULL,
        PRIMARY KEY (host, inbox, state, reason)
    ) {strict}""",
    """CREATE TABLE study (
        host TEXT NOT NULL,
        study_uid TEXT NOT NULL,
        waiting {int} NOT NULL CHECK (waiting >= 0),
        waiting_bytes {int} NOT NULL CHECK (waiting_bytes >= 0),
        oldest_at {int},
        newest_at {int},
        priority {int} NOT NULL,
        due_at {int},
        next_attempt_at {int},
        charged {int} NOT NULL,
        pauses {int} NOT NULL,
        in_flight {int} NOT NULL CHECK (in_flight >= 0),
        first_at {int} NOT NULL,
        changed_at {int} NOT NULL,
        size_bytes {int} NOT NULL,
        n_pending {int} NOT NULL,
        n_sending {int} NOT NULL,
        n_uncertain {int} NOT NULL,
        n_stored {int} NOT NULL,
        n_confirmed {int} NOT NULL,
        n_failed {int} NOT NULL,
        n_rejected {int} NOT NULL,
        n_duplicate {int} NOT NULL,
        n_conflict {int} NOT NULL,
        n_deleted {int} NOT NULL,
        n_discarded {int} NOT NULL,
        PRIMARY KEY (host, study_uid)
    ) {strict}""",
    "CREATE INDEX study_uid ON study (study_uid)",
    "CREATE INDEX study_due ON study (host, priority, due_at) WHERE waiting > 0",
    "CREATE INDEX study_changed ON study (changed_at, study_uid)",
    *(
        f"CREATE INDEX study_{state} ON study (changed_at, study_uid) WHERE n_{state} > 0"
        for state in (
            "pending",
            "sending",
            "uncertain",
            "stored",
            "failed",
            "rejected",
            "duplicate",
            "conflict",
            "deleted",
            "discarded",
        )
    ),
    """CREATE TABLE study_label (
        kind TEXT NOT NULL,
        value TEXT NOT NULL,
        study_uid TEXT NOT NULL,
        PRIMARY KEY (kind, value, study_uid)
    ) {strict}""",
    "CREATE INDEX study_label_study ON study_label (study_uid)",
    """CREATE TABLE inbox_report (
        host TEXT NOT NULL,
        inbox TEXT NOT NULL,
        path TEXT NOT NULL,
        alarm TEXT NOT NULL,
        watching TEXT NOT NULL,
        counts TEXT NOT NULL,
        at {int} NOT NULL,
        PRIMARY KEY (host, inbox)
    ) {strict}""",
)

_SECOND = (
    # Confirmed rows to be looked at again, whosever they are.
    """CREATE INDEX instance_look_again ON instance (state, next_check_at)
        WHERE next_check_at IS NOT NULL AND state = 'CONFIRMED'""",
)

_THIRD = (
    # What keeps a host's files from being confirmed or removed: each a line of `status`.
    """CREATE TABLE alarm (
        host TEXT NOT NULL,
        kind TEXT NOT NULL,
        about TEXT NOT NULL,
        note TEXT NOT NULL,
        next_step TEXT NOT NULL,
        since {int} NOT NULL,
        PRIMARY KEY (host, kind, about)
    ) {strict}""",
)

_FOURTH = ("ALTER TABLE inbox_report ADD COLUMN oldest_at {int}",)

_FIFTH = (
    # By what a file is known to be what was read, before it is removed; 0: nobody can say, its content decides.
    "ALTER TABLE instance ADD COLUMN ctime_ns {int} NOT NULL DEFAULT 0",
    "ALTER TABLE instance ADD COLUMN source_ctime_ns {int} NOT NULL DEFAULT 0",
    "ALTER TABLE instance ADD COLUMN reencoded_ctime_ns {int} NOT NULL DEFAULT 0",
)

_SIXTH = (
    # How the content was proven, and what the server was found to make of it.
    "ALTER TABLE instance ADD COLUMN compared {int} NOT NULL DEFAULT 0",
    "ALTER TABLE instance ADD COLUMN mismatch {int} NOT NULL DEFAULT 0",
    "ALTER TABLE instance ADD COLUMN differs_since {int}",
    "ALTER TABLE instance ADD COLUMN untold_since {int}",
    "ALTER TABLE instance ADD COLUMN unnamed {int} NOT NULL DEFAULT 0",
    "UPDATE instance SET compared = 1 WHERE state = 'CONFIRMED' AND reason = 'content_check'",
    "CREATE INDEX instance_compared ON instance (study_uid) WHERE compared = 1",
    "CREATE INDEX instance_mismatch ON instance (state, id) WHERE mismatch = 1",
    "CREATE INDEX instance_untold ON instance (host, untold_since) WHERE untold_since IS NOT NULL",
    """CREATE TABLE trust (
        transfer_syntax TEXT NOT NULL,
        sop_class_uid TEXT NOT NULL,
        matched {int} NOT NULL,
        PRIMARY KEY (transfer_syntax, sop_class_uid)
    ) {strict}""",
    """CREATE TABLE verification (
        id {int} NOT NULL PRIMARY KEY CHECK (id = 1),
        ever_matched {int} NOT NULL DEFAULT 0,
        mismatched_at {int},
        stopped_at {int},
        studies TEXT NOT NULL DEFAULT '',
        differs TEXT NOT NULL DEFAULT ''
    ) {strict}""",
    "INSERT INTO verification (id) VALUES (1)",
)

_SEVENTH = (
    # By what a server that was restored from an older backup is known, and since when.
    "ALTER TABLE destination ADD COLUMN highest_sequence {int}",
    "ALTER TABLE destination ADD COLUMN highest_at {int}",
    "ALTER TABLE destination ADD COLUMN went_back_at {int}",
)

_EIGHTH = (
    # What the wall clock was set to: a line where a boot was first seen (by_us 0) and one for each time it was set.
    """CREATE TABLE clock (
        id {key},
        host TEXT NOT NULL,
        at {int} NOT NULL,
        boot TEXT NOT NULL,
        offset_us {int} NOT NULL,
        by_us {int} NOT NULL,
        last_entry_id {int} NOT NULL,
        last_attempt_id {int} NOT NULL
    ) {strict}""",
)

_NINTH = (
    # Duplicates whose files are kept until their holder is confirmed.
    """CREATE INDEX instance_waits ON instance (host, id)
        WHERE state = 'DUPLICATE' AND settled_at IS NULL AND removed_at IS NULL""",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH, _SEVENTH, _EIGHTH, _NINTH)
