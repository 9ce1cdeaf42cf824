"""The model and the inputs it is called with, checked before anything runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .eager import eager_module
from .recent import Recent
from .supported import check_supported
from .transformers_pipeline import model_inside

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

__all__ = ["ImageAxes", "Inputs", "Taken", "check_inputs", "check_values", "convolutions", "per_side", "unwrap_model"]

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}

# By the number of sides: the shape of a batch, and of a single input.
_SHAPES = {
    1: ("(B,C,L)", "(C,L) for one series"),
    2: ("(B,C,H,W)", "(C,H,W) for one image"),
    3: ("(B,C,D,H,W)", "(C,D,H,W) for one volume"),
}


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of the model: ``model(*args, **kwargs)``.

    Attributes:
        images_at: place or name of the images to explain among the arguments.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    images_at: int | str = 0

    def __call__(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    @property
    def images(self) -> Tensor:
        """The images to explain."""
        images: Tensor = self.kwargs[self.images_at] if isinstance(self.images_at, str) else self.args[self.images_at]
        return images

    @property
    def all_images(self) -> dict[int | str, Tensor]:
        """The arguments with as many axes as the images to explain, by place or name: a model may take several."""
        arguments: dict[int | str, Any] = dict(enumerate(self.args))
        arguments.update(self.kwargs)
        axes = self.images.dim()
        return {
            at: value
            for at, value in arguments.items()
            if isinstance(value, torch.Tensor) and value.dim() == axes and value.dtype.is_floating_point
        }

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, torch.Tensor)]

    def replace(self, images: Mapping[int | str, Tensor]) -> Inputs:
        """The same arguments with others at some places or names."""
        args = tuple(images.get(at, value) for at, value in enumerate(self.args))
        return Inputs(args, {name: images.get(name, value) for name, value in self.kwargs.items()}, self.images_at)

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same arguments with every tensor ``t`` replaced by ``function(t)``."""

        def mapped(value: Any) -> Any:
            return function(value) if isinstance(value, torch.Tensor) else value

        kwargs = {name: mapped(value) for name, value in self.kwargs.items()}
        return Inputs(tuple(map(mapped, self.args)), kwargs, self.images_at)


def unwrap_model(model: Any) -> nn.Module:
    """The module to run and to hook: the one inside pipelines, ``torch.compile`` and DistributedDataParallel.

    A wrapper with hooks of its own is kept, because its hooks belong to the prediction.

    Raises:
        TypeError: not an ``nn.Module``, or one that cannot be explained.
    """
    model = model_inside(model)
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
        """The sides of ``images``: all axes but batch, channels, and the pictures of a sample.

        Channels are axis 1, unless no convolution takes that many and exactly one other axis fits the first
        convolution: some models move the channels themselves and take videos (B,T,C,H,W) or images (B,H,W,C).
        """
        if images.dim() == self.rank + 1:  # no channels
            return tuple(images.shape[1:]) if self.channels else tuple(images.shape[1:-1])
        if self.has_pictures(images):
            return tuple(side for axis, side in enumerate(images.shape) if axis not in (0, *self._picture_axes(images)))
        if self.channels and images.shape[1] not in self.channels:
            channel_axes = [axis for axis in range(2, images.dim()) if images.shape[axis] == self.channels[0]]
            if len(channel_axes) == 1:
                return tuple(side for axis, side in enumerate(images.shape) if axis not in (0, channel_axes[0]))
        return tuple(images.shape[2:])

    def has_pictures(self, images: Tensor) -> bool:
        """Whether each sample is several pictures, such as the frames of a clip: five axes for 2-D convolutions."""
        return self.rank == 2 and images.dim() == 5

    def picture_axis(self, images: Tensor) -> int | None:
        """The axis of the pictures of a sample; None if a sample is one picture."""
        return self._picture_axes(images)[0] if self.has_pictures(images) else None

    def _picture_axes(self, images: Tensor) -> tuple[int, int]:
        """The axes of pictures and of channels: (B,T,C,H,W), unless the first convolution fits another axis alone."""
        fitting = [axis for axis in (2, 1, 4) if self.channels and images.shape[axis] == self.channels[0]]
        channels = fitting[0] if fitting else 2
        return (2 if channels == 1 else 1), channels


