"""Everything that can be read: functions on the ledger or on a transaction, each in the module of what it asks about.

``queries.studies_due(ledger, now=now)`` is a hint; with ``tx`` in the place of the ledger it is what is acted upon.
"""

from .comparing import rows_to_compare
from .due import (
    BEGINNING,
    newest_stored,
    next_check_at,
    next_study_at,
    next_wake_at,
    posts_out,
    requested_rows,
    rows_to_read,
    studies_due,
    unproven,
    unproven_rows,
)
from .files import (
    emptied_by_us,
    known_sources,
    left_candidates,
    paths_known,
    rejected_files,
    removable,
    resting,
    unneeded_up_to,
    unremoved_sources,
    waiting_elsewhere,
)
from .overview import (
    alarms,
    clock,
    counts,
    destinations,
    first_attempt_at,
    jumps,
    last_attempt_id,
    last_event_id,
    last_id,
    newest_at,
    oldest_unconfirmed_at,
    status,
    unfinished,
)
from .room import given_up_first, given_up_for_room
from .routable import reroutings, routable
from .search import called_since, entries, find, find_named, find_path, of_files, story, studies
from .server import (
    cursor,
    cursor_moved_at,
    destination,
    feed_end,
    has_looks,
    has_mismatched,
    has_uncompared,
    newest_confirmed,
    others_on_their_way,
    standing,
    studies_compared,
    uncompared,
    untold,
    went_back_at,
)
from .whole import entry, spools
