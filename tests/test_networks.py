"Every kind of network: what goes in and out, what learns, what it costs, and whose weights it begins with."

import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lungseg.cohort import build_store, find_cases
from lungseg.core import ModelError
from lungseg.networks import (
    NAMES,
    NETWORKS,
    VGG13_BN,
    AttentionGate,
    EncoderWarning,
    build_network,
    encoder_parameters,
    freeze,
    take_encoder,
)
from lungseg.phantom import LABELS, draw_phantom
from lungseg.predict import load_model
from lungseg.recipe import ENCODER_NAMES, KINDS, Net, Recipe
from lungseg.runs import save_weights
from lungseg.slices import Preparation, SliceDataset
from lungseg.train import make_net
from lungseg.unet import UNet, count_parameters, draw_unet, multiply_adds, reach, stages

KINDS_AND_CHANNELS = [("unet", 1), ("recurrent", 1), *((kind, 3) for kind in KINDS)]


def tiny(kind="unet", channels=1, *, seed=0, out=1, **changes):
    "A network of width 4 and depth 2."
    torch.manual_seed(seed)
    return build_network(Net(kind=kind, width=4, depth=2, **changes), channels, out)


def picture(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def descend(net, slopes, step):
    "Each parameter that has a slope moves one step down it, however steep it is."
    for p, slope in zip(net.parameters(), slopes, strict=True):
        if slope is not None:
            p -= step * slope.sign()


class FirstUNet(nn.Module):
    "The U-Net as the first runs were trained with, written out: their weights must mean the same for ever."

    def __init__(self, in_channels, out_channels, width, depth, dropout, patch):
        super().__init__()
        w = [width * 2**k for k in range(depth + 1)]
        self.depth, self.patch = depth, patch
        self.down = nn.ModuleList(
            self.stage(i, o, dropout) for i, o in zip([in_channels * patch**2, *w[:-1]], w, strict=True)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * v, v, 2, stride=2) for v in w[-2::-1])
        self.merge = nn.ModuleList(self.stage(2 * v, v, 0) for v in w[-2::-1])
        self.head = nn.Conv2d(width, out_channels * patch**2, 1)

    def stage(self, i, o, dropout):
        one = [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        two = [nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        return nn.Sequential(*one, *two, *([nn.Dropout2d(dropout)] if dropout else []))

    def forward(self, x):
        h, w = x.shape[-2:]
        m = self.patch * 2**self.depth
        x = F.pixel_unshuffle(F.pad(x, (0, -w % m, 0, -h % m), mode="replicate"), self.patch)
        seen = []
        for k, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if k else x)
            seen.append(x)
        for k, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            x = merge(torch.cat([up(x), seen[-2 - k]], 1))
        return F.pixel_shuffle(self.head(x), self.patch)[..., :h, :w]


@pytest.mark.parametrize("sizes", [(1, 1, 4, 2, 0.0, 1), (3, 2, 4, 1, 0.2, 2), (1, 1, 3, 0, 0.0, 1)])
def test_old_weights_load_and_mean_the_same(sizes):
    in_channels, out_channels, width, depth, dropout, patch = sizes
    torch.manual_seed(5)
    old = FirstUNet(*sizes)
    torch.manual_seed(5)
    new = build_network(Net("unet", width, depth, dropout, patch), in_channels, out_channels)
    assert list(old.state_dict()) == list(new.state_dict())
    for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True):
        assert a.equal(b), "the same seed draws the same first weights"
    for norm in [m for m in old.modules() if isinstance(m, nn.BatchNorm2d)]:
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.bias)
    new.load_state_dict(old.state_dict())
    x = picture(2, in_channels, 19, 30)
    assert old.eval()(x).equal(new.eval()(x))
    torch.manual_seed(6)
    learning = old.train()(x)
    torch.manual_seed(6)
    assert learning.equal(new.train()(x)), "dropout falls on the same channels"


def test_recipes_know_exactly_these_kinds():
    assert tuple(NETWORKS) == KINDS and tuple(NAMES) == ENCODER_NAMES
    for kind in KINDS:
        net = make_net(Recipe(prepare=Preparation(neighbours=1), net=Net(kind, width=2, depth=1)))
        assert net.in_channels == 3
    with pytest.raises(ModelError, match=r"net.kind: expected unet, residual, .* got 'vit'"):
        build_network(_Unknown(), 1)


