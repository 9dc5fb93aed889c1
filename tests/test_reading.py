"""One door for volumes and one for masks: whatever is behind it is found out, or refused by name."""

import io
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom.fileset import FileSet
from typer.testing import CliRunner

from lungseg import cli
from lungseg.core import InputError, LungsegError, MaskError
from lungseg.dicom import find_dicom
from lungseg.files import save_nifti, write_nifti, write_npz, write_nrrd
from lungseg.masks import read_mask, sides, write_mask
from lungseg.phantom import LABELS, draw_phantom, write_phantom, write_rtstruct, write_series
from lungseg.pictures import write_pairs
from lungseg.reading import not_there, opened, read_volume
from lungseg.volume import Volume, oriented


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.stderr + done.stdout


@pytest.fixture(scope="module")
def phantom():
    return draw_phantom(seed=5, size=64, slices=24)


@pytest.fixture(scope="module")
def lungs(phantom):
    return np.isin(phantom.labels, [LABELS["lung_left"], LABELS["lung_right"]])


@pytest.fixture(scope="module")
def scan(phantom, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scan") / "ct"
    write_phantom(phantom, folder)
    return folder


def test_every_kind_of_archive_is_the_folder_it_was(phantom, scan, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for f in scan.iterdir():
            z.write(f, f"deep/er/{f.name}")
    for kind in ("tar", "gztar"):
        shutil.make_archive(str(tmp_path / kind), kind, scan)
    for name in ("a.zip", "tar.tar", "gztar.tar.gz"):
        assert np.array_equal(read_volume(tmp_path / name).array, phantom.hu), name


@pytest.mark.parametrize("bad", ["../out.dcm", "/etc/out.dcm", "a/../../out.dcm", "C:\\out.dcm"])
def test_an_archive_that_would_write_elsewhere_is_refused(bad, scan, tmp_path):
    file = tmp_path / "sent.zip"
    with zipfile.ZipFile(file, "w") as z:
        z.writestr(zipfile.ZipInfo(bad), next(scan.iterdir()).read_bytes())
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"^sent\.zip"):
        read_volume(file)
    assert sorted(p for p in tmp_path.rglob("*")) == before
    member = tarfile.TarInfo(bad)
    member.size = 4
    with tarfile.open(tmp_path / "sent.tar", "w") as t:
        t.addfile(member, io.BytesIO(b"DICM"))
    with pytest.raises(InputError, match=r"^sent\.tar"):
        read_volume(tmp_path / "sent.tar")


def test_archives_among_files_leave_nothing_behind_even_when_interrupted(scan, tmp_path, monkeypatch):
    folder = tmp_path / "delivery"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "t").mkdir()
    shutil.make_archive(str(folder / "one"), "zip", scan)
    with pytest.raises(KeyboardInterrupt), opened(folder) as place:
        assert len(find_dicom(place)[0]) == 24
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "t") == [] and os.listdir(folder) == ["one.zip"]


