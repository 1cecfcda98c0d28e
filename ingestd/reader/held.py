"""Answers on their way out of a child: held for a moment, so that many files share one sync and one write."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ingestd.clocks import boottime
from ingestd.fs.durable import write_all
from ingestd.reader.board import Board
from ingestd.reader.files import Waits, refuse_open_for_writing, sync
from ingestd.reader.wire import Answer, encode_answer

_HELD_MOST = 32  # each may hold a descriptor
_HELD_SECONDS = 0.02
EXIT_NOT_HEARD = 78


@dataclass(slots=True)
class Done:
    """An answer; with ``fd`` it is true only once that descriptor was synced, and is closed then."""

    answer: Answer
    fd: int | None = None


class Held:
    """Answers that wait to be written together; not for long, whatever the next job takes.

    Files that have to be durable are synced here, many in a row: their pages are on the way to the disk since they
    were read, and the first fsync commits the filesystem's journal for all of them.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._done: list[Done] = []
        self._since = 0.0

    def add(self, done: Done) -> None:
        """Hold one more."""
        if not self._done:
            self._since = boottime()
        self._done.append(done)

    def flush_when_due(self) -> None:
        """Write them if they are many or have waited long enough."""
        if self._done and (len(self._done) >= _HELD_MOST or boottime() - self._since > _HELD_SECONDS):
            self.flush()

    def flush(self) -> None:
        """Sync what has to be durable, and write all answers."""
        if self._done:
            for done in self._done:
                self._settle(done)
            # Whoever cannot be heard any more ends, and no file is to blame for it.
            before = self._board.begin(0)
            try:
                write_all(1, b"".join([encode_answer(done.answer) for done in self._done]))
            except OSError:
                os._exit(EXIT_NOT_HEARD)
            self._board.go_back(before)
            self._done.clear()

    def _settle(self, done: Done) -> None:
        """Make one answer true; once only, also when memory runs out halfway and all is done again."""
        answer, fd = done.answer, done.fd
        if fd is None:
            return
        serial = answer.serial
        done.answer = Answer(serial=serial, waits="the reader ran out of memory")  # unless all goes well
        done.fd = None
        before = self._board.begin(serial)
        try:
            sync(fd)
            refuse_open_for_writing(fd)
            done.answer = answer
        except Waits as why:
            done.answer = Answer(serial=serial, waits=str(why))
        finally:
            self._board.go_back(before)
            os.close(fd)
