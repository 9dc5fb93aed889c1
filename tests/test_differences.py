"What a comparison of two methods on the same patients must keep true, whatever the scores are."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from lungseg.core import CohortError
from lungseg.differences import difference, differences, holm, least_p, sign_flip

scores = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=8)


def brute_force(d: np.ndarray) -> float:
    "All changes of sign, one after the other."
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(d))).reshape(len(d), -1).T
    return float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12))


@given(scores)
def test_the_exact_test_goes_through_all_changes_of_sign(d):
    d = np.array(d)
    assert sign_flip(d) == pytest.approx(brute_force(d))
    assert sign_flip(-d) == pytest.approx(sign_flip(d))
    assert not d.any() or sign_flip(d) >= least_p(len(d)) - 1e-12


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_corrected_p_values_keep_their_order_and_are_no_smaller(p):
    corrected = holm(p)
    assert (corrected >= np.array(p) - 1e-15).all() and (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()
    assert (corrected >= false_discovery_control(p) - 1e-9).all()  # the milder promise corrects less
    assert min(corrected) == pytest.approx(min(1, min(p) * len(p)))


@given(st.permutations(range(6)), st.integers(0, 5))
def test_the_order_of_rows_does_not_matter(order, seed):
    random = np.random.default_rng(seed)
    first = pd.DataFrame({"case": list("abcdef"), "patient": [0, 0, 1, 2, 3, 4], "dice": random.random(6)})
    second = first.assign(dice=random.random(6))
    one, other = difference(first, second), difference(first.iloc[order], second)
    assert other.mean == pytest.approx(one.mean) and other.p == pytest.approx(one.p)
    assert (other.patients, other.higher, other.lower) == (5, one.higher, one.lower)
    back = difference(second, first)
    assert back.mean == pytest.approx(-one.mean) and (back.higher, back.lower) == (one.lower, one.higher)


def test_one_patient_and_no_common_patient_are_named():
    one = pd.DataFrame({"case": ["a"], "dice": [0.9]})
    alone = difference(one, one.assign(dice=0.8))
    assert (alone.p, alone.patients) == (1.0, 1) and np.isnan(alone.low)
    assert "With 1 patient no difference" in alone.warning
    with pytest.raises(CohortError, match="a, b: in one of the two tables only"):
        difference(one, one.assign(case="b"))
    empty = difference(one.assign(dice=np.nan), one)
    assert empty.patients == 0 and empty.unscored == 1 and np.isnan(empty.p)


def test_a_method_is_not_compared_with_itself():
    table = pd.DataFrame({"case": ["a", "b"], "dice": [0.9, 0.8]})
    assert differences({"only": table}, "only").empty
