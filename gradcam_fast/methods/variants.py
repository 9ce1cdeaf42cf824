"""The scores of changed copies (variants) of each image, in chunks: what methods without gradients are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._capture.scores import pick_logits, scores_of
from .._head_replay.recording import record, rows_of
from .._layer_search.trace import trial_run
from ..exceptions import HeadNotReplayable

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.calls import ExplainedCalls
    from .._model.inputs import Inputs
    from .method import MethodInput
    from .progress import ProgressReport

__all__ = ["check_one_map", "chosen_images", "drops", "inputs_of_image", "variant_runs", "variant_scores"]

# How far the score of an unchanged row may be from that of the image, relative to the largest score or change of it.
# Batches of different sizes round differently, by a thousandth where a GPU uses TF32; mixed images differ by much more.
_SAME_SCORE, _SAME_HALF_SCORE = 1e-2, 1e-1


@contextmanager
def variant_runs(given: MethodInput) -> Iterator[None]:
    """Many runs of the model that leave buffers, random numbers and modes as they were.

    Raises:
        ValueError: a module in training mode would mix the variants, or draw random numbers for each.
    """
    for name, module in given.model.named_modules():
        if module.training and isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            raise ValueError(
                f"method={given.choices.method!r} runs the model on changed copies of each image, which {name!r} (a "
                f"{type(module).__name__} in training mode) would mix or change at random; call model.eval() before"
            )
    with trial_run(given.model, given.request.inputs), torch.no_grad():
        yield


def check_one_map(given: MethodInput) -> None:
    """Refuse samples of several pictures, and layers with several calls to explain.

    Raises:
        ValueError: a layer has several maps a sample.
    """
    for calls in given.capture.calls:
        if calls.maps_per_sample is not None:
            raise ValueError(
                f"method={given.choices.method!r} changes the map of one picture in one call, but layer "
                f"{calls.layer.name!r} has {calls.maps_per_sample} maps a sample; explain the pictures one by one, "
                "name one call with call=, or choose method='gradcam'"
            )


def chosen_images(given: MethodInput) -> list[int]:
    """The images of the batch to explain."""
    selected = given.capture.selected
    return list(range(given.request.geometry.batch)) if selected is None else selected.tolist()


def inputs_of_image(given: MethodInput, image: int) -> Inputs:
    """The model's inputs for one image of the batch, as a batch of one."""
    batch = given.request.geometry.batch

    def of_image(tensor: Tensor) -> Tensor:
        row = tensor[image : image + 1] if tensor.dim() and len(tensor) == batch else tensor
        return row.clone() if row.is_inference() else row

    return given.request.inputs.map(of_image)


def variant_scores(given: MethodInput, returned: Any, image: int, count: int) -> Tensor:
    """The scores (n,) or (n,K) of n variants of one image, of the classes that the image itself is explained for.

    A callable target sees each variant in the image's place among the other images of its batch.

    Args:
        returned: what the model returned for a batch of the variants.
        count: n.
    """
    request, capture = given.request, given.capture
    if not callable(request.target):
        assert capture.target is not None
        classes = capture.target[image].expand(count, *capture.target.shape[1:])
        return scores_of(pick_logits(returned, request.output), classes, None, count)[0]
    rows = returned if request.output is None else pick_logits(returned, request.output)
    counts = request.geometry.batch, count
    outputs = (_with_row(capture.logits, rows, image, row, counts) for row in range(count))
    return torch.stack([request.score_logits(logits)[0][image] for logits in outputs])


