"""The value: turned, compared, cropped, resampled and measured without losing its place."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lungseg.core import GeometryError, InputError, MaskError
from lungseg.phantom import LABELS, draw_phantom
from lungseg.volume import (
    Volume,
    axes_onto,
    body_box,
    box_around,
    crop,
    on_grid,
    onto,
    oriented,
    reordered,
    reordered_affine,
    resample,
    towards,
    uncropped,
    volume_ml,
)

TURN = np.deg2rad(17)
TURNED = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
CODES = ["".join(c) for order in permutations(("LR", "PA", "SI")) for c in product(*order)]


def marked(shape=(5, 6, 7), turn=TURNED) -> Volume:
    "Every voxel has a value of its own, on an oblique grid."
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 0.7], [0, 0.9, 0], [2.5, 0, 0]])
    affine[:3, 3] = (-20, 30, 100)
    return Volume(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)


def there(one: Volume, other: Volume, index) -> tuple:
    "The voxel of one volume that lies where another's does."
    return tuple(np.rint(one.mm_to_index(other.index_to_mm(index))).astype(int))


@pytest.fixture(scope="module")
def chest():
    return draw_phantom(seed=2, size=96, slices=30)


@pytest.mark.parametrize("code", CODES)
def test_every_order_of_axes_keeps_every_voxel_in_its_place(code):
    volume = marked()
    turned = oriented(volume, code)
    for index in ((0, 0, 0), (4, 5, 6), (1, 3, 2)):
        assert turned.array[there(turned, volume, index)] == volume.array[index]
    directions = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    for letter, axis in zip(code, (2, 1, 0), strict=True):
        world, sign = directions[letter]
        step = turned.affine[:3, axis]
        assert np.argmax(np.abs(step)) == world and np.sign(step[world]) == sign
    assert np.array_equal(oriented(turned).array, oriented(volume).array)


@pytest.mark.parametrize("code", ["LP", "LPSA", "LLS", "LPX", "LRS", ""])
def test_a_code_that_is_none_is_refused(code):
    with pytest.raises(InputError, match="expected one letter each"):
        towards(np.eye(4), code)


@given(
    order=st.permutations([0, 1, 2]),
    flips=st.sets(st.sampled_from([0, 1, 2])),
    angle=st.floats(-0.6, 0.6),
)
@settings(max_examples=60, deadline=None)
def test_a_rearranged_array_is_recognised_on_its_grid(order, flips, angle):
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    volume = marked(turn=turn)
    flips = tuple(sorted(flips))
    other = reordered(volume.array, order, flips)
    affine = reordered_affine(volume.affine, order, flips, volume.shape)
    assert np.array_equal(on_grid(other, affine, volume), volume.array)
    assert axes_onto(volume.affine, volume.affine) == ((0, 1, 2), ())


@pytest.mark.parametrize("change", ["shift", "spacing", "turn", "shear"])
def test_another_grid_is_refused_and_says_how_far_off(change):
    volume = marked()
    affine = volume.affine.copy()
    if change == "shift":
        affine[:3, 3] += affine[:3, 2] * 0.06
    elif change == "spacing":
        affine[:3, 0] *= 1.02
    elif change == "turn":
        affine[:3, :3] = np.array([[1, -0.02, 0], [0.02, 1, 0], [0, 0, 1]]) @ affine[:3, :3]
    else:
        affine[1, 0] += 0.1
    with pytest.raises(MaskError, match=r"lies on another grid.*voxels off"):
        on_grid(volume.array, affine, volume)


def test_onto_is_the_same_as_looking_up_the_places(chest):
    whole = Volume(chest.hu, chest.affine)
    target = resample(
        crop(oriented(whole, "RAS"), (slice(3, 20), slice(5, 60), slice(9, 70))), (7.0, 5.0, 4.0)
    )
    sampled = onto(whole, target, order=0)
    places = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), axis=-1)
    index = np.rint(whole.mm_to_index(target.index_to_mm(places))).astype(int)
    inside = ((index >= 0) & (index < whole.shape)).all(axis=-1)
    expected = np.full(target.shape, -1024, np.int16)
    expected[inside] = whole.array[tuple(index[inside].T)]
    assert (sampled.array == expected).mean() > 0.999  # ties between two voxels may fall either way
    smooth = onto(whole, target, order=1)
    assert np.abs(smooth.array.astype(float) - expected)[inside].mean() < 60


def test_a_coarser_volume_is_smoothed_unless_told_not_to():
    stripes = np.zeros((4, 4, 64), np.int16)
    stripes[..., ::2] = 1000
    volume = Volume(stripes, np.eye(4)[[2, 1, 0, 3]])
    smooth = resample(volume, (1, 1, 4)).array[..., 2:-2]
    assert np.ptp(smooth) < 100 < np.ptp(resample(volume, (1, 1, 3), antialias=False).array)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_resampling_keeps_faces_and_places(order):
    volume = marked((8, 8, 8))
    fine = resample(volume, tuple(s / 2 for s in volume.spacing_mm), order=order)
    assert fine.shape == (16, 16, 16)
    for corner in ((-0.5, -0.5, -0.5), (7.5, 7.5, 7.5)):
        outer = np.where(np.array(corner) < 0, -0.5, 15.5)
        assert np.allclose(fine.index_to_mm(outer), volume.index_to_mm(corner))
    if order == 0:
        assert np.array_equal(fine.array, volume.array.repeat(2, 0).repeat(2, 1).repeat(2, 2))


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_cropping_and_back_keeps_voxels_and_places(data):
    volume = marked()
    box = tuple(
        slice(a := data.draw(st.integers(0, n - 1)), data.draw(st.integers(a + 1, n))) for n in volume.shape
    )
    small = crop(volume, box)
    first = tuple(b.start for b in box)
    assert np.allclose(small.index_to_mm((0, 0, 0)), volume.index_to_mm(first))
    whole = uncropped(small.array, box, volume.shape, fill=-1024)
    assert (
        np.array_equal(whole[box], volume.array[box])
        and (whole == -1024).sum() == whole.size - small.array.size
    )


@pytest.mark.parametrize("code", ["LPS", "RAI", "SPL"])
def test_the_body_is_boxed_without_its_couch(chest, code):
    volume = oriented(Volume(chest.hu, chest.affine), code)
    labels = oriented(Volume(chest.labels.astype(np.int16), chest.affine), code).array
    found, drawn = body_box(volume), box_around(labels > 0)
    for got, wanted, mm in zip(found, drawn, volume.spacing_mm, strict=True):
        assert abs(got.start - wanted.start) * mm < 12 and abs(got.stop - wanted.stop) * mm < 12


def test_a_box_of_nothing_is_the_whole_volume():
    air = Volume(np.full((4, 16, 16), -1000, np.int16), np.eye(4))
    assert body_box(air) == (slice(0, 4), slice(0, 16), slice(0, 16))


def test_millilitres_do_not_depend_on_how_the_array_lies(chest):
    lungs = np.isin(chest.labels, [LABELS["lung_left"], LABELS["lung_right"]])
    volume = Volume(chest.hu, chest.affine)
    expected = lungs.sum() * np.prod(volume.spacing_mm) / 1000
    for code in ("LPS", "RAS", "SLA"):
        turned = oriented(volume, code)
        there = oriented(Volume(lungs.astype(np.int16), chest.affine), code).array
        assert volume_ml(there, turned) == pytest.approx(expected)
    unknown = Volume(chest.hu, chest.affine, {"spacing_known": False})
    assert np.isnan(volume_ml(lungs, unknown))
    with pytest.raises(GeometryError, match="unknown"):
        onto(unknown, volume)


def test_a_volume_shows_itself_with_its_numbers():
    volume = marked()
    assert "5 × 6 × 7 voxels 2.5 × 0.9 × 0.7 mm" in repr(volume) and "HU" in repr(volume)
    grey = Volume(volume.array, volume.affine, {"hu_known": False, "spacing_known": False})
    assert "of unknown size" in repr(grey) and "not known to be HU" in repr(grey)
    assert volume._repr_html_().startswith("<figure>") and repr(volume) in volume._repr_html_()
