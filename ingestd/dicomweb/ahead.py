"""The next item made while the caller works on the last: files are read while others are on their way to a server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ingestd import threads

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Give the items in their order, one made ahead in a thread; what making them raises is raised in its place.

    The thread ends with the items, or after the one it is at when the iterator is closed.
    """
    # An item, or how it ended.
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(1)
    is_closed = threading.Event()

    def make() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                ready.put((item,))
                if is_closed.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            end = error
        ready.put(end)

    try:
        threads.start(threading.Thread(target=make, name="ahead", daemon=True))
    except threads.NoThread:
        yield from items
        return
    try:
        while isinstance(made := ready.get(), tuple):
            yield made[0]
    finally:
        is_closed.set()
        while not ready.empty():
            ready.get()  # room for what is made now: it is the last
    if made is not None:
        raise made
