"""What each choice of the default recipe is worth: one cross-validation each, with one choice changed.

    python benchmarks/ablation.py --data COHORT --out FOLDER [--outside COHORT] [--folds leave-one-out]
        [--only NAME ...] [--size 128] [--steps 400] [--recipe lungseg]

Every variant is a cross-validation in FOLDER/NAME; stopped at any time, the same command goes on, and what is
finished is not done again. --outside names a cohort that no network saw and no fold has: each fold's network
segments it. That is the more honest judge: with few patients of one kind, whatever narrows the training looks
good within the folds. --size and --steps make all variants cheaper alike.

FOLDER/ablation_results.csv has one row a variant and case, and above them what it was made of. The chapter
"The default recipe, argued" reads a copy of it in lungseg/tables, and one made with --only "as it is" at full
size and length, as default_results.csv there.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from lungseg.choices import AS_IT_IS, VARIANTS, varied, worth, write_table
from lungseg.cohort import Store, build_store, find_cases
from lungseg.evaluate import markdown_table
from lungseg.folds import crossvalidate, fold_name, fold_table
from lungseg.isolate import threshold_lungs
from lungseg.metrics import dice
from lungseg.predict import load_model, segment
from lungseg.recipe import Recipe, load_recipe
from lungseg.volume import Volume


def asked() -> argparse.Namespace:
    "What is asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="cohort with masks of lungs")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is trained, and the table")
    parser.add_argument("--outside", type=Path, help="another cohort with masks, only to be tested on")
    parser.add_argument("--folds", default="leave-one-out", help="how many, or leave-one-out")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--recipe", default="lungseg", help="the recipe that is varied")
    parser.add_argument("--size", type=int, help="rows and columns of the pictures")
    parser.add_argument("--steps", type=int, help="steps of each training")
    return parser.parse_args()


def cheaper(recipe: Recipe, size: int | None, steps: int | None) -> Recipe:
    "A recipe on pictures of a size, for so many steps."
    recipe = recipe.but(prepare={"size": size}) if size else recipe
    return recipe.but(fit={"steps": steps}) if steps else recipe


def mean_outside(method: Callable[[Volume], np.ndarray], store: Store | None) -> float:
    "The mean 3-D Dice of a method on cases that no fold has; NaN if there are none."
    cases = [case for name in (store.names if store else []) if (case := store.case(name)).mask is not None]
    return float(np.mean([dice(method(case.volume), np.array(case.mask)) for case in cases] or [np.nan]))


def rows_of(name: str, folder: Path, others: Store | None) -> pd.DataFrame:
    "A variant's results, one row a case that was tested."
    table = fold_table(folder).sort_values("case").rename(columns={"network": "dice"})
    outside = {}
    for k in set(table.fold):
        model = load_model(folder / fold_name(k))
        outside[k] = mean_outside(partial(segment, model), others)
    table = table.assign(variant=name, outside=table.fold.map(outside))
    return table[["variant", "case", "dice", "threshold", "outside", "minutes"]]


def stored(data: Path, folder: Path) -> Store:
    "A cohort's store, made once."
    return Store(folder) if (folder / "store.json").is_file() else build_store(find_cases(data), folder)


def main() -> None:
    args = asked()
    recipe = cheaper(load_recipe(args.recipe), args.size, args.steps)
    folds = int(args.folds) if args.folds.isdigit() else args.folds
    store = stored(args.data, args.out / "store")
    others = stored(args.outside, args.out / "outside") if args.outside else None
    about = (
        f"lungseg {version('lungseg')}, benchmarks/ablation.py: recipe {recipe.name}, folds: {args.folds}, "
        f"{recipe.prepare.size} × {recipe.prepare.size}, {recipe.fit.steps} steps\n"
        f"tested on {len(store)} cases of {args.data.name}"
        + (f"; outside: {len(others)} of {args.outside.name}" if others else "")
    )
    rows, plain = [], mean_outside(threshold_lungs, others)
    for name in dict.fromkeys([AS_IT_IS, *args.only]):  # all others are compared with it
        folder = args.out / name.replace(" ", "_")
        crossvalidate(store, varied(recipe, name), folder, folds=folds)
        rows.append(rows_of(name, folder, others).assign(outside_threshold=plain))
        write_table(results := pd.concat(rows), about, args.out / "ablation_results.csv")
        print(markdown_table(worth(results), digits=4), flush=True)


if __name__ == "__main__":
    main()
