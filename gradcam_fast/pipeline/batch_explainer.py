"""Explains batches of photos with one network, one forward per batch, at the resolution of the layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .. import Explainer
from ..features import feature_maps
from ..probabilities import probabilities_of
from ..targets.outputs import as_rows
from .results import NO_MAPS, PhotoResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from .. import Explanation
    from ..types import When
    from .networks import Network
    from .question import Question
    from .results import LoadedPhoto

__all__ = ["BatchExplainer"]

# How many of the most probable classes a result names, beside those explained.
_BEST = 5


class BatchExplainer:
    """Explains batches of photos with one network, one forward per batch, at the resolution of the layer.

    A larger heatmap is the same map resized, and is drawn on the CPU. So for a map of 7x7 only 49 numbers are copied
    from an accelerator, instead of 50,176.

    Args:
        network: it is moved to ``device``, in type ``dtype``.
        question: what is asked of every photo.
        when: as for :class:`gradcam_fast.Explainer`: which photos are explained, by their logits.

    Raises:
        ValueError: an unknown layer or method, or ``when`` for a package, which explains every photo.
    """

    def __init__(
        self,
        network: Network,
        question: Question,
        device: torch.device,
        dtype: torch.dtype,
        *,
        when: When | None = None,
    ) -> None:
        if when is not None and network.explain is not None:
            raise ValueError(f"{network.title} is a package, which explains every photo; leave when out")
        self.network = replace(network, model=network.model.to(device, dtype))
        self.question = question
        self.device = device
        self.dtype = dtype
        self.when = when
        self.explainer: Callable[..., Explanation] | None = network.explain
        if self.explainer is None:
            # Refuses an unknown layer or method before any photo is read.
            Explainer(network.model, layer=question.layer, method=question.method)

    def __call__(self, photos: Sequence[LoadedPhoto]) -> Callable[[], list[PhotoResult]]:
        """Start to explain a batch; the function returned waits for the results."""
        images = torch.cat([photo.input for photo in photos if photo.input is not None])
        return self.explain(images, target=self.question.target, topk=self.question.topk)

    def explain(
        self, images: Tensor, *, target: int | Tensor | None = None, topk: int | None = None
    ) -> Callable[[], list[PhotoResult]]:
        """Start to explain inputs (B,3,h,w) on the CPU; the function returned waits for the results.

        Args:
            target: one class for all, or classes (B,K).
            topk: how many of the most probable classes, where there is no ``target``.
        """
        images = self._placed(images)
        if isinstance(target, torch.Tensor):
            target = target.to(self.device)
            target = target[:, 0] if target.dim() == 2 and target.shape[1] == 1 else target
        explainer = self.explainer = self.explainer or self._explainer_for(images[:1])
        # For one class, topk=None gives the same maps as topk=1, without an axis of classes in the gradients.
        explanation = explainer(images, target, None if topk == 1 else topk)
        return _fetch(explanation, self.network.class_names, self.network.probabilities)

    @torch.no_grad()
    def predict(self, images: Tensor, count: int = _BEST) -> Callable[[], list[PhotoResult]]:
        """Start to predict only: the results have no maps, and their ``best`` are the ``count`` highest outputs."""
        logits = as_rows(self.network.model(self._placed(images)))
        probabilities = probabilities_of(logits, self.network.probabilities)
        scores, classes = logits.topk(min(count, logits.shape[1]))
        names = self.network.class_names
        results = _on_host([classes, probabilities.gather(1, classes), scores])
        return lambda: [
            replace(NO_MAPS, best=_best(names, *(values.tolist() for values in row)))
            for row in zip(*results(), strict=True)
        ]

    def _placed(self, images: Tensor) -> Tensor:
        if self.device.type == "cuda":
            images = images.pin_memory()
        return images.to(self.device, self.dtype, non_blocking=True)

    def _explainer_for(self, image: Tensor) -> Explainer:
        found = feature_maps(self.network.model, image, layer=self.question.layer)
        maps = found if isinstance(found, list) else [found]  # several where the network has two trunks
        grid = max((tuple(of_layer.activations.shape[2:]) for of_layer in maps), key=math.prod)
        layers = [of_layer.layer for of_layer in maps]
        return Explainer(self.network.model, layer=layers, method=self.question.method, size=grid, when=self.when)


def _fetch(explanation: Explanation, names: Sequence[str], rule: str | None) -> Callable[[], list[PhotoResult]]:
    assert explanation.target is not None  # a Question asks for classes, never for a callable
    several = explanation.target.dim() == 2
    per_map = (explanation.target, explanation.score, explanation.raw_min, explanation.raw_max, explanation.valid)
    logits = explanation.logits.flatten(1)
    probabilities = probabilities_of(logits, rule)
    logits = logits.float()
    target = explanation.target if several else explanation.target[:, None]
    best = logits.topk(min(_BEST, logits.shape[1]))
    tensors = [
        explanation.heatmap if several else explanation.heatmap[:, None],
        *(values if several else values[:, None] for values in per_map),
        probabilities.gather(1, target),
        probabilities.gather(1, best.indices),
        *best,
    ]
    copied = _on_host(tensors)

    def results() -> list[PhotoResult]:
        maps, *other_results = copied()
        rows = zip(*(tensor.tolist() for tensor in other_results), strict=True)
        return [
            _result(photo_maps.numpy(), row, explanation, names) for photo_maps, row in zip(maps, rows, strict=True)
        ]

    return results


def _on_host(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Start to copy tensors to the CPU; the function returned waits for the copies.

    Copies from an accelerator are queued behind the batch, and an event behind the copies: waiting for it does not wait
    for the next batch.
    """
    on_host = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    copied = torch.cuda.Event() if tensors[0].is_cuda else None
    if copied:
        copied.record()

    def wait() -> list[Tensor]:
        if copied:
            copied.synchronize()
        return on_host

    return wait


def _result(maps: Any, row: Sequence[Any], explanation: Explanation, names: Sequence[str]) -> PhotoResult:
    classes, scores, low, high, valid, probabilities, best_shares, best_scores, best_classes = row
    return PhotoResult(
        classes=tuple(classes),
        names=tuple(names[number] for number in classes),
        probabilities=tuple(probabilities),
        scores=tuple(scores),
        maps=maps,
        raw_min=tuple(low),
        raw_max=tuple(high),
        valid=tuple(valid),
        layer=str(explanation.layer),
        best=_best(names, best_classes, best_shares, best_scores),
    )


def _best(
    names: Sequence[str], classes: Sequence[int], probabilities: Sequence[float], scores: Sequence[float]
) -> tuple[tuple[str, int, float, float], ...]:
    return tuple(
        (names[number], number, share, score)
        for number, share, score in zip(classes, probabilities, scores, strict=True)
    )
