"What a network is shown of a case: the body, or the lungs alone, and the way back."

import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from lungseg import slices
from lungseg.cohort import Stored, build_store, find_cases
from lungseg.core import ModelError
from lungseg.phantom import LABELS, draw_phantom
from lungseg.slices import (
    NoLungsWarning,
    Preparation,
    SliceDataset,
    View,
    at_ends,
    batches,
    body_frame,
    epoch_order,
    for_network,
    prepare_images,
    prepare_masks,
    put_back,
    view_of,
    whole_frame,
)

LUNGS = Preparation(frame="lungs")
SUPPRESSED = Preparation(frame="lungs", suppress="outside")


def lungs_of(phantom):
    return np.isin(phantom.labels, [LABELS["lung_left"], LABELS["lung_right"]])


def spacing_of(phantom):
    return tuple(float(s) for s in np.linalg.norm(phantom.affine[:3, :3], axis=0))


@pytest.fixture(scope="module", params=[11, 12])
def phantom(request):
    return draw_phantom(request.param, size=96, slices=30)


@pytest.mark.parametrize("prep", [LUNGS, SUPPRESSED, Preparation(suppress="outside")])
@pytest.mark.parametrize("known", [True, False])
def test_nearly_all_of_the_lungs_is_shown_and_much_else_is_not(phantom, prep, known):
    view = view_of(phantom.hu, prep, spacing_of(phantom) if known else None)
    lungs = lungs_of(phantom)
    assert view.visible(lungs).sum() > 0.998 * lungs.sum()
    shown = view.visible(np.ones_like(lungs)).mean()
    plain = view_of(phantom.hu, Preparation()).visible(np.ones_like(lungs)).mean()
    assert shown < 0.9 * plain
    assert (view.region is None) == (prep.suppress == "none")


def test_the_view_does_not_depend_on_the_reference(phantom, tmp_path):
    "Another mask, the same pictures: what is shown is found in the CT alone."
    images = []
    for name, keep in (("whole", 1.0), ("part", 0.6)):
        mask = lungs_of(phantom)
        mask[int(keep * len(mask)) :] = False
        folder = tmp_path / name / "volumes"
        folder.mkdir(parents=True)
        np.savez(folder / "Case_000.npz", hu=phantom.hu, mask=mask.astype(np.uint8))
        store = build_store(find_cases(folder).cases, tmp_path / name / "store")
        images.append(SliceDataset(store, store.names, replace(SUPPRESSED, size=32)))
    one, two = images
    assert len(one) == len(two)
    every = np.arange(len(one))
    assert torch.equal(one.batch(every)[0], two.batch(every)[0])
    assert not torch.equal(one.batch(every)[1], two.batch(every)[1])


@pytest.mark.parametrize("margin", [0.0, 7.0, 40.0])
def test_margins_are_in_mm_and_end_at_the_grid(phantom, margin):
    spacing = spacing_of(phantom)
    tight = view_of(phantom.hu, replace(LUNGS, box_margin_mm=0.0), spacing)
    wide = view_of(phantom.hu, replace(LUNGS, box_margin_mm=margin), spacing)
    more = int(np.ceil(margin / spacing[0]))
    assert wide.shown.start == max(tight.shown.start - more, 0)
    assert wide.shown.stop == min(tight.shown.stop + more, len(phantom.hu))
    assert wide.frame.side >= tight.frame.side
    assert view_of(phantom.hu, replace(SUPPRESSED, region_margin_mm=margin), spacing).region.any()


def test_outside_the_region_there_is_air_before_scaling(phantom):
    prep = replace(SUPPRESSED, size=64, air_hu=-1050, hu_min=-1100.0)
    view = view_of(phantom.hu, prep, spacing_of(phantom))
    view = replace(view, frame=whole_frame(phantom.hu.shape[1:]))
    images = prepare_images(phantom.hu, replace(prep, size=96), view).numpy()
    outside = ~view.region[view.shown.start : view.shown.stop]
    air = (-1050 + 1100) / (600 + 1100) * 2 - 1
    assert np.allclose(images[outside], air, atol=1e-6)
    plain = prepare_images(phantom.hu, replace(prep, size=96), replace(view, region=None)).numpy()
    assert np.array_equal(images[~outside], plain[~outside])


