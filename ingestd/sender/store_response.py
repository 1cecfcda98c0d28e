"""From a Store Transaction's answer to one Outcome per instance (DESIGN.md 5.1; PS3.18 §10.5.3, Table I.2-2).

Only an instance that we asked about and the parsed answer names has a verdict. Every rule is a function of one part,
what the answer says of it, and whether it travelled alone: a verdict in a batch may be the batch's fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ingestd.dicomweb import Failed, Stored, StoreResult, failure_meaning
from ingestd.lifecycle import REENCODABLE, Batch, BatchResult, Outcome, Part, Reason, ServerKind, ServerProfile, State

PROCESSING_FAILURE = 0x0110  # 272
DUPLICATE_SOP_INSTANCE = 0x0111  # 273
REFERENCED_SOP_CLASS_NOT_SUPPORTED = 0x0122  # 290
TRANSFER_SYNTAX_NOT_SUPPORTED = 0x0137  # 311
ALREADY_EXISTS = 0xB00E  # 45070, AZURE.md 1.6
BEING_CREATED = 0xB00F  # 45071
OUT_OF_RESOURCES = range(0xA700, 0xA800)
DOES_NOT_MATCH_SOP_CLASS = range(0xA900, 0xAA00)
CANNOT_UNDERSTAND = range(0xC000, 0xD000)

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"

# 45071: somebody else's post is creating it, or a crash left it half created; asked for after 2 min, doubling to 1 h.
BEING_CREATED_LEAST = timedelta(minutes=2)
BEING_CREATED_MOST = timedelta(hours=1)
STUCK_AFTER = timedelta(days=1)
# A server may still be busy with a request whose answer we did not get; its rows are asked about a little later.
ASK_AFTER = timedelta(seconds=5)
# The feed brings a STORED row up by itself; only one that it has not shown by then is looked at for its own sake.
FEED_SHOWS_WITHIN = timedelta(seconds=5)
# So many 400s to posts of one file alone, by a server that answers searches for it, are the file's own fault.
_REFUSALS_OF_ONE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a verdict depends on beside the answer.

    ``present_before`` is what the query right before the post said, by entry id; None where none was made or it could
    not be answered. ``reencode_refused`` is ``implicit_vr: fallback``.
    """

    profile: ServerProfile
    reencode_refused: bool
    now: datetime
    present_before: Mapping[int, bool] | None = None

    def evidence(self, part: Part) -> dict[str, str]:
        """Say what is known about a part that the reconciler has to weigh."""
        if self.present_before is None or part.delivery_id not in self.present_before:
            return {}
        return {"present_before": "yes" if self.present_before[part.delivery_id] else "no"}


def judge_answer(batch: Batch, result: StoreResult, *, terms: Terms) -> BatchResult:
    """Give each part the Outcome that the answer amounts to; ``seconds`` and the like are the caller's to add."""
    alone = len(batch.parts) == 1
    unnamed = [part for part in batch.parts if _is_unnamed(part.identity.sop_uid, result)]
    nameless = _nameless_failures(unnamed, result) if unnamed else {}
    outcomes = []
    for part in batch.parts:
        uid = part.identity.sop_uid
        if part.delivery_id in nameless:
            outcomes.append(_failed(part, Failed(reason=nameless[part.delivery_id]), alone, terms))
        elif _is_unnamed(uid, result):
            outcomes.append(_no_verdict(part, alone, result, terms))
        elif uid in result.stored:
            outcomes.append(_stored(part, result.stored[uid], terms))
        else:
            outcomes.append(_failed(part, result.failed[uid], alone, terms))
    silent = len(unnamed) > len(nameless)
    return BatchResult(
        batch=batch,
        outcomes=tuple(outcomes),
        finished_at=terms.now,
        http_status=result.status,
        body_bytes_left=result.body_bytes_left,
        charge_study=silent,
        answered=True,
        silent=not result.is_module,
        error="the answer does not name every instance" if silent else "",
    )


def can_be_reencoded(part: Part, terms: Terms) -> bool:
    """Say whether the Explicit VR Little Endian copy is still to be tried."""
    return terms.reencode_refused and not part.reencoded and part.content.transfer_syntax in REENCODABLE


