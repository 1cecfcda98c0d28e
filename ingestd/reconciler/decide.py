"""From what the server showed to a move: pure functions, one for each kind of evidence (DESIGN.md 5.4, 6).

Each gives the Outcome that the evidence amounts to, or says what is still needed. An Outcome whose state is the row's
own settles nothing yet: it records that the row was asked about and when to ask next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from ingestd.lifecycle import REENCODABLE, REFUSALS, Backoff, Outcome, Reason, Sameness, ServerKind, State, Unproven
from ingestd.reconciler.rules import NextStep, Rules, is_deleted_since, is_from_before, needs_comparison

# Between two questions about a row that the first one did not settle.
_ASK_AGAIN = Backoff(base=timedelta(seconds=2), cap=timedelta(minutes=10))
# For a row that was sent again after it had been STORED, and is not there again: an alarm by then, asked on for ever.
_ASK_HOURLY = timedelta(hours=1)
# A feed that cannot be read is waited for so many times the grace time.
_GRACES_FOR_A_FEED_UNREAD = 4

_FOUND = {
    Sameness.OTHER: "the server has an object with the same UIDs and other content",
    Sameness.OTHER_ENCODING: "the server's object with the same UIDs is encoded in another transfer syntax, which "
    "cannot be compared",
    Sameness.NOT_WHOLE: "the server gives back a copy that is no whole object",
}
# So many complete answers to posts of one file alone that do not name it are a refusal.
_SILENT_ANSWERS = 3
_WORDS = {
    State.STORED: "the server had answered that it stored it",
    State.UNCERTAIN: "the answer to the post had not been read",
    State.CONFIRMED: "it was confirmed before",
    State.DELETED: "it had been deleted on the server",
}


def judge_sighting(row: Unproven, *, rules: Rules) -> Outcome | NextStep:
    """Judge a row by the newest change feed entry of its identity, and the state that entry had when it was read."""
    if row.state is State.DELETED:
        return NextStep.WAIT if row.seen_state in {None, "deleted"} else NextStep.ASK
    if row.state is State.CONFIRMED:
        return _deleted_by_feed(row, rules) if is_deleted_since(row, rules) else NextStep.ASK
    if row.state is State.UNCERTAIN:
        return _uncertain_by_feed(row, rules)
    assert row.state is State.STORED, f"{row.state} has nothing to prove"
    if is_deleted_since(row, rules):
        return _deleted_by_feed(row, rules)
    if needs_comparison(row, rules):
        # Its entry says "replaced" where a newer one exists that we have not read: the copy tells all the same.
        return NextStep.ASK
    if row.seen_sequence is None or is_from_before(row, rules):
        return NextStep.WAIT
    if row.seen_state == "current":
        return _confirmed_by_feed(row, rules)
    # Deleted, at about the time of our post: before it or after it? Or a word that we do not know.
    return NextStep.ASK


def _uncertain_by_feed(row: Unproven, rules: Rules) -> Outcome | NextStep:
    if row.was_stored and is_deleted_since(row, rules):
        return _deleted_by_feed(row, rules)
    shown = row.seen_state == "current" and not is_from_before(row, rules)
    if shown and not needs_comparison(row, rules):
        return _confirmed_by_feed(row, rules)
    return NextStep.ASK


def judge_presence(
    row: Unproven, *, present: bool, rules: Rules, now: datetime, give_up: bool = False
) -> Outcome | NextStep:
    """Judge a row by whether the server has its identity: listed by a query, or a GET of the instance answered 404.

    ``now`` is when it was asked (our clock). ``give_up`` says that other files are being stored meanwhile, so that a
    row which met a server error as often as ``most_attempts`` allows is FAILED instead of sent once more.
    """
    if not present:
        return _judge_absence(row, rules=rules, now=now, give_up=give_up)
    if needs_comparison(row, rules):
        return _there_at_least(row, at=now) if rules.stopped and row.state is State.UNCERTAIN else NextStep.COMPARE
    reason = Reason.ALREADY_THERE if row.reason is Reason.ALREADY_THERE else Reason.QUERY
    evidence = {"before_the_post": "absent"} if row.present_before is False else {}
    evidence["content"] = "not compared"
    return _confirmed(row, reason, "the server has it when asked", at=now, **evidence)


def judge_comparison(row: Unproven, sameness: Sameness, *, rules: Rules, now: datetime, differs: str = "") -> Outcome:
    """Judge a row by how the server's copy, retrieved whole at ``now``, compares with our file.

    ``differs`` says in words what is not the same. A copy that is no whole object counts when it came twice.
    """
    assert sameness is not Sameness.COMPARE, "the canonical digests have to be compared first"
    if sameness is Sameness.SAME:
        reason = Reason.ALREADY_THERE if row.reason is Reason.ALREADY_THERE else Reason.CONTENT_CHECK
        how = "the server's copy was retrieved and has the same content"
        confirmed = _confirmed(row, reason, how, at=now, content="same")
        return replace(confirmed, sameness=sameness)
    found = _FOUND[sameness] + (f" ({differs})" if differs else "")
    if row.state is State.DELETED:
        # It holds nothing, and what is there now is somebody else's: the row stays what it is.
        note = f"asked again after the deletion: {found}"
        evidence = {"content": sameness.value}
        return _not_settled(row, Reason.CONTENT_CHECK, note, at=now, evidence=evidence)
    if sameness is Sameness.NOT_WHOLE and (left := left_until_second_look(row, rules=rules, now=now)) > timedelta(0):
        return look_once_more(row, sameness, f"{found}; it is fetched once more in {_spoken(left)}", wait=left)
    reason = Reason.OTHER_ENCODING if sameness is Sameness.OTHER_ENCODING else Reason.OTHER_CONTENT
    return Outcome(
        entry_id=row.entry_id,
        state=State.CONFLICT,
        reason=reason,
        note=f"{found} ({_history_of(row)}); both are kept for a person to decide{_hint(rules)}",
        evidence={"content": sameness.value},
        expected=row.state,
        evidence_at=now,
        sameness=sameness,
    )


def left_until_second_look(row: Unproven, *, rules: Rules, now: datetime) -> timedelta:
    """Say how long until a copy that is not ours may be believed: until it was seen twice, apart."""
    return rules.between_looks - (now - rules.surely_since(row.differs_since or now, now))


def look_once_more(row: Unproven, sameness: Sameness, note: str, *, wait: timedelta) -> Outcome:
    """Leave a row whose copy on the server is not ours where it is, and say so; it is looked at again."""
    # No evidence of any instant: on a confirmed row that would end the look.
    outcome = _not_settled(row, Reason.CONTENT_CHECK, note, wait=wait, evidence={"content": sameness.value})
    return replace(outcome, sameness=sameness, noted=True)


def stays_stored(row: Unproven, *, rules: Rules) -> Outcome:
    """Leave a STORED row unproven while nothing is compared with this server."""
    note = (
        "the server answered that it stored it; nothing of this server has ever matched what it was sent, so that "
        "comparing has stopped: see `ingestd status`"
    )
    return replace(_not_settled(row, row.reason or Reason.STORED_ANSWER, note, wait=rules.grace), noted=True)


def _there_at_least(row: Unproven, *, at: datetime) -> Outcome:
    return Outcome(
        entry_id=row.entry_id,
        state=State.STORED,
        reason=Reason.QUERY,
        note="the server has it when asked; its content is to be compared",
        expected=row.state,
        evidence_at=at,
    )


def _hint(rules: Rules) -> str:
    if rules.profile.kind is ServerKind.AZURE:
        return ""
    return " (if this server changes what it stores, on purpose, `reconcile.verify: presence` leaves contents alone)"


def not_told(row: Unproven, note: str, *, rules: Rules, now: datetime, lost: bool = False) -> Outcome:
    """Leave a row where it is: the server was asked and could not tell; ask again later.

    That ends with the grace time where nothing but its answer is waited for: a row that was refused, or whose file is
    ``lost``, is FAILED then.
    """
    since = now if row.untold_since is None else rules.surely_since(row.untold_since, now)
    was_refused = _is_refused(row)
    if row.state is State.UNCERTAIN and (was_refused or lost) and now - since >= rules.grace:
        asked = f"asked for {_spoken(rules.grace)}, the server could not tell whether it has it all the same: {note}"
        why = row.note if was_refused else "its file is no longer where it was taken in"
        return Outcome(
            entry_id=row.entry_id,
            state=State.FAILED,
            reason=row.reason if was_refused and row.reason is not None else Reason.GONE,
            note=f"{why} ({asked})",
            expected=row.state,
        )
    reason = row.reason or (Reason.STORED_ANSWER if row.state is State.STORED else Reason.NO_VERDICT)
    if reason is Reason.ABSENT:
        reason = Reason.NO_VERDICT
    outcome = _not_settled(row, reason, note, wait=_ASK_AGAIN.wait(row.checks + 1, jitter=0.0))
    # What it was refused with is not written over: that is all that is known of it.
    return replace(outcome, untold=True, noted=not was_refused)


def _is_refused(row: Unproven) -> bool:
    """Say whether a post's verdict gave it up, so that the server is asked for it this last time."""
    return row.state is State.UNCERTAIN and row.reason in REFUSALS


