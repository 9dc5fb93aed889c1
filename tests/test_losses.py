"What training minimises, by formula and by law: ranges, symmetries and slopes."

import re
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lungseg.core import ModelError
from lungseg.losses import (
    CombinedLoss,
    alpha_at,
    bce,
    boundary_at,
    boundary_loss,
    focal_loss,
    make_loss,
    signed_distance,
    soft_dice_loss,
    tversky_loss,
    weighted_bce,
)
from lungseg.recipe import LOSSES, Loss, load_recipe

often = settings(deadline=None, max_examples=20)

PIXELS = {
    "bce": bce,
    "weighted": partial(weighted_bce, beta=0.8),
    "focal": partial(focal_loss, gamma=2.0),
    "focal, gentle": partial(focal_loss, gamma=0.5),
}
OVERLAPS = {
    f"{name}, {per}, {smooth:g}": partial(one, per=per, smooth=smooth)
    for name, one in {
        "dice": soft_dice_loss,
        "squared": partial(soft_dice_loss, squared=True),
        "tversky": partial(tversky_loss, beta=0.8),
    }.items()
    for per in ("batch", "slice")
    for smooth in (0.0, 1.0)
}
EVERY = PIXELS | OVERLAPS | {"boundary": boundary_loss}
TABLES = [
    Loss(kind=kind, alpha=0.6, beta=0.7, per=per, smooth=smooth, boundary=0.2)
    for kind in LOSSES
    for per, smooth in (("batch", 1.0), ("slice", 0.0))
]


@st.composite
def examples(draw, fractions=False, most=30.0):
    "Logits and a reference of like shape, some slices empty and some full."
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=5))
    shape = (draw(st.integers(1, 3)), 1, *shape)
    values = st.floats(-most, most, width=32)
    logits = draw(arrays(np.float64, shape, elements=values))
    inside = st.floats(0, 1, width=32) if fractions else st.sampled_from([0.0, 1.0])
    target = draw(arrays(np.float64, shape, elements=inside))
    for i, whole in enumerate(draw(st.lists(st.sampled_from([None, None, 0.0, 1.0]), max_size=shape[0]))):
        if whole is not None:
            target[i] = whole
    return torch.from_numpy(logits), torch.from_numpy(target)


def certain(mask):
    "Logits that leave no doubt."
    return 100 * mask - 50


# --- formulas, once more and plainly, in NumPy


def plain_overlap(z, t, beta, per, smooth, squared=False):
    p = 1 / (1 + np.exp(-z))
    rows = [(p, t)] if per == "batch" else list(zip(p, t, strict=True))
    scores = []
    for p, t in rows:
        both = (p * t).sum()
        missed = (t**2 if squared else t).sum() - both
        invented = (p**2 if squared else p).sum() - both
        below = both + beta * missed + (1 - beta) * invented + smooth / 2
        scores.append((both + smooth / 2) / below if below > 1e-6 else 0.0)
    return 1 - np.mean(scores)


@often
@given(examples(fractions=True, most=12))
def test_values_are_those_of_the_formulas(example):
    z, t = (x.numpy() for x in example)
    p = 1 / (1 + np.exp(-z))
    yes, no = t * np.log(p), (1 - t) * np.log(1 - p)
    plain = {
        "bce": -(yes + no).mean(),
        "weighted": -(0.8 * yes + 0.2 * no).mean(),
        "focal": -((1 - p) ** 2 * yes + p**2 * no).mean(),
        "focal, gentle": -((1 - p) ** 0.5 * yes + p**0.5 * no).mean(),
    }
    for per in ("batch", "slice"):
        for smooth in (0.0, 1.0):
            plain[f"dice, {per}, {smooth:g}"] = plain_overlap(z, t, 0.5, per, smooth)
            plain[f"squared, {per}, {smooth:g}"] = plain_overlap(z, t, 0.5, per, smooth, squared=True)
            plain[f"tversky, {per}, {smooth:g}"] = plain_overlap(z, t, 0.8, per, smooth)
    for name, value in plain.items():
        got = EVERY[name](*example)
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(value, rel=1e-6, abs=1e-6), name


