"""What goes into the model: the model itself and its inputs, checked before anything runs.

Knows nothing of layers, scores or maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .eager import eager_module
from .supported import refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Inputs:
    """What the model is called with: ``model(*args, **kwargs)``."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among them."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, torch.Tensor)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same inputs with every tensor ``t`` replaced by ``change(t)``."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, torch.Tensor) else value

        return Inputs(tuple(map(changed, self.args)), {name: changed(value) for name, value in self.kwargs.items()})


def unwrap_model(model: Any) -> nn.Module:
    """The module to run and to put hooks on: the one inside what ``torch.compile`` and DistributedDataParallel wrap.

    A wrapper with hooks of its own is kept, because they belong to the prediction.

    Raises:
        TypeError: not an ``nn.Module``, or one that cannot be explained.
    """
    while (inside := _inside(model)) is not model and not _hooked(model):
        model = inside
    refuse(model)
    return model


def _inside(model: Any) -> Any:
    # Run through this wrapper, a forward without a backward would break the next training step.
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else eager_module(model)


def _hooked(model: nn.Module) -> bool:
    return any((model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks))


class InputAxes:
    """What a model's convolutions say of the images it takes.

    Attributes:
        rank: how many sides they have: one or three if all convolutions say so, else two.
        channels: how many each convolution takes.
        patches: the strides of those that have any: one of them cuts the images into patches, if they are cut.
    """

    def __init__(self, model: nn.Module) -> None:
        found = convolutions(model)
        strides = {sides_of(each, each.stride) for each in found}
        ranks = {len(each) for each in strides}
        self.rank = ranks.pop() if len(ranks) == 1 else 2
        self.channels = [each.in_channels for each in found]
        self.patches = tuple(sorted(each for each in strides if len(each) == self.rank and math.prod(each) > 1))

    def sides(self, images: Tensor) -> tuple[int, ...]:
        """The sides of ``images``: all axes but those of batch and channels.

        Channels are the second axis, unless no convolution takes as many and the first takes what one other axis has:
        models that put them in front themselves take videos (B,T,C,H,W), or pictures (B,H,W,C).
        """
        if images.dim() > 3 and self.channels and images.shape[1] not in self.channels:
            axes = [axis for axis in range(2, images.dim()) if images.shape[axis] == self.channels[0]]
            if len(axes) == 1:
                return tuple(side for axis, side in enumerate(images.shape) if axis not in (0, axes[0]))
        return tuple(images.shape[2:])


_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_SHAPES = {1: ("(B,C,L)", "(C,L) for one series"), 2: ("(B,C,H,W)", "(C,H,W) for one image")}
_SHAPES[3] = ("(B,C,D,H,W)", "(C,D,H,W) for one volume")


def convolutions(model: nn.Module) -> list[Convolution]:
    """Those in a model, transposed ones apart."""
    return [each for each in model.modules() if isinstance(each, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def sides_of(convolution: Convolution, given: Any) -> tuple[int, ...]:
    """A stride or kernel as one number per side; it may have been set to a list, or to one number for all."""
    rank = next(rank for kind, rank in _CONVOLUTIONS.items() if isinstance(convolution, kind))
    return tuple(given) if isinstance(given, (tuple, list)) else (given,) * rank


def check_inputs(model: nn.Module, rank: int, images: Any) -> tuple[Inputs, Tensor]:
    """What to call the model with, and the images (B,C,H,W) among it: ``rank`` sides, of series one, of volumes three.

    Raises:
        TypeError, ValueError: no floating tensor of such a shape, or not on the model's device.
    """
    if isinstance(images, Mapping):
        inputs = Inputs((), dict(images))
    elif isinstance(images, (tuple, list)):
        inputs = Inputs(tuple(images), {})
    else:
        if not isinstance(images, torch.Tensor):
            raise TypeError(f"images is a {type(images).__name__}; give a floating tensor (B,C,H,W)")
        main = images.unsqueeze(0) if images.dim() == rank + 1 else images
        _check_images(model, main, images, rank)
        return Inputs((main,), {}), main
    for value in inputs.tensors:
        if value.dim() == rank + 2:
            _check_images(model, value, value, rank)
            return inputs, value
    raise ValueError(
        f"none of the model's inputs is a tensor {_SHAPES[rank][0]}; give the images among them, and a list of images "
        "as one tensor (torch.stack)"
    )


def _check_images(model: nn.Module, main: Tensor, given: Tensor, rank: int) -> None:
    if main.dim() != rank + 2 or 0 in main.shape[1:]:
        several, one = _SHAPES[rank]
        raise ValueError(f"images has shape {tuple(given.shape)}; expected {several}, or {one}")
    if not main.dtype.is_floating_point:
        raise TypeError(
            f"images has dtype {main.dtype}; expected floating values prepared as the model expects them, for example "
            "images.float() / 255 and then its mean and standard deviation"
        )
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.is_inference():
        raise ValueError(
            "the model was made inside inference_mode, and its parameters can never take part in a gradient; make or "
            "load it outside"
        )
    if parameter is not None and parameter.device != main.device:
        devices = {each.device for each in (*model.parameters(), *model.buffers())}
        if main.device not in devices:
            raise ValueError(
                f"images is on {main.device} but the model is on {', '.join(sorted(map(str, devices)))}; "
                f"move them with images.to({str(parameter.device)!r})"
            )
