"""By what an identity is looked up: a hash of its three UIDs, much shorter than they are in every index that has it."""

from __future__ import annotations

import hashlib

from ingestd.lifecycle import Identity

_HALF = 8


def hash_of(identity: Identity) -> str:
    """Give the 16 bytes (hex) by which an identity is looked up; what is found is compared by its UIDs.

    The first half is of the SOP Instance UID alone, so that all rows of one lie together (``range_of``).
    """
    return hash_of_uids(identity.study_uid, identity.series_uid, identity.sop_uid).hex()


def hash_of_uids(study_uid: str, series_uid: str, sop_uid: str) -> bytes:
    all_three = hashlib.sha256(f"{study_uid}\0{series_uid}\0{sop_uid}".encode()).digest()
    return _of_sop(sop_uid) + all_three[:_HALF]


def range_of(sop_uid: str) -> tuple[str, str]:
    """Say between which two hashes (hex, both included) all identities with this SOP Instance UID lie."""
    first = _of_sop(sop_uid).hex()
    return first + "00" * _HALF, first + "ff" * _HALF


def _of_sop(sop_uid: str) -> bytes:
    return hashlib.sha256(sop_uid.encode()).digest()[:_HALF]
