"""The overlay as most tutorials write it, with OpenCV only: `overlay` must agree with it within one of 255 levels."""

import cv2
import numpy
import torch


def recipe(image, heatmap, alpha, colormap=cv2.COLORMAP_JET):
    """Blend an image (H,W,3) uint8 RGB with a floating heatmap (H,W)."""
    colored = cv2.applyColorMap(numpy.uint8(255 * heatmap), colormap)
    return cv2.addWeighted(image, 1 - alpha, cv2.cvtColor(colored, cv2.COLOR_BGR2RGB), alpha, 0)


def as_recipe_input(image):
    """An image (3,H,W) as the array (H,W,3) that OpenCV takes."""
    return image.permute(1, 2, 0).contiguous().numpy()


def assert_within_one_level(actual, expected):
    assert actual.dtype == torch.uint8
    assert (actual.int() - expected.int()).abs().max() <= 1
