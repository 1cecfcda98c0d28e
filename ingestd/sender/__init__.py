"""The sender: a Batch becomes one Store Transaction, and that becomes one Outcome per instance (PS3.18 §10.5).

It never sees the ledger: plain values in, plain values out. Worker threads read files and do HTTP; everything else
is called from the daemon's main thread and returns at once.

Sender(client, *, profile: ServerProfile | None, wake, utc_now, most_posts=8, reencode_refused=True, file_meta=None)
    profile: None until the server was asked; a probe finds it. wake: called with nothing, from a worker, whenever
    something can be collected. reencode_refused: ``implicit_vr: fallback``. file_meta: what makes preamble and File
    Meta for a Part with ``generated_meta`` (``ingestd.instance.file_meta_for`` behind a lambda).
sender.profile                        readable and settable; ``free`` is 0 while it is None
sender.free -> int                    posts that may be submitted now: the adaptive limit minus those in flight
sender.in_flight -> int
sender.limit -> int                   the adaptive limit: 2 at first, +1 while it helps, halved on 429, 503, deadlines
sender.prepare() -> bool | Pause      before every claim: True = a token is at hand; False = being fetched, ``wake``
                                      follows; a Pause = it could not be had (said once, then fetched anew)
sender.submit(batch) -> None          needs ``free`` > 0
sender.collect() -> list[BatchResult]                 never blocks
sender.submit_probe() -> None         the cheap authenticated GET that ends a pause half-open, and the profile
sender.collect_probe() -> ProbeResult | None          .pause: None = it works; .profile: set where it was found now
sender.is_healthy() -> bool           every worker lives and none is past every deadline
sender.close(grace: timedelta) -> int                 how many posts were given up: their rows stay SENDING

probe_profile(client) -> ServerProfile                asks the server; raises DicomWebError
profile_of(kind, *, feed_version=None) -> ServerProfile               where the configuration says the kind
give_up(result: BatchResult, *, others_succeed=True, most_attempts=10) -> BatchResult
    what the daemon applies to each result: while others succeed, a lone instance whose whole post was refused becomes
    FAILED ``refused``, and one that met 272 for the ``most_attempts``th charged time FAILED ``server_error``; while
    nothing else does, only what a server that answers searches for it refused three times becomes FAILED.
    (UNCERTAIN rows: ``reconciler.judge_presence(..., give_up=True)`` does the same once they are proven absent.)
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
