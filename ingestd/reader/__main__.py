"""``python -m ingestd.reader``: a reader's child, started by Readers and of no use to anybody else."""

from __future__ import annotations

import sys

from ingestd.reader.child import main

sys.exit(main())
