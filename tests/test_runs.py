"Runs on disk: checkpoints that survive, folders that say what they are of, recipes that say what is wrong."

import json
import os
import platform
import shutil
import subprocess
import sys
from copy import deepcopy
from getpass import getuser
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from lungseg import cli
from lungseg.cohort import Store
from lungseg.core import ModelError, read_json, write_json
from lungseg.phantom import LABELS, draw_phantom
from lungseg.predict import load_model
from lungseg.recipe import Recipe, flat, load_recipe, recipe_from_toml, recipe_help, with_settings
from lungseg.runs import (
    DamagedCheckpointWarning,
    Progress,
    checkpoints,
    describe_run,
    like,
    load_checkpoint,
    on_disk,
    read_history,
    save_checkpoint,
    save_weights,
    write_history,
)
from lungseg.schedules import plateaus, stalled
from lungseg.train import train
from lungseg.watch import WatchingWarning, check_logs, watching


def beginning(seed: int = 0, optimiser: type = torch.optim.AdamW) -> Progress:
    "A small network with batch norm and dropout, before its first step."
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 3))
    return Progress(net, deepcopy(net), optimiser(net.parameters(), lr=0.01), Recipe(name="small"))


def a_step(state: Progress) -> None:
    torch.manual_seed(state.step)  # all chance depends on the step
    state.optimiser.zero_grad()
    state.net(torch.rand(2, 1, 8, 8)).square().mean().backward()
    state.optimiser.step()
    for old, new in zip(state.average.parameters(), state.net.parameters(), strict=True):
        old.data.lerp_(new.data, 0.1)
    state.step += 1


def all_of(state: Progress) -> list[torch.Tensor]:
    "Every number that a step changes."
    kept = state.optimiser.state_dict()["state"].values()
    tensors = [*state.net.state_dict().values(), *state.average.state_dict().values()]
    return [*tensors, *(v for one in kept for v in one.values() if isinstance(v, torch.Tensor))]


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.SGD])
def test_after_any_step_a_checkpoint_goes_on_to_the_same_bits(tmp_path, optimiser):
    calm = beginning(optimiser=optimiser)
    for _ in range(6):
        a_step(calm)
    for stop in range(6):
        state = beginning(optimiser=optimiser)
        for _ in range(stop):
            a_step(state)
        state.running, state.order = {"loss": 0.1 * stop}, [2, 0, 1]
        save_checkpoint(state, tmp_path / "checkpoint")
        torch.manual_seed(99)
        again = beginning(seed=stop + 1, optimiser=optimiser)
        assert load_checkpoint(again, tmp_path / "checkpoint")
        assert (again.step, again.running, again.order) == (stop, {"loss": 0.1 * stop}, [2, 0, 1])
        for _ in range(6 - stop):
            a_step(again)
        assert all(torch.equal(a, b) for a, b in zip(all_of(again), all_of(calm), strict=True))


HARDSHIP = """
import os, random, resource, signal, sys, time, warnings
from pathlib import Path
import torch
from torch import nn
from lungseg.core import ModelError
from lungseg.runs import Progress, load_checkpoint, save_checkpoint
warnings.simplefilter("error")
folder, moments, before = Path(sys.argv[1]) / "run" / "checkpoint", random.Random(0), 0

def last():
    net = nn.Linear(256, 256)
    state = Progress(net, net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    load_checkpoint(state, folder)
    return state

def save_for_ever():
    state = last()
    while True:
        state.step += 1
        nn.init.constant_(state.net.weight, state.step)
        save_checkpoint(state, folder)

for _ in range(12):
    child = os.fork()
    if not child:
        save_for_ever()
    while last().step == before:  # until it has saved at least once
        time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = last()
    assert state.step > before and (state.net.weight == state.step).all(), (state.step, before)
    before = state.step
state.step = 10**6 - 1  # the next one has a digit more
save_checkpoint(state, folder)
print(len(list(folder.iterdir())))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # from here on, larger files are refused
largest = max(f.stat().st_size for f in folder.iterdir()) + 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
state.step, state.order = 10**6, list(range(10**6))
try:
    save_checkpoint(state, folder)
except ModelError as e:
    print(e)
print(last().step)
"""


@pytest.fixture(scope="module")
def after_hardship(tmp_path_factory) -> list[str]:
    "What a process says that was killed again and again while it saved, and then has no room left."
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked on this system")
    words = [sys.executable, "-c", HARDSHIP, str(tmp_path_factory.mktemp("hardship"))]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(after_hardship):
    "Twelve times, at random moments; what the killed ones left half written is gone with the next one."
    assert int(after_hardship[0]) <= 2


