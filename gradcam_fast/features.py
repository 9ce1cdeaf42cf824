"""A layer's feature maps and the gradients of the score at them, for those who want more of them than a heatmap.

The same evidence that an explanation is made of; knows nothing of formulas or figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from ._capture.capture import capture_or_search
from .explainer import Explainer

if TYPE_CHECKING:
    from torch import Tensor

    from ._layout.feature_layout import Tokens

__all__ = ["FeatureMaps", "feature_maps"]


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """What a layer returned for a batch, and how the scores change with it.

    Attributes:
        layer: the layer's dotted name.
        activations: (B,C,h,w), also of layers that return tokens.
        gradients: (B,C,h,w), or (B,K,C,h,w) for K targets of each image.

    Both tensors are on the images' device, in the dtype that the model works in, and neither requires grad. They may
    be views of what the model made, and gradients expanded (stride 0) that are the same at all positions; clone what
    you write into.
    """

    layer: str
    activations: Tensor
    gradients: Tensor

    def __repr__(self) -> str:
        """Shapes instead of numbers, of which there are very many."""
        activations, gradients = tuple(self.activations.shape), tuple(self.gradients.shape)
        return f"FeatureMaps(activations {activations} at {self.layer}, gradients {gradients})"


@overload
def feature_maps(
    model: nn.Module,
    images: Any,
    *,
    layer: str | nn.Module | None = None,
    target: Any = None,
    topk: int | None = None,
    output: Callable[[Any], Tensor] | None = None,
    tokens: Tokens = "auto",
) -> FeatureMaps: ...


@overload
def feature_maps(
    model: nn.Module,
    images: Any,
    *,
    layer: Sequence[str | nn.Module],
    target: Any = None,
    topk: int | None = None,
    output: Callable[[Any], Tensor] | None = None,
    tokens: Tokens = "auto",
) -> list[FeatureMaps]: ...


def feature_maps(
    model: nn.Module,
    images: Any,
    *,
    layer: Any = None,
    target: Any = None,
    topk: int | None = None,
    output: Callable[[Any], Tensor] | None = None,
    tokens: Tokens = "auto",
) -> FeatureMaps | list[FeatureMaps]:
    """The activations of one layer, or of each of several, and the gradients of the scores, from one forward.

    ``cam(maps.activations, maps.gradients, size)`` makes of them the heatmaps of :func:`gradcam_fast.explain`.

    Args:
        model, images, target, topk, output, tokens: as in :func:`gradcam_fast.explain`.
        layer: dotted name or module; a list of these, for feature maps of each; None takes the layer that ``explain``
            finds.

    Returns:
        FeatureMaps, or, for a list of layers, a list of them in the same order.

    Raises:
        As :func:`gradcam_fast.explain`.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 5))
        >>> images = torch.rand(2, 3, 16, 16)
        >>> maps = feature_maps(model, images, layer="1")
        >>> maps
        FeatureMaps(activations (2, 8, 14, 14) at 1, gradients (2, 8, 14, 14))
        >>> heatmap, _, _ = gradcam_fast.cam(maps.activations, maps.gradients, (16, 16))
        >>> torch.equal(heatmap, gradcam_fast.explain(model, images, layer="1").heatmap)
        True
    """
    explainer = Explainer(model, layer=layer, output=output, tokens=tokens)
    evidence = capture_or_search(explainer.model, explainer.ask(images, target, topk), explainer.layers)
    at = {
        name: FeatureMaps(name, *maps)
        for name, *maps in zip(sorted(evidence.layers), evidence.activations, evidence.gradients, strict=True)
    }
    results = [at[name] for name in evidence.layers]
    return results if isinstance(layer, (list, tuple)) else results[0]
