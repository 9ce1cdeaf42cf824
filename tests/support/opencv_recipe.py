"""The overlay as it is written in countless tutorials, by OpenCV, and how near to it a picture has to be.

Knows nothing of gradcam_fast.
"""

import cv2
import numpy
import torch


def recipe(image, heatmap, alpha, colormap=cv2.COLORMAP_JET):
    """The blend of a uint8 (H,W,3) RGB and a float heatmap (H,W)."""
    colored = cv2.applyColorMap(numpy.uint8(255 * heatmap), colormap)
    return cv2.addWeighted(image, 1 - alpha, cv2.cvtColor(colored, cv2.COLOR_BGR2RGB), alpha, 0)


def as_recipe_input(image):
    return image.permute(1, 2, 0).contiguous().numpy()


def assert_within_one_level(found, expected):
    assert found.dtype == torch.uint8
    assert (found.int() - expected.int()).abs().max() <= 1
