"The phantom's DICOM judged by an outsider, and what must hold for every person drawn."

import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from scipy import ndimage

from lungseg.core import InputError
from lungseg.phantom import (
    LABELS,
    Anatomy,
    Finding,
    Scan,
    draw_phantom,
    write_cohort,
    write_phantom,
    write_rtstruct,
    write_series,
)


@pytest.fixture(scope="module")
def phantom():
    return draw_phantom(3)


def region(phantom, *names):
    return np.isin(phantom.labels, [LABELS[n] for n in names])


def mean_x(phantom, name):
    return phantom.affine[0, 3] + phantom.affine[0, 2] * np.nonzero(region(phantom, name))[2].mean()


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error_in_ct_series_and_structures(phantom, tmp_path):
    ct = write_phantom(phantom, tmp_path / "ct", birth_date="19700401")
    rt = write_rtstruct(phantom, ct, tmp_path / "rt.dcm")
    tiny = write_series(tmp_path / "tiny", [0.0, 2.5])
    for file in (ct[0], ct[-1], rt, *tiny):
        said = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True).stderr
        assert "Error" not in said, said


def test_every_instance_of_a_series_has_its_own_uid_and_one_of_everything_else(phantom, tmp_path):
    slices = [dcmread(f, stop_before_pixels=True) for f in write_phantom(phantom, tmp_path)]
    assert len({ds.SOPInstanceUID for ds in slices}) == len(slices)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({ds[keyword].value for ds in slices}) == 1
    assert all(ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID for ds in slices)


