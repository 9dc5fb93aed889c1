"""A folder of DICOM with invented identities wherever identity hides, and a judge of what is left of them.

`plant` writes the folder and remembers the truth; `judge` reads every byte of a de-identified copy against
that truth. Both know DICOM, and neither knows how lungseg de-identifies. The files are written byte by byte,
because half of them are such that a careful writer would refuse them. Nobody named here exists.
"""

import random
import re
import struct
import unicodedata
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

# ----------------------------------------------------------------------------------------------------------
# Writing: elements as a dictionary from tag to (VR, value), in any transfer syntax
# ----------------------------------------------------------------------------------------------------------

Elements = dict[int, tuple[str, object]]
Codec = Callable[[str], bytes]

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
PIXEL_DATA = 0x7FE00010
STORAGE = "1.2.840.10008.5.1.4.1.1."
CT, ENHANCED_CT, MR, PET = STORAGE + "2", STORAGE + "2.1", STORAGE + "4", STORAGE + "128"
SC, PDF, SR, DOSE_SR = STORAGE + "7", STORAGE + "104.1", STORAGE + "88.11", STORAGE + "88.67"
RTSTRUCT, RTDOSE, SEG, GSPS = STORAGE + "481.3", STORAGE + "481.2", STORAGE + "66.4", STORAGE + "11.1"
DICOMDIR = "1.2.840.10008.1.3.10"

LONG_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "AT": "HH"}


class Undefined(bytes):
    "Items with their delimiters, to be written with undefined length."


def tags(
    **values: object,  # by keyword
) -> Elements:  # by tag, in the VR of the dictionary
    "Elements by their keywords."
    pairs = ((tag_for_keyword(keyword), value) for keyword, value in values.items())
    return {tag: (dictionary_VR(tag)[:2], value) for tag, value in pairs}


def encode_value(
    vr: str,  # decides the bytes of numbers and the padding
    value: object,  # text, number, list of either, bytes, or list of items
    codec: Codec,  # text to bytes
    little: bool,  # byte order
) -> bytes:  # of even length
    "One value, or several, as bytes."
    if isinstance(value, bytes):
        data = value
    elif vr in NUMBERS and not isinstance(value, str):
        numbers = value if isinstance(value, list) else [value]
        pairs = [divmod(n, 0x10000) if vr == "AT" else (n,) for n in numbers]
        data = b"".join(struct.pack("<>"[not little] + NUMBERS[vr], *pair) for pair in pairs)
    else:
        data = codec("\\".join(map(str, value)) if isinstance(value, list) else str(value))
    return data + (b"\0" if vr in ("UI", "OB", "UN") else b" ") * (len(data) % 2)


def encode(
    elements: Elements,  # in any order
    codec: Codec = str.encode,  # text to bytes
    syntax: str = EXPLICIT,  # decides byte order and whether VRs are written
) -> bytes:  # the data set
    "A data set as bytes."
    little, out = syntax != BIG_ENDIAN, []
    order = "<" if little else ">"
    for tag, (vr, value) in sorted(elements.items()):
        head = struct.pack(order + "HH", *divmod(tag, 0x10000))
        if vr == "SQ" and isinstance(value, list):
            value = b"".join(item(encode(one, codec, syntax), order) for one in value)
        data = value if isinstance(value, Undefined) else encode_value(vr, value, codec, little)
        size = 0xFFFFFFFF if isinstance(value, Undefined) else len(data)
        if syntax == IMPLICIT:
            head += struct.pack(order + "I", size)
        elif vr in LONG_VRS:
            head += vr.encode() + struct.pack(order + "HI", 0, size)
        else:
            head += vr.encode() + struct.pack(order + "H", size)
        out.append(head + data)
    return b"".join(out)


def item(
    data: bytes,  # of one item or fragment
    order: str = "<",  # byte order
) -> bytes:  # with its tag and length
    "An item of a sequence, or a fragment of pixels."
    return struct.pack(order + "HHI", 0xFFFE, 0xE000, len(data)) + data


def items(
    *data: bytes,  # of each item
) -> Undefined:  # with the closing delimiter
    "Items of undefined length, as encapsulated pixels and sequences inside UN have them."
    return Undefined(b"".join(map(item, data)) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))


def part10(
    elements: Elements,  # the data set
    codec: Codec = str.encode,  # text to bytes
    *,
    syntax: str = EXPLICIT,  # transfer syntax
    preamble: bytes = bytes(128),  # empty where the file has none
    magic: bytes = b"DICM",  # empty where the file has none
    meta: Elements | None = None,  # added to the file meta information; None: the usual ones
    headless: bool = False,  # without file meta information
    tail: bytes = b"",  # after the data set
) -> bytes:  # the file
    "A whole file."
    data = encode(elements, codec, syntax) + tail
    if syntax == DEFLATED:
        squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = squeeze.compress(data) + squeeze.flush()
    if headless:
        return preamble + magic + data
    usual = tags(FileMetaInformationVersion=b"\0\1", TransferSyntaxUID=syntax)
    usual |= {0x00020002: ("UI", elements[0x00080016][1])} if 0x00080016 in elements else {}
    usual |= {0x00020003: ("UI", elements[0x00080018][1])} if 0x00080018 in elements else {}
    head = encode(usual | tags(ImplementationClassUID="1.2.276.0.7230010.3.0.3.6.7") | (meta or {}))
    return preamble + magic + encode(tags(FileMetaInformationGroupLength=len(head))) + head + data


def korean(
    text: str,  # names, `^` and `=` between the components
) -> bytes:  # ISO 2022 IR 149
    "Text in EUC-KR, with the escape before each run of hangul."
    runs = re.split(r"([^\x00-\x7f]+)", text)
    return b"".join(b"\x1b$)C" * (i % 2) + run.encode("euc_kr") for i, run in enumerate(runs))


def codec(
    name: str,  # of a Python encoding
) -> Codec:
    "Text to bytes; signs that the character set lacks become question marks."
    return lambda text: text.encode(name, "replace")


CHARSETS: dict[str, tuple[list[str], Codec]] = {  # what SpecificCharacterSet says, and how text is written
    "latin": (["ISO_IR 100"], codec("latin-1")),
    "japanese": (["", "ISO 2022 IR 87"], codec("iso2022_jp")),
    "katakana": (["ISO_IR 13"], codec("shift_jis")),
    "korean": (["", "ISO 2022 IR 149"], korean),
    "chinese": (["GB18030"], codec("gb18030")),
    "utf-8": (["ISO_IR 192"], codec("utf-8")),
    "cyrillic": (["ISO_IR 144"], codec("iso8859-5")),
    "greek": (["ISO_IR 126"], codec("iso8859-7")),
    "arabic": (["ISO_IR 127"], codec("iso8859-6")),
    "hebrew": (["ISO_IR 138"], codec("iso8859-8")),
    "missing": ([], codec("latin-1")),
    "wrong": (["ISO_IR 100"], codec("utf-8")),
}

# ----------------------------------------------------------------------------------------------------------
# People
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    "An invented patient, with everything that would tell who it is."

    key: str  # what the verdict calls the patient
    charset: str  # of `CHARSETS`
    name: str  # as PatientName has it, component groups and all
    id: str  # PatientID
    issuer: str  # IssuerOfPatientID
    birth: date
    studies: tuple[date, ...]
    other: dict[str, str]  # kind of identity: the text that betrays it

    @property
    def codec(self) -> Codec:
        return CHARSETS[self.charset][1]

    def parts(self) -> list[str]:
        "Family and given names of all component groups."
        return [part for part in re.split(r"[\^= ]", self.name) if part and not part.endswith(".")]

    def words(self) -> list[str]:
        "The same, and the halves of double names."
        return list(dict.fromkeys(word for part in self.parts() for word in (part, *part.split("-"))))


@dataclass(frozen=True)
class Secret:
    "One text that must not be found, in every spelling."

    owner: str  # key of the person
    kind: str  # name, id, phone, ...
    text: str
    charset: str = "latin"

    @cached_property
    def folds(self) -> tuple[str, ...]:
        "Without case, accents and separators; umlauts as vowels and spelled out; zeros in front or not."
        found = {fold(self.text), fold(self.text.translate(SPELLED_OUT)), fold(self.text).lstrip("0")}
        if self.kind != "name":  # a number without its prefix is still the number
            found |= {run for run in re.findall(r"\d+", fold(self.text)) if len(run) > 7}
        return tuple(f for f in found if len(f) >= (2 if wide(f) else 6 if f.isdigit() else 5))

    @cached_property
    def patterns(self) -> tuple[bytes, ...]:
        "As bytes, in every encoding that is usual for its script and in every case."
        names = ("utf-8", "utf-16-le", "utf-16-be")
        if not self.text.isascii():
            names += ("latin-1", "gb18030", "shift_jis", "euc_jp", "euc_kr", "iso8859-5", "iso8859-6")
            names += ("iso8859-7", "iso8859-8", "cp1251", "cp1253", "cp1255", "cp1256", "iso2022_jp")
        cases = {self.text, self.text.upper(), self.text.lower(), self.text.title()}
        found = {quote(self.text).encode()}
        for text in cases | {unicodedata.normalize("NFD", case) for case in cases}:
            for name in names:
                try:
                    found.add(text.encode(name))
                except UnicodeEncodeError:
                    pass
        return tuple(p for p in found if len(p) >= 4)


SPELLED_OUT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "Ö": "Oe", "Ä": "Ae"}) | {
    ord("Ü"): "Ue",
    ord("Ø"): "Oe",
    ord("Å"): "Aa",
}
PLAIN = str.maketrans("łøđŁØĐıþ", "lodLODit")


def fold(text: str) -> str:  # lower case, letters and digits alone
    "Text as somebody reads it who looks neither at case nor at accents nor at what stands between."
    text = unicodedata.normalize("NFKD", text.translate(PLAIN)).casefold()
    return re.sub(r"[\W_]+|[\u0300-\u036f\u05b0-\u05c7\u064b-\u0655\u3099]+", "", text)


def wide(text: str) -> bool:  # of Chinese, Japanese or Korean signs, where two make a name
    "Whether two signs are much."
    return bool(re.search(r"[\u3040-\u30ff\u3400-\u9fff\u1100-\u11ff\uac00-\ud7af]", text))


def made_up(
    rng: random.Random,
    script: str,  # of `SYLLABLES`
) -> tuple[str, str]:  # family and given name
    "A name that nobody bears."
    heads, tails, given, ends = SYLLABLES[script]
    return rng.choice(heads) + rng.choice(tails), rng.choice(given) + rng.choice(ends)


