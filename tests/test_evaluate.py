"""What an evaluation keeps true when it is interrupted, moved, asked twice, or given a case that fails."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lungseg.evaluate as under_test
from lungseg.cohort import build_store, find_cases
from lungseg.core import CohortError, InputError, MaskError, ModelError, read_json, write_json
from lungseg.evaluate import (
    MASK_MAKERS,
    METHODS,
    Evaluation,
    evaluate,
    load_evaluation,
    lung_position,
    markdown_table,
    patient_interval,
    pick,
    save_predictions,
    tally_file,
    weights_of,
    write_evaluation,
)
from lungseg.recipe import Recipe
from lungseg.runs import save_weights
from lungseg.train import make_net

SPLIT = {"train": ["Case_000"], "validation": [], "test": ["Case_001", "Case_002"]}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    "Three small cases, stored once: two boxes of air in a block of tissue, one growing with the case."
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "npz").mkdir()
    for i in range(3):
        mask = np.zeros((10, 32, 32), bool)
        mask[2:9, 8:22, 5:13] = mask[3 : 6 + i, 8:24, 19:27] = True
        hu = np.full(mask.shape, -1000, np.int16)
        hu[:, 3:29, 2:30] = 40
        hu[mask] = -850
        np.savez(folder / "npz" / f"Case_{i:03d}.npz", hu=hu, mask=mask.astype(np.uint8))
    build_store(find_cases(folder / "npz"), folder / "store")
    return folder / "store"


@pytest.fixture
def run(stored, tmp_path, monkeypatch):
    "A run beside its store, whose network thresholds: what is tested here is everything around it."
    shutil.copytree(stored, tmp_path / "store")
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(b"weights")
    write_json(run / "split.json", SPLIT)
    monkeypatch.setattr(under_test, "_network", lambda _: lambda volume: np.asarray(volume.array) < -840)
    return run


def counting(monkeypatch, then=lambda calls, mask: mask):
    calls = []

    def network(_run):
        def segment(volume):
            calls.append(1)
            return then(len(calls), np.asarray(volume.array) < -840)

        return segment

    monkeypatch.setattr(under_test, "_network", network)
    return calls


def test_an_interrupted_evaluation_goes_on_where_it_stopped(run, monkeypatch):
    def stop_at_third(calls, mask):
        if calls == 3:
            raise KeyboardInterrupt
        return mask

    counting(monkeypatch, stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, run.parent / "store")
    assert not (run / "evaluation" / "patients.csv").exists()
    calls = counting(monkeypatch)
    result = evaluate(run, run.parent / "store")
    assert len(calls) == 1
    assert set(result.patients.case) == {"Case_000", "Case_001", "Case_002"}


def test_nothing_kept_is_used_for_another_model(run, monkeypatch):
    evaluate(run, run.parent / "store")
    (run / "model.safetensors").write_bytes(b"other weights")
    calls = counting(monkeypatch)
    evaluate(run, run.parent / "store")
    assert len(calls) == 3


def probabilities(volume):
    probs = np.clip((-800 - np.asarray(volume.array)) / 100 + 0.5, 0.1, 0.9).astype(np.float32)
    return probs > 0.5, probs


def test_probabilities_are_counted_pooled_and_made_again_when_their_file_is_damaged(run, monkeypatch):
    calls = []
    monkeypatch.setattr(under_test, "_network", lambda _: lambda v: calls.append(1) or probabilities(v))
    result = evaluate(run, run.parent / "store")
    tally = result.tally("test")
    masks = [np.asarray(result.case(name).mask) for name in SPLIT["test"]]
    assert (tally.positives, tally.voxels) == (sum(m.sum() for m in masks), sum(m.size for m in masks))
    scores = read_json(run / "evaluation" / "summary.json")["probabilities"]
    assert [row["part"] for row in scores["parts"]] == ["train", "test"] and scores["threshold"] is None
    evaluate(run, run.parent / "store")
    assert len(calls) == 3
    file = tally_file(run / "evaluation", "Case_001")
    file.write_bytes(file.read_bytes()[:50])
    again = evaluate(run, run.parent / "store")
    assert len(calls) == 4 and again.tally("test").squared == pytest.approx(tally.squared)


def test_another_reference_is_counted_anew(run, monkeypatch):
    monkeypatch.setattr(under_test, "_network", lambda _: probabilities)
    before = evaluate(run, run.parent / "store").tally("test").positives
    npz = run.parent / "npz"
    npz.mkdir()
    for name in ("Case_000", "Case_001", "Case_002"):
        case = under_test.Store(run.parent / "store").case(name)
        smaller = np.asarray(case.mask) & (np.arange(32) > 5)
        np.savez(npz / f"{name}.npz", hu=case.hu, mask=smaller.astype(np.uint8))
    build_store(find_cases(npz), run.parent / "other")
    after = evaluate(run, run.parent / "other").tally("test").positives
    assert after < before


def test_a_refused_case_has_no_curve_and_is_still_scored(run, monkeypatch):
    def network(volume):
        if volume.array[3:9, 8:24, 19:27].mean() < -500:  # the case whose second box is largest
            raise MaskError("too much air")
        return probabilities(volume)

    monkeypatch.setattr(under_test, "_network", lambda _: probabilities)
    assert evaluate(run, run.parent / "store").tally("test").voxels  # by other weights, which refuse nothing
    (run / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(under_test, "_network", lambda _: network)
    result = evaluate(run, run.parent / "store")
    assert any("too much air" in held.reason for held in result.held)
    with pytest.raises(InputError, match="expected a tally, found no file"):
        result.tally("test")
    assert result.tally("train").voxels == result.case("Case_000").mask.size
    assert [r["part"] for r in read_json(run / "evaluation" / "summary.json")["probabilities"]["parts"]] == [
        "train"
    ]


@pytest.mark.parametrize("size", [0, 7, 100, 400])
def test_a_network_that_cannot_be_loaded_is_an_error_and_no_empty_mask(stored, tmp_path, size):
    recipe, run = Recipe().but(net={"width": 4, "depth": 1}), tmp_path / "run"
    whole = save_weights(make_net(recipe), recipe, run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[:size])
    write_json(run / "split.json", SPLIT)
    with pytest.raises(ModelError, match=r"^model\.safetensors: expected a safetensors file"):
        evaluate(run, stored)
    assert not (run / "evaluation").exists()


def test_tables_are_not_read_as_those_of_other_weights(run):
    evaluate(run, run.parent / "store")
    (run / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"run: its evaluation is of other weights than model\.safetensors"):
        load_evaluation(run)
    evaluate(run, run.parent / "store")
    assert len(load_evaluation(run).patients) == 6


def test_tables_without_their_weights_or_a_word_about_them_are_read(run):
    evaluate(run, run.parent / "store")
    (run / "model.safetensors").unlink()
    assert len(load_evaluation(run).patients) == 6
    path = run / "evaluation" / "summary.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    assert list(before.pop("weights")) == ["model.safetensors"]
    write_json(path, before)
    (run / "model.safetensors").write_bytes(b"other weights")
    assert len(load_evaluation(run).patients) == 6


def test_a_cross_validation_whose_fold_was_trained_again_is_not_read_as_before(run):
    result, out = evaluate(run, run.parent / "store"), run.parent / "all"
    folds = [shutil.copytree(run, out / f"fold_{k}") for k in (1, 2)]
    write_evaluation(Evaluation(result.slices, result.patients, out, result.store), weights_of(out, folds))
    assert len(load_evaluation(out).patients) == 6
    (folds[1] / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match="all: its evaluation is of other weights than fold_2/model"):
        load_evaluation(out)


@pytest.mark.parametrize("module", MASK_MAKERS)
def test_nothing_kept_is_used_for_another_method(run, monkeypatch, tmp_path, module):
    package = shutil.copytree(Path(under_test.__file__).parent, tmp_path / "package")
    monkeypatch.setattr(under_test, "files", lambda _: package)
    evaluate(run, run.parent / "store")
    with (package / f"{module}.py").open("a") as f:
        f.write("# changed\n")
    calls = counting(monkeypatch)
    evaluate(run, run.parent / "store")
    evaluate(run, run.parent / "store")
    assert len(calls) == 3


def test_every_module_that_decides_a_mask_counts():
    "What they import is one of them, or makes no mask: what training does is in the weights."
    others = {"core", "cohort", "recipe", "runs", "train"}
    for module in MASK_MAKERS:
        source = (Path(under_test.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        imported = set(re.findall(r"from (?:lungseg)?\.(\w+) import", source))
        assert imported <= {*MASK_MAKERS, *others}, module


def test_the_baseline_stands_beside_the_network_everywhere(run):
    result = evaluate(run, run.parent / "store")
    for table in (result.slices, result.patients, load_evaluation(run).patients):
        both = table.groupby("case").method.unique().map(set)
        assert (both == set(METHODS)).all()
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    for kind in ("patients", "slices"):
        for rows in summary[kind].values():
            assert {row["method"] for row in rows} == set(METHODS)
    assert set(summary["methods"]) == set(METHODS) and "nothing learned" in summary["methods"]["threshold"]


def test_a_kept_file_that_was_cut_short_is_made_again(run, monkeypatch):
    evaluate(run, run.parent / "store")
    kept = run / "evaluation" / "predictions" / "Case_001.npz"
    kept.write_bytes(kept.read_bytes()[:100])
    calls = counting(monkeypatch)
    result = evaluate(run, run.parent / "store")
    assert len(calls) == 1
    assert result.prediction("Case_001").any()


def test_a_refusal_counts_as_an_empty_mask_and_is_listed(run, monkeypatch):
    def refuse(_volume):
        raise MaskError("no lungs found")

    monkeypatch.setattr(under_test, "threshold_lungs", refuse)
    for _ in range(2):  # made, then read back
        result = evaluate(run, run.parent / "store")
        baseline = result.patients[result.patients.method == "threshold"]
        assert (baseline.dice == 0).all()
        assert [h.item for h in result.held] == ["Case_000", "Case_001", "Case_002"]
        assert "threshold refused it" in result.held[0].reason
    assert [str(h) for h in load_evaluation(run).held] == [str(h) for h in result.held]


def test_a_case_that_the_split_does_not_name_is_external(run):
    result = evaluate(run, run.parent / "store", split={"test": ["Case_001"]})
    parts = result.patients[result.patients.method == "network"].set_index("case").split
    assert parts.to_dict() == {"Case_000": "external", "Case_001": "test", "Case_002": "external"}


def test_run_and_store_can_be_moved_together(run, tmp_path_factory):
    before = evaluate(run, run.parent / "store")
    elsewhere = tmp_path_factory.mktemp("moved") / "work"
    shutil.move(run.parent, elsewhere)
    after = load_evaluation(elsewhere / "run")
    pd.testing.assert_frame_equal(before.slices, after.slices, check_dtype=False)
    assert after.case("Case_000").hu.shape == (10, 32, 32)
    for name in ("slices.csv", "patients.csv", "summary.json"):
        assert str(Path(elsewhere).parent) not in (elsewhere / "run" / "evaluation" / name).read_text()


def test_volumes_of_arrays_without_a_header_are_not_given_in_ml(run):
    result = evaluate(run, run.parent / "store")
    assert result.patients.ref_ml.isna().all()
    assert result.patients.slice_mm.isna().all()


cohorts = st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 1)), min_size=1, max_size=30)


@given(cohorts, st.integers(1, 5))
def test_an_interval_knows_patients_not_rows(rows, copies):
    table = pd.DataFrame(rows, columns=["case", "dice"])
    once = patient_interval(table, draws=200)
    again = patient_interval(pd.concat([table] * copies).sample(frac=1, random_state=0), draws=200)
    assert once.patients == again.patients == table.case.nunique()
    np.testing.assert_allclose([once.mean, once.low, once.high], [again.mean, again.low, again.high])
    if once.patients >= 3:
        assert table.dice.min() - 1e-12 <= once.low <= once.high <= table.dice.max() + 1e-12
    else:
        assert np.isnan([once.low, once.high]).all() and once.warning


@given(cohorts, st.integers(1, 8))
def test_the_best_and_the_worst_are_the_extremes(rows, n):
    table = pd.DataFrame(rows, columns=["case", "dice"])
    assert pick(table, "best", n).dice.tolist() == sorted(table.dice, reverse=True)[:n]
    assert pick(table, "worst", n).dice.tolist() == sorted(table.dice)[:n]
    low, high = table.dice.quantile([0.25, 0.75])
    if len(table) % 2:  # the median is then one of the values
        assert pick(table, "typical", 1).dice.between(low, high).all()
    assert pick(table, "best", n, per_patient=1).case.is_unique


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_the_base_is_0_and_the_apex_1_whichever_way_slices_are_stored(there):
    ref = np.array(there)[:, None, None] & np.ones((1, 2, 2), bool)
    up, down = lung_position(ref), lung_position(ref[::-1], upwards=False)
    if sum(there) > 1:
        np.testing.assert_allclose(up, down[::-1])
        assert up[ref.any(axis=(1, 2))].min() == 0 and up[ref.any(axis=(1, 2))].max() == 1
    assert np.isnan(up).all() == (not any(there))


def test_a_table_survives_markdown():
    table = pd.DataFrame({"a": ["x|y", None], "b": [1.23456, np.nan], "c": pd.array([3, None], "Int64")})
    lines = markdown_table(table, digits=2).splitlines()
    assert lines[2:] == ["| x\\|y | 1.23 | 3 |", "| – | – | – |"]


def test_a_disk_that_takes_no_prediction_is_named_and_the_one_before_stays(tmp_path):
    resource = pytest.importorskip("resource", reason="this system limits no files")
    noise = np.random.default_rng(0).random((8, 64, 64)) > 0.5
    path = save_predictions(tmp_path / "evaluation", "Case_000", {"network": noise}, {"by": "whom"})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(
            CohortError, match=r"^Case_000: its prediction could not be written \(File too large\)"
        ):
            save_predictions(tmp_path / "evaluation", "Case_000", {"network": ~noise}, {"by": "whom"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [f.read_bytes() for f in path.parent.iterdir()] == [before]
