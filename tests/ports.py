"""TCP ports of the loopback interface that are a test's own, also while nothing listens there."""

from __future__ import annotations

import socket

_kept: list[socket.socket] = []


def own_port() -> int:
    """A port that the kernel gives to nobody else until this process ends; a server that is told of it may listen.

    Until one does, connections are refused. It has to set SO_REUSEADDR, as servers do.
    """
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("127.0.0.1", 0))
    _kept.append(place)
    return int(place.getsockname()[1])
