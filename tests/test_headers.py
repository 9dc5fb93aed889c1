"""The quick walk over headers against pydicom, on every file at hand."""

from pathlib import Path

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from realdata import real

from lungseg import headers
from lungseg.core import SeriesError
from lungseg.frames import WANTED
from lungseg.headers import header_of, raw_header
from lungseg.phantom import write_series


def files_of(name: str) -> list[Path]:
    folder = Path(get_testdata_file("CT_small.dcm")).parent if name == "pydicom" else real(name)
    return [f for f in sorted(folder.rglob("*")) if f.is_file()]


def stripped(values: dict[int, bytes]) -> dict[int, bytes]:
    return {tag: value.strip(b" \0") for tag, value in values.items()}


@pytest.mark.parametrize("name", ["pydicom", "dicom-robustness", "cip-ct64", "lungdx-a0002"])
def test_the_walk_and_pydicom_say_the_same_of_every_file(name, monkeypatch):
    slow, walked = headers._parsed, 0
    for file in files_of(name):
        fell_back = []
        monkeypatch.setattr(headers, "_parsed", lambda *a, to=fell_back: to.append(a) or slow(*a))
        lean = raw_header(file, WANTED)
        if lean is None or fell_back:
            continue
        walked += 1
        parsed = slow(file, WANTED)
        assert stripped(lean.values) == stripped(parsed.values), file.name
        assert lean.syntax == parsed.syntax, file.name
        if parsed.pixels is not None:
            assert (lean.pixels, lean.length, lean.there) == (parsed.pixels, parsed.length, parsed.there), (
                file.name
            )
    assert walked > 10


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_sequences_of_any_length_are_stepped_over(tmp_path, syntax):
    ds = dcmread(write_series(tmp_path, z_mm=[1.0])[0])
    inner = Dataset()
    inner.Rows, inner.ReferencedSOPInstanceUID = 7, "1.2.3"
    outer = Dataset()
    outer.ReferencedImageSequence, outer.PixelSpacing = [inner, inner], [9, 9]
    ds.ReferencedImageSequence, ds.SourceImageSequence = [outer, outer], []
    big = syntax == ExplicitVRBigEndian
    if big:
        ds["PixelData"].VR = "OW"
    for undefined in (False, True):
        for sequence in (
            outer["ReferencedImageSequence"],
            ds["ReferencedImageSequence"],
            ds["SourceImageSequence"],
        ):
            sequence.is_undefined_length = undefined
        for item in (inner, outer):
            item.is_undefined_length_sequence_item = undefined
        ds.file_meta.TransferSyntaxUID = syntax
        dcmwrite(
            tmp_path / "again.dcm", ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=not big
        )
        raw = raw_header(tmp_path / "again.dcm", WANTED)
        assert raw.values[0x00280010] == b"\x10\x00"
        assert raw.text("PixelSpacing") == r"4.000000\4.000000"
        assert (raw.pixels is None) == big
        if not big:
            data = (tmp_path / "again.dcm").read_bytes()
            assert data[raw.pixels : raw.pixels + raw.length] == ds.PixelData


def test_a_header_longer_than_the_first_look_is_read_on(tmp_path):
    file = write_series(tmp_path, z_mm=[1.0], more={"ImageComments": "x" * 9000})[0]
    raw = raw_header(file, WANTED)
    assert raw.text("ImagePositionPatient").endswith("1.0000")
    assert raw.pixels > 9000 and raw.there == raw.length == 512
    ds = dcmread(file)
    ds.add_new(0x00291010, "OB", bytes(600_000))
    ds.save_as(file)
    assert raw_header(file, WANTED).pixels > 600_000


def test_a_header_cut_anywhere_is_an_error_or_says_no_more_than_is_there(tmp_path):
    whole = write_series(tmp_path, z_mm=[1.0])[0].read_bytes()
    full = raw_header(next(tmp_path.iterdir()), WANTED)
    for cut in range(0, len(whole) - 512, 61):
        (tmp_path / "cut.dcm").write_bytes(whole[:cut])
        try:
            raw = raw_header(tmp_path / "cut.dcm", WANTED)
        except SeriesError as e:
            assert "\n" not in str(e)
            continue
        assert raw is None or (raw.pixels is None and not set(raw.values) - set(full.values))


def test_a_header_in_memory_and_in_a_file_are_the_same(tmp_path):
    file = write_series(tmp_path, z_mm=[1.0], more={"PixelPaddingValue": 63536})[0]
    ds = dcmread(file)
    raw = raw_header(file, WANTED).values
    assert header_of(ds, "", WANTED).values == raw
    assert len(list(ds)) == len(ds)  # looks at every element, which converts it
    assert stripped(header_of(ds, "", WANTED).values) == stripped(raw)
