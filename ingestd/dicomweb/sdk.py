"""The older DicomClient SDK's methods, same names and meaning, doing what they promise.

``from ingestd.dicomweb.sdk import DicomClient, TokenCache, make_get_token_func`` stands in for
microsoft/dicom-client-python 0.3.1. Errors are caught as there: each is one of requests' own, with the server's answer
as its ``response`` (``sdk_errors``). What differs is what was wrong there: files with equal names do not overwrite each
other, folders are streamed in batches, TLS certificates are checked, files are saved byte by byte under their whole
UIDs, and the patient's id is the one that was asked for. An upload returns each request's ``StoreResult``, a download
its files, in place of a response.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from ingestd.clocks import utc_now
from ingestd.dicomweb.answers import Answer
from ingestd.dicomweb.auth import Auth
from ingestd.dicomweb.client import DicomWebClient
from ingestd.dicomweb.decoding import uid_of
from ingestd.dicomweb.errors import DicomWebError, FileChanged, NotFound, Refused, TokenError
from ingestd.dicomweb.folders import batches
from ingestd.dicomweb.oauth import CONNECTION_INFO, ConnectionInfo
from ingestd.dicomweb.retrieving import read_uids
from ingestd.dicomweb.sdk_errors import SdkError, in_terms_of_requests
from ingestd.dicomweb.store_body import StorePart
from ingestd.dicomweb.store_result import StoreResult, failure_meaning
from ingestd.fs import places

EXPIRES_SOON_SECONDS = 10
ALREADY_THERE = 0xB00E

_log = logging.getLogger(__name__)


class TokenRefreshError(TokenError):
    """The function that a token was asked of gave none."""


@runtime_checkable
class GivesTokens(Protocol):
    """What the older SDK asked of a token cache."""

    def get_token(self) -> str: ...


class TokenCache:
    """Keeps a token until shortly before its end. Thread-safe. An ``Auth`` for DicomWebClient as well."""

    def __init__(self, get_token_func: Callable[[], str]) -> None:
        self._get_token_func = get_token_func
        self._lock = threading.RLock()
        self._token = ""
        self._expires_at = 0.0

    def get_token(self) -> str:
        """Return a token that is valid for more than ten seconds, calling the function where there is none."""
        with self._lock:
            if self.should_refresh():
                self.refresh()
            return self._token

    def should_refresh(self) -> bool:
        """Whether there is no token, or one that ends within ten seconds."""
        return self._expires_at <= utc_now().timestamp() + EXPIRES_SOON_SECONDS

    def refresh(self) -> None:
        """Call the function for another token; raises TokenRefreshError where it gives none."""
        with self._lock:
            token = (self._get_token_func() or "").strip()  # a command's output ends its line
            if not token:
                raise TokenRefreshError
            self._token, self._expires_at = token, expiry_of(token)

    def header(self) -> str | None:
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

    def get_token() -> str:
        try:
            return auth.fetch().text
        except TokenError as error:
            raise in_terms_of_requests(error) from None

    return get_token


class DicomClientInterface(ABC):
    """What a client of the older SDK can do; others implement it as well, to stand in for one."""

    @abstractmethod
    def __init__(self, base_url: str, token_cache: Auth | GivesTokens | None) -> None: ...

    @abstractmethod
    def upload_dicom_folder(self, folder: str | os.PathLike[str]) -> object:
        """Store every ``*.dcm`` below a folder."""

    @abstractmethod
    def upload_dicom_file(self, path: str | os.PathLike[str]) -> object:
        """Store one file."""

    @abstractmethod
    def delete_dicom(self, study: str, series: str | None = None, instance: str | None = None) -> object:
        """Delete a study, series or instance."""

    @abstractmethod
    def download_dicom(
        self, output_folder: str | os.PathLike[str], study: str, series: str | None = None, instance: str | None = None
    ) -> object:
        """Save a study, series or instance below a folder."""

    @abstractmethod
    def get_patient_study_ids(self, patient_id: str) -> list[str]:
        """Return the Study Instance UIDs of a patient."""


class DicomClient(DicomClientInterface):
    """The SDK's client. ``base_url`` needs its version (``.../v2``), as ever; ``token_cache`` may be any ``Auth``.

    Every method raises SdkError.
    """

    def __init__(self, base_url: str, token_cache: Auth | GivesTokens | None = None) -> None:
        auth = token_cache
        if isinstance(auth, GivesTokens) and not isinstance(auth, TokenCache):
            auth = TokenCache(auth.get_token)
        self.client = DicomWebClient(base_url, auth=auth)
        self.client.transport.on_answer = self._hear
        self._heard = threading.local()

    def _hear(self, answer: Answer) -> None:
        self._heard.answer = answer

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self._heard.answer = None
        try:
            yield
        except SdkError:
            raise
        except DicomWebError as error:
            raise in_terms_of_requests(error, self._heard.answer) from None  # it holds all of it

    def upload_dicom_folder(self, folder: str | os.PathLike[str]) -> list[StoreResult]:
        """Store every ``*.dcm`` below a folder, in batches; returns their results.

        Where the server takes some and refuses others, that stands in the results, and in a warning in the log.
        Raises FileNotFoundError if there is no folder or no such file in it, and SdkError where nothing was stored (an
        instance that is there already counts as stored) and where something stands in no result: a file that is not
        whole or cannot be read, and so was not sent; a request that failed. The results of all others are then the
        error's ``results``.
        """
        root = Path(folder)
        paths = sorted(path for path in root.rglob("*.dcm") if path.is_file()) if root.is_dir() else []
        if not paths:
            raise FileNotFoundError("the folder is not there, or has no *.dcm files")
        return self._upload(paths)

    def upload_dicom_file(self, path: str | os.PathLike[str]) -> StoreResult:
        """Store one file; raises FileNotFoundError, and SdkError if it was not stored."""
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError("the file is not there")
        return self._upload([file])[0]

    def _upload(self, paths: Sequence[Path]) -> list[StoreResult]:
        upload = _Upload(len(paths))
        skipped: list[tuple[Path, str]] = []
        try:
            for batch in batches(paths, on_skip=lambda path, why: skipped.append((path, why))):
                self._store(batch, upload)
            for path, why in skipped:
                # An instance that is not whole stays here, as the daemon leaves it. Of anything else the server says
                # what it thinks of it, and of it alone: there are some that refuse a whole request for one part.
                if _is_instance(path):
                    upload.left.append(why)
                    continue
                try:
                    part = StorePart.of(path)
                except (OSError, ValueError):
                    upload.left.append(why)
                else:
                    self._store([part], upload)
            upload.judge()
        except SdkError as error:
            error.results = tuple(upload.results)
            raise
        return upload.results

    def _store(self, batch: Sequence[StorePart], upload: _Upload) -> None:
        try:
            with self._asking():
                upload.take(self.client.store(batch), self._heard.answer)
            return
        except FileChanged as error:
            upload.left.append("gone or changed since it was read")
            parts = [[part for index, part in enumerate(batch) if index != error.part_index]]
        except Refused as error:
            # Refused whole: because of its size, or of one file, which is found by halving.
            if error.status not in {400, 413}:
                raise
            half = len(batch) // 2
            if not half:
                upload.refuse(self._heard.answer)
                return
            parts = [[*batch[:half]], [*batch[half:]]]
        for some in filter(None, parts):
            self._store(some, upload)

    def delete_dicom(self, study: str, series: str | None = None, instance: str | None = None) -> bool:
        """Delete a study, series or instance; True, and HTTPError with a 404 when it was not there."""
        with self._asking():
            self.client.delete(study, series, instance)
        return True

    def delete_dicom_file(self, study: str) -> bool:
        """Delete a study; True when it is gone, False when it was not there."""
        try:
            return self.delete_dicom(study)
        except NotFound:
            return False

    def download_dicom(
        self, output_folder: str | os.PathLike[str], study: str, series: str | None = None, instance: str | None = None
    ) -> list[Path]:
        """Save a study, series or instance below a folder as ``<study>/<series>/<sop>.dcm``; returns the files."""
        with self._asking():
            saved = self.client.download(Path(output_folder), study, series, instance)
        return [*saved.written, *saved.replaced, *saved.kept]

    def get_patient_study_ids(self, patient_id: str) -> list[str]:
        """Return the Study Instance UIDs of all studies of a patient."""
        if not patient_id.strip():
            raise ValueError("a patient's id is needed")
        with self._asking():
            found = self.client.find_studies({"PatientID": patient_id}, include=["StudyInstanceUID"])
            return [uid_of(item, "StudyInstanceUID") for item in found]


class _Upload:
    """What has become of the files of one upload so far."""

    def __init__(self, files: int) -> None:
        self._files = files
        self.results: list[StoreResult] = []
        self._refused = 0  # alone, by answers that are no result
        self.left: list[str] = []  # why files were not sent
        self._anything_stored = False
        self._refusal: Answer | None = None

    def take(self, result: StoreResult, answer: Answer) -> None:
        """Take an answer's verdicts."""
        self.results.append(result)
        if result.stored or any(failed.reason == ALREADY_THERE for failed in result.failed.values()):
            self._anything_stored = True
        elif self._refusal is None:
            self._refusal = answer

    def refuse(self, answer: Answer) -> None:
        """Take the refusal of a request that was one file's."""
        if not self._refused:
            self._refusal = answer
        self._refused += 1

    def judge(self) -> None:
        """Warn of what was not stored; raise SdkError where nothing was, and where something stands in no result."""
        failed = [failed for result in self.results for failed in result.failed.values()]
        failed = [one for one in failed if one.reason != ALREADY_THERE]
        reasons = {one.meaning for one in failed}
        reasons |= {failure_meaning(reason) for result in self.results for reason in result.anonymous_failures}
        refused = self._refused + len(failed) + sum(len(result.anonymous_failures) for result in self.results)
        unknown = sum(len(result.unnamed) + len(result.contradicted) for result in self.results)
        if not (refused or unknown or self.left):
            return
        says = (
            f"of {self._files} files {refused} were refused{_words(reasons)}, {unknown} have no verdict and "
            f"{len(self.left)} were not sent{_words(self.left)}; the others are stored"
        )
        if self._anything_stored and not (self._refused or self.left):
            _log.warning("upload: %s", says)
            return
        status = None if self._refusal is None else self._refusal.status
        raise in_terms_of_requests(Refused(says, status=status), self._refusal)


def _words(reasons: Iterable[str]) -> str:
    said = ", ".join(sorted(set(reasons)))
    return f" ({said})" if said else ""


def _is_instance(path: Path) -> bool:
    """Whether a file names an instance, whole or not."""
    try:
        fd = places.open_file(str(path))
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and read_uids(fd) is not None
    except OSError:
        return False
    finally:
        os.close(fd)


__all__ = [
    "DicomClient",
    "DicomClientInterface",
    "SdkError",
    "TokenCache",
    "TokenError",
    "TokenRefreshError",
    "expiry_of",
    "make_get_token_func",
]
