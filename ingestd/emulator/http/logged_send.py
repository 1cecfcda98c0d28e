"""Sends an answer so that its line stands in the request log before its last byte leaves: the withheld tail.

Tests take the log for an oracle: who has the whole answer to a request may look, and finds its line. An answer is
whole for a client not when the server says so, but when the last byte that its head promised is there; and a server
that writes its log after that byte, or is killed in between, has answered what its log does not know. So something is
always held back until the line is written:

- an answer **without a body** (204, 304, an empty one) is whole with its head. The head waits; the empty body that the
  application sends behind it writes the line and lets it go;
- an answer **of one piece** is whole with that piece, which the application gives as the last one: the line first, then
  the piece;
- a **streamed** answer has a length or a closing delimiter in it, so it is whole with its last piece of content. The
  application, however, does not know of a piece that it is the last, and only says afterwards that nothing more comes.
  So each piece is withheld until the next one is there; the end writes the line and sends the piece that waited.

An answer that breaks off never comes this far: it is logged by the application as what it was, when all is over.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Message, Send


class LoggedSend:
    """The ``send`` of one request; ``log`` is called once, before the last byte of the answer is handed on."""

    def __init__(self, send: Send, log: Callable[[], None]) -> None:
        self._send = send
        self._log = log
        self._head: Message | None = None
        self._withheld: bytes | None = None
        self.is_streamed = False
        self.status: int | None = None
        self.is_complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status in (204, 304) or (b"content-length", b"0") in message["headers"]:
                self._head = message
                return
        elif message["type"] == "http.response.body":
            if not message.get("more_body", False):
                self.is_complete = True
                self._log()
            if self.is_streamed:
                self._withheld, message["body"] = message["body"], self._withheld
                if self.is_complete:
                    message["body"] = (message["body"] or b"") + self._withheld
                elif message["body"] is None:
                    return
        if self._head is not None:
            head, self._head = self._head, None
            await self._send(head)
        await self._send(message)
