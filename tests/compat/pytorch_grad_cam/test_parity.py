"""The maps are pytorch-grad-cam's, call by call; `test_deviations.py` has where they are not, and why."""

import copy

import numpy as np
import pytest
import torch
from support.moved import (
    GRADIENT_CLASSES,
    TinySegmenter,
    both,
    classes,
    difference,
    modules,
    pixels,
    tiny_vit,
)
from support.networks import ConvNet
from support.peers import RECTIFIED, SIGNED, network
from support.tolerances import COMPAT, COMPAT_ABLATION, COMPAT_SCORE
from torch import nn

from gradcam_fast.compat import pytorch_grad_cam
from gradcam_fast.compat.pytorch_grad_cam.utils import model_targets
from gradcam_fast.compat.pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

pytest.importorskip("pytorch_grad_cam")
TWO = classes(3, 1)


def parity(name, model, layers, images, targets=None, **choices):
    theirs, ours = both(name, model, layers, images, targets, **choices)
    return difference(ours, theirs)


@pytest.mark.parametrize(
    ("architecture", "layer", "name"),
    [
        (architecture, layer, name)
        for architecture, layer in RECTIFIED + SIGNED
        for name in GRADIENT_CLASSES
        # In the first the rounding of two float32 backwards makes 7e-6; in the second channels sum to nearly zero, so
        # that pytorch-grad-cam's epsilon counts.
        if (architecture, name) not in [("vgg11", "XGradCAM"), ("densenet121", "XGradCAM")]
    ],
)
def test_one_layer(architecture, layer, name):
    assert parity(name, network(architecture, gain=1), [layer], pixels(), TWO, precise=True) <= COMPAT


@pytest.mark.parametrize("name", GRADIENT_CLASSES)
@pytest.mark.parametrize("layers", [["layer3", "layer4"], ["layer4", "maxpool", "layer2"]])
def test_several_layers_are_each_scaled_before_the_resize(layers, name):
    assert parity(name, network("resnet18", gain=1), layers, pixels(), TWO) <= COMPAT


@pytest.mark.parametrize("name", GRADIENT_CLASSES)
@pytest.mark.parametrize("targets", [None, TWO, [("ClassifierOutputSoftmaxTarget", 3)] * 2, classes(-2, 2)])
def test_targets_of_classifiers(targets, name):
    assert parity(name, network("resnet18", gain=1), ["layer4"], pixels(), targets) <= COMPAT


def test_the_sum_of_logit_and_log_probability():
    targets = [("ClassifierOutputReST", 3), ("ClassifierOutputReST", 1)]
    assert parity("GradCAM", network("resnet18", gain=1), ["layer4"], pixels(), targets) <= COMPAT


@pytest.mark.parametrize(
    "target", [("BinaryClassifierOutputTarget", 1), ("BinaryClassifierOutputTarget", 0), ("RawScoresOutputTarget",)]
)
def test_a_model_with_one_output(target):
    torch.manual_seed(0)
    assert parity("GradCAM", ConvNet(classes=1), ["features.4"], pixels(2, (20, 28)), [target] * 2) <= COMPAT


@pytest.mark.parametrize("name", GRADIENT_CLASSES)
def test_segmentation(name):
    torch.manual_seed(0)
    mask = np.zeros((40, 56), np.float32)
    mask[5:20, 10:30] = 1
    targets = [("SemanticSegmentationTarget", category, mask) for category in (1, 3)]
    assert parity(name, TinySegmenter(), ["trunk"], pixels(2, (40, 56)), targets) <= COMPAT


@pytest.mark.parametrize("name", GRADIENT_CLASSES)
@pytest.mark.parametrize("layer", ["encoder.layers.encoder_layer_1.ln_1", "encoder.layers.encoder_layer_0.mlp"])
def test_a_vision_transformer_with_and_without_a_reshape(layer, name):
    def reshape(tokens):
        return tokens[:, 1:].reshape(len(tokens), 8, 8, -1).permute(0, 3, 1, 2)

    model, images = tiny_vit(), pixels(2, (64, 64))
    reshaped = {"reshape_transform": reshape}
    theirs, ours = both(name, model, [layer], images, TWO, precise=True, made_with=reshaped)
    assert difference(ours, theirs) <= COMPAT
    targets = [model_targets.ClassifierOutputTarget(category) for category in (3, 1)]
    assert (
        difference(getattr(pytorch_grad_cam, name)(model, modules(model, [layer]))(images, targets), theirs) <= COMPAT
    )


@pytest.mark.parametrize("name", GRADIENT_CLASSES)
@pytest.mark.parametrize("targets", [None, TWO])
def test_aug_smooth(targets, name):
    assert parity(name, network("ConvNet", gain=1), ["features.4"], pixels(), targets, aug_smooth=True) <= COMPAT


