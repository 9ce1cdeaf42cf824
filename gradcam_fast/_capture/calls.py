"""The calls of each layer in a forward that are explained, and their maps joined: one, or T maps a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from .._layout.token_grid import UnknownPatches, UnreadableLayout
from ..exceptions import NoSuchCall, NotSpatial
from .hooks import ran_several_times

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import FeatureLayout
    from .._model.target_layer import TargetLayer
    from .request import Request

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
    layers: Sequence[TargetLayer], recorded: Sequence[Sequence[Tensor]], request: Request
) -> list[ExplainedCalls]:
    """The calls to explain of each layer: those that ``call=`` names, or of several pictures a sample all these need.

    Args:
        recorded: for each layer, what it returned in each call that was recorded.

    Raises:
        NotSpatial: what a layer returned is no map of the images.
        NoSuchCall: its calls have no map each.
    """
    return [_of_layer(layer, returned, request) for layer, returned in zip(layers, recorded, strict=True)]


def _of_layer(layer: TargetLayer, recorded: Sequence[Tensor], request: Request) -> ExplainedCalls:
    call, geometry = layer.call, request.geometry
    if geometry.pictures is None and geometry.inputs == 1 and (call is None or call == -1):
        return ExplainedCalls(layer, (0,), (_read(request, layer, recorded[0]),), None)
    indices = range(len(recorded))
    several = call == "all" or isinstance(call, tuple)
    if geometry.pictures is None:
        if geometry.inputs > 1:
            last = _read(request, layer, recorded[-1])
            if len(last(recorded[-1].detach())) == geometry.all_inputs:
                if several and len(recorded) > 1:
                    raise NoSuchCall(layer.name, len(recorded), "each time on several inputs")
                return ExplainedCalls(layer, indices[-1:], [last], geometry.inputs, True)
        layouts = [_read(request, layer, maps) for maps in recorded]
        return ExplainedCalls(layer, indices, layouts, len(recorded) if several else None)
    last = _read(request, layer, recorded[-1])
    if len(last(recorded[-1].detach())) == geometry.all_pictures:
        if several and len(recorded) > 1:
            raise NoSuchCall(layer.name, len(recorded), "each time on all pictures")
        return ExplainedCalls(layer, indices[-1:], [last], geometry.pictures)
    layouts = [*(_read(request, layer, maps) for maps in recorded[:-1]), last]
    return ExplainedCalls(layer, indices, layouts, len(recorded) if several or call is None else None)


def _read(request: Request, layer: TargetLayer, maps: Tensor) -> FeatureLayout:
    try:
        return request.layout(layer.module, maps)
    except UnknownPatches:
        raise
    except UnreadableLayout as unreadable:
        reason: object = unreadable
        batch, pictures = request.geometry.batch, request.geometry.all_pictures
        if ran_several_times(layer.module) and len(maps) != batch and 0 < len(maps) < pictures:
            reason = "because the model runs it on parts of the batch in turn; explain the samples one by one"
        raise NotSpatial(layer.name, maps.shape, request.geometry.batch, reason) from None
