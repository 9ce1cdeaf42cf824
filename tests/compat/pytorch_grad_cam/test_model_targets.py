"""Targets and reshapes give the numbers of pytorch-grad-cam, and the same gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from gradcam_fast.compat.pytorch_grad_cam.utils import find_layers, reshape_transforms
from gradcam_fast.compat.pytorch_grad_cam.utils import model_targets as ours

LOGITS = torch.tensor([0.5, -1.0, 3.0, 2.5])


@pytest.fixture
def theirs():
    return pytest.importorskip("pytorch_grad_cam.utils.model_targets")


def score_and_gradient(target, output):
    output = output.clone().requires_grad_()
    score = target(output)
    return score.detach(), torch.autograd.grad(score.sum(), output)[0]


@pytest.mark.parametrize(
    ("name", "arguments", "output"),
    [
        ("ClassifierOutputTarget", (2,), LOGITS),
        ("ClassifierOutputTarget", (-1,), LOGITS),
        ("ClassifierOutputTarget", (2,), LOGITS.expand(3, 4)),
        ("ClassifierOutputSoftmaxTarget", (2,), LOGITS),
        ("ClassifierOutputSoftmaxTarget", (1,), LOGITS.expand(3, 4)),
        ("ClassifierOutputReST", (1,), LOGITS),
        ("ClassifierOutputReST", (1,), LOGITS.expand(3, 4)),
        ("BinaryClassifierOutputTarget", (1,), LOGITS[:1]),
        ("BinaryClassifierOutputTarget", (0,), LOGITS[:1]),
        ("SoftmaxOutputTarget", (), LOGITS),
        ("RawScoresOutputTarget", (), LOGITS),
        ("SemanticSegmentationTarget", (1, np.float32([[0, 1, 1], [1, 0, 0]])), torch.arange(12.0).reshape(2, 2, 3)),
        ("FinerWeightedTarget", (2, [3, 0], 0.6), LOGITS),
        ("FinerWeightedTarget", (2, [3, 0], 0.6), LOGITS.expand(3, 4)),
        ("FinerWeightedTarget", (2, [], 1), LOGITS),
    ],
)
def test_scores_and_gradients(name, arguments, output, theirs):
    if name == "FinerWeightedTarget" and not arguments[1]:
        assert ours.FinerWeightedTarget(*arguments)(output) == 0
        return
    expected = score_and_gradient(getattr(theirs, name)(*arguments), output)
    for actual, value in zip(score_and_gradient(getattr(ours, name)(*arguments), output), expected, strict=True):
        torch.testing.assert_close(actual, value)


def detection(dtype=torch.float32):
    return {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 44], [21, 19, 40, 40]], dtype=dtype),
        "labels": torch.tensor([1, 2, 2]),
        "scores": torch.tensor([0.9, 0.8, 0.7], dtype=dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("labels", "boxes"),
    [
        ([1], [[1, 0, 10, 9]]),
        ([1, 2], [[0, 0, 10, 10], [20, 20, 40, 43]]),
        ([3], [[0, 0, 10, 10]]),
        ([1], [[50, 50, 60, 60]]),
    ],
)
def test_boxes_of_detectors(labels, boxes, dtype, theirs):
    boxes = [np.float32(box) for box in boxes]
    expected = theirs.FasterRCNNBoxScoreTarget(labels, boxes)(detection(dtype))
    actual = ours.FasterRCNNBoxScoreTarget(labels, boxes)(detection(dtype))
    torch.testing.assert_close(actual, expected)


def test_no_boxes_score_zero():
    nothing = {name: values[:0] for name, values in detection().items()}
    assert ours.FasterRCNNBoxScoreTarget([1], [np.zeros(4)])(nothing).tolist() == [0]


def test_reshapes_give_the_same_maps():
    theirs = pytest.importorskip("pytorch_grad_cam.utils.reshape_transforms")
    tokens = torch.randn(2, 197, 8)
    assert torch.equal(reshape_transforms.vit_reshape_transform(tokens), theirs.vit_reshape_transform(tokens))
    small = torch.randn(2, 7, 8)
    assert torch.equal(reshape_transforms.vit_reshape_transform(small, 2, 3), theirs.vit_reshape_transform(small, 2, 3))
    swin = torch.randn(2, 49, 8)
    assert torch.equal(reshape_transforms.swinT_reshape_transform(swin), theirs.swinT_reshape_transform(swin))
    pyramid = {"0": torch.randn(2, 4, 8, 8), "1": torch.randn(2, 4, 4, 4), "pool": torch.randn(2, 4, 2, 2)}
    assert torch.equal(
        reshape_transforms.fasterrcnn_reshape_transform(pyramid), theirs.fasterrcnn_reshape_transform(pyramid)
    )


def nested():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3)), nn.ReLU())


def test_layers_are_found_and_replaced_as_there():
    theirs = pytest.importorskip("pytorch_grad_cam.utils.find_layers")
    model = nested()
    assert find_layers.find_layer_types_recursive(model, [nn.ReLU]) == [model[1][0], model[2]]
    assert find_layers.find_layer_types_recursive(model, [nn.Conv2d, nn.Sequential]) == (
        theirs.find_layer_types_recursive(model, [nn.Conv2d, nn.Sequential])
    )
    new = nn.Identity()
    assert find_layers.replace_layer_recursive(model, model[1][1], new) and model[1][1] is new
    assert not find_layers.replace_layer_recursive(model, nn.ReLU(), new)
    find_layers.replace_all_layer_type_recursive(model, nn.ReLU, new)
    assert model[1][0] is new and model[2] is new and isinstance(model[0], nn.Conv2d)