def still_deleted(row: Unproven) -> Outcome:
    """Leave a DELETED row alone until the feed shows it again."""
    assert row.state is State.DELETED, f"{row.state} is not left alone"
    return _not_settled(row, Reason.FEED, "the server's change feed has it as deleted still")


def wait_for_feed(row: Unproven, *, rules: Rules, now: datetime) -> Outcome:
    """Leave a STORED row to the change feed until the grace time ends; then it is UNCERTAIN and asked about.

    A feed that could not be read meanwhile gets more time, but not for ever: the instance itself can be asked for.
    """
    since = rules.surely_since(row.stored_at or row.last_attempt_at or now, now)
    read_at = rules.feed_read_at or now
    left = rules.grace - (now - since)
    if left > timedelta(0):
        return _not_settled(row, row.reason or Reason.STORED_ANSWER, row_note(row), wait=left)
    unread = read_at < since + rules.grace
    if unread and now - since < rules.grace * _GRACES_FOR_A_FEED_UNREAD:
        wait = min(timedelta(seconds=30), rules.grace)  # the feed is read more often than that
        return _not_settled(row, row.reason or Reason.STORED_ANSWER, row_note(row), wait=wait)
    return Outcome(
        entry_id=row.entry_id,
        state=State.UNCERTAIN,
        reason=Reason.NOT_SHOWN,
        note=f"the server answered that it stored it, and {_spoken(now - since if unread else rules.grace)} later its "
        f"change feed {'could not be read' if unread else 'does not show it'}; it is asked for the instance itself",
        wait=timedelta(0),
        expected=row.state,
    )