@pytest.mark.parametrize("prep", [Preparation(), LUNGS, SUPPRESSED])
def test_a_prepared_mask_comes_back_exactly_where_no_pixel_is_resampled(phantom, prep):
    view = view_of(phantom.hu, prep, spacing_of(phantom))
    prep, mask = replace(prep, size=view.frame.side), lungs_of(phantom)
    maps = prepare_masks(mask, prep, view)
    back = np.zeros(mask.shape, np.float32)
    back[view.shown] = put_back(maps, view, view.shown, mask.shape[1:]).numpy()
    assert np.array_equal(back, view.visible(mask))


@pytest.mark.parametrize("size", [40, 77, 150])
@pytest.mark.parametrize("prep", [LUNGS, SUPPRESSED])
def test_a_prepared_mask_comes_back_nearly_where_pixels_are_resampled(phantom, prep, size):
    view = view_of(phantom.hu, prep, spacing_of(phantom))
    mask = lungs_of(phantom)
    maps = prepare_masks(mask, replace(prep, size=size), view)
    back = np.zeros(mask.shape, bool)
    back[view.shown] = put_back(maps, view, view.shown, mask.shape[1:]).numpy() > 0.5
    seen = view.visible(mask)
    assert 2 * (back & seen).sum() / (back.sum() + seen.sum()) > 0.975
    assert not (back & ~view.visible(np.ones_like(mask))).any()


@pytest.mark.parametrize(
    ("top", "left", "side", "shown"),
    [(-4, 3, 30, range(0, 5)), (2, -7, 12, range(1, 3)), (5, 6, 8, range(4, 5)), (-9, -9, 60, range(2, 5))],
)
def test_a_frame_beyond_the_picture_comes_back_too(top, left, side, shown):
    mask = np.random.default_rng(0).random((5, 20, 24)) < 0.5
    view = View(slices.Frame(top, left, side), shown)
    maps = prepare_masks(mask, Preparation(size=side), view)
    back = put_back(maps, view, shown, (20, 24), outside=-9.0).numpy()
    seen = view.visible(mask)[shown.start : shown.stop]
    assert np.array_equal(back == 1, seen)
    assert (back[~view.visible(np.ones_like(mask))[shown.start : shown.stop]] == -9).all()


def test_slices_among_and_around_those_shown():
    view = View(slices.Frame(0, 0, 8), range(3, 7))
    assert [len(view.among(range(a, b))) for a, b in ((0, 3), (2, 4), (3, 7), (5, 9), (7, 9))] == [
        0,
        1,
        4,
        2,
        0,
    ]
    assert view.widened(2, 8) == range(1, 8)
    assert view.widened(5, 9) == range(0, 9)


def without_lungs(phantom):
    "The same body, its lungs full of water."
    return np.where(lungs_of(phantom), np.int16(20), phantom.hu)


@pytest.mark.parametrize(
    ("prep", "frame"),
    [
        (LUNGS, body_frame),
        (SUPPRESSED, body_frame),
        (Preparation(suppress="outside"), body_frame),
        (Preparation(frame="image", suppress="outside"), lambda hu: whole_frame(hu.shape[1:])),
    ],
)
def test_without_lungs_all_is_shown_and_that_is_said(phantom, prep, frame):
    hu = without_lungs(phantom)
    view = view_of(hu, prep, spacing_of(phantom))
    assert (view.frame, view.shown, view.region) == (frame(hu), range(len(hu)), None)
    assert view.note == "no lungs found in the CT, so all of it is shown"


@pytest.mark.parametrize("value", [-1000, 40])
@pytest.mark.parametrize("shape", [(1, 30, 40), (5, 16, 16)])
def test_air_alone_and_a_solid_block_are_shown_whole(value, shape):
    hu = np.full(shape, value, np.int16)
    view = view_of(hu, SUPPRESSED, (3.0, 1.0, 1.0))
    assert view.note and view.shown == range(shape[0]) and view.frame.side >= max(shape[1:])
    assert prepare_images(hu, replace(SUPPRESSED, size=16), view).isfinite().all()


