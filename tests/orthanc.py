"""A real Orthanc with its DICOMweb plugin, started for one test or one benchmark and gone afterwards.

Debian's packages ``orthanc`` and ``orthanc-dicomweb`` are needed. Where they are not installed, tests marked with
``requires_orthanc`` are skipped with the reason; with ``INGESTD_REQUIRE_PEERS=1`` (as ``.ci/run`` sets it) they fail
instead.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.patience import PATIENCE
from tests.ports import own_port

PROGRAM = Path("/usr/sbin/Orthanc")
DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STOP_WITHIN_SECONDS = 15.0


def why_no_orthanc() -> str:
    """Say what is missing to run Orthanc here; empty when nothing is."""
    missing = [str(path) for path in (PROGRAM, DICOMWEB_PLUGIN) if not path.exists()]
    if not missing:
        return ""
    return f"{' and '.join(missing)} not installed (Debian packages orthanc, orthanc-dicomweb)"


def peers_are_required() -> bool:
    """Say whether a missing peer fails the tests instead of skipping them."""
    return os.environ.get("INGESTD_REQUIRE_PEERS", "") == "1"


requires_orthanc = pytest.mark.skipif(
    bool(why_no_orthanc()) and not peers_are_required(), reason=why_no_orthanc() or "Orthanc is installed"
)


class OrthancError(RuntimeError):
    """Orthanc did not start, or answered its REST API with an error."""


class Orthanc:
    """One Orthanc in a temporary folder of its own, on free ports of the loopback interface.

    ``url`` is its DICOMweb root, ``rest_url`` the root of its own REST API. It keeps the first of two objects with
    the same UIDs (``OverwriteInstances`` false, Orthanc's default) unless told otherwise. ``forward_to`` names one
    DICOMweb server, ``sink``, that ``forward`` sends to by STOW. ``settings`` are merged into the configuration last.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        overwrite: bool = False,
        forward_to: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._given_folder = folder
        self._overwrite = overwrite
        self._forward_to = forward_to
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path()
        self.port = 0

    @property
    def rest_url(self) -> str:
        """Root of Orthanc's own REST API, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Root of the DICOMweb services, without a trailing slash."""
        return f"{self.rest_url}/dicom-web"

    @property
    def pid(self) -> int:
        """Process id, while it runs."""
        assert self._process is not None, "Orthanc is used as a context manager"
        return self._process.pid

    def __enter__(self) -> Self:
        if reason := why_no_orthanc():
            raise OrthancError(reason)
        self.folder = Path(tempfile.mkdtemp(prefix="orthanc-", dir=self._given_folder))
        self.port = own_port()
        self.start()
        try:
            self._wait_until_ready()
        except OrthancError:
            self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()  # to end in order takes it 2.5 s, and what it keeps goes in any case
            self._process.wait()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the process on ``port`` with what ``folder`` holds; it may not be ready yet."""
        configuration = self.folder / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration(), indent=1))
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, configuration], stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )

    def restart(self) -> None:
        """Stop it and start it again on the same port with the same storage."""
        self.stop()
        self.start()
        self._wait_until_ready()

    def stop(self) -> None:
        """Ask it to end, and kill it if it will not; the storage stays."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def rest(self, method: str, path: str, body: bytes | Mapping[str, Any] | Sequence[Any] | None = None) -> Any:
        """Call Orthanc's own REST API and return the decoded JSON, or None for an empty answer."""
        content = self._call(method, path, body)
        return json.loads(content) if content else None

    def upload(self, content: bytes) -> Any:
        """Store one DICOM file by Orthanc's own ``POST /instances``, behind everybody's back."""
        return self.rest("POST", "/instances", content)

    def file_of(self, sop_uid: str) -> bytes:
        """Return the bytes that Orthanc keeps for a SOP Instance UID; raises LookupError where it has none."""
        return self._call("GET", f"/instances/{self._orthanc_id(sop_uid)}/file", None)

    def delete(self, sop_uid: str) -> None:
        """Delete one instance behind everybody's back; raises LookupError where there is none."""
        self.rest("DELETE", f"/instances/{self._orthanc_id(sop_uid)}")

    def count(self) -> int:
        """Say how many instances it holds."""
        return int(self.rest("GET", "/statistics")["CountInstances"])

    def studies(self) -> list[str]:
        """Orthanc's own ids of all studies."""
        return [str(name) for name in self.rest("GET", "/studies")]

    def forward(self, orthanc_id: str) -> str:
        """Queue a study, series or instance for sending by STOW to ``forward_to``; returns the job's id.

        The plugin's synchronous way is not used: on a job that ends quickly it closes the connection unanswered.
        """
        assert self._forward_to is not None, "no server to forward to was configured"
        answer = self.rest("POST", "/dicom-web/servers/sink/stow", {"Resources": [orthanc_id], "Synchronous": False})
        return str(answer["ID"])

    def wait_for_job(self, job: str, *, within_seconds: float = 600.0) -> None:
        """Return when a job has succeeded; raises OrthancError when it failed or takes longer than that."""
        give_up_at = time.monotonic() + within_seconds
        while time.monotonic() < give_up_at:
            state = self.rest("GET", f"/jobs/{job}")
            if state["State"] == "Success":
                return
            if state["State"] == "Failure":
                raise OrthancError(f"a job failed: {state['ErrorDescription']} {state.get('ErrorDetails', '')}")
            time.sleep(0.005)
        raise OrthancError(f"a job was not done within {within_seconds:.0f} s")

    def log(self) -> str:
        """What Orthanc said so far."""
        return (self.folder / "orthanc.log").read_text(errors="replace")

    def _configuration(self) -> dict[str, Any]:
        storage = str(self.folder / "storage")
        servers = {"sink": {"Url": self._forward_to}} if self._forward_to else {}
        return {
            "Name": "ingestd test peer",
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "OverwriteInstances": self._overwrite,
            "Plugins": [str(DICOMWEB_PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Servers": servers},
            **self._settings,
        }

    def _wait_until_ready(self) -> None:
        process = self._process
        assert process is not None, "started just before"
        give_up_at = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < give_up_at:
            try:
                with urllib.request.urlopen(f"{self.url}/studies?limit=1", timeout=2) as answer:
                    answer.read()
            except OSError:
                time.sleep(0.05)
            else:
                return
        state = "is not ready" if process.poll() is None else f"ended with {process.returncode}"
        raise OrthancError(f"Orthanc on port {self.port} {state}; it said:\n{self.log()[-2000:]}")

    def _orthanc_id(self, sop_uid: str) -> str:
        found = self.rest(
            "POST", "/tools/find", {"Level": "Instance", "Query": {"SOPInstanceUID": sop_uid}, "Limit": 1}
        )
        if not found:
            raise LookupError(f"Orthanc has no instance {sop_uid}")
        return str(found[0])

    def _call(self, method: str, path: str, body: bytes | Mapping[str, Any] | Sequence[Any] | None) -> bytes:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/octet-stream" if isinstance(body, bytes) else "application/json"}
        request = urllib.request.Request(self.rest_url + path, data=content, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()[:500].decode(errors="replace")
            raise OrthancError(f"{method} {path} answered {error.code}: {said}") from error
