"""Why no layer is found, or only an early one, in one sentence: what the model does, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from .._model.inputs import convolutions, per_side
from .._model.warning import warn_caller
from ..exceptions import NoLayerFound
from .graph_walk import leaves_behind, nodes_behind

if TYPE_CHECKING:
    from torch import Tensor

    from .trace import Trace
    from .traced_map import TracedMap

__all__ = ["check_what_follows_patches", "cuts_patches", "named_reasons", "no_layer_found"]

_NAME_A_LAYER = "name a layer with layer=..."


def no_layer_found(model: nn.Module, trace: Trace, scores: Tensor) -> NoLayerFound:
    """The error for a trial run without a map that the scores depend on."""
    name = type(model).__name__
    if any("CheckpointFunction" in node.name() for node in nodes_behind([scores.grad_fn])):
        return _reentrant(name)
    reason = trace.layouts.unreadable
    reached = {id(leaf) for leaf in leaves_behind(scores.grad_fn)}
    is_cut = not any(id(traced.leaf) in reached for traced in trace.maps)
    if trace.maps and not trace.of_images:
        reason = f"{trace.maps[-1].name!r} runs on another input than the first one of images; call= explains that one"
    elif trace.maps and is_cut and not reason:
        return NoLayerFound(
            f"the score of {name} has no gradient at its last feature map, {trace.maps[-1].name!r}: the model cuts "
            "the graph behind it (as detach(), NumPy, rounding, argmax and inference_mode do), and has no feature map "
            f"behind the cut; remove the cut, or {_NAME_A_LAYER}"
        )
    return NoLayerFound(
        f"{name} has no spatial feature map (B,C,h,w), nor tokens (B,N,C) of a grid, with more than one position that "
        f"the score depends on{reason and f' ({reason})'}; {_NAME_A_LAYER}, or explain a larger image"
    )


def check_what_follows_patches(model: nn.Module, trace: Trace, found: Sequence[TracedMap], scores: Tensor) -> None:
    """Warn if all that is found cuts the images into patches, because no tokens behind it can be read.

    Raises:
        NoLayerFound: they are patches that have lost their places.
    """
    only = found[0]
    if not trace.layouts.unreadable or len(found) > 1 or not cuts_patches(only.module):
        return
    if trace.layouts.lost_places:
        raise no_layer_found(model, trace, scores)
    warn_caller(
        f"the layer found, {only.name!r}, only cuts the images into patches, as no later one can be read: "
        f"{trace.layouts.unreadable}; or name a layer with layer=...",
        model=model,
    )


def cuts_patches(module: nn.Module) -> bool:
    """Whether the module's only convolution cuts images into patches: its stride is its kernel."""
    layers = convolutions(module)
    if len(layers) != 1:
        return False
    stride = per_side(layers[0], layers[0].stride)
    return math.prod(stride) > 1 and stride == per_side(layers[0], layers[0].kernel_size)


@contextmanager
def named_reasons(model: nn.Module) -> Iterator[None]:
    """Say in one sentence why a model cannot be differentiated, where PyTorch says it about a tensor.

    Raises:
        NoLayerFound: it runs a part in inference mode, or in a reentrant checkpoint.
    """
    try:
        yield
    except RuntimeError as error:
        name = type(model).__name__
        if "use_reentrant" in str(error):
            raise _reentrant(name) from None
        if "Inference tensors" in str(error):
            raise NoLayerFound(
                f"{name} runs a part in torch.inference_mode(), whose results can have no gradient; use "
                "torch.no_grad() there, or name a layer behind that part with layer=..."
            ) from None
        raise


def _reentrant(name: str) -> NoLayerFound:
    return NoLayerFound(
        f"{name} runs a part with torch.utils.checkpoint and use_reentrant=True, which cannot be differentiated in "
        "part; use use_reentrant=False, turn checkpointing off, or name a layer behind that part with layer=..."
    )
