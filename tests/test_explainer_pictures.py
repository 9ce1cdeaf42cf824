"""Samples of several pictures, (B,T,C,H,W), through 2-D networks: a map for each picture, on one scale a sample."""

import pytest
import torch
from support.networks import ConvNet
from support.refusals import assert_says
from support.tolerances import SAME_INPUTS
from torch import nn
from torch.nn import functional as F

import gradcam_fast
from gradcam_fast import explain, reference
from gradcam_fast.exceptions import NoLayerFound, PicturesMixed
from gradcam_fast.features import feature_maps
from gradcam_fast.ops.arguments import METHODS

BATCH, PICTURES, SIDES = 3, 4, (16, 20)
SHUFFLED = [2, 0, 3, 1]


def trunk():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU(inplace=True))


class Clips(nn.Module):
    """Pools what the trunk sees of each picture, and reads the pictures one after another.

    `how` is the way from (B,T,C,H,W) through the trunk to vectors (B,T,6), by a function of trunk and clips.
    """

    def __init__(self, how):
        super().__init__()
        self.how, self.cnn = how, trunk()
        self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 5)
        self.eval()

    def forward(self, clips):
        return self.head(self.rnn(self.how(self.cnn, clips))[0][:, -1])


def folded(cnn, clips):
    return cnn(clips.flatten(0, 1)).mean((2, 3)).unflatten(0, clips.shape[:2])


def reshaped(cnn, clips):
    return cnn(clips.reshape(-1, *clips.shape[2:])).mean((2, 3)).view(*clips.shape[:2], -1)


def time_first(cnn, clips):
    return folded(cnn, clips.transpose(0, 1)).transpose(0, 1)


def reversed_in_time(cnn, clips):
    return folded(cnn, clips.flip(1)).flip(1)


def shuffled(cnn, clips):
    return folded(cnn, clips[:, SHUFFLED])


def one_by_one(cnn, clips):
    return torch.stack([cnn(pictures).mean((2, 3)) for pictures in clips.unbind(1)], 1)


def last_to_first(cnn, clips):
    return one_by_one(cnn, clips.flip(1))


def without_gradients(cnn, clips):
    with torch.no_grad():
        maps = cnn(clips.flatten(0, 1))
    return maps.mean((2, 3)).unflatten(0, clips.shape[:2])


# Where the picture t of sample b lies among what the trunk returned in all its calls, as (b, t) -> row.
WAYS = {
    folded: lambda b, t: b * PICTURES + t,
    reshaped: lambda b, t: b * PICTURES + t,
    time_first: lambda b, t: t * BATCH + b,
    reversed_in_time: lambda b, t: b * PICTURES + PICTURES - 1 - t,
    shuffled: lambda b, t: b * PICTURES + SHUFFLED.index(t),
    one_by_one: lambda b, t: t * BATCH + b,
    last_to_first: lambda b, t: (PICTURES - 1 - t) * BATCH + b,
    without_gradients: lambda b, t: b * PICTURES + t,
}


def maps_by_autograd(model, clips, classes, modules):
    """What the modules returned in all their calls, and its gradient by class, by an ordinary forward and backward."""
    kept = []

    def keep(_, __, output):
        kept.append(output if output.requires_grad else output.detach().requires_grad_())
        return kept[-1].clone()

    def turn_on(_, __):
        torch.set_grad_enabled(True)

    handles = [module.register_forward_hook(keep) for module in modules]
    handles += [module.register_forward_pre_hook(turn_on) for module in modules]
    with torch.enable_grad():
        logits = model(clips)
        gradients = [torch.autograd.grad(logits[:, c].sum(), kept, retain_graph=True) for c in classes]
    for handle in handles:
        handle.remove()
    return torch.cat(kept).detach().double(), [torch.cat(of_class).double() for of_class in gradients]


def raw_maps(model, clips, classes, row, modules=None, size=SIDES, relu=False):
    """The maps (B,K,T,H,W) of each picture, weighted by its own pooled gradient."""
    activations, gradients = maps_by_autograd(model, clips, classes, modules or [model.cnn])
    order = torch.tensor([[row(b, t) for t in range(PICTURES)] for b in range(len(clips))])
    by_class = []
    for gradient in gradients:
        raw = (gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)
        raw = F.interpolate(raw.relu() if relu else raw, size, mode="bilinear", align_corners=False)[:, 0]
        by_class.append(raw[order])
    return torch.stack(by_class, 1)


def scaled(raw):
    low, high = raw.amin((-3, -2, -1), keepdim=True), raw.amax((-3, -2, -1), keepdim=True)
    return (raw - low) / (high - low)


@pytest.fixture
def clips():
    return torch.rand(BATCH, PICTURES, 3, *SIDES)


