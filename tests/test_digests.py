"""Digests: which algorithm each is of, and that what is held against an earlier one is of the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from blake3 import blake3

from ingestd.dicomweb import StorePart
from ingestd.dicomweb.errors import FileChanged
from ingestd.dicomweb.store_body import StoreBody
from ingestd.digests import Digester, HeadAndRest, is_digest
from ingestd.instance import inspect
from tests.builders import DEFLATED, EXPLICIT, JPEG_BASELINE, instance_bytes

CONTENT = bytes(range(256)) * 5000


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blake3_of(content: bytes) -> str:
    return "1e20" + blake3(content).hexdigest()


DIGESTS = {"blake3": blake3_of, "sha256": sha256_of}


def test_digest_names_its_algorithm_and_is_taken_like_another() -> None:
    for like, wanted in (("", blake3_of), (blake3_of(b"other"), blake3_of), (sha256_of(b"other"), sha256_of)):
        digester = Digester(like)
        for at in range(0, len(CONTENT), 100_000):
            digester.update(memoryview(CONTENT)[at : at + 100_000])

        assert digester.text() == wanted(CONTENT)
        assert is_digest(digester.text())
    assert not any(map(is_digest, ("", "1e20", blake3_of(b"")[:-1], sha256_of(b"").upper(), "1220" + sha256_of(b""))))


@pytest.mark.parametrize("algorithm", DIGESTS)
@pytest.mark.parametrize("offset", [0, 1, 700, 1024, len(CONTENT)])
def test_bytes_on_both_sides_of_an_offset_have_digests_of_their_own(algorithm: str, offset: int) -> None:
    take = DIGESTS[algorithm]
    digests = HeadAndRest(offset, like=take(b""))
    for at in range(0, len(CONTENT), 1024):
        digests.update(CONTENT[at : at + 1024])

    assert digests.texts() == (take(CONTENT[:offset]), take(CONTENT[offset:]))


@pytest.mark.parametrize("syntax", [EXPLICIT, DEFLATED, JPEG_BASELINE])
@pytest.mark.parametrize("rows", [4, 900])
@pytest.mark.parametrize("algorithm", DIGESTS)
def test_file_is_read_once_for_all_its_digests(syntax: str, rows: int, algorithm: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content := instance_bytes(transfer_syntax=syntax, rows=rows, columns=700))
    take = DIGESTS[algorithm]
    with path.open("rb") as file:
        found = inspect(file.fileno(), like=take(b""), sha256=True)
    with path.open("rb") as file:
        without = inspect(file.fileno())

    assert (found.meta_digest, found.digest) == (
        take(content[: found.dataset_offset]),
        take(content[found.dataset_offset :]),
    )
    assert found.sha256 == sha256_of(content)
    assert (without.digest, without.sha256) == (blake3_of(content[found.dataset_offset :]), "")


@pytest.mark.parametrize("algorithm", DIGESTS)
def test_what_leaves_is_checked_by_the_algorithm_that_it_was_read_with(algorithm: str, tmp_path: Path) -> None:
    path, take = tmp_path / "file", DIGESTS[algorithm]
    path.write_bytes(CONTENT)
    part = StorePart(
        path=path,
        size_bytes=len(CONTENT),
        dataset_offset=400,
        digest=take(CONTENT[400:]),
        meta_digest=take(CONTENT[:400]),
    )
    assert b"".join(map(bytes, StoreBody([part], single=True))) == CONTENT

    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(FileChanged):
        list(StoreBody([part], single=True))
