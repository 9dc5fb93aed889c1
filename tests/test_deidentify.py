"De-identification: the table, the walk, the folder; on phantoms, on pydicom's odd files and on real series."

import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from pydicom import DataElement, Dataset, Sequence, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit
from realdata import real

from lungseg.core import InputError
from lungseg.deidentify import OPTIONS, RESEARCH, deidentify, deidentify_dataset, load_table
from lungseg.dicom import identity_claims
from lungseg.identity import clean_text
from lungseg.phantom import draw_phantom, write_phantom, write_rtstruct
from lungseg.pseudonyms import shift_date

SECRET = b"the secret of these tests"
PLANTED = "Quirrenbach"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    "Two patients with a CT and contours each; file and folder names hold their identity."
    out = tmp_path_factory.mktemp("cohort")
    for i in range(2):
        who = f"{PLANTED}^Patient{i}"
        phantom = draw_phantom(i, size=32, slices=6)
        birth = "19510203"
        ct = write_phantom(phantom, out / who / "CT", name=who, patient_id=f"{PLANTED}-{i}", birth_date=birth)
        write_rtstruct(phantom, ct, out / who / "contours.dcm")
    return out


@pytest.fixture(scope="module")
def slice_(cohort) -> Dataset:
    return dcmread(next(cohort.rglob("000000.dcm")))


# The table


def test_basic_actions_are_those_of_the_package():
    package = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    theirs = {}
    for group in ("D", "Z", "X", "U", "Z_D", "X_Z", "X_D", "X_Z_D", "X_Z_U_STAR"):
        for tag in getattr(package, f"{group}_TAGS"):
            if len(tag) == 2:
                theirs[f"{tag[0]:04x}{tag[1]:04x}"] = group.replace("_STAR", "*").replace("_", "/")
    assert {tag: r.action for tag, r in load_table().items() if not set(tag) & set("xg")} == theirs


def test_the_table_agrees_with_the_edition_of_january_2025():
    columns = {
        **{
            "rtnSafePrivOpt": "safe_private",
            "rtnUIDsOpt": "uids",
            "rtnDevIdOpt": "device",
            "rtnInstIdOpt": "institution",
        },
        **{
            "rtnPatCharsOpt": "patient",
            "rtnLongFullDatesOpt": "full_dates",
            "rtnLongModifDatesOpt": "modified_dates",
        },
        **{
            "cleanDescOpt": "descriptors",
            "cleanStructContOpt": "structured_content",
            "cleanGraphOpt": "graphics",
        },
    }
    differ = []
    for row in json.loads(
        (real("ps315") / "confidentiality_profile_attributes.json").read_text(encoding="utf-8")
    ):
        rule = load_table()[row["id"].split("-")[0]]
        assert rule.action == row["basicProfile"]
        theirs = {ours: row[name] for name, ours in columns.items() if row.get(name)}
        if theirs != rule.options:
            differ.append(rule.keyword)
            assert rule.options.items() <= theirs.items(), "ours may remove more, never less"
    # values that hanging protocols select by: our table does not keep them for any option
    assert all(keyword.startswith("Selector") and keyword.endswith("Value") for keyword in differ)


def test_every_row_names_the_attribute_that_pydicom_knows():
    for tag, rule in load_table().items():
        if not set(tag) & set("xg"):
            assert keyword_for_tag(int(tag, 16)) in ("", rule.keyword)


# Texts and dates


@given(st.dates(), st.integers(365, 3651))
def test_dates_move_by_whole_days_or_not_at_all(day, days):
    moved = shift_date(f"{day:%Y%m%d}".zfill(8), days)
    assert moved is None or (len(moved) == 8 and moved < f"{day:%Y%m%d}".zfill(8))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "Chest 3.0 B30f",
            "THORAX WITH CONTRAST",
            "Lung_R",
            "SpinalCord",
            "CT CHEST W/O CONTRAST",
            "Axial 5mm",
        ),
        *(
            "Heart",
            "Esophagus",
            "thin slice lung kernel",
            "Topogram",
            "PET/CT whole body",
            "GTV-1",
            "recon 1.5 mm",
        ),
    ],
)
def test_harmless_descriptions_stay(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    "text", ["Meier", "123456", "12.05.1970", "123-45-6789", "Dr. Wu", "李", "O'Neil", "A1B2C3D4"]
)
def test_what_nobody_foresaw_goes(text):
    assert clean_text(text) == ""


