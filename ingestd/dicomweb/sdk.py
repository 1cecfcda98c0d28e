"""The older DicomClient SDK's methods, same names and meaning, doing what they promise.

``from ingestd.dicomweb.sdk import DicomClient, TokenCache, make_get_token_func`` stands in for
microsoft/dicom-client-python 0.3.1. What differs is what was wrong there: files with equal names do not overwrite each
other, folders are streamed in batches and each instance's fate is looked at, TLS certificates are checked, files are
saved byte by byte under their whole UIDs, and the patient's id is the one that was asked for.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ingestd.clocks import utc_now
from ingestd.dicomweb.auth import Auth
from ingestd.dicomweb.client import DicomWebClient
from ingestd.dicomweb.decoding import uid_of
from ingestd.dicomweb.errors import NotFound, Refused, TokenError
from ingestd.dicomweb.folders import batches
from ingestd.dicomweb.oauth import CONNECTION_INFO, ConnectionInfo
from ingestd.dicomweb.store_result import StoreResult

EXPIRES_SOON_SECONDS = 10


class TokenCache:
    """Keeps a token until shortly before its end. Thread-safe. An ``Auth`` for DicomWebClient as well."""

    def __init__(self, get_token_func: Callable[[], str]) -> None:
        self._get_token_func = get_token_func
        self._lock = threading.Lock()
        self._token = ""
        self._expires_at = 0.0

    def get_token(self) -> str:
        """Return a token that is valid for more than ten seconds, calling the function where there is none."""
        with self._lock:
            if self._expires_at <= utc_now().timestamp() + EXPIRES_SOON_SECONDS:
                self._token = self._get_token_func()
                self._expires_at = expiry_of(self._token)
            return self._token

    def header(self) -> str | None:
        """Return the Authorization header's value."""
        return f"Bearer {self.get_token()}"

    def renew(self, refused: str | None) -> bool:
        """Throw the refused token away; True if there is another one."""
        with self._lock:
            if f"Bearer {self._token}" == refused:
                self._expires_at = 0.0
        return self.header() != refused


def expiry_of(token: str) -> float:
    """Read when a JWT expires (RFC 7519 §4.1.4), in seconds since 1970; 0 if it does not say. Nothing is verified."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (IndexError, ValueError, KeyError, TypeError, OverflowError, RecursionError, binascii.Error):
        return 0.0


def make_get_token_func(dict_auth_info: Mapping[str, str] | None = None) -> Callable[[], str]:
    """Return a function that fetches a token, from the SDK's dictionary or the environment's AUTH_CONNECTION_INFO."""
    info = (
        ConnectionInfo.parse(json.dumps(dict(dict_auth_info)))
        if dict_auth_info is not None
        else ConnectionInfo.from_environment(CONNECTION_INFO)
    )
    auth = info.auth()
    return lambda: auth.fetch().text


class DicomClient:
    """The SDK's client. ``base_url`` needs its version (``.../v2``), as ever; ``token_cache`` may be any ``Auth``."""

    def __init__(self, base_url: str, token_cache: Auth | None = None) -> None:
        self.client = DicomWebClient(base_url, auth=token_cache)

    def upload_dicom_folder(self, folder: str | os.PathLike[str]) -> list[StoreResult]:
        """Store every ``*.dcm`` below a folder, in batches; returns their results.

        Raises FileNotFoundError if there is no folder or no such file in it, and Refused if any instance was not stored
        (an instance that is there already counts as stored).
        """
        root = Path(folder)
        paths = sorted(path for path in root.rglob("*.dcm") if path.is_file()) if root.is_dir() else []
        if not paths:
            raise FileNotFoundError("the folder is not there, or has no *.dcm files")
        return self._upload(paths)

    def upload_dicom_file(self, path: str | os.PathLike[str]) -> StoreResult:
        """Store one file; raises FileNotFoundError, and Refused if it was not stored."""
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError("the file is not there")
        return self._upload([file])[0]

    def _upload(self, paths: list[Path]) -> list[StoreResult]:
        skipped: list[str] = []
        results = [self.client.store(batch) for batch in batches(paths, on_skip=lambda _path, why: skipped.append(why))]
        failed = [
            failure.meaning for result in results for failure in result.failed.values() if failure.reason != 0xB00E
        ]
        unknown = sum(len(result.unnamed) + len(result.contradicted) for result in results)
        anonymous = sum(len(result.anonymous_failures) for result in results)
        if failed or skipped or unknown or anonymous:
            raise Refused(
                f"of {len(paths)} files {len(failed) + anonymous} were refused ({', '.join(sorted(set(failed)))}), "
                f"{unknown} have no verdict and {len(skipped)} are no DICOM files; the others are stored"
            )
        return results

    def delete_dicom(self, study: str, series: str | None = None, instance: str | None = None) -> bool:
        """Delete a study, series or instance; True when it is gone, False when it was not there."""
        try:
            self.client.delete(study, series, instance)
        except NotFound:
            return False
        return True

    def delete_dicom_file(self, study: str) -> bool:
        """Delete a study; as ``delete_dicom``."""
        return self.delete_dicom(study)

    def download_dicom(
        self, output_folder: str | os.PathLike[str], study: str, series: str | None = None, instance: str | None = None
    ) -> list[Path]:
        """Save a study, series or instance below a folder as ``<study>/<series>/<sop>.dcm``; returns the files."""
        saved = self.client.download(Path(output_folder), study, series, instance)
        return [*saved.written, *saved.replaced, *saved.kept]

    def get_patient_study_ids(self, patient_id: str) -> list[str]:
        """Return the Study Instance UIDs of all studies of a patient."""
        if not patient_id.strip():
            raise ValueError("a patient's id is needed")
        found = self.client.find_studies({"PatientID": patient_id}, include=["StudyInstanceUID"])
        return [uid_of(item, "StudyInstanceUID") for item in found]


__all__ = ["DicomClient", "TokenCache", "TokenError", "expiry_of", "make_get_token_func"]
