"""What ``ingestd check`` looks at. Each check yields results and never raises; nothing here changes anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from ingestd.config import Config, Destination
from ingestd.lifecycle import left_behind, takes_all
from ingestd.locks import who_runs

from .asker import become, owner_of, user_name
from .check_folders import disk, folders_apart, inbox_taken_from, spool, watching
from .check_result import CheckResult, bad, no_permission, note, ok
from .check_server import access_of_others, secrets, server, tls
from .common import ExitCode
from .held import in_words
from .output import counted


def check_all(config: Config, *, for_start: bool) -> Iterator[CheckResult]:
    """Look at everything, in the order a file meets it."""
    yield ok("config", f"{config.file}: every key is known and every value fits")
    yield from _guarded("config", access_of_others, "config", config.file, config)
    yield from _rules(config)
    yield from _guarded("user", _user, config, for_start=for_start)
    for inbox in config.inboxes:
        yield from _guarded("inbox", inbox_taken_from, inbox, config)
    yield from _guarded("inboxes", folders_apart, config, for_start=for_start)
    for name, check in (("spool", spool), ("disk", disk), ("ledger", _ledger), ("watching", watching)):
        yield from _guarded(name, check, config)
    for name, destination in config.destinations.items():
        for result in _destination(destination, config, for_start=for_start):
            yield replace(result, destination=name) if len(config.destinations) > 1 else result


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


def _user(config: Config, *, for_start: bool) -> Iterator[CheckResult]:
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
    pid = who_runs(spool)
    if pid is not None and for_start:
        yield bad("daemon", f"running already, process {pid}", "stop it first", code=ExitCode.BUSY)
    elif pid is not None:
        yield ok("daemon", f"running, process {pid}")


def _ledger(config: Config) -> Iterator[CheckResult]:
    from ingestd.ledger import Ledger, LedgerBusy, LedgerError, LedgerMissing, LedgerOlder, LedgerPermission, queries

    file = config.ledger_file
    try:
        yield from _start_on_ledger(config)
        with Ledger.open(config.ledger, destinations=config.addresses, read_only=True) as ledger:
            status = queries.status(ledger)
    except LedgerMissing:
        yield ok("ledger", f"{file} will be made")
    except LedgerOlder as error:
        yield note("ledger", str(error))
    except LedgerPermission as error:
        yield bad("ledger", str(error), become(file), code=ExitCode.NO_PERMISSION)
    except LedgerBusy as error:
        yield bad("ledger", str(error), code=ExitCode.BUSY)
    except LedgerError as error:
        yield bad("ledger", str(error))
    else:
        rows = sum(status.states.values())
        # A file has one at each destination.
        words = ("file", "files") if len(config.destinations) == 1 else ("delivery", "deliveries")
        call = counted(status.needs_person, "needs a person", "need a person")
        yield ok("ledger", f"{file}: {counted(rows, *words)}, {call}")


def _start_on_ledger(config: Config) -> Iterator[CheckResult]:
    """Judge the ledger as ``run`` would, unless a daemon has it or it is another user's to judge."""
    from ingestd.inbox import SpoolError, rehearse_spool
    from ingestd.ledger import Ledger

    path = config.spool.path
    if who_runs(path) is not None or (path.exists() and path.stat().st_uid != os.geteuid()):
        return
    try:
        host = rehearse_spool(path) or "new"
    except SpoolError:
        return
    if Ledger.rehearse(config.ledger, host=host, destinations=config.addresses, spool=path.absolute()):
        text = "the key of the search words (the .key file beside the ledger) is missing, and a start makes another"
        advice = "put it back from a backup first, else what was taken in is not found by patient or accession"
        yield bad("key", text, advice)
