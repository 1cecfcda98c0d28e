"""The daemon: wires the rooms and is the only one that sees them all.

``stage`` says what a stage is and ``build`` joins them; ``loop`` turns them. A file's way in: ``admission`` (``steps``,
``judgement``, ``next_steps``), then ``posting``; its way back: ``verification``; at last ``retention`` and
``source_removal``. ``service`` runs the loop under signals and systemd, ``single_run`` once. Where several share a
spool, ``membership`` keeps which part of the work is ours (``assignment``).
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