def test_the_lungs_are_sought_once_a_case_and_only_if_they_are_needed(phantom, tmp_path, monkeypatch):
    folder = tmp_path / "volumes"
    folder.mkdir()
    for name in ("Case_000", "Case_001"):
        np.savez(folder / f"{name}.npz", hu=phantom.hu, mask=lungs_of(phantom).astype(np.uint8))
    store = build_store(find_cases(folder).cases, tmp_path / "store")
    calls, really = [], slices.lung_region
    monkeypatch.setattr(slices, "lung_region", lambda *a, **k: (calls.append(1), really(*a, **k))[1])
    SliceDataset(store, store.names, Preparation(size=16))
    assert not calls
    data = SliceDataset(store, store.names, replace(SUPPRESSED, size=16, neighbours=1))
    for epoch in range(2):
        for _ in slices.batches(data, 8, seed=0, epoch=epoch):
            pass
    assert len(calls) == 2


def test_a_dataset_of_boxes_keeps_cases_and_neighbours_apart(tmp_path):
    folder = tmp_path / "volumes"
    folder.mkdir()
    for seed in (3, 4):
        p = draw_phantom(seed, size=64, slices=24)
        np.savez(folder / f"Case_{seed:03d}.npz", hu=p.hu, mask=lungs_of(p).astype(np.uint8))
    store = build_store(find_cases(folder).cases, tmp_path / "store")
    prep = replace(SUPPRESSED, size=24, neighbours=2, box_margin_mm=0.0, region_margin_mm=0.0)
    data = SliceDataset(store, store.names, prep)
    for name in store.names:
        case = store.case(name)
        view = view_of(case.hu, prep)
        assert len(view.shown) < len(case.hu)
        own = data.of_case(name)
        assert data.slice[own].tolist() == list(view.shown)
        images, masks = data.batch(own)
        everything = prepare_images(case.hu, prep, view, range(len(case.hu)))
        near = np.clip(np.array(view.shown)[:, None] + np.arange(-2, 3), 0, len(case.hu) - 1)
        assert torch.allclose(images, everything[near], atol=1 / 250)
        assert torch.allclose(masks[:, 0], prepare_masks(case.mask, prep, view), atol=1 / 250)
        assert data.describe(own[:1]) == f"{name} slices {view.shown[0]}"


def test_a_case_whose_lungs_are_not_found_is_named_once(phantom, tmp_path):
    folder = tmp_path / "volumes"
    folder.mkdir()
    np.savez(folder / "Case_000.npz", hu=phantom.hu, mask=lungs_of(phantom).astype(np.uint8))
    store = build_store(find_cases(folder).cases, tmp_path / "store")
    np.save(store.path / "Case_000" / "hu.npy", without_lungs(phantom))
    with pytest.warns(NoLungsWarning, match="Case_000: no lungs found in the CT, so all of it is shown"):
        data = SliceDataset(store, store.names, replace(SUPPRESSED, size=16))
    assert len(data) == len(phantom.hu) and [n.item for n in data.notes] == ["Case_000"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SliceDataset(store, store.names, Preparation(size=16))


def test_a_box_takes_the_cases_own_spacing_only_where_it_is_known(phantom):
    asked = []
    data = SliceDataset.__new__(SliceDataset)
    data.prep, data.notes = replace(LUNGS, size=16), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "view_of", lambda hu, prep, mm: (asked.append(mm), view_of(hu, prep))[1])
        for known in (True, False):
            data._view(Stored("a", phantom.hu, None, phantom.affine, (9.0, 4.0, 4.0), known, {}))
    assert asked == [(9.0, 4.0, 4.0), None]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("frame", "lung", '"body", "lungs" or "image"'),
        ("suppress", "inside", '"none" or "outside"'),
        ("region_margin_mm", -0.5, "0 to 100 mm"),
        ("region_margin_mm", float("nan"), "0 to 100 mm"),
        ("box_margin_mm", 1000.0, "0 to 100 mm"),
        ("air_hu", 0, "air: -1100 to -900 HU"),
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused(field, value, expected):
    with pytest.raises(ModelError, match=f"{field}: expected {expected}, got"):
        Preparation(**{field: value})


@pytest.mark.parametrize(
    ("frame", "suppress"), list(product(("body", "lungs", "image"), ("none", "outside")))
)
def test_the_lungs_are_needed_for_a_box_and_for_suppression(frame, suppress):
    assert Preparation(frame=frame, suppress=suppress).isolates == (
        (frame, suppress) not in [("body", "none"), ("image", "none")]
    )


