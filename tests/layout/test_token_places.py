"""Patches in other places than the image's are refused, unless a callable puts them back."""

import pytest
import torch
from support.networks import PatchNet
from torch import nn

from gradcam_fast import explain
from gradcam_fast.exceptions import NoLayerFound, NotSpatial


class ShuffledPatches(PatchNet):
    """Patches in another order than the image's, with or without extra tokens in front."""

    def __init__(self, order, class_tokens):
        super().__init__(class_tokens)
        self.order, self.last = order, nn.LayerNorm(16)

    def forward(self, images):
        patches = self.order(self.patch(images).flatten(2).mT)
        tokens = self.norm(torch.cat([self.class_tokens.expand(len(images), -1, -1), patches], 1))
        return self.head(self.last(tokens + self.mix(tokens, tokens, tokens)[0]).mean(1))


ORDERS = {
    "columns": lambda patches: patches.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2),
    "backwards": lambda patches: patches.flip(1),
    "windows": lambda patches: patches.unflatten(1, (2, 2, 2, 2)).transpose(2, 3).flatten(1, 4),
    "every second row backwards": lambda patches: torch.cat(
        [row.flip(1) if place % 2 else row for place, row in enumerate(patches.split(4, 1))], 1
    ),
    "random": lambda patches: patches[:, torch.randperm(16)],
    "random for each image": lambda patches: patches.gather(
        1, torch.rand(patches.shape[:2]).argsort(1)[..., None].expand_as(patches)
    ),
    "the second half": lambda patches: patches[:, 8:],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("class_tokens", [0, 1])
def test_patches_that_are_not_in_their_places_are_refused(order, class_tokens):
    torch.manual_seed(3)
    model, images = ShuffledPatches(ORDERS[order], class_tokens), torch.randn(2, 3, 32, 32)
    for layer in ("last", None):  # the named layer first: it asks, too
        with pytest.raises((NotSpatial, NoLayerFound), match="tokens="):
            explain(model, images, layer=layer)


def test_a_callable_puts_shuffled_patches_into_their_places():
    torch.manual_seed(3)
    model, images = ShuffledPatches(lambda patches: patches[:, torch.arange(16).roll(5)], 0), torch.randn(2, 3, 32, 32)
    restored = explain(model, images, tokens=lambda tokens: tokens.roll(-5, 1).mT.unflatten(2, (4, 4)), relu=False)
    model.order = nn.Identity()
    in_order = explain(model, images, relu=False)
    assert restored.layer == in_order.layer == "last"
    torch.testing.assert_close(restored.heatmap, in_order.heatmap)


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_patches_of_a_coarser_grid_are_told_from_some_of_the_patches(class_tokens):
    torch.manual_seed(3)
    model = ShuffledPatches(lambda patches: patches.unflatten(1, (4, 4))[:, ::2, ::2].flatten(1, 2), class_tokens)
    explanation = explain(model, torch.randn(2, 3, 32, 32), layer="last", relu=False)
    assert explanation.valid.all()


class Series(nn.Module):
    """A transformer over features (B,L,F), without convolutions, behind a class token."""

    def __init__(self, features, class_tokens):
        super().__init__()
        self.project, self.class_tokens = nn.Linear(features, 16), nn.Parameter(torch.randn(1, class_tokens, 16))
        self.norm, self.mix = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)
        self.eval()

    def forward(self, series):
        tokens = torch.cat([self.class_tokens.expand(len(series), -1, -1), self.project(series)], 1)
        normed = self.norm(tokens)
        tokens = tokens + self.mix(normed, normed, normed)[0]
        return self.head(tokens[:, 0] if self.class_tokens.shape[1] else tokens.mean(1))


@pytest.mark.parametrize("features", [6, 24, 48])
@pytest.mark.parametrize("class_tokens", [0, 1])
def test_steps_of_a_series_are_tokens_in_models_without_convolutions(features, class_tokens):
    torch.manual_seed(4)
    model, series = Series(features, class_tokens), torch.randn(2, 24, features)
    explanation = explain(model, series, layer="norm", relu=False)
    assert explanation.heatmap.shape == (2, 24) and explanation.valid.all()

    def first_steps(tokens):
        return tokens[:, class_tokens:].mT

    expected = explain(model, series, layer="norm", relu=False, tokens=first_steps)
    torch.testing.assert_close(explanation.heatmap, expected.heatmap)
    # Without a class token, what the attention adds to is read, too.
    assert explain(model, series, relu=False).layer == ("norm" if class_tokens else "project")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, series):
        return self.head(self.rnn(series)[0].mean(1))


def test_the_steps_of_a_recurrent_network_are_those_of_the_series():
    torch.manual_seed(4)
    model, series = Recurrent(), torch.randn(2, 24, 6)
    explanation = explain(model, series, target=1, relu=False)
    assert explanation.layer == "rnn" and explanation.valid.all()
    expected = explain(model, series, target=1, layer="rnn", tokens=lambda tokens: tokens.mT, relu=False)
    torch.testing.assert_close(explanation.heatmap, expected.heatmap)


def test_merged_patches_behind_attention_keep_the_class_token_in_front():
    """A small MViT: attention merges the patches of a clip, so that nothing but their number tells which they are."""
    mvit = pytest.importorskip("torchvision").models.video.mvit

    def block(heads, before, after, stride):
        options = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3], "stride_q": [1, stride, stride]}
        return mvit.MSBlockConfig(heads, before, after, stride_kv=[1, 2, 2], **options)

    torch.manual_seed(5)
    blocks = [block(1, 16, 16, 1), block(2, 16, 32, 2), block(2, 32, 32, 1)]
    model = mvit.MViT((64, 64), 8, blocks, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True,
                      proj_after_attn=True, num_classes=5).eval()  # fmt: skip
    clips = torch.randn(1, 3, 8, 64, 64)
    explanation = explain(model, clips, relu=False)
    assert explanation.layer == "blocks.2.norm1" and explanation.valid.all()
    expected = explain(
        model, clips, layer="blocks.2.norm1", relu=False, tokens=lambda tokens: tokens[:, 1:].mT.unflatten(2, (4, 8, 8))
    )
    torch.testing.assert_close(explanation.heatmap, expected.heatmap)
