"Training in processes that are killed, interrupted, or several: as if one calm process had done it."

import multiprocessing
import os
import random
import shutil
import signal
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
import torch
from chests import store_of, write_chests
from safetensors.torch import load_file

from lungseg import train as training
from lungseg.cohort import Store
from lungseg.core import ModelError, read_json
from lungseg.recipe import Fit, Net, Recipe
from lungseg.runs import check_free, checkpoints, read_history
from lungseg.slices import Preparation

TINY = Recipe(
    name="tiny",
    prepare=Preparation(size=32),
    net=Net(width=4, depth=2, dropout=0.1),
    fit=Fit(epochs=8, batch=2, lr=1e-2, ema=0.8, precision="float32", deterministic=True, schedule="plateau"),
)


@pytest.fixture(scope="module")
def started():
    "What starts a process in which lungseg is imported already."
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lungseg.train", "lightning_fabric", "lungseg.isolate", "pytest"])
    return context.Process


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "Three phantoms of 12 slices of 64 × 64, as a store."
    return store_of(write_chests(tmp_path_factory.mktemp("cohort") / "volumes", 3))


def fit(
    store: Path,
    recipe: Recipe,
    run: Path,
    environment: dict[str, str],
    parts: dict[str, int],
    every: float = 0.0,  # seconds between checkpoints; 0: one after each step
    steps: Path | None = None,  # gets a byte for each step that is taken
) -> None:
    "A training in a process of its own."
    os.environ |= environment
    torch.set_num_threads(1)
    training.KEEP_EVERY = every
    if steps:
        training.take_step = counted(training.take_step, steps)
    store, ends = Store(store), list(np.cumsum([0, *parts.values()]))
    split = {part: store.names[a:b] for part, a, b in zip(parts, ends[:-1], ends[1:], strict=True)}
    try:
        training.train(store, split, recipe, run)
    except KeyboardInterrupt as e:
        (run / "stopped.txt").write_text(str(e), encoding="utf-8")


def counted(step: Callable, steps: Path) -> Callable:
    "A step that is noted, and takes its time."

    def noting(*words: object) -> None:
        step(*words)
        with steps.open("ab") as f:
            f.write(b".")
        sleep(0.02)

    return noting


PARTS = {"train": 1, "validation": 1, "test": 1}


def finished(process) -> None:
    process.join(120)
    assert process.exitcode == 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def where(run: Path) -> str:
    "The newest checkpoint's name."
    return next((f.stem for f in checkpoints(run / "checkpoint")), "")


@pytest.fixture(scope="module")
def calm(started, store, tmp_path_factory):
    "A run that nobody disturbed."
    run = tmp_path_factory.mktemp("runs") / "calm"
    process = started(target=fit, args=(store.path, TINY, run, {}, PARTS))
    process.start()
    finished(process)
    return run


def same(run: Path, calm: Path) -> None:
    a, b = weights(run), weights(calm)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    columns = [c for c in read_history(calm).columns if c not in ("seconds", "slices_per_s")]
    assert read_history(run)[columns].equals(read_history(calm)[columns])
    assert read_json(run / "run.json")["finished"] and not list(run.glob(".slices_*"))


