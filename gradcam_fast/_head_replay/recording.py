"""A recording of one forward up to a layer, and its replays on changed activations of that layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .._capture.containers import all_tensors, feature_tensor, map_tensors, replace_tensor
from .._model.eager import eager_module
from .._model.own_hooks import OwnHooks
from ..exceptions import HeadNotReplayable, LayerNotRun
from .module_calls import observed_calls

if TYPE_CHECKING:
    from torch import Tensor

    from .._model.inputs import Inputs
    from .._model.target_layer import TargetLayer

__all__ = ["Recording", "record", "rows_of"]


class _Ended(NamedTuple):
    """A call that ended before the layer's, and what it returned."""

    module: nn.Module
    output: Any


@dataclass(frozen=True)
class Recording:
    """One image's forward up to a call of a layer.

    Attributes:
        model: the model.
        inputs: its inputs, of one image.
        layer: the layer.
        frames: for each call that was still running when the layer's ended, the outermost first, the calls inside it
            that had ended.
        output: what the layer returned.
        returned: what the model returned.
        copies: whether what was recorded is copied for each row, as the model's own code writes into it, or expanded.
    """

    model: nn.Module
    inputs: Inputs
    layer: TargetLayer
    frames: list[list[_Ended]]
    output: Any
    returned: Any
    copies: bool = False

    @property
    def activations(self) -> Tensor:
        """The layer's output as it is: planes, channels last, or tokens."""
        maps = feature_tensor(self.output)
        assert maps is not None
        return maps

    def replay(self, activations: Tensor, count: int) -> Any:
        """What the model returns for ``count`` changed activations of the image, as of a batch of ``count`` images.

        Args:
            activations: in the shape that the layer would return for that batch; the model may write into them.

        Raises:
            HeadNotReplayable: the model calls other modules than in the recording.
        """

        def rows(tensor: Tensor) -> Tensor:
            expanded = rows_of(tensor, count)
            # One row is the recorded tensor itself, into which the model must not write.
            is_recorded = count == 1 and 0 not in expanded.stride()
            return expanded.clone() if self.copies or is_recorded else expanded

        changed = replace_tensor(self.output, self.activations, activations)
        changed = map_tensors(changed, lambda tensor: tensor if tensor is activations else rows(tensor))
        with _watched(self.layer.module, _Replay(self.layer, self.frames, changed, rows)):
            return self.inputs.map(rows)(self.model)


def record(model: nn.Module, inputs: Inputs, layer: TargetLayer, *, rows: int = 2) -> Recording:
    """Run the model on one image, and record it up to a call of the layer: the last, or the one that it names.

    In most networks nothing behind the layer comes from what modules returned before it: modules read that, and they
    are answered, too. So at first none of it is kept. A replay in which all of it is NaN tells whether it is needed: if
    NaN is returned, the model runs once more, and what its modules return is kept.

    Buffers and random numbers are the caller's to keep.

    Args:
        rows: of the replay that tells, at least 1; the replays to come have the memory of as many at least.

    Raises:
        LayerNotRun: the layer did not run.
    """
    recording = _run(model, inputs, layer, _blank)
    try:
        is_complete = _reads_no_blank(recording, rows)
    except RuntimeError as error:
        if "single memory location" not in str(error):
            raise
        # The model's own code, between its modules, writes into what these returned.
        recording = replace(recording, copies=True)
        is_complete = _reads_no_blank(recording, rows)
    return recording if is_complete else replace(_run(model, inputs, layer, _copy), copies=recording.copies)


def _run(model: nn.Module, inputs: Inputs, layer: TargetLayer, keep: Callable[[Tensor], Tensor]) -> Recording:
    """A recording of what ``keep`` makes of each tensor that a module returned."""
    recorder = _Recorder(layer, keep)
    with _watched(layer.module, recorder):
        returned = inputs.map(torch.Tensor.clone)(model)
    if recorder.output is None:
        raise LayerNotRun(layer.name)
    return Recording(model, inputs, layer, recorder.frames, recorder.output, returned)


