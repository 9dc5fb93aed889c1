"""DICOM SEG against outside judges (highdicom, SimpleITK, dciodvfy), in every orientation, and broken."""

import os
import shutil
import subprocess
import zlib
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.sr.coding import Code
from pydicom.uid import JPEGLSLossless, RLELossless
from realdata import real

from lungseg.core import GeometryError, InputError, LungsegError, MaskError, SeriesError
from lungseg.phantom import write_series
from lungseg.segments import (
    DEFLATED_FRAMES,
    Segment,
    chosen_segments,
    planes_of,
    read_seg,
    segment_names,
    segment_type,
    write_seg,
)
from lungseg.series import read_dicom
from lungseg.volume import Volume, crop, reordered, reordered_affine, resample

hd = pytest.importorskip("highdicom")

TURN, TILT = np.deg2rad(17), np.deg2rad(9)
ORIENTATIONS = {
    "head first, supine": (1, 0, 0, 0, 1, 0),
    "head first, prone": (-1, 0, 0, 0, -1, 0),
    "feet first, supine": (-1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (
        *(np.cos(TURN), np.sin(TURN), 0),
        *(-np.sin(TURN) * np.cos(TILT), np.cos(TURN) * np.cos(TILT), np.sin(TILT)),
    ),
}
SHAPE = (7, 12, 10)  # slices, rows, columns
STEP_MM, ROW_MM, COL_MM = 2.5, 0.8, 0.6


def write_ct(folder: Path, orientation=ORIENTATIONS["head first, supine"], **more) -> list[Path]:
    "A small CT with pixels that are not square, in some orientation; the files are in no useful order."
    hu = np.random.default_rng(0).integers(-1000, 400, (SHAPE[0], 12, 12)).astype(np.int16)
    files = write_series(
        folder, z_mm=[STEP_MM * i for i in range(SHAPE[0])], size=12, hu=hu, more=more or None
    )
    along, down = np.reshape(orientation, (2, 3))
    for i, file in enumerate(files):
        ds = dcmread(file)
        place = np.array([-20.25, 31.5, 100.0]) + i * STEP_MM * np.cross(along, down)
        ds.ImageOrientationPatient = [float(f"{v:.9f}") for v in orientation]
        ds.ImagePositionPatient = [round(float(v), 6) for v in place]
        ds.PixelSpacing = [ROW_MM, COL_MM]
        ds.PixelData, ds.Columns = ds.pixel_array[:, : SHAPE[2]].tobytes(), SHAPE[2]
        ds.save_as(file)
    renamed = [f.with_name(f"{(i * 5) % SHAPE[0]}.dcm") for i, f in enumerate(files)]
    for old, new in zip(files, renamed, strict=True):
        old.rename(new)
    return sorted(renamed)


def some_masks(shape=SHAPE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    left, right = np.zeros(shape, bool), np.zeros(shape, bool)
    half = shape[2] // 2
    left[1:5, 2:9, half:] = rng.random((4, 7, shape[2] - half)) > 0.4
    right[2:6, 1:10, :half] = rng.random((4, 9, half)) > 0.4
    return {"Lung_L": left, "Lung_R": right}


def both(masks: dict[str, np.ndarray]) -> np.ndarray:
    return np.logical_or.reduce(list(masks.values()))


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> list[Path]:
    return write_ct(tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="module")
def volume(ct) -> Volume:
    return read_dicom(ct)


@pytest.fixture
def seg(ct, volume, tmp_path) -> Path:
    return write_seg(some_masks(), volume, tmp_path / "lungs.dcm", ct=ct)


def assert_valid(path: Path) -> None:
    "dciodvfy finds no error."
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace").stderr
    assert [line for line in said.splitlines() if line.startswith("Error")] == []
    assert "Segmentation" in said.splitlines()


def assert_as_highdicom(path: Path, masks: dict[str, np.ndarray], volume: Volume) -> None:
    "highdicom reads the same voxels at the same places."
    read = hd.seg.segread(path)
    theirs = read.get_volume(combine_segments=False)
    for number, mask in enumerate(masks.values()):
        marked = np.argwhere(theirs.array[..., number])
        there = volume.mm_to_index(theirs.map_indices_to_reference(marked))
        assert np.allclose(there, np.rint(there), atol=1e-3)
        again = np.zeros(volume.shape, bool)
        again[tuple(np.rint(there).astype(int).T)] = True
        assert np.array_equal(again, mask)
    assert np.allclose(sorted(theirs.spacing), sorted(volume.spacing_mm), atol=1e-4)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_what_goes_out_comes_back_in_every_orientation_and_highdicom_agrees(name, tmp_path):
    files = write_ct(tmp_path / "ct", ORIENTATIONS[name])
    volume, masks = read_dicom(files), some_masks()
    path = write_seg(masks, volume, tmp_path / "lungs.dcm", ct=files)
    assert segment_names(path) == list(masks)
    assert np.array_equal(read_seg(path, volume), both(masks))
    for label, mask in masks.items():
        assert np.array_equal(read_seg(path, volume, segment=label), mask)
    assert_as_highdicom(path, masks, volume)
    assert_valid(path)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_simpleitk_reads_the_same_voxels_with_the_same_geometry(name, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    files = write_ct(tmp_path / "ct", ORIENTATIONS[name])
    volume, mask = read_dicom(files), some_masks()["Lung_L"]
    image = sitk.ReadImage(str(write_seg({"lungs": mask}, volume, tmp_path / "lungs.dcm", ct=files)))
    assert np.allclose(image.GetSpacing(), volume.spacing_mm[::-1], atol=1e-4)
    theirs = sitk.GetArrayFromImage(image) > 0  # its slices may run the other way: places are compared
    there = [image.TransformIndexToPhysicalPoint([int(i) for i in at[::-1]]) for at in np.argwhere(theirs)]
    at = volume.mm_to_index(np.array(there))
    assert np.allclose(at, np.rint(at), atol=1e-4)
    assert sorted(map(tuple, np.rint(at).astype(int).tolist())) == sorted(
        map(tuple, np.argwhere(mask).tolist())
    )


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", [(0,), (1, 2)])
def test_the_volumes_array_may_run_in_any_direction(order, flips, ct, volume, tmp_path):
    masks = some_masks()
    turned = Volume(
        np.ascontiguousarray(reordered(volume.array, order, flips)),
        reordered_affine(volume.affine, order, flips, volume.shape),
        volume.provenance,
    )
    views = {name: np.ascontiguousarray(reordered(mask, order, flips)) for name, mask in masks.items()}
    path = write_seg(views, turned, tmp_path / "turned.dcm", ct=ct)
    assert np.array_equal(read_seg(path, turned), both(views))
    assert np.array_equal(read_seg(path, volume), both(masks))
    assert len(planes_of(dcmread(path))) == 2 * SHAPE[0]  # the CT's own planes, not the array's


def test_a_cropped_volume_is_written_on_the_whole_slices_of_its_ct(ct, volume, tmp_path):
    box = (slice(1, 6), slice(2, 11), slice(3, 9))
    small, mask = crop(volume, box), both(some_masks())[box]
    path = write_seg({"lungs": mask}, small, tmp_path / "cropped.dcm", ct=ct)
    whole = np.zeros(SHAPE, bool)
    whole[box] = mask
    assert np.array_equal(read_seg(path, volume), whole)
    assert np.array_equal(read_seg(path, small), mask)
    assert dcmread(path).Rows == SHAPE[1]
    with pytest.raises(MaskError, match=r"cropped.dcm: frame \d+: .* of its pixels lie outside the volume"):
        read_seg(path, crop(volume, (slice(3, 6), *box[1:])))


def test_a_resampled_volume_gets_planes_of_its_own_in_the_same_frame_of_reference(ct, volume, tmp_path):
    fine = resample(volume, (1.25, 0.8, 0.6))
    mask = np.random.default_rng(3).random(fine.shape) > 0.5
    path = write_seg({"lungs": mask}, fine, tmp_path / "fine.dcm", ct=ct)
    assert np.array_equal(read_seg(path, fine), mask)
    assert dcmread(path).FrameOfReferenceUID == dcmread(ct[0]).FrameOfReferenceUID
    assert_valid(path)
    assert_as_highdicom(path, {"lungs": mask}, fine)
    with pytest.raises(MaskError, match="another grid"):
        read_seg(path, volume)


def test_slices_that_only_the_volume_has_are_not_lost(ct, volume, tmp_path):
    "One slice of the CT is missing on disk and was filled in: its part of the mask must be in the SEG too."
    rest = [f for f in ct if not np.isclose(float(dcmread(f).ImagePositionPatient[2]), 100 + 3 * STEP_MM)]
    assert len(rest) == len(ct) - 1
    path = write_seg({"lungs": both(some_masks())}, volume, tmp_path / "filled.dcm", ct=rest)
    assert np.array_equal(read_seg(path, volume), both(some_masks()))


def test_a_tilted_affine_cannot_be_written(ct, volume, tmp_path):
    sheared = volume.affine.copy()
    sheared[1, 0] += 0.7
    with pytest.raises(GeometryError, match="not at right angles"):
        write_seg(some_masks(), Volume(volume.array, sheared, volume.provenance), tmp_path / "t.dcm", ct=ct)


def test_the_same_masks_give_the_same_bytes_and_others_another_uid(ct, volume, seg, tmp_path):
    again = write_seg(some_masks(), volume, tmp_path / "again.dcm", ct=ct[::-1])
    assert again.read_bytes() == seg.read_bytes()
    more = {name: ~mask for name, mask in some_masks().items()}
    other = dcmread(write_seg({**some_masks(), **more}, volume, tmp_path / "other.dcm", ct=ct))
    assert other.SOPInstanceUID != dcmread(seg).SOPInstanceUID


def test_each_frame_refers_to_the_slice_it_lies_on_and_says_who_made_it(ct, seg):
    ds = dcmread(seg)
    source = {f.SOPInstanceUID: f.ImagePositionPatient for f in map(dcmread, ct)}
    for item in ds.PerFrameFunctionalGroupsSequence:
        uid = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert np.allclose(item.PlanePositionSequence[0].ImagePositionPatient, source[uid])
    head = dcmread(ct[0])
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientIdentityRemoved"):
        assert ds[keyword].value == head[keyword].value
    first = ds.SegmentSequence[0]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "44029006"
    assert first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "lungseg"
    assert ds.NumberOfFrames == 2 * SHAPE[0] and ds.SegmentationType == "BINARY"


def test_empty_frames_can_be_left_out_and_an_empty_mask_be_written(ct, volume, tmp_path):
    masks = some_masks()
    path = write_seg(masks, volume, tmp_path / "short.dcm", ct=ct, omit_empty_frames=True)
    assert dcmread(path).NumberOfFrames == 8
    assert np.array_equal(read_seg(path, volume), both(masks))
    assert_valid(path)
    nothing = {"lungs": np.zeros(SHAPE, bool)}
    for omit in (False, True):
        path = write_seg(nothing, volume, tmp_path / "empty.dcm", ct=ct, omit_empty_frames=omit)
        assert not read_seg(path, volume).any()


def test_overlapping_masks_keep_what_they_share(ct, volume, tmp_path):
    masks = {"lungs": both(some_masks()), **some_masks(), "heart": some_masks()["Lung_L"]}
    path = write_seg(masks, volume, tmp_path / "over.dcm", ct=ct)
    for name, mask in masks.items():
        assert np.array_equal(read_seg(path, volume, segment=name), mask)
    assert_valid(path)


def test_a_ct_stripped_of_what_identifies_is_enough(tmp_path):
    files = write_ct(tmp_path / "ct")
    for file in files:
        ds = dcmread(file)
        for keyword in (
            "PatientName PatientID PatientBirthDate PatientSex StudyID StudyDate StudyTime AccessionNumber "
            "SeriesNumber ContentDate ContentTime AcquisitionDate SeriesDate ReferringPhysicianName"
        ).split():
            if keyword in ds:
                delattr(ds, keyword)
        ds.save_as(file)
    volume = read_dicom(files)
    path = write_seg(some_masks(), volume, tmp_path / "s.dcm", ct=files)
    assert np.array_equal(read_seg(path, volume), both(some_masks()))
    assert dcmread(path).ContentDate == "19000101"
    assert_valid(path)


@pytest.mark.parametrize("charset", ["ISO_IR 100", "", ["", "ISO 2022 IR 87"]])
def test_names_in_any_character_set_arrive_as_they_were(charset, tmp_path):
    files = write_ct(tmp_path / "ct")
    for file in files:
        ds = dcmread(file)
        ds.SpecificCharacterSet = charset
        ds.PatientName = "Brügge^Zoë" if charset == "ISO_IR 100" else "Phantom^One"
        ds.save_as(file)
    volume = read_dicom(files)
    path = write_seg(some_masks(), volume, tmp_path / "s.dcm", ct=files)
    assert str(dcmread(path).PatientName) == str(ds.PatientName)
    assert_valid(path)


def test_an_odd_name_is_not_printed(tmp_path, recwarn, caplog, capfd):
    files = write_ct(tmp_path / "ct", PatientName="MUELLER")
    write_seg(some_masks(), read_dicom(files), tmp_path / "s.dcm", ct=files)
    assert dcmread(tmp_path / "s.dcm").PatientName == "MUELLER"
    said = "".join(capfd.readouterr()) + caplog.text + "".join(str(w.message) for w in recwarn)
    assert "MUELLER" not in said


def test_a_ct_with_values_that_break_the_rules_is_enough_and_none_is_printed(
    tmp_path, recwarn, caplog, capfd
):
    wrong = {
        "PatientID": "SECRET" * 20,
        "AccessionNumber": "SECRET" * 9,
        "StudyDate": "20201301",
        "StudyTime": "SECRET",
    }
    wrong |= {
        "PatientBirthDate": "SECRET",
        "PatientSex": "SECRET",
        "ContentDate": "2020-01-02",
        "StudyID": "S" * 40,
    }
    with disable_value_validation():
        files = write_ct(tmp_path / "ct", **wrong)
        volume = read_dicom(files)
    recwarn.clear(), caplog.clear(), capfd.readouterr()
    path = write_seg(some_masks(), volume, tmp_path / "s.dcm", ct=files)
    assert np.array_equal(read_seg(path, volume), both(some_masks()))
    assert segment_names(path) == ["Lung_L", "Lung_R"]
    said = "".join(capfd.readouterr()) + caplog.text + "".join(str(w.message) for w in recwarn)
    assert "SECRET" not in said


def test_one_slice_is_enough(tmp_path):
    file = write_ct(tmp_path / "ct")[0]
    volume = read_dicom([file])
    mask = some_masks()["Lung_L"][2:3]
    path = write_seg({"lungs": mask}, volume, tmp_path / "one.dcm", ct=[file])
    assert np.array_equal(read_seg(path, volume), mask)
    assert_valid(path)


def test_of_several_series_and_other_files_the_volumes_own_is_taken(ct, volume, seg, tmp_path):
    others = write_ct(tmp_path / "others")
    files = [*others, *ct, seg]
    path = write_seg(some_masks(), volume, tmp_path / "s.dcm", ct=files)
    assert path.read_bytes() == seg.read_bytes()
    with pytest.raises(SeriesError, match="7 files with 0 series"):
        write_seg(some_masks(), volume, tmp_path / "n.dcm", ct=others)
    bare = Volume(volume.array, volume.affine)
    with pytest.raises(SeriesError, match="15 files with 2 series"):
        write_seg(some_masks(), bare, tmp_path / "n.dcm", ct=files)
    assert sorted(p.name for p in tmp_path.glob("*.dcm")) == ["lungs.dcm", "s.dcm"]


def test_what_cannot_be_written_is_refused_before_a_file_is_there(ct, volume, tmp_path):
    masks, out = some_masks(), tmp_path / "out.dcm"
    unknown = Volume(volume.array, volume.affine, {"spacing_known": False})
    moved = Volume(volume.array, volume.affine, {**volume.provenance, "FrameOfReferenceUID": "1.2.3"})
    for error, words, call in (
        (InputError, "masks: 0", lambda: write_seg({}, volume, out, ct=ct)),
        (MaskError, "Lung_L: shape", lambda: write_seg({"Lung_L": masks["Lung_L"][1:]}, volume, out, ct=ct)),
        (InputError, "ends in .dcm", lambda: write_seg(masks, volume, tmp_path / "out.nii", ct=ct)),
        (
            InputError,
            "1 to 64 characters",
            lambda: write_seg({"x" * 65: masks["Lung_L"]}, volume, out, ct=ct),
        ),
        (InputError, "1 to 64 characters", lambda: write_seg({"a\\b": masks["Lung_L"]}, volume, out, ct=ct)),
        (GeometryError, "geometry is unknown", lambda: write_seg(masks, unknown, out, ct=ct)),
        (SeriesError, "FrameOfReferenceUID", lambda: write_seg(masks, moved, out, ct=ct)),
        (SeriesError, "0 files", lambda: write_seg(masks, volume, out, ct=[])),
    ):
        with pytest.raises(error, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_without_highdicom_the_extra_is_named_and_reading_works(ct, volume, seg, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"pip install 'lungseg\[dicom\]'"):
        write_seg(some_masks(), volume, tmp_path / "no.dcm", ct=ct)
    assert np.array_equal(read_seg(seg, volume), both(some_masks()))


# SEG as others write it


ANATOMY, LUNG = Code("123037004", "SCT", "Anatomical Structure"), Code("39607008", "SCT", "Lung")


def theirs(
    ct: list[Path], array: np.ndarray, kind: str, labels=("Left lung", "Right lung"), **options
) -> Dataset:
    "A SEG by highdicom, frames in the CT's order of positions."
    heads = sorted(map(dcmread, ct), key=lambda ds: float(ds.ImagePositionPatient[2]))
    algorithm = hd.AlgorithmIdentificationSequence("other", Code("123110", "DCM", "Other"), "1")
    segments = [
        hd.seg.SegmentDescription(i, label, ANATOMY, options.pop("type", LUNG), "AUTOMATIC", algorithm)
        for i, label in enumerate(labels, 1)
    ]
    return hd.seg.Segmentation(
        heads, array, kind, segments, hd.UID(), 5, hd.UID(), 1, "other", "other", "1", "0", **options
    )


def stacked_masks() -> np.ndarray:
    return np.stack(list(some_masks().values()), axis=-1)


@pytest.mark.parametrize("omit", [False, True])
@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless])
def test_fractional_seg_is_lung_above_one_half(omit, syntax, ct, volume, tmp_path):
    shares = np.random.default_rng(4).random((*SHAPE, 2)) * stacked_masks()
    options = {"transfer_syntax_uid": syntax} if syntax else {}
    ds = theirs(ct, shares, "FRACTIONAL", max_fractional_value=200, omit_empty_frames=omit, **options)
    ds.save_as(tmp_path / "f.dcm")
    expected = np.rint(shares * 200) > 100
    assert np.array_equal(read_seg(tmp_path / "f.dcm", volume), expected.any(axis=-1))
    assert np.array_equal(read_seg(tmp_path / "f.dcm", volume, segment=2), expected[..., 1])


@pytest.mark.parametrize("packed", [False, True])
def test_label_maps_are_read_by_number(packed, ct, volume, tmp_path):
    labels = np.where(some_masks()["Lung_L"], 1, np.where(some_masks()["Lung_R"], 2, 0)).astype(np.uint8)
    ds = theirs(ct, labels, "LABELMAP", **({"transfer_syntax_uid": RLELossless} if packed else {}))
    ds.save_as(tmp_path / "l.dcm")
    assert segment_names(tmp_path / "l.dcm") == ["Left lung", "Right lung"]
    assert np.array_equal(read_seg(tmp_path / "l.dcm", volume), both(some_masks()))
    assert np.array_equal(read_seg(tmp_path / "l.dcm", volume, segment="Right lung"), labels == 2)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_deflated_frames_are_inflated_no_further_than_declared(bits, ct, volume, tmp_path):
    kind = "BINARY" if bits == 1 else "LABELMAP"
    labels = np.where(some_masks()["Lung_L"], 1, np.where(some_masks()["Lung_R"], 2, 0)).astype(np.uint8)
    ds = theirs(ct, labels, kind)
    stored = ds.pixel_array
    deflater = [zlib.compressobj(9, zlib.DEFLATED, -15) for _ in stored]
    plain = [
        (np.packbits(f, axis=None, bitorder="little") if bits == 1 else f.astype(f"<u{bits // 8}")).tobytes()
        for f in stored
    ]
    ds.PixelData = encapsulate([d.compress(p) + d.flush() for d, p in zip(deflater, plain, strict=True)])
    ds.file_meta.TransferSyntaxUID = (
        JPEGLSLossless  # as long a word as the true one, which pydicom does not know
    )
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.save_as(tmp_path / "d.dcm")
    data = (
        (tmp_path / "d.dcm").read_bytes().replace(JPEGLSLossless.encode(), DEFLATED_FRAMES.encode() + b"\0")
    )
    (tmp_path / "d.dcm").write_bytes(data)
    assert np.array_equal(read_seg(tmp_path / "d.dcm", volume), both(some_masks()))
    (tmp_path / "d.dcm").write_bytes(data.replace(DEFLATED_FRAMES.encode(), b"1.2.840.10008.1.2.8.9"))
    with pytest.raises(SeriesError, match=r"BitsAllocated|TransferSyntaxUID"):
        read_seg(tmp_path / "d.dcm", volume)


def test_the_order_of_frames_means_nothing(seg, volume, tmp_path):
    ds = dcmread(seg)
    n = int(ds.NumberOfFrames)
    order = np.random.default_rng(5).permutation(n)
    bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")[: n * SHAPE[1] * SHAPE[2]]
    ds.PixelData = np.packbits(bits.reshape(n, -1)[order], bitorder="little").tobytes() + b"\0" * 2
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    ds.PerFrameFunctionalGroupsSequence = Sequence([groups[i] for i in order])
    ds.save_as(tmp_path / "shuffled.dcm")
    assert np.array_equal(read_seg(tmp_path / "shuffled.dcm", volume), both(some_masks()))


def test_lungs_are_told_by_code_whatever_the_label(ct, volume, tmp_path):
    ds = theirs(ct, stacked_masks().astype(np.uint8), "BINARY", labels=("A", "B"))
    ds.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue = "10200004"
    ds.save_as(tmp_path / "coded.dcm")
    assert np.array_equal(read_seg(tmp_path / "coded.dcm", volume), some_masks()["Lung_L"])


def test_a_tumour_in_the_lung_is_no_lung_and_lobes_are_lungs_together():
    def seg(i, label, code="85756007", category="123037004", side=""):
        return Segment(i, label, category, ("SCT", code), side)

    lobes = [
        seg(1, "a", "44714003"),
        seg(2, "b", "90572001", side="left"),
        seg(3, "RUL"),
        seg(4, "c", "72481006"),
    ]
    lobes += [seg(5, "d", "266005"), seg(6, "Lung", "108369006", "49755003"), seg(7, "lung nodule")]
    assert [s.number for s in chosen_segments(lobes)] == [1, 2, 3, 4, 5]
    with pytest.raises(MaskError, match="6: Lung"):
        chosen_segments(lobes[5:])


def test_names_and_codes_agree():
    for name, value in (
        ("Lung_L", "44029006"),
        ("right lung", "3341006"),
        ("lungs", "39607008"),
        ("LLL", "41224006"),
    ):
        (code, scheme, _), _ = segment_type(name)
        assert (code, scheme) == (value, "SCT")
        part = Segment(1, name, "123037004", ("SCT", "85756007")).part
        assert Segment(1, "x", "123037004", (scheme, code)).part == part


# SEG that does not belong, or is broken


def changed(seg: Path, path: Path, change) -> Path:
    ds = dcmread(seg)
    change(ds)
    ds.save_as(path)
    return path


def test_a_seg_of_another_scan_is_refused(seg, volume, tmp_path):
    other = Volume(volume.array, volume.affine, {**volume.provenance, "FrameOfReferenceUID": "1.2.3"})
    with pytest.raises(MaskError, match="FrameOfReferenceUID is not the volume's") as raised:
        read_seg(seg, other)
    assert "1.2.3" not in str(raised.value)
    silent = Volume(volume.array, volume.affine)
    assert np.array_equal(read_seg(seg, silent), both(some_masks()))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a @ np.diag([1, 2, 1, 1]),
        lambda a: a @ np.diag([1, 1, 1.02, 1]),
        lambda a: a @ np.diag([0.7, 1, 1, 1]),
        lambda a: a + np.outer([1, 0, 0, 0], [0, 0, 0, 0.3]),
        lambda a: a + np.outer([0, 0, 1, 0], [0, 0, 0, 1.25]),
        lambda a: np.array([[1, 0, 0, 0], [0, 0.999, -0.04, 0], [0, 0.04, 0.999, 0], [0, 0, 0, 1]]) @ a,
    ],
    ids=["rows", "columns", "slices", "shifted", "between slices", "rotated"],
)
def test_another_grid_is_refused_with_both_grids(change, seg, volume):
    with pytest.raises(
        MaskError, match=r"lies on another grid: pixels of .* expected voxels of .* voxels off"
    ) as raised:
        read_seg(seg, Volume(volume.array, change(volume.affine), volume.provenance))
    assert "\n" not in str(raised.value)


