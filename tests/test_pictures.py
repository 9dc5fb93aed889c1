"""Pictures as other programs write them, masks with every habit, and folders as people keep them."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from realdata import real

from lungseg.core import InputError, LungsegError, MaskError
from lungseg.phantom import LABELS, draw_phantom
from lungseg.pictures import (
    GREY_HU,
    as_grey,
    find_pairs,
    has_peaks,
    mask_geometry,
    mask_pictures,
    natural_key,
    patients_by_name,
    picture_files,
    read_mask_pictures,
    read_picture,
    read_pictures,
    resized,
    resized_mask,
    values_of,
    write_mask_pictures,
    write_overlays,
    write_pairs,
)
from lungseg.volume import Volume, window


@pytest.fixture(scope="module")
def chest() -> tuple[Volume, np.ndarray]:
    phantom = draw_phantom(seed=3, size=64, slices=16)
    lungs = np.isin(phantom.labels, [LABELS["lung_left"], LABELS["lung_right"]])
    return Volume(phantom.hu, phantom.affine), lungs


@pytest.fixture(scope="module")
def grey(chest) -> np.ndarray:
    return np.rint(window(chest[0].array, -212, 1624) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def white(chest) -> np.ndarray:
    return chest[1].astype(np.uint8) * np.uint8(255)


def written(folder: Path, pictures, suffix: str = ".png", **options) -> Path:
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(folder / f"{i}{suffix}", **options)
    return folder


def place(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


# --- files


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=20, unique=True))
@settings(max_examples=50, deadline=None)
def test_numbers_in_names_order_by_value(numbers):
    names = [f"Patient 1 slice{n}.png" for n in numbers]
    assert sorted(names, key=natural_key) == [f"Patient 1 slice{n}.png" for n in sorted(numbers)]


@given(st.lists(st.text(max_size=12), max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_names_can_be_ordered(names):
    assert sorted(sorted(names), key=natural_key) == sorted(names[::-1], key=natural_key)


def test_hidden_files_and_those_of_a_mac_are_no_pictures(grey, tmp_path):
    for name in ("a.PNG", ".b.png", "._a.png", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "a.png").touch()
    assert [f.name for f in picture_files(tmp_path, deep=True)] == ["a.PNG"]


TIFFS = {
    "plain": {},
    "deflate": {"compression": "zlib"},
    "predictor": {"compression": "zlib", "predictor": True},
    "tiles": {"tile": (32, 32), "compression": "zlib"},
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "rows": {"rowsperstrip": 7},
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZYX"}},
}


@pytest.mark.parametrize(
    "kind, dtype",
    [
        (kind, dtype)
        for kind in TIFFS
        for dtype in ("uint8", "int16", "uint16", "float32")
        if (kind, dtype) not in (("ImageJ", "int16"), ("predictor", "float32"))  # which cannot be written
    ],
)
def test_pages_of_a_tiff_are_slices_however_they_are_stored(chest, kind, dtype, tmp_path):
    stack = (
        np.clip(chest[0].array, 0, 255).astype(dtype) if dtype == "uint8" else chest[0].array.astype(dtype)
    )
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", **TIFFS[kind])
    frames = np.stack(read_picture(tmp_path / "a.tif").frames)
    assert frames.dtype == dtype and np.array_equal(frames, stack)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate", "tiff_adobe_deflate"])
def test_compressed_tiff_from_pillow_is_read_page_by_page(grey, compression, tmp_path):
    first, *rest = (Image.fromarray(p) for p in grey)
    first.save(tmp_path / "a.tif", save_all=True, append_images=rest, compression=compression)
    assert np.array_equal(np.stack(read_picture(tmp_path / "a.tif").frames), grey)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint32", "int64", "int8"])
def test_number_formats_that_few_readers_know(dtype, tmp_path):
    picture = np.arange(30).reshape(5, 6).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="minisblack")
    assert np.array_equal(read_picture(tmp_path / "a.tif").frames[0], picture)


def test_white_is_zero_in_some_tiffs(grey, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 255 - grey, photometric="miniswhite")
    assert np.array_equal(np.stack(read_picture(tmp_path / "a.tif").frames), grey)


def test_one_bit_pictures_are_black_and_white(white, tmp_path):
    for name in ("a.png", "a.tif", "a.bmp", "a.gif"):
        Image.fromarray(white[8]).convert("1").save(tmp_path / name)
        assert np.array_equal(read_mask_pictures(tmp_path / name)[0], white[8] > 0), name


def test_grey_stored_as_colour_palette_or_opaque_is_grey(grey, tmp_path):
    image = Image.fromarray(grey[8])
    kinds = {m: image.convert(m) for m in ("RGB", "RGBA", "LA", "P")}
    for mode, stored in kinds.items():
        stored.save(tmp_path / f"{mode}.png")
        frame = read_picture(tmp_path / f"{mode}.png").frames[0]
        assert np.array_equal(as_grey(frame, mode), grey[8]), mode


def test_a_jpeg_is_lossy_and_says_so_whatever_it_is_called(grey, tmp_path):
    Image.fromarray(grey[8]).convert("RGB").save(tmp_path / "a.png", format="JPEG", quality=90)
    volume = read_pictures(tmp_path / "a.png")
    assert volume.provenance["lossy"] and "lossy" in volume.provenance["values"]
    assert np.abs(volume.array[0] - values_of(grey).hu(grey[8])).mean() < 15


def test_colour_is_refused_unless_its_brightness_is_asked_for(grey, tmp_path):
    place(tmp_path / "a.png", np.asarray(ImageOps.colorize(Image.fromarray(grey[8]), "navy", "orange")))
    with pytest.raises(InputError, match=r"^a\.png: coloured"):
        read_pictures(tmp_path / "a.png")
    assert "brightness" in read_pictures(tmp_path / "a.png", colour=True).provenance["values"]


def test_transparency_is_refused(grey, tmp_path):
    image = Image.fromarray(grey[8]).convert("RGBA")
    image.putalpha(Image.fromarray(grey[8]))
    image.save(tmp_path / "a.png")
    with pytest.raises(InputError, match="transparent"):
        read_pictures(tmp_path / "a.png")


def test_a_rotation_noted_in_the_header_is_refused(grey, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey[8]).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(InputError, match="EXIF Orientation is 6"):
        read_pictures(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_file_that_was_cut_off_is_an_error_with_its_name_and_not_its_place(grey, suffix, share, tmp_path):
    noisy = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    whole = place(tmp_path / f"whole{suffix}", noisy).read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=rf"^cut{suffix}: ") as e:
        read_pictures(cut)
    assert str(tmp_path) not in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"imagej": True}], ids=["plain", "deflate", "ImageJ"]
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_stack_that_was_cut_off_never_comes_back_shorter(grey, options, share, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="minisblack", **options)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"^a\.tif: "):
        read_pictures(tmp_path / "a.tif")


def test_a_stack_written_page_by_page_and_cut_between_pages_is_refused(grey, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for picture in grey:
            tif.write(picture, photometric="minisblack", contiguous=False, metadata=None)
    whole = (tmp_path / "a.tif").read_bytes()
    for share in np.linspace(0.1, 0.99, 12):
        (tmp_path / "a.tif").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError):
            read_pictures(tmp_path / "a.tif")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_give_a_picture_or_an_input_error(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = folder / data.draw(st.sampled_from(["a.png", "a.tif", "a.jpg", "a.gif"]))
    Image.fromarray(picture).save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        read_pictures(path)
    except LungsegError as e:
        assert str(folder) not in str(e)


def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path, monkeypatch):
    place(tmp_path / "a.png", np.zeros((300, 300), np.uint8))
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((300, 300), np.uint8), compression="zlib")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for name in ("a.png", "a.tif"):
        with pytest.raises(InputError, match=f"{name}: too many pixels, expected at most 10000"):
            read_pictures(tmp_path / name)


def test_a_picture_under_another_suffix_or_no_picture_at_all(grey, tmp_path):
    Image.fromarray(grey[8]).save(tmp_path / "really_png.tif", format="PNG")
    assert read_pictures(tmp_path / "really_png.tif").shape == (1, 64, 64)
    (tmp_path / "a.png").write_text("<html>")
    with pytest.raises(InputError, match=r"^a\.png: something else, expected"):
        read_pictures(tmp_path / "a.png")
    with pytest.raises(InputError, match="no such file"):
        read_pictures([tmp_path / "absent.png"])


# --- stacks


def test_a_list_keeps_its_order_and_a_folder_is_sorted(grey, tmp_path):
    folder = written(tmp_path / "s", grey)
    forwards = read_pictures(folder).array
    assert np.array_equal(np.rint(window(forwards, -212, 1624) * 255), grey)
    assert np.array_equal(read_pictures(picture_files(folder)[::-1]).array, forwards[::-1])


@pytest.mark.parametrize("spoil", ["size", "format"])
def test_pictures_that_differ_are_named_with_what_they_are(grey, spoil, tmp_path):
    folder = written(tmp_path / "s", grey[:3])
    other = grey[0, :32] if spoil == "size" else grey[0].astype(np.uint16) * 257
    place(folder / "odd.png", other)
    with pytest.raises(InputError, match=r"64×64 uint8 \(0\.png and 2 more\), .*odd\.png"):
        read_pictures(folder)


def test_images_and_masks_in_one_folder_are_no_stack(grey, white, tmp_path):
    place(tmp_path / "a.png", grey[8])
    place(tmp_path / "a_mask.png", white[8])
    with pytest.raises(InputError, match=r"pictures and masks \(a_mask\.png\) in one folder"):
        read_pictures(tmp_path)


def test_what_a_picture_cannot_know_is_said(grey, tmp_path):
    folder = written(tmp_path / "s", grey[:2])
    bare, given_mm = read_pictures(folder), read_pictures(folder, spacing_mm=(5, 0.7, 0.8))
    assert not (bare.spacing_known or bare.provenance["hu_known"] or bare.provenance["orientation_known"])
    assert given_mm.spacing_known and given_mm.spacing_mm == (5, 0.7, 0.8)
    assert np.allclose(
        given_mm.index_to_mm((1, 1, 1)), (0.8, 0.7, 5)
    )  # x to the left, y to the back, z to the head
    for wrong in (0, -1, (1, 2, float("nan"))):
        with pytest.raises(InputError, match="spacing_mm"):
            read_pictures(folder, spacing_mm=wrong)


def test_the_network_sees_the_greys_of_the_picture(grey, tmp_path):
    from lungseg.slices import Preparation, scale_hu

    prep = Preparation()
    assert (prep.hu_min, prep.hu_max - prep.hu_min) == GREY_HU
    volume = read_pictures(written(tmp_path / "s", grey))
    seen = (scale_hu(volume.array, prep).numpy() + 1) / 2
    assert np.abs(seen - grey / 255).max() < 0.5 / 1624 + 1e-6


@pytest.mark.parametrize("top", [255, 4095, 65535, 1.0])
def test_greys_of_any_depth_become_the_same_volume(grey, top):
    stored = (
        (grey / 255 * top).astype(np.float32) if top == 1.0 else np.rint(grey / 255 * top).astype(np.uint16)
    )
    values = values_of(stored)
    assert not values.hu_known
    assert np.abs(values.hu(stored).astype(int) - values_of(grey).hu(grey)).max() <= 1


def test_values_below_zero_that_are_no_hu_are_scaled_and_said_to_be_unknown(grey):
    normalised = (grey - grey.mean()) / grey.std()
    values = values_of(normalised.astype(np.float32))
    assert not values.hu_known and "unknown window" in values.said
    assert (
        values.hu(normalised.astype(np.float32)).min(),
        values.hu(normalised.astype(np.float32)).max(),
    ) == (-1024, 600)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(chest, bad, tmp_path):
    stored = chest[0].array.astype(np.float32)
    stored[3, 3, 3] = bad
    tifffile.imwrite(tmp_path / "a.tif", stored)
    with pytest.raises(InputError, match=r"a\.tif: values that are no finite numbers"):
        read_pictures(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["lctsc/LCTSC-Test-S1-101.npz", "lctsc/LCTSC-Test-S1-103.npz"])
def test_every_slice_of_a_real_chest_has_its_two_peaks(name):
    hu = np.load(real(name))["hu"][::8]
    assert all(has_peaks(s.ravel().astype(float)) for s in hu)
    for shift in (0, 1024, 32768):
        stored = (hu.astype(np.int32) + shift).astype(np.int16 if shift == 0 else np.uint16)
        values = values_of(stored)
        assert (values.zero, values.hu_known) == (shift, True)
        assert np.array_equal(values.hu(stored), hu)
    for level, width in ((-600, 1500), (40, 400), (-212, 1624)):
        for top in (255, 4095, 65535):
            assert not values_of(np.rint(window(hu, level, width) * top).astype(np.uint16)).hu_known


def test_a_real_chest_in_256_greys_keeps_its_lungs_and_proves_its_inverted_mask(tmp_path):
    from lungseg.isolate import threshold_lungs

    case = np.load(real("lctsc/LCTSC-Test-S1-102.npz"))
    hu, mask = case["hu"][40:120:8, ::2, ::2], case["mask"][40:120:8, ::2, ::2] > 0
    stored = np.rint(window(hu, -212, 1624) * 255).astype(np.uint8)
    volume = read_pictures(written(tmp_path / "images", stored))
    flipped = read_mask_pictures(
        written(tmp_path / "masks", 255 - mask.astype(np.uint8) * np.uint8(255)), volume=volume
    )
    assert np.array_equal(flipped, mask)
    ours, theirs = threshold_lungs(volume), threshold_lungs(Volume(hu, volume.affine, volume.provenance))
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.995


# --- masks


@pytest.mark.parametrize("low, high", [(0, 1), (0, 255), (0, 128), (1, 2), (38, 75), (0, 65535)])
def test_any_two_values_are_a_mask(chest, low, high, tmp_path):
    stored = np.where(chest[1], high, low).astype(np.uint16 if high > 255 else np.uint8)
    assert np.array_equal(read_mask_pictures(written(tmp_path / "m", stored)), chest[1])


def test_an_empty_mask_is_empty_and_a_full_one_is_refused(tmp_path):
    place(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    place(tmp_path / "b.png", np.full((8, 8), 255, np.uint8))
    assert not read_mask_pictures(tmp_path / "a.png").any()
    with pytest.raises(MaskError, match=r"b\.png: every pixel is 255"):
        read_mask_pictures(tmp_path / "b.png")


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_the_grey_seams_of_jpeg_are_cut_at_half_and_that_is_said(chest, white, quality, tmp_path):
    made = mask_pictures(written(tmp_path / "m", white, ".jpg", quality=quality))
    assert 2 * (made.mask & chest[1]).sum() / (made.mask.sum() + chest[1].sum()) > 0.99
    assert "cut at" in made.said[0]


def test_a_jpeg_of_zero_and_one_is_refused(white, tmp_path):
    folder = written(tmp_path / "m", white // 255, ".jpg", quality=100)
    with pytest.raises(MaskError, match="JPEG with values from 0 to"):
        read_mask_pictures(folder)


def test_antialiased_edges_are_seams(chest, white, tmp_path):
    soft = np.stack(
        [np.asarray(Image.fromarray(p).resize((128, 128), Image.Resampling.BICUBIC)) for p in white]
    )
    mask = read_mask_pictures(written(tmp_path / "m", soft))
    large = chest[1].repeat(2, 1).repeat(2, 2)
    assert 2 * (mask & large).sum() / (mask.sum() + large.sum()) > 0.97


@pytest.mark.parametrize("values", [(1, 2), (85, 170), (128, 255), (255, 128)])
def test_label_numbers_are_refused_by_name_and_taken_when_told(chest, values, tmp_path):
    halves = np.zeros(chest[1].shape, np.uint8)
    halves[..., :32][chest[1][..., :32]], halves[..., 32:][chest[1][..., 32:]] = values
    folder = written(tmp_path / "m", halves)
    with pytest.raises(MaskError, match=f"values 0, {min(values)}, {max(values)}, expected two"):
        read_mask_pictures(folder)
    assert np.array_equal(read_mask_pictures(folder, labels=values), chest[1])
    with pytest.raises(MaskError, match="expected some of 77"):
        read_mask_pictures(folder, labels=[77])


def test_a_faint_apex_between_slices_is_a_seam_and_a_single_grey_is_a_label(tmp_path):
    disc = np.hypot(*(np.indices((64, 64)) - 31.5)) < 3
    soft = np.asarray(
        Image.fromarray(disc.astype(np.uint8) * np.uint8(255)).resize((32, 32), Image.Resampling.BOX)
    )
    assert 0 < read_mask_pictures(place(tmp_path / "small.png", soft)).sum() < 20
    faint = soft // 14  # nothing above 18
    assert not read_mask_pictures(written(tmp_path / "m", np.stack([soft, faint])))[1].any()
    rim = np.where(disc, 255, 0).astype(np.uint8)
    rim[28:36, 35:38] = 128
    with pytest.raises(MaskError, match="values 0, 128, 255"):
        read_mask_pictures(place(tmp_path / "rim.png", rim))


def test_an_image_is_no_mask(grey, tmp_path):
    with pytest.raises(MaskError, match="expected two"):
        read_mask_pictures(written(tmp_path / "m", grey))


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 128), (255, 255, 255)])
def test_one_colour_on_black_is_a_mask(chest, colour, tmp_path):
    assert np.array_equal(
        read_mask_pictures(written(tmp_path / "m", chest[1][..., None] * np.array(colour, np.uint8))),
        chest[1],
    )


def test_two_colours_are_refused(chest, tmp_path):
    drawn = chest[1][8, ..., None] * np.array((255, 0, 0), np.uint8)
    drawn[:8] = (0, 255, 0)
    place(tmp_path / "a.png", drawn)
    with pytest.raises(MaskError, match="coloured"):
        read_mask_pictures(tmp_path / "a.png")


def test_a_palette_of_two_colours_is_a_mask(chest, tmp_path):
    image = Image.fromarray(chest[1][8].astype(np.uint8))
    image = image.convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_mask_pictures(tmp_path / "a.png")[0], chest[1][8])


def test_an_inverted_mask_is_proved_or_refused_but_never_believed(chest, grey, white, tmp_path):
    folder = written(tmp_path / "m", 255 - white)
    with pytest.raises(MaskError, match="of the border are lung"):
        read_mask_pictures(folder)
    assert np.array_equal(read_mask_pictures(folder, volume=chest[0]), chest[1])
    assert np.array_equal(read_mask_pictures(folder, inverted=True), chest[1])
    assert np.array_equal(read_mask_pictures(folder, inverted=False), ~chest[1])
    flat = Volume(np.zeros_like(chest[0].array), chest[0].affine)
    with pytest.raises(MaskError, match="does not prove"):
        read_mask_pictures(folder, volume=flat)


def test_a_mask_of_another_size_than_its_volume_is_refused(chest, white, tmp_path):
    with pytest.raises(MaskError, match=r"shape \(16, 32, 64\), expected the volume's \(16, 64, 64\)"):
        read_mask_pictures(written(tmp_path / "m", white[:, ::2]), volume=chest[0])


def test_a_mask_goes_out_and_comes_back_voxel_for_voxel_with_its_place(chest, tmp_path):
    volume, lungs = chest
    files = write_mask_pictures(lungs, volume, tmp_path / "m")
    assert [f.exists() for f in files] == [True] * 17 and files[-1].name == "mask.json"
    assert np.array_equal(read_mask_pictures(tmp_path / "m"), lungs)
    assert np.array_equal(mask_geometry(tmp_path / "m"), volume.affine)
    assert set(np.unique(Image.open(files[8]))) == {0, 255}


def test_geometry_that_is_not_known_is_not_written(chest, tmp_path):
    bare = Volume(chest[0].array, chest[0].affine, {"spacing_known": False, "orientation_known": False})
    write_mask_pictures(chest[1], bare, tmp_path / "m")
    told = json.loads((tmp_path / "m" / "mask.json").read_text())
    assert told["affine"] is None and told["spacing_mm"] is None and mask_geometry(tmp_path / "m") is None


@pytest.mark.parametrize("affine", ["[[1, 2], [3, 4]]", '"x"', "[[NaN, 0, 0, 0]]", "[1, [2], 3]"])
def test_broken_geometry_is_refused(affine, tmp_path):
    (tmp_path / "mask.json").write_text(f'{{"affine": {affine}}}')
    with pytest.raises(InputError, match=r"mask\.json: affine"):
        mask_geometry(tmp_path)


def test_a_folder_with_something_in_it_is_not_written_into(chest, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("keep")
    for write in (write_mask_pictures, lambda m, v, f: write_overlays(v, {"reference": m}, f)):
        with pytest.raises(InputError, match="new or empty"):
            write(chest[1], chest[0], tmp_path / "m")
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["mine.txt"]


def test_nothing_is_left_behind_when_writing_fails(chest, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mask_pictures(chest[1], chest[0], tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# --- pairs

LAYOUTS = [
    ("2d_images/{}.tif", "2d_masks/{}.tif"),
    ("images/{}.png", "masks/{}.png"),
    ("Images/{}.jpg", "Masks/{}.png"),
    ("img/{}.png", "label/{}.png"),
    ("CXR_png/{}.png", "masks/{}_mask.png"),
    ("CT/{}.png", "lung_masks/{}_lung.png"),
    ("scans/{}.bmp", "segmentation/{}-seg.tiff"),
    ("{}.png", "{}_mask.png"),
    ("{}.jpg", "{}_seg.png"),
    ("{}.png", "{}_lung.png"),
    ("img_{}.png", "mask_{}.png"),
    ("images/img_{}.png", "masks/mask_{}.png"),
    ("{}.png", "masks/{}.png"),
    ("original/{}.png", "mask/{}.png"),
    ("pictures of chests/{}.png", "masks/{}.png"),
    ("anything/{}.png", "masks/{}.png"),
    ("train_images/{}.png", "train_masks/{}.png"),
    ("train/{}.png", "train_masks/{}.png"),
    ("2d_images/2d_images/{}.png", "2d_masks/{}.png"),
    ("Lung Segmentation/CXR_png/{}.png", "Lung Segmentation/masks/{}_mask.png"),
]


@pytest.mark.parametrize("image, mask", LAYOUTS)
def test_images_find_their_masks_in_every_usual_layout(grey, white, image, mask, tmp_path):
    for i in (2, 10):
        place(tmp_path / image.format(f"X_{i}"), grey[8])
        place(tmp_path / mask.format(f"X_{i}"), white[8])
    found = find_pairs(tmp_path)
    assert found.held == ()
    assert [
        (p.images[0].relative_to(tmp_path).as_posix(), p.masks[0].relative_to(tmp_path).as_posix())
        for p in found.pairs
    ] == [(image.format(f"X_{i}"), mask.format(f"X_{i}")) for i in (2, 10)]


@pytest.mark.parametrize(
    "parts",
    [
        ("{part}/images/{}.png", "{part}/masks/{}.png"),
        ("images/{part}/{}.png", "masks/{part}/{}.png"),
        ("{part}_images/{}.png", "{part}_masks/{}.png"),
    ],
)
def test_a_folder_that_is_split_keeps_its_parts(grey, white, parts, tmp_path):
    for part in ("train", "val", "test"):
        for path, picture in zip(parts, (grey[8], white[8]), strict=True):
            place(tmp_path / path.format("1", part=part), picture)
    found = find_pairs(tmp_path)
    assert {(p.name, p.part) for p in found.pairs} == {
        ("train_1", "train"),
        ("validation_1", "validation"),
        ("test_1", "test"),
    }
    assert len({p.patient for p in found.pairs}) == 3 and found.held == ()


def test_names_that_differ_by_case_belong_together(grey, white, tmp_path):
    place(tmp_path / "images" / "Case_A.PNG", grey[8])
    place(tmp_path / "masks" / "case_a.png", white[8])
    assert len(find_pairs(tmp_path).pairs) == 1


def test_every_misfit_is_held_by_name_with_its_reason(grey, white, tmp_path):
    good = place(tmp_path / "images" / "good.png", grey[8])
    place(tmp_path / "masks" / "good.png", white[8])
    place(tmp_path / "images" / "lonely.png", grey[8])
    place(tmp_path / "masks" / "orphan.png", white[8])
    place(tmp_path / "images" / "twice.png", grey[8])
    place(tmp_path / "images" / "twice.jpg", grey[8])
    place(tmp_path / "masks" / "twice.png", white[8])
    place(tmp_path / "images" / "two.png", grey[8])
    place(tmp_path / "masks" / "two.png", white[8])
    place(tmp_path / "masks" / "two_mask.png", white[8])
    place(tmp_path / "images" / "small.png", grey[8])
    place(tmp_path / "masks" / "small.png", white[8, ::2])
    place(tmp_path / "images" / "broken.png", grey[8])
    broken = place(tmp_path / "masks" / "broken.png", white[8])
    broken.write_bytes(broken.read_bytes()[:-20])
    place(tmp_path / "images" / "empty.png", grey[8])
    (tmp_path / "masks" / "empty.png").touch()
    (tmp_path / "3d_images").mkdir()
    (tmp_path / "3d_images" / "IMG_0002.nii.gz").touch()
    found = find_pairs(tmp_path)
    assert [p.images for p in found.pairs] == [(good,)]
    assert {h.item: h.reason for h in found.held} == {
        "images/lonely.png": "an image without a mask of its name",
        "masks/orphan.png": "a mask without an image of its name",
        "images/twice.png": "not the only image of its name for the mask masks/twice.png",
        "images/twice.jpg": "not the only image of its name for the mask masks/twice.png",
        "images/two.png": "2 masks (masks/two.png, masks/two_mask.png), expected one with both lungs",
        "images/small.png": "64×64, but its mask masks/small.png is 32×64: "
        "expected the same size, and none is resized",
        "masks/broken.png": "the picture is broken or cut off",
        "masks/empty.png": "an empty file, expected a PNG, TIFF, JPEG, BMP or GIF picture",
    }
    assert "broken.png" in repr(found)


def test_masks_of_the_left_and_the_right_lung_apart_are_held(grey, white, tmp_path):
    place(tmp_path / "CXR_png" / "MCUCXR_0001_0.png", grey[8])
    for side in ("leftMask", "rightMask"):
        place(tmp_path / side / "MCUCXR_0001_0.png", white[8])
    (held,) = find_pairs(tmp_path).held
    assert (
        held.item == "CXR_png/MCUCXR_0001_0.png" and "2 masks" in held.reason and "rightMask" in held.reason
    )


def test_masks_of_infections_are_no_lung_masks(grey, white, tmp_path):
    for kind, picture in (("ct_scans", grey[8]), ("lung_mask", white[8]), ("infection_mask", white[8])):
        place(tmp_path / kind / "1.png", picture)
    found = find_pairs(tmp_path)
    assert [p.masks[0].parent.name for p in found.pairs] == ["lung_mask"]
    assert [(h.item, h.reason) for h in found.held] == [
        ("infection_mask", "masks of something else than lungs (1)")
    ]


def test_slices_of_one_patient_are_one_case_in_order(grey, white, tmp_path):
    for who in ("ID_0000", "ID_0001"):
        for z in (9, 10, 11):
            place(tmp_path / "2d_images" / f"{who}_Z_{z}.png", grey[z])
            place(tmp_path / "2d_masks" / f"{who}_Z_{z}.tif", white[z])
    found = find_pairs(tmp_path)
    assert [(p.name, p.patient) for p in found.pairs] == [("ID_0000", "ID_0000"), ("ID_0001", "ID_0001")]
    assert [f.name for f in found.pairs[0].images] == [f"ID_0000_Z_{z}.png" for z in (9, 10, 11)]
    assert np.array_equal(read_mask_pictures(found.pairs[1].masks), white[9:12] > 0)
    assert found.note == ""


def test_slices_of_one_patient_in_two_sizes_are_cases_of_one_patient(grey, white, tmp_path):
    for z, step in ((9, 1), (10, 2)):
        place(tmp_path / "images" / f"ID_7_Z_{z}.png", grey[z, ::step])
        place(tmp_path / "masks" / f"ID_7_Z_{z}.png", white[z, ::step])
    found = find_pairs(tmp_path)
    assert [(p.name, p.patient) for p in found.pairs] == [("ID_7_Z_9", "ID_7"), ("ID_7_Z_10", "ID_7")]


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/{who}/{}.png", "masks/{who}/{}.png"),
        ("{who}/images/{}.png", "{who}/masks/{}.png"),
        ("{who}/{}.png", "{who}/{}_mask.png"),
    ],
)
def test_a_folder_of_a_patient_is_a_case(grey, white, image, mask, tmp_path):
    for who in ("patient_1", "patient_12"):
        for z in (9, 10):
            place(tmp_path / image.format(z, who=who), grey[z])
            place(tmp_path / mask.format(z, who=who), white[z])
    found = find_pairs(tmp_path)
    assert [(p.name, [f.stem for f in p.images]) for p in found.pairs] == [
        ("patient_1", ["9", "10"]),
        ("patient_12", ["9", "10"]),
    ]


def test_folders_of_diagnoses_are_no_patients(grey, white, tmp_path):
    for what in ("COVID", "Normal"):
        for i in (1, 2):
            place(tmp_path / what / "images" / f"{what}-{i}.png", grey[8])
            place(tmp_path / what / "masks" / f"{what}-{i}.png", white[8])
    found = find_pairs(tmp_path)
    assert [len(p.images) for p in found.pairs] == [1] * 4 and len({p.patient for p in found.pairs}) == 4
    assert "4 of 4 cases do not tell patients apart" in found.note


def test_a_patient_in_two_parts_is_said(grey, white, tmp_path):
    for part, z in (("train", 9), ("test", 10)):
        place(tmp_path / part / "images" / f"ID_7_Z_{z}.png", grey[z])
        place(tmp_path / part / "masks" / f"id_7_Z_{z}.png", white[z])
    found = find_pairs(tmp_path)
    assert {p.patient for p in found.pairs} == {"ID_7"} and [p.name for p in found.pairs] == [
        "test_ID_7",
        "train_ID_7",
    ]
    assert "more than one part of the folder: 1." in found.note


@pytest.mark.parametrize(
    "stems, patients",
    [
        (["ID_0000_Z_0142"], ["ID_0000"]),
        (["coronacases_001_slice_12", "coronacases_001_slice_13"], ["coronacases_001"] * 2),
        (["MCUCXR_0001_0", "MCUCXR_0002_1"], ["MCUCXR_0001", "MCUCXR_0002"]),
        (["patient3_12", "patient3_13"], ["patient3"] * 2),
        (["covid19_12", "covid19_13"], [None] * 2),
        (["IMG_0001", "12", "slice_3", "COVID-1", "image (4)"], [None] * 5),
        (["case_4", "P12"], ["case_4", "P12"]),
    ],
)
def test_patients_are_told_by_names_that_tell_them(stems, patients):
    assert patients_by_name([(stem,) for stem in stems]) == patients


def test_stacks_of_pages_are_paired_by_pages_too(grey, white, tmp_path):
    for kind, pictures in (("images", grey), ("masks", white[:-1])):
        (tmp_path / kind).mkdir()
        tifffile.imwrite(tmp_path / kind / "a.tif", pictures, photometric="minisblack")
        tifffile.imwrite(tmp_path / kind / "b.tif", pictures[:9], photometric="minisblack")
    found = find_pairs(tmp_path)
    assert [p.name for p in found.pairs] == ["b"]
    assert "64×64 in 16 pages, but its mask masks/a.tif is 64×64 in 15 pages" in found.held[0].reason


def test_a_folder_of_nothing_or_of_images_alone(grey, tmp_path):
    with pytest.raises(InputError, match="expected pictures"):
        find_pairs(tmp_path)
    place(tmp_path / "a.png", grey[8])
    found = find_pairs(tmp_path)
    assert found.pairs == () and [h.item for h in found.held] == ["a.png"] and found.values is None


def test_a_folder_is_read_alike_throughout_even_where_one_slice_proves_nothing(chest, white, tmp_path):
    stored = (chest[0].array + 1024).clip(0).astype(np.uint16)
    only_tissue = np.full((64, 64), 1024 + 40, np.uint16)
    for i in range(8):
        place(tmp_path / "images" / f"{i}.png", only_tissue if i == 7 else stored[8])
        place(tmp_path / "masks" / f"{i}.png", white[8])
    found = find_pairs(tmp_path)
    assert found.values.hu_known
    assert read_pictures(found.pairs[7].images, values=found.values).array.max() == 40
    assert not read_pictures(found.pairs[7].images).provenance["hu_known"]


@pytest.mark.parametrize("suffix, hu", [(".tif", False), (".tif", True), (".png", False), (".jpg", False)])
def test_a_phantom_folder_is_one_that_we_read(suffix, hu, tmp_path):
    out = write_pairs(tmp_path / "kaggle", 2, slices=2, suffix=suffix, hu=hu, size=64)
    found = find_pairs(out)
    assert [len(p.images) for p in found.pairs] == [2, 2] and found.held == () and found.note == ""
    assert found.values.hu_known == hu
    for pair in found.pairs:
        volume, mask = read_pictures(pair.images, values=found.values), read_mask_pictures(pair.masks)
        assert volume.array[mask].mean() < -600 and mask.any(axis=(1, 2)).all()


def test_a_phantom_folder_is_the_same_every_time(tmp_path):
    out, again = (write_pairs(tmp_path / name, 1, suffix=".png", size=64) for name in ("out", "again"))
    files = [picture_files(folder, deep=True) for folder in (out, again)]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    with pytest.raises(InputError, match=r"suffix: \.png, expected \.tif to store HU"):
        write_pairs(tmp_path / "third", 1, suffix=".png", hu=True)


# --- size


@given(st.integers(3, 70), st.integers(3, 70), st.integers(2, 90), st.integers(2, 90))
@settings(max_examples=40, deadline=None)
def test_image_and_mask_stay_aligned_at_any_size(rows, cols, new_rows, new_cols):
    left = np.zeros((rows, cols), bool)
    left[:, : cols // 2] = True
    image, mask = resized(left, (new_rows, new_cols)), resized_mask(left, (new_rows, new_cols))
    assert image.shape == mask.shape == (new_rows, new_cols)
    edge = (cols // 2) / cols * new_cols  # where the edge belongs, in new pixels
    assert abs(mask[0].sum() - edge) <= 0.5 + 0.5 * new_cols / cols
    assert abs(image[0].sum() - edge) <= 0.5 + 0.5 * new_cols / cols
    assert np.array_equal(resized_mask(left, (rows, cols)), left)


def test_shrinking_is_the_mean_and_agrees_with_scikit_image(grey):
    from skimage import transform

    assert np.allclose(resized(grey, 16).mean(), grey.mean(), atol=0.5)
    theirs = transform.resize(grey[8].astype(float), (32, 32), anti_aliasing=True)
    assert np.abs(resized(grey[8], 32) - theirs).mean() < 2
    assert np.allclose(
        resized(grey[8], 128),
        transform.resize(grey[8].astype(float), (128, 128), order=1, mode="edge"),
        atol=0.01,
    )


# --- overlays


def test_overlays_show_the_patients_right_on_the_left_from_any_orientation(chest, tmp_path):
    volume, lungs = chest
    right = volume.shape[2] // 2
    one = lungs.copy()
    one[..., right:] = False  # columns run to the patient's left, so this is the right lung
    ways = {
        "as it is": ((0, 1, 2), ()),
        "mirrored": ((0, 1, 2), (0, 2)),
        "sagittal": ((2, 0, 1), (1,)),
        "coronal": ((1, 0, 2), (0,)),
    }
    seen = {}
    for name, (order, flips) in ways.items():
        to_old = np.zeros((4, 4))
        to_old[3, 3] = 1
        for new, old in enumerate(order):
            to_old[old, new] = -1 if new in flips else 1
            to_old[old, 3] = volume.shape[old] - 1 if new in flips else 0

        def laid(array, order=order, flips=flips):
            return np.ascontiguousarray(np.flip(array.transpose(order), flips))

        other = Volume(laid(volume.array), volume.affine @ to_old, volume.provenance)
        files = write_overlays(other, {"reference": laid(one)}, tmp_path / name, contact=0)
        seen[name] = np.stack([np.asarray(Image.open(f)) for f in files])
    blue = np.all(seen["as it is"] == (0, 0x72, 0xB2), axis=-1)
    assert blue.any() and np.flatnonzero(blue.any(axis=(0, 1))).max() < blue.shape[2] // 2 + 8
    assert all(np.array_equal(seen["as it is"], s) for s in seen.values())


def test_overlays_keep_the_true_aspect_and_the_colours(chest, tmp_path):
    volume, lungs = chest
    affine = volume.affine @ np.diag([1, 2, 1, 1])
    files = write_overlays(
        Volume(volume.array, affine),
        {"reference": lungs, "prediction": np.roll(lungs, 3, 2)},
        tmp_path / "o",
        contact=6,
    )
    assert len(files) == 17 and files[-1].name == "contact_sheet.png"
    picture = Image.open(files[8])
    assert picture.size[1] == 2 * picture.size[0] and picture.size[1] >= 512
    colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert {(0, 0x72, 0xB2), (0xE6, 0x9F, 0)} <= colours


def test_a_volume_of_unknown_orientation_gets_no_marks(chest, tmp_path):
    dark = np.full((2, 64, 64), -1024, np.int16)
    for known in (True, False):
        volume = Volume(dark, chest[0].affine, {"orientation_known": known})
        files = write_overlays(volume, {}, tmp_path / str(known))
        assert all((np.asarray(Image.open(f)).max() > 200) == known for f in files)


def test_overlays_of_pictures_show_all_their_greys(grey, tmp_path):
    volume = read_pictures(written(tmp_path / "s", np.tile(np.arange(256, dtype=np.uint8), (1, 64, 1))))
    shown = np.asarray(Image.open(write_overlays(volume, {}, tmp_path / "o", contact=0)[0]))
    assert len(np.unique(shown)) > 200


def test_a_mask_of_another_shape_is_not_drawn(chest, tmp_path):
    with pytest.raises(MaskError, match=r"prediction: shape \(16, 64, 32\)"):
        write_overlays(chest[0], {"prediction": chest[1][..., ::2]}, tmp_path / "o")
    assert list(tmp_path.iterdir()) == []


def test_reading_warns_of_nothing(grey, white, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_pictures(written(tmp_path / "a", grey, ".jpg"))
        read_mask_pictures(written(tmp_path / "b", white))
        shutil.rmtree(tmp_path / "a")