def reencode(part: Part, why: str) -> Outcome:
    """Ask for the Explicit VR Little Endian copy, which is then sent once."""
    syntax = "implicit VR" if part.content.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN else "big endian"
    return Outcome(
        delivery_id=part.delivery_id,
        state=State.PENDING,
        reason=Reason.REENCODED,
        note=f"{why}; the file is in {syntax}, so a lossless Explicit VR Little Endian copy is made and sent instead",
        alone=True,
        reencode=True,
    )


def give_up(result: BatchResult, *, others_succeed: bool = True, most_attempts: int = 10) -> BatchResult:
    """Turn a lone instance's failure into FAILED where it is this instance's fault.

    While the server stores other files (``others_succeed``) a whole post refused (400, 404, 406, 415) is final the
    second time for the one instance it held, and a temporary failure (272, A7xx) the ``most_attempts``th charged time.
    While it stores nothing else, the third 400 in a row is final where the server has each time just answered a search
    for this very instance, and does not have it. Anything else is left as it is.
    """
    if len(result.batch.parts) != 1 or result.outcomes[0].state is not State.PENDING:
        return result
    (part,), (outcome,) = result.batch.parts, result.outcomes
    if outcome.reencode:
        return result
    if result.whole_batch_refused:
        if not part.attempts:
            # It, or a proxy before it, may have stored what it refused: the next post is preceded by a query, or
            # answered that it is there already.
            return result
        absent = result.content_refused and outcome.evidence.get("present_before") == "no"
        if not others_succeed and not (absent and part.charged + 1 >= _REFUSALS_OF_ONE):
            return result
        while_it = "took others" if others_succeed else "answers searches, and does not have it"
        note = (
            f"the server refused the post of this file alone with HTTP {result.http_status}, while it {while_it}; "
            "the file is kept: see `ingestd explain`, then `ingestd retry` or `ingestd resolve --discard`"
        )
        reason = Reason.REFUSED
    elif others_succeed and outcome.charge and part.charged + 1 >= most_attempts:
        note = (
            f"the server failed on it {part.charged + 1} times while it stored other files; the file is kept: look at "
            "the server's log, then `ingestd retry`"
        )
        reason = Reason.SERVER_ERROR
    else:
        return result
    failed = replace(outcome, state=State.FAILED, reason=reason, note=note, wait=None, alone=False)
    return replace(result, outcomes=(failed,))


def _is_unnamed(uid: str, result: StoreResult) -> bool:
    # Named as stored and as failed is no verdict either.
    return uid in result.contradicted or (uid not in result.stored and uid not in result.failed)


def _nameless_failures(unnamed: list[Part], result: StoreResult) -> dict[int, int]:
    """Match failures without a UID with the parts that nothing names, where the counts leave no doubt.

    The service answers so for what it cannot parse (AZURE.md 1.5); its items are in the order of the
    parts. "Already there" without saying what is no ground for anything.
    """
    reasons = result.anonymous_failures
    silent = [part for part in unnamed if part.identity.sop_uid not in result.contradicted]
    if len(reasons) != len(silent) or any(reason in {ALREADY_EXISTS, BEING_CREATED} for reason in reasons):
        return {}
    return {part.delivery_id: reason for part, reason in zip(silent, reasons, strict=True)}


def _stored(part: Part, stored: Stored, terms: Terms) -> Outcome:
    warned = stored.warning_reason is not None
    return Outcome(
        delivery_id=part.delivery_id,
        state=State.STORED,
        reason=Reason.STORED_ANSWER,
        note=f"the server answered: {stored.meaning}; it is to be seen there" if warned else "",
        evidence=terms.evidence(part),
        warning_reason=stored.warning_reason,
        failed_attributes=stored.failed_attributes,
        wait=FEED_SHOWS_WITHIN if terms.profile.has_feed else timedelta(0),
    )


def _no_verdict(part: Part, alone: bool, result: StoreResult, terms: Terms) -> Outcome:  # noqa: FBT001 - a fact
    return Outcome(
        delivery_id=part.delivery_id,
        state=State.UNCERTAIN,
        reason=Reason.NO_VERDICT,
        note="it was posted, and the server's answer says nothing clear about it; the server is asked for it",
        evidence=terms.evidence(part),
        charge=True,
        # Only alone does an answer without names speak of this instance: so does Orthanc's to what it cannot parse.
        alone=not alone,
        unnamed=alone and result.is_module,
        wait=ASK_AFTER,
    )


