"""The activations of a layer and the gradients of the scores with respect to them, from which heatmaps are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from .explainer import Explainer

if TYPE_CHECKING:
    from torch import Tensor

    from .types import Call, Images, Output, Target, Tokens

__all__ = ["FeatureMaps", "feature_maps"]


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The activations of one layer for a batch, and the gradients of the scores with respect to them.

    Attributes:
        layer: the layer's dotted name.
        activations: (B,C,h,w), also of layers that return tokens.
        gradients: (B,C,h,w), or (B,K,C,h,w) for K targets of each image; None if they were not asked for.
        logits: the model's own output, detached, as in :class:`gradcam_fast.Explanation`; the same for all layers.

    Of T pictures a sample (a clip, views) the activations are (B*T,C,h,w), and the gradients likewise, in the order in
    which the layer returned them; ``explain`` sorts and scales their maps.

    Both maps are on the images' device, in the dtype of the layer's output, and neither requires grad. Clone them
    before you write into them: they may be views of the model's own tensors, and gradients that are the same at all
    positions are expanded (stride 0).
    """

    layer: str
    activations: Tensor
    gradients: Tensor
    logits: Any = None

    def __repr__(self) -> str:
        """Shapes instead of numbers."""
        shapes = [None if maps is None else tuple(maps.shape) for maps in (self.activations, self.gradients)]
        return f"FeatureMaps(activations {shapes[0]} at {self.layer}, gradients {shapes[1]})"


@overload
def feature_maps(  # type: ignore[overload-overlap] # a str is a Sequence[str], too
    model: nn.Module,
    images: Images,
    *,
    layer: str | nn.Module,
    target: Target = None,
    topk: int | None = None,
    output: Output | None = None,
    tokens: Tokens = "auto",
    call: Call = None,
    gradients: bool = True,
) -> FeatureMaps: ...


@overload
def feature_maps(
    model: nn.Module,
    images: Images,
    *,
    layer: None = None,
    target: Target = None,
    topk: int | None = None,
    output: Output | None = None,
    tokens: Tokens = "auto",
    call: Call = None,
    gradients: bool = True,
) -> Any: ...


@overload
def feature_maps(
    model: nn.Module,
    images: Images,
    *,
    layer: Sequence[str | nn.Module],
    target: Target = None,
    topk: int | None = None,
    output: Output | None = None,
    tokens: Tokens = "auto",
    call: Call = None,
    gradients: bool = True,
) -> list[FeatureMaps]: ...


def feature_maps(
    model: nn.Module,
    images: Images,
    *,
    layer: Any = None,
    target: Target = None,
    topk: int | None = None,
    output: Output | None = None,
    tokens: Tokens = "auto",
    call: Call = None,
    gradients: bool = True,
) -> FeatureMaps | list[FeatureMaps]:
    """The activations of one layer, or of each of several, and the gradients of the scores, from one forward.

    ``cam(maps.activations, maps.gradients, size)`` turns them into the heatmaps of :func:`gradcam_fast.explain`.

    Args:
        model, images, target, topk, output, tokens, call: as in :func:`gradcam_fast.explain`. With ``call="all"`` the
            maps of a layer's calls are those of several pictures: (B*calls,C,h,w), image by image.
        layer: dotted name or module; a list of these for the feature maps of each; None for the layer that ``explain``
            finds.
        gradients: False leaves them out: the model runs without a graph, and its output need not be logits.

    Returns:
        FeatureMaps, or, for a list of layers, a list of them in the same order; also a list where ``explain`` finds
        several layers, such as those of two trunks.

    It raises what :func:`gradcam_fast.explain` raises.

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
    # Eigen-CAM is the method that takes the activations alone.
    method = "gradcam" if gradients else "eigencam"
    explainer = Explainer(model, layer=layer, method=method, output=output, tokens=tokens, call=call)
    _, captured = explainer._capture(explainer._request(images, target, topk))
    of_layers = captured.gradients if gradients else [None] * len(captured.activations)
    by_name = {
        name: FeatureMaps(name, of_layer, gradient, captured.logits)  # type: ignore[arg-type] # None where not asked for
        for name, of_layer, gradient in zip(sorted(captured.layers), captured.activations, of_layers, strict=True)
    }
    in_callers_order = [by_name[name] for name in captured.layers]
    several = isinstance(layer, (list, tuple)) or len(in_callers_order) > 1
    return in_callers_order if several else in_callers_order[0]
