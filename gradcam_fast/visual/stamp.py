"""Words across a picture, which say that it must not be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RANDOM_WEIGHTS", "stamped"]

RANDOM_WEIGHTS = "random weights"
# Of the picture's width that the words take, and the least height of a letter in pixels.
SHARE, LEAST_HEIGHT = 0.5, 6


def stamped(picture: NDArray[Any], words: str) -> NDArray[Any]:
    """A copy of a picture (H,W,3) uint8 RGB with words in white on black along its lower edge.

    Example:
        >>> import numpy
        >>> picture = numpy.full((40, 200, 3), 90, numpy.uint8)
        >>> shown = stamped(picture, "random weights")
        >>> bool((shown > 200).any()), bool((picture == 90).all()), bool((shown[:10] == 90).all())
        (True, True, True)
    """
    import cv2

    height, width = picture.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    (at_one, tall), _ = cv2.getTextSize(words, font, 1, 1)
    scale = max(SHARE * width / at_one, LEAST_HEIGHT / tall)
    thickness = max(1, round(scale * 1.5))
    (wide, tall), below = cv2.getTextSize(words, font, scale, thickness)
    margin = max(2, tall // 3)
    shown = picture.copy()
    top = max(0, height - tall - below - 2 * margin)
    shown[top:, : min(width, wide + 2 * margin)] = 0
    cv2.putText(shown, words, (margin, height - below - margin), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return shown