@pytest.mark.parametrize("layer", ["cnn", None])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_picture_has_its_map(way, layer, clips):
    model = Clips(way)
    explanation = explain(model, clips, target=[[1, 3]] * BATCH, layer=layer, relu=False)
    raw = raw_maps(model, clips, (1, 3), WAYS[way])
    assert explanation.layer == "cnn" and explanation.heatmap.shape == (BATCH, 2, PICTURES, *SIDES)
    torch.testing.assert_close(explanation.heatmap.double(), scaled(raw), rtol=0, atol=SAME_INPUTS[torch.float32])
    extremes = explanation.raw_min.double(), explanation.raw_max.double()
    torch.testing.assert_close(extremes, (raw.amin((-3, -2, -1)), raw.amax((-3, -2, -1))), rtol=1e-4, atol=1e-7)
    assert explanation.valid.shape == (BATCH, 2) and explanation.valid.all()
    assert torch.equal(explanation.logits, model(clips))


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("way", [folded, time_first, one_by_one])
def test_what_is_known_of_one_batch_holds_for_batches_of_other_sizes(way, batch, clips):
    model, explainer = Clips(way), gradcam_fast.Explainer(Clips(way), layer="cnn")
    explainer.model.load_state_dict(model.state_dict())
    explainer(clips, 1)
    others = torch.rand(batch, *clips.shape[1:])
    expected = [explain(model, clip[None], target=1, layer="cnn").heatmap for clip in others]
    torch.testing.assert_close(explainer(others, 1).heatmap, torch.cat(expected), rtol=0, atol=1e-5)


def test_the_pictures_of_a_sample_share_one_scale(clips):
    """A picture that is nearly black counts for little, and stays dark instead of being stretched to [0,1]."""
    clips[:, 1] *= 1e-3
    model = Clips(folded)
    for bias in (model.cnn[0].bias, model.cnn[2].bias):
        nn.init.zeros_(bias)
    heatmap = explain(model, clips, target=1, normalize="max").heatmap
    assert (heatmap.amax((1, 2, 3)) == 1).all() and (heatmap[:, 1].amax((1, 2)) < 0.01).all()


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_treat_a_picture_as_an_image(method, clips):
    choices = {"method": method, "relu": False}
    model = Clips(folded)
    for size in ((9, 11), 24):
        explanation = explain(model, clips, target=1, layer="cnn", size=size, **choices)
        maps = feature_maps(model, clips, target=1, layer="cnn")
        assert maps.activations.shape[0] == BATCH * PICTURES
        raw = [
            reference.cam(activations[None], gradients[None], size, normalize="none", **choices)[0][0]
            for activations, gradients in zip(maps.activations, maps.gradients, strict=True)
        ]
        expected = scaled(torch.stack(raw).unflatten(0, (BATCH, PICTURES)))
        torch.testing.assert_close(explanation.heatmap, expected, rtol=0, atol=SAME_INPUTS[torch.float32])


def test_channels_may_come_before_the_pictures_or_last(clips):
    model = Clips(folded)
    expected = explain(model, clips, target=1).heatmap
    before = Clips(lambda cnn, clips: folded(cnn, clips.transpose(1, 2)))
    last = Clips(lambda cnn, clips: folded(cnn, clips.movedim(-1, 2)))
    for other, moved in ((before, clips.transpose(1, 2)), (last, clips.movedim(2, -1))):
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(explain(other, moved, target=1).heatmap, expected, rtol=0, atol=1e-5)


class OwnTrunks(nn.Module):
    """Each view has its own trunk."""

    def __init__(self):
        super().__init__()
        self.trunks, self.head = nn.ModuleList(trunk() for _ in range(PICTURES)), nn.Linear(6 * PICTURES, 5)
        self.eval()

    def forward(self, views):
        seen = [cnn(view).mean((2, 3)) for cnn, view in zip(self.trunks, views.unbind(1), strict=True)]
        return self.head(torch.cat(seen, 1))


def test_views_with_trunks_of_their_own_have_their_trunks_maps(clips):
    model = OwnTrunks()
    expected = scaled(raw_maps(model, clips, (1,), lambda b, t: t * BATCH + b, list(model.trunks)))[:, 0]
    names = [f"trunks.{t}" for t in range(PICTURES)]
    for layer in (None, names[::-1]):
        explanation = explain(model, clips, target=1, layer=layer, relu=False)
        assert sorted(explanation.layer) == names
        torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=SAME_INPUTS[torch.float32])
    with pytest.raises(PicturesMixed) as refusal:
        explain(model, clips, target=1, layer=names[:2])
    assert_says(refusal, ValueError, ("'trunks.0'", "all 4 pictures", "'trunks.1' those of [1]"))


class Fused(nn.Module):
    """Views are pooled into one map, which goes through another convolution: no map of a view is behind that."""

    def __init__(self):
        super().__init__()
        self.cnn, self.fused, self.head = trunk(), nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU()), nn.Linear(6, 5)
        self.eval()

    def forward(self, views):
        maps = self.cnn(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return self.head(self.fused(maps.amax(1)).mean((2, 3)))


def test_the_layer_found_is_the_last_with_a_map_of_each_picture(clips):
    model = Fused()
    explanation = explain(model, clips, target=1, relu=False)
    expected = scaled(raw_maps(model, clips, (1,), WAYS[folded]))[:, 0]
    assert explanation.layer == "cnn"
    torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=SAME_INPUTS[torch.float32])


