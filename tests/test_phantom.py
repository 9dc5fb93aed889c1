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


def trunk_and_rest(patient):
    "The largest piece of a slice, and what else is in it."
    parts, _ = ndimage.label(patient)
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return largest, patient & ~largest


@pytest.mark.parametrize("habitus", [-0.7, 0.0, 0.4])
@pytest.mark.parametrize("sex", ["F", "M"])
def test_arms_beside_the_trunk_leave_a_gap_of_a_centimetre_below_the_armpits(sex, habitus):
    anatomy = Anatomy(sex, habitus=habitus, arms="beside")
    phantom = draw_phantom(1, anatomy=anatomy, scan=Scan(192, 10, thickness_mm=2, fov_mm=600, couch="none"))
    z = phantom.affine[2, 3] + phantom.affine[2, 0] * np.arange(10)
    for k in np.flatnonzero(z < -40):
        trunk, arms = trunk_and_rest(phantom.labels[k] > 0)
        gap = ndimage.distance_transform_edt(~trunk)[arms].min() * phantom.affine[0, 2]
        assert ndimage.label(arms)[1] == 2 and gap > 10
        assert (phantom.hu[k] > 700)[arms].any()  # a bone in each


@pytest.mark.parametrize("couch", ["boat", "flat", "curved"])
@pytest.mark.parametrize("habitus", [-0.8, 0.9])
def test_a_couch_is_where_the_picture_shows_one_and_nowhere_in_the_patient(couch, habitus):
    with_couch, without = (
        draw_phantom(4, anatomy=Anatomy("F", habitus=habitus), scan=Scan(128, 6, thickness_mm=3, couch=c))
        for c in (couch, "none")
    )
    assert (with_couch.labels == without.labels).all()
    is_couch = with_couch.mask("couch")
    assert not without.mask("couch").any() and not (is_couch & (with_couch.labels > 0)).any()
    changed = np.abs(with_couch.hu.astype(int) - without.hu) > 150
    assert (changed & ndimage.binary_dilation(is_couch, iterations=2)).sum() > 0.98 * changed.sum() > 200


@pytest.mark.parametrize("couch", ["flat", "curved"])
@pytest.mark.parametrize("seed", range(2))
def test_flat_and_curved_couches_touch_the_skin_of_the_lowest_ribs(couch, seed):
    phantom = draw_phantom(seed, scan=Scan(96, 20, couch=couch))
    z = phantom.affine[2, 3] + phantom.affine[2, 0] * np.arange(20)
    skin = ndimage.binary_dilation(phantom.labels > 0, np.ones((1, 3, 3)))
    contact = (skin & phantom.mask("couch")).sum((1, 2))
    assert (contact[(z > -200) & (z < 0)] > 0).any()


def test_a_blanket_is_thin_cloth_that_touches_the_skin_here_and_there():
    phantom = draw_phantom(6, scan=Scan(256, 8, thickness_mm=3, blanket=True))
    cloth, patient = phantom.mask("blanket"), phantom.labels > 0
    assert not (cloth & patient).any()
    assert -850 < np.median(phantom.hu[cloth]) < -500
    next_to = ndimage.binary_dilation(patient, np.ones((1, 3, 3))) & cloth
    assert 0.05 < next_to.sum() / cloth.sum() < 0.8
    deep = ndimage.distance_transform_edt(np.pad(cloth, ((0, 0), (1, 1), (1, 1))), (99, 1, 1))
    assert deep.max() * phantom.affine[0, 2] < 12
    rows = [np.nonzero(m)[1].mean() for m in (cloth, patient)]
    assert rows[0] < rows[1]


@pytest.mark.parametrize("offset", [(60, 0), (-45, 30), (0, -40)])
def test_an_offset_moves_patient_and_truth_but_not_the_field_of_view(offset):
    anatomy = Anatomy(scoliosis_mm=-12)
    finding = (Finding("tumour", "left", 40),)
    here, there = (
        draw_phantom(8, anatomy=anatomy, scan=Scan(128, 14, offset_mm=o), findings=finding)
        for o in ((0, 0), offset)
    )
    assert (here.affine == there.affine).all() and here.labels.shape == there.labels.shape
    for name in ("lung_left", "lung_right", "heart", "tumour"):
        moved = np.subtract(*(np.argwhere(p.mask(name)).mean(0) for p in (there, here)))
        assert np.allclose(moved[[2, 1]] * here.affine[0, 2], offset, atol=1.5)
        assert np.isclose(there.mask(name).sum(), here.mask(name).sum(), rtol=0.06)  # the same person
    for name in ("carina_mm", "spine_mm"):
        moved = np.subtract(there.drawn[name], here.drawn[name]).reshape(-1, 3)
        assert np.allclose(moved, (*offset, 0), atol=0.02)
    (a,), (b,) = (p.drawn["findings"] for p in (here, there))
    assert np.allclose(np.subtract(b["centre_mm"], a["centre_mm"]), (*offset, 0), atol=0.1)


