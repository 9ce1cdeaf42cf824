"""Transformers are explained at the last norm that the class token reads, however their blocks are written."""

import pytest
import torch
from support.networks import conv_relu, pooled_head
from torch import nn
from torch.nn import functional as F

from gradcam_fast import explain
from gradcam_fast.exceptions import NoLayerFound

IMAGES = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
DIM = 16


class Attention(nn.Module):
    """Attention with its norm inside, as in vit-pytorch: without a module for the block around it."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM)
        self.out = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.1))

    def forward(self, tokens):
        heads = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in self.qkv(self.norm(tokens)).chunk(3, 2))
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class LowRank(nn.Module):
    """A linear layer and an update of low rank beside it (LoRA), as a module of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(inputs, outputs), nn.Linear(inputs, 2), nn.Linear(2, outputs)

    def forward(self, tokens):
        return self.base(tokens) + 0.5 * self.up(self.down(tokens))


class WeightFirst(nn.Module):
    """A linear layer whose weight is (inputs,outputs), as in GPT-2."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.randn(outputs))

    def forward(self, tokens):
        return torch.addmm(self.bias, tokens.flatten(0, 1), self.weight).unflatten(0, tokens.shape[:2])


class LowRankAttention(Attention):
    def __init__(self):
        super().__init__()
        self.qkv = LowRank(DIM, 3 * DIM)


class WeightFirstAttention(Attention):
    def __init__(self):
        super().__init__()
        self.qkv = WeightFirst(DIM, 3 * DIM)


class SplitAttention(nn.Module):
    """Queries, keys and values by a layer each, two of them with an update of low rank."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)
        self.layers = nn.ModuleList([LowRank(DIM, DIM), nn.Linear(DIM, DIM), LowRank(DIM, DIM)])

    def forward(self, tokens):
        normed = self.norm(tokens)
        heads = (layer(normed).unflatten(2, (2, -1)).transpose(1, 2) for layer in self.layers)
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Scan(nn.Module):
    """A state-space layer written out: tokens read those before them and behind them."""

    def __init__(self):
        super().__init__()
        self.norm, self.gates, self.out = nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)
        self.conv = nn.Conv1d(DIM, DIM, 4, padding=3, groups=DIM)

    def forward(self, tokens):
        values, gate = self.gates(self.norm(tokens)).chunk(2, 2)
        values = F.silu(self.conv(values.mT)[..., : tokens.shape[1]]).mT
        places = torch.arange(tokens.shape[1])
        return self.out((0.9 ** (places[:, None] - places).abs() @ values) * F.silu(gate))


class Fourier(nn.Module):
    """The real part of a Fourier transform over tokens and features (FNet), which mixes all tokens at once."""

    def forward(self, tokens):
        return torch.fft.fft2(tokens, norm="ortho").real


class PostNorm(nn.Module):
    """Blocks without a module before their mixer: no module returns the tokens before they are mixed."""

    def __init__(self, mixer, extra, at=0, mean=False):
        super().__init__()
        self.patches, self.tokens, self.at = patches_by_convolution(), nn.Parameter(torch.randn(1, extra, DIM)), at
        self.mixers = nn.ModuleList(mixer() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.head, self.mean = nn.Linear(DIM, 5), mean
        self.eval()

    def forward(self, images):
        patches, extra = self.patches(images).mT, self.tokens.expand(len(images), -1, -1)
        tokens = torch.cat([patches[:, : self.at], extra, patches[:, self.at :]], 1)
        for mixer, norm in zip(self.mixers, self.norms, strict=True):
            tokens = norm(tokens + mixer(tokens))
        return self.head(tokens.mean(1) if self.mean else tokens[:, self.at])


@pytest.mark.parametrize(("extra", "at"), [(1, 0), (3, 0), (1, 48), (2, 24)])
@pytest.mark.parametrize("mean", [False, True])
def test_tokens_that_a_fourier_transform_mixes_are_where_they_were_put(extra, at, mean):
    torch.manual_seed(1)
    model = PostNorm(Fourier, extra, at, mean)
    explanation = explain(model, IMAGES, target=1, relu=False)
    # What a class token reads of the last mixer's norm are no positions.
    assert explanation.layer == ("norms.1" if mean else "norms.0") and explanation.valid.all()

    def patches(tokens):
        return torch.cat([tokens[:, :at], tokens[:, at + extra :]], 1).mT.unflatten(2, (6, 8))

    expected = explain(model, IMAGES, target=1, layer=explanation.layer, relu=False, tokens=patches)
    torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=1e-6)
    named = explain(model, IMAGES, target=1, layer="norms.0", relu=False)
    expected = explain(model, IMAGES, target=1, layer="norms.0", relu=False, tokens=patches)
    torch.testing.assert_close(named.heatmap, expected.heatmap, rtol=0, atol=1e-6)