def test_a_layer_that_mixes_the_pictures_is_refused_unless_its_call_is_named(clips):
    with pytest.raises(PicturesMixed) as refusal:
        explain(Fused(), clips, target=1, layer="fused")
    assert_says(refusal, ValueError, ("'fused'", "1 maps a sample", "4 of 4 pictures", "call="))
    assert explain(Fused(), clips, target=1, layer="fused", call=0).heatmap.shape == (BATCH, *SIDES)


class RecurrentCell(nn.Module):
    """A convolutional cell that takes each picture's features and what it made of the pictures before."""

    def __init__(self):
        super().__init__()
        self.cnn, self.cell, self.head = trunk(), nn.Conv2d(12, 12, 3, padding=1), nn.Linear(6, 4)
        self.eval()

    def forward(self, clips):
        state = memory = None
        for picture in clips.unbind(1):
            maps = self.cnn(picture)
            state, memory = (torch.zeros_like(maps) if value is None else value for value in (state, memory))
            gate, values = self.cell(torch.cat([maps, state], 1)).chunk(2, 1)
            memory = 0.5 * memory + gate.sigmoid() * values.tanh()
            state = memory.tanh()
        return self.head(state.mean((2, 3)))


def test_a_cell_that_mixes_pictures_in_later_calls_has_no_map_of_the_first_one(clips):
    torch.manual_seed(1)
    explanation = explain(RecurrentCell(), clips, target=1, relu=False)
    assert explanation.layer == "cnn" and explanation.heatmap.shape == (*clips.shape[:2], *clips.shape[-2:])
    assert explanation.valid.all()


class ShiftedInTime(nn.Module):
    """Some channels of each picture are its neighbours' (Lin et al., TSM, ICCV 2019)."""

    def __init__(self, flips=False):
        super().__init__()
        self.flips, self.stem, self.cnn = flips, nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 5)
        self.eval()

    def forward(self, clips):
        maps = self.stem(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        before, after = F.pad(maps, (0, 0) * 3 + (1, 0))[:, :-1], F.pad(maps, (0, 0) * 3 + (0, 1))[:, 1:]
        mixed = torch.cat([before[:, :, :2], after[:, :, 2:4], maps[:, :, 4:]], 2)
        mixed = mixed.flip(1) if self.flips else mixed
        return self.head(self.cnn(mixed.flatten(0, 1)).mean((2, 3))).unflatten(0, clips.shape[:2]).mean(1)


def test_pictures_mixed_with_their_neighbours_keep_their_places(clips):
    model = ShiftedInTime()
    expected = scaled(raw_maps(model, clips, (1,), WAYS[folded]))[:, 0]
    heatmap = explain(model, clips, target=1, layer="cnn", relu=False).heatmap
    torch.testing.assert_close(heatmap.double(), expected, rtol=0, atol=SAME_INPUTS[torch.float32])
    with pytest.raises(PicturesMixed, match="mixes the pictures"):
        explain(ShiftedInTime(flips=True), clips, target=1, layer="cnn")


def test_only_chosen_samples_are_explained(clips):
    model, chosen = Clips(time_first), torch.tensor([True, False, True])
    expected = explain(model, clips, topk=2)
    explanation = gradcam_fast.Explainer(model, when=lambda logits: chosen)(clips, topk=2)
    torch.testing.assert_close(explanation.heatmap[chosen], expected.heatmap[chosen], rtol=0, atol=1e-6)
    assert explanation.heatmap.shape == expected.heatmap.shape and not explanation.heatmap[1].any()
    assert explanation.valid[:, 0].tolist() == [True, False, True]


def test_maps_of_several_layers_are_averaged_picture_by_picture(clips):
    model = Clips(folded)
    maps = [explain(model, clips, target=1, layer=layer, relu=False).heatmap for layer in ("cnn.1", "cnn")]
    heatmap = explain(model, clips, target=1, layer=["cnn", "cnn.1"], relu=False).heatmap
    torch.testing.assert_close(heatmap, scaled((maps[0] + maps[1]) / 2), rtol=1e-5, atol=1e-6)


def test_a_clip_with_values_that_are_not_finite_has_no_map(clips):
    clips[1, 2, 0, 3, 3] = torch.inf
    explanation = explain(Clips(folded), clips, target=1, layer="cnn", relu=False)
    assert explanation.valid.tolist() == [True, False, True] and not explanation.heatmap[1].any()


def test_a_clip_of_one_picture_and_an_empty_batch_have_the_axis_too(clips):
    model = Clips(folded)
    assert explain(model, clips[:, :1], target=1).heatmap.shape == (BATCH, 1, *SIDES)
    assert explain(model, clips[:0], target=1, layer="cnn").heatmap.shape == (0, PICTURES, *SIDES)


def test_a_model_that_only_sees_the_mean_of_the_pictures_has_no_layer(clips):
    class Mean(ConvNet):
        def forward(self, clips):
            return super().forward(clips.mean(1))

    with pytest.raises(NoLayerFound):
        explain(Mean(), clips[..., :16])