def row_note(row: Unproven) -> str:
    """Say what a STORED row waits for."""
    return "the server answered that it stored it; its change feed is to show it" if row.state is State.STORED else ""


def _judge_absence(row: Unproven, *, rules: Rules, now: datetime, give_up: bool) -> Outcome:
    once_there = row.was_stored or row.state in {State.STORED, State.CONFIRMED}
    if once_there and row.state is not State.DELETED and _feed_says_deleted(row, rules):
        how = "the change feed has it as deleted, and it is not on the server when asked"
        return _deleted(row, how, at=now, feed="deleted")
    if row.state is State.STORED:
        return _stored_and_absent(row, rules=rules, now=now)
    if _is_refused(row):
        assert row.reason is not None, "it was refused for something"
        # Once is enough: it is not sent again for that, and a person who has it tried again has it asked for again.
        return Outcome(
            entry_id=row.entry_id,
            state=State.FAILED,
            reason=row.reason,
            note=f"{row.note} (asked for it, the server does not have it)",
            expected=row.state,
            evidence_at=now,
        )
    apart = rules.wait_between_absences(row)
    if row.state is State.DELETED:
        return _not_settled(row, Reason.ABSENT, "asked again: it is still not on the server", at=now)
    left = apart
    if row.absences and row.absent_for is not None:
        left = apart - row.absent_for
    if left > timedelta(0):
        note = f"not on the server; asked once more in {_spoken(left)}"
        return _not_settled(row, Reason.ABSENT, note, at=now, wait=left)
    if row.state is State.CONFIRMED:
        how = "it was confirmed, and is no longer on the server when asked twice"
        return _deleted(row, how, at=now, absences=str(row.absences + 1))
    return _absent_twice(row, rules=rules, now=now, give_up=give_up)


def _stored_and_absent(row: Unproven, *, rules: Rules, now: datetime) -> Outcome:
    since = rules.surely_since(row.stored_at or row.last_attempt_at or now, now)
    if (left := rules.grace - (now - since)) > timedelta(0):
        wait = min(_ASK_AGAIN.wait(row.checks + 1, jitter=0.0), left)
        note = "the server answered that it stored it and does not show it yet; it is asked again"
        return _not_settled(row, Reason.ABSENT, note, at=now, wait=max(wait, timedelta(seconds=1)))
    return Outcome(
        entry_id=row.entry_id,
        state=State.UNCERTAIN,
        reason=Reason.NOT_SHOWN,
        note=f"the server answered that it stored it, and {_spoken(rules.grace)} later it is not there when asked; "
        "it is asked twice more before it is sent again",
        wait=timedelta(0),
        expected=row.state,
        evidence_at=now,
    )


def _feed_says_deleted(row: Unproven, rules: Rules) -> bool:
    return row.seen_state == "deleted" and not is_from_before(row, rules)


