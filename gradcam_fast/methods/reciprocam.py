"""Recipro-CAM: a position shows as much as the score is with the activations at this position alone.

Byun and Lee, "Recipro-CAM: Fast Gradient-Free Visual Explanations for Convolutional Neural Networks", arXiv 2209.14074.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from .._capture.request import Needs
from .method import Evidence, Method, MethodInput
from .progress import ProgressReport
from .variants import check_one_map, chosen_images, drops, variant_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["METHODS"]


def _reciprocam(given: MethodInput) -> Evidence:
    """The map S(p) = y(m_p * A) - y(0): the score of the activations under a mask around position p, less that of none.

    The mask m_p is the paper's Gaussian of 3x3 positions, (1 2 1; 2 4 2; 1 2 1) / 16, cut off at the border. y(0) is
    one number for the image, which min-max scaling removes; without it, ReLU would act on the sign of the biases.
    Behind an affine head (pooling and a linear layer) S(p) = sum_ij m_p sum_k G_k A_k, and nothing is run again.
    """
    check_one_map(given)
    capture = given.capture
    maps = _of_affine_head(given) if capture.gradients else _by_replays(given)
    # The op's method multiplies activations of 1 with these maps.
    ones = [
        saliency.new_ones(()).expand(len(saliency), 1, *activations.shape[2:])
        for saliency, activations in zip(maps, capture.activations, strict=True)
    ]
    return Evidence(ones, maps, "hirescam")


def _weights_along(side: int, like: Tensor) -> Tensor:
    """Along one side, the mask's weights (side,side) at each position around each."""
    places = torch.arange(side, dtype=torch.int64, device=like.device)
    distance = (places[:, None] - places).abs()
    return (distance == 0).to(like.dtype) / 2 + (distance == 1).to(like.dtype) / 4


def _of_affine_head(given: MethodInput) -> list[Tensor]:
    """The maps (B[,K],1,h,w), from the gradients."""
    capture, maps = given.capture, []
    for activations, gradients in zip(capture.activations, capture.gradients, strict=True):
        a = activations if gradients.dim() == activations.dim() else activations.unsqueeze(1)
        rank = activations.dim() - 2
        products = (a.to(torch.promote_types(a.dtype, torch.float32)) * gradients).sum(-1 - rank)
        for side in range(-rank, 0):
            weights = _weights_along(products.shape[side], products)
            # Not a matrix product, which a GPU may run in TF32.
            products = (products.movedim(side, -1).unsqueeze(-2) * weights).sum(-1).movedim(-1, side)
        maps.append(products.unsqueeze(-1 - rank))
    return maps


def _by_replays(given: MethodInput) -> list[Tensor]:
    """The maps (B[,K],1,h,w), from a run of the head for each position, and one for activations of 0."""
    capture, images = given.capture, chosen_images(given)
    total = len(images) * sum(1 + activations.shape[2:].numel() for activations in capture.activations)
    progress = ProgressReport(given.choices.progress, given.choices.method, total)
    maps = []
    with variant_runs(given):
        for activations, calls in zip(capture.activations, capture.calls, strict=True):
            sides = tuple(activations.shape[2:])
            mask = partial(_mask, [_weights_along(side, activations) for side in sides])
            wide = torch.promote_types(capture.scores.dtype, torch.float32)
            saliency = activations.new_zeros((*capture.scores.shape, 1, *sides), dtype=wide)
            for image in images:
                fall = drops(given, calls, image, 1 + math.prod(sides), mask, progress)
                saliency[image] = (fall[0] - fall[1:]).movedim(0, -1).reshape(saliency.shape[1:])
            maps.append(saliency)
    return maps


def _mask(weights: Sequence[Tensor], rows: Tensor, start: int, end: int) -> None:
    """Lay the mask around one position over each row (C,h,w), from a number to another; number 0 leaves nothing.

    Args:
        weights: of each side.
    """
    if start == 0 and end > 0:
        rows[0] = 0
        rows, start = rows[1:], 1
    positions = torch.arange(start - 1, end - 1, device=rows.device)
    for axis, (of_side, places) in enumerate(
        zip(weights, torch.unravel_index(positions, rows.shape[2:]), strict=True), start=2
    ):
        shape = [len(rows), *[1] * (rows.dim() - 1)]
        shape[axis] = rows.shape[axis]
        rows *= of_side[places].reshape(shape)


METHODS = {"reciprocam": Method(_reciprocam, Needs(gradients=False, affine=True))}
