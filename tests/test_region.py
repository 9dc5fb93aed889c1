"""The lung region: the spine is found in bent, shifted and sick chests, and no sick lung is lost."""

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import real
from scipy import ndimage as ndi

from lungseg.core import GeometryError, MaskError
from lungseg.isolate import threshold_lungs
from lungseg.phantom import Anatomy, Finding, Phantom, Scan, draw_phantom
from lungseg.reading import read_volume
from lungseg.region import (
    lung_box,
    lung_region,
    margin,
    mirrored_union,
    projected_spine,
    smoothed,
    spine_axis,
    suppressed,
)
from lungseg.volume import Volume, crop, lps_axes, oriented, reordered, uncropped


def scanned(phantom: Phantom) -> Volume:
    return Volume(phantom.hu, phantom.affine)


def off_mm(phantom: Phantom) -> float:
    "How far the axis is from the drawn spine, sideways, where it is farthest; in the slices with lung."
    chest = scanned(phantom)
    lungs = threshold_lungs(chest)
    off = spine_axis(chest, lungs) - np.array(phantom.drawn["spine_mm"])
    assert np.abs(off[:, 2]).max() < 0.01
    return np.abs(off[lungs.any((1, 2)), 0]).max()


CHESTS = {
    "straight": {"seed": 5},
    "bent right, thick slices": {"anatomy": Anatomy("M", 70, scoliosis_mm=-40), "scan": Scan(128, 30)},
    "bent left, thin slices": {"anatomy": Anatomy("F", 40, scoliosis_mm=40), "scan": Scan(128, 100)},
    "off centre, arms down": {
        "anatomy": Anatomy("M", 60, 0.5, 0.4, "down"),
        "scan": Scan(offset_mm=(60, 10)),
    },
    "bent and off centre": {
        "anatomy": Anatomy("F", 80, -0.8, scoliosis_mm=25),
        "scan": Scan(offset_mm=(-60, -20), couch="curved", kernel="sharp", dose=0.4),
    },
    "contrast, old bones": {"anatomy": Anatomy("F", 88), "scan": Scan(contrast_hu=400)},
    "an aorta beside the bend": {
        "anatomy": Anatomy("F", 50, 0.9, 0.58, height_cm=154, scoliosis_mm=30),
        "scan": Scan(128, 30, contrast_hu=400, kernel="smooth", couch="flat", offset_mm=(-49, -3)),
        "findings": (Finding("effusion", "right", 60),),
    },
    "effusion": {"seed": 2, "findings": (Finding("effusion", "left", 110),)},
    "collapse": {"seed": 3, "findings": (Finding("collapse", "right", 70, lobe="all"),)},
}


@pytest.mark.parametrize("name", CHESTS)
def test_the_axis_is_within_5_mm_of_the_spine(name):
    assert off_mm(draw_phantom(**CHESTS[name])) < 5


def test_the_report_s_plain_recipe_is_led_astray():
    "Why the axis is not found that way."
    phantom = draw_phantom(**CHESTS["bent right, thick slices"])
    chest = scanned(phantom)
    lungs = threshold_lungs(chest)
    slices = np.flatnonzero(lungs.any((1, 2)))
    x = chest.affine[0, 3] + projected_spine(chest, lungs) * chest.affine[0, 2]
    drawn = np.array(phantom.drawn["spine_mm"])[slices[0] : slices[-1] + 1, 0]
    assert np.abs(x - drawn).max() > 10


SICK = {
    "effusion": (0, Finding("effusion", "right", 90)),
    "lower lobe": (2, Finding("consolidation", "right", 30, lobe="lower")),
    "upper lobe": (3, Finding("consolidation", "left", 30, lobe="upper")),
    "whole right lung": (2, Finding("consolidation", "right", 30, lobe="all")),
    "whole left lung": (1, Finding("consolidation", "left", 30, lobe="all")),
    "tumour on the wall": (5, Finding("tumour", "left", 90, (0.95, 0.5, 0.4))),
    "tumour on the mediastinum": (6, Finding("tumour", "left", 90, (0.05, 0.5, 0.4))),
    "tumour on the diaphragm": (7, Finding("tumour", "right", 80, (0.5, 0.6, 0.05))),
}


@pytest.mark.parametrize("name", SICK)
def test_the_region_holds_the_sick_lung_where_the_plain_mask_does_not(name):
    seed, finding = SICK[name]
    phantom = draw_phantom(seed, findings=(finding,))
    lungs, whole = threshold_lungs(scanned(phantom)), phantom.mask(f"pleura_{finding.side}")
    region = lung_region(scanned(phantom), lungs)
    assert (whole & lungs).sum() < 0.97 * whole.sum()
    assert (whole & region).sum() >= 0.98 * whole.sum()
    assert region[lungs].all()
    assert region.sum() < 0.6 * phantom.mask(*"body lung_left lung_right heart".split()).sum()


