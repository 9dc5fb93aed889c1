"""How fast a cohort becomes a store, by one process and by two, in how much memory; how fast a slice is back.

    python benchmarks/store_speed.py [--size 512] [--slices 130] [--cases 6] [--rounds 3] [--reads 300]

Cases are one phantom chest under several names, as DICOM with npz masks. Each build runs in a process of
its own, in turns, from the page cache into an empty folder; peaks are resident memory of the busiest process.
A cold slice is a random one of HU and mask after the kernel was told to forget the file.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from lungseg.cohort import Store, build_store, find_cases
from lungseg.phantom import LABELS, draw_phantom, write_phantom


def write_data(folder: Path, cases: int, size: int, slices: int) -> Path:
    "The same chest under several names."
    phantom = draw_phantom(seed=0, size=size, slices=slices)
    lungs = np.isin(phantom.labels, (LABELS["lung_left"], LABELS["lung_right"])).astype(np.uint8)
    for i in range(cases):
        write_phantom(phantom, folder / f"Case_{i:03d}", patient_id=f"P{i}", key=i)
        np.savez_compressed(folder / f"Case_{i:03d}" / "mask.npz", masks=lungs)
    return folder


def build(data: Path, store: Path, workers: int) -> None:
    "Build in this process and print seconds and peaks in MiB."
    found = find_cases(data)
    start = perf_counter()
    build_store(found, store, workers=workers)
    seconds = perf_counter() - start
    own = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": (own if workers == 1 else others) / 1024}))


def built(data: Path, store: Path, workers: int) -> dict[str, float]:
    "Build in a process of its own."
    words = [sys.executable, __file__, "--build", str(data), str(store), str(workers)]
    said = subprocess.run(
        words, check=True, capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"}
    )
    if store.name[0] != "0":  # before the disk has to write it, which would slow down the next
        shutil.rmtree(store)
    return json.loads(said.stdout)


def forget(folder: Path) -> None:
    "Have the kernel drop what it keeps of a case."
    for path in (folder / "hu.npy", folder / "mask.npy"):
        with path.open("rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_reads(store: Store, reads: int) -> dict[str, list[float]]:
    "Milliseconds of random slices, sorted: HU alone, with the mask, and with opening the case as well."
    random = np.random.default_rng(0)
    taken = {"HU": [], "HU and mask": [], "HU and mask, with opening the case": []}
    for _ in range(reads):
        for what, times in taken.items():
            name = store.names[random.integers(len(store))]
            case = None if "opening" in what else store.case(name)
            forget(store.path / name)
            i = int(random.integers(store.meta(name)["shape"][0]))
            start = perf_counter()
            case = case or store.case(name)
            case.plane(i, mask="mask" in what)
            times.append(1000 * (perf_counter() - start))
            del case
    return {what: sorted(times) for what, times in taken.items()}


def main() -> None:
    if sys.argv[1:2] == ["--build"]:
        return build(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"size": 512, "slices": 130, "cases": 6, "rounds": 3, "reads": 300}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with TemporaryDirectory() as d:
        data = write_data(Path(d) / "data", args.cases, args.size, args.slices)
        rounds = [
            [built(data, Path(d) / f"{i}_{workers}", workers) for workers in (1, 2)]
            for i in range(args.rounds)
        ]
        one, two = ([r[k] for r in rounds] for k in (0, 1))
        t1, t2 = (median(r["seconds"] for r in several) for several in (one, two))
        volume = args.size**2 * args.slices * 2 / 2**20
        print(
            f"{args.cases} cases of {args.slices} x {args.size} x {args.size} ({volume:.0f} MiB of HU each)"
        )
        for workers, t, several in ((1, t1, one), (2, t2, two)):
            peak = median(r["peak"] for r in several)
            words = f"{t / args.cases:5.2f} s a case, peak {peak:4.0f} MiB a process"
            print(
                f"{workers} process{'es' * (workers > 1):2}  {t:6.2f} s  {words}, {t1 / t:.2f} x one process"
            )
        store = Store(Path(d) / "0_1")
        start = perf_counter()
        assert store.verify() == []
        print(f"verified at {args.cases * volume * 1.5 / (perf_counter() - start):.0f} MiB/s")
        start = perf_counter()
        build_store(find_cases(data), store.path)
        print(f"nothing to do: {perf_counter() - start:.2f} s, most of it looking through the folder")
        for what, times in cold_reads(store, args.reads).items():
            high = times[int(0.95 * len(times))]
            print(f"a cold slice of {what}: median {median(times):.2f} ms, 95 % under {high:.2f} ms")


if __name__ == "__main__":
    main()
