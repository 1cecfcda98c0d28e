"""Jobs on threads of their own: what was submitted comes back, whatever it does, and nobody waits for it."""

from __future__ import annotations

import threading
import time

import pytest

from ingestd.threads import NoThread
from ingestd.workers import Workers
from tests.patience import PATIENCE


def collected(workers: Workers[int], count: int, limit: float = PATIENCE) -> list[int]:
    """Collect until so many results came."""
    came: list[int] = []
    end = time.monotonic() + limit
    while len(came) < count:
        assert time.monotonic() < end, f"only {len(came)} came"
        came += workers.collect()
        time.sleep(0.001)
    return came


def test_results_come_in_the_order_of_the_jobs_and_each_wakes():
    woken: list[int] = []
    workers = Workers[int]("test", wake=lambda: woken.append(1))
    for number in range(100):
        workers.submit(lambda number=number: number)

    assert workers.in_flight == 100
    assert collected(workers, 100) == list(range(100))
    assert workers.in_flight == 0
    workers.close(10)
    assert len(woken) == 100


def test_without_threads_a_job_is_done_when_it_is_submitted():
    workers = Workers[int]("test", wake=lambda: None, threads=0)

    workers.submit(threading.get_ident)

    assert workers.collect() == [threading.get_ident()]
    assert workers.is_healthy()


def test_what_a_job_raises_is_raised_where_it_is_collected_and_the_worker_lives():
    workers = Workers[int]("test", wake=lambda: None)
    workers.submit(lambda: 1)
    workers.submit(lambda: 1 // 0)
    workers.submit(lambda: 3)

    assert collected(workers, 1) == [1]
    with pytest.raises(ZeroDivisionError):
        collected(workers, 1)
    assert collected(workers, 1) == [3]
    assert workers.is_healthy()
    workers.close(10)


def test_a_job_that_hangs_holds_up_neither_the_others_nor_the_end():
    stuck = threading.Event()
    workers = Workers[int]("test", wake=lambda: None, threads=2)
    workers.submit(lambda: stuck.wait(60))
    workers.submit(lambda: 2)

    assert collected(workers, 1) == [2]
    began = time.monotonic()
    workers.close(0.05)
    assert time.monotonic() - began < 5
    assert workers.in_flight == 1
    stuck.set()
    assert collected(workers, 1) == [True]


def test_without_a_thread_to_be_had_the_jobs_wait_for_one(monkeypatch: pytest.MonkeyPatch):
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    workers = Workers[int]("test", wake=lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        patch.setattr("ingestd.threads._TRY_SECONDS", 0.0)
        workers.submit(lambda: 1)

        assert workers.collect() == []
        with pytest.raises(NoThread):
            workers.start()

    assert collected(workers, 1) == [1]
    workers.close(10)


def test_a_simulation_runs_the_jobs_of_all_in_the_order_it_likes(monkeypatch: pytest.MonkeyPatch):
    held = []
    monkeypatch.setattr(Workers, "hand_over", lambda workers, job: held.append((workers, job)))
    one, other = Workers[int]("one", wake=lambda: None), Workers[int]("other", wake=lambda: None, threads=0)
    one.submit(lambda: 1)
    other.submit(lambda: 2)
    one.submit(lambda: 3)

    for workers, job in reversed(held):
        workers.run(job)

    assert one.collect() == [3, 1]
    assert other.collect() == [2]
    assert "one" not in {thread.name for thread in threading.enumerate()}
