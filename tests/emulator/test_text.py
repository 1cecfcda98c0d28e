"""Text in the embedded server: decoded before it is split, and found by what a person would type."""

from __future__ import annotations

import pytest

from tests.builders import element, fresh_uid, item
from tests.charsets import MISSPELT
from tests.emulator_peer import Change, Peer, scan

# Of each character set that has two bytes to a character, some whose bytes are those of \ ^ = or lie beside them.
NAMES = {
    "GBK": ("gbk", "乗乛^誠山", "乗", "乛"),
    "GB18030": ("gb18030", "乗乛㐀^誠山", "乗", "㐀"),
    "ISO_IR 13": ("shift_jis", "表与^ソ予", "予", "ソ"),
    "\\ISO 2022 IR 87": ("iso2022_jp", "寨俑沺五^什予", "五", "予"),
    "\\ISO 2022 IR 159": ("iso2022_jp_2", "蠺伙誶伱^彯亍", "伙", "亍"),
    "ISO 2022 IR 13\\ISO 2022 IR 87": ("iso2022_jp", "寨俑沺五^什予", "五", "予"),
}


def encoded(text: str, codec: str) -> bytes:
    """Encode value by value, component by component: each ends in the initial state (PS3.5 section 6.1.2.5.3)."""
    pieces: list[bytes] = []
    run = ""
    for character in text:
        if character in "\\^=":
            pieces += [run.encode(codec), character.encode("ascii")]
            run = ""
        else:
            run += character
    return b"".join([*pieces, run.encode(codec)])


def of_person(text: str) -> dict[str, str]:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return {name: group for name, group in groups if group}


@pytest.mark.parametrize("charset", NAMES)
def test_text_is_decoded_before_it_is_split(peer: Peer, charset: str) -> None:
    """A Japanese name of which a byte is that of a delimiter had six components, and vanished from the metadata."""
    codec, name, one, other = NAMES[charset]
    whole = f"Yamada^Tarou={name}={one}^{other}"
    study, series, sop = fresh_uid(1), fresh_uid(2), fresh_uid(3)
    changes: dict[int, Change] = {
        0x00080005: ("CS", charset),
        0x00080090: ("PN", encoded(f"{one}^{other}", codec)),
        0x00081030: ("LO", encoded(f"{one}{other}", codec)),
        0x00081090: ("LO", encoded(other, codec)),
        0x00100010: ("PN", encoded(whole, codec)),
        0x00101000: ("LO", encoded(f"{one}\\{other}", codec)),
        0x00101001: ("PN", encoded(f"{name}\\{other}^{one}", codec)),
        0x00104000: ("LT", encoded(f"{one}\\{other}", codec)),
        0x00081140: ("SQ", item(element(0x00080104, "LO", encoded(other, codec)))),
    }

    answer = peer.store(scan(changes, study=study, series=series, sop=sop))

    assert answer.status_code == 200, answer.text
    (metadata,) = peer.get(f"/studies/{study}/metadata").json()
    values = {key: metadata[key].get("Value") for key in metadata}
    assert values["00100010"] == [of_person(whole)]
    assert values["00101001"] == [of_person(name), of_person(f"{other}^{one}")]
    assert values["00101000"] == [one, other]
    assert values["00104000"] == [f"{one}\\{other}"]
    assert values["00081030"] == [f"{one}{other}"]
    assert values["00081140"] == [{"00080104": {"vr": "LO", "Value": [other]}}]
    asked = {"PatientName": whole, "ReferringPhysicianName": f"{one}^{other}", "StudyDescription": f"{one}{other}"}
    for keyword, value in asked.items():
        found = peer.get("/studies", params={keyword: value, "StudyInstanceUID": study})
        assert found.status_code == 200, keyword
        assert found.json()[0]["00100010"]["Value"] == [of_person(whole)]
    fuzzy = {"PatientName": f"tarou {name.partition('^')[2]}", "StudyInstanceUID": study, "fuzzymatching": "true"}
    assert peer.get("/studies", params=fuzzy).status_code == 200


def test_a_delimiter_ends_what_an_escape_sequence_began(peer: Peer) -> None:
    """Half of it written the old way: the Kanji set is left for the Roman one, which a delimiter leaves in turn."""
    study = fresh_uid(1)
    kanji = "山田".encode("iso2022_jp").replace(b"\x1b(B", b"\x1b(J")
    half = "ﾔﾏﾀﾞ".encode("shift_jis")
    arabic = b"\x1b-G" + "قباني".encode("iso8859-6")
    changes: dict[int, Change] = {
        0x00080005: ("CS", "ISO 2022 IR 13\\ISO 2022 IR 87\\ISO 2022 IR 127"),
        0x00100010: ("PN", half + b"^" + half + b"=" + kanji + b"^" + kanji + b"=" + arabic + b"^" + half),
        0x00101000: ("LO", kanji + b"\\" + arabic + b"\\" + half),
    }

    assert peer.store(scan(changes, study=study)).status_code == 200

    (metadata,) = peer.get(f"/studies/{study}/metadata").json()
    assert metadata["00100010"]["Value"] == [of_person("ﾔﾏﾀﾞ^ﾔﾏﾀﾞ=山田^山田=قباني^ﾔﾏﾀﾞ")]
    assert metadata["00101000"]["Value"] == ["山田", "قباني", "ﾔﾏﾀﾞ"]


@pytest.mark.parametrize("charset", [*NAMES, "ISO_IR 100", ""])
def test_update_gives_a_name_that_any_character_set_can_hold(v2: Peer, charset: str) -> None:
    codec, name, one, other = NAMES.get(charset, ("latin-1", "Jörg", "Müller", "é"))
    study = fresh_uid(1)
    before: dict[int, Change] = {
        0x00080005: ("CS", charset),
        0x00080090: ("PN", encoded(name, codec)),
        0x00101000: ("LO", encoded(f"{one}\\{other}", codec)),
    }
    assert v2.store(scan(before, study=study)).status_code == 200
    after = of_person(f"山田^Ωé={one}={other}")

    body = {"studyInstanceUids": [study], "changeDataset": {"00100010": {"vr": "PN", "Value": [after]}}}
    operation = v2.finished(v2.call("POST", "/studies/$bulkUpdate", json=body).json()["href"])

    assert operation["results"]["instanceUpdated"] == 1
    (metadata,) = v2.get(f"/studies/{study}/metadata").json()
    assert metadata["00100010"]["Value"] == [after]
    assert metadata["00080090"]["Value"] == [of_person(name)]
    assert metadata["00101000"]["Value"] == [one, other]
    found = v2.get("/studies", params={"PatientName": f"山田^Ωé={one}={other}", "StudyInstanceUID": study})
    assert found.status_code == 200


@pytest.mark.parametrize("charset", MISSPELT)
def test_patient_is_found_whose_character_set_is_misspelt(peer: Peer, charset: str) -> None:
    typed, codec = MISSPELT[charset]
    study = fresh_uid(1)
    changes: dict[int, Change] = {
        0x00080005: ("CS", charset),
        0x00100010: ("PN", typed.encode(codec)),
        0x00100020: ("LO", typed.encode(codec)),
    }
    assert peer.store(scan(changes, study=study)).status_code in (200, 202)

    for asked in ({"PatientID": typed}, {"PatientName": typed}, {"PatientName": typed, "fuzzymatching": "true"}):
        found = peer.get("/studies", params={**asked, "StudyInstanceUID": study})
        assert found.status_code == 200, asked
        assert found.json()[0]["00100020"]["Value"] == [typed]
