"""The public op ``cam``: calls the fused kernel where one is built, otherwise the reference. Also its fake kernel.

The formulas are in ``reference.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.compiler import is_compiling

from . import reference
from .arguments import METHODS, NORMALIZATIONS, SCALES, check_choice, check_maps, check_relu, check_size
from .backend import kernel_for, load, warn_if_reference

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Size

__all__ = ["cam"]

_METHOD = {name: number for number, name in enumerate(METHODS)}
_NORMALIZATION = {name: number for number, name in enumerate(NORMALIZATIONS)}


def cam(
    activations: Tensor,
    gradients: Tensor,
    size: Size,
    *,
    method: str = "gradcam",
    normalize: str = "minmax",
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn activations and gradients of one layer into heatmaps, with the fused kernel where one is built.

    :func:`gradcam_fast.reference.cam` is the same function in plain PyTorch; it runs for float64, series and volumes,
    and where no kernel is built. The result for an image has the same bits alone or in a batch, on any number of
    threads. No result requires grad.

    Args:
        activations: (B,C,h,w), float32, float16, bfloat16 or float64, with any strides; or series (B,C,l), or volumes
            (B,C,d,h,w).
        gradients: d score / d activations, (B,C,h,w), or (B,K,C,h,w) for K targets; dtype and device as activations.
        size: (H,W) of the heatmap in pixels, or one integer for a square.
        method: ``gradcam``, ``gradcam++``, ``xgradcam``, ``hirescam``, ``elementwise`` or ``layercam``; formulas and
            papers in :func:`gradcam_fast.reference.raw_map`.
        normalize: ``minmax`` gives (x - min) / (max - min), ``max`` gives x / max, ``none`` gives x, ``signed`` gives
            x / max(|x|) in [-1,1], without the ReLU: what speaks against the class is negative.
        relu: whether negative values of the map become 0, before upsampling.

    Returns:
        heatmap (B,H,W) or (B,K,H,W), in [0,1] under ``minmax``; raw_min and raw_max, (B,) or (B,K), the extremes of
        the upsampled map before normalisation. More in :func:`gradcam_fast.reference.cam`.

    Raises:
        TypeError, ValueError: an unknown method or normalisation, activations and gradients that do not match, a size
            below 1.
        torch.OutOfMemoryError: there is no memory for the heatmaps; the message says how much they need.

    Example:
        >>> import torch, gradcam_fast
        >>> activations = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> heatmap, low, high = gradcam_fast.cam(activations, torch.ones(1, 1, 2, 2), size=2)
        >>> heatmap * 3
        tensor([[[0., 1.],
                 [2., 3.]]])
        >>> low.item(), high.item()
        (0.0, 3.0)
    """
    # The checks in Python take as long as the kernel takes for one image. So the operator is called first, and the
    # checks run only if it refuses its arguments, to say in a sentence what is wrong. Only cheap attributes are read
    # here: after a model's forward this code is not in the CPU's caches, and reading device.type alone takes 5 us.
    failed = None
    if not is_compiling():
        try:
            if type(size) is int:
                height = width = size
            else:
                height, width = size if type(size) in (tuple, list) else ()  # type: ignore[misc]
            are_plain = type(height) is int and type(width) is int and type(relu) is bool
            if are_plain and ((_ON_CPU and activations.is_cpu) or (_ON_CUDA and activations.is_cuda)):
                return _operator(  # type: ignore[misc]
                    activations, gradients, height, width, _METHOD[method], _NORMALIZATION[normalize], relu
                )
        except RuntimeError as error:
            # The traceback refers to the maps and would keep them alive.
            failed = error.with_traceback(None)
        except Exception:  # the checks below raise an error with a better message
            pass
    check_choice("method", method, METHODS)
    check_choice("normalize", normalize, SCALES)
    check_relu(relu)
    check_maps(activations, gradients)
    if normalize == "signed":
        raw, low, high = cam(activations, gradients, size, method=method, normalize="none", relu=False)
        return reference.normalise(raw, low, high, "signed").detach(), low, high
    sides = check_size(size, activations.dim() - 2)
    if kernel_for(activations.device.type) and activations.dtype != torch.float64 and len(sides) == 2:
        if failed is not None:  # the arguments are right, so the failure has another cause, such as a lack of memory
            if "to work in" in str(failed):
                raise torch.OutOfMemoryError(
                    f"no memory to work in for gradients of shape {tuple(gradients.shape)} on {activations.device}; "
                    "give fewer images or targets at once"
                )
            if "out of memory" in str(failed):
                shape = (*gradients.shape[:-3], *sides)
                raise torch.OutOfMemoryError(
                    f"no memory for heatmaps of shape {shape}, {4 * math.prod(shape):,} bytes on {activations.device}; "
                    "give a smaller size, or fewer images or targets at once"
                )
            raise failed
        return _operator(  # type: ignore[misc]
            activations, gradients, *sides, _METHOD[method], _NORMALIZATION[normalize], bool(relu)
        )
    warn_if_reference(activations.device.type)
    return reference.cam(activations, gradients, sides, method=method, normalize=normalize, relu=relu)


def _fake(
    activations: Tensor, gradients: Tensor, height: int, width: int, method: int, normalize: int, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # Refuses what the kernels refuse, so that the reference is traced there.
    torch._check(activations.device == gradients.device)
    torch._check(activations.dim() == 4 and activations.dtype == gradients.dtype != torch.float64)
    maps = gradients.shape[:-3]
    heatmap = activations.new_empty((*maps, height, width), dtype=torch.float32)
    return heatmap, heatmap.new_empty(maps), heatmap.new_empty(maps)


load()
_ON_CPU, _ON_CUDA = map(kernel_for, ("cpu", "cuda"))
_operator = None
if hasattr(torch.ops.gradcam_fast, "cam"):
    _operator = torch.ops.gradcam_fast.cam.default
    torch.library.register_fake("gradcam_fast::cam", _fake)
    # The op has no derivative: it skips autograd, so that no result requires grad.
    _autograd = torch.library.Library("gradcam_fast", "IMPL")
    _autograd.impl("cam", torch.library.fallthrough_kernel, "Autograd")
