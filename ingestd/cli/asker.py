"""Who asks, and what they type: advice names commands that work for them as they stand.

``ingestd`` alone works for who has it on the PATH and may do what it does; who typed a path or ``sudo -u USER`` before
it has to type that again. Only the standard library is imported here; see ``ingestd.cli``.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

# What sudo looks through where Debian's sudoers(5) is as it was installed.
_SUDO_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = "ingestd"
_UNITS = ("/etc/systemd/system/ingestd.service", "/usr/lib/systemd/system/ingestd.service")


_words: list[str] = []


def typed(words: Sequence[str]) -> None:
    """Note the words after the program's name, before anything can go wrong with them."""
    _words[:] = words


def as_typed(text: str) -> str:
    """Write each command in this text as the asker has to type it."""
    quoted = f"`{_NAME} "
    return text.replace(quoted, f"`{_command()} ") if quoted in text else text


def how_to_start() -> str:
    """Say how the daemon is started on this machine."""
    if any(os.path.lexists(place) for place in _UNITS):
        return "sudo systemctl start ingestd"
    return as_typed("`ingestd run`")


def _command() -> str:
    """Say what comes before the name of a command."""
    words = _program(os.environ.get("PATH", ""))
    # A shell that sudo opened is another thing: what is typed there is typed as that user.
    by = os.path.basename(os.environ.get("SUDO_COMMAND", "").partition(" ")[0])  # noqa: PTH119 - of a path in text
    if by == _NAME and os.environ.get("SUDO_UID") != str(os.geteuid()):
        words = ["sudo", *(() if os.geteuid() == 0 else ("-u", user_name())), *words]
    return shlex.join(words)


def _program(search: str) -> list[str]:
    ours = sys.argv[0]
    if Path(ours).parts[-2:] == (_NAME, "__main__.py"):
        return [sys.executable, "-m", _NAME]
    found = shutil.which(_NAME, path=search)
    if Path(ours).name != _NAME or (found and os.path.realpath(found) == os.path.realpath(ours)):
        return [_NAME]
    return [ours]


def _again_as(user: str) -> str:
    """Say how this very command is given as another user: sudo takes neither PATH nor INGESTD_CONFIG along."""
    program, *rest = _program(_SUDO_PATH)
    words = ["sudo", "-u", user, os.path.abspath(program) if os.sep in program else program, *rest]  # noqa: PTH100
    named = os.environ.get("INGESTD_CONFIG")
    if named and not any(word.startswith(("-c", "--config")) for word in _words):
        words += ["-c", os.path.abspath(named)]  # noqa: PTH100 - as it was named, links and all
    return shlex.join([*words, *_words])


def owner_of(path: Path) -> str | None:
    """Return the name of the user that owns this path, or the nearest folder above it that we can see."""
    for place in (path, *path.parents):
        try:
            return _name_of(place.stat().st_uid)
        except OSError:
            continue
    return None


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def user_name() -> str:
    return _name_of(os.geteuid())


def become(path: object) -> str:
    """Say which user to become to be allowed at this path, or whose it should be: never root's."""
    wanted = Path(str(path or ""))
    # Path.exists() raises where we may not look.
    place = next(filter(os.path.exists, (wanted, *wanted.parents)), None) if path else None
    if place is None:
        return f"you are {user_name()}; have an administrator look at its permissions"
    found = place.stat()
    if _name_of(found.st_uid) == user_name():
        return f"you are {user_name()}; have an administrator look at its permissions"
    if found.st_uid != 0:
        return f"become the user {_name_of(found.st_uid)}: {_again_as(_name_of(found.st_uid))}"
    if user := _user_let_in_by(found):
        return f"become the user {user}: {_again_as(user)}"
    return _give_away(wanted, place)


def _user_let_in_by(found: os.stat_result) -> str:
    """Name the user whose own group may read what is root's, as the service's may read its configuration."""
    if found.st_gid == 0 or not found.st_mode & stat.S_IRGRP:
        return ""
    named = [entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == found.st_gid and entry.pw_uid != os.geteuid()]
    return named[0] if len(named) == 1 else ""


def _give_away(wanted: Path, place: Path) -> str:
    """Say how what is root's, or is not there yet in a folder of root's, comes to the user that ingestd runs as."""
    users = {entry.pw_name for entry in pwd.getpwall()}
    user = _NAME if _NAME in users else "USER"
    hint = "" if user in users else ", USER being the one that it runs as"
    if place == wanted:
        return f"{_NAME} need not be root: give it to its user{hint}: sudo chown -R {user}: {shlex.quote(str(wanted))}"
    below = place / wanted.relative_to(place).parts[0]
    if os.access(place, os.X_OK, effective_ids=True) and (below != wanted or not wanted.suffix):
        made = f"sudo install -d -m 700 -o {user} -g {user} {shlex.quote(str(below))}"
        return f"{_NAME} need not be root: have the folder made for its user{hint}: {made}"
    return f"{place} is root's alone: give {_NAME} another place, or let its user in there"