class _Unknown:
    kind, width, depth, dropout, patch = "vit", 4, 2, 0.0, 1


@pytest.mark.parametrize(("kind", "channels"), KINDS_AND_CHANNELS)
@pytest.mark.parametrize("changes", [{}, {"patch": 2, "dropout": 0.1}])
def test_any_size_goes_in_and_comes_out(kind, channels, changes):
    net = tiny(kind, channels, out=2, **changes)
    for h, w in [(32, 32), (33, 18), (5, 64), (1, 1)]:
        assert net.eval()(picture(2, channels, h, w)).shape == (2, 2, h, w)
    assert net.train()(picture(2, channels, 20, 13)).shape == (2, 2, 20, 13)


@pytest.mark.parametrize("kind", KINDS)
def test_depth_may_be_nothing(kind):
    torch.manual_seed(0)
    net = build_network(Net(kind, width=4, depth=0), 1)
    net(picture(2, 1, 9, 9)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    assert [s[0] for s in stages(net, (9, 9))] == ["picture", "bottom", "logits"]
    draw_unet(net, (9, 9)).clear()


@pytest.mark.parametrize(("kind", "channels"), KINDS_AND_CHANNELS)
def test_the_slope_reaches_every_parameter(kind, channels):
    net = tiny(kind, channels, dropout=0.1, patch=2)
    net(picture(4, channels, 32, 32)).square().mean().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_slope_reaches_every_neighbour(kind):
    net, x = tiny(kind, 5), picture(2, 5, 16, 16).requires_grad_()
    net(x).square().sum().backward()
    assert (x.grad.abs().sum((0, 2, 3)) > 0).all()


# Counted on paper for width 4, depth 1, one slice, patch 1.
# U-Net: 9·4 + 9·16 + 16 = 196 down, 9·32 + 9·64 + 32 = 896 at the bottom, 4·8·4 + 4 = 132 up,
# 9·32 + 9·16 + 16 = 448 to merge, 4 + 1 in the head. Projections: 1·4 + 8, 4·8 + 16, 8·4 + 8.
# Dilated: twice 9·64 + 16. Gate: 4·4·2, 8·2 + 2, 2 + 1.
# Memories of 2 channels: twice 3 · (9·10·2 + 2); recall 4·8 + 8.
ON_PAPER = {
    "unet": 1677,
    "residual": 1677 + 12 + 48 + 40,
    "dilated": 1677 + 2 * 592,
    "attention": 1677 + 32 + 18 + 3,
    "recurrent": 1677 + 2 * 546 + 40,
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_as_many_as_on_paper(kind):
    assert count_parameters(build_network(Net(kind, width=4, depth=1), 1)) == ON_PAPER[kind]


def test_multiplications_are_as_many_as_on_paper():
    per_pixel = {
        "residual": 64 * (1 * 4) + 16 * (4 * 8) + 64 * (8 * 4),
        "dilated": 16 * 2 * 9 * 64,
        "attention": 16 * (4 * 4 * 2 + 8 * 2 + 2),
        "recurrent": 16 * (2 * 3 * 9 * 10 * 2 + 4 * 8),
    }
    plain = multiply_adds(UNet(width=4, depth=1), (8, 8))
    for kind, more in per_pixel.items():
        assert multiply_adds(build_network(Net(kind, width=4, depth=1), 1), (8, 8)) == plain + more
    net = build_network(Net("recurrent", width=4, depth=1), 3)
    down = 64 * (36 + 144) + 16 * (288 + 576)
    walk = 16 * (2 * 2 * 3 * 9 * 10 * 2 + 4 * 8)  # two steps each
    assert multiply_adds(net, (8, 8)) == plain + 2 * down + walk


@pytest.mark.parametrize(("kind", "channels"), KINDS_AND_CHANNELS)
def test_the_same_seed_gives_the_same_network(kind, channels):
    one, two, other = (tiny(kind, channels, seed=s).state_dict() for s in (3, 3, 4))
    assert all(one[k].equal(two[k]) for k in one)
    assert any(not one[k].equal(other[k]) for k in one)


@pytest.mark.parametrize(("kind", "channels"), KINDS_AND_CHANNELS)
def test_prediction_does_not_depend_on_the_company(kind, channels):
    net, x = tiny(kind, channels), picture(5, channels, 24, 24)
    net.train()(3 * x + 1)  # statistics that are not those of x
    alone = torch.cat([net.eval()(one[None]) for one in x])
    assert torch.allclose(net(x), alone, atol=1e-5)
    assert not torch.allclose(net.train()(x), alone, atol=1e-3)


@pytest.mark.parametrize(("kind", "channels"), KINDS_AND_CHANNELS)
def test_memory_format_and_bfloat16_change_only_the_rounding(kind, channels):
    net, x = tiny(kind, channels, patch=2), picture(4, channels, 32, 32)
    plain = net.train()(x).detach()
    net, x = (v.to(memory_format=torch.channels_last) for v in (net, x))
    assert torch.allclose(net(x), plain, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - plain).abs().mean() < 0.05 * plain.std()
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns(kind):
    "What is wanted is bright in the slice, or in both of its neighbours."
    torch.manual_seed(1)
    net, x = build_network(Net(kind, width=4, depth=1), 3), picture(4, 3, 16, 16)
    target = ((x[:, 1:2] > 0) | ((x[:, :1] > 0) & (x[:, 2:] > 0))).float()
    losses = []
    for _ in range(20):
        loss = F.binary_cross_entropy_with_logits(net(x), target)
        descend(net, torch.autograd.grad(loss, list(net.parameters())), 0.02)
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_dilated_sees_further_than_the_rest():
    seen = {kind: reach(tiny(kind), 128) for kind in KINDS}
    # The dilated convolutions reach 2 and 4 pixels of the bottom further each way, of 4 picture pixels each.
    least, most = seen["unet"], seen["dilated"]
    assert abs(most - least - 2 * (2 + 4) * 4) <= 8
    assert seen["residual"] <= least + 4 and seen["attention"] < most
    assert 30 < least < most < 128


def test_attention_lies_between_nothing_and_everything():
    torch.manual_seed(0)
    gate = AttentionGate(4, 8)
    for size in (1e-3, 1.0, 1e4):
        a = gate.coefficients(size * picture(3, 4, 10, 6), size * picture(3, 8, 5, 3, seed=1))
        assert a.shape == (3, 1, 10, 6) and a.min() >= 0 and a.max() <= 1
    seen, below = picture(1, 4, 4, 4), picture(1, 8, 2, 2, seed=1)
    assert gate(seen, below).equal(seen * gate.coefficients(seen, below))


def test_attention_obeys_the_stage_below():
    net, x = tiny("attention"), picture(1, 1, 16, 16)
    plain = UNet(width=4, depth=2)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("skips.")})
    for gate in net.skips:
        nn.init.constant_(gate.weigh.bias, 100.0)
    assert torch.allclose(net.eval()(x), plain.eval()(x), atol=1e-6), "gates wide open: a plain U-Net"
    for gate in net.skips:
        nn.init.constant_(gate.weigh.bias, -200.0)
    *seen, lowest = plain.features(x)
    blind = plain.bottom(lowest)
    for up, merge, s in zip(plain.up, plain.merge, reversed(seen), strict=True):
        blind = merge(torch.cat([up(blind), torch.zeros_like(s)], 1))
    assert torch.allclose(net(x), plain.head(blind), atol=1e-6), "gates shut: nothing comes across"


