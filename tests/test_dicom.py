"Finding, grouping and ordering DICOM files, on phantoms, on pydicom's odd files and on real series."

import csv
import os
import warnings
from pathlib import Path
from shutil import copytree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary
from pydicom.sequence import Sequence
from pydicom.uid import RTStructureSetStorage
from realdata import real
from typer.testing import CliRunner

from lungseg import cli
from lungseg.core import SeriesError
from lungseg.dicom import (
    SortableTable,
    case_names,
    differences,
    find_dicom,
    identifying,
    identity_claims,
    is_dataset,
    list_series,
    read_series,
    slice_position,
    still_filled,
    survey,
    tag_table,
)
from lungseg.phantom import write_cohort, write_series

ODD = (
    "CT_small.dcm",
    "rtstruct.dcm",
    "no_meta.dcm",
    "DICOMDIR",
    "badVR.dcm",
    "image_dfl.dcm",
    "meta_missing_tsyntax.dcm",
)


def test_order_ignores_file_names(tmp_path):
    files = write_series(tmp_path, z_mm=[3.0, 1.0, 2.0])
    for name, file in zip(["b.dcm", "c.dcm", "a"], files, strict=True):
        file.rename(tmp_path / name)
    assert [slice_position(ds) for ds in read_series(tmp_path)] == [1.0, 2.0, 3.0]


def test_a_list_of_files_is_ordered_like_its_folder(tmp_path):
    files = write_series(tmp_path, z_mm=[3.0, 1.0, 2.0])
    assert [ds.SOPInstanceUID for ds in read_series(files)] == [
        ds.SOPInstanceUID for ds in read_series(tmp_path)
    ]


def test_every_file_is_found_or_held_with_a_reason(tmp_path):
    for name in ODD:
        (tmp_path / name).write_bytes(Path(get_testdata_file(name)).read_bytes())
    (tmp_path / "empty").touch()
    (tmp_path / "._CT").write_bytes(bytes.fromhex("0005160700020000") + b"Mac OS X" + bytes(100))
    series, held = list_series(tmp_path)
    listed = [f.name for s in series for f in s.files] + [h.item for h in held]
    assert sorted(listed) == sorted(f.name for f in tmp_path.iterdir())
    assert {"empty", "._CT", "DICOMDIR"} <= {h.item for h in held}
    assert all(h.reason and "\n" not in h.reason for h in held)


def test_a_dicomdir_is_no_image(tmp_path):
    (tmp_path / "index").write_bytes(Path(get_testdata_file("DICOMDIR")).read_bytes())
    found, held = find_dicom(tmp_path)
    assert not found and "DICOMDIR" in held[0].reason


@given(st.binary(max_size=64))
def test_no_bytes_break_the_sniffing(head):
    assert is_dataset(head) in (True, False)


@given(st.text(min_size=12, max_size=64))
def test_prose_is_not_dicom(text):
    if ord(text[0]) not in (0, 2, 8):
        assert not is_dataset(text.encode())


def test_the_error_tells_series_apart_without_naming_anybody(tmp_path):
    write_series(tmp_path, z_mm=[0.0, 1.0])
    write_series(tmp_path, z_mm=[0.0])
    with pytest.raises(SeriesError, match=r"found 2 \(CT .*1 file.*\)") as e:
        read_series(tmp_path)
    assert "Phantom" not in str(e.value)


def test_case_names_do_not_depend_on_where_the_tree_stands(tmp_path):
    for case in ("Case_000", "Case_001"):
        write_series(tmp_path / "a" / "Images" / case, z_mm=[0.0], patient_id=case)
    copytree(tmp_path / "a", tmp_path / "Case_009" / "b")
    for root in (tmp_path / "a", tmp_path / "Case_009" / "b"):
        assert case_names(root, list_series(root)[0]) == ["Case_000", "Case_001"]


