"""How workers divide the drop folders among them, each by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestd.daemon.membership import divide

NAMES = [f"inbox{number}" for number in range(7)]


def test_who_is_alone_takes_all():
    assert divide(NAMES, {1: []}, 1) == (NAMES, [])


def test_whoever_comes_takes_nothing_that_another_has_and_that_one_gives_up_what_is_more_than_its_part():
    had = {1: NAMES, 2: []}
    assert divide(NAMES, had, 2) == ([], [])
    assert divide(NAMES, had, 1) == ([], NAMES[4:])


def test_what_is_configured_no_more_is_nobodys_part():
    assert divide(NAMES[:2], {1: NAMES, 2: []}, 1) == ([], [NAMES[1]])


@given(
    st.integers(0, len(NAMES)),
    st.lists(st.sets(st.sampled_from(NAMES)), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_whoever_acts_when_all_come_to_have_their_parts(wanted, claimed, chance):
    """Whatever each had, whoever comes first in each round: in the end nothing is had twice, or by nobody."""
    names, had, taken = NAMES[:wanted], {}, set()
    for number, each in enumerate(claimed):
        had[number] = each - taken
        taken |= each
    for _ in range(3):
        for number in chance.sample(sorted(had), len(had)):
            takes, gives = divide(names, had, number)
            assert not set(takes) & set().union(*had.values())
            had[number] = (had[number] - set(gives) - set(NAMES[wanted:])) | set(takes)
    assert sorted(name for each in had.values() for name in each) == names
    assert max(len(each) for each in had.values()) <= -(-wanted // len(had))
    assert all(divide(names, had, number) == ([], []) for number in had), "and so it stays"
