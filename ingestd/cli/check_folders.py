"""What ``ingestd check`` looks at on this machine's disks: inboxes, spool, room, and how folders are watched."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ingestd.config import Config, Inbox
from ingestd.fs.mounts import Mount, free_space, is_read_only, mount_of

from .asker import user_name
from .check_result import CheckResult, bad, nearest, no_permission, note, ok
from .common import ExitCode
from .output import counted, in_bytes

# An inode or two per file in the spool; with fewer than this left the disk is as good as full.
LEAST_INODES = 10_000
# Folders are counted up to here; a larger tree is told to poll.
MOST_FOLDERS_COUNTED = 200_000


def inbox_taken_from(inbox: Inbox, config: Config) -> Iterator[CheckResult]:
    path = inbox.path
    try:
        found = path.stat()
    except FileNotFoundError:
        yield bad("inbox", f"{path} is not there", f"make it, or mount it: mkdir -p {path}")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield bad("inbox", f"{path} is no folder")
        return
    if not os.access(path, os.R_OK | os.X_OK):
        yield no_permission("inbox", path)
        return
    mount = mount_of(str(path))
    kind = f"{mount.kind}, network: found by regular scans" if mount and mount.is_remote else "local"
    if inbox.take == "in_place":
        yield ok("inbox", f"{path} (in place, {kind})")
        return
    if not os.access(path, os.W_OK):
        yield bad(
            "inbox",
            f"{path} is not writable for {user_name()}, so files cannot be moved out of it",
            f"give {user_name()} write permission, or set take: in_place",
            code=ExitCode.NO_PERMISSION,
        )
        return
    if found.st_mode & stat.S_ISVTX and found.st_uid != os.geteuid() != 0:
        yield bad(
            "inbox",
            f"{path} is sticky: only the owner of a file may move it out",
            f"take the sticky bit away (chmod -t {path}), or set take: in_place",
            code=ExitCode.NO_PERMISSION,
        )
        return
    spool = nearest(config.spool.path)
    if spool.stat().st_dev != found.st_dev:
        text = f"{path} ({kind}) is on another filesystem than the spool: files are copied, checked, then removed"
        yield note("inbox", text, "a spool on the same filesystem is faster: files are only renamed")
    else:
        yield ok("inbox", f"{path} ({kind})")
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
        text = f"{root} has {counted(closed, 'folder', 'folders')} closed to {user_name()}"
        yield bad("inbox", text, advice, code=ExitCode.NO_PERMISSION)


def folders_apart(config: Config, *, for_start: bool) -> Iterator[CheckResult]:
    from ingestd.daemon.settings import policies_of
    from ingestd.inbox import InboxError, check_places

    try:
        check_places(policies_of(config), config.spool.path)
    except InboxError as error:
        # Without inboxes the daemon does not start, and is not wanted.
        yield bad("inboxes", str(error)) if config.inboxes or for_start else note("inboxes", str(error))


def spool(config: Config) -> Iterator[CheckResult]:
    from ingestd.inbox import SpoolError, rehearse_spool

    path = config.spool.path
    there = nearest(path)
    if not there.is_dir():
        yield bad("spool", f"{there} is no folder")
        return
    if is_read_only(there):
        yield bad("spool", f"{there} lies on a disk that is mounted read-only", "mount it for writing (see dmesg)")
        return
    if not os.access(there, os.W_OK | os.X_OK):
        yield no_permission("spool", there)
        return
    try:
        rehearse_spool(path)
    except SpoolError as error:
        code = ExitCode.NO_PERMISSION if isinstance(error.__cause__, PermissionError) else ExitCode.CONFIGURATION
        yield bad("spool", str(error), code=code)
        return
    mount = mount_of(str(there))
    if mount and mount.is_remote:
        yield note(
            "spool", f"{path} is on a network mount ({mount.kind})", "what is durable there is for its server to say"
        )
        yield from shared_spool(mount, has_lock=config.ledger_file is not None)
    if there != path:
        yield ok("spool", f"{path} will be made")
        return
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield note("spool", f"others may look into {path}", f"it holds patients' images: chmod 700 {path}")
    yield ok("spool", str(path))


def shared_spool(mount: Mount, *, has_lock: bool) -> Iterator[CheckResult]:
    """Judge how a spool's network mount is set up; what its server does (an NFS export with ``async``) is not seen."""
    options, where = mount.options, f"{mount.mount_point} ({mount.kind})"
    if mount.kind in ("nfs", "nfs4"):
        for soft in sorted(options & {"soft", "softerr"}):
            yield note("spool", f"{where} is mounted {soft}: a file may be damaged without an error", "mount it hard")
        if has_lock and options & {"nolock", "local_lock=all", "local_lock=flock"}:
            text = f"{where} keeps locks to this machine: another one may run on this spool at the same time"
            yield note("spool", text, "mount it without nolock and local_lock")
    if mount.kind in ("cifs", "smb3") and "serverino" not in options:
        text = f"{where} has no file numbers of its server: after it was mounted anew files seem to be others"
        yield note("spool", text, "mount it with serverino")


def disk(config: Config) -> Iterator[CheckResult]:
    left = free_space(nearest(config.spool.path))
    text = f"{in_bytes(left.free_bytes)} free for the spool; intake stops below {in_bytes(config.spool.low_water)}"
    if left.free_bytes < config.spool.low_water:
        yield bad("disk", text, "make room, or lower spool.low_water")
    elif left.free_inodes is not None and left.free_inodes < LEAST_INODES:
        yield bad(
            "disk", f"only {left.free_inodes} inodes free for the spool", "remove files, or use another filesystem"
        )
    else:
        yield ok("disk", text)


def watching(config: Config) -> Iterator[CheckResult]:
    if not config.inboxes:
        return
    watched = [inbox for inbox in config.inboxes if inbox.watch != "poll" and not _is_remote(inbox.path)]
    if not watched:
        yield ok("watching", "by regular scans")
        return
    folders = sum(_count_folders(inbox.path) for inbox in watched)
    where = counted(folders, "folder", "folders")
    most = _kernel_limit("max_user_watches")
    queue = _kernel_limit("max_queued_events")
    advice = "raise it as systemd/60-ingestd.conf does, or set watch: poll; no file is lost, it is found by the scan"
    if most is not None and folders * 2 > most:
        yield note("watching", f"{where} to watch, and the kernel allows {most} watches to a user", advice)
    elif queue is not None and queue < 16_384:
        yield note("watching", f"the kernel keeps {queue} events at most", advice)
    else:
        yield ok("watching", f"by events in {where} (the kernel allows {most or 'any number of'} watches)")


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
