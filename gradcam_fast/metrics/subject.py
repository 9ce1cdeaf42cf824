"""What a metric judges: heatmaps of images, and the score that each map explains; scores any changed images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

from ..explainer import Explainer
from ..explanation import Explanation
from ..probabilities import known_rule, probabilities_of
from ..targets.outputs import as_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..types import Target

__all__ = ["SCORES", "Subject", "check_count", "check_maps", "images_at_once", "layer_names"]

SCORES = ("auto", "softmax", "sigmoid", "logit")
_INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}

ChangedImages = Callable[["Tensor", "Tensor"], "Tensor"]
"""From the numbers (n,) of maps and of steps to images (n,C,H,W)."""


class Subject:
    """N heatmaps of B images (N is B, or B*K for K scores of each image), and the scores they explain.

    Args:
        model: the model, or the Explainer whose model it is.
        images: (B,C,H,W) as the model takes them, or of other spatial sides.
        heatmaps: (B,H,W) or (B,K,H,W), floating, of any resolution; or the Explanation that holds them, whose
            prediction is used instead of another one.
        target: the classes, as an integer, (B,) or (B,K); a callable from the model's output to (B,) or (B,K) scores;
            None takes the explanation's classes, or each image's highest logit.
        score: of a class: its "softmax", "sigmoid" or "logit" (the output as it is). "auto" is the probability as
            :mod:`gradcam_fast.probabilities` knows it: of a model that ends in a softmax or sigmoid the output itself,
            of a multi-label model the sigmoid, of a regression the output; where nothing is known, the softmax.
        batch_size: the most images that one forward takes; None takes 4 on a CPU, and 32 elsewhere. A callable target
            sees whole batches of B images instead.

    Attributes:
        maps: (N,H,W) float32 of the images' sides.
        original: (N,), the score of each map on the unchanged image.
        shape: of the results, (B,) or (B,K).

    Raises:
        TypeError, ValueError: an argument that cannot work.
    """

    def __init__(
        self,
        model: nn.Module | Explainer,
        images: Tensor,
        heatmaps: Tensor | Explanation,
        target: Target = None,
        *,
        score: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        if score not in SCORES:
            raise ValueError(f"score={score!r} is unknown; use one of {', '.join(map(repr, SCORES))}")
        explanation = heatmaps if isinstance(heatmaps, Explanation) else None
        self.model, self._output = (model.model, model.output) if isinstance(model, Explainer) else (model, None)
        self.maps, self.shape = check_maps(images, heatmaps)
        self.images, self._batch_size = images, images_at_once(batch_size, images.device)
        if explanation is None:
            with torch.no_grad():
                output = self.predict(images)
        else:
            output = explanation.logits
        self._target: Callable[[Any], Tensor] | Tensor
        if callable(target):
            self._target = target
        else:
            logits = as_rows(output)
            self._score = _known_score(model, explanation, logits.shape[1]) if score == "auto" else score
            self._check_score(logits.shape[1])
            # The unchanged image decides, so that all points of a curve are of one kind.
            given = probabilities_of(logits, "given" if self._score == "given" else "auto").isfinite().all(1)
            self._is_given = given.repeat_interleave(self.per_image)
            if target is None and explanation is not None:
                target = explanation.target
            self._target = self._check_classes(logits.argmax(1) if target is None else target, logits.shape[1])
        self.original = self._of_images(output).detach()

    @property
    def per_image(self) -> int:
        """How many maps each image has: K, or 1."""
        return len(self.maps) // len(self.images)

    def predict(self, images: Tensor) -> Any:
        """The model's output, or what the explainer's ``output`` picks of it."""
        answer = self.model(images)
        return answer if self._output is None else self._output(answer)

    def scores_of_images(self, images: Tensor) -> Tensor:
        """The scores (N,) of B other images, differentiable where gradients are on."""
        return self._of_images(self.predict(images))

    @torch.no_grad()
    def scores(self, steps: int, change: ChangedImages) -> Tensor:
        """Score every map at every step: (N,steps).

        Args:
            steps: how many.
            change: from the numbers (n,) of maps and of steps to the changed images (n,C,H,W).
        """
        scores = self.original.new_empty(len(self.maps), steps)
        for maps, numbers in self._chunks(steps):
            scores[maps, numbers] = self._scores_of(self.predict(change(maps, numbers)), maps)
        # A heatmap with NaN ranks nothing. Its results are NaN, and other images do not notice.
        unusable = self.maps.flatten(1).isfinite().all(1).logical_not_()
        return scores.masked_fill_(unusable[:, None], math.nan)

    def with_maps(self, heatmaps: Tensor) -> Subject:
        """The same question about other heatmaps."""
        other = copy(self)
        other.maps, shape = check_maps(self.images, heatmaps)
        if shape != self.shape:
            raise ValueError(f"the other heatmaps are for {shape} images and classes; expected {self.shape}")
        return other

    def results(self, values: Tensor) -> Tensor:
        """Values (N,...) as (B,...) or (B,K,...)."""
        return values.reshape(*self.shape, *values.shape[1:])

    def _chunks(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        device, count = self.maps.device, len(self.maps)
        if callable(self._target):
            # It may know each image's place in the batch, as a mask does.
            for step in range(steps):
                for k in range(self.per_image):
                    maps = torch.arange(k, count, self.per_image, device=device)
                    yield maps, torch.full_like(maps, step)
            return
        for start in range(0, count * steps, self._batch_size):
            numbers = torch.arange(start, min(start + self._batch_size, count * steps), device=device)
            yield numbers // steps, numbers % steps

    def _scores_of(self, output: Any, maps: Tensor) -> Tensor:
        if callable(self._target):
            scores = self._target(output).reshape(len(maps), -1)
            return scores.gather(1, (maps % self.per_image)[:, None])[:, 0].float()
        return self._of_classes(as_rows(output), maps)

    def _of_classes(self, logits: Tensor, maps: Tensor) -> Tensor:
        """The scores (n,) of the maps' classes, from the outputs (n,classes) of images changed for these maps."""
        # Half precision would round a probability to two or three digits.
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        if self._score == "softmax":
            scores = logits.softmax(1)
        elif self._score == "sigmoid":
            scores = logits.sigmoid()
        elif self._score == "logit":
            scores = logits
        else:
            scores = torch.where(self._is_given[maps, None], logits, logits.softmax(1))
        classes = self._target
        assert isinstance(classes, torch.Tensor)
        return scores.gather(1, classes[maps, None])[:, 0]

    def _of_images(self, output: Any) -> Tensor:
        if not callable(self._target):
            maps = torch.arange(len(self.maps), device=self.maps.device)
            return self._of_classes(as_rows(output)[maps // self.per_image], maps)
        scores = self._target(output)
        if tuple(scores.shape) != self.shape:
            raise ValueError(
                f"target returned scores of shape {tuple(scores.shape)}; expected {self.shape}, one for each heatmap"
            )
        return scores.flatten().float()

    def _check_score(self, outputs: int) -> None:
        if outputs == 1 and self._score not in ("sigmoid", "logit"):
            raise ValueError(
                'the model returned one logit per image, whose softmax is always 1; use score="sigmoid", or "logit" '
                "for a regression"
            )

    def _check_classes(self, target: Any, count: int) -> Tensor:
        classes = torch.as_tensor(target, device=self.maps.device)
        if classes.is_floating_point() or classes.dtype == torch.bool:
            raise TypeError(f"target has dtype {classes.dtype}; give integers, the numbers of classes")
        if classes.dim() and tuple(classes.shape) not in (self.shape, self.shape[:1]):
            raise ValueError(
                f"target has shape {tuple(classes.shape)} for heatmaps of shape {self.shape}; give one class, or one "
                "for each heatmap"
            )
        if classes.dim() == 1 and len(self.shape) == 2:
            classes = classes[:, None]
        classes = classes.expand(self.shape).flatten().long()
        if self.maps.device.type == "cpu" and classes.numel() and not 0 <= classes.min() <= classes.max() < count:
            raise ValueError(f"target {int(classes.max())} is out of range for {count} classes (0 to {count - 1})")
        return classes


def _known_score(model: nn.Module | Explainer, explanation: Explanation | None, outputs: int) -> str:
    """What "auto" stands for: a name of `SCORES`, or "given" or "classifier", which the values decide."""
    if explanation is not None:
        rule = explanation.probability_rule
    elif isinstance(model, Explainer):
        rule = model.probability_rule(outputs)
    else:
        rule = known_rule(model, outputs)
    if rule is None or (rule == "given" and outputs == 1):
        return "logit"
    return "classifier" if rule == "auto" else rule


def check_maps(images: Tensor, heatmaps: Tensor | Explanation) -> tuple[Tensor, tuple[int, ...]]:
    """The heatmaps as (N,*sides) float32 of the images' sides, and the shape (B,) or (B,K) of results."""
    maps = heatmaps.heatmap if isinstance(heatmaps, Explanation) else heatmaps
    for name, value, expected in (("images", images, "(B,C,H,W)"), ("heatmaps", maps, "(B,H,W) or (B,K,H,W)")):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            received = f"dtype {value.dtype}" if isinstance(value, torch.Tensor) else f"type {type(value).__name__}"
            raise TypeError(f"{name} has {received}; give a floating tensor {expected}")
    rank = images.dim() - 2
    if rank not in _INTERPOLATIONS or maps.dim() - rank not in (1, 2) or len(maps) != len(images) or not len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)} and heatmaps {tuple(maps.shape)}; expected (B,C,H,W), and one "
            "heatmap (B,H,W) or K heatmaps (B,K,H,W) for each image"
        )
    if maps.device != images.device:
        raise ValueError(f"images is on {images.device} but heatmaps is on {maps.device}; move both to one device")
    shape, sides = tuple(maps.shape[:-rank]), tuple(images.shape[2:])
    maps = maps.detach().float().reshape(-1, *maps.shape[-rank:])
    if tuple(maps.shape[1:]) != sides:
        maps = interpolate(maps[:, None], sides, mode=_INTERPOLATIONS[rank])[:, 0]
    return maps, shape


def images_at_once(batch_size: int | None, device: torch.device) -> int:
    """How many images the model takes at once: ``batch_size``, or what is fast on this kind of device.

    Raises:
        ValueError: ``batch_size`` is no number of images.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size, "images")
        return batch_size
    # On a CPU the maps of a few images stay in its caches: 32 images take EfficientNet-B0 twice as long as 8 times 4.
    return 4 if device.type == "cpu" else 32


def check_count(name: str, value: Any, what: str) -> None:
    """Raise ValueError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} is not a number of {what}; give an integer of at least 1")


def layer_names(explanation: Explanation) -> str | list[str]:
    """The layer of an explanation as the argument ``layer`` takes it."""
    return explanation.layer if isinstance(explanation.layer, str) else list(explanation.layer)