@pytest.fixture
def delivery(scan, tmp_path) -> Path:
    "A good zip, one cut short, one that climbs out, and one in which there is another."
    folder = tmp_path / "delivery"
    write_phantom(draw_phantom(seed=6, size=64, slices=24), tmp_path / "other", patient_id="other")
    for name, source in (("good", scan), ("cut", scan), ("deep/outer", tmp_path / "other")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.make_archive(str(folder / name), "zip", source)
    (folder / "cut.zip").write_bytes((folder / "cut.zip").read_bytes()[:5000])
    with zipfile.ZipFile(folder / "evil.zip", "w") as z:
        z.writestr("../out.dcm", "x")
    with zipfile.ZipFile(folder / "deep" / "outer.zip", "a") as z:
        z.write(folder / "good.zip", "more/inner.zip")
    return folder


def test_a_broken_archive_among_others_is_held_back_with_its_own_reason(delivery, tmp_path):
    before = {p: p.read_bytes() for p in delivery.rglob("*") if p.is_file()}
    for verb in ("convert", "isolate"):
        status, said = run(verb, delivery, tmp_path / verb)
        assert status == 1 and "lungseg-" not in said and "not DICOM" not in said, said
        held = {line.split()[2]: line for line in said.splitlines() if line.startswith("held back")}
        assert "a path with `..`" in held["evil.zip:"] and "cannot be read" in held["cut.zip:"]
        assert "an archive inside an archive" in held["deep/outer.zip/more/inner.zip:"]
        assert len(held) == 3
    assert sorted(p.name for p in (tmp_path / "convert").iterdir()) == ["deep", "good"]
    assert {p: p.read_bytes() for p in delivery.rglob("*") if p.is_file()} == before


def test_where_nothing_is_found_the_closed_archive_is_named(delivery, tmp_path):
    for name in ("good.zip", "deep/outer.zip", "evil.zip"):
        (delivery / name).unlink()
    alone = r"^delivery: cut\.zip: its list of members cannot be read|^delivery: cut\.zip: cannot be read"
    with pytest.raises(InputError, match=alone):
        read_volume(delivery)
    (delivery / "letter.txt").write_text("a letter")
    with pytest.raises(InputError, match=r"^delivery: expected one volume .*; cut\.zip: .*cannot be read"):
        read_volume(delivery)
    status, said = run("convert", delivery, tmp_path / "out")
    assert status == 2 and "; cut.zip: " in said and "\n" not in said.split("lungseg convert: ")[1].strip()


def test_a_zip_of_zips_says_so_and_is_called_by_its_own_name(scan, tmp_path):
    shutil.make_archive(str(tmp_path / "in" / "inner"), "zip", scan)
    shutil.make_archive(str(tmp_path / "sent"), "zip", tmp_path / "in")
    for call in (
        lambda: read_volume(tmp_path / "sent.zip"),
        lambda: opened(tmp_path / "sent.zip").__enter__(),
    ):
        with pytest.raises(InputError) as caught:
            call()
        said = "sent.zip: inner.zip: an archive inside an archive, expected files; unpack it first"
        assert str(caught.value) == said
    shutil.make_archive(str(tmp_path / "ct.scan"), "gztar", scan)
    with opened(tmp_path / "ct.scan.tar.gz") as place:
        assert place.name == "ct.scan"
    status, said = run("convert", tmp_path / "ct.scan.tar.gz", tmp_path / "out", "--workers", 1)
    assert status == 0 and [p.name for p in (tmp_path / "out").iterdir()] == ["ct.scan"], said


def test_what_a_killed_download_left_is_passed_over(scan, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(scan, folder / "p1")
    shutil.copytree(scan, folder / ".p1.fetching" / "CT_1")
    (folder / ".sent.zip").write_bytes(b"half")
    with opened(folder) as place:
        assert place.name == "data" and len(find_dicom(place)[0]) == 24
        assert find_dicom(place)[1] == not_there(place) == []


def test_a_disc_beside_an_archive_misses_nothing(scan, tmp_path):
    disc = FileSet()
    for file in scan.iterdir():
        disc.add(file)
    disc.write(tmp_path / "data" / "disc")
    with zipfile.ZipFile(tmp_path / "data" / "letters.zip", "w") as z:
        z.writestr("letter.txt", "a letter")
    with opened(tmp_path / "data") as place:
        assert not_there(place) == [] and len(find_dicom(place)[0]) == 24


def test_one_volume_among_other_files_needs_no_name(phantom, tmp_path):
    write_nrrd(Volume(phantom.hu, phantom.affine), tmp_path / "case" / "x.nrrd")
    (tmp_path / "case" / "notes.txt").write_text("a note")
    assert np.array_equal(read_volume(tmp_path / "case").array, phantom.hu)
    with pytest.raises(InputError, match="expected one volume as"):
        (tmp_path / "empty").mkdir()
        read_volume(tmp_path / "empty")


@pytest.mark.parametrize(
    "name", ["ct.nii.gz", "ct.nrrd", "ct.npz", "ct.mha", "IM0001", "slice.png", "sent.zip"]
)
def test_rubbish_under_any_name_is_one_line_that_names_it(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x00nothing of the kind" * 40)
    with pytest.raises(LungsegError, match=f"^{name.split('.')[0]}") as caught:
        read_volume(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PSL", "ILA"])
@pytest.mark.parametrize("form", ["lungs.nii.gz", "lungs.nrrd", "lungs.npz", "lungs"])
def test_masks_come_back_voxel_for_voxel_in_any_orientation(form, code, phantom, lungs, tmp_path):
    volume = oriented(Volume(phantom.hu, phantom.affine), code)
    mask = oriented(Volume(lungs.astype(np.int16), phantom.affine), code).array > 0
    path = write_mask(mask, volume, tmp_path / form)
    assert np.array_equal(read_mask(path, volume), mask)
    straight = Volume(phantom.hu, phantom.affine)  # the same file on the volume as it was scanned
    assert np.array_equal(read_mask(path, straight), lungs)


@pytest.mark.parametrize("code", ["LPS", "RAS", "ILA"])
@pytest.mark.parametrize("kind", ["seg.dcm", "rtstruct.dcm"])
def test_dicom_masks_come_back_whatever_order_the_array_was_in(kind, code, scan, lungs, tmp_path):
    scanned = read_volume(scan)
    volume = oriented(scanned, code)
    mask = oriented(Volume(lungs.astype(np.int16), scanned.affine), code).array > 0
    path = write_mask(mask, volume, tmp_path / kind, ct=sorted(scan.iterdir()))
    back = read_mask(path, scanned)
    assert 2 * (back & lungs).sum() / (back.sum() + lungs.sum()) > (0.9999 if kind == "seg.dcm" else 0.98)
    left, right = sides(lungs, scanned)
    for roi, side in (("Lung_L", left), ("Lung_R", right)):
        part = read_mask(path, scanned, roi=roi)
        assert 2 * (part & side).sum() / (part.sum() + side.sum()) > 0.98


def test_labels_can_be_chosen_and_unknown_ones_are_listed(phantom, tmp_path):
    volume = Volume(phantom.hu, phantom.affine)
    save_nifti(phantom.labels.astype(np.uint8), phantom.affine, tmp_path / "all.nii.gz")
    left = read_mask(tmp_path / "all.nii.gz", volume, roi=LABELS["lung_left"])
    assert np.array_equal(left, phantom.labels == LABELS["lung_left"])
    with pytest.raises(MaskError, match="no label 99, there are 0, 1, 2"):
        read_mask(tmp_path / "all.nii.gz", volume, roi=[99])
    with pytest.raises(MaskError, match="roi: lung, expected"):
        read_mask(tmp_path / "all.nii.gz", volume, roi="lung")


def test_a_cohort_of_contours_alone_is_converted_to_every_format(phantom, tmp_path):
    ct = write_phantom(phantom, tmp_path / "in" / "p1" / "ct")
    (tmp_path / "in" / "p1" / "rt").mkdir()
    write_rtstruct(phantom, ct, tmp_path / "in" / "p1" / "rt" / "contours.dcm")
    volume = read_volume(tmp_path / "in" / "p1" / "ct")
    expected = read_mask(tmp_path / "in" / "p1" / "rt" / "contours.dcm", volume)
    assert expected.any()
    names = {
        "nii": "lungs.nii.gz",
        "nrrd": "lungs.nrrd",
        "npz": "lungs.npz",
        "seg": "lungs.seg.dcm",
        "png": "lungs",
    }
    for format, name in names.items():
        status, said = run("convert", tmp_path / "in", tmp_path / format, "--format", format, "--workers", 1)
        assert status == 0, said
        file = tmp_path / format / "p1" / name
        assert np.array_equal(read_mask(file / "masks" if format == "png" else file, volume), expected), (
            format
        )


def test_several_series_are_listed_and_one_is_chosen(tmp_path):
    for n in (5, 9):
        for file in write_series(tmp_path / str(n), z_mm=[2.5 * i for i in range(n)]):
            (tmp_path / "case").mkdir(exist_ok=True)
            file.rename(tmp_path / "case" / f"{n}_{file.name}")
    status, said = run("view", tmp_path / "case", "--out", tmp_path / "v.html")
    assert status == 2 and "2 CT series" in said and ": 5 slices" in said and "--series" in said
    number = re.search(r"(\d): 9 slices", said)[1]  # their order follows the UIDs, which are new each time
    status, said = run("convert", tmp_path / "case", tmp_path / "out", "--series", number, "--workers", 1)
    assert status == 0 and "1 case" in said
    found = [p for p in (tmp_path / "out").rglob("ct.nii.gz")]
    assert len(found) == 1 and read_volume(found[0]).shape[0] == 9


def test_a_missing_slice_is_held_back_and_filled_on_demand(tmp_path):
    phantom = draw_phantom(seed=5, size=48, slices=60)
    ct = write_phantom(phantom, tmp_path / "in" / "case")
    volume = read_volume(tmp_path / "in" / "case")
    order = sorted(ct, key=lambda f: read_volume(f).affine[2, 3])
    order[7].unlink()
    status, said = run("convert", tmp_path / "in", tmp_path / "a", "--workers", 1)
    assert status == 1 and "missing" in said and not list((tmp_path / "a").rglob("*.nii.gz"))
    status, said = run("convert", tmp_path / "in", tmp_path / "b", "--workers", 1, "--correct")
    assert status == 0 and "corrected" in said
    mended = read_volume(next((tmp_path / "b").rglob("ct.nii.gz")))
    assert mended.shape == volume.shape and np.allclose(mended.affine, volume.affine, atol=1e-3)
    others = [i for i in range(volume.shape[0]) if i != 7]
    assert np.array_equal(mended.array[others], volume.array[others])


def test_nothing_is_written_into_the_folder_that_is_read(scan, tmp_path):
    before = sorted(scan.iterdir())
    for verb in ("convert", "isolate"):
        status, said = run(verb, scan, scan / "out")
        assert status == 2 and "another place" in said
    assert sorted(scan.iterdir()) == before


def test_dicom_masks_of_volumes_from_elsewhere_are_held_back_with_the_reason(phantom, lungs, tmp_path):
    volume = Volume(phantom.hu, phantom.affine)
    write_nifti(volume, tmp_path / "in" / "ct.nii.gz")
    status, said = run("isolate", tmp_path / "in", tmp_path / "out", "--format", "seg")
    assert status == 1 and "refers to the slices of a DICOM series" in said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_folder_of_pictures_goes_through_every_verb_on_volumes(tmp_path):
    write_pairs(tmp_path / "pairs", 3, slices=2, size=64)
    for verb, words in (("convert", ["--workers", 1]), ("isolate", []), ("isolate", ["--format", "png"])):
        status, said = run(verb, tmp_path / "pairs", tmp_path / f"{verb}{len(words)}", *words)
        assert status == 0, said
        assert "3 " in said


def test_a_folder_of_pictures_without_masks_is_a_stack(tmp_path):
    write_pairs(tmp_path / "pairs", 1, slices=4, size=64)
    status, said = run("convert", tmp_path / "pairs" / "2d_images", tmp_path / "out", "--workers", 1)
    assert status == 0, said
    assert read_volume(next((tmp_path / "out").rglob("ct.nii.gz"))).shape == (4, 64, 64)


def test_npz_with_pickled_objects_is_never_opened(tmp_path, phantom):
    np.savez(tmp_path / "ct.npz", hu=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"ct\.npz.*pickle"):
        read_volume(tmp_path / "ct.npz")
    volume = Volume(phantom.hu, phantom.affine)
    with pytest.raises(InputError, match=r"ct\.npz.*pickle"):
        read_mask(tmp_path / "ct.npz", volume)
    assert np.array_equal(read_volume(write_npz(volume, tmp_path / "fine.npz")).array, phantom.hu)


def test_a_disc_is_read_by_its_table_of_contents_and_what_is_missing_is_named(phantom, scan, tmp_path):
    disc = FileSet()
    for file in scan.iterdir():
        disc.add(file)
    disc.write(tmp_path / "disc")
    contents = tmp_path / "disc" / "DICOMDIR"
    assert np.array_equal(read_volume(contents).array, phantom.hu)
    for place in (contents, tmp_path / "disc"):
        status, said = run("convert", place, tmp_path / f"out{place.name}", "--workers", 1)
        assert status == 0 and "1 case" in said, said
    positions = {f: read_volume(f).affine[2, 3] for f in find_dicom(tmp_path / "disc")[0]}
    max(positions, key=positions.get).unlink()  # the last slice leaves no gap that could be seen
    assert "listed in a DICOMDIR not there" in str(read_volume(contents).provenance["notes"])
    status, said = run("convert", tmp_path / "disc", tmp_path / "less", "--workers", 1)
    assert status == 1 and "held back" in said and "1 case" in said
