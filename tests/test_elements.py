"Reading fast gives what pydicom gives."

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from realdata import real

from lungseg.elements import elements_of, quiet, read_dataset


@pytest.mark.parametrize("name", ["pydicom", "lungdx-a0002", "dicom-robustness", "cip-ct64"])
@pytest.mark.parametrize("pixels", [True, False])
def test_every_file_is_read_as_pydicom_reads_it(name, pixels):
    folder = Path(get_testdata_file("CT_small.dcm")).parent if name == "pydicom" else real(name)
    compared = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with quiet():
            try:
                general = dcmread(path, stop_before_pixels=not pixels, force=True)
                expected = elements_of(general)
            except Exception as e:  # whatever a broken file provokes
                with pytest.raises(type(e)):
                    elements_of(read_dataset(path, pixels=pixels))
                continue
            found = read_dataset(path, pixels=pixels)
            assert [tag for tag, _ in elements_of(found)] == [tag for tag, _ in expected], path.name
            for (_, a), (_, b) in zip(elements_of(found), expected, strict=True):
                if isinstance(a, RawDataElement) and isinstance(b, RawDataElement):
                    assert a[:4] == b[:4], path.name
            assert found.original_encoding == general.original_encoding
            assert str(found.get("PatientName")) == str(general.get("PatientName"))
        compared += 1
    assert compared > 20
