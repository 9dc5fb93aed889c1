"Finding, grouping and ordering DICOM files, on phantoms, on pydicom's odd files and on real series."

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from realdata import real

from lungseg.core import SeriesError
from lungseg.dicom import (
    case_names,
    differences,
    find_dicom,
    identity_claims,
    is_dataset,
    list_series,
    read_series,
    slice_position,
    tag_table,
)
from lungseg.phantom import write_series

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