def test_residual_stages_keep_what_came_in():
    net = tiny("residual")
    for stage in [*net.down, *net.merge]:
        nn.init.zeros_(stage.change[-1].weight)
    x = picture(2, 4, 8, 8).relu()
    assert net.merge[-1].keep[0].kernel_size == (1, 1)
    same = type(net.down[0])(4, 4).eval()
    nn.init.zeros_(same.change[-1].weight)
    assert same(x).equal(x)


def test_the_walk_tells_below_from_above_and_the_middle_from_both():
    net, x = tiny("recurrent", 5).eval(), picture(2, 5, 16, 16)
    answer = net(x)
    for order in ([4, 3, 2, 1, 0], [1, 0, 2, 3, 4], [0, 1, 2, 4, 3], [2, 1, 0, 3, 4]):
        assert not net(x[:, order]).equal(answer)
    *seen, lowest = net.features(net.fold(x))
    *middle, _ = UNet.features(net, x[:, 2:3])
    for a, b in zip(seen, middle, strict=True):
        assert torch.allclose(a, b, atol=1e-6), "the skip connections carry the middle slice"
    for k, own in enumerate(lowest.chunk(5, 1)):
        assert torch.allclose(own, UNet.features(net, x[:, k : k + 1])[-1], atol=1e-6)
    with pytest.raises(ModelError, match="odd number of slices, got 4"):
        tiny("recurrent", 4)


