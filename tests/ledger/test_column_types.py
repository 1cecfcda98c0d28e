"""What is kept short in a row comes back as it was, and no two values are kept alike."""

from __future__ import annotations

import pytest

from ingestd.ledger.column_types import SpoolPath, Stat, StateNumber, Uid
from ingestd.lifecycle import SourceStat, State


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.5.1.4.1.1.2",
        "11.2.840.10008.3",
        "1.2.840.10008.1.2.840.10008.7",
        "2.25.329800735698586629295641978511506172918",
        "1.02.3",
        "1",
        "",
        "1.2.e",
        "1.2.f",
        "1.2. ",
        "1.2.é",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "1" * 64,
    ],
)
def test_uid_comes_back_as_it_was_and_no_other_is_kept_alike(uid: str):
    kept = Uid.keep(uid)

    assert Uid.give(kept) == uid
    assert len(kept) <= (len(uid) + 1) // 2 or not uid.isascii() or not uid.replace(".", "").isdigit()
    assert Uid.keep(f"{uid}0") != kept
    assert Uid.keep(f"{uid}.") != kept


@pytest.mark.parametrize(
    "path",
    [
        "files/in-1/00112233445566778899aabbccddeeff",
        "files/in-1/000000000000000000000000000000ff",
        "files/in-1/6b0c8441/00112233445566778899aabbccddeeff",
        "files/\udcff/00000000/00112233445566778899aabbccddeeff",
        "explicit/in-1/6b0c8441/00112233445566778899aabbccddeeff",
        "files/6b0c8441/00112233445566778899aabbccddeeff",
        "files/in-1/6b0c8441/x/00112233445566778899aabbccddeeff",
        "files/in-1/6b0c844/00112233445566778899aabbccddeeff",
        "/files/in-1/6b0c8441/00112233445566778899aabbccddeeff",
        "/20260301/00112233445566778899aabbccddeeff",
        "rejected/in-1/00112233445566778899aabbccddeeff/IM1.dcm",
        "rejected/in-1/00112233445566778899aabbccddeeff/00112233445566778899aabbccddeeff",
        "rejected/in-1/00112233445566778899aabbccddeeff/\udcff\udc80 é.dcm",
        "files/in-1/00112233445566778899AABBCCDDEEFF",
        "00112233445566778899aabbccddeeff",
        "files/in-1/00112233445566778899aabbccddeeff0",
        "/inbox/\udcff/IM1",
        "",
    ],
)
def test_path_in_the_spool_comes_back_as_it_was(path: str):
    assert SpoolPath.give(SpoolPath.keep(path)) == path


def test_path_outside_the_spools_folders_is_kept_as_ever():
    """Rows are found by what is kept of a path."""
    path = "/archive/20260301/00112233445566778899aabbccddeeff"

    assert SpoolPath.keep(path) == b"/archive/20260301/\0" + bytes.fromhex(path[-32:])


def test_what_the_kernel_said_comes_back_as_it_was():
    for stat in (
        SourceStat(inode=(1 << 64) - 1, size_bytes=0, mtime_ns=-5),
        SourceStat(inode=7, size_bytes=1 << 60, mtime_ns=1 << 70),
    ):
        assert Stat.give(Stat.keep(stat)) == stat


def test_every_state_has_a_number_and_keeps_it():
    numbers = [StateNumber.keep(state) for state in State]

    assert sorted(numbers) == list(range(len(State)))
    assert (StateNumber.keep(State.PENDING), StateNumber.keep(State.DISCARDED)) == (0, 11)
    assert [StateNumber.give(number) for number in numbers] == list(State)
