"The tables of de-identification: what they name, and what they must not name."

import csv
from pathlib import Path

import pydicom.data
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, private_dictionary_VR
from realdata import real

from lungseg.deidentify import TABLES


def rows(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


NAMED = {r["tag"] for r in rows("ps315.csv")}
ALLOWED = {r["tag"]: r for r in rows("allowed.csv")}


# What is allowed


def test_allowed_are_known_public_attributes_that_the_standard_does_not_name():
    assert len(ALLOWED) == len(rows("allowed.csv")) > 1000
    for tag, row in ALLOWED.items():
        group = int(tag[:4], 16)
        assert group % 2 == 0 and group > 4 and group >> 8 not in (0x50, 0x60) and int(tag[4:], 16)
        assert keyword_for_tag(int(tag, 16)) == row["keyword"] and tag not in NAMED


def test_nothing_that_is_allowed_holds_a_person_a_moment_an_address_or_a_document():
    for tag, row in ALLOWED.items():
        vr = dictionary_VR(int(tag, 16))
        assert vr not in ("PN", "DA", "DT", "TM", "AE", "UN")
        assert vr != "OB" and (vr != "OW" or row["keyword"].endswith("PaletteColorLookupTableData"))
        assert vr != "UR" or row["keyword"] in ("CodingSchemeURL", "URNCodeValue")
        assert (
            vr not in ("LT", "ST", "UT") or row["action"] == "C" or row["keyword"].startswith("CodingScheme")
        )
    refused = {"EncapsulatedDocument", "IconImageSequence", "ICCProfile", "DataSetTrailingPadding"}
    refused |= {"DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence"}
    refused |= {"WaveformSequence", "WaveformData", "RetrieveURL", "PatientBirthDateInAlternativeCalendar"}
    assert not refused & {r["keyword"] for r in ALLOWED.values()}


def test_instances_get_new_uids_and_kinds_keep_theirs():
    action = {r["keyword"]: r["action"] for r in ALLOWED.values()}
    assert set(action.values()) == {"K", "C", "U"}
    uids = {k for k in action if k.endswith("UID")}
    kept = {k for k in uids if action[k] == "K"}
    assert all(
        k.endswith(("ClassUID", "ContextUID", "MappingResourceUID", "SchemeUID", "CreatorUID")) for k in kept
    )
    assert action["SegmentLabel"] == "C" and action["ReferencedFiducialUID"] == "U"


def unnamed(paths) -> set[str]:
    "Keywords of public attributes of these files that neither table has."
    found, kinds = set(), ("CT", "MR", "PT", "RTSTRUCT", "RTDOSE", "RTPLAN", "SEG", "REG", "OT", "SC")

    def walk(ds) -> None:
        for e in ds:
            tag = f"{e.tag:08x}"
            if e.tag.group % 2 or not e.tag.element or e.tag.group <= 4 or e.tag.group >> 8 in (0x50, 0x60):
                continue
            if tag not in NAMED and tag not in ALLOWED:
                found.add(keyword_for_tag(e.tag))
            if e.VR == "SQ":
                for item in e.value:
                    walk(item)

    for path in paths:
        try:
            ds = dcmread(path, stop_before_pixels=True, force=True)
            if ds.get("Modality") in kinds:
                walk(ds)
        except Exception:  # files that are broken on purpose
            continue
    return found - {""}


SPECTRA = {"CreatorVersionUID", "DataPointColumns", "DataPointRows"}  # of MR spectra, which are not passed on


@pytest.mark.filterwarnings("ignore")
def test_every_attribute_of_the_files_at_hand_is_named_or_allowed():
    files = (Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm")
    assert unnamed(f for f in files if f.stat().st_size < 1_000_000) <= SPECTRA


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data", ["lctsc", "lungdx-a0002", "cip-ct64", "dicom-robustness"])
def test_every_attribute_of_real_files_is_named_or_allowed(data):
    files = sorted(real(data).rglob("*.dcm"))
    assert unnamed(files[:: max(1, len(files) // 20)]) <= SPECTRA


# Types

TYPES = {(o, r["path"]): int(r["type"]) for r in rows("ps315_types.csv") for o in r["objects"].split("|")}


@pytest.mark.parametrize(
    "kind, path, expected",
    [
        ("CT Image", "PatientName", 2),
        ("CT Image", "StudyInstanceUID", 1),
        ("CT Image", "Manufacturer", 2),
        ("Enhanced CT Image", "Manufacturer", 1),
        ("Enhanced CT Image", "DeviceSerialNumber", 1),
        ("RT Structure Set", "StructureSetLabel", 1),
        ("RT Structure Set", "StructureSetROISequence.ROIName", 2),
        ("RT Structure Set", "StructureSetROISequence.ReferencedFrameOfReferenceUID", 1),
        ("Segmentation", "SegmentSequence.SegmentLabel", 1),
        ("Segmentation", "ContentLabel", 1),
        ("Secondary Capture Image", "ConversionType", 1),
        ("Multi-frame True Color SC Image", "PatientID", 2),
        ("*", "*.CodeMeaning", 1),
    ],
)
def test_types_are_those_of_the_objects_modules(kind, path, expected):
    assert TYPES[kind, path] == expected


def test_types_are_kept_for_what_may_be_in_an_output():
    removed = {
        r["keyword"] for r in rows("ps315.csv") if r["action"] == "X" and not any(list(r.values())[3:])
    }
    for _, path in TYPES:
        assert not removed & set(path.split(".")[:-1])


def test_every_text_that_is_cleaned_has_its_types():
    named = {path.split(".")[-1] for _, path in TYPES}
    assert {
        "SegmentLabel",
        "ROIName",
        "RTPlanLabel",
        "SeriesInstanceUID",
        "PatientSex",
        "CodeMeaning",
    } <= named
    assert set(TYPES.values()) == {1, 2}


# Private attributes


def test_safe_private_attributes_hold_numbers_and_terms():
    safe = rows("safe_private.csv")
    assert len({(r["creator"], r["group"], r["element"]) for r in safe}) == len(safe) > 70
    for r in safe:
        group, element = int(r["group"], 16), int(r["element"], 16)
        assert group % 2 == 1 and len(r["group"]) == 4 and 0 <= element <= 0xFF and len(r["element"]) == 2
        assert r["creator"] == r["creator"].strip() and 0 < len(r["creator"]) <= 64 and r["meaning"]
        assert set(r["vm"]) <= set("0123456789-n")
    text = {(r["creator"], r["element"]) for r in safe if r["vr"] in ("LO", "SH")}
    assert text == {("GEMS_ACQU_01", "9e"), ("GEMS_PARM_01", "27"), ("NQHeader", "20")}
    assert {r["vr"] for r in safe} - {"LO", "SH"} <= {"CS", "DS", "FD", "FL", "IS", "SL", "SS", "UL", "US"}


def test_safe_private_attributes_are_no_text_in_another_vendor_list():
    for r in rows("safe_private.csv"):
        try:
            vr = private_dictionary_VR(int(f"{r['group']}10{r['element']}", 16), r["creator"])
        except KeyError:
            continue  # pydicom does not know this vendor's element
        assert vr == r["vr"] or {vr, r["vr"]} <= {"DS", "FD", "FL", "IS", "SL", "SS", "US"}, r