def convolutions(model: nn.Module) -> list[Convolution]:
    """The convolutions in a model, transposed ones left out."""
    return [module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def per_side(convolution: Convolution, value: Any) -> tuple[int, ...]:
    """A stride or kernel size as one number per side; it may be a list, or one number for all sides."""
    rank = next(rank for kind, rank in _CONVOLUTIONS.items() if isinstance(convolution, kind))
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank


class Taken(NamedTuple):
    """How a model takes images without channels: whether its first convolution sees (B,C,W,H) of (B,H,W)."""

    transposed: bool


_AS_USUAL = Taken(transposed=False)

_OF_SERIES = (
    ", as the model's convolutions are 2-D; if it makes spectrograms of series itself (torch.stft), explain the part "
    "behind that step on spectrograms"
)

# For each model and shapes of its inputs, if they are no batch with channels of single images: which
# reading the model takes, and how.
_TAKEN: WeakKeyDictionary[nn.Module, Recent[Any, tuple[int, Taken]]] = WeakKeyDictionary()


def check_inputs(
    model: nn.Module, axes: ImageAxes, images: Any, try_inputs: Callable[..., Taken | Exception]
) -> tuple[Inputs, Taken]:
    """The arguments to call the model with, and how it takes the images (B,C,*sides) among them.

    For 2-D networks the images may also be several a sample, (B,T,C,H,W). A tensor that may be one image (C,H,W) or a
    batch without channels (B,H,W) is what the model takes; if its channels do not tell, the model is run.

    Args:
        try_inputs: runs the model once, and returns how it takes the images or what it raises; that is asked once for
            several pictures a sample, and for images without channels.

    Raises:
        TypeError, ValueError: no floating tensor of such a shape, or not on the model's device.
    """
    if isinstance(images, torch.Tensor):
        _check_images(model, images, axes)
        inputs = Inputs((images,), {})
        if images.dim() == axes.rank + 2:
            return inputs, _AS_USUAL
        if images.dim() != axes.rank + 1:
            return _try_in_turn(model, axes, [inputs], try_inputs)
        one = Inputs((images.unsqueeze(0),), {})
        if len(images) > 1 and len(images) in axes.channels:
            return one, _AS_USUAL
        may_be_one = len(images) in axes.channels or not axes.channels
        return _try_in_turn(model, axes, [one, inputs] if may_be_one else [inputs, one], try_inputs)
    if isinstance(images, Mapping):
        arguments: Mapping[Any, Any] = images
        inputs = Inputs((), dict(images))
    elif isinstance(images, (tuple, list)):
        arguments = dict(enumerate(images))
        inputs = Inputs(tuple(images), {})
    else:
        raise TypeError(f"images is a {type(images).__name__}; give a floating tensor (B,C,H,W)")
    tensors = {at: value for at, value in arguments.items() if isinstance(value, torch.Tensor)}
    for at, value in tensors.items():
        if value.dim() == axes.rank + 2:
            _check_images(model, value, axes)
            return replace(inputs, images_at=at), _AS_USUAL
    for at, value in tensors.items():
        if axes.has_pictures(value) or (value.dim() == axes.rank + 1 and value.dtype.is_floating_point):
            _check_images(model, value, axes)
            return _try_in_turn(model, axes, [replace(inputs, images_at=at)], try_inputs)
    raise ValueError(
        f"none of the model's inputs is a tensor {_SHAPES[axes.rank][0]}; give the images among them, and a list of "
        "images as one tensor (torch.stack)"
    )


def _try_in_turn(
    model: nn.Module,
    axes: ImageAxes,
    choices: Sequence[Inputs],
    try_inputs: Callable[..., Taken | Exception],
) -> tuple[Inputs, Taken]:
    """The first of these inputs that the model takes, and how."""
    known = _TAKEN.setdefault(model, Recent())
    key = tuple(tuple(tensor.shape) for tensor in choices[0].tensors)
    answer = known.get(key)
    if answer is None:
        errors = []
        for place, inputs in enumerate(choices):
            taken = try_inputs(model, inputs, per_sample=len(choices) > 1)
            if isinstance(taken, Taken):
                known[key] = answer = place, taken
                break
            errors.append((tuple(inputs.images.shape), taken))
        else:
            several, single = _SHAPES[axes.rank]
            tried = "; ".join(f"of {shape} it said: {type(error).__name__}: {error}" for shape, error in errors)
            raise ValueError(
                f"the model itself refused the images ({tried}); expected {several}, {single}, or, if the model "
                "takes these, several pictures a sample (B,T,C,H,W) or a batch without channels"
            ) from errors[0][1]
    assert answer is not None
    place, taken = answer
    return choices[place], taken


def _check_images(model: nn.Module, images: Tensor, axes: ImageAxes) -> None:
    if kind := _unusable(images):
        raise TypeError(f"images is {kind}; give a dense floating tensor {_SHAPES[axes.rank][0]} with values")
    pictures = axes.has_pictures(images)
    if not (images.dim() in (axes.rank + 1, axes.rank + 2) or pictures) or 0 in images.shape[1:]:
        several, single = _SHAPES[axes.rank]
        way_out = _OF_SERIES if images.dim() == axes.rank == 2 else ""
        raise ValueError(f"images has shape {tuple(images.shape)}; expected {several}, or {single}{way_out}")
    batch = images
    if batch.is_complex():
        raise TypeError(
            f"images has dtype {batch.dtype}; expected real values: give magnitudes, or the real and imaginary parts "
            "as channels, to a model that takes these, or explain the part of this model that is real"
        )
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


def check_values(images: Tensor) -> None:
    """Refuse images without values.

    Raises:
        TypeError: they are fake tensors, as ``torch.export`` and ``torch.compile`` use them.
    """
    fake_tensor = sys.modules.get("torch._subclasses.fake_tensor")
    if fake_tensor is not None and isinstance(images, fake_tensor.FakeTensor):
        raise TypeError("images is a fake tensor, which has no values; explain outside of FakeTensorMode")


def _unusable(images: Tensor) -> str | None:
    """What the images are, in words, if they cannot be explained whatever their shape is."""
    if images.is_nested:
        return "a nested tensor, of images of several sizes; explain them one by one, or resized and stacked"
    if images.layout is not torch.strided:
        return f"a tensor of layout {str(images.layout).removeprefix('torch.')}"
    if images.device.type == "meta":
        return "on the meta device, which has shapes only"
    if torch._C._functorch.is_functorch_wrapped_tensor(images):
        return "inside torch.vmap, grad or another function transform; explain the batch outside of it"
    return None