@often
@given(arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))))
def test_distances_are_those_to_the_nearest_pixel_of_the_other_kind(masks):
    found = signed_distance(torch.from_numpy(masks.astype(np.float32))).numpy()
    for mask, distance in zip(masks, found, strict=True):
        if mask.all() or not mask.any():
            assert (distance == 0).all()
            continue
        for q in np.ndindex(*mask.shape):
            nearest = np.linalg.norm(np.argwhere(mask != mask[q]) - q, axis=1).min() - 0.5
            assert distance[q] == pytest.approx(-nearest if mask[q] else nearest, abs=1e-5)


@often
@given(examples(fractions=True))
def test_the_boundary_loss_is_the_mean_price_of_wrong_pixels(example):
    z, t = example
    price = signed_distance(t).double().abs()
    wrong = (z.sigmoid() - (t >= 0.5).double()).abs()
    assert boundary_loss(z, t).item() == pytest.approx((price * wrong).mean().item(), abs=1e-9)


# --- laws


@often
@given(examples(fractions=True, most=100))
def test_losses_of_pixels_and_surface_are_never_negative_and_overlaps_lie_from_0_to_1(example):
    for name, loss in EVERY.items():
        value = loss(*example).item()
        assert value >= -1e-9, name
        assert name not in OVERLAPS or value <= 1 + 1e-9, name


@often
@given(examples())
def test_no_answer_is_cheaper_than_the_right_one(example):
    z, t = example
    for name, loss in EVERY.items():
        assert loss(certain(t), t) <= loss(z, t) + 1e-9, name
    for table in TABLES:
        criterion = make_loss(table)
        assert criterion(certain(t), t) <= criterion(z, t) + 1e-9, table


@often
@given(examples(fractions=True, most=8))
def test_the_squared_overlap_is_best_at_the_truth(example):
    z, t = example
    t = t.clamp(0.001, 0.999)
    truth = soft_dice_loss(torch.logit(t), t, squared=True, smooth=0.0)
    assert truth.item() == pytest.approx(0, abs=1e-9)
    assert truth <= soft_dice_loss(z, t, squared=True, smooth=0.0) + 1e-9


@often
@given(examples(fractions=True), st.floats(0, 1))
def test_inside_and_outside_may_change_places(example, beta):
    z, t = example
    for loss in (bce, focal_loss):
        assert loss(-z, 1 - t).item() == pytest.approx(loss(z, t).item(), abs=1e-9)
    swapped = weighted_bce(-z, 1 - t, beta=1 - beta)
    assert swapped.item() == pytest.approx(weighted_bce(z, t, beta=beta).item(), abs=1e-9)
    whole = (t >= 0.5).double()
    assert boundary_loss(-z, 1 - whole).item() == pytest.approx(boundary_loss(z, whole).item(), abs=1e-6)


@often
@given(examples(), st.floats(0, 1))
def test_prediction_and_reference_may_change_places_in_an_overlap(example, beta):
    z, t = example
    mask = (z > 0).double()
    for per in ("batch", "slice"):
        there, back = (soft_dice_loss(certain(a), b, per=per) for a, b in ((mask, t), (t, mask)))
        assert there.item() == pytest.approx(back.item(), abs=1e-9)
        missed = tversky_loss(certain(mask), t, beta=beta, per=per)
        invented = tversky_loss(certain(t), mask, beta=1 - beta, per=per)
        assert missed.item() == pytest.approx(invented.item(), abs=1e-9)


@often
@given(examples(fractions=True))
def test_for_one_slice_batch_and_slice_are_the_same(example):
    z, t = (x[:1] for x in example)
    for name, loss in OVERLAPS.items():
        other = OVERLAPS[name.replace("batch", "slice")]
        assert loss(z, t).item() == other(z, t).item()


