"""How fast a network is trained, against the same one trained plainly and MONAI's; and what the loop adds.

    python benchmarks/train_speed.py [--size 512] [--batch 3] [--rounds 5] [--recipe lungseg] [--part steps]

    steps   one step and one prediction: plain (float32, eager, NCHW), our choices one by one, and MONAI's
            BasicUNet if it can be imported (`pip install --target FOLDER monai`, PYTHONPATH=FOLDER); on a
            processor also what float32 cannot exceed: a step's operations at the speed of a matrix product
    loop    a step within the loop, slices prepared and varied in a thread beside it, against the step alone
    memory  what the process holds after each epoch, and with cohorts that grow (slices in mapped files)
    hours   8 patients, 1,158 slices, 10 epochs: extrapolated from slices prepared and the loop

Within a part every variant is timed once in each round, in turn, and the median over rounds is printed, so
that other work on the machine hits all alike. Times do not travel between machines; ratios mostly do. With a
recipe whose network looks at blocks of pixels (`patch`), --patch 1 compares like with like.
"""

import argparse
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lungseg import train as training
from lungseg.cohort import Store, build_store, find_cases
from lungseg.distributed import join
from lungseg.losses import make_loss
from lungseg.phantom import LABELS, draw_phantom
from lungseg.recipe import Recipe, load_recipe
from lungseg.slices import SliceDataset
from lungseg.train import (
    Pause,
    add_slopes,
    choose_device,
    follow,
    make_net,
    make_optimiser,
    take_step,
    train_epoch,
)
from lungseg.unet import count_parameters

REPORT = (1158, 10)  # slices and epochs of a student report that took "up to 2 hours"


class Timed:
    "One variant of a network on the same batch: what one step and one prediction take."

    def __init__(
        self,
        recipe: Recipe,
        device: str,
        precision: str = "float32",
        *,
        plain: bool = False,  # nothing of ours, nor our optimiser's one pass over the weights
        channels_last: bool = False,
        compiled: bool = False,
        net: Callable[[], torch.nn.Module] | None = None,
    ):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net = (net() if net else make_net(recipe)).to(device, memory_format=layout)
        self.parameters = count_parameters(self.net)
        self.model = torch.compile(self.net) if compiled else self.net
        self.optimiser = make_optimiser(self.net, recipe.fit)
        if plain:
            self.optimiser = torch.optim.AdamW(self.net.parameters(), recipe.fit.lr)
        self.loss = make_loss(recipe.loss)
        g, size = torch.Generator().manual_seed(0), recipe.prepare.size
        self.x = torch.rand(recipe.fit.batch, recipe.prepare.channels, size, size, generator=g).mul(2).sub(1)
        self.x = self.x.to(device).contiguous(memory_format=layout)
        self.y = (self.x[:, :1] > 0.5).float()
        self.cast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
        self.device = device

    def train(self) -> float:
        "Seconds of one training step."
        self.net.train()
        return clocked(self._step, self.device)

    def predict(self) -> float:
        "Seconds of one prediction."
        self.net.eval()
        with torch.inference_mode():
            return clocked(self._forward, self.device)

    def _forward(self):
        with self.cast:
            return self.model(self.x)

    def _step(self):
        loss = self.loss(self._forward(), self.y)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def clocked(work: Callable[[], object], device: str) -> float:
    "Seconds that some work takes."
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = perf_counter()
    work()
    wait()
    return perf_counter() - start


def operations(variant: Timed) -> int:
    "Multiplications and additions of one training step, of convolutions and matrix products."
    with FlopCounterMode(display=False) as counter:
        variant.train()
    return counter.get_total_flops()


def matrix_speed(n: int = 2048, rounds: int = 9) -> float:
    "Operations a second of a float32 matrix product, the best of some: what a processor can do at most."
    a, b = torch.rand(2, n, n)
    return 2 * n**3 / min(clocked(lambda: a @ b, "cpu") for _ in range(rounds))


