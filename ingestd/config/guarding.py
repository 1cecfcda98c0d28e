"""Who may change a file, or put another in its place: by owner, mode and access list of it and of its folder."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Collection
from pathlib import Path

_ACCESS_LIST = "system.posix_acl_access"


def others_who_may_write(path: Path, *, trusted: Collection[int]) -> str:
    """Say who may change what is at this path beside root and these users, "" if nobody; raises OSError.

    The file and its folder are looked at, and for a link those that it leads to as well.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link itself
    real = Path(os.path.realpath(path))
    for place in dict.fromkeys((path.parent, path, real.parent, real)):
        if who := _others_at(place, {0, *trusted}):
            return who
    return ""


def _others_at(place: Path, trusted: Collection[int]) -> str:
    found = place.lstat()
    if found.st_uid not in trusted:
        return f"{place} belongs to {name_of_user(found.st_uid)}"
    if stat.S_ISLNK(found.st_mode):
        return ""
    if found.st_mode & stat.S_IWOTH:
        return f"anybody may write {place}"
    if not found.st_mode & stat.S_IWGRP:
        return ""
    if has_access_list(place):
        return f"others may write {place}, by its access list"
    return "" if is_private_group(found.st_gid) else f"the group {name_of_group(found.st_gid)} may write {place}"


def has_access_list(place: Path) -> bool:
    """Whether more than owner, group and others have rights here: the group's bits are then the most of any of them."""
    try:
        return _ACCESS_LIST in os.listxattr(place, follow_symlinks=False)
    except OSError:
        return False  # a file system without extended attributes


def is_private_group(gid: int) -> bool:
    """Whether this is root's group, or the group of one user alone, called like the user (as Debian makes them)."""
    try:
        group = grp.getgrgid(gid)
        owner = pwd.getpwnam(group.gr_name)
    except KeyError:
        return False
    return owner.pw_gid == gid and not set(group.gr_mem) - {owner.pw_name, "root"}


def name_of_user(uid: int) -> str:
    """Return a user's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def name_of_group(gid: int) -> str:
    """Return a group's name, or its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"#{gid}"
