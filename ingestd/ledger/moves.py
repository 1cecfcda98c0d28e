"""Everything that can be written: functions on a transaction, each in the module of what it belongs to.

``with ledger.transaction() as tx: moves.admit(tx, ...)``; many moves in one transaction cost little, an fsync each.
"""

from .admission import add_candidates, admit, candidate_died, drop_candidates, refuse, reread, reread_refused
from .claims import claim, recover, wake
from .clock import put_clock
from .decisions import admit_anyway, discard, readmitted, replace, retry, retry_all, try_now, wish_failed
from .evidence import apply, audit, check_again, record_sightings, set_cursor
from .going_back import seen_end, went_back, went_back_settled
from .moving import new_address
from .returns import charge_study, finish
from .takeover import take_over
from .trust import ask_mismatched_again, count_matches, forgive, mismatch, recheck
from .upkeep import (
    attach_reencoded,
    destination_answered,
    fail_gone,
    hold,
    mark_removed,
    mark_source_removed,
    pause_destination,
    put_alarms,
    put_inbox_report,
    read_no_more,
    reencode_failed,
    refresh_source,
    resume_destination,
    set_destination_kind,
    unhold,
    written_after,
)

__all__ = [
    "add_candidates",
    "admit",
    "admit_anyway",
    "apply",
    "ask_mismatched_again",
    "attach_reencoded",
    "audit",
    "candidate_died",
    "charge_study",
    "check_again",
    "claim",
    "count_matches",
    "destination_answered",
    "discard",
    "drop_candidates",
    "fail_gone",
    "finish",
    "forgive",
    "hold",
    "mark_removed",
    "mark_source_removed",
    "mismatch",
    "new_address",
    "pause_destination",
    "put_alarms",
    "put_clock",
    "put_inbox_report",
    "read_no_more",
    "readmitted",
    "recheck",
    "record_sightings",
    "recover",
    "reencode_failed",
    "refresh_source",
    "refuse",
    "replace",
    "reread",
    "reread_refused",
    "resume_destination",
    "retry",
    "retry_all",
    "seen_end",
    "set_cursor",
    "set_destination_kind",
    "take_over",
    "try_now",
    "unhold",
    "wake",
    "went_back",
    "went_back_settled",
    "wish_failed",
    "written_after",
]
