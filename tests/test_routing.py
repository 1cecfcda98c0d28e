"""Where a file goes: the first rule that matches, and what a rule for images leaves behind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID_dictionary

from ingestd.lifecycle import (
    CONDITIONS,
    LeftBehind,
    Routable,
    Route,
    Rule,
    left_behind,
    matches,
    may_name_sop_class,
    route,
)
from ingestd.lifecycle.routing import TEXT_MOST
from ingestd.lifecycle.sop_classes import KEYWORDS

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"
FILE = Routable(
    inbox="er",
    folder="ct1/2026",
    modality="CT",
    station="CT01",
    institution="Hospital North",
    department="Radiology",
    source_ae="CT_ER",
    sop_class=CT_IMAGE,
    study_description="CT HEAD WO CONTRAST",
)


def rule(*to: str, **when: str | list[str]) -> Rule:
    return Rule(when={name: (said,) if isinstance(said, str) else tuple(said) for name, said in when.items()}, to=to)


def routed(*rules: Rule, file: Routable = FILE) -> Route | None:
    return route(file, rules, ("archive", "research"))


def is_met(file: Routable = FILE, **when: str | list[str]) -> bool:
    return routed(rule("archive", **when), file=file) is not None


def test_without_rules_everything_goes_to_every_destination():
    assert routed() == Route(rule=None, text="no rules", destinations=("archive", "research"))


def test_the_first_rule_that_matches_wins():
    rules = (
        rule("archive", "research", inbox="er", station="CT*"),
        rule("archive", modality="CT"),
        rule("archive"),
    )

    assert routed(*rules) == Route(rule=1, text="rule 1 (inbox er, station CT*)", destinations=("archive", "research"))
    assert routed(*rules[1:]) == Route(rule=1, text="rule 1 (modality CT)", destinations=("archive",))
    assert routed(rules[2]) == Route(rule=1, text="rule 1 (everything)", destinations=("archive",))
    assert routed(*rules, file=Routable(inbox="er")) == Route(
        rule=3, text="rule 3 (everything)", destinations=("archive",)
    )


def test_file_that_no_rule_wants_has_no_route_and_one_that_goes_nowhere_has_one():
    assert routed(rule("archive", modality="MR")) is None
    assert routed(rule(modality="CT")) == Route(rule=1, text="rule 1 (modality CT)", destinations=())


def test_every_condition_of_a_rule_must_be_met_and_one_glob_of_each():
    assert is_met(modality=["MR", "CT"], station="CT0?", department="radio*")
    assert not is_met(modality=["MR", "CT"], station="MR*")
    assert not is_met(modality=["MR", "PT"])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_each_condition_looks_at_its_own_value(condition):
    value = getattr(FILE, condition)

    assert is_met(**{condition: value})
    assert is_met(**{condition: f"{value[:4]}*"})
    assert not is_met(**{condition: f"{value}x"})
    assert not is_met(Routable(), **{condition: value})
    assert is_met(Routable(), **{condition: "*"})
    assert is_met(Routable(), **{condition: ""})
    assert not is_met(**{condition: ""})


def test_rules_may_ask_for_all_that_is_told_of_a_file():
    assert set(CONDITIONS) == set(Routable.__slots__)


@pytest.mark.parametrize(
    "value, glob, expected",
    [
        ("ct01", "CT*", True),
        ("ÉCOLE", "école", True),
        ("XCT01", "CT*", False),
        ("CT01", "CT0", False),
        ("CT01", "CT0[1-4]", True),
        ("CT05", "CT0[1-4]", False),
        ("CT05", "CT0[!1-4]", True),
        ("a.b", "a?b", True),
        ("a.b", "a.b", True),
        ("axb", "a.b", False),
        ("a+b", "a+b", True),
        ("(a|b)", "(a|b)", True),
        ("a", "(a|b)", False),
        ("a\nb", "a*b", True),
        ("CT\n", "CT", False),
        ("[", "[", True),
    ],
)
def test_a_glob_is_no_regular_expression_and_matches_the_whole_value(value, glob, expected):
    assert matches(value, glob) is expected


@given(st.text(alphabet="ab*?[]!-.\\(|+$^", max_size=20), st.text(max_size=20))
def test_no_glob_is_wrong(glob, value):
    assert matches(value, glob) in {True, False}


def test_a_glob_that_matches_in_many_ways_costs_no_more_than_others():
    assert not matches("a" * 64, "*a" * 40 + "b")


@pytest.mark.parametrize(
    "glob, folder, expected",
    [
        ("ct1", "ct1", True),
        ("ct1", "ct1/2026/01", True),
        ("ct1/", "ct1/2026", True),
        ("CT*", "ct1/2026", True),
        ("ct1", "ct10", False),
        ("ct1", "2026/ct1", False),
        ("*/2026", "ct1/2026", True),
        ("ct1/*", "ct1", False),
        ("ct1/*", "ct1/a", True),
        ("", "", True),
        ("", "ct1", False),
        ("*", "", True),
    ],
)
def test_a_folder_is_named_by_itself_or_by_one_around_it(glob, folder, expected):
    assert is_met(Routable(folder=folder), folder=glob) is expected


@pytest.mark.parametrize(
    "glob, uid, expected",
    [
        (CT_IMAGE, CT_IMAGE, True),
        (f"{CT_IMAGE}*", f"{CT_IMAGE}.1", True),
        ("CTImageStorage", CT_IMAGE, True),
        ("CT Image Storage", CT_IMAGE, True),
        ("ct image*", CT_IMAGE, True),
        ("CTImageStorage", f"{CT_IMAGE}.1", False),
        ("X-Ray Radiation Dose SR Storage", DOSE_REPORT, True),
        ("*SR Storage", DOSE_REPORT, True),
        ("[C-D]TImageStorage", CT_IMAGE, True),
        ("", "1.2.3", False),
        ("1.2.*", "1.2.3", True),
        ("*", "1.2.3", True),
    ],
)
def test_a_sop_class_is_named_by_its_uid_its_keyword_or_its_name(glob, uid, expected):
    assert is_met(Routable(sop_class=uid), sop_class=glob) is expected


@pytest.mark.parametrize(
    "glob, expected",
    [
        ("1.2.3", True),
        ("1.2.*", True),
        ("", True),
        ("*SR*", True),
        ("CT Image Storage", True),
        ("CTImageStroage", False),
    ],
)
def test_a_name_that_no_sop_class_has_is_told(glob, expected):
    assert may_name_sop_class(glob) is expected


def test_every_sop_class_of_a_stored_object_is_known_by_its_keyword():
    others = ("StorageCommitment", "MediaStorageDirectory", "StoredPrint")
    expected = {
        uid: keyword
        for uid, (_, kind, _, _, keyword) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in keyword and not keyword.startswith(others)
    }

    assert expected.items() <= KEYWORDS.items()


def test_the_names_of_the_standard_are_understood():
    spelt_otherwise = ("12-lead ECG", "DICOS Quadrupole")
    names = [UID_dictionary[uid][0] for uid in KEYWORDS if not UID_dictionary[uid][3]]

    strange = [name for name in names if not may_name_sop_class(name) and not name.startswith(spelt_otherwise)]
    assert strange == []


def test_the_text_names_what_was_asked_and_stays_short():
    found = routed(
        rule("archive", station="", modality=["CT", "MR"], study_description="*"), file=Routable(modality="mr")
    )
    long = routed(rule("archive", station=[f"CT{number:03}" for number in range(1, 100)] + ["*"]))

    assert found is not None
    assert found.text == 'rule 1 (modality CT or MR, station "", study_description *)'
    assert long is not None
    assert long.text.startswith("rule 1 (station CT001 or CT002")
    assert long.text.endswith("...)")
    assert len(long.text) == TEXT_MOST


ALL = ("SR", "KO", "PR", "SEG")


@pytest.mark.parametrize(
    "rules, expected",
    [
        pytest.param([rule("a", modality="CT")], [(1, ALL)], id="nothing follows"),
        pytest.param(
            [rule("a", modality="CT"), rule("a", modality="MR")], [(1, ALL), (2, ALL)], id="only images follow"
        ),
        pytest.param([rule("a", modality="CT"), rule("a")], [], id="everything follows"),
        pytest.param([rule("a")], [], id="no modality is named"),
        pytest.param([rule("a", inbox="er", station="CT*")], [], id="by inbox and station"),
        pytest.param([rule(modality="RAW"), rule("a")], [], id="no images"),
        pytest.param([rule("a", modality=["CT", *ALL])], [], id="named with the images"),
        pytest.param([rule("a", modality=["CT", "SR", "KO"])], [(1, ("PR", "SEG"))], id="some named"),
        pytest.param([rule("a", modality="*")], [], id="a glob for all"),
        pytest.param([rule("a", modality="ct")], [(1, ALL)], id="small letters"),
        pytest.param([rule("a", "b", modality="CT"), rule("a")], [(1, ALL)], id="follow to one of two"),
        pytest.param([rule("a", modality="CT"), rule("a", "b")], [], id="follow to more"),
        pytest.param(
            [rule("a", "b", modality="CT"), rule("a", modality=[*ALL]), rule("a")], [], id="named for fewer, on purpose"
        ),
        pytest.param([rule("a", modality="CT"), rule(modality=[*ALL])], [], id="named for nowhere, on purpose"),
        pytest.param([rule("a", modality=[*ALL]), rule("a", modality="CT")], [], id="named before"),
        pytest.param([rule("a", modality="CT"), rule("a", inbox="er")], [(1, ALL)], id="of one inbox only"),
        pytest.param(
            [rule("a", modality="CT", inbox="er"), rule("a", inbox=["ER", "ward"])], [], id="of the same inbox"
        ),
        pytest.param(
            [rule("a", modality="CT", inbox=["er", "ward"]), rule("a", inbox="er")], [(1, ALL)], id="of one of two"
        ),
        pytest.param([rule("a", modality="CT"), rule("a", inbox="*")], [], id="of every inbox"),
        pytest.param([rule("a", sop_class="CTImageStorage")], [(1, ALL)], id="images by SOP class"),
        pytest.param(
            [rule("a", sop_class="CTImageStorage"), rule("a", sop_class="*SR Storage")],
            [(1, ("KO", "PR", "SEG"))],
            id="follow by SOP class",
        ),
        pytest.param([rule("a", sop_class="*SR Storage")], [], id="reports by SOP class"),
        pytest.param([rule(modality="CT"), rule("a")], [], id="images nowhere"),
        pytest.param([], [], id="no rules"),
    ],
)
def test_what_a_rule_for_images_leaves_behind_is_told(rules, expected):
    assert list(left_behind(rules)) == [LeftBehind(rule=number, modalities=left) for number, left in expected]