def test_frames_on_every_second_slice_are_refused_unless_empty_ones_were_left_out(ct, volume, tmp_path):
    coarse_ct = [f for f in ct if round((float(dcmread(f).ImagePositionPatient[2]) - 100) / STEP_MM) % 2 == 0]
    ds = theirs(
        coarse_ct,
        both(some_masks())[::2].astype(np.uint8),
        "BINARY",
        labels=("Lungs",),
        omit_empty_frames=False,
    )
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 2 * STEP_MM
    ds.save_as(tmp_path / "coarse.dcm")
    with pytest.raises(MaskError, match=r"frames are 5 mm apart, expected the volume's 2.5 mm"):
        read_seg(tmp_path / "coarse.dcm", volume)
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = STEP_MM
    ds.save_as(tmp_path / "sparse.dcm")
    assert np.array_equal(read_seg(tmp_path / "sparse.dcm", volume)[::2], both(some_masks())[::2])


def without(*keywords):
    def change(ds):
        for keyword in keywords:
            delattr(ds, keyword)

    return change


def setting(**values):
    return lambda ds: [setattr(ds, keyword, value) for keyword, value in values.items()]


def in_frame(group: str, keyword: str, value):
    def change(ds):
        item = ds.PerFrameFunctionalGroupsSequence[3][group].value[0]
        delattr(item, keyword) if value is None else setattr(item, keyword, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("SegmentSequence"), "SegmentSequence is empty"),
        (lambda ds: delattr(ds.SegmentSequence[0], "SegmentNumber"), "no SegmentNumber"),
        (
            without("PerFrameFunctionalGroupsSequence"),
            "0 functional groups, expected one for each of 14 frames",
        ),
        (setting(NumberOfFrames=13), "14 functional groups, expected one for each of 13 frames"),
        (setting(Rows=0), "Rows and Columns are 0 and 10"),
        (setting(Rows=60000, Columns=60000), "expected 1 to 16384"),
        (setting(Rows=60), "another grid|bytes of PixelData|outside"),
        (setting(PixelData=b"\0" * 16), "16 bytes of PixelData, expected 210"),
        (without("PixelData"), "expected PixelData"),
        (setting(BitsAllocated=12), "12 bits a pixel"),
        (setting(SegmentationType="OTHER"), "SegmentationType is OTHER"),
        (
            in_frame("PlanePositionSequence", "ImagePositionPatient", None),
            "frame 4: ImagePositionPatient is missing",
        ),
        (
            in_frame("SegmentIdentificationSequence", "ReferencedSegmentNumber", None),
            "no ReferencedSegmentNumber",
        ),
        (
            lambda ds: delattr(ds.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence"),
            "frame 1: ImageOrientationPatient is missing",
        ),
        (
            lambda ds: setattr(
                ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [0, 1]
            ),
            "a spacing above 0",
        ),
    ],
)
def test_a_broken_seg_is_refused_in_one_line(change, words, seg, volume, tmp_path):
    path = changed(seg, tmp_path / "bad.dcm", change)
    with pytest.raises((InputError, GeometryError, MaskError), match=words) as raised:
        read_seg(path, volume)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("bad.dcm: ")
    assert str(tmp_path) not in str(raised.value)