def test_differences_are_told_by_the_exception(tmp_path):
    for i in range(5):
        write_series(
            tmp_path / f"Case_{i:03d}", z_mm=[0.0], patient_id=f"P{i}", intercept=-1000 if i == 3 else -1024
        )
    assert differences(tag_table(tmp_path)) == ["Case_003: RescaleIntercept -1000, all others -1024"]


def test_a_real_folder_of_two_kernels_is_two_series():
    folder = real("lungdx-a0002")
    assert sorted(len(s.files) for s in list_series(folder)[0]) == [6, 30]
    with pytest.raises(SeriesError, match="found 2"):
        read_series(folder)
    steps = np.diff([slice_position(ds) for ds in read_series(folder / "B40f")])
    assert len(steps) == 29 and (steps > 0).all()


def test_a_real_small_ct_is_one_series():
    assert len(read_series(real("cip-ct64") / "ct-64Dicom")) == 79


def test_a_tilted_gantry_and_contours_beside_a_ct_do_not_confuse():
    folder = real("dicom-robustness")
    assert (np.diff([slice_position(ds) for ds in read_series(folder / "gantry-tilt-ge")]) > 0).all()
    assert len(read_series(folder / "dicompyler")) == 1
    assert all(isinstance(filled, tuple) for filled in identity_claims(folder).filled)


# ---- what would identify somebody -------------------------------------------------------------------------

NAME = "Quandt^Wilhelmina"


def claiming(**elements) -> Dataset:
    ds = Dataset()
    ds.PatientID, ds.PatientName, ds.PatientIdentityRemoved = "P-1", "P-1", "YES"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def nested(ds: Dataset, depth: int) -> Dataset:
    for _ in range(depth):
        item, ds = ds, Dataset()
        ds.ContentSequence = Sequence([item])
    return ds


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_every_name_of_a_person_is_found_at_any_depth(depth):
    people = [e[4] for e in DicomDictionary.values() if e[0] == "PN" and e[4]]
    assert len(people) > 30
    for keyword in people:
        item = Dataset()
        setattr(item, keyword, NAME)
        ds = nested(item, depth) if depth else item
        ds.PatientID = "P-1"
        assert [found.split(".")[-1] for found in still_filled(ds)] == [keyword]


def test_every_identifying_text_of_the_table_is_found_after_a_round_trip(tmp_path):
    "Written to a file and read back, where elements are still bytes, with and without explicit types."
    for keyword, _ in identifying().values():
        vr = next((e[0] for e in DicomDictionary.values() if e[4] == keyword), None)
        if vr not in ("LO", "SH", "LT", "ST", "UT", "PN"):
            continue
        (file,) = write_series(tmp_path / keyword, z_mm=[0.0], patient_id="P-1", more={"PatientName": "P-1"})
        ds = dcmread(file)
        setattr(ds, keyword, "Quandt 1947")
        ds.save_as(file)
        assert keyword in survey(tmp_path / keyword).filled[file]


@pytest.mark.parametrize(
    "text", ["", "P-1", "P_1", "p 1", "Anonymous", "ANON^ANON", "no^name", "xxxx", "Removed", "^"]
)
def test_pseudonyms_and_fillers_are_no_leak(text):
    assert (
        still_filled(claiming(PatientName=text, ReferringPhysicianName=text, InstitutionName="Unknown")) == []
    )


def test_a_private_group_counts_when_it_holds_text():
    ds = claiming()
    block = ds.private_block(0x0019, "MAKER", create=True)
    block.add_new(1, "DS", "1.25")
    block.add_new(2, "US", 7)
    block.add_new(3, "UN", b"\x00\x01\x02\x03abc")
    assert still_filled(ds) == []
    block.add_new(4, "UN", b"Quandt Wilhelmina")
    assert still_filled(ds) == ["private group 0019"]
    code = Dataset()
    code.CodeValue = "113111"
    ds.DeidentificationMethodCodeSequence = Sequence([code])
    assert still_filled(ds) == []


