"""Lungs without learning, on people that nobody looked at while the method was written, and on real ones."""

import signal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from realdata import real
from scipy import ndimage as ndi
from typer.testing import CliRunner

from lungseg import cli
from lungseg.contours import roi_names
from lungseg.files import load_nifti, npz_arrays, nrrd_segments, write_nifti
from lungseg.isolate import isolated, threshold_lungs
from lungseg.masks import read_mask, sides
from lungseg.metrics import dice
from lungseg.phantom import Anatomy, Finding, Phantom, Scan, draw_phantom, write_phantom
from lungseg.reading import read_volume
from lungseg.region import lung_region
from lungseg.segments import segment_names
from lungseg.volume import Volume, box_around, crop, oriented, reordered, towards

SEEDS = [101, 102, 103, 104, 105, 106]


@cache
def person(seed: int, anatomy: Anatomy | None = None, scan: Scan | None = None, *findings: Finding):
    return draw_phantom(seed, anatomy=anatomy, scan=scan or Scan(size=112, slices=36), findings=findings)


def volume_of(phantom: Phantom) -> Volume:
    return Volume(phantom.hu, phantom.affine)


@cache
def usual(seed: int = 101) -> tuple[Volume, np.ndarray, np.ndarray]:
    "An ordinary chest, its drawn lungs, and those that are found."
    phantom = person(seed)
    return volume_of(phantom), phantom.mask("lung_left", "lung_right"), threshold_lungs(volume_of(phantom))


def says_nothing_but_lung(mask: np.ndarray, phantom: Phantom) -> None:
    "No couch, blanket, gas or surroundings in a mask, and little of the windpipe."
    for name in ("couch", "blanket", "gas", "background"):
        assert np.count_nonzero(mask & phantom.mask(name)) == 0, name
    airway = phantom.mask("airway")
    assert np.count_nonzero(mask & airway) < 0.25 * np.count_nonzero(airway)


def are_on_their_sides(phantom: Phantom) -> None:
    parts = isolated(volume_of(phantom))
    assert dice(parts.left, phantom.mask("lung_left")) > 0.95
    assert dice(parts.right, phantom.mask("lung_right")) > 0.95


# ---- real patients


@pytest.fixture(scope="module")
def clinical() -> dict[str, tuple[Volume, np.ndarray, np.ndarray]]:
    "The four LCTSC patients: volume, contours of the clinic, and what is found."
    folder, found = real("lctsc"), {}
    for number in (101, 102, 103, 104):
        path = folder / f"LCTSC-Test-S1-{number}.npz"
        volume = read_volume(path)
        found[path.stem] = volume, np.load(path)["mask"] > 0, threshold_lungs(volume)
    return found


def test_clinical_contours_are_met_in_the_mean_and_in_each_patient(clinical):
    scores = {name: dice(pred, ref) for name, (_, ref, pred) in clinical.items()}
    assert np.mean(list(scores.values())) >= 0.975, scores
    assert min(scores.values()) >= 0.970, scores


def test_a_threshold_found_in_the_picture_does_as_well_as_the_fixed_one(clinical):
    for name, (volume, ref, _) in clinical.items():  # with bone and metal in them
        thin = Volume(volume.array[::4, ::2, ::2], np.diag([2, 2, 4, 1]) @ volume.affine)
        assert dice(isolated(thin, below_hu="adaptive").lungs, ref[::4, ::2, ::2]) > 0.96, name


def test_shoulders_give_no_lung_to_a_threshold_found_in_the_picture(clinical):
    for name, (volume, ref, _) in clinical.items():
        top = isolated(Volume(volume.array[-8:], volume.affine), below_hu="adaptive").lungs
        assert np.count_nonzero(top & ~ref[-8:]) < 0.04 * ref[0].size, name


