"""The tables as SQLAlchemy Core sees them. They are made by ``migrations``; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, MetaData, Table, Text

from ingestd.lifecycle import State

from .column_types import (
    Digest,
    Digits,
    Instant,
    Nanoseconds,
    Note,
    PathText,
    SafeText,
    SpoolPath,
    Stat,
    StateNumber,
    Uid,
    Word,
)

_INT = BigInteger
metadata = MetaData()

meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", Text))

# What was given out: ids are never given out twice, whatever became of the row.
sequence = Table("sequence", metadata, Column("name", Text, primary_key=True), Column("next", _INT))

# The roots under which files lie: a spool (a daemon's, or that of `send`), and the inboxes that it takes from.
spool = Table(
    "spool",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("host", Text),
    Column("path", PathText),
    Column("quiet_period_us", _INT),
    Column("max_wait_us", _INT),
    Column("max_bytes", _INT),
    Column("max_instances", _INT),
)

inbox = Table(
    "inbox",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("spool_id", _INT),
    Column("name", Text),
    # As the last look found it; NULL before the first.
    Column("path", PathText),
    Column("alarm", SafeText),
    Column("watching", Text),
    Column("counts", Text),  # JSON object of numbers
    Column("at", Instant),
    Column("oldest_at", Instant),
)

destination = Table(
    "destination",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("name", Text),
    Column("url", Text),
    Column("kind", Text),
    Column("paused_until", Instant),
    Column("pause_cause", Text),
    Column("pause_note", SafeText),
    Column("paused_since", Instant),
    Column("last_ok_at", Instant),
    # The highest sequence that its change feed ever had, and the latest time of an entry on its clock.
    Column("highest_sequence", _INT),
    Column("highest_at", Instant),
    # Since when it is known to have gone back, until all that was asked again for it is settled.
    Column("went_back_at", Instant),
)

study = Table(
    "study",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("uid", Text),
    # what the file says that made it known, and nearly all others of it
    Column("patient_hash", Digest),
    Column("accession_hash", Digest),
)

candidate = Table(
    "candidate",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("spool_id", _INT),
    Column("inbox_id", _INT),
    Column("relative_path", PathText),
    Column("source", Stat),
    Column("target", PathText),  # its name in the spool, in files/ or rejected/; "": it stays where it lies
    Column("tries", _INT),
    Column("since", Instant),
)

file = Table(
    "file",
    metadata,
    Column("id", _INT, primary_key=True),
    # where it came from, and where it is: below the spool, or in place, where it came from
    Column("spool_id", _INT),
    Column("inbox_id", _INT),
    Column("relative_path", PathText),
    Column("source", Stat),
    Column("source_removed", _INT),
    Column("path", SpoolPath),
    Column("in_place", _INT),
    # its end, where it has no delivery (lifecycle.FILE_ENDS); NULL: its deliveries tell
    Column("state", Text),
    Column("reason", Text),
    Column("note", Note),
    Column("wish", Text),
    # what it is
    Column("study_id", _INT),
    Column("series_uid", Uid),
    Column("sop_uid", Uid),
    Column("sop_class_uid", Uid),
    Column("transfer_syntax", Uid),
    Column("digest", Digest),
    Column("meta_digest", Digest),
    Column("dataset_offset", _INT),
    Column("size_bytes", _INT),
    Column("sha256", Digest),  # of the whole file, for people; the others are the machine's (``ingestd.digests``)
    Column("modality", SafeText),
    Column("station", SafeText),
    # NULL: as its study's
    Column("patient_hash", Digest),
    Column("accession_hash", Digest),
    Column("notes", Text),  # JSON list of words
    Column("route", SafeText),  # which rule chose its destinations, in words
    Column("priority", _INT),
    Column("admitted_at", Instant),
    Column("changed_at", Instant),  # of its end
    # Its bytes: how many deliveries need them still, since when none does; 1 while anything of it lies in the spool.
    Column("needed_by", _INT),
    Column("unneeded_at", Instant),
    Column("in_spool", _INT),
    Column("removing_at", Instant),  # from here on its bytes are gone for everybody: they may be removed at any moment
    Column("removed_at", Instant),
    # ctimes (ns) of what lay there when it surely was what was read; 0 where nobody can say
    Column("ctime_ns", Nanoseconds),
    Column("source_ctime_ns", Nanoseconds),
)

# What is sent instead of a file's own bytes; one for all deliveries that want the same of it.
rendition = Table(
    "rendition",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("file_id", _INT),
    Column("recipe", Text),
    Column("path", SpoolPath),
    Column("study_id", _INT),
    Column("series_uid", Uid),
    Column("sop_uid", Uid),
    Column("transfer_syntax", Uid),
    Column("digest", Digest),
    Column("meta_digest", Digest),
    Column("dataset_offset", _INT),
    Column("size_bytes", _INT),
    Column("made_at", Instant),
    Column("removed_at", Instant),
    Column("ctime_ns", Nanoseconds),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("file_id", _INT),
    Column("destination_id", _INT),
    Column("spool_id", _INT),
    Column("state", Text),
    Column("reason", Text),
    Column("note", Note),
    # 1 while the identity is held (lifecycle.HOLDING); a CHECK keeps it so. A column of its own, because an index
    # over the state would be written again with every move.
    Column("holds", _INT),
    # as sent
    Column("study_id", _INT),
    Column("identity", Digest),  # see ``identity.hash_of``
    Column("rendition_id", _INT),
    Column("size_bytes", _INT),
    Column("admitted_at", Instant),
    Column("changed_at", Instant),
    # waiting to be sent; queued: PENDING and nothing of the following keeps it from being due with its study
    Column("queued", _INT),
    Column("need", Text),
    Column("next_attempt_at", Instant),
    Column("alone", _INT),
    Column("replaces", _INT),
    Column("being_created_since", Instant),
    # being sent
    Column("claim_token", Digest),
    Column("attempt_id", _INT),
    Column("attempts", _INT),
    Column("charged", _INT),
    Column("first_attempt_at", Instant),
    Column("last_attempt_at", Instant),
    # proving it
    Column("stored_at", Instant),
    Column("confirmed_at", Instant),
    Column("was_stored", _INT),
    Column("resends", _INT),
    Column("present_before", _INT),
    Column("needs_content_check", _INT),
    Column("checks", _INT),
    Column("absences", _INT),
    Column("absent_since", Instant),
    Column("next_check_at", Instant),
    Column("seen_sequence", _INT),
    Column("seen_action", Word),
    Column("seen_state", Word),
    Column("seen_at", Instant),
    Column("failure_reason", _INT),
    Column("warning_reason", _INT),
    Column("failed_attributes", Text),  # JSON list
    # what was found of the server's copy
    Column("compared", _INT),  # 1: what proved it was a comparison with the server's copy
    Column("mismatch", _INT),  # 1: the server's copy is not ours, and the server is to blame
    Column("differs_since", Instant),
    Column("untold_since", Instant),
    Column("unnamed", _INT),
    # the rest of its life
    Column("holder_id", _INT),
    Column("settled_at", Instant),  # since then it does not need the file's bytes any more
)

# What happened to a delivery; where ``delivery_id`` is NULL, to the file itself.
history = Table(
    "history",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("file_id", _INT),
    Column("delivery_id", _INT),
    Column("at", Instant),
    Column("before", StateNumber),
    Column("after", StateNumber),
    Column("reason", Word),
    Column("note", Note),
    Column("attempt_id", _INT),
    Column("evidence", Digits),  # see ``row.kept_evidence``
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("spool_id", _INT),
    Column("destination_id", _INT),
    Column("study_id", _INT),
    Column("worker_id", _INT),  # who sends it; 0 where there is only one
    Column("claim_token", Digest),
    Column("started_at", Instant),
    Column("instances", _INT),
    Column("size_bytes", _INT),
    Column("finished_at", Instant),
    Column("http_status", _INT),
    Column("body_bytes_left", _INT),
    Column("milliseconds", _INT),
    Column("error", SafeText),
    Column("interrupted", _INT),
)

feed_cursor = Table(
    "feed_cursor",
    metadata,
    Column("destination_id", _INT, primary_key=True),
    Column("version", _INT),
    Column("since", Instant),
    Column("sequence", _INT),
    Column("moved_at", Instant),
)

# Sums; what has no delivery is counted under the destination 0. Whoever writes takes a slot of its own, readers add up.
state_count = Table(
    "state_count",
    metadata,
    Column("spool_id", _INT, primary_key=True),
    Column("destination_id", _INT, primary_key=True),
    Column("inbox_id", _INT, primary_key=True),
    Column("state", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("slot", _INT, primary_key=True),
    Column("entries", _INT),
    Column("size_bytes", _INT),
)

STATE_COLUMNS = {state: f"n_{state.lower()}" for state in State}

# A study at one destination.
study_sum = Table(
    "study_sum",
    metadata,
    Column("study_id", _INT, primary_key=True),
    Column("destination_id", _INT, primary_key=True),
    Column("spool_id", _INT, primary_key=True),
    # its queued deliveries in sum
    Column("waiting", _INT),
    Column("waiting_bytes", _INT),
    Column("oldest_at", Instant),
    Column("newest_at", Instant),
    Column("priority", _INT),
    Column("inbox_id", _INT),  # of its newest file
    Column("due_at", Instant),
    # its sending
    Column("next_attempt_at", Instant),
    Column("charged", _INT),
    Column("pauses", _INT),
    Column("in_flight", _INT),
    # all its deliveries
    Column("first_at", Instant),
    Column("changed_at", Instant),
    Column("size_bytes", _INT),
    *(Column(name, _INT) for name in STATE_COLUMNS.values()),
)

# By what a person may look for a study: kind is "patient", "accession" (keyed hashes), "modality" or "series".
study_label = Table(
    "study_label",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("value", SafeText, primary_key=True),
    Column("study_id", _INT, primary_key=True),
)

clock = Table(
    "clock",
    metadata,
    Column("id", _INT, primary_key=True),
    Column("spool_id", _INT),
    Column("at", Instant),
    Column("boot", Text),  # the kernel's boot id
    Column("offset_us", _INT),  # wall time minus CLOCK_BOOTTIME
    Column("by_us", _INT),  # how far it was set, negative back; 0 where only a new boot was seen
    Column("last_file_id", _INT),
    Column("last_attempt_id", _INT),
)

alarm = Table(
    "alarm",
    metadata,
    Column("spool_id", _INT, primary_key=True),
    Column("worker_id", _INT, primary_key=True),  # who met with it; 0 where there is only one
    Column("destination_id", _INT, primary_key=True),  # 0: of none
    Column("kind", Text, primary_key=True),
    Column("about", Text, primary_key=True),
    Column("note", SafeText),
    Column("next_step", SafeText),
    Column("since", Instant),
)

# The trust in each server's word (lifecycle.Standing).
trust = Table(
    "trust",
    metadata,
    Column("destination_id", _INT, primary_key=True),
    Column("transfer_syntax", Text, primary_key=True),
    Column("sop_class_uid", Text, primary_key=True),
    Column("matched", _INT),
)

verification = Table(
    "verification",
    metadata,
    Column("destination_id", _INT, primary_key=True),
    Column("ever_matched", _INT),
    Column("mismatched_at", Instant),
    Column("stopped_at", Instant),
    Column("studies", Text),  # JSON list
    Column("differs", SafeText),
)
