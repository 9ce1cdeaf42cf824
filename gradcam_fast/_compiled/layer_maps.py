"""Adds the layer's own maps to a traced graph: the heatmap at the resolution of the layer, beside the one in pixels.

Pictures and tables of many photos are made from these: 49 numbers for ResNet's 7x7 in place of 50,176.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import fx

__all__ = ["add_layer_maps"]

_FILL = torch.ops.aten.masked_fill.Scalar


def add_layer_maps(graph_module: fx.GraphModule) -> tuple[int, ...] | None:
    """Append (maps, raw_min, raw_max) of the layer, as :func:`gradcam_fast.cam` returns them, to the graph's outputs.

    Returns:
        (h,w) of the maps; None, and the graph stays as it is, where the heatmap is not of one layer by the operator.
    """
    graph = graph_module.graph
    output = graph.output_node()
    outputs = output.args[0]
    assert isinstance(outputs, (tuple, list))
    filled: Any = outputs[0]
    if filled.target is not _FILL:
        return None
    # The heatmaps of images that are not finite are filled with zeros.
    heatmap, not_finite, zero = filled.args
    call: Any = heatmap.args[0] if heatmap.target is operator.getitem and heatmap.args[1] == 0 else None
    if call is None or not _is_cam(call):
        return None
    activations, gradients, _, _, *choices = call.args
    sides = activations.meta["val"].shape[2:]
    if not all(isinstance(side, int) for side in sides):
        return None
    with graph.inserting_before(output):
        maps = graph.call_function(call.target, (activations, gradients, *sides, *choices))
        results = [graph.call_function(operator.getitem, (maps, place)) for place in range(3)]
        of_extremes = graph.call_function(torch.ops.aten.squeeze.dims, (not_finite, [-1, -2]))
        fills = ((not_finite, zero), (of_extremes, torch.nan), (of_extremes, torch.nan))
        added = [graph.call_function(_FILL, (result, *fill)) for result, fill in zip(results, fills, strict=True)]
    output.update_arg(0, (*outputs, *added))
    graph_module.recompile()
    return tuple(sides)


def _is_cam(node: fx.Node) -> bool:
    cam = getattr(torch.ops.gradcam_fast, "cam", None)
    return cam is not None and node.target is cam.default