@often
@given(examples(fractions=True))
def test_the_order_of_slices_and_the_way_they_face_do_not_matter(example):
    z, t = example
    for name, loss in EVERY.items():
        value = pytest.approx(loss(z, t).item(), abs=1e-9)
        for turned in (lambda x: x.flip(0), lambda x: x.flip(2), lambda x: x.mT):
            assert loss(turned(z), turned(t)).item() == value, name


@often
@given(examples(most=100), st.floats(0.01, 1))
def test_careless_an_empty_slice_costs_1_and_teaches_nothing(example, beta):
    z = example[0].float().requires_grad_()
    for loss in (soft_dice_loss, partial(soft_dice_loss, squared=True), partial(tversky_loss, beta=beta)):
        value = loss(z, torch.zeros_like(z), per="slice", smooth=0.0)
        (slope,) = torch.autograd.grad(value, z)
        assert value.item() == 1 and not slope.any()
        mended = loss(z.clamp(-5, 5), torch.zeros_like(z), per="slice", smooth=1.0)
        assert 0 <= mended.item() < 1


@pytest.mark.parametrize("empty", range(9))
def test_the_floor_of_the_careless_loss_is_the_share_of_empty_slices(empty):
    t = torch.zeros(8, 1, 6, 6)
    t[empty:, :, 2:5, 1:4] = 1
    flawed, mended = Loss(per="slice", smooth=0.0), Loss()
    assert make_loss(flawed)(certain(t), t).item() == pytest.approx(0.5 * empty / 8, abs=1e-6)
    assert make_loss(mended)(certain(t), t).item() == pytest.approx(0, abs=1e-6)


# --- slopes and precision


def masks():
    "Empty, full, mixed and fractional references of two slices."
    some = torch.zeros(2, 1, 2, 3)
    some[0, :, 1:, :2] = 1
    return torch.zeros_like(some), torch.ones_like(some), some, 0.8 * some + 0.1


