"""``smooth="noise"``: gradients averaged over noisy copies of each image.

Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv 1706.03825, average gradients over samples of noise.
Omeiza et al., "Smooth Grad-CAM++", arXiv 1908.01224, put such averages in place of the derivatives of Grad-CAM++.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .method import Evidence, MethodInput
from .progress import ProgressReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from .._capture.request import Request

__all__ = ["DEFAULT_SAMPLES", "DEFAULT_SIGMA", "smoothed_gradients"]

DEFAULT_SAMPLES, DEFAULT_SIGMA = 8, 0.15


def smoothed_gradients(given: MethodInput) -> Evidence:
    """The activations of the images, and the mean gradients of noisy copies of them, for the same classes.

    The noise is normal with a deviation of ``sigma`` times the image's range (largest minus smallest value). It is the
    same for every image, so that an image's result does not depend on its batch.

    For Grad-CAM++ the gradients are the weights of the channels, made of the means D1, D2 and D3 of G, G^2 and G^3:
    w_k = sum_ij D2 / (2 D2 + S_k D3) ReLU(D1), S_k = sum_ij A_k (Omeiza et al., eq. 6 and 7); terms of a denominator
    that is not positive count 0.
    """
    capture, choices = given.capture, given.choices
    samples = DEFAULT_SAMPLES if choices.samples is None else choices.samples
    orders = (1, 2, 3) if choices.method == "gradcam++" else (1,)
    sums: list[list[Tensor]] = []
    progress = ProgressReport(choices.progress, "noise", samples)
    for request, count in _noisy_requests(given, samples):
        of_samples = given.capture_again(request).gradients
        sums = _added(sums, of_samples, orders, count)
        progress.advance(count)
    activations = [maps.to(torch.promote_types(maps.dtype, torch.float32)) for maps in capture.activations]
    means = [[total / samples for total in of_layer] for of_layer in sums]
    if choices.method != "gradcam++":
        return Evidence(activations, [of_layer[0] for of_layer in means], choices.method)
    weights = [_plus_plus_weights(maps, *of_layer) for maps, of_layer in zip(activations, means, strict=True)]
    return Evidence(activations, weights, "gradcam")


def _noisy_requests(given: MethodInput, samples: int) -> Iterator[tuple[Request, int]]:
    """Requests about several noisy copies of the batch at once, each with the number of copies."""
    request, capture, choices = given.request, given.capture, given.choices
    images, batch = request.images, request.geometry.batch
    sigma = DEFAULT_SIGMA if choices.sigma is None else choices.sigma
    generator = torch.Generator(images.device).manual_seed(choices.seed or 0)
    pixels = tuple(range(1, images.dim()))
    deviation = sigma * (images.amax(pixels, keepdim=True) - images.amin(pixels, keepdim=True))
    at_once = max(1, choices.copies_at_once(images.device) // max(1, batch))
    if not callable(request.target):
        request = replace(request, target=capture.target, topk=None, variants=1)
    request = replace(request, when=None)
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
        noise = [
            torch.randn(images.shape[1:], generator=generator, device=images.device, dtype=torch.float32)
            for _ in range(count)
        ]
        noisy = torch.cat([images + deviation * sample.to(images.dtype) for sample in noise])

        def repeated(tensor: Tensor, count: int = count) -> Tensor:
            return torch.cat([tensor] * count) if tensor.dim() and len(tensor) == batch else tensor

        inputs = request.inputs.map(repeated).replace({request.inputs.images_at: noisy})
        geometry = replace(request.geometry, batch=batch * count)
        yield replace(request, inputs=inputs, geometry=geometry, variants=request.variants * count), count


def _added(
    sums: list[list[Tensor]], gradients: list[Tensor], orders: tuple[int, ...], count: int
) -> list[list[Tensor]]:
    """The sums over samples of the powers of the gradients of each layer, with ``count`` samples more."""
    powers = []
    for maps in gradients:
        # Cubes of small gradients leave the range of float32.
        wide = torch.float64 if len(orders) > 1 and maps.device.type != "mps" else torch.float32
        by_sample = maps.unflatten(0, (count, len(maps) // count)).to(torch.promote_types(maps.dtype, wide))
        powers.append([by_sample.pow(order).sum(0) for order in orders])
    if not sums:
        return powers
    return [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(sums, powers, strict=True)]


def _plus_plus_weights(activations: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    rank = activations.dim() - 2
    positions = tuple(range(-rank, 0))
    sums = activations.sum(positions, keepdim=True)
    if first.dim() > activations.dim():
        sums = sums.unsqueeze(1)
    denominator = 2 * second + sums * third
    alphas = torch.where(denominator > 0, second / denominator, 0)
    return (alphas * first.relu()).sum(positions, keepdim=True).to(activations.dtype).expand_as(first)
