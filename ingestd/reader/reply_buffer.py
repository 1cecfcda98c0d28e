"""Replies on their way out of a child: kept for a moment, so that many files share one sync and one write."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ingestd.clocks import boottime
from ingestd.reader.files import Waits, refuse_open_for_writing, sync
from ingestd.reader.protocol import ReaderAnswer, encode_answer
from ingestd.reader.shared_progress import SharedProgress

_MOST_REPLIES = 32  # each may hold a descriptor
_MOST_SECONDS = 0.02
EXIT_NOT_HEARD = 78


@dataclass(slots=True)
class Reply:
    """An answer; with ``fd`` it is true only once that descriptor was synced, and is closed then."""

    answer: ReaderAnswer
    fd: int | None = None


class ReplyBuffer:
    """Replies that wait to be written together; not for long, whatever the next job takes.

    Files that have to be durable are synced here, many in a row: their pages are on the way to the disk since they
    were read, and the first fsync commits the filesystem's journal for all of them.
    """

    def __init__(self, progress: SharedProgress, write: Callable[[bytes], None]) -> None:
        """Have whole lines written by ``write``; where that raises OSError, nobody hears this process any more."""
        self._progress = progress
        self._write = write
        self._replies: list[Reply] = []
        self._since = 0.0

    def add(self, reply: Reply) -> None:
        if not self._replies:
            self._since = boottime()
        self._replies.append(reply)

    def flush_when_due(self) -> None:
        """Write them if they are many or have waited long enough."""
        if self._replies and (len(self._replies) >= _MOST_REPLIES or boottime() - self._since > _MOST_SECONDS):
            self.flush()

    def flush(self) -> None:
        """Sync what has to be durable, and write all answers."""
        if not self._replies:
            return
        for reply in self._replies:
            self._make_true(reply)
        with self._progress.at(0):  # whoever cannot be heard any more ends, and no file is to blame for it
            lines = b"".join([encode_answer(reply.answer) for reply in self._replies])
            try:
                self._write(lines)
            except OSError:
                os._exit(EXIT_NOT_HEARD)
        self._replies.clear()

    def _make_true(self, reply: Reply) -> None:
        """Sync what an answer stands on; once only, also when memory runs out halfway and all is done again."""
        answer, fd = reply.answer, reply.fd
        if fd is None:
            return
        serial = answer.serial
        reply.answer = ReaderAnswer(serial=serial, waits="the reader ran out of memory")  # unless all goes well
        reply.fd = None
        try:
            with self._progress.at(serial):
                sync(fd)
                refuse_open_for_writing(fd)
            reply.answer = answer
        except Waits as why:
            reply.answer = ReaderAnswer(serial=serial, waits=str(why))
        finally:
            os.close(fd)
