"""The model and the inputs it is called with, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .eager import eager_module
from .supported import check_supported

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

__all__ = ["ImageAxes", "Inputs", "check_inputs", "convolutions", "per_side", "unwrap_model"]

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}

# By the number of sides: the shape of a batch, and of a single input.
_SHAPES = {
    1: ("(B,C,L)", "(C,L) for one series"),
    2: ("(B,C,H,W)", "(C,H,W) for one image"),
    3: ("(B,C,D,H,W)", "(C,D,H,W) for one volume"),
}


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of the model: ``model(*args, **kwargs)``."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, torch.Tensor)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same arguments with every tensor ``t`` replaced by ``function(t)``."""

        def mapped(value: Any) -> Any:
            return function(value) if isinstance(value, torch.Tensor) else value

        return Inputs(tuple(map(mapped, self.args)), {name: mapped(value) for name, value in self.kwargs.items()})


def unwrap_model(model: Any) -> nn.Module:
    """The module to run and to hook: the one inside the wrappers of ``torch.compile`` and DistributedDataParallel.

    A wrapper with hooks of its own is kept, because its hooks belong to the prediction.

    Raises:
        TypeError: not an ``nn.Module``, or one that cannot be explained.
    """
    while (inside := _wrapped(model)) is not model and not _has_hooks(model):
        model = inside
    check_supported(model)
    return model


def _wrapped(model: Any) -> Any:
    # Run through this wrapper, a forward without a backward would break the next training step.
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else eager_module(model)


def _has_hooks(model: nn.Module) -> bool:
    return any((model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks))


class ImageAxes:
    """What a model's convolutions tell about the images it takes.

    Attributes:
        rank: the number of sides: 1 (series), 2 (images) or 3 (volumes); 2 when the convolutions disagree.
        channels: the input channels of each convolution.
        patches: the strides above 1, (h,w) each; one of them is the patch size if the model cuts images into patches.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = convolutions(model)
        strides = {per_side(layer, layer.stride) for layer in layers}
        ranks = {len(stride) for stride in strides}
        self.rank = ranks.pop() if len(ranks) == 1 else 2
        self.channels = [layer.in_channels for layer in layers]
        self.patches = tuple(sorted(stride for stride in strides if len(stride) == self.rank and math.prod(stride) > 1))

    def sides(self, images: Tensor) -> tuple[int, ...]:
        """The sides of ``images``: all axes but batch and channels.

        Channels are axis 1, unless no convolution takes that many and exactly one other axis fits the first
        convolution: some models move the channels themselves and take videos (B,T,C,H,W) or images (B,H,W,C).
        """
        if images.dim() > 3 and self.channels and images.shape[1] not in self.channels:
            channel_axes = [axis for axis in range(2, images.dim()) if images.shape[axis] == self.channels[0]]
            if len(channel_axes) == 1:
                return tuple(side for axis, side in enumerate(images.shape) if axis not in (0, channel_axes[0]))
        return tuple(images.shape[2:])


def convolutions(model: nn.Module) -> list[Convolution]:
    """The convolutions in a model, transposed ones left out."""
    return [module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def per_side(convolution: Convolution, value: Any) -> tuple[int, ...]:
    """A stride or kernel size as one number per side; it may be a list, or one number for all sides."""
    rank = next(rank for kind, rank in _CONVOLUTIONS.items() if isinstance(convolution, kind))
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank


def check_inputs(model: nn.Module, rank: int, images: Any) -> tuple[Inputs, Tensor]:
    """The arguments to call the model with, and the images (B,C,*sides) among them, which have ``rank`` sides.

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
        batch = images.unsqueeze(0) if images.dim() == rank + 1 else images
        _check_images(model, batch, images, rank)
        return Inputs((batch,), {}), batch
    for value in inputs.tensors:
        if value.dim() == rank + 2:
            _check_images(model, value, value, rank)
            return inputs, value
    raise ValueError(
        f"none of the model's inputs is a tensor {_SHAPES[rank][0]}; give the images among them, and a list of images "
        "as one tensor (torch.stack)"
    )


def _check_images(model: nn.Module, batch: Tensor, images: Tensor, rank: int) -> None:
    if batch.dim() != rank + 2 or 0 in batch.shape[1:]:
        several, single = _SHAPES[rank]
        raise ValueError(f"images has shape {tuple(images.shape)}; expected {several}, or {single}")
    if not batch.dtype.is_floating_point:
        raise TypeError(
            f"images has dtype {batch.dtype}; expected floating values prepared as the model expects them, for example "
            "images.float() / 255 and then its mean and standard deviation"
        )
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.is_inference():
        raise ValueError(
            "the model was made inside inference_mode, and its parameters can never take part in a gradient; make or "
            "load it outside"
        )
    if parameter is not None and parameter.device != batch.device:
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        if batch.device not in devices:
            raise ValueError(
                f"images is on {batch.device} but the model is on {', '.join(sorted(map(str, devices)))}; "
                f"move them with images.to({str(parameter.device)!r})"
            )
