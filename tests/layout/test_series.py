"""Series (B,C,L) and (B,L,C) are told apart by asking the model, because any length fits: recurrent, attention, CNN."""

import pytest
import torch
from support.tolerances import RECIPE_PARITY
from torch import nn
from torch.nn import functional as F

from gradcam_fast import explain
from gradcam_fast.layers import list_layers


class Perceptron(nn.Module):
    """A function of the features of each step."""

    def __init__(self, features):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features))

    def forward(self, steps):
        return self.layers(steps)


def encoder(features):
    layer = nn.TransformerEncoderLayer(features, 2, 16, batch_first=True, dropout=0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


BEHIND = {
    "transformer": encoder,
    "recurrent": lambda features: nn.GRU(features, features, batch_first=True),
    "both ways": lambda features: nn.LSTM(features, features // 2, batch_first=True, bidirectional=True),
    "perceptron": Perceptron,
}


class Series(nn.Module):
    """Convolutions over (B,3,L), and a layer on what they return as (B,L,C)."""

    def __init__(self, make, features, class_token=False):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(3, features, 5, 2, 2), nn.BatchNorm1d(features), nn.ReLU())
        self.behind, self.fc = make(features), nn.Linear(features, 5)
        self.token = nn.Parameter(torch.randn(1, 1, features)) if class_token else None
        self.eval()

    def forward(self, series):
        steps = self.conv(series).mT
        if self.token is not None:
            steps = torch.cat([self.token.expand(len(series), -1, -1), steps], 1)
        returned = self.behind(steps)
        return self.fc((returned[0] if isinstance(returned, tuple) else returned).mean(1))


def textbook(model, layer, series, target, view):
    """Grad-CAM by an ordinary backward, from 0 to 1."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    returned = model(series)
    handle.remove()
    score = getattr(returned, "logits", returned)[:, target].sum()
    maps = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]
    (gradient,) = torch.autograd.grad(score, maps)
    raw = (view(gradient).mean(2, keepdim=True) * view(maps)).sum(1, keepdim=True).detach()
    heatmap = F.interpolate(raw, series.shape[-1:], mode="linear")[:, 0]
    low, high = heatmap.amin(1, keepdim=True), heatmap.amax(1, keepdim=True)
    return (heatmap - low) / (high - low)


# 8 features of 8 steps are alike by their number.
LENGTHS = [16, 50, 64]


@pytest.mark.parametrize("kind", BEHIND)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("layer", [None, "behind", "conv"])
def test_the_map_of_series_is_that_of_the_textbook(kind, length, layer):
    torch.manual_seed(1)
    model, series = Series(BEHIND[kind], 8), torch.randn(2, 3, length)
    explanation = explain(model, series, target=1, layer=layer, relu=False)
    found = explanation.layer
    # Behind the function of the perceptron is a projection.
    last = "behind.layers.1" if kind == "perceptron" else "behind"
    assert found == (layer or last) and explanation.valid.all()
    expected = textbook(model, found, series, 1, (lambda maps: maps) if found == "conv" else (lambda steps: steps.mT))
    torch.testing.assert_close(explanation.heatmap, expected, rtol=0, atol=RECIPE_PARITY)


@pytest.mark.parametrize("kind", BEHIND)
@pytest.mark.parametrize("layer", [None, "behind"])
def test_class_tokens_in_front_of_a_series_are_left_out(kind, layer):
    torch.manual_seed(1)
    model, series = Series(BEHIND[kind], 8, class_token=True), torch.randn(2, 3, 50)
    explanation = explain(model, series, target=1, layer=layer, relu=False)
    assert explanation.valid.all()
    expected = textbook(model, explanation.layer, series, 1, lambda steps: steps[:, 1:].mT)
    torch.testing.assert_close(explanation.heatmap, expected, rtol=0, atol=RECIPE_PARITY)


class PatchedSeries(nn.Module):
    """A convolution, patches of eight steps through a linear layer, then a transformer."""

    def __init__(self, features):
        super().__init__()
        self.conv, self.embedding, self.encoder = nn.Conv1d(3, 3, 1), nn.Linear(24, features), encoder(features)
        self.norm, self.fc = nn.LayerNorm(features), nn.Linear(features, 5)
        self.eval()

    def forward(self, series):
        patches = self.conv(series).unfold(2, 8, 8).permute(0, 2, 1, 3).flatten(2)
        return self.fc(self.norm(self.encoder(self.embedding(patches))).mean(1))


@pytest.mark.parametrize("features", [8, 16])
@pytest.mark.parametrize("layer", [None, "norm", "encoder", "embedding"])
def test_patches_of_a_series_are_its_steps(features, layer):
    torch.manual_seed(1)
    model, series = PatchedSeries(features), torch.randn(2, 3, 64)
    explanation = explain(model, series, target=1, layer=layer, relu=False)
    assert explanation.layer == (layer or "norm") and explanation.valid.all()
    expected = textbook(model, explanation.layer, series, 1, lambda steps: steps.mT)
    torch.testing.assert_close(explanation.heatmap, expected, rtol=0, atol=RECIPE_PARITY)


SPEECH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 5}
SPEECH |= {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
SPEECH |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16}
MELS = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_labels": 5}
MELS |= {"num_mel_bins": 16, "max_source_positions": 50, "classifier_proj_size": 16}


@pytest.mark.parametrize(
    ("name", "config", "shape", "layer"),
    [
        ("Wav2Vec2ForSequenceClassification", ("Wav2Vec2Config", SPEECH), (2, 800), "wav2vec2.encoder"),
        (
            "HubertForSequenceClassification",
            ("HubertConfig", SPEECH | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
            (2, 800),
            "hubert",
        ),
        ("WhisperForAudioClassification", ("WhisperConfig", MELS), (2, 16, 100), "encoder"),
    ],
)
def test_speech_networks_are_explained_at_the_end_of_their_encoder(name, config, shape, layer):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = getattr(transformers, name)(getattr(transformers, config[0])(**config[1])).eval()
    series = torch.randn(shape)
    explanation = explain(model, series, target=1, relu=False)
    assert explanation.layer == layer and explanation.valid.all()
    expected = textbook(model, layer, series, 1, lambda steps: steps.mT)
    torch.testing.assert_close(explanation.heatmap, expected, rtol=0, atol=RECIPE_PARITY)


def test_the_model_is_asked_once_about_a_named_layer():
    model, runs = Series(encoder, 8), []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    for length, count in ((64, 3), (64, 1), (50, 3), (50, 1)):
        runs.clear()
        explain(model, torch.randn(2, 3, length), target=1, layer="behind", relu=False)
        assert len(runs) == count, length


def test_series_are_listed_by_their_channels_and_length():
    rows = {row.name: row.shape for row in list_layers(Series(encoder, 8), torch.randn(2, 3, 64), every=True)}
    assert rows["conv"][-2:] == (8, 32) and rows["behind"][-2:] == (32, 8)