def test_writing_in_the_pixels_contradicts_the_claim():
    assert still_filled(claiming(BurnedInAnnotation="YES")) == ["BurnedInAnnotation"]
    assert still_filled(claiming(BurnedInAnnotation="NO")) == []


def test_contours_beside_a_ct_are_held_to_their_own_claim(tmp_path):
    (file,) = write_series(tmp_path / "case", z_mm=[0.0])
    ds = dcmread(file)
    ds.Modality, ds.SOPClassUID, ds.SOPInstanceUID = "RTSTRUCT", RTStructureSetStorage, "2.25.77"
    ds.SeriesInstanceUID, ds.OperatorsName, ds.PatientIdentityRemoved = "2.25.78", NAME, "YES"
    ds.save_as(tmp_path / "contours.dcm")
    ct = dcmread(file)
    ct.PatientName, ct.PatientIdentityRemoved = ct.PatientID, "YES"
    ct.save_as(file)
    claims = identity_claims(tmp_path)
    assert len(claims) == 1 and "OperatorsName" in claims.filled.iloc[0] and claims["true"].iloc[0] is False


# ---- explore ----------------------------------------------------------------------------------------------


def explore(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["explore", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.stdout + done.stderr


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("explore") / "cohort", cases=10, size=48, slices=6)


def test_explore_says_what_differs_and_whose_claim_is_false(cohort, tmp_path):
    status, said = explore(cohort, "--csv", tmp_path / "t.csv", "--html", tmp_path / "t.html")
    assert status == 0
    assert "10 patients, 10 studies, 10 CT series of 60 files; beside them 10 RTSTRUCT series." in said
    assert "Case_009: RescaleIntercept -1000, all others -1024" in said
    assert "Case_003, Case_006: PatientIdentityRemoved says YES, but PatientBirthDate is filled" in said
    assert "Segmentations: 10 files: not DICOM" in said
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    for text in (said, page, (tmp_path / "t.csv").read_text(encoding="utf-8")):
        assert "19700401" not in text and "1970-04-01" not in text
    assert "http:" not in page and "https:" not in page and len(page) < 30_000
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert [r["case"] for r in rows if r["ClaimIsTrue"] == "no"] == ["Case_003", "Case_006"]
    assert rows[0]["PixelSpacing"].count("\\") == 1


def test_explore_reads_every_file_once(cohort, monkeypatch):
    from lungseg import dicom

    read = []
    monkeypatch.setattr(
        dicom, "dcmread", lambda path, **options: read.append(path) or dcmread(path, **options)
    )
    assert explore(cohort)[0] == 0
    assert len(read) == len(set(read)) == 10 * 6 + 10


def test_what_explore_writes_names_nobody(tmp_path):
    folder = tmp_path / "in" / "QUANDT_WILHELMINA_1947"
    more = {"PatientName": NAME, "PatientBirthDate": "19470312", "ConvolutionKernel": "for Quandt"}
    write_series(folder, z_mm=[0.0, 1.0], patient_id="H-4711", more=more)
    write_series(
        tmp_path / "in" / "other", z_mm=[0.0, 1.0], patient_id="H-4712", more={"PatientName": "Ohm^Iris"}
    )
    assert explore(tmp_path / "in", "--csv", tmp_path / "t.csv", "--html", tmp_path / "t.html")[0] == 0
    for name in ("t.csv", "t.html"):
        text = (tmp_path / name).read_text(encoding="utf-8").casefold()
        assert not [word for word in ("quandt", "wilhelmina", "19470312", "4711", "iris") if word in text]


def test_a_copied_series_is_held_and_said_in_one_line(tmp_path):
    write_series(tmp_path / "a", z_mm=[0.0, 1.0, 2.0])
    copytree(tmp_path / "a", tmp_path / "b")
    status, said = explore(tmp_path)
    assert status == 1
    assert "held back  b: 3 files: the same SOPInstanceUID as in a" in said
    assert "3 files repeat the SOPInstanceUID of another and are left out." in said


def test_uneven_steps_are_told(tmp_path):
    for i, z in enumerate([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 4], [0, 1, 1]]):
        write_series(tmp_path / f"c{i}", z_mm=[float(v) for v in z], patient_id=f"P{i}")
    told = [line for line in differences(tag_table(tmp_path)) if "Steps" in line]
    assert told == [
        "c3: Steps uneven, 1 to 3 mm, most even",
        "c4: Steps 1 slice at a place already taken, most even",
    ]


