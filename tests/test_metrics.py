"""Properties of the scores: what must hold for every pair of masks, not only for those a chapter draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lungseg.metrics import (
    SCORES,
    Counts,
    count,
    dice,
    mean_dice_by_convention,
    patient_scores,
    slice_scores,
)


@st.composite
def mask_pairs(draw):
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    # thresholds 0 and 1 make empty and full slices frequent
    masks = [draw(arrays(float, shape, elements=st.floats(0, 0.99))) for _ in range(2)]
    cuts = [
        draw(arrays(float, (shape[0], 1, 1), elements=st.sampled_from([0.0, 0.5, 1.0]))) for _ in range(2)
    ]
    return masks[0] >= cuts[0], masks[1] >= cuts[1]


@given(mask_pairs())
def test_overlap_is_symmetric_and_swaps_precision_with_recall(pair):
    there, back = count(*pair), count(*pair[::-1])
    np.testing.assert_equal(there.dice(), back.dice())
    np.testing.assert_equal(there.iou(), back.iou())
    np.testing.assert_equal(there.precision(), back.recall())


@given(mask_pairs())
def test_slices_pool_to_the_patient(pair):
    whole, pooled = count(*pair), count(*pair, per_slice=True).pooled()
    assert [whole.tp, whole.fp, whole.fn, whole.tn] == [pooled.tp, pooled.fp, pooled.fn, pooled.tn]
    assert whole.tp + whole.fp + whole.fn + whole.tn == pair[0].size


@given(mask_pairs())
def test_overlap_is_nan_only_if_both_masks_are_empty_and_zero_if_one_is(pair):
    pred, ref = pair
    counts = count(pred, ref, per_slice=True)
    some_pred, some_ref = pred.any(axis=(1, 2)), ref.any(axis=(1, 2))
    for score in (Counts.dice, Counts.iou, Counts.precision, Counts.recall):
        np.testing.assert_array_equal(np.isnan(score(counts)), ~some_pred & ~some_ref)
        assert (score(counts)[some_pred != some_ref] == 0).all()


@given(mask_pairs())
def test_scores_lie_between_0_and_1_and_dice_is_the_harmonic_mean_of_precision_and_recall(pair):
    table = slice_scores(*pair)
    values = table[list(SCORES)].to_numpy()
    assert ((values >= 0) & (values <= 1) | np.isnan(values)).all()
    p, r = table.precision, table.recall
    harmonic = (2 * p * r / (p + r)).where(p + r > 0, p)
    np.testing.assert_allclose(table.dice, harmonic)


@given(mask_pairs())
def test_outcomes_of_a_patients_slices_add_up(pair):
    scores = patient_scores(*pair)
    overlap = (slice_scores(*pair).outcome == "overlap").sum()
    counted = scores["nan_slices"] + scores["false_positive_slices"] + scores["missed_slices"]
    assert counted + overlap == scores["slices"] == len(pair[0])


@given(mask_pairs())
def test_a_mask_is_perfect_against_itself(pair):
    ref = pair[1]
    assert np.isnan(dice(ref, ref)) if not ref.any() else dice(ref, ref) == 1


def test_a_lung_that_is_never_there_gives_no_number_rather_than_a_good_one():
    nothing = np.zeros((3, 4, 4), bool)
    by_convention = mean_dice_by_convention(count(nothing, nothing, per_slice=True))
    assert by_convention["1 by definition where both are empty"] == 1
    assert np.isnan(by_convention["left out where both are empty"])
    assert np.isnan(by_convention["pooled over all voxels"])


def test_volume_follows_the_affine_even_when_it_is_oblique_or_flipped():
    mask = np.ones((2, 3, 4), bool)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([3.0, -0.5, 0.5])
    assert patient_scores(mask, mask, affine=affine)["ref_ml"] == pytest.approx(24 * 0.75 / 1000)
