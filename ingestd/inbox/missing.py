"""What is not found on a share, and when that means that it is gone.

The client of a share answers from what it knew a while ago, of names that were missing, too; and a server that has just
come back may not have all of its folders yet. So a file is gone where its folder, opened and listed anew, did not have
it twice, a minute apart.
"""

from __future__ import annotations

from stat import S_ISREG

from ingestd.clocks import boottime
from ingestd.fs.places import look_anew

SURE_SECONDS = 60.0
# Who asks for a file asks again within this time, or has to begin anew.
_REMEMBERED_SECONDS = 86_400.0


class Missing:
    """Files that were looked for, and since when they are not there. Any thread may ask."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._forget_at = 0.0

    def is_gone(self, place: str) -> bool:
        """Look for a file once more; whether it was missing now, and ``SURE_SECONDS`` ago. False: nobody can say."""
        now = boottime()
        try:
            found = look_anew(place)
        except OSError:
            return False
        # A folder or a link in its place is not it.
        if found is not None and S_ISREG(found.st_mode):
            self._since.pop(place, None)
            return False
        if now >= self._forget_at:
            self._forget_at = now + SURE_SECONDS
            self._since = {each: at for each, at in list(self._since.items()) if now - at < _REMEMBERED_SECONDS}
        return now - self._since.setdefault(place, now) >= SURE_SECONDS
