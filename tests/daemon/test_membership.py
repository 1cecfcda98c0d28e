"""How workers divide the drop folders among them, each by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestd.daemon.membership import divide, seen_by

NAMES = [f"inbox{number}" for number in range(7)]
SETS = st.sets(st.sampled_from(NAMES))


def test_who_is_alone_takes_all_whether_it_sees_it_or_not():
    assert divide(NAMES, {1: []}, {1: NAMES[:3]}, 1) == (NAMES, [])


def test_what_nobody_sees_is_shared_by_all():
    assert divide(NAMES[:4], {1: [], 2: NAMES[:2]}, {1: [], 2: []}, 1) == (NAMES[2:4], [])
    assert divide(NAMES[:2], {1: NAMES[:2], 2: []}, {1: [], 2: NAMES[1:2]}, 1) == ([], [NAMES[1]])


def test_whoever_comes_takes_nothing_that_another_has_and_that_one_gives_up_what_is_more_than_its_part():
    had, seen = {1: NAMES, 2: []}, {1: NAMES, 2: NAMES}
    assert divide(NAMES, had, seen, 2) == ([], [])
    assert divide(NAMES, had, seen, 1) == ([], NAMES[:3:-1])


def test_what_nobody_else_sees_is_kept_beyond_our_part():
    assert divide(NAMES[:2], {1: NAMES[:2], 2: []}, {1: NAMES, 2: NAMES[2:]}, 1) == ([], [])
    assert divide(NAMES[:2], {1: NAMES[:1], 2: []}, {1: NAMES, 2: NAMES[2:]}, 1) == ([NAMES[1]], [])


def test_what_we_see_no_more_is_given_up_where_another_sees_it():
    had = {1: NAMES[:2], 2: NAMES[2:4]}
    assert divide(NAMES[:4], had, {1: NAMES[1:], 2: NAMES}, 1) == ([], [NAMES[0]])
    assert divide(NAMES[:4], had, {1: NAMES[1:], 2: NAMES[1:]}, 1) == ([], [])


def test_bare_folder_that_another_has_something_mounted_on_is_not_seen():
    assert seen_by({1: {"a": 1, "b": 9}, 2: {"a": 12, "b": 9}, 3: {}}) == {1: {"b"}, 2: {"a", "b"}, 3: set()}


def test_what_is_configured_no_more_is_nobodys_part():
    assert divide(NAMES[:2], {1: NAMES, 2: []}, {1: NAMES, 2: NAMES}, 1) == ([], [NAMES[1]])


@given(
    st.integers(0, len(NAMES)),
    st.lists(st.tuples(SETS, st.just(set(NAMES)) | SETS), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_whoever_acts_when_all_come_to_have_their_parts(wanted, workers, chance):
    """Whatever each had, whoever comes first in each round: in the end nothing is had twice, or by nobody."""
    names, had, taken = NAMES[:wanted], {}, set()
    seen = dict(enumerate(sees for _, sees in workers))
    for number, (claimed, _) in enumerate(workers):
        had[number] = claimed - taken
        taken |= claimed
    for _ in range(2 * len(NAMES)):
        for number in chance.sample(sorted(had), len(had)):
            takes, gives = divide(names, had, seen, number)
            assert not set(takes) & set().union(*had.values())
            had[number] = (had[number] - set(gives) - set(NAMES[wanted:])) | set(takes)
    in_sight = set().union(*seen.values()) & set(names)
    assert in_sight <= set().union(*had.values())
    assert all(name in seen[number] for number, each in had.items() for name in each & in_sight)
    assert all(divide(names, had, seen, number) == ([], []) for number in had), "and so it stays"
    if all(len(each) == len(NAMES) for each in seen.values()):
        assert max(len(each) for each in had.values()) <= -(-wanted // len(had))
