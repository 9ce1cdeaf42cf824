"""Maps enlarged and laid over photos on the CPU: the same pixels as explain and overlay give."""

import numpy
import pytest
import torch
from PIL import Image

import gradcam_fast
from gradcam_fast.pipeline.pictures import blend, resize_heatmap, shrink


@pytest.mark.parametrize("size", [(7, 7), (56, 56), (224, 320), (50, 33)])
def test_the_small_map_enlarged_is_the_map_of_that_size(size):
    activations, gradients = torch.randn(2, 8, 7, 7), torch.randn(2, 8, 7, 7)
    small, _, _ = gradcam_fast.cam(activations, gradients, (7, 7))
    full, _, _ = gradcam_fast.cam(activations, gradients, size)
    for i in range(2):
        for scaled in (small[i], 3 - 2 * (1 - small[i])):
            assert numpy.abs(resize_heatmap(scaled.numpy(), size) - full[i].numpy()).max() < 1e-5


@pytest.mark.parametrize("level", [0.0, 1.0, float("nan")])
def test_a_flat_map_is_zeros(level):
    assert not resize_heatmap(numpy.full((3, 3), level, numpy.float32), (6, 4)).any()


@pytest.mark.parametrize(("colormap", "alpha"), [("jet", 0.5), ("viridis", 0.3), ("coolwarm", 1.0), ("jet", 0.0)])
def test_a_blend_is_an_overlay_to_within_a_level(colormap, alpha):
    photo = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    heatmap = torch.linspace(0, 1, 2000).reshape(40, 50)
    expected = gradcam_fast.overlay(photo[None], heatmap[None], colormap=colormap, alpha=alpha)[0]
    blended = blend(photo.permute(1, 2, 0).numpy().copy(), heatmap.numpy(), colormap=colormap, alpha=alpha)
    difference = numpy.abs(blended.astype(int) - expected.permute(1, 2, 0).numpy()).max(-1)
    # Where a value lies on the edge between two of the 256 colours, the neighbour may be taken.
    assert (difference <= 1).mean() > 0.99
    assert difference.max() <= 4


def test_photos_are_made_smaller_in_proportion_and_never_larger():
    photo = Image.new("RGB", (400, 100), "red")
    assert shrink(photo, 200).size == (200, 50)
    assert shrink(photo, 200).getpixel((100, 25)) == (255, 0, 0)
    assert shrink(photo, 400) is photo
    assert shrink(Image.new("RGB", (900, 1)), 3).size == (3, 1)