def picture_cohort(folder, size=32, per_patient=3):
    "PNG pairs of two patients with every grey level in them, as a store."
    from PIL import Image

    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / "pairs" / kind).mkdir(parents=True)
    greys = {}
    for patient in range(2):
        for i in range(per_patient):
            name = f"P{patient}_{i:03d}.png"
            greys[f"P{patient}", i] = random.permutation(np.arange(size * size) % 256).reshape(size, size)
            mask = np.zeros((size, size), np.uint8)
            mask[8:20, 6 + i : 14] = 255
            Image.fromarray(greys[f"P{patient}", i].astype(np.uint8)).save(folder / "pairs" / "images" / name)
            Image.fromarray(mask).save(folder / "pairs" / "masks" / name)
    return build_store(find_cases(folder / "pairs").cases, folder / "store"), greys


def test_pictures_of_8_bits_reach_the_network_divided_by_255_to_the_bit(tmp_path):
    "In training, from the dataset; in prediction, from the HU that stand for the greys."
    store, greys = picture_cohort(tmp_path)
    prep = Preparation(size=32, frame="image", range="unit")
    data = SliceDataset(store, store.names, prep)
    for k in range(len(data)):
        name, s = data.names[data.case[k]], data.slice[k]
        wanted = torch.from_numpy(greys[name, s]).float() / 255
        assert torch.equal(for_network(data.batch(np.array([k]))[0], prep)[0, 0], wanted)
        one = prepare_images(store.case(name).hu, prep, slices=range(s, s + 1))
        assert torch.equal(for_network(one[:, None], prep)[0, 0], wanted)


@pytest.mark.parametrize("method", ["window", "winsorise", "zscore"])
@pytest.mark.parametrize("span", ["signed", "unit"])
def test_a_model_is_fed_what_it_was_trained_on(small, method, span):
    "Prediction and training turn the same slice into the same numbers, up to the 8 bits of the dataset."
    from lungseg.predict import Model, predict_logits
    from lungseg.recipe import Recipe
    from lungseg.unet import UNet

    prep, fed = Preparation(size=32, method=method, range=span, neighbours=1), []

    class Eye(UNet):
        def forward(self, x):
            fed.append(x)
            return super().forward(x)

    list(predict_logits(Model(Eye(3, 1, 2, 1), Recipe(prepare=prep), {}, "float32"), small.hu, batch=7))
    fed = torch.cat(fed)
    rows = np.clip(np.arange(len(fed))[:, None] + np.array([-1, 0, 1]), 0, len(fed) - 1)
    pictures = prepare_images(small.hu, prep)[rows]
    assert torch.allclose(fed, for_network(pictures, prep), atol=1e-6)
    kept = for_network((pictures * 127.5 + 127.5).round() / 127.5 - 1, prep)
    assert (fed - kept).abs().quantile(0.99) < 1.01 / 255
    assert (fed.min() < 0) == (span == "signed") and fed.max() <= 1


def test_a_z_score_does_not_care_for_brightness_or_contrast():
    pictures = torch.rand(3, 2, 40, 40, generator=torch.Generator().manual_seed(1)) * 0.5
    prep = Preparation(method="zscore")
    assert torch.allclose(for_network(pictures, prep), for_network(pictures * 0.6 - 0.7, prep), atol=1e-5)
    assert for_network(pictures, replace(prep, limit_sd=0.5)).abs().max() == 1
    for value in (-1.0, 0.3, 1.0):
        assert torch.equal(for_network(torch.full((1, 1, 9, 9), value), prep), torch.zeros(1, 1, 9, 9))


def test_ends_are_those_of_each_side():
    mask = np.zeros((40, 6, 30), bool)
    mask[3:13, :, 2:9] = mask[20:40, :, 20:28] = True
    assert np.flatnonzero(at_ends(mask)).tolist() == [3, 4, 11, 12, 20, 21, 22, 37, 38, 39]
    assert at_ends(mask[5:6]).tolist() == [True]
    assert not at_ends(mask[:0]).size and not at_ends(mask[:3]).any()
    one = np.zeros((9, 5, 5), bool)
    one[2:8, 2, 2] = True  # a single column of voxels: one side holds nothing
    assert np.flatnonzero(at_ends(one)).tolist() == [2, 7]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "A store of two phantoms."
    home = tmp_path_factory.mktemp("two")
    (home / "volumes").mkdir()
    for seed in (11, 12):
        p = draw_phantom(seed, size=64, slices=24)
        arrays = {"hu": p.hu, "mask": lungs_of(p).astype(np.uint8), "affine": p.affine}
        np.savez(home / "volumes" / f"Case_{seed:03d}.npz", **arrays)
    return build_store(find_cases(home / "volumes").cases, home / "store")