def test_a_disk_that_takes_no_more_leaves_the_last_checkpoint(after_hardship):
    assert after_hardship[1:] == [
        "run: a checkpoint could not be written (File too large); the last checkpoint (999999 steps) is whole"
        ": mend that, and the same call goes on",
        "999999",
    ]


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "pickle"])
def test_a_damaged_checkpoint_is_seen_and_the_one_before_is_taken(tmp_path, damage):
    state = beginning()
    for _ in range(2):
        a_step(state)
        newest = save_checkpoint(state, tmp_path / "run" / "checkpoint")
    content = newest.read_bytes()
    flipped = bytearray(content)
    flipped[-len(content) // 3] ^= 4
    newest.write_bytes(
        {
            "cut": content[:-1],
            "bit": bytes(flipped),
            "empty": b"",
            "other": b"what is this\n" * 9,
            "pickle": b"cos\nsystem\n(S'true'\ntR.",
        }[damage]
    )
    again = beginning(1)
    with pytest.warns(
        DamagedCheckpointWarning, match="run: the checkpoint after 2 steps is damaged; going on"
    ):
        assert load_checkpoint(again, tmp_path / "run" / "checkpoint")
    assert again.step == 1 and not newest.exists()
    checkpoints(tmp_path / "run" / "checkpoint")[0].write_bytes(b"")
    with pytest.raises(ModelError, match=r"damaged \(after 1 step\); start anew in another folder"):
        load_checkpoint(again, tmp_path / "run" / "checkpoint")


def test_a_checkpoint_that_would_run_code_does_not(tmp_path):
    "The hash is right, and still nothing but tensors and plain values is unpickled."
    from hashlib import sha256
    from io import BytesIO

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"net": Harm()}, content := BytesIO())
    path = tmp_path / "run" / "checkpoint" / "epoch_0000_step_000001.pt"
    path.parent.mkdir(parents=True)
    digest = sha256(content.getvalue()).hexdigest().encode()
    path.write_bytes(b"lungseg checkpoint 1 sha256 " + digest + b"\n" + content.getvalue())
    with pytest.raises(ModelError, match="cannot be read"):
        load_checkpoint(beginning(), path.parent)
    assert not (tmp_path / "harm").exists()