@pytest.mark.parametrize("name", EVERY)
def test_slopes_are_those_that_finite_differences_measure(name):
    torch.manual_seed(0)
    for t in masks():
        z = (2 * torch.randn(t.shape, dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(EVERY[name], (z, t.double()))


def test_slopes_of_every_kind_are_those_that_finite_differences_measure():
    torch.manual_seed(0)
    z = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    for table in TABLES:
        assert torch.autograd.gradcheck(make_loss(table), (z, masks()[3].double()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_and_slopes_are_finite_whatever_the_network_says(dtype):
    for table in TABLES:
        criterion = make_loss(table)
        for t in masks():
            for z in (
                torch.full_like(t, 100.0),
                torch.full_like(t, -100.0),
                6e4 * (2 * t - 1),
                6e4 * (1 - 2 * t),
            ):
                z = z.to(dtype).requires_grad_()
                value = criterion(z, t)
                (slope,) = torch.autograd.grad(value, z)
                assert value.isfinite() and slope.isfinite().all()
                assert value.dtype == torch.promote_types(dtype, torch.float32) and slope.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_only_in_the_logits(name, dtype):
    "Sums of more pixels than a 16-bit number can count."
    z = torch.linspace(-3, 3, 300 * 300).reshape(1, 1, 300, 300).to(dtype)
    t = (torch.arange(300) > 100).to(dtype).expand(1, 1, 300, 300)
    assert EVERY[name](z, t).item() == EVERY[name](z.float(), t.float()).item()


def test_automatic_mixed_precision_leaves_the_losses_alone():
    z, t = torch.linspace(-9, 9, 2 * 40 * 40).reshape(2, 1, 40, 40), torch.ones(2, 1, 40, 40)
    for table in TABLES:
        criterion = make_loss(table)
        with torch.autocast("cpu", torch.bfloat16):
            value = criterion(z, t)
        assert value.dtype == torch.float32 and value.item() == criterion(z, t).item()


def test_a_loss_changes_nothing_it_is_given():
    z, t = torch.randn(2, 1, 2, 3), masks()[3]
    before = z.clone(), t.clone()
    for table in TABLES:
        make_loss(table)(z, t)
    assert torch.equal(z, before[0]) and torch.equal(t, before[1])


# --- recipes and schedules


def test_a_recipe_without_a_word_about_the_loss_is_half_cross_entropy_and_half_dice():
    z, t = torch.randn(2, 1, 5, 5), (torch.rand(2, 1, 5, 5) > 0.5).float()
    assert make_loss(Loss())(z, t).item() == CombinedLoss(0.5)(z, t).item()


@pytest.mark.parametrize("alpha, beta", [(2 / 3, 0.5), (0.3, 0.9)])
def test_combo_is_the_formula_of_its_paper(alpha, beta):
    z, t = torch.randn(3, 1, 5, 5), (torch.rand(3, 1, 5, 5) > 0.5).float()
    p = z.sigmoid()
    crossed = -(beta * t * p.log() + (1 - beta) * (1 - t) * (1 - p).log()).mean()
    dice = (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    combo = make_loss(Loss(kind="combo", alpha=alpha, beta=beta))
    assert combo(z, t).item() == pytest.approx((alpha * crossed - (1 - alpha) * dice).item(), abs=1e-5)


NAMES = sorted(f.name for f in (files("lungseg") / "recipes").iterdir() if f.name.endswith(".toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_of_the_package_has_a_loss_that_learns(name):
    "A few steps downhill on free logits make each of them smaller."
    loss = load_recipe(name.removesuffix(".toml")).loss
    t = torch.zeros(2, 1, 8, 8)
    t[0, :, 2:6, 2:6] = 1
    for epoch in (0, 99):
        criterion, z = make_loss(loss, epoch=epoch, epochs=100), torch.zeros_like(t, requires_grad=True)
        values = []
        for _ in range(8):
            values.append(value := criterion(z, t))
            (slope,) = torch.autograd.grad(value, z)
            z = (z - 20 * slope).detach().requires_grad_()
        assert values[-1] < values[0]
        assert ((z > 0) == (t > 0)).all()


@often
@given(st.integers(1, 40), st.integers(0, 60), st.floats(0, 2))
def test_weights_follow_their_schedule(epochs, first, boundary):
    loss = Loss(alpha=0.7, first_alpha=0.1, first_epochs=first, boundary=boundary)
    alphas = [alpha_at(loss, epoch) for epoch in range(epochs)]
    assert alphas == ([0.1] * first + [0.7] * epochs)[:epochs]
    rising = [boundary_at(loss, epoch, epochs) for epoch in range(epochs)]
    assert rising == sorted(rising) and rising[-1] == boundary
    assert epochs == 1 or rising[0] == 0
    made = [make_loss(loss, epoch=epoch, epochs=epochs) for epoch in range(epochs)]
    assert [(m.alpha, m.boundary) for m in made] == list(zip(alphas, rising, strict=True))


def test_what_weighs_nothing_is_not_worked_out():
    def never(*args, **options):
        raise AssertionError("worked out all the same")

    z = torch.zeros(1, 1, 2, 2)
    assert CombinedLoss(1.0, overlap=never)(z, z).item() == bce(z, z).item()
    assert CombinedLoss(0.0, pixels=never)(z, z).item() == soft_dice_loss(z, z).item()


def test_the_kinds_of_a_recipe_are_those_that_can_be_made():
    z = torch.zeros(1, 1, 2, 2)
    assert all(make_loss(Loss(kind=kind))(z, z).isfinite() for kind in LOSSES)
    with pytest.raises(ModelError) as told:
        make_loss(SimpleNamespace(**asdict(Loss()) | {"kind": "hinge"}))
    assert set(re.findall(r'"(\w+)"', str(told.value))) == set(LOSSES)
