"""How fast files are de-identified: lungseg beside pydicom's bare reading and writing, and beside others.

    python benchmarks/deidentify_speed.py [--files 200] [--size 512] [--rounds 5]

All work on the same files from the page cache, in turns. The table gives medians, and ratios to pydicom
in the same round; then two processes against one, whose outputs must be equal byte for byte. lungseg reads
every header first, looks for writing in all pixels, searches every output for all identities, reads it back.
"""

import argparse
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from pydicom import Dataset, dcmread

from lungseg.deidentify import deidentify
from lungseg.phantom import draw_phantom, write_phantom

PATIENTS = 4


def as_from_a_scanner(path: Path) -> None:
    "Add what a scanner writes and a phantom does not: people, places, an order, protocol, private groups."
    ds = dcmread(path)
    ds.InstitutionName, ds.InstitutionAddress, ds.StationName = "Utopia Clinic", "1 Nowhere Street", "CT-7"
    ds.ReferringPhysicianName, ds.OperatorsName, ds.PhysiciansOfRecord = (
        "Refer^Rita",
        "Opera^Otto",
        "Record^Rolf",
    )
    ds.AccessionNumber, ds.AdmissionID, ds.PatientAddress = "ACC0815471", "ADM4711", "2 Elsewhere Road"
    ds.PatientTelephoneNumbers, ds.OtherPatientIDs, ds.EthnicGroup = "+00 555 0147", "OLD-47110", "unknown"
    ds.DeviceSerialNumber, ds.SoftwareVersions, ds.ProtocolName = (
        "SN70110",
        "syngo CT VB20A",
        "Thorax^Routine",
    )
    ds.PerformedProcedureStepStartDate, ds.PerformedProcedureStepStartTime = ds.StudyDate, "101500"
    ds.PerformedProcedureStepID, ds.PerformedProcedureStepDescription = "PPS1234", "CT Thorax"
    ds.RequestedProcedureDescription, ds.RequestingPhysician = "CT Thorax", "Refer^Rita"
    ds.DateOfLastCalibration, ds.TimeOfLastCalibration = ds.StudyDate, "063000"
    ds.CTDIvol, ds.ExposureModulationType, ds.EstimatedDoseSaving = 5.1, "XYZ_EC", 12.5
    ds.RevolutionTime, ds.SingleCollimationWidth, ds.TotalCollimationWidth = 0.5, 0.6, 38.4
    ds.TableSpeed, ds.TableFeedPerRotation, ds.SpiralPitchFactor = 92.2, 46.1, 1.2
    order, code, image = Dataset(), Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24627-2", "LN", "CT Chest"
    order.RequestedProcedureID, order.ScheduledProcedureStepID = "RP1234", "SPS1234"
    order.ScheduledProtocolCodeSequence = [code]
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.RequestAttributesSequence, ds.ProcedureCodeSequence, ds.ReferencedImageSequence = (
        [order],
        [code],
        [image],
    )
    for group, creator in ((0x0019, "SIEMENS CT VA0 COAD"), (0x0029, "SIEMENS CSA HEADER")):
        block = ds.private_block(group, creator, create=True)
        for i in range(15):
            block.add_new(0x10 + i, "LO" if i % 3 else "OB", f"value {i}" if i % 3 else bytes(64))
    ds.save_as(path)


def pydicom(src: Path, dst: Path) -> None:
    "Read each file and write it again: what any tool on pydicom must do at least."
    for i, path in enumerate(sorted(src.rglob("*.dcm"))):
        dcmread(path).save_as(dst / f"{i}.dcm")


def dicom_anonymizer(src: Path, dst: Path) -> None:
    "Kitware's tool, with its default table."
    from dicomanonymizer import anonymize_dicom_file

    for i, path in enumerate(sorted(src.rglob("*.dcm"))):
        anonymize_dicom_file(str(path), str(dst / f"{i}.dcm"))


def dicognito(src: Path, dst: Path) -> None:
    "dicognito, by its library."
    from dicognito.anonymizer import Anonymizer

    anonymizer = Anonymizer()
    for i, path in enumerate(sorted(src.rglob("*.dcm"))):
        ds = dcmread(path)
        anonymizer.anonymize(ds)
        ds.save_as(dst / f"{i}.dcm")


def lungseg(src: Path, dst: Path, workers: int = 1) -> None:
    "Ours, one process."
    with redirect_stderr(StringIO()):
        result = deidentify(src, dst, secret=b"a secret of this benchmark", workers=workers)
    assert not result.held, "a clean slice was held back"


def lungseg_2(src: Path, dst: Path) -> None:
    "Ours, two processes."
    lungseg(src, dst, 2)


def seconds(run: Callable[[Path, Path], None], src: Path, out: Path) -> float:
    "Wall time of one run into a new folder."
    dst = out / run.__name__
    rmtree(dst, ignore_errors=True)
    dst.mkdir(parents=True)
    start = perf_counter()
    run(src, dst)
    return perf_counter() - start


def usable(run: Callable[[Path, Path], None], src: Path, out: Path) -> bool:
    "Whether a tool is installed."
    try:
        seconds(run, src, out)
    except ImportError:
        print(f"{run.__name__} is not installed and not measured")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"files": 200, "size": 512, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with TemporaryDirectory() as d:
        src, out = Path(d) / "in", Path(d) / "out"
        phantom = draw_phantom(0, size=args.size, slices=args.files // PATIENTS)
        for i in range(PATIENTS):
            for path in write_phantom(
                phantom, src / str(i), name=f"Muster{i}^Name", patient_id=f"N-47{i}1", key=str(i)
            ):
                as_from_a_scanner(path)
        runs = [r for r in (pydicom, dicom_anonymizer, dicognito, lungseg, lungseg_2) if usable(r, src, out)]
        rounds = [{run.__name__: seconds(run, src, out) for run in runs} for _ in range(args.rounds)]
        files = [sorted(p for p in (out / name).rglob("*.dcm")) for name in ("lungseg", "lungseg_2")]
        equal = [[p.read_bytes() for p in found] for found in files]
        assert equal[0] == equal[1], "one process and two differ"
    for name in rounds[0]:
        t, ratio = median(r[name] for r in rounds), median(r["pydicom"] / r[name] for r in rounds)
        print(f"{name:>16}  {args.files / t:6.0f} files/s  {ratio:5.2f} x pydicom")
    speedup = median(r["lungseg"] / r["lungseg_2"] for r in rounds)
    print(f"two processes: {speedup:.2f} x one, with equal bytes")


if __name__ == "__main__":
    main()
