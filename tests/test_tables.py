"The tables of de-identification: what they name, and what they must not name."

import csv
import re
import unicodedata
from pathlib import Path

import pydicom.data
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, private_dictionary_VR
from realdata import real

from lungseg.deidentify import TABLES
from lungseg.identity import is_harmless


def rows(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


NAMED = {r["tag"] for r in rows("ps315.csv")}
ALLOWED = {r["tag"]: r for r in rows("allowed.csv")}


# What is allowed


def test_allowed_are_known_public_attributes_that_the_standard_does_not_name():
    assert len(ALLOWED) == len(rows("allowed.csv")) > 1000
    for tag, row in ALLOWED.items():
        group = int(tag[:4], 16)
        assert group % 2 == 0 and group > 4 and group >> 8 not in (0x50, 0x60) and int(tag[4:], 16)
        assert keyword_for_tag(int(tag, 16)) == row["keyword"] and tag not in NAMED


def test_nothing_that_is_allowed_holds_a_person_a_moment_an_address_or_a_document():
    for tag, row in ALLOWED.items():
        vr = dictionary_VR(int(tag, 16))
        assert vr not in ("PN", "DA", "DT", "TM", "AE", "UN")
        assert vr != "OB" and (vr != "OW" or row["keyword"].endswith("PaletteColorLookupTableData"))
        assert vr != "UR" or row["keyword"] in ("CodingSchemeURL", "URNCodeValue")
        assert (
            vr not in ("LT", "ST", "UT") or row["action"] == "C" or row["keyword"].startswith("CodingScheme")
        )
    refused = {"EncapsulatedDocument", "IconImageSequence", "ICCProfile", "DataSetTrailingPadding"}
    refused |= {"DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence"}
    refused |= {"WaveformSequence", "WaveformData", "RetrieveURL", "PatientBirthDateInAlternativeCalendar"}
    assert not refused & {r["keyword"] for r in ALLOWED.values()}


def test_instances_get_new_uids_and_kinds_keep_theirs():
    action = {r["keyword"]: r["action"] for r in ALLOWED.values()}
    assert set(action.values()) == {"K", "C", "U"}
    uids = {k for k in action if k.endswith("UID")}
    kept = {k for k in uids if action[k] == "K"}
    assert all(
        k.endswith(("ClassUID", "ContextUID", "MappingResourceUID", "SchemeUID", "CreatorUID")) for k in kept
    )
    assert action["SegmentLabel"] == "C" and action["ReferencedFiducialUID"] == "U"


def unnamed(paths) -> set[str]:
    "Keywords of public attributes of these files that neither table has."
    found, kinds = set(), ("CT", "MR", "PT", "RTSTRUCT", "RTDOSE", "RTPLAN", "SEG", "REG", "OT", "SC")

    def walk(ds) -> None:
        for e in ds:
            tag = f"{e.tag:08x}"
            if e.tag.group % 2 or not e.tag.element or e.tag.group <= 4 or e.tag.group >> 8 in (0x50, 0x60):
                continue
            if tag not in NAMED and tag not in ALLOWED:
                found.add(keyword_for_tag(e.tag))
            if e.VR == "SQ":
                for item in e.value:
                    walk(item)

    for path in paths:
        try:
            ds = dcmread(path, stop_before_pixels=True, force=True)
            if ds.get("Modality") in kinds:
                walk(ds)
        except Exception:  # files that are broken on purpose
            continue
    return found - {""}


SPECTRA = {"CreatorVersionUID", "DataPointColumns", "DataPointRows"}  # of MR spectra, which are not passed on


@pytest.mark.filterwarnings("ignore")
def test_every_attribute_of_the_files_at_hand_is_named_or_allowed():
    files = (Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm")
    assert unnamed(f for f in files if f.stat().st_size < 1_000_000) <= SPECTRA


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data", ["lctsc", "lungdx-a0002", "cip-ct64", "dicom-robustness"])
def test_every_attribute_of_real_files_is_named_or_allowed(data):
    files = sorted(real(data).rglob("*.dcm"))
    assert unnamed(files[:: max(1, len(files) // 20)]) <= SPECTRA


# Option cells of the newest rows


@pytest.mark.parametrize(
    "keyword, cells",
    [
        ("PrimaryDiagnosisCodeSequence", {"descriptors": "C"}),
        ("NameToUse", {}),
        ("ThirdPersonPronounsSequence", {}),
        ("GenderIdentitySequence", {"patient": "K"}),
        ("SexParametersForClinicalUseCategoryComment", {"patient": "C", "descriptors": "C"}),
        ("EthnicGroups", {"patient": "K"}),
        ("SecondaryCaptureDeviceID", {"device": "K"}),
        ("EffectiveStartDateTime", {"full_dates": "K", "modified_dates": "C"}),
        ("TableTopPositionAlignmentUID", {"uids": "K"}),
        ("DisplayURI", {}),
    ],
)
def test_option_cells_of_rows_that_came_after_january_2025(keyword, cells):
    row = next(r for r in rows("ps315.csv") if r["keyword"] == keyword)
    assert {k: v for k, v in row.items() if v and k not in ("tag", "keyword", "action")} == cells


# Types

TYPES = {(o, r["path"]): int(r["type"]) for r in rows("ps315_types.csv") for o in r["objects"].split("|")}


@pytest.mark.parametrize(
    "kind, path, expected",
    [
        ("CT Image", "PatientName", 2),
        ("CT Image", "StudyInstanceUID", 1),
        ("CT Image", "Manufacturer", 2),
        ("Enhanced CT Image", "Manufacturer", 1),
        ("Enhanced CT Image", "DeviceSerialNumber", 1),
        ("RT Structure Set", "StructureSetLabel", 1),
        ("RT Structure Set", "StructureSetROISequence.ROIName", 2),
        ("RT Structure Set", "StructureSetROISequence.ReferencedFrameOfReferenceUID", 1),
        ("Segmentation", "SegmentSequence.SegmentLabel", 1),
        ("Segmentation", "ContentLabel", 1),
        ("Secondary Capture Image", "ConversionType", 1),
        ("Multi-frame True Color SC Image", "PatientID", 2),
        ("*", "*.CodeMeaning", 1),
    ],
)
def test_types_are_those_of_the_objects_modules(kind, path, expected):
    assert TYPES[kind, path] == expected


def test_types_are_kept_for_what_may_be_in_an_output():
    removed = {
        r["keyword"] for r in rows("ps315.csv") if r["action"] == "X" and not any(list(r.values())[3:])
    }
    for _, path in TYPES:
        assert not removed & set(path.split(".")[:-1])


def test_every_text_that_is_cleaned_has_its_types():
    named = {path.split(".")[-1] for _, path in TYPES}
    assert {
        "SegmentLabel",
        "ROIName",
        "RTPlanLabel",
        "SeriesInstanceUID",
        "PatientSex",
        "CodeMeaning",
    } <= named
    assert set(TYPES.values()) == {1, 2}


# Private attributes


def test_safe_private_attributes_hold_numbers_and_terms():
    safe = rows("safe_private.csv")
    assert len({(r["creator"], r["group"], r["element"]) for r in safe}) == len(safe) > 70
    for r in safe:
        group, element = int(r["group"], 16), int(r["element"], 16)
        assert group % 2 == 1 and len(r["group"]) == 4 and 0 <= element <= 0xFF and len(r["element"]) == 2
        assert r["creator"] == r["creator"].strip() and 0 < len(r["creator"]) <= 64 and r["meaning"]
        assert set(r["vm"]) <= set("0123456789-n")
    text = {(r["creator"], r["element"]) for r in safe if r["vr"] in ("LO", "SH")}
    assert text == {("GEMS_ACQU_01", "9e"), ("GEMS_PARM_01", "27"), ("NQHeader", "20")}
    assert {r["vr"] for r in safe} - {"LO", "SH"} <= {"CS", "DS", "FD", "FL", "IS", "SL", "SS", "UL", "US"}


def test_safe_private_attributes_are_no_text_in_another_vendor_list():
    for r in rows("safe_private.csv"):
        try:
            vr = private_dictionary_VR(int(f"{r['group']}10{r['element']}", 16), r["creator"])
        except KeyError:
            continue  # pydicom does not know this vendor's element
        assert vr == r["vr"] or {vr, r["vr"]} <= {"DS", "FD", "FL", "IS", "SL", "SS", "US"}, r


# The words that descriptions keep

BLOCKS = (TABLES / "descriptor_words.txt").read_text(encoding="utf-8").split("\n\n")
WORDS = {w for b in BLOCKS for line in b.splitlines() if not line.startswith("#") for w in line.split()}
ASIAN = re.compile("[\u3000-\u9fff\uac00-\ud7af]+")


def folded(text: str) -> str:
    "Lower case without accents; signs of East Asia as they are."
    if ASIAN.search(text):
        return text
    plain = text.casefold().translate(str.maketrans("øłı", "oli"))
    return "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))


def test_words_are_folded_and_stand_once_in_sorted_blocks():
    listed = []
    for block in BLOCKS:
        words = [w for line in block.splitlines() if not line.startswith("#") for w in line.split()]
        assert words == sorted(words) and block.startswith("# ")
        listed += [] if block.startswith("# Stems") else words  # a stem may be a word as well
    assert len(listed) == len(set(listed))
    assert all(w == folded(w) and w.isalnum() for w in listed)


DESCRIPTIONS = """
    ThoraxRoutine  1.0  B70f | Thorax^1_ThoraxRoutine (Adult) | CT CHEST W/O CONTRAST | LUNG 1.25 MM
    CTA CHEST W&W/O C&RECONS, NON-CORONARY | CT CHEST ABDOMEN PELVIS W IV CONTRAST | AX LUNG KERNEL
    NLST LOW DOSE CHEST | CT Lung Screening Low Dose | LDCT annual screening | SMART PREP SERIES
    Inspiration 0.75 B46f | INSP_B31f_360_L_COPD | HRCT Prone Inspiration 1mm | Recon 2: CHEST W/O
    AIMI lung and nodule radiologist 5 corrected segmentation | LUNG MIP iDose 3 | Chest 3D IMR
    WB CTAC Body | Standard WB TrueX | PET WB uncorrected | FDG PET skull base to mid-thigh | PET NAC
    t1_vibe_fs_tra_bh | t2_trufi_obl_sag | T2W_HR_mDIXON_TSE | localizer_haste_sag | DWI_ADC
    MRI BRAIN W + W/O CONTRAST | MRA HEAD W/ WO CONTRAST | 3-plane localizer | Dose Report
    GTV-1 | GTVp_1 | PTV_6600 | IGTV_MIP | ITV 50% | Lungs-GTV | Lung_L | SpinalCord | Cord PRV 5mm
    ProxBronchTree | BrachialPlexus_R | A_Aorta | V_Venacava_I | Femur_Head_L | Parotid_L | right SMG
    Spinal canal on the same slice as bottom of sternum | recurrence (plus liver mets) | CouchInterior
    Neoplasm, Primary | Ground glass opacity | Pleural effusion | Lymph node station 7 | Lung lobes
    CT Thorax nativ | CT Thorax venös | MRT Abdomen mit KM | Lungenfenster | Schädel nativ | BWS sag
    Thorax Abd pv 3.0 B30f | Nachsorge Bronchialkarzinom | CT-gesteuerte Punktion | Knöchel links
    Scanner thoracique sans injection | TDM TAP avec injection | Médiastin 3mm | Tronc_Cerebral
    TC TORAX SIN CONTRASTE | TAC de tórax con contraste | DECUBITO LATERAL IZQUIERDO | Embolia pulmonar
    TC torace-addome con mdc | lesioni polmonari | Pulmão 1mm | TC TÓRAX SEM CONTRASTE | Janela pulmonar
    CT thorax met contrast | CT Thorax zonder contrast | Longembolie | REKONSTRUKCJA PLUCNA | plucne 5.0 B50f
    胸部CT平扫+增强 | 纵隔窗 | 胸部 単純 | 肺野条件 | 低剂量胸部CT | 흉부 CT
    Thorax^01_Lunge_HR (Erwachsener) | PE-Protokoll KM art. | Lungenrundherd rechter Unterlappen, Verlauf
    CT-Thorax/Abdomen in portalvenöser Phase | Polytraumaspirale Erwachsene | Rückenmark abzüglich PTV
    TDM thoracique sans injection | Nodule du lobe supérieur droit | Pneumopathie interstitielle diffuse
    Fenêtre médiastinale | TC de tórax alta resolución | TAC toracoabdominopélvico | Médula espinal
    Estadificación inicial | TC torace ad alta risoluzione senza mezzo di contrasto | Polmoni meno PTV
    Protocollo pediatrico | TC de tórax sem contraste, baixa dose | Nódulo pulmonar em seguimento
    CT longembolie volwassene | Laagdosis CT-thorax, controle na 3 maanden | Rechterlong min PTV
    CT af thorax og øvre abdomen med kontrast | HRCT lunger inspirasjon og ekspirasjon | Høyre lunge
    DT thorax lågdos uppföljning | Vänster lunga | Keuhkojen ohutleike TT | Vartalon TT varjoaineella
    TK klatki piersiowej bez kontrastu | Płuco prawe | CT hrudníku s kontrastní látkou | Levá plíce
    Alacsony dózisú mellkas CT | Bal tüdő | CT torace fără contrast | Plămân stâng | Toraks BT kontrastsız
    Düşük doz akciğer BT | ОГК нативное | Низкодозная КТ легких | КТ ОГК с контрастированием | Спинной мозг
    Αξονική τομογραφία θώρακος υψηλής ευκρίνειας | CT ΘΩΡΑΚΟΣ ΜΕ ΣΚΙΑΓΡΑΦΙΚΟ | CT toraksa nativno
    肺がん検診 低線量 | 胸部造影 動脈相 | 肺结节 随访 | 全身断层显像 | 저선량 흉부 | 조영증강
"""


def in_words(token: str) -> bool:
    "Whether a token is a word, or signs of East Asia that are words in a row."
    token = folded(token)
    return token in WORDS or (
        bool(ASIAN.fullmatch(token))
        and any(token[:n] in WORDS and in_words(token[n:]) for n in range(1, len(token)))
    )


@pytest.mark.parametrize("text", [d.strip() for d in re.split(r"[|\n]", DESCRIPTIONS) if d.strip()])
def test_words_of_real_descriptions_are_known(text):
    text = re.sub(r"\b[A-Za-z]{1,2}\d\d[a-z]?(?![^\W_])|\d+|[Ww]/[Oo]\b", " ", text)  # kernels, numbers, w/o
    text = ASIAN.sub(r" \g<0> ", text)
    for token in re.findall(r"[^\W_]+", text):
        parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\WA-Z_]+", unicodedata.normalize("NFC", token))
        assert in_words(token) or all(map(in_words, parts)), token


NAMES = """
    smith johnson williams jones davis miller wilson moore taylor anderson thomas jackson harris martin
    thompson garcia martinez robinson clark rodriguez lewis lee walker hall allen young hernandez king
    wright lopez hill scott green adams baker gonzalez nelson carter mitchell perez roberts turner phillips
    campbell parker evans edwards collins stewart sanchez morris rogers reed cook morgan bell murphy bailey
    rivera cooper richardson cox howard ward torres peterson gray ramirez watson brooks sanders price
    bennett wood barnes ross henderson coleman jenkins perry powell patterson hughes flores washington
    butler simmons foster bryant russell griffin hayes myers ford hamilton graham sullivan wallace woods
    cole west jordan owens reynolds fisher ellis harrison gibson cruz marshall ortiz gomez murray freeman
    wells webb simpson stevens tucker porter hunter hicks crawford boyd mason morales kennedy warren dixon
    ramos burns gordon shaw holmes rice robertson hunt black daniels palmer mills grant knight ferguson rose
    stone hawkins dunn perkins hudson spencer gardner stephens payne pierce berry matthews arnold wagner
    willis ray watkins olson carroll duncan snyder hart cunningham bradley lane andrews ruiz harper fox
    riley armstrong carpenter weaver greene lawrence elliott chavez sims austin peters kelley franklin
    lawson fields gutierrez ryan schmidt carr vasquez castillo wheeler chapman oliver montgomery richards
    williamson johnston banks meyer bishop mccoy howell alvarez morrison hansen fernandez garza harvey
    little burton stanley nguyen george jacobs reid fuller lynch long dean gilbert garrett romero welch
    larson frazier burke hanson day mendoza moreno bowman medina fowler brewer hoffman carlson silva pearson
    holland douglas fleming jensen vargas byrd davidson hopkins may terry herrera wade soto walters curtis
    neal caldwell lowe jennings barnett graves jimenez horton shelton barrett castro sutton gregory mckinney
    lucas miles craig chambers holt lambert fletcher watts bates hale rhodes pena beck mueller muller
    schneider fischer weber becker schulz schulze bauer koch richter klein wolf schroeder neumann schwarz
    zimmermann braun krueger hofmann hartmann lange schmitt werner krause meier lehmann kaiser fuchs lang
    jung hahn vogel friedrich keller gunther frank berger winkler roth lorenz baumann franke albrecht ludwig
    winter kraus schumacher bernard dubois durand leroy moreau laurent lefebvre michel bertrand roux
    fournier girard bonnet dupont rousseau blanc guerin boyer garnier chevalier gauthier rossi russo ferrari
    esposito bianchi colombo ricci marino greco bruno gallo conti costa giordano mancini rizzo lombardi
    santos oliveira souza pereira ferreira alves lima gomes ribeiro carvalho almeida jansen bakker visser
    smit mulder bos vos wang li zhang liu chen yang huang zhao wu zhou xu sun ma zhu hu guo he lin gao luo
    zheng liang xie song tang feng deng cao peng zeng xiao tian dong pan yuan cai jiang yu fu shen lu jia
    ding wei fan ye su qin kim park choi kang cho yoon jang lim han oh seo shin kwon hwang ahn moon tran
    pham hoang phan vu dang bui ngo duong sato suzuki takahashi tanaka watanabe ito yamamoto nakamura
    kobayashi kato yoshida yamada sasaki james john robert michael william david richard joseph charles
    christopher daniel matthew anthony mark donald steven paul andrew joshua kenneth kevin brian timothy
    ronald jason jeffrey jacob gary nicholas eric jonathan stephen larry justin brandon benjamin samuel
    patrick alexander jack dennis jerry peter dale bill mary patricia jennifer linda elizabeth barbara susan
    jessica sarah karen lisa nancy betty sandra margaret ashley emily michelle carol amanda melissa deborah
    stephanie grace hope faith joy iris lily ruby pearl amber hans jurgen wolfgang uwe ute heinz horst klaus
    gerhard monika ingrid renate helga jean marie pierre jacques louis nathalie isabelle giuseppe giovanni
    antonio maria anna lucia luz jose juan carlos pedro pilar rocio dolores consuelo mercedes joao luis
    fatima mohammed ahmed ali hassan hussein fatma mehmet priya rahul singh kumar patel khan das rao sen
    lola luna dante logan major christian gross sophie emma olivia noah liam ben blanco cortes delgado nino
    nina ed assis libero tisch dunne levy rak plata till noto uma
    yilmaz kaya demir sahin celik yildiz yildirim ozturk aydin ozdemir arslan dogan kilic aslan cetin kara
    koc kurt ozkan simsek polat korkmaz erdogan aksoy tekin bulut deniz gunes yavuz aktas turk mustafa ahmet
    ayse emine hatice zeynep elif murat emre hasan huseyin ibrahim osman yusuf omer ramazan meryem
    ivanov smirnov kuznetsov popov sokolov lebedev kozlov novikov morozov petrov volkov ivanova petrova
    иванов смирнов кузнецов попов васильев петров соколов михаилов новиков федоров морозов волков алексеев
    лебедев семенов егоров павлов козлов степанов николаев орлов андреев макаров никитин захаров иванова
    петрова кузнецова шевченко бондаренко коваленко ткаченко александр сергеи дмитрии андреи алексеи иван
    максим лев вера любовь надежда роман елена ольга наталья татьяна ирина анна мария светлана юлия
    nowak kowalski wisniewski wojcik kowalczyk kaminski lewandowski zielinski szymanski wozniak dabrowski
    kozlowski mazur krawczyk zajac krol wrobel wieczorek duda lis baran gorny guza krzysztof stanislaw
    tomasz pawel marcin piotr agnieszka malgorzata katarzyna ewa zofia novotny dvorak cerny prochazka
    kucera vesely horak nemec maly stary jiri petr vaclav tereza horvat kovacevic babic maric popovic
    johansson andersson karlsson nilsson eriksson larsson olsson persson svensson gustafsson lindberg
    lindstrom berg bergstrom nielsen pedersen christensen rasmussen jorgensen madsen olsen hagen solberg
    dahl lund moen strand karl lars anders bjorn erik nils ole kari astrid sven korhonen virtanen makinen
    nieminen makela hamalainen laine heikkinen koskinen jarvinen niemi salo matti timo juha tuula
    papadopoulos vlachos angelopoulos georgiou nikolaidis παπαδοπουλοσ βλαχοσ γεωργιου δημητριου ιωαννου
    παπαδακησ νικολαου γεωργιοσ ιωαννησ κωνσταντινοσ δημητριοσ νικολαοσ μαρια ελενη αικατερινη
    nagy kovacs toth szabo horvath varga kis molnar nemeth farkas balogh papp takacs juhasz lakatos meszaros
    simon racz fekete szilagyi torok feher balazs gal vekony vastag istvan laszlo zoltan sandor ferenc
    popescu ionescu popa radu dumitru stan stoica gheorghe matei ciobanu rusu andrei ion mihai elena
"""


def test_no_common_name_is_a_word():
    assert len(set(NAMES.split())) > 600
    assert not set(NAMES.split()) & WORDS
    assert [n for n in NAMES.split() if is_harmless(n) or is_harmless(n.title())] == []
    spelled = "Müller Gałczyński Yılmaz Çelik Jürgen Dušan Ağca Åse Øyvind Åkesson Nuñez Éloïse"
    spelled += " 김철수 王小明 山田太郎"
    assert [n for n in spelled.split() if is_harmless(n)] == []


def test_words_that_are_names_too_stand_in_the_last_block():
    heading, *lines = BLOCKS[-1].splitlines()
    assert heading.startswith("# Words that are names too")
    words = " ".join(lines).split()
    assert {"sharp", "glass", "post", "wall", "smart", "brain"} <= set(words) and len(words) < 350
