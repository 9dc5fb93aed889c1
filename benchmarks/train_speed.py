"""Slices a second of training and prediction: fp32 eager NCHW, as most run it, against what we choose.

    python benchmarks/train_speed.py [--size 512] [--batch 3] [--rounds 5] [--recipe lungseg]

Every variant is timed once in each round, in turn, and the median over rounds is printed, so that other work
on the machine hits all variants alike. Times do not travel between machines; ratios mostly do.
"""

import argparse
import platform
from statistics import median
from time import perf_counter

import torch

from lungseg.losses import CombinedLoss
from lungseg.recipe import load_recipe
from lungseg.train import choose_device, make_net, make_optimiser

VARIANTS = {  # name → (precision, channels_last)
    "fp32 NCHW": ("float32", False),
    "fp32 channels_last": ("float32", True),
    "bf16 NCHW": ("bfloat16", False),
    "bf16 channels_last": ("bfloat16", True),
}


class Timed:
    "One variant of the same network on the same batch."

    def __init__(self, recipe, precision: str, channels_last: bool, size: int, batch: int, device: str):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net = make_net(recipe).to(device, memory_format=layout)
        self.optimiser = make_optimiser(self.net, recipe.fit)
        self.loss = CombinedLoss(recipe.loss.alpha)
        g = torch.Generator().manual_seed(0)
        self.x = torch.rand(batch, recipe.prepare.channels, size, size, generator=g).mul(2).sub(1)
        self.x = self.x.to(device).contiguous(memory_format=layout)
        self.y = (self.x[:, :1] > 0.5).float()
        self.cast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
        self.device = device

    def train(self) -> float:
        "Seconds of one training step."
        self.net.train()
        return self._clock(self._step)

    def predict(self) -> float:
        "Seconds of one prediction."
        self.net.eval()
        with torch.inference_mode():
            return self._clock(self._forward)

    def _forward(self):
        with self.cast:
            return self.net(self.x)

    def _step(self):
        loss = self.loss(self._forward(), self.y)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def _clock(self, work) -> float:
        self._wait()
        start = perf_counter()
        work()
        self._wait()
        return perf_counter() - start

    def _wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="lungseg")
    parser.add_argument("--width", type=int, help="instead of the recipe's")
    parser.add_argument("--patch", type=int, help="instead of the recipe's")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    recipe = recipe.but(net={k: v for k in ("width", "patch") if (v := getattr(args, k))})
    device, chosen = choose_device(args.device)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}; lungseg chooses {chosen}")
    print(f"{args.size} × {args.size}, batch {args.batch}, net {recipe.net}")

    timed = {name: Timed(recipe, *how, args.size, args.batch, device) for name, how in VARIANTS.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for round_ in range(args.rounds + 1):
        for name, variant in timed.items():
            for what in ("train", "predict"):
                took = getattr(variant, what)()
                if round_:  # the first round warms up
                    seconds.setdefault((name, what), []).append(took)
    print(f"{'':20}{'train slices/s':>16}{'ratio':>7}{'predict slices/s':>18}{'ratio':>7}")
    for name in timed:
        line = f"{name:20}"
        for what, wide in (("train", 16), ("predict", 18)):
            rate = {n: args.batch / median(seconds[n, what]) for n in timed}
            line += f"{rate[name]:{wide}.1f}{rate[name] / rate['fp32 NCHW']:7.2f}"
        print(line)


if __name__ == "__main__":
    main()
