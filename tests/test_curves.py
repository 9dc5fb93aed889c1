"""Curves from tallies: as exact as every voxel, whatever the probabilities, and never a silent number."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lungseg.core import CohortError, InputError, MaskError
from lungseg.curves import (
    best_threshold,
    brier,
    calibration,
    calibration_error,
    counts_at,
    load_tally,
    pooled,
    precision_recall,
    probability_scores,
    roc,
    save_tally,
    tally,
)
from lungseg.metrics import ShapeMismatch, count


def plain_areas(probs: np.ndarray, ref: np.ndarray) -> tuple[float, float]:
    "Average precision in steps, and the share of ordered pairs: every voxel sorted, ties together."
    values, group = np.unique(-probs.astype(np.float64), return_inverse=True)
    tp, n = (np.cumsum(np.bincount(group, w, len(values))) for w in (ref, np.ones(len(ref))))
    recall = np.r_[0, tp / tp[-1]]
    fp = n - tp
    return float(np.diff(recall) @ (tp / n)), float(np.trapezoid(recall, np.r_[0, fp / fp[-1]]))


def plain_calibration_error(probs: np.ndarray, ref: np.ndarray, bands: int = 16) -> float:
    p = probs.astype(np.float64)
    band = np.minimum((p * bands).astype(int), bands - 1)
    on_edge = (p * bands == np.floor(p * bands)) & (p > 0.5) & (p < 1)
    band = band - on_edge
    n, lung, total = (np.bincount(band, w, bands) for w in (np.ones(len(p)), ref, p))
    held = n > 0
    return float(np.abs(lung - total)[held].sum() / n.sum())


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def network_like(kind: str, share: float, n: int = 60_000, seed: int = 0):
    random = np.random.default_rng(seed)
    ref = random.random(n) < share
    logits = random.normal(np.where(ref, 2.0, -3.0), 2.0)
    sure = logistic(logits)
    made = {
        "plain": sure,
        "too sure": logistic(6 * logits),
        "saturated": np.clip(logistic(20 * logits), 1e-37, 1),
        "near 0": 1e-6 * sure,
        "near 1": 1 - 1e-6 * (1 - sure),
        "near either": np.where(random.random(n) < 0.5, 1e-6 * sure, 1 - 1e-6 * (1 - sure)),
        "very near 0": 1e-30 * sure,
        "timid": 0.5 + 0.02 * (sure - 0.5),
        "tied": np.round(sure, 2),
        "8 bits": np.round(sure * 255) / 255,
        "constant": np.full(n, 0.7),
        "yes or no": (sure > 0.4).astype(float),
        "without order": random.random(n),
        "reversed": 1 - sure,
    }
    return made[kind], ref


KINDS = (
    "plain, too sure, saturated, near 0, near 1, near either, very near 0, timid, tied, 8 bits, constant, "
    "yes or no, without order, reversed"
).split(", ")


@pytest.mark.parametrize("share", [0.5, 0.1, 0.002])
@pytest.mark.parametrize("kind", KINDS)
def test_areas_are_those_of_every_voxel_to_a_ten_thousandth(kind, share):
    probs, ref = network_like(kind, share)
    # 120 positives, all of them in one halving: a single one that shares its bin can be seen
    tolerance = 1e-3 if share < 0.01 and kind in ("near 0", "very near 0", "timid") else 1e-4
    for dtype in (np.float64, np.float32, np.float16):
        cast = probs.astype(dtype)
        counted = tally(cast, ref, part="test")
        for curve, truth in zip(
            (precision_recall(counted), roc(counted)), plain_areas(cast, ref), strict=True
        ):
            assert abs(curve.area - truth) < tolerance
            assert abs(curve.area - truth) <= curve.area_error + 1e-12
        assert brier(counted) == pytest.approx(np.mean((cast.astype(np.float64) - ref) ** 2), rel=1e-12)
        assert calibration_error(calibration(counted)) == pytest.approx(
            plain_calibration_error(cast, ref), abs=1e-4
        )


def test_half_precision_is_exact_and_known_to_be():
    probs, ref = network_like("plain", 0.1)
    halves = tally(probs.astype(np.float16), ref, part="test")
    truth = plain_areas(probs.astype(np.float16), ref)
    assert (precision_recall(halves).area, roc(halves).area) == pytest.approx(truth, abs=1e-12)
    assert precision_recall(halves).area_error == pytest.approx(0, abs=1e-12) and roc(halves).area_error == 0


PROBABILITIES = st.floats(0, 1, width=32, allow_subnormal=False)


@given(
    st.lists(st.tuples(PROBABILITIES, st.booleans()), min_size=1, max_size=60),
    st.integers(0, 60),
)
def test_tallies_of_pieces_add_up_to_the_tally_of_all(voxels, cut):
    probs, ref = np.array([p for p, _ in voxels], np.float32), np.array([r for _, r in voxels])
    pieces = [(probs[s], ref[s]) for s in (slice(0, cut), slice(cut, None)) if len(probs[s])]
    whole, added = tally(probs, ref, part="a"), pooled(tally(p, r, part="a") for p, r in pieces)
    for name in ("bins", "positive", "negative", "value"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(added, name))
    assert added.squared == pytest.approx(whole.squared)
    assert whole.voxels == len(voxels) and whole.positives == ref.sum()


@given(st.lists(st.tuples(PROBABILITIES, st.booleans()), min_size=1, max_size=40))
def test_the_true_areas_lie_within_the_bound_that_is_given(voxels):
    probs, ref = np.array([p for p, _ in voxels], np.float32), np.array([r for _, r in voxels])
    counted = tally(probs, ref, part="test")
    pr, r = precision_recall(counted), roc(counted)
    assert np.isnan(pr.area) == (not ref.any()) and bool(pr.note) == (not ref.any())
    assert np.isnan(r.area) == (ref.all() or not ref.any()) == bool(r.note)
    if not np.isnan(r.area):
        average_precision, area = plain_areas(probs, ref)
        assert abs(pr.area - average_precision) <= pr.area_error + 1e-12
        assert abs(r.area - area) <= r.area_error + 1e-12


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1e-7, 0.1, 0.25, 0.499, 0.5, 0.501, 0.75, 0.9999, 1]), st.booleans()),
        min_size=2,
        max_size=40,
    ),
    st.sampled_from(["dice", "youden"]),
)
def test_the_best_threshold_is_the_best_and_does_what_it_says(voxels, score):
    probs, ref = np.array([p for p, _ in voxels], np.float32), np.array([r for _, r in voxels])
    if ref.all() or not ref.any():
        return
    chosen = best_threshold(tally(probs, ref, part="validation"), score)

    def value(t: float) -> float:
        counts = count(probs >= t, ref)
        return counts.dice() if score == "dice" else counts.recall() + counts.specificity() - 1

    assert value(chosen.value) == pytest.approx(chosen.score)
    assert chosen.score == pytest.approx(max(value(t) for t in np.unique(probs)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_threshold_of_a_curve_gives_the_masks_that_it_counted(dtype):
    probs, ref = network_like("near either", 0.3, n=3000)
    probs = np.where(np.arange(3000) % 2, probs, np.random.default_rng(1).random(3000)).astype(dtype)
    counted = tally(probs, ref, part="test")
    curve = roc(counted)
    for i in range(1, len(curve.x), max(1, len(curve.x) // 150)):
        mask, counts = probs >= curve.threshold[i], counts_at(counted, curve.threshold[i])
        off = np.abs([counts.tp - np.count_nonzero(mask & ref), counts.fp - np.count_nonzero(mask & ~ref)])
        assert off.sum() <= (1 if dtype == np.float64 else 0)  # distances are kept as float32
        assert curve.y[i] == counts.recall()


def test_a_threshold_is_refused_where_it_would_be_judged():
    counted = tally(np.array([0.2, 0.8]), np.array([False, True]), part="test")
    with pytest.raises(InputError, match="part 'test', expected 'validation'"):
        best_threshold(counted)
    with pytest.raises(CohortError, match="tallies of test and validation: expected one part"):
        counted + tally(np.array([0.2]), np.array([False]), part="validation")
    with pytest.raises(InputError, match="'f2', expected dice or youden"):
        best_threshold(tally(np.array([0.2, 0.8]), np.array([False, True]), part="validation"), "f2")
    for ref in ([False, False], [True, True]):
        with pytest.raises(InputError, match="in validation, so no threshold is better"):
            best_threshold(tally(np.array([0.2, 0.8]), np.array(ref), part="validation"), "youden")


@pytest.mark.parametrize(
    ("probs", "ref", "error", "words"),
    [
        ([0.1, np.nan], [0, 1], InputError, "NaN in at least 1"),
        ([0.1, np.inf], [0, 1], InputError, "from 0.1 to inf"),
        ([-0.01, 0.3], [0, 1], InputError, "from -0.01 to 0.3"),
        ([0.1, 1.01], [0, 1], InputError, "from 0.1 to 1.01"),
        ([0.1, 0.2], [0, 2], MaskError, "from 0 to 2, expected a mask of 0 and 1"),
        ([0.1, 0.2], [0.0, 0.5], MaskError, "float64 from 0.0 to 0.5"),
        ([0.1, 0.2], [0, 1, 1], ShapeMismatch, r"\(2,\) and \(3,\)"),
        ([], [], InputError, "no voxel"),
    ],
)
def test_what_cannot_be_scored_is_named(probs, ref, error, words):
    with pytest.raises(error, match=words):
        tally(np.array(probs), np.array(ref), part="test")


def test_bad_voxels_are_found_wherever_they_are():
    probs, ref = np.zeros(200_000, np.float32), np.zeros(200_000, bool)
    probs[-1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        tally(probs, ref, part="test")


def test_an_empty_part_is_no_number():
    with pytest.raises(CohortError, match="at least one case"):
        pooled([])


def test_scores_say_what_is_missing():
    row = probability_scores(tally(np.array([0.1, 0.2]), np.array([0, 0]), part="test"))
    assert np.isnan([row["pr_area"], row["roc_area"], row["brier_skill"]]).all()
    assert row["note"] == "no voxel of the reference" and row["brier"] == pytest.approx(0.025)


def test_minus_zero_and_any_layout_of_memory_count_as_they_should():
    probs = np.array([[-0.0, 0.5, 1.0], [0.25, 0.75, 0.1]], np.float32)
    ref = probs >= 0.5
    straight = tally(probs, ref, part="test")
    for p, r in ((probs.T, ref.T), (probs[::-1], ref[::-1]), (np.asfortranarray(probs), ref)):
        np.testing.assert_array_equal(tally(p, r, part="test").bins, straight.bins)
    assert roc(straight).area == 1 and len(straight.bins) == 6


def test_a_large_volume_is_counted_as_a_small_one_is():
    "Beyond a million voxels another way of counting is used."
    random = np.random.default_rng(2)
    ref = random.random((20, 256, 256)) < 0.1
    probs = logistic(random.normal(np.where(ref, 3.0, -4.0), 2)).astype(np.float32)
    large = tally(probs, ref, part="test")
    small = pooled(tally(p, r, part="test") for p, r in zip(probs, ref, strict=True))
    for name in ("bins", "positive", "negative", "value"):
        np.testing.assert_array_equal(getattr(large, name), getattr(small, name))


def test_a_tally_comes_back_from_disk_and_a_broken_one_does_not(tmp_path):
    probs, ref = network_like("plain", 0.1, n=5000)
    counted = tally(probs, ref, part="validation")
    path = save_tally(counted, tmp_path / "case.npz")
    again = load_tally(path)
    assert vars(again).keys() == vars(counted).keys() and again.part == "validation"
    assert probability_scores(again) == probability_scores(counted)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"case\.npz: expected a tally"):
        load_tally(path)
    with pytest.raises(InputError, match=r"none\.npz: expected a tally, found no file"):
        load_tally(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bins": np.array([5, 3, 9])}, "do not ascend"),
        ({"bins": np.array([1, 2, 10**9])}, "do not ascend"),
        ({"positive": np.array([1, 0])}, "four equally long rows"),
        ({"negative": np.array([1, -1, 3])}, "negative"),
        ({"squared": 99.0}, "impossible"),
    ],
)
def test_numbers_that_are_no_tally_are_refused(tmp_path, change, words):
    good = {"bins": np.array([1, 2, 3]), "positive": np.array([1, 0, 2]), "negative": np.array([0, 1, 2])}
    good["value"] = np.array([-1, 7, 0], np.int32)
    bad = SimpleNamespace(**({"part": "test", "squared": 1.0, "digits": 24} | good | change))
    path = save_tally.__wrapped__(bad, tmp_path / "case.npz")
    with pytest.raises(InputError, match=words):
        load_tally(path)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 400))
def test_a_curve_to_draw_keeps_its_ends_and_its_shape(steps):
    probs, ref = network_like("plain", 0.2, n=1000)
    curve = roc(tally(probs, ref, part="test"))
    thin = curve.thinned(steps)
    assert (thin.x[0], thin.y[0], thin.x[-1], thin.y[-1]) == (0, 0, 1, 1)
    assert thin.area == curve.area and len(thin.x) <= 4 * steps + 4
    gaps = np.maximum(*(np.abs(np.subtract.outer(a, b)) for a, b in ((curve.x, thin.x), (curve.y, thin.y))))
    assert gaps.min(axis=1).max() <= 1 / steps


def test_areas_of_a_cohort_of_thousands_of_millions_of_voxels_do_not_overflow():
    "Three thousand million lung voxels that are all surely lung, and as many others that surely are not."
    one = tally(np.array([1.0, 0.0], np.float32), np.array([True, False]), part="test")
    many = replace(one, positive=one.positive * 10**10, negative=one.negative * 10**10)
    assert precision_recall(many).area == roc(many).area == 1.0