SYLLABLES = {
    "latin": (
        ["Quärk", "Zibbel", "Flünk", "Mörkel", "Wümmer", "Knörz", "Schnurf", "Gnøff", "Plömp"],
        ["elbein", "owitsch", "enhuber", "aström", "ikowna", "ünder", "ørsen", "aßl"],
        ["Flor", "Ignatz", "Ottok", "Zebul", "Wilmg", "Ädel", "Bröm"],
        ["iberta", "undis", "arina", "önja", "éa", "olfine"],
    ),
    "ascii": (
        ["Grubel", "Plonk", "Wrimp", "Tzorf", "Dringel", "Kwassel"],
        ["hain", "sworth", "erling", "ovich", "strand", "enfels"],
        ["Xaver", "Quent", "Ludm", "Balth", "Fride"],
        ["onius", "ilde", "orina", "uzzo", "aldo"],
    ),
    "polish": (
        ["Żwirk", "Ślimak", "Ćwierk", "Łopusz", "Gžibl"],
        ["owiński", "ęcka", "ałowska", "ůnek"],
        ["Zdzib", "Mściw", "Wszeb"],
        ["ora", "ojka", "óra"],
    ),
    "cyrillic": (
        ["Выдум", "Нибыл", "Сказк", "Фантаз"],
        ["ников", "овский", "юхина", "еев"],
        ["Небыв", "Придум", "Мниз"],
        ["алия", "елла", "ослав"],
    ),
    "greek": (
        ["Ψευδ", "Πλαστ", "Μυθικ"],
        ["όπουλος", "ογιάννης", "ίδης"],
        ["Φανταστ", "Ανυπάρκτ", "Επινό"],
        ["ικός", "ρια", "ήτη"],
    ),
    "arabic": (["وهمي", "خيالي"], ["زعتون", "قلبوش"], ["فرضية", "مصطنع"], ["نون", "بار"]),
    "hebrew": (["בדוי", "מומצא"], ["שקרובסקי", "בלופמן"], ["דמיונ", "המצא"], ["יתה", "אלה"]),
}
SIGNS = {  # signs, readings and romanisation of names that are words for "made up"
    "japanese": (
        [("架空", "かくうの", "Kakuuno"), ("仮想", "かそうだ", "Kasouda"), ("虚構", "きょこう", "Kyokouda")],
        [("試作", "しさくこ", "Shisakuko"), ("見本", "みほんすけ", "Mihonsuke")],
    ),
    "korean": (
        [("가상", "가상", "Gasangssi"), ("허구", "허구", "Heogussi")],
        [("모의인", "모의인", "Mouiin"), ("견본희", "견본희", "Gyeonbonhui")],
    ),
    "chinese": (
        [("虚拟", "", "Xunizhe"), ("杜撰", "", "Duzhuan")],
        [("样本甲", "", "Yangbenjia"), ("假设生", "", "Jiashesheng")],
    ),
}


def person(
    rng: random.Random,
    key: str,
    charset: str,  # of `CHARSETS`
    **given: object,  # fields that are not left to chance
) -> Person:
    "A patient made up from the seed."
    if charset in SIGNS:
        (f, f_read, f_latin), (g, g_read, g_latin) = (rng.choice(SIGNS[charset][i]) for i in (0, 1))
        name = f"{f_latin}^{g_latin}={f}^{g}" + (f"={f_read}^{g_read}" if f_read else "")
    elif charset == "katakana":
        name = rng.choice(["ｶｸｳﾀﾞﾖ", "ｿﾝｻﾞｲｾﾞﾛ"]) + "^" + rng.choice(["ﾀﾒｼﾃﾞｽ", "ﾐﾎﾝﾉｽｹ"])
    else:
        script = charset if charset in SYLLABLES else "polish" if charset == "utf-8" else "latin"
        name = "^".join(made_up(rng, script))
    number = rng.randint(10**9, 10**10 - 1)
    first = date(2024, 2, 29) if key == "A" else date(2009, 1, 1) + timedelta(rng.randint(0, 5500))
    doctor, operator, second, mother = ("^".join(made_up(rng, "ascii")) for _ in range(4))
    town = rng.choice(["Fabelstedt", "Nirgendheim", "Utopingen", "Luftschloss"])
    street = rng.choice(["Schnurfelgasse", "Blimbamweg", "Knotterallee", "Wunderlingpfad"])
    other = {
        "physician": doctor,
        "operator": operator,
        "second operator": second,
        "mother": mother,
        "institution": town,
        "address": street,
        "phone": f"+00 555 {rng.randint(10**7, 10**8 - 1)}",
        "mail": f"post{rng.randint(10**5, 10**6 - 1)}@fabelpost.example",
        "accession": f"ACC{rng.randint(10**8, 10**9 - 1)}",
        "other id": f"{rng.choice('XZ')}-{rng.randint(10**8, 10**9 - 1)}",
        "device": f"SN{rng.randint(10**8, 10**9 - 1)}",
    }
    chosen = {
        "name": name,
        "id": f"QX-{number}",
        "issuer": "",
        "birth": date(1934, 3, 1) + timedelta(rng.randint(0, 15000)),
        "studies": (first, first + timedelta(rng.randint(20, 400))),
        "other": other,
    }
    return Person(key=key, charset=charset, **(chosen | given))


def people(rng: random.Random) -> dict[str, Person]:  # by key
    "The patients: one a script, and the ones that are easily merged or split."
    a = person(rng, "A", "latin")
    family, given = made_up(rng, "latin")
    a = Person(**(vars(a) | {"name": f"{a.name.split('^')[0]}-{family}^{given}^^Dr."}))
    made = {"A": a}
    scripts = ("japanese", "korean", "chinese", "utf-8", "cyrillic", "greek", "arabic", "hebrew")
    for key, charset in zip("BCDEFGHI", scripts, strict=True):
        made[key] = person(rng, key, charset)
    j = person(rng, "J", "missing", id=f"00{rng.randint(10**8, 10**9 - 1)}", issuer="HOSPITAL-1")
    made |= {
        "J": j,
        "K": person(rng, "K", "wrong"),
        "L": person(rng, "L", "latin", name=a.name),  # the name of A, another patient
        "M": person(rng, "M", "latin", id=j.id, issuer="HOSPITAL-2"),  # the id of J, another patient
        "N": person(rng, "N", "latin", id=""),
        "O": person(rng, "O", "latin", id=""),
        "P": person(rng, "P", "latin", name="Zq^Ou", id="12", birth=date(1921, 7, 19)),
        "Q": person(rng, "Q", "katakana"),
    }
    return made


def secrets(of: Person) -> list[Secret]:
    "Everything about a patient that must not be found."
    parts = [word for word in of.words() if len(word) >= 4 or wide(word)]
    names = [Secret(of.key, "name", part, of.charset) for part in parts]
    if not names:  # of a short name only the whole tells
        first, last = of.parts()
        pairs = [f"{first}{s}{last}" for s in ("^", ", ", " ")] + [f"{last}{s}{first}" for s in (" ", "_")]
        names = [Secret(of.key, "name", pair) for pair in pairs]
    ids = [Secret(of.key, "id", of.id)] if len(of.id) > 4 else []
    other = [(kind, part) for kind, text in of.other.items() for part in text.split("^")]
    return names + ids + [Secret(of.key, kind, part) for kind, part in other]


def spellings(of: Person) -> list[str]:  # of the name
    "How people write a name into a text."
    words = of.name.split("=")[0].split("^")[:2]
    family, given = words[0], words[-1]
    plain = "".join(c for c in unicodedata.normalize("NFKD", family) if not unicodedata.combining(c))
    group = of.name.split("=")[1] if "=" in of.name else ""
    written = [
        of.name,
        f"{given} {family}",
        f"{family.upper()}, {given}",
        f"{family}_{given}".lower(),
        f"{family.upper()}{given.upper()}",
        plain.upper(),
        family.translate(SPELLED_OUT),
        f"{given[0]}. {family}",
        family.replace("-", ""),
        f"{given}-{family}".title(),
        f"CT{family}01",
    ]
    return written + ([group, group.replace("^", ""), group.replace("^", " ")] if group else [])


# ----------------------------------------------------------------------------------------------------------
# Dates in texts
# ----------------------------------------------------------------------------------------------------------

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH_NUMBERS = {name: i + 1 for i, name in enumerate(MONTHS)} | {"mai": 5, "okt": 10, "dez": 12, "mär": 3}


