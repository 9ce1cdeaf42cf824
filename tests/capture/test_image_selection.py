"""Explaining only some images of a batch, chosen by their logits: the same maps, and nothing made for the others."""

import pytest
import torch
from support.networks import ConvNet, Repeating
from support.refusals import assert_says
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast._capture.image_selection import select_images
from gradcam_fast.ops import heatmaps
from gradcam_fast.ops.cam import cam as fused_cam

SOME = torch.tensor([True, False, False, True, True, False])


@pytest.fixture
def batch():
    return torch.randn(6, 3, 16, 16)


def fixed(mask):
    return lambda logits: mask


def assert_like(found, expected, mask):
    """Of the chosen images to the bit what it is without choosing, of the others nothing; the predictions are whole."""
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.score, expected.score)
    assert (found.target is None) == (expected.target is None)
    assert found.target is None or torch.equal(found.target, expected.target)
    assert found.layer == expected.layer
    for name in ("heatmap", "raw_min", "raw_max", "valid"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.shape == other.shape and one.dtype == other.dtype
        assert torch.equal(one[mask], other[mask])
    assert found.valid[mask].any()
    assert not found.heatmap[~mask].any() and not found.valid[~mask].any()
    assert found.raw_min[~mask].isnan().all() and found.raw_max[~mask].isnan().all()


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
@pytest.mark.parametrize(
    "question",
    [
        {},
        {"target": [[0, 1, 2]] * 6},
        {"topk": 2},
        {"target": lambda output: output[:, :2]},
    ],
)
def test_the_chosen_have_the_maps_they_have_in_a_whole_batch(batch, question, method):
    model = ConvNet()
    expected = gradcam_fast.Explainer(model, method=method)(batch, **question)
    assert_like(gradcam_fast.Explainer(model, method=method, when=fixed(SOME))(batch, **question), expected, SOME)


def test_of_several_layers_too(batch):
    model, layers = Repeating(2), ["stem", "block"]
    expected = gradcam_fast.Explainer(model, layer=layers)(batch)
    assert_like(gradcam_fast.Explainer(model, layer=layers, when=fixed(SOME))(batch), expected, SOME)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("topk", [None, 2])
def test_of_series_and_volumes_too(rank, topk, dtype):
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](1, 33, 3)
    pooling = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1](1)
    model = nn.Sequential(convolution, nn.ReLU(), pooling, nn.Flatten(), nn.Linear(33, 5)).eval().to(dtype)
    batch = torch.randn(6, 1, *(9, 10, 11)[:rank], dtype=dtype)
    expected = gradcam_fast.Explainer(model, layer="1")(batch, topk=topk)
    assert_like(gradcam_fast.Explainer(model, layer="1", when=fixed(SOME))(batch, topk=topk), expected, SOME)


@pytest.mark.parametrize("topk", [None, 2])
def test_of_tokens_too(batch, topk):
    vision = pytest.importorskip("torchvision.models", exc_type=Exception).vision_transformer
    model = vision.VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    expected = gradcam_fast.Explainer(model)(batch, topk=topk)
    assert_like(gradcam_fast.Explainer(model, when=fixed(SOME))(batch, topk=topk), expected, SOME)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pooling", [1, 2])
def test_maps_are_read_as_they_lie(batch, monkeypatch, pooling, memory_format):
    """Channels-last maps stay so, and gradients that are the same at all positions are not written out."""
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(pooling), nn.Flatten(),
        nn.Linear(20 * pooling * pooling, 5),
    ).eval().to(memory_format=memory_format)  # fmt: skip
    given, cam = [], fused_cam

    def seen(*arguments, **choices):
        given.append([each.stride()[1:] for each in arguments[:2]])
        return cam(*arguments, **choices)

    monkeypatch.setattr(heatmaps, "cam", seen)
    batch = batch.to(memory_format=memory_format)
    expected = gradcam_fast.Explainer(model, layer="1")(batch)
    assert_like(gradcam_fast.Explainer(model, layer="1", when=fixed(SOME))(batch), expected, SOME)
    whole, some = given
    assert some == whole


def test_when_sees_the_logits_once_and_without_a_graph(batch):
    seen = []

    def high(logits):
        seen.append((logits, torch.is_grad_enabled()))
        return logits[:, 0] > logits[:, 0].median()

    explanation = gradcam_fast.Explainer(ConvNet(), layer="features", when=high)(batch)
    ((logits, grad),) = seen
    assert torch.equal(logits, explanation.logits) and not logits.requires_grad and not grad
    mask = high(explanation.logits)
    assert 0 < mask.sum() < 6 and torch.equal(~explanation.raw_max.isnan(), mask)


def test_when_sees_what_output_picks(batch):
    seen = []
    explainer = gradcam_fast.Explainer(
        nn.Sequential(ConvNet(), nn.Identity()),
        layer="0.features",
        output=lambda output: output[:, :3],
        when=lambda logits: seen.append(logits.shape) or SOME,
    )
    explainer(batch)
    assert seen == [(6, 3)]