def test_nothing_is_labelled_where_the_scanner_sees_nothing():
    phantom = draw_phantom(1, anatomy=Anatomy(arms="beside"), scan=Scan(96, 8, offset_mm=(80, 0)))
    at = np.arange(96) + 0.5 - 48
    outside = np.hypot(at[:, None], at) > 48
    assert not phantom.labels[:, outside].any() and not phantom.regions[:, outside].any()
    assert (phantom.hu[:, outside] == phantom.scan.intercept).all()


@pytest.mark.parametrize("side, breath", [("left", 1.0), ("right", 0.4)])
def test_gas_lies_close_under_the_diaphragm_of_its_side_and_is_no_lung(side, breath):
    anatomy = Anatomy(breath=breath)
    phantom = draw_phantom(3, anatomy=anatomy, scan=Scan(96, 60), findings=(Finding("gas", side, 60),))
    plain = draw_phantom(3, anatomy=anatomy, scan=Scan(96, 60))
    lung, more = phantom.mask(f"lung_{side}"), phantom.mask("gas") & ~plain.mask("gas")
    assert (lung == plain.mask(f"lung_{side}")).all()
    assert np.median(phantom.hu[more]) < -950
    assert phantom.drawn["volume_ml"]["gas"] > plain.drawn["volume_ml"]["gas"] + 50
    x, middle = np.nonzero(more)[2].mean(), np.nonzero(phantom.mask("cord"))[2].mean()
    assert (x > middle) == (side == "left")
    mm = [phantom.affine[2, 0], phantom.affine[0, 2], phantom.affine[0, 2]]
    apart = ndimage.distance_transform_edt(~lung, mm)[more].min()
    assert 3 < apart < 14
    assert (phantom.hu[phantom.labels == LABELS["gas"]] < -300).mean() > 0.9


def test_gas_lies_in_front_of_the_fluid_in_the_stomach():
    phantom = draw_phantom(3, scan=Scan(128, 30), findings=(Finding("gas", "left", 90),))
    parts, _ = ndimage.label(phantom.mask("gas"))
    bubble = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    k = bubble.sum((1, 2)).argmax()
    row, col = np.nonzero(bubble[k])
    lowest = [row[col == c].max() for c in np.unique(col)]
    assert np.bincount(lowest).max() > 0.5 * len(lowest)  # a level
    level, middle = np.bincount(lowest).argmax(), int(np.median(col))
    assert -20 < np.median(phantom.hu[k, level + 3 : level + 6, middle]) < 60


@pytest.mark.parametrize("side, other", [("left", "right"), ("right", "left")])
@pytest.mark.parametrize(
    "kind, size, lobe",
    [("effusion", 110, ""), ("collapse", 80, ""), ("collapse", 80, "all"), ("tumour", 70, "")],
)
def test_the_pleural_space_keeps_what_the_lung_has_lost(side, other, kind, size, lobe):
    anatomy = Anatomy()
    place = (0.0 if side == "right" else 1.0, 0.5, 0.5)
    plain, sick = (
        draw_phantom(5, anatomy=anatomy, scan=Scan(96, 24), findings=f)
        for f in ((), (Finding(kind, side, size, place, lobe),))
    )
    before, after = plain.mask(f"lung_{side}"), sick.mask(f"pleura_{side}")
    assert (plain.mask(f"pleura_{side}") == before).all()
    assert (before & after).sum() > 0.995 * before.sum() and (after & ~before).sum() < 0.01 * before.sum()
    assert not (sick.mask(f"lung_{side}") & ~after).any()
    assert (sick.mask(f"pleura_{other}") == plain.mask(f"lung_{other}")).all()
    taken = after & sick.mask("effusion", "tumour")
    assert taken.sum() > (0.4 if kind != "tumour" else 0.03) * before.sum()
    assert np.median(sick.hu[taken]) > -20


