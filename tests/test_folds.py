"Cross-validation: nobody learns from who tests, what is finished stays, what differs is not compared."

import json
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from chests import store_of, write_chests
from typer.testing import CliRunner

from lungseg import folds as under_test
from lungseg.captions import run_figures, save_figures
from lungseg.cli import app
from lungseg.cohort import Store
from lungseg.core import CohortError, InputError, ModelError, pool, read_json
from lungseg.evaluate import Evaluation, evaluate, load_evaluation
from lungseg.figures import box_plots, dice_along_lungs, network_against_threshold
from lungseg.folds import compare, crossvalidate, deal, fold_table, needs_validation
from lungseg.phantom import draw_phantom
from lungseg.recipe import Recipe, recipe_to_toml
from lungseg.runs import check_holder, holder
from lungseg.search import search, with_validation
from lungseg.splits import people
from lungseg.train import train

TINY = Recipe().but(
    name="tiny",
    prepare={"size": 32},
    net={"width": 4, "depth": 2},
    fit={"epochs": 1, "batch": 8, "lr": 1e-2, "ema": 0.0, "precision": "float32"},
)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    "Four phantoms of 12 slices of 64 × 64; the last is there without a mask, too."
    return write_chests(tmp_path_factory.mktemp("cohort") / "volumes", 4)


@pytest.fixture(scope="module")
def store(volumes):
    return store_of(volumes)


@pytest.fixture(scope="module")
def done(store, tmp_path_factory):
    "Two folds that nobody disturbed."
    out = tmp_path_factory.mktemp("out") / "done"
    crossvalidate(store, TINY, out, folds=2)
    return out


class Twins(Store):
    "The first two cases are one patient's."

    def meta(self, name):
        return super().meta(name) | ({"patient": "one"} if name in self.names[:2] else {})


@pytest.mark.parametrize("folds", [2, 3, "3", "leave-one-out"])
@pytest.mark.parametrize("seed", range(3))
def test_everybody_is_tested_once_and_nobody_learns_from_who_tests(store, folds, seed):
    twins = Twins(store.path)
    who = people(twins)
    splits = deal(twins, folds, seed=seed)
    assert len(splits) == (3 if folds == "leave-one-out" else int(folds))
    assert sorted(n for s in splits for n in s["test"]) == store.names
    for split in splits:
        for cases in who.values():
            assert sum(bool(set(cases) & set(split[part])) for part in split) == 1


@pytest.mark.parametrize("seed", range(8))
def test_who_has_a_tumour_and_who_has_none_are_dealt_alike(store, seed):
    "Two of four have one, a woman and a man; by sex alone, both could be tested in one fold."

    class Tumours(Store):
        def meta(self, name):
            place = self.names.index(name)
            told = super().meta(name) | {"tumour_voxels": 9 * (place < 2), "PatientSex": "FM"[place % 2]}
            return {key: value for key, value in told.items() if key != "lung_voxels"}

    tumours = Tumours(store.path)
    tumours.target = "tumour"
    for split in deal(tumours, 2, seed=seed):
        assert len(set(split["test"]) & set(store.names[:2])) == 1
    drawn = with_validation(tumours, {"train": store.names[:3], "test": store.names[3:]}, seed=seed)
    assert set(drawn["train"]) & set(store.names[:2])  # there is a tumour to learn from


@pytest.mark.parametrize("fit", [{"patience": 2}, {"schedule": "plateau"}])
def test_a_recipe_that_watches_validation_gets_patients_to_watch(store, fit):
    recipe = TINY.but(fit=fit)
    assert needs_validation(recipe) and not needs_validation(TINY)
    assert all(s["validation"] and s["train"] for s in deal(store, "leave-one-out", recipe=recipe))
    assert not any(s["validation"] for s in deal(store, "leave-one-out", recipe=TINY))


def test_each_prediction_is_of_the_network_that_did_not_see_the_case(store, done):
    result = load_evaluation(done)
    assert set(result.patients.split) == {"test"} and set(result.patients.case) == set(store.names)
    for row in result.part("test").patients.itertuples():
        run = done / f"fold_{row.fold}"
        assert row.case in read_json(run / "split.json")["test"]
        one = evaluate(run, store)
        own = one.patients[(one.patients.case == row.case) & (one.patients.method == "network")]
        assert own.dice.item() == pytest.approx(row.dice, abs=1e-9)
        assert np.array_equal(one.prediction(row.case), result.prediction(row.case))