def feed_forward():
    return nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 32), nn.GELU(), nn.Linear(32, DIM))


def patches_by_convolution():
    return nn.Sequential(nn.Conv2d(3, DIM, 8, 8), nn.Flatten(2))


class SoftSplit(nn.Module):
    """Overlapping windows through linear layers, twice, with a transformer between, as in T2T."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(27, DIM), nn.Linear(9 * DIM, DIM)
        self.block = nn.TransformerEncoderLayer(DIM, 2, 32, batch_first=True, norm_first=True, dropout=0)

    def forward(self, images):
        tokens = self.block(self.first(F.unfold(images, 3, stride=2, padding=1).mT))
        return self.second(F.unfold(tokens.mT.unflatten(2, (24, 32)), 3, stride=4, padding=1).mT).mT


class LinearPatches(nn.Module):
    """The pixels of each patch through a linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(192, DIM)

    def forward(self, images):
        return self.embedding(F.unfold(images, 8, stride=8).mT).mT


class Transformer(nn.Module):
    """Residual blocks written in the forward; the class token, in front or in the middle, is read."""

    def __init__(self, mixer, patches=patches_by_convolution, at=0, final_norm=True, mean=False):
        super().__init__()
        self.patches, self.token, self.at, self.mean = patches(), nn.Parameter(torch.randn(1, 1, DIM)), at, mean
        self.blocks = nn.ModuleList(nn.ModuleList([mixer(), feed_forward()]) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(DIM) if final_norm else nn.Identity(), nn.Linear(DIM, 5)
        self.eval()

    def forward(self, images):
        patches = self.patches(images).mT
        token = self.token.expand(len(images), -1, -1)
        tokens = torch.cat([patches[:, : self.at], token, patches[:, self.at :]], 1)
        for mixer, mlp in self.blocks:
            tokens = tokens + mixer(tokens)
            tokens = tokens + mlp(tokens)
        tokens = self.norm(tokens)
        return self.head(tokens.mean(1) if self.mean else tokens[:, self.at])


TRANSFORMERS = {
    "norm inside the attention": (lambda: Transformer(Attention), "blocks.2.0.norm"),
    "without a final norm": (lambda: Transformer(Attention, final_norm=False), "blocks.2.0.norm"),
    "low-rank updates of projections": (lambda: Transformer(LowRankAttention), "blocks.2.0.norm"),
    "low-rank updates of queries and values": (lambda: Transformer(SplitAttention), "blocks.2.0.norm"),
    "projections with the weight first": (lambda: Transformer(WeightFirstAttention), "blocks.2.0.norm"),
    "the mean of all tokens": (lambda: Transformer(Attention, mean=True), "norm"),
    # What all of the score goes through is then the first map, by a convolution or a linear layer.
    "no final norm, patches": (lambda: Transformer(Attention, final_norm=False, mean=True), "patches.0"),
    "no final norm, linear patches": (
        lambda: Transformer(Attention, LinearPatches, final_norm=False, mean=True),
        "patches.embedding",
    ),
    "scan, class token in the middle": (lambda: Transformer(Scan, at=24), "blocks.2.0.norm"),
    "scan, class token in front": (lambda: Transformer(Scan), "blocks.2.0.norm"),
    "soft split": (lambda: Transformer(Attention, SoftSplit), "blocks.2.0.norm"),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_class_token_that_blocks_hand_on_counts_as_no_position(kind, batch):
    make, layer = TRANSFORMERS[kind]
    torch.manual_seed(1)
    model = make()
    explanation = explain(model, IMAGES[:batch], target=1, relu=False)
    assert explanation.layer == layer and explanation.valid.all()

    def patches(tokens):
        return torch.cat([tokens[:, : model.at], tokens[:, model.at + 1 :]], 1).mT.unflatten(2, (6, 8))

    choices = {} if layer.startswith("patches") else {"tokens": patches}
    expected = explain(model, IMAGES[:batch], target=1, layer=layer, relu=False, **choices)
    torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=1e-6)


def test_some_of_the_patches_are_no_merged_patches_because_a_linear_layer_widens_them():
    class EveryFourth(Transformer):
        def forward(self, images):
            tokens = self.patches(images).mT[:, torch.arange(0, 48, 4)]
            for mixer, mlp in self.blocks:
                tokens = tokens + mixer(tokens)
                tokens = tokens + mlp(tokens)
            return self.head(self.norm(tokens).mean(1))

    torch.manual_seed(1)
    with pytest.raises(NoLayerFound, match="12 tokens are fewer than the 6x8 patches that the model cuts"):
        explain(EveryFourth(Attention), IMAGES, target=1)


class Summed(nn.Module):
    """The sum of the scores of several networks."""

    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval()

    def forward(self, images):
        return sum(member(images) for member in self.members)


LAST_NORM = "blocks.2.0.norm"
TOGETHER = {
    "two transformers": (
        lambda: Summed(Transformer(Attention), Transformer(Attention)),
        (f"members.0.{LAST_NORM}", f"members.1.{LAST_NORM}"),
    ),
    "a transformer, then a convolutional network": (
        lambda: Summed(Transformer(Attention), nn.Sequential(conv_relu(), pooled_head(8))),
        (f"members.0.{LAST_NORM}", "members.1.0"),
    ),
    "a convolutional network, then a transformer": (
        lambda: Summed(nn.Sequential(conv_relu(), pooled_head(8)), Transformer(Attention)),
        ("members.0.0", f"members.1.{LAST_NORM}"),
    ),
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_a_class_token_of_another_network_is_not_passed_by(kind):
    make, layers = TOGETHER[kind]
    torch.manual_seed(1)
    explanation = explain(make(), IMAGES, target=1, relu=False)
    assert explanation.layer == layers and explanation.valid.all()


class ParallelBlock(nn.Module):
    """The multilayer perceptron runs before the attention beside it."""

    def __init__(self):
        super().__init__()
        self.attention, self.mlp = Attention(), feed_forward()

    def forward(self, tokens):
        return self.mlp(tokens) + self.attention(tokens)


def test_a_class_token_that_leads_to_the_blocks_before_is_passed_by():
    torch.manual_seed(1)
    explanation = explain(Transformer(ParallelBlock), IMAGES, target=1, relu=False)
    assert explanation.layer == "blocks.2.0.attention.norm" and explanation.valid.all()


class TokensApart(Transformer):
    """Returns the class token and the patches apart, as DINOv2 does."""

    def forward(self, images):
        tokens = torch.cat([self.token.expand(len(images), -1, -1), self.patches(images).mT], 1)
        for mixer, mlp in self.blocks:
            tokens = tokens + mixer(tokens)
            tokens = tokens + mlp(tokens)
        tokens = self.norm(tokens)
        return {"class token": tokens[:, 0], "patches": tokens[:, 1:], "map": tokens[:, 1:].mT.unflatten(2, (6, 8))}


REFERENCE = torch.randn(1, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("score", "layer"),
    [
        (lambda out: F.cosine_similarity(out["patches"].mean(1), REFERENCE), "norm"),
        (lambda out: F.cosine_similarity(out["patches"][:, 10], REFERENCE), "norm"),
        (lambda out: F.cosine_similarity(out["map"].amax((2, 3)), REFERENCE), "norm"),
        (lambda out: F.cosine_similarity(out["class token"], REFERENCE), "blocks.2.0.norm"),
        (lambda out: out["patches"][:, :, 3].mean(1), "patches.0"),
    ],
)
def test_some_of_the_tokens_of_a_map_are_features_like_all(score, layer):
    torch.manual_seed(1)
    explanation = explain(TokensApart(Attention), IMAGES, target=score, relu=False)
    assert explanation.layer == layer and explanation.valid.all()
