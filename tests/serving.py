"""A daemon's one server, where a test has but one."""

from __future__ import annotations

from ingestd.daemon import Daemon
from ingestd.daemon.server_stages import ServerStages, ServerWorkers


def only_server(daemon: Daemon) -> ServerStages:
    """The stages of the one destination that a daemon has."""
    (server,) = daemon.stages.servers.values()
    return server


def only_workers(daemon: Daemon) -> ServerWorkers:
    """What talks to the one destination that a daemon has."""
    (workers,) = daemon.workers.servers.values()
    return workers
