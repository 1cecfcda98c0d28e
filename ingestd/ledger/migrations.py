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

# One table became two: a file, and a delivery of it to each destination. What a ledger knew of one server is the
# destination 1; a row keeps its number, as a file and as its delivery. ``identity_hash`` is ``identity.hash_of``.
_STATES_OF_DELIVERY = _STATES.replace("'REJECTED', ", "")
_HAS_NO_DELIVERY = """(state = 'REJECTED' OR (state = 'DISCARDED' AND EXISTS (SELECT 1 FROM history
    WHERE history.file_id = instance.id AND history.before = 'REJECTED' AND history.after = 'DISCARDED')))"""
_COUNTS = tuple(
    f"n_{state}"
    for state in (
        *("pending", "sending", "uncertain", "stored", "confirmed", "failed", "rejected", "duplicate", "conflict"),
        *("deleted", "discarded"),
    )
)

_TENTH = (
    *(
        f"ALTER TABLE {name} RENAME TO old_{name}"
        for name in (
            *("destination", "candidate", "attempt", "feed_cursor", "state_count", "study", "study_label", "clock"),
            *("alarm", "trust", "verification"),
        )
    ),
    *(
        f"DROP TRIGGER IF EXISTS {name}"
        for name in ("instance_moves", "history_stays", "history_is_kept", "attempt_is_kept", "instance_is_kept")
    ),
    "CREATE TABLE sequence (name TEXT NOT NULL PRIMARY KEY, next {int} NOT NULL) {strict}",
    """CREATE TABLE spool (
        id {key},
        host TEXT NOT NULL UNIQUE,
        path TEXT NOT NULL,
        quiet_period_us {int} NOT NULL,
        max_wait_us {int} NOT NULL,
        max_bytes {int} NOT NULL,
        max_instances {int} NOT NULL
    ) {strict}""",
    """INSERT INTO spool (host, path, quiet_period_us, max_wait_us, max_bytes, max_instances)
        SELECT host, spool, quiet_period_us, max_wait_us, max_bytes, max_instances FROM host ORDER BY rowid""",
    # Whoever was never opened to send: what is its own stays. The limits are the defaults (BatchLimits).
    """INSERT INTO spool (host, path, quiet_period_us, max_wait_us, max_bytes, max_instances)
        SELECT host, '', 5000000, 60000000, 64000000, 200 FROM (SELECT DISTINCT host FROM instance
            UNION SELECT host FROM old_candidate UNION SELECT host FROM old_attempt UNION SELECT host FROM old_clock
            UNION SELECT host FROM old_alarm UNION SELECT host FROM inbox_report)
        WHERE host NOT IN (SELECT host FROM spool)""",
    """CREATE TABLE inbox (
        id {key},
        spool_id {int} NOT NULL REFERENCES spool (id),
        name TEXT NOT NULL,
        path TEXT,
        alarm TEXT NOT NULL DEFAULT '',
        watching TEXT NOT NULL DEFAULT '',
        counts TEXT NOT NULL DEFAULT '',
        at {int},
        oldest_at {int},
        UNIQUE (spool_id, name)
    ) {strict}""",
    """INSERT INTO inbox (spool_id, name, path, alarm, watching, counts, at, oldest_at)
        SELECT spool.id, known.inbox, report.path, coalesce(report.alarm, ''), coalesce(report.watching, ''),
            coalesce(report.counts, ''), report.at, report.oldest_at
        FROM (SELECT host, inbox FROM inbox_report UNION SELECT DISTINCT host, inbox FROM instance
            UNION SELECT host, inbox FROM old_candidate) AS known
        JOIN spool ON spool.host = known.host
        LEFT JOIN inbox_report AS report ON report.host = known.host AND report.inbox = known.inbox""",
    """CREATE TABLE destination (
        id {key},
        name TEXT NOT NULL UNIQUE,
        url TEXT NOT NULL,
        kind TEXT NOT NULL DEFAULT '',
        paused_until {int},
        pause_cause TEXT NOT NULL DEFAULT '',
        pause_note TEXT NOT NULL DEFAULT '',
        paused_since {int},
        last_ok_at {int},
        highest_sequence {int},
        highest_at {int},
        went_back_at {int}
    ) {strict}""",
    """INSERT INTO destination SELECT 1, 'default', url, kind, paused_until, pause_cause, pause_note, paused_since,
        last_ok_at, highest_sequence, highest_at, went_back_at FROM old_destination LIMIT 1""",
    # A ledger that was never told where it sends to: whoever opens it with an address names it (Ledger.open).
    """INSERT INTO destination (id, name, url) SELECT 1, 'default', '' WHERE NOT EXISTS (SELECT 1 FROM destination)
        AND (EXISTS (SELECT 1 FROM instance) OR EXISTS (SELECT 1 FROM old_feed_cursor)
            OR EXISTS (SELECT 1 FROM old_trust))""",
    "CREATE TABLE study (id {key}, uid TEXT NOT NULL UNIQUE) {strict}",
    """INSERT INTO study (uid) SELECT study_uid FROM old_study UNION SELECT study_uid FROM old_attempt
        UNION SELECT study_uid FROM old_study_label
        UNION SELECT study_uid FROM instance WHERE study_uid IS NOT NULL""",
    """CREATE TABLE candidate (
        id {key},
        spool_id {int} NOT NULL REFERENCES spool (id),
        inbox_id {int} NOT NULL REFERENCES inbox (id),
        relative_path TEXT NOT NULL,
        source TEXT NOT NULL,
        target TEXT NOT NULL DEFAULT '',
        tries {int} NOT NULL DEFAULT 0,
        since {int} NOT NULL,
        UNIQUE (inbox_id, relative_path, target)
    ) {strict}""",
    """INSERT INTO candidate (id, spool_id, inbox_id, relative_path, source, tries, since)
        SELECT former.id, spool.id, inbox.id, relative_path, source_without_device(source), tries, since
        FROM old_candidate AS former JOIN spool ON spool.host = former.host
        JOIN inbox ON inbox.spool_id = spool.id AND inbox.name = former.inbox""",
    """CREATE TABLE file (
        id {key},
        spool_id {int} NOT NULL REFERENCES spool (id),
        inbox_id {int} NOT NULL REFERENCES inbox (id),
        relative_path TEXT NOT NULL,
        source TEXT NOT NULL,
        source_removed {int} NOT NULL DEFAULT 1,
        path TEXT NOT NULL,
        in_place {int} NOT NULL,
        state TEXT CHECK (state IN ('REJECTED', 'UNROUTED', 'DISCARDED')),
        reason TEXT,
        note TEXT NOT NULL DEFAULT '',
        wish TEXT CHECK (wish IN ('retry', 'admit_anyway')),
        study_id {int} REFERENCES study (id),
        series_uid TEXT,
        sop_uid TEXT,
        identity {bytes} CHECK (length(identity) = 16),
        sop_class_uid TEXT,
        transfer_syntax TEXT,
        digest {bytes},
        meta_digest {bytes},
        dataset_offset {int},
        size_bytes {int} NOT NULL,
        modality TEXT NOT NULL DEFAULT '',
        station TEXT NOT NULL DEFAULT '',
        patient_hash {bytes},
        accession_hash {bytes},
        notes TEXT NOT NULL DEFAULT '',
        route TEXT NOT NULL DEFAULT '',
        priority {int} NOT NULL DEFAULT 0,
        admitted_at {int} NOT NULL,
        changed_at {int} NOT NULL,
        needed_by {int} NOT NULL DEFAULT 0 CHECK (needed_by >= 0),
        unneeded_at {int},
        in_spool {int} NOT NULL,
        removing_at {int},
        removed_at {int} CHECK (removed_at IS NULL OR removing_at IS NOT NULL),
        ctime_ns {int} NOT NULL DEFAULT 0,
        source_ctime_ns {int} NOT NULL DEFAULT 0,
        CHECK (unneeded_at IS NULL OR needed_by = 0),
        CHECK (state IS NOT NULL OR (study_id IS NOT NULL AND series_uid IS NOT NULL AND sop_uid IS NOT NULL
            AND identity IS NOT NULL AND transfer_syntax IS NOT NULL AND digest IS NOT NULL
            AND meta_digest IS NOT NULL AND dataset_offset IS NOT NULL))
    ) {strict}""",
    # Where rows have one path, what lies there is what the newest of them has: other bytes took the older ones' place.
    """CREATE TABLE overwritten AS
        SELECT instance.id, max(newer.id) AS newest, max(newer.admitted_at) AS at
        FROM instance JOIN instance AS newer INDEXED BY instance_file
            ON newer.path = instance.path AND newer.host = instance.host AND newer.id > instance.id
            AND newer.removed_at IS NULL AND newer.in_place = 0
        WHERE instance.removed_at IS NULL AND instance.in_place = 0 GROUP BY instance.id""",
    "UPDATE instance SET need = NULL, wish = NULL WHERE id IN (SELECT id FROM overwritten)",
    """INSERT INTO history (entry_id, at, before, after, reason, note)
        SELECT instance.id, at, state, state, 'changed',
            'its bytes are gone; what lies in their place was read as row ' || newest
        FROM overwritten JOIN instance ON instance.id = overwritten.id""",
    # Not renamed but in place: it is the largest table of all.
    "ALTER TABLE history RENAME COLUMN entry_id TO file_id",
    "ALTER TABLE history ADD COLUMN delivery_id {int}",
    f"""INSERT INTO file SELECT instance.id, spool.id, inbox.id, relative_path, source_without_device(source),
        source_removed, instance.path, in_place, CASE WHEN {_HAS_NO_DELIVERY} THEN state END,
        CASE WHEN {_HAS_NO_DELIVERY} THEN reason END, CASE WHEN {_HAS_NO_DELIVERY} THEN note ELSE '' END, wish,
        study.id, series_uid, sop_uid,
        CASE WHEN study_uid IS NOT NULL AND series_uid IS NOT NULL AND sop_uid IS NOT NULL
            THEN identity_hash(study_uid, series_uid, sop_uid) END,
        sop_class_uid, transfer_syntax, digest, meta_digest, dataset_offset, size_bytes, modality, station,
        CASE WHEN patient_hash <> '' THEN from_hex(patient_hash) END,
        CASE WHEN accession_hash <> '' THEN from_hex(accession_hash) END,
        notes, '', priority, admitted_at, changed_at,
        CASE WHEN settled_at IS NULL AND NOT {_HAS_NO_DELIVERY} THEN 1 ELSE 0 END, settled_at,
        removed_at IS NULL AND (in_place = 0 OR reencoded_path IS NOT NULL),
        removed_at, removed_at, ctime_ns, source_ctime_ns
        FROM instance JOIN spool ON spool.host = instance.host
        JOIN inbox ON inbox.spool_id = spool.id AND inbox.name = instance.inbox
        LEFT JOIN study ON study.uid = study_uid""",
    """CREATE TABLE rendition (
        id {key},
        file_id {int} NOT NULL REFERENCES file (id),
        recipe TEXT NOT NULL,
        path TEXT NOT NULL,
        study_id {int} NOT NULL REFERENCES study (id),
        series_uid TEXT NOT NULL,
        sop_uid TEXT NOT NULL,
        transfer_syntax TEXT NOT NULL,
        digest {bytes} NOT NULL,
        meta_digest {bytes} NOT NULL,
        dataset_offset {int} NOT NULL,
        size_bytes {int} NOT NULL,
        made_at {int} NOT NULL,
        removed_at {int},
        ctime_ns {int} NOT NULL DEFAULT 0,
        UNIQUE (file_id, recipe)
    ) {strict}""",
    """INSERT INTO rendition SELECT instance.id, instance.id, 'explicit_vr', coalesce(reencoded_path, ''), study.id,
        series_uid, sop_uid, reencoded_transfer_syntax, reencoded_digest, reencoded_meta_digest,
        reencoded_dataset_offset, reencoded_size_bytes, changed_at,
        CASE WHEN reencoded_path IS NULL THEN coalesce(settled_at, changed_at) ELSE removed_at END, reencoded_ctime_ns
        FROM instance JOIN study ON study.uid = study_uid WHERE reencoded_digest IS NOT NULL""",
    """UPDATE file SET removing_at = at, removed_at = at,
        in_spool = file.id IN (SELECT file_id FROM rendition WHERE removed_at IS NULL)
        FROM overwritten WHERE overwritten.id = file.id""",
    "DROP TABLE overwritten",
    f"""CREATE TABLE delivery (
        id {{key}},
        file_id {{int}} NOT NULL REFERENCES file (id),
        destination_id {{int}} NOT NULL REFERENCES destination (id),
        spool_id {{int}} NOT NULL REFERENCES spool (id),
        state TEXT NOT NULL CHECK (state IN ({_STATES_OF_DELIVERY})),
        reason TEXT,
        note TEXT NOT NULL DEFAULT '',
        holds {{int}} NOT NULL CHECK (holds = CASE WHEN state IN ({_HOLDING}) THEN 1 ELSE 0 END),
        study_id {{int}} NOT NULL REFERENCES study (id),
        identity {{bytes}} NOT NULL CHECK (length(identity) = 16),
        rendition_id {{int}} REFERENCES rendition (id),
        size_bytes {{int}} NOT NULL,
        admitted_at {{int}} NOT NULL,
        changed_at {{int}} NOT NULL,
        queued {{int}} NOT NULL DEFAULT 0 CHECK (queued = 0 OR (state = 'PENDING' AND need IS NULL
            AND next_attempt_at IS NULL)),
        need TEXT CHECK (need IN ('reread', 'reencode')),
        next_attempt_at {{int}},
        alone {{int}} NOT NULL DEFAULT 0,
        replaces {{int}} NOT NULL DEFAULT 0,
        being_created_since {{int}},
        claim_token {{bytes}} CHECK (claim_token IS NULL OR state = 'SENDING'),
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
        compared {{int}} NOT NULL DEFAULT 0,
        mismatch {{int}} NOT NULL DEFAULT 0,
        differs_since {{int}},
        untold_since {{int}},
        unnamed {{int}} NOT NULL DEFAULT 0,
        holder_id {{int}} REFERENCES delivery (id),
        settled_at {{int}},
        UNIQUE (file_id, destination_id),
        CHECK (confirmed_at IS NULL OR state NOT IN ('PENDING', 'SENDING', 'UNCERTAIN', 'STORED')),
        CHECK (state <> 'CONFIRMED' OR confirmed_at IS NOT NULL)
    ) {{strict}}""",
    """INSERT INTO delivery SELECT instance.id, instance.id, 1, file.spool_id, instance.state, instance.reason,
        instance.note, holds, file.study_id, file.identity,
        CASE WHEN reencoded_digest IS NOT NULL THEN instance.id END,
        CASE WHEN reencoded_digest IS NOT NULL THEN reencoded_size_bytes ELSE instance.size_bytes END,
        instance.admitted_at, instance.changed_at, queued OR (instance.state = 'PENDING' AND need IS NULL
        AND next_attempt_at IS NULL), need, next_attempt_at, alone, replaces, being_created_since,
        from_hex(claim_token), attempt_id, attempts, charged, first_attempt_at, last_attempt_at, stored_at,
        confirmed_at, was_stored, resends, present_before, needs_content_check, checks, absences, absent_since,
        next_check_at, seen_sequence, seen_action, seen_state, seen_at, failure_reason, warning_reason,
        failed_attributes, compared, mismatch, differs_since, untold_since, unnamed, holder_id, settled_at
        FROM instance JOIN file ON file.id = instance.id WHERE file.state IS NULL""",
    # Whoever was in conflict with a row that was rejected since is so with nobody.
    """UPDATE delivery SET holder_id = NULL WHERE holder_id IS NOT NULL
        AND holder_id NOT IN (SELECT id FROM delivery)""",
    "UPDATE history SET delivery_id = file_id WHERE file_id IN (SELECT id FROM delivery)",
    "DROP TABLE instance",
    """CREATE TABLE attempt (
        id {key},
        spool_id {int} NOT NULL REFERENCES spool (id),
        destination_id {int} NOT NULL REFERENCES destination (id),
        study_id {int} NOT NULL REFERENCES study (id),
        claim_token {bytes} NOT NULL,
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
    """INSERT INTO attempt SELECT former.id, spool.id, 1, study.id, from_hex(claim_token), started_at, instances,
        size_bytes, finished_at, http_status, body_bytes_left, milliseconds, error, interrupted
        FROM old_attempt AS former JOIN spool ON spool.host = former.host JOIN study ON study.uid = study_uid""",
    """CREATE TABLE feed_cursor (
        destination_id {int} NOT NULL PRIMARY KEY REFERENCES destination (id),
        version {int} NOT NULL,
        since {int},
        sequence {int},
        moved_at {int} NOT NULL
    ) {strict}""",
    "INSERT INTO feed_cursor SELECT 1, version, since, sequence, moved_at FROM old_feed_cursor",
    """CREATE TABLE state_count (
        spool_id {int} NOT NULL,
        destination_id {int} NOT NULL,
        inbox_id {int} NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        slot {int} NOT NULL,
        entries {int} NOT NULL,
        size_bytes {int} NOT NULL,
        PRIMARY KEY (spool_id, destination_id, inbox_id, state, reason, slot)
    ) {strict}""",
    """INSERT INTO state_count SELECT file.spool_id, destination_id, inbox_id, delivery.state,
        coalesce(delivery.reason, ''), 0, count(*), sum(delivery.size_bytes)
        FROM delivery JOIN file ON file.id = file_id GROUP BY 1, 2, 3, 4, 5""",
    """INSERT INTO state_count SELECT spool_id, 0, inbox_id, state, coalesce(reason, ''), 0, count(*),
        sum(size_bytes) FROM file WHERE state IS NOT NULL GROUP BY 1, 3, 4, 5""",
    """CREATE TABLE study_sum (
        study_id {int} NOT NULL,
        destination_id {int} NOT NULL,
        spool_id {int} NOT NULL,
        waiting {int} NOT NULL CHECK (waiting >= 0),
        waiting_bytes {int} NOT NULL CHECK (waiting_bytes >= 0),
        oldest_at {int},
        newest_at {int},
        priority {int} NOT NULL,
        inbox_id {int} NOT NULL,
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
        n_unrouted {int} NOT NULL,
        n_duplicate {int} NOT NULL,
        n_conflict {int} NOT NULL,
        n_deleted {int} NOT NULL,
        n_discarded {int} NOT NULL,
        PRIMARY KEY (study_id, destination_id, spool_id)
    ) {strict}""",
    """INSERT INTO study_sum SELECT study_id, 1, spool_id, 0, 0, former.oldest_at, former.newest_at,
        coalesce(former.priority, max(file.priority)), max(inbox_id), former.due_at, former.next_attempt_at,
        coalesce(former.charged, 0), coalesce(former.pauses, 0), coalesce(former.in_flight, 0),
        coalesce(former.first_at, min(file.admitted_at)), coalesce(former.changed_at, max(file.changed_at)),
        sum(file.size_bytes), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        FROM file JOIN study ON study.id = study_id JOIN spool ON spool.id = spool_id
        LEFT JOIN old_study AS former ON former.host = spool.host AND former.study_uid = study.uid
        WHERE file.state IS NULL GROUP BY study_id, spool_id""",
    """UPDATE study_sum SET waiting = sums.waiting, waiting_bytes = sums.waiting_bytes, size_bytes = sums.size_bytes,
        oldest_at = coalesce(sums.oldest_at, study_sum.oldest_at),
        newest_at = coalesce(sums.newest_at, study_sum.newest_at),
        n_pending = sums.n_pending, n_sending = sums.n_sending, n_uncertain = sums.n_uncertain,
        n_stored = sums.n_stored, n_confirmed = sums.n_confirmed, n_failed = sums.n_failed,
        n_duplicate = sums.n_duplicate, n_conflict = sums.n_conflict, n_deleted = sums.n_deleted,
        n_discarded = sums.n_discarded
        FROM (SELECT study_id, spool_id, sum(queued) AS waiting, sum(queued * size_bytes) AS waiting_bytes,
            sum(size_bytes) AS size_bytes, min(CASE WHEN queued THEN admitted_at END) AS oldest_at,
            max(CASE WHEN queued THEN admitted_at END) AS newest_at,"""
    + ", ".join(f" sum(state = '{name[2:].upper()}') AS {name}" for name in _COUNTS if name != "n_rejected")
    + """ FROM delivery GROUP BY study_id, spool_id) AS sums
        WHERE sums.study_id = study_sum.study_id AND sums.spool_id = study_sum.spool_id""",
    # What was held waits like the rest now: see ``lifecycle.study_due_at``.
    """UPDATE study_sum SET due_at = max(coalesce(next_attempt_at, 0),
        CASE WHEN waiting >= max_instances OR waiting_bytes >= max_bytes THEN oldest_at
            ELSE min(newest_at + quiet_period_us, oldest_at + max_wait_us) END)
        FROM spool WHERE spool.id = spool_id AND waiting > 0""",
    """INSERT INTO study_sum SELECT study_id, 0, file.spool_id, 0, 0, NULL, NULL, 0, 0, NULL, NULL, 0, 0, 0,
        min(admitted_at), max(changed_at), sum(size_bytes), 0, 0, 0, 0, 0, 0, sum(state = 'REJECTED'), 0, 0, 0, 0,
        sum(state = 'DISCARDED') FROM file WHERE state IS NOT NULL AND study_id IS NOT NULL
        GROUP BY study_id, file.spool_id""",
    """CREATE TABLE study_label (
        kind TEXT NOT NULL,
        value TEXT NOT NULL,
        study_id {int} NOT NULL,
        PRIMARY KEY (kind, value, study_id)
    ) {strict}""",
    """INSERT INTO study_label SELECT kind, value, study.id FROM old_study_label
        JOIN study ON study.uid = study_uid""",
    """CREATE TABLE clock (
        id {key},
        spool_id {int} NOT NULL REFERENCES spool (id),
        at {int} NOT NULL,
        boot TEXT NOT NULL,
        offset_us {int} NOT NULL,
        by_us {int} NOT NULL,
        last_file_id {int} NOT NULL,
        last_attempt_id {int} NOT NULL
    ) {strict}""",
    """INSERT INTO clock SELECT former.id, spool.id, at, boot, offset_us, by_us, last_entry_id, last_attempt_id
        FROM old_clock AS former JOIN spool ON spool.host = former.host""",
    """CREATE TABLE alarm (
        spool_id {int} NOT NULL,
        destination_id {int} NOT NULL,
        kind TEXT NOT NULL,
        about TEXT NOT NULL,
        note TEXT NOT NULL,
        next_step TEXT NOT NULL,
        since {int} NOT NULL,
        PRIMARY KEY (spool_id, destination_id, kind, about)
    ) {strict}""",
    """INSERT INTO alarm SELECT spool.id, 0, kind, about, note, next_step, since FROM old_alarm AS former
        JOIN spool ON spool.host = former.host""",
    """CREATE TABLE trust (
        destination_id {int} NOT NULL REFERENCES destination (id),
        transfer_syntax TEXT NOT NULL,
        sop_class_uid TEXT NOT NULL,
        matched {int} NOT NULL,
        PRIMARY KEY (destination_id, transfer_syntax, sop_class_uid)
    ) {strict}""",
    "INSERT INTO trust SELECT 1, transfer_syntax, sop_class_uid, matched FROM old_trust",
    """CREATE TABLE verification (
        destination_id {int} NOT NULL PRIMARY KEY REFERENCES destination (id),
        ever_matched {int} NOT NULL DEFAULT 0,
        mismatched_at {int},
        stopped_at {int},
        studies TEXT NOT NULL DEFAULT '',
        differs TEXT NOT NULL DEFAULT ''
    ) {strict}""",
    """INSERT INTO verification SELECT destination.id, ever_matched, mismatched_at, stopped_at, studies, differs
        FROM old_verification JOIN destination""",
    *(
        f"DROP TABLE {name}"
        for name in (
            *("old_destination", "old_candidate", "old_attempt", "old_feed_cursor", "old_state_count", "old_study"),
            *("old_study_label", "old_clock", "old_alarm", "old_trust", "old_verification", "inbox_report", "host"),
        )
    ),
    *(
        f"INSERT INTO sequence SELECT '{name}', coalesce(max(id), 0) + 1 FROM {name}"
        for name in ("spool", "inbox", "destination", "study", "candidate", "file", "rendition", "attempt")
    ),
    "DROP INDEX history_entry",
    "CREATE INDEX history_file ON history (file_id, id)",
    # Paths of what is kept are unique, whatever they are kept for.
    "CREATE UNIQUE INDEX file_path ON file (spool_id, path) WHERE removed_at IS NULL AND in_place = 0",
    "CREATE UNIQUE INDEX rendition_path ON rendition (path) WHERE removed_at IS NULL",
    "CREATE INDEX file_identity ON file (identity)",
    "CREATE INDEX file_study ON file (study_id)",
    "CREATE INDEX file_source ON file (relative_path)",
    # Ends without a delivery, and what a person asked of them: few.
    "CREATE INDEX file_end ON file (state, changed_at, id) WHERE state IS NOT NULL",
    "CREATE INDEX file_rejected ON file (spool_id, id) WHERE state = 'REJECTED' AND removing_at IS NULL",
    "CREATE INDEX file_wish ON file (spool_id, id) WHERE wish IS NOT NULL",
    "CREATE INDEX file_source_left ON file (spool_id, id) WHERE source_removed = 0 AND in_place = 0",
    "CREATE INDEX file_unneeded ON file (spool_id, unneeded_at) WHERE unneeded_at IS NOT NULL AND in_spool = 1",
    "CREATE INDEX file_removing ON file (spool_id, id) WHERE removing_at IS NOT NULL AND in_spool = 1",
    # An identity is held once at each destination.
    "CREATE UNIQUE INDEX delivery_holds ON delivery (destination_id, identity) WHERE holds = 1",
    "CREATE INDEX delivery_gave_up ON delivery (destination_id, identity) WHERE holds = 0",
    # Still on its way: it holds its identity and was not confirmed. None of these is over the state, which each move
    # would write again.
    "CREATE INDEX delivery_unconfirmed ON delivery (admitted_at, id) WHERE holds = 1 AND confirmed_at IS NULL",
    "CREATE INDEX delivery_confirmed ON delivery (confirmed_at, id) WHERE holds = 1 AND confirmed_at IS NOT NULL",
    # The ends of what does not arrive.
    "CREATE INDEX delivery_end ON delivery (state, changed_at, id) WHERE holds = 0",
    """CREATE INDEX delivery_queue ON delivery (destination_id, spool_id, study_id, admitted_at, id)
        WHERE queued = 1""",
    """CREATE INDEX delivery_deferred ON delivery (destination_id, spool_id, next_attempt_at)
        WHERE next_attempt_at IS NOT NULL""",
    """CREATE INDEX delivery_check ON delivery (destination_id, spool_id, next_check_at)
        WHERE next_check_at IS NOT NULL""",
    """CREATE INDEX delivery_look_again ON delivery (destination_id, next_check_at)
        WHERE next_check_at IS NOT NULL AND confirmed_at IS NOT NULL AND holds = 1""",
    "CREATE INDEX delivery_sending ON delivery (spool_id, id) WHERE claim_token IS NOT NULL",
    "CREATE INDEX delivery_need ON delivery (spool_id, id) WHERE need IS NOT NULL",
    "CREATE INDEX delivery_holder ON delivery (holder_id) WHERE holder_id IS NOT NULL",
    "CREATE INDEX delivery_rendition ON delivery (rendition_id) WHERE rendition_id IS NOT NULL",
    "CREATE INDEX delivery_compared ON delivery (destination_id, study_id) WHERE compared = 1",
    "CREATE INDEX delivery_mismatch ON delivery (destination_id, id) WHERE mismatch = 1",
    """CREATE INDEX delivery_untold ON delivery (destination_id, spool_id, untold_since)
        WHERE untold_since IS NOT NULL""",
    """CREATE INDEX delivery_waits ON delivery (spool_id, id)
        WHERE state = 'DUPLICATE' AND settled_at IS NULL""",
    "CREATE INDEX attempt_destination ON attempt (destination_id, id)",
    "CREATE INDEX attempt_open ON attempt (spool_id, destination_id, study_id) WHERE finished_at IS NULL",
    "CREATE INDEX study_sum_due ON study_sum (destination_id, spool_id, priority, inbox_id, due_at) WHERE waiting > 0",
    "CREATE INDEX study_sum_changed ON study_sum (changed_at, study_id)",
    *(
        f"CREATE INDEX study_sum_{name[2:]} ON study_sum (changed_at, study_id) WHERE {name} > 0"
        for name in (*_COUNTS, "n_unrouted")
        if name != "n_confirmed"
    ),
    "CREATE INDEX study_label_study ON study_label (study_id)",
)

# A file that has to be compared with the holder of its identity is a row, which waits for that.
_ELEVENTH = (
    """CREATE INDEX delivery_not_compared ON delivery (destination_id, id)
        WHERE reason = 'not_compared'""",
    # By destination first: what waits at one that is away is in nobody else's way.
    "DROP INDEX delivery_unconfirmed",
    """CREATE INDEX delivery_unconfirmed ON delivery (destination_id, admitted_at, id)
        WHERE holds = 1 AND confirmed_at IS NULL""",
)

# What is added lies together in each index: a transaction writes few pages of a large ledger. ``identity_hash`` begins
# with the study since; UIDs and times are nearly in order by themselves. And what is listed of a destination is found
# without passing over that of others.
_TWELFTH = (
    # The machine's digests say themselves what they are of (``ingestd.digests``); this one is for people.
    "ALTER TABLE file ADD COLUMN sha256 {bytes}",
    "DROP INDEX file_identity",
    "DROP INDEX delivery_holds",
    "DROP INDEX delivery_gave_up",
    """UPDATE file SET identity = identity_hash((SELECT uid FROM study WHERE id = study_id), series_uid, sop_uid)
        WHERE identity IS NOT NULL""",
    "UPDATE delivery SET identity = (SELECT identity FROM file WHERE file.id = file_id)",
    "CREATE UNIQUE INDEX delivery_holds ON delivery (destination_id, identity) WHERE holds = 1",
    "CREATE INDEX delivery_gave_up ON delivery (destination_id, identity) WHERE holds = 0",
    "CREATE INDEX file_sop ON file (sop_uid)",
    "DROP INDEX delivery_confirmed",
    """CREATE INDEX delivery_confirmed ON delivery (destination_id, confirmed_at, id)
        WHERE holds = 1 AND confirmed_at IS NOT NULL""",
    "DROP INDEX delivery_end",
    "CREATE INDEX delivery_end ON delivery (destination_id, state, changed_at, id) WHERE holds = 0",
)

# What most rows say is kept short (``column_types``): a file took 1,290 bytes of the ledger, its history and proof
# included. An index over a table's own number has it twice; the hash of an identity stands beside the deliveries.
_THIRTEENTH = (
    "ALTER TABLE study ADD COLUMN patient_hash {bytes}",
    "ALTER TABLE study ADD COLUMN accession_hash {bytes}",
    """UPDATE study SET (patient_hash, accession_hash) = (SELECT coalesce(patient_hash, x''),
        coalesce(accession_hash, x'') FROM file WHERE study_id = study.id AND digest IS NOT NULL
        ORDER BY file.id LIMIT 1)""",
    """CREATE TABLE new_file (
        id {key},
        spool_id {int} NOT NULL REFERENCES spool (id),
        inbox_id {int} NOT NULL REFERENCES inbox (id),
        relative_path TEXT NOT NULL,
        source {bytes} NOT NULL,
        source_removed {int} NOT NULL DEFAULT 1,
        path {bytes} NOT NULL,
        in_place {int} NOT NULL,
        state TEXT CHECK (state IN ('REJECTED', 'UNROUTED', 'DISCARDED')),
        reason TEXT,
        note TEXT NOT NULL DEFAULT '',
        wish TEXT CHECK (wish IN ('retry', 'admit_anyway')),
        study_id {int} REFERENCES study (id),
        series_uid {bytes},
        sop_uid {bytes},
        sop_class_uid {bytes},
        transfer_syntax {bytes},
        digest {bytes},
        meta_digest {bytes},
        dataset_offset {int},
        size_bytes {int} NOT NULL,
        sha256 {bytes},
        modality TEXT NOT NULL DEFAULT '',
        station TEXT NOT NULL DEFAULT '',
        patient_hash {bytes},
        accession_hash {bytes},
        notes TEXT NOT NULL DEFAULT '',
        route TEXT NOT NULL DEFAULT '',
        priority {int} NOT NULL DEFAULT 0,
        admitted_at {int} NOT NULL,
        changed_at {int} CHECK ((changed_at IS NULL) = (state IS NULL)),
        needed_by {int} NOT NULL DEFAULT 0 CHECK (needed_by >= 0),
        unneeded_at {int},
        in_spool {int} NOT NULL,
        removing_at {int},
        removed_at {int} CHECK (removed_at IS NULL OR removing_at IS NOT NULL),
        ctime_ns {int} NOT NULL DEFAULT 0,
        source_ctime_ns {int} NOT NULL DEFAULT 0,
        CHECK (unneeded_at IS NULL OR needed_by = 0),
        CHECK (state IS NOT NULL OR (study_id IS NOT NULL AND series_uid IS NOT NULL AND sop_uid IS NOT NULL
            AND transfer_syntax IS NOT NULL AND digest IS NOT NULL
            AND meta_digest IS NOT NULL AND dataset_offset IS NOT NULL))
    ) {strict}""",
    """INSERT INTO new_file SELECT id, spool_id, inbox_id, relative_path, pack_digits(source), source_removed,
        pack_path(path), in_place, state, reason, note, wish, study_id, pack_digits(series_uid),
        pack_digits(sop_uid), pack_digits(sop_class_uid), pack_digits(transfer_syntax), digest, meta_digest,
        dataset_offset, size_bytes, sha256, modality, station,
        CASE WHEN digest IS NOT NULL THEN nullif(coalesce(patient_hash, x''),
            (SELECT study.patient_hash FROM study WHERE study.id = study_id)) END,
        CASE WHEN digest IS NOT NULL THEN nullif(coalesce(accession_hash, x''),
            (SELECT study.accession_hash FROM study WHERE study.id = study_id)) END,
        notes, route, priority, admitted_at, CASE WHEN state IS NOT NULL THEN changed_at END, needed_by,
        unneeded_at, in_spool, removing_at, removed_at, ctime_ns, source_ctime_ns FROM file""",
    """CREATE TABLE new_rendition (
        id {key},
        file_id {int} NOT NULL REFERENCES file (id),
        recipe TEXT NOT NULL,
        path {bytes} NOT NULL,
        study_id {int} NOT NULL REFERENCES study (id),
        series_uid {bytes} NOT NULL,
        sop_uid {bytes} NOT NULL,
        transfer_syntax {bytes} NOT NULL,
        digest {bytes} NOT NULL,
        meta_digest {bytes} NOT NULL,
        dataset_offset {int} NOT NULL,
        size_bytes {int} NOT NULL,
        made_at {int} NOT NULL,
        removed_at {int},
        ctime_ns {int} NOT NULL DEFAULT 0,
        UNIQUE (file_id, recipe)
    ) {strict}""",
    """INSERT INTO new_rendition SELECT id, file_id, recipe, pack_path(path), study_id, pack_digits(series_uid),
        pack_digits(sop_uid), pack_digits(transfer_syntax), digest, meta_digest, dataset_offset, size_bytes,
        made_at, removed_at, ctime_ns FROM rendition""",
    """CREATE TABLE new_candidate (
        id {key},
        spool_id {int} NOT NULL REFERENCES spool (id),
        inbox_id {int} NOT NULL REFERENCES inbox (id),
        relative_path TEXT NOT NULL,
        source {bytes} NOT NULL,
        target TEXT NOT NULL DEFAULT '',
        tries {int} NOT NULL DEFAULT 0,
        since {int} NOT NULL,
        UNIQUE (inbox_id, relative_path, target)
    ) {strict}""",
    """INSERT INTO new_candidate SELECT id, spool_id, inbox_id, relative_path, pack_digits(source), target, tries,
        since FROM candidate""",
    """CREATE TABLE new_history (
        id {key},
        file_id {int} NOT NULL,
        delivery_id {int},
        at {int} NOT NULL,
        before {int},
        after {int} NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        note TEXT NOT NULL DEFAULT '',
        attempt_id {int},
        evidence {bytes} NOT NULL
    ) {strict}""",
    """INSERT INTO new_history SELECT id, file_id, delivery_id, at, state_number(before), state_number(after),
        short_word(reason), note, attempt_id, pack_evidence(evidence) FROM history""",
    *(
        statement
        for name in ("file", "rendition", "candidate", "history")
        for statement in (f"DROP TABLE {name}", f"ALTER TABLE new_{name} RENAME TO {name}")
    ),
    "CREATE UNIQUE INDEX file_path ON file (spool_id, path) WHERE removed_at IS NULL AND in_place = 0",
    "CREATE UNIQUE INDEX rendition_path ON rendition (path) WHERE removed_at IS NULL",
    "CREATE INDEX file_study ON file (study_id)",
    "CREATE INDEX file_source ON file (relative_path)",
    "CREATE INDEX file_end ON file (state, changed_at, id) WHERE state IS NOT NULL",
    "CREATE INDEX file_rejected ON file (spool_id, id) WHERE state = 'REJECTED' AND removing_at IS NULL",
    "CREATE INDEX file_wish ON file (spool_id, id) WHERE wish IS NOT NULL",
    "CREATE INDEX file_source_left ON file (spool_id, id) WHERE source_removed = 0 AND in_place = 0",
    "CREATE INDEX file_unneeded ON file (spool_id, unneeded_at) WHERE unneeded_at IS NOT NULL AND in_spool = 1",
    "CREATE INDEX file_removing ON file (spool_id, id) WHERE removing_at IS NOT NULL AND in_spool = 1",
    "CREATE INDEX file_sop ON file (sop_uid)",
    "CREATE INDEX history_file ON history (file_id)",
    "DROP INDEX delivery_confirmed",
    """CREATE INDEX delivery_confirmed ON delivery (destination_id, confirmed_at)
        WHERE holds = 1 AND confirmed_at IS NOT NULL""",
    """UPDATE delivery SET seen_action = short_word(seen_action), seen_state = short_word(seen_state)
        WHERE seen_sequence IS NOT NULL""",
)

# A path in the spool may have a folder in it (``SpoolPath``): who does not know that would find no file there.
_FOURTEENTH: tuple[str, ...] = ()

# Several may be at work on a spool: whose posts are out is said by each attempt, and each tells what it meets with.
_FIFTEENTH = (
    "ALTER TABLE attempt ADD COLUMN worker_id {int} NOT NULL DEFAULT 0",
    """CREATE TABLE new_alarm (
        spool_id {int} NOT NULL,
        worker_id {int} NOT NULL,
        destination_id {int} NOT NULL,
        kind {text} NOT NULL,
        about {text} NOT NULL,
        note {text} NOT NULL,
        next_step {text} NOT NULL,
        since {int} NOT NULL,
        PRIMARY KEY (spool_id, worker_id, destination_id, kind, about)
    ) {strict}""",
    "INSERT INTO new_alarm SELECT spool_id, 0, destination_id, kind, about, note, next_step, since FROM alarm",
    "DROP TABLE alarm",
    "ALTER TABLE new_alarm RENAME TO alarm",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    *(_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH, _SEVENTH, _EIGHTH, _NINTH, _TENTH, _ELEVENTH, _TWELFTH),
    *(_THIRTEENTH, _FOURTEENTH, _FIFTEENTH),
)
