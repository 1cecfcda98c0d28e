"""What ``ingestd check`` looks at. Each check yields findings and never raises; nothing here changes anything."""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ingestd.clocks import boottime
from ingestd.config import (
    AzureAuthSettings,
    BasicAuthSettings,
    BearerAuthSettings,
    Config,
    Inbox,
    NoAuthSettings,
    OAuth2AuthSettings,
    is_private_group,
    name_of_group,
    others_who_may_write,
)
from ingestd.fs.mounts import free_space, is_read_only, mount_of
from ingestd.fs.places import expect_named, read_named
from ingestd.locks import who_runs

from .asker import become, owner_of, user_name
from .common import ExitCode
from .output import ago, in_bytes, in_files

# An inode or two per file in the spool; with fewer than this left the disk is as good as full.
LEAST_INODES = 10_000
MOST_SKEW = timedelta(seconds=30)
# Folders are counted up to here; a larger tree is told to poll.
MOST_FOLDERS_COUNTED = 200_000
_UNMAPPED = 65534
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """What one look found: fine, worth a note, or to be mended; and how. ``blocks``: ingestd cannot start with it."""

    name: str
    result: Literal["ok", "note", "bad"]
    text: str
    advice: str = ""
    code: ExitCode = ExitCode.CONFIGURATION
    blocks: bool = False

    def as_plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"name": self.name, "result": self.result, "text": self.text, "advice": self.advice or None}


def _ok(name: str, text: str) -> CheckResult:
    return CheckResult(name=name, result="ok", text=text)


def _note(name: str, text: str, advice: str = "") -> CheckResult:
    return CheckResult(name=name, result="note", text=text, advice=advice)


def _bad(name: str, text: str, advice: str = "", *, code: ExitCode = ExitCode.CONFIGURATION) -> CheckResult:
    return CheckResult(name=name, result="bad", text=text, advice=advice, code=code)


def check_all(config: Config, *, for_start: bool) -> Iterator[CheckResult]:
    """Look at everything, in the order a file meets it."""
    yield _ok("config", f"{config.file}: every key is known and every value fits")
    yield from _guarded("config", lambda: _kept("config", config.file, config))
    yield from _guarded("user", lambda: _user(config, for_start=for_start))
    for inbox in config.inboxes:
        yield from _guarded("inbox", lambda inbox=inbox: _inbox(inbox, config))  # type: ignore[misc]
    yield from _guarded("inboxes", lambda: _places(config, for_start=for_start))
    yield from _guarded("spool", lambda: _spool(config))
    yield from _guarded("disk", lambda: _disk(config))
    yield from _guarded("ledger", lambda: _ledger(config))
    yield from _guarded("watching", lambda: _watching(config))
    in_the_way = False
    for name, check in (("auth", _secrets), ("tls", _tls)):
        for finding in _guarded(name, lambda check=check: check(config)):  # type: ignore[misc]
            in_the_way = in_the_way or finding.result == "bad"
            yield finding
    if for_start:
        return
    if in_the_way:
        yield _note("server", "not asked before auth and tls are mended")
    else:
        yield from _guarded("server", lambda: _server(config))


# Without these there is nothing to start with; with any other problem the daemon starts and says so in its status.
_BLOCKING = frozenset({"user", "daemon", "inboxes", "spool", "ledger"})


