"""Every cell of the decoder table is proved by a stream; the rest is what broken and odd files do."""

import random
import subprocess
import sys
import warnings
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom.uid as uids
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame
from realdata import real

from lungseg import decoders
from lungseg.core import SeriesError
from lungseg.decoders import (
    DECODERS,
    SYNTAXES,
    Decoder,
    Stream,
    decoder_table,
    jpeg2000_stream,
    jpeg_stream,
    pixel_form,
    stored_frames,
    stored_series,
)


def ramp(rows: int, cols: int, step: int) -> np.ndarray:
    return np.add.outer(np.arange(rows) * step, np.arange(cols) * 7).astype(np.uint16)


ROWS, COLS = 48, 40
RAMP, SMALL = ramp(ROWS, COLS, 60), ramp(16, 12, 100)
# Of SMALL, or of SMALL - 2048: made with OpenJPH and libjpeg-turbo, since none of our packages writes them.
STREAMS = {
    "HTJ2K": (
        "/0//UQApQAAAAAAMAAAAEAAAAAAAAAAAAAAADAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wA"
        "EyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAHEAAf+TwAAmM/wFB3QAAMAAEsAA"
        "EoD2AId0ACICh3QAwAARwAATgBtzAI47/gCDVADAABPAABUg3t2Bfst1AMCBgcAYwIy2AMAAKqAAFeAkSZLep6enQncAxkaj"
        "0Wj8/AAQ9iEB7LkA/9k="
    ),
    "HTJ2K signed": (
        "/0//UQApQAAAAAAMAAAAEAAAAAAAAAAAAAAADAAAABAAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wA"
        "EyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAHEAAf+TwAAmM/wDB3QAAMAAEsAA"
        "EoD2AId0ACICh3QAwAARwAATgBtzAI47/gCDVADAABPAABUg3t2Bfst1AMCBgcAYwIy2AMAAKqAAFeAkSZLep6enQncAxkaj"
        "0Wj8/AAQ9iEB7LkA/9k="
    ),
    "HTJ2K lossy": (
        "/0//UQApQAAAAAAMAAAAEAAAAAAAAAAAAAAADAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAAKv9SAAwAAgABAAUEBEAA/1wA"
        "IyK3GLbqtuq2vK8ArwCu4qdMp0ynZJADkAOQRpfSl9KXYf9kABcAAU9wZW5KUEggVmVyIDAuMjYuMy7/kAAKAAAAAACfAAH/"
        "k8AAATjdXuEIB3QAAMAAAmgAAEy6/gIHdAB+7gQHdADAAASwAAFUewDLdABHsGQSWPIBhrQAwAAVsAAFqohfSoTOkfIH/pJ9"
        "lgAUA8VAMRwyd8jcIXMMYGccAAF4uQDAABaEAAFtgCQSiUQikUgSXZLsl1FZGQAwhBDCEesI64g1Yh2xRqw9EKYhAU3QDRJq"
        "PAD/2Q=="
    ),
    "JPEG Extended": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsI"
        "CQoKCgoKBggLDAsKDAkKCgr/wQALDAAQAAwBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAACAwN/8QAIRAAAAMIAwAAAAAAAAAA"
        "AAAAAAsoAwYIJTNFUWJxpeL/2gAIAQEAAD8AxdmH8jhoJAxYvIXrmEcMgYpA6LjUV4cP5HDQSBixeQvXMI4ZAxSB0XGo/9k="
    ),
    "JPEG Lossless 1": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAQAAwBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAAAwcM/9oACAEBAAEAAM/+7u7u"
        "7u72R3d3d3d3sju7u7u7vZHd3d3d3eyO7u7u7u9kd3d3d3d7I7u7u7u72R3d3d3d3sju7u7u7vZHd3d3d3eyO7u7u7u9kd3d"
        "3d3d7I7u7u7u72R3d3d3d3sju7u7u7vZHd3d3d3f/9k="
    ),
    "JPEG Lossless 2": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAQAAwBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABwMM/9oACAEBAAIAAM//AHve"
        "973ve92RkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGR"
        "kZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGR"
        "kZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZGRkZP/2Q=="
    ),
    "JPEG Lossless 4": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAQAAwBAREA/8QAFwABAQEBAAAAAAAAAAAAAAAAAAcDDP/aAAgBAQAEAADn/wDf"
        "fffffffffeyAAsgALIACyAAsgALIACyAAsgALIACyAAsgALIACyAAsgALIAD/9k="
    ),
    "JPEG Lossless 7": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAQAAwBAREA/8QAFwABAQEBAAAAAAAAAAAAAAAABgcDDP/aAAgBAQAHAADn/wDf"
        "fffffffffeyNmzZs2bNmzZs2sjZs2bNmzZs2bNrI2bNmzZs2bNmzayNmzZs2bNmzZs2sjZs2bNmzZs2bNrI2bNmzZs2bNmza"
        "yNmzZs2bNmzZs2sjZs2bNmzZs2bNrI2bNmzZs2bNmzayNmzZs2bNmzZs2sjZs2bNmzZs2bNrI2bNmzZs2bNmzayNmzZs2bNm"
        "zZs2sjZs2bNmzZs2bNrI2bNmzZs2bNmzb//Z"
    ),
}
UID = {s.name: uid for uid, s in SYNTAXES.items()}


