"""Reading a layer's output: which grid so many tokens have, where channels are, and what `tokens=` says instead.

Knows nothing of how a layer is found.
"""

import pytest
import torch
from support import naive
from support.refusals import assert_says
from support.tolerances import RECIPE_PARITY
from torch import nn

from gradcam_fast import Explainer, explain
from gradcam_fast._layout.feature_layout import ImageGeometry, infer_layout
from gradcam_fast._layout.token_grid import UnreadableLayout, infer_grid


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (196, (224, 224), (14, 14)),  # no token but the patches
        (197, (224, 224), (14, 14)),  # a class token
        (198, (224, 224), (14, 14)),  # DeiT's distillation token too
        (261, (224, 224), (16, 16)),  # DINOv2 with four registers, patches of 14
        (1 + 24 * 24, (384, 384), (24, 24)),
        (50, (224, 224), (7, 7)),
        (1 + 14 * 20, (224, 320), (14, 20)),
        (1 + 20 * 14, (320, 224), (20, 14)),
        (5 + 16 * 9, (224, 126), (16, 9)),
        (1 + 3 * 2, (48, 32), (3, 2)),
        (49, (225, 225), (7, 7)),  # a remainder cut off
        (57 * 57, (225, 225), (57, 57)),  # a remainder padded
        (125, (1000,), (125,)),
        (1 + 2 * 4 * 4, (16, 32, 32), (2, 4, 4)),
    ],
)
def test_so_many_tokens_have_one_grid(count, size, grid):
    assert infer_grid(count, size) == grid


@pytest.mark.parametrize(
    ("count", "size", "parts"),
    [
        (17, (96, 96), ("17 tokens", "96x96", "3x3 after 8", "4x4 after 1", "tokens=(h,w)")),
        (512, (224, 224), ("512 tokens", "224x224", "tokens=(h,w)")),
        (77, (224, 224), ("77 tokens", "224x224", "tokens=(h,w)")),
        (1, (224, 224), ("1 tokens", "tokens=(h,w)")),
    ],
)
def test_tokens_that_have_several_grids_or_none_are_refused_with_the_numbers(count, size, parts):
    with pytest.raises(UnreadableLayout) as refusal:
        infer_grid(count, size)
    assert_says(refusal, UnreadableLayout, parts)


@pytest.mark.parametrize(
    ("module", "shape", "size", "expected"),
    [
        (nn.Conv2d(1, 1, 1), (2, 768, 7, 7), (224, 224), (768, 7, 7)),
        (nn.Identity(), (2, 7, 7, 768), (224, 224), (768, 7, 7)),
        (nn.Identity(), (2, 4, 6, 96), (64, 96), (96, 4, 6)),
        (nn.LayerNorm(8), (2, 8, 8, 8), (64, 64), (8, 8, 8)),
        (nn.Conv2d(1, 1, 1), (2, 8, 8, 8), (64, 64), (8, 8, 8)),
        (nn.Conv2d(1, 1, 1), (2, 16, 1, 24), (32, 96), (16, 1, 24)),  # strides that differ: planes all the same
    ],
)
def test_channels_are_where_the_images_sides_are_not(module, shape, size, expected):
    maps = torch.randn(shape)
    found = infer_layout(module, maps, ImageGeometry(2, size))(maps)
    assert found.shape[1:] == expected
    channels_last = isinstance(module, (nn.LayerNorm, nn.Identity))
    assert torch.equal(found, maps.movedim(-1, 1) if channels_last else maps)


def test_reading_copies_nothing():
    for shape, size in (((2, 197, 8), (224, 224)), ((2, 7, 7, 96), (224, 224)), ((2, 96, 7, 7), (224, 224))):
        maps, gradients = torch.randn(shape), torch.randn(2, 3, *shape[1:])
        view = infer_layout(nn.Identity(), maps, ImageGeometry(2, size))
        for each in (maps, gradients):
            assert view(each).untyped_storage().data_ptr() == each.untyped_storage().data_ptr()


