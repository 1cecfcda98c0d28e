"""The life of a file and of its deliveries: states, the legal moves between them, and the pure rules that choose one.

Nothing here touches a disk, a clock, a network or the ledger; every function takes plain values and gives plain
values back, so each rule can be read and tested alone. Everything that may change a row's state is in ``MOVES``.

G1  A PENDING, SENDING, UNCERTAIN, STORED, FAILED, CONFLICT or DUPLICATE (until it is compared, and its holder
    confirmed) delivery has its file, which is what was read: other bytes are another file. What leaves the machine is
    what the digest says: it is checked while it streams, and the last 64 KB of each part are withheld until its digest
    matches; a mismatch kills the request.
G2  A spool file without a row is work not begun (a crash between the two); start-up admits it again.
G3  A file is removed only when no delivery needs its bytes (CONFIRMED, DISCARDED, DUPLICATE and settled by evidence
    newer than its drop, or FAILED ``no_room`` where it was not required), that is committed and ``retain`` has passed
    since the last; that it goes is committed first.
G4  A delivery moves only by UPDATE ... WHERE id AND expected state AND claim token; 0 rows means somebody else moved
    it, and we do nothing.
G5  Intent before act: nothing leaves the machine before a durable attempt row says it may have left.
G6  Unknown is a state. A status code is never evidence; only an identity that we asked for, named in a parsed answer
    or found on the server, is.
G7  A false rejection is as bad as a loss: what real equipment writes is admitted, with notes.
"""

from ingestd.sameness import Sameness, SourceStat

from .batches import AT_ONCE, Batch, BatchLimits, Part, StudyQueue, Turns, Waiting, cut_batch, study_due_at
from .files import Arrival, Content, Identity, Refusal, compare_content
from .outcomes import (
    REENCODABLE,
    BatchResult,
    FeedCursor,
    FeedEnd,
    Kind,
    Outcome,
    Pause,
    PauseCause,
    ServerKind,
    ServerProfile,
    Sighting,
    Standing,
    Unproven,
)
from .routing import (
    BY_PERSON,
    CONDITIONS,
    LeftBehind,
    Routable,
    Route,
    Rule,
    left_behind,
    matches,
    may_name_sop_class,
    route,
    takes_all,
)
from .states import (
    ENDED,
    FILE_ENDS,
    FILE_MOVES,
    GIVES_IDENTITY_UP,
    HOLDING,
    MOVES,
    NEEDS_PERSON,
    PROVABLE,
    REFUSALS,
    SETTLED,
    UNCONFIRMED,
    IllegalMove,
    Reason,
    State,
    check_move,
    needs_person,
)
from .waits import RETRY_AFTER_LEAST, RETRY_AFTER_MOST, Backoff, Jump, LongestWaits, clamp_retry_after, surely_since
from .windows import TimeWindow
