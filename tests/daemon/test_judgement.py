"""Every verdict of a reader leads to a reason to refuse a file, or is known never to."""

from __future__ import annotations

import pytest

from ingestd.daemon.judgement import reason_of
from ingestd.lifecycle import Reason
from ingestd.reader import Verdict

NO_REFUSAL = {Verdict.WHOLE, Verdict.CHANGED, Verdict.UNREADABLE}
REASONS = {
    Verdict.SHORT: Reason.TRUNCATED,
    Verdict.EMPTY: Reason.TRUNCATED,
    Verdict.ZEROS: Reason.TRUNCATED,
    Verdict.NOT_DICOM: Reason.NOT_DICOM,
    Verdict.DICOMDIR: Reason.DICOMDIR,
    Verdict.ARCHIVE: Reason.ARCHIVE,
    Verdict.HOSTILE: Reason.HOSTILE,
    Verdict.NO_UIDS: Reason.NO_UIDS,
}


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_has_its_reason_or_refuses_nothing(verdict: Verdict):
    if verdict in NO_REFUSAL:
        with pytest.raises(KeyError):
            reason_of(verdict, was_admitted=False)
    else:
        assert reason_of(verdict, was_admitted=False) is REASONS[verdict]
