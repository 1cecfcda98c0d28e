"""A plain client of the embedded server for its tests, apart from ours, and small files made element by element."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import requests

from ingestd.emulator import Emulator
from tests.builders import BIG_ENDIAN, CT_IMAGE, EXPLICIT, IMPLICIT, element, fresh_uid, part10
from tests.patience import PATIENCE

JSON = "application/dicom+json"
ANY_FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
ANY_FILE = "application/dicom; transfer-syntax=*"
BOUNDARY = "a-boundary-of-the-tests"
Change = tuple[str, bytes | str | int] | None


def scan(changes: Mapping[int, Change] | None = None, *, transfer_syntax: str = EXPLICIT, **uids: str) -> bytes:
    """A small valid CT file; ``changes`` give elements other VRs and values, or leave them out (None)."""
    sop_uid = uids.get("sop") or fresh_uid(3)
    elements: dict[int, Change] = {
        0x00080016: ("UI", CT_IMAGE),
        0x00080018: ("UI", sop_uid),
        0x00080020: ("DA", "20260102"),
        0x00080050: ("SH", "ACC-1"),
        0x00080060: ("CS", "CT"),
        0x00080090: ("PN", "Ref^Doctor"),
        0x00081030: ("LO", "A study"),
        0x00081090: ("LO", "Model 1"),
        0x00100010: ("PN", "Test^Patient"),
        0x00100020: ("LO", "PID-1"),
        0x00100030: ("DA", "19700101"),
        0x0020000D: ("UI", uids.get("study") or fresh_uid(1)),
        0x0020000E: ("UI", uids.get("series") or fresh_uid(2)),
        0x00200013: ("IS", "1"),
        0x00280002: ("US", 1),
        0x00280004: ("CS", "MONOCHROME2"),
        0x00280010: ("US", 8),
        0x00280011: ("US", 8),
        0x00280100: ("US", 8),
        0x00280101: ("US", 8),
        0x00280102: ("US", 7),
        0x00280103: ("US", 0),
        0x00400244: ("DA", "20260102"),
        0x7FE00010: ("OW" if transfer_syntax == IMPLICIT else "OB", bytes(range(64))),
    }
    elements |= changes or {}
    inner = transfer_syntax if transfer_syntax in (IMPLICIT, BIG_ENDIAN) else EXPLICIT
    dataset = b"".join(
        element(tag, *change, transfer_syntax=inner) for tag, change in sorted(elements.items()) if change is not None
    )
    return part10(dataset, sop_uid=sop_uid, transfer_syntax=transfer_syntax)


def multipart(files: Sequence[bytes], *, close: bool = True, part_type: str | None = "application/dicom") -> bytes:
    """A multipart body of these files."""
    head = b"" if part_type is None else b"Content-Type: " + part_type.encode() + b"\r\n"
    body = b"".join(b"--" + BOUNDARY.encode() + b"\r\n" + head + b"\r\n" + file + b"\r\n" for file in files)
    return body + (b"--" + BOUNDARY.encode() + b"--\r\n" if close else b"")


def parts_of(answer: requests.Response) -> list[bytes]:
    """The contents of a multipart answer's parts."""
    kind = answer.headers["Content-Type"]
    assert kind.startswith('multipart/related; boundary="'), kind
    delimiter = b"--" + kind.split('"')[1].encode()
    pieces = answer.content.split(delimiter)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    return [piece.partition(b"\r\n\r\n")[2][:-2] for piece in pieces[1:-1]]


class Peer:
    """Speaks to one server under one version."""

    def __init__(self, root: str, version: str = "v2", **headers: str) -> None:
        self.root = root
        self.url = f"{root}/{version}"
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers.clear()
        self.session.headers.update(headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.session.close()

    def call(self, method: str, path: str, *, accept: str | None = None, **rest: Any) -> requests.Response:
        """One request below the version; headers are what is given and nothing else."""
        headers = dict(rest.pop("headers", {}))
        if accept is not None:
            headers["Accept"] = accept
        return self.session.request(method, self.url + path, headers=headers, timeout=30, **rest)

    def get(self, path: str, accept: str | None = JSON, **rest: Any) -> requests.Response:
        """GET."""
        return self.call("GET", path, accept=accept, **rest)

    def store(
        self,
        *files: bytes,
        path: str = "/studies",
        method: str = "POST",
        accept: str | None = JSON,
        content_type: str = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}',
        body: bytes | None = None,
        **headers: str,
    ) -> requests.Response:
        """Store files as one multipart request, or the body as it is given."""
        content = multipart(files) if body is None else body
        return self.call(method, path, accept=accept, data=content, headers={"Content-Type": content_type, **headers})

    def store_one(self, file: bytes, path: str = "/studies", **rest: Any) -> requests.Response:
        """Store one file as the single part."""
        return self.store(body=file, content_type="application/dicom", path=path, **rest)

    def feed(self, query: str = "includeMetadata=false") -> list[dict[str, Any]]:
        """A page of the change feed."""
        answer = self.get(f"/changefeed?{query}", None)
        assert answer.status_code == 200, answer.text
        return list(answer.json())

    def finished(self, href: str) -> dict[str, Any]:
        """What an operation has come to, once it has."""
        give_up_at = time.monotonic() + PATIENCE
        while True:
            answer = self.session.get(href, timeout=30)
            if answer.status_code != 202:
                return dict(answer.json())
            assert time.monotonic() < give_up_at, "the operation did not end"
            time.sleep(0.01)


def stored(answer: requests.Response) -> list[dict[str, Any]]:
    """The items of the answer's ReferencedSOPSequence."""
    return list(answer.json().get("00081199", {}).get("Value", []))


def failed(answer: requests.Response) -> list[dict[str, Any]]:
    """The items of the answer's FailedSOPSequence."""
    return list(answer.json().get("00081198", {}).get("Value", []))


def reasons(answer: requests.Response) -> list[int]:
    """The failure reasons in an answer."""
    return [item["00081197"]["Value"][0] for item in failed(answer)]


def comments(item: dict[str, Any]) -> list[str]:
    """The texts of an item's FailedAttributesSequence."""
    return [each["00000902"]["Value"][0] for each in item["00741048"].get("Value", [])]


def path_of(item: dict[str, Any]) -> str:
    """The path below the version of a stored item."""
    return "/studies" + str(item["00081190"]["Value"][0]).partition("/studies")[2]


def creating(server: Emulator) -> int:
    """How many instances are being created in a server of this process."""
    with server._running.index.read() as tx:
        return int(tx.execute("SELECT count(*) FROM instance WHERE status = 0").fetchone()[0])