def image(uid: str, data: bytes | list[bytes] = b"", **fields) -> Dataset:
    "A grey image in memory, of the size of RAMP; a list is compressed frames."
    ds = Dataset()
    ds.file_meta = Dataset()
    ds.file_meta.TransferSyntaxUID = uids.UID(uid)
    usual = {"Rows": ROWS, "Columns": COLS, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    bits = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    for keyword, value in (usual | bits | fields).items():
        if value is not None:
            setattr(ds, keyword, value)
    ds.add_new("PixelData", fields.get("VR", "OW"), encapsulate(data) if isinstance(data, list) else data)
    return ds


def packed(uid: str, words: np.ndarray = RAMP, **how) -> bytes:
    "A frame compressed by one of our packages."
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7} if words.itemsize == 1 else {}
    rows, cols = words.shape
    ds = image(uids.ExplicitVRLittleEndian, words.tobytes(), Rows=rows, Columns=cols, **bits)
    if words.dtype.kind == "i":
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 1
    ds.SOPClassUID, ds.SOPInstanceUID = uids.CTImageStorage, "1.2.3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.compress(uid, encoding_plugin=how.pop("plugin", ""), generate_instance_uid=False, **how)
    return get_frame(ds.PixelData, 0, number_of_frames=1)


def jpeg(words: np.ndarray) -> bytes:
    from PIL import Image

    out = BytesIO()
    Image.fromarray(words).save(out, "JPEG", quality=95)
    return out.getvalue()


def samples() -> list[tuple[str, bytes, np.ndarray, int]]:
    "Transfer syntax, frame, the values that went in, and how far a lossy one may be off."
    eight, signed = (RAMP >> 4).astype(np.uint8), RAMP.astype(np.int16) - 2048
    jls, j2k = UID["JPEG-LS Lossless"], UID["JPEG 2000 Lossless"]
    loss = (UID[f"JPEG Lossless{which}"] for which in ("", ", first-order"))
    lossless, first = loss
    made = [
        *((uid, packed(uid), RAMP, 0) for uid in (UID["RLE Lossless"], jls, j2k)),
        *((uid, packed(uid, signed), signed, 0) for uid in (UID["RLE Lossless"], jls, j2k)),
        *((uid, packed(uid, eight), eight, 0) for uid in (UID["RLE Lossless"], jls, j2k)),
        (UID["JPEG-LS Near-Lossless"], packed(UID["JPEG-LS Near-Lossless"], jls_error=2), RAMP, 2),
        (UID["JPEG 2000"], packed(UID["JPEG 2000"], j2k_psnr=[80]), RAMP, 3),
        (UID["JPEG Baseline, 8 bit"], jpeg(eight), eight, 3),
        (first, b64decode(STREAMS["JPEG Lossless 1"]), SMALL, 0),
        (UID["JPEG Extended, 12 bit"], b64decode(STREAMS["JPEG Extended"]), SMALL, 1),
        (UID["HTJ2K"], b64decode(STREAMS["HTJ2K lossy"]), SMALL, 1),
    ]
    for n in (1, 2, 4, 7):  # the predictors of T.81, table H.1
        made.append((lossless, b64decode(STREAMS[f"JPEG Lossless {n}"]), SMALL, 0))
    for name in ("HTJ2K Lossless", "HTJ2K Lossless RPCL"):  # these streams are RPCL
        made.append((UID[name], b64decode(STREAMS["HTJ2K"]), SMALL, 0))
        made.append((UID[name], b64decode(STREAMS["HTJ2K signed"]), SMALL.astype(np.int16) - 2048, 0))
    return made


