"""Identity planted wherever it hides is gone from every byte `deidentify` writes, or the file is held."""

import random
import shutil
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from planted import (
    CHARSETS,
    LONG_VRS,
    NUMBERS,
    PIXEL_DATA,
    Person,
    Planter,
    date_spellings,
    dates_in,
    judge,
    person,
    plant,
    search,
    secrets,
    spellings,
)
from pydicom import dcmread
from pydicom.datadict import DicomDictionary

from lungseg.core import Held
from lungseg.deidentify import deidentify

SECRET = b"a secret of the tests, 32 bytes."


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_that_was_planted_is_found_again(tmp_path, seed, capfd, caplog, recwarn):
    planted = plant(tmp_path / "in", seed)
    result = deidentify(planted.folder, tmp_path / "out", secret=SECRET)
    said = [*capfd.readouterr(), caplog.text, *(str(w.message) for w in recwarn)]
    said += [path.read_text() for path in tmp_path.glob("out?*") if path.stat().st_mode & 0o077]
    verdict = judge(planted, result, tmp_path / "out", said)
    assert verdict.clean and verdict.kept >= 85, f"\n{verdict}"


# ---- the judge is judged


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("planted"))


def copied(planted, out: Path, but: int = 0) -> SimpleNamespace:
    "What a tool returns that copies everything, the first files excepted."
    shutil.copytree(planted.folder, out, dirs_exist_ok=True)
    paths = [s.path for s in planted.sources[but:]]
    return SimpleNamespace(files=[(planted.folder / path, out / path) for path in paths], held=[])


@pytest.fixture(scope="module")
def plain(planted, tmp_path_factory):
    "The verdict on a tool that copies all files but the first, and names a patient in all it says."
    out = tmp_path_factory.mktemp("plain")
    result = copied(planted, out, but=1)
    result.held = [Held("in/no/such.dcm", f"PatientName is {planted.people['A'].name}")]
    return judge(planted, result, out, [f"read {planted.people['F'].id}"])


def test_the_planted_set_is_quick_and_the_same_for_a_seed(planted, tmp_path):
    again = plant(tmp_path / "again")
    assert again.sources == planted.sources and len(planted.sources) > 60
    assert sum(len(s.harmless) for s in planted.sources) == 89
    assert all(
        (again.folder / s.path).read_bytes() == (planted.folder / s.path).read_bytes()
        for s in planted.sources
    )
    assert plant(tmp_path / "other", 7).people["A"].name != planted.people["A"].name


def test_the_judge_finds_every_kind_of_leak_in_a_plain_copy(plain):
    leaks = ("identity", "dates", "ages", "uids", "lost", "passed", "preamble", "paths", "reports")
    assert {name: plain.count(name) > 0 for name in leaks} == dict.fromkeys(leaks, True)
    assert "direct identity" in str(plain)


PLACES = [
    ("file meta", "PrivateInformation"),
    ("private groups", "(0009,1004)"),
    (
        "nested five deep",
        "SourceImageSequence > DerivationCodeSequence > AnatomicRegionSequence > CodeMeaning",
    ),
    ("overlays", "OverlayData"),
    ("curves", "CurveLabel"),
    ("icon image", "IconImageSequence > PixelData"),
    ("known elements as UN", "PatientName"),
    ("unknown public tags", "(0010,7777)"),
    ("values in every VR of text", "RetrieveURL"),
    ("values in every VR of text", "AcquisitionNumber"),
    ("technical attributes", "ConvolutionKernel"),
    ("deflated", "PatientName"),
    ("JPEG comment", "PixelData"),
    ("surplus pixel bytes", "PixelData"),
    ("DataSetTrailingPadding", "DataSetTrailingPadding"),
    ("full-width letters", "SeriesDescription"),
    ("decomposed letters", "SeriesDescription"),
    ("DICOMDIR", "DirectoryRecordSequence > PatientName"),
    ("table", "between elements"),
]


def test_the_judge_knows_the_places(plain):
    found = {(f.kind, f.place) for f in plain.findings if f.category == "identity"}
    assert [pair for pair in PLACES if pair not in found] == []


def test_the_judge_finds_what_careless_replacement_breaks(planted, tmp_path):
    "Patients merged, dates and UIDs replaced at random, codes and pixels touched, one ordinary file held."
    chosen = {"plain", "second study", "RTSTRUCT", "SEG", "standard UIDs and codes"}
    kinds, rng = {planted.folder / s.path: s.kind for s in planted.sources}, random.Random(0)
    result = copied(planted, tmp_path / "out")
    result.files = [pair for pair in result.files if kinds[pair[0]] in chosen]
    for _, target in result.files:
        ds = dcmread(target)
        ds.PatientID, ds.StudyDate = "NOBODY", f"20300{rng.randint(1, 9)}{rng.randint(10, 28)}"
        ds.SOPInstanceUID = f"2.25.{rng.randint(10**20, 10**21)}"
        if "PixelData" in ds:
            ds.PixelData = ds.PixelData[:-2] + b"??"
        if "AnatomicRegionSequence" in ds:
            ds.AnatomicRegionSequence[0].CodeValue = "1"
        ds.save_as(target)
    result.held = [Held(result.files[0][0].relative_to(planted.folder).as_posix(), "no reason")]
    del result.files[0]
    verdict = judge(planted, result, tmp_path / "out")
    broken = ("references", "patients", "intervals", "pixels", "standard", "held")
    assert {name: verdict.count(name) > 0 for name in broken} == dict.fromkeys(broken, True)
    assert verdict.kept < verdict.harmless


