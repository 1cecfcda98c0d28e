"""A server and two gateways of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.fleet.gateways import Gateways, gateways, through
from tests.postgres import Cluster
from tests.wire import Wire


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as running:
        yield running


@pytest.fixture
def both(tmp_path: Path, server: Emulator, database: str) -> Iterator[Gateways]:
    """Gateways that are connected to the ledger directly."""
    with gateways(tmp_path, server, database) as found:
        yield found


@pytest.fixture
def wire(cluster: Cluster) -> Iterator[Wire]:
    with Wire(cluster.port) as running:
        yield running


@pytest.fixture
def wired(tmp_path: Path, server: Emulator, database: str, wire: Wire) -> Iterator[Gateways]:
    """Gateways that reach the ledger by the wire."""
    with gateways(tmp_path, server, database, by=through(database, wire.port)) as found:
        yield found