SAMPLES = samples()


def fields_of(before: np.ndarray) -> dict[str, int]:
    "What the header says of an array: unsigned words hold twelve bits, all others are full."
    bits = 8 * before.itemsize
    stored = 12 if before.dtype == np.uint16 else bits
    said = {"Rows": before.shape[0], "Columns": before.shape[1], "BitsAllocated": bits, "BitsStored": stored}
    return said | {"HighBit": stored - 1, "PixelRepresentation": int(before.dtype.kind == "i")}


CELLS = [
    pytest.param(name, *sample, id=f"{name}-{SYNTAXES[sample[0]].name}-{i}")
    for i, sample in enumerate(SAMPLES)
    for name in SYNTAXES[sample[0]].decoders
]


@pytest.mark.parametrize(("package", "uid", "frame", "before", "off"), CELLS)
def test_a_package_decodes_what_the_table_says(monkeypatch, package, uid, frame, before, off):
    if not DECODERS[package].here:
        pytest.skip(f"{package} is not installed")
    monkeypatch.setattr(decoders, "_installed", lambda uid: (package,))
    after = stored_frames(image(uid, [frame], **fields_of(before)), "one")
    assert after.shape == (1, *before.shape) and after.dtype == before.dtype
    assert np.abs(after[0].astype(int) - before).max() <= off


def test_every_cell_of_the_table_has_its_proof():
    proved = {(SYNTAXES[p.values[1]].name, p.values[0]) for p in CELLS}
    table = decoder_table().drop(columns="here")
    table.columns = [column.partition(" (")[0] for column in table]
    assert proved == {(row, name) for row in table.index for name in table if table.loc[row, name]}
    assert set(table.columns) == set(DECODERS)


def test_no_package_is_under_the_gpl():
    assert {d.licence for d in DECODERS.values()} == {"MIT", "MIT-CMU", "BSD-3-Clause"}
    assert not any("libjpeg" in d.module for d in DECODERS.values())


def test_a_gpl_plugin_that_is_installed_is_not_used(tmp_path):
    (tmp_path / "libjpeg.py").write_text("def decode_pixel_data(*a, **k): raise SystemExit('used')\n")
    (tmp_path / "x.dist-info").mkdir()
    (tmp_path / "x.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 2.3\n")
    syntaxes = [UID[n] for n in ("JPEG Lossless", "JPEG-LS Lossless", "JPEG Extended, 12 bit")]
    points = "\n".join(f"{uid} = libjpeg:decode_pixel_data" for uid in syntaxes)
    (tmp_path / "x.dist-info" / "entry_points.txt").write_text(f"[pylibjpeg.pixel_data_decoders]\n{points}\n")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_decoders as t\n"
        "for uid, frame, before, off in t.SAMPLES:\n"
        "    t.stored_frames(t.image(uid, [frame], **t.fields_of(before)), 'x')\n"
        "print('decoded')\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), here], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "decoded"  # the plugin would have ended the program


ODD = {  # pydicom's own test files, grey ones
    **dict.fromkeys(("MR_small.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm"), "plain"),
    **dict.fromkeys(("MR_small_bigendian.dcm", "rtdose.dcm", "rtdose_expb.dcm"), "big endian, 32 bit"),
    **dict.fromkeys(("rtdose_rle.dcm", "rtdose_rle_1frame.dcm", "MR_small_RLE.dcm"), "RLE"),
    **dict.fromkeys(("image_dfl.dcm", "MR_small_padded.dcm", "CT_small.dcm"), "deflated, padded"),
    **dict.fromkeys(("MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_08.dcm"), "JPEG-LS"),
    **dict.fromkeys(("JPEGLSNearLossless_16.dcm", "examples_palette.dcm"), "JPEG-LS, palette"),
    **dict.fromkeys(("MR_small_jp2klossless.dcm", "JPEG2000.dcm", "693_J2KI.dcm"), "JPEG 2000"),
    "J2K_pixelrep_mismatch.dcm": "unsigned stream, signed header",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_give_what_pydicom_gives(name):
    path = Path(get_testdata_file(name, download=False))
    expected = dcmread(path).pixel_array
    assert np.array_equal(stored_frames(path), expected if expected.ndim == 3 else expected[None])
    assert stored_frames(path).dtype.isnative


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "J2K_pixelrep_mismatch.dcm", "MR_small_bigendian.dcm"])
def test_odd_files_give_what_simpleitk_gives(name):
    sitk = pytest.importorskip("SimpleITK")
    path = Path(get_testdata_file(name, download=False))
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.array_equal(stored_frames(path).squeeze(), theirs.squeeze())


