"""Imputation: removed pixels become the weighted means of their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, pad

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["impute"]

# Weights of the eight neighbours, Rong et al. 2022, section 4.1.
_SIDE, _CORNER = 1 / 6, 1 / 12
# Relative to the right-hand side; the imputed values are then within 3e-4 of a direct solution.
_TOLERANCE = 1e-5
_MOST_STEPS = 500
# Jacobi's method solves the system on the smallest grid well enough.
_SMALLEST_GRID = 8


@torch.no_grad()
def impute(images: Tensor, removed: Tensor) -> Tensor:
    """Replace the removed pixels of each image by the weighted means of their neighbours.

    Solves ``x_i = sum_j w_ij x_j / sum_j w_ij`` over the neighbours j of each removed pixel i inside the image, w = 1/6
    beside and 1/12 at the corners, by conjugate gradients for all images and channels at once. The system is a 3x3
    convolution, symmetric, and positive definite unless all pixels are removed; an image without any pixel left becomes
    0. A multigrid V-cycle preconditions it (Briggs, Henson and McCormick 2000, "A multigrid tutorial", chapter 3), so
    that a dozen steps are enough for regions of any size.

    Args:
        images: (B,C,H,W), floating.
        removed: (B,H,W), bool.

    Returns:
        (B,C,H,W), the same values where nothing was removed.

    Example:
        >>> import torch
        >>> from gradcam_fast.metrics import impute
        >>> row = torch.tensor([[[[0.0, 9.0, 4.0]]]])
        >>> impute(row, torch.tensor([[[False, True, False]]]))
        tensor([[[[0., 2., 4.]]]])
    """
    batch, channels, height, width = images.shape
    values = images.float().reshape(batch * channels, 1, height, width)
    unknown = removed[:, None].expand(-1, channels, -1, -1).reshape(values.shape)
    has_any = unknown.logical_not().flatten(1).any(1).reshape(-1, 1, 1, 1)
    unknown = unknown & has_any
    grids = _grids(unknown)
    known = values.masked_fill(unknown, 0)
    right = grids[0].neighbours(known) * grids[0].unknown
    solution = torch.zeros_like(values)
    residual = right
    preconditioned = _v_cycle(grids, residual)
    direction = preconditioned
    product = _dot(residual, preconditioned)
    enough = _TOLERANCE**2 * product
    for _ in range(_MOST_STEPS):
        if not bool((product > enough).any()):
            break
        image = grids[0].system(direction)
        length = product / _dot(direction, image).clamp(min=torch.finfo(torch.float32).tiny)
        # An image that is solved stays as it is, so that its result does not depend on the others.
        length = torch.where(product > enough, length, 0)
        solution = solution + length * direction
        residual = residual - length * image
        preconditioned = _v_cycle(grids, residual)
        before, product = product, torch.where(product > enough, _dot(residual, preconditioned), product)
        direction = preconditioned + product / before.clamp(min=torch.finfo(torch.float32).tiny) * direction
    filled = torch.where(unknown, solution, values).masked_fill(~has_any, 0)
    return filled.reshape(images.shape).to(images.dtype)


class _Grid:
    """The system on one grid of a hierarchy: ``weight * x - neighbours(x)`` at the unknown pixels.

    Attributes:
        unknown: (N,1,H,W), 1 where the system has an unknown, else 0.
        weight: (1,1,H,W), the sum of the weights of each pixel's neighbours inside the image.
        interpolation: (1,1,4,4), the kernel of the bilinear interpolation from the next coarser grid.
    """

    def __init__(self, unknown: Tensor) -> None:
        self.unknown = unknown
        rows = [[_CORNER, _SIDE, _CORNER], [_SIDE, 0, _SIDE], [_CORNER, _SIDE, _CORNER]]
        self._kernel = unknown.new_tensor(rows)[None, None]
        self.weight = self.neighbours(torch.ones_like(unknown[:1]))
        along = unknown.new_tensor([0.25, 0.75, 0.75, 0.25])
        self.interpolation = along.outer(along)[None, None]

    def neighbours(self, of: Tensor) -> Tensor:
        """The weighted sum of each pixel's neighbours."""
        return conv2d(of, self._kernel, padding=1)

    def system(self, of: Tensor) -> Tensor:
        """The left-hand side."""
        return (self.weight * of - self.neighbours(of)) * self.unknown

    def smooth(self, residual: Tensor) -> Tensor:
        """A step of Jacobi's method, which with these weights leaves a third of what varies from pixel to pixel."""
        return residual / self.weight * self.unknown


def _grids(unknown: Tensor) -> list[_Grid]:
    """The grids from fine to coarse; a coarse pixel is unknown if its four fine ones are."""
    grids = [_Grid(unknown.float())]
    while min(grids[-1].unknown.shape[2:]) >= _SMALLEST_GRID:
        coarse = (avg_pool2d(_even(grids[-1].unknown), 2) == 1).float()
        grids.append(_Grid(coarse))
    return grids


def _v_cycle(grids: Sequence[_Grid], residual: Tensor) -> Tensor:
    """A correction of the solution from its residual: a multigrid V-cycle, which is symmetric, as the method needs it.

    Jacobi's method smooths the error, and the next coarser grid corrects what is smooth. Between the grids goes
    bilinear interpolation, and its transpose.
    """
    fine = grids[0]
    correction = fine.smooth(residual)
    if len(grids) == 1:
        return correction
    coarse = grids[1].unknown
    left = residual - fine.system(correction)
    below = _v_cycle(grids[1:], conv2d(_even(left * fine.unknown), fine.interpolation, stride=2, padding=1) * coarse)
    height, width = residual.shape[2:]
    above = conv_transpose2d(below, fine.interpolation, stride=2, padding=1)[..., :height, :width]
    correction = correction + above * fine.unknown
    return correction + fine.smooth(residual - fine.system(correction))


def _even(maps: Tensor) -> Tensor:
    """The maps with a row and a column of zeros more where their number is odd."""
    return pad(maps, (0, maps.shape[3] % 2, 0, maps.shape[2] % 2))


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((1, 2, 3), keepdim=True)
