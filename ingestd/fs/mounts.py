"""Which filesystem a folder lies on, from ``/proc/self/mountinfo`` (proc(5)), and what is left on it.

Writes by other hosts raise no inotify event here, so network and user-space filesystems are polled.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

MOUNTINFO = "/proc/self/mountinfo"

# Filesystems that other machines write to, or whose kernel side does not see every write.
REMOTE = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "gfs2", "glusterfs", "gpfs"),
        *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs"),
        *("vboxsf", "virtiofs", "vmhgfs"),
    }
)

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """One line of the mount table: where, what kind, and the kernel's number for it."""

    mount_point: str
    kind: str
    source: str
    options: frozenset[str] = frozenset()  # of the filesystem itself

    @property
    def is_remote(self) -> bool:
        """Whether the kernel may not see every write to it."""
        return self.kind in REMOTE or self.kind.split(".", 1)[0] in {"fuse", "fuseblk"}


def parse_mountinfo(text: bytes) -> list[Mount]:
    """Parse the mount table, oldest mount first; lines that are not understood are left out."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(b" - ")
        fields, rest = left.split(b" "), right.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            continue
        kind, source, options = rest[0].decode("ascii", "replace"), _unescape(rest[1]), rest[2:]
        said = frozenset(os.fsdecode(options[0]).split(",")) if options else frozenset()
        mounts.append(Mount(mount_point=_unescape(fields[4]), kind=kind, source=source, options=said))
    return mounts


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def mount_of(path: str, *, mountinfo: str = MOUNTINFO) -> Mount | None:
    """Find the mount that ``path`` lies on; None where there is no mount table.

    The path is looked up as written first: on a remote mount that does not answer, resolving links would hang.
    """
    try:
        with open(mountinfo, "rb") as table:  # noqa: PTH123 - a kernel file, read once
            mounts = parse_mountinfo(table.read())
    except OSError:
        return None
    found = _longest(mounts, os.path.abspath(path))  # noqa: PTH100 - resolve() would touch the mount
    if found is not None and found.is_remote:
        return found
    return _longest(mounts, os.path.realpath(path)) or found


def _longest(mounts: list[Mount], path: str) -> Mount | None:
    best: Mount | None = None
    for mount in mounts:
        point = mount.mount_point
        inside = point in {"/", path} or path.startswith(point + "/")
        # On a tie the later line counts: it was mounted over the earlier one.
        if inside and (best is None or len(point) >= len(best.mount_point)):
            best = mount
    return best


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeSpace:
    """What a filesystem has left for this user; ``free_inodes`` None where it does not count them."""

    free_bytes: int
    free_inodes: int | None
    size_bytes: int  # of all of it


def free_space(place: str | os.PathLike[str] | int) -> FreeSpace:
    """Say what is left where a path or an open file lies; raises OSError."""
    found = os.statvfs(place)
    return FreeSpace(
        free_bytes=found.f_bavail * found.f_frsize,
        free_inodes=found.f_favail if found.f_files else None,
        size_bytes=found.f_blocks * found.f_frsize,
    )


def is_read_only(place: str | os.PathLike[str]) -> bool:
    """Whether it lies on a filesystem that is mounted read-only, as the kernel does with a disk that failed."""
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)