def test_the_judge_finds_nothing_where_everything_is_held(planted, tmp_path):
    held = [Held(s.path.as_posix(), "to be on the safe side") for s in planted.sources]
    verdict = judge(planted, SimpleNamespace(files=[], held=held), tmp_path)
    assert {f.category for f in verdict.findings} == {"held"} and verdict.kept == 0


@pytest.mark.parametrize("charset", CHARSETS)
def test_the_judge_reads_every_spelling(charset):
    of = person(random.Random(3), "A", charset)
    known = secrets(of)
    assert [
        text for text in spellings(of) if not search(b"Chest " + of.codec(text) + b" lung", text, known)
    ] == []
    assert [day for day in date_spellings(of.birth) if of.birth not in dates_in(f"born {day}, he")] == []


# ---- any element, any spelling

SEQUENCES = sorted(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ" and tag >> 16 > 4)
TAGS = sorted(tag for tag in DicomDictionary if tag >> 16 != 0xFFFE and tag not in (0x00020000, PIXEL_DATA))
ALPHABETS = {
    "ascii": "abcdefghijklmnopqrstuvwxyz",
    "latin": "aäåbcçdeéfghiíjklmnñoöøpqrstuüvwxyz",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщыэюя",
    "greek": "αβγδεζηθικλμνξοπρστυφχψω",
    "utf-8": "ąćęłńśźżžřěůőűğşıabcdeghkmnoprstuvz",
    "chinese": "虚构样本测试架空假设模拟",
    "japanese": "架空仮想試作見本虚構",
    "korean": "가상허구모의견본",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשת",
}


@st.composite
def patients(draw) -> Person:
    "A patient with a name in any script; other than the planted ones, from any letters."
    charset = draw(st.sampled_from(sorted(ALPHABETS)))
    signs = charset in ("chinese", "japanese", "korean")
    size = dict(min_size=3, max_size=4) if signs else dict(min_size=6, max_size=12)
    part = st.lists(st.sampled_from(ALPHABETS[charset]), unique=True, **size).map("".join)
    family, first = draw(part).capitalize(), draw(part).capitalize()
    name = f"{family}^{first}" if not signs else f"Xqzwv{len(family)}^Wvzqk{len(first)}={family}^{first}"
    written = "latin" if charset == "ascii" else charset
    return person(random.Random(draw(st.integers(0, 99))), "A", written, name=name)


@st.composite
def placements(draw, of: Person) -> tuple[str, dict, dict]:
    "Where one text of the patient's identity goes: what to call it, the elements, the file meta elements."
    texts = spellings(of) + [s.text for s in secrets(of)] + [s.text.upper() for s in secrets(of)]
    days = date_spellings(of.birth) + date_spellings(of.studies[0])
    text = draw(st.sampled_from(texts) | st.sampled_from(days))
    text = draw(st.sampled_from(["{}", "Chest {} lung", "x{}1"])).format(text)
    tag = draw(st.sampled_from(TAGS) | st.sampled_from([0x00091001, 0x00291008, 0x00107777]))
    usual = DicomDictionary.get(tag, ("LO",))[0][:2]
    vr = draw(
        st.just(usual)
        | st.sampled_from(sorted(LONG_VRS | set(NUMBERS) | {"LO", "CS", "PN", "DA", "UN", "LT"}))
    )
    data = draw(st.sampled_from([of.codec, str.encode]))(text)
    value: object = data.ljust(-(-len(data) // 8) * 8) if vr in NUMBERS or vr[0] == "O" else data
    value = [{0x00104000: ("LT", data)}] if vr == "SQ" else value
    elements = {tag: (vr, value)}
    place = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {vr} {text!r}"
    if tag >> 16 == 2:
        return place, {}, elements
    for outer in draw(st.lists(st.sampled_from(SEQUENCES) | st.just(0x00091010), max_size=3)):
        elements = {outer: ("SQ", [elements])}
        place = f"({outer >> 16:04X},{outer & 0xFFFF:04X}) > {place}"
    return place, elements, {}


@settings(  # the places are told as they are; to look for smaller ones would take minutes
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(data=st.data())
def test_identity_anywhere_is_gone_or_the_file_is_held(data):
    of = data.draw(patients())
    with tempfile.TemporaryDirectory() as folder:
        planter = Planter(Path(folder) / "in", 0)
        planter.all.people = {"A": of}
        planter.ct("plain", "A")
        for place, elements, meta in data.draw(st.lists(placements(of), min_size=3, max_size=6)):
            try:
                planter.ct(place, "A", elements, meta=meta, must="either", pixels=False)
            except struct.error:  # a value longer than its VR can say
                continue
        result = deidentify(Path(folder) / "in", Path(folder) / "out", secret=SECRET)
        verdict = judge(planter.all, result, Path(folder) / "out")
        leaks = [
            f
            for f in verdict.findings
            if f.category in ("identity", "dates", "uids", "lost", "held", "paths")
        ]
        assert leaks == [], f"\n{verdict}"
