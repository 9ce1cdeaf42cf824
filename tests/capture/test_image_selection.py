"""`when=` selects images by their logits: they have the maps of the whole batch, and the others have empty results."""

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

SELECTED = torch.tensor([True, False, False, True, True, False])


@pytest.fixture
def batch():
    return torch.randn(6, 3, 16, 16)


def always(mask):
    return lambda logits: mask


def assert_selected(actual, expected, mask):
    """Selected images have the bits of the expected explanation, the others empty results; all have predictions."""
    assert torch.equal(actual.logits, expected.logits) and torch.equal(actual.score, expected.score)
    assert (actual.target is None) == (expected.target is None)
    assert actual.target is None or torch.equal(actual.target, expected.target)
    assert actual.layer == expected.layer
    for name in ("heatmap", "raw_min", "raw_max", "valid"):
        value, expected_value = getattr(actual, name), getattr(expected, name)
        assert value.shape == expected_value.shape and value.dtype == expected_value.dtype
        assert torch.equal(value[mask], expected_value[mask])
    assert actual.valid[mask].any()
    assert not actual.heatmap[~mask].any() and not actual.valid[~mask].any()
    assert actual.raw_min[~mask].isnan().all() and actual.raw_max[~mask].isnan().all()


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
@pytest.mark.parametrize(
    "targets",
    [
        {},
        {"target": [[0, 1, 2]] * 6},
        {"topk": 2},
        {"target": lambda output: output[:, :2]},
    ],
)
def test_selected_images_have_the_maps_of_the_whole_batch(batch, targets, method):
    model = ConvNet()
    expected = gradcam_fast.Explainer(model, method=method)(batch, **targets)
    assert_selected(
        gradcam_fast.Explainer(model, method=method, when=always(SELECTED))(batch, **targets), expected, SELECTED
    )


def test_images_are_selected_for_several_layers(batch):
    model, layers = Repeating(2), ["stem", "block"]
    expected = gradcam_fast.Explainer(model, layer=layers)(batch)
    assert_selected(gradcam_fast.Explainer(model, layer=layers, when=always(SELECTED))(batch), expected, SELECTED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("topk", [None, 2])
def test_series_and_volumes_are_selected(rank, topk, dtype):
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](1, 33, 3)
    pooling = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1](1)
    model = nn.Sequential(convolution, nn.ReLU(), pooling, nn.Flatten(), nn.Linear(33, 5)).eval().to(dtype)
    batch = torch.randn(6, 1, *(9, 10, 11)[:rank], dtype=dtype)
    expected = gradcam_fast.Explainer(model, layer="1")(batch, topk=topk)
    assert_selected(
        gradcam_fast.Explainer(model, layer="1", when=always(SELECTED))(batch, topk=topk), expected, SELECTED
    )


@pytest.mark.parametrize("topk", [None, 2])
def test_images_are_selected_for_tokens(batch, topk):
    vision = pytest.importorskip("torchvision.models", exc_type=Exception).vision_transformer
    model = vision.VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    expected = gradcam_fast.Explainer(model)(batch, topk=topk)
    assert_selected(gradcam_fast.Explainer(model, when=always(SELECTED))(batch, topk=topk), expected, SELECTED)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pooling", [1, 2])
def test_selected_maps_keep_their_strides(batch, monkeypatch, pooling, memory_format):
    """Channels-last maps stay channels-last, and gradients that are equal at all positions stay expanded."""
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(pooling), nn.Flatten(),
        nn.Linear(20 * pooling * pooling, 5),
    ).eval().to(memory_format=memory_format)  # fmt: skip
    strides, cam = [], fused_cam

    def recording_cam(*arguments, **choices):
        strides.append([maps.stride()[1:] for maps in arguments[:2]])
        return cam(*arguments, **choices)

    monkeypatch.setattr(heatmaps, "cam", recording_cam)
    batch = batch.to(memory_format=memory_format)
    expected = gradcam_fast.Explainer(model, layer="1")(batch)
    assert_selected(gradcam_fast.Explainer(model, layer="1", when=always(SELECTED))(batch), expected, SELECTED)
    of_whole_batch, of_selected = strides
    assert of_selected == of_whole_batch


def test_when_receives_the_logits_once_and_without_a_graph(batch):
    calls = []

    def high(logits):
        calls.append((logits, torch.is_grad_enabled()))
        return logits[:, 0] > logits[:, 0].median()

    explanation = gradcam_fast.Explainer(ConvNet(), layer="features", when=high)(batch)
    ((logits, grad),) = calls
    assert torch.equal(logits, explanation.logits) and not logits.requires_grad and not grad
    mask = high(explanation.logits)
    assert 0 < mask.sum() < 6 and torch.equal(~explanation.raw_max.isnan(), mask)


def test_when_receives_what_output_picks(batch):
    shapes = []
    explainer = gradcam_fast.Explainer(
        nn.Sequential(ConvNet(), nn.Identity()),
        layer="0.features",
        output=lambda output: output[:, :3],
        when=lambda logits: shapes.append(logits.shape) or SELECTED,
    )
    explainer(batch)
    assert shapes == [(6, 3)]


