"""`targets.finer`: a class beside its nearest rivals, by hand, against maps of single classes, and pytorch-grad-cam."""

import pytest
import torch
from support.networks import ConvNet
from support.tolerances import PEER, SAME_INPUTS
from torch import nn

import gradcam_fast
from gradcam_fast import targets

LAYER = "features.3"
LOGITS = torch.tensor([[5.0, 4.0, 0.0, 2.0], [1.0, 8.0, 3.0, 2.0]])


@pytest.mark.parametrize(
    ("category", "rivals", "alpha", "expected"),
    [
        (0, 1, 1.0, [1.0, -1.0]),  # the nearest are 4; and 2
        (0, 2, 1.0, [2.0, -1.5]),  # 4 and 2; 2 and 3
        (0, 2, 0.5, [3.5, -0.25]),
        (0, 2, 0.0, [5.0, 1.0]),
        (None, 2, 1.0, [2.0, 5.5]),  # of the highest logits, 5 and 8
        (None, 99, 1.0, [3.0, 6.0]),  # all others
        (2, 1, 1, [-2.0, 1.0]),  # 2; and 2
        (0, [2, 3], 1.0, [4.0, -1.5]),
        (None, [1, 2], 1.0, [3.0, 5.0]),  # of the second image, 1 is the class itself
        (None, (0, 1), 1.0, [1.0, 7.0]),
        (None, [0], 0.5, [5.0, 7.5]),  # of the first image there is no other
        ([0, 2], 1, 1.0, [[1.0, -2.0], [-1.0, 1.0]]),
        ([0], [1], 1.0, [[1.0], [-7.0]]),
    ],
)
def test_the_score_is_the_logit_less_the_mean_of_the_rivals(category, rivals, alpha, expected):
    score = targets.finer(category, rivals, alpha=alpha)(LOGITS)
    torch.testing.assert_close(score, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rivals", "first"), [(2, [4.0, 2.0]), ([2, 3], [0.0, 2.0])])
def test_by_softmax_a_rival_weighs_by_its_probability(rivals, first):
    of_first = torch.tensor(first)
    expected = 5 - (of_first.exp() * of_first).sum() / of_first.exp().sum()
    score = targets.finer(0, rivals, alpha=1, weights="softmax")(LOGITS)
    torch.testing.assert_close(score[0], expected)


def test_by_softmax_a_class_that_is_its_own_only_rival_has_its_logit():
    assert targets.finer(None, [0], weights="softmax")(LOGITS)[0] == 5


def test_rivals_with_the_same_logit_as_the_class_are_the_nearest():
    assert targets.finer(1, 1, alpha=1)(torch.tensor([[3.0, 3.0, 2.5]])).tolist() == [0]


def test_the_map_is_that_of_the_class_less_those_of_its_rivals(images):
    model, raw = ConvNet(), {"layer": LAYER, "normalize": "none", "relu": False}
    single = gradcam_fast.explain(model, images, target=[[0, 1, 2, 3, 4]], **raw)
    explanation = gradcam_fast.explain(model, images, target=targets.finer(2, [0, 4]), **raw)
    expected = single.heatmap[:, 2] - 0.6 * (single.heatmap[:, 0] + single.heatmap[:, 4]) / 2
    scale = single.heatmap.abs().max().item()
    torch.testing.assert_close(explanation.heatmap, expected, rtol=0, atol=SAME_INPUTS[torch.float32] * scale)


def test_with_alpha_1_and_softmax_the_map_is_that_of_pytorch_grad_cam(images):
    finer_cam = pytest.importorskip("pytorch_grad_cam").FinerCAM
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    theirs = finer_cam(model, [model[1]])(images)
    target = targets.finer(rivals=3, alpha=1, weights="softmax")
    ours = gradcam_fast.explain(model, images, target=target, layer="1")
    assert ours.valid.all()
    torch.testing.assert_close(ours.heatmap, torch.from_numpy(theirs), rtol=0, atol=PEER)