def test_what_is_no_seg_is_refused_in_one_line(ct, seg, volume, tmp_path):
    (tmp_path / "text.dcm").write_text("no DICOM")
    (tmp_path / "half.dcm").write_bytes(seg.read_bytes()[:900])
    for path, words in (
        (tmp_path / "text.dcm", "it is no DICOM"),
        (tmp_path / "half.dcm", "cannot be read|empty"),
        (tmp_path / "absent.dcm", "found none"),
        (tmp_path, "cannot be read"),
        (ct[0], "found CT Image Storage"),
    ):
        for call in (lambda p: read_seg(p, volume), segment_names):
            with pytest.raises(InputError, match=words) as raised:
                call(path)
            assert "\n" not in str(raised.value) and str(tmp_path) not in str(raised.value)


def test_spoiled_bytes_are_refused_and_never_a_crash(seg, volume, tmp_path):
    rng, whole, refused = np.random.default_rng(0), seg.read_bytes(), 0
    for _ in range(120):
        data = bytearray(whole)
        for at in rng.integers(132, len(data), 4):
            data[at] = rng.integers(256)
        cut = int(rng.integers(132, 2 * len(data)))
        (tmp_path / "s.dcm").write_bytes(data[:cut])
        try:
            assert read_seg(tmp_path / "s.dcm", volume).shape == volume.shape
        except LungsegError as e:
            refused += 1
            assert "\n" not in str(e) and str(tmp_path) not in str(e)
    assert refused > 60


