"""Archives and discs as others send them: broken, hostile, or copied by a careless hand."""

import gzip
import io
import random
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from lungseg import archives
from lungseg.archives import dicomdir_files, is_archive, nested_archives, unpacked
from lungseg.core import InputError
from lungseg.dicom import find_dicom
from lungseg.phantom import write_series


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    "Temporary folders are made here, and none is left."
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def zipped(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], how=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as z:
        for member, data in members:
            z.writestr(member, data)
    return path


def tarred(path: Path, members: list[tuple[tarfile.TarInfo | str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as t:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path


def refused(path: Path, match: str, **options) -> None:
    with pytest.raises(InputError, match=match) as raised, unpacked(path, **options):
        raise AssertionError("it was unpacked")
    assert "\n" not in str(raised.value) and str(path.parent) not in str(raised.value)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz"])
def test_a_series_comes_out_as_it_went_in(tmp_path, suffix):
    files = write_series(tmp_path / "ct", z_mm=[0, 2.5, 5])
    members = [(f"a study/{f.name}", f.read_bytes()) for f in files] + [("a study/notes/", b"")] * (
        suffix == "zip"
    )
    path = (zipped if suffix == "zip" else tarred)(tmp_path / f"scan.{suffix}", members)
    assert is_archive(path) and not is_archive(files[0]) and not is_archive(tmp_path)
    with unpacked(path) as folder:
        found, held = find_dicom(folder)
        assert held == []
        assert [f.read_bytes() for f in found] == [f.read_bytes() for f in sorted(files)]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "called"),
    [("Sent.ZIP", "Sent"), ("a.b.tar.gz", "a.b"), (".zip", ".zip"), ("sent", "sent")],
)
def test_the_folder_is_called_after_the_archive(tmp_path, name, called):
    kind = tarred if name.endswith("gz") else zipped
    with unpacked(kind(tmp_path / name, [("1.dcm", b"1")])) as folder:
        assert folder.name == called and [p.name for p in folder.iterdir()] == ["1.dcm"]


def test_folders_made_on_windows_are_folders(tmp_path):
    path = zipped(tmp_path / "scan.zip", [("CT\\", b""), ("CT\\1.dcm", b"1"), ("CT\\sub\\2.dcm", b"2")])
    with unpacked(path) as folder:
        assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.dcm")) == [
            "CT/1.dcm",
            "CT/sub/2.dcm",
        ]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/evil",
        "C:\\evil",
        "c:evil",
        "\\\\host\\evil",
        "a\\..\\..\\evil",
        "..",
        "a\x01",
    ],
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, name):
    for suffix, made in (("zip", zipped), ("tar", tarred)):
        refused(made(tmp_path / f"bad.{suffix}", [("ct/1.dcm", b"1"), (name, b"2")]), rf"^bad\.{suffix}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar", "bad.zip", "temporary"]


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("ct/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    refused(
        zipped(tmp_path / "bad.zip", [(link, b"/etc/passwd")]),
        r"^bad\.zip: ct/link is a link, expected a plain file$",
    )
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        info = tarfile.TarInfo("ct/link")
        info.type, info.linkname = kind, "../../evil"
        refused(
            tarred(tmp_path / "bad.tar", [("a", b"1"), (info, b"")]),
            r"^bad\.tar: ct/link is (a link|no plain file)",
        )


def test_encrypted_members_are_refused(tmp_path):
    path = zipped(tmp_path / "bad.zip", [("ct/1.dcm", b"1" * 50)])
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    refused(path, r"^bad\.zip: ct/1\.dcm is encrypted, expected a plain file$")


def test_packing_that_python_does_not_know_is_refused(tmp_path):
    refused(
        zipped(tmp_path / "bad.zip", [("ct/1.dcm", b"1" * 50)], zipfile.ZIP_LZMA),
        "ct/1.dcm is packed by method 14",
    )


