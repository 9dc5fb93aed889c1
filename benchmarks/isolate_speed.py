"""How fast lungs are found without learning, in how much memory and how well, beside SimpleITK.

    python benchmarks/isolate_speed.py [--size 512] [--slices 130] [--seed 0] [--data FOLDER] [--rounds 5]

Without --data one phantom is drawn. FOLDER holds npz files with `hu` (slice, row, column) and `mask`, as
the four LCTSC cases beside the project (../shared/data/lctsc) do; their spacing is not known, and 3 x 0.88
x 0.88 mm stands for it in all methods. All get the same array in memory, in turns, in one process on two
cores; the table gives medians of the same run, and how many times as long as lungseg the others take. Peaks
are of a process of its own for each method that loads the volume, finds the lungs and does nothing else;
what Python, NumPy and the volume take is the row "load only".

SimpleITK's recipe is that of its own region growing notebook, `ConnectedThreshold` cleaned by
`BinaryMorphologicalClosing` with a ball (SimpleITK-Notebooks, 30_Segmentation_Region_Growing), with our
threshold and radius, and `BinaryFillhole` after it, as lung masks need. It is shown twice. "seeds outside"
finds its way alone: it grows the air around the patient from the corners of all slices, takes that from all
air, and keeps the two largest pieces. "seeds inside" gets what a user would click: in each lung the voxel
that lies deepest in the reference. Neither takes out airways or stomach gas, as the recipe does not.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter

CORES = 2
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(name, str(CORES))

import numpy as np  # noqa: E402  after the number of threads is settled

from lungseg.isolate import AIR_BELOW_HU, CLOSING_MM, SURE  # noqa: E402

SPACING_MM = (3.0, 0.88, 0.88)  # where the data do not say


def load(file: Path) -> dict[str, np.ndarray]:
    "HU, reference and affine of one prepared case."
    with np.load(file) as case:
        return {name: case[name] for name in case.files}


def lungseg(case: dict[str, np.ndarray]) -> np.ndarray:
    "Ours: both lungs."
    from lungseg.isolate import threshold_lungs
    from lungseg.volume import Volume

    return threshold_lungs(Volume(case["hu"], case["affine"]))


def lungseg_region(case: dict[str, np.ndarray]) -> np.ndarray:
    "Ours: both lungs, and from them the mirrored union with its margin."
    from lungseg.isolate import threshold_lungs
    from lungseg.region import lung_region
    from lungseg.volume import Volume

    volume = Volume(case["hu"], case["affine"])
    lungs = threshold_lungs(volume)
    lung_region(volume, lungs)
    return lungs


def _cleaned(grown):
    "Closing with a ball and filling of holes."
    import SimpleITK as sitk

    radius = [max(1, round(CLOSING_MM / mm)) for mm in grown.GetSpacing()]
    grown = sitk.BinaryMorphologicalClosing(grown, radius, sitk.sitkBall)
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(grown)) > 0


def _image(case: dict[str, np.ndarray]):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(case["hu"])
    image.SetSpacing([float(mm) for mm in np.linalg.norm(case["affine"][:3, [2, 1, 0]], axis=0)])
    return image


def seeds_outside(case: dict[str, np.ndarray]) -> np.ndarray:
    "SimpleITK: all air, less what grows from the corners; the two largest pieces, closed and filled."
    import SimpleITK as sitk

    image = _image(case)
    columns, rows, slices = (n - 1 for n in image.GetSize())
    corners = [(x, y, z) for x in (0, columns) for y in (0, rows) for z in range(slices + 1)]
    outside = sitk.ConnectedThreshold(image, corners, lower=-32768, upper=AIR_BELOW_HU - 1)
    inside = sitk.And(sitk.Less(image, AIR_BELOW_HU), sitk.Equal(outside, 0))
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(inside), sortByObjectSize=True)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(pieces)
    if shape.GetNumberOfLabels() == 0:
        return np.zeros(case["hu"].shape, bool)
    sizes = [shape.GetNumberOfPixels(label) for label in shape.GetLabels()[:2]]
    two = len(sizes) == 2 and sizes[1] > SURE * sizes[0]  # or both lungs hang on one windpipe
    return _cleaned(sitk.BinaryThreshold(pieces, 1, 2 if two else 1))


def seeds_inside(case: dict[str, np.ndarray]) -> np.ndarray:
    "SimpleITK: what grows from a voxel in each lung, closed and filled."
    import SimpleITK as sitk

    seeds = [tuple(int(i) for i in seed[::-1]) for seed in case["seeds"]]
    return _cleaned(sitk.ConnectedThreshold(_image(case), seeds, lower=-32768, upper=AIR_BELOW_HU - 1))


def load_only(case: dict[str, np.ndarray]) -> np.ndarray:
    "Nothing: what Python, NumPy and the volume take."
    return case["mask"]


METHODS: dict[str, Callable] = {"lungseg": lungseg}
if find_spec("lungseg.region"):
    METHODS["lungseg with region"] = lungseg_region
METHODS |= {"SimpleITK, seeds outside": seeds_outside, "SimpleITK, seeds inside": seeds_inside}


def prepared(args: argparse.Namespace, folder: Path) -> list[Path]:
    "The cases as files of HU, reference, affine and seeds."
    from lungseg.files import npz_arrays
    from lungseg.phantom import LABELS, Scan, draw_phantom

    cases = {}
    if args.data is None:
        phantom = draw_phantom(seed=args.seed, scan=Scan(args.size, args.slices))
        lungs = [phantom.labels == LABELS[side] for side in ("lung_left", "lung_right")]
        cases["phantom"] = phantom.hu, lungs[0] | lungs[1], phantom.affine
    for file in sorted(args.data.glob("*.npz")) if args.data else ():
        arrays = npz_arrays(file)
        affine = np.diag([*SPACING_MM, 1.0])[[2, 1, 0, 3]]
        cases[file.stem] = arrays["hu"], arrays["mask"] > 0, arrays.get("affine", affine)
    for name, (hu, mask, affine) in cases.items():
        np.savez(folder / f"{name}.npz", hu=hu, mask=mask, affine=affine, seeds=deepest(mask))
    return [folder / f"{name}.npz" for name in cases]


def deepest(mask: np.ndarray) -> list[list[int]]:
    "In the left and in the right half of a mask, the voxel that is farthest from its surface."
    from scipy import ndimage as ndi

    depth = ndi.distance_transform_edt(mask[:, ::2, ::2], SPACING_MM)
    middle = depth.shape[2] // 2
    halves = (depth[:, :, :middle], 0), (depth[:, :, middle:], middle)
    found = [(np.unravel_index(half.argmax(), half.shape), start) for half, start in halves]
    return [[int(z), 2 * int(y), 2 * (int(x) + start)] for (z, y, x), start in found]


def peak_mib() -> float:
    "The most memory that this process held. (`ru_maxrss` also counts what a parent held when it started it.)"
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def peak(method: str, file: Path) -> float:
    "Peak of one method in a process of its own, MiB."
    words = [sys.executable, __file__, "--peak", method, str(file)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def timed(files: list[Path], rounds: int) -> dict[str, dict]:
    "Seconds of each round, in turns, and Dice, by method and case."
    found = {name: {"seconds": [], "dice": []} for name in METHODS}
    for file in files:
        case = load(file)
        for name, method in METHODS.items():  # also imports what is needed and warms the caches
            pred = method(case)
            overlap = 2 * np.count_nonzero(pred & case["mask"])
            found[name]["dice"].append(overlap / (pred.sum() + case["mask"].sum()))
        times = {name: [] for name in METHODS}
        for _ in range(rounds):
            for name, method in METHODS.items():
                start = perf_counter()
                method(case)
                times[name].append(perf_counter() - start)
        for name in METHODS:
            found[name]["seconds"].append(median(times[name]))
    return found


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if sys.argv[1:2] == ["--peak"]:
        {"load only": load_only, **METHODS}[sys.argv[2]](load(Path(sys.argv[3])))
        return print(peak_mib())
    if sys.argv[1:2] == ["--timed"]:
        return print(json.dumps(timed([Path(f) for f in sys.argv[3:]], int(sys.argv[2]))))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"size": 512, "slices": 130, "seed": 0, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    with TemporaryDirectory() as d:
        files = prepared(args, Path(d))
        if not files:
            parser.error(f"--data {args.data.name}: expected npz files with hu and mask, found none")
        words = [sys.executable, __file__, "--timed", str(args.rounds), *map(str, files)]
        found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
        shapes = {" x ".join(map(str, np.load(f)["hu"].shape)) for f in files}
        print(f"{len(files)} case{'s' * (len(files) > 1)} of {', '.join(sorted(shapes))}, {CORES} cores")
        print(f"{'':26}{'s, median':>10}{'worst case':>12}{'x lungseg':>11}{'peak, MiB':>11}  Dice of each")
        ours = median(found["lungseg"]["seconds"])
        print(f"{'load only':26}{'':33}{max(peak('load only', f) for f in files):11.0f}")
        for name, row in found.items():
            seconds = median(row["seconds"])
            speed = f"{seconds:10.2f}{max(row['seconds']):12.2f}{seconds / ours:11.2f}"
            dice = " ".join(f"{x:.3f}" for x in row["dice"])
            average = f", mean {mean(row['dice']):.4f}" * (len(files) > 1)
            print(f"{name:26}{speed}{max(peak(name, f) for f in files):11.0f}  {dice}{average}", flush=True)


if __name__ == "__main__":
    main()