def test_both_walks_end_at_the_middle():
    "Where both memories are alike and are recalled alike, a patient may stand on the head."
    net, x = tiny("recurrent", 5), picture(2, 5, 16, 16)
    across = net.bottom
    across.from_above.load_state_dict(across.from_below.state_dict())
    half = across.recall.weight.data[:, : across.recall.in_channels // 2]
    across.recall.weight.data = torch.cat([half, half], 1)
    assert torch.allclose(net(x), net(x.flip(1)), atol=1e-5)
    assert not torch.allclose(net(x), net(x[:, [1, 0, 2, 3, 4]]), atol=1e-4)


def test_a_walk_of_one_slice_is_a_walk():
    alone, x = tiny("recurrent", 1).eval(), picture(1, 1, 16, 16)
    many = tiny("recurrent", 3).eval()
    many.load_state_dict(alone.state_dict())  # the weights do not depend on the number of slices
    assert alone(x).shape == (1, 1, 16, 16)
    assert not torch.allclose(many(x.expand(1, 3, 16, 16)), alone(x), atol=1e-9), "a second step tells more"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    home = tmp_path_factory.mktemp("cohort")
    (home / "volumes").mkdir()
    p = draw_phantom(3, size=48, slices=8)
    lungs = np.isin(p.labels, [LABELS["lung_left"], LABELS["lung_right"]])
    np.savez(home / "volumes" / "Case_000.npz", hu=p.hu, mask=lungs.astype(np.uint8))
    return build_store(find_cases(home / "volumes").cases, home / "store")


@pytest.mark.parametrize("neighbours", [1, 2])
def test_neighbours_come_as_channels_from_below_to_above(store, neighbours):
    prep = Preparation(size=32, frame="image", neighbours=neighbours)
    data = SliceDataset(store, store.names, prep)
    images, masks = data.batch(np.arange(8))
    alone, _ = SliceDataset(store, store.names, replace(prep, neighbours=0)).batch(np.arange(8))
    for channel, step in enumerate(range(-neighbours, neighbours + 1)):
        beside = np.clip(np.arange(8) + step, 0, 7)  # at the ends the last slice stands for the missing one
        assert images[:, channel].equal(alone[beside, 0])
    for kind in KINDS:
        assert tiny(kind, prep.channels).eval()(images).shape == masks.shape


@pytest.mark.parametrize(("kind", "channels"), KINDS_AND_CHANNELS)
def test_stages_and_the_drawing_show_the_live_network(kind, channels):
    net = tiny(kind, channels, patch=2)
    net.train()
    seen = stages(net, (64, 96))
    assert seen == [
        ("picture", 64, 96, channels),
        ("down", 32, 48, 4),
        ("down", 16, 24, 8),
        ("bottom", 8, 12, 16),
        ("up", 16, 24, 8),
        ("up", 32, 48, 4),
        ("logits", 64, 96, 1),
    ]
    assert net.training and not any(m._forward_hooks for m in net.modules())
    fig = draw_unet(net, (64, 96))
    drawn = [t.get_text() for t in fig.axes[0].texts]
    assert [f"{h}×{w}×{c}" for _, h, w, c in seen] == [t for t in drawn if t]
    legend = " ".join(t.get_text() for t in fig.axes[0].get_legend().get_texts())
    assert ("gate" in legend) == (kind == "attention") and ("D4" in legend) == (kind == "dilated")
    assert ("3 slices" in legend) == (kind == "recurrent" and channels == 3)
    assert "K3 S1 P1" in legend and "max pooling K2 S2" in legend and "blocks of 2×2" in legend


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_to_a_file_and_back(tmp_path, kind):
    recipe = Recipe(prepare=Preparation(neighbours=1), net=Net(kind, width=4, depth=1))
    net, x = make_net(recipe).eval(), picture(1, 3, 16, 16)
    model = load_model(save_weights(net, recipe, tmp_path / "model.safetensors"), device="cpu")
    assert torch.allclose(model.net(x), net(x), atol=1e-6)
    assert all(v.equal(net.state_dict()[k]) for k, v in model.net.state_dict().items())


@pytest.fixture
def run(tmp_path):
    "A run's folder: a U-Net of one slice, patch 2, with statistics of its own."
    recipe = Recipe(net=Net(width=4, depth=2, patch=2))
    net = make_net(recipe)
    net.train()(picture(4, 1, 16, 16))
    (tmp_path / "run").mkdir()
    save_weights(net.eval(), recipe, tmp_path / "run" / "model.safetensors")
    return tmp_path / "run", net


def quietly(net, source, **options) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return take_encoder(net, source, **options)


@pytest.mark.parametrize("kind", ["unet", "dilated", "attention", "recurrent"])
def test_a_way_down_is_taken_over_whole(run, kind):
    folder, old = run
    net = tiny(kind, seed=9, patch=2)
    rest = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("down.")}
    assert quietly(net, folder) == len(old.down.state_dict()) == 36
    assert all(v.equal(net.down.state_dict()[k]) for k, v in old.down.state_dict().items())
    assert all(v.equal(net.state_dict()[k]) for k, v in rest.items())
    assert quietly(net, folder / "model.safetensors") == 36
    assert {id(p) for p in encoder_parameters(net)} == {id(p) for p in net.down.parameters()}