@pytest.mark.parametrize("topk", [None, 3])
def test_without_a_selected_image_there_is_no_backward_and_no_warning(batch, topk, recwarn):
    backwards = []
    model = ConvNet()
    model.head[-1].register_full_backward_hook(lambda *_: backwards.append(1))
    expected = gradcam_fast.Explainer(model, layer="features")(batch, topk=topk)
    assert backwards
    backwards.clear()
    none = always(torch.zeros(6, dtype=torch.bool))
    explanation = gradcam_fast.Explainer(model, layer="features", when=none)(batch, topk=topk)
    assert not backwards and not len(recwarn)
    assert torch.equal(explanation.logits, expected.logits) and torch.equal(explanation.score, expected.score)
    assert explanation.heatmap.shape == expected.heatmap.shape
    assert not explanation.heatmap.any() and not explanation.valid.any() and explanation.raw_max.isnan().all()


def test_a_selected_image_without_gradient_gives_a_warning(batch):
    model = ConvNet()
    nn.init.zeros_(model.head[-1].weight)
    with pytest.warns(UserWarning, match="zero everywhere"):
        gradcam_fast.Explainer(model, layer="features", when=always(SELECTED))(batch)


class Gated(nn.Module):
    """The score of a bright image depends on `late`, that of a dark one on `early` alone."""

    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, images):
        maps = self.early(images).relu()
        bright = (images.mean((1, 2, 3)) > 0).float().view(-1, 1, 1, 1)
        return (maps[..., 1:-1, 1:-1] * (1 - bright) + self.late(maps) * bright).mean((2, 3))


def test_the_layer_is_the_one_found_for_the_whole_batch(batch):
    """Selected images without a gradient at the remembered layer do not change it, now or later."""
    model = Gated().eval()
    batch[:3] = batch[:3].abs()
    batch[3:] = -batch[3:].abs()
    dark = torch.arange(6) >= 3
    expected = gradcam_fast.Explainer(model)(batch)
    calls = []
    explanation = gradcam_fast.Explainer(model, when=lambda logits: calls.append(1) or dark)(batch)
    assert explanation.layer == expected.layer == gradcam_fast.Explainer(model)(batch).layer
    assert expected.valid.tolist() == [True] * 3 + [False] * 3 and not explanation.valid.any()
    assert len(calls) == 1


def test_selecting_all_images_or_an_empty_batch_changes_nothing(batch):
    model = ConvNet()
    for images in (batch, batch[:0]):
        expected = gradcam_fast.Explainer(model, layer="features")(images)
        explainer = gradcam_fast.Explainer(model, layer="features", when=lambda logits: logits[:, 0] == logits[:, 0])
        explanation = explainer(images)
        assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.raw_max, expected.raw_max)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_images_are_selected_inside_no_grad_and_inference_mode(batch, mode):
    model = ConvNet()
    expected = gradcam_fast.Explainer(model)(batch)
    with mode():
        explanation = gradcam_fast.Explainer(model, when=always(SELECTED))(batch)
    assert_selected(explanation, expected, SELECTED)


@pytest.mark.parametrize(
    ("when", "cuda_graph", "error", "parts"),
    [
        (0.1, False, TypeError, ["0.1", "not callable", "function"]),
        (torch.ones(6, dtype=torch.bool), False, TypeError, ["not callable"]),
        (always(SELECTED), True, ValueError, ["when=", "cuda_graph", "one of them"]),
    ],
)
def test_a_when_that_cannot_select_is_refused_when_the_explainer_is_made(when, cuda_graph, error, parts):
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
def test_a_result_of_when_that_is_no_mask_is_refused(batch, returned, error, parts):
    model = ConvNet().train()
    explainer = gradcam_fast.Explainer(model, layer="features", when=always(returned))
    with unchanged(model), pytest.raises(error) as refusal:
        explainer(batch)
    assert_says(refusal, error, parts)


def test_select_images_keeps_the_memory_layout():
    whole = torch.randn(6, 3, 4, 5)
    indices = SELECTED.nonzero()[:, 0]
    layouts = [
        whole,
        whole.to(memory_format=torch.channels_last),
        whole[:, :, 1:3],
        whole[..., :1, :1].expand_as(whole),
        whole.movedim(0, -1).contiguous().movedim(-1, 0),
    ]
    for maps in (*layouts, torch.randn(2, 6, 3, 4, 5).transpose(0, 1), torch.randn(1).expand(6, 3, 4, 5)):
        selected = select_images(maps, indices)
        assert torch.equal(selected, maps[SELECTED])
        assert [stride == 0 for stride in selected.stride()[1:]] == [stride == 0 for stride in maps.stride()[1:]]
        order = sorted(range(maps.dim()), key=lambda axis: -maps.stride(axis))
        assert order == sorted(range(maps.dim()), key=lambda axis: -selected.stride(axis))
