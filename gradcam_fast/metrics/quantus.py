"""Explanations in the form that Quantus' metrics ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .subject import layer_names

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from ..explainer import Explainer

__all__ = ["explain_func"]


def explain_func(explainer: Explainer) -> Callable[..., NDArray[Any]]:
    """Make the ``explain_func`` of Quantus' metrics out of an explainer.

    Args:
        explainer: its choices hold for every model that Quantus asks about, such as copies with random weights.

    Returns:
        A function of (model, inputs, targets): inputs (B,C,H,W) and targets (B,) as arrays, to heatmaps (B,1,H,W) as a
        float32 array. Further keyword arguments, which Quantus passes, are ignored but ``device``.

    Example:
        >>> import numpy, torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 5))
        >>> function = gradcam_fast.metrics.explain_func(gradcam_fast.Explainer(model))
        >>> function(model, numpy.ones((2, 3, 16, 16), numpy.float32), numpy.array([1, 2])).shape
        (2, 1, 16, 16)
    """
    at_layer: Explainer | None = None

    def function(model: nn.Module, inputs: Any, targets: Any, **settings: Any) -> NDArray[Any]:
        nonlocal at_layer
        parameter = next(model.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))
        images = torch.as_tensor(inputs, dtype=parameter.dtype, device=settings.get("device") or parameter.device)
        classes = torch.as_tensor(targets, device=images.device).long().reshape(-1)
        if at_layer is None:
            # Found once: a model with random weights is explained at the same layer.
            at_layer = explainer.replace(layer=layer_names(explainer(images, classes)))
        asked = at_layer if model is at_layer.model else at_layer.replace(model)
        heatmap: NDArray[Any] = asked(images, classes).heatmap[:, None].cpu().numpy()
        return heatmap

    return function
