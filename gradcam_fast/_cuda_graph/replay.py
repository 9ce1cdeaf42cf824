"""One recorded explanation: the memory it reads, filled with a call's images and targets, and its results cut out.

Knows nothing of how recordings are made, or of when one may be used beyond what two calls must have in common.
"""

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

    from .._capture.capture import Request
    from ..explanation import Explanation
    from .recorder import Recorder

__all__ = ["Replay", "can_be_padded", "key_of", "padded_size"]

_MAPS = ("heatmap", "score", "raw_min", "raw_max", "valid")


def padded_size(batch: int) -> int:
    """The size to which a batch is padded: itself up to 8, then one of four to each doubling, 10, 12, 14, 16, 20 ...

    Example:
        >>> [padded_size(batch) for batch in (1, 7, 8, 9, 17, 32, 100)]
        [1, 7, 8, 10, 20, 32, 112]
    """
    step = 1 << max(0, (batch - 1).bit_length() - 3)
    return -(-batch // step) * step


def can_be_padded(request: Request) -> bool:
    """Whether all that there is one of per image is known: in other inputs and in functions there may be more."""
    return len(request.inputs.args) + len(request.inputs.kwargs) == 1 and not callable(request.target)


def key_of(request: Request, batch: int) -> Any:
    """What two requests have in common if they can be answered by one recording for ``batch`` images.

    Raises:
        TypeError: an input can be compared with no other.
    """
    images, target = request.images, request.target
    asked: Any = request.topk
    if callable(target):
        # Another function may come to lie where this one was. A method is made anew whenever it is named.
        asked = target if inspect.ismethod(target) else weakref.ref(target)
    elif target is not None:
        asked = "classes", tuple(target.shape[1:]) if isinstance(target, torch.Tensor) else ()

    def trait(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return type(value), value
        if value.device != images.device:
            raise TypeError(f"an input is on {value.device} and the images on {images.device}")
        return value.shape[1:] if value is images else value.shape, value.dtype, value.device, _memory_format(value)

    inputs, kind = request.inputs, images.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    key = (batch, *map(trait, inputs.args), *((name, trait(each)) for name, each in inputs.kwargs.items()))
    key = (*key, asked, autocast)
    hash(key)
    return key


def _memory_format(value: Tensor) -> torch.memory_format:
    if not value.is_contiguous():
        for each in (torch.channels_last, torch.channels_last_3d):
            if value.is_contiguous(memory_format=each):
                return each
    return torch.contiguous_format


def _still(request: Request, batch: int) -> Request:
    """The same request about ``batch`` images in memory of its own; images that are not there are zeros."""
    images, target = request.images, request.target

    def kept(value: Tensor) -> Tensor:
        shape = (batch, *value.shape[1:]) if value is images else value.shape
        memory = torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=_memory_format(value))
        return memory.zero_()

    if target is not None and not callable(target):
        each = target.shape[1:] if isinstance(target, torch.Tensor) else ()
        target = torch.zeros(batch, *each, dtype=torch.long, device=images.device)
    geometry = replace(request.geometry, batch=batch)
    return replace(request, inputs=request.inputs.map(kept), geometry=geometry, target=target)


class Replay:
    """A recorded explanation: ``request`` lies where it is read, ``replay`` writes ``answer`` anew.

    Args:
        request: the first to be answered; the recording is for others of its key, too.
        batch: the size it is padded to.
        explained: what is recorded.
        recorder: what records it.
    """

    def __init__(
        self, request: Request, batch: int, explained: Callable[[Request], Explanation], recorder: Recorder
    ) -> None:
        # Images after these are zeros.
        self.filled = 0
        with recorder.aside():
            self.request = _still(request, batch)
            self.fill(request)
            self.answer, self.replay = recorder.record(lambda: explained(self.request))

    def takes(self, request: Request) -> bool:
        """Whether the classes asked for exist. Those in the device's memory are not looked at: the host would wait."""
        target = request.target
        if target is None or callable(target) or (isinstance(target, torch.Tensor) and target.device.type != "cpu"):
            return True
        count = as_class_logits(self.answer.logits, self.request.geometry.batch).shape[1]
        low, high = (target, target) if isinstance(target, int) else map(int, target.aminmax())
        return bool(0 <= low and high < count)

    def fill(self, request: Request) -> None:
        """Write what is asked to where the recording reads it."""
        batch = request.geometry.batch
        for memory, given in zip(self.request.inputs.tensors, request.inputs.tensors, strict=True):
            part = memory if memory.shape == given.shape else memory[:batch]
            part.copy_(given, non_blocking=True)
        if self.filled > batch:
            self.request.images[batch : self.filled].zero_()
        self.filled = batch
        if isinstance(self.request.target, torch.Tensor):
            chosen = self.request.target[:batch]
            if isinstance(request.target, torch.Tensor):
                chosen.copy_(request.target, non_blocking=True)
            else:
                chosen.fill_(request.target)

    def explanation(self, batch: int) -> Explanation:
        """A copy of the answer for the first ``batch`` images, which the next replay leaves alone."""

        def cut(value: Tensor) -> Tensor:
            return (value[:batch] if self.request.geometry.batch != batch else value).clone()

        answer = self.answer
        target = None if answer.target is None else cut(answer.target)
        maps = {name: cut(getattr(answer, name)) for name in _MAPS}
        return replace(answer, logits=map_tensors(answer.logits, cut), target=target, **maps)

    def keeps_images_apart(self) -> bool:
        """Whether an image's score has the same bits whatever images come after it. The host waits for the device."""
        scores = []
        for value in (0, 1):
            self.request.images[1:].fill_(value)
            self.replay()
            scores.append(self.answer.score[0].nan_to_num().clone())
        self.filled = self.request.geometry.batch
        return torch.equal(*scores)
