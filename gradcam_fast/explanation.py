"""The result of an explanation: prediction, heatmaps, and what is needed to judge and compare them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Explanation"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model predicted for a batch, and where it looked.

    Attributes:
        heatmap: (B,H,W), or (B,K,H,W) when K targets were asked for; float32, in [0,1] under ``minmax``.
        logits: the model's own output (the tensor that ``output`` picks), detached; from the same forward. With a
            callable target and no ``output``, all that the model returned.
        target: the classes explained, int64, (B,) or (B,K); None for a callable target.
        score: their scores, (B,) or (B,K); NaN where a class given as a device tensor is out of range.
        raw_min: smallest value of the upsampled map before normalisation, (B,) or (B,K); for several layers, of the
            mean of their normalised maps. NaN for images that ``when`` did not choose.
        raw_max: largest value likewise; NaN also where the activations or gradients are not finite.
        valid: bool, (B,) or (B,K): the map is finite and not flat (and, under ``max``, somewhere positive), so the
            heatmap shows something.
        layer: dotted name of the layer explained; a tuple of names when there are several.

    All tensors are on the images' device and none requires grad.
    """

    heatmap: Tensor
    logits: Any
    target: Tensor | None
    score: Tensor
    raw_min: Tensor
    raw_max: Tensor
    valid: Tensor
    layer: str | tuple[str, ...]

    def __repr__(self) -> str:
        """Shapes instead of tens of thousands of numbers."""
        shape, valid = tuple(self.heatmap.shape), self.valid
        layer = self.layer if isinstance(self.layer, str) else ", ".join(self.layer)
        return f"Explanation(heatmap {shape} at {layer}, target {_short(self.target)}, valid {_short(valid)})"


def _short(tensor: Tensor | None) -> str:
    return "of a callable" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")