def test_checkpoints_of_an_older_lungseg_are_named_as_such(tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    folder.mkdir(parents=True)
    for name in ("epoch_0004.pt", "epoch_0004.safetensors"):
        (folder / name).write_bytes(b"weights")
    with pytest.raises(ModelError, match="run: its checkpoint cannot be read, it is written by an older"):
        load_checkpoint(beginning(), folder)


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    run = tmp_path / "run"
    for what, write in (
        ("model.safetensors", lambda: save_weights(nn.Linear(1, 1), Recipe(), run / "model.safetensors")),
        ("history.csv", lambda: write_history(run / "history.csv", [])),
        ("a checkpoint", lambda: save_checkpoint(beginning(), run / "checkpoint")),
    ):
        with pytest.raises(ModelError, match=rf"^run: {what} could not be written \(.*\); no checkpoint is"):
            write()
    with pytest.raises(ModelError, match=r"run\.json could not be written"), on_disk("run.json", run):
        write_json(run / "run.json", {})


# ---- recipes


def test_weights_of_old_get_defaults_and_weights_of_a_newer_lungseg_are_refused(tmp_path):
    recipe = Recipe().but(net={"width": 2, "depth": 1})
    from lungseg.train import make_net

    path = save_weights(make_net(recipe), recipe, tmp_path / "model.safetensors", epoch="1")
    assert load_model(path, device="cpu").recipe == recipe
    weights = load_file(path)
    old = {"format": "lungseg 1", "recipe": "[net]\nwidth = 2\ndepth = 1\n"}
    save_file(weights, path, old)
    assert load_model(path, device="cpu").recipe == recipe
    save_file(weights, path, old | {"recipe": old["recipe"] + "[fit]\nforesight = 1", "lungseg": "99.0"})
    with pytest.raises(ModelError, match=r'\[fit\]: unknown key "foresight".*lungseg 99\.0 wrote it'):
        load_model(path, device="cpu")
    save_file(weights, path, old | {"format": "lungseg 2"})
    with pytest.raises(ModelError, match="got 'lungseg 2': a newer lungseg wrote them"):
        load_model(path, device="cpu")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed=-1", r"seed: expected 0 to 2\*\*63 - 1, got -1"),
        (f"seed={2**63}", r"seed: expected 0 to 2\*\*63 - 1"),
        ("prepare.size=5000", "size: expected 8 to 4096 pixels, got 5000"),
        ("augment.shift=0.6", "shift: expected 0 to 0.5, got 0.6"),
        ("augment.rotate_deg=181", "rotate_deg: expected 0 to 180, got 181.0"),
        ("augment.scale=1.5", "scale: expected 0 to 1, got 1.5"),
        ("augment.noise=30", "noise: expected 0 to 1, got 30.0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(setting, expected):
    with pytest.raises(ModelError, match=expected):
        with_settings(Recipe(), [setting])
    assert with_settings(Recipe(), [f"seed={2**63 - 1}"]).seed == 2**63 - 1


def test_a_recipe_that_is_not_utf_8_is_one_error(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b'name = "L\xfcbeck"\n')
    with pytest.raises(ModelError, match=r"^mine\.toml: expected UTF-8, but byte 9 is 0xfc$"):
        load_recipe(tmp_path / "mine.toml")


# ---- when to slow down, and when to stop


def an_epoch(dice: float, loss: float = 1.0) -> dict[str, float]:
    return {"validation_dice": dice, "train_loss": loss}


NONE = float("nan")


@pytest.mark.parametrize(
    "dices",
    [
        [0.8, 0.8, 0.8, 0.8, NONE, 0.7, NONE, 0.9, 0.9, 0.9, 0.9],
        [NONE, NONE, NONE, NONE, 0.5, 0.6, NONE, 0.6, 0.6, 0.6],
        [NONE] * 12,
    ],
)
def test_a_rate_that_has_fallen_on_a_plateau_never_comes_back_up(dices):
    rows = [an_epoch(dice) for dice in dices]
    counts = [plateaus(rows[:n]) for n in range(len(rows) + 1)]
    assert counts == sorted(counts) and counts[-1] > 0


def test_only_numbers_tell_when_to_stop():
    assert not stalled([an_epoch(NONE)] * 20, 1)
    rows = [an_epoch(dice) for dice in (0.5, NONE, NONE, NONE, 0.4)]
    assert not stalled(rows, 2) and stalled([*rows, an_epoch(0.4)], 2)
    assert plateaus([an_epoch(0.5, loss) for loss in (3.0, 2.0, 1.0)] + [an_epoch(NONE, 0.5)] * 9) == 0


def test_every_key_of_a_recipe_is_explained():
    known = recipe_help()
    assert list(known.index) == list(flat(Recipe()))
    assert [key for key, row in known.iterrows() if not row.meaning] == []


def test_every_key_of_a_recipe_refuses_what_it_is_not():
    "A misspelt key leads to a valid one; a list in its place is an error that names it."
    for key, value in flat(Recipe()).items():
        table, _, name = key.rpartition(".")
        head = f"[{table}]\n" if table else ""
        with pytest.raises(ModelError, match=f'unknown key "{name}x"; (did you mean|known are)'):
            recipe_from_toml(f"{head}{name}x = 1")
        with pytest.raises(ModelError, match=rf"{name}: expected .*, got \[1, 2\]"):
            recipe_from_toml(f"{head}{name} = [1, 2]")
        if isinstance(value, float):
            for number in ("nan", "inf", "-inf"):
                with pytest.raises(ModelError, match=f"{name}: expected a finite number, got {number}"):
                    with_settings(Recipe(), [f"{key}={number}"])
        word = str(value).lower() if isinstance(value, bool) else value
        assert with_settings(Recipe(), [f"{key}={word}"]) == Recipe()


def test_the_file_of_a_faulty_recipe_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text("[fit]\nlr = -1\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"^mine\.toml fit\.lr: expected 1e-12 or more, got -1\.0$"):
        load_recipe(tmp_path / "mine.toml")


# ---- once more, from the command line


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    said = [line for line in done.stderr.splitlines() if line.startswith("lungseg ")]
    return done.exit_code, "\n".join(said)


def cohort(folder: Path, seeds: tuple[int, ...]) -> Path:
    "Volumes with masks."
    folder.mkdir()
    for i, seed in enumerate(seeds):
        p = draw_phantom(seed, size=64, slices=12)
        lungs = np.isin(p.labels, [LABELS["lung_left"], LABELS["lung_right"]])
        np.savez(folder / f"Case_{i:03d}.npz", hu=p.hu, mask=lungs.astype(np.uint8))
    return folder


SETTINGS = ("prepare.size=32", "net.width=2", "net.depth=1", "net.patch=1", "fit.epochs=2", "fit.batch=8")
SETTINGS += ("fit.deterministic=true", "fit.precision=float32", "net.dropout=0.1")


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    "A folder with data, and a run on them."
    home = tmp_path_factory.mktemp("like")
    data = cohort(home / "data", (0, 1, 2))
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    done, said = run("train", data, home / "first", "--seed", 4, *words)
    assert done == 0, said
    return home


def test_a_run_like_another_has_its_weights(first):
    done, said = run("train", first / "data", first / "again", "--like", first / "first")
    assert done == 0, said
    one, two = (load_file(first / name / "model.safetensors") for name in ("first", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert like(first / "again") == like(first / "first")
    assert like(first / "first")[0].seed == 4 and like(first / "first")[0].fit.deterministic


def test_a_run_like_another_on_another_machine_says_what_is_not_the_same(first, tmp_path):
    earlier = shutil.copytree(first / "first", tmp_path / "earlier")
    told = read_json(earlier / "run.json")
    write_json(earlier / "run.json", told | {"versions": told["versions"] | {"torch": "1.0"}})
    words = ["train", first / "data", tmp_path / "again", "--like", earlier]
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0
    assert f"earlier: torch 1.0 then, {torch.__version__} now; digits may differ" in done.stdout


def test_a_run_like_another_on_other_data_is_refused_and_names_the_cases(first, tmp_path):
    known = like(first / "first")[1]
    changed = known["train"][0]
    seeds = tuple(7 if f"Case_{i:03d}" == changed else i for i in range(3))
    other = cohort(tmp_path / "other", seeds)
    done, said = run("train", other, tmp_path / "again", "--like", first / "first")
    assert done == 2 and said.endswith(f"first: cannot be repeated on other data: {changed} not the same")
    (other / f"{changed}.npz").unlink()
    done, said = run("train", other, tmp_path / "less", "--like", first / "first")
    assert done == 2 and said.endswith(f"first: cannot be repeated on other data: {changed} absent")
    assert not (tmp_path / "less" / "recipe.toml").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--like", "first", "--seed", "1"), "--like takes recipe, split and seed from the run"),
        (("--like", "data"), "data: expected the folder of a run, found no recipe.toml in it"),
        (("--set", "fit.learning=1"), "setting 'fit.learning=1': unknown key \"fit.learning\""),
        (("--set", "fit.lr"), "expected KEY=VALUE, for example fit.lr=0.01"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(first, tmp_path, words, why):
    words = [first / word if word in ("first", "data") else word for word in words]
    done, said = run("train", first / "data", tmp_path / "run", *words)
    assert done == 2 and why in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "crossvalidate", "search"])
@pytest.mark.parametrize("where", ["data", "data/run"])
def test_nothing_is_trained_in_the_folder_of_the_data(first, verb, where):
    before = sorted(first.joinpath("data").rglob("*"))
    done, said = run(verb, first / "data", first / where)
    assert done == 2 and f"{Path(where).name}: lies in the folder that is read" in said
    assert sorted(first.joinpath("data").rglob("*")) == before


def test_a_run_that_was_finished_before_is_called_so(first):
    words = ["train", first / "data", first / "first", "--like", first / "first"]
    assert "finished before: trained on" in CliRunner().invoke(cli.app, [*map(str, words)]).stdout


def test_a_run_says_with_what_it_was_made_and_not_by_whom(first):
    told = read_json(first / "first" / "run.json")
    assert {"system", "processor", "cores", "memory_gib", "gpu"} == told["hardware"].keys()
    assert {"python", "torch", "numpy", "lungseg", "safetensors"} <= told["versions"].keys()
    assert told["seed"] == 4 and told["threads"] >= 1
    files = [f for f in (first / "first").iterdir() if f.suffix in (".json", ".toml", ".csv")]
    text = "\n".join(f.read_text("utf-8") for f in files)
    words = {str(first), str(Path.home()), platform.node(), getuser()} - {"", "/", "root", "localhost"}
    assert {f.name for f in files} >= {"recipe.toml", "split.json", "data.json", "run.json", "history.csv"}
    assert [word for word in words if word in text] == []


def test_a_recipe_from_a_newer_lungseg_in_a_runs_folder_is_named(first, tmp_path):
    shutil.copytree(first / "first", tmp_path / "newer")
    with (tmp_path / "newer" / "recipe.toml").open("a", encoding="utf-8") as f:
        f.write("foresight = 1\n")
    with pytest.raises(ModelError, match=r'newer, recipe\.toml \[fit\]: unknown key "foresight"'):
        like(tmp_path / "newer")


# ---- watching


ROW = {
    "epoch": 1.0,
    "step": 5.0,
    "lr": 0.1,
    "train_loss": 0.5,
    "validation_dice": float("nan"),
    "seconds": 1.0,
}


def test_a_log_whose_package_is_absent_says_what_to_install(monkeypatch):
    monkeypatch.setattr("lungseg.watch.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'tensorboard was asked for .* pip install "lungseg\[log\]"'):
        check_logs(["tensorboard"])


def test_tensorboards_file_tells_nothing_of_the_machine(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra lungseg[log]")
    with watching(tmp_path, Recipe(), ["tensorboard"]) as seen:
        seen([ROW], 1)
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.name == "events.out.tfevents.0000"
    assert platform.node().encode() not in path.read_bytes() or platform.node() in ("", "localhost")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["loss/train", "lr", "seconds"]  # NaN is not known


class Client:
    "Stands in for MLflow's client: what it was told, in `told`."

    told: ClassVar[dict] = {}

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return name

    def create_run(self, experiment, run_name):
        self.told[run_name] = {"experiment": experiment, "params": {}, "metrics": [], "ends": []}
        info = type("Info", (), {"run_id": run_name})
        return type("Run", (), {"info": info})

    def log_param(self, run_id, key, value):
        self.told[run_id]["params"][key] = value

    def log_metric(self, run_id, key, value, step):
        self.told[run_id]["metrics"].append((step, key, value))

    def get_metric_history(self, run_id, key):
        point = type("Metric", (), {})
        steps = [step for step, name, _ in self.told[run_id]["metrics"] if name == key]
        return [type("Metric", (point,), {"step": step}) for step in steps]

    def update_run(self, run_id, status):
        self.told[run_id]["ends"].append(status)

    def set_terminated(self, run_id, status):
        self.told[run_id]["ends"].append(status)


def test_mlflow_gets_the_recipe_once_and_each_row_though_the_run_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", type(sys)("mlflow"))
    monkeypatch.setattr(sys.modules["mlflow"], "MlflowClient", Client, raising=False)
    monkeypatch.setattr("lungseg.watch.find_spec", lambda name: True)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), watching(folder, Recipe(), ["mlflow"]) as seen:
        seen([ROW], 2)
        raise KeyboardInterrupt
    with watching(folder, Recipe(), ["mlflow"]) as seen:
        seen([ROW, ROW | {"epoch": 2.0}], 2)
    told = Client.told["run"]
    assert told["ends"] == ["RUNNING", "KILLED", "RUNNING", "FINISHED"] and told["experiment"] == "lungseg"
    assert told["params"] == flat(Recipe())
    assert [m for m in told["metrics"] if m[1] == "loss/train"] == [
        (1, "loss/train", 0.5),
        (2, "loss/train", 0.5),
    ]
    assert json.loads((folder / "mlflow.json").read_text("utf-8")) == {"run_id": "run"}


def test_mlflow_gets_all_rows_that_it_lacks(tmp_path, monkeypatch):
    "Those of before it was asked for, and those that were lost while its server was down; none twice."
    monkeypatch.setitem(sys.modules, "mlflow", type(sys)("mlflow"))
    down = []

    class Shaky(Client):
        def log_metric(self, run_id, key, value, step):
            if down and key == "seconds":
                raise ConnectionError("the server is down")
            super().log_metric(run_id, key, value, step)

    monkeypatch.setattr(sys.modules["mlflow"], "MlflowClient", Shaky, raising=False)
    monkeypatch.setattr("lungseg.watch.find_spec", lambda name: True)
    rows = [ROW | {"epoch": float(n)} for n in range(1, 6)]
    with watching(tmp_path / "late", Recipe(), ["mlflow"]) as seen:
        seen(rows[:2], 5)
        down.append(True)
        with pytest.warns(WatchingWarning, match="the server is down"):
            seen(rows[:3], 5)
        down.clear()
        seen(rows[:4], 5)
    with watching(tmp_path / "late", Recipe(), ["mlflow"]) as seen:
        seen(rows[:4], 5)
        seen(rows, 5)
    assert [step for step, key, _ in Client.told["late"]["metrics"] if key == "lr"] == [1, 2, 3, 4, 5]
    assert [step for step, key, _ in Client.told["late"]["metrics"] if key == "seconds"] == [1, 2, 3, 4, 5]


def test_a_log_that_fails_does_not_end_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", type(sys)("mlflow"))

    class Down(Client):
        def log_metric(self, run_id, key, value, step):
            raise ConnectionError("the server is down")

    monkeypatch.setattr(sys.modules["mlflow"], "MlflowClient", Down, raising=False)
    monkeypatch.setattr("lungseg.watch.find_spec", lambda name: True)
    with watching(tmp_path / "run", Recipe(), ["mlflow"]) as seen:
        with pytest.warns(
            WatchingWarning, match="mlflow: ConnectionError: the server is down; training goes on"
        ):
            seen([ROW], 1)


def test_a_run_that_is_watched_with_tensorboard_has_every_epoch_there(first, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra lungseg[log]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done, said = run(
        "train", first / "data", tmp_path / "run", "--like", first / "first", "--log", "tensorboard"
    )
    assert done == 0, said
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    kept = read_history(tmp_path / "run").train_loss
    assert [e.value for e in read.Scalars("loss/train")] == pytest.approx(list(kept), rel=1e-4)
    done, said = run("train", first / "data", tmp_path / "other", "--log", "tensorbord")
    assert done == 2 and "got 'tensorbord'; did you mean \"tensorboard\"?" in said


def test_a_run_whose_log_is_asked_for_afterwards_has_every_epoch_there(first, tmp_path):
    "In the middle: before the next epoch is over. After the end: with a word that it was the end."
    pytest.importorskip("tensorboard", reason="needs the extra lungseg[log]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def epochs_there(run: Path) -> list[int]:
        read = EventAccumulator(str(run / "tensorboard"))
        read.Reload()
        return [e.step for e in read.Scalars("loss/train")]

    done, half = shutil.copytree(first / "first", tmp_path / "done"), tmp_path / "half"
    store, (recipe, split) = Store(done / "store"), like(done)
    with pytest.warns(
        WatchingWarning, match="done: was finished before, nothing is trained; its 2 epochs are"
    ):
        train(store, split, recipe, done, logs=["tensorboard"])
    assert epochs_there(done) == [1, 2]

    def stop(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, split, recipe, half, on_epoch=stop)
    with patch("lungseg.train.train_epoch", stop), pytest.raises(KeyboardInterrupt):
        train(store, split, recipe, half, logs=["tensorboard"])
    assert epochs_there(half) == [1]


def test_slices_that_do_not_fit_on_the_disk_are_an_error_before_the_training(first, tmp_path, monkeypatch):
    "A file that is mapped and has no room would end the process when it is written to, without a word."
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("files cannot be reserved on this system")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("lungseg.train.IN_MEMORY", 0)
    done, said = run("train", first / "data", tmp_path / "run", "--like", first / "first")
    assert done == 2
    assert said.endswith("prepared slices: 0.0 GiB cannot be written (No space left on device): make room")
    assert not list((tmp_path / "run").glob(".slices_*"))


def test_equal_weights_are_equal_files(tmp_path):
    torch.manual_seed(0)
    net, about = nn.Conv2d(1, 2, 3), {name: 'å, "b"' for name in "zyxwvutsrq"}
    files = [save_weights(net, Recipe(), tmp_path / f"{k}.safetensors", **about) for k in range(8)]
    assert len({f.read_bytes() for f in files}) == 1
    assert all(torch.equal(w, net.state_dict()[name]) for name, w in load_file(files[0]).items())
    with safe_open(files[0], "pt") as f:
        assert about.items() <= f.metadata().items()
        assert recipe_from_toml(f.metadata()["recipe"]) == Recipe()


def test_a_run_counts_the_weights_that_are_held_still(tmp_path):
    from lightning_fabric import Fabric

    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))
    net[0].requires_grad_(False)
    state = Progress(net, net, torch.optim.SGD(net[1].parameters()), Recipe())
    told = describe_run(state, Fabric(accelerator="cpu", devices=1), finished=False)
    assert told["parameters"] == 2 * 9 + 2 + 2 * 9 + 1
