"""The feature maps of a trial run, where its graph is cut, and the layers that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from .._model.target_layer import TargetLayer
from .graph_walk import is_projection

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import GradientEdge

    from .._layout.feature_layout import FeatureLayout

__all__ = ["TracedMap", "layers_of_maps", "stays_in_block"]


@dataclass(eq=False)
class TracedMap:
    """A feature map of a trial run.

    Attributes:
        name: dotted name of the outermost module that returned it.
        module: that module.
        maker: the innermost module that returned it.
        shape: of the maps.
        behind: the graph from here back to the maps before; None if there is none.
        leaf: where the graph of what follows begins.
        layout: how the maps lie.
        of_images: whether the maps depend on the images.
        of_pixels: whether they are made of the images themselves, and of no map before.
        behind_cut: whether they may do so without a graph: the module took values that the model has detached.
        captured: whether they are what a capture keeps, the first floating tensor that the module returned.
        last_call: whether the module did not run again on the images.
        call: which call of the module in this forward it is.
        pictures: of samples of several pictures, the one that the maps are of; None for maps of all.
    """

    name: str
    module: nn.Module
    maker: nn.Module
    shape: torch.Size
    behind: GradientEdge | None
    leaf: Tensor
    layout: FeatureLayout
    of_images: bool
    of_pixels: bool = False
    behind_cut: bool = False
    captured: bool = True
    last_call: bool = True
    call: int = 0
    pictures: frozenset[int] | None = None

    @property
    def is_projection(self) -> bool:
        """Whether the maps are what a linear layer makes of earlier tokens, however it is written."""
        if self.of_pixels or self.layout.kind == "planes":
            return False
        return isinstance(self.maker, nn.Linear) or (self.behind is not None and is_projection(self.behind.node))


def layers_of_maps(maps: Sequence[TracedMap], calls: Mapping[nn.Module, int]) -> tuple[TargetLayer, ...]:
    """The layers that made the maps, once for each call that did; where the last one did alone, no call is named.

    Of samples of several pictures, once with all of these calls.
    """
    by_layer: dict[TargetLayer, list[int]] = {}
    for traced in maps:
        by_layer.setdefault(TargetLayer(traced.name, traced.module), []).append(traced.call)
    layers: list[TargetLayer] = []
    for layer, chosen in by_layer.items():
        if maps[0].pictures is not None:
            layers.append(layer if len(chosen) == calls[layer.module] else replace(layer, call=tuple(chosen)))
        elif chosen == [calls[layer.module] - 1]:
            layers.append(layer)
        else:
            layers.extend(replace(layer, call=call) for call in chosen)
    return tuple(layers)


def stays_in_block(module: nn.Module, layout: FeatureLayout) -> bool:
    """Whether maps are a projection that goes into no sum with class tokens: to cut the graph there tells nothing."""
    if not (isinstance(module, nn.Linear) and layout.kind != "planes"):
        return False
    return layout.kind != "tokens" or layout.inferred_extras == 0 or module.out_features > module.in_features
