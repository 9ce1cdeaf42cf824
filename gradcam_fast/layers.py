"""The layers of a model that can be explained, with the shapes of their outputs: what to choose ``layer=`` from."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._capture.containers import feature_tensor
from ._layer_search.trace import trial_run
from ._layout.token_grid import UnreadableLayout
from ._model.eager import eager_modules
from .explainer import Explainer

if TYPE_CHECKING:
    from .types import Images

__all__ = ["LayerInfo", "list_layers"]


@dataclass(frozen=True)
class LayerInfo:
    """A layer whose output can be read as feature maps.

    Attributes:
        name: its dotted name, as ``layer=`` takes it.
        kind: the name of its class.
        shape: the shape of its output for the images given.
        grid: (h,w) of its feature maps.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]


def list_layers(model: nn.Module, images: Images) -> list[LayerInfo]:
    """The layers of ``model`` that can be explained on ``images``, in the order in which they finish.

    The model runs once. Modules that only return their input (``nn.Identity``) are left out; of a module that runs
    several times the last call counts.

    Args:
        model: as in :func:`gradcam_fast.explain`.
        images: as in :func:`gradcam_fast.explain`; one image is enough.

    Raises:
        TypeError, ValueError: as :func:`gradcam_fast.explain` for a model or images that cannot be explained.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(1568, 5))
        >>> list_layers(model, torch.rand(1, 3, 16, 16))
        [LayerInfo(name='0', kind='Conv2d', shape=(1, 8, 14, 14), grid=(14, 14))]
    """
    explainer = Explainer(model)
    request = explainer._request(images)
    layers: dict[str, LayerInfo] = {}
    this_thread = threading.get_ident()

    def note(name: str, module: nn.Module, output: Any) -> None:
        maps = feature_tensor(output)
        if threading.get_ident() != this_thread or maps is None:
            return
        try:
            grid = tuple(request.layout(module, maps)(maps).shape[2:])
        except UnreadableLayout:
            return
        layers.pop(name, None)  # the last call of a module decides its place, too
        layers[name] = LayerInfo(name, type(module).__name__, tuple(maps.shape), grid)

    handles = []
    try:
        for name, module in eager_modules(explainer.model).items():
            if not isinstance(module, nn.Identity):
                handles.append(module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output)))
        with trial_run(explainer.model, request.inputs), torch.no_grad():
            request.inputs(explainer.model)
    finally:
        for handle in handles:
            handle.remove()
    return list(layers.values())
