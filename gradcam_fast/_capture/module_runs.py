"""Which of some modules run in a forward and return what may be feature maps: networks may end early, or skip parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from .containers import tensors_in

if TYPE_CHECKING:
    from .._layout.feature_layout import ImageGeometry

__all__ = ["ModuleRuns", "may_be_maps"]


class ModuleRuns:
    """A forward hook for some modules.

    Args:
        geometry: the images.

    Attributes:
        modules: their names.
        names: of those that have run and returned what may be feature maps.
    """

    def __init__(self, modules: Mapping[nn.Module, str], geometry: ImageGeometry) -> None:
        self.modules, self.geometry = modules, geometry
        self.names: set[str] = set()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note that the module has run."""
        if may_be_maps(output, self.geometry):
            self.names.add(self.modules[module])


def may_be_maps(output: Any, geometry: ImageGeometry) -> bool:
    """Whether there is a floating tensor of all images, and of more axes than vectors, in what a module returned."""
    counts = {geometry.batch, geometry.all_pictures, geometry.all_inputs}
    return any(
        tensor.dim() > 2 and tensor.dtype.is_floating_point and not counts.isdisjoint(tensor.shape[:2])
        for tensor in tensors_in(output)
    )
