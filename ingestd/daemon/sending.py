"""``ingestd send``: which inboxes stand for the paths a person named, and which spool the run works in.

``send`` is ``run --once`` over ``in_place`` inboxes, on the same ledger, with a spool id and lock of its own under
``<spool>/send``, so that it runs beside the daemon. An inbox is named after its folder: a second ``send`` of the same
folder, or of one file in it, finds what the first one recorded and goes on where it stopped.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

from ingestd.config import Config, Inbox
from ingestd.daemon import settings
from ingestd.inbox import InboxPolicy, Take, Watch
from ingestd.ledger import KnownSource, Ledger, moves, queries
from ingestd.lifecycle import SourceStat

_SETTLE = timedelta(milliseconds=500)
# A person waits: what is short and stays so for this long is told, not waited for.
_INCOMPLETE_AFTER = timedelta(seconds=5)
_ASKED_AT_ONCE = 1000


def sending_config(config: Config) -> Config:
    """Give ``send`` the configuration's destination and ledger, and a spool of its own."""
    spool = config.spool.model_copy(update={"path": config.spool.for_send})
    return config.model_copy(update={"spool": spool})


def sending_policies(paths: Sequence[Path]) -> tuple[InboxPolicy, ...]:
    """Make one ``in_place`` inbox a folder: whole for folders that were named, single files for the others.

    Files and folders inside a folder that was named are part of it. Raises FileNotFoundError for a path that is not
    there.
    """
    wanted = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - a link stays the person's own way
    for path in wanted:
        path.lstat()
    folders = sorted({path for path in wanted if path.is_dir()})
    folders = [folder for folder in folders if not any(other in folder.parents for other in folders)]
    files: dict[Path, set[str]] = {}
    for path in wanted:
        if path.is_dir() or any(folder in path.parents for folder in folders):
            continue
        files.setdefault(path.parent, set()).add(path.name)
    whole = [_policy(folder, only=None) for folder in folders]
    single = [_policy(folder, only=frozenset(names)) for folder, names in sorted(files.items())]
    return tuple(whole + single)


def once_policies(config: Config) -> tuple[InboxPolicy, ...]:
    """Give the configured inboxes with the short patience of a single run."""
    return tuple(
        replace(policy, incomplete_after=min(policy.incomplete_after, _INCOMPLETE_AFTER))
        for policy in settings.policies_of(config)
    )


def not_taken_in(ledger: Ledger, policies: Sequence[InboxPolicy], paths: Sequence[Path]) -> tuple[str, ...]:
    """Say of which of the paths that a person named the ledger knows nothing as it lies there now."""
    wanted = dict.fromkeys(os.path.abspath(path) for path in paths)  # noqa: PTH100 - a link stays the person's own way
    return tuple(path for path in wanted if not _is_any_known(ledger, policies, path))


def send_known(
    ledger: Ledger,
    policies: Sequence[InboxPolicy],
    paths: Sequence[Path],
    to: Sequence[str],
    agreement: Mapping[str, str],
) -> None:
    """Have what was sent from these paths before, and lies there as it did, go to these destinations as well.

    Raises LedgerDiffers where all have agreed upon another configuration than ``agreement``.
    """
    chosen = settings.route_to(to)
    for path in dict.fromkeys(os.path.abspath(path) for path in paths):  # noqa: PTH100 - a link stays as it was given
        policy = _policy_of(policies, path)
        files = _files_under(path)
        while known := list(_known(ledger, policy, islice(files, _ASKED_AT_ONCE))):
            read = [row.file_id for row in known if row is not None and row.digests is not None]
            with ledger.transaction() as tx:
                tx.expect_agreed(agreement)
                moves.route_again(tx, read, chosen, also=True, now=ledger.clock.utc())


def _policy_of(policies: Sequence[InboxPolicy], path: str) -> InboxPolicy:
    return next(each for each in policies if Path(path).is_relative_to(each.path) and _is_in(each, path))


def _known(
    ledger: Ledger, policy: InboxPolicy, files: Iterable[tuple[str, os.stat_result]]
) -> Iterator[KnownSource | None]:
    """Give, of each of these files, the row that knows it as it lies there."""
    below = {os.path.relpath(file, policy.path): SourceStat.of(seen) for file, seen in files}
    known = queries.known_sources(ledger, policy.name, below)
    for name, seen in below.items():
        yield next((row for row in known.get(name, ()) if seen.looks_like(row.source)), None)


def _is_any_known(ledger: Ledger, policies: Sequence[InboxPolicy], path: str) -> bool:
    policy = _policy_of(policies, path)
    files = _files_under(path)
    while known := list(_known(ledger, policy, islice(files, _ASKED_AT_ONCE))):
        if any(row is not None for row in known):
            return True
    if os.path.lexists(path):
        return False
    # It left meanwhile: what was known of it is all that can be.
    return bool(queries.known_sources(ledger, policy.name, [os.path.relpath(path, policy.path)]))


def _is_in(policy: InboxPolicy, path: str) -> bool:
    return policy.only is None or os.path.relpath(path, policy.path) in policy.only


def _files_under(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Give the regular files at a path, or below it where it is a folder; a link is none."""
    files = (
        (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)  # noqa: PTH118
        if os.path.isdir(path)  # noqa: PTH112 - these are strings for a million files
        else iter([path])
    )
    for file in files:
        try:
            seen = os.lstat(file)
        except OSError:
            continue
        if stat.S_ISREG(seen.st_mode):
            yield file, seen


def _policy(folder: Path, *, only: frozenset[str] | None) -> InboxPolicy:
    return InboxPolicy(
        name=Inbox(path=folder).spool_name,
        path=folder,
        take=Take.IN_PLACE,
        settle=_SETTLE,
        by_ctime=True,
        incomplete_after=_INCOMPLETE_AFTER,
        watch=Watch.POLL,
        only=only,
    )