# One data set


TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
LISTED = [int(t, 16) for t in load_table() if not set(t) & set("xg") and keyword_for_tag(int(t, 16))]
LISTED = [t for t in LISTED if dictionary_VR(t) in TEXT and t >> 16 > 4]
CLEANED = st.sets(st.sampled_from(["descriptors", "modified dates", "uids"]))  # these retain no text as it is


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tags=st.lists(st.sampled_from(LISTED), min_size=1, max_size=20), depth=st.integers(0, 4), keep=CLEANED)
def test_a_name_planted_in_any_listed_attribute_at_any_depth_is_gone(
    slice_, tmp_path_factory, tags, depth, keep
):
    ds = Dataset()
    for tag in tags:
        ds.add_new(tag, dictionary_VR(tag), PLANTED.upper() if dictionary_VR(tag) == "CS" else PLANTED)
    kept_sequences = (
        "DerivationCodeSequence",
        "ReferencedImageSequence",
        "RTReferencedStudySequence",
        "ROIContourSequence",
    )
    for keyword in kept_sequences[:depth]:
        outer = Dataset()
        setattr(outer, keyword, Sequence([ds]))
        ds = outer
    for element in slice_:
        if element.tag not in ds:
            ds.add(element)
    ds.add_new(0x00211010, "LO", PLANTED)
    ds.add_new(0x00211011, "SQ", [Dataset()])
    ds.add_new(0x60003000, "OW", PLANTED.encode() + b"\0")
    after = deidentify_dataset(ds, secret=SECRET, keep=tuple(keep))
    path = tmp_path_factory.mktemp("one") / "a.dcm"
    after.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    assert PLANTED.casefold().encode() not in path.read_bytes().lower()


def test_standard_uids_are_left_alone(slice_):
    after = deidentify_dataset(slice_, secret=SECRET)
    standard = [str(e.value) for e in slice_.iterall() if str(e.value).startswith("1.2.840.10008.")]
    kept = [str(e.value) for e in after.iterall()]
    assert standard and set(standard) <= set(kept)


def test_the_data_set_given_is_not_changed(slice_):
    before = slice_.to_json()
    deidentify_dataset(slice_, secret=SECRET)
    assert slice_.to_json() == before


def test_intervals_between_a_patients_examinations_stay(slice_):
    days = []
    for day in ("20240101", "20240402"):
        ds = Dataset()
        for element in slice_:
            ds.add(element)
        ds.StudyDate, ds.AcquisitionDateTime = day, day + "101500.5"
        after = deidentify_dataset(ds, secret=SECRET)
        days.append(datetime.strptime(after.StudyDate, "%Y%m%d"))
        assert after.AcquisitionDateTime == after.StudyDate + "101500.5"
        assert after.LongitudinalTemporalInformationModified == "MODIFIED"
    assert (days[1] - days[0]).days == 92 and days[0].year < 2024


def test_each_option_is_named_by_its_code(slice_):
    after = deidentify_dataset(slice_, secret=SECRET, keep=("device", "uids"))
    assert [c.CodeValue for c in after.DeidentificationMethodCodeSequence] == ["113100", "113109", "113110"]
    assert after.SOPInstanceUID == slice_.SOPInstanceUID


