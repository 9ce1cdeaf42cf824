"""Each kind of head is explained at the last map that all of the score's dependence on positions goes through."""

import warnings

import pytest
import torch
from support import heads
from support.networks import conv_relu
from torch import nn
from torch.nn import functional as F

from gradcam_fast import explain

REFERENCE = torch.randn(16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def explained(make, images=IMAGES, **choices):
    torch.manual_seed(1)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.9
    with torch.no_grad():  # so that no map is flat
        model.train()(images)
    return explain(model.eval(), images, relu=False, **choices)


class TokenLearner(nn.Module):
    """A few tokens, each the sum of all positions with weights of its own, then a transformer."""

    def __init__(self):
        super().__init__()
        self.trunk, self.weights, self.fc = heads.trunk(), nn.Conv2d(16, 4, 1), nn.Linear(16, 5)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0)

    def forward(self, images):
        maps = self.trunk(images)
        tokens = self.weights(maps).sigmoid().flatten(2) @ maps.flatten(2).mT
        return self.fc(self.block(tokens / 64).mean(1))


CLASSIFIERS = {
    "attention pooling": (heads.AttentionPooling, "trunk"),
    "gated attention, tanh": (lambda: heads.AttentionPooling(gate=torch.tanh), "trunk"),
    "gated attention, sigmoid, three heads": (lambda: heads.AttentionPooling(3, torch.sigmoid), "trunk"),
    "attention by a convolution": (lambda: heads.ConvolutionalAttention(lambda maps: maps.softmax(2)), "trunk"),
    "attention by sigmoids and their sum": (lambda: heads.ConvolutionalAttention(heads.by_sum), "trunk"),
    "pooling by a query": (heads.QueryPooling, "trunk"),
    "four tokens learned": (TokenLearner, "trunk"),
    "gate of positions": (lambda: heads.Gated("positions"), "trunk"),
    "gate of channels": (lambda: heads.Gated("channels"), "trunk"),
    "gate of values": (lambda: heads.Gated("values"), "trunk"),
    "ensemble": (lambda: heads.Ensemble(3), ("members.0", "members.1", "members.2")),
    "two trunks, one head": (lambda: heads.Ensemble(head=True), ("members.0", "members.1")),
    "coarse and fine classes, any": (heads.Coarse, "s2"),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("target", [None, 1])
def test_classifiers_are_explained_before_whatever_pools(kind, target):
    make, layer = CLASSIFIERS[kind]
    explanation = explained(make, target=target)
    assert explanation.layer == layer and explanation.valid.all()


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("by_product", [False, True])
def test_the_heatmaps_of_a_soft_argmax_are_neither_explained_nor_what_pools_to_noise(head, by_product):
    # Behind a 1x1 convolution the pooled gradient is zero as behind the softmax itself: at the trunk's last ReLU, too.
    explanation = explained(lambda: heads.Keypoints(head, by_product), target=1)
    assert explanation.layer == "trunk.1.1" and explanation.valid.all()


def test_both_pathways_of_a_video_network_are_explained():
    explanation = explained(heads.TwoPathways, torch.rand(2, 3, 8, 16, 16), target=1)
    assert explanation.layer == ("slow2", "fast2") and explanation.heatmap.shape == (2, 8, 16, 16)
    assert explanation.valid.all()


@pytest.mark.parametrize(("make", "images"), [(heads.Leads, torch.rand(2, 3, 40)), (heads.Bands, IMAGES)])
def test_a_trunk_that_runs_on_each_band_is_explained_in_all_of_its_calls(make, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(1)
        model = make()
        explanation = explain(model, images, target=1, relu=False)
    each = [explain(model, images, target=1, relu=False, layer="trunk", call=call) for call in range(3)]
    assert explanation.layer == "trunk" and all(of_call.valid.all() for of_call in each)
    mean = torch.stack([of_call.heatmap.double() for of_call in each]).mean(0)
    axes = tuple(range(1, mean.dim()))
    low, high = mean.amin(axes, keepdim=True), mean.amax(axes, keepdim=True)
    torch.testing.assert_close(explanation.heatmap.double(), (mean - low) / (high - low), rtol=0, atol=1e-5)
    again = explain(model, images, target=1, relu=False)
    assert again.layer == "trunk" and torch.equal(again.heatmap, explanation.heatmap)


@pytest.mark.parametrize(
    "views",
    [
        lambda images: (images, images.flip(3)),
        lambda images: (images, images.flip(2)),
        lambda images: (images[..., :16], images[..., 16:]),
        lambda images: (images[:, :, :16], images[:, :, 8:24], images[:, :, 16:]),
    ],
    ids=["mirrored", "upside down", "halves", "tiles"],
)
def test_calls_on_other_views_than_the_whole_image_are_not_laid_on_each_other(views):
    with pytest.warns(UserWarning, match="'trunk' show a part of what the score depends on"):
        assert explained(lambda: heads.Views(views), target=1).layer == "trunk"


WEIGHTS = torch.rand(32, 32)
LABELS = torch.ones(2, 32, 32, dtype=torch.long)
OF_CLASS_MAPS = {
    "mean": lambda out: out[:, 1].mean((1, 2)),
    "one pixel": lambda out: out[:, 1, 16, 16],
    "mean and maximum": lambda out: torch.stack([out[:, 1].mean((1, 2)), out[:, 1].amax((1, 2))], 1),
    "region": lambda out: out[:, 1, :8].mean((1, 2)),
    "where it is predicted": lambda out: (out[:, 1] * (out.argmax(1) == 1)).mean((1, 2)),
    "probability": lambda out: out.softmax(1)[:, 1].mean((1, 2)),
    "cross entropy": lambda out: -F.cross_entropy(out, LABELS[: len(out)], reduction="none").mean((1, 2)),
    "dice": lambda out: out.softmax(1)[:, 1].sum((1, 2)) / (out.softmax(1).sum((1, 2, 3)) + 1),
    "entropy": lambda out: -(out.softmax(1) * out.log_softmax(1)).sum(1).mean((1, 2)),
    "class as a product with one hot": lambda out: (out * torch.eye(4)[1][:, None, None]).sum((1, 2, 3)),
    "blurred": lambda out: F.conv2d(out[:, 1:2], torch.ones(1, 1, 5, 5), padding=2).amax((1, 2, 3)),
    "all blurred": lambda out: F.conv2d(out, torch.ones(4, 1, 5, 5), padding=2, groups=4)[:, 1].amax((1, 2)),
    "weighted pixels": lambda out: (out[:, 1] * WEIGHTS).sum((1, 2)),
    "weighted pixels of all classes": lambda out: (out * WEIGHTS).sum((2, 3))[:, 1],
    "weighted pixels as a product": lambda out: out[:, 1].flatten(1) @ WEIGHTS.flatten(),
    "weighted pixels as a sum of products": lambda out: torch.einsum("bchw,hw->bc", out, WEIGHTS)[:, 1],
}


@pytest.mark.parametrize("score", OF_CLASS_MAPS)
def test_a_segmentation_is_explained_at_its_last_block_however_the_classes_are_scored(score):
    explanation = explained(heads.Unet, target=OF_CLASS_MAPS[score])
    assert explanation.layer == "dec1" and explanation.valid.all()


ERRORS = {
    "squared": lambda out: -(out - 0.3).pow(2).mean((1, 2, 3)),
    "absolute": lambda out: -F.l1_loss(out, IMAGES[: len(out)], reduction="none").mean((1, 2, 3)),
    "norm": lambda out: -(out - 0.3).flatten(1).norm(dim=1),
    "norm of each pixel": lambda out: -(out - 0.3).norm(dim=1).mean((1, 2)),
    "for each image": [lambda out: -F.mse_loss(out, IMAGES[0])] * 2,
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("vector", [False, True])
def test_an_autoencoder_is_explained_before_its_reconstruction(error, vector):
    explanation = explained(lambda: heads.Autoencoder(vector), target=ERRORS[error])
    assert explanation.layer == "decoder.1" and explanation.valid.all()


@pytest.mark.parametrize(("last", "layer"), [(True, "up"), (False, "first")])
@pytest.mark.parametrize(
    "score", [lambda out: out[:, :, 20:30, 20:30].mean((1, 2, 3)), ERRORS["squared"]], ids=["crop", "error"]
)
def test_super_resolution_is_explained_before_its_last_convolution(last, layer, score):
    # Without a convolution behind the pixel shuffle, what goes into it is a sum made in the forward: of this map.
    explanation = explained(lambda: heads.SuperResolution(last), target=score)
    assert explanation.layer == layer and explanation.valid.all()


def pooled(maps):
    return maps.mean((2, 3))


OF_FEATURES = {
    "product with a reference": lambda maps: pooled(maps) @ REFERENCE,
    "weighted sum": lambda maps: (pooled(maps) * REFERENCE).sum(1),
    "linear layer": lambda maps: F.linear(pooled(maps), REFERENCE[None]),
    "cosine similarity": lambda maps: F.cosine_similarity(pooled(maps), REFERENCE[None]),
    "product of directions": lambda maps: F.normalize(pooled(maps), dim=1) @ F.normalize(REFERENCE, dim=0),
    "distance": lambda maps: -(pooled(maps) - REFERENCE).norm(dim=1),
    "pairwise distance": lambda maps: -F.pairwise_distance(pooled(maps), REFERENCE[None]),
    "squared distance": lambda maps: -(pooled(maps) - REFERENCE).pow(2).sum(1),
    "maximum": lambda maps: maps.amax((2, 3)) @ REFERENCE,
    "generalised mean": lambda maps: maps.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3) @ REFERENCE,
    "similarity of each position": lambda maps: F.cosine_similarity(maps, REFERENCE[None, :, None, None]).mean((1, 2)),
    "product of each position": lambda maps: (maps * REFERENCE[:, None, None]).sum(1).mean((1, 2)),
    "convolution": lambda maps: F.conv2d(maps, REFERENCE.reshape(1, 16, 1, 1)).mean((1, 2, 3)),
    "linear layer on all values": lambda maps: maps.flatten(1) @ REFERENCE.repeat_interleave(64),
    "for each image": [lambda maps: F.cosine_similarity(maps.mean((1, 2)), REFERENCE, dim=0)] * 2,
}


@pytest.mark.parametrize("score", OF_FEATURES)
@pytest.mark.parametrize(("kind", "layer"), [("maps", "trunk"), ("norm", "norm")])
def test_returned_features_are_explained_where_the_score_mixes_their_channels(score, kind, layer):
    explanation = explained(lambda: heads.Features(kind), target=OF_FEATURES[score])
    assert explanation.layer == layer and explanation.valid.all()


@pytest.mark.parametrize("score", [lambda maps: maps[:, 3].mean((1, 2)), lambda maps: maps.pow(2).mean((1, 2, 3))])
@pytest.mark.parametrize(("kind", "layer"), [("maps", "trunk.0"), ("norm", "trunk")])
def test_returned_features_are_explained_before_where_the_score_takes_them_one_by_one(score, kind, layer):
    assert explained(lambda: heads.Features(kind), target=score).layer == layer


@pytest.mark.parametrize(
    ("score", "layer"),
    [
        (lambda tokens: tokens.mean(1) @ REFERENCE, "norm"),
        (lambda tokens: F.cosine_similarity(tokens.mean(1), REFERENCE[None]), "norm"),
        (lambda tokens: (tokens.mean(1) * REFERENCE).sum(1), "norm"),
        (lambda tokens: (tokens @ REFERENCE).amax(1), "norm"),
        (lambda tokens: tokens[:, :, 3].mean(1), "trunk"),
    ],
)
def test_returned_tokens_are_features_like_returned_maps(score, layer):
    explanation = explained(lambda: heads.Features("tokens"), target=score)
    assert explanation.layer == layer and explanation.valid.all()


@pytest.mark.parametrize("score", [lambda out: out[0][:, 1], lambda out: pooled(out[1]) @ REFERENCE])
def test_features_beside_logits_are_no_own_output(score):
    assert explained(lambda: heads.Features("maps", logits=True), target=score).layer == "trunk"


def test_features_are_searched_for_once():
    model, runs = heads.Features("norm"), []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    for expected in (2, 1, 1):
        runs.clear()
        explain(model, IMAGES, target=OF_FEATURES["product with a reference"], relu=False)
        assert len(runs) == expected


class OneOfTwo(nn.Module):
    """Each image is scored by a fine or a coarse head, both behind the fine map; the coarse head has more before it."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = conv_relu(), nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
        self.eval()

    def forward(self, images):
        fine = self.fine(images)
        return [head(maps.mean((2, 3)))[:, 0] for head, maps in zip(self.heads, (fine, self.coarse(fine)), strict=True)]


@pytest.mark.parametrize("first", [0, 1])
def test_the_order_of_the_images_does_not_decide(first):
    def score(out):
        return torch.where(torch.arange(len(out[0])) == 0, out[first], out[1 - first])

    assert explain(OneOfTwo(), IMAGES, target=score, relu=False).layer == "fine"
