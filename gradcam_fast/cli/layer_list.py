"""The layers of a model that can be explained, each with the shape of its output and the grid of its map.

Knows nothing of gradients or command lines; which layer is found automatically is asked of the core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..capture import tensor_in
from ..features import feature_maps
from ..layers import eager_modules
from ..spatial import Frame, Unreadable, read

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ExplainableLayer", "explainable_layers", "layer_and_grid"]


@dataclass(frozen=True)
class ExplainableLayer:
    """A layer whose output can be read as maps.

    Attributes:
        name: dotted.
        kind: its class.
        shape: of its output, for one image.
        grid: (height, width) of its maps.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]


def explainable_layers(model: nn.Module, images: Tensor) -> list[ExplainableLayer]:
    """The layers of ``model`` that return maps of ``images`` (B,C,H,W), in the order in which they finish.

    Modules that only hand their input on (``nn.Identity``) are left out.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(1568, 5))
        >>> explainable_layers(model, torch.rand(1, 3, 16, 16))
        [ExplainableLayer(name='0', kind='Conv2d', shape=(1, 8, 14, 14), grid=(14, 14))]
    """
    modules = {name: module for name, module in eager_modules(model).items() if not isinstance(module, nn.Identity)}
    frame = Frame(images.shape[0], tuple(images.shape[2:]))
    found: dict[str, ExplainableLayer] = {}

    def note(name: str, module: nn.Module, output: Any) -> None:
        maps = tensor_in(output)
        if maps is None:
            return
        try:
            grid = tuple(read(module, maps, frame)(maps).shape[2:])
        except Unreadable:
            return
        found.pop(name, None)  # of a module that runs again the last call counts
        found[name] = ExplainableLayer(name, type(module).__name__, tuple(maps.shape), grid)

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output)))
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def layer_and_grid(model: nn.Module, images: Tensor, layer: str | None) -> tuple[str, tuple[int, ...]]:
    """The name of the layer to explain, found if it is None, and the grid (height, width) of its maps.

    Raises:
        As explaining ``images`` (B,C,H,W) at this layer does.
    """
    maps = feature_maps(model, images, layer=layer)
    return maps.layer, tuple(maps.activations.shape[2:])
