"""How fast a CT series becomes a volume: lungseg beside the loop everyone writes first, and beside SimpleITK.

    python benchmarks/load_speed.py [--size 512] [--slices 130] [--rounds 5] [--compressed 40] [--only plain]

All read the same files from the page cache, in turns; the table gives medians of the same run, and how many
times as fast as the two others lungseg is. Compressed series are made from a plain one, without loss, of as
many slices as `--compressed` says.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from lungseg.phantom import Scan, draw_phantom, write_phantom
from lungseg.series import read_dicom

SYNTAXES = {"RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}


def pydicom_loop(folder: Path) -> np.ndarray:
    "Read each file, sort by z, rescale, stack: what the student reports do."
    slices = sorted((dcmread(f) for f in folder.iterdir()), key=lambda ds: float(ds.ImagePositionPatient[2]))
    return np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices])


def simpleitk(folder: Path) -> np.ndarray:
    "SimpleITK's series reader, ordered by geometry."
    return sitk.GetArrayFromImage(sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))))


def lungseg(folder: Path) -> np.ndarray:
    "Ours: ordered int16 HU with geometry, every check included."
    return read_dicom(folder).array


READERS = [pydicom_loop, simpleitk, lungseg]


def seconds(read: Callable[[Path], np.ndarray], folder: Path) -> float:
    start = perf_counter()
    read(folder)
    return perf_counter() - start


def compressed(name: str, folder: Path) -> None:
    "Encode the files of a folder, without loss."
    if name == "JPEG Lossless":
        import gdcm  # the one encoder for it; reads and writes the file by itself

        for file in folder.iterdir():
            reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
            reader.SetFileName(str(file))
            reader.Read()
            change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
            change.SetInput(reader.GetImage())
            change.Change()
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            writer.SetFileName(str(file))
            writer.Write()
        return
    for file in folder.iterdir():
        ds = dcmread(file)
        if name == "implicit":
            ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        else:
            ds.compress(SYNTAXES[name], generate_instance_uid=False)
        ds.save_as(file)


def compared(name: str, folder: Path, slices: int, rounds: int) -> None:
    "Time the readers in turns and print a line."
    volumes = [read(folder) for read in READERS]  # also warms the page cache
    assert all(np.array_equal(volumes[0], volume) for volume in volumes), "the readers disagree"
    times = [[seconds(read, folder) for read in READERS] for _ in range(rounds)]
    loop, itk, ours = (median(column) for column in zip(*times, strict=True))
    speeds = "".join(f"{slices / t:14.0f}" for t in (loop, itk, ours))
    print(f"{name:>14}{speeds}{loop / ours:14.1f}{itk / ours:14.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"size": 512, "slices": 130, "rounds": 5, "compressed": 40}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    names = ["plain", "implicit", *SYNTAXES, "JPEG Lossless"]
    parser.add_argument("--only", choices=names, action="append")
    args = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    print(
        "".join(
            h.rjust(14)
            for h in ("slices/s", "pydicom loop", "SimpleITK", "lungseg", "x the loop", "x SimpleITK")
        )
    )
    with TemporaryDirectory() as d:
        sizes = {args.slices} | {args.compressed if args.only != ["plain"] else args.slices}
        for slices in sizes:
            phantom = draw_phantom(seed=0, scan=Scan(args.size, slices))
            write_phantom(phantom, Path(d) / f"{slices}")
        for name in args.only or names:
            slices, folder = args.slices if name == "plain" else args.compressed, Path(d) / name
            copytree(Path(d) / f"{slices}", folder)
            if name != "plain":
                compressed(name, folder)
            compared(name, folder, slices, args.rounds)


if __name__ == "__main__":
    main()
