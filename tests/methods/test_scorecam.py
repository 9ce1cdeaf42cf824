"""Score-CAM against an exact loop over the channels; its choice of channels; its independence of the logits' scale."""

import pytest
import torch
from support import naive, naive_methods
from support.networks import ConvNet, conv_relu, pooled_head
from torch import nn

import gradcam_fast

# An image under a mask goes through the whole network, and a softmax turns rounding into relative error.
LOOP = 1e-4


def explain(model, images, **choices):
    return gradcam_fast.explain(model, images, **{"layer": "features.4", "method": "scorecam", "target": 1} | choices)


@pytest.mark.parametrize("layer", ["features.4", "features.1"])
@pytest.mark.parametrize("channels", [None, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_loop_over_the_channels(layer, channels, dtype, images):
    model, images = ConvNet().to(dtype), images.to(dtype)
    explanation = explain(model, images, layer=layer, channels=channels, chunk=5)
    expected = naive_methods.scorecam(model.double(), layer, images.double(), naive.of_class(1), channels)
    assert (explanation.heatmap - naive_methods.scaled(expected, (16, 16))).abs().max() <= LOOP
    assert explanation.valid.all()


def test_the_scale_of_the_logits_does_not_matter(images):
    model = ConvNet()
    expected = explain(model, images).heatmap
    for scale in (1e-4, 1e4):
        scaled = ConvNet()
        scaled.load_state_dict(model.state_dict())
        with torch.no_grad():
            scaled.head[4].weight *= scale
            scaled.head[4].bias *= scale
        assert (explain(scaled, images).heatmap - expected).abs().max() <= 1e-3


def test_constant_channels_are_not_run(images):
    model = ConvNet()
    with torch.no_grad():
        model.features[3].weight[5:].zero_()
        model.features[3].bias[5:8] = 2  # constant at 2; the others are zero
        model.features[3].bias[8:] = -1
    explanation = explain(model, images[:1], chunk=16)
    assert model.runs == [1, 5]
    expected = naive_methods.scorecam(model, "features.4", images[:1], naive.of_class(1))
    assert (explanation.heatmap - naive_methods.scaled(expected, (16, 16))).abs().max() <= LOOP


def test_a_constant_layer_is_flat(images):
    model = ConvNet()
    with torch.no_grad():
        model.features[3].weight.zero_()
        model.features[3].bias.fill_(1)
    assert explain(model, images).reason == ["flat"] * 3 and model.runs == [3]


def test_a_single_channel_is_its_own_map(images):
    model = ConvNet()
    explanation = explain(model, images[:1], channels=1)
    maps = naive_methods.activations_of(model, "features.4", images[:1])[0]
    strongest = maps[(maps.amax((1, 2)) - maps.amin((1, 2))).argmax()]
    assert (explanation.heatmap - naive_methods.scaled(strongest[None], (16, 16))).abs().max() <= 1e-6


def test_several_targets_share_their_runs(images):
    model = ConvNet()
    both = explain(model, images, target=[[0, 3]], chunk=16)
    assert len(model.runs) == 4
    for place, category in enumerate([0, 3]):
        assert (both.heatmap[:, place] - explain(model, images, target=category).heatmap).abs().max() <= LOOP


def test_other_inputs_of_the_model_stay_as_they_are(images):
    class Shifted(ConvNet):
        def forward(self, images, shift):
            return super().forward(images) * shift.unsqueeze(1)

    model, shift = Shifted(), torch.tensor([1.0, -1.0, 2.0])
    explanation = explain(model, (images, shift))
    plain = ConvNet()
    plain.load_state_dict(model.state_dict())
    for place in range(3):
        alone = explain(plain, images[place : place + 1], target=lambda out, place=place: out[:, 1] * shift[place])
        assert (explanation.heatmap[place] - alone.heatmap[0]).abs().max() <= LOOP


def test_series():
    model = nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    explanation = gradcam_fast.explain(model, torch.randn(2, 3, 20), layer="1", method="scorecam", channels=4)
    assert explanation.heatmap.shape == (2, 20) and explanation.valid.all()


def test_channels_are_refused_where_there_are_none_to_choose():
    model = nn.Sequential(conv_relu(), pooled_head(8))
    with pytest.raises(ValueError, match="channels= is for method='scorecam', not for method='ablation'"):
        gradcam_fast.Explainer(model, method="ablation", channels=4)
    with pytest.raises(ValueError, match="channels=0 is below 1"):
        gradcam_fast.Explainer(model, method="scorecam", channels=0)
    with pytest.raises(TypeError, match="channels='all' is a str"):
        gradcam_fast.Explainer(model, method="scorecam", channels="all")
