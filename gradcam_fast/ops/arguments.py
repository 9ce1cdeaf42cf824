"""The names of all methods and normalisations, and the checks of arguments that fused op and reference share."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Size

# csrc/common/methods.h numbers methods and normalisations in this order.
METHODS = ("gradcam", "gradcam++", "xgradcam", "hirescam", "elementwise", "layercam")
NORMALIZATIONS = ("minmax", "max", "none")
# The scales of a heatmap: those that the kernels know by their numbers, and one that is made of "none" in PyTorch.
SCALES = (*NORMALIZATIONS, "signed")

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``; the message lists them."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}")


def check_relu(relu: object) -> None:
    """Raise TypeError unless ``relu`` is True or False; a string such as "no" would otherwise count as true."""
    if relu not in (True, False):
        raise TypeError(f"relu={relu!r} is a {type(relu).__name__}; give True, or False to keep negative values")


def check_size(size: Size, rank: int = 2) -> tuple[int, ...]:
    """Return ``size`` as a tuple of ``rank`` sides, such as (height, width); one integer stands for equal sides.

    Raises:
        TypeError: ``size`` is neither an integer nor a tuple or list of ``rank`` integers.
        ValueError: a side below 1, or of more than 2^31 - 1 pixels.
    """
    sides: Any = (size,) * rank if is_integer(size) else size
    if not isinstance(sides, (tuple, list)) or len(sides) != rank or not all(map(is_integer, sides)):
        names = ", ".join(_SIDES[-rank:])
        raise TypeError(f"size={size!r} is not a size; give one integer, or {_SIDES_IN_WORDS[rank]} ({names})")
    # One by one: min and max would compare symbolic sides with each other, and a trace would keep the order it saw.
    if any(side < 1 for side in sides):
        shown = ", ".join(map(str, sides))
        raise ValueError(f"size=({shown}) has a side below 1; every side of the heatmap needs at least one pixel")
    if any(side > _LONGEST_SIDE for side in sides):
        shown = ", ".join(map(str, sides))
        raise ValueError(f"size=({shown}) has a side of more than {_LONGEST_SIDE} pixels; give a smaller size")
    return tuple(sides)


_LONGEST_SIDE = 2**31 - 1
_SIDES = ("depth", "height", "width")
_SIDES_IN_WORDS = {1: "a tuple of one", 2: "two integers", 3: "three integers"}


def is_integer(value: object) -> bool:
    """Tell whether ``value`` is an integer of any kind (Python, numpy, symbolic) and not a bool."""
    if isinstance(value, bool):
        return False
    # Concrete types first: torch.compile can trace these, and cannot trace an abstract class such as Integral.
    return isinstance(value, (int, torch.SymInt)) or isinstance(value, Integral)


def check_maps(activations: Tensor, gradients: Tensor) -> None:
    """Raise unless activations (B,C,h,w) and gradients (B,C,h,w), or (B,K,C,h,w) for K targets, match.

    Series (B,C,l) and volumes (B,C,d,h,w) are feature maps too.

    Raises:
        TypeError: one is not a tensor or has a dtype that is not in ``DTYPES``, or their dtypes differ.
        ValueError: their shapes or devices do not match.
    """
    for name, maps in (("activations", activations), ("gradients", gradients)):
        if not isinstance(maps, torch.Tensor):
            raise TypeError(f"{name} is a {type(maps).__name__}; give a tensor (B,C,h,w)")
        if kind := kind_without_strides(maps):
            raise TypeError(f"{name} is {kind}; give a dense tensor, such as {name}.to_dense()")
        if maps.dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {maps.dtype}; give float32, float16, bfloat16 or float64")
    if activations.dim() not in (3, 4, 5) or 0 in activations.shape[1:]:
        raise ValueError(
            f"activations has shape {_shape(activations)}; expected (B,C,h,w), (B,C,l) or (B,C,d,h,w) with at least "
            "one channel and one position"
        )
    expected = activations.shape
    shape_per_target = gradients.shape
    if gradients.dim() == activations.dim() + 1 and shape_per_target[1] > 0:
        shape_per_target = torch.Size((shape_per_target[0], *shape_per_target[2:]))
    if shape_per_target != expected:
        b, *rest = expected
        raise ValueError(
            f"gradients has shape {_shape(gradients)}, which does not match activations {_shape(activations)}; "
            f"expected {_shape(activations)} or, for K targets, ({b}, K, {', '.join(map(str, rest))})"
        )
    if activations.dtype != gradients.dtype:
        raise TypeError(
            f"activations has dtype {activations.dtype} but gradients has dtype {gradients.dtype}; convert one of them"
        )
    if activations.device != gradients.device:
        raise ValueError(
            f"activations is on {activations.device} but gradients is on {gradients.device}; move both to one device"
        )


def kind_without_strides(tensor: Tensor) -> str | None:
    """What a tensor is, in words, if it is not an ordinary dense one: nested, sparse or in MKLDNN's layout."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {str(tensor.layout).removeprefix('torch.')}"
    return None


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
