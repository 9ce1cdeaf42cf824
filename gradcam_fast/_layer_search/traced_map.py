"""A feature map of a trial run: where the graph is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .graph_walk import is_projection

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import GradientEdge

    from .._layout.feature_layout import FeatureLayout

__all__ = ["TracedMap"]


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