@pytest.mark.parametrize("topk", [None, 3])
def test_where_none_is_chosen_there_is_no_backward_and_no_warning(batch, topk, recwarn):
    backwards = []
    model = ConvNet()
    model.head[-1].register_full_backward_hook(lambda *_: backwards.append(1))
    expected = gradcam_fast.Explainer(model, layer="features")(batch, topk=topk)
    assert backwards
    backwards.clear()
    none = fixed(torch.zeros(6, dtype=torch.bool))
    found = gradcam_fast.Explainer(model, layer="features", when=none)(batch, topk=topk)
    assert not backwards and not len(recwarn)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.score, expected.score)
    assert found.heatmap.shape == expected.heatmap.shape
    assert not found.heatmap.any() and not found.valid.any() and found.raw_max.isnan().all()


def test_a_chosen_image_without_gradient_is_warned_of_as_ever(batch):
    model = ConvNet()
    nn.init.zeros_(model.head[-1].weight)
    with pytest.warns(UserWarning, match="zero everywhere"):
        gradcam_fast.Explainer(model, layer="features", when=fixed(SOME))(batch)


class Gated(nn.Module):
    """Of images that are bright the score depends on `late`, of dark ones on `early` alone."""

    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, images):
        maps = self.early(images).relu()
        bright = (images.mean((1, 2, 3)) > 0).float().view(-1, 1, 1, 1)
        return (maps[..., 1:-1, 1:-1] * (1 - bright) + self.late(maps) * bright).mean((2, 3))


def test_the_layer_is_the_one_of_the_whole_batch(batch):
    """Chosen images without a gradient at the layer known do not change it, neither for themselves nor for others."""
    model = Gated().eval()
    batch[:3] = batch[:3].abs()
    batch[3:] = -batch[3:].abs()
    dark = torch.arange(6) >= 3
    expected = gradcam_fast.Explainer(model)(batch)
    asked = []
    found = gradcam_fast.Explainer(model, when=lambda logits: asked.append(1) or dark)(batch)
    assert found.layer == expected.layer == gradcam_fast.Explainer(model)(batch).layer
    assert expected.valid.tolist() == [True] * 3 + [False] * 3 and not found.valid.any()
    assert len(asked) == 1


def test_all_and_an_empty_batch_are_as_without_choosing(batch):
    model = ConvNet()
    for images in (batch, batch[:0]):
        expected = gradcam_fast.Explainer(model, layer="features")(images)
        chosen = gradcam_fast.Explainer(model, layer="features", when=lambda logits: logits[:, 0] == logits[:, 0])
        found = chosen(images)
        assert torch.equal(found.heatmap, expected.heatmap) and torch.equal(found.raw_max, expected.raw_max)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_a_mode_without_gradients_it_is_the_same(batch, mode):
    model = ConvNet()
    expected = gradcam_fast.Explainer(model)(batch)
    with mode():
        found = gradcam_fast.Explainer(model, when=fixed(SOME))(batch)
    assert_like(found, expected, SOME)


@pytest.mark.parametrize(
    ("when", "cuda_graph", "error", "parts"),
    [
        (0.1, False, TypeError, ["0.1", "not callable", "function"]),
        (torch.ones(6, dtype=torch.bool), False, TypeError, ["not callable"]),
        (fixed(SOME), True, ValueError, ["when=", "cuda_graph", "one of them"]),
    ],
)
def test_what_can_choose_nothing_is_refused_when_the_explainer_is_made(when, cuda_graph, error, parts):
    with pytest.raises(error) as refusal:
        gradcam_fast.Explainer(ConvNet(), when=when, cuda_graph=cuda_graph)
    assert_says(refusal, error, parts)


@pytest.mark.parametrize(
    ("returned", "error", "parts"),
    [
        (None, TypeError, ["NoneType", "booleans (6,)"]),
        ([True] * 6, TypeError, ["list"]),
        (torch.rand(6), ValueError, ["torch.float32", "(6,)", "booleans"]),
        (torch.ones(6, 5, dtype=torch.bool), ValueError, ["(6, 5)", "batch of 6"]),
        (torch.ones(1, dtype=torch.bool), ValueError, ["(1,)", "batch of 6"]),
    ],
)
def test_what_is_no_choice_is_refused_and_the_model_left_as_it_was(batch, returned, error, parts):
    model = ConvNet().train()
    explainer = gradcam_fast.Explainer(model, layer="features", when=fixed(returned))
    with unchanged(model), pytest.raises(error) as refusal:
        explainer(batch)
    assert_says(refusal, error, parts)


def test_rows_lie_in_memory_as_the_maps_do():
    whole = torch.randn(6, 3, 4, 5)
    picked = SOME.nonzero()[:, 0]
    layouts = [
        whole,
        whole.to(memory_format=torch.channels_last),
        whole[:, :, 1:3],
        whole[..., :1, :1].expand_as(whole),
        whole.movedim(0, -1).contiguous().movedim(-1, 0),
    ]
    for each in (*layouts, torch.randn(2, 6, 3, 4, 5).transpose(0, 1), torch.randn(1).expand(6, 3, 4, 5)):
        found = select_images(each, picked)
        assert torch.equal(found, each[SOME])
        assert [stride == 0 for stride in found.stride()[1:]] == [stride == 0 for stride in each.stride()[1:]]
        order = sorted(range(each.dim()), key=lambda axis: -each.stride(axis))
        assert order == sorted(range(each.dim()), key=lambda axis: -found.stride(axis))
