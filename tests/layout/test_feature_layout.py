"""A layer's output is read as (B,C,h,w): planes, channels last, tokens, or as `tokens=` says."""

import pytest
import torch
from support import naive
from support.networks import PatchNet
from support.refusals import assert_says
from support.tolerances import RECIPE_PARITY
from torch import nn

from gradcam_fast import explain
from gradcam_fast._layout.feature_layout import ImageGeometry, infer_layout


@pytest.mark.parametrize(
    ("module", "shape", "size", "expected"),
    [
        (nn.Conv2d(1, 1, 1), (2, 768, 7, 7), (224, 224), (768, 7, 7)),
        (nn.Identity(), (2, 7, 7, 768), (224, 224), (768, 7, 7)),
        (nn.Identity(), (2, 4, 6, 96), (64, 96), (96, 4, 6)),
        (nn.LayerNorm(8), (2, 8, 8, 8), (64, 64), (8, 8, 8)),
        (nn.Conv2d(1, 1, 1), (2, 8, 8, 8), (64, 64), (8, 8, 8)),
        (nn.Conv2d(1, 1, 1), (2, 16, 1, 24), (32, 96), (16, 1, 24)),  # planes, although the strides differ
        (nn.Conv3d(1, 1, 1), (2, 4, 8, 8, 8), (8, 16, 16), (4, 8, 8, 8)),  # all frames of a video, half the sides
        (nn.Identity(), (2, 4, 2, 2, 96), (8, 64, 64), (96, 4, 2, 2)),
    ],
)
def test_channels_are_the_axis_that_does_not_fit_the_images(module, shape, size, expected):
    maps = torch.randn(shape)
    planes = infer_layout(module, maps, ImageGeometry(2, size))(maps)
    assert planes.shape[1:] == expected
    channels_last = isinstance(module, (nn.LayerNorm, nn.Identity))
    assert torch.equal(planes, maps.movedim(-1, 1) if channels_last else maps)


def test_a_layout_is_a_view():
    for shape, size in (((2, 197, 8), (224, 224)), ((2, 7, 7, 96), (224, 224)), ((2, 96, 7, 7), (224, 224))):
        maps, gradients = torch.randn(shape), torch.randn(2, 3, *shape[1:])
        view = infer_layout(nn.Identity(), maps, ImageGeometry(2, size))
        for tensor in (maps, gradients):
            assert view(tensor).untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def expected(model, images, class_tokens, grid, score=naive.highest):
    maps = naive.full_graph(model, "norm", images, score)[:2]
    return naive.gradcam(*(tokens[:, class_tokens:].mT.unflatten(-1, grid) for tokens in maps), images.shape[-2:])


@pytest.mark.parametrize("class_tokens", [0, 1, 2, 5])
@pytest.mark.parametrize(("sides", "grid"), [((64, 64), (8, 8)), ((64, 40), (8, 5)), ((40, 64), (5, 8))])
def test_tokens_are_explained_behind_any_number_of_class_tokens(class_tokens, sides, grid):
    model, images = PatchNet(class_tokens), torch.randn(2, 3, *sides)
    heatmap = explain(model, images, layer="norm").heatmap.double()
    torch.testing.assert_close(heatmap, expected(model, images, class_tokens, grid), rtol=0, atol=RECIPE_PARITY)


@pytest.mark.parametrize(
    "tokens",
    [(8, 5), [8, 5], lambda maps: maps[:, 3:].mT.unflatten(-1, (8, 5))],
    ids=["tuple", "list", "callable"],
)
def test_tokens_gives_the_grid_by_shape_or_callable(tokens):
    model, images = PatchNet(3), torch.randn(2, 3, 64, 40)
    for target in ([1, 4], [[1, 4], [0, 2]]):
        heatmap = explain(model, images, layer="norm", target=target, tokens=tokens).heatmap
        for i, classes in enumerate(target):
            for k, category in enumerate([classes] if isinstance(classes, int) else classes):
                map_ = heatmap[i] if heatmap.dim() == 3 else heatmap[i, k]
                alone = expected(model, images, 3, (8, 5), naive.of_class(category))[i]
                torch.testing.assert_close(map_.double(), alone, rtol=0, atol=RECIPE_PARITY)


@pytest.mark.parametrize(
    ("tokens", "parts"),
    [
        ("grid", ("tokens='grid'", "(h,w)", "callable")),
        (7, ("tokens=7", "(h,w)")),
        ((0, 7), ("tokens=(0, 7)", "(h,w)")),
        ((9, 9), ("'norm'", "(2, 43, 16)", "43 tokens", "(9, 9)")),
        ((4, 5, 2), ("'norm'", "(4, 5, 2)")),
        (lambda maps: maps, ("'norm'", "(2, 43, 16)", "(2,C,h,w)")),
        (lambda maps: None, ("'norm'", "NoneType", "(2,C,h,w)")),
    ],
)
def test_wrong_values_of_tokens_are_refused(tokens, parts):
    with pytest.raises(ValueError) as refusal:
        explain(PatchNet(3), torch.randn(2, 3, 64, 40), layer="norm", tokens=tokens)
    assert_says(refusal, ValueError, parts)


