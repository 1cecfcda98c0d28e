"""A ledger in PostgreSQL with as many rows as wanted, and what it then takes to ask and to start.

Rows are copied within the database, as if their files had come again in other studies: without indexes, which are made
once behind them. Ten million take some ten minutes and 20 GB.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import psycopg

from ingestd.ledger import Ledger, baseline, queries
from ingestd.ledger.moving import _KEPT_FOR_ROWS
from ingestd.ledger.schema import metadata
from tests.running import Site

_TIMES = 5
# What differs in a copy; {k} is which one it is, {rows} and {studies} how many there were before.
_STUDY = "study_id + {k} * {studies}"
_DIFFERS = {
    "study": {"id": "id + {k} * {studies}", "uid": "uid || '.' || {k}"},
    "file": {
        "id": "id + {k} * {rows}",
        "study_id": _STUDY,
        "path": "int8send(id + {k} * {rows}) || substr(path, 9)",
    },
    "delivery": {
        "id": "id + {k} * {rows}",
        "file_id": "file_id + {k} * {rows}",
        "study_id": _STUDY,
        # It begins with its study.
        "identity": "int8send(study_id + {k} * {studies}) || substr(identity, 9)",
    },
    "history": {"file_id": "file_id + {k} * {rows}", "delivery_id": "delivery_id + {k} * {rows}"},
    "study_sum": {"study_id": _STUDY},
    "study_label": {"study_id": _STUDY},
}


def multiply(url: str, times: int) -> None:
    """Have so many times the rows that are there."""
    with psycopg.connect(url, autocommit=True) as there:
        there.execute("SET session_replication_role = replica")
        there.execute("SET maintenance_work_mem = '1GB'")
        asked = "SELECT (SELECT max(id) FROM file), (SELECT max(id) FROM study)"
        ((rows, studies),) = there.execute(asked).fetchall()
        left_out = there.execute(_KEPT_FOR_ROWS).fetchall()
        for goes, _ in left_out:
            there.execute(goes)
        for table, differs in _DIFFERS.items():
            names = [column.name for column in metadata.tables[table].columns]
            if table == "history":
                names.remove("id")  # which the database gives out
            chosen = ", ".join(differs.get(name, name) for name in names).format(k="k", rows=rows, studies=studies)
            copies = f"SELECT {chosen} FROM {table}, generate_series(1, {times - 1}) AS k"
            there.execute(f"INSERT INTO {table} ({', '.join(names)}) {copies}")
        there.execute("UPDATE state_count SET entries = entries * %s, size_bytes = size_bytes * %s", [times, times])
        for _, comes in left_out:
            there.execute(comes)


def settle(url: str) -> None:
    """Have numbers go on behind the rows, and the server know how they are spread."""
    with psycopg.connect(url, autocommit=True) as there:
        for name in baseline.NUMBERED:
            there.execute(f"SELECT setval('{name}_number', (SELECT coalesce(max(id), 0) + 1 FROM {name}))")
        there.execute("SELECT setval(pg_get_serial_sequence('history', 'id'), (SELECT max(id) + 1 FROM history))")
        there.execute("VACUUM (ANALYZE)")
        there.execute("CHECKPOINT")


def look(url: str, folder: Path, server: str) -> str:
    """Say how long `ingestd status` takes, what of that the ledger takes, and a daemon from start to READY; medians."""
    site = Site(folder / "site", server, spool={"path": str(folder / "spool")}, ledger=url)
    asked, told, ready = [], [], []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        assert site.command("status", env={}).returncode == 0
        told.append(time.perf_counter() - begun)
        with Ledger.open(url, read_only=True) as ledger:
            begun = time.perf_counter()
            queries.status(ledger)
            asked.append(time.perf_counter() - begun)
        with site.start(wait=False) as daemon:
            ready.append(daemon.wait_ready(within_seconds=120))
            daemon.terminate(within_seconds=60)
    in_all, of_it, until_ready = map(statistics.median, (told, asked, ready))
    return f"ingestd status in {in_all:.2f} s, of which the ledger takes {of_it:.3f} s; READY in {until_ready:.2f} s"
