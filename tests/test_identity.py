"Identities: gathered, struck from texts in any spelling, found in any bytes, patients told apart."

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from lungseg.identity import (
    Identity,
    Search,
    clean_text,
    of_name,
    of_number,
    of_place,
    spelled_dates,
    spellings,
    strike,
    vocabulary,
)
from lungseg.pseudonyms import Key, Person, person_of, tell_apart

NAMES = st.text(
    "abcdefghijklmnopqrstuvwxyzäöüßéèñçøåłšžАБВГДЕЖЗИКЛМНабвгдежзиклмнопрстαβγδεζηθλμ",
    min_size=5,
    max_size=12,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)


def plain(text: str) -> str:
    "Letters and digits in lower case, without marks."
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in text if c.isalnum())


@settings(deadline=None)
@given(NAMES, TEXTS, TEXTS, st.sampled_from([str.upper, str.lower, str.title, lambda s: s]))
def test_a_name_is_struck_wherever_it_stands_however_it_is_written(name, before, after, spelling):
    left = strike(f"{before} {spelling(name)}, {after}", of_name(name))
    words = spellings(name)
    assert words[0] in vocabulary() or not any(w == form for w in left.lower().split() for form in words)


@settings(deadline=None)
@given(TEXTS, NAMES)
def test_striking_never_adds_and_a_second_time_changes_nothing(text, name):
    who = of_name(name)
    for clean in (strike, clean_text):
        left = clean(text, who)
        assert set(plain(left)) <= set(plain(text))
        assert clean(left, who) == left


@settings(deadline=None)
@given(TEXTS.filter(lambda text: "@" not in text and not any(c.isdigit() for c in text)))
def test_text_without_words_of_an_identity_is_retained_as_it_is(text):
    left = strike(text, Identity())
    assert left == text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Müller^Jörg", "MUELLER_JOERG"),
        ("Mueller^Joerg", "Jörg Müller"),
        ("Nuñez^José", "nunez jose"),
        ("O'Brian^Zoë", "zoe o'brian"),
        ("Schmidt-Rottluff^Karla", "KarlaSchmidtRottluff"),
        ("Åkesson^Øyvind", "Aakesson Oeyvind"),
        ("Quirrenbach^Hanna", "scan2_quirrenbach-hanna"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田太郎"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "やまだ"),
        ("Иванова^Мария", "ИВАНОВА МАРИЯ"),
        ("Παπαδοπούλου^Ελένη", "ΕΛΕΝΗ ΠΑΠΑΔΟΠΟΥΛΟΥ"),
    ],
)
def test_other_spellings_orders_cases_and_scripts_are_one_name(name, written):
    assert strike(f"B30f {written}", of_name(name)) in ("B30f", "B30f scan2")


@pytest.mark.parametrize(
    "text", ["12.05.1970", "1970-05-12", "19700512", "12 May 1970", "May 12, 1970", "05/12/70"]
)
def test_dates_go_in_every_spelling(text):
    assert strike(f"thin {text} axial", Identity()) == "thin axial"


@pytest.mark.parametrize(
    "text",
    [
        "syngo CT VA48A",
        "LightSpeed VCT 12HW14.6",
        "B30f",
        "FC13-H",
        "1.0.0.7",
        "HELICAL MODE",
        "GE MEDICAL SYSTEMS",
    ],
)
def test_technical_values_stay(text):
    assert strike(text, of_name("Quirrenbach^Hanna") | of_number("QX-778123")) == text


def test_a_word_of_the_vocabulary_is_not_struck_unless_it_is_a_name_too():
    assert clean_text("Contrast chest", of_name("Contrast^Carla")) == "Contrast chest"
    assert clean_text("Heart, chest", of_name("Heart^Henry")) == "chest"


def naive(data: bytes, patterns: set[bytes]) -> bool:
    return any(p in data.lower() for p in patterns)


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=300), NAMES, st.integers(0, 300), st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"])
)
def test_the_search_finds_what_a_plain_search_finds(noise, name, at, encoding):
    search = Search(of_name(name))
    planted = noise[:at] + b"\0" + name.encode(encoding) + b"\0" + noise[at:]
    known = spellings(name)[0] in vocabulary() or not of_name(name)  # a word that stands for no name
    assert known or (search.find(planted) and naive(planted, search.header.patterns))
    if not naive(noise, search.header.patterns):
        assert not search.find(noise)


@settings(deadline=None)
@given(st.dates())
def test_dates_are_found_as_people_write_them(day):
    search = Search(Identity(dates=frozenset({day})))
    assert all(search.find(b"born " + text.encode() + b".") for text in spelled_dates(day))


def test_chance_does_not_write_names_into_pixels():
    noise = bytes(range(256)) * 2000
    assert not Search(of_name("Ahn^Bo") | of_number("4711") | of_place("Utopingen")).find(noise, "pixels")
    assert Search(of_place("Utopingen")).find(noise + b"Utopingen", "pixels")


# Who is who


def person(**elements) -> Person:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return person_of(ds)


def test_one_patient_in_many_spellings():
    people = [
        person(PatientID=" ab-1", PatientName="Muster^Anna", PatientBirthDate="19500101"),
        person(PatientID="AB-1 ", PatientName="MUSTER^ANNA"),
        person(PatientID="AB-1", PatientName="Neu^Anna", PatientBirthDate="19500101"),
        person(PatientID="ab-1"),
    ]
    assert len(set(tell_apart(dict(enumerate(people))).values())) == 1


def test_patients_without_a_number_or_with_the_same_do_not_become_one():
    people = [
        person(PatientName="Muster^Anna", PatientBirthDate="19500101"),
        person(PatientName="Muster^Anna", PatientBirthDate="19620101"),
        person(PatientName="Beispiel^Bo"),
        person(StudyInstanceUID="1.2.1"),
        person(StudyInstanceUID="1.2.2"),
        person(PatientID="7", PatientName="Muster^Anna", PatientBirthDate="19500101"),
        person(PatientID="7", PatientName="Beispiel^Bo", PatientBirthDate="19620101"),
        person(PatientID="8", IssuerOfPatientID="A"),
        person(PatientID="8", IssuerOfPatientID="B"),
    ]
    told = tell_apart(dict(enumerate(people)))
    assert len(set(told.values())) == len(people)
    pseudonyms = {Key(b"sixteen bytes or more").patient(p) for p in told.values()}
    assert len(pseudonyms) == len(people)


@given(st.permutations(range(6)))
def test_the_order_of_files_does_not_matter(order):
    people = [
        person(PatientID="7", PatientName="Muster^Anna", PatientBirthDate="19500101"),
        person(PatientID="7", PatientName="Beispiel^Bo", PatientBirthDate="19620101"),
        person(PatientID="7", PatientName="Muster^A"),
        person(PatientID="7", PatientName="Beispiel^B"),
        person(PatientID="9", StudyInstanceUID="1.2.3"),
        person(StudyInstanceUID="1.2.3"),
    ]
    told = tell_apart({i: people[i] for i in order})
    assert told == tell_apart(dict(enumerate(people)))
    assert told[0] == told[2] != told[1] == told[3] and told[4] == told[5]
