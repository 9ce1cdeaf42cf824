"""Eigen-CAM and EigenGrad-CAM: the first principal component of the activations, or of gradients times activations.

Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020, equation 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .._capture.request import Needs
from ..ops import reference
from .method import Evidence, Method, MethodInput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHODS", "first_component", "smoothed"]

# Numbers of float64 in one batch of matrices: 128 MB.
_MAX_NUMBERS = 1 << 24


def first_component(maps: Tensor, direction: Tensor | None = None) -> Tensor:
    """Project feature maps on their first principal component: the map that varies most, one number per position.

    The positions are the samples and the channels the variables. With X (positions, channels), each channel minus its
    mean over the positions, X = U S V^T (its singular values falling), the result is X V_1 = S_1 U_1 (Muhammad and
    Yeasin, IJCNN 2020, eq. 4; subtracting the mean is pytorch-grad-cam's). Its sign, which a decomposition leaves open,
    is the one that correlates positively with ``direction``.

    Args:
        maps: (B,C,h,w), or any number of sides, any floating dtype.
        direction: (B,h,w); None for the mean of the channels.

    Returns:
        (B,h,w), float32, or float64 for float64 maps; NaN for images whose maps are not finite.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[[0.0, 4.0]], [[1.0, 4.0]]]])  # two channels that vary by (4, 3) together
        >>> first_component(maps)
        tensor([[[-2.5000,  2.5000]]])
    """
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    precise = torch.float32 if maps.device.type == "mps" else torch.float64
    direction = maps.to(precise).mean(1) if direction is None else direction.to(precise)
    batches = [(maps, direction)]
    # A graph that is traced for any number of images takes them at once.
    if not isinstance(maps.shape[0], torch.SymInt):
        count = max(1, _MAX_NUMBERS // max(1, maps[:1].numel()))
        batches = list(zip(maps.split(count), direction.split(count), strict=True))
    parts = [_components(some.flatten(2).to(precise), way.flatten(1)) for some, way in batches]
    return torch.cat(parts).unflatten(1, maps.shape[2:]).to(dtype)


def _components(x: Tensor, direction: Tensor) -> Tensor:
    """The projections (B,P) of x (B,C,P)."""
    finite = x.isfinite().all(1).all(1) & direction.isfinite().all(1)
    # A decomposition of one matrix with a NaN fails for the whole batch.
    x, direction = x.nan_to_num(0, 0, 0), direction.nan_to_num(0, 0, 0)
    x = torch.where(finite[:, None, None], x - x.mean(2, keepdim=True), 0)
    channels, positions = x.shape[1:]
    # The smaller of the two Gram matrices has the same eigenvalues, S squared.
    if positions <= channels:
        eigenvalues, vectors = torch.linalg.eigh(x.mT @ x)
        projection = vectors[:, :, -1] * eigenvalues[:, -1:].clamp(min=0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(x @ x.mT)
        projection = (vectors[:, :, -1:].mT @ x)[:, 0]
    agreement = (projection * (direction - direction.mean(1, keepdim=True))).sum(1)
    return torch.where(finite, torch.where(agreement < 0, -1.0, 1.0), torch.nan)[:, None] * projection


def _eigencam(given: MethodInput) -> Evidence:
    """The first component of the activations: the same map for every class."""
    capture = given.capture
    maps = [first_component(activations).unsqueeze(1) for activations in capture.activations]
    targets = capture.scores.shape[1:]
    ones = [component.new_ones(()).expand(component.shape[0], *targets, *component.shape[1:]) for component in maps]
    return Evidence(maps, ones, "hirescam")


def smoothed(given: MethodInput, method: str) -> Evidence:
    """``smooth="eigen"``: the first component of a method's weighted channels, where the method itself sums them.

    Its sign is that of the sum: it correlates positively with it.
    """
    return _components_of_terms(given, method, lambda activations, terms: terms.mean(2))


def _eigengradcam(given: MethodInput) -> Evidence:
    """The first component of gradients times activations, for each class."""
    return _components_of_terms(
        given, "hirescam", lambda activations, terms: activations.unsqueeze(1).mean(2, dtype=terms.dtype)
    )


def _components_of_terms(given: MethodInput, method: str, direction: Callable[[Tensor, Tensor], Tensor]) -> Evidence:
    """The first component of the terms (B,K,C,h,w) that the method sums, for each target.

    Args:
        direction: from activations (B,C,h,w) and terms to (B,K or 1,h,w), with which the component shall correlate.
    """
    ones, components = [], []
    capture = given.capture
    for activations, gradients in zip(capture.activations, capture.gradients, strict=True):
        several_targets = gradients.dim() > activations.dim()
        terms = reference.terms(activations, gradients if several_targets else gradients.unsqueeze(1), method)
        way = direction(activations, terms).expand(-1, terms.shape[1], *terms.shape[3:])
        component = first_component(terms.flatten(0, 1), way.flatten(0, 1)).reshape(
            *terms.shape[:2], 1, *terms.shape[3:]
        )
        components.append(component if several_targets else component[:, 0])
        ones.append(component.new_ones(()).expand(component[:, 0].shape))
    return Evidence(ones, components, "hirescam")


METHODS = {
    "eigencam": Method(_eigencam, Needs(gradients=False, scores=False)),
    "eigengradcam": Method(_eigengradcam, Needs()),
}
