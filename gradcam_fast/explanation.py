"""The result of an explanation: prediction, heatmaps, and what is needed to judge and compare them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .probabilities import probabilities_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["REASONS", "Explanation"]

REASONS = ("", "only counter-evidence", "no gradient", "not finite", "flat", "not chosen")
"""Why a heatmap shows nothing; ``Explanation.reason_codes`` are places in this tuple."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model predicted for a batch, and where it looked.

    Attributes:
        heatmap: (B,H,W), or (B,K,H,W) when K targets were asked for; float32, in [0,1] under ``minmax``. With T
            pictures a sample, or a map for each call of the layer, (B,T,H,W) or (B,K,T,H,W); extremes and validity are
            those of all T maps together.
        logits: the model's own output (the tensor that ``output`` picks), detached; from the same forward. With a
            callable target and no ``output``, all that the model returned.
        target: the classes explained, int64, (B,) or (B,K); None for a callable target.
        score: their scores, (B,) or (B,K); NaN where a class given as a device tensor is out of range.
        raw_min: smallest value of the upsampled map before normalisation, (B,) or (B,K); for several layers, of the
            mean of their normalised maps. NaN for images that ``when`` did not choose.
        raw_max: largest value likewise; NaN also where the activations or gradients are not finite.
        valid: bool, (B,) or (B,K): the map is finite and not flat (and, under ``max``, somewhere positive), so the
            heatmap shows something; ``reason`` says in words why not.
        layer: dotted name of the layer explained; a tuple of names when there are several.
        reason_codes: uint8, (B,) or (B,K): ``reason`` as places in ``gradcam_fast.explanation.REASONS``, on the device.
        probability_rule: what ``probabilities`` is computed by: ``softmax``, ``sigmoid``, ``given``, ``classifier``
            (given where a row adds up to 1, else softmax), None for never, or ``auto``: only the values can tell.
        names: the name of each class, if they are known.
        photos: the photos that were explained, (3,H,W) uint8 on the CPU; None where tensors were.
        boxes: (B,4) on the CPU, the part of each photo that the network saw: left, top, right, bottom in pixels.

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
    reason_codes: Tensor | None = None
    probability_rule: str | None = "auto"
    names: tuple[str, ...] | None = None
    photos: tuple[Tensor, ...] | None = None
    boxes: Tensor | None = None

    @property
    def probabilities(self) -> Tensor | None:
        """The probability of every class, (B,N) float32, NaN where it is not known; None for a callable target.

        :mod:`gradcam_fast.probabilities` says how it is known.
        """
        if self.target is None or not isinstance(self.logits, torch.Tensor):
            return None
        return probabilities_of(self.logits.reshape(len(self.logits), -1), self.probability_rule)

    @property
    def reason(self) -> list[Any]:
        """Why each heatmap shows nothing: a list of B words, or of B lists of K words; "" for a valid one.

        - ``"only counter-evidence"``: the image speaks against the score, wherever it matters; ReLU left nothing. With
          ``relu=False`` the map shows where.
        - ``"no gradient"``: the score does not change with the layer's output, or so little that it is rounding noise:
          a saturated probability, a head of zeros, a softmax over the positions, a box that nothing was found for.
        - ``"not finite"``: activations, gradients or the map hold NaN or Inf.
        - ``"flat"``: the map has the same value everywhere.
        - ``"not chosen"``: ``when`` did not choose the image.

        Of several layers, whose maps are averaged, and of the pictures of a sample, all have no gradient, or one has
        only counter-evidence. Reading it makes the host wait for the device.
        """
        codes = self._codes_of_valid() if self.reason_codes is None else self.reason_codes
        return _in_words(codes.tolist())

    def _codes_of_valid(self) -> Tensor:
        """The codes of an explanation that was put together by hand."""
        not_finite, flat = map(REASONS.index, ("not finite", "flat"))
        return torch.where(self.valid, 0, torch.where(self.raw_max.isnan(), not_finite, flat))

    def __repr__(self) -> str:
        """Shapes instead of tens of thousands of numbers, and how many heatmaps are valid."""
        shape, valid = tuple(self.heatmap.shape), self.valid
        layer = self.layer if isinstance(self.layer, str) else ", ".join(self.layer)
        counts = f"{int(valid.sum())} of {valid.numel()} valid"
        return f"Explanation(heatmap {shape} at {layer}, target {_short(self.target)}, {counts})"


def _in_words(codes: Any) -> Any:
    return [_in_words(row) for row in codes] if isinstance(codes, list) else REASONS[codes]


def _short(tensor: Tensor | None) -> str:
    return "of a callable" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")
