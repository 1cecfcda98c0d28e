"""The sender: a Batch becomes one Store Transaction, and that becomes one Outcome per instance (PS3.18 §10.5).

It never sees the ledger: plain values in, plain values out. Workers read files and do HTTP; everything else is called
from the daemon's main thread and returns at once. ::

    sender = Sender(client, profile=None, wake=wake, utc_now=utc_now)
    sender.submit_probe() ; sender.collect_probe()      # finds the profile, or ends a pause; before that free is 0
    sender.prepare()                                    # before every claim: is a token at hand?
    if sender.free: sender.submit(batch)                # the adaptive limit on posts, minus those in flight
    ...                                                 # wake() is called, from another thread, when one has ended
    for result in sender.collect(): give_up(result)     # is a lone file's failure its own fault?
    sender.is_healthy() ; sender.close(grace)

Nothing raises because of the server: a result has an Outcome for each part, and the Pause that it means for the
destination. ``probe_profile`` asks at once, and raises DicomWebError.
"""

from ingestd.sender.failures import judge_failure
from ingestd.sender.profile import probe_profile, profile_of
from ingestd.sender.sender import ProbeResult, Sender
from ingestd.sender.store_response import Terms, give_up, judge_answer

__all__ = [
    "ProbeResult",
    "Sender",
    "Terms",
    "give_up",
    "judge_answer",
    "judge_failure",
    "probe_profile",
    "profile_of",
]