def test_clinical_lungs_are_two_and_the_left_one_is_on_the_left(clinical):
    for name, (whole, ref, pred) in clinical.items():
        volume = Volume(whole.array[::2, ::4, ::4], whole.affine)
        left, right = sides(pred[::2, ::4, ::4], volume)  # columns run to the left, as the source says
        wanted = sides(ref[::2, ::4, ::4], volume)
        for lung, its in zip((left, right), wanted, strict=True):
            assert 0.7 < lung.sum() / its.sum() < 1.3, name
            assert dice(lung, its) > 0.95, name
        assert np.argwhere(left)[:, 2].mean() > np.argwhere(right)[:, 2].mean(), name


def test_nothing_but_lung_is_found_far_from_the_clinical_contours(clinical):
    for name, (_, ref, pred) in clinical.items():
        near = ndi.maximum_filter(ref[:, ::4, ::4], (5, 9, 9))  # by 16 pixels, and two slices
        assert np.count_nonzero(pred[:, ::4, ::4] & ~near) < 5e-4 * np.count_nonzero(near), name


def test_a_scan_of_four_millimetre_voxels_agrees_with_its_labels_and_sides():
    folder = real("cip-ct64")
    volume, stored = read_volume(folder / "ct-64Dicom"), np.load(folder / "ct64_masks.npz")
    ref, region = stored["lung"] > 0, stored["region"]
    parts = isolated(volume)
    pred, left, right = parts.lungs, parts.left, parts.right
    assert dice(pred, ref) >= 0.93
    assert dice(left, np.isin(region, (9, 10, 11))) > 0.93  # the thirds of the left lung, in CIP's codes
    assert dice(right, np.isin(region, (12, 13, 14))) > 0.93
    low = slice(0, 24)  # from the bowel to the dome of the diaphragm: there is gas in 20 slices of these
    far = ~ndi.binary_dilation(ref, iterations=2)[low]  # two voxels are 8 mm
    body = ndi.binary_fill_holes(volume.array[low] > -400, np.ones((1, 3, 3)))
    assert np.count_nonzero((volume.array[low] < -400) & far & body) > 100
    assert np.count_nonzero(pred[low] & far) == 0


def test_thick_slices_of_a_patient_with_a_tumour_hold_two_lungs_and_no_gas():
    volume = read_volume(real("lungdx-a0002") / "B40f")
    parts = isolated(volume)
    left, right = parts.left, parts.right
    ml = np.prod(volume.spacing_mm) / 1000
    assert 1500 < left.sum() * ml < 2500 and 1000 < right.sum() * ml < 2500  # the tumour is in the right one
    assert (
        volume.index_to_mm(np.argwhere(left))[:, 0].mean()
        > volume.index_to_mm(np.argwhere(right))[:, 0].mean()
    )
    for lung in (left, right):
        assert np.bincount(ndi.label(lung)[0].ravel())[1:].max() > 0.99 * lung.sum()
    front = np.s_[:3, :256]  # stomach and colon hold gas here; the lowest lung is at the back
    assert np.count_nonzero(volume.array[front][:, 130:] < -800) > 5000
    assert np.count_nonzero(parts.lungs[front]) == 0
    assert not parts.lungs[29].any()  # the neck: nothing but the windpipe


NO_CHEST = ["gantry-tilt-ge", "pydicom-data/eCT_Supplemental.dcm"]  # heads
NO_CHEST += ["pydicom-data/explicit_VR-UN.dcm", "dicompyler/ct.0.dcm"]  # a belly with gas, and arms


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NO_CHEST)
@pytest.mark.parametrize("below_hu", [None, "adaptive"])
def test_heads_a_belly_and_arms_hold_no_lung(name, below_hu):
    volume = read_volume(real(f"dicom-robustness/{name}"), correct=True)
    assert not isolated(volume, below_hu=below_hu).lungs.any()


