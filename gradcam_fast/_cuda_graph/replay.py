"""One recorded explanation: static inputs filled from a request, the replay, and a copy of the results."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .._capture.containers import map_tensors
from .._capture.scores import as_class_logits

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.request import Request
    from ..explanation import Explanation
    from .recorder import Recorder

__all__ = ["RecordedExplanation", "can_be_padded", "padded_size", "request_key"]

_PER_IMAGE_RESULTS = ("heatmap", "score", "raw_min", "raw_max", "valid", "reason_codes")


def padded_size(batch: int) -> int:
    """The size to which a batch is padded: its own up to 8, above that one of four sizes per doubling (10, 12, 14, 16).

    Example:
        >>> [padded_size(batch) for batch in (1, 7, 8, 9, 17, 32, 100)]
        [1, 7, 8, 10, 20, 32, 112]
    """
    step = 1 << max(0, (batch - 1).bit_length() - 3)
    return -(-batch // step) * step


def can_be_padded(request: Request) -> bool:
    """Whether only the images and the target depend on the batch size.

    Other inputs may depend on it too, and so may a callable target.
    """
    return len(request.inputs.args) + len(request.inputs.kwargs) == 1 and not callable(request.target)


def request_key(request: Request, batch: int) -> Any:
    """The key of a request: a recording for ``batch`` images serves all requests with the same key.

    Raises:
        TypeError: an input cannot be compared with those of other requests.
    """
    images, target = request.images, request.target
    target_key: Any = request.topk
    if callable(target):
        # A weak reference and not the id, which another function may have later. A bound method is a new object at each
        # access, so a weak reference to it would be dead at once.
        target_key = target if inspect.ismethod(target) else weakref.ref(target)
    elif target is not None:
        target_key = "classes", tuple(target.shape[1:]) if isinstance(target, torch.Tensor) else ()

    def input_key(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return type(value), value
        if value.device != images.device:
            raise TypeError(f"an input is on {value.device} and the images are on {images.device}")
        return value.shape[1:] if value is images else value.shape, value.dtype, value.device, _memory_format(value)

    inputs, device_type = request.inputs, images.device.type
    autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    positional = map(input_key, inputs.args)
    named = ((name, input_key(value)) for name, value in inputs.kwargs.items())
    key = (batch, *positional, *named, target_key, autocast)
    hash(key)
    return key


def _memory_format(tensor: Tensor) -> torch.memory_format:
    if not tensor.is_contiguous():
        for memory_format in (torch.channels_last, torch.channels_last_3d):
            if tensor.is_contiguous(memory_format=memory_format):
                return memory_format
    return torch.contiguous_format


def _static_request(request: Request, batch: int) -> Request:
    """A request of the same kind for ``batch`` images; its tensors are new, and filled with zeros."""
    images, target = request.images, request.target

    def zeros_for(value: Tensor) -> Tensor:
        shape = (batch, *value.shape[1:]) if value is images else value.shape
        memory = torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=_memory_format(value))
        return memory.zero_()

    if target is not None and not callable(target):
        targets_per_image = target.shape[1:] if isinstance(target, torch.Tensor) else ()
        target = torch.zeros(batch, *targets_per_image, dtype=torch.long, device=images.device)
    geometry = replace(request.geometry, batch=batch)
    return replace(request, inputs=request.inputs.map(zeros_for), geometry=geometry, target=target)


class RecordedExplanation:
    """A recording of ``explain``: ``replay`` reads ``static_request`` and overwrites ``static_explanation``.

    Args:
        request: the first request; the recording answers all requests with the same key.
        batch: the batch size to record; a smaller batch is padded with zeros.
        explain: the function to record.
        recorder: records it.
    """

    def __init__(
        self, request: Request, batch: int, explain: Callable[[Request], Explanation], recorder: Recorder
    ) -> None:
        # Static images from this index on are zeros.
        self._filled = 0
        with recorder.side_stream():
            self.static_request = _static_request(request, batch)
            self.copy_in(request)
            self.static_explanation, self.replay = recorder.record(lambda: explain(self.static_request))

    def accepts(self, request: Request) -> bool:
        """Whether the requested classes exist. Classes in device memory are not checked: the host would wait."""
        target = request.target
        if target is None or callable(target) or (isinstance(target, torch.Tensor) and target.device.type != "cpu"):
            return True
        classes = as_class_logits(self.static_explanation.logits, self.static_request.geometry.batch).shape[1]
        lowest, highest = (target, target) if isinstance(target, int) else map(int, target.aminmax())
        return bool(0 <= lowest and highest < classes)

    def copy_in(self, request: Request) -> None:
        """Copy the inputs and targets of ``request`` into static memory."""
        batch = request.geometry.batch
        for static, value in zip(self.static_request.inputs.tensors, request.inputs.tensors, strict=True):
            destination = static if static.shape == value.shape else static[:batch]
            destination.copy_(value, non_blocking=True)
        if self._filled > batch:
            self.static_request.images[batch : self._filled].zero_()
        self._filled = batch
        if isinstance(self.static_request.target, torch.Tensor):
            destination = self.static_request.target[:batch]
            if isinstance(request.target, torch.Tensor):
                destination.copy_(request.target, non_blocking=True)
            else:
                destination.fill_(request.target)

    def copy_out(self, batch: int) -> Explanation:
        """A copy of the results for the first ``batch`` images, which the next replay does not overwrite."""

        def copy_of(value: Tensor) -> Tensor:
            return (value[:batch] if self.static_request.geometry.batch != batch else value).clone()

        static = self.static_explanation
        target = None if static.target is None else copy_of(static.target)
        results = {name: copy_of(getattr(static, name)) for name in _PER_IMAGE_RESULTS}
        return replace(static, logits=map_tensors(static.logits, copy_of), target=target, **results)

    def images_are_independent(self) -> bool:
        """Whether the first image's score has the same bits whatever images follow. The host waits for the device."""
        scores = []
        for value in (0, 1):
            self.static_request.images[1:].fill_(value)
            self.replay()
            scores.append(self.static_explanation.score[0].nan_to_num().clone())
        self._filled = self.static_request.geometry.batch
        return torch.equal(*scores)
