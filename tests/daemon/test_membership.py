"""How workers divide the drop folders among them, each by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestd.daemon.membership import divide, seen_by, stands_back

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


def test_upkeep_is_anothers_who_reaches_what_we_do_not():
    assert stands_back({1: {"a": False, "b": True}, 2: {"a": True}}, 1)
    assert not stands_back({1: {"a": False}, 2: {}}, 1), "nobody knows whether that one does"
    assert not stands_back({1: {"a": False}, 2: {"a": False}}, 1)
    assert not stands_back({1: {}, 2: {"a": True}}, 1), "nothing failed here"


def test_of_two_who_fail_at_different_servers_neither_gives_the_upkeep_up():
    reach = {1: {"a": False, "b": True}, 2: {"a": True, "b": False}}
    assert [stands_back(reach, number) for number in reach] == [False, False]


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=5),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_whoever_acts_when_the_upkeep_comes_to_one_who_keeps_it(workers, first, chance):
    """Whoever had it, or nobody: in the end one has it, of whom no other reaches more, and so it stays."""
    reach = dict(enumerate(workers))
    holder = first if first in reach else None
    for _ in range(2 * len(reach)):
        for number in chance.sample(sorted(reach), len(reach)):
            if holder is None and not stands_back(reach, number):
                holder = number
            elif holder == number and stands_back(reach, number):
                holder = None
    assert holder is not None
    assert not stands_back(reach, holder)
