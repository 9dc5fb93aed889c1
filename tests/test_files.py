"""Research formats against outside judges (nibabel, SimpleITK, pynrrd), in every orientation, and broken."""

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from realdata import real

from lungseg.core import GeometryError, InputError, LungsegError
from lungseg.files import (
    LPS_TO_RAS,
    file_facts,
    load_metaimage,
    load_nifti,
    load_nrrd,
    no_geometry,
    npz_affine,
    npz_arrays,
    nrrd_segments,
    parts_of,
    read_metaimage,
    read_nifti,
    read_npz,
    read_nrrd,
    save_nifti,
    save_nrrd,
    whole_hu,
    write_nifti,
    write_npz,
    write_nrrd,
)
from lungseg.volume import Volume


def turned(*degrees: float) -> np.ndarray:
    "A rotation about x, then y, then z."
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = [a for a in range(3) if a != axis]
        one = np.eye(3)
        one[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = one @ turn
    return turn


AXIAL = np.eye(3)[:, ::-1]  # slices to the head, rows to the back, columns to the left
DIRECTIONS = {
    "axial": AXIAL,
    "head first in the file": AXIAL * [-1, 1, 1],
    "prone": AXIAL * [1, -1, -1],
    "coronal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "sagittal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "columns first": np.eye(3),
    "oblique": turned(0, 0, 17) @ AXIAL,
    "tilted about all axes": turned(21, -33, 170) @ AXIAL,
    "nearly upside down": turned(179.9, 0.05, 0.02) @ AXIAL,
}


def grid(directions: np.ndarray, spacing=(2.5, 0.8, 0.6), origin=(-120.123, -87.456, 1033.789)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, origin
    return affine


@pytest.fixture(params=DIRECTIONS)
def volume(request) -> Volume:
    array = np.random.default_rng(0).integers(-1024, 3000, (4, 5, 7)).astype(np.int16)
    return Volume(array, grid(DIRECTIONS[request.param]))


AXIAL_VOLUME = Volume(
    np.random.default_rng(1).integers(-1024, 3000, (4, 5, 7)).astype(np.int16), grid(DIRECTIONS["axial"])
)


def assert_same(one: Volume, other: Volume) -> None:
    assert np.array_equal(one.array, other.array)
    assert one.array.dtype == np.int16
    assert np.allclose(one.affine, other.affine, atol=1e-4)


def assert_as_simpleitk(volume: Volume, path: Path) -> None:
    """SimpleITK reads the same voxels at the same places."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.array)
    assert np.allclose(volume.spacing_mm, image.GetSpacing()[::-1], atol=1e-4)
    assert np.allclose(volume.index_to_mm((0, 0, 0)), image.GetOrigin(), atol=1e-4)
    direction = volume.affine[:3, [2, 1, 0]] / np.array(volume.spacing_mm)[::-1]
    assert np.allclose(direction.ravel(), image.GetDirection(), atol=1e-4)


WRITERS = {
    "ct.nii": (write_nifti, read_nifti),
    "ct.nii.gz": (write_nifti, read_nifti),
    "ct.nrrd": (write_nrrd, read_nrrd),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_goes_out_comes_back_and_simpleitk_sees_the_same(name, volume, tmp_path):
    write, read = WRITERS[name]
    path = write(volume, tmp_path / name)
    assert_same(read(path), volume)
    assert read(path).spacing_known
    assert_as_simpleitk(volume, path)


def test_npz_keeps_the_affine_bit_for_bit(volume, tmp_path):
    again = read_npz(write_npz(volume, tmp_path / "ct.npz"))
    assert np.array_equal(again.array, volume.array)
    assert np.array_equal(again.affine, volume.affine)


def test_nibabel_finds_both_forms_where_the_volume_is(volume, tmp_path):
    image = nib.load(write_nifti(volume, tmp_path / "ct.nii"))
    header = image.header
    assert int(header["sform_code"]) == 1 and header.get_xyzt_units()[0] == "mm"
    assert np.allclose(header["pixdim"][1:4], volume.spacing_mm[::-1], atol=1e-4)
    for index in ((0, 0, 0), (3, 4, 6)):
        x, y, z = volume.index_to_mm(index)
        assert np.allclose(header.get_sform() @ [*index[::-1], 1], [-x, -y, z, 1], atol=1e-3)
        if header["qform_code"]:
            assert np.allclose(header.get_qform() @ [*index[::-1], 1], [-x, -y, z, 1], atol=1e-3)
    assert (
        int(header["qform_code"]) == 1 or volume.affine[2, 0] < 0
    )  # half a turn is too fine for a quaternion


def test_a_qform_that_cannot_be_exact_is_left_out(tmp_path):
    "Half a turn about a skew axis: what a quaternion's 32 bits lose, 512 columns make visible."
    rng = np.random.default_rng(5)
    codes = set()
    for _ in range(40):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        turn = 2 * np.outer(axis, axis) - np.eye(3) + rng.normal(size=(3, 3)) * 1e-4
        u, _, vt = np.linalg.svd(turn)
        affine = LPS_TO_RAS @ grid(u @ vt @ AXIAL)
        image = nib.load(save_nifti(np.zeros((2, 512, 512), np.uint8), affine, tmp_path / "turned.nii"))
        codes.add(int(image.header["qform_code"]))
        if image.header["qform_code"]:
            far = np.array([511, 511, 1, 1])
            assert np.allclose(image.header.get_qform() @ far, image.header.get_sform() @ far, atol=2e-3)
    assert codes <= {0, 1}


def test_a_sheared_affine_is_written_as_sform_alone(tmp_path):
    affine = AXIAL_VOLUME.affine.copy()
    affine[1, 0] = 0.9  # slices shifted to the back: a tilted gantry
    image = nib.load(save_nifti(AXIAL_VOLUME.array, affine, tmp_path / "tilted.nii"))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    assert np.allclose(load_nifti(tmp_path / "tilted.nii")[1], affine, atol=1e-4)


@pytest.mark.parametrize("shift", [0.1, -0.4])
def test_a_volume_whose_axes_are_skewed_is_refused_in_every_format(shift, tmp_path):
    affine = grid(DIRECTIONS["oblique"])
    affine[:3, 0] += shift * affine[:3, 1]  # slices shifted along the rows: a tilted gantry
    skewed = Volume(AXIAL_VOLUME.array, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    turn = (affine[:3, [2, 1, 0]] / spacing).T.ravel()
    meta(
        tmp_path / "a.mha",
        skewed.array.tobytes(),
        spacing=" ".join(map(repr, spacing.tolist())),
        turn=" ".join(map(repr, turn.tolist())),
    )
    for write, name in ((write_nifti, "a.nii"), (write_nrrd, "a.nrrd"), (write_npz, "a.npz")):
        write(skewed, tmp_path / name)
    readers = {"a.mha": read_metaimage, "a.nii": read_nifti, "a.nrrd": read_nrrd, "a.npz": read_npz}
    angle = np.degrees(np.arctan(abs(shift) * 0.8 / 2.5))
    for name, read in readers.items():
        with pytest.raises(
            GeometryError, match=rf"^{name}: its axes are {angle:.3g}° off right angles"
        ) as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_axes_that_are_only_rounded_are_no_tilt(tmp_path):
    affine = np.round(grid(DIRECTIONS["tilted about all axes"]), 4)
    assert_same(
        read_nrrd(write_nrrd(Volume(AXIAL_VOLUME.array, affine), tmp_path / "a.nrrd")),
        Volume(AXIAL_VOLUME.array, affine),
    )


def ras_of(volume: Volume) -> np.ndarray:
    return LPS_TO_RAS @ volume.affine @ np.eye(4)[[2, 1, 0, 3]]


def stored(volume: Volume, kind=nib.Nifti1Image, dtype=np.int16):
    return kind(volume.array.transpose(2, 1, 0).astype(dtype), ras_of(volume))


def test_nifti_2_and_big_endian_and_floats_and_a_fourth_axis_are_the_same_volume(tmp_path):
    v = AXIAL_VOLUME
    swapped = nib.Nifti1Image(v.array.transpose(2, 1, 0), ras_of(v), nib.Nifti1Header(endianness=">"))
    many = {
        "two.nii": stored(v, nib.Nifti2Image),
        "big.nii.gz": swapped,
        "float.nii": stored(v, dtype=np.float32),
        "four.nii": nib.Nifti1Image(v.array.transpose(2, 1, 0)[..., None], ras_of(v)),
    }
    for name, image in many.items():
        nib.save(image, tmp_path / name)
        assert_same(read_nifti(tmp_path / name), v)
    assert (tmp_path / "big.nii.gz").exists()
    assert gzip.decompress((tmp_path / "big.nii.gz").read_bytes())[:4] == struct.pack(">i", 348)


def test_slope_and_intercept_of_nifti_are_applied(tmp_path):
    image = stored(AXIAL_VOLUME)
    image.header.set_slope_inter(2, -24)
    raw = nib.Nifti1Image(((AXIAL_VOLUME.array // 2 * 2 + 24) // 2).transpose(2, 1, 0), ras_of(AXIAL_VOLUME))
    raw.to_filename(tmp_path / "scaled.nii")
    data = bytearray((tmp_path / "scaled.nii").read_bytes())
    data[112:120] = struct.pack("<ff", 2, -24)  # scl_slope and scl_inter
    (tmp_path / "scaled.nii").write_bytes(data)
    assert np.array_equal(read_nifti(tmp_path / "scaled.nii").array, AXIAL_VOLUME.array // 2 * 2)


def test_the_sform_counts_before_the_qform_and_a_contradiction_is_noted(tmp_path):
    image = stored(AXIAL_VOLUME)
    image.set_sform(ras_of(AXIAL_VOLUME), 1)
    shifted = ras_of(AXIAL_VOLUME).copy()
    shifted[0, 3] += 7
    image.set_qform(shifted, 1)
    nib.save(image, tmp_path / "both.nii")
    both = read_nifti(tmp_path / "both.nii")
    assert_same(both, AXIAL_VOLUME)
    assert "7 mm apart; the sform is used" in both.provenance["notes"][0]
    image.set_sform(ras_of(AXIAL_VOLUME), 0)
    nib.save(image, tmp_path / "q.nii")
    only = read_nifti(tmp_path / "q.nii")
    assert np.allclose(only.affine[:3, 3] - AXIAL_VOLUME.affine[:3, 3], [-7, 0, 0], atol=1e-4)
    assert "notes" not in only.provenance


@pytest.mark.parametrize(
    ("unit", "mm"), [("micron", 0.001), ("meter", 1000.0), ("mm", 1.0), ("unknown", 1.0)]
)
def test_units_of_nifti_become_millimetres(unit, mm, tmp_path):
    image = stored(AXIAL_VOLUME)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "u.nii")
    assert np.allclose(read_nifti(tmp_path / "u.nii").affine[:3], AXIAL_VOLUME.affine[:3] * mm, rtol=1e-5)


def test_a_file_without_codes_has_sizes_and_lies_as_simpleitk_lays_it(tmp_path):
    image = nib.Nifti1Image(AXIAL_VOLUME.array.transpose(2, 1, 0), None)
    image.header.set_zooms((0.6, 0.8, 2.5))
    nib.save(image, tmp_path / "bare.nii")
    bare = read_nifti(tmp_path / "bare.nii")
    assert bare.spacing_known and bare.provenance["orientation_known"] is False
    assert_as_simpleitk(bare, tmp_path / "bare.nii")


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_an_identity_affine_is_known_for_a_stand_in(signs, tmp_path):
    nib.save(nib.Nifti1Image(AXIAL_VOLUME.array, np.diag([*signs, 1.0])), tmp_path / "eye.nii")
    read = read_nifti(tmp_path / "eye.nii")
    assert not read.spacing_known and read.provenance["orientation_known"] is False
    assert file_facts(tmp_path / "eye.nii")["spacing_known"] is False
    assert no_geometry(load_nifti(tmp_path / "eye.nii")[1])


def test_an_array_saved_with_the_identity_lies_as_the_dicom_slices_it_came_from(tmp_path):
    nib.save(nib.Nifti1Image(AXIAL_VOLUME.array.transpose(2, 1, 0), np.eye(4)), tmp_path / "eye.nii")
    read = read_nifti(tmp_path / "eye.nii")
    assert np.array_equal(read.array, AXIAL_VOLUME.array)
    assert np.array_equal(read.affine[:3, :3], AXIAL)
    assert "columns are taken to run to the left" in read.provenance["notes"][0]
    assert read.provenance["orientation_known"] is False


def test_one_millimetre_voxels_at_a_true_place_are_no_stand_in():
    assert not no_geometry(grid(AXIAL, (1, 1, 1), (-150.0, -150.0, 20.0)))
    assert not no_geometry(grid(AXIAL, (2, 1, 1), (0, 0, 0)))
    assert not no_geometry(grid(turned(0, 0, 5) @ AXIAL, (1, 1, 1), (0, 0, 0)))


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "npz"])
def test_unknown_geometry_stays_unknown(suffix, tmp_path):
    bare = Volume(AXIAL_VOLUME.array, np.eye(4)[[2, 1, 0, 3]], {"spacing_known": False})
    write, read = {
        "nii.gz": (write_nifti, read_nifti),
        "nrrd": (write_nrrd, read_nrrd),
        "npz": (write_npz, read_npz),
    }[suffix]
    again = read(write(bare, tmp_path / f"bare.{suffix}"))
    assert np.array_equal(again.array, bare.array)
    assert np.array_equal(again.affine, bare.affine)
    assert (again.spacing_known, again.provenance["orientation_known"]) == (False, False)


@pytest.mark.parametrize("spacing_known", [True, False])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.npz"])
def test_values_that_are_no_hu_are_none_after_a_file_either(name, spacing_known, tmp_path):
    write, read = {**WRITERS, "a.npz": (write_npz, read_npz)}.get(f"ct{name[1:]}", (write_npz, read_npz))
    for known in (True, False):
        facts = {"hu_known": known, "spacing_known": spacing_known}
        volume = Volume(AXIAL_VOLUME.array, np.eye(4)[[2, 1, 0, 3]], facts)
        again = read(write(volume, tmp_path / name))
        assert again.hu_known is known and np.array_equal(again.array, volume.array)


def test_the_same_volume_gives_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    import time

    ways = {"a.nii.gz": write_nifti, "a.nii": write_nifti, "a.nrrd": write_nrrd, "a.npz": write_npz}
    first = {name: write(AXIAL_VOLUME, tmp_path / name).read_bytes() for name, write in ways.items()}
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    for name, write in ways.items():
        assert write(AXIAL_VOLUME, tmp_path / f"2{name}").read_bytes() == first[name]


def test_masks_of_any_type_go_through_nifti_and_nrrd(tmp_path):
    mask = AXIAL_VOLUME.array > 0
    for save, load, name in ((save_nifti, load_nifti, "m.nii.gz"), (save_nrrd, load_nrrd, "m.nrrd")):
        for kind in (bool, np.uint8, np.uint16, np.float32):
            array, affine = load(save(mask.astype(kind), AXIAL_VOLUME.affine, tmp_path / name))
            assert np.array_equal(array, mask)
            assert np.allclose(affine, AXIAL_VOLUME.affine, atol=1e-4)
        with pytest.raises(InputError, match="values of type int64"):
            save(mask.astype(np.int64), AXIAL_VOLUME.affine, tmp_path / name)


def spoiled(path: Path, **header) -> Path:
    "A NIfTI file with header fields set."
    image = stored(AXIAL_VOLUME)
    image.to_filename(path)
    data = bytearray(path.read_bytes())
    at = {name: nib.Nifti1Header.template_dtype.fields[name] for name in header}
    for name, value in header.items():
        dtype, offset = at[name][:2]
        data[offset : offset + dtype.itemsize] = np.full(dtype.shape or (1,), value, dtype.base).tobytes()
    path.write_bytes(data)
    return path


def test_nifti_that_cannot_be_a_volume_is_refused_in_one_line(tmp_path):
    whole = write_nifti(AXIAL_VOLUME, tmp_path / "whole.nii").read_bytes()
    zipped = write_nifti(AXIAL_VOLUME, tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "half.nii").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.nii.gz").write_bytes(zipped[: len(zipped) // 2])
    (tmp_path / "short.nii").write_bytes(whole[:200])
    (tmp_path / "empty.nii").touch()
    (tmp_path / "plain.nii.gz").write_bytes(whole)
    nib.save(
        nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.diag([2, 2, 2, 1])), tmp_path / "frames.nii"
    )
    nib.save(nib.Nifti1Image(np.zeros((3, 4), np.int16), np.diag([2, 2, 2, 1])), tmp_path / "flat.nii")
    nib.save(
        nib.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.diag([2, 2, 2, 1])), tmp_path / "complex.nii"
    )
    colour = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.diag([2, 2, 2, 1])), tmp_path / "colour.nii")
    spoiled(tmp_path / "plane.nii", srow_z=0)
    spoiled(tmp_path / "nan.nii", srow_x=np.nan)
    spoiled(tmp_path / "huge.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    spoiled(tmp_path / "units.nii", xyzt_units=5)
    said = {
        "half.nii": "cannot be read",
        "half.nii.gz": "cannot be read",
        "short.nii": "cannot be read",
        "empty.nii": "cannot be read",
        "plain.nii.gz": "cannot be read",
        "frames.nii": r"shape \(3, 4, 5, 2\)",
        "flat.nii": r"shape \(3, 4\)",
        "complex.nii": "complex64",
        "colour.nii": "expected one number a voxel",
        "plane.nii": "sform is no invertible 4×4 matrix",
        "nan.nii": "sform is no invertible 4×4 matrix",
        "huge.nii": "declares 32767 × 32767 × 32767 voxels",
        "units.nii": "xyzt_units has the spatial code 5",
        "absent.nii": "found none",
    }
    for name, words in said.items():
        with pytest.raises((InputError, GeometryError), match=words) as raised:
            read_nifti(tmp_path / name)
        assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{name}: ")
        assert str(tmp_path) not in str(raised.value)


def test_an_aborted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    for write, name in ((write_nifti, "a.nii.gz"), (write_nrrd, "a.nrrd"), (write_npz, "a.npz")):
        before = write(AXIAL_VOLUME, tmp_path / name).read_bytes()

        def full(*args, **kwargs):
            raise OSError("disk full")

        with monkeypatch.context() as m:
            m.setattr(np, "savez_compressed", full)
            m.setattr(Path, "write_bytes", full)
            with pytest.raises(OSError, match="disk full"):
                write(AXIAL_VOLUME, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "a.npz", "a.nrrd"]


# NRRD


def test_pynrrd_reads_what_we_write(volume, tmp_path):
    array, header = nrrd.read(str(write_nrrd(volume, tmp_path / "ct.nrrd")), index_order="C")
    assert np.array_equal(array, volume.array)
    assert header["space"] == "left-posterior-superior"
    assert np.allclose(header["space directions"], volume.affine[:3, [2, 1, 0]].T)
    assert np.allclose(header["space origin"], volume.affine[:3, 3])


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (1, 1, 1)), ("RAS", (-1, -1, 1)), ("left-anterior-superior", (1, -1, 1))],
)
@pytest.mark.parametrize("detached", [False, True])
def test_nrrd_of_others_is_read_in_every_encoding_and_space(
    encoding, space, signs, detached, volume, tmp_path
):
    directions = (volume.affine[:3, [2, 1, 0]] * np.array(signs)[:, None]).T
    header = {
        "space": space,
        "space directions": directions,
        "space origin": volume.affine[:3, 3] * signs,
        "encoding": encoding,
    }
    path = tmp_path / ("ct.nhdr" if detached else "ct.nrrd")
    nrrd.write(str(path), volume.array, header, detached_header=detached, index_order="C")
    again = read_nrrd(path)
    assert_same(again, volume)
    assert again.spacing_known and file_facts(path)["orientation_known"]


def test_simpleitks_nrrd_and_metaimage_are_read_where_they_are(volume, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing_mm[::-1])
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetDirection((volume.affine[:3, [2, 1, 0]] / np.array(volume.spacing_mm)[::-1]).ravel().tolist())
    for name, read in (
        ("a.nrrd", read_nrrd),
        ("a.nhdr", read_nrrd),
        ("a.mha", read_metaimage),
        ("a.mhd", read_metaimage),
    ):
        for packed in (False, True):
            sitk.WriteImage(image, str(tmp_path / name), packed)
            again = read(tmp_path / name)
            assert_same(again, volume)
            assert again.spacing_known and file_facts(tmp_path / name)["orientation_known"]


def test_big_endian_and_skipped_bytes_and_lines_of_nrrd_are_read(tmp_path):
    v = AXIAL_VOLUME
    head = "NRRD0004\ntype: int16\ndimension: 3\nspace: LPS\nsizes: 7 5 4\nencoding: raw\nendian: big\n"
    head += "space directions: (0.6,0,0) (0,0.8,0) (0,0,2.5)\nspace origin: (-120.123,-87.456,1033.789)\n"
    (tmp_path / "a.nhdr").write_text(head + "line skip: 1\nbyte skip: 3\ndata file: a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"a line\nabc" + v.array.astype(">i2").tobytes())
    assert_same(read_nrrd(tmp_path / "a.nhdr"), v)
    (tmp_path / "b.nhdr").write_text(head + "byte skip: -1\ndata file: a.raw\n")
    assert_same(read_nrrd(tmp_path / "b.nhdr"), v)


def layers_of_slicer(path: Path, layered: bool) -> tuple[np.ndarray, np.ndarray]:
    "A segmentation as 3D Slicer stores overlapping (layered) or separate segments."
    left = np.zeros((4, 5, 7), np.uint8)
    right = left.copy()
    left[1:3, 1:4, 4:6], right[1:3, 1:4, 1 : 3 + layered * 2] = 1, 1
    fields = {"Segment0_Name": "Left lung", "Segment0_Layer": "0", "Segment0_LabelValue": "1"}
    fields |= {
        "Segment1_Name": "Right lung",
        "Segment1_Layer": str(int(layered)),
        "Segment1_LabelValue": str(2 - layered),
    }
    array = np.stack([left, right], axis=-1) if layered else left + 2 * right
    directions = AXIAL_VOLUME.affine[:3, [2, 1, 0]].T
    header = {
        "space": "left-posterior-superior",
        "space origin": AXIAL_VOLUME.affine[:3, 3],
        "encoding": "gzip",
        **fields,
    }
    header["space directions"] = np.vstack([np.full((1, 3), np.nan), directions]) if layered else directions
    header["kinds"] = ["list"] * layered + ["domain"] * 3
    nrrd.write(str(path), array, header, index_order="C")
    return left, right


@pytest.mark.parametrize("layered", [False, True])
def test_segments_of_slicer_are_read_by_name_overlapping_or_not(layered, tmp_path):
    left, right = layers_of_slicer(tmp_path / "s.seg.nrrd", layered)
    assert nrrd_segments(tmp_path / "s.seg.nrrd") == ["Left lung", "Right lung"]
    for names, expected in (
        (["Left lung"], left),
        (["Right lung"], right),
        (["Left lung", "Right lung"], left | right),
    ):
        array, affine = load_nrrd(tmp_path / "s.seg.nrrd", segments=names)
        assert np.array_equal(array, expected)
        assert np.allclose(affine, AXIAL_VOLUME.affine)
    assert np.array_equal(load_nrrd(tmp_path / "s.seg.nrrd")[0] > 0, (left | right) > 0)


def test_nrrd_without_space_or_sizes_says_what_it_does_not_know(tmp_path):
    v = AXIAL_VOLUME
    nrrd.write(str(tmp_path / "spacings.nrrd"), v.array, {"spacings": [0.6, 0.8, 2.5]}, index_order="C")
    sized = read_nrrd(tmp_path / "spacings.nrrd")
    assert np.allclose(sized.spacing_mm, (2.5, 0.8, 0.6))
    assert sized.spacing_known and sized.provenance["orientation_known"] is False
    nrrd.write(str(tmp_path / "bare.nrrd"), v.array, {}, index_order="C")
    bare = read_nrrd(tmp_path / "bare.nrrd")
    assert np.array_equal(bare.array, v.array) and not bare.spacing_known
    units = {"space directions": v.affine[:3, [2, 1, 0]].T / 1000, "space": "LPS", "space units": ["m"] * 3}
    nrrd.write(str(tmp_path / "metres.nrrd"), v.array, units, index_order="C")
    assert np.allclose(read_nrrd(tmp_path / "metres.nrrd").spacing_mm, (2.5, 0.8, 0.6))


NRRD = "NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 7 5 4\nencoding: {encoding}\nendian: little\n"
NRRD += "space directions: {directions}\nspace origin: (0,0,9)\n{more}\n"
STRAIGHT = "(0.6,0,0) (0,0.8,0) (0,0,2.5)"
BOMB = gzip.compress(bytes(10_000_000), 9)


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (
            NRRD.format(encoding="raw", directions="(nan,0,0) (0,0.8,0) (0,0,2.5)", more=""),
            b"",
            "2 of 3 axes",
        ),
        (NRRD.format(encoding="raw", directions="(1,0,0) (2,0,0) (0,0,2.5)", more=""), b"", "no invertible"),
        (NRRD.format(encoding="raw", directions="(1,0) (2,0) (0,0)", more=""), b"", "three axes"),
        (NRRD.format(encoding="raw", directions=STRAIGHT, more=""), b"12", "numbers cannot be read"),
        (NRRD.format(encoding="gzip", directions=STRAIGHT, more=""), b"no gzip", "numbers cannot be read"),
        (NRRD.format(encoding="bzip2", directions=STRAIGHT, more=""), b"no bzip2", "numbers cannot be read"),
        (NRRD.format(encoding="hex", directions=STRAIGHT, more=""), b"00", "numbers cannot be read"),
        (
            NRRD.format(encoding="raw", directions=STRAIGHT, more="").replace("7 5 4", "70000 70000 70000"),
            b"",
            "declares 70000",
        ),
        (
            NRRD.format(encoding="raw", directions=STRAIGHT, more="").replace("7 5 4", "7 -5 4"),
            b"",
            "declares 7 × -5",
        ),
        (
            NRRD.format(encoding="raw", directions=STRAIGHT, more="").replace("short", "block"),
            b"0" * 280,
            "numbers cannot",
        ),
        (
            NRRD.format(encoding="raw", directions=STRAIGHT, more="data file: /etc/hostname\n"),
            b"",
            "another folder",
        ),
        (
            NRRD.format(encoding="raw", directions=STRAIGHT, more="data file: a%03d.raw 1 9 1\n"),
            b"",
            "in parts",
        ),
        (
            NRRD.format(encoding="raw", directions=STRAIGHT, more="data file: LIST\na.raw\n"),
            b"",
            "cannot be read",
        ),
        (
            NRRD.format(encoding="raw", directions=STRAIGHT, more="data file: gone.raw\n"),
            b"",
            "gone.raw is missing",
        ),
        (
            NRRD.format(encoding="raw", directions=STRAIGHT, more='space units: "inch" "inch" "inch"\n'),
            b"",
            "space units",
        ),
        ("NRRD0004\ntype: short\n\n", b"", "no dimension"),
        ("NRRD0009\ntype: short\n\n", b"", "header cannot be read"),
        ("NRRD0004\nsizes: x\n\n", b"", "header cannot be read"),
        ("PNG\n\n", b"", "does not begin with that word"),
    ],
)
def test_a_broken_nrrd_is_refused_in_one_line(header, data, words, tmp_path):
    path = tmp_path / "bad.nrrd"
    path.write_bytes(header.encode() + data)
    with pytest.raises((InputError, GeometryError), match=words) as raised:
        read_nrrd(path)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("bad.nrrd: ")
    assert str(tmp_path) not in str(raised.value)


def test_no_more_is_unpacked_than_a_header_declares(tmp_path, monkeypatch):
    asked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    path = tmp_path / "bomb.nrrd"
    path.write_bytes(NRRD.format(encoding="gzip", directions=STRAIGHT, more="").encode() + BOMB)
    assert read_nrrd(path).shape == (4, 5, 7)
    assert max(asked) <= 7 * 5 * 4 * 8 + 1 and min(asked) > 0


# MetaImage


META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {msb}\n"
META += "CompressedData = {packed}\nTransformMatrix = {turn}\nOffset = 1 2 3\nElementSpacing = {spacing}\n"
META += "DimSize = {size}\nElementType = {kind}\nElementDataFile = {file}\n"
USUAL = {
    "msb": "False",
    "packed": "False",
    "turn": "1 0 0 0 1 0 0 0 1",
    "spacing": "0.6 0.8 2.5",
    "size": "7 5 4",
}
USUAL |= {"kind": "MET_SHORT", "file": "LOCAL"}


def meta(path: Path, data: bytes, **fields: str) -> Path:
    path.write_bytes(META.format(**{**USUAL, **fields}).encode() + data)
    return path


def test_big_endian_metaimage_and_header_size_are_read(tmp_path):
    array = AXIAL_VOLUME.array
    again, affine = load_metaimage(meta(tmp_path / "a.mha", array.astype(">i2").tobytes(), msb="True"))
    assert np.array_equal(again, array)
    assert np.allclose(affine[:3], [[0, 0, 0.6, 1], [0, 0.8, 0, 2], [2.5, 0, 0, 3]])
    (tmp_path / "a.raw").write_bytes(b"header" + array.tobytes())
    for skip in ("6", "-1"):
        path = meta(tmp_path / "b.mhd", b"", file="a.raw")
        path.write_text(f"HeaderSize = {skip}\n" + path.read_text())
        assert np.array_equal(load_metaimage(path)[0], array)


@pytest.mark.parametrize(
    ("fields", "data", "words"),
    [
        ({}, b"12", "2 bytes of numbers or more, expected 280"),
        ({"packed": "True"}, b"12", "numbers cannot be read"),
        ({"packed": "True"}, zlib.compress(bytes(10_000_000)), "281 bytes of numbers or more, expected 280"),
        ({"kind": "MET_OTHER"}, b"", "ElementType"),
        ({"size": "7 5"}, b"", "DimSize is '7 5'"),
        ({"size": "70000 70000 70000"}, b"", "declares 70000"),
        ({"spacing": "nan 1 1"}, b"", "ElementSpacing is 'nan 1 1'"),
        ({"spacing": "0 1 1"}, b"", "no invertible"),
        ({"turn": "1 0 0 1 0 0 0 0 1"}, b"", "no invertible"),
        ({"file": "LIST"}, b"", "in parts"),
        ({"file": "../a.raw"}, b"", "another folder"),
        ({"file": "gone.raw"}, b"", "gone.raw is missing"),
    ],
)
def test_a_broken_metaimage_is_refused_in_one_line(fields, data, words, tmp_path):
    with pytest.raises((InputError, GeometryError), match=words) as raised:
        read_metaimage(meta(tmp_path / "bad.mha", data, **fields))
    assert "\n" not in str(raised.value) and str(raised.value).startswith("bad.mha: ")


def test_what_is_no_metaimage_is_refused(tmp_path):
    (tmp_path / "a.mha").write_bytes(b"\x00\x01\x02 = \xff")
    (tmp_path / "b.mha").write_text("NDims = 3\n")
    for name in ("a.mha", "b.mha", "absent.mha"):
        with pytest.raises(InputError, match="expected"):
            read_metaimage(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mhd", "a.mha", "a.nhdr", "a.nrrd"])
@pytest.mark.parametrize("named", ["a.raw", "gone.raw", "../a.raw", "/etc/hostname", "LIST", "a%d.raw 1 2 1"])
def test_the_parts_of_a_volume_are_its_header_and_the_numbers_beside_it(name, named, tmp_path):
    (tmp_path / "a.raw").write_bytes(AXIAL_VOLUME.array.tobytes())
    path = tmp_path / name
    if name[2] == "m":
        meta(path, b"", file=named)
    else:
        path.write_text(NRRD.format(encoding="raw", directions=STRAIGHT, more=f"data file: {named}\n"))
    assert parts_of(path) == [path] + [tmp_path / "a.raw"] * (named == "a.raw")
    path.write_bytes(b"\xff no header")
    assert parts_of(path) == [path]


def test_what_is_in_one_file_or_absent_has_one_part(tmp_path):
    meta(tmp_path / "a.mha", AXIAL_VOLUME.array.tobytes())
    for write, name in ((write_nifti, "a.nii.gz"), (write_nrrd, "a.nrrd"), (write_npz, "a.npz")):
        write(AXIAL_VOLUME, tmp_path / name)
    for name in ("a.mha", "a.nii.gz", "a.nrrd", "a.npz", "absent.mhd", "absent.nhdr"):
        assert parts_of(tmp_path / name) == [tmp_path / name]


# npz


def member(
    path: Path, shape: tuple[int, ...], data: bytes = b"", descr: str = "<i2", key: str = "hu"
) -> Path:
    "An npz file whose one array says it has that shape."
    declared = io.BytesIO()
    np.lib.format.write_array_header_1_0(declared, {"descr": descr, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{key}.npy", declared.getvalue() + data)
    return path


def test_npz_that_lies_or_runs_code_is_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "objects.npz", hu=AXIAL_VOLUME.array, meta=np.array({"a": 1}, dtype=object))
    member(tmp_path / "bomb.npz", (100_000, 100_000, 100_000))
    member(tmp_path / "lies.npz", (4, 5, 7), b"12")
    member(tmp_path / "negative.npz", (-4, -5, 7), bytes(280))
    member(tmp_path / "many.npz", (2**11, 2**10, 2**10), b"")
    np.save(tmp_path / "plain.npy", AXIAL_VOLUME.array)
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    (tmp_path / "text.npz").write_text("no zip")
    whole = write_npz(AXIAL_VOLUME, tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    spoilt = bytearray(whole)
    spoilt[len(whole) // 3] ^= 0xFF
    (tmp_path / "spoilt.npz").write_bytes(spoilt)
    locked = bytearray(whole)
    for sign, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(sign) + flag] |= 1
    (tmp_path / "locked.npz").write_bytes(locked)
    names = "objects bomb lies negative many plain text half spoilt locked absent".split()
    for name in names:
        with pytest.raises(InputError) as raised:
            npz_arrays(tmp_path / f"{name}.npz")
        assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{name}.npz: ")
        assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.seg.nrrd", "a.npz", "a.mha"])
def test_spoiled_bytes_are_refused_and_never_a_crash(name, tmp_path):
    v, path = AXIAL_VOLUME, tmp_path / name
    if name.endswith(".mha"):
        meta(path, v.array.tobytes())
    elif name == "a.seg.nrrd":
        layers_of_slicer(path, True)
    else:
        {"nii": write_nifti, ".gz": write_nifti, "rrd": write_nrrd, "npz": write_npz}[name[-3:]](v, path)
    readers = {"nii": read_nifti, ".gz": read_nifti, "rrd": load_nrrd, "npz": read_npz, "mha": read_metaimage}
    rng, whole, refused = np.random.default_rng(0), path.read_bytes(), 0
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data), 400), 3):
            data[at] = rng.integers(256)
        path.write_bytes(data[: int(rng.integers(1, 3 * len(data)))])
        try:
            readers[name[-3:]](path)
        except LungsegError as e:
            refused += 1
            assert "\n" not in str(e) and str(tmp_path) not in str(e)
    assert refused > 30


def test_npz_keys_of_any_name_are_found_when_there_is_one_volume(tmp_path):
    v = AXIAL_VOLUME
    np.savez(tmp_path / "a.npz", patient=v.array, ids=np.arange(4), affine=v.affine)
    assert_same(read_npz(tmp_path / "a.npz"), v)
    np.savez(tmp_path / "b.npz", image=v.array, masks=(v.array > 0).astype(np.uint8))
    assert np.array_equal(read_npz(tmp_path / "b.npz").array, v.array)
    np.savez(tmp_path / "c.npz", first=v.array, second=v.array[::-1])
    assert np.array_equal(read_npz(tmp_path / "c.npz", key="second").array, v.array[::-1])
    with pytest.raises(InputError, match="arrays first, second, expected `third`"):
        read_npz(tmp_path / "c.npz", key="third")
    np.savez(tmp_path / "d.npz", masks=(v.array > 0).astype(np.uint8))
    with pytest.raises(InputError, match="values from 0 to 1, expected HU"):
        read_npz(tmp_path / "d.npz")


def test_an_affine_in_npz_is_trusted_as_far_as_it_says_what_it_means(tmp_path):
    v = AXIAL_VOLUME
    said = read_npz(write_npz(v, tmp_path / "a.npz")).provenance
    assert said["orientation_known"] is True and "notes" not in said
    np.savez(tmp_path / "b.npz", hu=v.array, affine=v.affine)
    bare = read_npz(tmp_path / "b.npz")
    assert_same(bare, v)
    assert bare.spacing_known and bare.provenance["orientation_known"] is False
    assert bare.provenance["notes"][0].startswith("no `space` says what its affine means")
    np.savez(tmp_path / "c.npz", hu=v.array, affine=ras_of(v))  # as nibabel has it: column first
    with pytest.raises(GeometryError, match=r"^c.npz: its affine does not take the first index along z"):
        read_npz(tmp_path / "c.npz")
    for space in ("RAS", np.arange(3), ["LPS"]):
        np.savez(tmp_path / "d.npz", hu=v.array, affine=v.affine, space=space)
        with pytest.raises(
            GeometryError, match=r"^d.npz: `space` of its affine is .*, expected 'LPS \(slice"
        ):
            read_npz(tmp_path / "d.npz")


def test_npz_spacing_is_used_in_the_order_that_its_name_says():
    assert np.allclose(
        np.linalg.norm(npz_affine({"spacing_xyz": np.array([0.6, 0.8, 2.5])})[0][:3, :3], axis=0),
        (2.5, 0.8, 0.6),
    )
    assert np.allclose(
        np.linalg.norm(npz_affine({"spacing_zyx": np.array([2.5, 0.8, 0.6])})[0][:3, :3], axis=0),
        (2.5, 0.8, 0.6),
    )
    for bad in (
        np.array([0.0, 1, 1]),
        np.array([np.inf, 1, 1]),
        np.array([1.0, 1]),
        np.array(["1", "1", "1"]),
    ):
        with pytest.raises(GeometryError, match="`spacing_mm` is"):
            npz_affine({"spacing_mm": bad})
    for bad in (np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), "x")):
        with pytest.raises(GeometryError, match="`affine` is no invertible"):
            npz_affine({"affine": bad})


def test_values_without_air_are_read_and_doubted(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (4, 5, 7)).astype(np.uint8)
    np.savez(tmp_path / "grey.npz", image=grey)
    read = read_npz(tmp_path / "grey.npz")
    assert np.array_equal(read.array, grey) and read.provenance["hu_known"] is False
    assert "hu_known" not in read_nifti(write_nifti(AXIAL_VOLUME, tmp_path / "a.nii")).provenance
    for wrong in (
        np.full((1, 1, 1), 1e9),
        np.full((1, 1, 1), "a"),
        np.full((1, 1, 1), np.inf),
        np.zeros((1, 1, 1), bool),
    ):
        with pytest.raises(LungsegError):
            whole_hu(wrong)


def test_the_labels_of_cip_ct64_know_their_place():
    arrays = npz_arrays(real("cip-ct64") / "ct64_masks.npz")
    affine, known = npz_affine(arrays)
    assert known
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), arrays["spacing_zyx"])
    assert np.allclose(affine[:3, 3], arrays["origin_xyz"])