def test_another_secret_gives_other_identifiers(slice_):
    a, b = (deidentify_dataset(slice_, secret=s) for s in (SECRET, SECRET[::-1]))
    for keyword in ("PatientID", "PatientName", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert a[keyword].value != b[keyword].value


# A folder


def test_no_byte_of_the_output_and_no_file_name_holds_the_identity(cohort, tmp_path):
    result = deidentify(cohort, tmp_path / "out", secret=SECRET)
    assert len(result.files) == 14 and not result.held
    for path in (tmp_path / "out").rglob("*"):
        assert PLANTED not in path.relative_to(tmp_path).as_posix()
        if path.is_file():
            content = path.read_bytes()
            assert PLANTED.lower().encode() not in content.lower() and b"19510203" not in content
            assert content[:128] == bytes(128)
    assert all(identity_claims(tmp_path / "out").true)


def test_references_hold(cohort, tmp_path):
    result = deidentify(cohort, tmp_path / "out", secret=SECRET)
    outs = [dcmread(target) for _, target in result.files]
    images = {str(ds.SOPInstanceUID) for ds in outs if ds.Modality == "CT"}
    frames = {str(ds.FrameOfReferenceUID) for ds in outs if ds.Modality == "CT"}
    for ds in (ds for ds in outs if ds.Modality == "RTSTRUCT"):
        contours = [c for roi in ds.ROIContourSequence for c in roi.get("ContourSequence", [])]
        assert contours
        assert {str(i.ReferencedSOPInstanceUID) for c in contours for i in c.ContourImageSequence} <= images
        assert {str(r.ReferencedFrameOfReferenceUID) for r in ds.StructureSetROISequence} <= frames
        assert {"Lung_L", "Lung_R"} <= {str(r.ROIName) for r in ds.StructureSetROISequence}
    assert len({str(ds.PatientID) for ds in outs}) == 2
    assert all(ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID for ds in outs)


def test_the_input_is_not_touched_and_a_second_run_is_equal(cohort, tmp_path):
    def digests(folder: Path) -> dict[str, str]:
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        return {p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest() for p in files}

    before = digests(cohort)
    deidentify(cohort, tmp_path / "a", secret=tmp_path / "secret")
    deidentify(cohort, tmp_path / "b", secret=tmp_path / "secret", workers=2)
    assert digests(cohort) == before
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != {}


def test_a_second_run_writes_only_what_changed_and_forgets_who_is_gone(cohort, tmp_path):
    data, out = Path(shutil.copytree(cohort, tmp_path / "in")), tmp_path / "out"
    files = [target for _, target in deidentify(data, out, secret=SECRET).files]
    times = [f.stat().st_mtime_ns for f in files]
    deidentify(data, out, secret=SECRET, workers=2)
    assert [f.stat().st_mtime_ns for f in files] == times
    deidentify(data, out, secret=SECRET, keep=())
    assert all(f.stat().st_mtime_ns > t for f, t in zip(files, times, strict=True))

    foreign = dcmread(next(data.rglob("000000.dcm")))
    (out / "Case_007" / "CT_1").mkdir(parents=True)
    (out / "mine").mkdir()
    foreign.save_as(out / "Case_007" / "CT_1" / "000001.dcm")  # in our layout, but not our work
    shutil.copyfile(files[0], out / "mine" / "000001.dcm")  # our work, but not in our layout
    shutil.copyfile(files[0], out / "Case_000" / "CT_1" / "copy.dcm")
    (out / "Case_008").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    shutil.copytree(out / "Case_000", tmp_path / "elsewhere")
    shutil.rmtree(data / f"{PLANTED}^Patient1")
    with pytest.raises(InputError, match="holds files of other patients"):
        deidentify(data, out, secret=SECRET)
    kept = {target for _, target in deidentify(data, out, secret=SECRET, replace=True).files}
    others = {"Case_007/CT_1/000001.dcm", "mine/000001.dcm", "Case_000/CT_1/copy.dcm"}
    left = {p for p in out.rglob("*.dcm") if not p.is_relative_to(out / "Case_008")}
    assert left == kept | {out / o for o in others}
    assert not (out / "Case_001").exists()
    assert len(list((tmp_path / "elsewhere").rglob("*.dcm"))) == 8


def conformance_errors(path: Path) -> set[str]:
    "What dciodvfy calls an error, values left out."
    if which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace")
    lines = (run.stdout + run.stderr).splitlines()
    return {re.sub(r"<[^>]*>|'.'|= \(.*", "", line) for line in lines if line.startswith("Error")}


@pytest.mark.parametrize(
    "keep", [RESEARCH, (), ("full dates", "device", "institution", "patient characteristics")]
)
def test_the_output_conforms(cohort, tmp_path, keep):
    for source, target in deidentify(cohort, tmp_path / "out", secret=SECRET, keep=keep).files:
        assert not conformance_errors(target) - conformance_errors(source)


@pytest.mark.parametrize("name", ["pydicom", "dicom-robustness", "lungdx-a0002"])
@pytest.mark.parametrize("keep", [RESEARCH, tuple(o for o in OPTIONS if o != "modified dates")])
def test_odd_and_real_files_conform_as_before(tmp_path, name, keep):
    src = Path(get_testdata_file("CT_small.dcm")).parent if name == "pydicom" else real(name)
    result = deidentify(src, tmp_path / "out", secret=SECRET, keep=keep)
    assert result.files
    for source, target in result.files:
        assert not conformance_errors(target) - conformance_errors(source), source.name


def test_folders_and_secrets_that_would_do_harm_are_refused(cohort, tmp_path):
    for dst in (cohort, cohort / "out", cohort.parent):
        with pytest.raises(InputError, match="may not lie in one another"):
            deidentify(cohort, dst, secret=SECRET)
    with pytest.raises(InputError, match="in the output folder"):
        deidentify(cohort, tmp_path / "out", secret=tmp_path / "out" / "secret")
    assert not (tmp_path / "out").exists()
    (tmp_path / "open").write_text("a secret that anyone can read")
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(InputError, match="mode 0644"):
        deidentify(cohort, tmp_path / "out", secret=tmp_path / "open")
    with pytest.raises(InputError, match="at least 16 bytes"):
        deidentify(cohort, tmp_path / "out", secret=b"short")


def test_a_bad_file_is_held_without_ending_the_batch(cohort, tmp_path):
    good = next(cohort.rglob("000000.dcm")).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good").write_bytes(good)
    other = dcmread(next(cohort.rglob("000001.dcm")))
    other.save_as(tmp_path / "in" / "torn")
    torn = (tmp_path / "in" / "torn").read_bytes()
    (tmp_path / "in" / "torn").write_bytes(torn[:-500])
    (tmp_path / "in" / "empty").touch()
    result = deidentify(tmp_path / "in", tmp_path / "out", secret=SECRET)
    assert [s.name for s, _ in result.files] == ["good"]
    assert {result.sources[h.item].name for h in result.held} == {"torn", "empty"}
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1


def test_odd_files_are_passed_whole_or_held_and_never_quoted(tmp_path):
    src, bundled = tmp_path / "in", Path(get_testdata_file("CT_small.dcm")).parent
    src.mkdir()
    for i, path in enumerate(sorted(bundled.iterdir())):
        if path.is_file() and path.stat().st_size < 1_000_000:
            (src / f"{i:03d}.dcm").write_bytes(path.read_bytes())
    result = deidentify(src, tmp_path / "out", secret=SECRET)
    assert len(result.files) + len(result.held) == len(list(src.iterdir()))
    for source, target in result.files:
        before, after = dcmread(source, force=True), dcmread(target)
        assert after.PatientIdentityRemoved == "YES"
        if "PixelData" in before:
            assert after.PixelData == before.PixelData
        name = str(before.get("PatientName", ""))
        assert len(name) < 4 or not any(name in h.reason for h in result.held)


@pytest.mark.parametrize("name", ["lungdx-a0002", "dicom-robustness", "cip-ct64"])
def test_real_series_keep_their_pixels_and_conform_as_before(name, tmp_path):
    result = deidentify(real(name), tmp_path / "out", secret=SECRET)
    assert result.files and not [
        h for h in result.held if result.sources[h.item].suffix == ".dcm" and "same SOP" not in h.reason
    ]
    for source, target in result.files:
        before, after = dcmread(source), dcmread(target)
        assert before.get("PixelData") == after.get("PixelData")
        assert before.file_meta.TransferSyntaxUID == after.file_meta.TransferSyntaxUID
        said = str(before.get("PatientName") or "").encode()
        assert len(said) < 5 or said == b"Anonymous" or said not in target.read_bytes()


# Options


def planted_option_set(slice_: Dataset) -> Dataset:
    "A slice with something for each option."
    ds = deepcopy(slice_)
    ds.InstitutionName, ds.DeviceSerialNumber, ds.PatientAge = "Utopia Clinic", "SN-12345", "093Y"
    ds.StudyDate, ds.SeriesDescription, ds.PatientSex = "20240301", "Chest axial Quirrenbach", "F"
    ds.add_new(0x00190010, "LO", "GEMS_ACQU_01")
    ds.add_new(0x00191023, "DS", "39.4")  # table speed, called safe by the standard
    ds.add_new(0x00191099, "LO", f"for {PLANTED}")
    for group, text in ((0x6000, False), (0x6002, True)):
        bits = np.zeros((32, 64), np.uint8)
        bits[10:20, 10:20] = 1
        if text:
            font = ImageFont.load_default()
            image = Image.new("L", (64, 32))
            ImageDraw.Draw(image).text((2, 8), PLANTED[:9], fill=255, font=font)
            bits = (np.array(image) > 128).astype(np.uint8)
        ds.add_new((group, 0x0010), "US", 32)
        ds.add_new((group, 0x0011), "US", 64)
        ds.add_new((group, 0x0040), "CS", "G")
        ds.add_new((group, 0x0050), "SS", [1, 1])
        ds.add_new((group, 0x0100), "US", 1)
        ds.add_new((group, 0x0102), "US", 0)
        ds.add_new((group, 0x1500), "LO", f"drawn by {PLANTED}")
        ds.add_new((group, 0x3000), "OW", np.packbits(bits, axis=None, bitorder="little").tobytes())
    item = Dataset()
    item.ValueType, item.TextValue, item.PersonName = "TEXT", f"lung of {PLANTED}", PLANTED
    ds.AcquisitionContextSequence = Sequence([item])
    return ds


@pytest.mark.parametrize("option", [o for o in OPTIONS if o != "pixel data"])
def test_an_option_does_what_its_code_says_and_nothing_else(slice_, option):
    ds = planted_option_set(slice_)
    after = deidentify_dataset(ds, secret=SECRET, keep=(option,))
    assert [c.CodeValue for c in after.DeidentificationMethodCodeSequence] == ["113100", OPTIONS[option].code]
    assert PLANTED.lower() not in after.to_json().lower()
    context = after.get("AcquisitionContextSequence") or []
    done = {
        "institution": after.get("InstitutionName") == "Utopia Clinic",
        "device": after.get("DeviceSerialNumber") == "SN-12345",
        "patient characteristics": (after.get("PatientSex"), after.get("PatientAge")) == ("F", "090Y"),
        "full dates": after.StudyDate == "20240301",
        "modified dates": after.StudyDate not in ("20240301", ""),
        "descriptors": after.get("SeriesDescription") == "Chest axial",
        "uids": after.SOPInstanceUID == ds.SOPInstanceUID,
        "safe private": (0x0019, 0x1023) in after and (0x0019, 0x1099) not in after,
        "graphics": (0x6000, 0x3000) in after and (0x6002, 0x3000) not in after,
        "structured content": bool(context) and context[0].get("TextValue") == "lung of",
    }
    assert [name for name, is_so in done.items() if is_so] == [option]


def test_all_options_at_once_still_leave_nobody(slice_):
    ds = planted_option_set(slice_)
    after = deidentify_dataset(ds, secret=SECRET, keep=[o for o in OPTIONS if o != "full dates"])
    assert PLANTED.lower() not in after.to_json().lower() and not after.PatientBirthDate


def test_writing_is_painted_over_with_the_pixel_data_option(cohort, tmp_path):
    (tmp_path / "in").mkdir()
    ds = dcmread(draw_and_write(tmp_path / "big"))
    image = Image.new("L", ds.pixel_array.shape[::-1])
    ImageDraw.Draw(image).text((10, 10), f"{PLANTED} 1951", fill=255, font=ImageFont.load_default(18))
    pixels = ds.pixel_array.copy()
    pixels[np.array(image) > 128] = 3000
    ds.PixelData = pixels.tobytes()
    ds.save_as(tmp_path / "in" / "a.dcm")
    held = deidentify(tmp_path / "in", tmp_path / "held", secret=SECRET)
    assert [h.reason for h in held.held] == ["PixelData: something that looks like writing"]
    clean = deidentify(tmp_path / "in", tmp_path / "clean", secret=SECRET, keep=(*RESEARCH, "pixel data"))
    after = dcmread(clean.files[0][1])
    assert after.BurnedInAnnotation == "NO"
    assert "113101" in [c.CodeValue for c in after.DeidentificationMethodCodeSequence]
    assert not (after.pixel_array[np.array(image) > 128] == 3000).any()
    body = np.array(image) == 0
    assert (after.pixel_array[40:][body[40:]] == pixels[40:][body[40:]]).all()


def draw_and_write(folder: Path) -> Path:
    "One slice of 256 x 256."
    return write_phantom(draw_phantom(3, size=256, slices=1), folder, name="A^B", patient_id="C-1")[0]


# A batch


def test_what_if_says_the_same_and_writes_nothing(cohort, tmp_path):
    dry = deidentify(cohort, tmp_path / "out", secret=tmp_path / "secret", what_if=True)
    assert list(tmp_path.iterdir()) == []
    wet = deidentify(cohort, tmp_path / "out", secret=SECRET)
    assert dry.what_if and len(dry.files) == len(wet.files) and dry.places == wet.places


def test_report_and_messages_name_nobody_and_the_key_map_is_for_its_owner(cohort, tmp_path, capfd):
    bad = Path(shutil.copytree(cohort, tmp_path / "in")) / f"{PLANTED}.txt"
    bad.write_text("a letter")
    result = deidentify(tmp_path / "in", tmp_path / "out", secret=SECRET)
    said = "".join(capfd.readouterr()) + str(result) + repr(result) + repr(result.held) + str(result.rows())
    said += (tmp_path / "out.report.html").read_text() + (tmp_path / "out.report.csv").read_text()
    assert PLANTED.lower() not in said.lower() and "19510203" not in said
    keys = tmp_path / "out.keys.csv"
    assert keys.stat().st_mode & 0o777 == 0o600 and PLANTED in keys.read_text()
    assert result.sources[result.held[0].item] == bad


def test_a_killed_run_leaves_no_half_file_and_the_next_one_finishes(cohort, tmp_path):
    out = tmp_path / "out"
    work = (
        "import os, signal\n"
        "from lungseg import deidentify as d\n"
        "seen, replace = [], os.replace\n"
        "def stop(a, b):\n"
        "    seen.append(b)\n"
        "    if len(seen) == 6:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(a, b)\n"
        "os.replace = stop\n"
        f"d.deidentify({str(cohort)!r}, {str(out)!r}, secret={SECRET!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", work], capture_output=True).returncode == -9
    assert len([p for p in out.rglob("*.dcm") if not p.name.startswith(".")]) == 5
    assert [p for p in out.rglob(".*.dcm")], "the run was killed between writing and renaming"
    for path in out.rglob("[0-9]*.dcm"):
        assert dcmread(path).PatientIdentityRemoved == "YES"
    result = deidentify(cohort, out, secret=SECRET)
    assert {p for p in out.rglob("*") if p.is_file()} == {target for _, target in result.files}
    whole = deidentify(cohort, tmp_path / "whole", secret=SECRET)
    assert [b.read_bytes() for _, b in result.files] == [b.read_bytes() for _, b in whole.files]