@pytest.mark.parametrize("bend", [-40, 25])
def test_a_lung_lost_beside_a_bent_spine_is_inside(bend):
    phantom = draw_phantom(
        3,
        anatomy=Anatomy("M", 70, arms="down", scoliosis_mm=bend),
        scan=Scan(offset_mm=(33, 0)),
        findings=(Finding("consolidation", "left", 30, lobe="all"),),
    )
    whole = phantom.mask("pleura_left")
    assert (whole & lung_region(scanned(phantom))).sum() >= 0.98 * whole.sum()


@pytest.fixture(scope="module")
def small() -> tuple[Volume, np.ndarray]:
    "A small sick chest and its lungs."
    chest = scanned(draw_phantom(2, size=64, slices=24, findings=(Finding("effusion", "left", 60),)))
    return chest, threshold_lungs(chest)


@pytest.mark.parametrize("code", ["RAS", "SPR", "ILA", "LSP", "PIL"])
def test_orientation_makes_no_difference(small, code):
    chest, lungs = small
    turned = oriented(chest, code)
    mine = oriented(Volume(lungs.astype(np.int16), chest.affine), code).array.astype(bool)
    np.testing.assert_allclose(spine_axis(turned, mine), spine_axis(chest, lungs), atol=1e-6)
    for made in (mirrored_union, lung_region):
        back = reordered(made(turned, mine), *lps_axes(turned.affine))
        np.testing.assert_array_equal(back, made(chest, lungs))


def test_a_patient_who_lies_obliquely_is_mirrored_in_the_grid(small):
    chest, lungs = small
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    turned = Volume(chest.array, turn @ chest.affine)
    np.testing.assert_allclose(
        spine_axis(turned, lungs), spine_axis(chest, lungs) @ turn[:3, :3].T, atol=1e-6
    )
    np.testing.assert_array_equal(mirrored_union(turned, lungs), mirrored_union(chest, lungs))


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_a_few_slices_are_enough(small, slices):
    chest, lungs = small
    box = (slice(10, 10 + slices), slice(None), slice(None))
    part, mask = crop(chest, box), lungs[box]
    apart = np.abs(spine_axis(part, mask) - spine_axis(chest, lungs)[box[0]])[:, 0]
    assert apart.max() < 10
    assert lung_region(part, mask).sum() > 1.2 * mask.sum()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (2, 1, 1), (3, 4, 1), (2, 2, 9)])
@pytest.mark.parametrize("hu", [-1000, 0, 700])
def test_tiny_volumes_do_no_harm(shape, hu):
    tiny = Volume(np.full(shape, hu, np.int16), np.eye(4)[[2, 1, 0, 3]])
    all_of_it = np.ones(shape, bool)
    assert spine_axis(tiny, all_of_it).shape == (shape[0], 3)
    assert np.isfinite(spine_axis(tiny, all_of_it)).all()
    assert lung_region(tiny, all_of_it).all()
    assert not lung_region(tiny, ~all_of_it).any()


def test_without_lungs_there_is_no_region_and_no_axis(small):
    chest, lungs = small
    none = np.zeros_like(lungs)
    assert not mirrored_union(chest, none).any()
    assert not lung_region(chest, none).any()
    with pytest.raises(MaskError, match="empty"):
        spine_axis(chest, none)


def test_a_mask_of_another_grid_is_refused(small):
    chest, lungs = small
    for use in (spine_axis, mirrored_union, lung_region, suppressed):
        with pytest.raises(MaskError, match="expected the volume's"):
            use(chest, lungs[1:])


def test_unknown_spacing_is_no_obstacle(small):
    chest, lungs = small
    bare = Volume(chest.array, np.eye(4)[[2, 1, 0, 3]], {"spacing_known": False})
    columns = spine_axis(bare, lungs)[:, 0]
    assert np.abs(columns - chest.mm_to_index(spine_axis(chest, lungs))[:, 2]).max() < 2
    assert lung_region(bare, lungs)[lungs].all()


def test_nothing_given_is_changed(small):
    chest, lungs = small
    before, mask = chest.array.copy(), lungs.copy()
    region = lung_region(chest, lungs)
    suppressed(chest, region)
    np.testing.assert_array_equal(chest.array, before)
    np.testing.assert_array_equal(lungs, mask)