def test_a_deeper_network_lends_its_upper_stages(run, tmp_path):
    folder, old = run
    torch.manual_seed(1)
    shallow = UNet(width=4, depth=1, patch=2)
    assert quietly(shallow, folder) == 24
    assert shallow.down[1][3].weight.equal(old.down[1][3].weight)


@pytest.mark.parametrize(("kind", "channels"), [("unet", 3), ("unet", 5), ("dilated", 3)])
def test_a_picture_shown_in_every_channel_is_seen_as_before(run, kind, channels):
    folder, old = run
    net, x = tiny(kind, channels, seed=9, patch=2).eval(), picture(2, 1, 16, 16)
    with pytest.warns(
        EncoderWarning, match=f"first convolution from 1 to {channels} pictures.* spread evenly"
    ):
        assert take_encoder(net, folder) == 36
    shown = net.fold(x.expand(2, channels, 16, 16))
    for a, b in zip(old.features(old.fold(x)), net.features(shown), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    wide = tiny("unet", channels, seed=2, patch=2).eval()
    save_weights(wide, Recipe(net=Net(width=4, depth=2, patch=2)), folder / "wide.safetensors")
    with pytest.warns(EncoderWarning, match=f"from {channels} to 1 pictures"):
        take_encoder(old, folder / "wide.safetensors")
    for a, b in zip(old.features(old.fold(x)), wide.features(shown), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_other_pixel_blocks_are_averaged(run):
    folder, old = run
    net = tiny("unet", seed=9, patch=1).eval()
    with pytest.warns(EncoderWarning, match="from 4 to 1 pictures"):
        take_encoder(net, folder)
    grey = torch.full((1, 1, 8, 8), 0.3)  # where all pixels are alike, blocks do not matter
    a, b = old.features(old.fold(grey.repeat(1, 1, 2, 2)))[0], net.features(grey)[0]
    assert torch.allclose(a[..., 4, 4], b[..., 4, 4], atol=1e-5)


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (
            "",
            {"e.w": (4, 4, 1, 1)},
            r'nothing fits .* \(4, 4, 3, 3\), found "e.w" \(4, 4, 1, 1\) among 1 tensors',
        ),
        ("", {}, "nothing fits .*found nothing of the kind among 0 tensors"),
        ("down.2.3.", {}, r'expected "down.2.3.weight" \(16, 16, 3, 3\), found none'),
        (None, {"down.1.1.bias": (9,)}, r'expected "down.1.1.bias" \(8,\), found \(9,\)'),
        (None, {"down.0.0.weight": (4, 4, 5, 5)}, r'"down.0.0.weight" \(4, 4, 3, 3\), found \(4, 4, 5, 5\)'),
        (None, {"down.0.0.weight": (8, 4, 3, 3)}, r'"down.0.0.weight" \(4, 4, 3, 3\), found \(8, 4, 3, 3\)'),
    ],
)
def test_a_way_down_that_does_not_fit_changes_nothing(run, tmp_path, drop, add, message):
    weights = load_file(run[0] / "model.safetensors")
    kept = {k: v for k, v in weights.items() if drop is None or not k.startswith(drop)}
    save_file(kept | {k: torch.zeros(v) for k, v in add.items()}, tmp_path / "odd.safetensors")
    net = tiny(seed=9, patch=2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ModelError, match=f"^odd.safetensors: .*{message}"):
        take_encoder(net, tmp_path / "odd.safetensors")
    assert all(v.equal(net.state_dict()[k]) for k, v in before.items())


