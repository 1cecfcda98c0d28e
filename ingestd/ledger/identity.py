"""By what an identity is looked up: a hash of its three UIDs, much shorter than they are in every index that has it."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from ingestd.lifecycle import Identity

_HALF = 8


def hash_of(identity: Identity) -> str:
    """Give the 16 bytes (hex) by which an identity is looked up; what is found is compared by its UIDs.

    The first half is of the Study Instance UID alone: a study's rows lie together in an index, and a transaction that
    adds a hundred of them writes few of its pages, however many there are.
    """
    return hash_of_uids(identity.study_uid, identity.series_uid, identity.sop_uid).hex()


def hash_of_uids(study_uid: str, series_uid: str, sop_uid: str) -> bytes:
    all_three = hashlib.sha256(f"{study_uid}\0{series_uid}\0{sop_uid}".encode()).digest()
    return _of_study(study_uid) + all_three[:_HALF]


@lru_cache(64)
def _of_study(study_uid: str) -> bytes:
    return hashlib.sha256(study_uid.encode()).digest()[:_HALF]