@pytest.mark.parametrize("side, lateral", [("left", 1.0), ("right", 0.0)])
def test_a_tumour_lies_on_the_ribs_or_on_the_mediastinum_as_its_place_says(side, lateral):
    for x, name in ((lateral, "ribs"), (1 - lateral, "mediastinum")):
        finding = Finding("tumour", side, 50, (x, 0.5, 0.6))
        phantom = draw_phantom(5, anatomy=Anatomy(), scan=Scan(96, 24), findings=(finding,))
        tumour = phantom.mask("tumour")
        rim = ndimage.binary_dilation(tumour, np.ones((1, 3, 3))) & ~tumour
        touched = rim & ~phantom.mask("lung_left", "lung_right")
        assert touched.sum() > 0.15 * rim.sum()
        outward = np.nonzero(touched)[2].mean() - np.nonzero(tumour)[2].mean()
        assert (outward > 0) == ((side == "left") == (name == "ribs"))


@pytest.mark.parametrize(
    "side, lobe",
    [("left", "upper"), ("left", "lower"), ("right", "upper"), ("right", "middle"), ("right", "lower")],
)
def test_a_lobe_fills_or_collapses_within_its_fissures(side, lobe):
    anatomy = Anatomy()
    plain = draw_phantom(5, anatomy=anatomy, scan=Scan(96, 24))
    solid = {}
    for kind in ("consolidation", "collapse"):
        finding = Finding(kind, side, 70, lobe=lobe)
        sick = draw_phantom(5, anatomy=anatomy, scan=Scan(96, 24), findings=(finding,))
        assert (sick.labels == plain.labels).all()
        solid[kind] = (sick.hu - plain.hu.astype(int) > 400) & plain.mask(f"lung_{side}")
        changed = np.abs(sick.hu - plain.hu.astype(int)) > 400
        assert (changed & plain.mask(f"lung_{side}")).sum() > 0.9 * changed.sum()
    share = solid["consolidation"].sum() / plain.mask(f"lung_{side}").sum()
    assert (0.05 if lobe == "middle" else 0.25) < share < 0.75
    assert 0.1 < solid["collapse"].sum() / solid["consolidation"].sum() < 0.5
    assert (solid["collapse"] & ~solid["consolidation"]).sum() < 0.15 * solid["collapse"].sum()
    z, row, _ = (np.nonzero(solid["consolidation"])[i].mean() for i in range(3))
    lung_z, lung_row, _ = (np.nonzero(plain.mask(f"lung_{side}"))[i].mean() for i in range(3))
    assert (z > lung_z) == (lobe == "upper") and (lobe == "middle" or (row > lung_row) == (lobe == "lower"))


@pytest.mark.parametrize("seed", range(2))
def test_hyperinflated_lungs_touch_in_front_of_the_heart_and_are_one_piece_by_threshold(seed):
    usual, large = (
        draw_phantom(seed, anatomy=Anatomy(hyperinflated=h), scan=Scan(128, 24)) for h in (False, True)
    )
    for phantom, expected in ((usual, False), (large, True)):
        left, right = (phantom.mask(f"lung_{s}") for s in ("left", "right"))
        meet = right[..., :-1] & left[..., 1:]
        assert (meet.sum() > 15) == expected
        if expected:
            rows = np.nonzero(meet)[1]
            assert (rows < np.nonzero(phantom.mask("heart"))[1].mean()).mean() > 0.95
            both = (phantom.hu < -500) & (left | right)
            parts, _ = ndimage.label(both)
            assert np.bincount(parts.ravel())[1:].max() > 0.9 * both.sum()
    for name in ("lung_left", "lung_right"):
        assert large.drawn["volume_ml"][name] > usual.drawn["volume_ml"][name]


def vertebral_body(phantom, k, half_mm=20):
    "The middle, x and y in mm, of the bone in front of the cord."
    mm = phantom.affine[0, 2]
    row, col = np.argwhere(phantom.mask("cord")[k]).mean(0)
    y, x = np.ogrid[: phantom.hu.shape[1], : phantom.hu.shape[2]]
    y, x = (y - row) * mm, (x - col) * mm
    bone = (
        (ndimage.gaussian_filter(phantom.hu[k].astype(float), 0.7) > 80)
        & (y < -8)
        & (y > -55)
        & (np.abs(x) < half_mm)
    )
    parts, _ = ndimage.label(ndimage.binary_opening(bone))
    row, col = ndimage.center_of_mass(parts == 1 + np.bincount(parts.ravel())[1:].argmax())
    return phantom.affine[0, 3] + col * mm, phantom.affine[1, 3] + row * mm