def test_the_command_says_that_a_head_holds_no_lung_and_writes_an_empty_mask(tmp_path):
    head = real("dicom-robustness/gantry-tilt-ge")
    status, said = run("isolate", head, tmp_path / "out", "--correct", "--region", "--preview")
    assert status == 1 and "no lung was found; an empty mask was written" in said, said
    (file,) = (tmp_path / "out").glob("*_lungs.nii.gz")
    assert not load_nifti(file)[0].any()
    assert len(list((tmp_path / "out").glob("*_preview.png"))) == 1


# ---- people that were drawn


@pytest.mark.parametrize("seed", SEEDS)
def test_lungs_of_anybody_are_found_and_nothing_else(seed):
    phantom = person(seed)
    _, lungs, found = usual(seed)
    assert dice(found, lungs) > 0.965
    says_nothing_but_lung(found, phantom)
    are_on_their_sides(phantom)


PLACES = {
    "flat couch, arms beside": (Anatomy(arms="beside"), Scan(couch="flat")),
    "cradle, blanket": (Anatomy(sex="F"), Scan(couch="curved", blanket=True)),
    "arms down, blanket": (Anatomy(arms="down", habitus=0.8), Scan(blanket=True)),
    "lean, in a cradle": (Anatomy(habitus=-1, sex="F"), Scan(couch="curved")),
    "no couch, off centre": (Anatomy(), Scan(couch="none", offset_mm=(35.0, -20.0))),
    "obese, small field": (Anatomy(habitus=1.0, arms="down"), Scan(fov_mm=380, couch="flat")),
    "low dose, sharp": (Anatomy(age_years=75), Scan(dose=0.15, kernel="sharp")),
    "thick slices": (Anatomy(), Scan(slices=40, thickness_mm=10.0)),
    "few thick slices": (Anatomy(), Scan(size=96, slices=28)),
    "contrast, breathed out": (Anatomy(breath=0.1), Scan(contrast_hu=250.0)),
    "bent spine": (Anatomy(scoliosis_mm=30.0, sex="F"), Scan()),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", [111])
def test_couch_blanket_arms_dose_and_breath_change_nothing(place, seed):
    phantom = person(seed, *PLACES[place])
    parts = isolated(volume_of(phantom))
    assert dice(parts.lungs, phantom.mask("lung_left", "lung_right")) > 0.955
    says_nothing_but_lung(parts.lungs, phantom)
    assert np.count_nonzero(parts.patient & phantom.mask("couch", "blanket")) == 0
    assert np.count_nonzero(parts.patient & phantom.mask("pleura_left", "pleura_right")) == np.count_nonzero(
        phantom.mask("pleura_left", "pleura_right")
    )
    assert dice(parts.left, phantom.mask("lung_left")) > 0.94
    assert dice(parts.right, phantom.mask("lung_right")) > 0.94


@pytest.mark.parametrize("seed", [121, 122])
def test_lungs_that_touch_are_told_apart(seed):
    phantom = person(seed, Anatomy(hyperinflated=True, age_years=70))
    found = threshold_lungs(volume_of(phantom))
    says_nothing_but_lung(found, phantom)
    parts = isolated(volume_of(phantom))
    for lung, its, other in (
        (parts.left, "lung_left", "lung_right"),
        (parts.right, "lung_right", "lung_left"),
    ):
        assert dice(lung, phantom.mask(its)) > 0.96
        assert np.count_nonzero(lung & phantom.mask(other)) < 0.01 * np.count_nonzero(lung)


@pytest.mark.parametrize("side, size_mm", [("left", 90.0), ("right", 60.0), ("left", 45.0)])
def test_gas_under_the_diaphragm_stays_out(side, size_mm):
    phantom = person(131, None, None, Finding("gas", side, size_mm))
    assert np.count_nonzero(phantom.mask("gas")) > 0
    found = threshold_lungs(volume_of(phantom))
    says_nothing_but_lung(found, phantom)
    assert dice(found, phantom.mask("lung_left", "lung_right")) > 0.96


ILL = {
    "effusion": Finding("effusion", "right", 60.0),
    "consolidation": Finding("consolidation", "left", lobe="lower"),
    "tumour on the pleura": Finding("tumour", "right", 60.0, (0.05, 0.5, 0.5)),
}


@pytest.mark.parametrize("kind, seed", list(zip(ILL, (141, 142, 143), strict=True)))
def test_what_is_dense_in_a_sick_lung_is_left_to_the_network_and_nothing_else_is_taken_for_it(kind, seed):
    phantom = person(seed, None, None, ILL[kind])
    found = threshold_lungs(volume_of(phantom))
    says_nothing_but_lung(found, phantom)
    aerated = phantom.mask("lung_left", "lung_right") & (phantom.hu < -400)
    assert np.count_nonzero(found & aerated) > 0.97 * np.count_nonzero(aerated)
    within = ndi.binary_dilation(phantom.mask("pleura_left", "pleura_right"))  # the border shares voxels
    assert np.count_nonzero(found & ~within) < 0.005 * found.sum()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_lung_that_is_gone_leaves_the_other_on_its_own_side(side):
    phantom, other = person(161), {"left": "right", "right": "left"}[side]
    hu = np.where(ndi.binary_dilation(phantom.mask(f"lung_{side}"), iterations=1), np.int16(20), phantom.hu)
    volume = Volume(hu, phantom.affine)
    parts = isolated(volume)
    assert dice(parts.lungs, phantom.mask(f"lung_{other}")) > 0.94
    gone, stays = (parts.left, parts.right) if side == "left" else (parts.right, parts.left)
    assert np.count_nonzero(gone) < 0.02 * np.count_nonzero(stays)


# ---- what must not matter


@pytest.mark.parametrize("code", ["RAS", "LPI", "SAL", "PIR", "ASR"])
def test_the_same_patient_stored_in_any_orientation_has_the_same_lungs(code):
    volume, _, _ = usual()
    turned = oriented(volume, code)
    order, flips = towards(volume.affine, code)
    again, before = isolated(turned), isolated(volume)
    for part in ("patient", "airways", "left", "right"):
        assert np.array_equal(getattr(again, part), reordered(getattr(before, part), order, flips)), part


def outside_the_field(shape: tuple[int, ...]) -> np.ndarray:
    row, col = (np.arange(n) - (n - 1) / 2 for n in shape[1:])
    far = np.hypot(row[:, None], col) > shape[1] / 2
    return np.broadcast_to(far, shape)


@pytest.mark.parametrize(
    "floor, padding",
    [
        (-1000, None),
        (-1000, -2000),
        (-1024, -3024),
        (-1024, -32768),
        (-1024, 0),
        (-2000, None),
        (-2000, -1024),
    ],
)
def test_the_scanners_floor_and_the_padding_around_its_field_change_nothing(floor, padding):
    volume, _, found = usual()
    array = np.maximum(volume.array, np.int16(floor))
    if floor == -2000:  # air that some scanners give below -1024
        array = np.where(array < -980, array - np.int16(60), array)
    if padding is not None:
        array = np.where(outside_the_field(array.shape), np.int16(padding), array)
    again = threshold_lungs(Volume(array, volume.affine))
    assert dice(again, found) > 0.999


def test_values_above_metal_do_not_matter():
    volume, _, found = usual()
    bright = np.where(volume.array > 300, np.int16(32767), volume.array)
    assert dice(threshold_lungs(Volume(bright, volume.affine)), found) > 0.999


@pytest.mark.parametrize("sd", [30, 80])
def test_noise_costs_little(sd):
    volume, lungs, found = usual()
    noise = np.random.default_rng(7).normal(0, sd, volume.shape)
    noisy = np.clip(volume.array + noise, -1024, 3071).astype(np.int16)
    again = threshold_lungs(Volume(noisy, volume.affine))
    assert dice(again, found) > 0.98 and dice(again, lungs) > 0.955


def test_without_a_spacing_the_usual_one_serves():
    volume, lungs, _ = usual(102)
    identity = np.eye(4)[[2, 1, 0, 3]]
    bare = Volume(volume.array, identity, {"spacing_known": False, "orientation_known": False})
    assert dice(threshold_lungs(bare), lungs) > 0.94


def test_the_volume_is_left_as_it_was_and_the_answer_is_always_the_same():
    volume, _, found = usual()
    before = volume.array.copy()
    again = threshold_lungs(volume)
    assert np.array_equal(before, volume.array) and np.array_equal(again, found)
    assert again.dtype == bool and again.flags.c_contiguous


# ---- parts of a chest


@pytest.mark.parametrize("part", ["lower half", "upper half", "middle"])
def test_part_of_a_chest_gives_that_part_of_the_lungs(part):
    volume, lungs, _ = usual(103)
    low, high = box_around(lungs)[0].start, box_around(lungs)[0].stop
    middle = (low + high) // 2
    start, stop = {"lower half": (0, middle), "upper half": (middle, 36), "middle": (middle - 5, middle + 5)}[
        part
    ]
    found = threshold_lungs(crop(volume, np.s_[start:stop, :, :]))
    assert dice(found, lungs[start:stop]) > 0.955


@pytest.mark.parametrize("z", [0.3, 0.5, 0.7])
def test_one_slice_is_enough(z):
    volume, lungs, _ = usual(104)
    box = box_around(lungs)[0]
    i = int(box.start + z * (box.stop - box.start))
    found = threshold_lungs(crop(volume, np.s_[i : i + 1, :, :]))
    assert dice(found, lungs[i : i + 1]) > 0.93


def test_a_patient_wider_than_the_picture_has_lungs_none_the_less():
    volume, lungs, _ = usual(105)
    box = box_around(lungs, 3)
    inner = np.s_[:, box[1].start : box[1].stop, box[2].start : box[2].stop]
    assert dice(threshold_lungs(crop(volume, inner)), lungs[inner]) > 0.93


def cut_through_the_lungs(lungs: np.ndarray, spacing_mm: tuple, by_mm: float) -> tuple[slice, ...]:
    "A field of view that leaves out the lungs' outermost millimetres in front, behind and on both sides."
    _, rows, cols = box_around(lungs)
    row, col = (round(by_mm / mm) for mm in spacing_mm[1:])
    return np.s_[:, rows.start + row : rows.stop - row, cols.start + col : cols.stop - col]


def halved(whole: Volume) -> Volume:
    "Every other slice, row and column of an LCTSC patient, at the usual spacing."
    affine = np.eye(4)[[2, 1, 0, 3]] @ np.diag([6.0, 1.9, 1.9, 1.0])
    return Volume(np.ascontiguousarray(whole.array[::2, ::2, ::2]), affine)


@pytest.mark.parametrize("seed, by_mm", [(101, 0), (105, 5), (106, 10)])
def test_a_field_of_view_that_cuts_through_the_lungs_leaves_the_rest_of_them(seed, by_mm):
    volume, lungs, _ = usual(seed)
    inner = cut_through_the_lungs(lungs, volume.spacing_mm, by_mm)
    found = isolated(crop(volume, inner))
    assert dice(found.lungs, lungs[inner]) > 0.955
    for lung, name in ((found.left, "lung_left"), (found.right, "lung_right")):
        assert dice(lung, person(seed).mask(name)[inner]) > 0.94


def test_a_field_of_view_that_cuts_through_a_patient_s_lungs_leaves_the_rest_of_them(clinical):
    for name, (whole, ref, _) in clinical.items():
        volume, ref = halved(whole), ref[::2, ::2, ::2]
        inner = cut_through_the_lungs(ref, volume.spacing_mm, 10)
        assert dice(threshold_lungs(crop(volume, inner)), ref[inner]) > 0.96, name


@pytest.mark.parametrize("padding", [-1024, -3024, 0])
def test_a_round_field_that_cuts_through_the_lungs_leaves_the_rest_of_them(padding):
    volume, lungs, _ = usual(105)
    _, rows, cols = box_around(lungs)
    y, x = np.ogrid[: volume.shape[1], : volume.shape[2]]
    off = np.hypot(y - (rows.start + rows.stop) / 2, x - (cols.start + cols.stop) / 2) * volume.spacing_mm[1]
    beyond = off > (cols.stop - cols.start) / 2 * volume.spacing_mm[1] - 8
    assert (lungs & beyond).any()
    found = threshold_lungs(
        Volume(np.where(beyond, np.int16(padding), volume.array).astype(np.int16), volume.affine)
    )
    assert dice(found, lungs & ~beyond) > 0.94


@pytest.mark.parametrize("side", ["left", "right"])
def test_where_one_side_of_the_chest_is_cut_off_the_windpipe_is_found_off_the_picture_s_middle(
    side, clinical
):
    whole, ref, _ = clinical["LCTSC-Test-S1-102"]
    volume, lungs = halved(whole), ref[::2, ::2, ::2]
    cols = np.s_[:, :, :190] if side == "left" else np.s_[:, :, 66:]
    found = isolated(crop(volume, cols))
    both = isolated(volume)
    assert np.count_nonzero(found.airways & both.airways[cols]) > 0.6 * np.count_nonzero(both.airways)
    assert dice(found.lungs, lungs[cols]) > 0.97
    for lung, its in ((found.left, both.left), (found.right, both.right)):
        assert dice(lung, its[cols]) > 0.97


def test_gas_between_liver_and_diaphragm_stays_out_of_a_noisy_scan():
    anatomy = Anatomy("F", 72, 0.88, 0.56, "down", 178)
    scan = Scan(160, 40, fov_mm=432, kernel="sharp", dose=0.1, couch="none", offset_mm=(-33, -9))
    phantom = draw_phantom(
        2021, anatomy=anatomy, scan=scan, findings=(Finding("gas", "right", 49, (0.5, 0.5, 0.5)),)
    )
    found, gas = threshold_lungs(volume_of(phantom)), phantom.mask("gas")
    assert np.count_nonzero(found & gas) <= 0.005 * np.count_nonzero(gas)
    assert dice(found, phantom.mask("lung_left", "lung_right")) > 0.96


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (1, 64, 64), (40, 1, 1), (3, 512, 2), (5, 5, 5)])
@pytest.mark.parametrize("hu", [-32768, -1024, -850, 0, 40, 32767])
def test_volumes_of_one_value_and_of_any_size_hold_no_lung(shape, hu):
    volume = Volume(np.full(shape, hu, np.int16), np.diag([3.0, 0.8, 0.8, 1.0])[[2, 1, 0, 3]])
    found = threshold_lungs(volume)
    assert found.shape == shape and found.dtype == bool and not found.any()
    region = lung_region(volume, found)
    assert region.shape == shape and not region.any()


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_and_a_phantom_of_water_hold_no_lung(seed):
    random, affine = np.random.default_rng(seed), np.diag([3.0, 2.5, 2.5, 1.0])[[2, 1, 0, 3]]
    static = random.integers(-1024, 1500, (20, 96, 96)).astype(np.int16)
    assert not threshold_lungs(Volume(static, affine)).any()
    y, x = np.ogrid[-48:48, -48:48]
    water = np.where(np.hypot(y, x) < 40, 0, -1000) + random.normal(0, 20, (20, 96, 96))
    assert not threshold_lungs(Volume(water.astype(np.int16), affine)).any()


