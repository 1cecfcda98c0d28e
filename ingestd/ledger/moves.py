"""Everything that can be written: functions on a transaction, each in the module of what it belongs to.

``with ledger.transaction() as tx: moves.admit(tx, ...)``; many moves in one transaction cost little, an fsync each.
"""

from .admission import (
    add_candidates,
    admit,
    candidate_died,
    drop_candidates,
    refuse,
    reread,
    reread_refused,
    stay_candidates,
)
from .claims import ask_first, claim, recover, wake
from .clock import put_clock
from .comparing import compared, read_before_comparing
from .confirm import apply, check_again, record_sightings, take_unproven
from .destination import (
    ask_mismatched_again,
    count_matches,
    destination_answered,
    end_pause,
    forgive,
    mismatch,
    new_address,
    pause_destination,
    recheck,
    resume_destination,
    seen_end,
    set_destination_kind,
    went_back,
    went_back_settled,
)
from .finish import charge_study, finish
from .membership import claim_work, end_member, say_sight
from .operator import (
    admit_anyway,
    discard,
    discard_all_at,
    replace,
    request_failed,
    retry,
    retry_all,
    try_now,
)
from .rerouting import route_again
from .takeover import take_over
from .upkeep import (
    attach_reencoded,
    fail_gone,
    give_up_for_room,
    mark_removed,
    mark_removing,
    mark_source_removed,
    put_alarms,
    put_inbox_reports,
    read_no_more,
    reencode_failed,
    refresh_source,
    written_after,
)
