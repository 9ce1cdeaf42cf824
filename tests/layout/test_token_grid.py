"""The grid of tokens: inferred from their number, the images' sides and the model's convolutions; queries have none."""

import pytest
import torch
from support.networks import MaskedPatchNet
from support.refusals import assert_says
from torch import nn

from gradcam_fast import Explainer, explain
from gradcam_fast._layout.token_grid import UnreadableLayout, _is_merged, infer_grid
from gradcam_fast.exceptions import NoLayerFound


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (196, (224, 224), (14, 14)),  # only patches
        (197, (224, 224), (14, 14)),  # a class token
        (198, (224, 224), (14, 14)),  # a class and a distillation token (DeiT)
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
def test_the_grid_is_inferred_from_the_number_of_tokens(count, size, grid):
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
def test_a_number_of_tokens_with_several_grids_or_none_is_refused(count, size, parts):
    with pytest.raises(UnreadableLayout) as refusal:
        infer_grid(count, size)
    assert_says(refusal, UnreadableLayout, parts)


@pytest.mark.parametrize(
    ("count", "size", "patch", "expected"),
    [
        (1568, (16, 224, 224), (2, 4, 4), (8, 14, 14)),  # MViT merges positions within a frame, not frames
        (1569, (16, 224, 224), (2, 4, 4), (8, 14, 14)),
        (392, (16, 224, 224), (2, 4, 4), (8, 7, 7)),
        (1568, (16, 224, 224), (2, 16, 16), (8, 14, 14)),  # VideoMAE
        (64, (64, 64, 64), (16, 16, 16), (4, 4, 4)),
        (1728, (96, 96, 96), (2, 2, 2), (12, 12, 12)),  # not (48, 6, 6)
        (49, (224, 224), (4, 4), (7, 7)),
        (9, (24, 24), (8, 8), (3, 3)),  # not (2, 2), merged and behind five class tokens
    ],
)
def test_the_strides_of_the_convolutions_decide_the_grid(count, size, patch, expected):
    assert infer_grid(count, size, (patch,)) == expected


def test_a_part_of_the_patches_is_refused_unless_tokens_gives_their_grid():
    model, images = MaskedPatchNet(3), torch.randn(2, 3, 64, 40)
    with pytest.raises(NoLayerFound, match=r"17 tokens are fewer than the 8x5 patches .*tokens="):
        Explainer(model)(images)
    with pytest.raises(ValueError, match="17 tokens are fewer than the 8x5 patches that the model cuts"):
        explain(model, images, layer="norm")
    assert Explainer(model, tokens=(7, 2))(images).layer == "norm"


class ExtraTokens(nn.Module):
    """Patches of 8x8, between or beside extra tokens that read from them."""

    def __init__(self, places, count=1, stride=8, *, reverse=False):
        super().__init__()
        self.reverse = reverse
        self.patch, self.extra = nn.Conv2d(3, 16, 8, stride), nn.Parameter(torch.randn(count, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, dropout=0)
        self.head, self.places = nn.Linear(16, 5), places
        self.eval()

    def forward(self, images):
        patches = self.patch(images).flatten(2).mT
        if self.reverse:
            patches = patches.flip(1)
        at = {"front": 0, "middle": patches.shape[1] // 2, "end": patches.shape[1]}[self.places]
        extra = self.extra.expand(len(images), -1, -1)
        tokens = self.block(torch.cat([patches[:, :at], extra, patches[:, at:]], 1))
        return self.head(tokens[:, at])


@pytest.mark.parametrize("layer", ["block.norm1", None])
@pytest.mark.parametrize("count", [1, 3, 4, 11])
@pytest.mark.parametrize("places", ["front", "middle", "end"])
def test_the_model_tells_which_tokens_are_patches(places, count, layer):
    model, images = ExtraTokens(places, count), torch.randn(2, 3, 48, 32)
    at = {"front": 0, "middle": 12, "end": 24}[places]

    def patches(tokens):
        return torch.cat([tokens[:, :at], tokens[:, at + count :]], 1).mT.unflatten(-1, (6, 4))

    expected = explain(model, images, target=[[1, 2]] * 2, layer="block.norm1", tokens=patches, relu=False)
    for _ in range(2):
        explanation = explain(model, images, target=[[1, 2]] * 2, layer=layer, relu=False)
        assert explanation.layer == "block.norm1"
        torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=1e-6)


class Transposed(nn.Module):
    def forward(self, values):
        return values.mT


class LinearPatches(ExtraTokens):
    """The pixels of each patch through a linear layer: no convolution tells the grid."""

    def __init__(self, *args):
        super().__init__(*args)
        self.patch = nn.Sequential(nn.Unfold(8, stride=8), Transposed(), nn.Linear(192, 16), Transposed())
        self.eval()


@pytest.mark.parametrize(("places", "count"), [("front", 1), ("front", 3), ("middle", 2), ("end", 1)])
def test_patches_of_a_linear_layer_are_found_among_other_tokens(places, count):
    torch.manual_seed(2)
    model, images = LinearPatches(places, count), torch.randn(2, 3, 48, 32)
    at = {"front": 0, "middle": 12, "end": 24}[places]

    def patches(tokens):
        return torch.cat([tokens[:, :at], tokens[:, at + count :]], 1).mT.unflatten(-1, (6, 4))

    expected = explain(model, images, target=1, layer="block.norm1", tokens=patches, relu=False)
    explanation = explain(model, images, target=1, relu=False)
    assert explanation.layer == "block.norm1"
    torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=1e-6)


def test_patches_in_another_order_than_the_images_are_refused():
    model, images = ExtraTokens("front", reverse=True), torch.randn(1, 3, 48, 32)
    with pytest.raises(ValueError, match=r"of whose 25 tokens 24 depend on .* but not in the order of the image"):
        explain(model, images, layer="block.norm1")


