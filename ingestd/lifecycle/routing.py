"""Where a file goes: rules in order, of which the first that matches chooses the destinations.

Rules are plain data: for each condition some globs, of which one must match; conditions that are not named match all.
Case does not count, as little as in DICOM's own code strings. ``*`` matches the absent value too, ``""`` only that.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .sop_classes import KEYWORDS

# What a rule may ask for, in the order in which its text names it.
CONDITIONS = (
    *("inbox", "folder", "modality", "station", "institution", "department", "source_ae", "sop_class"),
    "study_description",
)
TEXT_MOST = 200  # it stands in every row
BY_PERSON = "a person"  # so begins the text where no rule chose: rules leave such a file alone

# What belongs to a study beside its images and has a modality of its own, with the keywords of its SOP classes.
COMPANIONS: Mapping[str, str] = {
    "SR": "*SR*Storage*",
    "KO": "KeyObject*",
    "PR": "*PresentationState*",
    "SEG": "*SegmentationStorage",
}
# The defined terms of PS3.3 §C.7.3.1.1.1 whose objects are images.
_IMAGE_MODALITIES = (
    *("BI", "BMD", "CFM", "CR", "CT", "DG", "DMS", "DX", "EPS", "ES", "FA", "FS", "GM", "IO", "IVOCT", "IVUS", "LS"),
    *("MG", "MR", "NM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OT", "PA", "PT", "PX", "RF", "RG", "RTIMAGE"),
    *("SM", "TG", "US", "XA", "XC"),
)
# Between the words of a SOP class's name; not where a set of characters stands.
_BETWEEN_WORDS = re.compile(r"[ /()-]+(?![^\[]*\])")
_NUMBERS_ONLY = re.compile(r"[0-9.*?\[\]!-]*", re.ASCII).fullmatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Routable:
    """What rules may match of one file; "" where it says nothing. ``inbox`` is the name that the configuration gave."""

    inbox: str = ""
    folder: str = ""  # where in its inbox it was dropped, with "/" between; "" at the top
    modality: str = ""
    station: str = ""
    institution: str = ""
    department: str = ""
    source_ae: str = ""
    sop_class: str = ""  # the UID
    study_description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """``when``: for each condition its globs; ``to``: the destinations' names, none for "on purpose nowhere"."""

    when: Mapping[str, tuple[str, ...]]
    to: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """What was chosen for a file: by which rule (from 1; None where there are no rules), told in ``text``."""

    rule: int | None
    text: str
    destinations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftBehind:
    """A rule (from 1) that takes images, and the modalities of the same studies that do not follow them all the way."""

    rule: int
    modalities: tuple[str, ...]


def route(file: Routable, rules: Sequence[Rule], destinations: Sequence[str]) -> Route | None:
    """Choose by the first rule that matches; None where none does: it is UNROUTED and needs a person.

    Without rules everything goes to every destination.
    """
    if not rules:
        return Route(rule=None, text="no rules", destinations=tuple(destinations))
    for number, rule in enumerate(rules, 1):
        if all(_is_met(condition, globs, file) for condition, globs in rule.when.items()):
            return Route(rule=number, text=_text(number, rule), destinations=rule.to)
    return None


def matches(value: str, glob: str) -> bool:
    """Whether a glob matches a whole value; case does not count."""
    return _pattern(glob).match(value) is not None


def matches_sop_class(uid: str, glob: str) -> bool:
    """Whether a glob matches a SOP class: its UID, its keyword or its name, between whose words nothing counts."""
    keyword = KEYWORDS.get(uid)
    return matches(uid, glob) or (keyword is not None and matches(keyword, _BETWEEN_WORDS.sub("", glob)))


def may_name_sop_class(glob: str) -> bool:
    """Whether this is a UID (or a glob of some), or matches the name of a SOP class that is known."""
    return _NUMBERS_ONLY(glob) is not None or any(matches_sop_class(uid, glob) for uid in KEYWORDS)


def takes_all(rules: Sequence[Rule]) -> bool:
    """Whether a rule matches whatever comes, so that nothing is UNROUTED."""
    return any(all("*" in globs for globs in rule.when.values()) for rule in rules)


def left_behind(rules: Sequence[Rule]) -> Iterator[LeftBehind]:
    """Tell the rules that take images by modality or SOP class and leave what else their studies have behind.

    It follows where the first rule that takes it for the same inbox, station and so on sends it to all of the images'
    destinations; or names its modality, whatever for. What two rules take together is not seen.
    """
    for number, rule in enumerate(rules, 1):
        if _is_for_images(rule):
            left = tuple(modality for modality in COMPANIONS if not _follows(modality, rule, rules))
            if left:
                yield LeftBehind(rule=number, modalities=left)


@lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob), re.IGNORECASE)


def _is_met(condition: str, globs: tuple[str, ...], file: Routable) -> bool:
    value: str = getattr(file, condition)
    if condition == "sop_class":
        return any(matches_sop_class(value, glob) for glob in globs)
    if condition == "folder":
        return any(_lies_in(value, glob) for glob in globs)
    return any(matches(value, glob) for glob in globs)


def _lies_in(folder: str, glob: str) -> bool:
    """Whether a glob matches the folder, or one around it."""
    wanted = glob.strip("/")
    while not matches(folder, wanted):
        folder, slash, _ = folder.rpartition("/")
        if not slash:
            return False
    return True


@lru_cache(maxsize=256)
def _written(condition: str, globs: tuple[str, ...]) -> str:
    return f"{condition} " + " or ".join(glob or '""' for glob in globs)


def _text(number: int, rule: Rule) -> str:
    asked = ", ".join(_written(name, rule.when[name]) for name in CONDITIONS if name in rule.when) or "everything"
    text = f"rule {number} ({asked})"
    return text if len(text) <= TEXT_MOST else f"{text[: TEXT_MOST - 4]}...)"


def _is_for_images(rule: Rule) -> bool:
    if globs := rule.when.get("modality"):
        return any(matches(modality, glob) for modality in _IMAGE_MODALITIES for glob in globs)
    images = [uid for uid, keyword in KEYWORDS.items() if "ImageStorage" in keyword]
    return any(matches_sop_class(uid, glob) for uid in images for glob in rule.when.get("sop_class", ()))


def _follows(modality: str, images: Rule, rules: Sequence[Rule]) -> bool:
    for rule in rules:
        if _takes(rule, modality, images):
            return "modality" in rule.when or set(images.to) <= set(rule.to)
    return False


def _takes(rule: Rule, modality: str, images: Rule) -> bool:
    """Whether a rule takes objects of this modality wherever ``images`` takes images."""
    for condition, globs in rule.when.items():
        if condition == "modality":
            is_wide_enough = any(matches(modality, glob) for glob in globs)
        elif condition == "sop_class":
            classes = [uid for uid, keyword in KEYWORDS.items() if matches(keyword, COMPANIONS[modality])]
            is_wide_enough = any(matches_sop_class(uid, glob) for uid in classes for glob in globs)
        else:
            is_wide_enough = "*" in globs or _is_within(images.when.get(condition, ()), globs)
        if not is_wide_enough:
            return False
    return True


def _is_within(globs: Collection[str], wider: Collection[str]) -> bool:
    return bool(globs) and {glob.casefold() for glob in globs} <= {glob.casefold() for glob in wider}
