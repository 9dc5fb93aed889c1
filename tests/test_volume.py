"""Volumes against outside judges: SimpleITK, nibabel, and real CT where it is at hand."""

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset

from lungseg.core import InputError, SeriesError
from lungseg.volume import (
    SliceHeader,
    Volume,
    crop,
    lps_axes,
    oriented,
    read_volume,
    regular_grid,
    resample,
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
