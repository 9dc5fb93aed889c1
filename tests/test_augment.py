"Slices are varied as asked: picture and mask together, the rest untouched, alike for the same seed."

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from lungseg.augment import (
    MOST,
    Augmentation,
    _bicubic,
    augment,
    bend,
    blurred,
    change_couch,
    cut_field,
    generator,
    move,
    paint_density,
    rescan,
    thickness,
    thin_lungs,
)
from lungseg.cohort import build_store, find_cases
from lungseg.core import ModelError
from lungseg.phantom import LABELS, draw_phantom
from lungseg.slices import Preparation, SliceDataset, prepare_images, prepare_masks, resize, view_of

NOTHING = Augmentation(**dict.fromkeys(vars(Augmentation()), 0.0))
STRENGTHS = {
    **{
        "rotate_deg": 30.0,
        "scale": 0.4,
        "shift": 0.1,
        "elastic": 0.03,
        "flip": 1.0,
        "gain": 0.5,
        "offset": 0.3,
    },
    **{"gamma": 0.8, "blur": 2.0, "kernel": 1.0, "noise": 0.2, "density": 1.0, "emphysema": 1.0},
    **{"couch": 1.0, "field": 1.0},
}
PLACE = ("rotate_deg", "scale", "shift", "elastic", "flip")
ALL = Augmentation(**STRENGTHS)


@pytest.fixture(scope="module")
def chest():
    "Eight slices of a phantom, their lungs and bodies at 96 × 96, as (pictures, masks, bodies, tissue)."
    phantom, prep = draw_phantom(3, size=96, slices=24), Preparation(size=96)
    lungs = np.isin(phantom.labels, [LABELS["lung_left"], LABELS["lung_right"]])
    view = view_of(phantom.hu, prep)
    body = resize(torch.from_numpy((phantom.labels > 0).astype(np.float32)), 96, view.frame) > 0
    images, masks = prepare_images(phantom.hu, prep, view), prepare_masks(lungs, prep, view)
    return images[8:16, None], masks[8:16, None], body[8:16, None], prep.tissue


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_every_strength_is_tested_here():
    assert set(STRENGTHS) | {"thickness"} == set(vars(Augmentation()))


def test_at_zero_nothing_changes_to_the_bit(chest):
    images, masks, _, tissue = chest
    assert same(augment(images, masks, NOTHING, generator(0), tissue=tissue), (images, masks))
    assert same(move(images, masks, NOTHING, generator(0)), (images, masks))
    assert torch.equal(rescan(images, NOTHING, generator(0)), images)
    assert thickness(NOTHING, 3, generator(0)) is None


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_keeps_ranges_and_inputs_and_depends_on_the_generator_alone(chest, name):
    images, masks, _, tissue = chest
    kept = images.clone(), masks.clone()
    aug = replace(NOTHING, **{name: STRENGTHS[name]})
    one, again, other = (augment(images, masks, aug, generator(0, k), tissue=tissue) for k in (0, 0, 1))
    assert same((images, masks), kept)
    assert same(one, again)
    assert not torch.equal(one[0], images)
    assert name == "flip" or not torch.equal(one[0], other[0])
    for x, m in (one, other):
        assert x.isfinite().all() and -1 <= x.min() and x.max() <= 1
        assert m.isfinite().all() and 0 <= m.min() and m.max() <= 1
        assert x.shape == images.shape and m.shape == masks.shape


@pytest.mark.parametrize("name", [name for name in STRENGTHS if name not in (*PLACE, "field")])
def test_masks_move_only_with_the_place_and_the_field(chest, name):
    images, masks, _, tissue = chest
    aug = replace(NOTHING, **{name: STRENGTHS[name]})
    assert torch.equal(augment(images, masks, aug, generator(5), tissue=tissue)[1], masks)


