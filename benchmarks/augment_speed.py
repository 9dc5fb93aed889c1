"""What varying a batch costs beside the training step it is for.

    python benchmarks/augment_speed.py [--size 256] [--batch 4] [--rounds 7] [--recipe lungseg] [--threads 2]

Each augmentation alone, what the recipe asks for, and all of these at once are timed once in every round, in
turn with a training step of the recipe's network (forward, loss, backward; fp32) on the same batch, on the
processor. Slices are varied one by one, each with a generator of its own, as training does. The table gives
medians and their share of the step; training varies slices in a thread beside the steps, so not all of that
share is waited for.
"""

import argparse
import platform
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch

from lungseg.augment import Augmentation, augment, generator
from lungseg.losses import make_loss
from lungseg.recipe import load_recipe
from lungseg.train import make_net

NOTHING = Augmentation(**dict.fromkeys(vars(Augmentation()), 0.0))
ALONE = {
    **{
        "rotate_deg": 10.0,
        "elastic": 0.03,
        "gain": 0.1,
        "gamma": 0.2,
        "blur": 1.5,
        "kernel": 0.5,
        "noise": 0.05,
    },
    **{"density": 1.0, "couch": 1.0, "field": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--recipe", default="lungseg")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = load_recipe(args.recipe)
    net = make_net(recipe).to(memory_format=torch.channels_last).train()
    criterion = make_loss(recipe.loss, epoch=0, epochs=1)
    chance = torch.Generator().manual_seed(0)
    shape = (args.batch, recipe.prepare.channels, args.size, args.size)
    images = torch.rand(shape, generator=chance).mul(2).sub(1)
    masks = (images[:, :1] > 0.5).float()

    def step() -> None:
        criterion(net(images.contiguous(memory_format=torch.channels_last)), masks).backward()

    def varied(aug: Augmentation) -> None:
        for k in range(args.batch):
            augment(images[k : k + 1], masks[k : k + 1], aug, generator(0, k), tissue=recipe.prepare.tissue)

    augs = {f"{name} {value:g}": replace(NOTHING, **{name: value}) for name, value in ALONE.items()}
    augs["the recipe's"] = recipe.augment
    augs["all of these"] = replace(recipe.augment, elastic=0.03, blur=1.5, density=0.5, couch=0.5, field=0.5)
    work = {"training step": step} | {name: lambda aug=aug: varied(aug) for name, aug in augs.items()}
    times = {name: [] for name in work}
    for round_ in range(args.rounds + 1):
        for name, run in work.items():
            start = perf_counter()
            run()
            if round_:  # the first warms up
                times[name].append(perf_counter() - start)
    whole = median(times["training step"])
    print(f"{args.batch} slices of {args.size} x {args.size}, recipe {recipe.name}, {args.threads} threads")
    print(f"torch {torch.__version__}, {platform.machine()}\n\n{'':20} {'ms':>7} {'of a step':>10}")
    for name, seconds in times.items():
        print(f"{name:20} {median(seconds) * 1e3:7.1f} {median(seconds) / whole:10.1%}")


if __name__ == "__main__":
    main()
