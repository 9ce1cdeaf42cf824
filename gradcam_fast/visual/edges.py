"""Outlines of images (Canny edges), gray on white, as a background for heatmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["outlines"]

# Canny's hysteresis: a gradient above the second threshold starts an edge, one above the first continues it.
THRESHOLDS = 100, 200
GRAY = 128


@torch.no_grad()
def outlines(images: Tensor) -> Tensor:
    """Draw the edges that OpenCV's Canny detector finds in each image, gray (128) on white (255).

    OpenCV runs on the CPU: images on an accelerator are copied to the CPU and the outlines back, and the host waits.

    Args:
        images: (B,3,H,W) or (B,1,H,W) uint8.

    Returns:
        (B,1,H,W) uint8, on the images' device.

    Raises:
        ImportError: OpenCV cannot be imported.

    Example:
        >>> import torch
        >>> from gradcam_fast.visual.edges import outlines
        >>> half = torch.zeros(1, 1, 3, 6, dtype=torch.uint8)
        >>> half[..., 3:] = 255
        >>> outlines(half)[0, 0, 1].tolist()
        [255, 255, 128, 255, 255, 255]
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"edges come from OpenCV, which cannot be imported ({error}); run pip install opencv-python-headless"
        ) from error

    drawings = torch.full((len(images), 1, *images.shape[-2:]), 255, dtype=torch.uint8, device="cpu")
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    for drawing, array in zip(drawings[:, 0], arrays, strict=True):
        drawing[torch.from_numpy(cv2.Canny(array, *THRESHOLDS)) > 0] = GRAY
    return drawings.to(images.device)
