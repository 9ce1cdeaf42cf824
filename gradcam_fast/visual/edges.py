"""The outlines of images, gray on white, for heatmaps to be laid over.

Knows nothing of heatmaps or colours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["outlines"]

# Canny's hysteresis: a gradient of at least the second starts an edge, one of at least the first continues it.
THRESHOLDS = 100, 200
GRAY = 128


@torch.no_grad()
def outlines(images: Tensor) -> Tensor:
    """Draw what OpenCV's Canny detector finds in each image, gray (128) on white.

    OpenCV works on the CPU: images on an accelerator go there and back, and the host waits for them.

    Args:
        images: (B,3,H,W) or (B,1,H,W) uint8.

    Returns:
        (B,1,H,W) uint8, on the images' device.

    Raises:
        ImportError: OpenCV does not import.

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
            f"edges are found by OpenCV, which does not import ({error}); run pip install opencv-python-headless"
        ) from error

    drawn = torch.full((len(images), 1, *images.shape[-2:]), 255, dtype=torch.uint8)
    on_host = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    for outline, image in zip(drawn[:, 0], on_host, strict=True):
        outline[torch.from_numpy(cv2.Canny(image, *THRESHOLDS)) > 0] = GRAY
    return drawn.to(images.device)