@pytest.mark.parametrize("edges", [1.0, 1.3, 2.0, 2.5, 4.75])
def test_the_ends_of_the_lungs_come_as_often_as_is_asked(two, edges):
    data = SliceDataset(two, two.names, Preparation(size=8))
    orders = [epoch_order(data, seed=5, epoch=e, empty=0.4, edges=edges) for e in (0, 0, 1)]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    times = np.stack([np.bincount(order, minlength=len(data)) for order in orders[1:]])
    assert set(times[:, data.has_lung & ~data.at_end].ravel()) == {1}
    assert set(times[:, data.at_end].ravel()) <= {int(edges), int(edges) + 1}
    assert (
        times[:, data.at_end].sum(1) == int(edges) * data.at_end.sum() + round(edges % 1 * data.at_end.sum())
    ).all()
    assert (times[:, ~data.has_lung].sum(1) == round(0.4 * (~data.has_lung).sum())).all()
    shown = [i for i, _, _ in batches(data, 6, seed=5, epoch=1, empty=0.4, edges=edges)]
    assert np.concatenate(shown).tolist() == orders[2].tolist()


def test_once_is_the_order_it_was_without_ends(two):
    data = SliceDataset(two, two.names, Preparation(size=8))
    plain = epoch_order(data, seed=0, epoch=2, empty=0.5)
    data.at_end = np.zeros_like(data.at_end)
    assert plain.tolist() == epoch_order(data, seed=0, epoch=2, empty=0.5, edges=9.0).tolist()


def test_negatives_of_a_lung_box_are_slices_of_the_box(two):
    "Without tumour a network is shown the lungs above and below it, and nothing of the belly."
    data = SliceDataset(two, two.names, replace(LUNGS, size=16))
    views = [view_of(c.hu, LUNGS, c.spacing_mm) for c in map(two.case, two.names)]
    for k, view in enumerate(views):
        assert data.slice[data.case == k].tolist() == list(view.shown)
        assert len(view.shown) < len(two.case(two.names[k]).hu)
    data.has_lung = data.slice == 12  # as if a tumour lay in that slice alone
    data.at_end = data.has_lung.copy()
    some = epoch_order(data, seed=0, epoch=0, empty=0.5)
    assert set(np.flatnonzero(data.has_lung)) <= set(some)
    assert len(some) == 2 + round(0.5 * (len(data) - 2)) < len(data)


@pytest.mark.parametrize("equalise", ["histogram", "clahe"])
@pytest.mark.parametrize("method", ["window", "winsorise", "zscore"])
def test_equalised_slices_keep_their_range_and_their_air(small, equalise, method):
    prep = Preparation(size=64, method=method, equalise=equalise)
    view = view_of(small.hu, prep)
    plain = prepare_images(small.hu, replace(prep, equalise="none"), view)
    images = prepare_images(small.hu, prep, view)
    assert images.dtype == torch.float32 and images.shape == plain.shape
    assert -1 <= images.min() and images.max() <= 1 and images.isfinite().all()
    assert images[plain == -1].mean() < -0.95
    assert (images - plain).abs()[10:20].mean() > 0.02
    some = prepare_images(small.hu, prep, view, range(7, 9))
    assert torch.equal(some, images[7:9])  # a slice does not depend on those that are prepared with it


@pytest.mark.parametrize("equalise", ["histogram", "clahe"])
def test_soft_tissue_is_about_where_density_is_painted(phantom, equalise):
    prep = Preparation(size=96, equalise=equalise)
    view = replace(view_of(phantom.hu, prep), frame=whole_frame(phantom.hu.shape[1:]))
    soft = np.abs(phantom.hu - 40) < 20
    assert abs(prepare_images(phantom.hu, prep, view)[soft].median() - prep.tissue) < 0.25


@pytest.fixture(scope="module")
def small():
    "A small phantom."
    return draw_phantom(11, size=64, slices=24)