class Patches(nn.Module):
    """Patches of 8 pixels, `others` tokens in front, one mixing layer, and a head on the first token (or the mean)."""

    def __init__(self, others):
        super().__init__()
        self.others = nn.Parameter(torch.randn(1, others, 16))
        self.patch, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.mix, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)
        self.eval()

    def forward(self, images):
        patches = self.patch(images).flatten(2).mT
        tokens = self.norm(torch.cat([self.others.expand(len(images), -1, -1), patches], 1))
        tokens = tokens + self.mix(tokens, tokens, tokens)[0]
        return self.head(tokens[:, 0] if self.others.shape[1] else tokens.mean(1))


def expected(model, images, others, grid, score=naive.highest):
    maps = naive.full_graph(model, "norm", images, score)[:2]
    return naive.gradcam(*(each[:, others:].mT.unflatten(-1, grid) for each in maps), images.shape[-2:])


@pytest.mark.parametrize("others", [0, 1, 2, 5])
@pytest.mark.parametrize(("sides", "grid"), [((64, 64), (8, 8)), ((64, 40), (8, 5)), ((40, 64), (5, 8))])
def test_tokens_are_explained_whatever_stands_in_front_of_them(others, sides, grid):
    model, images = Patches(others), torch.randn(2, 3, *sides)
    found = explain(model, images, layer="norm").heatmap.double()
    torch.testing.assert_close(found, expected(model, images, others, grid), rtol=0, atol=RECIPE_PARITY)


@pytest.mark.parametrize(
    "tokens",
    [(8, 5), [8, 5], lambda maps: maps[:, 3:].mT.unflatten(-1, (8, 5))],
    ids=["tuple", "list", "callable"],
)
def test_tokens_says_where_the_positions_are(tokens):
    model, images = Patches(3), torch.randn(2, 3, 64, 40)
    with pytest.raises(ValueError, match="43 tokens"):
        explain(model, images, layer="norm")
    for target in ([1, 4], [[1, 4], [0, 2]]):
        found = explain(model, images, layer="norm", target=target, tokens=tokens).heatmap
        for i, classes in enumerate(target):
            for k, category in enumerate([classes] if isinstance(classes, int) else classes):
                map_ = found[i] if found.dim() == 3 else found[i, k]
                alone = expected(model, images, 3, (8, 5), naive.of_class(category))[i]
                torch.testing.assert_close(map_.double(), alone, rtol=0, atol=RECIPE_PARITY)


def test_tokens_says_which_layer_is_found():
    model, images = Patches(3), torch.randn(2, 3, 64, 40)
    with pytest.warns(UserWarning, match=r"'patch', only cuts .* layer 'mix' .* 43 tokens .*tokens=.*layer=") as told:
        assert Explainer(model)(images).layer == "patch"
    assert told[0].filename == __file__
    assert Explainer(model, tokens=(8, 5))(images).layer == "norm"


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
def test_tokens_that_cannot_be_are_refused(tokens, parts):
    with pytest.raises(ValueError) as refusal:
        explain(Patches(3), torch.randn(2, 3, 64, 40), layer="norm", tokens=tokens)
    assert_says(refusal, ValueError, parts)


def test_a_network_without_positions_says_so():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="Sequential has no spatial feature map"):
        explain(flat, torch.randn(2, 3, 8, 8))


def test_tokens_without_a_grid_are_named_when_nothing_else_is_there():
    class Latents(nn.Module):
        """Attends to the pixels from 31 vectors of its own, as a perceiver does."""

        def __init__(self):
            super().__init__()
            self.latents, self.read = nn.Parameter(torch.randn(31, 3)), nn.MultiheadAttention(3, 1, batch_first=True)

        def forward(self, images):
            pixels = images.flatten(2).mT
            return self.read(self.latents.expand(len(images), -1, -1), pixels, pixels)[0].mean(1)

    with pytest.raises(ValueError) as refusal:
        explain(Latents(), torch.randn(2, 3, 32, 32))
    assert_says(refusal, ValueError, ("Latents", "'read'", "31 tokens", "32x32", "tokens="))


