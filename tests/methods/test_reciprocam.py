"""Recipro-CAM: by hand, and against one position at a time."""

import pytest
import torch
from support import naive, naive_methods
from support.networks import ConvNet, PatchNet, Repeating, conv_relu, pooled_head
from support.tolerances import SAME_INPUTS
from torch import nn

import gradcam_fast

EXACT = SAME_INPUTS[torch.float32]


def curved():
    """A head that is not affine."""
    return nn.Sequential(conv_relu(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), pooled_head(8)).eval()


def test_a_map_computed_by_hand():
    # The score is the sum of both positions plus 3. Around the first lies half of what is there and a quarter of what
    # is beside it (the kernel along the width; along the height only its middle, 1/2, is inside): 1/4 * 8 + 1/8 * 16.
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[3].weight.fill_(2)
        model[3].bias.fill_(3)
    choices = {"layer": "0", "method": "reciprocam", "normalize": "none"}
    explanation = gradcam_fast.explain(model, torch.tensor([[[[8.0, 16.0]]]]), **choices)
    assert torch.equal(explanation.heatmap, torch.tensor([[[4.0, 5.0]]])) and explanation.score.item() == 27


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (ConvNet, "features.4"),  # affine behind it
        (ConvNet, "features.1"),
        (curved, "0"),
        (curved, "1"),
        (lambda: Repeating(2), "relu"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_position_shows_what_the_score_is_with_it_alone(make, layer, dtype, images):
    model, images = make().to(dtype), images[:1].to(dtype)
    choices = {"layer": layer, "method": "reciprocam", "target": 1, "chunk": 5}
    explanation = gradcam_fast.explain(model, images, **choices)
    expected = naive_methods.reciprocam(model.double(), layer, images.double(), naive.of_class(1))
    model.to(dtype)
    choices |= {"normalize": "none", "relu": False, "size": tuple(expected.shape[1:])}
    raw = gradcam_fast.explain(model, images, **choices).heatmap
    # A difference of two scores is as exact as these.
    assert (raw - expected).abs().max() <= EXACT * max(expected.abs().max(), explanation.score.abs().max())
    assert (explanation.heatmap - naive_methods.scaled(expected, (16, 16))).abs().max() <= 1e-4


def test_behind_an_affine_head_one_forward_is_enough(images):
    model = ConvNet()
    gradcam_fast.explain(model, images, layer="features.4", method="reciprocam")
    assert model.runs == [3]


def test_several_targets_and_several_layers(images):
    model = curved()
    both = gradcam_fast.explain(model, images, layer=["0", "1"], method="reciprocam", target=[[0, 3]])
    assert both.heatmap.shape == (3, 2, 16, 16) and both.valid.any()
    for place, category in enumerate([0, 3]):
        one = gradcam_fast.explain(model, images, layer=["0", "1"], method="reciprocam", target=category)
        assert (both.heatmap[:, place] - one.heatmap).abs().max() <= 1e-4


def test_masked_tokens_leave_the_class_token_as_it_is(images):
    model = PatchNet(class_tokens=1)
    choices = {"layer": "norm", "method": "reciprocam", "target": 2, "normalize": "none", "relu": False, "size": 2}
    explanation = gradcam_fast.explain(model, images, **choices)
    for image, saliency in zip(images.split(1), explanation.heatmap, strict=True):

        def score(weights, image=image):
            def change(tokens):
                tokens[:, 1:] *= weights.reshape(1, 4, 1)
                return tokens

            return naive_methods.output_with(model, "norm", image, change)[0, 2]

        # On a grid of 2x2 the mask has 1/4 at the position, 1/8 beside it and 1/16 across.
        first = score(torch.tensor([4, 2, 2, 1]) / 16) - score(torch.zeros(4))
        last = score(torch.tensor([1, 2, 2, 4]) / 16) - score(torch.zeros(4))
        assert torch.allclose(saliency[[0, 1], [0, 1]], torch.stack([first, last]), atol=1e-6)


def test_series(images):
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5))
    series = images[:, :, 0]
    explanation = gradcam_fast.explain(
        model, series, layer="1", method="reciprocam", target=1, normalize="none", relu=False, size=14
    )
    with torch.no_grad():
        activations = model[:2](series)
        mask = torch.zeros(14)
        mask[[4, 5, 6]] = torch.tensor([0.25, 0.5, 0.25])
        expected = model[2:](activations * mask)[:, 1] - model[2:](activations * 0)[:, 1]
    assert torch.allclose(explanation.heatmap[:, 5], expected, atol=1e-6)
