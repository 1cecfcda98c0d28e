"""The daemon: wires the rooms and is the only one that sees them all.

``loop`` turns; ``intake``, ``dispatch``, ``proof``, ``rework`` and ``housekeeping`` each marry some rooms for one part
of a file's way; ``service`` runs the loop under signals and systemd, once or for ever.
"""

from ingestd.daemon.daemon import Daemon
from ingestd.daemon.sending import once_policies, sending_config, sending_policies
from ingestd.daemon.service import run_forever, tell_crash
from ingestd.daemon.single_run import OnceResult, run_once

__all__ = [
    "Daemon",
    "OnceResult",
    "once_policies",
    "run_forever",
    "run_once",
    "sending_config",
    "sending_policies",
    "tell_crash",
]