def test_two_series_of_one_patient_are_said_to_be_so(tmp_path):
    for case, patient in (("a", "P1"), ("b", "P2"), ("c", "P1")):
        write_series(tmp_path / case, z_mm=[0.0, 1.0], patient_id=patient)
    assert differences(tag_table(tmp_path)) == ["a, c: the same patient"]


def test_one_case_is_a_cohort_too(tmp_path):
    write_series(tmp_path / "in", z_mm=[0.0, 1.0])
    status, said = explore(tmp_path / "in", "--html", tmp_path / "t.html")
    assert status == 0 and "The same in all: PatientSex" in " ".join(said.split())
    assert "<table" not in (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "<table" in SortableTable(tag_table(tmp_path / "in"))._repr_html_()


@pytest.mark.parametrize("what", ["nothing", "contours", "arrays", "torn"])
def test_a_folder_without_ct_is_one_clear_error(tmp_path, what):
    folder = tmp_path / "in"
    folder.mkdir()
    if what == "contours":
        (folder / "rs.dcm").write_bytes(Path(get_testdata_file("rtstruct.dcm")).read_bytes())
    elif what == "arrays":
        np.savez(folder / "case.npz", hu=np.zeros((2, 2, 2), np.int16))
    elif what == "torn":
        (file,) = write_series(tmp_path / "whole", z_mm=[0.0])
        (folder / "torn.dcm").write_bytes(file.read_bytes()[:300])
    status, said = explore(folder)
    assert status == 2 and said.splitlines()[-1].startswith("lungseg explore: in: expected CT series, found")
    assert {
        "contours": "only 1 RTSTRUCT",
        "arrays": "1 file is not DICOM",
        "torn": "1 file cannot be used",
    }.get(what, "none") in said


def test_missing_and_broken_tags_do_not_stop_the_table(tmp_path):
    for i in range(4):
        write_series(tmp_path / f"c{i}", z_mm=[0.0, 2.0], patient_id=f"P{i}")
    for file in (tmp_path / "c1").iterdir():
        ds = dcmread(file)
        del ds.PixelSpacing, ds.KVP, ds.ImagePositionPatient, ds.Rows, ds.PatientAge
        ds.save_as(file)
    for file in (tmp_path / "c2").iterdir():  # numbers that are none, in bytes that pydicom would not write
        whole = file.read_bytes()
        assert b"-1024" in whole
        file.write_bytes(whole.replace(b"-1024", b"- x24"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they quote values
        table = tag_table(tmp_path)
    assert np.isnan(table.KVP["c1"]) and table.Rows["c1"] == 0 and table.Steps["c1"] == "not stated"
    assert table.RescaleIntercept["c2"] == "not readable"
    assert any(line.startswith("c2: RescaleIntercept not readable") for line in differences(table))
    assert explore(tmp_path)[0] == 0


def test_differences_tell_pairs_of_numbers_as_a_range():
    table = pd.DataFrame({"PixelSpacing": [(0.6 + i / 50, 0.6 + i / 50) for i in range(10)]})
    assert differences(table) == ["PixelSpacing: 10 values from 0.6 × 0.6 to 0.78 × 0.78"]


def test_all_of_pydicoms_own_files_can_be_surveyed(tmp_path):
    found = survey(Path(get_testdata_file("CT_small.dcm")).parent)
    assert len(found.series) > 20
    assert all(isinstance(f, tuple) for f in found.filled.values())
    assert "Survey(" in repr(found)


# ---- in a browser -----------------------------------------------------------------------------------------


def rows(page) -> list[str]:
    return [r.split("\t")[0] for r in page.locator(".lst tbody tr:visible").all_inner_texts()]


TOLD = {"age": [61.0, 7.0, np.nan, 100.0], "spacing": [(0.7, 0.7), (0.68, 0.68), (1.0, 1.0), (0.9, 0.9)]}


def test_a_page_of_explore_is_sorted_and_searched_without_a_network(cohort, tmp_path, browser):
    assert explore(cohort, "--html", tmp_path / "t.html")[0] == 0
    context = browser.new_context(offline=True)
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(m.text))
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.goto((tmp_path / "t.html").as_uri())
    head = page.get_by_role("button", name="PatientAge")
    head.click()
    up = rows(page)
    head.click()
    assert sorted(up) == [f"Case_{i:03d}" for i in range(10)] and rows(page) == up[::-1]
    assert page.locator("th[aria-sort=descending]").inner_text() == "PatientAge"
    page.get_by_role("searchbox").fill("filled yes")
    assert rows(page) == [] and page.locator(".lst output").inner_text() == "0 of 10 rows"
    page.get_by_role("searchbox").fill("FILLED no")
    assert sorted(rows(page)) == ["Case_003", "Case_006"]
    context.close()
    assert wrong == []


def test_numbers_sort_as_numbers_and_what_is_empty_stays_last(tmp_path, browser):
    table = pd.DataFrame(TOLD, index=pd.Index(["Case_10", "Case_9", "Case_1", "<b>x</b>"], name="case"))
    (tmp_path / "t.html").write_text(f"<!doctype html>{SortableTable(table)._repr_html_()}", encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((tmp_path / "t.html").as_uri())
    seen = {}
    for column in ("age", "spacing", "case"):
        page.get_by_role("button", name=column).click()
        seen[column] = rows(page)
    assert seen["age"] == ["Case_9", "Case_10", "<b>x</b>", "Case_1"]
    assert seen["spacing"] == ["Case_9", "Case_10", "<b>x</b>", "Case_1"]
    assert seen["case"] == ["<b>x</b>", "Case_1", "Case_9", "Case_10"]
    page.get_by_role("button", name="age").click()
    page.get_by_role("button", name="age").click()
    assert rows(page)[-1] == "Case_1"
    context.close()


def test_the_table_lives_in_jupyterlab(browser, tmp_path):
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    from test_viewer import live_notebook

    write_cohort(tmp_path / "cohort", cases=4, size=48, slices=4)
    source = "from lungseg.dicom import SortableTable, tag_table\nSortableTable(tag_table('cohort'))"
    with live_notebook(browser, tmp_path, [source]) as page:
        page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-editor").first.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".lst[data-ready]")
        before = rows(page)
        page.get_by_role("button", name="case").click()
        page.get_by_role("button", name="case").click()
        assert rows(page) == before[::-1]
        cells = page.locator(".jp-Notebook .jp-Cell").count()
        page.locator(".lst input").click()
        page.keyboard.type("b a dd")  # commands of JupyterLab, were they not typed into the search
        assert page.locator(".lst input").input_value() == "b a dd" and rows(page) == []
        assert page.locator(".jp-Notebook .jp-Cell").count() == cells
        page.locator(".lst input").fill("case_003")
        assert rows(page) == ["Case_003"]


def test_entries_that_are_no_plain_files_are_listed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "in" / "pipe")
    found, held = find_dicom(tmp_path / "in")
    assert found == [] and [h.item for h in held] == ["dangling", "folder", "pipe"]
    assert {h.reason for h in held} == {"a link to a folder or to nothing, or no plain file"}
