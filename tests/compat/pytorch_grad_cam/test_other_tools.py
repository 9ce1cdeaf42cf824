"""Feature factorisation, guided backpropagation, and windows at several scales: the numbers of pytorch-grad-cam."""

import sys

import numpy as np
import pytest
import torch
from support.networks import ConvNet
from support.unchanged import unchanged
from torch import nn

from gradcam_fast.compat import pytorch_grad_cam
from gradcam_fast.compat.pytorch_grad_cam import (
    SESS,
    DeepFeatureFactorization,
    GradCAM,
    GuidedBackpropReLUModel,
    guided_backprop,
    run_dff_on_image,
    sess,
)
from gradcam_fast.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

peer = pytest.importorskip("pytorch_grad_cam")


@pytest.fixture
def model():
    return ConvNet()


def test_deep_feature_factorization(model, images):
    pytest.importorskip("sklearn")
    head = nn.Linear(12, 5).requires_grad_(False)
    with unchanged(model):
        ours = DeepFeatureFactorization(model, model.features, computation_on_concepts=head)(images, 3)
    theirs = peer.DeepFeatureFactorization(model, model.features, computation_on_concepts=head)(images, 3)
    for actual, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert len(DeepFeatureFactorization(model, model.features)(images, 2)) == 2


def test_run_dff_on_image_draws_the_image_its_concepts_and_their_names(model):
    pytest.importorskip("sklearn"), pytest.importorskip("matplotlib")
    from PIL import Image

    model.config = type("Config", (), {"id2label": {i: f"class {i}" for i in range(5)}})
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pixels = torch.from_numpy(photo).permute(2, 0, 1) / 255
    picture = run_dff_on_image(
        model, model.features, nn.Linear(12, 5), Image.fromarray(photo), pixels, n_components=2, top_k=1
    )
    assert picture.shape == (64, 3 * 64, 3) and np.array_equal(picture[:, :64], photo)


@pytest.mark.parametrize("category", [None, 3])
def test_guided_backpropagation(category, model, images):
    expected = peer.GuidedBackpropReLUModel(ConvNetWithPlainReLUs(model), "cpu")(images[:1].clone(), category)
    plain = ConvNetWithPlainReLUs(model)
    with unchanged(plain):
        actual = GuidedBackpropReLUModel(model=plain, device="cpu")(images[:1], target_category=category)
    assert actual.shape == (16, 16, 3)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    again = GuidedBackpropReLUModel(plain)(images[:1], category)
    np.testing.assert_array_equal(again, actual)
    assert images.grad is None


def test_the_guided_relu_gives_the_values_and_gradients_of_theirs():
    theirs = pytest.importorskip("pytorch_grad_cam.guided_backprop")
    values = torch.tensor([-2.0, -1, 0, 1, 2, 3])
    found = []
    for module in (theirs.GuidedBackpropReLUasModule(), guided_backprop.GuidedBackpropReLUasModule()):
        leaf = values.clone().requires_grad_()
        output = module(leaf)
        (gradient,) = torch.autograd.grad(output, leaf, torch.tensor([1.0, -1, 1, -1, 1, 2]))
        found.append((output.tolist(), gradient.tolist()))
    assert found[0] == found[1] == ([0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 1, 2])


class ConvNetWithPlainReLUs(nn.Module):
    """pytorch-grad-cam's guided ReLU is not in-place."""

    def __init__(self, model):
        super().__init__()
        features = [nn.ReLU() if isinstance(module, nn.ReLU) else module for module in model.features]
        self.features, self.head = nn.Sequential(*features), model.head
        self.eval()

    def forward(self, images):
        return self.head(self.features(images))


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"pool": "max"},
        {"theta": 0.3},
        {"smooth": False},
        {"pre_filter_ratio": 0.5},
        {"use_softmax_scores": False},
        {"scales": [16, 24], "window_size": 16, "step_size": 8},
    ],
)
def test_sess(choices, model, images):
    targets = [ClassifierOutputTarget(category) for category in (1, 3, 0)]
    choices = {"num_scales": 3, **choices}
    theirs = peer.SESS(model, [model.features[2]], base_method=GradCAM, **choices)(images, targets)
    with SESS(model, [model.features[2]], **choices) as cam:
        ours = cam(images, targets)
        without_targets = cam(images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert without_targets.shape == ours.shape


@pytest.mark.parametrize("choice", [{"pool": "median"}, {"pre_filter_ratio": 1.0}, {"num_scales": 0}])
def test_sess_refuses_choices_that_cannot_work(choice, model):
    with pytest.raises(ValueError, match=f"{next(iter(choice))}="):
        SESS(model, [model.features], **choice)


def test_sess_refuses_scales_below_the_window_and_a_wrong_number_of_targets(model, images):
    with pytest.raises(ValueError, match="scale 8 is less than the windows' side 16"):
        SESS(model, [model.features], scales=[8])(images)
    with pytest.raises(ValueError, match="targets has 1 targets for 3 images"):
        SESS(model, [model.features])(images, [ClassifierOutputTarget(0)])


@pytest.mark.parametrize("arguments", [(224, 224, 224, 224), (288, 288, 224, 224), (224, 448, 112, 224), (10, 7, 3, 7)])
def test_windows_cover_the_image_as_there(arguments):
    assert sess.sliding_window(*arguments) == peer.sess.sliding_window(*arguments)


@pytest.mark.parametrize(("package", "name"), [("sklearn", "KPCA_CAM"), ("sklearn", "DeepFeatureFactorization")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, name, model, images, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    layers = model.features if name == "DeepFeatureFactorization" else [model.features]
    with pytest.raises(ImportError, match=r"is not installed; run: pip install 'gradcam-fast\[compat\]'"):
        getattr(pytorch_grad_cam, name)(model, layers)(images)
