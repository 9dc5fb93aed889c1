"""All recipes on one cohort beside the baseline that learned nothing: the table of the field.

    python benchmarks/field_table.py --data COHORT --out FOLDER [--test CASE ... | --test 0.33] [--folds 2]
        [--validation 0] [--size 256] [--epochs 10] [--recipe NAME ...] [--tumours COHORT] [--device auto]

Every recipe is a run in FOLDER/NAME: trained, evaluated, and not done again if it is finished; stopped at
any time, the same command goes on. With --folds it is a cross-validation by patient instead: every case is
tested, by a network that did not see it. --size makes the slices of larger recipes smaller, --epochs sets
the number of epochs of all; without them each recipe is run as its file says, which for slices of 512 x 512
takes long. The scores are of the test cases on the grid of their own CT. `dice` is the mean over patients
in 3-D, `worst` the worst of them; accuracy to F1 and the area under the precision-recall curve are of all
pixels together, `slice_dice` is the mean over slices that hold lung, `slice_accuracy` over all of them, and
`minutes` counts training steps. FOLDER/field_lungs_results.csv and field_tumour_results.csv hold the tables.

The recipe that looks for tumours cannot be trained on masks of lungs. It gets --tumours, a cohort with
their outlines, or else phantoms that are drawn into FOLDER, and a table of its own. What could not be trained
stands below the tables, with its reason.
"""

import argparse
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from lungseg.choices import write_table
from lungseg.cli import share_asked
from lungseg.cohort import Store, build_store, find_cases
from lungseg.core import Held, InputError, LungsegError
from lungseg.curves import precision_recall
from lungseg.evaluate import Evaluation, evaluate, markdown_table, pixel_scores
from lungseg.field import FIELD
from lungseg.folds import compare, crossvalidate
from lungseg.phantom import write_cohort
from lungseg.recipe import Recipe, load_recipe
from lungseg.splits import chosen_split, load_split, save_split
from lungseg.train import train

OURS = ("lungseg", "lungbox")