def test_out_of_fold_probabilities_are_pooled(store, done):
    pooled = load_evaluation(done).tally("test")
    parts = [
        load_evaluation(done / f"fold_{k}").tally("test")
        for k in sorted({*load_evaluation(done).patients.fold})
    ]
    assert pooled.voxels == sum(t.voxels for t in parts) == sum(store.case(n).hu.size for n in store.names)
    assert pooled.squared == pytest.approx(sum(t.squared for t in parts))


def test_every_figure_is_drawn_of_out_of_fold_predictions(done, tmp_path):
    drawn = run_figures(load_evaluation(done))
    assert {"probabilities", "confusion_matrix", "dice_bands", "worst_four"} <= set(drawn)
    paths = save_figures(drawn, tmp_path / "figures", ["png"])
    assert all(p.stat().st_size > 5000 for p in paths if p.suffix == ".png")


def test_figures_are_drawn_where_no_slice_is_empty_and_where_nothing_has_a_dice(done):
    result = load_evaluation(done)
    filled = replace(result, slices=result.slices[result.slices.ref_voxels > 0])
    assert "slices_without_reference" not in run_figures(filled)
    nothing = (table.assign(dice=np.nan) for table in (result.slices, result.patients))
    drawn = run_figures(Evaluation(*nothing, result.run, result.store))
    assert "worst_slices" not in drawn and "No test case has a Dice" in drawn["patient_boxes"].caption


def test_the_reports_figures_read_out_of_fold_predictions(done):
    result = load_evaluation(done)
    for figure in (
        box_plots(result.patients),
        network_against_threshold(result.patients),
        dice_along_lungs(result.slices),
    ):
        assert figure.axes


def test_finished_folds_are_not_trained_again_and_give_the_same_table(store, done):
    before = (done / "evaluation" / "patients.csv").read_text()
    weights = [f.stat().st_mtime_ns for f in sorted(done.glob("fold_*/model.safetensors"))]
    crossvalidate(store, TINY, done, folds=2)
    assert [f.stat().st_mtime_ns for f in sorted(done.glob("fold_*/model.safetensors"))] == weights
    assert (done / "evaluation" / "patients.csv").read_text() == before


def test_a_loss_that_is_no_number_holds_its_fold_and_no_other(store, tmp_path):
    really = train

    def wild(store, split, recipe, run, **options):
        recipe = recipe if run.name != "fold_2" else recipe.but(fit={"lr": 1e30, "warmup": 0.0, "clip": 0.0})
        return really(store, split, recipe, run, **options)

    with patch.object(under_test, "train", wild):
        result = crossvalidate(store, TINY.but(fit={"epochs": 2}), tmp_path / "out", folds=2)
    (held,) = result.held
    lost = deal(store, 2)[1]["test"]
    assert (
        held.item == "fold_2"
        and "loss" in held.reason
        and held.reason.endswith(f"{', '.join(lost)} were not tested")
    )
    assert set(fold_table(tmp_path / "out").case) == set(store.names) - set(lost)