@pytest.mark.parametrize("bend, offset", [(0, (0, 0)), (40, (0, 0)), (-40, (-50, 25)), (25, (40, -20))])
def test_the_spine_runs_where_drawn_says(bend, offset):
    anatomy = Anatomy("F", 50, scoliosis_mm=bend, height_cm=160)
    phantom = draw_phantom(4, anatomy=anatomy, scan=Scan(256, 16, thickness_mm=2, offset_mm=offset))
    apart = []
    for k, (x, y, z) in enumerate(phantom.drawn["spine_mm"]):
        assert abs(z - phantom.affine[2, 3] - k * phantom.affine[2, 0]) < 0.01
        cord = np.argwhere(phantom.mask("cord")[k])[:, 1].mean()
        assert abs(phantom.affine[0, 3] + phantom.affine[0, 2] * cord - x) < 1.2
        apart.append(np.subtract(vertebral_body(phantom, k), (x, y)))
    assert np.quantile(np.abs(apart), 0.9) < 4 and np.abs(np.median(apart, axis=0)).max() < 1.5


@pytest.mark.parametrize("bend", [40, -40])
def test_a_bent_spine_leaves_two_whole_lungs_on_their_own_sides_of_it(bend):
    phantom = draw_phantom(4, anatomy=Anatomy(scoliosis_mm=bend))
    for name in ("lung_left", "lung_right"):
        lung = phantom.mask(name)
        parts, _ = ndimage.label(lung, np.ones((3, 3, 3)))
        assert np.bincount(parts.ravel())[1:].max() > 0.97 * lung.sum()
        assert 1000 < phantom.drawn["volume_ml"][name] < 4500
    for k, (x, y, _) in enumerate(phantom.drawn["spine_mm"]):
        row = round((y - phantom.affine[1, 3]) / phantom.affine[0, 2])
        col = (x - phantom.affine[0, 3]) / phantom.affine[0, 2]
        assert (np.flatnonzero(phantom.mask("lung_left")[k, row]) > col).all()
        assert (np.flatnonzero(phantom.mask("lung_right")[k, row]) < col).all()


@pytest.mark.parametrize("size, slices", [(16, 1), (16, 2), (16, 12), (32, 1), (64, 1), (48, 3)])
@pytest.mark.parametrize("kind", ["", "tumour", "nodule", "effusion", "emphysema", "consolidation"])
def test_the_smallest_scans_can_be_drawn(size, slices, kind):
    findings = (Finding(kind, "left", 30),) if kind else ()
    phantom = draw_phantom(1, size=size, slices=slices, findings=findings)
    assert phantom.hu.shape == phantom.labels.shape == phantom.regions.shape == (slices, size, size)
    assert (phantom.labels > 0).any()


@pytest.mark.parametrize(
    "finding, expected",
    [
        (Finding("gas", "left"), "expected slices below the diaphragm"),
        (Finding("collapse", "left", 100), "expected more than 0, less than 100"),
        (Finding("tumour", "left", 0), "size_mm is 0, expected more than 0"),
        (Finding("consolidation", "left", lobe="middle"), "expected one of all, lower, upper"),
        (Finding("tumour", "middle"), "expected 'left' or 'right'"),
    ],
)
def test_a_finding_that_cannot_be_drawn_is_refused(finding, expected):
    with pytest.raises(InputError, match=expected):
        draw_phantom(0, size=48, slices=1, findings=(finding,))


@pytest.mark.parametrize("kind", ["tumour", "emphysema", "consolidation", "collapse"])
def test_a_finding_in_a_lung_outside_the_scan_is_refused(kind):
    with pytest.raises(InputError, match="expected slices that hold it"):
        draw_phantom(0, scan=Scan(32, 3, coverage_mm=10), findings=(Finding(kind),))


@pytest.mark.parametrize("offset", [(300.0, 0.0), (0.0, -300.0), (float("nan"), 0.0)])
def test_a_patient_out_of_the_field_of_view_is_refused(offset):
    with pytest.raises(InputError, match=r"offset_mm is .* expected at most 167 mm from the middle"):
        draw_phantom(0, scan=Scan(32, 3, offset_mm=offset))
