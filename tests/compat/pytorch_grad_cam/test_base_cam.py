"""Calls as pytorch-grad-cam's users write them: objects, contexts, outputs, records, subclasses, old spellings."""

import sys

import numpy as np
import pytest
import torch
from support.moved import both, classes, difference, modules, pixels
from support.networks import ConvNet, PatchNet, Repeating, conv_relu
from support.tolerances import COMPAT
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast.compat import pytorch_grad_cam
from gradcam_fast.compat.pytorch_grad_cam import (
    ActivationsAndGradients,
    EigenCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RefineCAM,
    ScoreCAM,
    XGradCAM,
)
from gradcam_fast.compat.pytorch_grad_cam.base_cam import BaseCAM
from gradcam_fast.compat.pytorch_grad_cam.utils import reshape_transforms
from gradcam_fast.compat.pytorch_grad_cam.utils.image import scale_cam_image
from gradcam_fast.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, RawScoresOutputTarget

CLASSES = [
    "GradCAM",
    "GradCAMPlusPlus",
    "XGradCAM",
    "HiResCAM",
    "LayerCAM",
    "GradCAMElementWise",
    "EigenCAM",
    "EigenGradCAM",
    "SegEigenCAM",
    "AblationCAM",
    "ScoreCAM",
    "FullGrad",
    "RandomCAM",
    "KPCA_CAM",
    "FEM",
    "FinerCAM",
    "ShapleyCAM",
]
METHODS = {
    GradCAM: "gradcam",
    GradCAMPlusPlus: "gradcam++",
    XGradCAM: "xgradcam",
    HiResCAM: "hirescam",
    LayerCAM: "layercam",
    EigenCAM: "eigencam",
}


@pytest.fixture
def model():
    return ConvNet()


@pytest.mark.parametrize("targets", [None, [2, 0, 4]])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_gives_maps_and_leaves_the_model_as_it_was(name, targets, model, images):
    if name == "KPCA_CAM":
        pytest.importorskip("sklearn")
    layers = [] if name == "FullGrad" else [model.features]
    targets = targets and [ClassifierOutputTarget(category) for category in targets]
    with unchanged(model), getattr(pytorch_grad_cam, name)(model=model, target_layers=layers) as cam:
        maps = cam(input_tensor=images, targets=targets)
        assert type(maps) is np.ndarray and maps.dtype == np.float32 and maps.shape == (3, 16, 16)
        assert maps.min() >= 0 and maps.max() <= 1 and maps.any()
        again = cam(input_tensor=images[:2], targets=targets and targets[:2])
        assert again.shape == (2, 16, 16)
        if name != "RandomCAM":
            np.testing.assert_allclose(again, maps[:2], atol=1e-5)


@pytest.mark.parametrize("cls", METHODS)
def test_the_maps_are_those_of_gradcam_fast(cls, model, images):
    expected = gradcam_fast.explain(model, images, layer="features", method=METHODS[cls], target=[2, 0, 4]).heatmap
    maps = cls(model, [model.features])(images, [ClassifierOutputTarget(category) for category in (2, 0, 4)])
    np.testing.assert_allclose(maps, expected.numpy(), atol=2e-6)


def test_outputs_are_the_models_of_the_same_forward(model, images):
    for cls in (GradCAM, EigenCAM, ScoreCAM):
        cam = cls(model, [model.features])
        assert cam.outputs is None
        runs = model.calls
        cam(images)
        assert torch.equal(cam.outputs, model(images)) and not cam.outputs.requires_grad
        if cls is not ScoreCAM:
            assert model.calls == runs + 2  # the call's, and the one here


def test_a_list_of_classes_takes_the_fast_path(model, images, monkeypatch):
    asked = []
    explain = pytorch_grad_cam.base_cam.feature_maps

    def spy(*arguments, target, **choices):
        asked.append(target)
        return explain(*arguments, target=target, **choices)

    monkeypatch.setattr(pytorch_grad_cam.base_cam, "feature_maps", spy)
    cam = GradCAM(model, [model.features])
    cam(
        images,
        [ClassifierOutputTarget(2), ClassifierOutputTarget(np.int64(0)), ClassifierOutputTarget(torch.tensor(4))],
    )
    assert torch.equal(asked.pop(), torch.tensor([2, 0, 4]))
    cam(images, [ClassifierOutputTarget(2), ClassifierOutputTarget(-1), ClassifierOutputTarget(0)])
    assert all(map(callable, asked.pop()))