@pytest.mark.parametrize(
    "names",
    [("a/1", "a/1"), ("CT/1", "ct/1"), ("a", "a/1"), ("a/1", "a"), ("\u00e9", "e\u0301"), ("a//1", "a/./1")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path, names):
    for suffix, made in (("zip", zipped), ("tar", tarred)):
        refused(
            made(tmp_path / f"bad.{suffix}", [(n, b"1") for n in names]),
            "have the same name or differ only in case",
        )


def test_bombs_are_stopped_by_what_comes_out(tmp_path):
    zeros = bytes(5_000_000)
    for suffix, made in (("zip", zipped), ("tgz", tarred)):
        path = made(tmp_path / f"bomb.{suffix}", [("fine", b"1"), ("zeros", zeros)])
        refused(path, r"^bomb\.\w+: unpacks to more than 0\.002 GB \(at zeros\)", limit_bytes=2_000_000)
        with unpacked(path, limit_bytes=6_000_000) as folder:
            assert (folder / "zeros").stat().st_size == len(zeros)


def test_a_bomb_needs_a_hundredfold(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 1000)
    refused(zipped(tmp_path / "bomb.zip", [("zeros", bytes(5_000_000))]), "unpacks to more than")
    noise = random.Random(0).randbytes(200_000)
    with unpacked(zipped(tmp_path / "fine.zip", [("zeros", bytes(5_000_000)), ("noise", noise)])):
        pass


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    refused(zipped(tmp_path / "many.zip", [(str(i), b"") for i in range(11)]), "more than 10 members")


def test_a_size_that_lies_is_found_out(tmp_path):
    path = zipped(tmp_path / "bad.zip", [("ct/1.dcm", b"12345" * 1000)])
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1)
    path.write_bytes(data)
    refused(path, r"^bad\.zip: ct/1\.dcm ")


def test_a_long_name_that_fills_the_memory_is_refused(tmp_path):
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    path = tmp_path / "bad.tgz"
    path.write_bytes(gzip.compress(head.tobuf() + bytes(100_000)))
    refused(path, r"^bad\.tgz: cannot be read")


@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz"])
def test_broken_archives_are_one_line(tmp_path, suffix):
    noise = random.Random(0)
    whole = (zipped if suffix == "zip" else tarred)(
        tmp_path / f"bad.{suffix}", [(f"ct/{i}.dcm", noise.randbytes(3000)) for i in range(4)]
    )
    data = whole.read_bytes()
    for cut in (len(data) // 2, 700, 40):
        whole.write_bytes(data[:cut])
        refused(whole, rf"^bad\.{suffix}: ")
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(noise.randrange(1, 6)):
            broken[noise.randrange(len(broken))] = noise.randrange(256)
        whole.write_bytes(broken)
        try:
            with unpacked(whole):
                pass
        except InputError as e:
            assert "\n" not in str(e)
    whole.write_bytes(b"no archive at all")
    refused(whole, rf"^bad\.{suffix}: cannot be read")
    whole.write_bytes(b"")
    refused(whole, rf"^bad\.{suffix}: cannot be read")


def test_a_wrong_checksum_is_an_error(tmp_path):
    path = zipped(tmp_path / "bad.zip", [("ct/1.dcm", b"12345" * 1000)], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    refused(path, r"^bad\.zip: ct/1\.dcm cannot be unpacked \(BadZipFile\), expected a whole file$")


def test_what_is_no_file_is_an_error(tmp_path):
    refused(tmp_path / "none.zip", r"^none\.zip: expected an archive, found nothing$")
    (tmp_path / "folder.zip").mkdir()
    refused(tmp_path / "folder.zip", r"^folder\.zip: expected an archive, found a folder$")


def test_ctrl_c_leaves_nothing_behind(tmp_path, monkeypatch, temporary):
    def interrupt(source, path, budget, member):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt), unpacked(zipped(tmp_path / "scan.zip", [("a/1", b"1")])):
        pass
    assert list(temporary.iterdir()) == []


def test_archives_inside_are_listed_and_left(tmp_path):
    inner = zipped(tmp_path / "inner.zip", [("1.dcm", b"1")])
    with unpacked(
        zipped(tmp_path / "scan.zip", [("ct/inner.ZIP", inner.read_bytes()), ("ct/1.dcm", b"1")])
    ) as folder:
        assert [h.item for h in nested_archives(folder)] == ["ct/inner.ZIP"]
        assert sorted(p.name for p in (folder / "ct").iterdir()) == ["1.dcm", "inner.ZIP"]


def test_a_crowded_disk_is_said(tmp_path, monkeypatch):
    def full(source, path, budget, member):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_write", full)
    refused(zipped(tmp_path / "scan.zip", [("a/1", b"1")]), r"^scan\.zip: a/1 does not fit on the disk")


DISC = Path(get_testdata_file("DICOMDIR", download=False)).parent


def disc(folder: Path, change=lambda name: name) -> Path:
    "A copy of pydicom's disc, its files renamed."
    for file in [DISC / "DICOMDIR", *dicomdir_files(DISC)[0]]:
        copy = folder / change(file.relative_to(DISC).as_posix())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "DICOMDIR",
        "DICOMDIR-bigEnd",
        "DICOMDIR-implicit",
        "DICOMDIR-nooffset",
        "DICOMDIR-nopatient",
        "DICOMDIR-reordered",
    ],
)
def test_every_kind_of_dicomdir_gives_its_files(name):
    files, held = dicomdir_files(DISC / name)
    assert len(files) + len(held) > 25 and len(set(files)) == len(files)
    assert all(f.is_file() for f in files)


