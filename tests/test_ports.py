from __future__ import annotations

import errno
import socket

import pytest

from tests.ports import own_port


def test_port_is_given_to_nobody_else_before_a_server_listens_there_or_after() -> None:
    """Another test's server was given it, and what waited for the one that was stopped was a CONFLICT there."""
    port = own_port()

    for _ in range(2):
        with socket.socket() as another, pytest.raises(OSError) as told:
            another.bind(("127.0.0.1", port))
        assert told.value.errno == errno.EADDRINUSE
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        socket.create_server(("127.0.0.1", port)).close()
