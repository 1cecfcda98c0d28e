"""A headless Chromium told what to do through pipes (the DevTools protocol without a web socket)."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.patience import PATIENCE

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class BrowserError(RuntimeError):
    """The browser did not do what it was told."""


class Browser:
    """One browser with one page, and a profile of its own."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None, "the caller looked"
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.console: list[str] = []
        # The browser reads from descriptor 3 and writes to 4.
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            [
                "bash", "-c", command, PROGRAM, "--headless=new", "--remote-debugging-pipe", "--no-sandbox",
                "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio",
                "--window-size=1200,900", f"--user-data-dir={folder}", "about:blank",
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)

    def __enter__(self) -> Self:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Runtime.enable")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        give_up_at = time.monotonic() + PATIENCE
        while True:
            answer = self._next(give_up_at)
            if answer.get("method") == "Runtime.consoleAPICalled":
                values = [str(each.get("value", each.get("description", ""))) for each in answer["params"]["args"]]
                self.console.append(" ".join(values))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer.get("result", {}))

    def _next(self, give_up_at: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, give_up_at - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            if not chunk:
                raise BrowserError("the browser does not answer")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def go(self, url: str) -> None:
        """Open a page."""
        self._call("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """What an expression gives in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer.get("result", {}).get("value")

    def wait_for(self, expression: str, *, what: str, within_seconds: float = PATIENCE) -> Any:
        """The expression's first true value; raises BrowserError, naming ``what``."""
        give_up_at = time.monotonic() + within_seconds
        while not (value := self.ask(expression)):
            if time.monotonic() > give_up_at:
                raise BrowserError(f"{what} did not come; the page says: {self.ask('document.body.innerText')!r}")
            time.sleep(0.1)
        return value

    def picture(self, path: Path) -> None:
        """Write a screenshot."""
        import base64

        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))
