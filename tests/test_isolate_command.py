"""`lungseg isolate` as a newcomer meets it: what is checked first, what is written, and what is said."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from typer.testing import CliRunner

from lungseg import cli, isolate
from lungseg.files import write_nifti
from lungseg.phantom import draw_phantom, write_phantom
from lungseg.volume import Volume


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.stdout, done.stderr


def refusal(said: str) -> str:
    "The one line that is no progress bar."
    (line,) = [line for line in said.splitlines() if line.startswith("lungseg ")]
    return line


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def chest() -> Volume:
    phantom = draw_phantom(seed=5, size=64, slices=24)
    return Volume(phantom.hu, phantom.affine)


@pytest.fixture(scope="module")
def file(chest, tmp_path_factory) -> Path:
    return write_nifti(chest, tmp_path_factory.mktemp("in") / "one.nii.gz")


@pytest.fixture
def never(monkeypatch):
    "A computation that must not be begun."

    def begun(*_, **__):
        raise AssertionError("computed, though the result could not be written")

    monkeypatch.setattr(isolate, "isolated", begun)


@pytest.mark.parametrize("format", ["seg", "rtstruct"])
@pytest.mark.usefixtures("never")
def test_dicom_masks_are_refused_before_anything_is_computed(format, file, tmp_path):
    status, out, said = run("isolate", file, tmp_path / "out", "--format", format)
    assert status == 1 and out == "no mask was written\n"
    assert f"held back  one: --format {format} refers to the slices of a DICOM series" in said
    assert "use --format nii, nrrd or npz" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("never")
def test_a_seg_without_the_package_that_writes_it_is_refused_at_once(file, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    status, _, said = run("isolate", file, tmp_path / "out", "--format", "seg")
    assert status == 2 and "lungseg[dicom]" in refusal(said)


@pytest.mark.parametrize("verb", ["isolate", "convert"])
@pytest.mark.usefixtures("never")
def test_an_output_that_cannot_be_made_is_a_wrong_request(verb, file, tmp_path):
    (tmp_path / "plain").write_text("in the way")
    places = [tmp_path / "plain" / "out"] + [Path("/proc/lungseg")] * Path("/proc/self").exists()
    for out in places:
        status, _, said = run(verb, file, out)
        assert status == 2 and "held back" not in said
        assert refusal(said).startswith(f"lungseg {verb}: {out}: nothing can be written there: ")
    assert (tmp_path / "plain").read_text() == "in the way"


@pytest.mark.usefixtures("never")
def test_a_folder_without_permission_is_a_wrong_request(file, tmp_path, monkeypatch):
    def forbidden(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", forbidden)
    status, _, said = run("isolate", file, tmp_path / "out")
    assert status == 2 and "Permission denied" in refusal(said)


def test_a_full_disk_is_said_of_the_masks_and_not_of_the_volume(file, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "_save_mask", full)
    status, _, said = run("isolate", file, tmp_path / "out")
    assert status == 1 and "held back  one: its masks cannot be written: No space left on device" in said


def test_a_rerun_replaces_and_names_what_an_earlier_run_left(file, tmp_path):
    out = tmp_path / "out"
    status, said, _ = run("isolate", file, out, "--region", "--preview", "--format", "nrrd")
    assert status == 0 and "earlier" not in said
    status, said, _ = run("isolate", file, out)
    for left in ("one_region.nrrd", "one_lungs.nrrd", "one_preview.png"):
        assert f"one: {left} is of an earlier run" in said
    assert status == 0 and "one_lungs.nii.gz is" not in said
    assert names(out) == ["one_lungs.nii.gz", "one_lungs.nrrd", "one_preview.png", "one_region.nrrd"]
    status, said, _ = run("isolate", file, out, "--format", "nrrd", "--region", "--preview")
    assert status == 0 and said.count("earlier") == 1  # lungs.nii.gz


def test_a_trace_of_lung_is_told_with_a_digit_and_held_back(chest, file, tmp_path, monkeypatch):
    def spot(volume):
        left = np.zeros(volume.shape, bool)
        left[12, 30, 30] = True
        return isolate.Isolated(patient=left, airways=~left & left, left=left, right=~left & left)

    monkeypatch.setattr(isolate, "isolated", spot)
    ml = float(np.prod(chest.spacing_mm)) / 1000
    assert 0.05 < ml < 10
    status, out, said = run("isolate", file, tmp_path / "out")
    assert f"one: {ml:.1f} ml of lung: left {ml:.1f}, right 0" in out
    assert status == 1 and f"only {ml:.1f} ml of lung was found, expected at least 20" in said
    assert names(tmp_path / "out") == ["one_lungs.nii.gz"]


def test_a_text_file_is_told_what_is_read_and_no_output_is_named(tmp_path):
    (tmp_path / "note.txt").write_text("a note")
    status, out, said = run("isolate", tmp_path / "note.txt", tmp_path / "o_note")
    assert status == 1 and out == "no mask was written\n" and not (tmp_path / "o_note").exists()
    assert "what is read: DICOM, NIfTI, NRRD, MetaImage, npz and pictures" in said


def test_a_source_that_is_not_there_makes_no_folder(tmp_path):
    status, _, said = run("isolate", tmp_path / "nowhere", tmp_path / "out")
    assert status == 2 and "nowhere" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["nii", "png"])
def test_the_summary_for_machines_lists_every_file(format, file, tmp_path):
    status, out, _ = run("isolate", file, tmp_path / "out", "--preview", "--format", format, "--json")
    facts = json.loads(out)
    assert status == 0 and facts["out"] == str(tmp_path / "out")
    there = [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sorted(facts["files"]) == sorted(there)


@pytest.mark.parametrize("words", ["isolate {0} {1}/o --format doc", "convert {0} {0}/o", "view {1}/no"])
def test_a_wrong_request_is_an_object_for_machines_and_a_line_for_people(words, file, tmp_path):
    status, out, said = run(*words.format(file, tmp_path).split(), "--json")
    assert status == 2 and refusal(said).endswith(json.loads(out)["error"])


def test_the_picture_has_gaps_a_name_a_legend_and_air_in_unused_tiles(chest, tmp_path):
    volume = Volume(chest.array[:8], chest.affine, {"PatientName": "Nobody^Real"})
    left, right = np.zeros((2, *volume.shape), bool)
    left[:7, 20:40, 35:50], right[:7, 20:40, 14:29] = True, True
    parts = {"Lung_L": left, "Lung_R": right}
    pictures = {}
    for name in ("short", "a" * 300):
        path = cli._save_preview(parts, volume, tmp_path / f"{name[:5]}.png", name)
        pictures[name] = np.asarray(Image.open(path))
    shown = pictures["short"]
    top, across = 2 * cli.LINE + cli.GAP, 6
    wide = (shown.shape[1] + cli.GAP) // across - cli.GAP
    high = (shown.shape[0] - top + cli.GAP) // 2 - cli.GAP
    assert max(wide, high) == cli.TILE
    for n in range(1, across):  # nothing is drawn between the tiles
        gap = shown[top:, n * (wide + cli.GAP) - cli.GAP : n * (wide + cli.GAP)]
        assert not gap.any()
    unused = shown[top + high + cli.GAP :, wide + cli.GAP :][:, :wide]
    assert (unused == 60).all()  # -1000 HU in a window of level -600 and width 1500
    strip = shown[:top]
    for colour in ((0x00, 0x9E, 0x73), (0xCC, 0x79, 0xA7)):
        assert (strip == colour).all(-1).any() and (shown[top:] == colour).all(-1).any()
    assert not (strip == (0x56, 0xB4, 0xE9)).all(-1).any()  # no region, no word of it
    assert (strip[: cli.LINE] == 255).any()  # the name
    assert pictures["a" * 300].shape == shown.shape


def test_left_is_green_and_slices_are_counted_as_in_the_array(chest, tmp_path, monkeypatch):
    words, tile = [], cli._tile
    monkeypatch.setattr(cli, "_tile", lambda *given: words.append(given[3]) or tile(*given))
    left, right = np.zeros((2, *chest.shape), bool)
    left[3, 20:40, 35:50], right[3, 20:40, 14:29] = True, True
    flipped = Volume(chest.array[::-1].copy(), chest.affine @ np.diag([-1.0, 1, 1, 1]))
    flipped.affine[:3, 3] = chest.index_to_mm(np.array([len(chest.array) - 1.0, 0, 0]))
    for volume, way in ((chest, 1), (flipped, -1)):
        parts = {"Lung_L": left[::way], "Lung_R": right[::way]}
        path = cli._save_preview(parts, volume, tmp_path / "p.png", "p")
        shown = np.asarray(Image.open(path))[2 * cli.LINE + cli.GAP :]
        green, pink = ((shown == c).all(-1).nonzero()[1].mean() for c in ((0, 158, 115), (204, 121, 167)))
        assert pink < green  # the patient's right is on the left
    assert words == ["slice 3", f"slice {len(chest.array) - 4}"]


@pytest.mark.parametrize("masks", ["none", "one voxel"])
def test_a_picture_of_hardly_anything_can_be_drawn(masks, chest, tmp_path):
    left = np.zeros(chest.shape, bool)
    left[0, 0, 0] = masks == "one voxel"
    parts = {"Lung_L": left, "Lung_R": left & ~left, "Lung_Region": left}
    assert cli._save_preview(parts, chest, tmp_path / "p.png", "Fälle/患者").is_file()


@pytest.mark.parametrize("format", ["seg", "rtstruct"])
def test_the_region_is_told_from_the_lungs_by_its_series_description(format, tmp_path):
    write_phantom(draw_phantom(seed=5, size=64, slices=24), tmp_path / "in" / "ct")
    status, _, said = run("isolate", tmp_path / "in", tmp_path / "out", "--region", "--format", format)
    assert status == 0, said
    lungs, region = (
        dcmread(tmp_path / "out" / f"ct_{part}.{format}.dcm", stop_before_pixels=True)
        for part in ("lungs", "region")
    )
    assert region.SeriesDescription == "Lung region" != lungs.SeriesDescription
    assert region.SOPInstanceUID != lungs.SOPInstanceUID
    label = "ContentLabel" if format == "seg" else "StructureSetLabel"
    assert region[label].value.casefold() == "lung region" and lungs[label].value != region[label].value


@pytest.mark.parametrize("verb", ["isolate", "segment", "convert"])
def test_an_interruption_says_what_is_true(verb, file, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "sources", interrupted)
    monkeypatch.setattr("lungseg.predict.load_model", lambda path: None)
    more = ["--model", file] * (verb == "segment")
    status, _, said = run(verb, file, tmp_path / "out", *more)
    assert status == 130 and "Finished cases are written; the command starts anew." in said
    monkeypatch.setattr("lungseg.dicom.survey", interrupted)
    status, _, said = run("explore", tmp_path)
    assert status == 130 and "Run the same command again." in said


def test_the_patient_is_looked_for_once(file, tmp_path, monkeypatch):
    from lungseg import region

    calls, body = [], isolate.body
    for module in (isolate, region):
        monkeypatch.setattr(module, "body", lambda *given: calls.append(1) or body(*given))
    status, _, said = run("isolate", file, tmp_path / "out", "--region")
    assert status == 0 and len(calls) == 1, said


def test_help_says_what_a_rerun_does_and_what_png_ignores():
    for verb in ("isolate", "segment"):
        _, said, _ = run(verb, "--help")
        said = " ".join(said.split())
        assert "A rerun replaces what has the same name" in said and "png never" in said


def test_make_help_lists_the_environment_alone():
    root = Path(__file__).parent.parent
    said = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert any(line.split()[0] == "setup" for line in said.splitlines())
