"""How fast a CT series becomes a volume: lungseg beside the loop everyone writes first, and beside SimpleITK.

    python benchmarks/load_speed.py [--size 512] [--slices 130] [--rounds 5]

All read the same files from the page cache, in turns; the table gives medians and ratios to the pydicom loop.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import SimpleITK as sitk
from pydicom import dcmread

from lungseg.phantom import write_series
from lungseg.volume import read_volume


def pydicom_loop(folder: Path) -> np.ndarray:
    "Read each file, sort by z, rescale, stack: what the student reports do."
    slices = sorted((dcmread(f) for f in folder.iterdir()), key=lambda ds: float(ds.ImagePositionPatient[2]))
    return np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices])


def simpleitk(folder: Path) -> np.ndarray:
    "SimpleITK's series reader, ordered by geometry."
    return sitk.GetArrayFromImage(sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))))


def lungseg(folder: Path) -> np.ndarray:
    "Ours."
    return read_volume(folder).array


def seconds(read: Callable[[Path], np.ndarray], folder: Path) -> float:
    start = perf_counter()
    read(folder)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"size": 512, "slices": 130, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    readers = [pydicom_loop, simpleitk, lungseg]
    with TemporaryDirectory() as d:
        write_series(Path(d), z_mm=[2.5 * i for i in range(args.slices)], size=args.size)
        volumes = [read(Path(d)) for read in readers]  # also warms the page cache
        assert all(np.array_equal(volumes[0], volume) for volume in volumes), "the readers disagree"
        rounds = [[seconds(read, Path(d)) for read in readers] for _ in range(args.rounds)]
    medians = [median(column) for column in zip(*rounds, strict=True)]
    for read, t in zip(readers, medians, strict=True):
        print(f"{read.__name__:>13}  {args.slices / t:6.0f} slices/s  {medians[0] / t:4.1f} x pydicom_loop")


if __name__ == "__main__":
    main()
