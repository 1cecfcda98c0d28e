"""kill -9, over and over, with files arriving all the while: ``python -m tests.torture --kills N --seed S``.

The daemon is killed in phases seen from outside (its ledger, its spool, the server's own request log), so that every
half-done thing is met half done. Afterwards an independent count decides: nothing lost, nothing confirmed falsely,
every file accounted for, and no second send without evidence that the first had not arrived.

Two servers, an embedded one and a real Orthanc, one of them killed and frozen meanwhile: ``--two archive | research``
(``servers.py``).

System calls that fail, one of them at a time: ``python -m tests.torture --faults N --seed S`` (``failing.py``).
"""
