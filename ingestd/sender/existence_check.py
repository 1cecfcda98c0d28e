"""One query right before a post, for servers that do not refuse duplicates: what of it is there already."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from ingestd.dicomweb import DicomWebClient, Refused, Unavailable, Unintelligible, uid_of
from ingestd.lifecycle import Batch, Identity, Outcome, Part, Reason, State
from ingestd.outages import stops_queries
from ingestd.sender.store_response import Terms


def ask_present(client: DicomWebClient, batch: Batch) -> dict[int, bool] | None:
    """Say by entry id which parts the server has before they are posted; None if it cannot tell.

    Raises the DicomWebErrors that would also keep the post from being made (Unavailable, NotAuthorized,
    MisconfiguredServer).
    """
    wanted = {part.identity: part.delivery_id for part in batch.parts}
    present = dict.fromkeys(wanted.values(), False)
    series = {identity.series_uid for identity in wanted}
    filters = None if len(wanted) > 1 else {"SOPInstanceUID": next(iter(wanted)).sop_uid}
    only_series = series.pop() if len(series) == 1 else None
    try:
        found = client.find_instances(filters, study_uid=batch.study_uid, series_uid=only_series)
        for item in found:
            delivery_id = wanted.pop(
                Identity(
                    study_uid=batch.study_uid,
                    series_uid=only_series or uid_of(item, "SeriesInstanceUID"),
                    sop_uid=uid_of(item, "SOPInstanceUID"),
                ),
                None,
            )
            if delivery_id is not None:
                present[delivery_id] = True
            if not wanted:
                break
    except (Refused, Unintelligible):
        return None
    except Unavailable as error:
        # A search that fails by itself (500, 504) must not keep the post from being made; a server that is not there,
        # is busy or does not let us in would not take the post either.
        if stops_queries(error):
            raise
        return None
    return present


def leave_out_what_is_there(batch: Batch, terms: Terms) -> tuple[Batch, tuple[Outcome, ...]]:
    """Take out of a batch what was attempted before and is on the server now, whatever was answered then.

    Such a server, or a proxy before it, may have stored what it refused. Its copy is compared instead.
    """
    present = terms.present_before or {}
    posted: list[Part] = []
    outcomes: list[Outcome] = []
    for part in batch.parts:
        if not part.attempts or part.replaces or not present.get(part.delivery_id, False):
            posted.append(part)
            continue
        outcomes.append(
            Outcome(
                delivery_id=part.delivery_id,
                state=State.UNCERTAIN,
                reason=Reason.ALREADY_THERE,
                note="it was posted before, and the server has an object with these UIDs now: it is not posted again, "
                "the server's copy is compared with this file",
                evidence=terms.evidence(part),
                needs_content_check=True,
                wait=timedelta(0),
            )
        )
    return replace(batch, parts=tuple(posted)), tuple(outcomes)
