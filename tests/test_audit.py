"Audit: what a folder would give away is found, nothing is quoted, and our own outputs pass."

import json
import shutil
from pathlib import Path

import pytest
from pydicom import Dataset, Sequence, dcmread
from typer.testing import CliRunner

from lungseg.audit import audit
from lungseg.cli import app
from lungseg.core import InputError
from lungseg.deidentify import deidentify
from lungseg.phantom import draw_phantom, write_phantom, write_rtstruct

NAME = "Quirrenbach"


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    "Two patients, with contours."
    out = tmp_path_factory.mktemp("originals")
    for i in range(2):
        phantom = draw_phantom(i, size=32, slices=4)
        said = {"name": f"{NAME}{i}^Hanna", "patient_id": f"QX-77812{i}", "birth_date": f"195{i}0203"}
        write_rtstruct(
            phantom, write_phantom(phantom, out / f"case {i}" / "CT", **said), out / f"case {i}" / "rt.dcm"
        )
    return out


@pytest.fixture(scope="module")
def clean(originals, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "out"
    deidentify(originals, out, secret=b"the secret of these tests")
    return out


def places(folder: Path, **options) -> set[str]:
    return {f.where for f in audit(folder, **options).findings}


def one(clean: Path, tmp_path: Path) -> tuple[Dataset, Path]:
    "A copy of a clean folder, and one of its slices to spoil."
    folder = Path(shutil.copytree(clean, tmp_path / "copy"))
    path = next(folder.rglob("CT_1/000001.dcm"))
    return dcmread(path), path


def test_originals_are_found_and_nobody_is_named(originals):
    found = audit(originals)
    assert {"PatientName", "PatientID", "PatientBirthDate"} <= {f.where for f in found.findings}
    assert len({f.file for f in found.findings}) == found.files == 10
    assert NAME.lower() not in (str(found) + str(found.findings) + str(found.summary())).lower()
    assert "77812" not in str(found.findings)


def test_outputs_give_nothing_away(originals, clean):
    assert audit(clean).findings == []
    assert audit(clean, against=originals, workers=2).findings == []


def spoil_name(ds):
    ds.PatientName = f"{NAME}1^Hanna"


def spoil_description(ds):
    ds.SeriesDescription = f"Chest {NAME}1"


def spoil_deep(ds):
    item, inner = Dataset(), Dataset()
    inner.add_new(0x0040A123, "PN", f"{NAME}1^Hanna")
    item.ContentSequence = Sequence([inner])
    ds.RequestAttributesSequence = Sequence([item])


def spoil_private(ds):
    ds.add_new(0x00291001, "LO", "somebody unknown")


def spoil_birth(ds):
    ds.PatientBirthDate = "19510203"


def spoil_flag(ds):
    ds.BurnedInAnnotation = "YES"


def spoil_kind(ds):
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (spoil_name, "PatientName"),
        (spoil_description, "SeriesDescription"),
        (spoil_deep, "RequestAttributesSequence.ContentSequence.PersonName"),
        (spoil_private, "(0029,1001)"),
        (spoil_birth, "PatientBirthDate"),
        (spoil_flag, "BurnedInAnnotation"),
        (spoil_kind, "SOPClassUID"),
    ],
)
def test_each_kind_of_leak_is_found_at_its_place(originals, clean, tmp_path, spoil, where):
    ds, path = one(clean, tmp_path)
    spoil(ds)
    ds.save_as(path)
    found = audit(tmp_path / "copy", against=originals)
    assert where in {f.where for f in found.findings}
    assert len({f.file for f in found.findings}) == 1


@pytest.mark.parametrize(
    "where", ["the preamble", "after the pixels", "PixelData", "the file name", "its bytes"]
)
def test_bytes_that_no_element_holds_are_searched(originals, clean, tmp_path, where):
    _, path = one(clean, tmp_path)
    data, name = path.read_bytes(), f"{NAME}1".encode()
    if where == "the preamble":
        path.write_bytes(name.ljust(128, b"\0") + data[128:])
    elif where == "after the pixels":
        path.write_bytes(data + b"\xfc\xff\xfc\xffOB\0\0\x0c\0\0\0" + name)
    elif where == "PixelData":
        path.write_bytes(data[: -len(name)] + name)
    elif where == "the file name":
        path.rename(path.with_name(f"{NAME}1.dcm"))
    else:
        path.with_name("letter.txt").write_text(f"Dear Mrs {NAME}1")
    assert where in places(tmp_path / "copy", against=originals)


def test_the_command_says_it_and_fails(originals, clean, tmp_path):
    run = CliRunner().invoke(app, ["audit", str(clean), "--against", str(originals)])
    assert run.exit_code == 0 and "0 would identify somebody" in run.output
    options = ["--csv", str(tmp_path / "f.csv"), "--names", str(tmp_path / "n.csv"), "--json"]
    run = CliRunner().invoke(app, ["audit", str(originals), *options])
    assert run.exit_code == 1 and NAME not in run.output
    assert len(json.loads(run.stdout)["findings"]) == len((tmp_path / "f.csv").read_text().splitlines()) - 1
    assert (tmp_path / "n.csv").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="expected a folder"):
        audit(tmp_path / "nothing")
