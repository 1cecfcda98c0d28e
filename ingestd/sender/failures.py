"""From a Store Transaction without a readable answer to one Outcome per instance (DESIGN.md 5.2 to 5.5).

The client says by the error's class what happened, and by ``nothing_was_stored`` whether the server may have seen any
of the body. Proven not sent goes back to PENDING and is charged to nobody; anything else is UNCERTAIN: the server is
asked before a byte is sent again.
"""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

from ingestd.dicomweb import DicomWebError, FileChanged, Refused, TooLarge, Unintelligible
from ingestd.lifecycle import Batch, BatchResult, Outcome, Part, Pause, PauseCause, Reason, State
from ingestd.outages import pause_of, stops_posts
from ingestd.sender.store_response import ASK_AFTER, Terms, can_be_reencoded, reencode

_TAKEN = frozenset({HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})


def judge_failure(batch: Batch, error: DicomWebError, *, terms: Terms) -> BatchResult:
    """Give each part the Outcome that a failed request amounts to, and say what it means for destination and study."""
    blank = BatchResult(
        batch=batch,
        outcomes=(),
        finished_at=terms.now,
        http_status=error.status,
        body_bytes_left=error.body_bytes_left,
        error=str(error),
    )
    if isinstance(error, FileChanged):
        return replace(blank, outcomes=_file_changed(batch, error, terms))
    if isinstance(error, TooLarge):
        return _too_large(blank, batch)
    if isinstance(error, Refused) and not _may_have_stored(error):
        return _refused_whole(blank, batch, error, terms)
    pause = pause_of(error) if stops_posts(error) else None
    if error.nothing_was_stored:
        why = pause.note if pause is not None else str(error)
        outcomes = tuple(_not_sent(part, f"nothing of it was stored: {why}") for part in batch.parts)
        # An unexpected answer to a request without a body byte: nothing was tried, so the destination waits.
        return replace(blank, outcomes=outcomes, pause=pause or Pause(cause=PauseCause.UNREACHABLE, note=str(error)))
    charge = pause is None
    outcomes = tuple(_uncertain(part, terms, _unread(error), charge=charge) for part in batch.parts)
    refused = isinstance(error, Refused)
    silent = isinstance(error, Unintelligible) and error.status in _TAKEN
    result = replace(blank, outcomes=outcomes, pause=pause, charge_study=charge, whole_batch_refused=refused)
    return replace(result, silent=silent)


def judge_crash(batch: Batch, where: str, *, terms: Terms) -> BatchResult:
    """Give each part an Outcome after an error of our own in the middle of a post: anything may have left."""
    note = "the post of it broke off by an error in ingestd itself; the server is asked for it"
    outcomes = tuple(_uncertain(part, terms, note, charge=True) for part in batch.parts)
    return BatchResult(
        batch=batch, outcomes=outcomes, finished_at=terms.now, charge_study=True, error=f"unexpected {where}"
    )


def _may_have_stored(error: Refused) -> bool:
    # 501 and the like: said of the method, but no verdict on the instances (G6).
    return error.status is None or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _not_sent(part: Part, why: str, *, charge: bool = False) -> Outcome:
    note = f"{why}; it is sent again"
    return Outcome(delivery_id=part.delivery_id, state=State.PENDING, reason=Reason.NOT_SENT, note=note, charge=charge)


def _unread(error: DicomWebError) -> str:
    return f"it was posted and no verdict on it came back ({error}); so the server is asked for it"


def _uncertain(part: Part, terms: Terms, note: str, *, charge: bool) -> Outcome:
    return Outcome(
        delivery_id=part.delivery_id,
        state=State.UNCERTAIN,
        reason=Reason.NO_VERDICT,
        note=note,
        evidence=terms.evidence(part),
        charge=charge,
        wait=ASK_AFTER,
    )


# What becomes of the part whose file is not what its digest says, whichever part it is.
_CHANGED = Outcome(
    delivery_id=0,
    state=State.PENDING,
    reason=Reason.CHANGED,
    note="its file is no longer what was read: somebody has written to it since; what was being sent was broken off "
    "before its end, and the file is read again",
    reread=True,
)
_CHANGES = {
    "gone": Outcome(
        delivery_id=0,
        state=State.FAILED,
        reason=Reason.GONE,
        note="its file is no longer where it was taken in; put it back and `ingestd retry`, or drop the file again",
    ),
    "unreadable": Outcome(
        delivery_id=0,
        state=State.PENDING,
        reason=Reason.NOT_SENT,
        note="its file could not be read; it is read again before it is sent",
        reread=True,
    ),
}


def _file_changed(batch: Batch, error: FileChanged, terms: Terms) -> tuple[Outcome, ...]:
    """Take the changed file out; the end of its part never left, so no server can have stored that."""
    outcomes = []
    for index, part in enumerate(batch.parts):
        if index == error.part_index:
            outcomes.append(replace(_CHANGES.get(error.why, _CHANGED), delivery_id=part.delivery_id))
        elif error.body_bytes_left == 0:
            outcomes.append(_not_sent(part, "another file of its batch had changed before anything was sent"))
        else:
            # A server may keep the parts that were whole when the request broke off (AZURE.md 1.3).
            outcomes.append(_uncertain(part, terms, _unread(error), charge=False))
    return tuple(outcomes)


def _too_large(blank: BatchResult, batch: Batch) -> BatchResult:
    if len(batch.parts) > 1:
        note = "the post was too large for the server (413), which stored none of it; it is sent in smaller ones"
        outcomes = tuple(_not_sent(part, note, charge=True) for part in batch.parts)
        return replace(blank, outcomes=outcomes, charge_study=True, answered=True)
    (part,) = batch.parts
    failed = Outcome(
        delivery_id=part.delivery_id,
        state=State.FAILED,
        reason=Reason.TOO_LARGE,
        note=f"the server refuses a post of this file alone ({part.content.size_bytes:,} bytes) as too large (413); "
        "the file is kept: raise the limit of the server or of the proxy before it, then `ingestd retry`",
    )
    return replace(blank, outcomes=(failed,), answered=True)


def _refused_whole(blank: BatchResult, batch: Batch, error: Refused, terms: Terms) -> BatchResult:
    """Split a post that was refused whole until the instance that is to blame stands alone.

    Alone it stays PENDING: whether it is this file's fault is for ``give_up`` to decide, which sees what else happens.
    """
    alone = len(batch.parts) == 1
    why = f"the server refused the whole post with HTTP {error.status}"
    if alone and error.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE and can_be_reencoded(batch.parts[0], terms):
        outcomes: tuple[Outcome, ...] = (reencode(batch.parts[0], why),)
        return replace(blank, outcomes=outcomes, answered=True)
    ending = "it is tried again later" if alone else "it is sent again in smaller posts"
    outcomes = tuple(
        Outcome(
            delivery_id=part.delivery_id,
            state=State.PENDING,
            reason=Reason.REFUSED,
            note=f"{why}; {ending}",
            evidence=terms.evidence(part),
            charge=True,
            alone=alone,
        )
        for part in batch.parts
    )
    return replace(
        blank,
        outcomes=outcomes,
        charge_study=True,
        whole_batch_refused=True,
        content_refused=error.status == HTTPStatus.BAD_REQUEST and terms.present_before is not None,
        answered=True,
    )
