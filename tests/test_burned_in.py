"""Burned-in text is found wherever and however it was drawn; anatomy is left alone."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.data import get_testdata_file
from realdata import real

from lungseg.burned_in import Box, blank, find_text, holds_text
from lungseg.phantom import Scan, draw_phantom

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
STRINGS = ("SMITH^ANNA", "1951-07-04", "ID 35053935", "КУЗНЕЦОВА", "Kowalska, Eva")


def write(image, text, row, col, size, value, face="DejaVuSans", smooth=True):
    "The image with text drawn on it."
    font = ImageFont.truetype(FONTS / f"{face}.ttf", size) if face else ImageFont.load_default_imagefont()
    page = Image.new("L" if smooth else "1", image.shape[::-1])
    ImageDraw.Draw(page).text((col, row), text, fill=255 if smooth else 1, font=font)
    ink = np.asarray(page) / (255 if smooth else 1)
    return np.round(image * (1 - ink) + value * ink).astype(image.dtype)


@pytest.fixture(scope="module")
def slices():
    "Clean phantom slices: smooth and standard, and sharp, thin and noisy."
    scans = [
        Scan(size=256, slices=3, kernel=k, dose=d, thickness_mm=1.0)
        for k, d in (("standard", 1), ("sharp", 0.1))
    ]
    return [hu for seed, scan in enumerate(scans) for hu in draw_phantom(seed, scan=scan).hu]


def test_clean_slices_are_never_held(slices):
    disc = np.hypot(*(np.mgrid[:256, :256] - 127.5)) < 126
    for hu in slices:
        assert find_text(hu) == []
        for padding in (-1024, -2000, -3024):
            assert not holds_text(np.where(disc, hu, padding).astype(np.int16))
        assert not holds_text((hu.astype(int) + 1024).astype(np.uint16))
        assert not holds_text((3071 - hu.astype(int)).astype(np.int16))
        assert not any(holds_text(hu[::k, ::k]) for k in (2, 4, 8, 16))


def test_windowed_clean_slices_are_never_held(slices):
    for hu in slices:
        for low, width in ((-1350, 1500), (-160, 400), (-400, 1800)):
            assert not holds_text(np.clip((hu - float(low)) / width * 255, 0, 255).astype(np.uint8))


def test_noise_and_clipped_noise_are_never_held():
    random = np.random.default_rng(0)
    for sigma in (1, 5, 50, 500):
        noise = random.normal(0, sigma, (256, 256))
        assert not holds_text(noise.astype(np.int16))
        assert not holds_text(noise.clip(0).astype(np.uint16))


def test_wires_and_screws_are_never_held(slices):
    "Metal clipped at 3071, as discs, rods and the thin cables on a patient's skin."
    y, x = np.mgrid[:256, :256]
    for hu in slices:
        metal = hu.copy()
        metal[np.hypot(y - 100, x - 120) < 4] = 3071
        metal[(abs(y - 140) < 2) & (abs(x - 130) < 12)] = 3071
        metal[(np.hypot(y - 170, x - 110) < 9) & (np.hypot(y - 170, x - 110) > 6)] = 3071
        metal[abs(y - 20 - 5 * np.sin(x / 9)) < 0.8] = 1500
        assert not holds_text(metal)


@pytest.mark.parametrize("text", STRINGS)
@pytest.mark.parametrize("smooth", [False, True])
def test_text_of_every_size_is_found(slices, text, smooth):
    for size in (10, 12, 16, 24, 32):
        for hu in slices[::3]:
            assert holds_text(write(hu, text, 4, 6, size, int(hu.max()), smooth=smooth)), size


@pytest.mark.parametrize(
    "face", ["", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Bold", "DejaVuSans-Oblique", "STIXGeneral"]
)
def test_text_in_every_face_is_found(slices, face):
    assert all(holds_text(write(hu, "Phantom^Eva 1951", 6, 6, 14, 3071, face)) for hu in slices)


@pytest.mark.parametrize(
    ("value", "row", "col"), [(4095, 120, 90), (3071, 120, 90), (255, 8, 8), (-1024, 118, 80)]
)
def test_text_of_any_value_is_found(slices, value, row, col):
    "White and black over the liver, 255 HU in the air."
    assert holds_text(write(slices[0], "Larsson 4711", row, col, 14, value))


@pytest.mark.parametrize("dtype", ["int16", "uint16", ">i2", ">u2", "int32", "uint32", "uint8"])
def test_every_kind_of_pixel_is_looked_at(dtype):
    page = write(np.full((50, 180), 30, np.int64), "DOSE REPORT 12.3", 15, 10, 14, 220)
    assert holds_text(page.astype(dtype)) and holds_text(250 - page.astype(dtype))
    assert not holds_text(np.full((50, 180), 30, dtype))


def test_full_range_of_sixteen_bits_does_not_overflow():
    for low, high in ((-32768, 32767), (0, 65535)):
        dtype = np.int16 if low else np.uint16
        for paper, ink in ((low, high), (high, low)):
            assert holds_text(write(np.full((50, 180), paper, dtype), "SMITH 1951", 15, 10, 14, ink))


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (255, 255, 0)])
@pytest.mark.parametrize("paper", [0, 255, 90])
def test_coloured_text_is_found(colour, paper):
    planes = [write(np.full((50, 180), paper, np.uint8), "SMITH^ANNA 1951", 15, 10, 14, v) for v in colour]
    assert holds_text(np.stack(planes, -1))


def test_bits_of_an_overlay_are_read():
    empty = np.zeros((64, 128), np.uint8)
    assert holds_text(write(empty, "EVA 1951", 20, 10, 14, 1, smooth=False))
    y, x = np.mgrid[:64, :128]
    assert not holds_text((np.hypot(y - 30, x - 60) < 20).astype(np.uint8))
    assert not holds_text((abs(np.hypot(y - 30, x - 60) - 20) < 1).astype(np.uint8))


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (3, 3, 3), (5, 200), (200, 5), (16, 16), (32, 32)])
def test_small_images_are_no_trouble(shape):
    image = np.random.default_rng(1).integers(0, 4096, shape).astype(np.int16)
    assert find_text(image) == [] and blank(image, []).shape == shape


def test_the_image_is_left_alone_and_its_copy_is_bare(slices):
    named = write(write(slices[0], STRINGS[0], 4, 6, 14, 3071), STRINGS[1], 120, 90, 14, 3071)
    before = named.copy()
    boxes = find_text(named)
    bare = blank(named, boxes)
    assert len(boxes) == 2 and all(isinstance(b, Box) for b in boxes)
    assert (named == before).all() and bare.dtype == named.dtype
    assert find_text(bare) == [] and (bare[boxes[0].row0, boxes[0].col0] == named.min())


def test_a_page_full_of_lines_is_blanked():
    page = np.full((200, 300), 255, np.uint8)
    for i, text in enumerate(STRINGS * 2):
        page = write(page, text, 4 + 19 * i, 10 + 7 * i, 13, 0)
    bare = blank(page, find_text(page))
    assert find_text(bare) == [] and holds_text(page)


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "examples_palette.dcm"])
def test_screens_in_pydicom_are_found(name):
    "Two ultrasound screens that come with pydicom, if it has them at hand."
    path = get_testdata_file(name, download=False)
    if not path:
        pytest.skip("real data: pydicom has this file only online")
    assert holds_text(dcmread(path).pixel_array)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_images_in_pydicom_are_left_alone(name):
    assert not holds_text(dcmread(get_testdata_file(name, download=False)).pixel_array)


@pytest.mark.parametrize("case", ["101", "102", "103", "104"])
def test_real_slices_are_never_held(case):
    hu = np.load(real("lctsc") / f"LCTSC-Test-S1-{case}.npz")["hu"]
    assert [i for i, plane in enumerate(hu) if holds_text(plane)] == []
    assert [i for i in range(60, 460, 40) if holds_text(hu[:, i]) or holds_text(hu[:, :, i])] == []


@pytest.mark.parametrize(
    "folder",
    ["lungdx-a0002", "cip-ct64", "dicom-robustness/gantry-tilt-ge", "dicom-robustness/nonsquare-acrin"],
)
def test_real_files_are_never_held(folder):
    files = sorted(real(folder).rglob("*.dcm"))
    assert files and [p.name for p in files if holds_text(dcmread(p).pixel_array)] == []


def test_names_on_real_slices_are_found():
    hu = np.load(real("lctsc") / "LCTSC-Test-S1-103.npz")["hu"][::15]
    for i, plane in enumerate(hu):
        text, size = STRINGS[i % len(STRINGS)], (11, 14, 20)[i % 3]
        assert holds_text(write(plane, text, 10, 10, size, int(plane.max()))), i
        assert holds_text(write(plane, text, 250, 200, size, 3071)), i
