"""A cohort from any folder to a split: what is paired, held, resumed, and that no patient leaks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from realdata import DATA, real

from lungseg.cohort import (
    Store,
    build_store,
    class_balance,
    find_cases,
    new_names,
    relocate,
)
from lungseg.core import CohortError, InputError
from lungseg.deidentify import deidentify
from lungseg.phantom import write_cohort
from lungseg.splits import split_patients
from lungseg.volume import read_volume


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
    store = build_store(find_cases(data), tmp_path / "store")
    assert store.names == ["Case_000", "Case_005"]
    reasons = {h.item: h.reason for h in Store(tmp_path / "store").held}
    assert {"Case_001", "Case_002", "Case_003", "Case_004"} <= set(reasons)
    assert "empty" in reasons["Case_003"]
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