def test_of_two_files_of_one_instance_the_sound_one_passes(cohort, tmp_path):
    good = next(cohort.rglob("000000.dcm")).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(good[:-500])
    (tmp_path / "in" / "b").write_bytes(good)
    (tmp_path / "in" / "c").write_bytes(good)
    result = deidentify(tmp_path / "in", tmp_path / "out", secret=SECRET)
    assert [source.name for source, _ in result.files] == ["b"]
    held = {result.sources[h.item].name: h.reason for h in result.held}
    assert held["a"] == "PixelData: cut short" and held["c"].startswith("the same SOPInstanceUID as file-")


def test_a_later_delivery_fits_an_earlier_one(cohort, tmp_path):
    "Pseudonyms, UIDs and shifts are the same though the second batch holds one patient only."
    first = deidentify(cohort, tmp_path / "first", secret=SECRET)
    one = shutil.copytree(cohort / f"{PLANTED}^Patient1", tmp_path / "in" / "new name")
    second = deidentify(one.parent, tmp_path / "second", secret=SECRET)
    before = {dcmread(b).SOPInstanceUID: dcmread(b) for _, b in first.files}
    for _, target in second.files:
        after = dcmread(target)
        assert before[after.SOPInstanceUID].PatientID == after.PatientID
        assert before[after.SOPInstanceUID].StudyDate == after.StudyDate