# ---- the command


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.stderr + done.stdout


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    "One patient as DICOM, a second one as NIfTI, and a file that is no volume."
    folder = tmp_path_factory.mktemp("isolate") / "in"
    phantom = draw_phantom(171, size=96, slices=32)
    write_phantom(phantom, folder / "first")
    write_nifti(volume_of(phantom), folder / "second.nii.gz")
    (folder / "third.nii.gz").write_bytes(b"no such thing")
    return folder


@pytest.mark.parametrize("format", cli.FORMATS)
def test_every_format_gives_the_lungs_back_each_on_its_side(cohort, tmp_path, format):
    ct = read_volume(cohort / "first")
    lungs = threshold_lungs(ct)
    left, right = sides(lungs, ct)
    status, said = run(
        "isolate", cohort / "first", tmp_path / "out", "--format", format, "--apart", "--region"
    )
    assert status == 0 and "ml of lung: left " in said, said
    name = f"first_lungs{cli.FORMATS[format]}"
    file, region = tmp_path / "out" / name, tmp_path / "out" / name.replace("_lungs", "_region")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([file.name, region.name])
    if format == "png":
        assert np.array_equal(read_mask(file / "masks", ct), lungs)
        assert len(list((file / "overlays").glob("slice_*.png"))) == len(lungs)
        return
    least = 0.98 if format == "rtstruct" else 1.0  # contours are lines through voxels
    by_name = format in ("seg", "rtstruct", "nrrd")
    for its, roi in zip((left, right), ("Lung_L", "Lung_R") if by_name else (1, 2), strict=True):
        assert dice(read_mask(file, ct, roi=roi), its) >= least
    assert dice(read_mask(file, ct), lungs) >= least
    around = read_mask(region, ct, roi="Lung_Region" if format in ("seg", "rtstruct") else 1)
    assert np.count_nonzero(lungs & ~around) <= (1 - least) * lungs.sum() and around.sum() > 1.1 * lungs.sum()
    if format == "seg":
        assert list(segment_names(file)) == ["Lung_L", "Lung_R"]
    if format == "rtstruct":
        assert list(roi_names(file)) == ["Lung_L", "Lung_R"]
    if format == "nrrd":
        assert list(nrrd_segments(file)) == ["Lung_L", "Lung_R"]
    if format == "npz":
        assert npz_arrays(file)["names"].tolist() == ["background", "Lung_L", "Lung_R"]


