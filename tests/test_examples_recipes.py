"""The four recipes of examples/ give the heatmaps of the recipes as they were published."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tolerances import RECIPE_PARITY
from torch import nn

pytest.importorskip("cv2")
pytest.importorskip("torchvision.models", exc_type=Exception)
image_module = pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import chest_xray  # noqa: E402
import demystified_vgg16  # noqa: E402
import explainable_resnet152  # noqa: E402
import from_scratch_vgg16  # noqa: E402
import pictures  # noqa: E402
from support.recipes import recipe_a, recipe_b, recipe_c, recipe_d, scaled, upsampled  # noqa: E402


def close(actual, expected):
    """Whether maps are equal within RECIPE_PARITY of the largest expected value. The expected map must not be flat."""
    expected = torch.tensor(np.asarray(expected), dtype=torch.float64)
    scale = expected.abs().max()
    assert expected.std() > 0.01 * scale
    return (actual.double() - expected).abs().max() <= RECIPE_PARITY * scale


@pytest.mark.parametrize("relu", [True, False])
def test_recipe_a_highest_logit_of_vgg16_before_an_inplace_relu(relu, vgg):
    image = torch.randn(1, 3, 224, 224)
    heatmap = from_scratch_vgg16.explain(vgg, image, relu=relu).heatmap
    assert close(heatmap[0], recipe_a(vgg, image, relu))
    assert all(child.inplace for child in vgg.features if isinstance(child, nn.ReLU))


def test_recipe_b_single_sigmoid_output_and_mean_over_channels(pneumonia_net):
    image = torch.randn(1, 3, 256, 256)
    heatmap = chest_xray.explain(pneumonia_net, image).heatmap
    assert close(heatmap[0], recipe_b(pneumonia_net, image))


def test_recipe_b_enlarges_the_map_as_pillow_does():
    heatmap = torch.rand(8, 8)
    expected = image_module.fromarray(heatmap.numpy()).resize((256, 256), resample=image_module.BICUBIC)
    assert close(chest_xray.enlarged(heatmap[None])[0], expected)


def test_recipe_c_chosen_class_of_vgg16_at_the_last_max_pool(vgg):
    image = torch.randn(1, 3, 224, 224)
    expected = scaled(upsampled(recipe_c(vgg, image, -1)))
    assert close(demystified_vgg16.explain(vgg, image).heatmap, expected[0])


def test_recipe_c_scaled_before_it_is_upsampled(vgg):
    image = torch.randn(1, 3, 224, 224)
    expected = upsampled(scaled(recipe_c(vgg, image, -1)))
    coarse = demystified_vgg16.explain(vgg, image, size=(7, 7)).heatmap
    assert close(upsampled(coarse[None]), expected)


def test_recipe_c_at_an_earlier_layer(vgg):
    image = torch.randn(1, 3, 224, 224)
    expected = scaled(upsampled(recipe_c(vgg, image, 23)))
    assert close(demystified_vgg16.explain(vgg, image, "features.23").heatmap, expected[0])


def test_recipe_d_two_classes_of_two_photos_from_one_forward_of_resnet152(resnet):
    photos, doormat_and_cat = torch.randn(2, 3, 96, 128), [539, 282]
    forwards = []
    counter = resnet.register_forward_hook(lambda *_: forwards.append(1))
    best = explainable_resnet152.explain(resnet, photos)
    chosen = explainable_resnet152.explain(resnet, photos, target=[doormat_and_cat] * 2)
    counter.remove()
    assert len(forwards) == 2
    for rank in range(2):
        for image in range(2):
            target, cam = recipe_d(resnet, photos[image : image + 1], lambda s, r=rank: s[0].argsort()[-1 - r].item())
            assert best.target[image, rank].item() == target and close(best.heatmap[image, rank], cam)
        target, cam = recipe_d(resnet, photos[:1], lambda _, r=rank: doormat_and_cat[r])
        assert chosen.target[0, rank].item() == target and close(chosen.heatmap[0, rank], cam)


def test_weights_are_loaded_from_a_file(tmp_path, pneumonia_net):
    torch.save(pneumonia_net.state_dict(), tmp_path / "weights.pth")
    loaded = pictures.load(chest_xray.PneumoniaNet(), tmp_path / "weights.pth")
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        assert torch.equal(loaded(image), pneumonia_net(image))