def test_a_plain_way_down_is_no_residual_one(run):
    with pytest.raises(ModelError, match=r'nothing fits the way down: expected "down.0.change.0.weight"'):
        take_encoder(tiny("residual", patch=2), run[0])


def test_what_is_no_safetensors_file_is_not_opened(run, tmp_path):
    ran = tmp_path / "ran"
    bomb = pickle.dumps(_Touch(ran))
    for name, content in [("weights.pt", bomb), ("weights.safetensors", bomb), ("empty.safetensors", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"^{name}: expected a safetensors file"):
            take_encoder(tiny(), tmp_path / name)
    with pytest.raises(ModelError, match=r"^nowhere: expected a run or a safetensors file, found no weights"):
        take_encoder(tiny(), tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ModelError, match=r"^bare: expected a run or a safetensors file, found no weights"):
        take_encoder(tiny(), tmp_path / "bare")
    assert not ran.exists()


class _Touch:
    "A pickle that leaves a trace when it is opened."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_vgg_becomes_a_way_down_under_its_own_names(tmp_path):
    torch.manual_seed(0)
    layers, i = [], 3
    for o in (4, 8, 16, 32, 32):  # configuration B, narrow; its fifth stage has no place in the U-Net
        for _ in range(2):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
            nn.init.normal_(layers[-2].running_mean)
            i = o
        layers.append(nn.MaxPool2d(2))
    vgg = nn.Sequential(*layers).eval()
    weights = {f"features.{k}": v for k, v in vgg.state_dict().items()} | {
        "head.fc.weight": torch.zeros(9, 32)
    }
    save_file(weights, tmp_path / "vgg.safetensors")
    torch.manual_seed(1)
    net, x = UNet(3, width=4, depth=3).eval(), picture(1, 3, 32, 32)
    assert quietly(net, tmp_path / "vgg.safetensors", names=VGG13_BN) == len(net.down.state_dict())
    for a, last in zip(net.features(x), (5, 12, 19, 26), strict=True):
        assert torch.allclose(a, vgg[: last + 1](x), atol=1e-4)
    grey = UNet(1, width=4, depth=3).eval()
    with pytest.warns(EncoderWarning, match="from 3 to 1 pictures"):
        take_encoder(grey, tmp_path / "vgg.safetensors", names=VGG13_BN)
    x = picture(1, 1, 32, 32)
    assert torch.allclose(grey.features(x)[-1], net.features(x.expand(1, 3, 32, 32))[-1], atol=1e-4)


def learn(net):
    "Two steps; slopes are left behind, as a loop may leave them."
    for k in range(2):
        net.train()  # as a loop does in every epoch
        net(picture(4, net.in_channels, 16, 16, seed=k) * 3 + 1).square().mean().backward()
        descend(net, [p.grad for p in net.parameters()], 0.01 * (k + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_way_down_stays_to_the_last_bit_and_thaws(kind):
    net = tiny(kind, 3, dropout=0.2)
    learn(net)
    freeze(net, True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    learn(net)
    for k, v in net.state_dict().items():
        assert v.equal(before[k]) == k.startswith("down."), k
    assert net.training and not net.down.training and net.merge.training
    freeze(net, False)
    assert net.down.training and all(p.requires_grad for p in net.parameters())
    learn(net)
    assert all(not v.equal(before[k]) for k, v in net.state_dict().items() if k.startswith("down."))


def test_freezing_leaves_the_mode_as_it_was():
    net = tiny(dropout=0.5).eval()
    freeze(net, True)
    freeze(net, False)
    assert not any(m.training for m in net.modules())
    freeze(net, True)
    assert net.train().training and not any(m.training for m in net.down.modules())
    assert count_parameters(net) == sum(
        p.numel() for k, p in net.named_parameters() if not k.startswith("down.")
    )