def test_real_files_give_what_simpleitk_gives():
    sitk = pytest.importorskip("SimpleITK")
    folder, seen = real("dicom-robustness"), 0
    for path in sorted(folder.rglob("*.dcm")):
        ds = dcmread(path, stop_before_pixels=True)
        if ds.Modality not in ("CT", "MR"):
            continue
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        ours = stored_frames(path)
        shift = theirs.astype(int) - ours.reshape(theirs.shape)
        assert shift.min() == shift.max() and shift.max() in (0, -1024)  # ReadImage adds the intercept
        seen += 1
    assert seen > 15


def test_rubbish_in_unused_bits_is_no_value():
    signed = RAMP.astype(np.int16) - 2048
    rubbish = np.random.default_rng(0).integers(0, 16, RAMP.shape).astype(np.uint16) << 12
    words = signed.view(np.uint16) & 0x0FFF | rubbish
    plain = uids.ExplicitVRLittleEndian
    assert np.array_equal(stored_frames(image(plain, (RAMP | rubbish).tobytes()), "x")[0], RAMP)
    assert np.array_equal(stored_frames(image(plain, words.tobytes(), PixelRepresentation=1), "x")[0], signed)
    big = image(uids.ExplicitVRBigEndian, words.astype(">u2").tobytes(), PixelRepresentation=1)
    assert np.array_equal(stored_frames(big, "x")[0], signed)
    top = image(plain, (RAMP << 4 | rubbish >> 12).tobytes(), HighBit=15)
    assert np.array_equal(stored_frames(top, "x")[0], RAMP)
    rle = image(UID["RLE Lossless"], [packed(UID["RLE Lossless"], words)], PixelRepresentation=1)
    assert np.array_equal(stored_frames(rle, "x")[0], signed)


def test_bytes_in_big_endian_words_are_turned_round():
    eight = (RAMP >> 4).astype(np.uint8)
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    turned = eight.reshape(-1, 2)[:, ::-1].tobytes()
    assert np.array_equal(stored_frames(image(uids.ExplicitVRBigEndian, turned, **bits), "x")[0], eight)
    as_bytes = image(uids.ExplicitVRBigEndian, eight.tobytes(), VR="OB", **bits)
    assert np.array_equal(stored_frames(as_bytes, "x")[0], eight)


@pytest.mark.parametrize("name", ["RLE Lossless", "JPEG-LS Lossless", "JPEG 2000 Lossless"])
def test_many_frames_stay_in_order(name):
    uid, turned = UID[name], RAMP[::-1].copy()
    frames = [packed(uid), packed(uid, turned)]
    assert np.array_equal(stored_frames(image(uid, frames, NumberOfFrames=2), "x"), [RAMP, turned])
    with pytest.raises(SeriesError, match="expected 3"):
        stored_frames(image(uid, frames, NumberOfFrames=3), "x")


def test_a_frame_in_several_fragments_is_one_frame():
    uid = UID["JPEG-LS Lossless"]
    ds = image(uid)
    ds.PixelData = encapsulate([packed(uid)], fragments_per_frame=3)
    assert np.array_equal(stored_frames(ds, "x")[0], RAMP)


def test_encapsulated_plain_pixels_are_plain():
    ds = image(UID["Encapsulated Uncompressed"], [RAMP.tobytes(), RAMP.tobytes()], NumberOfFrames=2)
    assert np.array_equal(stored_frames(ds, "x"), [RAMP, RAMP])


