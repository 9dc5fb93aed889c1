"""The whole way once, small: a folder of DICOM and masks becomes a report that opens without a network."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from lungseg import cli
from lungseg.cohort import build_store, find_cases
from lungseg.paper import report_pdf
from lungseg.site import project_root

NAME = "DOE_JANE_1951"
RECIPE = """
name = "tiny"
about = "Too small to be good, big enough to go all the way."
prepare = { size = 64 }
net = { width = 8, depth = 3 }
fit = { epochs = 3 }
"""


def run(*words: object) -> tuple[int, str]:
    "Run a `lungseg` command; its exit status, and what it printed: first all to stderr, then all to stdout."
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.stderr + done.stdout


def contents(folder: Path) -> dict[str, str]:
    return {str(p): sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(work: Path) -> dict[str, int]:
    "When each de-identified file, stored array and weight was last written."
    kinds = (".dcm", ".npy", ".safetensors")
    return {str(p): p.stat().st_mtime_ns for p in work.rglob("*") if p.suffix in kinds}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cohort"
    assert run("phantom", folder, "--cases", 6, "--size", 64, "--slices", 20)[0] == 0
    (folder / "notes.txt").write_text("what a folder of data also holds")
    shutil.rmtree(folder / "Images" / "Case_005")  # a mask without a case
    (folder / "Structures" / "Case_005.dcm").unlink()
    (folder / "Segmentations" / "Case_004_seg.npz").unlink()  # a case with contours alone
    (folder / "Segmentations" / "Case_001_seg.npz").unlink()  # a case without a mask
    (folder / "Structures" / "Case_001.dcm").unlink()
    (folder / "Images" / "Case_003").rename(folder / "Images" / NAME)  # a folder that names its patient
    (folder / "Segmentations" / "Case_003_seg.npz").rename(folder / "Segmentations" / f"{NAME}_seg.npz")
    return folder


@pytest.fixture(scope="module")
def report(cohort, tmp_path_factory) -> dict:
    "What `lungseg report` left behind."
    for module in ("nbdev", "pypandoc", "nbclient"):
        pytest.importorskip(module, reason="the report extra is not installed")
    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.toml").write_text(RECIPE)
    before = contents(cohort)
    words = ["--data", cohort, "--recipe", folder / "tiny.toml", "--test", NAME, "--test", "Case_002"]
    status, said = run("report", *words, "--out", folder / "site", "--work", folder / "work")
    assert contents(cohort) == before, "the input was changed"
    return {"status": status, "said": said, "site": folder / "site", "work": folder / "work", "words": words}


def test_its_pages_are_printed_as_one_pdf_that_names_no_folder(report, browser, tmp_path):
    pypdf = pytest.importorskip("pypdf", reason="needs the extra lungseg[pdf]")
    pdf = report_pdf(project_root(), report["site"], tmp_path / "report.pdf")
    read = pypdf.PdfReader(pdf)
    titles = [item.title for item in read.outline]
    assert titles[0] == "Introduction" and titles[-1] == "Appendix" and len(titles) == 9
    text = "".join(page.extract_text() for page in read.pages)
    assert "What was asked, of whom" in text and str(report["site"]) not in text
    assert str(tmp_path.parent).encode() not in pdf.read_bytes()


def test_it_ends_with_the_page_to_open_and_lists_what_was_held_back(report):
    assert report["status"] == 1, report["said"]
    assert report["said"].strip().endswith(f"Open {report['site'] / 'index.html'}")
    facts = json.loads((report["work"] / "report.json").read_text())
    held = facts["held"]
    assert facts["source"] == "DICOM"
    assert {h["item"].split("/")[-1] for h in held} == {"Case_001", "Case_005_seg.npz"}
    assert all(h["item"] in report["said"] for h in held)


def test_no_patient_is_in_two_parts_and_every_case_is_scored(report):
    split = json.loads((report["work"] / "run" / "split.json").read_text())
    cases = [case for part in ("train", "validation", "test") for case in split[part]]
    assert sorted(cases) == ["Case_000", "Case_002", "Case_003", "Case_004"]
    assert "Case_002" in split["test"] and len(split["test"]) == 2
    table = pd.read_csv(report["work"] / "run" / "evaluation" / "patients.csv")
    assert sorted(table.case[table.method == "network"]) == sorted(cases)
    assert table.dice[table.method == "threshold"].between(0.5, 1).all()


def test_volumes_come_from_de_identified_files(report):
    texts = (p.read_bytes() for p in (report["work"] / "deidentified").rglob("*.dcm"))
    assert not any(b"PHANTOM-00" in text or b"19700401" in text for text in texts)
    known = [json.loads(p.read_text())["PatientSex"] for p in (report["work"] / "store").glob("*/case.json")]
    assert sorted(known) == ["F", "F", "F", "M"]


def test_a_name_that_a_folder_gave_away_stays_behind(report):
    for folder in ("site", "work"):
        for path in report[folder].rglob("*"):
            assert NAME not in path.name
            if path.is_file() and path.name not in ("report.json", "deidentified.keys.csv"):
                assert NAME.encode() not in path.read_bytes(), path.name
    keys = report["work"] / "deidentified.keys.csv"
    assert NAME in keys.read_text() and keys.stat().st_mode & 0o777 == 0o600


def test_masks_in_either_axis_order_land_on_the_same_lungs(report, cohort):
    "Case_002's file runs from head to feet; in the store it lies on its lungs."
    stored = np.load(cohort / "Segmentations" / "Case_002_seg.npz")["masks"]
    mask = np.load(report["work"] / "store" / "Case_002" / "mask.npy")
    assert np.array_equal(mask, stored[::-1].astype(bool))


def test_the_results_page_gives_the_scores_of_the_tables(report):
    table = pd.read_csv(report["work"] / "run" / "evaluation" / "patients.csv")
    page = (report["site"] / "nbs" / "report" / "results.html").read_text(encoding="utf-8")
    test = table[(table.split == "test") & (table.method == "network")]
    assert f"{test.dice.mean():.3f}" in page


def test_every_page_opens_without_a_network(report, visit):
    pages = sorted(report["site"].rglob("nbs/**/*.html"))
    assert len(pages) >= 26
    for path in pages:
        page = visit.open(path)
        assert page.locator("h1").first.is_visible(), path.name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name


def test_the_viewer_page_scrolls_and_shows_and_hides_masks(report, visit):
    page = visit.open(report["site"] / "nbs" / "report" / "worst.html")
    page.wait_for_selector(".lsv[data-ready]")
    viewer = page.locator(".lsv").first
    canvas = viewer.locator("canvas").first
    pixels = "c => { const d = document.createElement('canvas'); return c.toDataURL() }"
    first, at = canvas.evaluate(pixels), viewer.get_attribute("data-slice")
    for name in ("Reference", "Prediction"):  # the slice has an error, hence one of them at least
        viewer.get_by_role("checkbox", name=name).click()
    page.wait_for_timeout(200)
    bare = canvas.evaluate(pixels)
    assert bare != first
    canvas.hover()
    page.mouse.wheel(0, 240)
    page.wait_for_function("at => document.querySelector('.lsv').dataset.slice !== at", arg=at)
    assert canvas.evaluate(pixels) not in (first, bare)


def test_the_same_command_again_redoes_nothing(report):
    before = written(report["work"])
    status, _ = run("report", *report["words"], "--out", report["site"], "--work", report["work"])
    assert status == 1
    assert written(report["work"]) == before


# ---- bad input: one line, never a traceback


@pytest.mark.parametrize("verb", ["report --data", "explore", "isolate", "convert", "train"])
def test_a_folder_that_is_not_there_is_one_line(verb, tmp_path):
    words = [*verb.split(), tmp_path / "nowhere"] + [tmp_path / "out"] * (
        verb in ("isolate", "convert", "train")
    )
    status, said = run(*words, *(["--work", tmp_path / "w"] if "report" in verb else []))
    assert status == 2 and "nowhere" in said and len(said.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", ["isolate {data} {file}", "phantom {file}/deeper", "explore {data} --csv {folder}"]
)
def test_a_place_that_cannot_be_written_is_one_line(words, cohort, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    places = {"data": cohort, "file": tmp_path / "file", "folder": tmp_path / "folder"}
    status, said = run(*words.format(**places).split())
    assert status == 2 and said.strip().splitlines()[-1].startswith(f"lungseg {words.split()[0]}: ")
    assert (tmp_path / "file").read_text() == "in the way"


def test_what_can_be_known_early_is_said_before_the_work(cohort, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    words = ["report", "--data", cohort, "--work", tmp_path / "w"]
    for more in (["--out", tmp_path / "mine"], ["--recipe", "no-such-recipe"]):
        status, said = run(*words, *more)
        assert status == 2 and len(said.strip().splitlines()) == 1
    status, said = run("report", "--data", cohort, "--work", cohort.parent, "--fresh")
    assert status == 2 and "another --work" in said and (cohort / "Images").is_dir()
    assert not (tmp_path / "w").exists() and (tmp_path / "mine" / "thesis.tex").exists()


def test_a_folder_without_dicom_is_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "readme.txt").write_text("nothing here")
    status, said = run("report", "--data", tmp_path / "data", "--work", tmp_path / "w")
    assert status == 2 and "data" in said.splitlines()[-1] and "Traceback" not in said


def test_a_mask_of_another_shape_and_two_series_in_one_folder_are_held_back(cohort, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(cohort, data)
    np.savez(data / "Segmentations" / "Case_000_seg.npz", masks=np.zeros((5, 6, 7), np.uint8))
    (data / "Structures" / "Case_002.dcm").unlink()  # contours would say which series is meant
    for file in (cohort / "Images" / "Case_001").iterdir():
        ds = dcmread(file)
        (data / "Images" / "Case_001" / file.name).unlink()
        ds.PatientID = "PHANTOM-002"
        ds.save_as(data / "Images" / "Case_002" / f"more_{file.name}")
    held = {h.item: h.reason for h in build_store(find_cases(data), tmp_path / "store").held}
    assert "(5, 6, 7)" in held["Case_000"]
    assert any("2 CT series" in reason for reason in held.values())


def test_formats_go_out_and_come_back(cohort, tmp_path):
    status, said = run("convert", cohort, tmp_path / "nifti", "--json")
    held = json.loads(said[said.index("{") :])["held"]
    assert status == 1 and [h["item"] for h in held] == ["Segmentations/Case_005_seg.npz"]  # it has no case
    assert (tmp_path / "nifti" / "Case_000" / "ct.nii.gz").is_file()
    status, said = run("isolate", tmp_path / "nifti" / "Case_000" / "ct.nii.gz", tmp_path / "masks", "--json")
    assert status == 0 and json.loads(said[said.index("{") :])["lungs"]["ct"]["ml"] > 1000
    status, _ = run("view", tmp_path / "nifti/Case_000/ct.nii.gz", "--out", tmp_path / "view.html")
    assert status == 0 and "mountStatic(" in (tmp_path / "view.html").read_text(encoding="utf-8")
