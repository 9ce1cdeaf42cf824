"""Metrics follow the probability that a model gives, and never take a softmax twice."""

import pytest
import torch
from torch import nn

import gradcam_fast
from gradcam_fast import metrics


def network(*ends):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), *ends
    ).eval()


def images(count=2):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def heat(count=2):
    return torch.rand(count, 12, 12, generator=torch.Generator().manual_seed(2))


class FunctionalSoftmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, batch):
        return self.net(batch).softmax(1)


def scores(model, maps=None, **choices):
    return metrics.deletion(model, images(), heat() if maps is None else maps, 1, steps=3, **choices).scores


@pytest.mark.parametrize("model", [network(nn.Softmax(1)), FunctionalSoftmax()], ids=["last module", "in forward"])
def test_probabilities_that_a_model_returns_are_followed_as_they_are(model):
    torch.testing.assert_close(scores(model), scores(network(), score="softmax"))
    torch.testing.assert_close(scores(model), scores(model, score="logit"))
    assert not torch.allclose(scores(model), scores(model, score="softmax"), atol=1e-2)


def test_the_unchanged_image_decides_for_its_whole_curve():
    pixels, image = nn.Flatten(), torch.tensor([[[[1.0, 4.0]]]])
    curve = metrics.deletion(pixels, image, torch.tensor([[[0.0, 1.0]]]), 0, steps=2)
    # Without the second pixel the outputs 1 and 0 add up to 1, but they are logits all the same.
    expected = torch.tensor([[1.0, 4.0], [1.0, 0.0], [0.0, 0.0]]).softmax(1)[:, 0]
    torch.testing.assert_close(curve.scores[0], expected)


def test_each_image_is_judged_by_its_own_outputs():
    pixels = nn.Flatten()
    batch = torch.tensor([[[[0.25, 0.75]]], [[[1.0, 4.0]]]])
    maps = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])
    together = metrics.deletion(pixels, batch, maps, 0, steps=2).scores
    alone = [metrics.deletion(pixels, batch[i : i + 1], maps[i : i + 1], 0, steps=2).scores for i in range(2)]
    assert torch.equal(together, torch.cat(alone))
    assert together[0].tolist() == [0.25, 0.25, 0]


def test_independent_labels_are_followed_by_their_sigmoid():
    expected = scores(network(), score="sigmoid")
    torch.testing.assert_close(scores(network(nn.Sigmoid())), expected)
    told = gradcam_fast.Explainer(network(), probabilities="sigmoid")
    torch.testing.assert_close(scores(told), expected)
    explanation = told(images(), 1)
    from_explanation = scores(network(), explanation)
    torch.testing.assert_close(from_explanation, scores(network(), explanation.heatmap, score="sigmoid"))


def test_where_nothing_is_known_the_softmax_is_followed():
    torch.testing.assert_close(scores(network()), scores(network(), score="softmax"))


def test_a_regression_is_followed_by_its_output():
    told = gradcam_fast.Explainer(network(), probabilities=None)
    torch.testing.assert_close(scores(told), scores(network(), score="logit"))


def test_one_probability_an_image_is_followed_and_one_logit_refused():
    torch.manual_seed(0)
    logit = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)).eval()
    probability = nn.Sequential(*logit, nn.Sigmoid()).eval()
    found = metrics.deletion(probability, images(), heat(), steps=3).scores
    torch.testing.assert_close(found, metrics.deletion(logit, images(), heat(), steps=3, score="sigmoid").scores)
    with pytest.raises(ValueError, match='score="sigmoid", or "logit" for a regression'):
        metrics.deletion(logit, images(), heat())


def test_probabilities_of_half_precision_are_not_rounded_to_it():
    model = network().bfloat16()
    maps = heat()
    found = metrics.deletion(model, images().bfloat16(), maps, 1, steps=3).scores
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, scores(network()), atol=2e-3, rtol=0)