masks = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.lists(st.booleans(), min_size=prod(shape), max_size=prod(shape)).map(
        lambda bits: np.array(bits).reshape(shape)
    )
)


@settings(deadline=None, max_examples=60)
@given(masks, st.sampled_from([(1, 1, 1), (2.5, 0.7, 0.9), (0.6, 2, 1)]), st.sampled_from([0, 1, 1.9, 3.1]))
def test_the_margin_is_a_ball_in_mm(mask, spacing, mm):
    wanted = ndi.distance_transform_edt(~mask, spacing) <= mm if mask.any() else mask
    np.testing.assert_array_equal(margin(mask, spacing, mm=mm), wanted)


@settings(deadline=None, max_examples=40)
@given(masks, st.integers(0, 5))
def test_the_margin_is_a_disc_in_pixels(mask, pixels):
    wanted = [ndi.distance_transform_edt(~p) <= pixels if p.any() else p for p in mask]
    np.testing.assert_array_equal(margin(mask, (3, 0.5, 0.5), pixels=pixels), wanted)


def test_a_margin_needs_one_radius_that_is_not_negative():
    dot = np.ones((1, 1, 1), bool)
    for radii in ({}, {"mm": 1, "pixels": 1}, {"mm": -1}):
        with pytest.raises(GeometryError, match="margin"):
            margin(dot, (1, 1, 1), **radii)


def test_smoothing_both_ways_does_not_lag():
    leaning = np.arange(40.0)
    one_way = smoothed(leaning)
    assert all(b > a for a, b in pairwise(one_way[5:]))
    assert np.abs((one_way + smoothed(leaning[::-1])[::-1]) / 2 - leaning)[15:25].max() < 0.02


def test_box_and_air_are_undone(small):
    chest, lungs = small
    region = lung_region(chest, lungs)
    box = lung_box(region, chest.spacing_mm, margin_mm=5)
    inside = crop(suppressed(chest, region, air_hu=-1024), box)
    assert inside.array.min() >= -1024
    full = uncropped(inside.array, box, chest.shape, fill=-1024)
    np.testing.assert_array_equal(full[region], chest.array[region])
    assert (full[~region] == -1024).all()
    np.testing.assert_array_equal(uncropped(region[box], box, chest.shape, fill=False), region)
    assert all(0 <= b.start < b.stop <= n for b, n in zip(box, chest.shape, strict=True))
    with pytest.raises(GeometryError, match="margin_mm"):
        lung_box(region, chest.spacing_mm, margin_mm=-1)


@pytest.mark.parametrize("case", ["101", "102", "103", "104"])
def test_the_region_of_a_patient_holds_the_drawn_lungs(case):
    file = real("lctsc") / f"LCTSC-Test-S1-{case}.npz"
    chest = read_volume(file)
    with np.load(file) as stored:
        ref = stored["mask"].astype(bool)
    region = lung_region(chest)
    assert (ref & region).sum() > 0.995 * ref.sum()
    axis = chest.mm_to_index(spine_axis(chest, ref))
    places = axis[ref.any((1, 2))].round().astype(int)
    here, right, left = (
        np.mean(
            [(chest.array[z, r - 40 : r + 40, c + at - 15 : c + at + 16] > 150).mean() for z, r, c in places]
        )
        for at in (0, -50, 50)
    )
    assert here > 1.5 * max(right, left)


def test_the_spine_lies_between_labelled_lungs():
    folder = real("cip-ct64")
    chest = read_volume(folder / "ct-64Dicom")
    with np.load(folder / "ct64_masks.npz") as stored:
        lobes = stored["region"]
    axis = chest.mm_to_index(spine_axis(chest, threshold_lungs(chest)))
    lungs = np.isin(lobes, range(9, 15))
    assert (lungs & lung_region(chest)).sum() > 0.99 * lungs.sum()
    for z in np.flatnonzero(lungs.sum((1, 2)) > 200):
        back = lungs[z, int(axis[z, 1]) - 8 : int(axis[z, 1])].any(0)  # beside the vertebrae
        assert not back[round(axis[z, 2])]
        assert back[: round(axis[z, 2])].any() and back[round(axis[z, 2]) :].any()


@pytest.mark.parametrize("kernel", ["B40f", "B70f"])
def test_thick_slices_of_a_patient_have_a_region(kernel):
    chest = read_volume(real("lungdx-a0002") / kernel)
    lungs = threshold_lungs(chest)
    region = lung_region(chest, lungs)
    assert region[lungs].all() and 1.1 < region.sum() / lungs.sum() < 4
    assert np.abs(np.diff(spine_axis(chest, lungs)[:, 0])).max() < 8
