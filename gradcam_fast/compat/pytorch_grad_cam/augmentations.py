"""The variants of an image whose maps ``aug_smooth=True`` averages."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FLIPS_AND_SCALES"]


class _Variant(NamedTuple):
    flipped: bool
    factor: float

    def augment_image(self, image: Tensor) -> Tensor:
        return (image.flip(3) if self.flipped else image) * self.factor

    def deaugment_mask(self, mask: Tensor) -> Tensor:
        return mask.flip(3) if self.flipped else mask


FLIPS_AND_SCALES = tuple(_Variant(flipped, factor) for flipped in (False, True) for factor in (0.9, 1, 1.1))
"""As it is and mirrored left to right, each with pixels times 0.9, 1 and 1.1."""
