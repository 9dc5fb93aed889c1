"The systems of the field as recipes: what the reports say stands in the files, and each runs to the end."

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pydicom import dcmread
from typer.testing import CliRunner

from lungseg.cli import app
from lungseg.cohort import Store, build_store, class_balance, find_cases, problems
from lungseg.contours import is_tumour, lungs_among, tumours_among
from lungseg.core import CohortError, InputError, MaskError
from lungseg.evaluate import evaluate, pixel_scores
from lungseg.field import FIELD, differing, watched
from lungseg.files import save_nifti, write_nifti
from lungseg.losses import alpha_at, make_loss
from lungseg.masks import read_tumour
from lungseg.phantom import Finding, draw_phantom, write_cohort
from lungseg.pictures import write_pairs
from lungseg.predict import load_model, segment
from lungseg.reading import read_volume
from lungseg.recipe import load_recipe, recipe_from_toml, recipe_to_toml
from lungseg.runs import read_history
from lungseg.segments import write_seg
from lungseg.train import train
from lungseg.volume import Volume


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(recipe, **fit):
    "A recipe on 16 × 16 pixels with a handful of weights, for one epoch."
    fit = {"precision": "float32", "epochs": 1, "lr": 0.01} | fit
    return recipe.but(prepare={"size": 16}, net={"width": 2, "depth": 1}, fit=fit)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    "Four phantoms, three with a tumour, as DICOM with contours and npz masks."
    return write_cohort(
        tmp_path_factory.mktemp("field") / "cohort", cases=4, size=48, slices=20, tumours=True
    )


@pytest.fixture(scope="module")
def lungs(cohort, tmp_path_factory):
    return build_store(find_cases(cohort), tmp_path_factory.mktemp("stores") / "lungs")


@pytest.fixture(scope="module")
def tumours(cohort, tmp_path_factory):
    return build_store(find_cases(cohort, target="tumour"), tmp_path_factory.mktemp("stores") / "tumours")


def in_two(store):
    return {"train": store.names[:3], "test": store.names[3:]}


# --- the files

REPORTED = {  # by issue and reports: key → value
    "bce-dice-adam": {
        **{"prepare.method": "winsorise", "prepare.low": 1.0, "prepare.high": 99.0, "prepare.range": "unit"},
        **{"prepare.size": 512, "prepare.frame": "image", "loss.kind": "combined", "loss.alpha": 0.5},
        **{"fit.optimiser": "adam", "fit.lr": 0.1, "fit.batch": 3, "fit.epochs": 10},
    },
    "combo-sgd": {
        **{"net.depth": 3, "loss.kind": "combo", "loss.alpha": 2 / 3, "loss.beta": 0.5, "loss.smooth": 1.0},
        **{"fit.optimiser": "sgd", "fit.lr": 0.1, "fit.batch": 3, "fit.epochs": 10, "prepare.size": 512},
    },
    "alpha-dice": {
        **{"loss.kind": "combined", "loss.alpha": 0.5, "fit.optimiser": "adam", "fit.lr": 0.1},
        **{"fit.batch": 3, "fit.epochs": 10, "prepare.size": 512},
    },
    "slicewise-tumour": {
        **{"target": "tumour", "prepare.frame": "lungs", "prepare.suppress": "outside", "fit.empty": 1.0},
        **{"augment.shift": 0.1, "augment.rotate_deg": 10.0, "augment.scale": 0.1, "loss.first_epochs": 50},
    },
    "png-pairs": {
        **{"prepare.size": 256, "prepare.range": "unit", "loss.alpha": 1.0, "fit.optimiser": "adam"},
        **{"fit.lr": 1e-3, "fit.batch": 16, "fit.epochs": 10},
    },
}


@pytest.mark.parametrize("name", REPORTED)
def test_a_recipe_says_what_its_report_says(name):
    recipe = load_recipe(name)
    for key, value in REPORTED[name].items():
        table, _, field = key.rpartition(".")
        got = getattr(getattr(recipe, table) if table else recipe, field)
        assert got == pytest.approx(value), key