def test_overlapping_patches_have_the_grid_that_their_convolution_made():
    model, images = ExtraTokens("front", stride=5), torch.randn(1, 3, 48, 63)
    explanation = explain(model, images, relu=False)
    planes = explain(model, images, layer="block.norm1", tokens=(9, 12), relu=False)
    assert explanation.layer == "block.norm1" and torch.equal(explanation.heatmap, planes.heatmap)


class Regions(nn.Module):
    """31 vectors, each a sum of pixels."""

    def __init__(self):
        super().__init__()
        self.sums, self.norm, self.head = nn.Linear(1024, 31), nn.LayerNorm(3), nn.Linear(3, 5)

    def forward(self, images):
        return self.head(self.norm(self.sums(images.flatten(2)).mT).mean(1))


class Latents(nn.Module):
    """31 latent vectors attend to the pixels, as in a perceiver."""

    def __init__(self):
        super().__init__()
        self.latents, self.read = nn.Parameter(torch.randn(31, 3)), nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, images):
        pixels = images.flatten(2).mT
        return self.read(self.latents.expand(len(images), -1, -1), pixels, pixels)[0].mean(1)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (Regions(), ("Regions", "'norm'", "31 tokens", "32x32", "tokens=")),
        (Latents(), ("Latents", "'read'", "(2, 31, 3)", "no places in the images", "queries", "layer=")),
    ],
)
def test_a_model_of_tokens_without_a_grid_is_refused_with_the_reason(model, parts):
    with pytest.raises(ValueError) as refusal:
        explain(model, torch.randn(2, 3, 32, 32))
    assert_says(refusal, ValueError, parts)


@pytest.mark.parametrize(
    ("before", "after", "merged"),
    [
        ((56, 56), (28, 28), True),
        ((7, 7), (4, 4), True),
        ((7, 7), (3, 3), True),
        ((7, 10), (2, 3), True),
        ((14, 14), (10, 10), False),
        ((14, 14), (7, 14), False),
        ((8, 8), (8, 8), False),
        ((8, 8, 8), (4, 4), False),
        ((8, 8, 8), (4, 4, 4), True),
        ((8, 16, 16), (8, 8, 8), True),
        ((8, 8, 8), (8, 8, 8), False),
        ((8, 16, 16), (4, 16, 16), False),
    ],
)
def test_merged_grids_have_half_or_a_quarter_of_the_sides(before, after, merged):
    assert _is_merged(before, after) == merged


class Detector(nn.Module):
    """A small DETR: a convolution, tokens of its positions, and queries that attend to them."""

    def __init__(self, queries, channels=16):
        super().__init__()
        self.backbone = nn.Conv2d(3, channels, 8, 8)
        self.queries = nn.Parameter(torch.randn(1, queries, channels))
        self.encoder, self.decoder = nn.LayerNorm(channels), nn.MultiheadAttention(channels, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 5)
        self.eval()

    def forward(self, images):
        tokens = self.encoder(self.backbone(images).flatten(2).mT)
        queries = self.queries.expand(len(images), -1, -1)
        return self.head(self.norm(self.decoder(queries, tokens, tokens)[0])).mean(1)


@pytest.mark.parametrize("queries", [9, 16, 100])
def test_queries_are_not_taken_for_patches(queries):
    torch.manual_seed(1)
    assert explain(Detector(queries), torch.randn(2, 3, 64, 64), relu=False).layer == "encoder"


def test_the_warning_says_that_queries_have_no_places_in_the_image():
    torch.manual_seed(1)
    model = Detector(100)
    del model.encoder
    model.encoder = lambda tokens: tokens
    message = r"'backbone', only cuts .* whose positions are no places in the images, but those of queries .*layer="
    with pytest.warns(UserWarning, match=message):
        assert explain(model, torch.randn(2, 3, 64, 64), relu=False).layer == "backbone"


class Captioned(nn.Module):
    """A score of image tokens and text tokens, both of a number that fits a grid; the text runs last."""

    def __init__(self):
        super().__init__()
        self.patch, self.image = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.words, self.text = nn.Embedding(9, 16), nn.LayerNorm(16)
        self.eval()

    def forward(self, pixels, words):
        image = self.image(self.patch(pixels).flatten(2).mT).amax(1)
        return (image[:, None] * self.text(self.words(words)).amax(1)).sum(-1)


@pytest.mark.parametrize("texts", [2, 3])
def test_words_are_not_taken_for_patches(texts):
    torch.manual_seed(2)
    words = torch.randint(0, 9, (texts, 16))
    explanation = explain(Captioned(), (torch.randn(2, 3, 32, 32), words), relu=False)
    assert explanation.layer == "image" and explanation.valid.all()


def test_a_convolution_inside_patches_does_not_decide_their_grid():
    """A small TNT: a convolution runs on the pixels of each patch separately."""

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels, self.norm = nn.Conv2d(3, 16, 3, 3), nn.LayerNorm(16)
            self.head, self.mix = nn.Linear(16, 5), nn.MultiheadAttention(16, 2, batch_first=True)
            self.eval()

        def forward(self, images):
            patches = images.unfold(2, 6, 6).unfold(3, 6, 6).permute(0, 2, 3, 1, 4, 5)
            tokens = self.norm(self.pixels(patches.flatten(0, 2)).mean((2, 3)).unflatten(0, (len(images), -1)))
            return self.head((tokens + self.mix(tokens, tokens, tokens)[0])[:, 0])

    torch.manual_seed(1)
    assert explain(Nested(), torch.randn(2, 3, 30, 30), relu=False).layer == "norm"
