"""Of which studies a transaction may change files: of all, or, beside others who write, of those that it has locked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from sqlalchemy import select

from ingestd.lifecycle import IllegalMove

from . import dialect
from .schema import study
from .study_locks import MOST_STUDIES

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from .session import Session

_NUMBERS = select(study.c.id).where(dialect.among(study.c.uid, "uids"))


class HeldStudies:
    """Those of one transaction; it ``is_whole`` where it keeps all others out."""

    def __init__(self, session: Session, studies: Collection[str] | None) -> None:
        """``studies`` (UIDs) it begins with; None: it is whole."""
        self._session = session
        self.is_whole = studies is None
        self._uids = set(studies or ())
        self._numbers: set[int] = set()  # as far as they were asked for

    @property
    def room(self) -> int:
        """How many more studies may be tried."""
        return MOST_STUDIES if self.is_whole else max(0, MOST_STUDIES - len(self._uids))

    def take(self, connection: Connection, studies: Iterable[str]) -> set[str]:
        """Lock those of these that nobody else has, and say which are ours; where there is no room, the first ones."""
        wanted = dict.fromkeys(studies)
        if self.is_whole:
            return set(wanted)
        missing = [uid for uid in wanted if uid not in self._uids][: self.room]
        if missing:
            self._uids |= self._session.database.try_lock(connection, missing)
        return self._uids.intersection(wanted)

    def expect(self, connection: Connection, study_id: int | None) -> None:
        """Raise IllegalMove where files of this study may be changed by others now; None: of no study."""
        if self.is_whole or study_id is None or study_id in self._numbers:
            return
        known = self._session.studies_known
        self._numbers |= {known[uid].id for uid in self._uids if uid in known}
        if unknown := [uid for uid in self._uids if uid not in known]:
            self._numbers.update(connection.execute(_NUMBERS, {"uids": unknown}).scalars())
        if study_id not in self._numbers:
            raise IllegalMove("a file of a study was to be changed for which the transaction has no lock")

    def expect_new(self, studies: Collection[str]) -> None:
        """Raise IllegalMove where others may put one of these down at the same time."""
        if not self.is_whole and not self._uids.issuperset(studies):
            raise IllegalMove("a study was to be put down for which the transaction has no lock")
