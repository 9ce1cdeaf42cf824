"""Imputation: removed pixels become the weighted means of their neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import conv2d

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["impute"]

# Weights of the eight neighbours, Rong et al. 2022, section 4.1.
_SIDE, _CORNER = 1 / 6, 1 / 12
# Relative to the right-hand side; the imputed values are then within 3e-4 of a direct solution.
_TOLERANCE = 1e-5
_MOST_STEPS = 2000


@torch.no_grad()
def impute(images: Tensor, removed: Tensor) -> Tensor:
    """Replace the removed pixels of each image by the weighted means of their neighbours.

    Solves ``x_i = sum_j w_ij x_j / sum_j w_ij`` over the neighbours j of each removed pixel i inside the image, w = 1/6
    beside and 1/12 at the corners, by conjugate gradients for all images and channels at once: one 3x3 convolution a
    step. The system is symmetric and positive definite unless all pixels are removed; an image without any pixel left
    becomes 0.

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
    kernel = values.new_tensor([[_CORNER, _SIDE, _CORNER], [_SIDE, 0, _SIDE], [_CORNER, _SIDE, _CORNER]])[None, None]

    def neighbours(of: Tensor) -> Tensor:
        return conv2d(of, kernel, padding=1)

    weight = neighbours(torch.ones_like(values[:1]))
    has_any = unknown.logical_not().flatten(1).any(1).reshape(-1, 1, 1, 1)
    unknown = unknown & has_any
    known = values.masked_fill(unknown, 0)
    right = neighbours(known).masked_fill(~unknown, 0)
    solution = torch.zeros_like(values)
    # Jacobi's preconditioner: the weights of pixels at the border are smaller.
    residual = right
    preconditioned = residual / weight
    direction = preconditioned
    product = _dot(residual, preconditioned)
    enough = _TOLERANCE**2 * _dot(right, right / weight)
    for step in range(_MOST_STEPS):
        # Every few steps, because the host waits for the answer.
        if step % 8 == 0 and not bool((product > enough).any()):
            break
        image = (weight * direction - neighbours(direction)).masked_fill(~unknown, 0)
        length = product / _dot(direction, image).clamp(min=torch.finfo(torch.float32).tiny)
        # An image that is solved stays as it is, so that its result does not depend on the others.
        length = torch.where(product > enough, length, 0)
        solution = solution + length * direction
        residual = residual - length * image
        preconditioned = residual / weight
        before, product = product, torch.where(product > enough, _dot(residual, preconditioned), product)
        direction = preconditioned + product / before.clamp(min=torch.finfo(torch.float32).tiny) * direction
    filled = torch.where(unknown, solution, values).masked_fill(~has_any, 0)
    return filled.reshape(images.shape).to(images.dtype)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((1, 2, 3), keepdim=True)