def test_other_data_under_the_same_names_are_refused(store, done, tmp_path):
    copy = shutil.copytree(store.path, tmp_path / "other")
    about = json.loads((copy / "Case_002" / "case.json").read_text())
    about["sha256"]["hu"] = "0" * 64
    (copy / "Case_002" / "case.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"done: holds folds on other data \(Case_002"):
        crossvalidate(Store(copy), TINY, done, folds=2)


def test_fewer_patients_than_folds_is_said_before_anything_is_written(store, tmp_path):
    with pytest.raises(CohortError, match="folds: 5, expected 2 to 4, the number of patients with masks"):
        crossvalidate(store, TINY, tmp_path / "out", folds=5)
    assert not (tmp_path / "out").exists()


def test_cases_without_a_mask_are_named_and_not_scored(store, tmp_path):
    copy = shutil.copytree(store.path, tmp_path / "store")
    about = json.loads((copy / "Case_003" / "case.json").read_text())
    del about["lung_voxels"], about["sha256"]["mask"]
    (copy / "Case_003" / "case.json").write_text(json.dumps(about))
    result = crossvalidate(Store(copy), TINY, tmp_path / "out", folds=2)
    assert [h.item for h in result.held] == ["Case_003"]
    assert sorted(result.patients.case.unique()) == store.names[:3]


def test_recipes_on_other_cases_are_not_compared(store, done, tmp_path):
    "Neither if a case is missing, nor if it is another one of the same name."
    fewer = shutil.copytree(done, tmp_path / "fewer")
    for name in ("patients", "slices"):
        table = pd.read_csv(fewer / "evaluation" / f"{name}.csv")
        table[table.case != "Case_001"].to_csv(fewer / "evaluation" / f"{name}.csv", index=False)
    with pytest.raises(
        CohortError, match=r"tiny \(fewer\): Case_001 not tested, expected the same cases as in"
    ):
        compare([done, fewer])
    other = shutil.copytree(done, tmp_path / "other")
    table = pd.read_csv(other / "evaluation" / "patients.csv")
    table.loc[(table.case == "Case_001") & (table.method == "threshold"), "dice"] -= 0.01
    table.to_csv(other / "evaluation" / "patients.csv", index=False)
    with pytest.raises(CohortError, match=r"tiny \(other\): Case_001 is not what it is in tiny \(done\)"):
        compare([done, other])
    with pytest.raises(InputError, match="came twice"):
        compare([done, done])


def test_a_run_is_compared_by_the_patients_it_did_not_see(store, done, tmp_path):
    a, b, c, d = store.names
    run = train(store, {"train": [a, b, c], "test": [d]}, TINY, tmp_path / "run")
    evaluate(run, store)
    table = compare([run]).set_index("recipe")
    assert table.cases.tolist() == [1, 1] and table.worst_case["tiny"] == d
    with pytest.raises(CohortError, match="not tested"):
        compare([done, run])


def test_the_commands_go_from_volumes_to_a_table_and_another_process_gives_what_this_gives(
    volumes, done, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        under_test, "pool", lambda workers: pool(workers - 1)
    )  # one, to spare the second start
    (tmp_path / "tiny.toml").write_text(recipe_to_toml(TINY))
    runner, out, csv = CliRunner(), tmp_path / "side", tmp_path / "table.csv"
    told = [volumes, out, "--recipe", tmp_path / "tiny.toml", "--folds", 2, "--workers", 2]
    ran = runner.invoke(app, ["crossvalidate", *map(str, told)])
    assert ran.exit_code == 0, ran.output
    assert "mean" in ran.stdout and "Case_003" in ran.stdout
    one, two = (load_evaluation(folder).patients for folder in (done, out))
    pd.testing.assert_frame_equal(one, two, atol=1e-3)
    ran = runner.invoke(app, ["compare", str(done), str(out), "--csv", str(csv)])
    assert ran.exit_code == 0, ran.output
    table = pd.read_csv(csv)
    assert set(table.recipe) == {"tiny (done)", "tiny (side)", "threshold, nothing learned"}
    assert set(table.cases) == {4} and "| tiny (side) | 4 |" in ran.stdout
    ran = runner.invoke(app, ["crossvalidate", str(volumes), str(tmp_path / "new"), "--folds", "some"])
    assert ran.exit_code == 2 and "folds: expected a number from 2, or leave-one-out, got some" in ran.output
    assert not (tmp_path / "new").exists()


def test_a_process_that_is_ended_from_outside_is_one_clear_error(store, tmp_path, monkeypatch):
    class Broken:
        def submit(self, *told):
            future = Future()
            future.set_exception(BrokenProcessPool("terminated abruptly"))
            return future

    monkeypatch.setattr(under_test, "pool", lambda workers: nullcontext(Broken()))
    with pytest.raises(
        ModelError, match="memory runs out; finished folds are kept, go on with fewer workers"
    ):
        crossvalidate(store, TINY, tmp_path / "out", folds=2, workers=2)


def written(folder):
    return {f: f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("verb", ["train", "crossvalidate", "search"])
@pytest.mark.parametrize("there", ["a run", "a cross-validation", "a search"])
def test_nobody_works_in_the_folder_of_another(verb, there, volumes, store, done, tmp_path):
    out = tmp_path / "out"
    if there == "a run":
        a, b, c, d = store.names
        train(store, {"train": [a, b, c], "test": [d]}, TINY, out)
    elif there == "a cross-validation":
        shutil.copytree(done, out)
    else:
        (out / "trials").mkdir(parents=True)
        (out / "split.json").write_text("{}")
    own = {"train": "a run", "crossvalidate": "a cross-validation", "search": "a search"}[verb]
    if own == there:
        assert holder(out) == own
        return check_holder(out, own)
    if verb == "search":
        pytest.importorskip("optuna", reason="needs the extra lungseg[hpo]")
    before, reason = written(out), f"out: holds {there}, expected a new folder or one of {own}"
    ran = CliRunner().invoke(app, [verb, str(volumes), str(out)])
    assert ran.exit_code == 2 and reason in ran.output
    in_python = {
        "train": lambda: train(store, {"train": store.names}, TINY, out),
        "crossvalidate": lambda: crossvalidate(store, TINY, out, folds=2),
        "search": lambda: search(store, {"train": store.names}, TINY, out=out),
    }
    with pytest.raises(ModelError, match=reason):
        in_python[verb]()
    assert written(out) == before


@pytest.mark.parametrize(
    ("verb", "words"),
    [("crossvalidate", ["{volumes}", "{out}"]), ("report", ["--data", "{volumes}", "--work", "{out}"])],
)
def test_torchrun_is_told_once_what_is_one_process_s(verb, words, volumes, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    said = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        told = [word.format(volumes=volumes, out=tmp_path / "out") for word in words]
        ran = CliRunner().invoke(app, [verb, *told])
        assert ran.exit_code == 2
        said += ran.output.splitlines()
    wanted = f"{verb}: expected one process, got 2 from torchrun; start it without torchrun"
    assert said == [f"lungseg {verb}: {wanted}"]
    assert not (tmp_path / "out").exists()


def test_runs_for_tumours_and_for_lungs_are_not_compared(done, tmp_path):
    shutil.copytree(done, tmp_path / "other" / done.name)
    (tmp_path / "other" / done.name / "recipe.toml").write_text(recipe_to_toml(TINY.but(target="tumour")))
    with pytest.raises(CohortError, match="looks for tumour, done for lungs; expected one target"):
        compare([done, tmp_path / "other" / done.name])


@pytest.mark.parametrize("share", ["0.0", "1.5", "20%", "1.0"])
def test_a_share_that_is_none_is_refused_before_the_cohort_is_read(share, volumes, tmp_path):
    ran = CliRunner().invoke(app, ["train", str(volumes), str(tmp_path / "run"), "--test", share])
    assert ran.exit_code == 2 and f"--test {share}: expected one share of the patients" in ran.output
    assert not (tmp_path / "run").exists()


SMALL = "prepare.size=16 net.width=2 net.depth=1 fit.epochs=1 fit.precision=float32".split()
SMALL = [word for setting in SMALL for word in ("--set", setting)]


def test_nobody_left_to_validate_on_is_said_and_like_reads_the_cohort_as_it_was_read(tmp_path):
    (tmp_path / "data").mkdir()
    for seed in range(4):
        p = draw_phantom(seed, size=64, slices=12)
        both = p.mask("lung_left", "lung_right").astype(np.uint8)
        np.savez(tmp_path / "data" / f"Case_{seed}.npz", hu=p.hu, mask=both * 2 + p.mask("heart"))
    told = ["train", tmp_path / "data", tmp_path / "run", "--test", "0.9", "--validation", "0.9", *SMALL]
    runner = CliRunner()
    ran = runner.invoke(app, [*map(str, told), "--roi", "2"])
    assert ran.exit_code == 0, ran.output
    assert "--validation 0.9: nobody is left to validate on, 1 case to train on" in ran.output
    told = ["train", tmp_path / "data", tmp_path / "again", "--like", tmp_path / "run"]
    ran = runner.invoke(app, [*map(str, told)])
    assert ran.exit_code == 0, ran.output
    assert read_json(tmp_path / "again" / "asked.json")["roi"] == ["2"]
    told = ["crossvalidate", tmp_path / "data", tmp_path / "folds", "--folds", "2", "--roi", "2", *SMALL]
    ran = runner.invoke(app, [*map(str, told)])
    assert ran.exit_code == 0, ran.output
