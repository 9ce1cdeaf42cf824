"""Checks what is to be exported, traces it for the batch that the package takes, and has it written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._version import __version__
from ..ops.arguments import is_integer
from ..preprocess import Preprocess
from .package_info import PackageInfo
from .packaging import write_package
from .tracing import capture_to_trace, trace_request

if TYPE_CHECKING:
    from torch import Tensor

    from ..explainer import Explainer
    from ..types import Images, Target
    from .tracing import TracedExplanation

__all__ = ["export_explanation"]

# Inductor makes its choices for the number of images in the example, and the code is right for any.
_EXAMPLE_BATCH = 8


def export_explanation(
    explainer: Explainer,
    images: Images,
    path: Path,
    *,
    target: Target,
    topk: int | None,
    batch: int | tuple[int, int],
    self_contained: bool,
    names: Sequence[str] | None,
    preprocessing: Mapping[str, Any] | Preprocess | None,
    probabilities: str | None,
    title: str | None,
) -> Path:
    """See :func:`gradcam_fast.export`."""
    _check_path(path)
    low, high = _check_batch(batch)
    class_names = _check_names(names)
    preprocessing = preprocessing.to_dict() if isinstance(preprocessing, Preprocess) else preprocessing
    _check_preprocessing(preprocessing)
    _check_target(target)
    examples = min(high, max(low, _EXAMPLE_BATCH))
    example = _example(explainer, images, examples)
    class_input = isinstance(target, str) and target == "input"
    if class_input:
        target = torch.zeros((examples,) if topk is None else (examples, topk), dtype=torch.int64)
    request = explainer._request(example, target, None if class_input else topk)
    request, captured = capture_to_trace(explainer, request)
    with _one_kind_of_convolution():
        traced = trace_request(
            explainer, request, captured, class_input=class_input, dynamic_batch=low != high, dynamic_sides=False
        )
    traced = _with_batch(traced, low, high)
    count = traced.record.class_count
    if class_names and count is not None and len(class_names) != count:
        raise ValueError(f"names has {len(class_names)} names, but the model has {count} outputs; give one for each")
    info = PackageInfo(
        record=traced.record,
        title=title or type(explainer.model).__name__,
        class_names=class_names,
        preprocessing=preprocessing,
        probabilities=probabilities,
        layer_size=None,
        self_contained=bool(self_contained),
        gradcam_fast=__version__,
        torch=str(torch.__version__),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
    )
    write_package(traced, info, path)
    return path


def _check_path(path: Path) -> None:
    if path.suffix != ".pt2":
        raise ValueError(f"path {path} does not end in .pt2, by which torch recognises packages; give such a name")
    if path.is_dir():
        raise IsADirectoryError(f"path {path} is a folder; give the name of a file")
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"path {path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"path {path}: no permission to write to {folder}; give another folder")


def _check_batch(batch: Any) -> tuple[int, int]:
    if not is_integer(batch) and not _is_pair(batch):
        raise TypeError(f"batch={batch!r} is no number of images; give one integer, or the smallest and the largest")
    low, high = (batch, batch) if is_integer(batch) else batch
    if not 1 <= low <= high:
        raise ValueError(f"batch={batch!r} is no range from at least 1 upwards; give (smallest, largest)")
    return int(low), int(high)


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2 and all(map(is_integer, batch))


def _check_names(names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names={names!r:.60} is no list of names; give one string for each class, in their order")
    return tuple(names)


def _check_preprocessing(preprocessing: Any) -> None:
    if preprocessing is None:
        return
    try:
        if not isinstance(preprocessing, Mapping):
            raise TypeError(f"it is a {type(preprocessing).__name__}")
        json.dumps(dict(preprocessing), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"preprocessing={preprocessing!r:.60} is no dict of plain values ({error}); give for example "
            '{"size": (224, 224), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}'
        ) from None


def _check_target(target: Any) -> None:
    if isinstance(target, torch.Tensor):
        is_the_same = target.dim() == 0 or (target.dim() == 2 and len(target) == 1)
    elif isinstance(target, (list, tuple)):
        is_the_same = len(target) == 1 and isinstance(target[0], (list, tuple))
    else:
        is_the_same = True
    if not is_the_same:
        raise ValueError(
            f"target={target!r} names a class for each image, but a package explains the same for every image; "
            'give one class, [[1, 2]] for two classes of every image, or "input" to choose with every call'
        )


def _example(explainer: Explainer, images: Images, count: int) -> Images:
    """The example with ``count`` images: its own, repeated or cut."""
    request = explainer._request(images)
    inputs = request.inputs
    if len(inputs.tensors) != len(inputs.args) + len(inputs.kwargs):
        raise TypeError("the model takes other inputs than tensors, which a package cannot; fix them in the model")
    batch = request.geometry.batch
    if batch == 0:
        raise ValueError("the example has no images; give at least one")

    def resized(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or len(tensor) != batch:
            return tensor
        rows = torch.arange(count, device=tensor.device) % batch
        return tensor.detach().index_select(0, rows).contiguous(memory_format=_memory_format(tensor))

    inputs = inputs.map(resized)
    return dict(inputs.kwargs) if inputs.kwargs else inputs.args if len(inputs.args) > 1 else inputs.images


def _memory_format(tensor: Tensor) -> torch.memory_format:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def _one_kind_of_convolution() -> Iterator[None]:
    """Keep a trace right for any number of images: of 16 or more, PyTorch gives convolutions to another library."""
    mkldnn, *_ = torch.backends.mkldnn.set_flags(_enabled=False)
    (nnpack,) = torch.backends.nnpack.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=mkldnn)
        torch.backends.nnpack.set_flags(nnpack)


def _with_batch(traced: TracedExplanation, low: int, high: int) -> TracedExplanation:
    """The trace with the range of the package.

    Raises:
        ValueError: the graph is right for fewer numbers of images.
    """
    traced_low, traced_high = traced.record.batch
    if low != high and traced_low == traced_high:
        line = traced.batch_fixed_in
        hint = ", or let that line read shape[0]: len() and int() of a size fix it" if line else ""
        raise ValueError(f"the model fixes the number of images at {traced_low}{line}; give batch={traced_low}{hint}")
    if (traced_high is not None and traced_high < high) or traced_low > max(low, 2):
        largest = "" if traced_high is None else f" to {traced_high}"
        raise ValueError(
            f"the model does something else for other numbers of images than {traced_low}{largest}; give such a batch"
        )
    return replace(traced, record=replace(traced.record, batch=(low, high)))
