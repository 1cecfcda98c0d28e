"""The folder of our own inside an inbox on another filesystem, where a source lies between its rename and its removal.

Others may write where it lies, so that its name says nothing: it is ours if it is a folder and has our owner. Where
somebody else has taken the name another one is used, and a person is told; whoever may drop files stops no removal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator

from ingestd.fs.places import FOLDER, open_folder

# Hidden, so that every ignore rule leaves it alone.
REMOVING = ".ingestd-removing"


class Aside:
    """Finds that folder in each inbox, or makes it. For one thread, save ``is_squatted``."""

    def __init__(self) -> None:
        self._others: dict[str, str] = {}  # by inbox: the name that is used where the first one is somebody else's
        self._squatted: frozenset[str] = frozenset()
        # By inbox: what a failing disk left in that folder, by its name there, and where it lay before.
        self.owed: dict[str, dict[str, str]] = {}

    def is_squatted(self, root: str) -> bool:
        """Whether somebody else had the name when it was last looked at."""
        return root in self._squatted

    def look(self, root: str) -> None:
        """Look once more whether somebody else has the name."""
        with contextlib.suppress(OSError), _opened(open_folder(root)) as top:
            descriptor = self._own(root, top, REMOVING)
            if descriptor is not None:
                os.close(descriptor)

    @contextlib.contextmanager
    def opened(self, root: str) -> Iterator[int]:
        """Open the folder, which is made where it is missing."""
        with _opened(open_folder(root)) as top:
            descriptor = self._made(root, top, REMOVING)
            if descriptor is None and root in self._others:
                descriptor = self._made(root, top, self._others[root])
            if descriptor is None:
                self._others[root] = f"{REMOVING}-{secrets.token_hex(8)}"
                descriptor = self._made(root, top, self._others[root])
        if descriptor is None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        with _opened(descriptor):
            yield descriptor

    def left(self, root: str) -> Iterator[int]:
        """Open each such folder that is there; what is empty then, and bears another name than the first, goes."""
        with _opened(open_folder(root)) as top:
            with os.scandir(top) as entries:
                names = [entry.name for entry in entries if entry.name.startswith(REMOVING)]
            for name in names:
                descriptor = self._own(root, top, name)
                if descriptor is not None:
                    with _opened(descriptor):
                        yield descriptor
                    if name != REMOVING:
                        with contextlib.suppress(OSError):
                            os.rmdir(name, dir_fd=top)

    def _made(self, root: str, top: int, name: str) -> int | None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=top)
        return self._own(root, top, name)

    def _own(self, root: str, top: int, name: str) -> int | None:
        """Open a folder of ours; None where it is not there, or is somebody else's, which is noted."""
        descriptor, is_squatted = None, False
        try:
            descriptor = os.open(name, FOLDER, dir_fd=top)
            if not _is_ours(os.fstat(descriptor).st_uid, top):
                os.close(descriptor)
                descriptor, is_squatted = None, True
        except FileNotFoundError:
            pass
        except OSError as error:
            # A file, a link, a socket; or a folder that we may not list, as we may any of our own.
            if error.errno not in {errno.ENOTDIR, errno.ELOOP, errno.EACCES}:
                raise
            is_squatted = True
        if name == REMOVING:
            self._squatted = self._squatted | {root} if is_squatted else self._squatted - {root}
        return descriptor


def _is_ours(owner: int, top: int) -> bool:
    """Whether this is the owner of what we make there: we, or on some shares and media one for all files."""
    if owner == os.geteuid():
        return True
    probe = f"{REMOVING}-{secrets.token_hex(8)}"
    os.mkdir(probe, 0o700, dir_fd=top)
    try:
        return owner == os.stat(probe, dir_fd=top, follow_symlinks=False).st_uid
    finally:
        os.rmdir(probe, dir_fd=top)


@contextlib.contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
