"""Lesions counted: what must hold for any pair of masks, in any orientation, and for healthy scans."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from lungseg.core import CohortError, GeometryError, InputError, MaskError
from lungseg.lesions import (
    components,
    detect,
    detection_scores,
    froc,
    froc_score,
    matches,
    overlaps,
    sensitivity_by,
    size_class,
)
from lungseg.metrics import ShapeMismatch, dice
from lungseg.phantom import Finding, draw_phantom
from lungseg.volume import reordered, reordered_affine

MM = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])  # 1 mm voxels, LPS


@st.composite
def pairs(draw):
    "Two masks in which pieces are many, and one of which is often empty."
    masks = [draw(arrays(float, (3, 5, 5), elements=st.floats(0, 1))) for _ in range(2)]
    cuts = [draw(st.sampled_from([0.3, 0.7, 0.9, 1.1])) for _ in range(2)]
    return tuple(m > cut for m, cut in zip(masks, cuts, strict=True))


def ball(shape, centre, radius_mm, spacing=(1, 1, 1)):
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing, strict=True)) <= radius_mm**2


@settings(max_examples=40)
@given(pairs())
def test_each_side_of_a_pair_sees_the_same_matches(pair):
    pred, ref = pair
    there, back = detect(pred, ref), detect(ref, pred)
    assert there.lesions.detected.tolist() == back.finds.true.tolist()
    assert there.finds.true.tolist() == back.lesions.detected.tolist()
    assert there.lesions.finds.sum() == there.finds.lesions.sum()


@settings(max_examples=40)
@given(pairs())
def test_pieces_add_up_and_scores_are_shares(pair):
    pred, ref = pair
    seen = detect(pred, ref, affine=MM)
    assert seen.lesions.voxels.sum() == ref.sum() and seen.finds.voxels.sum() == pred.sum()
    assert ((seen.lesions.dice > 0) == seen.lesions.detected).all() and (seen.lesions.dice <= 1).all()
    scores = seen.scores()
    assert np.isnan(scores["sensitivity"]) == (not ref.any())
    assert np.isnan(scores["precision"]) == (not pred.any())
    assert scores["detected"] + scores["missed"] == scores["lesions"] == components(ref)[1]


@settings(max_examples=40)
@given(pairs())
def test_a_mask_against_itself_is_perfect_by_either_rule(pair):
    ref = pair[1]
    for iou in (None, 0.1, 1.0):
        seen = detect(ref, ref, iou=iou)
        assert seen.lesions.detected.all() and seen.finds.true.all()
        assert (seen.lesions.dice == 1).all() and not seen.lesions.shared.any()


@settings(max_examples=40)
@given(pairs(), st.sampled_from([0.05, 0.1, 0.5, 0.9]))
def test_one_to_one_never_finds_more_than_touching_and_uses_nothing_twice(pair, iou):
    pred, ref = pair
    loose, strict = detect(pred, ref), detect(pred, ref, iou=iou)
    assert (strict.lesions.detected <= loose.lesions.detected).all()
    assert (strict.lesions.finds <= 1).all() and (strict.finds.lesions <= 1).all()
    assert strict.lesions.detected.sum() == strict.finds.true.sum()


def test_one_to_one_takes_the_best_pairs_not_the_first():
    shared = np.zeros((3, 3), np.int64)
    shared[1:, 1:] = [[40, 30], [35, 0]]
    shared[1:, 0], shared[0, 1:] = [0, 5], [0, 10]
    # alone, the first pair is the best (40 of 105), but it would leave the other two without a partner
    assert matches(shared, 0.2).tolist() == [[False, True], [True, False]]


def test_pieces_touch_at_corners_as_in_scipy():
    random = np.random.default_rng(0)
    mask = random.random((9, 20, 20)) < 0.12
    labels, count = components(mask)
    judge, judged = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count == judged and (labels == judge).all()


ORIENTATIONS = [
    ((0, 1, 2), ()),
    ((0, 1, 2), (0,)),
    ((0, 1, 2), (1, 2)),
    ((2, 0, 1), (0, 2)),
    ((1, 2, 0), (1,)),
]


@pytest.fixture(scope="module")
def chest():
    findings = (
        Finding("tumour", "left", 32, (0.5, 0.4, 0.7)),
        Finding("tumour", "right", 28, (0.05, 0.7, 0.4)),
    )
    phantom = draw_phantom(3, size=112, slices=44, findings=findings)
    ref = phantom.mask("tumour")
    pred = np.roll(ref, 1, axis=1) & (np.arange(112) > 20)
    return phantom, pred, ref


def described(chest, order=(0, 1, 2), flips=()):
    phantom, pred, ref = chest
    lungs = phantom.mask("lung_left", "lung_right")
    arrays_ = [np.ascontiguousarray(reordered(a, order, flips)) for a in (pred, ref, phantom.hu, lungs)]
    affine = reordered_affine(phantom.affine, order, flips, ref.shape)
    return detect(*arrays_[:2], affine=affine, hu=arrays_[2], lungs=arrays_[3]).lesions


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS[1:])
def test_a_lesion_is_the_same_in_any_orientation(chest, order, flips):
    straight, turned = (
        d.sort_values("voxels", ignore_index=True) for d in (described(chest), described(chest, order, flips))
    )
    along = order.index(0)  # the array's own axis from feet to head
    if along in flips:
        n = len(chest[2])
        first, last = n - 1 - straight.slice_last, n - 1 - straight.slice_first
        straight = straight.assign(slice_first=first, slice_last=last)
    pd.testing.assert_frame_equal(straight, turned)


def test_the_table_says_what_was_drawn(chest):
    phantom, _, ref = chest
    table = described(chest)
    labels, _ = components(ref)
    assert sorted(table.side) == ["left", "right"] and len(table) == 2
    for k, row in enumerate(table.itertuples(), 1):
        z = ndimage.center_of_mass(labels == k)[0]
        assert row.slice_first <= z <= row.slice_last
        want = phantom.drawn["findings"][0 if row.side == "left" else 1]["size_mm"]
        assert want < row.diameter_mm < 2 * want  # tumours are drawn lobed
        assert row.contrast_hu > 400
    wall = table.set_index("side").wall
    assert wall["right"] > 0.1 and wall["left"] < 0.05


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 0.8, 0.8), (1.5, 0.6, 1.1)])
def test_a_ball_has_its_diameter_and_volume(spacing):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = [*spacing, 1]
    shape = tuple(int(50 / s) for s in spacing)
    mask = ball(shape, [n // 2 for n in shape], 12, spacing)
    row = detect(mask, mask, affine=affine).lesions.iloc[0]
    assert row.diameter_mm == pytest.approx(24, abs=max(spacing[1:]) * 1.5)
    assert row.volume_ml == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=0.06)


def test_an_oblique_grid_changes_no_length():
    turn, _ = np.linalg.qr(np.eye(3) + 0.2 * np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.sign(np.diag(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn @ MM[:3, :3]
    mask = ball((20, 30, 30), (10, 12, 20), 7)
    straight, oblique = (detect(mask, mask, affine=a).lesions.iloc[0] for a in (MM, affine))
    assert oblique.diameter_mm == pytest.approx(straight.diameter_mm)
    assert oblique.volume_ml == pytest.approx(straight.volume_ml)


def lung_block():
    "A block of lung 60 mm wide in soft tissue, air-filled, with a vessel through it."
    hu = np.full((40, 80, 80), 40, np.int16)
    hu[5:35, 10:70, 10:70] = -850
    lungs = hu < -500
    hu[:, 40:43, 10:70] = 40
    return hu, lungs & (hu < -500)


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_a_gap_between_the_outlines_is_no_wall_and_neither_is_a_vessel(gap):
    hu, lungs = lung_block()
    lesion = ball(hu.shape, (20, 34, 40), 6)  # a vessel runs past it
    lungs &= ~ball(hu.shape, (20, 34, 40), 6 + gap)
    assert detect(lesion, lesion, affine=MM, lungs=lungs).lesions.wall[0] == 0


@pytest.mark.parametrize("inside", [True, False])
def test_a_lesion_on_the_pleura_touches_the_wall_whether_the_lungs_hold_it_or_not(inside):
    hu, lungs = lung_block()
    lesion = ball(hu.shape, (20, 13, 40), 6) & lungs
    table = detect(lesion, lesion, affine=MM, lungs=lungs if inside else lungs & ~lesion).lesions
    assert 0.02 < table.wall[0] < 0.5


def test_contrast_is_against_lung_alone_where_lungs_are_known():
    hu, lungs = lung_block()
    lesion = ball(hu.shape, (20, 16, 40), 5)
    hu[lesion] = -50
    known = detect(lesion, lesion, affine=MM, hu=hu, lungs=lungs).lesions.contrast_hu[0]
    assert known == pytest.approx(800)
    assert detect(lesion, lesion, affine=MM, hu=hu).lesions.contrast_hu[0] < known - 50
    outside = ball(hu.shape, (20, 2, 40), 1)  # no lung within reach
    assert np.isnan(detect(outside, outside, affine=MM, hu=hu, lungs=lungs).lesions.contrast_hu[0])


def test_thirds_and_sides_follow_the_lungs_and_not_the_image():
    lungs = np.zeros((60, 40, 100), bool)
    lungs[30:60, 5:35, 50:70] = lungs[30:60, 5:35, 75:95] = True  # all of it in the image's left half
    ref = np.zeros_like(lungs)
    for z, x in ((33, 55), (45, 60), (57, 90)):
        ref[z, 20, x] = True
    table = detect(ref, ref, affine=MM, lungs=lungs).lesions
    assert table.third.tolist() == ["lower", "middle", "upper"]
    assert table.side.tolist() == ["right", "right", "left"]
    assert set(detect(ref, ref, affine=MM).lesions.side) == {"left"}
    empty = detect(ref, ref, affine=MM, lungs=np.zeros_like(lungs)).lesions
    assert set(empty.third) == {""} and (empty.wall == 1).all()


def test_what_is_unknown_stays_open_and_detection_does_not_need_it(chest):
    phantom, pred, ref = chest
    table = detect(pred, ref, hu=phantom.hu, lungs=phantom.mask("lung_left")).lesions
    assert table[["volume_ml", "diameter_mm", "wall", "contrast_hu"]].isna().all(axis=None)
    assert set(table.side) == set(table.third) == {""}
    assert table.detected.tolist() == described(chest).detected.tolist()


def test_a_single_lesion_has_the_dice_of_the_masks():
    ref, pred = ball((20, 30, 30), (10, 15, 15), 7), ball((20, 30, 30), (10, 16, 17), 6)
    assert detect(pred, ref).lesions.dice[0] == pytest.approx(dice(pred, ref))


def test_a_flood_finds_all_and_is_called_shared():
    ref = np.zeros((4, 20, 20), bool)
    ref[1, 2:5, 2:5] = ref[1, 12:15, 12:15] = True
    seen = detect(np.ones_like(ref), ref)
    assert seen.lesions.detected.all() and seen.lesions.shared.all() and seen.finds.lesions.tolist() == [2]
    assert (seen.lesions.dice < 0.02).all()
    assert not detect(np.ones_like(ref), ref, iou=0.1).lesions.detected.any()


def test_scans_without_lesions_count_for_false_positives_alone():
    ref = ball((12, 20, 20), (6, 10, 10), 4)
    healthy, sick = detect(ref, ~ref & False), detect(ref, ref)
    lesions, finds = (pd.concat([getattr(d, n) for d in (healthy, sick)]) for n in ("lesions", "finds"))
    scores = detection_scores(lesions, finds, scans=3)  # the third has neither
    assert (scores["sensitivity"], scores["precision"]) == (1.0, 0.5)
    assert scores["false_positives_per_scan"] == pytest.approx(1 / 3)
    assert lesions.detected.dtype == bool and finds.true.dtype == bool


def test_empty_tables_keep_their_columns_and_types():
    nothing = np.zeros((3, 8, 8), bool)
    something = ball((3, 8, 8), (1, 4, 4), 2)
    empty = detect(nothing, nothing, affine=MM, probs=np.zeros(nothing.shape))
    full = detect(something, something, affine=MM, probs=np.ones(nothing.shape))
    for name in ("lesions", "finds"):
        assert list(getattr(empty, name)) == list(getattr(full, name))
        assert len(getattr(empty, name)) == 0
    assert np.isnan(froc_score(froc(empty.lesions, empty.finds, scans=1)))


def test_specks_are_dropped_on_both_sides_and_what_touches_only_them_does_not_count():
    ref, pred = np.zeros((2, 30, 30), bool), np.zeros((2, 30, 30), bool)
    ref[0, 2:8, 2:8] = ref[0, 20, 20] = True
    pred[0, 2:8, 2:8] = pred[0, 18:23, 18:23] = pred[1, 28, 2] = True
    seen = detect(pred, ref, affine=MM, least_ml=0.01)
    assert (len(seen.lesions), len(seen.finds), seen.dropped) == (1, 1, 1)
    assert len(detect(pred, ref, affine=MM).finds) == 3
    assert detect(pred, ref & (np.arange(30) < 10), affine=MM, least_ml=0.01).scores()["false_positives"] == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"pred": np.zeros((2, 4, 5), bool)}, ShapeMismatch, r"\(2, 4, 5\) and \(2, 4, 4\)"),
        ({"pred": np.zeros((2, 4, 4), np.uint8)}, MaskError, "prediction: uint8 of shape"),
        ({"ref": np.zeros((4, 4), bool)}, MaskError, "reference: bool of shape"),
        ({"hu": np.zeros((2, 4, 5), np.int16)}, InputError, "hu: shape"),
        ({"lungs": np.zeros((3, 4, 4), bool)}, InputError, "lungs: shape"),
        ({"probs": np.full((2, 4, 4), np.nan)}, InputError, "probs: from nan to nan"),
        ({"probs": np.full((2, 4, 4), 1.5)}, InputError, "from 1.5 to 1.5, expected numbers from 0 to 1"),
        ({"least_ml": 0.1}, GeometryError, "the size of a voxel is unknown"),
        ({"iou": 0.0}, InputError, "iou: 0.0, expected more than 0"),
        ({"iou": float("nan")}, InputError, "iou: nan"),
    ],
)
def test_bad_input_is_named(change, error, words):
    mask = np.zeros((2, 4, 4), bool)
    mask[0, 0, 0] = True
    with pytest.raises(error, match=words):
        detect(**({"pred": mask, "ref": mask} | change))


def test_a_part_without_scans_is_no_number():
    seen = detect(*[np.zeros((2, 4, 4), bool)] * 2, probs=np.zeros((2, 4, 4)))
    for score in (detection_scores, froc):
        with pytest.raises(CohortError, match="at least one scan"):
            score(seen.lesions, seen.finds, scans=0)


def test_froc_falls_with_the_threshold_and_ends_at_the_scores_of_the_mask():
    random = np.random.default_rng(1)
    parts = []
    for _ in range(4):
        ref, pred = (ndimage.gaussian_filter(random.normal(size=(10, 30, 30)), 1.5) > 0.17 for _ in range(2))
        pred |= ref & (random.random() < 0.5)
        parts.append(detect(pred, ref, probs=random.random(ref.shape)))
    lesions, finds = (pd.concat([getattr(d, n) for d in parts]) for n in ("lesions", "finds"))
    curve, scores = froc(lesions, finds, scans=4), detection_scores(lesions, finds, scans=4)
    assert (np.diff(curve.sensitivity) >= 0).all() and (np.diff(curve.false_positives_per_scan) >= 0).all()
    assert curve.sensitivity.iloc[0] == curve.false_positives_per_scan.iloc[0] == 0
    assert curve.sensitivity.iloc[-1] == scores["sensitivity"] > 0
    assert curve.false_positives_per_scan.iloc[-1] == scores["false_positives_per_scan"] > 0
    assert 0 <= froc_score(curve) <= curve.sensitivity.max()


def test_strata_share_the_lesions_out():
    lesions = pd.DataFrame(
        {
            "detected": [True, False, True, True],
            "dice": [0.5, 0, 0.7, 0.9],
            "diameter_mm": [8.0, 9, 25, np.nan],
        }
    )
    table = sensitivity_by(lesions, size_class(lesions.diameter_mm)).set_index("class")
    assert table.lesions.to_dict() == {"up to 10 mm": 2, "up to 30 mm": 1, "unknown": 1}
    assert table.sensitivity["up to 10 mm"] == 0.5 and table.dice["up to 10 mm"] == 0.5


def test_overlaps_count_every_voxel_once():
    random = np.random.default_rng(0)
    ref, pred = (components(random.random((4, 20, 20)) < 0.1)[0] for _ in range(2))
    shared = overlaps(ref, pred)
    assert shared[0, 0] == 0 and shared.sum() == np.count_nonzero(ref | pred)
    assert (shared.sum(1)[1:] == np.bincount(ref.ravel())[1:]).all()
