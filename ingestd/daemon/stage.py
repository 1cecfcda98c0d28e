"""What the daemon turns: one list of stages, each of which keeps one part of a file's way going.

Theory of operation. A tick has three beats over the same list, in its order:

1. ``collect`` takes what workers (readers, movers, posting threads, the server's answers) have finished and what the
   clock says is due. It writes nothing, and what it reads of the ledger is a hint: a person, `ingestd send` or another
   stage may move the same rows before the transaction begins.
2. ``write`` gets the transaction of this tick, which begins with the first statement that any stage makes through it,
   read or write; a tick in which nobody has anything to say costs no transaction. Findings are judged here, by the
   rows as they stand in this transaction. It changes no field of its stage: a ledger that is busy or full has the same
   findings written again by the next tick. What a stage wants to do or to forget once it is durable (read, move, post,
   ask, drop what was collected) it registers with ``tx.on_commit``.
3. After COMMIT these are called in the order in which they were registered. A crash before any of them loses nothing:
   the ledger says what is to be done, and the next start does it.

Where several workers write one ledger, a tick has two transactions, and most ticks need but the second: first that of
the stages which write little, and whatever it may be; then that of those through which each file goes and which know
before of which studies they will change files (``Stage.studies``). The first keeps all other workers out, the second
only who changes files of the same studies. Where one of the latter does not know this time, all is one transaction.

So every act that leaves the process (G2, G5) comes after the row that says so, and no finding is lost by a transaction
that failed. The order of the list is the order of writing: the clock that all waits go by comes first, admission before
what asks about rows, and claims last, since a claim sees everything that this tick has settled.

Facts cross from stage to stage, plans do not: a stage gets what it needs in its constructor, reads facts there
(``is_idle``, ``Gate.is_open``, a callable) and sets no field of another. What several stages may hold up together is a
``Gate``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import inf

from ingestd.clocks import Now
from ingestd.ledger import Transaction


class Stage:
    """One part of a file's way. Main thread only."""

    def start(self) -> None:
        """Take up where the last run ended; before the first tick."""

    def collect(self, now: Now) -> None:
        """Take what is finished or due; writes nothing. Raises LedgerError: the tick ends there and is tried again."""

    def write(self, tx: Transaction, now: Now) -> None:
        """Write what was collected, and register what is to be done then; changes no field of the stage."""

    # Whether it can say so, and, if nothing else is to be written this time, of which studies (UIDs) ``write`` will
    # change files; None: of any, or something else.
    is_of_studies = False

    @property
    def studies(self) -> Collection[str] | None:
        return None

    def next_at(self, now: Now) -> float:  # noqa: ARG002 - those that go by the clock say so
        """Say when there is something to do by the clock alone (``Now.mono``); inf: a ring will tell."""
        return inf

    @property
    def in_hand(self) -> int:
        """How many files or posts are under way: with many, the loop lets one transaction carry more."""
        return 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way here."""
        return True


class WhileOurs(Stage):
    """A stage that turns only while its work is ours, and takes up where another left whenever it comes to be."""

    def __init__(self, stage: Stage, is_ours: Callable[[], bool]) -> None:
        self._stage = stage
        self.is_of_studies = stage.is_of_studies
        self._is_ours = is_ours
        self._has_begun = False

    def collect(self, now: Now) -> None:
        if not self._is_ours():
            self._has_begun = False
            return
        if not self._has_begun:
            self._stage.start()
            self._has_begun = True
        self._stage.collect(now)

    def write(self, tx: Transaction, now: Now) -> None:
        if self._has_begun:
            self._stage.write(tx, now)

    @property
    def studies(self) -> Collection[str] | None:
        return self._stage.studies if self._has_begun else ()

    def next_at(self, now: Now) -> float:
        return self._stage.next_at(now) if self._has_begun else inf

    @property
    def in_hand(self) -> int:
        return self._stage.in_hand

    @property
    def is_idle(self) -> bool:
        return self._stage.is_idle


class Gate:
    """Open unless something stands in the way, each thing under a word of its own; to tell a person is its business."""

    def __init__(self, *shut_by: str) -> None:
        self._shut_by = set(shut_by)

    def shut(self, why: str) -> None:
        self._shut_by.add(why)

    def open(self, why: str) -> None:
        """This no longer stands in the way; what others have shut stays shut."""
        self._shut_by.discard(why)

    def set(self, why: str, *, is_open: bool) -> None:
        (self.open if is_open else self.shut)(why)

    def is_shut_by(self, why: str) -> bool:
        return why in self._shut_by

    @property
    def is_open(self) -> bool:
        return not self._shut_by


@dataclass(slots=True)
class RunProgress:
    """How far a single run has come (`run --once`, `send`); a daemon that goes on never sets these."""

    is_single: bool = False  # a person asks for it now: no window holds it
    flushes: bool = False  # everything was taken in: no study waits for more of its kind, and somebody for the proof


class Gates:
    """What is held up for all files at once: taking in, removing kept files, reading rows' files again, claims."""

    def __init__(self) -> None:
        self.intake = Gate()
        self.removals = Gate()
        self.rereads = Gate()
        self.claims = Gate()
