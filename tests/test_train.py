"Training and prediction from end to end, on phantoms: what is promised when things go wrong."

import math
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from chests import store_of, write_chests
from safetensors.torch import load_file, save_file
from torch import nn

from lungseg import runs
from lungseg import train as training
from lungseg.augment import Augmentation, augment, generator
from lungseg.cohort import Store, build_store, checksum, find_cases
from lungseg.core import CohortError, ModelError, read_json, write_json, writing
from lungseg.evaluate import evaluate
from lungseg.losses import CombinedLoss, make_loss
from lungseg.networks import build_network
from lungseg.phantom import LABELS, draw_phantom
from lungseg.predict import load_model, postprocess, predict_probs, segment
from lungseg.recipe import Fit, Net, Recipe, load_recipe, recipe_to_toml
from lungseg.runs import DamagedCheckpointWarning, checkpoints, like, read_history
from lungseg.slices import NoLungsWarning, Preparation, SliceDataset
from lungseg.train import train, validate
from lungseg.volume import Volume

TINY = Recipe(
    name="tiny",
    prepare=Preparation(size=32),
    net=Net(width=4, depth=2, dropout=0.1),
    fit=Fit(epochs=3, batch=4, lr=1e-2, ema=0.8, precision="float32"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "Three phantoms of 12 slices of 64 × 64, as a store."
    return store_of(write_chests(tmp_path_factory.mktemp("cohort") / "volumes", 3))


@pytest.fixture(scope="module")
def split(store):
    a, b, c = store.names
    return {"train": [a], "validation": [b], "test": [c]}


@pytest.fixture(scope="module")
def calm(store, split, tmp_path_factory):
    "A run that nobody disturbed."
    return train(store, split, TINY, tmp_path_factory.mktemp("runs") / "calm")


def same_weights(one: Path, two: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fail_at(function, call: int, error: BaseException, *, after: bool = False):
    "A stand-in for a function that fails at its n-th call, before or after doing its work."
    calls = iter(range(10**6))

    def failing(*args, **options):
        now = next(calls) == call
        if now and not after:
            raise error
        result = function(*args, **options)
        if now:
            raise error
        return result

    return failing


@pytest.mark.parametrize(
    ("name", "call", "after"),
    [
        ("augment", 0, False),  # in the first step
        ("augment", 13, False),  # in the middle of an epoch
        ("save_weights", 1, False),  # validated, not yet kept
        ("save_checkpoint", 1, True),  # checkpoint written, history not
        ("write_json", 1, False),  # while the run's description is written
    ],
)
def test_a_run_interrupted_anywhere_ends_with_the_same_weights(
    store, split, calm, tmp_path, name, call, after
):
    really = getattr(training, name)
    with (
        patch.object(training, name, fail_at(really, call, KeyboardInterrupt(), after=after)),
        pytest.raises(KeyboardInterrupt),
    ):
        train(store, split, TINY, tmp_path / "run")
    run = train(store, split, TINY, tmp_path / "run")
    assert same_weights(run, calm)
    steady = ["epoch", "step", "lr", "train_loss", "train_dice", "validation_loss", "validation_dice"]
    assert read_history(run)[steady].equals(read_history(calm)[steady])
    assert read_json(run / "run.json")["finished"]


@pytest.mark.parametrize(
    ("file", "what", "kept"),
    [
        ("epoch_0002", "a checkpoint", "1 epoch"),
        ("model", "model.safetensors", "1 epoch"),
        ("history", "history.csv", "2 epochs"),
    ],
)
def test_a_full_disk_is_one_clear_error_and_the_run_can_go_on(store, split, calm, tmp_path, file, what, kept):
    "In the second epoch the disk takes half of a file."

    @contextmanager
    def disk(path):
        with writing(path) as beside:
            yield beside
            if path.name.startswith(file) and (tmp_path / "run" / "history.csv").exists():
                os.truncate(beside, 10)
                raise OSError(28, "No space left on device")

    expected = rf"run: {what} could not be written \(No space left on device\); .*\({kept}\) is whole"
    with patch.object(runs, "writing", disk), pytest.raises(ModelError, match=expected):
        train(store, split, TINY, tmp_path / "run")
    assert same_weights(train(store, split, TINY, tmp_path / "run"), calm)


def test_a_damaged_checkpoint_is_one_clear_error(store, split, calm, tmp_path):
    "The newest is cut short: the one before is taken. Both are: one clear error."
    with (
        patch.object(training, "augment", fail_at(augment, 20, KeyboardInterrupt())),
        pytest.raises(KeyboardInterrupt),
    ):
        train(store, split, TINY, tmp_path / "run")
    other = shutil.copytree(tmp_path / "run", tmp_path / "other")
    newest, _ = checkpoints(tmp_path / "run" / "checkpoint")
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(DamagedCheckpointWarning, match="going on from 1 epoch"):
        assert same_weights(train(store, split, TINY, tmp_path / "run"), calm)
    for path in checkpoints(other / "checkpoint"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="other: its checkpoint cannot be read, it is damaged"):
        train(store, split, TINY, other)
    train(store, split, TINY, other, resume=False)


def changed(store: Store, folder: Path, case: str, array: str, to) -> Store:
    "A copy of a store with one array of one case made into another."
    shutil.copytree(store.path, folder)
    path, about = folder / case / f"{array}.npy", read_json(folder / case / "case.json")
    np.save(path, to(np.load(path)))
    about["sha256"][array] = checksum(np.load(path))
    write_json(folder / case / "case.json", about)
    return Store(folder)


@pytest.mark.parametrize("strange", ["notes.txt", "Images"])
def test_a_run_does_not_move_in_with_somebody_elses_files(store, split, tmp_path, strange):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / strange).write_text("of a reader")
    with pytest.raises(
        ModelError, match=rf"^mine: holds what is not lungseg's \({strange}\), expected a new folder"
    ):
        train(store, split, TINY, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == [strange]
    with pytest.raises(ModelError, match=rf"^{strange}: is a file, expected a folder for a run$"):
        train(store, split, TINY, tmp_path / "mine" / strange)


def test_a_finished_run_whose_weights_are_damaged_says_so(store, split, calm, tmp_path):
    run = shutil.copytree(calm, tmp_path / "run")
    data = bytearray((run / "model.safetensors").read_bytes())
    (run / "model.safetensors").write_bytes(b"\xff" * 64 + data[64:])
    with pytest.raises(
        ModelError, match=r"^run: finished, but its model.safetensors cannot be read .*--no-resume"
    ):
        train(store, split, TINY, run)
    assert same_weights(train(store, split, TINY, run, resume=False), calm)


def test_scores_of_a_half_trained_network_are_told_apart(store, split, tmp_path):
    failing = fail_at(training.write_history, 1, KeyboardInterrupt(), after=True)
    with patch.object(training, "write_history", failing), pytest.raises(KeyboardInterrupt):
        train(store, split, TINY, tmp_path / "run")
    held = evaluate(tmp_path / "run", store).held
    assert [h.item for h in held] == ["run"] and "half-trained network" in held[0].reason
    assert not evaluate(train(store, split, TINY, tmp_path / "run"), store).held


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize(("array", "to"), [("hu", lambda hu: hu + np.int16(1)), ("mask", np.logical_not)])
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_on_other_data_under_the_same_names_is_refused(
    store, split, calm, tmp_path, part, array, to, finished
):
    (case,) = split[part]
    run = shutil.copytree(calm, tmp_path / "run")
    if not finished:
        (run / "run.json").unlink()
    other = changed(store, tmp_path / "other", case, array, to)
    expected = rf"other data \({case}\); start anew in another folder, or with --no-resume"
    with pytest.raises(ModelError, match=expected):
        train(other, split, TINY, run)
    assert same_weights(train(store, split, TINY, run), calm)


def test_another_test_case_does_not_matter_and_a_new_start_takes_the_new_data(store, split, calm, tmp_path):
    run = shutil.copytree(calm, tmp_path / "run")
    untouched = changed(store, tmp_path / "untouched", split["test"][0], "mask", np.logical_not)
    train(untouched, split, TINY, run)
    other = changed(store, tmp_path / "other", split["train"][0], "mask", np.logical_not)
    train(other, split, TINY, run, resume=False)
    assert not same_weights(run, calm)
    train(other, split, TINY, run)


def test_a_run_that_does_not_say_what_it_learnt_from_is_refused(store, split, calm, tmp_path):
    run = shutil.copytree(calm, tmp_path / "run")
    (run / "data.json").unlink()
    with pytest.raises(ModelError, match="does not say from which data it learnt"):
        train(store, split, TINY, run)


def test_validation_without_lung_still_leaves_a_model(store, split, tmp_path):
    "Nothing drawn and nothing found has no Dice: other cases count; without any, the last weights are kept."
    empty, full = split["validation"][0], split["test"][0]
    other = changed(store, tmp_path / "store", empty, "mask", np.zeros_like)

    class Nothing(torch.nn.Conv2d):
        def forward(self, images):
            return super().forward(images) * 0 - 5

    def score(names):
        return validate(Nothing(1, 1, 1), SliceDataset(other, names, TINY.prepare), CombinedLoss(0.5))

    assert math.isnan(score([empty])["dice"]) and score([empty])["accuracy"] == 1
    assert score([empty, full])["dice"] == 0
    nothing = {"loss": 0.1, "dice": math.nan, "accuracy": 1.0}
    with patch.object(training, "validate", lambda *_, **__: nothing):
        run = train(other, split, TINY, tmp_path / "run")
    assert load_model(run).about["epoch"] == "3"


def test_the_test_patients_are_never_opened(store, split, tmp_path):
    opened = []

    class Spy(type(store)):
        def case(self, name):
            opened.append(name)
            return super().case(name)

    spy = Spy.__new__(Spy)
    spy.__dict__.update(store.__dict__)
    train(spy, split, TINY.but(fit={"epochs": 1}), tmp_path / "run")
    assert set(opened) == {*split["train"], *split["validation"]}


def test_watching_the_test_patients_changes_no_weight(store, split, calm, tmp_path):
    "Each epoch's scores are those of its own network, slice by slice; what is kept is chosen as ever."
    recipe = TINY.but(fit={"watch": "train test", "ema": 0.0})
    run = train(store, split, recipe, tmp_path / "run")
    assert same_weights(run, train(store, split, recipe.but(fit={"watch": ""}), tmp_path / "blind"))
    table = read_history(run)
    parts, scores = ("train", "test"), ("loss", "accuracy", "dice")
    columns = [f"watched_{part}_{score}" for part in parts for score in scores]
    assert list(table.columns) == [*read_history(calm).columns, *columns]
    state = training.make_net(recipe)
    (last, *_) = checkpoints(run / "checkpoint")
    state.load_state_dict(runs._content(last)["net"])
    for part, score in ((part, score) for part in parts for score in scores):
        data = SliceDataset(store, split[part], recipe.prepare)
        images, masks = data.batch(np.arange(len(data)))
        with torch.no_grad():
            logits = state.eval()(images)
        pred, ref = (x.flatten(1).numpy() for x in (logits > 0, masks >= 0.5))
        if score == "accuracy":
            expected = (pred == ref).mean()
        elif score == "dice":
            holds = ref.any(1)
            sizes = pred.sum(1) + ref.sum(1)
            expected = (2 * (pred & ref).sum(1)[holds] / sizes[holds]).mean()
        else:
            expected = float(make_loss(recipe.loss, epoch=2, epochs=3)(logits, masks))
        assert table[f"watched_{part}_{score}"].iloc[-1] == pytest.approx(expected, rel=1e-4)


def test_an_interrupted_run_goes_on_watching_and_a_part_without_cases_is_not_watched(store, split, tmp_path):
    recipe = TINY.but(fit={"watch": "test", "epochs": 2})
    halves = fail_at(training.write_history, 1, KeyboardInterrupt())
    with patch.object(training, "write_history", halves), pytest.raises(KeyboardInterrupt):
        train(store, split, recipe, tmp_path / "run")
    table = read_history(train(store, split, recipe, tmp_path / "run"))
    assert table.watched_test_dice.notna().sum() == 2
    alone = train(store, {"train": split["train"]}, recipe, tmp_path / "alone")
    assert "watched_test_dice" not in read_history(alone)
    with pytest.raises(ModelError, match=r"fit.watch: expected .*, got 'tset'; did you mean \"test\"\?"):
        recipe.but(fit={"watch": "train tset"})


def test_the_callers_random_state_is_left_alone(store, split, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(store, split, TINY.but(fit={"epochs": 1}), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_slices_in_files_train_to_the_same_weights(store, split, calm, tmp_path):
    with patch.object(training, "IN_MEMORY", 0):
        run = train(store, split, TINY, tmp_path / "run")
    assert same_weights(run, calm)
    assert not list(run.glob(".slices_*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"fit": {"optimiser": "sgd", "ema": 0.0, "schedule": "constant"}},
        {"fit": {"optimiser": "adam", "clip": 0.0, "empty": 1.0}},
        {"prepare": {"method": "winsorise", "neighbours": 1}, "loss": {"per": "slice", "smooth": 0.0}},
        {"net": {"patch": 2, "depth": 1}, "fit": {"precision": "bfloat16"}},
        {"prepare": {"frame": "lungs", "suppress": "outside"}},
        {"prepare": {"frame": "lungs", "neighbours": 2, "method": "winsorise"}},
        {"prepare": {"frame": "image", "suppress": "outside", "region_margin_mm": 0.0}},
        {"prepare": {"range": "unit", "method": "zscore"}, "fit": {"schedule": "onecycle", "edges": 2.5}},
        {"fit": {"schedule": "step", "l1": 1e-4, "accumulate": 3}, "loss": {"kind": "focal"}},
        {"fit": {"schedule": "plateau", "deterministic": True}, "loss": {"boundary": 0.1}},
    ],
)
def test_other_recipes_run_and_their_models_predict(store, split, tmp_path, changes):
    recipe = TINY.but(**{**changes, "fit": {"epochs": 2, **changes.get("fit", {})}})
    run = train(store, {"train": split["train"]}, recipe, tmp_path / "run")
    history = read_history(run)
    assert np.isfinite(history.train_loss).all() and history.validation_dice.isna().all()
    model = load_model(run)
    assert model.recipe == recipe
    probs = predict_probs(model, np.asarray(store.case(split["test"][0]).hu), flip=True)
    assert probs.shape == (12, 64, 64) and 0 <= probs.min() and probs.max() <= 1


def test_a_network_learns_in_a_lung_box_and_finds_lungs_it_never_saw(tmp_path):
    "From store to mask with the recipe of the package, made small; the run says how its slices are prepared."
    (tmp_path / "volumes").mkdir()
    for seed in range(3):
        p = draw_phantom(seed, size=96, slices=24)
        lungs = np.isin(p.labels, [LABELS["lung_left"], LABELS["lung_right"]])
        np.savez(tmp_path / "volumes" / f"Case_{seed:03d}.npz", hu=p.hu, mask=lungs.astype(np.uint8))
    store = build_store(find_cases(tmp_path / "volumes").cases, tmp_path / "store")
    fit = {"steps": 40, "lr": 1e-2, "ema": 0.9, "precision": "float32"}
    recipe = load_recipe("lungbox").but(
        prepare={"size": 48}, net={"width": 8, "depth": 3, "patch": 1}, fit=fit
    )
    run = train(store, {"train": store.names[:2], "validation": store.names[2:]}, recipe, tmp_path / "run")
    assert read_history(run).validation_dice.max() > 0.8 and read_json(run / "run.json")["notes"] == []
    model = load_model(run)
    assert model.recipe == recipe and model.recipe.prepare.frame == "lungs"
    p = draw_phantom(9, size=96, slices=24)
    ref, mask = (
        np.isin(p.labels, [LABELS["lung_left"], LABELS["lung_right"]]),
        segment(model, Volume(p.hu, p.affine)),
    )
    assert 2 * (mask & ref).sum() / (mask.sum() + ref.sum()) > 0.8


def test_a_run_in_a_lung_box_goes_on_to_the_same_weights(store, split, tmp_path):
    recipe = TINY.but(prepare={"frame": "lungs", "suppress": "outside"})
    whole = train(store, split, recipe, tmp_path / "calm")
    with (
        patch.object(training, "augment", fail_at(augment, 4, KeyboardInterrupt())),
        pytest.raises(KeyboardInterrupt),
    ):
        train(store, split, recipe, tmp_path / "run")
    assert same_weights(train(store, split, recipe, tmp_path / "run"), whole)
    with pytest.raises(ModelError, match=r"another recipe \(prepare.frame, prepare.suppress\)"):
        train(store, split, TINY, tmp_path / "run")


BOX_KEYS = ("suppress", "region_margin_mm", "box_margin_mm", "air_hu")


def test_a_run_and_weights_from_before_there_were_lung_boxes_are_still_good(store, split, calm, tmp_path):
    run = shutil.copytree(calm, tmp_path / "run")
    old = "".join(
        line
        for line in (run / "recipe.toml").read_text("utf-8").splitlines(True)
        if not line.startswith(BOX_KEYS)
    )
    (run / "recipe.toml").write_text(old, encoding="utf-8")
    weights = load_file(run / "model.safetensors")
    save_file(weights, run / "model.safetensors", {"format": "lungseg 1", "recipe": old, "epoch": "3"})
    assert not any(key in old for key in BOX_KEYS)
    train(store, split, TINY, run)
    assert load_model(run).recipe == TINY
    hu = np.asarray(store.case(split["test"][0]).hu)
    assert np.array_equal(predict_probs(load_model(run), hu), predict_probs(load_model(calm), hu))


def test_lung_that_a_box_hides_counts_as_missed(store, split):
    "A network that is right about all it is shown, and a case of which a tenth is not shown."

    class Perfect(torch.nn.Module):
        def __init__(self, data):
            super().__init__()
            self.data, self.nothing = data, torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return self.data.batch(np.flatnonzero(self.data.has_lung))[1] * 20 - 10

    data = SliceDataset(store, [split["train"][0]], TINY.prepare)
    data.of_case = lambda name: np.flatnonzero(data.has_lung)
    assert validate(Perfect(data), data, CombinedLoss(0.5), batch=99)["dice"] == 1
    shown = int((data.batch(data.of_case(""))[1] >= 0.5).sum())
    data.missed[0] = shown / 9
    assert validate(Perfect(data), data, CombinedLoss(0.5), batch=99)["dice"] == pytest.approx(
        2 / (2 + 1 / 9), abs=1e-3
    )


def test_a_case_without_lungs_that_can_be_found_is_trained_on_whole_and_noted(store, split, tmp_path):
    case = split["train"][0]
    solid = changed(store, tmp_path / "solid", case, "hu", lambda hu: np.maximum(hu, np.int16(0)))
    recipe = TINY.but(prepare={"frame": "lungs", "suppress": "outside"}, fit={"epochs": 1})
    with pytest.warns(NoLungsWarning, match=f"{case}: no lungs found"):
        run = train(solid, split, recipe, tmp_path / "run")
    assert read_json(run / "run.json")["notes"] == [
        f"{case}: no lungs found in the CT, so all of it is shown"
    ]


def test_the_mask_lies_on_the_volumes_grid_whatever_its_shape(calm):
    rng = np.random.default_rng(0)
    model = load_model(calm)
    for shape in ((1, 40, 40), (3, 33, 50), (2, 20, 12)):
        hu = rng.integers(-1000, 300, shape).astype(np.int16)
        mask = segment(model, Volume(hu, np.eye(4)[[2, 1, 0, 3]]))
        assert mask.shape == shape and mask.dtype == bool


def test_every_recipe_in_the_package_can_be_read():
    recipes = sorted((Path(training.__file__).parent / "recipes").glob("*.toml"))
    assert {"lungseg", "lungbox"} <= {f.stem for f in recipes}
    for f in recipes:
        assert load_recipe(f.stem).name == f.stem


@pytest.mark.parametrize("seed", range(5))
def test_picture_and_mask_move_together(store, seed):
    "Where the picture is the mask, it still is after any change of place."
    data = SliceDataset(store, store.names[:1], Preparation(size=48))
    _, masks = data.batch(np.flatnonzero(data.has_lung))
    place_only = Augmentation(
        gain=0.0, offset=0.0, gamma=0.0, kernel=0.0, noise=0.0, density=0.0, flip=0.5, rotate_deg=30.0
    )
    images, moved = augment(2 * masks - 1, masks, place_only, generator(seed))
    assert torch.allclose((images + 1) / 2, moved, atol=1e-5)
    assert 0.5 * masks.sum() < moved.sum() < 2 * masks.sum()


@pytest.mark.parametrize("seed", range(5))
def test_postprocessing_twice_changes_nothing_more(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((12, 30, 40), bool)
    mask[2:10, 5:25, 4:16] = mask[2:10, 5:25, 24:36] = True
    mask ^= rng.random(mask.shape) < 0.02
    once = postprocess(mask)
    assert np.array_equal(postprocess(once), once)


def test_a_case_without_a_mask_is_named(store):
    case = store.case(store.names[0])
    bare = type("Bare", (), {"name": case.name, "hu": case.hu, "mask": None})()
    with (
        patch.object(type(store), "case", lambda self, name: bare),
        pytest.raises(CohortError, match="expected a mask to train with, found none"),
    ):
        SliceDataset(store, store.names, Preparation(size=32))


def test_loss_settings_reach_the_loop(store, split, tmp_path):
    "Pure cross-entropy and pure Dice see the same network differently, and half of each lies between."
    first = {}
    for alpha in (0.0, 0.5, 1.0):
        recipe = TINY.but(loss={"alpha": alpha}, fit={"epochs": 1, "lr": 1e-9})
        first[alpha] = read_history(train(store, split, recipe, tmp_path / f"{alpha}")).train_loss[0]
    assert first[0.0] != pytest.approx(first[1.0], abs=1e-3)
    assert first[0.5] == pytest.approx((first[0.0] + first[1.0]) / 2, abs=1e-3)


def test_l1_weight_decay_and_clip_reach_the_weights(store, split, tmp_path):
    "Each pulls a network's weights towards nothing, or holds them where they began, as it should."

    def size(**fit):
        recipe = TINY.but(fit={"optimiser": "sgd", "ema": 0.0, "weight_decay": 0.0, "epochs": 2, **fit})
        run = train(store, {"train": split["train"]}, recipe, tmp_path / str(fit))
        return sum(
            w.abs().sum().item() for k, w in load_file(run / "model.safetensors").items() if w.ndim == 4
        )

    plain = size(clip=1.0)
    assert size(l1=0.1, clip=0.0) < 0.9 * size(l1=0.0, clip=0.0)
    assert size(weight_decay=5.0) < 0.9 * plain
    start = sum(p.abs().sum().item() for p in training.make_net(TINY).parameters() if p.ndim == 4)
    assert size(clip=1e-9) == pytest.approx(start, rel=1e-5) and plain != pytest.approx(start, rel=1e-5)


def test_training_stops_early_when_validation_patients_get_no_better(store, split, tmp_path):
    "The Dice is made up: best in the second epoch. A run that was stopped while told so stops there too."
    made_up = iter([0.5, 0.7, 0.6, 0.7, 0.9, 0.9])

    def validated(*_, **__):
        return {"loss": 0.1, "dice": next(made_up), "accuracy": 1.0}

    recipe = TINY.but(fit={"epochs": 6, "patience": 2})
    failing = fail_at(training.write_history, 3, KeyboardInterrupt())
    with (
        patch.object(training, "validate", validated),
        patch.object(training, "write_history", failing),
        pytest.raises(KeyboardInterrupt),
    ):
        train(store, split, recipe, tmp_path / "run")
    run = train(store, split, recipe, tmp_path / "run")
    assert read_history(run).validation_dice.tolist() == [0.5, 0.7, 0.6, 0.7]
    assert read_json(run / "run.json")["finished"]
    with pytest.raises(CohortError, match="needs validation patients"):
        train(store, {"train": split["train"]}, recipe, tmp_path / "other")


def test_the_rate_falls_on_a_plateau_of_the_validation_dice_or_else_of_the_loss(store, split, tmp_path):
    fit = {"epochs": 6, "schedule": "plateau", "warmup": 0.0}
    nothing_better = {"loss": 0.1, "dice": 0.5, "accuracy": 1.0}
    with patch.object(training, "validate", lambda *_, **__: nothing_better):
        judged = read_history(train(store, split, TINY.but(fit=fit), tmp_path / "judged"))
    assert judged.lr.tolist() == pytest.approx([1e-2] * 4 + [2e-3] * 2)
    with patch.object(training, "validate", lambda *_, **__: nothing_better):
        patient = read_history(train(store, split, TINY.but(fit=fit | {"wait": 4}), tmp_path / "patient"))
    assert patient.lr.tolist() == pytest.approx([1e-2] * 5 + [2e-3])
    with patch.object(training.Tally, "loss", property(lambda _tally: 0.5)):
        alone = read_history(train(store, {"train": split["train"]}, TINY.but(fit=fit), tmp_path / "alone"))
    assert alone.validation_dice.isna().all()
    assert alone.lr.tolist() == pytest.approx([1e-2] * 4 + [2e-3] * 2)


def test_an_epoch_without_a_dice_does_not_replace_the_best_weights(store, split, tmp_path):
    made_up = iter([0.5, math.nan, 0.4])
    scores = patch.object(
        training, "validate", lambda *_, **__: {"loss": 0.1, "dice": next(made_up), "accuracy": 1.0}
    )
    with scores:
        run = train(store, split, TINY, tmp_path / "run")
    assert load_model(run).about["epoch"] == "1"


def test_a_way_down_is_taken_over_and_held_for_so_many_epochs(store, split, calm, tmp_path):
    recipe = TINY.but(net={"encoder": str(calm), "frozen": 2}, fit={"ema": 0.0}, name="second", seed=1)
    seen = []

    def keep(_row):
        now = next(f for f in checkpoints(tmp_path / "run" / "checkpoint"))
        seen.append(runs._content(now)["net"])

    train(store, {"train": split["train"]}, recipe, tmp_path / "run", on_epoch=keep)
    given = load_file(calm / "model.safetensors")
    for name, w in given.items():
        if name.startswith("down.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(seen[0][name], w) and torch.equal(seen[1][name], w), name
    assert not torch.equal(seen[2]["down.0.0.weight"], given["down.0.0.weight"])
    assert not torch.equal(seen[0]["head.weight"], seen[1]["head.weight"])


def test_a_run_that_began_with_another_is_repeated_after_that_one_is_gone(store, split, calm, tmp_path):
    given = shutil.copytree(calm, tmp_path / "given")
    recipe = TINY.but(net={"encoder": str(given)}, fit={"epochs": 2})
    one = train(store, split, recipe, tmp_path / "one")
    shutil.rmtree(given)
    (one / "run.json").unlink()
    train(store, split, recipe, one)  # the same call goes on with the copy
    again, parts = like(one, store)
    two = train(store, parts, again, tmp_path / "two")
    third = train(store, parts, load_recipe(two / "recipe.toml"), tmp_path / "third")
    assert same_weights(one, two) and same_weights(one, third)
    told = b"".join(f.read_bytes() for run in (one, two, third) for f in run.iterdir() if f.is_file())
    assert str(tmp_path).encode() not in told
    assert load_model(two).recipe.net.encoder == like(one)[0].net.encoder.rpartition(os.sep)[2]
    (copy,) = one.glob("encoder_*.safetensors")
    shutil.copy(calm / "model.safetensors", copy)
    save_file(load_file(calm / "model.safetensors"), copy, {"changed": "yes"})
    with pytest.raises(ModelError, match=f"{copy.name}: is not the file that the run began with"):
        like(one, store)


def test_a_run_that_began_with_other_weights_of_the_same_name_is_refused(store, split, calm, tmp_path):
    given = shutil.copytree(calm, tmp_path / "given")
    recipe = TINY.but(net={"encoder": str(given)}, fit={"epochs": 1})
    run = train(store, split, recipe, tmp_path / "run")
    save_file(load_file(calm / "model.safetensors"), given / "model.safetensors", {"changed": "yes"})
    with pytest.raises(ModelError, match=r"run: holds a run with another recipe \(net\.encoder\)"):
        train(store, split, recipe, run)


def photographs(width: int, folder: Path) -> Path:
    "Weights by the names of a VGG with batch norm, its biases included; those of its classifier, too."
    torch.manual_seed(7)
    layers, channels = [], 3
    for stage in range(4):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width * 2**stage, 3), nn.BatchNorm2d(width * 2**stage), nn.ReLU()]
            channels = width * 2**stage
        layers.append(nn.MaxPool2d(2))
    given = {f"features.{k}": v for k, v in nn.Sequential(*layers).state_dict().items()}
    save_file(given | {"classifier.0.weight": torch.ones(2, 2)}, folder / "vgg.safetensors")
    return folder / "vgg.safetensors"


@pytest.mark.parametrize("names", ["vgg13_bn", "encoder.down."])
def test_a_recipe_says_by_which_names_a_way_down_is_to_be_taken(store, split, tmp_path, names):
    "The recipe lies beside the weights; the run keeps both, goes on with them, and is repeated without them."
    (tmp_path / "given").mkdir()
    if names == "vgg13_bn":
        path = photographs(4, tmp_path / "given")
    else:
        ours = {f"encoder.{k}": v for k, v in build_network(Net(width=4, depth=3), 3).state_dict().items()}
        save_file(ours, path := tmp_path / "given" / "other.safetensors")
    recipe = TINY.but(
        net={"depth": 3, "dropout": 0.0}, prepare={"neighbours": 1}, fit={"epochs": 2, "ema": 0.0}
    )
    recipe = recipe.but(net={"encoder": path.name, "encoder_names": names, "frozen": 2})
    (tmp_path / "given" / "mine.toml").write_text(recipe_to_toml(recipe), encoding="utf-8")
    one = train(store, split, load_recipe(tmp_path / "given" / "mine.toml"), tmp_path / "one")
    given, taken = load_file(path), load_file(one / "model.safetensors")
    first = next(w for name, w in given.items() if w.ndim == 4)
    assert torch.equal(taken["down.0.0.weight"], first)
    shutil.rmtree(tmp_path / "given")
    again, parts = like(one, store)
    assert again.net.encoder_names == names
    assert same_weights(train(store, parts, again, tmp_path / "two"), one)
    with pytest.raises(ModelError, match=r"nothing fits the way down: expected \"down\.0\.0\.weight\""):
        train(store, parts, again.but(net={"encoder_names": ""}), tmp_path / "three")


@pytest.mark.parametrize(
    ("names", "encoder", "why"),
    [
        (
            "vgg13-bn",
            "x",
            r'expected "", "vgg13_bn" or a beginning .*got \'vgg13-bn\'; did you mean "vgg13_bn"\?',
        ),
        ("vgg13_bn", "", 'expected "" without net.encoder'),
    ],
)
def test_names_of_a_way_down_that_cannot_be_meant_are_refused(names, encoder, why):
    with pytest.raises(ModelError, match=f"recipe net.encoder_names: {why}"):
        Recipe().but(net={"encoder": encoder, "encoder_names": names})


@pytest.mark.parametrize("what", ["absent", "unlike"])
def test_an_encoder_that_cannot_be_taken_leaves_no_folder_and_no_run_harmed(
    store, split, calm, tmp_path, what
):
    encoder, other = str(tmp_path / "nowhere") if what == "absent" else str(calm), {"width": 6}
    recipe = TINY.but(net={"encoder": encoder, **other})
    with pytest.raises(ModelError, match=r"^nowhere: .* found no weights|^calm: expected "):
        train(store, split, recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = shutil.copytree(calm, tmp_path / "calm")
    with pytest.raises(ModelError):
        train(store, split, recipe, run, resume=False)
    assert same_weights(run, calm)


def test_a_request_that_failed_gives_way_to_another(store, split, tmp_path):
    "The loss of the first is no number: no checkpoint, no history, no model, so no need of another folder."
    wild = TINY.but(fit={"lr": 1e30, "warmup": 0.0, "clip": 0.0})
    with pytest.raises(ModelError, match=r"lower fit\.lr than 1e\+30, in another folder or with --no-resume"):
        train(store, split, wild, tmp_path / "run")
    run = train(store, split, TINY.but(fit={"epochs": 1}), tmp_path / "run")
    assert len(read_history(run)) == 1


def test_a_new_start_leaves_nothing_of_the_run_before(store, split, calm, tmp_path):
    run = shutil.copytree(calm, tmp_path / "run")
    for name in ("evaluation/predictions", "tensorboard", "mine"):
        (run / name).mkdir(parents=True)
        (run / name / "file").write_text("of the run before", encoding="utf-8")
    write_json(run / "mlflow.json", {"run_id": "of the run before"})
    train(store, split, TINY.but(fit={"epochs": 1}), run, resume=False)
    left = {"mine"}
    assert {f.name for f in run.iterdir()} == left | {f.name for f in calm.iterdir()}


def test_weights_that_are_no_numbers_never_become_a_checkpoint(store, split, tmp_path):
    "The second step breaks one, and no loss has told yet."
    calls, really = iter(range(10**6)), training.take_step

    def breaking(net, *rest):
        really(net, *rest)
        if next(calls) == 1:
            next(net.parameters()).data[0] = math.inf

    with (
        patch.object(training, "take_step", breaking),
        patch.object(training, "KEEP_EVERY", 0.0),
        pytest.raises(
            ModelError, match=r"epoch 1: the weights are no finite numbers .* \(1 step\) is whole;"
        ),
    ):
        train(store, split, TINY, tmp_path / "run")
    assert [f.stem for f in checkpoints(tmp_path / "run" / "checkpoint")] == ["epoch_0000_step_000001"]


def test_compiling_falls_back_to_the_network_as_it_is_and_says_why(store, split, calm, tmp_path):
    broken = patch.object(torch, "compile", side_effect=RuntimeError("no working C++ compiler found"))
    with broken, pytest.warns(training.EagerWarning, match="no working C"):
        run = train(store, split, TINY.but(fit={"compile": "always"}), tmp_path / "run")
    assert same_weights(run, calm)


def test_what_a_killed_training_left_is_swept_away(store, split, tmp_path):
    left = tmp_path / "run" / ".slices_left" / "train"
    left.mkdir(parents=True)
    train(store, split, TINY.but(fit={"epochs": 1}), tmp_path / "run")
    assert not left.exists()