def test_a_volume_of_unknown_geometry_takes_no_seg(seg, volume):
    with pytest.raises(MaskError, match="geometry is unknown"):
        read_seg(seg, Volume(volume.array, volume.affine, {"spacing_known": False}))


# Real files


def dcmqi() -> tuple[Path, list[Path], Volume]:
    folder = real("dicom-robustness") / "dcmqi"
    files = sorted(folder.glob("ct-3slice_*.dcm"))
    return folder / "liver_seg.dcm", files, read_dicom(files)


def test_dcmqis_liver_is_no_lung_and_its_label_is_printed():
    path, _, volume = dcmqi()
    assert segment_names(path) == ["Liver"]
    with pytest.raises(MaskError, match="1: Liver"):
        read_seg(path, volume)


def test_dcmqis_liver_lies_where_the_frames_say_and_on_liver():
    path, _, volume = dcmqi()
    mask = read_seg(path, volume, segment="Liver")
    assert np.array_equal(mask, read_seg(path, volume, segment=1))
    ds = dcmread(path)
    frames, groups = ds.pixel_array, ds.PerFrameFunctionalGroupsSequence
    for frame, item in zip(frames, groups, strict=True):
        at = volume.mm_to_index(item.PlanePositionSequence[0].ImagePositionPatient)
        assert np.array_equal(mask[round(at[0])], frame.astype(bool))
    assert 40 < np.median(volume.array[mask]) < 160
    x = volume.index_to_mm(np.argwhere(mask)).mean(axis=0)[0]
    assert x < volume.index_to_mm((np.array(volume.shape) - 1) / 2)[0]  # the patient's right