def date_spellings(day: date) -> list[str]:
    "A date as people write it."
    formats = ["%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%y", "%d %b %Y", "%d-%b-%Y", "%d%b%Y", "%B %d, %Y"]
    formats += ["%Y.%m.%d", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%y", "%Y%m%d101112", "%d-%m-%Y"]
    asian = f"{day.year}年{day.month}月{day.day}日"
    return [day.strftime(f) for f in formats] + [f"{day.day}.{day.month}.{day.year}", asian]


COMPACT = re.compile(r"(?=((?:18|19|20)\d{6}))")
YEAR_FIRST = re.compile(r"(?<!\d)(\d{4})(?:[-./_ ]|年)(\d{1,2})(?:[-./_ ]|月)(\d{1,2})(?!\d)")
YEAR_LAST = re.compile(r"(?<![\d.])(\d{1,2})([-./_ ])(\d{1,2})\2(\d{4}|\d{2})(?!\d)(?!\.\d)")
DAY_MONTH = re.compile(
    r"(?<!\d)(\d{1,2})(?:st|nd|rd|th)?[-., _]{0,2}([A-Za-zä]{3,9})[-., _]{0,2}(\d{4}|\d{2})(?!\d)"
)
MONTH_DAY = re.compile(r"([A-Za-zä]{3,9})[-., _]{1,2}(\d{1,2})(?:st|nd|rd|th)?,? {0,2}(\d{4})(?!\d)")


def dates_in(text: str) -> set[date]:  # every date that the text could be read as
    "All dates of a text, in any spelling; where day and month could be either, both."
    found = [(m[1][:4], m[1][4:6], m[1][6:]) for m in COMPACT.finditer(text)]
    found += [m.groups() for m in YEAR_FIRST.finditer(text)]
    found += [(m[4], m[a], m[4 - a]) for m in YEAR_LAST.finditer(text) for a in (1, 3)]
    words = [(m[3], m[2], m[1]) for m in DAY_MONTH.finditer(text)]
    words += [(m[3], m[1], m[2]) for m in MONTH_DAY.finditer(text)]
    found += [(y, str(MONTH_NUMBERS.get(m[:3].lower(), 0)), d) for y, m, d in words]
    return {day for y, m, d in found for day in valid(int(y), int(m), int(d))}


def valid(
    year: int,  # four digits or two
    month: int,
    day: int,
) -> list[date]:  # none, one, or one a century
    "The date, if there is such a day."
    years = [year] if year > 99 else [1900 + year, 2000 + year]
    found = []
    for y in years:
        try:
            found.append(date(y, month, day))
        except ValueError:
            pass
    return found


# ----------------------------------------------------------------------------------------------------------
# Harmless descriptions
# ----------------------------------------------------------------------------------------------------------

ROI_NAMES = [
    "Lung_L",
    "Lung_R",
    "GTV-1",
    "SpinalCord",
    "Esophagus",
    "Heart",
    "PTV60_2cm",
    "BODY",
    "zRing_PTV",
]
ROI_NAMES += ["CTVn_ITV", "Lunge links außen", "Poumon gauche"]
HARMLESS = {
    "ascii": """
        Chest 3.0 B30f|Thorax^1_THORAX_ROUTINE (Adult)|LUNG 1.25mm RECON|CT CHEST W/O CONTRAST
        Topogram 0.6 T20f|CHEST/ABD/PELVIS W CON|CT toraks m. kontrast
        PE Protokoll mit KM|LUNG 3.0 B70f|0.625 MM LUNG|plucne 5.0 B50f|REKONSTRUKCJA PLUCNA|HiRes lung
        LUNG iDose 3|LUNG MIP iDose 3|Thorax nativ 1.0 Br64 S3|CT THORAX WITH IV CONTRAST
        CTA PULMONARY EMBOLISM|Recon 2: STANDARD LUNG|AX 5/5 SOFT TISSUE|COR 3x3 MPR|SAG MPR Range[1]
        Abdomen^02_Leber_3Phasen (Erwachsener)|CAP 5.0 I31f 3|ThorRoutine 5.0 B31s|Low Dose 120kVp 30mAs
        WB CT 3.75 thk|CT WB 5.0 HD_FoV|PET WB (AC)|FC51 Lung 0.5mm|Body 5.0 AIDR3D STD|BONE PLUS 0.625
        LIVER PORTAL VENOUS 70s|Scout AP 120 kV|SMARTPREP SERIES|PreMonitoring 10.0 B20f|DE_LungPBV 1.5 D30f
        RT_Thorax_4DCT (Adult)|T=50%, 4D Lung 3.0 B40s|AVE-IP 3.0 Resp|MIP 10/2 LUNGE|KOPF-HALS-THORAX
        TDM THORAX SANS IV|TC TORACE SENZA MDC|TAC DE TORAX CON CONTRASTE|CT HALS/THORAX/BUIK
        THORAX LAAG DOSIS|2.1 Thorax Inspiration|BWK 12 axial 2.0|LUNG SHARP 1.0 EXP|C-A-P 1.5mm ASIR 40
        Venous 2.0 I30f 3 iMAR|CHEST HRCT PRONE|LDCT T1 1.25mm|Mediastinum 5.0 Br40 A3|5MM CHEST STND ASIR
        Recon 3: 1.25MM AXIAL|t1_vibe_fs_tra_p2_bh|Chest without|THORAX VOL. 0.5/0.5""",
    "latin": """
        Thorax Übersicht 1.0|Schädel-Hals-Thorax|TDM thoracique injectée|TÓRAX ALTA RESOLUCIÓN
        Bröstkorg utan kontrast|Lungevindue på 1 mm|Herz ohne Gefäße""",
    "utf-8": "Płuca 1,25 mm|Hrudník nativně|Göğüs BT düşük doz",
    "chinese": "胸部平扫|肺窗 1.0mm",
    "japanese": "胸部単純|肺野条件 1mm",
    "korean": "흉부 저선량",
    "cyrillic": "ОГК натив|Грудная клетка 1.0 мм",
}
HARMLESS = {
    script: [" ".join(text.split()) for text in re.split(r"[|\n]", texts) if text.strip()]
    for script, texts in HARMLESS.items()
}

# ----------------------------------------------------------------------------------------------------------
# Planting
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    "The truth about one planted file."

    path: Path  # below the planted folder
    kind: str  # what is special about it
    owner: str  # key of the patient; empty where nobody can tell
    must: str  # "pass", "hold", or "either" where both are right
    pixels: bool  # whether the pixel bytes must come back unchanged
    harmless: tuple[tuple[tuple[int, ...], str], ...] = ()  # place and text of the descriptions to be kept


@dataclass
class Planted:
    "The planted folder, and the truth about it."

    folder: Path
    people: dict[str, Person]
    sources: list[Source] = field(default_factory=list)
    uids: set[str] = field(default_factory=set)  # all that identify an instance, a series, a study, a frame
    duplicates: set[str] = field(default_factory=set)  # those of them that two files share
    odd: list[str] = field(default_factory=list)  # malformed dates and UIDs

    @cached_property
    def secrets(self) -> list[Secret]:
        "What nobody may find, each text once, though two patients may share it."
        return list({s.text: s for of in reversed(self.people.values()) for s in secrets(of)}.values())


def disc(
    size: int = 32,  # pixels a side
    value: int = 1000,  # stored value inside
) -> np.ndarray:  # uint16
    "A round body in air, without anything that looks like text."
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    return np.where(np.hypot(x, y) < 0.4 * size, value + x, 0).astype("<u2")


def inked(
    text: str,
    size: int = 192,  # pixels a side
) -> np.ndarray:  # uint16
    "The same with white text burned into the corner."
    image = Image.new("L", (size, size))
    for line in range(3):
        ImageDraw.Draw(image).text((4, 4 + 14 * line), text, fill=255)
    return np.where(np.asarray(image) > 127, 3000, disc(size)).astype("<u2")


def sample_frame(
    name: str,  # of one of pydicom's test files
) -> tuple[Elements, str]:  # pixel description and data, transfer syntax
    "Encapsulated pixels, as a real encoder made them."
    ds = dcmread(get_testdata_file(name))
    words = "Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel"
    shape = tags(
        **{k: ds[k].value for k in words.split()}, PhotometricInterpretation=ds.PhotometricInterpretation
    )
    data = Undefined(ds.PixelData + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    return shape | {PIXEL_DATA: ("OB", data)}, str(ds.file_meta.TransferSyntaxUID)


def code(
    value: str,
    scheme: str,
    meaning: str,
    **more: object,  # by keyword
) -> list[Elements]:  # a sequence of one item
    "A coded concept."
    return [tags(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning, **more)]


class Planter:
    "Writes the files one by one, and keeps the truth about them."

    def __init__(self, folder: Path, seed: int):
        self.rng = random.Random(seed)
        self.all = Planted(folder, people(self.rng))
        self.queues = {script: list(texts) for script, texts in HARMLESS.items()}
        self.plain: dict[str, list[dict]] = defaultdict(list)  # the ordinary slices of each patient
        self.studies: dict[tuple, str] = {}
        self.count = 0

    def uid(self) -> str:
        "A UID as a scanner makes it."
        made = f"1.3.12.2.1107.5.99.{self.rng.randint(10**4, 10**5)}.{self.rng.randint(10**20, 10**21)}"
        self.all.uids.add(made)
        return made

    def study_uid(self, *key: object) -> str:
        "The same UID for the same key."
        if key not in self.studies:
            self.studies[key] = self.uid()
        return self.studies[key]

    def description(self, of: Person) -> str:
        "The next harmless description that the patient's character set can write."
        for script in (of.charset, "ascii"):
            if self.queues.get(script):
                return self.queues[script].pop(0)
        return ""

    def identity(self, of: Person, day: date) -> Elements:
        "The modules that say who and when, as a hospital fills them."
        stamp = day.strftime("%Y%m%d")
        has = of.other
        found = tags(
            SpecificCharacterSet=CHARSETS[of.charset][0],
            PatientName=of.name,
            PatientID=of.id,
            PatientBirthDate=of.birth.strftime("%Y%m%d"),
            PatientBirthTime="043217",
            PatientSex=self.rng.choice("FM"),
            PatientAge=f"{(day - of.birth).days // 365:03}Y",
            PatientWeight="71.5",
            OtherPatientIDs=[has["other id"], of.id or has["other id"]],
            OtherPatientNames=[of.name.split("=")[0].upper(), has["mother"]],
            PatientMotherBirthName=has["mother"],
            PatientAddress=f"{has['address']} 17, {has['institution']}",
            PatientTelephoneNumbers=has["phone"],
            PatientTelecomInformation=has["mail"],
            CountryOfResidence=has["institution"],
            ReferringPhysicianName=has["physician"],
            ReferringPhysicianAddress=has["address"],
            ReferringPhysicianTelephoneNumbers=has["phone"],
            PerformingPhysicianName=[has["physician"], has["operator"]],
            NameOfPhysiciansReadingStudy=has["second operator"],
            OperatorsName=[has["operator"], has["second operator"], "MTRA"],
            InstitutionName=f"Thorax Centre {has['institution']}",
            InstitutionAddress=f"{has['address']} 3, {has['institution']}",
            InstitutionalDepartmentName=f"Radiology CT {has['institution']}",
            StationName=has["device"],
            DeviceSerialNumber=has["device"],
            AccessionNumber=has["accession"],
            StudyDate=stamp,
            SeriesDate=stamp,
            AcquisitionDate=stamp,
            ContentDate=stamp,
            StudyTime="101112.123",
            SeriesTime="1012",
            ContentTime="101213",
            AcquisitionDateTime=f"{stamp}101112.250000+0100",
            TimezoneOffsetFromUTC="+0100",
        )
        return found | (tags(IssuerOfPatientID=of.issuer) if of.issuer else {})

    def image(self, pixels: np.ndarray | None = None, **more: object) -> Elements:
        "The pixels of a CT slice and what describes them."
        pixels = disc() if pixels is None else pixels
        words = dict(
            Rows=pixels.shape[-2],
            Columns=pixels.shape[-1],
            SamplesPerPixel=1,
            PhotometricInterpretation="MONOCHROME2",
            BitsAllocated=16,
            BitsStored=16,
            HighBit=15,
            PixelRepresentation=0,
            RescaleIntercept="-1024",
            RescaleSlope="1",
            PixelSpacing=["0.7", "0.7"],
            SliceThickness="2.5",
            ImageOrientationPatient=["1", "0", "0", "0", "1", "0"],
            ImagePositionPatient=["-170", "-160", str(2.5 * self.count)],
            KVP="120",
            Manufacturer="SIEMENS",
            ManufacturerModelName="Sensation 16",
            ConvolutionKernel="B30f",
            BodyPartExamined="CHEST",
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            PatientPosition="HFS",
        )
        return tags(**(words | more)) | {PIXEL_DATA: ("OW", pixels.tobytes())}

    def base(self, key: str, study: int = 0, sop_class: str = CT, modality: str = "CT") -> Elements:
        "A data set of a patient without pixels and without descriptions."
        of = self.all.people[key]
        self.count += 1
        return self.identity(of, of.studies[study]) | tags(
            SOPClassUID=sop_class,
            SOPInstanceUID=self.uid(),
            StudyInstanceUID=self.study_uid(key, study),
            SeriesInstanceUID=self.study_uid(key, study, modality),
            FrameOfReferenceUID=self.study_uid(key, study, "frame"),
            Modality=modality,
            StudyID="1",
            SeriesNumber="2",
            InstanceNumber=str(self.count),
        )

    def save(
        self,
        kind: str,  # what is special about it
        key: str,  # of the patient; empty for nobody
        data: bytes | Elements,  # the file, or the data set
        *,
        name: str = "",  # of the file, below the folder
        must: str = "pass",  # "pass", "hold" or "either"
        pixels: bool = True,  # whether the pixel bytes must stay
        harmless: Iterable[tuple[tuple[int, ...], str]] = (),  # descriptions to be kept
        **options: object,  # of `part10`
    ) -> None:
        "Write a file and remember the truth about it."
        if isinstance(data, dict):
            data = part10(data, self.all.people[key].codec if key else str.encode, **options)
        path = self.all.folder / (name or f"in/{key or 'x'}/{len(self.all.sources):03}.dcm")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        truth = Source(path.relative_to(self.all.folder), kind, key, must, pixels, tuple(harmless))
        self.all.sources.append(truth)

    def ct(
        self,
        kind: str,
        key: str,
        more: Elements | None = None,  # beside or instead of the usual elements; VR "" takes one out
        *,
        study: int = 0,  # of the patient's two
        image: Elements | None = None,  # other pixels
        **options: object,  # of `save`
    ) -> Elements:  # as written
        "A CT slice with the next harmless descriptions."
        of, more = self.all.people[key], more or {}
        elements = self.base(key, study) | (image or self.image())
        harmless = []
        if options.get("must", "pass") == "pass":
            for keyword in ("StudyDescription", "SeriesDescription", "ProtocolName"):
                tag = tag_for_keyword(keyword)
                text = "" if tag in more else self.description(of)
                elements |= {tag: ("LO", text)} if text else {}
                harmless += [((tag,), text)] if text else []
        elements = {tag: pair for tag, pair in (elements | more).items() if pair[0]}
        self.save(kind, key, elements, harmless=harmless, **options)
        return elements


def plant(
    folder: Path,  # made if absent
    seed: int = 0,  # decides names, ids and dates
) -> Planted:  # the truth
    "Write the planted set."
    planter = Planter(Path(folder), seed)
    for chapter in (ordinary, texts, places, structures, encodings, derived, screens, broken, strangers):
        chapter(planter)
    left = [text for queue in planter.queues.values() for text in queue]
    assert not left, f"descriptions without a file: {left}"
    return planter.all


def ordinary(p: Planter) -> None:
    "Plain slices of every patient, of two studies, and the odd spellings of one id."
    for key in p.all.people:
        p.plain[key].append(p.ct("plain", key))
    for key in "AFN":
        p.plain[key].append(p.ct("second study", key, study=1))
    of = p.all.people["A"]
    spelled = f" {of.id.lower()} "
    p.ct("id in another spelling", "A", tags(PatientID=spelled), study=1, name="in/other/0001.dcm")
    p.ct("name with a title", "H", tags(PatientName=p.all.people["H"].name + "^^Prof."))
    p.ct("age over 89", "P", tags(PatientAge="094Y", AdditionalPatientHistory="94-year-old, cough"))
    claim = tags(PatientIdentityRemoved="YES", DeidentificationMethod="blanked by hand")
    p.ct("claims to be clean", "L", claim | tags(PatientName="ANON", PatientComments=p.all.people["L"].name))


def texts(p: Planter) -> None:
    "Identity among harmless words, in every spelling, and dates in every spelling."
    fields = ["SeriesDescription", "StudyDescription", "ProtocolName", "ImageComments", "PatientComments"]
    fields += ["AdditionalPatientHistory", "RequestedProcedureDescription", "DerivationDescription"]
    fields += [
        "PerformedProcedureStepDescription",
        "ContrastBolusAgent",
        "StudyComments",
        "AdmittingDiagnosesDescription",
    ]
    fields += ["AcquisitionProtocolDescription"]
    for key in "ABCDFGIJKQ":
        of = p.all.people[key]
        more = {}
        for keyword, spelled in zip(fields, spellings(of), strict=False):
            more |= tags(**{keyword: f"Chest 3.0 B30f {spelled} lung"})
        p.ct("name in descriptions", key, more)
    for key in "EC":
        of, day = p.all.people[key], p.all.people[key].studies[0]
        more = {}
        for i, spelled in enumerate(date_spellings(day)):
            words = f"Chest {spelled} lung" if i % 2 else f"prior CT of {spelled}"
            tag = tag_for_keyword(fields[i]) if i < len(fields) else 0x00324000 + i
            more[tag] = ("LT", words)
        birth = date_spellings(of.birth)
        more |= tags(
            AcquisitionComments=f"born {birth[2]}", FrameComments=f"* {birth[3]}", PatientState=birth[0]
        )
        p.ct("dates in descriptions", key, more)
    of, has = p.all.people["H"], p.all.people["H"].other
    more = tags(
        StudyDescription=f"Thorax {of.id} ({has['accession']})",
        SeriesDescription=f"Lung for {has['physician'].replace('^', ', ')}",
        ProtocolName=f"{has['institution']}_Chest_Routine",
        ImageComments=f"call {has['phone'].replace(' ', '')} or {has['mail']}",
        PatientComments=f"lives {has['address'].upper()}; MRN{of.id.replace('-', ' ')}; {has['device']}",
        AcquisitionComments=f"{' '.join(reversed(has['operator'].upper().split('^')))} at work",
        AdditionalPatientHistory=f"see {p.plain['H'][0][0x0020000D][1]}, {has['other id'].replace('-', '')}",
    )
    p.ct("other identity in descriptions", "H", more)
    uid = p.plain["L"][0][0x0020000D][1]
    p.ct("UIDs in texts", "L", tags(ImageComments=f"copy of {uid}", DerivationDescription=f"UID={uid};"))
    other = p.all.people["A"].name.split("^")[0]
    p.ct("another patient's name", "M", tags(SeriesDescription=f"Lung (like {other})", PatientComments=other))
    long = "harmless words about nothing " * 300
    p.ct(
        "long text",
        "O",
        tags(TextValue=long + p.all.people["O"].parts()[0] + long, SeriesDescription="x" * 90),
    )
    name = unicodedata.normalize("NFD", p.all.people["E"].name.replace("^", "\u200b "))
    p.ct(
        "decomposed letters",
        "E",
        tags(SeriesDescription=f"Lung {name}", StudyDescription=f"CT {name.upper()}"),
    )
    full = "".join(chr(ord(c) + 0xFEE0) if "!" < c < "~" else c for c in p.all.people["B"].parts()[0])
    p.ct("full-width letters", "B", tags(SeriesDescription=f"Lung {full}", ImageComments=f"{full} sama"))


def places(p: Planter) -> None:
    "Identity in every kind of place."
    of = p.all.people["A"]
    family, given, stamp = of.parts()[0], of.parts()[1], of.studies[0].strftime("%Y%m%d")
    born, raw, has = of.birth.strftime("%Y%m%d"), of.codec(of.name), of.other
    wide_bytes = family.encode("utf-16-le")
    private = {
        0x00090010: ("LO", "SOMEBODY 1.0"),
        0x00091001: ("LO", family),
        0x00091002: ("SQ", [tags(PatientName=of.name) | {0x00091003: ("UN", raw)}]),
        0x00091004: ("OB", b"\x01\x02" + raw + bytes(7) + wide_bytes),
        0x00091005: ("PN", of.name),
        0x00091006: ("DA", stamp),
        0x00290010: ("LO", f"made for {family}"),
        0x00291010: ("UN", b"SV10\4\3\2\1" + of.id.encode() + bytes(32)),
        0x00291011: ("UN", items(encode({0x00100010: ("PN", of.name)}, of.codec, IMPLICIT))),
        0x00111001: ("LO", given),  # no creator
        0x00091007: ("UI", p.plain["A"][0][0x00080018][1]),
    }
    p.ct("private groups", "A", private)
    inner: Elements = tags(PatientName=of.name, PatientBirthDate=born, AccessionNumber=has["accession"])
    for keyword in (
        "ContentSequence",
        "ReferencedStudySequence",
        "AnatomicRegionSequence",
        "DerivationCodeSequence",
    ):
        text = tags(CodeMeaning=f"Chest {family}", TextValue=f"{given}, {of.id}", ContentDate=stamp)
        inner = tags(**{keyword: [inner | text]}) | tags(OperatorsName=has["operator"])
    p.ct(
        "nested five deep", "A", tags(SourceImageSequence=[inner]) | tags(AcquisitionContextSequence=[inner])
    )
    original = tags(
        OriginalAttributesSequence=[
            tags(
                ModifiedAttributesSequence=[tags(PatientName=of.name, PatientID=of.id, StudyDate=stamp)],
                AttributeModificationDateTime=f"{stamp}120000",
                ModifyingSystem=has["device"],
                SourceOfPreviousValues=has["institution"],
                ReasonForTheAttributeModification="COERCE",
            )
        ]
    )
    p.ct("OriginalAttributesSequence", "A", original)
    old = p.plain["A"][0]
    referenced = tags(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=old[0x00080018][1])
    requests = tags(
        RequestAttributesSequence=[
            tags(
                RequestedProcedureID=has["accession"][:16],
                ScheduledProcedureStepID=of.id[:16],
                ScheduledProcedureStepDescription=f"Thorax {family}",
                RequestedProcedureDescription="CT Thorax",
                ReasonForTheRequestedProcedure=f"{given} coughs since {born}",
                AccessionNumber=has["accession"],
            )
        ],
        ReferencedPatientSequence=[referenced | tags(PatientID=of.id)],
        ReferencedStudySequence=[tags(ReferencedSOPInstanceUID=old[0x0020000D][1], ReferencedSOPClassUID=CT)],
        ReferencedImageSequence=[referenced],
        PersonIdentificationCodeSequence=code(of.id, "99LOCAL", of.name),
        OtherPatientIDsSequence=[tags(PatientID=has["other id"], IssuerOfPatientID=has["institution"])],
        ProcedureCodeSequence=code("THX", "99LOCAL", f"Thorax {family}"),
        AnatomicRegionSequence=code("39607008", "SCT", "Lung", ContextUID="1.2.840.10008.6.1.2"),
    )
    p.ct("requests and references", "A", requests)
    meta = tags(
        SourceApplicationEntityTitle=has["device"],
        SendingApplicationEntityTitle=has["institution"][:16],
        ReceivingApplicationEntityTitle=family[:16],
        ImplementationVersionName=given[:16],
        PrivateInformationCreatorUID=p.uid(),
        PrivateInformation=raw,
    )
    p.ct("file meta", "L", meta=meta)
    p.ct("preamble", "L", preamble=(b"II*\0" + p.all.people["L"].name.encode()).ljust(128, b"\0"))
    name = p.all.people["N"].name.encode()
    p.ct("bytes after the data set", "N", tail=b"\xfc\xff\xfc\xff??" + name, must="either")
    p.ct("text after the data set", "N", tail=b"\n\n" + name + b"\n" * 9, must="either")
    p.ct("DataSetTrailingPadding", "N", {0xFFFCFFFC: ("OB", name)})
    lengths = {g << 16: ("UL", 0x1234) for g in (0x0008, 0x0010, 0x0020)} | {0x00080001: ("UL", 99999)}
    p.ct("group lengths", "N", lengths)
    overlay = {
        0x60000010: ("US", 8),
        0x60000011: ("US", 8),
        0x60000022: ("LO", f"ROI {p.all.people['O'].parts()[0]}"),
        0x60000040: ("CS", "G"),
        0x60000050: ("SS", [1, 1]),
        0x60000100: ("US", 1),
        0x60000102: ("US", 0),
        0x60001500: ("LO", p.all.people["O"].name),
        0x60003000: ("OW", p.all.people["O"].name.encode("latin-1", "replace").ljust(64)),
        0x60020022: ("LO", p.all.people["O"].other["mail"]),
    }
    p.ct("overlays", "O", overlay)
    curve = {
        0x50000005: ("US", 2),
        0x50000010: ("US", 4),
        0x50000022: ("LO", f"ECG of {p.all.people['O'].parts()[0]}"),
        0x50000030: ("SH", p.all.people["O"].other["accession"]),
        0x50003000: ("OW", p.all.people["O"].name.encode("latin-1", "replace").ljust(64)),
        0x50002500: ("LO", p.all.people["O"].other["phone"]),
    }
    p.ct("curves", "O", curve)
    icon = tags(Rows=16, Columns=16, BitsAllocated=8, PatientName=of.name) | {
        PIXEL_DATA: ("OB", raw.ljust(256))
    }
    p.ct("icon image", "A", tags(IconImageSequence=[icon]))
    unknown = {tag: ("UN", encode_value("PN", text, of.codec, True)) for tag, text in identity_pairs(of)}
    p.ct("known elements as UN", "A", unknown | {0x0008103E: ("UN", of.codec(f"Lung {family} "))})
    hidden = {
        0x00081140: ("UN", items(encode(tags(PatientName=of.name, PatientID=of.id), of.codec, IMPLICIT)))
    }
    hidden |= {0x00400275: ("UN", items(encode(requests, of.codec, IMPLICIT)))}
    p.ct("sequences as UN", "A", hidden)
    wrong = {tag: ("LO", text) for tag, text in identity_pairs(of)} | {0x00080020: ("LO", stamp)}
    wrong |= {0x00080060: ("CS", "CT"), 0x00081030: ("PN", of.name), 0x0008103E: ("DA", stamp)}
    p.ct("wrong VRs", "A", wrong | {0x00181030: ("UT", f"{family} {born}")})
    retired = tags(
        InsurancePlanIdentification=of.id,
        InterpretationAuthor=has["physician"],
        InterpretationText=f"Findings of {of.name.replace('^', ' ')}",
        InterpretationRecorder=has["operator"],
        IdentifyingComments=f"{given} {family}",
        StudyIDIssuer=has["institution"],
        AdmissionID=has["accession"],
        IssuerOfAdmissionID=has["institution"],
        ReasonForStudy=f"{family} fell on {stamp}",
        ScheduledStudyLocation=has["institution"],
        RequestingPhysician=has["physician"],
        PatientInsurancePlanCodeSequence=code(of.id, "99LOCAL", family),
        MilitaryRank=family,
        EthnicGroup=given[:16],
        RegionOfResidence=has["institution"],
        PatientReligiousPreference=f"{given} {family}",
        MedicalAlerts=f"{family} {has['phone']}",
        ResponsiblePerson=has["mother"],
        ResponsibleOrganization=has["institution"],
    )
    p.ct("retired and rare elements", "A", retired)
    public = {
        0x00107777: ("LO", family),
        0x00187777: ("UN", raw),
        0x00287776: ("SH", has["accession"]),
        0x20507770: ("PN", of.name),
        0x77760010: ("LT", f"{of.id} {has['mail']}"),
        0x00087770: ("SQ", [tags(PatientName=of.name, SeriesDescription=family)]),
    }
    p.ct("unknown public tags", "A", public)
    odd = {
        tag_for_keyword("PatientOrientation"): ("CS", [family.upper()[:16], "F"]),
        tag_for_keyword("FilterType"): ("SH", given[:16]),
        tag_for_keyword("RetrieveAETitle"): ("AE", family[:16]),
        tag_for_keyword("AcquisitionNumber"): ("IS", of.id.split("-")[1]),
        tag_for_keyword("ReconstructionDiameter"): ("DS", of.id.split("-")[1]),
        tag_for_keyword("PatientAge"): ("AS", family),
        tag_for_keyword("IrradiationEventUID"): ("UI", f"1.2.276.{of.id.split('-')[1]}.{stamp}"),
        tag_for_keyword("RetrieveURL"): ("UR", f"https://pacs.example/{quote(family)}?id={of.id}"),
        tag_for_keyword("LongCodeValue"): ("UC", f"{family}/{given}"),
        tag_for_keyword("TableHeight"): ("DS", born),
        tag_for_keyword("ExposureTime"): ("IS", stamp),
        tag_for_keyword("ScheduledProcedureStepStartDateTime"): ("DT", f"{stamp}1011"),
    }
    p.ct("values in every VR of text", "A", odd)
    odd = {
        tag_for_keyword("FrameIncrementPointer"): ("AT", has["accession"].encode()),
        tag_for_keyword("RedPaletteColorLookupTableData"): ("OW", raw),
        tag_for_keyword("PixelPaddingValue"): ("US", has["accession"].encode()[:12]),
        tag_for_keyword("SpectroscopyData"): ("OF", raw.ljust(64)),
        tag_for_keyword("StartCumulativeTimeWeight"): ("FD", has["mail"].encode().ljust(32)),
    }
    p.ct("values in every VR of numbers", "A", odd, must="either")
    blobs = tags(
        ICCProfile=b"\0\0\2\0ADBE" + raw,
        EncapsulatedDocument=b"%PDF-1.4 " + raw,
        LUTData=raw,
        DigitalSignaturesSequence=[
            tags(MACIDNumber=1, CertificateOfSigner=raw, DigitalSignatureDateTime=stamp)
        ],
        EncryptedAttributesSequence=[tags(EncryptedContent=raw)],
        WaveformSequence=[tags(ChannelLabel=family[:16], WaveformData=raw)],
    )
    p.ct("binary elements", "A", blobs, must="either")
    labels = tags(
        WindowCenter="40",
        WindowWidth="400",
        WindowCenterWidthExplanation=f"as {family} likes it",
        ModalityLUTSequence=[tags(LUTExplanation=given, ModalityLUTType="HU")],
        ContentLabel=given.upper()[:16],
        ContentDescription=f"Lung of {given}",
        AcquisitionDeviceProcessingDescription=family,
        ReferringPhysicianIdentificationSequence=[
            tags(InstitutionName=has["institution"], PersonAddress=has["address"])
        ],
        SeriesDescriptionCodeSequence=code("LUNG", "99LOCAL", f"Lung {family}"),
        GraphicAnnotationSequence=[tags(TextObjectSequence=[tags(UnformattedTextValue=f"{family} {born}")])],
        PerformedProtocolCodeSequence=[
            tags(CodeValue="CHEST", CodeMeaning=given) | {0x00090010: ("LO", family)}
        ],
        DeviceUID=p.uid(),
        UniqueDeviceIdentifier=has["device"],
        TextString=f"{given} {family}",
        ReasonForVisit=f"{family} since {born}",
        ClinicalTrialSubjectID=of.id,
        ClinicalTrialSponsorName=has["institution"],
        WorklistLabel=family,
        HangingProtocolCreator=has["physician"],
        RadiopharmaceuticalInformationSequence=[tags(Radiopharmaceutical=f"FDG for {given}")],
        FrameOfInterestDescription=f"{family}'s lung",
    )
    p.ct("labels", "A", labels)
    late = encode(tags(PatientName=of.name, PatientComments=f"{given} {family}"), of.codec)
    p.ct("elements after the pixels", "A", tail=late, must="either")
    p.ct("two files in one", "A", tail=part10(p.base("A"), of.codec), must="either")
    groups = {
        0x00000600: ("AE", family[:16]),
        0x00041130: ("CS", given[:16].upper()),
        0x00020016: ("AE", given),
    }
    p.ct("groups that belong elsewhere", "A", groups, must="either")
    p.ct("identity as character set", "A", tags(SpecificCharacterSet=family.upper()[:16]), must="either")
    p.ct("private object", "A", tags(SOPClassUID="1.3.12.2.1107.5.9.1"), must="either")
    p.ct("no such VR", "A", {0x00104000: ("XX", f"{family} {born}")}, must="either")
    p.ct(
        "several names in one value",
        "A",
        tags(OperatorsName=[of.name, has["operator"]], PatientName=[of.name] * 2),
    )


def identity_pairs(of: Person) -> list[tuple[int, str]]:  # tag and text
    "The elements that say who the patient is."
    words = dict(PatientName=of.name, PatientID=of.id, PatientBirthDate=of.birth.strftime("%Y%m%d"))
    words |= dict(AccessionNumber=of.other["accession"], PatientAddress=of.other["address"])
    return [(tag_for_keyword(keyword), text) for keyword, text in words.items()]


def structures(p: Planter) -> None:
    "What is usually kept, dates, UIDs and codes."
    fields = (
        "Manufacturer ManufacturerModelName ConvolutionKernel ScanOptions BodyPartExamined SoftwareVersions"
    )
    fields += (
        " FilterType ContrastBolusAgent RescaleType PatientPosition ContrastBolusRoute GantryID Laterality"
    )
    fields += (
        " AcquisitionType ViewPosition PhotometricInterpretation LossyImageCompressionMethod SequenceName"
    )
    fields += (
        " PositionReferenceIndicator FieldOfViewShape ExposureModulationType DetectorType PulseSequenceName"
    )
    words = fields.split()
    for key, chosen in (("A", words[:9]), ("E", words[9:16]), ("D", words[16:])):
        family, given = p.all.people[key].parts()[:2]
        more = tags(**{keyword: f"{family} {i}"[:16] for i, keyword in enumerate(chosen)})
        more |= tags(ImageType=["ORIGINAL", "PRIMARY", given.upper(), family.upper()])
        more |= tags(AnatomicRegionSequence=code("39607008", "SCT", f"Lung of {family}"))
        p.ct("technical attributes", key, more, must="either" if key == "D" else "pass")
    of = p.all.people["F"]
    day = of.studies[0].strftime("%Y%m%d")
    zoned = tags(
        AcquisitionDateTime=f"{day}235959.999999+1400",
        FrameAcquisitionDateTime=f"{day}0000-0330",
        InstanceCreationDate=day,
        InstanceCreationTime="235959.123456",
        PerformedProcedureStepStartDate=day,
        PerformedProcedureStepEndDateTime=f"{day}10",
        DateOfLastCalibration=[day, (of.studies[0] - timedelta(9)).strftime("%Y%m%d")],
        RadiopharmaceuticalInformationSequence=[tags(RadiopharmaceuticalStartDateTime=f"{day}093000.00")],
        DateOfSecondaryCapture=day,
        ScheduledProcedureStepStartDate=day,
        LastMenstrualDate=day,
    )
    p.ct("dates with fractions and zones", "F", zoned)
    odd = [of.studies[0].strftime(f) for f in ("%Y.%m.%d", "%d/%m/%Y", "%Y%m%d", "%Y-%m-%dT10:00")]
    p.all.odd += ["20240230", "31021999", "19991341"]
    malformed = tags(
        StudyDate=odd[0], SeriesDate=odd[1], AcquisitionDate=f" {odd[2]} ", ContentDate="20240230"
    )
    malformed |= tags(
        AcquisitionDateTime=odd[3], InstanceCreationDate="31021999", DateOfLastCalibration="19991341"
    )
    p.ct("malformed dates", "F", malformed, must="either")
    p.ct("date ranges", "F", tags(ScheduledProcedureStepStartDate=f"{day}-{day}", StudyDate=day))
    coded = tags(
        AnatomicRegionSequence=code("39607008", "SCT", "Lung", CodingSchemeUID="2.16.840.1.113883.6.96"),
        ViewCodeSequence=code(
            "399067008", "SCT", "Lateral", MappingResource="DCMR", ContextIdentifier="4010"
        ),
        AcquisitionDeviceProcessingCode="99",
        ReferencedImageSequence=[
            tags(
                ReferencedSOPClassUID=CT,
                ReferencedSOPInstanceUID=p.plain["F"][0][0x00080018][1],
                PurposeOfReferenceCodeSequence=code("121311", "DCM", "Localizer"),
            )
        ],
        CodingSchemeIdentificationSequence=[
            tags(
                CodingSchemeDesignator="DCM", CodingSchemeUID="1.2.840.10008.2.16.4", CodingSchemeName="DICOM"
            )
        ],
    )
    p.ct("standard UIDs and codes", "F", coded)
    same = p.uid()
    p.all.duplicates.add(same)
    for _ in range(2):
        p.ct("duplicate UIDs", "G", tags(SOPInstanceUID=same), must="either")
    gone = {0x00080018: ("", ""), 0x0020000E: ("", "")}
    p.ct("missing UIDs", "G", gone, must="either")
    p.ct("empty UIDs", "G", tags(SOPInstanceUID="", StudyInstanceUID="", SeriesInstanceUID=""), must="either")
    p.all.odd += ["1.2.840.00099.04711.x", "UID of Nobody 4711"]
    p.ct(
        "malformed UIDs",
        "G",
        tags(SOPInstanceUID=p.all.odd[-2], StudyInstanceUID=p.all.odd[-1]),
        must="either",
    )
    several = [p.plain["G"][0][0x00080018][1], p.plain["G"][0][0x0020000E][1]]
    p.ct("several UIDs in one value", "G", {0x00083010: ("UI", several)})
    item_charset = tags(SpecificCharacterSet="ISO_IR 192", PatientName=b"", CodeMeaning="Lung")
    item_charset[0x00100010] = ("PN", p.all.people["G"].name.encode())
    p.ct("another character set inside", "G", tags(SourceImageSequence=[item_charset]))


def encodings(p: Planter) -> None:
    "Every transfer syntax, and files without a proper head."
    p.ct("implicit", "H", syntax=IMPLICIT)
    p.ct("deflated", "H", syntax=DEFLATED)
    swapped = p.image() | {PIXEL_DATA: ("OW", disc().astype(">u2").tobytes())}
    p.ct("big endian", "H", image=swapped, syntax=BIG_ENDIAN)
    p.ct("no preamble", "I", preamble=b"", magic=b"", must="either")
    p.ct("no file meta", "I", syntax=IMPLICIT, headless=True, preamble=b"", magic=b"", must="either")
    p.ct("no file meta but a preamble", "I", headless=True, must="either")
    names = (
        "MR_small_RLE.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "JPGExtended.dcm",
        "JPEG2000.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    )
    for name in names:
        pixels, syntax = sample_frame(name)
        described = {tag: pair for tag, pair in p.image().items() if tag != PIXEL_DATA}
        p.ct(
            f"encapsulated, {name.split('.')[0]}", "M", image=described | pixels, syntax=syntax, must="either"
        )
    pixels, syntax = sample_frame("JPGExtended.dcm")
    whole = bytes(pixels[PIXEL_DATA][1])
    cut = whole.index(b"\xff\xd8") + 2
    note = b"exposed " + p.all.people["M"].name.encode("latin-1")
    comment = b"\xff\xfe" + struct.pack(">H", len(note) + 2) + note
    frame = whole[cut - 2 : cut] + comment + whole[cut:-8]
    pixels[PIXEL_DATA] = ("OB", items(b"", frame + b"\0" * (len(frame) % 2)))
    p.ct("JPEG comment", "M", image=p.image() | pixels, syntax=syntax, must="either", pixels=False)
    surplus = p.image() | {
        PIXEL_DATA: ("OW", disc().tobytes() + p.all.people["M"].name.encode("latin-1").ljust(64))
    }
    p.ct("surplus pixel bytes", "M", image=surplus, must="either", pixels=False)
    short = part10(p.base("M") | p.image(), codec("latin-1"))
    p.save("truncated pixels", "M", short[:-500], must="either", pixels=False)
    p.save("truncated header", "M", short[:900], must="either", pixels=False)


def derived(p: Planter) -> None:
    "Objects that point to the slices: structure sets, segmentations, multi-frame and other modalities."
    of = p.all.people["A"]
    slices = [s for s in p.plain["A"] if s[0x0020000D][1] == p.plain["A"][0][0x0020000D][1]]
    slices += [p.ct("slice that others point to", "A") for _ in range(2)]
    images = [tags(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=s[0x00080018][1]) for s in slices]
    frame, study, series = (slices[0][tag][1] for tag in (0x00200052, 0x0020000D, 0x0020000E))
    rois = [
        tags(
            ROINumber=str(i + 1),
            ReferencedFrameOfReferenceUID=frame,
            ROIName=name,
            ROIDescription=of.parts()[0] if i == 3 else "",
            ROIGenerationAlgorithm="MANUAL",
        )
        for i, name in enumerate([*ROI_NAMES, f"Lung {of.parts()[0]}"])
    ]
    contours = [
        tags(ContourImageSequence=[i], ContourGeometricType="POINT", ContourData=["1", "2", "3"])
        for i in images
    ]
    structure = p.base("A", 0, RTSTRUCT, "RTSTRUCT") | tags(
        StructureSetLabel="RTSS",
        StructureSetName=f"Plan {of.parts()[1]}",
        StructureSetDate=of.studies[0].strftime("%Y%m%d"),
        ApprovalStatus="APPROVED",
        ReviewerName=of.other["physician"],
        ReviewDate=of.studies[0].strftime("%Y%m%d"),
        StructureSetROISequence=rois,
        ROIContourSequence=[tags(ReferencedROINumber="1", ContourSequence=contours)],
        RTROIObservationsSequence=[
            tags(
                ObservationNumber="1",
                ReferencedROINumber="1",
                ROIInterpreter=of.other["operator"],
                ROIObservationLabel=of.parts()[0][:16],
            )
        ],
        ReferencedFrameOfReferenceSequence=[
            tags(
                FrameOfReferenceUID=frame,
                RTReferencedStudySequence=[
                    tags(
                        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
                        ReferencedSOPInstanceUID=study,
                        RTReferencedSeriesSequence=[
                            tags(SeriesInstanceUID=series, ContourImageSequence=images)
                        ],
                    )
                ],
            )
        ],
    )
    roi_names = [((0x30060020, i, 0x30060026), name) for i, name in enumerate(ROI_NAMES)]
    p.save("RTSTRUCT", "A", structure, name="Structures/A.dcm", harmless=roi_names)
    lung = dict(
        SegmentNumber=1,
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyTypeCodeSequence=code("39607008", "SCT", "Lung"),
    )
    segmentation = (
        p.base("A", 0, SEG, "SEG")
        | p.image(np.zeros((2, 32, 32), "u1"))
        | tags(
            SegmentSequence=[
                tags(SegmentLabel=f"Lung {of.parts()[0]}", SegmentDescription="both lungs", **lung)
            ],
            ContentCreatorName=of.other["physician"],
            ContentLabel="SEGMENTATION",
            NumberOfFrames="2",
            ReferencedSeriesSequence=[tags(SeriesInstanceUID=series, ReferencedInstanceSequence=images)],
            SharedFunctionalGroupsSequence=[tags(DerivationImageSequence=[tags(SourceImageSequence=images)])],
            PerFrameFunctionalGroupsSequence=[
                tags(
                    DerivationImageSequence=[
                        tags(
                            SourceImageSequence=[image],
                            DerivationCodeSequence=code("113076", "DCM", "Segmentation"),
                        )
                    ],
                    FrameContentSequence=[tags(DimensionIndexValues=[1, i + 1])],
                )
                for i, image in enumerate(images[:2])
            ],
        )
    )
    segmentation |= tags(BitsAllocated=8, BitsStored=8, HighBit=7)
    segmentation[PIXEL_DATA] = ("OB", bytes(2048))
    p.save("SEG", "A", segmentation, name="Segmentations/A.dcm")
    of, day = p.all.people["E"], p.all.people["E"].studies[0].strftime("%Y%m%d")
    multi = p.base("E", 0, ENHANCED_CT, "CT") | p.image(np.stack([disc(), disc()]), NumberOfFrames="2")
    dimension = p.uid()
    multi |= tags(
        DimensionOrganizationSequence=[tags(DimensionOrganizationUID=dimension)],
        DimensionIndexSequence=[tags(DimensionOrganizationUID=dimension, DimensionDescriptionLabel="z")],
        SharedFunctionalGroupsSequence=[
            tags(
                ReferencedImageSequence=[
                    tags(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=p.plain["E"][0][0x00080018][1])
                ]
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            tags(
                FrameContentSequence=[
                    tags(
                        FrameAcquisitionDateTime=f"{day}1011",
                        FrameComments=f"{of.parts()[0]} {i}",
                        FrameLabel=of.parts()[1],
                    )
                ],
                IrradiationEventIdentificationSequence=[tags(IrradiationEventUID=p.uid())],
            )
            for i in range(2)
        ],
        ContributingEquipmentSequence=[
            tags(
                InstitutionName=of.other["institution"],
                OperatorsName=of.other["operator"],
                ContributionDateTime=day,
            )
        ],
    )
    p.save("enhanced CT", "E", multi)
    for kind, sop_class, modality in (("MR", MR, "MR"), ("PET", PET, "PT"), ("RTDOSE", RTDOSE, "RTDOSE")):
        p.save(kind, "F", p.base("F", 0, sop_class, modality) | p.image() | tags(SeriesDescription=""))


def screens(p: Planter) -> None:
    "Pictures and papers that show the patient, all to be held back."
    of = p.all.people["K"]
    text = f"{of.parts()[0]} {of.id}"
    capture = p.base("K", 0, SC, "OT") | p.image(disc(64))
    p.save("secondary capture", "K", capture | tags(ConversionType="WSD"), must="hold")
    burned = p.base("K") | p.image(disc(64), BurnedInAnnotation="YES")
    p.save("BurnedInAnnotation YES", "K", burned, must="hold")
    for said in ({}, {"BurnedInAnnotation": "NO"}):
        kind = "burned-in pixels" + (", denied" if said else "")
        p.save(kind, "K", p.base("K") | p.image(inked(text), **said), must="hold")
    screen = p.base("K") | p.image(disc(64), ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    p.save("screen save", "K", screen, must="hold")
    page = p.base("K") | p.image(inked(text), ImageType=["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"])
    p.save("dose page", "K", page | tags(SeriesDescription="Patient Protocol"), must="hold")
    pdf = tags(MIMETypeOfEncapsulatedDocument="application/pdf", DocumentTitle=of.name)
    pdf |= {0x00420011: ("OB", b"%PDF-1.4\n(" + of.name.encode() + b")\n%%EOF ")}
    p.save("encapsulated PDF", "K", p.base("K", 0, PDF, "DOC") | pdf, must="hold")
    content = tags(
        ValueType="TEXT", TextValue=f"{of.name.replace('^', ' ')}: no nodule", RelationshipType="CONTAINS"
    )
    said = tags(ValueType="CONTAINER", ContentSequence=[content], CompletionFlag="COMPLETE")
    p.save("report", "K", p.base("K", 0, SR, "SR") | said, must="hold")
    p.save("dose report", "K", p.base("K", 0, DOSE_SR, "SR") | said, must="hold")
    label = tags(TextObjectSequence=[tags(UnformattedTextValue=text)], GraphicLayer="ONE")
    p.save(
        "presentation state",
        "K",
        p.base("K", 0, GSPS, "PR") | tags(GraphicAnnotationSequence=[label]),
        must="hold",
    )


def broken(p: Planter) -> None:
    "Identity in the names of files and folders, and a directory of it all."
    of, second = p.all.people["A"], p.all.people["F"]
    plain = "".join(c for c in unicodedata.normalize("NFKD", of.parts()[0]) if not unicodedata.combining(c))
    p.ct("file name", "A", name=f"{plain.upper()}_{of.id}/{of.studies[0].strftime('%Y-%m-%d')}/{of.id}.dcm")
    p.ct("file name", "F", name=f"{second.name.replace('^', '_')}/CT {second.birth.strftime('%d.%m.%Y')}.ima")
    records = [
        tags(DirectoryRecordType="PATIENT", PatientName=one.name.split("=")[0], PatientID=one.id)
        for one in (of, p.all.people["L"])
    ]
    records += [
        tags(
            DirectoryRecordType="STUDY", StudyDate="20240229", StudyInstanceUID=p.plain["A"][0][0x0020000D][1]
        )
    ]
    directory = tags(
        SOPClassUID=DICOMDIR, SOPInstanceUID=p.uid(), FileSetID="HOSPITAL", DirectoryRecordSequence=records
    )
    data = part10(directory, codec("latin-1"))
    p.save("DICOMDIR", "", data, name="DICOMDIR", must="hold")


def strangers(p: Planter) -> None:
    "Files that are no DICOM at all."
    of = p.all.people["A"]
    text = f"{of.name};{of.id};{of.birth:%d.%m.%Y}\n"
    p.save(
        "AppleDouble", "", b"\0\5\x16\7\0\2\0\0Mac OS X" + text.encode(), name="in/A/._000.dcm", must="hold"
    )
    p.save("zero bytes", "", b"", name="in/A/empty.dcm", must="hold")
    p.save("text", "", text.encode(), name=f"{of.parts()[1]}.txt", must="hold")
    p.save("table", "", text.encode("latin-1"), name="in/patients.csv", must="hold")
    p.save("text called DICOM", "", text.encode() * 20, name="in/A/notes.dcm", must="hold")
    picture = BytesIO()
    Image.fromarray(disc().astype("u1")).save(picture, "PNG")
    p.save("picture", "", picture.getvalue(), name="in/A/screen.png", must="hold")


# ----------------------------------------------------------------------------------------------------------
# Judging
# ----------------------------------------------------------------------------------------------------------

CATEGORIES = {
    "identity": "direct identity in the bytes of an output",
    "dates": "original dates, birth dates anywhere",
    "ages": "birth times, and ages over 89",
    "uids": "original UIDs",
    "references": "references that do not hold",
    "patients": "patients merged or split",
    "intervals": "dates shifted unevenly",
    "pixels": "pixel bytes changed",
    "lost": "files neither written nor held",
    "passed": "files written that should be held",
    "held": "ordinary files held back",
    "standard": "standard UIDs and codes changed",
    "preamble": "preambles that are not zero",
    "paths": "identity in names of files and folders",
    "reports": "identity in reasons, reports and messages",
}
KEPT_CODES = {"CodeValue", "CodingSchemeDesignator", "MappingResource", "ContextIdentifier"}
STRUCTURES = {"RTSTRUCT", "SEG"}  # without their references they are useless


@dataclass(frozen=True)
class Finding:
    "One thing that is wrong."

    category: str  # of `CATEGORIES`
    kind: str  # of the file
    place: str  # in the file
    what: str


@dataclass
class Verdict:
    "What the judge found; prints as a table."

    findings: list[Finding]
    kept: int  # harmless descriptions
    harmless: int  # of so many
    dropped: list[str]  # those that are gone, with their kind of file
    files: tuple[int, int, int]  # planted, written, held

    def count(self, category: str) -> int:
        return sum(f.category == category for f in self.findings)

    @property
    def clean(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{self.files[0]} files planted, {self.files[1]} written, {self.files[2]} held"]
        lines += [f"{self.count(name):5}  {name}: {means}" for name, means in CATEGORIES.items()]
        lines += [f"{self.kept:5}  of {self.harmless} harmless descriptions kept"]
        lines += [f"       gone: {text}" for text in self.dropped]
        for f in sorted(self.findings, key=lambda f: (list(CATEGORIES).index(f.category), f.kind, f.place)):
            lines.append(f"{f.category:10} | {f.kind} | {f.place} | {f.what}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Leaf:
    "One element that is no sequence."

    path: tuple[int, ...]  # tag, item, tag, ... down to the element
    vr: str
    data: bytes  # where the value is no text
    text: str  # decoded, values separated by a backslash

    @property
    def keyword(self) -> str:
        return keyword_for_tag(self.path[-1])

    @property
    def bytes(self) -> bytes:
        "As in the file, if the text is Latin."
        return self.data or self.text.encode("latin-1", "ignore")

    @property
    def place(self) -> str:
        names = [keyword_for_tag(t) or f"({t >> 16:04X},{t & 0xFFFF:04X})" for t in self.path[::2]]
        return " > ".join(names)


def leaves(
    ds: Dataset,
    path: tuple[int, ...] = (),  # of the item that this is
) -> Iterator[Leaf]:  # of any depth, unreadable ones as bytes
    "Every element of a data set."
    for tag in sorted(ds.keys()):
        try:
            element = ds[tag]
            value, vr = element.value, element.VR
        except Exception:  # whatever a broken value may raise, its bytes are searched
            raw = ds.get_item(tag)
            yield Leaf((*path, int(tag)), "UN", bytes(getattr(raw, "value", b"") or b""), "")
            continue
        if vr == "SQ":
            for i, one in enumerate(value):
                yield from leaves(one, (*path, int(tag), i))
        elif isinstance(value, (bytes, bytearray)):
            yield Leaf((*path, int(tag)), vr, bytes(value), "")
        else:
            several = value if element.VM > 1 and not isinstance(value, str) else [value]
            yield Leaf((*path, int(tag)), vr, b"", "\\".join("" if v is None else str(v) for v in several))


@dataclass
class Reading:
    "One file as the judge sees it."

    raw: bytes  # as on disk, and inflated where it is deflated
    ds: Dataset  # empty where it cannot be read
    leaves: list[Leaf]

    @cached_property
    def text(self) -> str:
        return "\n".join(leaf.text for leaf in self.leaves)

    @cached_property
    def dates(self) -> set[date]:
        return dates_in(without_uids(self.raw.decode("latin-1"))) | dates_in(without_uids(self.text))

    def first(self, keyword: str) -> str:
        "The text of an element of the top level."
        tag = tag_for_keyword(keyword)
        return next((leaf.text for leaf in self.leaves if leaf.path == (tag,)), "").strip(" \0")


def without_uids(text: str) -> str:  # whose long digits are no dates
    "Text without the UIDs that stand for a number of 128 bits."
    return re.sub(r"2\.25\.\d{20,}", "", text)


def read(path: Path) -> Reading:
    "Read a file in every way."
    raw = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = dcmread(BytesIO(raw), force=True)
            meta = getattr(ds, "file_meta", None) or Dataset()
            found = [*leaves(meta), *leaves(ds)]
    except Exception:  # not DICOM, or not readable: its bytes are searched all the same
        return Reading(raw, Dataset(), [])
    if meta.get("TransferSyntaxUID") == DEFLATED:
        length = meta.get("FileMetaInformationGroupLength", 0)
        try:
            raw += zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw[144 + length :])
        except zlib.error:
            pass
    return Reading(raw, ds, found)


def search(
    data: bytes,
    text: str,  # decoded already
    known: Iterable[Secret],
) -> list[Secret]:  # those found
    "Every secret in any spelling, in the bytes under any encoding and in the text."
    utf16 = [data[i : len(data) - (len(data) - i) % 2].decode("utf-16-le", "ignore") for i in (0, 1)]
    narrow = [data.decode("utf-8", "ignore"), data.decode("latin-1"), text]
    near = " ".join(fold(without_uids(t)) for t in narrow)
    far = " ".join(map(fold, utf16))
    return [
        secret
        for secret in known
        if any(f in near or (not wide(f) and f in far) for f in secret.folds)
        or any(p in data for p in secret.patterns)
        or (not secret.folds and secret.text.casefold() in text.casefold())
    ]


def judge(
    planted: Planted,
    result: object,  # `files` (source, target), `held` (item, reason); `sources` of items that are no paths
    out_folder: Path,
    report_texts: Iterable[str] = (),  # whatever was printed, logged or reported
) -> Verdict:
    "Compare a de-identified folder with the truth."
    return Judge(planted, result, Path(out_folder), list(report_texts)).verdict()


class Judge:
    "One comparison; a method for each kind of mistake."

    def __init__(self, planted: Planted, result: object, out: Path, reports: list[str]):
        self.planted, self.out, self.reports, self.result = planted, out, reports, result
        self.findings: dict[Finding, None] = {}  # in order, each once
        by_path = {s.path.as_posix(): s for s in planted.sources}
        self.pairs = [
            (by_path[Path(source).resolve().relative_to(planted.folder.resolve()).as_posix()], Path(target))
            for source, target in result.files
        ]
        self.before = {s: read(planted.folder / s.path) for s in planted.sources}
        self.after = {s: read(target) for s, target in self.pairs}
        self.uids = self.map_uids()
        self.shifts = self.day_shifts()
        self.births = {of.birth for of in planted.people.values()}
        stamps = (leaf.text for r in self.before.values() for leaf in r.leaves if leaf.vr in ("DA", "DT"))
        self.days = self.births | dates_in(" ".join(stamps))
        self.days |= {day for of in planted.people.values() for day in of.studies}

    def verdict(self) -> Verdict:
        for source, reading in self.after.items():
            for check in (self.leaks, self.references, self.dates, self.standard, self.pixels):
                check(source, reading)
        self.patients()
        self.coverage()
        self.names()
        wanted = [(s, place, text) for s in self.planted.sources for place, text in s.harmless]
        got = [(s.kind, text, self.at(s, place)) for s, place, text in wanted]
        dropped = [f"{text} ({kind}): {now}" for kind, text, now in got if now != text]
        counts = len(self.planted.sources), len(self.pairs), len(self.result.held)
        return Verdict(list(self.findings), len(wanted) - len(dropped), len(wanted), dropped, counts)

    def find(self, category: str, source: Source | str, place: str, what: str) -> None:
        kind = source.kind if isinstance(source, Source) else source
        self.findings[Finding(category, kind, place, what)] = None

    def at(self, source: Source, place: tuple[int, ...]) -> str | None:
        "The text at a place of the output."
        found = self.after[source].leaves if source in self.after else []
        return next((leaf.text.strip() for leaf in found if leaf.path == place), None)

    def map_uids(self) -> dict[str, str]:
        "What became of each UID; one that became two things is a broken reference."
        became: dict[str, set[str]] = defaultdict(set)
        origin: dict[str, set[str]] = defaultdict(set)
        for source, after in self.after.items():
            for word in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
                old, new = self.before[source].first(word), after.first(word)
                if old in self.planted.uids - self.planted.duplicates and new:
                    became[old].add(new)
                    origin[new].add(old)
                    if len(became[old]) > 1:
                        self.find("references", source, word, "one UID became two")
                    if len(origin[new]) > 1:
                        self.find("references", source, word, "two UIDs became one")
        return {old: min(new) for old, new in became.items()}

    def day_shifts(self) -> dict[str, int]:
        "Days by which the dates of each patient were moved; of the first file that says so."
        shifts: dict[str, int] = {}
        for source, after in self.after.items():
            old, new = dates_in(self.before[source].first("StudyDate")), dates_in(after.first("StudyDate"))
            if len(old) == 1 and len(new) == 1:
                shifts.setdefault(source.owner, (new.pop() - old.pop()).days)
        return shifts

    def where(self, reading: Reading, test: Callable[[bytes, str], bool]) -> list[str]:
        "Places of the elements of which the test is true; the file as a whole, if there is none."
        found = [leaf.place for leaf in reading.leaves if test(leaf.bytes, leaf.text)]
        return found or ["between elements"]

    def leaks(self, source: Source, after: Reading) -> None:
        known = search(after.raw, after.text, self.planted.secrets)
        places = {secret: [] for secret in known}
        for leaf in after.leaves if known else []:
            found = search(leaf.bytes, leaf.text, known)
            for secret in found:  # of a double name and its halves, the longest that is there
                if not any(secret.text != s.text and secret.text in s.text for s in found):
                    places[secret].append(leaf.place)
        attributed = " ".join(secret.text for secret, found in places.items() if found)
        for secret, found in places.items():
            for place in found or ["between elements"] * (secret.text not in attributed):
                self.find("identity", source, place, f"{secret.kind} of {secret.owner}: {secret.text}")
        for leaf in after.leaves:
            whose = [of for of in self.planted.people.values() if leaf.text and leaf.text in (of.id, of.name)]
            if whose and leaf.keyword.startswith(("Patient", "OtherPatient")):
                self.find("identity", source, leaf.place, f"of {whose[0].key}: {leaf.text}")
        for uid in self.planted.uids:
            if uid.encode() in after.raw:
                for place in self.where(after, lambda data, text, u=uid: u in text or u.encode() in data):
                    self.find("uids", source, place, uid)
        for text in self.planted.odd:
            if text.encode() in after.raw:
                category = "dates" if text.isdigit() else "uids"
                self.find(category, source, self.where(after, lambda d, t, x=text: x in t)[0], text)
        if any(target.read_bytes()[:128].strip(b"\0") for s, target in self.pairs if s is source):
            self.find("preamble", source, "preamble", "not zero")

    def dates(self, source: Source, after: Reading) -> None:
        own, shift = self.before[source].dates & self.days, self.shifts.get(source.owner, 0)
        moved = {day + timedelta(shift) for day in own} if shift else set()
        for day in after.dates & (own | self.births) - moved:
            what = "birth date" if day in self.births else "own date"
            for place in self.where(
                after, lambda d, t, x=day: x in dates_in(without_uids(d.decode("latin-1") + "\n" + t))
            ):
                self.find("dates", source, place, f"{what} {day}")
        for leaf in after.leaves:
            old_age = re.fullmatch(r"(\d{3})Y", leaf.text.strip()) if leaf.vr == "AS" else None
            if (old_age and int(old_age[1]) > 90) or (leaf.keyword == "PatientBirthTime" and leaf.text):
                self.find("ages", source, leaf.place, leaf.text)
            if re.search(r"9[1-9]-year", leaf.text):
                self.find("ages", source, leaf.place, leaf.text)
        if source.kind == "malformed dates":
            return
        for word in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime"):
            old, new = dates_in(self.before[source].first(word)[:8]), dates_in(after.first(word)[:8])
            if len(old) == len(new) == 1 and (new.pop() - old.pop()).days != shift:
                self.find("intervals", source, word, "moved by other days than the patient's first file")

    def references(self, source: Source, after: Reading) -> None:
        def by_place(reading: Reading) -> dict[tuple[int, ...], list[str]]:
            found = defaultdict(list)
            for leaf in reading.leaves:
                if leaf.vr == "UI" and len(leaf.path) > 1:
                    found[leaf.path[::2]] += leaf.text.split("\\")
            return found

        new = by_place(after)
        for path, values in by_place(self.before[source]).items():
            expected = Counter(self.uids[v] for v in values if v in self.uids)
            got = Counter(v for v in new.get(path, []) if v)
            place = Leaf(tuple(t for tag in path for t in (tag, 0))[:-1], "UI", b"", "").place
            if source.kind in STRUCTURES and expected - got:
                self.find("references", source, place, f"{sum((expected - got).values())} do not resolve")
            elif expected and got and set(expected) - set(got):
                self.find("references", source, place, "points elsewhere")
        meta = getattr(after.ds, "file_meta", None) or Dataset()
        for word in ("SOPInstanceUID", "SOPClassUID"):
            if str(meta.get(f"MediaStorage{word}", "")) != after.first(word):
                self.find("references", source, f"MediaStorage{word}", "differs from the data set")

    def standard(self, source: Source, after: Reading) -> None:
        places = defaultdict(list)
        for leaf in after.leaves:
            places[leaf.path[::2]].append(leaf.text.strip(" \0"))
        before = [
            leaf for leaf in self.before[source].leaves if leaf.vr == "UI" or leaf.keyword in KEPT_CODES
        ]
        for leaf in before:
            text, now = leaf.text.strip(" \0"), places.get(leaf.path[::2], [])
            wellknown = text.startswith(("1.2.840.10008.", "2.16.840.1.113883.6."))
            theirs = any(text == of.id for of in self.planted.people.values()) or text.startswith("99")
            if (wellknown or leaf.keyword in KEPT_CODES) and not theirs and now and text not in now:
                self.find("standard", source, leaf.place, f"{text} became {now[0]}")
        if not after.first("SOPClassUID").startswith("1.2.840.10008."):
            self.find("standard", source, "SOPClassUID", after.first("SOPClassUID"))

    def pixels(self, source: Source, after: Reading) -> None:
        if not source.pixels:
            return
        old, new = (
            next((x.data for x in r.leaves if x.path == (PIXEL_DATA,)), b"")
            for r in (self.before[source], after)
        )
        swapped = np.frombuffer(old, ">u2").astype("<u2").tobytes() if source.kind == "big endian" else old
        if new not in (old, swapped):
            self.find("pixels", source, "PixelData", f"{len(old)} bytes became {len(new)}")

    def patients(self) -> None:
        "One pseudonym and one folder a patient, and none for two."
        owners: dict[str, set[str]] = defaultdict(set)
        names: dict[str, set[str]] = defaultdict(set)
        for source, target in self.pairs:
            if source.owner:
                for name in (self.after[source].first("PatientID"), target.relative_to(self.out).parts[0]):
                    owners[name].add(source.owner)
                names[source.owner].add(self.after[source].first("PatientID"))
        for name, keys in owners.items():
            if len(keys) > 1:
                self.find("patients", "all", "PatientID", f"{', '.join(sorted(keys))} became one, {name!r}")
        for key, found in names.items():
            if len(found) > 1:
                self.find("patients", "all", "PatientID", f"{key} became {len(found)}")

    def coverage(self) -> None:
        "Every file is written or held, and rightly so."
        written, root = {source for source, _ in self.pairs}, self.planted.folder
        known = getattr(self.result, "sources", {})  # where items are not paths but pseudonyms
        reasons = {root / known.get(held.item, held.item): held.reason for held in self.result.held}
        for source in self.planted.sources:
            reason = reasons.get(root / source.path)
            if source not in written and reason is None:
                self.find("lost", source, source.path.name, "neither written nor held")
            if source in written and source.must == "hold":
                self.find("passed", source, source.path.name, "written")
            if source not in written and source.must == "pass":
                self.find("held", source, source.path.name, reason or "not written")

    def names(self) -> None:
        "Paths, reasons, reports and stray files."
        everything = list(self.out.rglob("*"))
        known = {target.resolve() for _, target in self.pairs}
        self.texts("paths", "all", [str(path.relative_to(self.out)) for path in everything])
        self.texts("reports", "reason", [held.reason for held in self.result.held])
        self.texts("reports", "message", self.reports)
        for path in everything:
            if path.is_file() and path.resolve() not in known:
                self.texts("reports", path.name, [path.read_bytes().decode("utf-8", "replace")])

    def texts(self, category: str, kind: str, said: list[str]) -> None:
        "Identity, dates and UIDs of anybody in texts."
        text = "\n".join(said)
        for secret in search(text.encode(), text, self.planted.secrets):
            self.find(category, kind, secret.kind, f"of {secret.owner}: {secret.text}")
        for day in dates_in(without_uids(text)) & self.births:
            self.find(category, kind, "birth date", str(day))
        for uid in self.planted.uids:
            if uid in text:
                self.find(category, kind, "UID", uid)