WRONG = [
    ({"Rows": None}, r"^x: Rows is missing or no number"),
    ({"Columns": 0}, r"^x: Columns is 0, expected 1 to 65535$"),
    ({"Rows": 49}, r"^x: PixelData is 3840 bytes, expected 3920 \(1 × 49 × 40 of 16 bits\)$"),
    ({"Rows": 45}, r"^x: PixelData is 3840 bytes, expected 3600"),
    ({"NumberOfFrames": 2}, r"^x: PixelData is 3840 bytes, expected 7680"),
    ({"BitsAllocated": 12}, r"^x: BitsAllocated is 12, expected 8, 16 or 32$"),
    ({"BitsStored": 17, "HighBit": 16}, r"^x: BitsStored is 17, expected 1 to BitsAllocated, 16$"),
    ({"HighBit": 7}, r"^x: HighBit is 7, expected 11 for 12 bits stored$"),
    ({"PixelRepresentation": 2}, r"^x: PixelRepresentation is 2, expected 0 or 1$"),
    ({"SamplesPerPixel": 3}, r"^x: SamplesPerPixel is 3, expected 1"),
]


@pytest.mark.parametrize(
    ("fields", "message"), WRONG, ids=lambda v: "-".join(v) if isinstance(v, dict) else ""
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(SeriesError, match=message) as raised:
        stored_frames(image(uids.ExplicitVRLittleEndian, RAMP.tobytes(), **fields), "x")
    assert "\n" not in str(raised.value)


def test_an_image_without_pixels_or_in_an_unknown_syntax_is_named():
    ds = image(uids.ExplicitVRLittleEndian, RAMP.tobytes())
    del ds.PixelData
    with pytest.raises(SeriesError, match=r"^x: PixelData is missing"):
        stored_frames(ds, "x")
    with pytest.raises(SeriesError, match=r"^x: TransferSyntaxUID is MPEG2"):
        stored_frames(image("1.2.840.10008.1.2.4.100", [b"\0\0"]), "x")
    with pytest.raises(SeriesError, match=r"^x: TransferSyntaxUID is no syntax we know") as raised:
        stored_frames(image("1.2.826.0.1.77", [b"\0\0"]), "x")
    assert "1.2.826" not in str(raised.value)


@pytest.mark.parametrize("sample", SAMPLES[:18], ids=lambda s: SYNTAXES[s[0]].name)
def test_a_frame_cut_short_is_an_error(sample):
    uid, frame, before, _ = sample
    for length in (len(frame) // 2, 70, 3):
        with pytest.raises(SeriesError, match=r"^x: PixelData"):
            stored_frames(image(uid, [frame[:length]], **fields_of(before)), "x")


@pytest.mark.parametrize("sample", SAMPLES[1:3], ids=lambda s: SYNTAXES[s[0]].name)
def test_a_frame_of_another_size_is_an_error(sample):
    with pytest.raises(
        SeriesError, match=r"^x: PixelData holds 48×40 pixels, expected Rows × Columns, 48×41$"
    ):
        stored_frames(image(sample[0], [sample[1]], Columns=41), "x")


def test_a_truncated_file_is_an_error(tmp_path):
    with pytest.raises(SeriesError, match=r"^MR_truncated\.dcm: PixelData is 8130 bytes, expected 8192"):
        stored_frames(Path(get_testdata_file("MR_truncated.dcm", download=False)))
    whole = Path(get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False)).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-900])
    with warnings.catch_warnings(), pytest.raises(SeriesError, match=r"^cut\.dcm: "):
        warnings.simplefilter("ignore")
        stored_frames(tmp_path / "cut.dcm")


def test_a_decoder_that_fails_is_followed_by_the_next(monkeypatch):
    def refuse(*_):
        raise RuntimeError("cannot decode Doe^Jane")

    def panic(*_):
        raise BaseException("Doe^Jane")

    uid = UID["JPEG-LS Lossless"]
    ds = image(uid, [packed(uid)])
    for fail in (refuse, panic):
        monkeypatch.setitem(DECODERS, "pyjpegls", Decoder("jpeg_ls", "MIT", fail))
        assert np.array_equal(stored_frames(ds, "x")[0], RAMP)
    monkeypatch.setitem(DECODERS, "python-gdcm", Decoder("gdcm", "BSD-3-Clause", refuse))
    with pytest.raises(SeriesError, match="python-gdcm: RuntimeError") as raised:
        stored_frames(ds, "x")
    assert "Doe" not in str(raised.value) and "\n" not in str(raised.value)


