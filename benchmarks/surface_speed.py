"""How fast Dice, HD95, ASSD and surface Dice of two lung masks are, and whether peers find the same.

    python benchmarks/surface_speed.py [--size 512] [--slices 130] [--seed 0] [--data FOLDER] [--rounds 3]

Without --data one phantom is drawn. FOLDER holds npz files with `hu` (slice, row, column) and `mask`, as
the four LCTSC cases beside the project (../shared/data/lctsc) do; their spacing is not known, and 3 x 0.88
x 0.88 mm stands for it in all methods. The reference is that mask, the prediction what `threshold_lungs`
finds in `hu`. A second pair, "one lung missed", is the same without half of the prediction.

All methods get the same two boolean arrays in memory, in turns, in one process on two cores; the table gives
medians of the same run. Peers are called as their users call them: four functions of MONAI on tensors of
the form (batch, channel, slice, row, column), and `compute_surface_distances` of DeepMind's surface-distance
with its functions for the scores. Each peer's values are set beside ours under the peer's definition:
border voxels by number for MONAI, surface elements by area for surface-distance. A peer that is not
installed is named and left out; a folder that holds them can be given in PYTHONPATH. Peaks are those of a
process of its own for each method, that imports it, loads the masks and scores them once.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

CORES = 2
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = str(CORES)

import numpy as np  # noqa: E402  after the number of threads is settled

SPACING_MM = (3.0, 0.88, 0.88)  # where the data do not say
TOLERANCE_MM = 2
SAME_MM = 1e-3  # values that agree to this are called equal
Pair = dict[str, np.ndarray]


def lungseg(pair: Pair, *, weighted: bool = True, workers: int = 1) -> dict[str, float]:
    "Ours."
    from lungseg.metrics import dice
    from lungseg.surface import surface_scores

    masks = pair["pred"], pair["ref"]
    options = {"tolerances_mm": (TOLERANCE_MM,), "weighted": weighted, "workers": workers}
    scores = surface_scores(*masks, pair["affine"], **options)
    return {"dice": dice(*masks)} | {name: scores[name] for name in ("hd95_mm", "assd_mm", "nsd_2mm")}


def by_voxel(pair: Pair) -> dict[str, float]:
    return lungseg(pair, weighted=False)


def all_cores(pair: Pair) -> dict[str, float]:
    return lungseg(pair, workers=-1)


def by_voxel_all_cores(pair: Pair) -> dict[str, float]:
    return lungseg(pair, weighted=False, workers=-1)


def monai(pair: Pair) -> dict[str, float]:
    "MONAI's four functions."
    import torch
    from monai import metrics

    torch.set_num_threads(CORES)
    pred, ref = (torch.from_numpy(pair[name])[None, None] for name in ("pred", "ref"))
    options = {"include_background": True, "spacing": spacing_of(pair)}
    return {
        "dice": metrics.compute_dice(pred, ref).item(),
        "hd95_mm": metrics.compute_hausdorff_distance(pred, ref, percentile=95, **options).item(),
        "assd_mm": metrics.compute_average_surface_distance(pred, ref, symmetric=True, **options).item(),
        "nsd_2mm": metrics.compute_surface_dice(pred, ref, [float(TOLERANCE_MM)], **options).item(),
    }


def surface_distance(pair: Pair) -> dict[str, float]:
    "DeepMind's surface-distance; it averages each direction, the areas of both give the symmetric mean."
    from surface_distance import metrics

    pred, ref = pair["pred"], pair["ref"]
    found = metrics.compute_surface_distances(ref, pred, spacing_of(pair))
    ways = metrics.compute_average_surface_distance(found)
    areas = [found[name].sum() for name in ("surfel_areas_gt", "surfel_areas_pred")]
    return {
        "dice": float(metrics.compute_dice_coefficient(ref, pred)),
        "hd95_mm": float(metrics.compute_robust_hausdorff(found, 95)),
        "assd_mm": float(np.average(ways, weights=areas)),
        "nsd_2mm": float(metrics.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)),
    }


def load_only(pair: Pair) -> dict[str, float]:
    "Nothing: what Python, NumPy and the masks take."
    return {}


def spacing_of(pair: Pair) -> tuple[float, ...]:
    return tuple(float(mm) for mm in np.linalg.norm(pair["affine"][:3, :3], axis=0))


METHODS: dict[str, Callable] = {
    "lungseg, weighted": lungseg,
    "lungseg, weighted, all cores": all_cores,
    "lungseg, by voxel": by_voxel,
    "lungseg, by voxel, all cores": by_voxel_all_cores,
}
PEERS = {  # name: method, module, and which of ours has its definition
    "surface-distance": (surface_distance, "surface_distance", "lungseg, weighted"),
    "MONAI": (monai, "monai", "lungseg, by voxel"),
}
METHODS |= {name: method for name, (method, module, _) in PEERS.items() if find_spec(module)}


def load(file: Path) -> Pair:
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def prepared(args: argparse.Namespace, folder: Path) -> list[Path]:
    "Pairs of masks as files."
    from lungseg.files import npz_arrays
    from lungseg.isolate import threshold_lungs
    from lungseg.phantom import LABELS, Scan, draw_phantom
    from lungseg.volume import Volume

    cases = {}
    if args.data is None:
        phantom = draw_phantom(seed=args.seed, scan=Scan(args.size, args.slices))
        ref = np.isin(phantom.labels, [LABELS["lung_left"], LABELS["lung_right"]])
        cases["phantom"] = Volume(phantom.hu, phantom.affine), ref
    for file in sorted(args.data.glob("*.npz")) if args.data else ():
        arrays = npz_arrays(file)
        affine = arrays.get("affine", np.diag([*SPACING_MM, 1.0])[[2, 1, 0, 3]])
        cases[file.stem] = Volume(arrays["hu"], affine), arrays["mask"] > 0
    files = []
    for i, (name, (volume, ref)) in enumerate(cases.items()):
        preds = {name: threshold_lungs(volume)}
        if i == 0:
            preds["one lung missed"] = preds[name].copy()
            preds["one lung missed"][:, :, : ref.shape[2] // 2] = False
        for label, pred in preds.items():
            files.append(folder / f"{label}.npz")
            np.savez(files[-1], pred=pred, ref=ref, affine=volume.affine)
    return files


def timed(file: Path, rounds: int) -> dict[str, dict]:
    "Seconds of each round, in turns, and the scores, by method."
    pair = load(file)
    small = {"affine": pair["affine"]} | {name: pair[name][::8, ::8, ::8] for name in ("pred", "ref")}
    for method in METHODS.values():  # imports what is needed
        method(small)
    found = {name: {"seconds": [], "scores": {}} for name in METHODS}
    for _ in range(rounds):
        for name, method in METHODS.items():
            start = perf_counter()
            found[name]["scores"] = method(pair)
            found[name]["seconds"].append(perf_counter() - start)
    return found


def peak(method: str, file: Path) -> float:
    "The most memory that a process of its own held for one method, MiB; NaN where the system does not tell."
    words = [sys.executable, __file__, "--peak", method, str(file)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def show(file: Path, found: dict[str, dict]) -> None:
    "The table of one pair."
    shape = " x ".join(map(str, load(file)["ref"].shape))
    print(f"\n{file.stem}, {shape}, {CORES} cores")
    columns = "".join(f"{name:>9}" for name in ("Dice", "HD95", "ASSD", "NSD 2"))
    print(f"{'':30}{'s, median':>10}{'slowest':>9}{'peak, MiB':>11}{columns}")
    print(f"{'load only':30}{'':19}{peak('load only', file):11.0f}")
    for name, row in found.items():
        seconds = f"{median(row['seconds']):10.3f}{max(row['seconds']):9.3f}"
        scores = "".join(f"{value:9.4f}" for value in row["scores"].values())
        print(f"{name:30}{seconds}{peak(name, file):11.0f}{scores}")
    for name, (_, _, ours) in PEERS.items():
        if name not in found:
            print(f"{name} is not installed: not compared")
            continue
        ratio = median(found[name]["seconds"]) / median(found[ours]["seconds"])
        both = zip(found[name]["scores"].values(), found[ours]["scores"].values(), strict=True)
        off = max(abs(theirs - mine) for theirs, mine in both)
        verdict = "equal" if off < SAME_MM else "NOT EQUAL"
        print(f"{name} takes {ratio:.1f} x as long as {ours}; values {verdict}, {off:.1e} apart at most")


def main() -> None:
    warnings.filterwarnings("ignore")  # of peers, about their own dependencies
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if sys.argv[1:2] == ["--peak"]:
        {"load only": load_only, **METHODS}[sys.argv[2]](load(Path(sys.argv[3])))
        status = Path("/proc/self/status")
        known = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.is_file() else None
        return print(int(known[1]) / 1024 if known else "nan")
    if sys.argv[1:2] == ["--timed"]:
        return print(json.dumps(timed(Path(sys.argv[3]), int(sys.argv[2]))))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"size": 512, "slices": 130, "seed": 0, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    with TemporaryDirectory() as d:
        files = prepared(args, Path(d))
        if not files:
            parser.error(f"--data {args.data.name}: expected npz files with hu and mask, found none")
        for file in files:
            words = [sys.executable, __file__, "--timed", str(args.rounds), str(file)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            show(file, json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
