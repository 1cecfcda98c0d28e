"""``python -m ingestd.reader``: a reader's child, started by a ReaderPool and of no use to anybody else."""

from __future__ import annotations

import json
import os
import sys

try:
    from ingestd.reader.child import main

    status = main()
except Exception as error:  # noqa: BLE001 - whatever it is, the parent learns its class and place, never its text
    from ingestd.error_location import location_of

    try:
        os.write(1, json.dumps({"n": 0, "x": location_of(error)}).encode("ascii") + b"\n")
    except OSError:  # it no longer listens
        pass
    status = 1
sys.exit(status)
