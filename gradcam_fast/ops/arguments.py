"""What every implementation of the op accepts: the names of its choices and the checks of its arguments.

Knows nothing of models, of formulas or of what runs them.
"""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    Size = int | Sequence[int]

# csrc/cam_math.h numbers these in this order.
METHODS = ("gradcam", "gradcam++", "xgradcam", "hirescam", "elementwise", "layercam")
NORMALIZATIONS = ("minmax", "max", "none")

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``; the message lists them."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}")


def check_relu(relu: object) -> None:
    """Raise TypeError unless ``relu`` is true or false; a word such as "no" would count as true."""
    if relu not in (True, False):
        raise TypeError(f"relu={relu!r} is a {type(relu).__name__}; give True, or False to keep negative evidence")


def check_size(size: Size, rank: int = 2) -> tuple[int, ...]:
    """``size`` as (height, width), or as many sides as ``rank`` says; an integer means that all are alike."""
    sides = (size,) * rank if is_integer(size) else size
    if not isinstance(sides, (tuple, list)) or len(sides) != rank or not all(map(is_integer, sides)):
        names = ", ".join(_SIDES[-rank:])
        raise TypeError(f"size={size!r} is not a size; give an integer or {_NUMBERS[rank]} ({names})")
    if min(sides) < 1:
        shown = ", ".join(map(str, sides))
        raise ValueError(f"size=({shown}) has a side below 1; give the heatmap at least one pixel per side")
    return tuple(sides)


_SIDES = ("depth", "height", "width")
_NUMBERS = {1: "one in a tuple", 2: "two integers", 3: "three integers"}


def is_integer(value: object) -> bool:
    """Whether ``value`` is an integer of any kind (Python, numpy, symbolic), and not a bool."""
    if isinstance(value, bool):
        return False
    # The plain types first: torch.compile traces no further, and knows nothing of abstract ones.
    return isinstance(value, (int, torch.SymInt)) or isinstance(value, Integral)


def check_maps(activations: Tensor, gradients: Tensor) -> None:
    """Raise unless the two are matching feature maps of shape (B,C,h,w), gradients also (B,K,C,h,w).

    One or three axes instead of h and w are series and volumes.
    """
    for name, maps in (("activations", activations), ("gradients", gradients)):
        if not isinstance(maps, torch.Tensor):
            raise TypeError(f"{name} is a {type(maps).__name__}; give a tensor (B,C,h,w)")
        if maps.dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {maps.dtype}; give float32, float16, bfloat16 or float64")
    if activations.dim() not in (3, 4, 5) or 0 in activations.shape[1:]:
        raise ValueError(
            f"activations has shape {_shape(activations)}; expected (B,C,h,w), or (B,C,l) or (B,C,d,h,w), with at "
            "least one channel and position"
        )
    expected = activations.shape
    found = gradients.shape
    if gradients.dim() == activations.dim() + 1 and found[1] > 0:
        found = torch.Size((found[0], *found[2:]))
    if found != expected:
        b, *rest = expected
        raise ValueError(
            f"gradients has shape {_shape(gradients)}, which does not match activations {_shape(activations)}; "
            f"expected {_shape(activations)} or, for K targets, ({b}, K, {', '.join(map(str, rest))})"
        )
    if activations.dtype != gradients.dtype:
        raise TypeError(
            f"activations is {activations.dtype} but gradients is {gradients.dtype}; convert one to the other's dtype"
        )
    if activations.device != gradients.device:
        raise ValueError(
            f"activations is on {activations.device} but gradients is on {gradients.device}; move one to the other's"
        )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
