"""A cohort from any folder to a split: what is paired, held, resumed, and that no patient leaks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from realdata import DATA, real

from lungseg.cohort import (
    Case,
    Found,
    Store,
    build_store,
    changed,
    checksum,
    class_balance,
    find_cases,
    new_names,
    oddities,
    problems,
    relocate,
)
from lungseg.core import CohortError, InputError
from lungseg.deidentify import deidentify
from lungseg.phantom import draw_phantom, write_cohort, write_phantom, write_rtstruct, write_series
from lungseg.reading import read_volume
from lungseg.splits import split_patients
from lungseg.volume import Volume


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("data") / "cohort", cases=6, size=64, slices=12)


def test_every_mask_of_a_coursework_lies_right_whatever_its_axes(cohort, tmp_path):
    store = build_store(find_cases(cohort), tmp_path / "store", workers=2)
    assert store.names == [f"Case_{i:03d}" for i in range(6)] and not store.held
    for name in store.names:
        case = store.case(name)
        assert (case.hu[case.mask] < -400).mean() > 0.8
        assert np.array_equal(case.hu, read_volume(cohort / "Images" / name).array)


def test_deidentified_files_make_the_same_arrays(cohort, tmp_path):
    found = find_cases(cohort)
    done = deidentify(cohort, tmp_path / "out", secret=tmp_path / "out.secret")
    moved = relocate(found, dict(done.files))
    assert [c.name for c in moved.cases] == [f"Case_{i:03d}" for i in range(6)]
    assert all(str(tmp_path / "out") in str(f) for c in moved.cases for f in c.image)
    assert {c.patient for c in moved.cases}.isdisjoint(c.patient for c in found.cases)
    before, after = build_store(found, tmp_path / "a"), build_store(moved, tmp_path / "b")
    for name in before.names:
        assert np.array_equal(before.case(name).hu, after.case(name).hu)
        assert np.array_equal(before.case(name).mask, after.case(name).mask)
        assert before.case(name).meta["PatientSex"] == after.case(name).meta["PatientSex"]


def test_no_name_of_the_original_files_reaches_the_store(cohort, tmp_path):
    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    for i in range(6):
        (data / "Images" / f"Case_{i:03d}").rename(data / "Images" / f"DOE_{i}_1951")
        mask = data / "Segmentations" / f"Case_{i:03d}_seg.npz"
        mask.rename(mask.with_name(f"DOE_{i}_1951_seg.npz"))
    np.savez(data / "Segmentations" / "DOE_1_1951_seg.npz", masks=np.ones((3, 4, 5), np.uint8))
    torn = sorted((data / "Images" / "DOE_2_1951").iterdir())[0]
    found = find_cases(data)
    done = deidentify(data, tmp_path / "out", secret=tmp_path / "out.secret")
    moved = {source: target for source, target in done.files if source != torn}
    assert new_names(found, moved) == {f"DOE_{i}_1951": f"Case_{i:03d}" for i in range(6)}
    store = build_store(relocate(found, moved), tmp_path / "store")
    assert store.names == ["Case_000", "Case_003", "Case_004", "Case_005"]
    assert [h.item for h in store.held] == ["Case_002", "Case_001"]
    assert "its mask: shape (3, 4, 5)" in store.held[1].reason
    for path in (tmp_path / "store").rglob("*"):
        assert "DOE" not in path.name
        assert path.suffix != ".json" or "DOE" not in path.read_text()


def test_what_is_deidentified_twice_is_stored_once(cohort, tmp_path):
    def stored() -> dict[str, int]:
        done = deidentify(cohort, tmp_path / "out", secret=tmp_path / "out.secret")
        store = build_store(relocate(find_cases(cohort), dict(done.files)), tmp_path / "store")
        return {n: (store.path / n / "hu.npy").stat().st_mtime_ns for n in store.names}

    assert stored() == stored()


def test_an_unreadable_file_without_a_suffix_is_listed_and_notes_are_not(cohort, tmp_path):
    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    (data / "Images" / "IM0001").write_bytes(b"\0" * 128 + b"DICM and then nothing that makes sense")
    for note in ("README", "patients.csv", ".hidden", "DICOMDIR"):
        (data / note).write_text("a note")
    assert [h.item for h in find_cases(data).held] == ["Images/IM0001"]


def test_an_interrupted_build_resumes_and_leaves_nothing_half_written(cohort, tmp_path, monkeypatch):
    import lungseg.cohort as module

    found, real, seen = find_cases(cohort), module.read_mask, []

    def fails_on_the_third(*args, **kwargs):
        seen.append(args)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "read_mask", fails_on_the_third)
    with pytest.raises(KeyboardInterrupt):
        build_store(found, tmp_path / "store")
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["Case_000", "Case_001"]
    store = build_store(found, tmp_path / "store")
    assert len(seen) == 3 + 4  # the two that were done were not read again
    assert store.names == [c.name for c in found.cases]


def test_one_bad_case_does_not_stop_the_others(cohort, tmp_path):
    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    next(
        (data / "Images" / "Case_001").iterdir()
    ).unlink()  # a missing slice: uneven, or a mask that is too long
    torn = data / "Segmentations" / "Case_002_seg.npz"
    torn.write_bytes(torn.read_bytes()[:200])
    np.savez(data / "Segmentations" / "Case_003_seg.npz", masks=np.zeros((12, 64, 64), np.uint8))
    (data / "Segmentations" / "Case_004_seg.npz").unlink()
    (data / "Structures" / "Case_004.dcm").unlink()
    store = build_store(find_cases(data), tmp_path / "store")
    assert store.names == ["Case_000", "Case_005"]
    reasons = {h.item: h.reason for h in Store(tmp_path / "store").held}
    assert {"Case_001", "Case_002", "Case_003", "Case_004"} <= set(reasons)
    assert "empty" in reasons["Case_003"] and "cannot be read" in reasons["Case_002"]
    assert all("\n" not in r and str(tmp_path) not in r for r in reasons.values())


def test_what_is_no_cohort_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.dcm").write_text("not DICOM")
    (tmp_path / "file.txt").touch()
    (tmp_path / "masks").mkdir()
    np.savez(tmp_path / "masks" / "Case_000_seg.npz", masks=np.ones((3, 4, 5), np.uint8))
    for name, error in (
        ("notes", CohortError),
        ("masks", CohortError),
        ("file.txt", InputError),
        ("no", InputError),
    ):
        with pytest.raises(error) as raised:
            find_cases(tmp_path / name)
        assert "\n" not in str(raised.value) and str(tmp_path) not in str(raised.value)
    with pytest.raises(CohortError):
        Store(tmp_path)


def test_no_patient_is_in_two_parts_for_any_seed(cohort, tmp_path):
    store = build_store(find_cases(cohort), tmp_path / "store")
    first = json.loads((tmp_path / "store" / "Case_000" / "case.json").read_text())
    path = tmp_path / "store" / "Case_001" / "case.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patient": first["patient"]}))
    splits = [split_patients(store, seed=s) for s in range(20)]
    for split in splits:
        owners = [{store.meta(n)["patient"] for n in names} for names in split.values()]
        assert sum(map(len, owners)) == len(set.union(*owners)) == 5
        assert sorted(n for names in split.values() for n in names) == store.names
    assert len({json.dumps(s) for s in splits}) > 1


def test_the_four_clinical_cases_are_a_cohort(tmp_path):
    folder = real("lctsc")
    found = find_cases(folder)
    assert [c.name for c in found.cases] == [f"LCTSC-Test-S1-{n}" for n in (101, 102, 103, 104)]
    assert found.held == () and found.kind == "npz volumes with masks"
    store = build_store([found.cases[0], found.cases[3]], tmp_path / "store")
    case = store.case("LCTSC-Test-S1-104")
    with np.load(folder / "LCTSC-Test-S1-104.npz") as source:
        assert np.array_equal(case.hu, source["hu"])
        assert np.array_equal(case.mask, source["mask"] > 0)
    assert not case.spacing_known
    balance = class_balance(store)
    assert 0.02 < balance.loc["all", "lung_share"] < 0.2 and balance.loc["all", "empty_share"] > 0
    split = split_patients(store, test=["LCTSC-Test-S1-104"])
    assert split == {"train": ["LCTSC-Test-S1-101"], "validation": [], "test": ["LCTSC-Test-S1-104"]}


def test_a_folder_with_one_series_and_one_mask_needs_no_names(tmp_path):
    found = find_cases(real("cip-ct64"))
    assert len(found.cases) == 1 and found.cases[0].mask.name == "ct64_masks.npz"
    store = build_store(found, tmp_path / "store")
    with np.load(DATA / "cip-ct64" / "ct64_masks.npz") as labels:
        assert np.array_equal(store.case(store.names[0]).mask, labels["lung"] > 0)


def test_two_kernels_in_one_case_are_held_back(tmp_path):
    for kernel in ("B40f", "B70f"):
        for file in sorted((real("lungdx-a0002") / kernel).iterdir())[:3]:
            (tmp_path / "Case_000").mkdir(exist_ok=True)
            shutil.copyfile(file, tmp_path / "Case_000" / f"{kernel}_{file.name}")
    with pytest.raises(CohortError, match="2 CT series"):
        find_cases(tmp_path)


# --- pairing by content


@pytest.fixture(scope="module")
def chest():
    phantom = draw_phantom(seed=5, size=48, slices=10)
    return phantom, Volume(phantom.hu, phantom.affine), np.isin(phantom.labels, (2, 3))


def lctsc_like(root: Path, phantom, patients: int = 3) -> Path:
    "As the archive delivers: PATIENT/study/series, with UIDs for names and one RTSTRUCT beside the CT."
    for i in range(patients):
        who = f"LCTSC-Train-S1-{i:03d}"
        files = write_phantom(phantom, root / who / "study" / "1.2.3", patient_id=who, key=who)
        write_rtstruct(phantom, files, root / who / "study" / "4.5.6" / "1-1.dcm")
    return root


def test_an_archive_of_contours_pairs_by_what_they_refer_to(chest, tmp_path):
    found = find_cases(lctsc_like(tmp_path / "a", chest[0]))
    assert [c.name for c in found.cases] == [f"LCTSC-Train-S1-{i:03d}" for i in range(3)]
    assert all(c.name in c.mask.parts for c in found.cases) and not found.held
    every = sorted((tmp_path / "a").rglob("1-1.dcm"))
    (tmp_path / "a" / "contours").mkdir()
    for i, path in enumerate(every):  # no folder and no name tells any more
        path.rename(tmp_path / "a" / "contours" / f"{2 - i}.bin")
    assert [c.mask.name for c in find_cases(tmp_path / "a").cases] == ["2.bin", "1.bin", "0.bin"]


def test_contours_of_another_series_are_not_taken(chest, tmp_path):
    data = lctsc_like(tmp_path, chest[0], 2)
    shutil.rmtree(data / "LCTSC-Train-S1-000" / "study" / "1.2.3")
    found = find_cases(data)
    assert [c.name for c in found.cases] == ["LCTSC-Train-S1-001"]
    assert [(h.item.rsplit("/")[-1], h.reason) for h in found.held] == [
        ("1-1.dcm", "RTSTRUCT of a CT series that is not here")
    ]
    (data / "LCTSC-Train-S1-001" / "study" / "4.5.6" / "1-1.dcm").unlink()
    with pytest.raises(CohortError, match="no case with a mask"):
        find_cases(data)  # one image and one mask in all, and still not a pair


def test_of_two_series_the_one_that_was_drawn_on_is_taken(chest, tmp_path):
    data = lctsc_like(tmp_path, chest[0], 2)
    who = "LCTSC-Train-S1-000"
    files = write_phantom(chest[0], data / who / "study" / "0.0.1", patient_id=who, key="sharp")
    found = find_cases(data)
    assert not found.held and {f.parent.name for f in found.cases[0].image} == {"1.2.3"}
    write_rtstruct(chest[0], files, data / who / "study" / "second.dcm")  # now both: two cases of one patient
    found = find_cases(data)
    assert [c.name for c in found.cases] == [who, f"{who}_2", "LCTSC-Train-S1-001"]
    assert found.cases[0].patient == found.cases[1].patient != found.cases[2].patient
    assert {c.mask.name for c in found.cases[:2]} == {"1-1.dcm", "second.dcm"}


def test_of_several_contours_those_that_name_lungs_are_taken(chest, tmp_path):
    data = lctsc_like(tmp_path, chest[0], 2)
    mine = data / "LCTSC-Train-S1-000" / "study" / "4.5.6" / "1-1.dcm"
    plan = dcmread(mine)
    plan.SOPInstanceUID += ".7"
    plan.file_meta.MediaStorageSOPInstanceUID = plan.SOPInstanceUID
    for roi in plan.StructureSetROISequence:
        roi.ROIName = "GTV"
    plan.save_as(mine.with_name("0-0.dcm"))
    found = find_cases(data)
    assert not found.held and found.cases[0].mask == mine
    for roi in plan.StructureSetROISequence:
        roi.ROIName = "Lungs"
    plan.save_as(mine.with_name("0-0.dcm"))
    (held,) = find_cases(data).held
    assert held.item == "LCTSC-Train-S1-000" and held.reason.startswith("2 masks (")


def test_a_segmentation_is_taken_before_contours_and_arrays_before_both(chest, tmp_path):
    from lungseg.segments import write_seg

    phantom, volume, lungs = chest
    data = lctsc_like(tmp_path, phantom, 2)
    place = data / "LCTSC-Train-S1-000" / "study"
    write_seg({"Lung": lungs}, volume, place / "seg.dcm", ct=sorted((place / "1.2.3").iterdir()))
    assert find_cases(data).cases[0].mask.name == "seg.dcm"
    np.savez(data / "LCTSC-Train-S1-000_seg.npz", mask=lungs)
    found = find_cases(data)
    assert found.cases[0].mask.name == "LCTSC-Train-S1-000_seg.npz" and not found.held
    assert find_cases(data, masks="RTSTRUCT").cases[0].mask.name == "1-1.dcm"
    assert find_cases(data, masks="SEG").cases[0].mask.name == "seg.dcm"


def test_the_frame_of_reference_tells_where_the_series_does_not(chest, tmp_path):
    data = lctsc_like(tmp_path, chest[0], 2)
    for path in data.rglob("1-1.dcm"):
        ds = dcmread(path)
        del ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
        ds.save_as(data / f"{path.parts[-4]}.dcm")
        path.unlink()
    assert [c.mask.stem for c in find_cases(data).cases] == ["LCTSC-Train-S1-000", "LCTSC-Train-S1-001"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_volumes_and_masks_are_told_apart_by_content(chest, tmp_path, suffix):
    from lungseg.files import save_nifti, save_nrrd

    _, volume, lungs = chest
    save = save_nrrd if suffix == ".nrrd" else save_nifti
    for i, (image, mask) in enumerate((("lung", "a"), ("scan", "b"), ("img", "img_seg"))):
        folder = tmp_path / f"Case_{i}"
        save(volume.array, volume.affine, folder / f"{image}{suffix}")
        save(lungs.astype(np.int16 if i else np.uint8), volume.affine, folder / f"{mask}{suffix}")
    found = find_cases(tmp_path)
    assert len(found.cases) == 3 and not found.held
    assert [c.mask.name for c in found.cases if c.name == "Case_1"] == [f"b{suffix}"]


@pytest.mark.parametrize(
    "image, mask",
    [
        ("imagesTr/lung_{}_0000", "labelsTr/lung_{}"),  # nnU-Net
        ("imagesTr/lung_{}", "labelsTr/lung_{}"),  # Medical Segmentation Decathlon
        ("volume-{}", "segmentation-{}"),  # LiTS
        ("case_{}/imaging", "case_{}/segmentation"),  # KiTS
        ("{}/data", "{}/label"),  # StructSeg
        ("P{}_CT", "P{}_lung_mask"),
    ],
)
def test_layouts_of_public_collections_are_paired(chest, tmp_path, image, mask):
    from lungseg.files import save_nifti

    _, volume, lungs = chest
    for i in range(3):
        save_nifti(volume.array, volume.affine, tmp_path / f"{image.format(i)}.nii.gz")
        save_nifti(lungs.astype(np.int16), volume.affine, tmp_path / f"{mask.format(i)}.nii.gz")
    found = find_cases(tmp_path)
    assert not found.held and len({c.patient for c in found.cases}) == 3
    for case in found.cases:
        told = (
            p.relative_to(tmp_path).as_posix().removesuffix("_0000.nii.gz")
            for p in (case.image[0], case.mask)
        )
        digits = [[c for c in words if c in "012"][-1] for words in told]
        assert digits[0] == digits[1]


@pytest.mark.parametrize("key, is_image", [("arr_0", False), ("data", True), ("ct", True), ("lungs", False)])
def test_an_array_of_no_telling_key_is_told_by_its_values(chest, tmp_path, key, is_image):
    _, volume, lungs = chest
    np.savez(tmp_path / "x.npz", **{key: volume.array if is_image else lungs.astype(np.int16)})
    with pytest.raises(CohortError, match=f"found {int(is_image)} images, {int(not is_image)} masks"):
        find_cases(tmp_path)


def test_a_broken_or_pickled_file_is_held_and_the_rest_goes_on(chest, tmp_path):
    from lungseg.files import save_nifti, save_nrrd

    _, volume, lungs = chest
    np.savez(tmp_path / "good.npz", hu=volume.array, mask=lungs)
    for name in ("a.nrrd", "b.nii.gz", "c.npz", "d.mha"):
        (tmp_path / name).write_bytes(b"nothing that makes sense" * 9)
    np.savez(tmp_path / "e.npz", arr_0=np.array([{"a": 1}], dtype=object))
    save_nrrd(volume.array, volume.affine, tmp_path / "f.nrrd")
    save_nifti(volume.array, volume.affine, tmp_path / "g.nii.gz")
    for name in ("f.nrrd", "g.nii.gz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:900])
    found = find_cases(tmp_path)
    assert [c.name for c in found.cases] == ["good"]
    assert {"a.nrrd", "b.nii.gz", "c.npz", "d.mha", "e.npz", "f.nrrd", "g.nii.gz"} <= {
        h.item for h in found.held
    }
    assert all("\n" not in str(h) and str(tmp_path) not in str(h) for h in found.held)


def test_pictures_are_a_cohort_too(tmp_path):
    from lungseg.pictures import write_pairs

    data = write_pairs(tmp_path / "kaggle", cases=4, slices=3, size=64)
    next((data / "2d_masks").iterdir()).unlink()
    found = find_cases(data)
    assert found.kind == "pictures with masks" and len(found.cases) == 4 and len(found.held) == 1
    store = build_store(found, tmp_path / "store")
    assert len(store) == 4 and not store.verify()
    case = store.case(store.names[-1])
    assert case.mask.any() and not case.spacing_known and case.meta["hu_known"] is False
    said = problems(store)
    assert said.what.str.contains("grey values, not HU").any() and said.what.str.contains("voxel size").any()
    split = split_patients(store)
    assert split["train"] and split["test"]


def test_a_stack_of_pictures_is_a_mask_of_the_case_it_is_named_for(cohort, tmp_path):
    from PIL import Image

    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    shutil.rmtree(data / "Structures")
    with np.load(data / "Segmentations" / "Case_000_seg.npz") as stored:
        mask = stored["masks"]
    (data / "Segmentations" / "Case_000_seg.npz").unlink()
    for k, plane in enumerate(mask):
        path = data / "Segmentations" / "Case_000" / f"slice{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(plane * np.uint8(255)).save(path)
    Image.fromarray(mask[5]).save(data / "Images" / "preview.png")
    found = find_cases(data)
    assert isinstance(found.cases[0].mask, tuple) and len(found.cases) == 6 and not found.held
    assert [f.name for f in found.cases[0].mask][-1] == "slice11.png"
    store = build_store([found.cases[0]], tmp_path / "store")
    assert np.array_equal(store.case("Case_000").mask, mask > 0)


def test_identifiers_that_name_nobody_do_not_make_one_patient(chest, tmp_path):
    for i, who in enumerate(("Anonymous", "ANONYMOUS^", "", "patient 1", "PATIENT-01")):
        folder = tmp_path / f"Case_{i}"
        files = write_phantom(chest[0], folder / "ct", patient_id=who, key=i)
        write_rtstruct(chest[0], files, folder / "rt.dcm")
    found = find_cases(tmp_path)
    assert len({c.patient for c in found.cases}) == 4 and found.cases[3].patient == found.cases[4].patient
    assert [p.case for p in found.noted] == ["Case_0", "Case_1", "Case_2"]
    table = problems(found)
    assert (
        table.consequence.tolist() == ["used"] * 3
        and table.what.str.startswith("PatientID names nobody").all()
    )


def test_contours_follow_their_case_through_deidentification(chest, tmp_path):
    data = lctsc_like(tmp_path / "data", chest[0], 3)
    found = find_cases(data)
    done = deidentify(data, tmp_path / "out", secret=tmp_path / "out.secret")
    moved = relocate(found, dict(done.files))
    for case in moved.cases:
        assert case.mask.is_relative_to(tmp_path / "out") and case.mask.parts[-3] == case.name
    again = find_cases(tmp_path / "out")
    assert [(c.name, c.image, c.mask, c.patient) for c in again.cases] == [
        (c.name, c.image, c.mask, c.patient) for c in moved.cases
    ]
    first = found.cases[1].mask
    held = relocate(found, {s: t for s, t in done.files if s != first}).held
    assert [str(h) for h in held] == ["Case_001: its contours or segmentation were not de-identified"]


# --- what is odd


def test_what_is_odd_about_a_case_is_said(chest):
    _, volume, lungs = chest
    said = oddities(volume, lungs)
    assert all("cut off" in line for line in said)
    low = Volume(np.where(lungs, volume.array, -2048).astype(np.int16), volume.affine)
    assert any("lowest value -2048 HU" in line for line in oddities(low, None))
    unknown = Volume(volume.array, volume.affine, {"spacing_known": False, "hu_known": False})
    assert [line.split(":")[0] for line in oddities(unknown, None)] == [
        "the voxel size is unknown",
        "grey values, not HU",
    ]
    assert any(
        "hardly any lung: 0.00% of all voxels" in line for line in oddities(unknown, np.zeros_like(lungs))
    )
    for wrong in (~lungs, np.roll(lungs, 24, 2)):
        assert any("of the mask" in line for line in oddities(volume, wrong))


def test_one_scan_under_two_names_and_one_mask_for_two_scans_are_listed(chest, tmp_path):
    _, volume, lungs = chest
    for name, array in (("a", volume.array), ("b", volume.array), ("c", volume.array + np.int16(3))):
        np.savez(tmp_path / f"{name}.npz", hu=array, mask=lungs)
    store = build_store(find_cases(tmp_path), tmp_path / "store")
    table = problems(store)
    said = set(zip(table.case, table.what, strict=True))
    assert {("b", "the same voxels as a"), ("c", "the same mask as a")} <= said
    with pytest.raises(CohortError, match="expected at least two"):
        split_patients(build_store(find_cases(tmp_path).cases[:2], tmp_path / "two"))


# --- the store


def test_two_processes_write_what_one_does(cohort, tmp_path):
    one, two = (build_store(find_cases(cohort), tmp_path / str(n), workers=n) for n in (1, 2))
    assert [one.meta(n)["sha256"] for n in one.names] == [two.meta(n)["sha256"] for n in two.names]
    assert one.verify() == two.verify() == []


def test_checksums_are_of_the_arrays(cohort, tmp_path):
    store = build_store(find_cases(cohort).cases[:1], tmp_path / "store")
    case = store.case("Case_000")
    assert case.meta["sha256"] == {"hu": checksum(case.hu), "mask": checksum(case.mask)}
    assert checksum(case.hu) != checksum(case.hu.astype(np.int32)) != checksum(case.hu.reshape(-1))


@pytest.mark.parametrize("name", ["hu.npy", "mask.npy", "case.json"])
def test_a_damaged_case_is_noticed_and_built_again(cohort, tmp_path, name):
    found = find_cases(cohort)
    store = build_store(found.cases[:2], tmp_path / "store")
    path = tmp_path / "store" / "Case_001" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CohortError, match=r"Case_001: .*build the store again"):
        store.case("Case_001")
    assert [p.case for p in store.verify()] == ["Case_001"]
    path.unlink()
    with pytest.raises(CohortError, match=r"Case_001: .*build the store again"):
        store.case("Case_001")
    assert build_store(found.cases[:2], tmp_path / "store").verify() == []


def test_a_copy_of_the_data_is_not_read_anew(cohort, tmp_path, monkeypatch):
    import lungseg.cohort as module

    build_store(find_cases(cohort), tmp_path / "store")
    copy = Path(shutil.copytree(cohort, tmp_path / "copy", copy_function=shutil.copyfile))
    monkeypatch.setattr(module, "_read", lambda *_: pytest.fail("read again"))
    store = build_store(find_cases(copy), tmp_path / "store")
    assert store.verify() == []
    monkeypatch.setattr(module, "_content", lambda *_: pytest.fail("hashed again"))
    build_store(find_cases(copy), tmp_path / "store")  # the new times were noted


def test_a_case_that_left_the_cohort_leaves_the_store(cohort, tmp_path):
    found = find_cases(cohort)
    build_store(found, tmp_path / "store")
    (tmp_path / "store" / "notes").mkdir()
    store = build_store(found.cases[:2], tmp_path / "store")
    assert sorted(p.name for p in store.path.iterdir()) == ["Case_000", "Case_001", "notes", "store.json"]


def test_a_store_of_an_older_format_is_built_again(cohort, tmp_path):
    found = find_cases(cohort)
    store = build_store(found.cases[:1], tmp_path / "store")
    for path in (store.path / "store.json", store.path / "Case_000" / "case.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1, "fingerprint": "0a1b"}))
    with pytest.raises(CohortError, match="store of format 1, expected 2: build it again"):
        Store(store.path)
    assert build_store(found.cases[:1], store.path).verify() == []


def test_a_case_without_a_mask_can_be_stored(cohort, tmp_path):
    bare = [Case(c.name, c.image, None, c.patient, c.sex) for c in find_cases(cohort).cases[:2]]
    store = build_store(bare, tmp_path / "store")
    assert store.case("Case_000").mask is None and store.verify() == []
    with pytest.raises(CohortError, match="no case in this store has a mask"):
        class_balance(store)


@pytest.mark.parametrize("after", [0.15, 0.4, 0.8])
def test_a_killed_build_leaves_whole_cases_and_the_next_one_finishes(cohort, tmp_path, after):
    code = (
        "import sys\nfrom lungseg.cohort import build_store, find_cases\n"
        f"found = find_cases({str(cohort)!r})\nprint('ready', flush=True)\n"
        f"build_store(found, {str(tmp_path / 'store')!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child.stdout.readline()
    time.sleep(after)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    for folder in (tmp_path / "store").glob("Case_*"):
        meta = json.loads((folder / "case.json").read_text())
        assert checksum(np.load(folder / "hu.npy")) == meta["sha256"]["hu"]
        assert checksum(np.load(folder / "mask.npy")) == meta["sha256"]["mask"]
    store = build_store(find_cases(cohort), tmp_path / "store")
    assert len(store) == 6 and store.verify() == []
    assert not list(store.path.glob(".*"))


def test_killed_between_two_renames_the_old_case_comes_back(cohort, tmp_path):
    found = find_cases(cohort)
    store = build_store(found.cases[:2], tmp_path / "store")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    before = (store.path / "Case_001" / "hu.npy").stat().st_ino
    (store.path / "Case_001").rename(store.path / f".Case_001.{gone.pid}.old")
    (store.path / f".Case_001.{gone.pid}").mkdir()
    store = build_store(found.cases[:2], tmp_path / "store")
    assert (store.path / "Case_001" / "hu.npy").stat().st_ino == before
    assert not list(store.path.glob(".*"))


def test_balance_is_told_by_part(cohort, tmp_path):
    store = build_store(find_cases(cohort), tmp_path / "store")
    split = split_patients(store)
    table = class_balance(store, split)
    assert list(table.index) == ["train", "validation", "test", "all"]
    assert table.loc["all", "voxels"] == class_balance(store).loc["all", "voxels"]
    assert table.loc["train", "lung_voxels"] == sum(store.case(n).mask.sum() for n in split["train"])


def test_contours_make_the_store_that_arrays_make(chest, tmp_path):
    phantom, _, lungs = chest
    store = build_store(find_cases(lctsc_like(tmp_path / "data", phantom, 2)), tmp_path / "store")
    assert len(store) == 2 and not store.held
    mask = np.asarray(store.case("LCTSC-Train-S1-000").mask)
    assert 2 * (mask & lungs).sum() / (mask.sum() + lungs.sum()) > 0.95  # the outlines are smoothed


def test_missing_slices_are_refused_or_corrected_when_asked(tmp_path):
    data = lctsc_like(tmp_path / "data", draw_phantom(seed=5, size=32, slices=60), 2)
    places = {dcmread(f).ImagePositionPatient[2]: f for f in (data / "LCTSC-Train-S1-000").rglob("1.2.3/*")}
    places[sorted(places)[30]].unlink()
    found = find_cases(data)
    store = build_store(found, tmp_path / "store")
    assert store.names == ["LCTSC-Train-S1-001"] and [h.item for h in store.held] == ["LCTSC-Train-S1-000"]
    store = build_store(found, tmp_path / "store", correct=True)
    assert len(store) == 2
    assert len(store.case("LCTSC-Train-S1-000").hu) == 60 and store.meta("LCTSC-Train-S1-000")["corrected"]
    said = problems(store)
    assert "LCTSC-Train-S1-000" in set(said.case) and set(said.consequence) == {"used"}


# --- images without masks


def test_pictures_without_masks_are_cases_by_the_patients_they_name(tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    for who in ("P01", "P02", "P03"):
        for k in range(3):
            picture = Image.fromarray(random.integers(0, 255, (32, 32), np.uint8))
            picture.save(tmp_path / f"{who}_slice{k}.png")
    with pytest.raises(CohortError, match="no case with a mask"):
        find_cases(tmp_path)
    found = find_cases(tmp_path, alone=True)
    assert [len(c.image) for c in found.cases] == [3, 3, 3] and not found.held
    assert len({c.patient for c in found.cases}) == 3 and {c.mask for c in found.cases} == {None}
    assert all(len({f.name[:3] for f in c.image}) == 1 for c in found.cases)


def test_an_image_without_a_mask_is_a_case_when_asked(cohort, tmp_path):
    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    (data / "Segmentations" / "Case_002_seg.npz").unlink()
    (data / "Structures" / "Case_002.dcm").unlink()
    assert [h.item for h in find_cases(data).held] == ["Case_002"]
    found = find_cases(data, alone=True)
    assert [c.name for c in found.cases if c.mask is None] == ["Case_002"] and not found.held
    assert len(found.cases) == 6


def test_all_series_of_a_case_can_be_asked_for(tmp_path):
    for i in range(2):
        write_series(tmp_path / "Case_000", z_mm=[0, 2, 4])
        write_series(tmp_path / "Case_001", z_mm=[0, 2, 4, 6 + i], patient_id="other")
    with pytest.raises(CohortError, match="2 CT series"):
        find_cases(tmp_path, alone=True)
    found = find_cases(tmp_path, series="all", alone=True)
    assert [c.name for c in found.cases] == [f"Case_00{i}{n}" for i in range(2) for n in ("", "_2")]
    assert [len(c.image) for c in found.cases] == [3, 3, 4, 4]
    assert len({c.patient for c in found.cases}) == 2


def test_a_store_tells_which_cases_changed_and_is_not_touched(cohort, tmp_path):
    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    found = find_cases(data)
    assert changed(found, tmp_path / "store") == [c.name for c in found.cases]
    store = build_store(found.cases[:4], tmp_path / "store")
    mask = data / "Segmentations" / "Case_001_seg.npz"
    with np.load(mask) as stored:
        np.savez(mask, masks=np.roll(stored["masks"], 1, 1))
    before = {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    assert changed(found.cases[:4], store.path) == ["Case_001"]
    assert changed(found.cases[2:5], store.path) == ["Case_000", "Case_001", "Case_004"]
    assert changed(found.cases[2:4], store.path, correct=True) == [f"Case_00{i}" for i in range(4)]
    assert {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()} == before


# --- what must not be hidden


def two_chests(root: Path, masks: tuple[int, int] = (0, 1)) -> Path:
    "Two unlike chests on one grid as NIfTI, each with the mask of the one that is said."
    from lungseg.files import save_nifti

    chests = [draw_phantom(seed=s, size=64, slices=16) for s in (3, 11)]
    for i, mine in enumerate(masks):
        save_nifti(chests[i].hu, chests[0].affine, root / f"Case_{i}" / "ct.nii.gz")
        lungs = np.isin(chests[mine].labels, (2, 3)).astype(np.uint8)
        save_nifti(lungs, chests[0].affine, root / f"Case_{i}" / "mask.nii.gz")
    return root


def test_the_mask_of_another_patient_is_remarked(tmp_path):
    right = problems(build_store(find_cases(two_chests(tmp_path / "right")), tmp_path / "a"))
    wrong = problems(build_store(find_cases(two_chests(tmp_path / "wrong", (1, 0))), tmp_path / "b"))
    assert not right.what.str.contains("another patient").any()
    said = wrong[
        wrong.what.str.contains(r"fits the CT poorly \(0.\d\d, expected 0.6\): another patient's mask\?")
    ]
    assert sorted(said.case) == ["Case_0", "Case_1"] and set(said.consequence) == {"used"}


def test_own_clinical_masks_are_not_remarked(tmp_path):
    store = build_store(find_cases(real("lctsc")).cases[:1], tmp_path / "store")
    assert not problems(store).what.str.contains("another patient").any()


def test_what_a_header_contradicts_is_in_the_table(chest, tmp_path):
    import nibabel as nib

    _, volume, lungs = chest
    for name, move in (("apart", 30.0), ("identity", None)):
        (tmp_path / name).mkdir()
        for what, array in (("ct", volume.array), ("mask", lungs.astype(np.uint8))):
            image = nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-4.0, -4.0, 5.0, 1.0]))
            image.set_sform(np.eye(4) if move is None else image.affine, 1)
            form = np.eye(4) if move is None else image.affine.copy()
            form[0, 3] += move or 0
            image.set_qform(form, 1)
            nib.save(image, tmp_path / name / f"{what}.nii.gz")
    table = problems(build_store(find_cases(tmp_path), tmp_path / "store"))
    said = table.case + ": " + table.what
    assert said.str.contains("apart: sform and qform lie up to").any()
    assert not said.str.contains("its mask").any()  # the same words twice would help nobody
    assert said.str.contains("identity: .*affine is the identity").any()


def test_what_a_masks_own_header_leaves_out_is_in_the_table(chest, tmp_path):
    from lungseg.files import save_nifti

    _, volume, lungs = chest
    save_nifti(volume.array, volume.affine, tmp_path / "Case_0" / "ct.nii.gz")
    save_nifti(
        lungs.astype(np.uint8),
        np.diag([1.0, -1.0, -1.0, 1.0])[[2, 1, 0, 3]],
        tmp_path / "Case_0" / "mask.nii.gz",
    )
    table = problems(build_store(find_cases(tmp_path), tmp_path / "store"))
    assert table.what.str.contains("its mask: its affine is the identity").any()


@pytest.mark.parametrize("key", ["note", "notes"])
def test_a_note_is_read_as_a_line_or_as_a_list(cohort, tmp_path, key):
    store = build_store(find_cases(cohort).cases[:1], tmp_path / "store")
    path = store.path / "Case_000" / "case.json"
    line = "sform and qform lie up to 3 mm apart"
    for said in (line, [line]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: said}))
        assert problems(store).what.tolist().count(line) == 1


def test_new_numbers_beside_an_old_header_are_noticed(chest, tmp_path):
    import SimpleITK as sitk

    _, volume, lungs = chest
    data = tmp_path / "data" / "Case_0"
    data.mkdir(parents=True)
    for name, array in (("ct", volume.array), ("mask", lungs.astype(np.uint8))):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(data / f"{name}.mhd"))
    store = build_store(find_cases(tmp_path / "data"), tmp_path / "store")
    before = store.case("Case_0").hu[0].copy()
    np.where(lungs, volume.array - 5, volume.array).astype(np.int16)[::-1].tofile(data / "ct.raw")
    assert changed(find_cases(tmp_path / "data"), tmp_path / "store") == ["Case_0"]
    store = build_store(find_cases(tmp_path / "data"), tmp_path / "store")
    assert not np.array_equal(store.case("Case_0").hu[0], before)


def test_a_flipped_bit_is_mended_when_asked(cohort, tmp_path):
    found = find_cases(cohort).cases[:2]
    store = build_store(found, tmp_path / "store")
    path = store.path / "Case_001" / "mask.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    kept = (store.path / "Case_000" / "hu.npy").stat().st_mtime_ns
    (said,) = build_store(found, tmp_path / "store").verify()
    assert said.case == "Case_001" and "verify=True" in said.reason
    assert build_store(found, tmp_path / "store", verify=True, workers=2).verify() == []
    assert path.read_bytes() == whole
    assert (store.path / "Case_000" / "hu.npy").stat().st_mtime_ns == kept


def test_where_nothing_can_be_stored_the_reasons_are_told(tmp_path):
    for i in range(7):
        np.savez(tmp_path / f"c{i}.npz", hu=np.zeros((4, 8, 8), np.int16), mask=np.ones((3, 8, 8), np.uint8))
    np.savez(tmp_path / "stray_seg.npz", masks=np.ones((3, 4, 5), np.uint8))
    with pytest.raises(CohortError) as raised:
        build_store(find_cases(tmp_path), tmp_path / "store")
    told = str(raised.value)
    assert told.startswith("no case could be stored: c0: ") and told.endswith("; and 3 more")
    assert "c4: " in told and "c5" not in told and "stray" not in told and "\n" not in told


# --- whose is it


@pytest.mark.parametrize("folder", ["", "hospital"])
def test_patients_whose_files_share_a_folder_are_told_apart(tmp_path, folder):
    data = tmp_path / "data"
    for i, who in enumerate(("LUNG-07", "lung_12")):
        phantom = draw_phantom(seed=i, size=48, slices=10)
        for file in write_phantom(phantom, tmp_path / "x", patient_id=who):
            (data / folder).mkdir(parents=True, exist_ok=True)
            file.rename(data / folder / f"{i}_{file.name}")
        np.savez(data / folder / f"{who}_seg.npz", masks=np.isin(phantom.labels, (2, 3)))
    found = find_cases(data)
    shared = folder or "data"
    assert [c.name for c in found.cases] == [f"{shared}_1", f"{shared}_2"] and not found.held
    assert [c.mask.name for c in found.cases] == ["LUNG-07_seg.npz", "lung_12_seg.npz"]
    assert len({c.patient for c in found.cases}) == 2
    assert build_store(found, tmp_path / "store").names == [f"{shared}_1", f"{shared}_2"]
    (data / folder / "lung_12_seg.npz").rename(data / folder / "mask.npz")
    (held,) = [h for h in find_cases(data).held if h.item == f"{shared}_2"]
    assert "no mask found" in held.reason  # the folder's only nameless mask is nobody's


def test_one_series_uid_for_two_patients_makes_two_cases(tmp_path):
    for i in range(2):
        phantom = draw_phantom(seed=i, size=48, slices=10)
        files = write_phantom(phantom, tmp_path / "d" / f"C{i}", patient_id=f"P{i}", key=str(i))
        for file in files:
            ds = dcmread(file)
            ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.4"
            ds.save_as(file)
        ds = dcmread(write_rtstruct(phantom, files, tmp_path / "d" / f"s{1 - i}.dcm"))
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.5.{i}"
        ds.save_as(tmp_path / "d" / f"s{1 - i}.dcm")
    found = find_cases(tmp_path / "d")
    assert [(c.name, len(c.image), c.mask.name) for c in found.cases] == [
        ("C0", 10, "s1.dcm"),
        ("C1", 10, "s0.dcm"),
    ]
    assert all({f.parent.name for f in c.image} == {c.name} for c in found.cases)
    assert len({c.patient for c in found.cases}) == 2
    assert not any("another patient" in line for line in problems(build_store(found, tmp_path / "s")).what)


# --- lungs in several files


@pytest.mark.parametrize(
    "image, left, right",
    [
        ("s{}/ct", "s{}/segmentations/left_lung", "s{}/segmentations/right_lung"),
        ("s{}/ct", "s{}/lung_left", "s{}/lung_right"),
        ("images/s{}", "masks/s{}_lung_left", "masks/s{}_lung_right"),
        ("images/s{}_0000", "labels/s{}_left-lung", "labels/s{}_right-lung"),
    ],
)
def test_left_and_right_lung_in_two_files_are_one_mask(tmp_path, image, left, right):
    from lungseg.files import save_nifti

    phantom, volume, lungs = (p := draw_phantom(seed=5, size=48, slices=10)), p.hu, np.isin(p.labels, (2, 3))
    for i in range(2):
        save_nifti(volume, phantom.affine, tmp_path / "d" / f"{image.format(i)}.nii.gz")
        for name, label in ((left, 2), (right, 3), (left.replace("lung", "kidney"), 6)):
            mask = (phantom.labels == label).astype(np.uint8)
            save_nifti(mask, phantom.affine, tmp_path / "d" / f"{name.format(i)}.nii.gz")
    found = find_cases(tmp_path / "d")
    assert len(found.cases) == 2 and all(len(c.mask) == 2 for c in found.cases)
    store = build_store(found, tmp_path / "store")
    assert all(store.case(n).mask.sum() == lungs.sum() for n in store.names) and len(store) == 2
    assert not problems(store).what.str.contains("another patient").any()


def test_five_lobes_are_a_mask_and_four_are_not(tmp_path):
    from lungseg.files import save_nifti

    phantom = draw_phantom(seed=5, size=48, slices=10)
    save_nifti(phantom.hu, phantom.affine, tmp_path / "s0" / "ct.nii.gz")
    lobes = [
        "upper_lobe_left",
        "lower_lobe_left",
        "upper_lobe_right",
        "middle_lobe_right",
        "lower_lobe_right",
    ]
    for i, lobe in enumerate([*lobes, "vessels"]):
        part = np.isin(phantom.labels, (2, 3)) & (np.arange(48) % 5 == i)
        path = tmp_path / "s0" / "segmentations" / f"lung_{lobe}.nii.gz"
        save_nifti(part.astype(np.uint8), phantom.affine, path)
    (case,) = find_cases(tmp_path).cases
    assert sorted(f.name[5:-7] for f in case.mask) == sorted(lobes)
    (tmp_path / "s0" / "segmentations" / "lung_middle_lobe_right.nii.gz").unlink()
    with pytest.raises(
        CohortError, match=r"5 masks .* expected one, or a left and a right lung by their names"
    ):
        find_cases(tmp_path)


def arrays_of(seeds, folder: Path) -> Path:
    "Cases as arrays, one slice more from case to case."
    folder.mkdir()
    for i, seed in enumerate(seeds):
        p = draw_phantom(seed, size=64, slices=12 + i)
        lungs = p.mask("lung_left", "lung_right").astype(np.uint8)
        np.savez_compressed(folder / f"Case_{i}.npz", hu=p.hu, mask=lungs)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_takes_no_more_names_the_file_and_leaves_the_store_as_it_was(tmp_path, workers):
    "The system refuses files of more than 104 kB, of which the second case's voxels need 107."
    resource = pytest.importorskip("resource", reason="this system limits no files")
    cases = find_cases(arrays_of(range(3), tmp_path / "data"))
    first = Found(cases.cases[:1], (), cases.kind)
    store = build_store(first, tmp_path / "store")
    before = {f: f.read_bytes() for f in store.path.rglob("*") if f.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (104_000, limits[1]))
    try:
        with pytest.raises(CohortError) as caught:
            build_store(cases, store.path, workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = str(caught.value)
    assert re.match(r"Case_[12]: hu.npy could not be written \(.+\): 0\.1 MB needed, \d+\.\d MB free; ", said)
    assert said.endswith("; what was finished before is kept, make room and the same call goes on")
    assert str(tmp_path) not in said
    assert {f: f.read_bytes() for f in before} == before
    assert not [f for f in store.path.iterdir() if f.name.startswith(".")]
    assert Store(store.path).names == ["Case_0"]
    assert build_store(cases, store.path, workers=workers).names == ["Case_0", "Case_1", "Case_2"]


def test_a_case_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    data = arrays_of(range(2), tmp_path / "data")
    store = build_store(find_cases(data), tmp_path / "store")
    before = store.case("Case_1").hu.copy()
    np.savez(data / "Case_1.npz", hu=before - np.int16(1), mask=store.case("Case_1").mask.astype(np.uint8))
    really = Path.rename

    def full(path, to):
        if path.name.startswith(".Case_1") and not path.name.endswith(".old"):
            raise OSError(28, "No space left on device")
        return really(path, to)

    with monkeypatch.context() as m:
        m.setattr(Path, "rename", full)
        with pytest.raises(CohortError, match=r"^Case_1: its folder could not be written \(No space left"):
            build_store(find_cases(data), store.path)
    assert np.array_equal(Store(store.path).case("Case_1").hu, before)
    assert np.array_equal(build_store(find_cases(data), store.path).case("Case_1").hu, before - np.int16(1))
