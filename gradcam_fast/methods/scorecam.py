"""Score-CAM: a channel weighs by the score of the image under the channel's own map.

Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR Workshops 2020.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from .._capture.request import Needs
from .._head_replay.recording import rows_of
from ..ops import reference
from .method import Evidence, Method, MethodInput
from .progress import ProgressReport
from .variants import check_one_map, chosen_images, inputs_of_image, variant_runs, variant_scores

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import ImageGeometry

__all__ = ["METHODS"]


def _scorecam(given: MethodInput) -> Evidence:
    """Weights w = softmax((S - mean S) / std S), S_k = y(image * H_k), H_k the channel scaled to [0,1] and upsampled.

    The paper's softmax (algorithm 1) is of S itself, so that the weights depend on the logits' scale: all are alike for
    small logits, and one channel has everything for large ones. Here S has a mean of 0 and a deviation of 1 over the
    channels first. A channel that is constant adds the same to every position; it is not run, and weighs 0.
    """
    check_one_map(given)
    capture, choices, images = given.capture, given.choices, chosen_images(given)
    activations = [maps.to(torch.promote_types(maps.dtype, torch.float32)) for maps in capture.activations]
    chosen = [[(image, _channels(maps[image], choices.channels)) for image in images] for maps in activations]
    total = sum(len(channels) for of_layer in chosen for _, channels in of_layer)
    progress = ProgressReport(choices.progress, choices.method, total)
    gradients = []
    with variant_runs(given):
        for maps, of_layer in zip(activations, chosen, strict=True):
            weights = maps.new_zeros((*capture.scores.shape, maps.shape[1]))
            for image, channels in of_layer:
                if len(channels):
                    scores = _masked_scores(given, maps[image, channels], image, progress).to(maps)
                    weights[image][..., channels] = _softmax(scores).movedim(0, -1)
                else:
                    weights[image] = 1 / maps.shape[1]
            expanded = weights.reshape(*weights.shape, *[1] * (maps.dim() - 2))
            gradients.append(expanded.expand(*weights.shape, *maps.shape[2:]))
    return Evidence(activations, gradients, "gradcam")


def _channels(maps: Tensor, count: int | None) -> Tensor:
    """The channels of maps (C,h,w) that are not constant; the ``count`` of largest range, if these are fewer."""
    # Of the demo's photos, 64 of 1,280 channels by range correlated .990 or more with all, by standard deviation .982.
    smallest, largest = maps.flatten(1).aminmax(dim=1)
    ranges = largest - smallest
    varying = (ranges != 0).nonzero()[:, 0]
    if count is None or count >= len(varying):
        return varying
    return varying[ranges[varying].topk(count).indices].sort().values


def _masked_scores(given: MethodInput, maps: Tensor, image: int, progress: ProgressReport) -> Tensor:
    """The scores (n[,K]) of an image under each of n maps (n,h,w)."""
    inputs, scores = inputs_of_image(given, image), []
    chunk = given.choices.copies_at_once(maps.device, on_cpu=4, elsewhere=32)
    for some in maps.split(chunk):
        count = len(some)
        rows = inputs.map(partial(rows_of, count=count)).replace(
            {inputs.images_at: inputs.images * _masks(some, given.request.geometry, inputs.images)}
        )
        scores.append(variant_scores(given, rows(given.model), image, count))
        progress.advance(count)
    return torch.cat(scores)


def _masks(maps: Tensor, geometry: ImageGeometry, images: Tensor) -> Tensor:
    """Maps (n,h,w) upsampled, scaled to [0,1], and with the axes of the images (1,C,H,W)."""
    for dim, side in zip(range(-len(geometry.size), 0), geometry.size, strict=True):
        maps = reference.upsample(maps, dim, side)
    low, high = maps.flatten(1).aminmax(dim=1)
    masks = reference.normalise(maps, low, high, "minmax")
    if geometry.transposed:
        masks = masks.transpose(-1, -2)
    axes = images.dim() - 1 - len(geometry.size)
    return masks.reshape(len(masks), *[1] * axes, *masks.shape[1:]).to(images.dtype)


def _softmax(scores: Tensor) -> Tensor:
    """The softmax over n scores (n[,K]) after these are brought to a mean of 0 and a deviation of 1."""
    centred = scores - scores.mean(0)
    deviation = centred.square().mean(0).sqrt()
    return torch.where(deviation == 0, centred, centred / deviation).softmax(0)


METHODS = {"scorecam": Method(_scorecam, Needs(gradients=False))}