def test_pixels_of_every_transfer_syntax_are_carried_over(tmp_path):
    bundled = Path(get_testdata_file("CT_small.dcm")).parent
    src = tmp_path / "in"
    src.mkdir()
    for i, path in enumerate(sorted(p for p in bundled.glob("*.dcm") if p.stat().st_size < 1_000_000)):
        try:
            ds = dcmread(path)
            if ds.SOPClassUID.name not in ("CT Image Storage", "MR Image Storage", "RT Dose Storage"):
                continue
            ds.SOPInstanceUID = f"1.2.3.{i}"
            ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{i}"
            ds.save_as(src / path.name)
        except Exception:  # a file that pydicom itself cannot read or write again
            continue
    result = deidentify(src, tmp_path / "out", secret=SECRET)
    syntaxes = {dcmread(target).file_meta.TransferSyntaxUID.name for _, target in result.files}
    assert len(syntaxes) >= 6, syntaxes
    for source, target in result.files:
        before, after = dcmread(source), dcmread(target)
        assert before.PixelData == after.PixelData
        assert before.file_meta.TransferSyntaxUID == after.file_meta.TransferSyntaxUID


COMMENTS = ["pat 08154711", "mrn QX-0815471", "MEYER, Ulf", "born 1951-02-03", "1.2.99.5.6.7.8"]


