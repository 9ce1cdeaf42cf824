"""The layers of a model that can be explained, each with the shape of its output and the grid of its map.

Knows nothing of gradients; which of them is found automatically is the affair of ``finding``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._capture.hooks import tensor_in
from ._layer_search.trace import undisturbed
from ._layout.feature_layout import UnreadableLayout
from ._model.target_layer import eager_modules
from .explainer import Explainer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LayerInfo", "list_layers"]


@dataclass(frozen=True)
class LayerInfo:
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


def list_layers(model: nn.Module, images: Tensor) -> list[LayerInfo]:
    """The layers of ``model`` that return maps of ``images`` (B,C,H,W), in the order in which they finish.

    Modules that only hand their input on (``nn.Identity``) are left out.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(1568, 5))
        >>> list_layers(model, torch.rand(1, 3, 16, 16))
        [LayerInfo(name='0', kind='Conv2d', shape=(1, 8, 14, 14), grid=(14, 14))]
    """
    explainer = Explainer(model)
    request = explainer.ask(images)
    modules = {
        name: module for name, module in eager_modules(explainer.model).items() if not isinstance(module, nn.Identity)
    }
    found: dict[str, LayerInfo] = {}

    def note(name: str, module: nn.Module, output: Any) -> None:
        maps = tensor_in(output)
        if maps is None:
            return
        try:
            grid = tuple(request.read(module, maps)(maps).shape[2:])
        except UnreadableLayout:
            return
        found.pop(name, None)  # of a module that runs again the last call counts
        found[name] = LayerInfo(name, type(module).__name__, tuple(maps.shape), grid)

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output)))
        with undisturbed(explainer.model, request.inputs), torch.no_grad():
            request.inputs(explainer.model)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())