def one_case(folder, phantom):
    "A store of one case."
    (folder / "volumes").mkdir(parents=True)
    np.savez(folder / "volumes" / "Case_000.npz", hu=phantom.hu, mask=lungs_of(phantom).astype(np.uint8))
    return build_store(find_cases(folder / "volumes").cases, folder / "store")


def views_in(store):
    return sorted(f.name for f in (store.path / "Case_000").glob("*view_*"))


def test_what_was_found_of_a_case_is_read_only_for_the_same_ct_settings_and_code(
    small, tmp_path, monkeypatch
):
    store, calls, really = one_case(tmp_path, small), [], slices.view_of
    monkeypatch.setattr(slices, "view_of", lambda *a: (calls.append(1), really(*a))[1])
    prep = replace(SUPPRESSED, size=16)
    one, two = (SliceDataset(store, store.names, prep) for _ in range(2))
    assert len(calls) == len(views_in(store)) == 1
    assert all(
        torch.equal(a, b) for a, b in zip(one.batch(np.arange(9)), two.batch(np.arange(9)), strict=True)
    )
    assert one.missed == two.missed
    SliceDataset(store, store.names, replace(prep, size=24, method="zscore", neighbours=1))  # not of the view
    assert len(calls) == 1
    SliceDataset(store, store.names, replace(prep, box_margin_mm=20.0))
    assert len(calls) == len(views_in(store)) == 2
    case = store.case("Case_000")
    slices.kept_view(replace(case, spacing_mm=(3.0, 1.0, 1.0), spacing_known=True), prep)
    slices.kept_view(replace(case, meta=case.meta | {"sha256": {"hu": "another"}}), prep)
    assert len(calls) == 4
    monkeypatch.setattr(slices, "_code", lambda: "of tomorrow")
    slices.kept_view(case, prep)
    assert len(calls) == 5
    assert (
        not store.verify()
        and store.names == build_store(find_cases(tmp_path / "volumes").cases, store.path).names
    )


@pytest.mark.parametrize("harm", ["cut", "emptied", "of something else"])
def test_a_broken_view_is_found_again(small, tmp_path, harm):
    store = one_case(tmp_path, small)
    case, prep = store.case("Case_000"), replace(SUPPRESSED, size=16)
    view = slices.kept_view(case, prep)
    path = store.path / "Case_000" / views_in(store)[0]
    if harm == "of something else":
        np.savez(path, nothing=np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[: 200 if harm == "cut" else 0])
    for _ in range(2):
        again = slices.kept_view(case, prep)
        assert (again.frame, again.shown) == (view.frame, view.shown)
        assert np.array_equal(again.region, view.region)


def test_a_store_that_cannot_be_written_to_serves_as_well(small, tmp_path, monkeypatch):
    store = one_case(tmp_path, small)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slices.np, "savez_compressed", full)
    assert len(SliceDataset(store, store.names, replace(LUNGS, size=16)))
    assert views_in(store) == []


def test_a_case_without_lungs_says_so_every_time(small, tmp_path):
    store = one_case(tmp_path, small)
    np.save(store.path / "Case_000" / "hu.npy", without_lungs(small))
    for _ in range(2):
        with pytest.warns(NoLungsWarning, match="Case_000: no lungs found"):
            SliceDataset(store, store.names, replace(SUPPRESSED, size=16))
    assert len(views_in(store)) == 1


def test_memory_does_not_grow_with_the_cohort(two, tmp_path, monkeypatch):
    "Kept in files, slices are prepared a few at a time, and two cases take no more memory than one."
    import tracemalloc

    peaks, at_once, really = [], [], slices.resize
    monkeypatch.setattr(slices, "resize", lambda x, *a, **k: (at_once.append(len(x)), really(x, *a, **k))[1])
    for k, many in enumerate((1, 1, 2)):  # the first one warms up
        tracemalloc.start()
        data = SliceDataset(two, two.names[:many], Preparation(size=256), folder=tmp_path / str(k))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert isinstance(data.images, np.memmap) and isinstance(data.masks, np.memmap)
        assert len(data) == many * 24
    a_case = data.images[:24].nbytes + data.masks[:24].nbytes
    assert peaks[2] - peaks[1] < 0.1 * a_case and max(at_once) <= 16
