"""An Azure DICOM service on a laptop, for tests, demos and first minutes.

``ingestd emulate`` runs it in front; ``with Emulator() as server:`` runs it in a thread. It is not for
patients' data and not for production. What it does follows the original open-source server's
source and end-to-end tests; the client in ``ingestd.dicomweb`` shares no code with it, so that the two cannot agree on
a mistake.

What the service does stands in ``AZURE.md``. The parts, lowest first; each imports only from those before it
(``tests/test_imports.py`` holds this):

    errors, settings, faults   how a request ends, what can be set, what goes wrong on request
    dicom                      files parsed, values, rules, DICOM JSON, transcoding; no index, no HTTP
    storage                    index and files; the store, removal, long-running operations; no HTTP
    http                       connections, requests, answers, Accept, multipart bodies
    services                   what clients ask for, one service a file
    routes, app, control, server            the routing table, the application, a running server
"""

from __future__ import annotations

from .control import CONTROL_HEADER
from .faults import Fault, FaultName, Faults, UnknownFault
from .server import Emulator, EmulatorFailed
from .settings import Flavour, Settings
from .storage.archive import reset
from .storage.request_log import read_log

__all__ = [
    "CONTROL_HEADER",
    "Emulator",
    "EmulatorFailed",
    "Fault",
    "FaultName",
    "Faults",
    "Flavour",
    "Settings",
    "UnknownFault",
    "read_log",
    "reset",
]
