"""How fast compressed CT becomes Hounsfield units: each decoder on one slice, and a series beside SimpleITK.

    python benchmarks/decode_speed.py [--size 512] [--slices 130] [--rounds 5]

The first line of a syntax orders the decoders of `lungseg.decoders.SYNTAXES`. In the second, both readers
read the same files from the page cache, in turns: headers, order along the normal, pixels, HU. Ratios
above 1 mean that lungseg is quicker, in one process and as `stored_series` chooses. On a busy machine only
the processor time tells, which comes last: one process, without waiting.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import gdcm
import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from lungseg.decoders import (
    DECODERS,
    PIXEL_FIELDS,
    SYNTAXES,
    Stream,
    jpeg2000_stream,
    jpeg_stream,
    pixel_form,
    stored_series,
)
from lungseg.dicom import slice_position
from lungseg.phantom import draw_phantom, write_phantom
from lungseg.volume import hounsfield

BY_GDCM = {
    "1.2.840.10008.1.2.4.57": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "1.2.840.10008.1.2.4.70": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}
HEADER = ["ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"]


def compressed(file: Path, uid: str) -> Dataset:
    "One slice in another transfer syntax."
    if uid not in BY_GDCM:
        ds = dcmread(file)
        ds.compress(uid, generate_instance_uid=False)
        return ds
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(BY_GDCM[uid]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    beside = file.with_suffix(".compressed")
    writer.SetFileName(str(beside))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return dcmread(beside)


def write_compressed(slices: list[Dataset], folder: Path, count: int) -> None:
    "A long series: the slices again and again, each at a place of its own, file names in no useful order."
    folder.mkdir()
    for i in range(count):
        ds = slices[i % len(slices)]
        ds.ImagePositionPatient, ds.SOPInstanceUID = [-250, -250, 2.5 * i], f"1.2.826.0.1.{i + 1}"
        ds.file_meta.MediaStorageSOPInstanceUID, ds.InstanceNumber = ds.SOPInstanceUID, i + 1
        ds.save_as(folder / f"{i * 37 % 1009:04d}_{i}.dcm")


def simpleitk(folder: Path) -> np.ndarray:
    "SimpleITK's series reader, ordered by geometry."
    return sitk.GetArrayFromImage(sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))))


def lungseg(folder: Path, workers: int | None = None) -> np.ndarray:
    "Headers, order, stored values, HU."
    headers, places = {}, {}
    for file in folder.iterdir():
        with file.open("rb") as f:
            headers[file] = dcmread(f, stop_before_pixels=True, specific_tags=[*HEADER, *PIXEL_FIELDS])
            places[file] = pixel_form(headers[file], file.name), f.tell()
    files = sorted(headers, key=lambda f: slice_position(headers[f]))
    read = stored_series(files, places=[places[f] for f in files], workers=workers)
    hu = None
    for i, (file, stored) in enumerate(zip(files, read, strict=True)):
        hu = np.empty((len(files), *stored.shape[1:]), np.int16) if hu is None else hu
        ds = headers[file]
        hu[i] = hounsfield(stored[0], float(ds.RescaleSlope), float(ds.RescaleIntercept))
    return hu


def one_process(folder: Path) -> np.ndarray:
    "The same without helpers."
    return lungseg(folder, workers=1)


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def in_turns(
    works: list[Callable[[], object]], rounds: int, clock: Callable[[], float] = perf_counter
) -> list[float]:
    "The median time of each, all of them once a round."
    times = [[seconds(work, clock) for work in works] for _ in range(rounds)]
    return [median(column) for column in zip(*times, strict=True)]


def decoders(ds: Dataset, path: Path, rounds: int) -> str:
    "Medians of every decoder of a slice, in ms."
    uid = str(ds.file_meta.TransferSyntaxUID)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    if uid == RLELossless:
        stream = Stream(ds.Rows, ds.Columns, ds.BitsAllocated)
    else:
        stream = (jpeg2000_stream if uid == JPEG2000Lossless else jpeg_stream)(frame)
    names = SYNTAXES[uid].decoders
    works = [lambda n=n: DECODERS[n].decode(frame, stream, uid, path) for n in names]
    in_turns(works, 1)
    return ", ".join(f"{n} {t * 1e3:.2f} ms" for n, t in zip(names, in_turns(works, 4 * rounds), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"size": 512, "slices": 130, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    readers = [simpleitk, one_process, lungseg]
    with TemporaryDirectory() as d:
        plain = write_phantom(draw_phantom(3, size=args.size, slices=10), Path(d) / "plain")
        for uid in (RLELossless, JPEGLSLossless, JPEG2000Lossless, *BY_GDCM):
            slices, folder = [compressed(file, uid) for file in plain], Path(d) / uid
            write_compressed(slices, folder, args.slices)
            print(f"{SYNTAXES[uid].name}: {decoders(slices[5], sorted(folder.iterdir())[5], args.rounds)}")
            volumes = [read(folder) for read in readers]  # also warms the page cache
            assert all(np.array_equal(volumes[0], volume) for volume in volumes), "the readers disagree"
            del volumes
            theirs, alone, ours = in_turns([lambda r=r, f=folder: r(f) for r in readers], args.rounds)
            works = [lambda f=folder: simpleitk(f), lambda f=folder: one_process(f)]
            cpu, own = in_turns(works, args.rounds, process_time)
            each = theirs * 1e3 / args.slices
            print(
                f"    SimpleITK {each:.1f} ms a slice; lungseg {theirs / alone:.2f} x in one process", end=""
            )
            print(f", {theirs / ours:.2f} x as it chooses; {cpu / own:.2f} x by processor time", flush=True)


if __name__ == "__main__":
    main()
