"""How long a phantom takes: drawn, then written as DICOM, and how much memory that needs at its highest.

    python benchmarks/phantom_speed.py [--rounds 1] [--cases 512x130 256x60]

A case is SIDExSLICES. Each round of each case is a process of its own, since a process only knows the highest
memory of its whole life; what Python and its packages need before the first voxel is in a column of its own.
"""

import argparse
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from lungseg.phantom import draw_phantom, write_phantom


def peak_mib() -> float:
    "The highest resident memory of this process so far."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def draw_and_write(
    size: int,  # rows and columns
    slices: int,
    seed: int,
) -> tuple[float, float, float, float]:  # s to draw, s to write, MiB before, MiB at the highest
    "One case from nothing to files."
    before, start = peak_mib(), perf_counter()
    phantom = draw_phantom(seed, size=size, slices=slices)
    drawn = perf_counter()
    with TemporaryDirectory() as d:
        written = len(write_phantom(phantom, Path(d)))
        done = perf_counter()
    assert written == slices, "expected one file a slice"
    return drawn - start, done - drawn, before, peak_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=["512x130", "256x60"])
    args = parser.parse_args()
    print(f"{'case':>16}{'draw s':>9}{'write s':>9}{'before MiB':>12}{'peak MiB':>10}")
    for case in args.cases:
        size, slices = map(int, case.split("x"))
        rounds = []
        for seed in range(args.rounds):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                rounds.append(process.submit(draw_and_write, size, slices, seed).result())
        draw, write, before, peak = (median(column) for column in zip(*rounds, strict=True))
        shape = f"{size} × {size} × {slices}"
        print(f"{shape:>16}{draw:9.1f}{write:9.1f}{before:12.0f}{peak:10.0f}")


if __name__ == "__main__":
    main()
