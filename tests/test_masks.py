"""Masks against outside judges, in every orientation, and on real lungs where they are at hand."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from lungseg.core import InputError, LungsegError, MaskError
from lungseg.files import save_nifti
from lungseg.isolate import threshold_lungs
from lungseg.masks import ORDERS, npz_mask, place_mask, read_mask, sides, write_mask
from lungseg.phantom import LABELS, draw_phantom
from lungseg.reading import read_volume
from lungseg.volume import Volume, on_grid, reordered

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def chest() -> tuple[Volume, np.ndarray]:
    phantom = draw_phantom(seed=3, size=64, slices=20)
    lungs = np.isin(phantom.labels, [LABELS["lung_left"], LABELS["lung_right"]])
    return Volume(phantom.hu, phantom.affine), lungs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flips", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_bare_masks_are_laid_as_they_were(chest, order, flips, tmp_path):
    volume, lungs = chest
    back = tuple(int(a) for a in np.argsort(order))
    stored = np.flip(lungs, flips).transpose(back)
    np.savez(tmp_path / "m.npz", anything=stored.astype(np.uint8))
    mask, way = npz_mask(tmp_path / "m.npz", volume)
    assert np.array_equal(mask, lungs)
    assert (way.order, way.flips) == (order, flips)


@pytest.mark.parametrize("order", permutations(range(3)))
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_a_grid_with_other_axes_is_recognised(chest, order, flips):
    volume, lungs = chest
    new_to_old = np.zeros((4, 4))
    new_to_old[3, 3] = 1
    for new, old in enumerate(order):
        new_to_old[old, new] = -1 if new in flips else 1
        new_to_old[old, 3] = lungs.shape[old] - 1 if new in flips else 0
    stored = np.ascontiguousarray(reordered(lungs, order, flips))
    assert np.array_equal(on_grid(stored, volume.affine @ new_to_old, volume), lungs)


def test_simpleitk_reads_our_mask_on_the_volumes_grid(chest, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    volume, lungs = chest
    image = sitk.ReadImage(str(write_mask(lungs, volume, tmp_path / "lungs.nii.gz")))
    assert np.array_equal(sitk.GetArrayFromImage(image), lungs)
    for index in ((0, 0, 0), (19, 63, 0), (7, 11, 13)):
        assert np.allclose(
            image.TransformIndexToPhysicalPoint(index[::-1]), volume.index_to_mm(index), atol=1e-3
        )


def test_a_mask_that_does_not_fit_is_refused_in_one_line(chest, tmp_path):
    volume, lungs = chest
    np.savez(tmp_path / "short.npz", mask=lungs[:-1])
    np.savez(tmp_path / "negative.npz", mask=lungs.astype(np.int16) - 1)
    np.savez(tmp_path / "objects.npz", mask=np.array([{}], dtype=object))
    np.savez(tmp_path / "none.npz", hu=volume.array)
    np.savez(tmp_path / "noise.npz", mask=np.random.default_rng(0).random(lungs.shape) > 0.5)
    save_nifti(lungs[:, :-1].astype(np.uint8), volume.affine, tmp_path / "small.nii.gz")
    (tmp_path / "mask.png").touch()
    for name in (
        "short.npz",
        "negative.npz",
        "objects.npz",
        "none.npz",
        "noise.npz",
        "small.nii.gz",
        "mask.png",
    ):
        with pytest.raises(LungsegError) as raised:
            read_mask(tmp_path / name, volume)
        assert name in str(raised.value) and "\n" not in str(raised.value)
        assert isinstance(raised.value, MaskError | InputError)


def test_left_is_the_patients_left_whichever_way_the_array_runs(chest):
    volume, lungs = chest
    left, right = sides(lungs, volume)
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = volume.shape[2] - 1
    mirrored = Volume(volume.array[:, :, ::-1].copy(), volume.affine @ flip)
    left_there, right_there = sides(lungs[:, :, ::-1].copy(), mirrored)
    assert np.array_equal(left_there[:, :, ::-1], left)
    assert np.array_equal(right_there[:, :, ::-1], right)


@pytest.mark.parametrize("number", [101, 102, 103, 104])
def test_clinical_masks_are_proved_by_a_wide_margin(number):
    path = SHARED / "lctsc" / f"LCTSC-Test-S1-{number}.npz"
    if not path.exists():
        pytest.skip("real data lctsc is not beside the project")
    volume, mask = read_volume(path), np.load(path)["mask"]
    placed, way = place_mask(mask[::-1].transpose(1, 2, 0), volume)
    assert np.array_equal(placed, mask > 0)
    assert way.score > 0.8 and way.lead > 0.25


def test_the_lung_labels_of_cip_ct64_need_no_turning():
    folder = SHARED / "cip-ct64"
    if not folder.exists():
        pytest.skip("real data cip-ct64 is not beside the project")
    mask, way = npz_mask(folder / "ct64_masks.npz", read_volume(folder / "ct-64Dicom"))
    assert (way.order, way.flips) == ((0, 1, 2), ())
    assert mask.sum() == (np.load(folder / "ct64_masks.npz")["lung"] > 0).sum()


def test_the_untuned_baseline_finds_the_lungs_of_a_clinical_case():
    path = SHARED / "lctsc" / "LCTSC-Test-S1-104.npz"
    if not path.exists():
        pytest.skip("real data lctsc is not beside the project")
    pred, ref = threshold_lungs(read_volume(path)), np.load(path)["mask"] > 0
    assert 2 * (pred & ref).sum() / (pred.sum() + ref.sum()) > 0.96


def test_lungs_of_a_patient_wider_than_the_picture_are_on_their_sides():
    folder = SHARED / "lungdx-a0002" / "B40f"
    if not folder.exists():
        pytest.skip("real data lungdx-a0002 is not beside the project")
    volume = read_volume(folder)
    left, right = sides(threshold_lungs(volume), volume)
    litres = [m.sum() * np.prod(volume.spacing_mm) / 1e6 for m in (left, right)]
    assert all(0.9 < v < 2.5 for v in litres)
    assert np.argwhere(left).mean(axis=0)[2] > np.argwhere(right).mean(axis=0)[2]
