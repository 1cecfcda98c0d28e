"""sd_notify over a real socket."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from ingestd.daemon.notify import Notifier


def test_says_nothing_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)

    notifier = Notifier()
    notifier.ready("watching")

    assert notifier.watchdog_interval is None


def test_ready_watchdog_and_stopping_reach_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

        notifier = Notifier()
        notifier.ready("watching")
        notifier.alive()
        notifier.stopping()

        assert notifier.watchdog_interval == timedelta(seconds=1)
        assert ear.recv(4096) == b"READY=1\nSTATUS=watching"
        assert ear.recv(4096) == b"WATCHDOG=1"
        assert ear.recv(4096).startswith(b"STOPPING=1\n")


def test_start_that_takes_longer_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = (Path(__file__).parents[2] / "systemd" / "ingestd.service").read_text()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        Notifier().starting("bringing the ledger up to date")

        assert ear.recv(4096) == b"EXTEND_TIMEOUT_USEC=900000000\nSTATUS=bringing the ledger up to date"
    assert "TimeoutStartSec=15min\n" in unit


def test_children_do_not_inherit_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")

    Notifier()

    assert "NOTIFY_SOCKET" not in os.environ


def test_listener_that_takes_nothing_in_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon whose service manager had stopped listening hung in its eleventh line of status, SIGTERM or not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            other.connect(str(tmp_path / "notify"))
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.send(b"STATUS=full")
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        Notifier().status("one more")


def test_lost_listener_does_not_stop_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")

    Notifier().alive()