def with_pixels(slice_: Dataset, path: Path, uid: str, pixels: bytes, compressed: bool) -> None:
    "Write a slice of an invented patient with other pixels."
    ds = deepcopy(slice_)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Meyer^Ulf", "08154711", "19510203"
    ds.AccessionNumber, ds.StudyInstanceUID, ds.SOPInstanceUID = "QX-0815471", "1.2.99.5.6.7.8", uid
    ds.file_meta.MediaStorageSOPInstanceUID = uid
    if compressed:
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds[0x7FE00010] = DataElement(0x7FE00010, "OB", encapsulate([pixels]), is_undefined_length=True)
    else:
        ds.PixelData = pixels
    ds.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)


@pytest.mark.parametrize("comment", COMMENTS)
@pytest.mark.parametrize("compressed", [True, False])
def test_identity_among_the_pixels_holds_the_file(slice_, tmp_path, comment, compressed):
    said = comment.encode()
    (tmp_path / "in").mkdir()
    if compressed:
        size = (len(said) + 2).to_bytes(2, "big")
        pixels = b"\xff\xd8\xff\xfe" + size + said + bytes(range(256)) + b"\xff\xd9"
    elif comment in ("MEYER, Ulf", "1.2.99.5.6.7.8"):
        return  # too short, or too dotted, to be told from chance in plain pixels
    else:
        pixels = said + slice_.PixelData[len(said) :]
    with_pixels(slice_, tmp_path / "in" / "a.dcm", "1.2.99.1", pixels, compressed)
    with_pixels(slice_, tmp_path / "in" / "b.dcm", "1.2.99.2", slice_.PixelData, False)
    result = deidentify(tmp_path / "in", tmp_path / "out", secret=SECRET)
    assert [source.name for source, _ in result.files] == ["b.dcm"]
    assert [h.reason for h in result.held] == ["the pixel data would still hold what identifies somebody"]