def test_half_strength_leaves_slices_alone_that_are_not_drawn(chest):
    "Probabilities: what is not chosen is the same to the bit, and about half of all is chosen."
    images, masks, _, tissue = chest
    images, masks = images[:1].expand(60, -1, -1, -1), masks[:1].expand(60, -1, -1, -1)
    for name in ("flip", "density", "emphysema", "couch", "field"):
        aug = replace(NOTHING, **{name: 0.5})
        changed, _ = augment(images, masks, aug, generator(1), tissue=tissue)
        alone = (changed - images).abs().amax((1, 2, 3)) < 1e-5
        assert 15 <= alone.sum() <= 45, name


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_is_warped_exactly_as_its_picture(seed):
    "The picture says where each pixel came from; the mask, looked up there by other code, is the moved mask."
    h = w = 64
    random = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(random.random((h, w)), 2)
    mask = (mask - mask.min()) / np.ptp(mask)
    rows, cols = np.mgrid[:h, :w] / (h - 1) * 2 - 1
    images = torch.from_numpy(np.stack([rows, cols])[None].astype(np.float32))
    masks = torch.from_numpy(mask[None, None].astype(np.float32))
    for aug in (
        replace(NOTHING, elastic=0.03),
        replace(NOTHING, elastic=0.03, rotate_deg=20.0, scale=0.3, shift=0.1, flip=0.5),
    ):
        where, moved = move(images, masks, aug, generator(seed))
        back = (where[0].numpy() + 1) / 2 * (h - 1)
        looked_up = ndimage.map_coordinates(mask, back, order=1)
        known = ndimage.binary_erosion((np.abs(where[0].numpy()) < 0.95).all(0))  # not from outside
        assert known.mean() > 0.3
        assert np.abs(looked_up - moved[0, 0].numpy())[known].max() < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_markers_in_picture_and_mask_stay_together_to_a_hundredth_of_a_pixel(seed):
    rows, cols = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    spots = [(30, 30), (30, 60), (60, 30), (62, 58), (48, 45)]
    blobs = [torch.exp(-((rows - r) ** 2 + (cols - c) ** 2) / 8) for r, c in spots]
    both = torch.stack(blobs)[:, None]
    aug = replace(NOTHING, elastic=0.03, rotate_deg=15.0, scale=0.2, shift=0.05)
    images, masks = move(both * 2 - 1, both, aug, generator(seed))

    def centre(x):
        return (
            torch.stack([(x * rows).sum((1, 2, 3)), (x * cols).sum((1, 2, 3))], 1) / x.sum((1, 2, 3))[:, None]
        )

    assert (centre((images + 1) / 2) - centre(masks)).abs().max() < 0.01
    assert (centre(masks) - torch.tensor(spots)).norm(dim=1).max() > 1


def test_shifts_rotation_and_zoom_are_what_was_asked():
    "The tumour report's: shifts of 0.1, 10 degrees, zoom 0.1. Two dots tell all three."
    aug = replace(NOTHING, shift=0.1, rotate_deg=10.0, scale=0.1)
    rows, cols = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    dots = [torch.exp(-((rows - r) ** 2 + (cols - 63.5) ** 2) / 18) for r in (43.5, 83.5)]
    picture = torch.stack(dots)[None].expand(200, -1, -1, -1) * 2 - 1
    moved, _ = move(picture, torch.zeros(200, 1, 128, 128), aug, generator(0))
    x = (moved + 1) / 2
    ends = torch.stack([(x * rows).sum((2, 3)), (x * cols).sum((2, 3))]) / x.sum(
        (2, 3)
    )  # (row | col, slice, dot)
    along = ends[..., 1] - ends[..., 0]
    length, angle = along.norm(dim=0) / 40, torch.rad2deg(torch.atan2(along[1], along[0]))
    middle = (ends.mean(-1) - 63.5).abs() / 128
    assert 1.08 < length.max() < 1.105 and 1 / 1.105 < length.min() < 0.93
    assert 9 < angle.max() < 10.1 and -10.1 < angle.min() < -9
    assert 0.09 < middle.max() < 0.1 * 1.1 * 1.2  # a shift is zoomed and rotated with the picture


def test_the_strongest_rubber_that_is_allowed_cannot_fold_whatever_is_drawn():
    "Slopes are bounded by the weights of the points; below a half the map keeps its orientation everywhere."
    weights = _bicubic(5, 2001, corners=True).double()
    slope = weights.diff(dim=0).abs().sum(1).max() * 1000 * weights.abs().sum(1).max() * 2 * MOST["elastic"]
    assert 0.4 < slope < 0.5


@pytest.mark.parametrize("seed", range(6))
def test_rubber_at_its_utmost_does_not_fold(seed):
    steps = bend((4, 96, 96), 0.03, generator(seed)).double()
    at = torch.linspace(-1, 1, 96, dtype=torch.float64)
    x, y = steps[..., 0] + at, steps[..., 1] + at[:, None]
    across = x.diff(dim=2)[:, 1:] * y.diff(dim=1)[:, :, 1:] - x.diff(dim=1)[:, :, 1:] * y.diff(dim=2)[:, 1:]
    assert (across > 0).all()
    assert steps.abs().max() < 1.4 * 2 * 0.03


