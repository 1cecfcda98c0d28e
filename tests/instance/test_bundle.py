"""The real files that pydicom ships, and what a real Orthanc makes of them: a false rejection is as bad as a loss."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import pydicom
import pytest

from ingestd.instance import Inspection, Verdict, file_meta_for, inspect
from tests.orthanc import Orthanc, OrthancError, requires_orthanc

# The wheel's files only; never pydicom's downloads.
BUNDLE = Path(pydicom.__file__).parent / "data" / "test_files"
ADMITTED = frozenset({Verdict.WHOLE, Verdict.ZEROS})

# What is not admitted, and why; everything else is.
REFUSED = {
    "JPEGLSNearLossless_08.dcm": Verdict.NO_UIDS,
    "JPEGLSNearLossless_16.dcm": Verdict.NO_UIDS,
    "MR_truncated.dcm": Verdict.SHORT,
    "README.txt": Verdict.NOT_DICOM,
    "SC_rgb_jls_lossy_line.dcm": Verdict.NO_UIDS,
    "SC_rgb_jls_lossy_sample.dcm": Verdict.NO_UIDS,
    "UN_sequence.dcm": Verdict.NO_UIDS,
    "crayons.icc": Verdict.NOT_DICOM,
    "dicomdirtests/DICOMDIR": Verdict.DICOMDIR,
    "dicomdirtests/DICOMDIR-bigEnd": Verdict.DICOMDIR,
    "dicomdirtests/DICOMDIR-empty.dcm": Verdict.DICOMDIR,
    "dicomdirtests/DICOMDIR-implicit": Verdict.DICOMDIR,
    "dicomdirtests/DICOMDIR-nooffset": Verdict.DICOMDIR,
    "dicomdirtests/DICOMDIR-nopatient": Verdict.DICOMDIR,
    "dicomdirtests/DICOMDIR-reordered": Verdict.DICOMDIR,
    "dicomdirtests/README.txt": Verdict.NOT_DICOM,
    "dicomdirtests/TINY_ALPHA/DICOMDIR": Verdict.DICOMDIR,
    "dicomdirtests/TINY_ALPHA/README": Verdict.NOT_DICOM,
    "empty_charset_LEI.dcm": Verdict.SHORT,  # three elements, no study
    "meta_missing_tsyntax.dcm": Verdict.NO_UIDS,
    "nested_priv_SQ.dcm": Verdict.NO_UIDS,
    "no_meta.dcm": Verdict.NOT_DICOM,  # one element of no particular kind
    "no_meta_group_length.dcm": Verdict.SHORT,  # a patient's name and nothing else
    "priv_SQ.dcm": Verdict.NO_UIDS,
    "rtplan.dump": Verdict.NOT_DICOM,
    "rtplan_truncated.dcm": Verdict.SHORT,
    "rtstruct.dump": Verdict.NOT_DICOM,
    "test1.json": Verdict.NOT_DICOM,
    "test_PN.json": Verdict.NOT_DICOM,
    "zipMR.gz": Verdict.ARCHIVE,
}
# Complete image objects but for their pixels: they wait for a while, then they are admitted.
WITHOUT_PIXELS = ("ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "dicomdirtests/TINY_ALPHA/PT000000/")


def bundle() -> list[Path]:
    """Every file of the bundle; of the fifty alike in TINY_ALPHA only three."""
    files = sorted(path for path in BUNDLE.rglob("*") if path.is_file() and path.suffix != ".py")
    alike = [path for path in files if path.parent.name == "SE000000"]
    return [path for path in files if path not in alike[3:]]


def admitted() -> list[Path]:
    """Those that are objects."""
    return [path for path in bundle() if str(path.relative_to(BUNDLE)) not in REFUSED]


def look_at(path: Path) -> Inspection:
    fd = os.open(path, os.O_RDONLY)
    try:
        return inspect(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", bundle(), ids=lambda path: str(path.relative_to(BUNDLE)))
def test_every_bundled_file_gets_its_verdict(path: Path) -> None:
    name = str(path.relative_to(BUNDLE))
    expected = REFUSED.get(name)
    if expected is None:
        expected = Verdict.ZEROS if name.startswith(WITHOUT_PIXELS) else Verdict.WHOLE

    assert look_at(path).verdict is expected


@pytest.mark.parametrize("path", admitted(), ids=lambda path: str(path.relative_to(BUNDLE)))
def test_facts_of_bundled_files_are_those_that_pydicom_reads(path: Path) -> None:
    found = look_at(path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's own, of files that are odd on purpose
        read = pydicom.dcmread(path, force=True, stop_before_pixels=True)

    assert found.study_uid == read.StudyInstanceUID
    assert found.series_uid == read.SeriesInstanceUID
    assert found.sop_uid == read.SOPInstanceUID
    assert found.sop_class_uid == read.SOPClassUID
    assert found.modality == read.get("Modality", "")
    assert found.patient_id == (read.get("PatientID") or "")
    assert found.station == (read.get("StationName") or "")
    assert found.institution == (read.get("InstitutionName") or "")[:64].strip()
    assert found.department == (read.get("InstitutionalDepartmentName") or "")
    assert found.study_description == (read.get("StudyDescription") or "")[:64]
    if not found.generated_meta:
        assert found.transfer_syntax == read.file_meta.TransferSyntaxUID
        assert found.source_ae == read.file_meta.get("SourceApplicationEntityTitle", "")


@requires_orthanc
@pytest.mark.slow
@pytest.mark.orthanc
def test_every_bundled_file_that_orthanc_stores_is_admitted(orthanc: Orthanc) -> None:
    """By Orthanc's own POST /instances and by STOW; files without meta go with the generated one as well."""
    stored_by_orthanc = 0
    for path in bundle():
        name = str(path.relative_to(BUNDLE))
        content = path.read_bytes()
        found = look_at(path)
        by_post = stored_by_post(orthanc, content)
        by_stow = stored_by_stow(orthanc, content)

        if found.verdict is Verdict.SHORT and name in REFUSED:
            assert name in {"MR_truncated.dcm", "rtplan_truncated.dcm"} or not (by_post or by_stow)
        elif by_post or by_stow:
            assert (name, found.verdict in ADMITTED) == (name, True)
        if found.generated_meta:
            meta = file_meta_for(
                sop_class_uid=found.sop_class_uid, sop_uid=found.sop_uid, transfer_syntax=found.transfer_syntax
            )
            assert (name, stored_by_stow(orthanc, meta + content)) == (name, True)
        stored_by_orthanc += by_post or by_stow

    assert stored_by_orthanc > 90


def stored_by_post(orthanc: Orthanc, content: bytes) -> bool:
    try:
        orthanc.upload(content)
    except OrthancError:
        return False
    forget_all(orthanc)
    return True


def stored_by_stow(orthanc: Orthanc, content: bytes) -> bool:
    boundary = b"d41d8cd98f00b204e9800998ecf8427e"
    body = b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n--%b--\r\n" % (boundary, content, boundary)
    request = urllib.request.Request(
        f"{orthanc.url}/studies",
        data=body,
        method="POST",
        headers={
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary.decode()}',
            "Accept": "application/dicom+json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            stored = b"00081199" in answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return False
    forget_all(orthanc)
    return stored


def forget_all(orthanc: Orthanc) -> None:
    for study in orthanc.studies():
        orthanc.rest("DELETE", f"/studies/{study}")