def test_dcmqis_ct_takes_our_seg_and_enhanced_ct_does_too(tmp_path):
    _, files, volume = dcmqi()
    mask = volume.array < -500
    path = write_seg({"lungs": mask}, volume, tmp_path / "three.dcm", ct=files)
    assert np.array_equal(read_seg(path, volume), mask)
    assert_valid(path)
    enhanced = real("dicom-robustness") / "dcmqi" / "enhanced_multiframe_24x38x3.dcm"
    volume = read_dicom(enhanced)
    mask = volume.array > np.median(volume.array)
    path = write_seg({"lungs": mask}, volume, tmp_path / "enhanced.dcm", ct=[enhanced])
    assert np.array_equal(read_seg(path, volume), mask)
    assert_as_highdicom(path, {"lungs": mask}, volume)
    assert_valid(path)


def test_real_lungs_go_through_seg_voxel_for_voxel(tmp_path):
    folder = real("cip-ct64")
    files = sorted((folder / "ct-64Dicom").iterdir(), key=lambda p: hash(p.name) % 97)
    volume = read_dicom(files)
    with np.load(folder / "ct64_masks.npz") as labels:
        lung = labels["lung"] > 0
    path = write_seg({"lungs": lung}, volume, tmp_path / "real.dcm", ct=files)
    assert np.array_equal(read_seg(path, volume), lung)
    assert os.path.getsize(path) < 2 * lung.size / 8 + 1_000_000
    assert_valid(path)