def _failed(part: Part, failed: Failed, alone: bool, terms: Terms) -> Outcome:  # noqa: FBT001 - one of four facts
    code = failed.reason
    if code == ALREADY_EXISTS or (code == DUPLICATE_SOP_INSTANCE and terms.profile.kind is not ServerKind.AZURE):
        outcome = _already_there(part, failed, terms)
    elif code == BEING_CREATED:
        outcome = _being_created(part, alone, terms)
    elif alone and _may_be_encoding(code) and can_be_reencoded(part, terms):
        outcome = reencode(part, f"the server refused it alone with {_in_words(code)}")
    elif code == PROCESSING_FAILURE or code in OUT_OF_RESOURCES:
        outcome = _try_later(part, code, terms)
    else:
        outcome = _refused(part, code, alone)
    return replace(outcome, failure_reason=code, failed_attributes=failed.failed_attributes)


def _may_be_encoding(code: int) -> bool:
    """Say whether a server that cannot take a transfer syntax may say so with this reason."""
    return (
        code in DOES_NOT_MATCH_SOP_CLASS
        or code in CANNOT_UNDERSTAND
        or code in {PROCESSING_FAILURE, REFERENCED_SOP_CLASS_NOT_SUPPORTED, TRANSFER_SYNTAX_NOT_SUPPORTED}
    )


def _already_there(part: Part, failed: Failed, terms: Terms) -> Outcome:
    return Outcome(
        delivery_id=part.delivery_id,
        state=State.UNCERTAIN,
        reason=Reason.ALREADY_THERE,
        note=f"the server has an object with these UIDs already ({_in_words(failed.reason)}); its copy is compared "
        "with this file",
        evidence=terms.evidence(part),
        needs_content_check=True,
        wait=timedelta(0),
    )


def _being_created(part: Part, alone: bool, terms: Terms) -> Outcome:  # noqa: FBT001 - one of three facts
    stuck_for = terms.now - (part.being_created_since or terms.now)
    if alone and stuck_for >= STUCK_AFTER:
        return Outcome(
            delivery_id=part.delivery_id,
            state=State.FAILED,
            reason=Reason.STUCK_ON_SERVER,
            note="for a day the server has answered that it is just being created (B00FH): an upload that broke off "
            "has left half of it there, and only a DELETE clears that. If nobody else is sending it now, run "
            f"`ingestd dicomweb delete` with the UIDs that `ingestd explain {part.delivery_id}` shows, then "
            f"`ingestd retry {part.delivery_id}`",
        )
    # The time it has been so already is the next wait: that doubles.
    wait = min(max(stuck_for, BEING_CREATED_LEAST), BEING_CREATED_MOST)
    return Outcome(
        delivery_id=part.delivery_id,
        state=State.PENDING,
        reason=Reason.BEING_CREATED,
        note=f"the server answered that it is just being created by another request (B00FH); it is sent again, alone, "
        f"in {round(wait.total_seconds() / 60)} minutes",
        alone=True,
        wait=wait,
    )


def _try_later(part: Part, code: int, terms: Terms) -> Outcome:
    return Outcome(
        delivery_id=part.delivery_id,
        state=State.PENDING,
        reason=Reason.SERVER_ERROR,
        note=f"the server failed on it for now ({_in_words(code)}); it is sent again later",
        charge=True,
        # Only alone does the next verdict speak of this instance, and only alone may it be encoded anew.
        alone=part.charged > 0 or (_may_be_encoding(code) and can_be_reencoded(part, terms)),
    )


def _refused(part: Part, code: int, alone: bool) -> Outcome:  # noqa: FBT001 - one of three facts
    if not alone:
        return Outcome(
            delivery_id=part.delivery_id,
            state=State.PENDING,
            reason=Reason.REFUSED,
            note=f"the server refused it among others ({_in_words(code)}); it is sent once more, alone",
            alone=True,
        )
    return Outcome(
        delivery_id=part.delivery_id,
        state=State.FAILED,
        reason=Reason.REFUSED,
        note=f"the server refused it, sent alone, with {_in_words(code)}; the file is kept: `ingestd explain "
        f"{part.delivery_id}` shows the server's remarks, `ingestd retry {part.delivery_id}` sends it again",
    )


def _in_words(code: int) -> str:
    return f"{code} ({code:04X}H): {failure_meaning(code)}"