def test_uids_and_bytes_repeat_from_the_seed(phantom, tmp_path):
    first = write_phantom(phantom, tmp_path / "a")
    second = write_phantom(phantom, tmp_path / "b")
    assert [f.name for f in first] == [f.name for f in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_file_names_and_instance_numbers_do_not_follow_the_patient(phantom, tmp_path):
    files = write_phantom(phantom, tmp_path)
    z = [float(dcmread(f, stop_before_pixels=True).ImagePositionPatient[2]) for f in files]
    by_name = [z[files.index(f)] for f in sorted(files)]
    assert z == sorted(z) and by_name not in (z, z[::-1])
    numbers = [int(dcmread(f, stop_before_pixels=True).InstanceNumber) for f in files]
    assert numbers == sorted(numbers, reverse=True)


def test_contours_lie_on_the_slice_they_refer_to(phantom, tmp_path):
    files = write_phantom(phantom, tmp_path / "ct")
    z = {ds.SOPInstanceUID: float(ds.ImagePositionPatient[2]) for ds in map(dcmread, files)}
    rt = dcmread(write_rtstruct(phantom, files, tmp_path / "rt.dcm"))
    contours = [c for roi in rt.ROIContourSequence for c in roi.ContourSequence]
    assert len(contours) > 50
    for contour in contours:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        assert np.allclose(
            points[:, 2], z[contour.ContourImageSequence[0].ReferencedSOPInstanceUID], atol=0.01
        )


def test_liver_is_on_the_right_and_heart_on_the_left(phantom):
    assert mean_x(phantom, "lung_right") < mean_x(phantom, "cord") < mean_x(phantom, "lung_left")
    assert mean_x(phantom, "heart") > 0
    x = phantom.affine[0, 3] + phantom.affine[0, 2] * np.arange(phantom.hu.shape[2])
    liver = (phantom.hu[4:8] > 40) & (phantom.hu[4:8] < 75) & region(phantom, "body")[4:8]
    assert x[np.nonzero(liver)[2]].mean() < -5


def test_the_lungs_reach_further_down_at_the_back(phantom):
    lungs = region(phantom, "lung_left", "lung_right")
    z, row, _ = np.nonzero(lungs)
    back = row > np.median(row)
    assert z[back].min() < z[~back].min()


def test_trachea_is_one_air_filled_tube_in_the_middle():
    phantom = draw_phantom(3, scan=Scan(192, 60))
    airway = region(phantom, "airway")
    assert ndimage.label(airway, np.ones((3, 3, 3)))[1] == 1
    assert np.median(phantom.hu[airway]) < -900
    assert abs(mean_x(phantom, "airway")) < 10


def test_a_fair_share_of_slices_holds_no_lung():
    for seed in range(3):
        phantom = draw_phantom(seed, size=64)
        empty = ~region(phantom, "lung_left", "lung_right").any((1, 2))
        assert 0.2 <= empty.mean() <= 0.5


def test_more_dose_and_a_smoother_kernel_mean_less_noise():
    def noise(**options):
        hu = draw_phantom(0, scan=Scan(96, 4, thickness_mm=3, **options)).hu[0]
        other = draw_phantom(0, scan=Scan(96, 4, thickness_mm=3, dose=1e6)).hu[0]
        return (hu[36:60, 36:60].astype(float) - other[36:60, 36:60]).std()

    assert noise(dose=4.0) < noise() < noise(kernel="sharp")
    assert noise(kernel="smooth") < noise()


@pytest.mark.parametrize(
    "kind, label", [("tumour", "tumour"), ("nodule", "tumour"), ("effusion", "effusion")]
)
def test_a_finding_takes_its_room_from_its_own_lung(kind, label):
    anatomy = Anatomy()
    plain = draw_phantom(5, anatomy=anatomy).drawn["volume_ml"]
    sick = draw_phantom(5, anatomy=anatomy, findings=(Finding(kind, "left", 34),)).drawn["volume_ml"]
    assert plain[label] == 0 and sick[label] > 8
    assert sick["lung_left"] < plain["lung_left"] and sick["lung_right"] == plain["lung_right"]


def test_emphysema_thins_and_consolidation_fills_without_moving_the_border():
    anatomy = Anatomy()
    plain = draw_phantom(5, anatomy=anatomy)
    right = region(plain, "lung_right")
    for kind, size, sign in (("emphysema", 40, -1), ("consolidation", 80, 1)):
        sick = draw_phantom(5, anatomy=anatomy, findings=(Finding(kind, "right", size),))
        assert (sick.labels == plain.labels).all()
        assert sign * (sick.hu[right].mean() - plain.hu[right].mean()) > 10


def test_breathing_out_makes_lungs_smaller_and_denser():
    held, out = (draw_phantom(1, anatomy=Anatomy(breath=b)) for b in (1.0, 0.0))
    for side in ("lung_left", "lung_right"):
        assert out.drawn["volume_ml"][side] < 0.85 * held.drawn["volume_ml"][side]
        assert np.median(out.hu[region(out, side)]) > np.median(held.hu[region(held, side)]) + 60


def test_values_can_be_stored_with_the_scanners_intercept(tmp_path):
    phantom = draw_phantom(2, scan=Scan(64, 6, intercept=-1000))
    assert phantom.hu.min() == -1000
    ds = dcmread(write_phantom(phantom, tmp_path)[2])
    assert (ds.pixel_array.astype(int) + int(ds.RescaleIntercept) == phantom.hu[2]).all()


def test_the_cohort_has_the_traps_of_the_real_one(tmp_path):
    out = write_cohort(tmp_path, size=32, slices=6)
    heads = [dcmread(next(case.iterdir())) for case in sorted((out / "Images").iterdir())]
    assert len(heads) == 12 and sum(ds.PatientSex == "F" for ds in heads) == 6
    assert {ds.PatientIdentityRemoved for ds in heads} == {"YES"}
    assert [i for i, ds in enumerate(heads) if ds.PatientBirthDate] == [3, 6]
    assert [i for i, ds in enumerate(heads) if ds.RescaleIntercept != -1024] == [9]
    assert [
        i for i, ds in enumerate(heads) if ds.ManufacturerModelName != heads[0].ManufacturerModelName
    ] == [9]
    assert len({ds.StudyInstanceUID for ds in heads}) == len({ds.PatientID for ds in heads}) == 12
    shapes = {np.load(f)["masks"].shape for f in (out / "Segmentations").iterdir()}
    assert shapes == {(6, 32, 32), (32, 32, 6)}


def test_two_processes_write_the_same_cohort_as_one(tmp_path):
    one = write_cohort(tmp_path / "one", cases=2, size=32, slices=4)
    two = write_cohort(tmp_path / "two", cases=2, size=32, slices=4, workers=2)
    files = sorted(f.relative_to(one) for f in one.rglob("*.dcm"))
    assert files == sorted(f.relative_to(two) for f in two.rglob("*.dcm"))
    assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)


def test_a_cohort_of_nobody_is_refused(tmp_path):
    with pytest.raises(InputError, match="cases is 0"):
        write_cohort(tmp_path, cases=0)


@settings(max_examples=5, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    seed=st.integers(0, 10**6),
    sex=st.sampled_from("FM"),
    age=st.integers(20, 95),
    habitus=st.floats(-1, 1),
    breath=st.floats(0, 1),
    arms=st.sampled_from(["up", "down"]),
    height=st.floats(145, 200),
    scoliosis=st.floats(-15, 15),
)
def test_anybody_has_two_lungs_a_heart_and_a_cord_inside_the_body(
    seed, sex, age, habitus, breath, arms, height, scoliosis
):
    phantom = draw_phantom(
        seed, anatomy=Anatomy(sex, age, habitus, breath, arms, height, scoliosis), scan=Scan(64, 24)
    )
    ml = phantom.drawn["volume_ml"]
    assert 700 < ml["lung_left"] < 4500 and 700 < ml["lung_right"] < 4500
    assert 150 < ml["heart"] < 1200 and ml["cord"] > 5 and ml["airway"] > 8
    assert phantom.labels[:, [0, -1]].max() == 0
    for side in ("lung_left", "lung_right"):
        lung = region(phantom, side)
        parts, _ = ndimage.label(lung, np.ones((3, 3, 3)))
        assert np.bincount(parts.ravel())[1:].max() > 0.98 * lung.sum()
        assert -960 < np.median(phantom.hu[lung]) < -600
