"""What each choice of the default recipe is worth: one cross-validation each, with one choice changed.

    python benchmarks/ablation.py --data COHORT --out FOLDER [--outside COHORT] [--folds leave-one-out]
        [--only NAME ...] [--size 128] [--steps 800]

Every variant is a cross-validation in FOLDER/NAME; stopped at any time, the same command goes on, and what is
finished is not done again. --outside names a cohort that no network saw and no fold has: each fold's network
segments it, and the mean stands beside. That column is the more honest one: with few patients of one kind,
whatever narrows the training looks good within the folds. --size and --steps make all variants cheaper alike.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from lungseg.cohort import Store, build_store, find_cases
from lungseg.evaluate import markdown_table
from lungseg.folds import compare, crossvalidate
from lungseg.metrics import dice
from lungseg.predict import load_model, segment
from lungseg.recipe import Recipe, load_recipe
from lungseg.volume import Volume

PLAIN = {"rotate_deg": 0.0, "scale": 0.0, "shift": 0.0, "gain": 0.0, "offset": 0.0, "gamma": 0.0}
PLAIN |= {"kernel": 0.0, "noise": 0.0, "density": 0.0, "emphysema": 0.0}
PLAIN |= {"blur": 0.0, "thickness": 0.0}

VARIANTS: dict[str, dict[str, dict[str, object]]] = {
    "as it is": {},
    "nothing varied": {"augment": PLAIN},
    "less scale": {"augment": {"scale": 0.1}},
    "more scale": {"augment": {"scale": 0.5}},
    "no density": {"augment": {"density": 0.0}},
    "no emphysema": {"augment": {"emphysema": 0.0}},
    "blur": {"augment": {"blur": 1.0}},
    "elastic": {"augment": {"elastic": 0.02}},
    "mirrored": {"augment": {"flip": 0.5}},
    "cross-entropy alone": {"loss": {"alpha": 1.0}},
    "Dice alone": {"loss": {"alpha": 0.0}},
    "Dice per slice": {"loss": {"per": "slice"}},
    "squared Dice": {"loss": {"squared": True}},
    "three slices": {"prepare": {"neighbours": 1}},
    "whole picture": {"prepare": {"frame": "image"}},
    "lung box": {"prepare": {"frame": "lungs", "suppress": "outside"}},
    "no moving average": {"fit": {"ema": 0.0}},
    "constant rate": {"fit": {"schedule": "constant"}},
    "ends of the lungs twice": {"fit": {"edges": 2.0}},
    "all empty slices": {"fit": {"empty": 1.0}},
    "residual": {"net": {"kind": "residual"}},
    "dilated": {"net": {"kind": "dilated"}},
    "attention": {"net": {"kind": "attention"}},
    "no pixel blocks": {"net": {"patch": 1}},
}


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


def variant(recipe: Recipe, name: str, size: int | None, steps: int | None) -> Recipe:
    "A recipe with one choice changed, on pictures of a size, for so many steps."
    recipe = recipe.but(name=name, **VARIANTS[name])
    recipe = recipe.but(prepare={"size": size}) if size else recipe
    return recipe.but(fit={"steps": steps}) if steps else recipe


def outside(folder: Path, store: Store) -> float:
    "The mean 3-D Dice of all folds' networks on cases that none of them saw."
    scores = []
    for weights in sorted(folder.glob("fold_*/model.safetensors")):
        model = load_model(weights)
        for name in store.names:
            case = store.case(name)
            volume = Volume(np.array(case.hu), case.affine, {"spacing_known": case.spacing_known})
            scores.append(dice(segment(model, volume), np.array(case.mask)))
    return float(np.mean(scores))


def stored(data: Path, folder: Path) -> Store:
    "A cohort's store, made once."
    return Store(folder) if (folder / "store.json").is_file() else build_store(find_cases(data), folder)


def main() -> None:
    args = asked()
    recipe, done = load_recipe(args.recipe), []
    folds = int(args.folds) if args.folds.isdigit() else args.folds
    store = stored(args.data, args.out / "store")
    others = stored(args.outside, args.out / "outside") if args.outside else None
    for name in args.only:
        folder = args.out / name.replace(" ", "_")
        crossvalidate(store, variant(recipe, name, args.size, args.steps), folder, folds=folds)
        done.append({"recipe": name, "outside": outside(folder, others) if others else np.nan})
        table = compare([args.out / row["recipe"].replace(" ", "_") for row in done])
        table = table.merge(pd.DataFrame(done), how="left")
        table.to_csv(args.out / "ablation.csv", index=False)
        print(markdown_table(table, digits=4))


if __name__ == "__main__":
    main()
