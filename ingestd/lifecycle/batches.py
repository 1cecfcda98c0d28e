"""When a study is due, whose turn it is, and where a batch is cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter

from .files import Content, Identity

# The priority of what is sent at once: no window and no rate holds it. A person chooses from -100 to 100 below it.
AT_ONCE = 1000
# No queue's file is from so far ahead, but where the clock was set back.
_AHEAD = timedelta(minutes=1)
_FIRST_COME_EVERY = 4
# Studies of up to 64 MB are alike; beyond, each doubling is a class of its own. An instance costs more than its bytes.
_SMALL_BITS = 26
_INSTANCE_COST = 250_000


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimits:
    """When a study is due and where its batch is cut."""

    quiet_period: timedelta = timedelta(seconds=5)
    max_wait: timedelta = timedelta(seconds=60)
    max_bytes: int = 64_000_000
    max_instances: int = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyQueue:
    """One study's waiting rows in sum, as the ledger keeps them."""

    study_uid: str
    waiting: int
    waiting_bytes: int
    oldest_at: datetime
    newest_at: datetime
    next_attempt_at: datetime | None = None
    charged: int = 0  # charged attempts in a row, 0 after a success
    priority: int = 0
    inbox_id: int = 0  # of its newest file


def study_due_at(study: StudyQueue, limits: BatchLimits, *, flush: bool = False) -> datetime:
    """Say when this study is due: quiet, waiting too long, or full; never before its backoff ends.

    ``flush`` ignores the quiet period (``run --once`` after its last scan).
    """
    full = study.waiting >= limits.max_instances or study.waiting_bytes >= limits.max_bytes
    if full or flush:
        due = study.oldest_at
    else:
        due = min(study.newest_at + limits.quiet_period, study.oldest_at + limits.max_wait)
    if study.next_attempt_at is not None and study.next_attempt_at > due:
        return study.next_attempt_at
    return due


class Turns:
    """Whose turn it is to be sent: what matters more goes first, and nobody starves.

    The higher priority goes first. Inboxes of the same take turns, whatever each has waiting. Of an inbox's studies the
    small go before the large, so that one of thousands of files lets the others by, and of those alike the oldest. But
    every fourth turn is that of whoever has waited longest, of whatever priority, inbox and size.
    """

    def __init__(self) -> None:
        """Start with no turn given."""
        self._given = 0
        self._last: dict[int, int] = {}  # by inbox: which turn was its last

    def give(self, study: StudyQueue) -> None:
        """Note that this study was served."""
        self._given += 1
        self._last[study.inbox_id] = self._given

    def order(self, studies: Iterable[StudyQueue], *, now: datetime) -> list[StudyQueue]:
        """Put the studies in the order they are to be served from now on.

        One that seems to wait since a time to come waits since before the clock was set back: it is the oldest.
        """
        by_age = sorted(studies, key=lambda study: (study.oldest_at <= now + _AHEAD, study.oldest_at))
        queues: dict[int, list[StudyQueue]] = defaultdict(list)
        for study in sorted(by_age, key=lambda study: (-study.priority, _class_of(study))):
            queues[study.inbox_id].append(study)
        # The first of each inbox, then the second of each: but a higher priority before all of a lower.
        dealt = [
            (-each.priority, place, self._last.get(inbox, 0), each)
            for inbox, queue in queues.items()
            for place, each in enumerate(queue)
        ]
        by_rank = [each for *_, each in sorted(dealt, key=itemgetter(0, 1, 2))]
        lines = iter(by_rank), iter(by_age)
        served: dict[str, StudyQueue] = {}
        for turn in range(self._given, self._given + len(by_age)):
            line = lines[turn % _FIRST_COME_EVERY == _FIRST_COME_EVERY - 1]
            study = next(each for each in line if each.study_uid not in served)
            served[study.study_uid] = study
        return list(served.values())


def _class_of(study: StudyQueue) -> int:
    return max(_SMALL_BITS, (study.waiting_bytes + _INSTANCE_COST * study.waiting).bit_length())


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """One PENDING row as the cutter sees it."""

    delivery_id: int
    sop_uid: str
    size_bytes: int
    charged: int = 0
    alone: bool = False  # a verdict in a batch named it: once more, alone


def cut_batch(rows: Iterable[Waiting], limits: BatchLimits, *, charged: int = 0) -> tuple[Waiting, ...]:
    """Take the next batch from the front of a study's waiting rows, oldest first.

    After n charged attempts the limits are halved n times over, down to one instance, so that a poison instance
    isolates itself in log2 steps. What counts is the study's ``charged`` or that of the row in the batch that has
    most: a row that was in failing batches keeps travelling in small ones while others succeed and clear the study.
    A batch never holds one SOP Instance UID twice, holds at least one row, and a row marked ``alone`` travels alone.
    A file larger than ``max_bytes`` is a batch of its own.
    """
    halvings = charged
    chosen: list[Waiting] = []
    seen: set[str] = set()
    size = 0
    for row in rows:
        if row.alone:
            if chosen:
                continue
            return (row,)
        if row.sop_uid in seen:
            continue
        halvings = max(halvings, row.charged)
        most = max(1, limits.max_instances >> halvings)
        if chosen and (len(chosen) >= most or size + row.size_bytes > limits.max_bytes >> halvings):
            break
        chosen.append(row)
        seen.add(row.sop_uid)
        size += row.size_bytes
    return tuple(chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One instance of a batch: which row, which file, and the digests that it must still have."""

    delivery_id: int
    identity: Identity
    path: str  # a place, see ``places``
    content: Content
    attempts: int = 0  # all attempts on this row, charged or not
    charged: int = 0  # charged attempts on this row since it last moved for the better
    sop_class_uid: str = ""  # for the File Meta that is written in front of a file without one
    being_created_since: datetime | None = None  # the first of its answers 45071 in a row, if the last one was that
    reencoded: bool = False  # the path is the Explicit VR Little Endian copy
    replaces: bool = False  # a person decided (`resolve --replace`) that it takes the place of what the server has: PUT
    generated_meta: bool = False  # the file has no File Meta: one is written in front while sending


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one Store Transaction carries. ``attempt_id`` and ``claim_token`` are durable before it is handed out."""

    attempt_id: int
    claim_token: str
    study_uid: str
    parts: tuple[Part, ...]
    started_at: datetime
    charged: int = 0
    at_once: bool = False  # all of it: no rate holds it

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(part.content.size_bytes for part in self.parts)