def test_each_slice_is_bent_and_blurred_in_its_own_way(chest):
    images, masks, _, _ = chest
    images, masks = images[:1].expand(3, -1, -1, -1), masks[:1].expand(3, -1, -1, -1)
    for aug in (replace(NOTHING, elastic=0.03), replace(NOTHING, blur=3.0), replace(NOTHING, field=1.0)):
        x, _ = augment(images, masks, aug, generator(2))
        assert not torch.equal(x[0], x[1]) and not torch.equal(x[1], x[2])


def test_channels_of_a_slice_are_varied_alike(chest):
    "Neighbours are of one patient on one couch in one field of view: where they were equal, they still are."
    images, masks, _, tissue = chest
    aug = replace(ALL, noise=0.0)
    x, _ = augment(images.expand(-1, 3, -1, -1), masks, aug, generator(3), tissue=tissue)
    assert torch.allclose(x[:, 0], x[:, 1], atol=1e-6) and torch.allclose(x[:, 1], x[:, 2], atol=1e-6)


@pytest.mark.parametrize("limit", [0.5, 2.0, 6.0])
def test_blur_is_a_gaussian(limit):
    dot = -torch.ones(5, 1, 81, 81)
    dot[..., 40, 40] = 1
    steps, sigmas = np.arange(-40, 41), []
    for spread in ((blurred(dot, limit, generator(9)) + 1)[:, 0] / 2).double().numpy():
        rows = spread.sum(1)
        sigmas.append(sigma := np.sqrt(0.5 / np.log(rows[40] / max(rows[41], 1e-300))))
        bell = np.exp(-0.5 * (steps / sigma) ** 2) * (np.abs(steps) <= np.ceil(3 * limit))
        assert np.abs(spread - np.outer(bell, bell) / bell.sum() ** 2).max() < 1e-5
    assert 0.6 * limit < max(sigmas) <= 1.001 * limit and min(sigmas) < 0.6 * limit


@pytest.mark.parametrize("seed", range(6))
def test_a_couch_never_touches_a_body_or_a_lung(chest, seed):
    images, masks, body, tissue = chest
    changed = change_couch(images, masks, generator(seed), share=1.0, tissue=tissue)
    assert torch.equal(changed[body], images[body])
    assert ((changed != images).sum((1, 2, 3)) > 50).all()
    rows = torch.arange(96.0)[:, None]
    middle = (rows * body).sum((1, 2, 3)) / body.sum((1, 2, 3))
    highest = torch.where(changed != images, rows, 96.0).amin((1, 2, 3))
    assert (highest > middle - 5).all(), "only in the lower half"


def test_a_couch_is_taken_out_and_another_drawn(chest):
    images, masks, body, tissue = chest
    bare = images.masked_fill(~body, -1.0)  # as if the patient floated
    bright, gone = [], []
    for seed in range(20):
        bright.append(
            (change_couch(bare, masks, generator(seed), share=1.0, tissue=tissue) - bare).amax((1, 2, 3))
        )
        rest = change_couch(images, masks, generator(seed), share=1.0, tissue=tissue)
        gone.append((rest < images - 0.1).sum((1, 2, 3)))
    drawn = torch.cat(bright) > 0.15
    assert 0.3 < drawn.float().mean() < 0.7
    assert (torch.cat(gone) > 30).all()


@pytest.mark.parametrize("value", [-1.0, 0.3, 1.0])
def test_nothing_but_air_or_nothing_but_tissue_has_no_couch(value):
    images, masks = torch.full((3, 1, 50, 50), value), torch.zeros(3, 1, 50, 50)
    assert torch.equal(change_couch(images, masks, generator(0), share=1.0), images)


@pytest.mark.parametrize("seed", range(6))
def test_what_a_small_field_leaves_is_untouched(chest, seed):
    images, masks, _, _ = chest
    cut, left = cut_field(images, masks, generator(seed), share=1.0)
    gone = cut != images
    assert gone.any() and (cut[gone] == -1).all()
    assert torch.equal(left[~gone & (images > -1)], masks[~gone & (images > -1)])
    assert not left[gone].any()
    assert (left.sum((1, 2, 3)) > 0.5 * masks.sum((1, 2, 3))).all()


def test_density_is_painted_in_masks_alone(chest):
    images, masks, _, tissue = chest
    painted = paint_density(images, masks, generator(1), share=1.0, tissue=tissue)
    assert torch.equal(painted[masks == 0], images[masks == 0]) and (painted >= images).all()


@pytest.mark.parametrize("seed", range(3))
def test_lungs_are_thinned_towards_air_and_vessels_stay(chest, seed):
    images, masks, _, tissue = chest
    thin = thin_lungs(images, masks, generator(seed), share=1.0, tissue=tissue)
    assert torch.equal(thin[masks == 0], images[masks == 0])
    assert (thin <= images).all() and thin.min() >= -1
    assert (thin < images)[(masks > 0) & (images > -1) & (images < -0.5)].float().mean() > 0.5
    assert torch.equal(thin[images >= tissue], images[images >= tissue])