def test_aug_smooth_and_eigen_smooth_together(monkeypatch):
    """There each of the six maps has the sign that LAPACK happens to return; here it is ours."""
    monkeypatch.setattr("pytorch_grad_cam.base_cam.get_2d_projection", get_2d_projection)
    choices = {"aug_smooth": True, "eigen_smooth": True}
    assert parity("GradCAM", network("ConvNet", gain=1), ["features.4"], pixels(), TWO, **choices) <= 1e-5


class Wrapped(nn.Module):
    """A ConvNet whose output is given to `wrap`; its call is overridden, as in tutorials, and not its forward."""

    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.wrap = ConvNet(), wrap

    def __call__(self, images):
        return self.wrap(self.net(images))


class Similarity:
    """The similarity of an embedding with another one."""

    def __init__(self):
        self.other = torch.randn(5, generator=torch.Generator().manual_seed(0))

    def __call__(self, embedding):
        return nn.CosineSimilarity(dim=0)(embedding, self.other)


@pytest.mark.parametrize("name", GRADIENT_CLASSES)
def test_similarity_to_an_embedding(name):
    library = pytest.importorskip("pytorch_grad_cam")
    model, images = Wrapped(lambda output: output), pixels(2, (20, 28))
    theirs, ours = (
        getattr(room, name)(model, [model.net.features[4]])(images.clone(), [Similarity()] * 2)
        for room in (library, pytorch_grad_cam)
    )
    assert difference(ours, theirs) <= COMPAT


@pytest.mark.parametrize("name", GRADIENT_CLASSES)
@pytest.mark.parametrize("wrap", [lambda output: (output, 2 * output), lambda output: [output]], ids=["tuple", "list"])
def test_a_model_that_returns_a_tuple_is_asked_for_its_first_member(wrap, name):
    model = Wrapped(wrap)
    assert parity(name, model, ["net.features.4"], pixels(1, (20, 28)), classes(3)) <= COMPAT


@pytest.mark.parametrize("choices", [{}, {"alpha": 0.6}, {"comparison_categories": [1, 4]}, {"target_idx": 2}])
@pytest.mark.parametrize("base", GRADIENT_CLASSES)
def test_finer_cam(base, choices):
    assert parity("FinerCAM", network("resnet18", gain=1), ["layer4"], pixels(), base=base, **choices) <= COMPAT


def test_finer_cam_takes_targets_as_they_are():
    assert parity("FinerCAM", network("resnet18", gain=1), ["layer4"], pixels(), TWO) <= COMPAT


def test_finer_cam_of_two_classes():
    assert parity("FinerCAM", ConvNet(classes=2), ["features.4"], pixels(2, (16, 16))) <= COMPAT


@pytest.mark.parametrize("name", ["FullGrad", "FEM"])
def test_methods_of_their_own(name):
    assert parity(name, network("resnet18", gain=1), ["layer4"], pixels(), TWO) <= COMPAT


def test_shapley_cam_where_the_score_has_a_hessian():
    targets = [("ClassifierOutputSoftmaxTarget", 3), ("ClassifierOutputSoftmaxTarget", 1)]
    # pytorch-grad-cam needs weights that are not frozen.
    model = copy.deepcopy(network("resnet18", gain=1)).requires_grad_()
    theirs, ours = both("ShapleyCAM", model, ["layer4"], pixels(), targets)
    grad_cam = both("GradCAM", model, ["layer4"], pixels(), targets)[1]
    assert difference(ours, theirs) <= COMPAT < np.abs(ours - grad_cam).max()


def test_score_cam():
    assert parity("ScoreCAM", network("ConvNet", gain=1), ["features.4"], pixels(2, (16, 24)), TWO) <= COMPAT_SCORE


def test_random_cam_draws_the_same_weights(monkeypatch):
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: np.random.RandomState(3).uniform(low, high, size))
    assert parity("RandomCAM", network("resnet18", gain=1), ["layer4"], pixels(), TWO) <= COMPAT


@pytest.mark.parametrize("layers", [["features.4"], ["features.2", "features.4"]])
@pytest.mark.parametrize("targets", [None, TWO])
def test_ablation_cam_one_channel_at_a_time(targets, layers):
    model, images = network("ConvNet", gain=1), pixels(2, (16, 24))
    choices = {"made_with": {"batch_size": 1}}
    assert parity("AblationCAM", model, layers, images, targets, **choices) <= COMPAT_ABLATION


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_ablation_cam_of_a_resnet(layer):
    model, images = network("resnet18", gain=1), pixels(1, (32, 64))
    assert parity("AblationCAM", model, [layer], images, classes(3)) <= COMPAT_ABLATION
