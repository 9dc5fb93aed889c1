"""How fast and how well burned-in text is found: ms per clean slice, clean slices held, planted names found.

    python benchmarks/burned_in.py [--planted 1000] [--slices 280] [--seed 0]

Clean slices are phantoms of all kernels, the CT and MR in pydicom, and the real data beside the project
where it is present. Names, dates and numbers are drawn onto them at random places, sizes, values and in three
ways: without smoothing, smoothed as a workstation does, and smoothed by shrinking. A planting counts if its
contrast is at least a quarter of the image's range and four times the standard deviation of what lies below.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.data import get_testdata_files

from lungseg.burned_in import find_text, holds_text
from lungseg.phantom import Scan, draw_phantom

DATA = Path(__file__).parents[2] / "shared" / "data"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FACES = (
    "DejaVuSans",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "STIXGeneral",
    "cmr10",
)
SIZES = (8, 10, 11, 12, 14, 16, 20, 24, 32, 40)
CLEAN_FILES = ("693_J2KI", "J2K_pixelrep", "CT_small", "MR_small", "JPEG2000.dcm", "rtdose", "liver")
NAMES = "SMITH Meier Nguyen OKONKWO Larsson ROSSI Kowalska Anna Peter AHMED Иванов Пётр КУЗНЕЦОВА".split()


class Planted(NamedTuple):
    "An image with writing on it."

    image: np.ndarray
    height: int  # of the ink, pixels
    way: str
    place: str
    box: tuple[int, int, int, int]


def read(path: Path) -> list[np.ndarray]:
    "The grey frames of a DICOM file; none where it has no pixels or needs a decoder that is not installed."
    try:
        ds = dcmread(path, force=True)
        pixels = (
            ds.pixel_array
            if "PixelData" in ds and ds.get("SamplesPerPixel", 1) == 1
            else np.zeros((0, 1, 1), int)
        )
    except Exception:
        return []
    return list(pixels.reshape(-1, *pixels.shape[-2:]))


def clean(slices: int) -> Iterator[tuple[str, np.ndarray]]:
    "Slices without writing, by where they come from."
    for seed, size in enumerate((512, 512, 512, 256, 256, 256, 128, 64)):
        kernel = ("smooth", "standard", "sharp")[seed % 3]
        scan = Scan(size=size, slices=max(slices // 8, 4), kernel=kernel, dose=(1, 0.2, 0.05)[seed % 3])
        yield from ((f"phantom, {kernel}", hu) for hu in draw_phantom(seed, scan=scan).hu)
    for path in sorted(get_testdata_files("*.dcm")):
        if Path(path).name.startswith(CLEAN_FILES):
            yield from (("pydicom", frame) for frame in read(Path(path)))
    for path in sorted((DATA / "lctsc").glob("*.npz")):
        yield from (("lctsc", hu) for hu in np.load(path)["hu"])
    for name in ("lungdx-a0002", "cip-ct64", "dicom-robustness"):
        for path in sorted((DATA / name).rglob("*.dcm")):
            yield from ((name, frame) for frame in read(path))


def words(random: np.random.Generator) -> str:
    "A name, a date or a number, of at least four characters."
    kind = random.integers(4)
    if kind == 0:
        return f"{random.integers(1930, 2015)}-{random.integers(1, 13):02d}-{random.integers(1, 29):02d}"
    if kind == 1:
        return f"ID {random.integers(10**5, 10**8)}"
    return ("^", ", ")[kind - 2].join(random.choice(NAMES, 2))


def drawn(text: str, face: str, size: int, way: str) -> np.ndarray:
    "The share of ink of each pixel, cut to the writing."
    finer = 4 if way == "shrunk" else 1
    font = ImageFont.truetype(FONTS / f"{face}.ttf", size * finer)
    right, bottom = (4 * (v // 4 + 3) for v in font.getbbox(text)[2:])
    page = Image.new("1" if way == "stamped" else "L", (right, bottom))
    ImageDraw.Draw(page).text((2, 2), text, fill=1 if way == "stamped" else 255, font=font)
    ink = np.asarray(page) / (1 if way == "stamped" else 255)
    ink = ink.reshape(bottom // finer, finer, right // finer, finer).mean((1, 3))
    rows, cols = np.flatnonzero(ink.max(1) > 0.2), np.flatnonzero(ink.max(0) > 0.2)
    return ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def plant(image: np.ndarray, random: np.random.Generator) -> Planted | None:
    "The image with writing somewhere, or nothing where it does not fit or cannot be read."
    way, place = (
        str(random.choice(["stamped", "smoothed", "shrunk"])),
        str(random.choice(["corner", "body", "anywhere"])),
    )
    ink = drawn(words(random), str(random.choice(FACES)), int(random.choice(SIZES)), way)
    room = np.array(image.shape) - ink.shape
    if room.min() < 4:
        return None
    spot = {
        "corner": random.integers(0, np.minimum(room, 10)) + random.integers(0, 2, 2) * (room - 10).clip(0),
        "body": (room / 2 + random.normal(0, 0.12, 2) * image.shape).astype(int).clip(0, room - 1),
        "anywhere": random.integers(0, room),
    }[place]
    low, high = int(image.min()), int(image.max())
    deep = high > 255
    value = int(
        random.choice([high, low, *((4095, 3071, 255) if deep else (255,)), high - (high - low) // 5])
    )
    value = int(np.clip(value, *(getattr(np.iinfo(image.dtype), end) for end in ("min", "max"))))
    window = np.s_[spot[0] : spot[0] + ink.shape[0], spot[1] : spot[1] + ink.shape[1]]
    under = image[window].astype(float)
    rise = abs(value - np.median(under))
    if rise < 0.25 * max(high - low, value - low, 1) or rise <= 4 * under.std():
        return None
    out = image.copy()
    out[window] = np.round(under * (1 - ink) + value * ink).astype(image.dtype)
    box = (window[0].start, window[0].stop, window[1].start, window[1].stop)
    return Planted(out, ink.shape[0], way, place, box)


def found(planted: Planted) -> bool:
    "Whether a box lies on the writing."
    y0, y1, x0, x1 = planted.box
    return any(b.row0 < y1 and b.row1 > y0 and b.col0 < x1 and b.col1 > x0 for b in find_text(planted.image))


def share(hits: list[bool]) -> str:
    return f"{np.mean(hits):6.1%} of {len(hits):4d}" if hits else f"{'':14}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"planted": 1000, "slices": 280, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pydicom")  # its odd files are odd on purpose
    everything = list(clean(args.slices))
    held, times = {}, {}
    for source, image in everything:
        start = perf_counter()
        held.setdefault(source, []).append(holds_text(image))
        if image.shape == (512, 512):
            times.setdefault(source, []).append(1000 * (perf_counter() - start))
    print("clean slices held")
    for source, hits in held.items():
        print(f"  {source:18} {sum(hits):3d} of {len(hits):4d}")
    print(f"  {'all':18} {sum(map(sum, held.values())):3d} of {len(everything):4d}")
    print("ms per clean slice of 512 x 512: median, 9 in 10 below")
    for source, ms in times.items():
        if len(ms) > 5:
            print(f"  {source:18} {median(ms):6.2f} {quantiles(ms, n=10)[-1]:6.2f}")
    random = np.random.default_rng(args.seed)
    grey = [
        image
        for _, image in everything
        if min(image.shape) >= 128 and int(image.max()) - int(image.min()) > 200
    ]
    results = []
    while len(results) < args.planted:
        if planted := plant(grey[random.integers(len(grey))], random):
            results.append((planted, found(planted)))
    ways, places = ("stamped", "smoothed", "shrunk"), ("corner", "anywhere", "body")
    print(f"planted strings found\n  {'height, pixels':18}" + "".join(f"{way:>16}" for way in ways))
    for low, high in ((5, 7), (8, 9), (10, 12), (13, 16), (17, 60)):
        rows = [[hit for p, hit in results if low <= p.height <= high and p.way == way] for way in ways]
        print(f"  {f'{low} to {high}':18}" + "".join(f"{share(row):>16}" for row in rows))
    for place in places:
        print(
            f"  {place:18}"
            f"{share([h for p, h in results if p.height >= 8 and p.place == place]):>16}  of 8 px or more"
        )
    print(f"  {'all':18}{share([hit for p, hit in results if p.height >= 8]):>16}  of 8 pixels or more")


if __name__ == "__main__":
    main()