def until(run: Path, process, moved_from: str) -> None:
    "Wait until a checkpoint follows the given one, or the process ends."
    end = monotonic() + 60
    while where(run) == moved_from and process.is_alive() and monotonic() < end:
        sleep(0.002)


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(started, store, calm, tmp_path):
    "Five times: without warning, while it prepares, steps, validates or writes, wherever that is."
    run, chance, killed = tmp_path / "run", random.Random(6), []
    for kill in range(5):
        process = started(target=fit, args=(store.path, TINY, run, {}, PARTS))
        before = where(run)
        process.start()
        if kill:  # the first dies before it has begun
            until(run, process, before)
        sleep(chance.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed.append((process.exitcode, where(run)))
    assert all(code == -signal.SIGKILL for code, _ in killed), killed
    assert any("step_000000" not in name for _, name in killed[1:])  # in the middle of an epoch
    process = started(target=fit, args=(store.path, TINY, run, {}, PARTS))
    process.start()
    finished(process)
    same(run, calm)


def test_a_run_killed_far_from_a_checkpoint_takes_its_steps_again(started, store, calm, tmp_path):
    "Checkpoints are some tenths of a second apart, so that each kill costs steps; the weights do not tell."
    run, chance, steps = tmp_path / "run", random.Random(3), tmp_path / "steps"
    args = (store.path, TINY, run, {}, PARTS, 0.3, steps)
    steps.touch()
    for _ in range(4):
        process, before = started(target=fit, args=args), where(run)
        process.start()
        until(run, process, before)
        had, more, end = steps.stat().st_size, chance.randint(1, 4), monotonic() + 60
        while steps.stat().st_size < had + more and process.is_alive() and monotonic() < end:
            sleep(0.002)
        sleep(chance.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process = started(target=fit, args=args)
    process.start()
    finished(process)
    same(run, calm)
    assert steps.stat().st_size > read_history(calm).step.iloc[-1]  # some were taken twice


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_keeps_its_last_step_and_says_so(started, store, calm, tmp_path, which):
    run = tmp_path / "run"
    process = started(target=fit, args=(store.path, TINY, run, {}, PARTS))
    process.start()
    until(run, process, "")
    os.kill(process.pid, which)
    finished(process)
    said = (run / "stopped.txt").read_text(encoding="utf-8")
    (run / "stopped.txt").unlink()
    _, epochs, _, steps = where(run).split("_")
    assert "the last checkpoint (" in said and "the same call goes on" in said
    assert int(epochs) == 0 or f"({int(epochs)} epoch" in said
    assert int(steps) == 0 or f"{int(steps)} step" in said
    assert not (run / "run.json").exists() or not read_json(run / "run.json")["finished"]
    process = started(target=fit, args=(store.path, TINY, run, {}, PARTS))
    process.start()
    finished(process)
    same(run, calm)


BUSY = "run: another training is at work in this folder; wait until it ends, or train in another folder"


def here(store: Store, run: Path) -> Path:
    "The same training in this process."
    split = {part: [name] for part, name in zip(PARTS, store.names, strict=True)}
    return training.train(store, split, TINY, run)


def test_two_trainings_do_not_share_a_folder_and_a_killed_one_is_in_nobodys_way(
    started, store, calm, tmp_path
):
    run = tmp_path / "run"
    process = started(target=fit, args=(store.path, TINY, run, {}, PARTS))
    process.start()
    until(run, process, "")
    os.kill(process.pid, signal.SIGSTOP)  # it takes its time
    before = (run / "recipe.toml").stat().st_mtime_ns
    with pytest.raises(ModelError, match=BUSY):
        here(store, run)
    with pytest.raises(ModelError, match=BUSY):  # nor is what it has written thrown away
        training.train(store, {"train": store.names}, TINY, run, resume=False)
    with pytest.raises(ModelError, match=BUSY):  # the command asks before it reads the cohort
        check_free(run)
    assert (run / "recipe.toml").stat().st_mtime_ns == before
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    same(here(store, run), calm)


def port() -> str:
    "One that is free now."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def begun(started, many: int, store: Store, recipe: Recipe, run: Path) -> list:
    "A training by several processes, each told its place as torchrun tells it."
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "TORCHELASTIC_RUN_ID": "test"}
    meeting |= {"GROUP_RANK": "0", "WORLD_SIZE": str(many), "LOCAL_WORLD_SIZE": str(many)}
    parts = {"train": 1, "validation": 2}
    processes = [
        started(
            target=fit,
            args=(store.path, recipe, run, meeting | {"RANK": str(k), "LOCAL_RANK": str(k)}, parts),
        )
        for k in range(many)
    ]
    for process in processes:
        process.start()
    return processes


def together(started, many: int, store: Store, recipe: Recipe, run: Path) -> Path:
    "The run that several processes have finished."
    for process in begun(started, many, store, recipe, run):
        finished(process)
    return run


def test_two_processes_learn_what_one_does(started, store, tmp_path):
    "Batch norm, dropout, a Dice over the batch, uneven shares, parts, L1, clip, an average: the same curve."
    recipe = TINY.but(
        net={"dropout": 0.2},
        fit={"batch": 5, "accumulate": 2, "l1": 1e-5, "epochs": 4, "optimiser": "sgd", "lr": 0.1},
    )
    one, two = (together(started, n, store, recipe, tmp_path / f"run_{n}") for n in (1, 2))
    a, b = read_history(one), read_history(two)
    columns = [c for c in a.columns if c not in ("seconds", "slices_per_s")]
    assert a.train_loss.iloc[-1] < a.train_loss.iloc[0]
    np.testing.assert_allclose(b[columns], a[columns], rtol=1e-4, atol=1e-5)
    for name, w in weights(one).items():
        torch.testing.assert_close(weights(two)[name], w, rtol=1e-3, atol=1e-5)
    assert [read_json(run / "run.json")["processes"] for run in (one, two)] == [1, 2]


def test_what_two_processes_began_one_can_end(started, store, tmp_path):
    "One of them is asked to stop, and both do; the curve is that of a single process from the start."
    recipe = TINY.but(net={"dropout": 0.2}, fit={"batch": 3, "epochs": 4, "optimiser": "sgd", "lr": 0.1})
    calm, run = together(started, 1, store, recipe, tmp_path / "calm"), tmp_path / "run"
    processes = begun(started, 2, store, recipe, run)
    until(run, processes[0], "")
    with pytest.raises(ModelError, match=BUSY):
        check_free(run)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        finished(process)
    assert checkpoints(run / "checkpoint") and (run / "stopped.txt").exists()
    assert not (run / "run.json").exists() or not read_json(run / "run.json")["finished"]
    together(started, 1, store, recipe, run)
    a, b = read_history(calm), read_history(run)
    columns = [c for c in a.columns if c not in ("seconds", "slices_per_s")]
    np.testing.assert_allclose(b[columns], a[columns], rtol=1e-4, atol=1e-5)
    for name, w in weights(calm).items():
        torch.testing.assert_close(weights(run)[name], w, rtol=1e-3, atol=1e-5)
    assert read_json(run / "run.json")["processes"] == 1


COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "cl")), None)


