"""How fast the headers of a cohort are read and told: lungseg beside a pydicom loop that only reads them.

    python benchmarks/explore_speed.py [--cases 12] [--slices 142] [--size 512] [--rounds 5]

All read the same files from the page cache, in turns; the table gives medians and ratios to the pydicom loop.
The loop groups, checks and tells nothing: it is what reading alone costs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from pydicom import dcmread

from lungseg.dicom import differences, identity_claims, survey, tag_table
from lungseg.phantom import write_series


def pydicom_loop(folder: Path) -> int:
    "Read each header without its pixels."
    return sum("SOPInstanceUID" in dcmread(f, stop_before_pixels=True) for f in folder.rglob("*.dcm"))


def survey_only(folder: Path) -> int:
    "Ours: find, read, check every element for identity, group and order."
    return sum(len(s.files) for s in survey(folder).series)


def explore(folder: Path) -> int:
    "Ours, all that `lungseg explore` tells: survey, table, what differs, whether claims are true."
    found = survey(folder)
    table = tag_table(found)
    differences(table), identity_claims(found)
    return int(table.Slices.sum())


def seconds(read: Callable[[Path], int], folder: Path) -> float:
    start = perf_counter()
    read(folder)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"cases": 12, "slices": 142, "size": 512, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    readers = [pydicom_loop, survey_only, explore]
    with TemporaryDirectory() as d:
        z = [2.5 * i for i in range(args.slices)]
        for i in range(args.cases):
            write_series(Path(d) / f"Case_{i:03d}", z_mm=z, size=args.size, patient_id=f"P{i}")
        counts = {read(Path(d)) for read in readers}  # also warms the page cache
        assert counts == {args.cases * args.slices}, "the readers disagree"
        rounds = [[seconds(read, Path(d)) for read in readers] for _ in range(args.rounds)]
    medians = [median(column) for column in zip(*rounds, strict=True)]
    files = args.cases * args.slices
    for read, t in zip(readers, medians, strict=True):
        print(
            f"{read.__name__:>13}  {files / t:6.0f} files/s  {t:5.2f} s for {files:,} files"
            f"  {medians[0] / t:4.2f} x pydicom_loop"
        )


if __name__ == "__main__":
    main()