class TokensFirst(PatchNet):
    """A `PatchNet` with tokens (N,B,C), as in nn.TransformerEncoder and OpenAI's CLIP."""

    def __init__(self, class_tokens):
        super().__init__(class_tokens)
        self.mix.batch_first = False

    def forward(self, images):
        patches = self.patch(images).flatten(2).mT
        tokens = self.norm(torch.cat([self.class_tokens.expand(len(images), -1, -1), patches], 1).transpose(0, 1))
        tokens = tokens + self.mix(tokens, tokens, tokens)[0]
        return self.head(tokens[0] if self.class_tokens.shape[1] else tokens.mean(0))


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("class_tokens", [0, 1])
@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_tokens_may_come_before_the_batch(method, class_tokens, batch):
    model, batch_first = TokensFirst(class_tokens), PatchNet(class_tokens)
    batch_first.load_state_dict(model.state_dict())
    # Without class tokens the largest batch has as many images as tokens.
    for images in (torch.randn(1, 3, 24, 24), torch.randn(batch, 3, 24, 24)):
        for choices in ({}, {"topk": 3}, {"target": [[1, 0]] * len(images), "tokens": (3, 3)}):
            explanation = explain(model, images, method=method, **choices)
            expected = explain(batch_first, images, method=method, **choices)
            assert explanation.layer == expected.layer == "norm"
            torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)
    by_callable = {"tokens": lambda maps: maps[class_tokens:].permute(1, 2, 0).unflatten(-1, (3, 3))}
    choices = {"method": method, "topk": 3, "layer": "norm"}
    explanation, expected = explain(model, images, **choices, **by_callable), explain(batch_first, images, **choices)
    torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)


class Videos(nn.Module):
    """(B,T,C,H,W) cut into patches of 2 frames and 16 x 16 pixels, as VideoMAE does."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv3d(3, 16, (2, 16, 16), (2, 16, 16)), nn.LayerNorm(16)
        self.mix, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)
        self.eval()

    def forward(self, videos):
        tokens = self.norm(self.patch(videos.transpose(1, 2)).flatten(2).mT)
        return self.head((tokens + self.mix(tokens, tokens, tokens)[0]).mean(1))


def test_videos_with_frames_before_channels_are_explained():
    model, videos = Videos(), torch.randn(2, 8, 3, 64, 64)
    activations, gradients, _ = naive.full_graph(model, "norm", videos, naive.highest)
    assert explain(model, videos).layer == "norm"
    for choices in ({}, {"tokens": (4, 4, 4)}):
        explanation = explain(model, videos, relu=False, layer="norm", **choices)
        assert explanation.heatmap.shape == (2, 8, 64, 64)
        raw = (gradients.mean(1, keepdim=True) * activations).sum(-1).unflatten(-1, (4, 4, 4))
        raw = nn.functional.interpolate(raw[:, None], (8, 64, 64), mode="trilinear", align_corners=False)[:, 0]
        low, high = raw.amin((1, 2, 3), keepdim=True), raw.amax((1, 2, 3), keepdim=True)
        torch.testing.assert_close(explanation.heatmap, (raw - low) / (high - low), rtol=0, atol=RECIPE_PARITY)


def test_a_layer_of_one_position_is_refused_with_its_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '2' returns shape \(2, 4, 1, 1\).*more than one position"):
        explain(model, torch.randn(2, 3, 9, 9), layer="2")


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((2, 6, 4, 4), "auto"),
        ((2, 4, 4, 6), (4, 4)),
        ((2, 16, 6), (4, 4)),
        ((2, 17, 6), (4, 4)),
        ((2, 17, 6), lambda output: output[:, 1:].mT.unflatten(2, (4, 4))),
    ],
)
def test_maps_put_into_an_output_are_read_from_it_again_and_nothing_else_changes(shape, tokens):
    output = torch.randn(shape)
    layout = infer_layout(nn.Identity(), output, ImageGeometry(2, (64, 64)), tokens)
    maps = torch.randn_like(layout(output))
    changed = layout.put(output, maps)
    assert torch.equal(layout(changed), maps) and not changed.requires_grad
    if shape[1] == 17:
        assert torch.equal(changed[:, 0], output[:, 0])


def test_maps_put_into_tokens_before_the_batch():
    output = torch.randn(17, 2, 6)
    layout = infer_layout(nn.Identity(), output, ImageGeometry(2, (64, 64)), (4, 4))
    maps = torch.randn_like(layout(output))
    changed = layout.put(output, maps)
    assert torch.equal(layout(changed), maps) and torch.equal(changed[0], output[0])