def test_ctrl_c_in_a_decoder_is_heard(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    uid = UID["JPEG-LS Lossless"]
    monkeypatch.setitem(DECODERS, "pyjpegls", Decoder("jpeg_ls", "MIT", interrupt))
    with pytest.raises(KeyboardInterrupt):
        stored_frames(image(uid, [packed(uid)]), "x")


def test_a_missing_decoder_says_what_to_install(monkeypatch):
    monkeypatch.setattr(decoders, "_installed", lambda uid: ())
    uid = UID["JPEG Lossless"]
    with pytest.raises(
        SeriesError, match=r"no installed package decodes.*python-gdcm: pip install lungseg\[dicom\]$"
    ):
        stored_frames(image(uid, [b"\0\0"]), "x")


def test_lossy_values_never_wrap_around():
    uid = UID["JPEG 2000"]
    edge = np.where(np.indices((ROWS, COLS)).sum(0) % 2, 4095, 0).astype(np.uint16)
    frame = packed(uid, edge, j2k_psnr=[35])
    assert np.abs(stored_frames(image(uid, [frame]), "x")[0].astype(int) - edge).max() < 2048


def test_a_series_in_two_processes_is_the_same_and_keeps_its_order(tmp_path):
    uid, files = UID["JPEG-LS Lossless"], []
    for i in range(12):
        ds = image(uid, [packed(uid, np.roll(RAMP, i, 0))])
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            uids.CTImageStorage,
            "1.2",
        )
        files.append(tmp_path / f"{i}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    one, two = (np.concatenate(list(stored_series(files, workers=n))) for n in (1, 2))
    assert np.array_equal(one, two) and np.array_equal(one[5], np.roll(RAMP, 5, 0))
    files[7].write_bytes(files[7].read_bytes()[:-40])
    for n in (1, 2):
        with warnings.catch_warnings(), pytest.raises(SeriesError, match=r"^7\.dcm: "):
            warnings.simplefilter("ignore")
            list(stored_series(files, workers=n))


BREAK = """
import random, sys
import test_decoders as t
uid, frame, before, _ = t.SAMPLES[int(sys.argv[1])]
chance, held = random.Random(0), 0
for _ in range(400):
    broken = bytearray(frame)
    for _ in range(chance.randrange(1, 5)):
        end = len(broken) if chance.random() < 0.5 else min(len(broken), 90)
        broken[chance.randrange(end)] = chance.randrange(256)
    try:
        t.stored_frames(t.image(uid, [bytes(broken)], **t.fields_of(before)), "x")
    except t.SeriesError:
        held += 1
print(held)
"""


@pytest.mark.parametrize(
    "name", ["JPEG Lossless", "JPEG Extended, 12 bit", "JPEG 2000 Lossless", "RLE Lossless"]
)
def test_no_broken_stream_brings_the_program_down(name):
    which = next(i for i, s in enumerate(SAMPLES) if SYNTAXES[s[0]].name == name)
    done = subprocess.run(
        [sys.executable, "-c", BREAK, str(which)], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-300:]
    assert int(done.stdout) > 50


def test_streams_say_their_size():
    said = jpeg_stream(b64decode(STREAMS["JPEG Lossless 2"]))
    assert (said.rows, said.cols, said.bits, said.signed) == (16, 12, 12, False)
    said = jpeg2000_stream(b64decode(STREAMS["HTJ2K signed"]))
    assert (said.rows, said.cols, said.bits, said.signed) == (16, 12, 16, True)
    assert Stream(1, 2, 8).frame == b""
    for junk in (b"", b"\xff\xd8\xff\xd9", b"\xff" * 50, random.Random(1).randbytes(300)):
        for read in (jpeg_stream, jpeg2000_stream):
            with pytest.raises(ValueError):
                read(junk)


def test_pixels_that_are_not_where_they_were_said_are_an_error(tmp_path):
    uid = UID["JPEG-LS Lossless"]
    ds = image(uid, [packed(uid)])
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = uids.CTImageStorage, "1.2"
    file = tmp_path / "a.dcm"
    ds.save_as(file, enforce_file_format=True)
    with file.open("rb") as f:
        place = pixel_form(dcmread(f, stop_before_pixels=True), "a.dcm"), f.tell()
    assert np.array_equal(stored_frames(file, place=place)[0], RAMP)
    with pytest.raises(SeriesError, match=r"^a\.dcm: PixelData is not where it should be"):
        stored_frames(file, place=(place[0], place[1] + 2))
    file.write_bytes(file.read_bytes()[: place[1] + 60])
    with pytest.raises(SeriesError, match=r"^a\.dcm: PixelData"):
        stored_frames(file, place=place)
