"""The loop of the DICOM service's own tutorials: each file read whole and posted alone; only the status is looked at.

python -m tests.benchmarks.plain_client URL FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import requests
import urllib3
from urllib3.filepost import encode_multipart_formdata


def post_all(url: str, paths: Sequence[Path]) -> None:
    """One session, one file, one multipart POST at a time."""
    with requests.session() as client:
        for path in paths:
            with path.open("rb") as reader:
                content = reader.read()
            body, content_type = _encode_multipart_related({"file": ("dicomfile", content, "application/dicom")})
            answer = client.post(
                f"{url}/studies",
                body,
                headers={"Accept": "application/dicom+json", "Content-Type": content_type},
                verify=False,
            )
            answer.raise_for_status()


def _encode_multipart_related(fields: dict[str, tuple[str, bytes, str]]) -> tuple[bytes, str]:
    """Build the body as the service's own Python tutorial does."""
    body, _ = encode_multipart_formdata(fields, boundary := urllib3.filepost.choose_boundary())
    return body, f"multipart/related; boundary={boundary}"


if __name__ == "__main__":
    post_all(sys.argv[1], sorted(path for path in Path(sys.argv[2]).rglob("*") if path.is_file()))