@pytest.mark.parametrize("format", ["nii", "nrrd", "npz"])
def test_unless_they_are_wanted_apart_both_lungs_are_one(cohort, tmp_path, format):
    ct = read_volume(cohort / "first")
    status, said = run("isolate", cohort / "first", tmp_path / "out", "--format", format, "--preview")
    assert status == 0, said
    assert np.array_equal(
        read_mask(tmp_path / "out" / f"first_lungs{cli.FORMATS[format]}", ct, roi=1), threshold_lungs(ct)
    )
    assert (tmp_path / "out" / "first_preview.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_read_is_held_and_the_rest_goes_on(cohort, tmp_path):
    status, said = run("isolate", cohort, tmp_path / "out")
    assert status == 1 and "held back  third.nii.gz" in said and "2 masks written" in said
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_ctrl_c_leaves_whole_masks_only(cohort, tmp_path, monkeypatch):
    import lungseg.files

    real_save, calls = lungseg.files.save_nifti, []

    def interrupted(array, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real_save(array, *args, **options)

    monkeypatch.setattr("lungseg.masks.save_nifti", interrupted)
    status, said = run("isolate", cohort, tmp_path / "out")
    assert status == 130 and "nothing is half written" in said
    (file,) = (p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert load_nifti(file)[0].any()


def test_the_sides_of_arrays_without_geometry_are_said_to_be_a_convention(tmp_path):
    phantom = draw_phantom(172, size=64, slices=24)
    np.savez(tmp_path / "bare.npz", hu=phantom.hu)
    status, said = run("isolate", tmp_path / "bare.npz", tmp_path / "out")
    assert status == 0 and "left and right are those of the usual display" in said
    assert "voxels of lung: left " in said
