"""Who may do what. Without ``--auth`` everybody may do everything, as the open-source server starts out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ingestd.emulator.http.request import Action, Call


class Guard(Protocol):
    """Decides about tokens and roles; each check raises Problem 401 or 403, or says nothing."""

    def authenticate(self, call: Call, action: Action) -> None:
        """Refuse a request without a valid token."""

    def authorize(self, call: Call, action: Action) -> None:
        """Refuse a valid token whose role lacks the action."""


class Open:
    """No questions asked."""

    def authenticate(self, call: Call, action: Action) -> None:
        """Let everybody in."""

    def authorize(self, call: Call, action: Action) -> None:
        """Let everybody do everything."""
