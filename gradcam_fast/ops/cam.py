"""The op as a user calls it: checks, then the fused kernel where there is one, else the reference.

Knows nothing of models; what the numbers mean is written in ``reference.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.compiler import is_compiling

from . import reference
from .arguments import METHODS, NORMALIZATIONS, check_choice, check_maps, check_relu, check_size
from .backend import kernel_for, load, warn_if_reference

if TYPE_CHECKING:
    from torch import Tensor

    from .arguments import Size

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
    """Turn activations and gradients into heatmaps in one pass; the same function as :func:`reference.cam`, compiled.

    Arguments, results and errors are those of :func:`gradcam_fast.reference.cam`. float64, series and volumes run
    there too. The result for an image has the same bits alone or in a batch, on any number of threads. No result
    requires grad.

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
    # Checks in Python take as long as the kernel needs for one image. So what is right goes straight through: the
    # operator refuses what it cannot read, and the checks then say it in a sentence. After a model's pass none of this
    # code is in the cache, and asking for device.type alone takes 5 us.
    failed = None
    if not is_compiling():
        try:
            if type(size) is int:
                height = width = size
            else:
                height, width = size if type(size) in (tuple, list) else ()  # type: ignore[misc]
            plain = type(height) is int and type(width) is int and type(relu) is bool
            if plain and ((_ON_CPU and activations.is_cpu) or (_ON_CUDA and activations.is_cuda)):
                return _operator(  # type: ignore[misc]
                    activations, gradients, height, width, _METHOD[method], _NORMALIZATION[normalize], relu
                )
        except RuntimeError as error:
            # Without the traceback, which leads back to these very maps and would keep them.
            failed = error.with_traceback(None)
        except Exception:  # whatever it was, it happens again below
            pass
    check_choice("method", method, METHODS)
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_relu(relu)
    check_maps(activations, gradients)
    sides = check_size(size, activations.dim() - 2)
    if kernel_for(activations.device.type) and activations.dtype != torch.float64 and len(sides) == 2:
        if failed is not None:  # memory, say
            raise failed
        return _operator(  # type: ignore[misc]
            activations, gradients, *sides, _METHOD[method], _NORMALIZATION[normalize], bool(relu)
        )
    warn_if_reference(activations.device.type)
    return reference.cam(activations, gradients, sides, method=method, normalize=normalize, relu=relu)


def _fake(
    activations: Tensor, gradients: Tensor, height: int, width: int, method: int, normalize: int, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(activations.device == gradients.device)
    maps = gradients.shape[:-3]
    heatmap = activations.new_empty((*maps, height, width), dtype=torch.float32)
    return heatmap, heatmap.new_empty(maps), heatmap.new_empty(maps)


load()
_ON_CPU, _ON_CUDA = map(kernel_for, ("cpu", "cuda"))
_operator = None
if hasattr(torch.ops.gradcam_fast, "cam"):
    _operator = torch.ops.gradcam_fast.cam.default
    torch.library.register_fake("gradcam_fast::cam", _fake)
    # No formula for a gradient of the map: autograd is passed over, so that no result can require grad.
    _autograd = torch.library.Library("gradcam_fast", "IMPL")
    _autograd.impl("cam", torch.library.fallthrough_kernel, "Autograd")
