"""The bell that the loop waits for."""

from __future__ import annotations

import threading
import time

from ingestd.daemon.loop import Wake


def test_ring_is_heard_whenever_it_comes():
    """A ring between two looks at the bell once left its mark set and its token gone: the loop was deaf from then on,
    and lived by its clocks alone."""
    wake = Wake()
    ended = threading.Event()

    def ring() -> None:
        while not ended.is_set():
            wake()

    ringers = [threading.Thread(target=ring) for _ in range(3)]
    for ringer in ringers:
        ringer.start()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        wake.wait(0.01)
    ended.set()
    for ringer in ringers:
        ringer.join()
    while wake.wait(0):
        pass

    wake()

    assert wake.wait(0)