def fit_compiled(store: Path, recipe: Recipe, run: Path) -> None:
    "A training in which what `compiled` gives is noted, and a network that is not compiled is an error."
    really = training.compiled

    def noting(*words: object) -> torch.nn.Module:
        model = really(*words)
        (run / "model.txt").write_text(type(model).__name__, encoding="utf-8")
        return model

    warnings.simplefilter("error", training.EagerWarning)
    training.compiled = noting
    fit(store, recipe, run, {}, {"train": 1})


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler, and this machine has none")
def test_a_network_in_machine_code_learns_what_it_learns_as_it_is(started, store, tmp_path):
    "Four steps of the smallest network there is, which is really compiled: about a quarter of a minute."
    recipe = TINY.but(
        prepare={"size": 16},
        net={"width": 2, "depth": 0, "dropout": 0.0},
        fit={"epochs": 2, "batch": 6, "empty": 1.0, "ema": 0.0, "deterministic": False},
    )
    runs = {"never": tmp_path / "plain", "always": tmp_path / "quick"}
    for compile, run in runs.items():
        process = started(target=fit_compiled, args=(store.path, recipe.but(fit={"compile": compile}), run))
        process.start()
        finished(process)
    assert [(run / "model.txt").read_text() for run in runs.values()] == ["UNet", "OptimizedModule"]
    one, two = map(weights, runs.values())
    assert one.keys() == two.keys()  # a machine without a compiler can use them
    for name, w in one.items():
        torch.testing.assert_close(two[name], w, rtol=1e-3, atol=1e-5)
    first = training.make_net(recipe).state_dict()
    assert not torch.allclose(one["head.weight"], first["head.weight"], atol=1e-3)  # it has learnt
    losses = [read_history(run).train_loss for run in runs.values()]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
