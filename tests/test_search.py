"Searches that are shared, killed or short of time; and blind, always, to the patients that will judge."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
from chests import store_of, write_chests
from typer.testing import CliRunner

pytest.importorskip("optuna", reason="needs the extra lungseg[hpo]")

from lungseg import search as under_test
from lungseg.cli import app
from lungseg.cohort import build_store, find_cases
from lungseg.core import InputError, ModelError, read_json
from lungseg.recipe import Recipe, load_recipe, recipe_to_toml
from lungseg.runs import read_history
from lungseg.search import load_space, search, space_from_toml
from lungseg.splits import load_split
from lungseg.train import train

TINY = Recipe().but(
    name="tiny",
    prepare={"size": 32},
    net={"width": 4, "depth": 1},
    fit={"epochs": 1, "batch": 12, "lr": 1e-2, "ema": 0.0, "clip": 0.0, "precision": "float32"},
)
SPACE = "[fit]\nlr = {low = 1e-3, high = 1e-1, log = true}\n[net]\nwidth = {low = 3, high = 6}\n"
AXES = space_from_toml(SPACE)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return write_chests(tmp_path_factory.mktemp("cohort") / "volumes", 3)


@pytest.fixture(scope="module")
def store(volumes):
    return store_of(volumes)


@pytest.fixture(scope="module")
def split(store):
    a, b, c = store.names
    return {"train": [a], "validation": [b], "test": [c]}


def states(out: Path) -> list[str]:
    return pd.read_csv(out / "trials.csv").state.tolist()


def test_the_patients_that_will_judge_are_never_opened(store, split, tmp_path):
    asked, described = [], []

    class Spy(type(store)):
        def case(self, name):
            asked.append(name)
            return super().case(name)

    spy = Spy.__new__(Spy)
    spy.__dict__.update(store.__dict__)
    really = under_test.data_hashes
    with patch.object(
        under_test, "data_hashes", lambda s, names: described.extend(names) or really(s, names)
    ):
        search(spy, split, TINY, AXES, tmp_path / "out", trials=2)
    assert set(asked) == set(described) == {*split["train"], *split["validation"]}
    for run in (tmp_path / "out" / "trials").iterdir():
        assert read_json(run / "split.json")["test"] == []
    assert load_split(tmp_path / "out" / "split.json", store) == split