def monai_net(recipe: Recipe) -> Callable[[], torch.nn.Module] | None:
    "MONAI's BasicUNet, as wide as the recipe's network at its first stage; None if MONAI is not here."
    try:
        from monai.networks.nets import BasicUNet
    except ImportError:
        return None
    w = recipe.net.width
    features = (*(w * 2**k for k in range(5)), w)
    return lambda: BasicUNet(2, recipe.prepare.channels, 1, features=features)


def steps(recipe: Recipe, device: str, chosen: str, rounds: int, *, compiled: bool) -> None:
    "Slices a second of each variant."
    print(f"\nsteps: {recipe.prepare.size} × {recipe.prepare.size}, batch {recipe.fit.batch}")
    variants = {
        "plain: fp32 NCHW": Timed(recipe, device, plain=True),
        "fp32 channels_last": Timed(recipe, device, channels_last=True),
        "bf16 channels_last": Timed(recipe, device, "bfloat16", channels_last=True),
    }
    if compiled:
        variants["ours, compiled"] = Timed(recipe, device, chosen, channels_last=True, compiled=True)
    if net := monai_net(recipe):
        variants["MONAI BasicUNet, fp32"] = Timed(recipe, device, plain=True, net=net)
    else:
        print("MONAI is not installed here: its row is left out")
    seconds: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds + 1):
        for name, variant in variants.items():
            for what in ("train", "predict"):
                took = getattr(variant, what)()
                if round_:  # the first round warms up
                    seconds.setdefault((name, what), []).append(took)
    if device == "cpu":
        plain = variants["plain: fp32 NCHW"]
        work, least = operations(plain), matrix_speed()
        plain_takes = median(seconds["plain: fp32 NCHW", "train"])
        print(
            f"a step is {work / 1e9:.0f} GFLOP, plain {work / plain_takes / 1e9:.0f} GFLOP/s; a matrix "
            f"product does {least / 1e9:.0f}: in float32 at most {plain_takes * least / work:.1f} times plain"
        )
    print(f"{'':24}{'parameters':>12}{'train slices/s':>16}{'ratio':>7}{'predict slices/s':>18}{'ratio':>7}")
    for name, variant in variants.items():
        line = f"{name:24}{variant.parameters:12,}"
        for what, wide in (("train", 16), ("predict", 18)):
            rate = {n: recipe.fit.batch / median(seconds[n, what]) for n in variants}
            line += f"{rate[name]:{wide}.2f}{rate[name] / rate['plain: fp32 NCHW']:7.2f}"
        print(
            line
            + ("   (ours here)" if name.startswith({"float32": "fp32 ch"}.get(chosen, "bf16 ch")) else "")
        )


def phantoms(folder: Path, cases: int, slices: int = 24, size: int = 96) -> Store:
    "A store of phantoms; the recipe's preparation makes small ones as large as it likes."
    (folder / "volumes").mkdir(parents=True)
    for seed in range(cases):
        p = draw_phantom(seed, size=size, slices=slices)
        lungs = np.isin(p.labels, [LABELS["lung_left"], LABELS["lung_right"]])
        np.savez(folder / "volumes" / f"Case_{seed:03d}.npz", hu=p.hu, mask=lungs.astype(np.uint8))
    return build_store(find_cases(folder / "volumes").cases, folder / "store")


@contextmanager
def looping(recipe: Recipe, device: str, data: SliceDataset) -> Iterator[training.Loop]:
    "A training, about to begin."
    with tempfile.TemporaryDirectory() as run:
        fabric, team = join(*choose_device(device, recipe.fit.precision))
        yield training.begin(recipe, Path(run), fabric, team, data, Pause())


