"""What follows where the server does not show a row, cannot tell, or has not shown it yet.

Absent once is a question. Twice, apart, is an answer: a row that is absent twice is sent again, at most once if it had
been STORED. Nothing is waited for without an end, and nothing is confirmed because time has passed.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from ingestd.lifecycle import REENCODABLE, Backoff, Outcome, Reason, State, Unproven
from ingestd.reconciler.rules import Rules, is_from_before, is_refused, outcome_of, spoken

# Between two questions about a row that the first one did not settle.
_ASK_AGAIN = Backoff(base=timedelta(seconds=2), cap=timedelta(minutes=10))
# For a row that was sent again after it had been STORED, and is not there again: an alarm by then, asked on for ever.
_ASK_HOURLY = timedelta(hours=1)
# A feed that cannot be read is waited for so many times the grace time.
_GRACES_FOR_A_FEED_UNREAD = 4
# So many complete answers to posts of one file alone that do not name it are a refusal.
_SILENT_ANSWERS = 3
_FEED_IS_TO_SHOW_IT = "the server answered that it stored it; its change feed is to show it"


def not_told(row: Unproven, note: str, *, rules: Rules, now: datetime, lost: bool = False) -> Outcome:
    """Leave a row where it is: the server was asked and could not tell; ask again later.

    That ends with the grace time where nothing but its answer is waited for: a row that was refused, or whose file is
    ``lost``, is FAILED then.
    """
    since = now if row.untold_since is None else rules.surely_since(row.untold_since, now)
    was_refused = is_refused(row)
    if row.state is State.UNCERTAIN and (was_refused or lost) and now - since >= rules.grace:
        asked = f"asked for {spoken(rules.grace)}, the server could not tell whether it has it all the same: {note}"
        why = row.note if was_refused else "its file is no longer where it was taken in"
        cause = row.reason if was_refused and row.reason is not None else Reason.GONE
        return outcome_of(row, cause, f"{why} ({asked})", state=State.FAILED)
    reason = row.reason or (Reason.STORED_ANSWER if row.state is State.STORED else Reason.NO_VERDICT)
    if reason is Reason.ABSENT:
        reason = Reason.NO_VERDICT
    outcome = outcome_of(row, reason, note, wait=_ASK_AGAIN.wait(row.checks + 1, jitter=0.0))
    # What it was refused with is not written over: that is all that is known of it.
    return replace(outcome, untold=True, noted=not was_refused)


def wait_for_feed(row: Unproven, *, rules: Rules, now: datetime) -> Outcome:
    """Leave a STORED row to the change feed until the grace time ends; then it is UNCERTAIN and asked about.

    A feed that could not be read meanwhile gets more time, but not for ever: the instance itself can be asked for.
    """
    since = rules.surely_since(row.stored_at or row.last_attempt_at or now, now)
    read_at = rules.feed_read_at or now
    wait = rules.grace - (now - since)
    unread = read_at < since + rules.grace
    if wait <= timedelta(0) and unread and now - since < rules.grace * _GRACES_FOR_A_FEED_UNREAD:
        wait = min(timedelta(seconds=30), rules.grace)  # the feed is read more often than that
    if wait > timedelta(0):
        return outcome_of(row, row.reason or Reason.STORED_ANSWER, _FEED_IS_TO_SHOW_IT, wait=wait)
    note = (
        f"the server answered that it stored it, and {spoken(now - since if unread else rules.grace)} later its "
        f"change feed {'could not be read' if unread else 'does not show it'}; it is asked for the instance itself"
    )
    return outcome_of(row, Reason.NOT_SHOWN, note, state=State.UNCERTAIN, wait=timedelta(0))


def judge_absence(row: Unproven, *, rules: Rules, now: datetime, give_up: bool) -> Outcome:
    """Judge a row that the server did not have at ``now``."""
    once_there = row.was_stored or row.state in {State.STORED, State.CONFIRMED}
    feed_says_deleted = row.seen_state == "deleted" and not is_from_before(row, rules)
    if once_there and row.state is not State.DELETED and feed_says_deleted:
        how = "the change feed has it as deleted, and it is not on the server when asked"
        return deleted(row, how, at=now, feed="deleted")
    if row.state is State.STORED:
        return _stored_and_absent(row, rules=rules, now=now)
    if is_refused(row):
        assert row.reason is not None, "it was refused for something"
        # Once is enough: it is not sent again for that, and a person who has it tried again has it asked for again.
        note = f"{row.note} (asked for it, the server does not have it)"
        return outcome_of(row, row.reason, note, state=State.FAILED, at=now)
    apart = rules.wait_between_absences(row)
    if row.state is State.DELETED:
        return outcome_of(row, Reason.ABSENT, "asked again: it is still not on the server", at=now)
    left = apart
    if row.absences and row.absent_for is not None:
        left = apart - row.absent_for
    if left > timedelta(0):
        note = f"not on the server; asked once more in {spoken(left)}"
        return outcome_of(row, Reason.ABSENT, note, at=now, wait=left)
    if row.state is State.CONFIRMED:
        how = "it was confirmed, and is no longer on the server when asked twice"
        return deleted(row, how, at=now, absences=str(row.absences + 1))
    return _absent_twice(row, rules=rules, now=now, give_up=give_up)


def _stored_and_absent(row: Unproven, *, rules: Rules, now: datetime) -> Outcome:
    since = rules.surely_since(row.stored_at or row.last_attempt_at or now, now)
    if (left := rules.grace - (now - since)) > timedelta(0):
        wait = min(_ASK_AGAIN.wait(row.checks + 1, jitter=0.0), left)
        note = "the server answered that it stored it and does not show it yet; it is asked again"
        return outcome_of(row, Reason.ABSENT, note, at=now, wait=max(wait, timedelta(seconds=1)))
    note = (
        f"the server answered that it stored it, and {spoken(rules.grace)} later it is not there when asked; "
        "it is asked twice more before it is sent again"
    )
    return outcome_of(row, Reason.NOT_SHOWN, note, state=State.UNCERTAIN, at=now, wait=timedelta(0))


def _absent_twice(row: Unproven, *, rules: Rules, now: datetime, give_up: bool) -> Outcome:
    if row.was_stored and row.resends >= 1:
        # Resends from before it was ever STORED count too: one copy too few is seen, one too many may do damage.
        note = (
            "the server has answered that it stored it and does not have it, and it was sent again once already: "
            "look at the server, then `ingestd retry`; it is asked again every hour"
        )
        return outcome_of(row, Reason.NOT_SHOWN, note, at=now, wait=_ASK_HOURLY)
    evidence = {"absences": str(row.absences + 1)}
    if row.unnamed:
        evidence["silent_answers"] = str(row.unnamed)
    reencode = bool(row.unnamed) and row.content.transfer_syntax in REENCODABLE and rules.reencode_refused
    if row.unnamed >= _SILENT_ANSWERS and not reencode:
        note = (
            f"the server answered {row.unnamed} posts of this file alone without naming it, neither as stored nor "
            "as failed, and does not have it: it cannot read it, it seems; the file is kept: look at the server's log, "
            "then `ingestd retry` or `ingestd resolve --discard`"
        )
        return outcome_of(row, Reason.REFUSED, note, state=State.FAILED, at=now, evidence=evidence)
    if give_up and row.charged >= rules.most_attempts:
        note = (
            f"the server failed on it {row.charged} times while it stored other files, and does not have it; the "
            "file is kept: look at the server's log, then `ingestd retry`"
        )
        return outcome_of(row, Reason.SERVER_ERROR, note, state=State.FAILED, at=now, evidence=evidence)
    sends = "a lossless Explicit VR Little Endian copy is made and sent instead" if reencode else "it is sent again"
    note = f"not on the server when asked twice; {sends}"
    outcome = outcome_of(row, Reason.ABSENT, note, state=State.PENDING, at=now, evidence=evidence)
    return replace(outcome, reencode=reencode)


def deleted(row: Unproven, how: str, *, at: datetime | None, **evidence: str) -> Outcome:
    """Say that somebody deleted it; by the feed, or by ``absences``."""
    reason = Reason.ABSENT if "absences" in evidence else Reason.FEED
    note = f"{how}; it is not sent again by itself: `ingestd retry` sends it, `ingestd resolve --discard` lets it go"
    return outcome_of(row, reason, note, state=State.DELETED, at=at, evidence=evidence)
