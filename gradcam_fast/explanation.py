"""The result of an explanation: prediction, heatmaps, and what is needed to judge and compare them."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from ._explanation_file import read_fields, write_fields
from .probabilities import probabilities_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["REASONS", "Explanation", "Prediction"]

REASONS = ("", "only counter-evidence", "no gradient", "not finite", "flat", "not chosen")
"""Why a heatmap shows nothing; ``Explanation.reason_codes`` are places in this tuple."""


# The attributes that are tensors of the batch.
_TENSORS = ("heatmap", "target", "score", "raw_min", "raw_max", "valid", "reason_codes")


class Prediction(NamedTuple):
    """A class that a model predicts for an image.

    Attributes:
        name: its name, or "class 7" where the names are not known.
        index: its number.
        probability: in [0,1]; NaN where it is not known (:mod:`gradcam_fast.probabilities`).
        score: the model's output for it.
    """

    name: str
    index: int  # type: ignore[assignment]  # a tuple's own method, that nobody needs here
    probability: float
    score: float


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
        subject: what a ready target is about, on the CPU: ``classes`` (B,K), ``objects`` (B,K,4) as shares of the
            input's sides, ``masks`` (B,K or 1,H,W). None for other targets.
        signed: whether the heatmap is in [-1,1], with negative values where the image speaks against the class.
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
    signed: bool = False
    subject: dict[str, Tensor] | None = None

    @property
    def probabilities(self) -> Tensor | None:
        """The probability of every class, (B,N) float32, NaN where it is not known; None for a callable target.

        :mod:`gradcam_fast.probabilities` says how it is known.
        """
        if self.target is None or not isinstance(self.logits, torch.Tensor):
            return None
        return probabilities_of(self.logits.reshape(len(self.logits), -1), self.probability_rule)

    def top(self, k: int = 5) -> list[list[Prediction]]:
        """The k classes with the highest outputs of each image, best first; fewer if the model has fewer.

        Raises:
            ValueError: a callable target, whose output has no classes, or a k below 1.

        Example:
            >>> import torch, gradcam_fast
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
            >>> explanation = gradcam_fast.explain(model, torch.rand(1, 3, 8, 8), names=["cat", "dog"])
            >>> sorted(prediction.name for prediction in explanation.top(2)[0])
            ['cat', 'dog']
        """
        probabilities = self.probabilities
        if probabilities is None:
            raise ValueError("the target is a callable, so the output has no classes; read explanation.score instead")
        if k < 1:
            raise ValueError(f"k={k} asks for no class; give at least 1")
        logits = self.logits.reshape(len(self.logits), -1).float()
        scores, classes = logits.topk(min(k, logits.shape[1]), 1)
        rows = zip(classes.tolist(), probabilities.gather(1, classes).tolist(), scores.tolist(), strict=True)
        return [
            [Prediction(self._name(index), index, share, score) for index, share, score in zip(*row, strict=True)]
            for row in rows
        ]

    def _name(self, index: int) -> str:
        return f"class {index}" if self.names is None else self.names[index]

    def to(self, device: str | torch.device) -> Explanation:
        """The same explanation with its tensors on a device; photos and boxes stay on the CPU."""
        moved = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return replace(self, logits=tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), self.logits), **moved)

    def _tensors(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _TENSORS}
        return {name: value for name, value in values.items() if value is not None}

    def cpu(self) -> Explanation:
        """The same explanation with its tensors on the CPU."""
        return self.to("cpu")

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.heatmap)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Explanation]:
        """The explanation of each image, a batch of one."""
        return (self[image] for image in range(len(self)))

    def __getitem__(self, images: Any) -> Explanation:
        """The explanation of one image, as a batch of one, or of several: a slice, or a list of indices or booleans.

        Raises:
            IndexError: there is no such image.
        """
        count = len(self)
        wanted = images.tolist() if hasattr(images, "tolist") else images
        if isinstance(wanted, slice):
            chosen = list(range(count))[wanted]
        elif not isinstance(wanted, (list, tuple)):
            chosen = [range(count)[wanted]]
        elif any(isinstance(member, bool) for member in wanted):
            if len(wanted) != count:
                raise IndexError(f"{len(wanted)} booleans choose among {count} images; give one for each")
            chosen = [image for image, is_chosen in enumerate(wanted) if is_chosen]
        else:
            chosen = [range(count)[image] for image in wanted]

        def of_chosen(tensor: Tensor) -> Tensor:
            if tensor.dim() == 0 or len(tensor) != count:
                return tensor
            return tensor[torch.tensor(chosen, dtype=torch.long, device=tensor.device)]

        parts: dict[str, Any] = {name: of_chosen(tensor) for name, tensor in self._tensors().items()}
        logits = (
            [self.logits[image] for image in chosen]  # a detector returns a list, one dict for each image
            if isinstance(self.logits, list) and len(self.logits) == count
            else tree_map_only(torch.Tensor, of_chosen, self.logits)
        )
        photos = None if self.photos is None else tuple(self.photos[image] for image in chosen)
        boxes = None if self.boxes is None else of_chosen(self.boxes)
        subject = None if self.subject is None else {name: of_chosen(part) for name, part in self.subject.items()}
        return replace(self, logits=logits, photos=photos, boxes=boxes, subject=subject, **parts)

    def overlay(self, photos: Any = None, **options: Any) -> Any:
        """The heatmaps over their photos, as PIL images at the photos' own pixels.

        Args:
            photos: None takes those that were explained; else as in :func:`gradcam_fast.figures.explained`.
            options: ``colormap``, ``alpha`` and ``edges`` of :func:`gradcam_fast.overlay`.

        Returns:
            An image; for several images a list of them, for several classes a list for each image.

        Raises:
            ValueError: tensors were explained and no photos are given, or heatmaps that do not fit them.
        """
        return _pictures().overlays(self, photos, **options)

    def show(self, photos: Any = None, **options: Any) -> None:
        """Show photo, heatmap and overlay with class and scores: in a notebook below the cell, else in a window.

        The arguments are those of :func:`gradcam_fast.figures.explained`. Without photos the heatmaps are shown alone.
        """
        _pictures().show(self, photos=photos, **options)

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the explanation to a ``.npz`` file, or its picture to a ``.png`` or ``.jpg`` file.

        The picture is the one that ``show`` shows. The arrays of a ``.npz`` file have the names of the attributes;
        :meth:`load` reads it. ``torch.save`` and ``torch.load(weights_only=True)`` work, too, in programs that import
        gradcam_fast.

        Raises:
            ValueError: another suffix.
            TypeError: logits that are no tensor do not go into a ``.npz`` file.
        """
        if str(path).endswith(".npz"):
            write_fields(self, path)
        elif _pictures().is_picture(path):
            _pictures().save_picture(self, path, **options)
        else:
            raise ValueError(f"{os.fspath(path)} has no suffix that is known; give .npz, .png or .jpg")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read an explanation from a ``.npz`` file that :meth:`save` wrote; nothing in the file is run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else.
        """
        return cls(**read_fields(path))

    def _repr_png_(self) -> bytes | None:
        png: bytes | None = _pictures().small_png(self)
        return png

    def _repr_html_(self) -> str | None:
        png = self._repr_png_()
        if png is None:
            return None
        from html import escape

        return f'<img alt="{escape(repr(self))}" src="data:image/png;base64,{b64encode(png).decode()}">'

    @property
    def reason(self) -> list[Any]:
        """Why each heatmap shows nothing: a list of B words, or of B lists of K words; "" for a valid one.

        - ``"only counter-evidence"``: the image speaks against the score, wherever it matters; ReLU left nothing. With
          ``relu=False`` the map shows where.
        - ``"no gradient"``: the score does not change with the layer's output, or so little that it is rounding noise:
          a saturated probability, a head of zeros, a softmax over the positions, a box that nothing was found for.
        - ``"not finite"``: activations, gradients or the map hold NaN or Inf.
        - ``"flat"``: the map has the same value everywhere, up to rounding.
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


def _pictures() -> Any:
    # What draws stands above the result that it draws, and is only imported when a picture is asked for.
    return import_module(".visual.explanation_pictures", __package__)


def _in_words(codes: Any) -> Any:
    return [_in_words(row) for row in codes] if isinstance(codes, list) else REASONS[codes]


def _short(tensor: Tensor | None) -> str:
    return "of a callable" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")


# So that torch.load(weights_only=True) reads explanations: they hold tensors, words and numbers.
torch.serialization.add_safe_globals([Explanation])
