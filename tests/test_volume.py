"""Volumes against outside judges: SimpleITK, nibabel, and real CT where it is at hand."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from realdata import real

from lungseg.core import GeometryError, InputError, LungsegError, SeriesError
from lungseg.phantom import write_series
from lungseg.volume import (
    SliceHeader,
    Volume,
    crop,
    lps_axes,
    oriented,
    read_pixels,
    read_volume,
    regular_grid,
    resample,
    slice_header,
    write_nifti,
)


def assert_as_simpleitk(volume: Volume, image) -> None:
    """The same voxels at the same places as a SimpleITK image, to 1e-4 mm per corner."""
    sitk = pytest.importorskip("SimpleITK")
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.array)
    last = np.array(volume.shape) - 1
    for corner in np.ndindex(2, 2, 2):
        index = [int(i) for i in last * corner]
        there = image.TransformIndexToPhysicalPoint(index[::-1])
        assert np.allclose(volume.index_to_mm(index), there, atol=1e-3)
    assert np.allclose(volume.spacing_mm, image.GetSpacing()[::-1], atol=1e-4)
    direction = volume.affine[:3, [2, 1, 0]] / np.array(volume.spacing_mm)[::-1]
    assert np.allclose(direction.ravel(), image.GetDirection(), atol=1e-4)


def simpleitk_series(folder: Path):
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def test_cip_ct64_is_its_labels_grid_voxel_for_voxel():
    folder = real("cip-ct64")
    volume = read_volume(folder / "ct-64Dicom")
    with np.load(folder / "ct64_masks.npz") as labels:
        lung, spacing, origin = labels["lung"] > 0, labels["spacing_zyx"], labels["origin_xyz"]
    assert volume.shape == lung.shape
    assert np.allclose(volume.spacing_mm, spacing, atol=1e-4)
    assert np.allclose(volume.index_to_mm((0, 0, 0)), origin, atol=1e-3)
    assert np.allclose(
        volume.index_to_mm(np.array(lung.shape) - 1),
        origin + spacing[::-1] * (np.array(lung.shape)[::-1] - 1),
        atol=2e-3,
    )
    assert -950 < np.median(volume.array[lung]) < -700
    assert (volume.array[lung] < -400).mean() > 0.9
    assert_as_simpleitk(volume, simpleitk_series(folder / "ct-64Dicom"))


def test_a_clinical_series_loads_as_simpleitk_loads_it():
    folder = real("lungdx-a0002") / "B40f"
    volume = read_volume(folder)
    assert volume.shape == (30, 512, 512)
    assert np.allclose(volume.spacing_mm, (8, 0.646484375, 0.646484375))
    assert_as_simpleitk(volume, simpleitk_series(folder))


def test_two_kernels_in_one_folder_are_named_and_one_can_be_chosen():
    folder = real("lungdx-a0002")
    with pytest.raises(SeriesError, match=r"2 CT series, expected one.*1: \d+ slices; 2: ") as raised:
        read_volume(folder)
    assert "\n" not in str(raised.value)
    shapes = {read_volume(folder, series=n).shape[0] for n in (1, 2)}
    assert shapes == {6, 30}


def test_messages_name_no_uid_and_quote_no_header(tmp_path, monkeypatch):
    for z in ([0, 2, 4], [0, 2]):
        write_series(tmp_path / "ct", z_mm=z)
    with pytest.raises(SeriesError) as raised:
        read_volume(tmp_path / "ct")
    assert re.search(r"1: [23] slices; 2: [23] slices$", str(raised.value))
    with pytest.raises(SeriesError, match="of this UID") as raised:
        read_volume(tmp_path / "ct", series="1.2.826.0.1.99")
    assert "1.2.826" not in str(raised.value)

    def refuse(ds):
        raise RuntimeError(f"cannot decode {ds.PatientID}")

    header = slice_header(dcmread(next((tmp_path / "ct").iterdir())), "slice 0")
    monkeypatch.setattr(Dataset, "pixel_array", property(refuse))
    with pytest.raises(SeriesError, match=r"^slice 0: its pixels cannot be decoded \(RuntimeError\)$"):
        read_pixels(header)


def test_gantry_tilt_and_uneven_steps_are_refused():
    with pytest.raises(GeometryError, match="mm"):
        read_volume(real("dicom-robustness") / "gantry-tilt-ge")


def test_enhanced_multiframe_and_files_without_ct_are_refused_in_one_line():
    for name in (
        "dcmqi/enhanced_multiframe_24x38x3.dcm",
        "pydicom-data/emri_small.dcm",
        "dicompyler/rtss.dcm",
    ):
        with pytest.raises(LungsegError) as raised:
            read_volume(real("dicom-robustness") / name)
        assert "\n" not in str(raised.value)


def test_three_ct_slices_beside_a_segmentation_load_as_simpleitk_loads_them():
    sitk = pytest.importorskip("SimpleITK")
    files = sorted((real("dicom-robustness") / "dcmqi").glob("ct-3slice_*.dcm"))
    volume = read_volume([*files, real("dicom-robustness") / "dcmqi" / "liver_seg.dcm"])
    places = {f: float(sitk.ReadImage(str(f)).GetOrigin()[2]) for f in files}
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(f) for f in sorted(files, key=places.get)])
    assert_as_simpleitk(volume, reader.Execute())


def test_non_square_pixels_keep_row_and_column_spacing_apart():
    file = real("dicom-robustness") / "nonsquare-acrin" / "coronal_IMG0046.dcm"
    volume = read_volume(file)
    row, col = volume.spacing_mm[1:]
    assert row != col
    sitk = pytest.importorskip("SimpleITK")
    assert np.allclose(sitk.ReadImage(str(file)).GetSpacing()[:2], (col, row), atol=1e-4)


def headers(n: int, orientation, step: float = 2.5, start=(-20.0, 30.0, 100.0)) -> list[SliceHeader]:
    along, down = np.reshape(orientation, (2, 3))
    normal = np.cross(along, down)
    return [
        SliceHeader(
            name=f"{i}.dcm",
            series="1.2",
            shape=(5, 7),
            position_mm=tuple(np.asarray(start) + i * step * normal),
            orientation=tuple(orientation),
            spacing_mm=(0.8, 0.6),
            slope=1.0,
            intercept=0.0,
            tags={},
            source=Dataset(),
        )
        for i in range(n)
    ]


TURN = np.deg2rad(17)
ORIENTATIONS = {
    "head first, supine": (1, 0, 0, 0, 1, 0),
    "head first, prone": (-1, 0, 0, 0, -1, 0),
    "feet first, supine": (-1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (np.cos(TURN), np.sin(TURN), 0, -np.sin(TURN), np.cos(TURN), 0),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_orientation_has_the_affine_of_the_standard(name):
    stack = headers(4, ORIENTATIONS[name])
    ordered, affine = regular_grid(stack[::-1])
    assert [h.name for h in ordered] == [h.name for h in stack]
    along, down = np.reshape(ORIENTATIONS[name], (2, 3))
    for i, row, col in ((0, 0, 0), (3, 4, 6), (1, 2, 5)):
        expected = np.array(stack[i].position_mm) + along * 0.6 * col + down * 0.8 * row  # PS3.3 C.7.6.2.1-1
        assert np.allclose((affine @ [i, row, col, 1])[:3], expected)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_nifti_is_read_by_nibabel_and_simpleitk_with_the_same_geometry(name, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    _, affine = regular_grid(headers(4, ORIENTATIONS[name]))
    array = np.random.default_rng(0).integers(-1024, 3000, (4, 5, 7)).astype(np.int16)
    volume = Volume(array, affine)
    path = write_nifti(volume, tmp_path / "ct.nii.gz")
    assert_as_simpleitk(volume, sitk.ReadImage(str(path)))
    image = nib.load(path)
    assert np.array_equal(np.asarray(image.dataobj), array.transpose(2, 1, 0))
    for index in ((0, 0, 0), (3, 4, 6)):
        x, y, z = volume.index_to_mm(index)
        assert np.allclose(image.affine @ [*index[::-1], 1], [-x, -y, z, 1], atol=1e-3)
    again = read_volume(path)
    assert np.array_equal(again.array, array)
    assert np.allclose(again.affine, affine, atol=1e-4)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_orienting_moves_no_voxel(name):
    _, affine = regular_grid(headers(4, ORIENTATIONS[name]))
    array = np.arange(4 * 5 * 7, dtype=np.int16).reshape(4, 5, 7)
    volume, turned = Volume(array, affine), oriented(Volume(array, affine))
    assert lps_axes(turned.affine) == ((0, 1, 2), ())
    for index in ((0, 0, 0), (3, 4, 6), (1, 2, 5)):
        there = np.rint(turned.mm_to_index(volume.index_to_mm(index))).astype(int)
        assert turned.array[tuple(there)] == array[index]


def test_cropping_and_resampling_commute_with_places():
    rng = np.random.default_rng(1)
    _, affine = regular_grid(headers(9, ORIENTATIONS["oblique"]))
    smooth = np.add.outer(np.add.outer(np.arange(9) * 7, np.arange(5) * 11), np.arange(7) * 13).astype(
        np.int16
    )
    volume = Volume(smooth, affine)
    fine = resample(volume, (1.25, 0.4, 0.3))
    inside = rng.uniform([1, 1, 1], [7, 3, 5], (50, 3))
    at = np.rint(fine.mm_to_index(volume.index_to_mm(inside))).astype(int)
    there = volume.mm_to_index(fine.index_to_mm(at))
    assert np.abs(fine.array[tuple(at.T)] - there @ [7, 11, 13]).max() <= 1
    part = crop(volume, (slice(2, 6), slice(1, 4), slice(0, 7)))
    assert np.allclose(part.index_to_mm((1, 1, 1)), volume.index_to_mm((3, 2, 1)))


def test_what_is_no_volume_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("not a scan")
    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b no")
    for name in (".", "notes.txt", "broken.npz", "broken.nii.gz", "absent", "absent.npz", "absent.nii"):
        with pytest.raises((InputError, SeriesError)) as raised:
            read_volume(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert str(tmp_path) not in str(raised.value)
