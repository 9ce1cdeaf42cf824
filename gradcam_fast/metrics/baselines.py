"""Heatmaps that know nothing of the model, or nothing of the layer: what any method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..explainer import Explainer
from .subject import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from ..types import Target

__all__ = ["BASELINE_MAPS", "centre_map", "edge_map", "random_map", "saliency_map"]

BASELINE_MAPS = ("random", "centre", "edges", "saliency")
"""The names of the baselines in tables."""


def random_map(
    images: Tensor, *, grid: int | None = None, seed: int = 0, numbers: Sequence[int] | None = None
) -> Tensor:
    """Random heat: (B,H,W) in [0,1], drawn for each pixel by itself, another one for each image.

    Args:
        images: (B,C,H,W).
        grid: draw for each place of so many rows and columns, and enlarge these like a heatmap. Such heat is in spots,
            as heatmaps are, and is harder to beat.
        seed: of NumPy's ``default_rng``, which draws the maps one after another.
        numbers: which of these maps the images get; None gives them the first B. With the number of an image among all
            that are measured, its map does not depend on how they are batched.

    Raises:
        ValueError: there are more numbers than images, or fewer.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> images = torch.zeros(2, 3, 32, 32)
        >>> maps = metrics.random_map(images)
        >>> maps.shape, torch.equal(metrics.random_map(images[1:], numbers=[1])[0], maps[1])
        (torch.Size([2, 32, 32]), True)
    """
    import numpy

    numbers = range(len(images)) if numbers is None else numbers
    if len(numbers) != len(images):
        raise ValueError(f"numbers has {len(numbers)} entries for {len(images)} images; give one for each image")
    rows, columns = images.shape[-2:] if grid is None else (grid, grid)
    drawn = torch.empty(len(images), rows, columns, dtype=torch.float32, device="cpu")
    for place, number in enumerate(numbers):
        generator = numpy.random.PCG64(seed).advance(number * rows * columns)  # that of `default_rng`
        drawn[place] = torch.from_numpy(numpy.random.Generator(generator).random((rows, columns)))
    maps = drawn.to(images.device)
    if grid is not None:
        maps = torch.nn.functional.interpolate(maps[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    return _to_unit_range(maps)


def centre_map(images: Tensor, *, width: float = 0.25) -> Tensor:
    """A Gaussian in the middle, with standard deviations of ``width`` times the sides: (B,H,W) in [0,1].

    Photographers put what matters into the middle, so that this map often beats a method.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> int(metrics.centre_map(torch.zeros(1, 3, 33, 33)).argmax()) == 16 * 33 + 16
        True
    """
    rows, columns = (
        ((torch.arange(side, dtype=torch.float32, device=images.device) + 0.5) / side - 0.5) / width
        for side in images.shape[-2:]
    )
    return _to_unit_range(torch.exp(-0.5 * (rows[:, None] ** 2 + columns**2))[None]).expand(len(images), -1, -1)


def edge_map(images: Tensor) -> Tensor:
    """The strength of the images' edges, by OpenCV's Sobel filter on their mean channel: (B,H,W) in [0,1].

    Adebayo et al. 2018 found some methods to be hardly more than this.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> image = torch.zeros(1, 3, 8, 8)
        >>> image[..., 4:] = 1
        >>> metrics.edge_map(image)[0, 4].tolist()
        [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    import cv2
    import numpy

    grey = images.float().mean(1).cpu().numpy()
    edges = [numpy.hypot(cv2.Sobel(photo, cv2.CV_32F, 1, 0), cv2.Sobel(photo, cv2.CV_32F, 0, 1)) for photo in grey]
    return _to_unit_range(torch.from_numpy(numpy.stack(edges)).to(images.device))


def saliency_map(
    model: nn.Module | Explainer, images: Tensor, target: Target = None, *, score: str = "logit"
) -> Tensor:
    """The gradient of the class's score with respect to the pixels: its largest magnitude over the channels.

    Simonyan, Vedaldi and Zisserman 2014, "Deep inside convolutional networks", section 3.1. Cost: a prediction and a
    backward through the whole model.

    Returns:
        (B,H,W) in [0,1].

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> pixels = torch.nn.Flatten()  # a model whose logits are the pixels
        >>> metrics.saliency_map(pixels, torch.rand(1, 1, 1, 3), 2)
        tensor([[[0., 0., 1.]]])
    """
    with torch.enable_grad():
        inputs = images.detach().clone().requires_grad_()
        subject = Subject(model, images, images.new_zeros(len(images), *images.shape[2:]), target, score=score)
        scores = subject.scores_of_images(inputs)
        (gradient,) = torch.autograd.grad(scores.sum(), inputs)
    return _to_unit_range(gradient.detach().abs().amax(1))


def _to_unit_range(maps: Tensor) -> Tensor:
    low, high = (extreme(dim=(-2, -1), keepdim=True) for extreme in (maps.amin, maps.amax))
    return torch.where(high > low, (maps - low) / (high - low), 0).float()