def _guarded(name: str, check: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    for finding in _without_errors(name, check):
        yield replace(finding, blocks=finding.result == "bad" and finding.name in _BLOCKING)


def _without_errors(name: str, check: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    try:
        yield from check()
    except PermissionError as error:
        yield _no_permission(name, str(error.filename or "a folder on the way"))
    except OSError as error:
        yield _bad(name, f"{(error.strerror or 'cannot be looked at').lower()}: {error.filename or ''}".rstrip(": "))


def _no_permission(name: str, path: str | Path) -> CheckResult:
    # A drop folder belongs to whoever delivers: its owner is not the user to become.
    opened = f"give {user_name()} the right to read it and to write in it (a shared group, setfacl or chown)"
    advice = opened if name == "inbox" else become(path)
    return _bad(name, f"no permission for {path}", advice, code=ExitCode.NO_PERMISSION)


def _user(config: Config, *, for_start: bool) -> Iterator[CheckResult]:
    spool = config.spool.path
    owner = owner_of(spool) if spool.exists() else None
    if owner is not None and owner != user_name():
        yield _bad(
            "user",
            f"you are {user_name()}, and the spool belongs to {owner}",
            become(spool),
            code=ExitCode.NO_PERMISSION,
        )
    elif os.geteuid() == 0:
        yield _note("user", "root", "a daemon that reads what others drop should be a user of its own")
    else:
        yield _ok("user", user_name())
    pid = who_runs(spool)
    if pid is not None and for_start:
        yield _bad("daemon", f"running already, process {pid}", "stop it first", code=ExitCode.BUSY)
    elif pid is not None:
        yield _ok("daemon", f"running, process {pid}")


def _inbox(inbox: Inbox, config: Config) -> Iterator[CheckResult]:
    path = inbox.path
    try:
        found = path.stat()
    except FileNotFoundError:
        yield _bad("inbox", f"{path} is not there", f"make it, or mount it: mkdir -p {path}")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield _bad("inbox", f"{path} is no folder")
        return
    if not os.access(path, os.R_OK | os.X_OK):
        yield _no_permission("inbox", path)
        return
    mount = mount_of(str(path))
    kind = f"{mount.kind}, network: found by regular scans" if mount and mount.is_remote else "local"
    if inbox.take == "in_place":
        yield _ok("inbox", f"{path} (in place, {kind})")
        return
    if not os.access(path, os.W_OK):
        yield _bad(
            "inbox",
            f"{path} is not writable for {user_name()}, so files cannot be moved out of it",
            f"give {user_name()} write permission, or set take: in_place",
            code=ExitCode.NO_PERMISSION,
        )
        return
    if found.st_mode & stat.S_ISVTX and found.st_uid != os.geteuid() != 0:
        yield _bad(
            "inbox",
            f"{path} is sticky: only the owner of a file may move it out",
            f"take the sticky bit away (chmod -t {path}), or set take: in_place",
            code=ExitCode.NO_PERMISSION,
        )
        return
    spool = _nearest(config.spool.path)
    if spool.stat().st_dev != found.st_dev:
        text = f"{path} ({kind}) is on another filesystem than the spool: files are copied, checked, then removed"
        yield _note("inbox", text, "a spool on the same filesystem is faster: files are only renamed")
    else:
        yield _ok("inbox", f"{path} ({kind})")
    yield from _closed_folders(path)


def _closed_folders(root: Path) -> Iterator[CheckResult]:
    """Look one level down, where each modality has its folder, for folders that we cannot take files out of."""
    closed = 0
    with os.scandir(root) as found:
        for entry in found:
            inside = entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            closed += inside and not os.access(entry.path, os.R_OK | os.W_OK | os.X_OK)
    if closed:
        advice = (
            f"give {user_name()} read, write and search permission on them (a shared group and setgid folders help)"
        )
        text = f"{closed} folders in {root} are closed to {user_name()}"
        yield _bad("inbox", text, advice, code=ExitCode.NO_PERMISSION)


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _places(config: Config, *, for_start: bool) -> Iterator[CheckResult]:
    from ingestd.daemon.wiring import policies_of
    from ingestd.inbox import InboxError, check_places

    try:
        check_places(policies_of(config), config.spool.path)
    except InboxError as error:
        # Without inboxes the daemon does not start, and is not wanted.
        yield _bad("inboxes", str(error)) if config.inboxes or for_start else _note("inboxes", str(error))


def _spool(config: Config) -> Iterator[CheckResult]:
    from ingestd.inbox import SpoolError, rehearse_spool

    path = config.spool.path
    nearest = _nearest(path)
    if not nearest.is_dir():
        yield _bad("spool", f"{nearest} is no folder")
        return
    if is_read_only(nearest):
        yield _bad("spool", f"{nearest} lies on a disk that is mounted read-only", "mount it for writing (see dmesg)")
        return
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield _no_permission("spool", nearest)
        return
    try:
        rehearse_spool(path)
    except SpoolError as error:
        code = ExitCode.NO_PERMISSION if isinstance(error.__cause__, PermissionError) else ExitCode.CONFIGURATION
        yield _bad("spool", str(error), code=code)
        return
    mount = mount_of(str(nearest))
    if mount and mount.is_remote:
        yield _note(
            "spool", f"{path} is on a network mount ({mount.kind})", "what is durable there is for its server to say"
        )
    if nearest != path:
        yield _ok("spool", f"{path} will be made")
        return
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield _note("spool", f"others may look into {path}", f"it holds patients' images: chmod 700 {path}")
    yield _ok("spool", str(path))


def _disk(config: Config) -> Iterator[CheckResult]:
    left = free_space(_nearest(config.spool.path))
    text = f"{in_bytes(left.free_bytes)} free for the spool; intake stops below {in_bytes(config.spool.low_water)}"
    if left.free_bytes < config.spool.low_water:
        yield _bad("disk", text, "make room, or lower spool.low_water")
    elif left.free_inodes is not None and left.free_inodes < LEAST_INODES:
        yield _bad(
            "disk", f"only {left.free_inodes} inodes free for the spool", "remove files, or use another filesystem"
        )
    else:
        yield _ok("disk", text)


def _ledger(config: Config) -> Iterator[CheckResult]:
    from ingestd.ledger import Ledger, LedgerBusy, LedgerError, LedgerMissing, LedgerOlder, LedgerPermission, queries

    file = config.ledger_file
    try:
        yield from _start_on_ledger(config)
        with Ledger.open(config.ledger, destination=config.destination.url, read_only=True) as ledger:
            status = queries.status(ledger)
    except LedgerMissing:
        yield _ok("ledger", f"{file} will be made")
    except LedgerOlder:
        yield _note("ledger", f"{file} is of an older ingestd; the next start brings it up to date")
    except LedgerPermission as error:
        yield _bad("ledger", str(error), become(file), code=ExitCode.NO_PERMISSION)
    except LedgerBusy as error:
        yield _bad("ledger", str(error), code=ExitCode.BUSY)
    except LedgerError as error:
        yield _bad("ledger", str(error))
    else:
        files = sum(status.states.values())
        yield _ok("ledger", f"{file}: {in_files(files)}, {status.needs_person} need a person")


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
    if Ledger.rehearse(config.ledger, host=host, destination=config.destination.url, spool=path.absolute()):
        text = "the key of the search words (the .key file beside the ledger) is missing, and a start makes another"
        advice = "put it back from a backup first, else what was taken in is not found by patient or accession"
        yield _bad("key", text, advice)


def _watching(config: Config) -> Iterator[CheckResult]:
    if not config.inboxes:
        return
    watched = [inbox for inbox in config.inboxes if inbox.watch != "poll" and not _is_remote(inbox.path)]
    if not watched:
        yield _ok("watching", "by regular scans")
        return
    folders = sum(_count_folders(inbox.path) for inbox in watched)
    most = _kernel_limit("max_user_watches")
    queue = _kernel_limit("max_queued_events")
    advice = "raise it as systemd/60-ingestd.conf does, or set watch: poll; no file is lost, it is found by the scan"
    if most is not None and folders * 2 > most:
        yield _note("watching", f"{folders} folders to watch, and the kernel allows {most} watches to a user", advice)
    elif queue is not None and queue < 16_384:
        yield _note("watching", f"the kernel keeps {queue} events at most", advice)
    else:
        yield _ok("watching", f"by events in {folders} folders (the kernel allows {most or 'any number of'} watches)")


def _is_remote(path: Path) -> bool:
    mount = mount_of(str(path))
    return mount is not None and mount.is_remote


def _count_folders(root: Path) -> int:
    count = 0
    for _ in os.walk(root):
        count += 1
        if count >= MOST_FOLDERS_COUNTED:
            break
    return count


def _kernel_limit(name: str) -> int | None:
    try:
        return int(Path("/proc/sys/fs/inotify", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _secrets(config: Config) -> Iterator[CheckResult]:
    auth = config.destination.auth
    address = urlsplit(config.destination.url)
    if isinstance(auth, NoAuthSettings):
        yield _ok("auth", "none")
        return
    if address.scheme == "http" and address.hostname not in _LOOPBACK:
        yield _note("auth", "the secret travels unencrypted over http", "use an https:// url where the server has one")
    files: list[Path | None] = []
    names: list[str | None] = []
    match auth:
        case BearerAuthSettings():
            files, names = [auth.token_file], [auth.token_env]
        case BasicAuthSettings():
            files, names = [auth.password_file], [auth.password_env]
        case AzureAuthSettings():
            files = [auth.client_secret_file, auth.certificate_file]
        case OAuth2AuthSettings():
            files, names = [auth.client_secret_file], [auth.client_secret_env]
    for file in filter(None, files):
        yield from _secret_file(file)
        yield from _kept("auth", file, config)
    for name in filter(None, names):
        if os.environ.get(name, "").strip():
            yield _ok("auth", f"{auth.kind}, from ${name}")
        else:
            yield _bad(
                "auth", f"${name} is not set, or empty", "set it where ingestd starts (systemd: EnvironmentFile=)"
            )
    if isinstance(auth, AzureAuthSettings) and not any(files):
        yield _ok("auth", f"azure, credential {auth.credential}")


def _kept(name: str, file: Path | None, config: Config) -> Iterator[CheckResult]:
    """Say who else may write a file that decides where what goes, and whether those who drop files may read it."""
    if file is None or not file.exists():
        return
    trusted = {os.geteuid(), _nearest(config.spool.path).stat().st_uid}
    if Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2] != str(2**32 - 1):
        trusted.add(_UNMAPPED)  # in a sandbox, other users' files all seem to be nobody's
    if who := others_who_may_write(file, trusted=trusted):
        yield _bad(name, f"{who}; it belongs to ingestd's administrator alone", f"chown it, and chmod go-w, for {file}")
    found = file.stat()
    for inbox in config.inboxes:
        drop = inbox.path.stat() if inbox.path.is_dir() else None
        if drop is None or drop.st_gid != found.st_gid or drop.st_gid in {0, _UNMAPPED}:
            continue
        if drop.st_mode & stat.S_IWGRP and found.st_mode & stat.S_IRGRP and not is_private_group(drop.st_gid):
            text = f"who may drop files (group {name_of_group(drop.st_gid)}) may read {file}"
            yield _bad(name, text, f"give {inbox.path} a group of its own, as systemd/ingestd.tmpfiles does")
            return


def _secret_file(file: Path) -> Iterator[CheckResult]:
    try:
        content = read_named(file)
        mode = file.stat().st_mode
    except FileNotFoundError:
        yield _bad("auth", f"{file} is not there", "write the secret into it; under systemd, use LoadCredential=")
        return
    if not content.strip():
        yield _bad("auth", f"{file} is empty", "write the secret into it")
    elif stat.S_IMODE(mode) & 0o007:
        yield _note("auth", f"anybody on this machine may read {file}", f"chmod 600 {file}")
    else:
        yield _ok("auth", f"from {file}")


def _tls(config: Config) -> Iterator[CheckResult]:
    tls = config.destination.tls
    if not config.destination.url.startswith("https://"):
        return
    for file in filter(None, (tls.ca_file, tls.client_cert, tls.client_key)):
        with contextlib.suppress(FileNotFoundError):  # told below, all of them
            expect_named(file)
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.client_cert:
            # A key with a passphrase would be asked for at the terminal; the daemon has none.
            context.load_cert_chain(tls.client_cert, tls.client_key, password="")
    except FileNotFoundError as error:
        names = [str(name) for name in (tls.ca_file, tls.client_cert, tls.client_key) if name and not name.exists()]
        yield _bad("tls", f"{', '.join(names) or error.filename} is not there")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not readable"
        files = ", ".join(str(name) for name in (tls.ca_file, tls.client_cert, tls.client_key) if name)
        yield _bad(
            "tls", f"{files}: {str(reason).lower().replace('_', ' ')}", "PEM is expected, the key without passphrase"
        )
    else:
        yield _ok("tls", f"trusts {tls.ca_file or 'the public authorities'}")


def _server(config: Config) -> Iterator[CheckResult]:
    from ingestd.daemon.wiring import client_of
    from ingestd.dicomweb import DicomWebError, NotAuthorized, TokenError, Unavailable
    from ingestd.dicomweb.probing import may_store
    from ingestd.sender import probe_profile

    url = config.destination.url
    with client_of(config) as client:
        try:
            client.prepare()
            began = boottime()
            page = client.search_studies(limit=1)
            took = boottime() - began
            profile = probe_profile(client)
            stores = may_store(client)
        except TokenError as error:
            yield _bad("auth", str(error))
            return
        except NotAuthorized as error:
            yield _bad("server", f"{url}: {error}")
            return
        except Unavailable as error:
            advice = "ingestd can start without it, takes files in, and sends them when the server is back"
            yield _bad("server", f"{url}: {error}", advice, code=ExitCode.TIMEOUT)
            return
        except DicomWebError as error:
            yield _bad("server", f"{url}: {error}", "is this the address of the DICOMweb service itself?")
            return
    yield _ok("server", f"{url} answers in {took * 1000:.0f} ms")
    if not stores:
        advice = "give it the right to write; on Azure the role DICOM Data Owner, not DICOM Data Reader"
        yield _bad("role", f"{url}: our role may read and not store (a post was answered 403)", advice)
    feed = (
        f"change feed version {profile.feed_version}" if profile.has_feed else "no change feed: it is asked by queries"
    )
    duplicates = "refuses duplicates" if profile.refuses_duplicates else "may keep an older object under the same UIDs"
    yield _ok("server", f"kind {profile.kind}; {feed}; {duplicates}")
    if page.server_date is not None:
        yield _clock(page.server_date, within=timedelta(seconds=took + 1))


def _clock(server_date: datetime, *, within: timedelta) -> CheckResult:
    skew = server_date - datetime.now(UTC)
    text = f"the server's clock is {ago(abs(skew).total_seconds())} {'ahead' if skew > timedelta(0) else 'behind'}"
    if abs(skew) > MOST_SKEW + within:
        return _note("clock", text, "set the clocks by NTP; ingestd allows for it, tokens and certificates may not")
    return _ok("clock", "agrees with the server's")