def test_making_an_object_is_cheap_enough_for_one_object_an_image():
    """Some 100 calls, of C or Python, take ten microseconds; `model.eval()` alone takes twenty times as long."""
    resnet = pytest.importorskip("torchvision.models", exc_type=Exception).resnet18().eval()
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    try:
        GradCAM(model=resnet, target_layers=[resnet.layer4])
    finally:
        sys.setprofile(None)
    assert 0 < sum(event in ("call", "c_call") for event in calls) <= 200


def test_making_an_object_puts_the_model_into_eval_mode(model):
    model.features[1].train()
    GradCAM(model, [model.features])
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("spelling", [281 % 5, [1, 1, 1], np.array([1, 1, 1])])
def test_target_category_of_old_releases(spelling, model, images):
    cam = GradCAM(model=model, target_layers=[model.features], use_cuda=False)
    expected = cam(images, [ClassifierOutputTarget(1)] * 3)
    assert np.array_equal(cam(input_tensor=images, target_category=spelling), expected)
    assert np.array_equal(cam(images, spelling), expected)
    assert np.array_equal(cam(images, target_category=None), cam(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((lambda model: model.features[3],), "target_layers is a Conv2d; give a list of modules"),
        ((lambda model: ["features"],), "target_layers has a str; give a list of modules"),
        ((lambda model: [model.features], True), "reshape_transform=True is a bool; give a function, or name the"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, message, model):
    layers, *others = arguments
    with pytest.raises(TypeError, match=message):
        GradCAM(model, layers(model), *others)


def test_use_cuda_moves_the_model(model):
    moved = []
    model.cuda = lambda: moved.append(True) or model
    GradCAM(model, [model.features], use_cuda=True)
    assert moved


def test_an_object_can_be_called_after_it_was_released(model, images):
    cam = GradCAM(model, [model.features])
    first = cam(images)
    cam.__del__()
    assert cam.activations_and_grads.activations == []
    assert np.array_equal(cam(images), first)


def test_nothing_is_left_when_the_model_raises(model, images):
    def refuse(maps):
        raise RuntimeError("out of luck")

    model.at_head = refuse
    for cls in (GradCAM, EigenCAM, pytorch_grad_cam.ShapleyCAM):
        with unchanged(model), pytest.raises(RuntimeError, match="out of luck"), cls(model, [model.features]) as cam:
            cam(images)


@pytest.mark.parametrize("targets", [ClassifierOutputTarget(0), 3.5, object()])
def test_targets_that_are_no_list_are_refused(targets, model, images):
    with pytest.raises(TypeError, match="give a list with one target for each image"):
        GradCAM(model, [model.features])(images, targets)


def test_a_target_of_several_numbers_is_refused(model, images):
    with pytest.raises(TypeError, match="must return one number"):
        GradCAM(model, [model.features])(images, [RawScoresOutputTarget()] * 3)


def test_activations_and_gradients_of_the_last_call_are_kept_on_the_cpu(model, images):
    cam = GradCAM(model, [model.features, model.features[2]])
    cam(images, [ClassifierOutputTarget(1)] * 3)
    recorded = cam.activations_and_grads
    for i, layer in enumerate(("features", "features.2")):
        maps = gradcam_fast.features.feature_maps(model, images, layer=layer, target=1)
        torch.testing.assert_close(recorded.activations[i], maps.activations)
        torch.testing.assert_close(recorded.gradients[i], maps.gradients)
    recorded.release()
    assert recorded.activations == recorded.gradients == []


def test_activations_and_gradients_by_themselves_record_a_forward_and_the_backward_behind_it(model, images):
    record = ActivationsAndGradients(model, [model.features[3], model.features], None)
    with unchanged(model):
        outputs = record(images.requires_grad_())
    assert record.gradients == []
    outputs[:, 1].sum().backward(inputs=[images])
    for i, layer in enumerate(("features.3", "features")):
        maps = gradcam_fast.features.feature_maps(model, images, layer=layer, target=1)
        torch.testing.assert_close(record.activations[i], maps.activations)
        torch.testing.assert_close(record.gradients[i], maps.gradients)
        assert not record.activations[i].requires_grad


def test_tools_that_replace_the_record_and_run_the_steps_themselves_work(model, images):
    """As the visualisers of OpenMMLab do."""

    class BoxCAM(GradCAM):
        def __call__(self, input_tensor, targets=None):
            self.outputs = outputs = self.activations_and_grads(input_tensor.requires_grad_())
            self.model.zero_grad()
            sum(target(output) for target, output in zip(targets, outputs, strict=True)).backward(retain_graph=True)
            return self.aggregate_multi_layers(self.compute_cam_per_layer(input_tensor, targets, False))

    targets = [ClassifierOutputTarget(1)] * 3
    expected = GradCAM(model, [model.features])(images, targets)
    cam = BoxCAM(model, [model.features])
    cam.activations_and_grads.release()
    cam.activations_and_grads = ActivationsAndGradients(cam.model, cam.target_layers, None)
    np.testing.assert_allclose(cam(images, targets), expected, atol=2e-6)


def test_the_reshape_of_a_replaced_record_counts(images):
    def upside_down(tokens):
        return tokens[:, 1:].unflatten(1, (2, 2)).movedim(-1, 1).flip(2)

    model = PatchNet(class_tokens=1)
    cam = GradCAM(model, [model.norm])
    expected = cam(images)[:, ::-1]
    cam.activations_and_grads = ActivationsAndGradients(model, cam.target_layers, upside_down)
    np.testing.assert_allclose(cam(images), expected, atol=2e-6)


class MeanOfPositive(BaseCAM):
    def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
        assert isinstance(activations, np.ndarray) and isinstance(grads, np.ndarray)
        assert len(targets) == len(input_tensor) and isinstance(target_layer, nn.Module)
        return np.maximum(grads, 0).mean(axis=(2, 3))


class LargestChannel(BaseCAM):
    def __init__(self, model, target_layers, reshape_transform=None):
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    def get_cam_image(self, input_tensor, target_layer, target_category, activations, grads, eigen_smooth):
        assert grads is None
        return activations.max(axis=1)


def test_a_subclass_gives_weights_or_the_map(model, images):
    maps = gradcam_fast.features.feature_maps(model, images, layer="features", target=1)
    weighted = (maps.gradients.relu().mean((2, 3), keepdim=True) * maps.activations).sum(1)
    for cls, raw in ((MeanOfPositive, weighted), (LargestChannel, maps.activations.amax(1))):
        one = torch.ones_like(maps.activations[:, :1])
        expected, _, _ = gradcam_fast.cam(raw.unsqueeze(1), one, (16, 16))
        actual = cls(model, [model.features])(images, [ClassifierOutputTarget(1)] * 3)
        np.testing.assert_allclose(actual, expected.numpy(), atol=2e-6)


def test_a_subclass_of_a_method_that_overrides_its_weights_is_asked(model, images):
    class Turned(GradCAM):
        def get_cam_weights(self, *arguments):
            return -super().get_cam_weights(*arguments)

    class Same(GradCAM):
        pass

    cam = GradCAM(model, [model.features])
    plain = cam(images)
    assert np.array_equal(Same(model, [model.features])(images), plain)
    assert np.abs(Turned(model, [model.features])(images) - plain).max() > 0.1
    cam.get_cam_weights = lambda *arguments: np.ones((3, 12), np.float32)
    assert np.abs(cam(images) - plain).max() > 0.1


def test_the_numpy_functions_of_a_method_give_the_maps_of_the_device(model, images):
    for cls in [*METHODS][:5]:

        class InNumpy(cls):
            def get_cam_image(self, *arguments, **choices):
                return super().get_cam_image(*arguments, **choices)

        expected = cls(model, [model.features])(images)
        np.testing.assert_allclose(InNumpy(model, [model.features])(images), expected, atol=2e-6)


def test_a_base_class_without_a_method_says_so(model, images):
    with pytest.raises(NotImplementedError, match="neither get_cam_weights nor get_cam_image"):
        BaseCAM(model, [model.features])(images)


def test_a_layer_of_one_position_gives_zeros_and_gradcam_fast_refuses_it(images):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    for name in ("GradCAM", "LayerCAM", "EigenCAM", "AblationCAM", "ScoreCAM"):
        for _ in range(2):
            cam = getattr(pytorch_grad_cam, name)(model, [model[2]])
            assert not cam(images).any() and cam(images).shape == (3, 16, 16)
            assert torch.equal(cam.outputs, model(images))
    with pytest.raises(gradcam_fast.exceptions.NotSpatial):
        gradcam_fast.explain(model, images, layer="2")


def test_a_layer_that_runs_several_times_is_explained_at_its_first_call_as_there(images):
    model = Repeating(times=3)
    theirs, ours = both("GradCAM", model, ["relu"], images, classes(1, 1, 1))
    assert difference(ours, theirs) <= COMPAT
    last = gradcam_fast.explain(model, images, layer="relu", target=1).heatmap.numpy()
    assert np.abs(ours - last).max() > 0.1


def test_tokens_are_read_without_a_reshape_by_methods_without_gradients_too(images):
    def reshape(tokens):
        return tokens[:, 1:].unflatten(1, (2, 2)).movedim(-1, 1)

    model = PatchNet(class_tokens=1)
    for name in ("EigenCAM", "ScoreCAM", "AblationCAM"):
        reshaped = getattr(pytorch_grad_cam, name)(model, [model.norm], reshape)(images)
        assert np.array_equal(getattr(pytorch_grad_cam, name)(model, [model.norm])(images), reshaped)
        assert reshaped.any()


def test_what_cannot_be_read_as_maps_asks_for_a_reshape(images):
    model = ConvNet()
    model.features.append(nn.Flatten(2)).append(nn.Unflatten(2, (4, 4)))
    with pytest.raises(ValueError, match=r"give reshape_transform=, a function from it to such a map"):
        EigenCAM(model, [model.features[5]])(images)


class Pyramid(nn.Module):
    """A layer that returns a dict of maps, as a detector's feature pyramid does."""

    def __init__(self):
        super().__init__()
        self.trunk = conv_relu()
        self.levels = Levels()
        self.fc = nn.Linear(16, 5)
        self.eval()

    def forward(self, images):
        levels = self.levels(self.trunk(images))
        return self.fc(torch.cat([level.mean((2, 3)) for level in levels.values()], 1))


class Levels(nn.Module):
    def forward(self, maps):
        return {"0": maps, "pool": nn.functional.max_pool2d(maps, 2)}


def test_a_feature_pyramid_is_explained_with_its_reshape_and_ablated_level_by_level(images):
    model, reshape = Pyramid(), reshape_transforms.fasterrcnn_reshape_transform
    targets = [ClassifierOutputTarget(1)] * 3
    assert EigenCAM(model, [model.levels], reshape)(images).any()
    layer = pytorch_grad_cam.AblationLayerFasterRCNN()
    with unchanged(model):
        maps = pytorch_grad_cam.AblationCAM(model, [model.levels], reshape, ablation_layer=layer)(images, targets)
    with torch.no_grad():
        levels = model.levels(model.trunk(images))
        pooled = torch.cat([level.mean((2, 3)) for level in levels.values()], 1)
        lost = pooled * model.fc.weight[1] / model(images)[:, 1:2]
        raw = (lost[:, :, None, None] * reshape(levels)).sum(1).numpy()
    np.testing.assert_allclose(maps, scale_cam_image(scale_cam_image(np.maximum(raw, 0), (16, 16))), atol=1e-5)


def test_a_share_of_the_channels_of_a_pyramid_is_ablated_as_there(images):
    model, reshape = Pyramid(), reshape_transforms.fasterrcnn_reshape_transform
    peer = pytest.importorskip("pytorch_grad_cam.ablation_layer")
    with torch.no_grad():
        maps = reshape(model.levels(model.trunk(images))).numpy()
    expected = [
        sorted(set(peer.AblationLayer().activations_to_be_ablated(of_image, 0.2).tolist())) for of_image in maps
    ]
    cam = pytorch_grad_cam.AblationCAM(model, [model.levels], reshape, ratio_channels_to_ablate=0.2)
    ablated = []
    find = cam._outputs_without
    cam._outputs_without = lambda image, layer, channels: (
        ablated.append(channels.tolist()) or find(image, layer, channels)
    )
    assert cam(images, [ClassifierOutputTarget(1)] * 3).any() and ablated == expected
    assert all(0 < len(channels) < 16 for channels in ablated)


def test_memory_that_the_layer_shares_with_the_rest_of_the_model_is_not_ablated(images):
    class Shares(nn.Module):
        def __init__(self, copy):
            super().__init__()
            self.trunk, self.levels, self.fc, self.copy = conv_relu(), Passes(), nn.Linear(8, 5), copy
            self.eval()

        def forward(self, images):
            maps = self.trunk(images)
            levels = self.levels(maps.clone() if self.copy else maps)
            return self.fc((levels["0"] * maps).mean((2, 3)))

    shared, copied = (Shares(copy) for copy in (False, True))
    copied.load_state_dict(shared.state_dict())
    of_both = [
        pytorch_grad_cam.AblationCAM(model, [model.levels], lambda levels: levels["0"])(images)
        for model in (shared, copied)
    ]
    assert np.array_equal(*of_both) and of_both[0].any()


class Passes(nn.Module):
    def forward(self, maps):
        return {"0": maps}


def test_an_empty_map_without_any_gradient_warns(images):
    model = ConvNet()
    nn.init.zeros_(model.head[-1].weight)
    with pytest.warns(UserWarning, match="the gradient of the score at layer 'features' is zero everywhere"):
        assert not GradCAM(model, [model.features])(images).any()


def test_eigen_cam_works_on_models_without_logits(images):
    class Detector(ConvNet):
        def forward(self, images):
            return [{"boxes": maps.detach()} for maps in self.features(images)]

    model = Detector()
    for targets in (None, []):
        assert EigenCAM(model, [model.features])(images, targets).any()


def test_maps_of_a_model_under_no_grad_and_inference_mode_are_the_same(model, images):
    for name in ("GradCAM", "ShapleyCAM", "FullGrad"):
        cam = getattr(pytorch_grad_cam, name)(model, [] if name == "FullGrad" else [model.features])
        expected = cam(images)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                np.testing.assert_allclose(cam(images.clone()), expected, atol=2e-6)


def test_aug_smooth_takes_other_transforms(model, images):
    class Upside:
        def augment_image(self, image):
            return image.flip(2)

        def deaugment_mask(self, mask):
            return mask.flip(2)

    cam = BaseCAM.__new__(GradCAM)
    BaseCAM.__init__(cam, model, [model.features], tta_transforms=[Upside()])
    expected = GradCAM(model, [model.features])(images.flip(2))[:, ::-1]
    np.testing.assert_allclose(cam(images, aug_smooth=True), expected, atol=2e-6)


def test_refine_cam_is_the_product_of_the_layers_maps(model, images):
    layers = modules(model, ["features.2", "features.4"])
    product = np.prod([GradCAMPlusPlus(model, [layer])(images) for layer in layers], axis=0)
    maps = RefineCAM(model, layers)(images)
    scaled = (product - product.min((1, 2), keepdims=True)) / np.ptp(product, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(maps, scaled, atol=2e-6)


def test_images_on_several_scales_are_explained_by_one_object(model):
    cam = GradCAM(model, [model.features])
    for size in ((16, 16), (20, 36)):
        assert cam(pixels(2, size)).shape == (2, *size)
