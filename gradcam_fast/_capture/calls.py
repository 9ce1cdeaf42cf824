"""The calls of one layer in a forward that are explained, and their maps joined: one, or T maps a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..exceptions import NoSuchCall

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .._layout.feature_layout import FeatureLayout
    from .._model.target_layer import TargetLayer
    from .capture import Request

__all__ = ["ExplainedCalls", "every_picture", "explained_calls"]


class ExplainedCalls(NamedTuple):
    """The calls of one layer that are explained.

    Attributes:
        layer: the layer.
        indices: of the calls among those that were recorded.
        layouts: of what each call returned.
        maps_per_sample: T, where heatmaps have an axis for several maps a sample: all pictures in one call, or a map
            for each call. None: one map a sample.
        of_inputs: whether they are of T inputs of images, of which one is explained.
    """

    layer: TargetLayer
    indices: Sequence[int]
    layouts: Sequence[FeatureLayout]
    maps_per_sample: int | None
    of_inputs: bool = False

    def join(self, per_call: Sequence[Tensor]) -> Tensor:
        """Activations or gradients of each call as (B,...), or of several calls as (B*T,...), sample by sample."""
        if len(per_call) == 1:
            return self.layouts[0](per_call[0])
        maps = [layout(tensor) for layout, tensor in zip(self.layouts, per_call, strict=True)]
        shapes = {tuple(tensor.shape[-3:]) for tensor in maps}
        if len(shapes) > 1:
            shown = " and ".join(map(str, sorted(shapes)))
            raise NoSuchCall(self.layer.name, len(maps), f"and returned maps of shapes {shown}, which need a map each")
        return torch.stack(maps, 1).flatten(0, 1)


def every_picture(layer: TargetLayer) -> TargetLayer:
    """The layer with all its calls to be recorded, unless one is named: it may run once for each picture."""
    return replace(layer, call="all") if layer.call is None else layer


def explained_calls(
    layer: TargetLayer,
    recorded: Sequence[Tensor],
    request: Request,
    read: Callable[[Request, TargetLayer, Tensor], FeatureLayout],
) -> ExplainedCalls:
    """The calls of a layer to explain: those that ``call=`` names, or of several pictures a sample all these need.

    Args:
        recorded: what the layer returned in each call that was recorded.
        read: gives the layout of such a tensor.
    """
    call, geometry = layer.call, request.geometry
    if geometry.pictures is None and geometry.inputs == 1 and (call is None or call == -1):
        return ExplainedCalls(layer, (0,), (read(request, layer, recorded[0]),), None)
    indices = range(len(recorded))
    several = call == "all" or isinstance(call, tuple)
    if geometry.pictures is None:
        if geometry.inputs > 1:
            last = read(request, layer, recorded[-1])
            if len(last(recorded[-1].detach())) == geometry.all_inputs:
                if several and len(recorded) > 1:
                    raise NoSuchCall(layer.name, len(recorded), "each time on several inputs")
                return ExplainedCalls(layer, indices[-1:], [last], geometry.inputs, True)
        layouts = [read(request, layer, maps) for maps in recorded]
        return ExplainedCalls(layer, indices, layouts, len(recorded) if several else None)
    last = read(request, layer, recorded[-1])
    if len(last(recorded[-1].detach())) == geometry.all_pictures:
        if several and len(recorded) > 1:
            raise NoSuchCall(layer.name, len(recorded), "each time on all pictures")
        return ExplainedCalls(layer, indices[-1:], [last], geometry.pictures)
    layouts = [*(read(request, layer, maps) for maps in recorded[:-1]), last]
    return ExplainedCalls(layer, indices, layouts, len(recorded) if several or call is None else None)
