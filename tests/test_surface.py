"""Surface distances against a plain version, against peers, and on shapes with known answers."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from scipy.spatial.distance import cdist

from lungseg import surface
from lungseg.core import GeometryError, InputError, LungsegError, MaskError
from lungseg.metrics import ShapeMismatch
from lungseg.surface import (
    code_areas,
    hausdorff_mm,
    mean_distances_mm,
    surface_dice,
    surface_distances,
    surface_scores,
)

BOTH = pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "by voxel"])


def affine_of(*columns) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(columns, float).T
    return affine


def spaced(slice_mm, row_mm, col_mm) -> np.ndarray:
    "As DICOM has it: slices along z, rows along y, columns along x."
    return affine_of((0, 0, slice_mm), (0, row_mm, 0), (col_mm, 0, 0))


def box(shape, *spans) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


def ball(radius_mm, spacing_mm, shape, shift_mm=(0, 0, 0)) -> np.ndarray:
    grid = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    return np.linalg.norm(grid * spacing_mm - shift_mm, axis=-1) <= radius_mm


# the plain version


def plain_elements(mask, axes, weighted):
    "Points in mm and what each counts, one element at a time."
    from skimage.measure import marching_cubes, mesh_surface_area

    padded, points, areas = np.pad(mask, 1), [], []
    for at in product(*(range(n + 1) for n in mask.shape)):
        if weighted:
            eight = padded[tuple(slice(i, i + 2) for i in at)]
            if eight.all() or not eight.any():
                continue
            drawn = eight if eight.sum() <= 4 else ~eight
            vertices, triangles, *_ = marching_cubes(drawn.astype(np.float32), 0.5, method="lorensen")
            areas.append(mesh_surface_area(np.round(2 * vertices) / 2 @ axes.T, triangles))
        else:
            centre = tuple(i + 1 for i in at)
            if (np.array(centre) > mask.shape).any() or not padded[centre]:
                continue
            steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
            if all(padded[tuple(centre + step)] for step in steps):
                continue
            areas.append(1.0)
        points.append(axes @ at)
    return np.array(points), np.array(areas)


def plain_scores(pred, ref, affine, tolerances_mm, weighted):
    axes = affine[:3, :3]
    (a, a_area), (b, b_area) = (plain_elements(mask, axes, weighted) for mask in (pred, ref))
    between = cdist(a, b)
    ways = [(between.min(axis=1), a_area), (between.min(axis=0), b_area)]

    def percentile(distance, area):
        if not weighted:
            return np.percentile(distance, 95)
        for d in np.sort(distance):
            if area[distance <= d].sum() >= (0.95 - 1e-12) * area.sum():
                return d

    p95 = [percentile(*way) for way in ways]
    means = [np.average(d, weights=area) for d, area in ways]
    whole = a_area.sum() + b_area.sum()
    return {
        "hd_mm": between.min(axis=1).max().clip(between.min(axis=0).max()),
        "hd95_mm": max(p95),
        "hd95_mean_mm": np.mean(p95),
        "msd_to_ref_mm": means[0],
        "msd_to_pred_mm": means[1],
        "msd_mm": np.mean(means),
        "assd_mm": sum((d * area).sum() for d, area in ways) / whole,
        **{f"nsd_{t:g}mm": sum(area[d <= t + 1e-6].sum() for d, area in ways) / whole for t in tolerances_mm},
    }


@st.composite
def pairs(draw, shears=(0.0, 0.4)):
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    masks = [draw(arrays(bool, shape)) for _ in range(2)]
    for mask in masks:
        mask[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
    spacing = [draw(st.sampled_from([0.7, 1.0, 3.0])) for _ in range(3)]
    shear = draw(st.sampled_from(shears))
    turn = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 9))).normal(size=(3, 3)))[0]
    axes = turn @ np.array([[1, 0, 0], [shear, 1, 0], [0, 0, 1]]) @ np.diag(spacing)
    return *masks, affine_of(*axes.T)


@BOTH
@settings(max_examples=40, deadline=None)
@given(pair=pairs())
def test_scores_are_those_of_the_plain_version_on_any_grid(weighted, pair):
    found = surface_scores(*pair, tolerances_mm=(0.5, 1), weighted=weighted)
    wanted = plain_scores(*pair, (0.5, 1), weighted)
    assert found == pytest.approx(wanted, abs=1e-5)  # scikit-image adds areas up in float32
    assert list(found) == list(wanted)


@BOTH
@settings(max_examples=30, deadline=None)
@given(pair=pairs())
def test_swapping_the_masks_swaps_the_directions_and_nothing_else(weighted, pair):
    pred, ref, affine = pair
    there, back = (surface_scores(*masks, affine, weighted=weighted) for masks in ((pred, ref), (ref, pred)))
    back["msd_to_ref_mm"], back["msd_to_pred_mm"] = back["msd_to_pred_mm"], back["msd_to_ref_mm"]
    assert there == pytest.approx(back)


@BOTH
@settings(max_examples=30, deadline=None)
@given(pair=pairs())
def test_scores_are_ordered_and_a_mask_is_perfect_against_itself(weighted, pair):
    pred, ref, affine = pair
    s = surface_scores(pred, ref, affine, weighted=weighted)
    assert s["hd_mm"] >= s["hd95_mm"] >= s["hd95_mean_mm"] >= 0
    assert s["hd_mm"] + 1e-9 >= max(s["msd_to_ref_mm"], s["msd_to_pred_mm"])
    low, high = sorted((s["msd_to_ref_mm"], s["msd_to_pred_mm"]))
    assert low - 1e-9 <= s["assd_mm"] <= high + 1e-9
    assert 0 <= s["nsd_1mm"] <= s["nsd_2mm"] <= s["nsd_3mm"] <= 1
    itself = surface_scores(ref, ref, affine, weighted=weighted)
    assert set(itself.values()) == {0.0, 1.0} and itself["nsd_1mm"] == 1


@BOTH
@settings(max_examples=30, deadline=None)
@given(pair=pairs(shears=[0.0]), order=st.permutations([0, 1, 2]), flip=st.integers(0, 2))
def test_axis_order_and_direction_change_nothing(weighted, pair, order, flip):
    pred, ref, affine = pair
    masks = [np.flip(mask.transpose(order), flip) for mask in (pred, ref)]
    other = affine[:, [*order, 3]].copy()
    other[:, 3] += other[:, flip] * (masks[0].shape[flip] - 1)
    other[:, flip] *= -1
    found = surface_scores(*masks, other, weighted=weighted)
    assert found == pytest.approx(surface_scores(pred, ref, affine, weighted=weighted), abs=1e-9)


# shapes with known answers


@BOTH
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_box_is_as_far_off_as_it_was_shifted(weighted, axis):
    ref = box((14, 20, 24), (3, 9), (4, 14), (5, 17))
    pred, affine = np.roll(ref, 2, axis), spaced(3.0, 0.7, 0.9)
    shift = 2 * (3.0, 0.7, 0.9)[axis]
    scores = surface_scores(pred, ref, affine, tolerances_mm=(shift, shift - 0.01), weighted=weighted)
    assert scores["hd_mm"] == pytest.approx(shift)
    assert scores[f"nsd_{shift:g}mm"] == 1 > scores[f"nsd_{shift - 0.01:g}mm"]
    assert 0 < scores["assd_mm"] < shift
    assert scores["msd_to_ref_mm"] == pytest.approx(scores["msd_to_pred_mm"])


@BOTH
@pytest.mark.parametrize("spacing", [(1, 1, 1), (2.5, 1, 1), (1, 0.8, 1.6)])
def test_balls_around_one_centre_are_their_radii_apart(weighted, spacing):
    shape = tuple(round(50 / mm) | 1 for mm in spacing)
    small, large = (ball(r, spacing, shape) for r in (18, 23))
    scores = surface_scores(large, small, spaced(*map(float, spacing)), weighted=weighted)
    for name in ("hd_mm", "hd95_mm", "msd_mm", "assd_mm"):
        assert scores[name] == pytest.approx(5, abs=0.6 * max(spacing)), name


@BOTH
def test_a_box_in_a_box_has_the_answers_of_geometry(weighted):
    inner, outer = box((16, 16, 16), *[(5, 11)] * 3), box((16, 16, 16), *[(2, 14)] * 3)
    scores = surface_scores(outer, inner, spaced(1.0, 1.0, 1.0), weighted=weighted)
    assert scores["msd_to_pred_mm"] == pytest.approx(3)
    assert scores["hd_mm"] == pytest.approx(np.sqrt(27))
    assert scores["nsd_2mm"] == 0


def test_the_area_of_a_wall_is_that_of_its_voxels_in_any_orientation():
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    for axes in (np.diag([3.0, 0.7, 0.9]), turn @ np.diag([3.0, 0.7, 0.9])):
        areas = code_areas(axes)
        assert areas[[0b00001111, 0b00110011, 0b01010101]] == pytest.approx([0.63, 2.7, 2.1])
        assert areas == pytest.approx(areas[::-1])
    tilted = np.array([[0, 0, 0.9], [1.2, 0.7, 0], [3, 0, 0.0]])
    wanted = [np.linalg.norm(np.cross(*tilted.T[list(ij)])) for ij in ((1, 2), (0, 2), (0, 1))]
    assert code_areas(tilted)[[0b00001111, 0b00110011, 0b01010101]] == pytest.approx(wanted)


@BOTH
def test_a_mask_cut_by_the_end_of_the_scan_has_a_surface_there(weighted):
    ref = box((6, 8, 8), (0, 6), (2, 6), (2, 6))
    scores = surface_scores(
        box((6, 8, 8), (0, 4), (2, 6), (2, 6)), ref, spaced(5.0, 1.0, 1.0), weighted=weighted
    )
    assert scores["hd_mm"] == 10


def test_a_distance_of_just_the_tolerance_is_within_it_whatever_arithmetic_blurs():
    ref = box((8, 12, 12), (2, 5), (2, 10), (2, 10))
    pred = box((8, 12, 12), (2, 6), (2, 10), (2, 10))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    for slice_mm in (3.0, 0.3, float(np.float32(0.3)), float(np.float32(1.1))):
        affine = affine_of(*(turn @ np.diag([slice_mm, 0.7, 0.9])).T)
        tolerance = round(slice_mm, 3)
        scores = surface_scores(pred, ref, affine, tolerances_mm=[tolerance], weighted=False)
        assert scores[f"nsd_{tolerance:g}mm"] == 1


# the search


@BOTH
def test_steps_tree_and_transform_find_the_same(weighted, monkeypatch):
    shape, affine = (12, 40, 44), spaced(3.0, 1.0, 0.8)
    pred = box(shape, (1, 3), (1, 5), (2, 6)) | ball(3, (3, 1, 0.8), shape)
    ref = ball(14, (3, 1, 0.8), shape) | box(shape, (9, 11), (30, 39), (30, 43))
    found = []
    ways = product((0, 1), (0.5, 10.0, np.inf), (0, 1, 3))
    for share, near, steps in ways:  # the transform always or never; what is near; what is looked up
        monkeypatch.setattr(surface, "FAR_SHARE", share)
        monkeypatch.setattr(surface, "NEAR_MM", near)
        monkeypatch.setattr(surface, "STEPS", steps)
        found.append(surface_distances(pred, ref, affine, weighted=weighted))
    for other in found[1:]:
        assert other.to_ref == pytest.approx(found[0].to_ref, abs=1e-9)
        assert other.to_pred == pytest.approx(found[0].to_pred, abs=1e-9)


def test_a_tilted_grid_is_never_given_to_the_transform(monkeypatch):
    monkeypatch.setattr(surface, "FAR_SHARE", 0)
    monkeypatch.setattr(surface, "NEAR_MM", 0.1)
    monkeypatch.setattr(surface, "STEPS", 0)
    pred, ref = box((9, 9, 9), (1, 3), (1, 3), (1, 3)), box((9, 9, 9), (5, 8), (5, 8), (4, 7))
    tilted = affine_of((0, 0.9, 2), (0, 1, 0), (1, 0, 0))
    found = surface_scores(pred, ref, tilted, tolerances_mm=(1,))
    assert found == pytest.approx(plain_scores(pred, ref, tilted, (1,), True), abs=1e-5)


def test_all_cores_find_the_same_as_one():
    pred, ref = (ball(r, (3, 1, 1), (15, 40, 40)) for r in (12, 15))
    affine = spaced(3.0, 1.0, 1.0)
    assert surface_scores(pred, ref, affine, workers=-1) == surface_scores(pred, ref, affine)


def test_masks_are_left_as_they_were_and_need_not_be_contiguous():
    big = np.random.default_rng(0).random((2, 20, 16, 18)) < 0.3
    pred, ref = big[:, ::2, ::-1, 1::3].transpose(0, 3, 1, 2)
    before, affine = big.copy(), spaced(2.0, 1.0, 1.0)
    found = surface_scores(pred, ref, affine)
    assert found == surface_scores(pred.copy(), ref.copy(), affine)
    assert np.array_equal(big, before)
    big.flags.writeable = False
    assert surface_scores(pred, ref, affine) == found


# empty masks, and what is no pair


@BOTH
def test_a_missed_or_invented_lung_costs_the_volumes_diagonal_and_is_never_nan(weighted):
    nothing, lung = np.zeros((4, 30, 40), bool), box((4, 30, 40), (1, 3), (4, 9), (4, 9))
    affine = spaced(5.0, 1.0, 0.5)
    for pair in ((nothing, lung), (lung, nothing)):
        scores = surface_scores(*pair, affine, tolerances_mm=(2, 1000), weighted=weighted)
        assert {v for k, v in scores.items() if k.startswith(("hd", "msd", "assd"))} == {
            np.sqrt(400 + 900 + 400)
        }
        assert scores["nsd_2mm"] == scores["nsd_1000mm"] == 0
    assert surface_distances(nothing, lung, affine).empty == "prediction"
    assert surface_distances(lung, nothing, affine).empty == "reference"


@BOTH
def test_two_empty_masks_are_nan_throughout(weighted):
    nothing = np.zeros((4, 5, 6), bool)
    scores = surface_scores(nothing, nothing, spaced(1.0, 1.0, 1.0), weighted=weighted)
    assert len(scores) == 10 and np.isnan(list(scores.values())).all()


def test_the_diagonal_of_a_tilted_volume_is_its_longest():
    nothing, lung = np.zeros((10, 10, 10), bool), box((10, 10, 10), (1, 3), (4, 9), (4, 9))
    for lean in (1, -1):
        affine = affine_of((0, lean, 1), (0, 1, 0), (1, 0, 0))
        assert surface_scores(nothing, lung, affine)["hd_mm"] == pytest.approx(np.linalg.norm([10, 20, 10]))


def test_without_a_voxel_size_there_are_no_millimetres():
    lung = box((4, 6, 6), (1, 3), (1, 4), (1, 4))
    assert np.isnan(list(surface_scores(lung, ~lung, None).values())).all()
    with pytest.raises(ShapeMismatch):
        surface_scores(lung, lung[1:], None)


LUNG, MM = box((4, 6, 6), (1, 3), (1, 4), (1, 4)), spaced(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "error, words, pred, ref, affine",
    [
        (ShapeMismatch, r"\(4, 6, 6\) and \(4, 6, 5\)", LUNG, LUNG[..., :5], MM),
        (ShapeMismatch, r"\(4, 6, 6\) and \(6, 4, 6\)", LUNG, LUNG.swapaxes(0, 1), MM),
        (MaskError, "prediction: values of type uint8", LUNG.astype(np.uint8), LUNG, MM),
        (MaskError, "reference: values of type float32", LUNG, LUNG.astype(np.float32), MM),
        (MaskError, r"prediction: shape \(6, 6\)", LUNG[0], LUNG[0], MM),
        (GeometryError, r"affine: shape \(3, 3\)", LUNG, LUNG, MM[:3, :3]),
        (GeometryError, "finite", LUNG, LUNG, MM * [1, 1, np.nan, 1]),
        (GeometryError, "finite", LUNG, LUNG, np.where(MM == 0, 0, np.inf)),
        (GeometryError, "singular", LUNG, LUNG, MM * [1, 1, 0, 1]),
        (GeometryError, "singular", LUNG, LUNG, affine_of((1, 0, 0), (0, 1, 0), (1, 1, 0))),
    ],
)
def test_what_cannot_be_measured_is_named(error, words, pred, ref, affine):
    with pytest.raises(error, match=words) as raised:
        surface_scores(pred, ref, affine)
    assert isinstance(raised.value, LungsegError) and "\n" not in str(raised.value)


@pytest.mark.parametrize("tolerance", [0, -1, np.nan, np.inf])
def test_a_tolerance_is_a_number_above_0(tolerance):
    for pred in (LUNG, np.zeros_like(LUNG)):
        with pytest.raises(InputError, match="tolerance"):
            surface_scores(pred, LUNG, MM, tolerances_mm=(1, tolerance))


@pytest.mark.parametrize("percent", [0, -5, 101, np.nan])
def test_a_percentile_lies_above_0_and_up_to_100(percent):
    with pytest.raises(InputError, match="percent"):
        hausdorff_mm(surface_distances(LUNG, LUNG, MM), percent)


# peers, where they are installed


def lungs_like(spacing):
    "Two rough bodies on a grid of their own, and a prediction with faults of all kinds."
    shape = tuple(round(66 / mm) for mm in spacing)
    rough = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=shape), 2) * 12
    grid = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2

    def body(radius, side):
        at = grid * spacing - np.array([0, 0, side])
        return np.linalg.norm(at * [0.7, 1, 1.4], axis=-1) + rough <= radius

    ref = body(17, -16) | body(15, 17)
    pred = np.roll(body(18, -16) | body(15, 17), 1, 1)
    pred[-len(pred) // 4 :] = False
    pred[2:4, 2:4, 2:4] = True
    return pred, ref


SPACINGS = pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.9, 0.9), (1.25, 0.7, 0.8)], ids=str)
PERCENT = (50, 90, 95, 99, 100)


def test_areas_are_those_of_surface_distance_for_all_256_codes():
    tables = pytest.importorskip("surface_distance.lookup_tables", reason="surface-distance is not installed")
    for spacing in ((1, 1, 1), (3, 0.9, 0.7), (0.6, 1.7, 2.3)):
        theirs = tables.create_table_neighbour_code_to_surface_area(spacing)
        ours = code_areas(np.diag(np.array(spacing, float)))
        assert ours == pytest.approx(theirs[np.arange(256)], abs=1e-12)


@SPACINGS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weighted_scores_are_those_of_surface_distance(spacing):
    peer = pytest.importorskip("surface_distance.metrics", reason="surface-distance is not installed")
    pred, ref = lungs_like(spacing)
    theirs = peer.compute_surface_distances(ref, pred, spacing)
    ours = surface_distances(pred, ref, spaced(*spacing))
    for percent in PERCENT:
        wanted = peer.compute_robust_hausdorff(theirs, percent)
        assert hausdorff_mm(ours, percent) == pytest.approx(wanted, abs=1e-6)
    ref_to_pred, pred_to_ref = peer.compute_average_surface_distance(theirs)
    assert mean_distances_mm(ours)[:2] == pytest.approx((pred_to_ref, ref_to_pred), abs=1e-6)
    for tolerance in (0.5, 1.6, 2, 4.4):
        wanted = peer.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert surface_dice(ours, tolerance) == pytest.approx(wanted, abs=1e-9)


@SPACINGS
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_voxel_based_scores_are_those_of_monai(spacing):
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    torch = pytest.importorskip("torch")
    pred, ref = lungs_like(spacing)
    a, b = (torch.from_numpy(mask)[None, None] for mask in (pred, ref))
    options = {"include_background": True, "spacing": spacing}
    ours = surface_distances(pred, ref, spaced(*spacing), weighted=False)
    for percent in PERCENT:
        wanted = monai.compute_hausdorff_distance(a, b, percentile=percent, **options)
        assert hausdorff_mm(ours, percent) == pytest.approx(wanted.item(), abs=1e-3)
    to_ref, to_pred, assd = mean_distances_mm(ours)
    for found, x, y, symmetric in ((to_ref, a, b, False), (to_pred, b, a, False), (assd, a, b, True)):
        wanted = monai.compute_average_surface_distance(x, y, symmetric=symmetric, **options)
        assert found == pytest.approx(wanted.item(), abs=1e-4)
    for tolerance in (0.5, 1.6, 2, 4.4):
        wanted = monai.compute_surface_dice(a, b, [tolerance], **options)
        assert surface_dice(ours, tolerance) == pytest.approx(wanted.item(), abs=1e-6)
    weighted = surface_distances(pred, ref, spaced(*spacing))
    wanted = monai.compute_surface_dice(a, b, [2.0], use_subvoxels=True, **options)
    assert surface_dice(weighted, 2) == pytest.approx(wanted.item(), abs=1e-5)