def loop_and_step(recipe: Recipe, device: str, store: Store, rounds: int) -> float:
    "Seconds of a slice in the loop, and against a step alone: the same work on a batch that lies ready."
    data = SliceDataset(store, store.names, recipe.prepare)
    within, alone = [], []
    with looping(recipe, device, data) as loop:
        criterion, state, fit = make_loss(recipe.loss), loop.state, recipe.fit
        indices = training.order_of(data, recipe, 0)[: fit.batch]
        images, masks = loop.fabric.to_device(training.batch_of(data, recipe, indices, 0))

        def step():
            for _ in range(4):
                loop.model.train()
                add_slopes(loop.model, criterion, images, masks, len(indices), fabric=loop.fabric)
                take_step(state.net, state.optimiser, 1e-6, fit)
                if fit.ema:
                    follow(state.average, state.net, fit.ema)

        for round_ in range(rounds + 1):
            alone.append(clocked(step, device) / 4 / len(indices))
            row = train_epoch(loop, data)
            within.append(1 / row["slices_per_s"])
            state.finish(row | {"validation_dice": float("nan")})
            if not round_:
                within.clear(), alone.clear()
    a, w = median(alone), median(within)
    size = recipe.prepare.size
    print(
        f"\nloop: {size} × {size}, batch {fit.batch}: {1 / w:.2f} slices/s in the loop, "
        f"{1 / a:.2f} alone: {100 * (w / a - 1):+.1f} %"
    )
    return w


def held() -> float:
    "MiB that this process holds itself; pages of mapped files, which the system may drop, are not counted."
    said = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in said.splitlines() if line.startswith("RssAnon")) / 1024


def memory(recipe: Recipe, device: str, folder: Path, rounds: int) -> None:
    "What is held after each epoch, and with larger cohorts."
    print(f"\nmemory: {recipe.prepare.size} × {recipe.prepare.size}, slices in mapped files")
    for cases in (1, 2, 4):
        store = phantoms(folder / f"of_{cases}", cases)
        data = SliceDataset(store, store.names, recipe.prepare, folder=folder / f"mapped_{cases}")
        with looping(recipe, device, data) as loop:
            after = []
            for _ in range(rounds):
                loop.state.finish(train_epoch(loop, data) | {"validation_dice": float("nan")})
                after.append(held())
        mapped = (data.images.nbytes + data.masks.nbytes) / 2**20
        told = " ".join(f"{mib:.0f}" for mib in after)
        print(f"{len(data):5} slices, {mapped:6.0f} MiB mapped: after each epoch {told} MiB held")


def hours(recipe: Recipe, seconds: float, store: Store, rounds: int) -> None:
    "The training of a report, from what one slice takes to be prepared and in the loop."
    slices, epochs = REPORT
    prepared = []
    for _ in range(rounds):
        start = perf_counter()
        prepared.append(len(SliceDataset(store, store.names, recipe.prepare)) / (perf_counter() - start))
    rate = median(prepared)
    took = (slices / rate + slices * epochs * seconds) / 60
    what = f"{slices:,} slices, {epochs} epochs at {recipe.prepare.size}"
    told = f"{rate:.0f} slices/s prepared and {1 / seconds:.1f} slices/s in the loop"
    print(f"\n{what}: {took:.1f} min, from {told}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="lungseg")
    parser.add_argument("--width", type=int, help="instead of the recipe's")
    parser.add_argument("--patch", type=int, help="instead of the recipe's")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--compiled", action="store_true", help="time the compiled network too; takes minutes"
    )
    parser.add_argument("--part", nargs="+", default=["steps", "loop", "memory", "hours"])
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    recipe = recipe.but(
        prepare={"size": args.size},
        net={k: v for k in ("width", "patch") if (v := getattr(args, k))},
        fit={"batch": args.batch, "empty": 1.0},
    )
    device, chosen = choose_device(args.device, recipe.fit.precision)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}; lungseg chooses {chosen}")
    print(recipe.net)
    if "steps" in args.part:
        steps(recipe, device, chosen, args.rounds, compiled=args.compiled)
    with tempfile.TemporaryDirectory() as d:
        if {"loop", "hours"} & set(args.part):
            store = phantoms(Path(d) / "loop", 1, size=args.size)
            seconds = loop_and_step(recipe, device, store, args.rounds)
            if "hours" in args.part:
                hours(recipe, seconds, store, args.rounds)
        if "memory" in args.part:
            memory(recipe, device, Path(d) / "memory", args.rounds)


if __name__ == "__main__":
    main()
