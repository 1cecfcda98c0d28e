"""Two faults that ingestd once had, put back on demand: what looks for faults has to find these.

``plan``: what is written is planned by rows as they were read before the transaction, and an answer is written without
a look at the row that it is about, as that is by then. ``post``: a batch is posted before its attempt is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ingestd.clocks import Now
from ingestd.daemon import verification
from ingestd.daemon.posting import Posting
from ingestd.daemon.verification import Verification
from ingestd.daemon.verification_round import Round
from ingestd.ledger import Transaction, queries

_ROWS_MOST = 10_000


@contextmanager
def plan_over_newer_knowledge() -> Iterator[None]:
    """Judge by what was read before the transaction."""
    collect = Verification.collect
    read: dict[int, list[Any]] = {}  # by the destination

    def collected(stage: Verification, now: Now) -> None:
        collect(stage, now)
        read[stage._ledger.destination_id] = queries.unproven(stage._ledger, now=now.utc, limit=_ROWS_MOST)

    def remembered(reader: Any, **_: Any) -> list[Any]:
        return list(read[reader.destination_id])

    stale = SimpleNamespace(**{**vars(queries), "unproven": remembered})
    with ExitStack() as stack:
        stack.enter_context(patch.object(Verification, "collect", collected))
        stack.enter_context(patch.object(verification, "queries", stale))
        stack.enter_context(patch.object(Round, "as_it_is", lambda _, asked: asked))
        stack.enter_context(patch.object(Round, "was_woken", lambda *_: False))
        yield


@contextmanager
def post_before_commit() -> Iterator[None]:
    """Let a batch leave while its attempt may still be rolled back."""
    on_commit = Transaction.on_commit

    def registered(tx: Transaction, act: Callable[[], object]) -> None:
        if isinstance(act, partial) and getattr(act.func, "__func__", None) is Posting._committed:
            act()
        else:
            on_commit(tx, act)

    with patch.object(Transaction, "on_commit", registered):
        yield


OLD_FAULTS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "plan": plan_over_newer_knowledge,
    "post": post_before_commit,
}