def test_a_recipe_that_an_editor_gave_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "mine.toml").write_text('name = "mine"', encoding="utf-8-sig")
    assert load_recipe(tmp_path / "mine.toml").name == "mine"


@pytest.mark.parametrize("name", FIELD)
def test_a_file_begins_with_what_is_reported_and_what_was_chosen(name):
    text = (files("lungseg") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    comments = text.partition("name =")[0]
    assert all(line.startswith("#") for line in comments.splitlines())
    assert "As reported:" in comments and "Not reported, so chosen" in comments
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.about
    assert recipe_from_toml(recipe_to_toml(recipe)) == recipe


@pytest.mark.parametrize("name", FIELD)
def test_only_what_is_reported_varies_a_slice(name):
    varied = {k for k, v in vars(load_recipe(name).augment).items() if v}
    assert varied == ({"shift", "rotate_deg", "scale"} if name == "slicewise-tumour" else set())


def test_the_flawed_recipe_differs_from_the_mended_one_in_the_loss_alone():
    pair = [load_recipe(n) for n in ("bce-dice-adam-flawed", "bce-dice-adam")]
    assert differing(pair).index.tolist() == ["loss.per", "loss.smooth"]
    flawed, mended = (make_loss(r.loss) for r in pair)
    empty = torch.zeros(2, 1, 8, 8)
    right = empty - 50
    assert float(flawed(right, empty)) == pytest.approx(0.5, abs=1e-5)
    assert float(mended(right, empty)) == pytest.approx(0, abs=1e-5)


def test_combo_weighs_cross_entropy_and_dice_alike():
    loss = load_recipe("combo-sgd").loss
    assert loss.alpha * loss.beta == pytest.approx(1 - loss.alpha)
    t = torch.zeros(1, 1, 4, 4)
    t[..., :2] = 1
    p = torch.full_like(t, 0.5)
    by_hand = 2 / 3 * 0.5 * np.log(2) - 1 / 3 * (2 * 4 + 1) / (8 + 8 + 1)
    assert float(make_loss(loss)(torch.logit(p), t)) == pytest.approx(by_hand, abs=1e-5)


def test_dice_is_privileged_for_fifty_epochs():
    loss = load_recipe("slicewise-tumour").loss
    weights = [alpha_at(loss, epoch) for epoch in range(100)]
    assert len(set(weights[:50])) == len(set(weights[50:])) == 1 and weights[0] < weights[50]


# --- the runs


@pytest.mark.parametrize("name", [n for n in FIELD if n != "slicewise-tumour"])
def test_every_lung_recipe_runs_to_the_end(name, lungs, tmp_path):
    run = train(lungs, in_two(lungs), tiny(load_recipe(name)), tmp_path / "run")
    case = lungs.case(lungs.names[3])
    assert segment(load_model(run), case.volume).shape == case.hu.shape


def test_the_tumour_recipe_runs_to_the_end_and_is_scored_beside_its_own_baseline(tumours, tmp_path):
    run = train(tumours, in_two(tumours), tiny(load_recipe("slicewise-tumour"), epochs=2), tmp_path / "run")
    result = evaluate(run, tumours)
    told = json.loads((run / "evaluation" / "summary.json").read_text())
    assert told["target"] == "tumour" and "dense piece" in told["methods"]["threshold"]
    healthy = result.patients[result.patients.case == "Case_000"]
    assert ((healthy.tp + healthy.fn) == 0).all()
    pixels = pixel_scores(result.patients)
    learnt = pixels[(pixels.split == "train") & (pixels.method == "network")].iloc[0]
    assert learnt[["tp", "fp", "fn", "tn"]].sum() == 3 * tumours.case("Case_000").mask.size
    baseline = healthy.set_index("method").fp["threshold"]
    assert baseline < 0.01 * tumours.case("Case_000").mask.size  # little is invented where there is nothing
    kept = np.asarray(result.prediction("Case_000", "network"))
    assert kept.sum() == healthy.set_index("method").fp["network"]
    (run / "store").symlink_to(tumours.path)
    ran = CliRunner().invoke(app, ["evaluate", str(run)])
    assert "Tumours, one by one" in ran.output and "third: apex" not in ran.output, ran.output
    found = {
        name: pd.read_csv(run / "evaluation" / f"{name}.csv") for name in ("lesions", "detection", "signs")
    }
    assert found["signs"].empty and set(found["detection"].method) == {"network", "threshold"}
    assert len(found["lesions"]) == 2 * found["detection"].lesions.iloc[0]
    assert (
        CliRunner().invoke(app, ["figures", str(run), str(tmp_path / "figures"), "--format", "png"]).exit_code
        == 0
    )
    drawn = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert "confusion_matrix" in drawn and "along_the_lungs" not in drawn


def test_watching_scores_each_epoch_of_each_part(lungs, tmp_path):
    recipe = tiny(load_recipe("combo-sgd"), epochs=2)
    table = watched(lungs, in_two(lungs), recipe, tmp_path / "run")
    assert list(zip(table.epoch, table.part, strict=True)) == [
        (1, "train"),
        (1, "test"),
        (2, "train"),
        (2, "test"),
    ]
    assert table.loss.notna().all()


def test_the_command_for_combo_sgd_ends_with_both_parts_and_says_what_they_are_not_for(tmp_path):
    write_cohort(tmp_path / "data", cases=4, size=64, slices=12)
    small = "prepare.size=16 net.width=2 net.depth=1 fit.epochs=2 fit.precision=float32".split()
    words = [word for setting in small for word in ("--set", setting)]
    told = ["train", str(tmp_path / "data"), str(tmp_path / "run"), "--recipe", "combo-sgd", *words]
    ran = CliRunner().invoke(app, told)
    assert ran.exit_code == 0, ran.output
    last = read_history(tmp_path / "run").iloc[-1]
    for part in ("train", "test"):
        loss, accuracy, dice = (last[f"watched_{part}_{score}"] for score in ("loss", "accuracy", "dice"))
        assert f"{part}: loss {loss:.4f}, accuracy {accuracy:.4f}, Dice {dice:.4f}" in ran.output
    assert "for the record, nothing was chosen by it" in ran.output


# --- tumours as a target


def test_a_store_holds_one_target(cohort, tumours, lungs, tmp_path):
    assert (tumours.target, lungs.target, Store(tumours.path).target) == ("tumour", "lungs", "tumour")
    with pytest.raises(
        CohortError, match="a store of masks of tumour, expected a new folder for those of lungs"
    ):
        build_store(find_cases(cohort), tumours.path)
    mixed = [*find_cases(cohort).cases[:1], *find_cases(cohort, target="tumour").cases[1:]]
    with pytest.raises(CohortError, match="masks of lungs and of tumour, expected one or the other"):
        build_store(mixed, tmp_path / "mixed")
    with pytest.raises(CohortError, match="looks for lungs, but the store holds masks of tumour"):
        train(tumours, in_two(tumours), tiny(load_recipe("png-pairs")), tmp_path / "run")


def test_contours_and_arrays_give_the_same_tumours(cohort, tumours, tmp_path):
    outlined = build_store(find_cases(cohort, target="tumour", masks="RTSTRUCT"), tmp_path / "outlined")
    for name in tumours.names:
        a, b = (np.asarray(s.case(name).mask) for s in (tumours, outlined))
        if a.sum() > 6 or not a.any():  # the outline of a single voxel may miss its centre
            assert 0.5 * a.sum() <= b.sum() <= 1.5 * a.sum()


def test_two_patients_without_tumours_are_two(tumours):
    told = problems(tumours)
    assert not told.what.str.contains("same mask").any()


def test_balance_of_tumours_is_called_so(tumours):
    balance = class_balance(tumours)
    assert "tumour_share" in balance and "lung_share" not in balance
    assert balance.loc["Case_000", "tumour_voxels"] == 0


def test_names_of_tumours_are_no_lungs_and_the_other_way_round():
    for name in ("GTV-1", "Tumor", "lung nodule", "Lesion_2", "GTVp"):
        assert is_tumour(name) and not lungs_among([name])
    for name in ("Lung_L", "Lungs", "PTV", "GTV_30", "GTV+1cm", "Lungs-GTV", "", "1"):
        assert not is_tumour(name)
    assert tumours_among(["GTV-1", "GTV-1", "Heart"]) == ["GTV-1"]


@pytest.fixture(scope="module")
def sick():
    return draw_phantom(3, size=48, slices=20, findings=(Finding("tumour", "right", 60),))


def test_a_tumour_in_a_file_of_its_own_is_taken_and_other_organs_are_not(sick, tmp_path):
    case = tmp_path / "data" / "Case_000"
    write_nifti(Volume(sick.hu, sick.affine), case / "ct.nii.gz")
    for name, mask in (("lungs", sick.mask("lung_left", "lung_right")), ("heart", sick.mask("heart"))):
        save_nifti(mask.astype(np.uint8), sick.affine, case / f"{name}.nii.gz")
    with pytest.raises(CohortError, match="no tumour found"):
        find_cases(tmp_path / "data", target="tumour")
    save_nifti(sick.mask("tumour").astype(np.uint8), sick.affine, case / "tumour.nii.gz")
    (found,) = find_cases(tmp_path / "data", target="tumour").cases
    assert found.mask.name == "tumour.nii.gz"
    store = build_store([found], tmp_path / "store")
    assert np.array_equal(np.asarray(store.case("Case_000").mask), sick.mask("tumour"))


def test_a_mask_of_the_image_s_own_name_is_its_tumour_unless_it_is_lungs(sick, tmp_path):
    chest = Volume(sick.hu, sick.affine)
    write_nifti(chest, tmp_path / "imagesTr" / "lung_001.nii.gz")
    label = tmp_path / "labelsTr" / "lung_001.nii.gz"
    save_nifti(sick.mask("tumour").astype(np.uint8), sick.affine, label)
    (found,) = find_cases(tmp_path, target="tumour").cases
    assert found.mask == label
    save_nifti(sick.mask("lung_left", "lung_right").astype(np.uint8), sick.affine, label)
    with pytest.raises(MaskError, match="most of it air, expected a tumour"):
        read_tumour(label, chest)


def test_a_segmentation_object_names_its_tumours(sick, tmp_path):
    pytest.importorskip("highdicom", reason="needs the extra lungseg[dicom]")
    from lungseg.phantom import write_phantom

    ct = write_phantom(sick, tmp_path / "ct")
    volume = read_volume(ct)
    masks = {"Lung_L": sick.mask("lung_left"), "Neoplasm, Primary": sick.mask("tumour")}
    path = write_seg(masks, volume, tmp_path / "seg.dcm", ct=ct)
    assert np.array_equal(read_tumour(path, volume), sick.mask("tumour"))
    with pytest.raises(MaskError, match="no segment"):
        read_tumour(path, volume, roi=["Nodule"])


def test_a_strange_name_can_be_given(cohort, tmp_path):
    found = find_cases(cohort, target="tumour", roi=["Heart"], masks="RTSTRUCT")
    store = build_store(found, tmp_path / "hearts")
    assert all(np.asarray(store.case(n).mask).any() for n in store.names)


def test_a_bare_tumour_without_a_witness_is_refused(sick, tmp_path):
    np.savez(tmp_path / "a.npz", tumour=sick.mask("tumour"))
    with pytest.raises(MaskError, match="how the tumour lies cannot be proved"):
        read_tumour(tmp_path / "a.npz", Volume(sick.hu, sick.affine))
    with pytest.raises(InputError, match="target: liver, expected lungs or tumour"):
        find_cases(tmp_path, target="liver")


# --- pairs of pictures, and the command


def test_pairs_go_from_pictures_to_a_confusion_matrix(tmp_path):
    data = write_pairs(tmp_path / "pairs", cases=5, slices=1, suffix=".png", size=32)
    options = "--recipe png-pairs --test 0.2 --validation 0 --set prepare.size=32 --set net.width=2".split()
    options += "--set net.depth=1 --set fit.epochs=2 --json".split()
    runner, run = CliRunner(), tmp_path / "run"
    done = runner.invoke(app, ["train", str(data), str(run), *options])
    assert done.exit_code == 0, done.output
    assert [len(part) for part in json.loads(done.stdout)["split"].values()] == [4, 0, 1]
    scored = runner.invoke(app, ["evaluate", str(run), "--json"])
    assert scored.exit_code == 0, scored.output
    rows = json.loads(scored.stdout)["pixels"]
    assert {row["method"] for row in rows} == {"network", "threshold"}
    test = next(r for r in rows if (r["split"], r["method"]) == ("test", "network"))
    assert test["tp"] + test["fp"] + test["fn"] + test["tn"] == 32 * 32
    assert {"accuracy", "precision", "recall", "f1"} <= set(test)
    said = runner.invoke(app, ["evaluate", str(run)]).output
    assert "precision" in said and "f1" in said


def test_the_command_segments_tumours_under_their_name(cohort, tmp_path):
    runner, run = CliRunner(), tmp_path / "run"
    options = "--recipe slicewise-tumour --set prepare.size=16 --set net.width=2 --set net.depth=1".split()
    options += "--set fit.epochs=1 --validation 0 --test Case_003".split()
    done = runner.invoke(app, ["train", str(cohort), str(run), *options])
    assert done.exit_code == 0, done.output
    ct = cohort / "Images" / "Case_001"
    made = runner.invoke(app, ["segment", str(ct), str(tmp_path / "out"), "--model", str(run), "--json"])
    assert made.exit_code == 0, made.output
    assert [f for f in json.loads(made.stdout)["files"]] == ["Case_001_tumour.nii.gz"]
    assert "tumour" in json.loads(made.stdout) and "lungs" not in json.loads(made.stdout)


def test_a_healthy_chest_can_be_named_as_a_negative(cohort, tmp_path):
    found = find_cases(cohort, target="tumour", negatives=["Case_001"])
    store = build_store(found, tmp_path / "store")
    assert not np.asarray(store.case("Case_001").mask).any()
    assert class_balance(store).loc["Case_001", "empty_share"] == 1


def test_the_structure_set_of_a_healthy_phantom_names_the_tumour_and_draws_none(cohort):
    rt = dcmread(cohort / "Structures" / "Case_000.dcm")
    assert "GTV-1" in [roi.ROIName for roi in rt.StructureSetROISequence]
    assert "ContourSequence" not in rt.ROIContourSequence[-1]


def test_the_table_of_the_field_refuses_equal_names_and_shares_that_are_none(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "field_table.py"
    for told, why in (
        (["--recipe", "combo-sgd", "combo-sgd"], "the name combo-sgd came twice"),
        (["--test", "0.0"], "--test 0.0: expected one share of the patients between 0 and 1"),
    ):
        command = [sys.executable, script, "--data", tmp_path / "none", "--out", tmp_path / "out", *told]
        ran = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert ran.returncode == 1 and why in ran.stderr and "Traceback" not in ran.stderr


def test_the_table_of_the_field_evaluates_each_run_once(lungs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import field_table

    really, seen = field_table.evaluate, []
    monkeypatch.setattr(
        field_table, "evaluate", lambda run, *a, **k: seen.append(run) or really(run, *a, **k)
    )
    done = {}
    for name in ("combo-sgd", "png-pairs"):
        recipe = tiny(load_recipe(name))
        done[name] = field_table.finished(
            recipe, lungs, in_two(lungs), tmp_path / name, SimpleNamespace(device="cpu")
        )
    table = field_table.table_of(done)
    assert seen == [tmp_path / name for name in done] and len(table) == 3
    assert table.accuracy.notna().all()
