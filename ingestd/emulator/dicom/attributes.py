"""The attributes the service indexes and returns (AZURE.md 1.7, 3.1, 3.3), as tables."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """A resource level, with the spelling of the extended query tag API."""

    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"


@dataclass(frozen=True, slots=True)
class CoreAttribute:
    """One of the 13 attributes that are always searchable, and the index column it lives in."""

    tag: int
    keyword: str
    vr: str
    level: Level
    column: str


STUDY_UID, SERIES_UID, SOP_UID, SOP_CLASS = 0x0020000D, 0x0020000E, 0x00080018, 0x00080016
PATIENT_ID = 0x00100020
MODALITIES_IN_STUDY, STUDY_INSTANCES, SERIES_INSTANCES = 0x00080061, 0x00201208, 0x00201209

CORE: tuple[CoreAttribute, ...] = (
    CoreAttribute(STUDY_UID, "StudyInstanceUID", "UI", Level.STUDY, "study_uid"),
    CoreAttribute(PATIENT_ID, "PatientID", "LO", Level.STUDY, "patient_id"),
    CoreAttribute(0x00100010, "PatientName", "PN", Level.STUDY, "patient_name"),
    CoreAttribute(0x00100030, "PatientBirthDate", "DA", Level.STUDY, "patient_birth_date"),
    CoreAttribute(0x00080090, "ReferringPhysicianName", "PN", Level.STUDY, "referring_physician_name"),
    CoreAttribute(0x00080020, "StudyDate", "DA", Level.STUDY, "study_date"),
    CoreAttribute(0x00081030, "StudyDescription", "LO", Level.STUDY, "study_description"),
    CoreAttribute(0x00080050, "AccessionNumber", "SH", Level.STUDY, "accession_number"),
    CoreAttribute(SERIES_UID, "SeriesInstanceUID", "UI", Level.SERIES, "series_uid"),
    CoreAttribute(0x00080060, "Modality", "CS", Level.SERIES, "modality"),
    CoreAttribute(0x00400244, "PerformedProcedureStepStartDate", "DA", Level.SERIES, "step_start_date"),
    CoreAttribute(0x00081090, "ManufacturerModelName", "LO", Level.SERIES, "model_name"),
    CoreAttribute(SOP_UID, "SOPInstanceUID", "UI", Level.INSTANCE, "sop_uid"),
)
CORE_BY_TAG = {attribute.tag: attribute for attribute in CORE}
# Columns that hold values (the UIDs are keys and live beside them).
STUDY_COLUMNS = tuple(a for a in CORE if a.level is Level.STUDY and a.tag != STUDY_UID)
SERIES_COLUMNS = tuple(a for a in CORE if a.level is Level.SERIES and a.tag != SERIES_UID)
REQUIRED = (STUDY_UID, SERIES_UID, SOP_UID, SOP_CLASS, PATIENT_ID)

# AZURE.md 3.3: what a version returns by default. v2's are index columns only; v1's need the stored metadata.
DEFAULT_FIELDS: dict[int, dict[Level, frozenset[int]]] = {
    1: {
        Level.STUDY: frozenset({
            0x00080005, 0x00080020, 0x00080030, 0x00080050, 0x00080056, 0x00080090, 0x00080201,
            0x00100010, 0x00100020, 0x00100030, 0x00100040, 0x0020000D, 0x00200010,
        }),
        Level.SERIES: frozenset({
            0x00080005, 0x00080060, 0x00080201, 0x0008103E, 0x0020000E, 0x00400244, 0x00400245, 0x00400275,
        }),
        Level.INSTANCE: frozenset({
            0x00080005, 0x00080016, 0x00080018, 0x00080056, 0x00080201, 0x00200013,
            0x00280008, 0x00280010, 0x00280011, 0x00280100,
        }),
    },
    2: {
        Level.STUDY: frozenset({
            0x00080020, 0x00080050, 0x00080090, 0x00081030, 0x00100010, 0x00100020, 0x00100030, 0x0020000D,
        }),
        Level.SERIES: frozenset({0x00080060, 0x00081090, 0x0020000E, 0x00400244}),
        Level.INSTANCE: frozenset({0x00080018}),
    },
}  # fmt: skip
ALL_FIELDS: dict[Level, frozenset[int]] = {
    Level.STUDY: DEFAULT_FIELDS[1][Level.STUDY] | {
        0x00081030, 0x00080063, 0x00081032, 0x00081060, 0x00081080, 0x00081110,
        0x00101010, 0x00101020, 0x00101030, 0x00102180, 0x001021B0,
    },
    Level.SERIES: DEFAULT_FIELDS[1][Level.SERIES] | {0x00080021, 0x00080031, 0x00200011, 0x00200060},
    Level.INSTANCE: DEFAULT_FIELDS[1][Level.INSTANCE],
}  # fmt: skip