TAKES_PART = """
import os, signal, sys, time
from pathlib import Path
from lungseg import search as under_test
from lungseg.core import read_json
here, dies, really = Path(sys.argv[1]), sys.argv[2] == "dies", under_test.train

def watched(*told, on_epoch, **options):
    def then(row):
        if dies:
            (here / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while not (here / "died").exists():  # until then the other may not take all the trials
            time.sleep(0.02)
        on_epoch(row)
    return really(*told, on_epoch=then, **options)

under_test.train = watched
under_test.search(here / "store", read_json(here / "split.json"), here / "tiny.toml", here / "space.toml",
                  here / "out", trials=4)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_two_processes_share_a_study_and_what_a_killed_one_had_begun_is_gone_on_with(store, split, tmp_path):
    (tmp_path / "store").symlink_to(store.path, target_is_directory=True)
    (tmp_path / "split.json").write_text(json.dumps(split))
    (tmp_path / "tiny.toml").write_text(recipe_to_toml(TINY.but(fit={"epochs": 2})))
    (tmp_path / "space.toml").write_text(SPACE)
    told, out = [sys.executable, "-c", TAKES_PART, str(tmp_path)], tmp_path / "out"
    quiet = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([*told, how], stderr=subprocess.PIPE, text=True, env=quiet)
        for how in ("dies", "lives")
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [-signal.SIGKILL, 0], said
    log = [json.loads(line) for line in (out / "study.log").read_text().splitlines()]
    workers = {e["user_attr"]["worker"] for e in log if "worker" in e.get("user_attr", {})}
    assert {int(w.split(":")[1]) for w in workers} == {process.pid for process in both}
    assert sorted(states(out)) == ["complete"] * 3 + ["running"]
    with (out / "study.log").open("a") as journal:
        journal.write('{"op_code": 5, "worker_id"')  # it died while it wrote
    (left,) = [run for run in (out / "trials").iterdir() if len(read_history(run)) == 1]
    before = read_history(left).seconds[0]
    search(tmp_path / "store", split, tmp_path / "tiny.toml", tmp_path / "space.toml", out, trials=4)
    table = pd.read_csv(out / "trials.csv")
    assert table.state.tolist() == ["complete"] * 4 and not table.duplicated(["fit.lr", "net.width"]).any()
    assert len(read_history(left)) == 2 and read_history(left).seconds[0] == before
    assert load_recipe(out / "best.toml").fit.lr == pytest.approx(table["fit.lr"][table.dice.idxmax()])


def test_a_loss_that_is_no_number_is_a_failed_trial_and_the_search_goes_on(store, split, tmp_path):
    wild = space_from_toml("[fit]\nlr = {choices = [0.01, 1e30]}\n")
    recipe = TINY.but(fit={"epochs": 2, "warmup": 0.0})
    best = search(store, split, recipe, wild, tmp_path / "out", trials=4)
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert set(table.state[table["fit.lr"] > 1]) == {"failed"}
    assert "complete" in set(table.state) and table.why[table.state == "failed"].str.contains("loss").all()
    assert load_recipe(best).fit.lr == 0.01


def test_if_all_trials_fail_the_first_reason_is_given(store, split, tmp_path):
    wild = space_from_toml("[fit]\nlr = {choices = [1e29, 1e30]}\n")
    recipe = TINY.but(fit={"epochs": 2, "warmup": 0.0})
    with pytest.raises(ModelError, match=r"none of 2 trials could be ended: .*loss"):
        search(store, split, recipe, wild, tmp_path / "out", trials=2)


def test_a_full_disk_is_not_the_trials_fault(store, split, tmp_path):
    def full(*told, **options):
        raise ModelError("0000: history could not be written") from OSError("no space left on device")

    with patch.object(under_test, "train", full), pytest.raises(ModelError, match="could not be written"):
        search(store, split, TINY, AXES, tmp_path / "out", trials=1)
    search(store, split, TINY, AXES, tmp_path / "out", trials=1)
    assert states(tmp_path / "out") == ["complete"]


def test_when_the_time_is_up_the_trial_under_way_waits_for_the_next_call(store, split, tmp_path):
    recipe, out = TINY.but(fit={"epochs": 2}), tmp_path / "out"
    with pytest.raises(ModelError, match="could be ended, for the time was up"):
        search(store, split, recipe, AXES, out, trials=1, minutes=1e-6)
    before = read_history(out / "trials" / "0000")
    search(store, split, recipe, AXES, out, trials=1)
    after = read_history(out / "trials" / "0000")
    assert (len(before), len(after)) == (1, 2) and after.seconds[0] == before.seconds[0]


def test_the_same_seed_tries_the_same_and_an_sqlite_file_is_as_good_as_a_journal(store, split, tmp_path):
    tables = []
    for name, storage, seed in (("a", None, 0), ("b", tmp_path / "b.db", 0), ("c", None, 1)):
        search(store, split, TINY, AXES, tmp_path / name, trials=2, storage=storage, seed=seed)
        tables.append(pd.read_csv(tmp_path / name / "trials.csv")[["dice", "fit.lr", "net.width"]])
    assert tables[0].equals(tables[1]) and not tables[0].equals(tables[2])
    assert tables[0].iloc[0].equals(tables[2].iloc[0])  # the recipe as it is
    with pytest.raises(ModelError, match="a: holds trials of a study that is not in this storage"):
        search(store, split, TINY, AXES, tmp_path / "a", storage=tmp_path / "new.db")


def test_a_study_from_before_recipes_gained_a_key_is_gone_on_with(store, split, tmp_path):
    best = search(store, split, TINY, AXES, tmp_path / "out", trials=1)
    journal, before = tmp_path / "out" / "study.log", best.read_text()
    old = journal.read_text().replace('"watch":"",', "")
    assert old != journal.read_text()
    journal.write_text(old)
    assert search(store, split, TINY, AXES, tmp_path / "out", trials=1).read_text() == before
    with pytest.raises(ModelError, match=r"holds a study of another recipe \(fit.batch\)"):
        search(store, split, TINY.but(fit={"batch": 9}), AXES, tmp_path / "out", trials=1)


def test_a_storage_that_cannot_be_opened_is_refused_without_its_password(store, split, tmp_path):
    (tmp_path / "bad.log").write_text("no journal\nat all\n")
    for storage in ("nosuch://user:secret@nowhere/db", tmp_path / "bad.log"):
        with pytest.raises(InputError, match="expected a journal, an SQLite file or a URL") as error:
            search(store, split, TINY, AXES, tmp_path / "out", storage=storage)
        assert "secret" not in str(error.value)


def test_a_trial_of_another_machine_that_is_silent_is_given_up_in_time(store, split, tmp_path):
    "One that was heard of lately is left alone."
    study = under_test._study(tmp_path / "log", tmp_path, {"recipe": {"name": "x"}, "space": {}}, 0)
    for age in (60, under_test.SILENT_S + 60):
        trial = study.ask({a.key: a.distribution() for a in AXES})
        trial.set_user_attr("worker", "elsewhere:1")
        trial.set_user_attr("seen", time.time() - age)
    under_test._taken_over(study)
    assert [t.state.name for t in study.trials] == ["RUNNING", "FAIL", "WAITING"]
    assert study.trials[2].user_attrs["goes_on"] == 1


def test_trials_that_were_asked_for_at_the_same_moment_are_not_one_too_many(tmp_path):
    study = under_test._study(tmp_path / "log", tmp_path, {"recipe": {"name": "x"}, "space": {}}, 0)
    first = under_test._next(study, AXES, 2)
    really = study.ask

    def ask(distributions):  # another process is a moment quicker
        study.ask = really
        assert under_test._next(study, AXES, 2) is not None
        return really(distributions)

    study.ask = ask
    assert first is not None and under_test._next(study, AXES, 2) is None
    assert sum(map(under_test._is_result, study.trials)) == 2


def test_the_space_of_the_package_suits_every_recipe_of_the_package():
    folder = Path(under_test.__file__).parent / "recipes"
    for file in sorted(folder.glob("*.toml")):
        assert len(load_space(recipe=load_recipe(file.stem))) == len(load_space())


def test_the_command_ends_with_a_recipe_to_train_by(volumes, tmp_path):
    (tmp_path / "tiny.toml").write_text(recipe_to_toml(TINY))
    (tmp_path / "space.toml").write_text(SPACE)
    runner, out = CliRunner(), tmp_path / "out"
    told = ["search", volumes, out, "--recipe", tmp_path / "tiny.toml", "--space", tmp_path / "space.toml"]
    done = runner.invoke(app, [*map(str, told), "--trials", "2", "--test", "Case_001"])
    assert done.exit_code == 0, done.output
    assert "The best of 2 trials from tiny: Dice" in done.stdout and "--split" in done.stdout
    written = {
        "best.toml",
        "trials.csv",
        "split.json",
        "history.svg",
        "slices.svg",
        "importances.svg",
        "study.log",
    }
    assert written <= {f.name for f in out.iterdir()}
    split = read_json(out / "split.json")
    assert split["test"] == ["Case_001"]
    recipe = load_recipe(out / "best.toml")
    assert recipe.name == "tiny-searched"
    store = build_store(find_cases(volumes).cases, tmp_path / "store")
    assert (train(store, split, recipe, tmp_path / "run") / "model.safetensors").is_file()
    (tmp_path / "space.toml").write_text("[fit]\nlearning = {low = 1, high = 2}\n")
    done = runner.invoke(app, [*map(str, told)])
    assert done.exit_code == 2 and 'space.toml [fit]: unknown key "learning"' in done.output


def test_a_search_that_found_nothing_warns_and_a_later_call_counts_all_trials(volumes, tmp_path, monkeypatch):
    really = under_test.read_history
    monkeypatch.setattr(under_test, "read_history", lambda run: really(run).assign(validation_dice=0.0))
    (tmp_path / "tiny.toml").write_text(recipe_to_toml(TINY))
    (tmp_path / "space.toml").write_text(SPACE)
    told = ["search", volumes, tmp_path / "out", "--recipe", tmp_path / "tiny.toml", "--test", "0.3"]
    told += ["--space", tmp_path / "space.toml", "--set", "net.depth=2", "--trials"]
    for trials, count in (("1", "1 trial "), ("3", "3 trials "), ("2", "3 trials ")):
        ran = CliRunner().invoke(app, [*map(str, told), trials])
        assert ran.exit_code == 0, ran.output
        assert f"The best of {count}from tiny: Dice 0.0000" in ran.stdout
        assert "warning: no trial found anything, so best.toml is no better than any other" in ran.stdout
    assert load_recipe(tmp_path / "out" / "best.toml").net.depth == 2
