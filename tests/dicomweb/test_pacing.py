"""A client that is held to a rate: how fast bodies leave, and that no deadline takes the wait for the server's."""

from __future__ import annotations

import io
import os
import threading
from datetime import timedelta

import pytest

from ingestd.clocks import boottime
from ingestd.dicomweb import DicomWebClient, Timeouts
from ingestd.emulator import Emulator
from tests.builders import fresh_uid, instance_bytes


@pytest.fixture(scope="module")
def emulator():
    with Emulator() as server:
        yield server


def instance(size: int) -> io.BytesIO:
    return io.BytesIO(
        instance_bytes(study_uid=fresh_uid(1), series_uid=fresh_uid(2), sop_uid=fresh_uid(3), pixels=os.urandom(size))
    )


def test_body_leaves_at_its_rate_in_small_pieces(emulator):
    left: list[float] = []
    with DicomWebClient(emulator.url, rate=1_000_000) as client:
        began = boottime()
        result = client.store([instance(1_000_000)], on_bytes=lambda _: left.append(boottime()))

    assert len(result.stored) == 1
    assert 0.8 < boottime() - began < 3


def test_threads_share_one_rate(emulator):
    with DicomWebClient(emulator.url, rate=1_000_000) as client:
        posts = [threading.Thread(target=client.store, args=([instance(300_000)],)) for _ in range(4)]
        began = boottime()
        for post in posts:
            post.start()
        for post in posts:
            post.join()

    assert 1.0 < boottime() - began < 4


def test_waiting_for_the_line_is_not_the_servers_slowness(emulator):
    """By its deadlines alone the post would end after half a second, with a cut connection."""
    timeouts = Timeouts(total=timedelta(seconds=0.4), min_rate=10_000_000)
    with DicomWebClient(emulator.url, rate=200_000, timeouts=timeouts) as client:
        began = boottime()
        result = client.store([instance(300_000)])

    assert len(result.stored) == 1
    assert boottime() - began > 1.2


def test_idle_line_is_made_up_for_by_no_more_than_a_moment(emulator):
    with DicomWebClient(emulator.url, rate=400_000) as client:
        client.store([instance(1000)])
        threading.Event().wait(1.0)
        began = boottime()
        client.store([instance(400_000)])

    assert boottime() - began > 0.8


def test_what_goes_at_once_is_held_to_no_rate(emulator):
    with DicomWebClient(emulator.url, rate=10_000) as client:
        began = boottime()
        client.store([instance(500_000)], at_once=True)

    assert boottime() - began < 10


def test_rate_is_at_least_one_byte_a_second():
    with pytest.raises(ValueError, match="at least one byte"):
        DicomWebClient("http://127.0.0.1:1/v2", rate=0)
