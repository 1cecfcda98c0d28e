"""The bell that the loop waits for."""

from __future__ import annotations

import sys
import threading
import time

from ingestd.daemon.loop import Wake


def test_ring_is_heard_whenever_it_comes():
    """A mark without a token would leave the loop deaf for good, living by its clocks alone."""
    wake = Wake()
    until = time.monotonic() + 0.3

    def ring() -> None:
        while time.monotonic() < until:
            wake()

    ringers = [threading.Thread(target=ring) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for ringer in ringers:
            ringer.start()
        while time.monotonic() < until:
            wake.wait(0.01)
        for ringer in ringers:
            ringer.join()
    finally:
        sys.setswitchinterval(interval)
    while wake.wait(0):
        pass

    wake()

    assert wake.wait(0)
