"""Ablation-CAM: a channel weighs as much as the score falls without it.

Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free Localization",
WACV 2020.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from .._capture.request import Needs
from .method import Evidence, Method, MethodInput
from .progress import ProgressReport
from .variants import check_one_map, chosen_images, drops, variant_runs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHODS"]


def _ablation(given: MethodInput) -> Evidence:
    """Weights w_k = (y - y_k) / |y|, where y is the score and y_k the score with channel k set to 0 (eq. 2 and 3).

    The paper divides by y. The magnitude keeps the sign of what a channel contributes where the score is negative.
    Behind an affine head (pooling and a linear layer) the fall is y - y_k = sum_ij G_k A_k, and nothing is run again.
    """
    check_one_map(given)
    capture = given.capture
    falls = _of_affine_head(given) if capture.gradients else _by_replays(given)
    scale = torch.where(capture.scores == 0, 1, capture.scores.abs()).unsqueeze(-1)
    activations = [maps.to(torch.promote_types(maps.dtype, torch.float32)) for maps in capture.activations]
    weights = [
        (of_layer / scale.to(of_layer)).to(maps).reshape(*of_layer.shape, *[1] * (maps.dim() - 2))
        for of_layer, maps in zip(falls, activations, strict=True)
    ]
    expanded = [
        of_layer.expand(*of_layer.shape[: of_layer.dim() - maps.dim() + 2], *maps.shape[2:])
        for of_layer, maps in zip(weights, activations, strict=True)
    ]
    return Evidence(activations, expanded, "gradcam")


def _of_affine_head(given: MethodInput) -> list[Tensor]:
    """The falls (B[,K],C) of the score for each channel, from the gradients."""
    capture, falls = given.capture, []
    for maps, gradients in zip(capture.activations, capture.gradients, strict=True):
        a = maps if gradients.dim() == maps.dim() else maps.unsqueeze(1)
        dtype = torch.promote_types(maps.dtype, torch.float32)
        positions = tuple(range(2 - maps.dim(), 0))
        falls.append((a.to(dtype) * gradients).sum(positions))
    return falls


def _by_replays(given: MethodInput) -> list[Tensor]:
    """The falls (B[,K],C), from a run of the head for each channel that is not zero."""
    capture, images = given.capture, chosen_images(given)
    total = len(images) * sum(maps.shape[1] for maps in capture.activations)
    progress = ProgressReport(given.choices.progress, given.choices.method, total)
    falls = []
    with variant_runs(given):
        for maps, calls in zip(capture.activations, capture.calls, strict=True):
            wide = torch.promote_types(capture.scores.dtype, torch.float32)
            of_layer = maps.new_zeros((*capture.scores.shape, maps.shape[1]), dtype=wide)
            for image in images:
                channels = maps[image].flatten(1).any(1).nonzero()[:, 0]
                progress.advance(maps.shape[1] - len(channels))
                fall = drops(given, calls, image, len(channels), partial(_ablate, channels), progress)
                of_layer[image][..., channels] = fall.movedim(0, -1).to(of_layer)
            falls.append(of_layer)
    return falls


def _ablate(channels: Tensor, rows: Tensor, start: int, end: int) -> None:
    """Set one of these channels to 0 in each row."""
    rows[torch.arange(end - start, device=rows.device), channels[start:end]] = 0


METHODS = {"ablation": Method(_ablation, Needs(gradients=False, affine=True))}
