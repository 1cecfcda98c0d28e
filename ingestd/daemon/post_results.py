"""What a post's result means for its files, its study and the destination, seen together with those before it.

``PostResults.judge`` goes through it in this order, each step by what the one before has made of it:

1. One file alone has failed, and the server stores others: it is given up (``sender.give_up``).
2. A file is not there, and neither is the folder that it lay in: it waits, and is tried again.
3. A file is given up or gone, and the server, or a proxy before it, may have stored it all the same, at this post or
   before (a ledger put back from a backup waits with files that were sent, confirmed and removed since): the server is
   asked first.
4. The answer says that the post was taken, and not in the words of a store: a gateway or a portal in the place of the
   server answers so to all, with nothing, with text, with JSON of its own. Where nothing was stored lately, or many
   files in a row were met with it, that is an outage and no file's fault: the destination pauses, and nobody is
   charged. (A store's own answer that names no instance speaks of the file: Orthanc gives it to what it cannot parse.)
5. Whole posts are refused, again and again: that is told, and no more; behind a wrong address nothing ever succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from ingestd.clocks import Now
from ingestd.daemon.alarms import Alarms
from ingestd.lifecycle import BatchResult, Outcome, Pause, PauseCause, Reason, State, Unproven
from ingestd.sender import give_up

# "While others succeed": a post of another study was answered with something stored within this time.
_OTHERS_SUCCEED_WITHIN = timedelta(hours=1)
# So many studies are known for it.
_STUDIES_MOST = 32
# Files whose folder is away are tried again after this long.
_AWAY_WAIT = timedelta(minutes=1)
_AWAY_NOTE = "the folder that it lies in is away or empty: not mounted? It is sent when it is there again"
_GONE_NOTE = "its file is no longer where it was taken in; the server is asked whether it has it all the same"
# Whole posts refused, and none taken in between, before that is told; fewer may be one bad file that stands alone soon.
_REFUSED_IN_ROW_UNTIL_TOLD = 10
# So many posts in a row, where nothing was stored lately, are an outage.
_SILENT_POSTS_UNTIL_OUTAGE = 3
# So many different files in a row are no single file's fault, whatever was stored before.
_SILENT_FILES_UNTIL_OUTAGE = 10


class PostResults:
    """Judges results, and remembers of them what the next are judged by. Main thread only."""

    def __init__(self, alarms: Alarms, *, most_attempts: int, tells_gone: Callable[[str], bool]) -> None:
        """``tells_gone`` says whether a file that is not there is gone, or only its folder is away."""
        self._alarms = alarms
        self._most_attempts = most_attempts
        self._tells_gone = tells_gone
        self._last_stored: dict[str, float] = {}  # by study, when (``Now.mono``)
        self._refused_in_row = 0
        # Since the server last showed that it stores.
        self._silent_posts = 0
        self._silent_files: set[int] = set()

    def judge(self, collected: BatchResult, now: Now) -> BatchResult:
        """Say what a result comes to."""
        study_uid = collected.batch.study_uid
        others_succeed = self._others_succeed(study_uid, now)
        result = give_up(collected, others_succeed=others_succeed, most_attempts=self._most_attempts)
        parts = {part.delivery_id: part for part in result.batch.parts}
        any_gone = any(outcome.reason is Reason.GONE for outcome in result.outcomes)
        outcomes: list[Outcome] = []
        for outcome in result.outcomes:
            part = parts[outcome.delivery_id]
            is_out = any_gone and outcome.reason in (Reason.GONE, Reason.NOT_SENT)
            if is_out and not self._tells_gone(part.path):
                waits = replace(outcome, state=State.PENDING, reason=Reason.NOT_SENT, note=_AWAY_NOTE, wait=_AWAY_WAIT)
                outcomes.append(waits)
            elif outcome.state is State.FAILED and (
                outcome.reason is Reason.GONE or result.body_bytes_left or part.attempts
            ):
                outcomes.append(_asked_first(outcome))
            else:
                outcomes.append(outcome)
        result = self._judge_silence(replace(result, outcomes=tuple(outcomes)), now)
        self._count_refused(result)
        if any(outcome.state is State.STORED for outcome in result.outcomes):
            self._remember_stored(study_uid, now)
        return result

    def takes_others(self, row: Unproven, now: Now) -> bool:
        """Whether what the server does to a row is that file's own fault, as it takes others."""
        return not self._is_silent and self._others_succeed(row.identity.study_uid, now)

    def found(self, row: Unproven, now: Now) -> bool:
        """Note that a file is there; met with silence, it was stored all the same. Say whether that ends an outage."""
        if row.delivery_id not in self._silent_files:
            return False
        was_outage = self._is_silent
        self._end_silence()
        self._remember_stored(row.identity.study_uid, now)
        return was_outage

    def _judge_silence(self, result: BatchResult, now: Now) -> BatchResult:
        if not result.silent:
            if result.answered and result.http_status is not None and not result.whole_batch_refused:
                self._end_silence()
            return result
        self._silent_posts += 1
        self._silent_files.update(part.delivery_id for part in result.batch.parts)
        few_posts = self._silent_posts < _SILENT_POSTS_UNTIL_OUTAGE or self._others_succeed("", now)
        if not self._is_silent and few_posts and len(self._silent_files) < _SILENT_FILES_UNTIL_OUTAGE:
            return result
        self._alarms.raise_(
            "silent",
            note="the server answers that it took the posts and names no instance, neither as stored nor as failed "
            f"(last with HTTP {result.http_status})",
            next_step="something else may answer in its place, a gateway or a portal: `ingestd check`, and look at the "
            "server's log; no file is given up for it, and sending is tried again by itself",
        )
        pause = Pause(
            cause=PauseCause.UNAVAILABLE,
            note=f"it answers posts with HTTP {result.http_status} and names no instance; sending is tried again",
        )
        outcomes = tuple(replace(each, charge=False, alone=False, unnamed=False) for each in result.outcomes)
        return replace(result, outcomes=outcomes, pause=pause, charge_study=False, answered=False)

    @property
    def _is_silent(self) -> bool:
        """Whether the server takes nothing, as far as its answers tell."""
        return self._alarms.stands("silent")

    def _end_silence(self) -> None:
        self._silent_posts = 0
        self._silent_files.clear()
        self._alarms.clear("silent")

    def _count_refused(self, result: BatchResult) -> None:
        if result.whole_batch_refused:
            self._refused_in_row += 1
        elif result.answered:
            self._refused_in_row = 0
        else:
            return  # no answer says nothing of it
        every = self._refused_in_row >= _REFUSED_IN_ROW_UNTIL_TOLD
        self._alarms.set(
            "refused",
            note=f"the server refuses every post whole (last with HTTP {result.http_status})" if every else "",
            next_step="the address is likely to be wrong: `ingestd check`; sending is tried again by itself",
        )

    def _remember_stored(self, study_uid: str, now: Now) -> None:
        self._last_stored[study_uid] = now.mono
        if len(self._last_stored) > _STUDIES_MOST:
            del self._last_stored[next(iter(self._last_stored))]

    def _others_succeed(self, study_uid: str, now: Now) -> bool:
        """Whether posts of other studies were stored lately: what fails alone is then its own fault."""
        return any(
            study != study_uid and now.mono - at < _OTHERS_SUCCEED_WITHIN.total_seconds()
            for study, at in self._last_stored.items()
        )


def _asked_first(outcome: Outcome) -> Outcome:
    note = _GONE_NOTE if outcome.reason is Reason.GONE else outcome.note
    return replace(outcome, state=State.UNCERTAIN, note=note, wait=timedelta(0), needs_content_check=True)
