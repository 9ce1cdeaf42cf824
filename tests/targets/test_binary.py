"""`targets.binary`: yes is the logit and no the negated one, for the answer asked or the one the model gives."""

import pytest
import torch
from support.networks import ConvNet

import gradcam_fast
from gradcam_fast import targets

LAYER = "features.3"
LOGITS = torch.tensor([2.0, -3.0, 0.0])


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1, 1)])
@pytest.mark.parametrize(
    ("positive", "expected"), [(True, [2, -3, 0]), (False, [-2, 3, 0]), (None, [2, 3, 0])], ids=str
)
def test_the_score_is_the_logit_of_yes_and_the_negated_one_of_no(positive, expected, shape):
    assert targets.binary(positive)(LOGITS.reshape(shape)).tolist() == expected


def test_for_probabilities_the_model_says_yes_from_one_half():
    probabilities = torch.tensor([[0.75], [0.25], [0.5]])
    assert targets.binary(threshold=0.5)(probabilities).tolist() == [0.75, -0.25, 0.5]


def test_a_logit_of_zero_has_a_gradient():
    logit = torch.zeros(1, 1, requires_grad=True)
    targets.binary()(logit).sum().backward()
    assert logit.grad.tolist() == [[1]]


def test_each_image_has_the_map_of_the_answer_that_the_model_gives(images):
    model, raw = ConvNet(classes=1), {"layer": LAYER, "relu": False}
    with torch.no_grad():
        threshold = model(images).mean().item()
    yes, no, given = (
        gradcam_fast.explain(model, images, target=targets.binary(positive, threshold=threshold), **raw)
        for positive in (True, False, None)
    )
    says_yes = yes.logits[:, 0] >= threshold
    assert says_yes.any() and not says_yes.all()
    assert torch.equal(given.heatmap, torch.where(says_yes[:, None, None], yes.heatmap, no.heatmap))
    assert torch.equal(yes.heatmap, gradcam_fast.explain(model, images, **raw).heatmap)
    negated = gradcam_fast.explain(model, images, target=lambda out: -out[:, 0], **raw)
    assert torch.equal(no.heatmap, negated.heatmap)