class TokensFirst(Patches):
    """As `Patches`, with tokens (N,B,C), which nn.TransformerEncoder and OpenAI's CLIP have."""

    def __init__(self, others):
        super().__init__(others)
        self.mix.batch_first = False

    def forward(self, images):
        patches = self.patch(images).flatten(2).mT
        tokens = self.norm(torch.cat([self.others.expand(len(images), -1, -1), patches], 1).transpose(0, 1))
        tokens = tokens + self.mix(tokens, tokens, tokens)[0]
        return self.head(tokens[0] if self.others.shape[1] else tokens.mean(0))


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_tokens_may_come_before_the_batch(method, others, batch):
    model, other = TokensFirst(others), Patches(others)
    other.load_state_dict(model.state_dict())
    # With no other tokens there are as many tokens as images in the largest batch.
    for images in (torch.randn(1, 3, 24, 24), torch.randn(batch, 3, 24, 24)):
        for choices in ({}, {"topk": 3}, {"target": [[1, 0]] * len(images), "tokens": (3, 3)}):
            found = explain(model, images, method=method, **choices)
            expected = explain(other, images, method=method, **choices)
            assert found.layer == expected.layer == ("norm" if others else "mix")
            torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)
    said = {"tokens": lambda maps: maps[others:].permute(1, 2, 0).unflatten(-1, (3, 3))}
    choices = {"method": method, "topk": 3, "layer": "norm"}
    found, expected = explain(model, images, **choices, **said), explain(other, images, **choices)
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)


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


@pytest.mark.parametrize(
    ("count", "size", "patch", "expected"),
    [
        (1568, (16, 224, 224), (2, 4, 4), (8, 14, 14)),  # MViT merges the positions of a frame, and not the frames
        (1569, (16, 224, 224), (2, 4, 4), (8, 14, 14)),
        (392, (16, 224, 224), (2, 4, 4), (8, 7, 7)),
        (1568, (16, 224, 224), (2, 16, 16), (8, 14, 14)),  # VideoMAE
        (64, (64, 64, 64), (16, 16, 16), (4, 4, 4)),
        (1728, (96, 96, 96), (2, 2, 2), (12, 12, 12)),  # and not (48, 6, 6)
        (49, (224, 224), (4, 4), (7, 7)),
        (9, (24, 24), (8, 8), (3, 3)),  # merged, and after five others, they would be (2, 2)
    ],
)
def test_the_strides_of_the_convolutions_tell_the_patches(count, size, patch, expected):
    assert infer_grid(count, size, (patch,)) == expected


def test_videos_have_the_sides_and_the_patches_that_the_model_gives_them():
    model, videos = Videos(), torch.randn(2, 8, 3, 64, 64)
    activations, gradients, _ = naive.full_graph(model, "norm", videos, naive.highest)
    assert explain(model, videos).layer == "mix"
    for choices in ({}, {"tokens": (4, 4, 4)}):
        found = explain(model, videos, relu=False, layer="norm", **choices)
        assert found.heatmap.shape == (2, 8, 64, 64)
        raw = (gradients.mean(1, keepdim=True) * activations).sum(-1).unflatten(-1, (4, 4, 4))
        raw = nn.functional.interpolate(raw[:, None], (8, 64, 64), mode="trilinear", align_corners=False)[:, 0]
        low, high = raw.amin((1, 2, 3), keepdim=True), raw.amax((1, 2, 3), keepdim=True)
        torch.testing.assert_close(found.heatmap, (raw - low) / (high - low), rtol=0, atol=RECIPE_PARITY)
