"""Edges of an image, a baseline for other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["sobel_cam"]


def sobel_cam(img: NDArray[Any]) -> NDArray[np.uint8]:
    """The mean of the absolute horizontal and vertical Sobel derivatives of an RGB image (H,W,3), as uint8 (H,W)."""
    gray = cv2.cvtColor(img, cv2.COLOR_RGB2GRAY)
    across, down = (cv2.convertScaleAbs(cv2.Sobel(gray, cv2.CV_64F, *order, ksize=3)) for order in ((1, 0), (0, 1)))
    return cv2.addWeighted(across, 0.5, down, 0.5, 0)  # type: ignore[return-value]