@pytest.mark.parametrize("size", [8, 17, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_any_picture_is_varied(size, channels):
    g = torch.Generator().manual_seed(size)
    for images in (
        torch.rand(2, channels, size, size, generator=g) * 2 - 1,
        torch.full((2, channels, size, size), -1.0),
        torch.full((2, channels, size, size), 1.0),
    ):
        for masks in (torch.zeros(2, 1, size, size), torch.ones(2, 1, size, size)):
            x, m = augment(images, masks, ALL, generator(size))
            assert x.isfinite().all() and -1 <= x.min() and x.max() <= 1
            assert 0 <= m.min() and m.max() <= 1 and x.shape == images.shape


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("couch", 1.5, "0 to 1"),
        ("field", -0.1, "0 or more"),
        ("elastic", 0.2, "0 to 0.03"),
        ("thickness", 3.0, "0 to 2"),
        ("blur", float("nan"), "0 or more"),
        ("rotate_deg", -1.0, "0 or more"),
    ],
)
def test_an_augmentation_that_makes_no_sense_is_refused(name, value, expected):
    with pytest.raises(ModelError, match=f"{name}: expected {expected}, got"):
        Augmentation(**{name: value})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "Two phantoms of 12 slices, as a store."
    home = tmp_path_factory.mktemp("cohort")
    (home / "volumes").mkdir()
    for seed in range(2):
        p = draw_phantom(seed, size=64, slices=12)
        lungs = np.isin(p.labels, [LABELS["lung_left"], LABELS["lung_right"]])
        np.savez(
            home / "volumes" / f"Case_{seed:03d}.npz", hu=p.hu, mask=lungs.astype(np.uint8), affine=p.affine
        )
    return build_store(find_cases(home / "volumes").cases, home / "store")


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("frame", ["body", "lungs"])
def test_thick_slices_are_means_of_slices_of_the_same_patient(store, neighbours, frame):
    prep = Preparation(size=32, neighbours=neighbours, frame=frame, box_margin_mm=0.0, region_margin_mm=0.0)
    data = SliceDataset(store, store.names, prep)
    every = np.arange(len(data))
    thick = thickness(Augmentation(thickness=2.0), len(data), generator(0))
    images, masks = data.batch(every, thick)
    assert -1 <= images.min() and images.max() <= 1 and 0 <= masks.min() and masks.max() <= 1
    for name, case in ((name, store.case(name)) for name in store.names):
        view = view_of(case.hu, prep, case.spacing_mm)
        near = view.widened(neighbours, len(case.hu))
        shown = prepare_images(case.hu, prep, view, near)
        held = torch.zeros(len(near), 32, 32)
        held[view.shown.start - near.start : view.shown.stop - near.start] = prepare_masks(
            case.mask, prep, view
        )
        for i in data.of_case(name):
            at = np.clip(data.slice[i] - near.start + np.array([-1, 0, 1]), 0, len(near) - 1)
            weights = (
                torch.tensor([(thick[i] - 1) / 2, 1, (thick[i] - 1) / 2]).float()[:, None, None] / thick[i]
            )
            assert torch.allclose(images[i, neighbours], (shown[at] * weights).sum(0), atol=1 / 120)
            assert torch.allclose(masks[i, 0], (held[at] * weights).sum(0), atol=1 / 250)
    ones = data.batch(every, np.ones(len(data)))
    assert same(ones, data.batch(every))


def test_training_meets_thick_slices_if_the_recipe_says_so(store):
    "Each slice of a batch is as thick as its own generator says; without thickness nothing is blended."
    from lungseg.recipe import Recipe
    from lungseg.train import batch_of

    data = SliceDataset(store, store.names, Preparation(size=32))
    inner = np.flatnonzero(data.has_lung & ~data.at_end)
    recipe = Recipe(prepare=data.prep, augment=replace(NOTHING, thickness=2.0))
    images, masks = batch_of(data, recipe, inner, 3)
    thick = np.concatenate(
        [thickness(recipe.augment, 1, generator(0, "augment", 3, k)) for k in range(len(inner))]
    )
    assert same((images, masks), data.batch(inner, thick)) and not torch.equal(images, data.batch(inner)[0])
    assert same(batch_of(data, replace(recipe, augment=NOTHING), inner, 3), data.batch(inner))
    everything = replace(recipe, augment=replace(ALL, thickness=1.0))
    assert same(batch_of(data, everything, inner, 3), batch_of(data, everything, inner, 3))