def _copy(tensor: Tensor) -> Tensor:
    """A copy: what follows in the forward may write into the tensor."""
    return tensor.detach().clone()


def _blank(tensor: Tensor) -> Tensor:
    """As many NaN in the memory of one, or a copy of what is not floating."""
    return tensor.new_full((), torch.nan).expand_as(tensor) if tensor.is_floating_point() else _copy(tensor)


def _reads_no_blank(recording: Recording, rows: int) -> bool:
    """Whether a replay of what is blank returns no NaN.

    Raises:
        RuntimeError: it writes into several places of one memory location.
    """
    # Expanded to several rows, as in the replays to come, whatever is written into shows.
    activations = rows_of(recording.activations, rows).clone()
    try:
        returned = [tensor for tensor in all_tensors(recording.replay(activations, rows)) if tensor.is_floating_point()]
    except Exception as error:
        if "single memory location" in str(error):
            raise
        return False  # something reads them, and refuses NaN
    return bool(returned) and all(bool(tensor.isfinite().all()) for tensor in returned)


class _watched:
    """Calls go through an observer. The layer has a hook, too: without one, fused attention skips its modules."""

    def __init__(self, module: nn.Module, observer: Any) -> None:
        self.module, self.hooks, self.calls = module, OwnHooks(), observed_calls(observer)

    def __enter__(self) -> None:
        self.hooks.__enter__()
        self.hooks.add(self.module, lambda module, args, output: None)
        self.calls.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.hooks.__exit__(*raised)
        self.calls.__exit__(*raised)


class _Recorder:
    """Keeps something of what each call returned, inside the call around it, and what the layer's call returned."""

    def __init__(self, layer: TargetLayer, keep: Callable[[Tensor], Tensor]) -> None:
        self.layer, self.keep = layer, keep
        self.calls = 0
        self.running: list[list[_Ended]] = [[]]
        self.frames: list[list[_Ended]] = []
        self.output: Any = None

    def __call__(self, module: nn.Module, run: Callable[[], Any]) -> Any:
        self.running.append([])
        try:
            output = run()
        finally:
            self.running.pop()
        if eager_module(module) is self.layer.module:
            self.calls += 1
            if self.layer.call in (None, -1, self.calls - 1):
                self.frames, self.output = [list(ended) for ended in self.running], map_tensors(output, _copy)
        self.running[-1].append(_Ended(module, map_tensors(output, self.keep)))
        return output


class _Replay:
    """Answers the calls that had ended in the recording, runs those that had not, and changes the layer's output."""

    def __init__(
        self, layer: TargetLayer, frames: list[list[_Ended]], changed: Any, rows: Callable[[Tensor], Tensor]
    ) -> None:
        self.layer, self.frames, self.changed, self.rows = layer, frames, changed, rows
        self.depth = 0
        self.answered = [0] * len(frames)
        self.behind = False

    def __call__(self, module: nn.Module, run: Callable[[], Any]) -> Any:
        if self.behind:
            return run()
        ended, place = self.frames[self.depth], self.answered[self.depth]
        if place < len(ended):
            if module is not ended[place].module:
                raise HeadNotReplayable(self.layer.name, "its modules run in another order")
            self.answered[self.depth] += 1
            return map_tensors(ended[place].output, self.rows)
        if self.depth < len(self.frames) - 1:
            self.depth += 1
            try:
                return run()
            finally:
                self.depth -= 1
        if eager_module(module) is not self.layer.module:
            raise HeadNotReplayable(self.layer.name, "its modules run in another order")
        self.behind = True
        return self.changed


def rows_of(tensor: Tensor, count: int) -> Tensor:
    """One image's tensor for ``count`` images, without a copy; tensors without an axis of images stay as they are."""
    # Transformers may put the tokens before the batch.
    axis = next((axis for axis in range(min(2, tensor.dim())) if tensor.shape[axis] == 1), None)
    if axis is None:
        return tensor
    return tensor.expand(*tensor.shape[:axis], count, *tensor.shape[axis + 1 :])