def asked() -> argparse.Namespace:
    "What is asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="cohort with masks of lungs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument(
        "--test", nargs="+", default=["0.33"], help="cases to test on, or a share of the patients"
    )
    parser.add_argument("--folds", type=int, help="parts of a cross-validation, instead of one split")
    parser.add_argument("--validation", type=float, help="share of the other patients to choose weights by")
    parser.add_argument("--size", type=int, help="rows and columns, where a recipe has more")
    parser.add_argument("--epochs", type=int, help="of every recipe")
    parser.add_argument("--recipe", nargs="+", default=[*OURS, *FIELD], help="names or TOML files")
    parser.add_argument("--tumours", type=Path, help="cohort with outlines of tumours; else phantoms")
    parser.add_argument("--phantoms", type=int, default=8, help="how many of them, if they are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser.parse_args()


def scaled(recipe: Recipe, size: int | None, epochs: int | None) -> Recipe:
    "A recipe on slices that are no larger, and for so many epochs."
    recipe = recipe.but(prepare={"size": min(recipe.prepare.size, size or recipe.prepare.size)})
    return recipe.but(fit={"epochs": epochs}) if epochs else recipe


def stored(data: Path, out: Path, target: str) -> Store:
    "A cohort as a case store."
    return build_store(find_cases(data, target=target), out / f"store_{target}", workers=2)


def divided(store: Store, out: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    "One split for all recipes, kept beside the runs."
    path = out / f"split_{store.target}.json"
    if not path.is_file():
        share = share_asked(options.test)
        listed = share is None and set(options.test) <= set(store.names)  # of the other cohort if not
        split, how = chosen_split(
            store,
            list(options.test) if listed else "drawn",
            test=share or 1 / 3,
            validation=options.validation,
            seed=options.seed,
        )
        save_split(split, path, store, method=how, seed=options.seed)
    return load_split(path, store)


def named_apart(recipes: list[Recipe]) -> list[Recipe]:
    "The recipes. Raises `InputError` if two have one name, for a name is a run's folder and a row's label."
    names = [recipe.name for recipe in recipes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"--recipe: the name {', '.join(twice)} came twice, expected recipes of different names"
        )
    return recipes


def finished(
    recipe: Recipe,
    store: Store,
    split: dict | None,  # None: a cross-validation
    run: Path,
    options: argparse.Namespace,
) -> Evaluation | Held:  # why it could not be, if it could not
    "Train and evaluate a recipe, unless that is done."
    try:
        if split is None:
            how = {"validation": options.validation, "seed": options.seed, "device": options.device}
            return crossvalidate(store, recipe, run, folds=options.folds, **how)
        train(store, split, recipe, run, device=options.device)
        return evaluate(run, store, split=split)
    except LungsegError as e:
        return Held(recipe.name, str(e))


def pixels(done: Evaluation) -> dict[str, dict[str, float]]:
    "Scores of all pixels of the tested cases, by method."
    table = pixel_scores(done.patients[done.patients.split == "test"]).set_index("method")
    table = table[["accuracy", "precision", "recall", "specificity", "f1"]].assign(pr_area=float("nan"))
    with suppress(InputError):  # the network refused a case: no curve of all pixels
        table.loc["network", "pr_area"] = precision_recall(done.tally("test")).area
    return table.to_dict("index")


def slice_means(done: Evaluation) -> dict[str, dict[str, float]]:
    "What reports give: mean accuracy of all slices, mean Dice of those with lung, share of excellent ones."
    slices = done.slices[done.slices.split == "test"]
    told = {}
    for method, own in slices.groupby("method"):
        full = own[own.ref_voxels > 0]
        told[method] = {
            "slice_dice": full.dice.mean(),
            "slice_accuracy": own.accuracy.mean(),
            "excellent": own.excellent.mean(),
        }
    return told


def table_of(done: dict[str, Evaluation]) -> pd.DataFrame:  # by the name of the recipe
    "The recipes beside the baseline."
    table = compare([evaluation.run for evaluation in done.values()])
    scores = {}
    for name, evaluation in done.items():
        of_pixels, of_slices = pixels(evaluation), slice_means(evaluation)
        scores[name] = {method: of_pixels[method] | of_slices[method] for method in of_pixels}
    rows = [scores[name]["network"] for name in table.recipe[:-1]]
    rows.append(next(iter(scores.values()))["threshold"])
    return pd.concat([table, pd.DataFrame(rows)], axis=1)


def main() -> None:
    "Train, evaluate, print."
    options = asked()
    try:
        share_asked(options.test)
        named = named_apart([load_recipe(name) for name in options.recipe])
    except LungsegError as e:
        raise SystemExit(f"field_table: {e}") from None
    recipes = [scaled(recipe, options.size, options.epochs) for recipe in named]
    held: list[Held] = []
    for target in ("lungs", "tumour"):
        own = [r for r in recipes if r.target == target]
        if not own:
            continue
        data = options.data if target == "lungs" else options.tumours or options.out / "phantoms"
        if target == "tumour" and not options.tumours and not data.exists():
            write_cohort(data, cases=options.phantoms, size=128, slices=40, tumours=True, workers=2)
        store = stored(data, options.out, target)
        whole = None
        if not options.folds:
            split = divided(store, options.out, options)
            whole = {name: sorted(split.get(name, [])) for name in ("train", "validation", "test")}
        done: dict[str, Evaluation] = {}
        for recipe in own:
            result = finished(recipe, store, whole, options.out / recipe.name, options)
            if isinstance(result, Held):
                held.append(result)
            else:
                done[recipe.name] = result
        if done:
            table = table_of(done)
            where = "phantoms" if target == "tumour" and not options.tumours else f"cases of {data.name}"
            tested = f"{options.folds} folds" if options.folds else f"tested on {', '.join(whole['test'])}"
            about = f"lungseg {version('lungseg')}, benchmarks/field_table.py: {len(store)} {where}, {tested}"
            about += f", slices of at most {options.size} × {options.size}" if options.size else ""
            about += f", {options.epochs} epochs" if options.epochs else ""
            write_table(table, about, options.out / f"field_{target}_results.csv")
            print(f"\n{about}\n\n{markdown_table(table, digits=4)}", flush=True)
    for why in held:
        print(f"not in the table: {why}")


if __name__ == "__main__":
    main()