def _absent_twice(row: Unproven, *, rules: Rules, now: datetime, give_up: bool) -> Outcome:
    if row.was_stored and row.resends >= 1:
        # Resends from before it was ever STORED count too: one copy too few is seen, one too many may do damage.
        return _not_settled(
            row,
            Reason.NOT_SHOWN,
            "the server has answered that it stored it and does not have it, and it was sent again once already: "
            "look at the server, then `ingestd retry`; it is asked again every hour",
            at=now,
            wait=_ASK_HOURLY,
        )
    evidence = {"absences": str(row.absences + 1)}
    if row.unnamed:
        evidence["silent_answers"] = str(row.unnamed)
    reencode = bool(row.unnamed) and row.content.transfer_syntax in REENCODABLE and rules.reencode_refused
    if row.unnamed >= _SILENT_ANSWERS and not reencode:
        return Outcome(
            entry_id=row.entry_id,
            state=State.FAILED,
            reason=Reason.REFUSED,
            note=f"the server answered {row.unnamed} posts of this file alone without naming it, neither as stored nor "
            "as failed, and does not have it: it cannot read it, it seems; the file is kept: look at the server's log, "
            "then `ingestd retry` or `ingestd resolve --discard`",
            evidence=evidence,
            expected=row.state,
            evidence_at=now,
        )
    if give_up and row.charged >= rules.most_attempts:
        return Outcome(
            entry_id=row.entry_id,
            state=State.FAILED,
            reason=Reason.SERVER_ERROR,
            note=f"the server failed on it {row.charged} times while it stored other files, and does not have it; the "
            "file is kept: look at the server's log, then `ingestd retry`",
            evidence=evidence,
            expected=row.state,
            evidence_at=now,
        )
    return Outcome(
        entry_id=row.entry_id,
        state=State.PENDING,
        reason=Reason.ABSENT,
        note="not on the server when asked twice; "
        + ("a lossless Explicit VR Little Endian copy is made and sent instead" if reencode else "it is sent again"),
        evidence=evidence,
        reencode=reencode,
        expected=row.state,
        evidence_at=now,
    )


def _confirmed(row: Unproven, reason: Reason, how: str, *, at: datetime | None, **evidence: str) -> Outcome:
    again = " again" if row.state in {State.CONFIRMED, State.DELETED} else ""
    return Outcome(
        entry_id=row.entry_id,
        state=State.CONFIRMED,
        reason=reason,
        note=f"confirmed{again}: {how} ({_history_of(row)})",
        evidence=evidence,
        expected=row.state,
        evidence_at=at,
    )


def _confirmed_by_feed(row: Unproven, rules: Rules) -> Outcome:
    assert row.seen_at is not None, "a sighting has a time"
    return _confirmed(
        row,
        Reason.FEED,
        "the server's change feed shows it",
        at=row.seen_at - rules.clock_offset,
        sequence=str(row.seen_sequence),
        server_time=row.seen_at.isoformat(),
        content="not compared",
    )


def _history_of(row: Unproven) -> str:
    return "the server had refused it" if _is_refused(row) else _WORDS[row.state]


def _deleted_by_feed(row: Unproven, rules: Rules) -> Outcome:
    at = None if row.seen_at is None else row.seen_at - rules.clock_offset
    return _deleted(row, "the server's change feed says that it was deleted", at=at, sequence=str(row.seen_sequence))


def _deleted(row: Unproven, how: str, *, at: datetime | None, **evidence: str) -> Outcome:
    return Outcome(
        entry_id=row.entry_id,
        state=State.DELETED,
        reason=Reason.ABSENT if "absences" in evidence else Reason.FEED,
        note=f"{how}; it is not sent again by itself: `ingestd retry` sends it, `ingestd resolve --discard` lets it go",
        evidence=evidence,
        expected=row.state,
        evidence_at=at,
    )


def _not_settled(
    row: Unproven,
    reason: Reason,
    note: str,
    *,
    at: datetime | None = None,
    wait: timedelta | None = None,
    evidence: Mapping[str, str] | None = None,
) -> Outcome:
    return Outcome(
        entry_id=row.entry_id,
        state=row.state,
        reason=reason,
        note=note,
        wait=wait,
        evidence=evidence or {},
        expected=row.state,
        evidence_at=at,
    )


def _spoken(span: timedelta) -> str:
    seconds = max(1, round(span.total_seconds()))
    for size, word in ((3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {word}{'s' * (count != 1)}"
    return f"{seconds} second{'s' * (seconds != 1)}"