CHANGES = {
    "lower case": str.lower,
    "version": lambda n: n if n == "DICOMDIR" else f"{n};1",
    "dot and version": lambda n: n if n == "DICOMDIR" else f"{n}.;1",
    "suffix": lambda n: n if n == "DICOMDIR" else f"{n}.dcm",
}


@pytest.mark.parametrize("how", CHANGES)
def test_names_that_copying_changed_are_found(tmp_path, how):
    files, held = dicomdir_files(disc(tmp_path / "disc", CHANGES[how]))
    assert (len(files), held) == (31, [])


def referring(folder: Path, *references) -> Path:
    "A DICOMDIR with changed references."
    ds = dcmread(folder / "DICOMDIR")
    images = [r for r in ds.DirectoryRecordSequence if "ReferencedFileID" in r]
    for record, reference in zip(images, references, strict=False):
        record.ReferencedFileID = reference
    ds.save_as(folder / "DICOMDIR")
    return folder


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_references_that_leave_the_folder_are_held(tmp_path):
    folder = disc(tmp_path / "disc")
    (tmp_path / "secret").write_bytes(b"1")
    (folder / "LINK").symlink_to(tmp_path / "secret")
    files, held = dicomdir_files(
        referring(folder, ["..", "SECRET"], "../secret", "/etc/passwd", "C:\\X", "LINK", ["NOT", "HERE"])
    )
    assert len(files) == 25 and len(held) == 6
    reasons = [h.reason for h in held]
    assert all("out of the folder" in r for r in reasons[:5]) and "not there" in reasons[5]


def test_two_files_that_could_be_meant_are_not_guessed(tmp_path):
    folder = disc(tmp_path / "disc", CHANGES["suffix"])
    file = dicomdir_files(folder)[0][0]
    shutil.copyfile(file, file.with_name(f"{file.stem};1"))
    files, held = dicomdir_files(folder)
    assert len(files) == 30 and len(held) == 1


def test_what_is_no_dicomdir_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"^DICOMDIR: expected a DICOMDIR, found none$"):
        dicomdir_files(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(InputError, match=r"^DICOMDIR: expected a DICOMDIR, "):
        dicomdir_files(tmp_path)
    file = write_series(tmp_path / "ct", z_mm=[0])[0]
    with pytest.raises(InputError, match=r"expected a DICOMDIR, found another file$"):
        dicomdir_files(file)
