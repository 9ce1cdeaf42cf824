"""What is known of a traced explanation beside its graph: its inputs, its choices, the structure of its outputs.

All of it but ``logits`` is plain data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from .._capture.containers import map_tensors
from .._capture.scores import check_range
from ..explanation import Explanation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ExplanationRecord", "TensorInput", "TracedTarget", "as_native_input"]


@dataclass(frozen=True)
class TensorInput:
    """One tensor that the graph takes.

    Attributes:
        at: place or name of the tensor among the model's arguments; "target" is the tensor of classes.
        shape: its sides; None where the graph takes any. The first is the batch where ``of_batch``.
        dtype, device: of the tensor.
        channels_last: whether its channels lie last in memory.
        of_batch: whether its first axis is the batch.
    """

    at: int | str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    of_batch: bool


@dataclass(frozen=True)
class TracedTarget:
    """Which scores a graph explains.

    Attributes:
        kind: "highest" logit; "topk" logits; "classes", fixed in the graph; "input", classes that are the graph's last
            input, int64; "callable", which is traced into the graph.
        targets: K, where there is an axis of targets; None for one target (B,).
        classes: of kind "classes", those of every image.
    """

    kind: Literal["highest", "topk", "classes", "input", "callable"]
    targets: int | None = None
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExplanationRecord:
    """A traced explanation: its inputs, the choices it was traced with, and the structure of its outputs.

    The graph returns a flat tuple: heatmap, the tensors of the logits in order, target (not for a callable), score,
    raw_min, raw_max, valid, reason_codes.

    Attributes:
        layer: dotted name of the layer explained, or several.
        method, size, normalize, relu: as in :class:`gradcam_fast.Explainer`; ``size`` None is the images' own.
        target: which scores are explained.
        inputs: the tensors that the graph takes, in order; the classes of kind "input" are the last.
        images_at: place or name of the images among the model's arguments.
        batch: smallest and largest number of images; None: no largest.
        logits: a container like the logits', with an empty tensor in place of each tensor; or one empty tensor.
        logit_tensors: how many tensors the logits have.
        class_count: number of the model's classes; None for a callable target.
    """

    layer: str | tuple[str, ...]
    method: str
    size: tuple[int, ...] | None
    normalize: str
    relu: bool
    target: TracedTarget
    inputs: tuple[TensorInput, ...]
    images_at: int | str
    batch: tuple[int, int | None]
    logits: Any
    logit_tensors: int
    class_count: int | None

    @property
    def output_count(self) -> int:
        """How many tensors the graph returns."""
        return 6 + self.logit_tensors + (self.target.kind != "callable")

    def check_classes(self, target: Any) -> None:
        """Refuse classes out of range, if that can be told without waiting for a device.

        Args:
            target: None, a class, an integer tensor of classes, or a callable.
        """
        if self.class_count is None or target is None:
            return
        if isinstance(target, int):
            check_range(target, target, self.class_count)
        elif target.device.type == "cpu" and target.numel():
            low, high = target.aminmax()
            check_range(int(low), int(high), self.class_count)

    def explanation(self, outputs: Sequence[Tensor]) -> Explanation:
        """The explanation from the flat outputs of the graph."""
        heatmap, *rest = outputs
        logit_tensors = iter(rest[: self.logit_tensors])
        logits = map_tensors(self.logits, lambda _: next(logit_tensors))
        rest = rest[self.logit_tensors :]
        target = None if self.target.kind == "callable" else rest.pop(0)
        score, raw_min, raw_max, valid, reason_codes = rest
        signed = self.normalize == "signed"
        return Explanation(
            heatmap, logits, target, score, raw_min, raw_max, valid, self.layer, reason_codes, signed=signed
        )


def as_native_input(tensor: Tensor, spec: TensorInput) -> Tensor:
    """A tensor in the memory layout that native code reads, without a gradient."""
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    return tensor.detach().contiguous(memory_format=layout)
