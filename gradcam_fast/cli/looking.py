"""The network's part of the pipeline: batches of photos to answers, one forward each, the device never waited for.

Knows nothing of files or threads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..explainer import Explainer
from ..features import feature_maps
from .answers import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..explanation import Explanation
    from .answers import Question, Subject
    from .networks import Network

__all__ = ["Look"]


class Look:
    """Asks a network one question about batches of photos, at the resolution of the layer.

    Larger heatmaps are made from these small ones where they are needed: they are the same map, and an accelerator need
    not send 50,176 numbers where 49 say it.

    Args:
        device, dtype: where and in what type the network runs; it is moved there.
    """

    def __init__(self, network: Network, question: Question, device: torch.device, dtype: torch.dtype) -> None:
        self.network = replace(network, model=network.model.to(device, dtype))
        self.question = question
        self.device = device
        self.dtype = dtype
        self.explainer: Explainer | None = None
        # A layer or method that cannot be is told before any photo is read.
        Explainer(network.model, layer=question.layer, method=question.method)

    def __call__(self, subjects: Sequence[Subject]) -> Callable[[], list[Answer]]:
        """Start on a batch; what is returned waits for the answers."""
        images = torch.cat([subject.input for subject in subjects if subject.input is not None])
        if self.device.type == "cuda":
            images = images.pin_memory()
        images = images.to(self.device, self.dtype, non_blocking=True)
        explainer = self.explainer = self.explainer or self._explainer_for(images[:1])
        # The most probable class alone needs no gradients of several.
        topk = None if self.question.topk == 1 else self.question.topk
        explanation = explainer(images, self.question.target, topk)
        return _fetched(explanation, self.network.class_names)

    def _explainer_for(self, image: torch.Tensor) -> Explainer:
        maps = feature_maps(self.network.model, image, layer=self.question.layer)
        grid = tuple(maps.activations.shape[2:])
        return Explainer(self.network.model, layer=maps.layer, method=self.question.method, size=grid)


def _fetched(explanation: Explanation, names: Sequence[str]) -> Callable[[], list[Answer]]:
    assert explanation.target is not None  # a Question asks about classes, never about a callable
    several = explanation.target.dim() == 2
    per_map = (explanation.target, explanation.score, explanation.raw_min, explanation.raw_max, explanation.valid)
    logits = explanation.logits.float().flatten(1)
    # One output is nothing to compare with: a probability of it is not to be had without knowing how it was trained.
    probabilities = logits.softmax(1) if logits.shape[1] > 1 else torch.full_like(logits, torch.nan)
    chosen = explanation.target if several else explanation.target[:, None]
    best = probabilities.topk(min(5, logits.shape[1]))
    tensors = [
        explanation.heatmap if several else explanation.heatmap[:, None],
        *(each if several else each[:, None] for each in per_map),
        probabilities.gather(1, chosen),
        *best,
    ]
    # Copies from an accelerator are queued behind the batch, and this event behind the copies: waiting for it does not
    # wait for the next batch.
    on_host = [each.to("cpu", non_blocking=True) for each in tensors]
    copied = torch.cuda.Event() if explanation.heatmap.is_cuda else None
    if copied:
        copied.record()

    def answers() -> list[Answer]:
        if copied:
            copied.synchronize()
        maps, *rest = on_host
        numbers = zip(*(each.tolist() for each in rest), strict=True)
        return [_answer(each.numpy(), row, explanation, names) for each, row in zip(maps, numbers, strict=True)]

    return answers


def _answer(maps: Any, row: Sequence[Any], explanation: Explanation, names: Sequence[str]) -> Answer:
    classes, scores, low, high, valid, probabilities, best, best_classes = row
    return Answer(
        classes=tuple(classes),
        names=tuple(names[number] for number in classes),
        probabilities=tuple(probabilities),
        scores=tuple(scores),
        maps=maps,
        raw_min=tuple(low),
        raw_max=tuple(high),
        valid=tuple(valid),
        layer=str(explanation.layer),
        best=tuple((names[number], number, share) for share, number in zip(best, best_classes, strict=True)),
    )
