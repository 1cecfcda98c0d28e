"""What ``ingestd check`` looks at. Each check yields results and never raises; nothing here changes anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from ingestd.config import Config, Destination
from ingestd.lifecycle import left_behind, takes_all

from .asker import become, how_to_start, owner_of, user_name
from .check_folders import disk, folders_apart, inbox_taken_from, spool, watching
from .check_result import CheckResult, bad, no_permission, note, ok
from .check_server import access_of_others, secrets, server, tls
from .common import ExitCode
from .held import in_words
from .output import counted
from .working import AtWork, at_work


def check_all(config: Config, *, for_start: bool) -> Iterator[CheckResult]:
    """Look at everything, in the order a file meets it."""
    yield ok("config", f"{config.file}: every key is known and every value fits")
    work, away = _who_works(config)
    yield from _guarded("config", access_of_others, "config", config.file, config)
    yield from _rules(config)
    yield from _guarded("user", _user, config, work, for_start=for_start)
    for inbox in config.inboxes:
        yield from _guarded("inbox", inbox_taken_from, inbox, config)
    yield from _guarded("inboxes", folders_apart, config, for_start=for_start)
    yield from _guarded("spool", _spool, config, is_away=away is not None)
    yield from _guarded("disk", disk, config)
    if away is not None:
        yield bad("database", str(away), "ingestd starts, and waits for it", code=ExitCode.TIMEOUT)
    else:
        yield from _guarded("ledger", _ledger, config, work)
    yield from _guarded("watching", watching, config)
    for name, destination in config.destinations.items():
        for result in _destination(destination, config, for_start=for_start):
            yield replace(result, destination=name) if len(config.destinations) > 1 else result


def _who_works(config: Config) -> tuple[AtWork | None, Exception | None]:
    """Say who works, None where it cannot be told; and why the ledger does not answer just now, if that is why."""
    from ingestd.ledger import LedgerAway, LedgerError

    try:
        return at_work(config), None
    except LedgerAway as error:
        return None, error
    except LedgerError:
        return None, None  # as is told of the ledger


def _destination(destination: Destination, config: Config, *, for_start: bool) -> Iterator[CheckResult]:
    in_the_way = False
    for result in (*_guarded("auth", secrets, destination, config), *_guarded("tls", tls, destination)):
        in_the_way = in_the_way or result.result == "bad"
        yield result
    for key, words in in_words(destination, datetime.now(UTC)):
        yield ok(key, words)
    if for_start:
        return
    if in_the_way:
        yield note("server", "not asked before auth and tls are mended")
    else:
        yield from _guarded("server", server, destination)


def _guarded(
    name: str, check: Callable[..., Iterator[CheckResult]], *about: object, **how: bool
) -> Iterator[CheckResult]:
    try:
        yield from check(*about, **how)
    except PermissionError as error:
        yield no_permission(name, str(error.filename or "a folder on the way"))
    except OSError as error:
        yield bad(name, f"{(error.strerror or 'cannot be looked at').lower()}: {error.filename or ''}".rstrip(": "))


def _rules(config: Config) -> Iterator[CheckResult]:
    rules = [section.rule for section in config.rules]
    for left in left_behind(rules):
        others = ", ".join(left.modalities)
        text = f"rule {left.rule} takes images, and not all their destinations get {others} of their studies"
        advice = "name these in it, or in a rule of their own; or go by inbox, station or institution, not by modality"
        yield note("rules", text, advice)
    if rules and not takes_all(rules):
        text = "a file that none of the rules matches goes nowhere, and needs a person (UNROUTED)"
        yield note("rules", text, "a last rule `when: {}` says where all else goes; `to: []` is nowhere, on purpose")


def _user(config: Config, work: AtWork | None, *, for_start: bool) -> Iterator[CheckResult]:
    spool = config.spool.path
    owner = owner_of(spool) if spool.exists() else None
    if owner is not None and owner != user_name():
        yield bad(
            "user",
            f"you are {user_name()}, and the spool belongs to {owner}",
            become(spool),
            code=ExitCode.NO_PERMISSION,
        )
    elif os.geteuid() == 0:
        yield note("user", "root", "a daemon that reads what others drop should be a user of its own")
    else:
        yield ok("user", user_name())
    if work is None or work.unseen:
        return
    if work.daemon is None:
        if not for_start:
            yield note("daemon", "none runs", f"start it: {how_to_start()}")
    elif work.workers is not None:
        count = len(work.others)
        others = counted(count, "other", "others") if count else "nobody"
        others += " would go on in its place"
        yield ok("daemon", f"running, {work.daemon}; {others}" + (", and this one would" if for_start else ""))
    elif for_start:
        yield bad("daemon", f"running already, {work.daemon}", "stop it first", code=ExitCode.BUSY)
    else:
        yield ok("daemon", f"running, {work.daemon}")


def _spool(config: Config, *, is_away: bool) -> Iterator[CheckResult]:
    """Judge the spool; where its share is not mounted, as the ledger tells, nothing is well with its place."""
    is_elsewhere = not is_away and _is_elsewhere(config)
    yield from (result for result in spool(config) if not (is_elsewhere and result.result == "ok"))


def _is_elsewhere(config: Config) -> bool:
    from ingestd.ledger import Ledger, LedgerError

    if config.ledger_file is not None or os.path.lexists(config.spool.path / "spool.id"):
        return False
    try:
        ledger = Ledger.open(config.ledger, read_only=True, key=config.spool.search_key)
    except LedgerError:
        return False  # as is told of the ledger
    with ledger:
        try:
            ledger.expect_no_other(config.spool.path)
        except LedgerError:
            return True
    return False


def _ledger(config: Config, work: AtWork | None) -> Iterator[CheckResult]:
    from ingestd.config import agreement_of
    from ingestd.inbox import keeps_files, ledger_of
    from ingestd.ledger import (
        OTHER_LEDGER_STEP,
        Ledger,
        LedgerBusy,
        LedgerError,
        LedgerMissing,
        LedgerOlder,
        LedgerPermission,
        queries,
    )

    name, belongs_to = config.ledger_name, ""
    with suppress(OSError):
        belongs_to = ledger_of(config.spool.path)
    if config.ledger_file is None:
        from .check_database import database

        yield from database(config)
    try:
        if work is None or work.daemon is None:
            yield from _start_on_ledger(config)
        with Ledger.open(
            config.ledger, destinations=config.addresses, read_only=True, key=config.spool.search_key
        ) as ledger:
            ledger.expect_agreement(agreement_of(config))
            ledger.expect_spool_of_ours(config.spool.path, said=belongs_to)
            if config.ledger_file is None and not os.path.lexists(config.spool.path / "spool.id"):
                ledger.expect_no_other(config.spool.path)  # a share that is not mounted: `run` would end
            status = queries.status(ledger)
    except LedgerMissing:
        if belongs_to:
            text = f"{name} is empty, and the spool belongs to {belongs_to.partition(' ')[2]}"
            step = "name that one, or put its backup back; where it is lost for good, remove the spool's spool.ledger"
            yield bad("ledger", text, step)
        elif config.ledger_file is None and keeps_files(config.spool.path):
            yield bad("ledger", f"{name} would be made anew, and the spool has files of another one", OTHER_LEDGER_STEP)
        else:
            yield ok("ledger", f"{name} will be made")
    except LedgerOlder as error:
        yield note("ledger", str(error))
    except LedgerPermission as error:
        yield bad("ledger", str(error), become(error.file), code=ExitCode.NO_PERMISSION)
    except LedgerBusy as error:
        yield bad("ledger", str(error), code=ExitCode.BUSY)
    except LedgerError as error:
        yield bad("ledger", str(error))
    else:
        rows = sum(status.states.values())
        # A file has one at each destination.
        words = ("file", "files") if len(config.destinations) == 1 else ("delivery", "deliveries")
        call = counted(status.needs_person, "needs a person", "need a person")
        yield ok("ledger", f"{name}: {counted(rows, *words)}, {call}")


def _start_on_ledger(config: Config) -> Iterator[CheckResult]:
    """Judge the ledger as ``run`` would, unless it is another user's to judge."""
    from ingestd.inbox import SpoolError, rehearse_spool
    from ingestd.ledger import Ledger, LedgerHeld

    path = config.spool.path
    if path.exists() and path.stat().st_uid != os.geteuid():
        return
    try:
        host = rehearse_spool(path) or "new"
    except SpoolError:
        return
    addresses, key = config.addresses, config.spool.search_key
    try:
        is_missing = Ledger.rehearse(config.ledger, host=host, destinations=addresses, spool=path.absolute(), key=key)
    except LedgerHeld:
        return  # by a silent one: it would stand by, and take over
    if is_missing:
        where = "search.key in the spool" if config.ledger_file is None else "the .key file beside the ledger"
        text = f"the key of the search words ({where}) is missing, and a start makes another"
        advice = "put it back from a backup first, else what was taken in is not found by patient or accession"
        yield bad("key", text, advice)