def _with_row(outputs: Any, variants: Any, image: int, row: int, counts: tuple[int, int]) -> Any:
    """The outputs of a batch with those of one image replaced by those of one variant.

    Args:
        counts: the number of images and of variants.
    """

    def is_batch(of_images: Any, of_variants: Any) -> bool:
        return (len(of_images), len(of_variants)) == counts

    if isinstance(outputs, torch.Tensor):
        if not outputs.dim() or not is_batch(outputs, variants):
            return variants
        return torch.cat([outputs[:image], variants[row : row + 1], outputs[image + 1 :]])
    if isinstance(outputs, MutableMapping):
        replaced = copy.copy(outputs)
        for key, value in outputs.items():
            replaced[key] = _with_row(value, variants[key], image, row, counts)
        return replaced
    if isinstance(outputs, list) and is_batch(outputs, variants) and isinstance(outputs[0], MutableMapping):
        return [*outputs[:image], variants[row], *outputs[image + 1 :]]  # of a detector
    if isinstance(outputs, (tuple, list)):
        members = [_with_row(*pair, image, row, counts) for pair in zip(outputs, variants, strict=True)]
        return type(outputs)(*members) if hasattr(outputs, "_fields") else type(outputs)(members)
    if hasattr(outputs, "__dict__"):
        replaced, of_variants = copy.copy(outputs), vars(variants)
        for name, value in vars(outputs).items():
            if isinstance(value, torch.Tensor):
                vars(replaced)[name] = _with_row(value, of_variants[name], image, row, counts)
        return replaced
    return variants


def drops(
    given: MethodInput,
    calls: ExplainedCalls,
    image: int,
    count: int,
    change: Callable[[Tensor, int, int], object],
    progress: ProgressReport,
) -> Tensor:
    """By how much the image's scores fall for changed activations of a layer: (n,) or (n,K) of n variants.

    Args:
        calls: the layer.
        count: n.
        change: makes the variants from one number to another of as many copies (m,C,h,w) of the image's activations, in
            place.
        progress: is told how many variants have run.

    Raises:
        HeadNotReplayable: a replay without a change does not give the image's score.
    """
    chunk = given.choices.copies_at_once(given.request.images.device)
    recording = record(given.model, inputs_of_image(given, image), calls.layer, rows=min(2, chunk))
    layout, name = calls.layouts[0], calls.layer.name
    activations = layout(recording.activations)
    if len(activations) != 1:
        raise HeadNotReplayable(name, f"it returns {len(activations)} maps for one image")
    recorded = variant_scores(given, recording.returned, image, 1)[0]

    def scores_of_rows(start: int, end: int, extra: int) -> Tensor:
        """The scores of the variants from one number to another, behind ``extra`` rows without a change."""
        rows = activations.expand(extra + end - start, *activations.shape[1:]).clone()
        change(rows[extra:], start, end)
        count = len(rows)
        rows = layout.put(rows_of(recording.activations, count), rows)  # of tokens another tensor, the first is let go
        return variant_scores(given, recording.replay(rows, count), image, count)

    falls, unchanged = [], []
    # A row that is not changed has the rounding of its batch. Where there is no room for one, it is a run by itself.
    extra, per_run = (1, chunk - 1) if chunk > 1 else (0, 1)
    alone = None if extra else scores_of_rows(0, 0, 1)[0]
    for start in range(0, count, per_run):
        end = min(start + per_run, count)
        scores = scores_of_rows(start, end, extra)
        before = scores[0] if alone is None else alone
        unchanged.append(before)
        falls.append(before - scores[extra:])
        progress.advance(end - start)
    if not falls:
        return recorded.new_zeros((0, *recorded.shape))
    is_half = activations.dtype.itemsize < 4 or torch.is_autocast_enabled(activations.device.type)
    tolerance = _SAME_HALF_SCORE if is_half else _SAME_SCORE
    _check_unchanged(name, recorded, torch.stack(unchanged), torch.cat(falls), tolerance)
    return torch.cat(falls)


def _check_unchanged(name: str, recorded: Tensor, unchanged: Tensor, falls: Tensor, tolerance: float) -> None:
    scale = torch.maximum(recorded.abs(), falls.abs().amax(0))
    difference = (unchanged - recorded).abs().amax(0)
    if (difference > tolerance * scale).any():
        was, now = float(recorded.flatten()[0]), float(unchanged.flatten()[0])
        raise HeadNotReplayable(
            name, f"without a change its score is {now:.6g} and not {was:.6g}, as if images of a batch were mixed"
        )
