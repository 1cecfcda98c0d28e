"""The rates of CT and of small images when far more of them come: caches are full, and the ledger is not new."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.benchmarks.files import make_ct, make_small
from tests.benchmarks.lines import Line, rate_lines
from tests.benchmarks.measures import Bench

CT_FILES_A_STUDY = 250
SMALL_FILES_A_STUDY = 50


def sustained_lines(bench: Bench) -> tuple[list[Line], Any]:
    ct, small = bench._sizes.sustained_ct_files, bench._sizes.sustained_small_files
    # One turn: each takes longer than what makes short ones differ.
    once = Bench(bench._folder, dataclasses.replace(bench._sizes, repeat=1), say=bench._say, orthanc=bench._orthanc)
    found = {
        "CT": once._rates(f"{ct} CT", lambda folder: make_ct(folder, files=ct, studies=ct // CT_FILES_A_STUDY or 1)),
        "small": once._rates(
            f"{small} small", lambda folder: make_small(folder, files=small, studies=small // SMALL_FILES_A_STUDY)
        ),
    }
    return [
        *rate_lines(f"{ct} CT", found["CT"], chain=4.0, loop=1.4),
        *rate_lines(f"{small} small", found["small"], chain=6.0, loop=2.5),
    ], found
