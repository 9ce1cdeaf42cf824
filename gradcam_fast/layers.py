"""The layers of a model that can be explained, with the shapes of their outputs: the choices for ``layer=``."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._capture.containers import feature_tensor
from ._layer_search.rules import is_pooling, passes_on
from ._layer_search.search import ask_for_patches
from ._layer_search.trace import trial_run
from ._layout.token_grid import UnknownPatches, UnreadableLayout
from ._model.eager import eager_modules
from ._model.own_hooks import OwnHooks
from ._model.undo import leaves_no_trace
from .explainer import Explainer

if TYPE_CHECKING:
    from torch import Tensor

    from ._capture.request import Request
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
        call: which call of the module this is, from 0, as ``call=`` takes it; of all places where the module stands.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    call: int = 0


@leaves_no_trace
def list_layers(model: nn.Module, images: Images, *, every: bool = False) -> list[LayerInfo]:
    """The layers of ``model`` that can be explained on ``images``, by default one for each stage, as they finish.

    A stage is a stretch of layers with maps of one size, and its row is the last of its outermost layers; pooling is
    left out. Of a transformer's stage each block has a row.

    The model runs once, and twice more if trial runs have to find out which of its tokens are patches. Modules that
    only return their input (``nn.Identity``) are left out. A module that runs several times has a row for each call. A
    module that is used in several places (an activation that blocks share) is named after the place where it runs.

    Args:
        model: as in :func:`gradcam_fast.explain`.
        images: as in :func:`gradcam_fast.explain`; one image is enough.
        every: True lists every layer, also those inside blocks.

    Raises:
        TypeError, ValueError: as :func:`gradcam_fast.explain` for a model or images that cannot be explained.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1568, 5))
        >>> list_layers(model, torch.rand(1, 3, 16, 16))
        [LayerInfo(name='1', kind='ReLU', shape=(1, 8, 14, 14), grid=(14, 14), call=0)]
        >>> [layer.name for layer in list_layers(model, torch.rand(1, 3, 16, 16), every=True)]
        ['0', '1']
    """
    explainer = Explainer(model)
    request = explainer._request(images)
    listing = _Listing(request)
    listing.run(explainer.model)
    if listing.unknown_token_counts:
        for count in listing.unknown_token_counts:
            if count not in (request.geometry.patch_tokens or {}):  # one trial run tells of all counts
                ask_for_patches(explainer.model, request, count)
        listing = _Listing(request)
        listing.run(explainer.model)
    return listing.layers if every else _one_per_stage(listing)


def _one_per_stage(listing: _Listing) -> list[LayerInfo]:
    def rows_of(stage: list[LayerInfo]) -> list[LayerInfo]:
        return _rows_of_stage(stage, of_tokens=not listing.of_tokens.isdisjoint(stage))

    layers = [layer for layer in listing.layers if layer not in listing.pooled]
    stages = [list(stage) for _, stage in itertools.groupby(layers, lambda layer: layer.grid)]
    rows = list(map(rows_of, stages))
    # Layers inside a block may have maps of another size, such as the keys that an attention reads.
    place = 1
    while place < len(rows) - 1:
        before, inside, after = rows[place - 1 : place + 2]
        if before[-1].grid == after[-1].grid and _depth(inside[-1]) > max(_depth(before[-1]), _depth(after[-1])):
            joined = [*stages[place - 1], *stages[place + 1]]
            stages[place - 1 : place + 2], rows[place - 1 : place + 2] = [joined], [rows_of(joined)]
            place = max(place - 1, 1)
        else:
            place += 1
    return [row for stage_rows in rows for row in stage_rows]


def _rows_of_stage(stage: list[LayerInfo], *, of_tokens: bool) -> list[LayerInfo]:
    """The blocks of a transformer, or else the last of the outermost layers."""
    if of_tokens:
        blocks: dict[tuple[str, str], list[LayerInfo]] = {}
        for layer in stage:
            blocks.setdefault((layer.name.rpartition(".")[0], layer.kind), []).append(layer)
        repeated = [group for group in blocks.values() if len({layer.name for layer in group}) > 1]
        if repeated:
            return min(repeated, key=lambda group: _depth(group[0]))
    outermost = min(map(_depth, stage))
    return [layer for layer in stage if _depth(layer) == outermost][-1:]


def _depth(layer: LayerInfo) -> int:
    return layer.name.count(".")


@dataclass
class _Listing:
    """The layers of one run of the model, listed by hooks on all modules; runs in other threads do not count."""

    request: Request
    layers: list[LayerInfo] = field(default_factory=list)
    # Numbers of tokens for which it is not known yet which of the tokens are patches.
    unknown_token_counts: set[int] = field(default_factory=set)
    # Those whose maps are tokens, and those that return what a pooling or a dropout made.
    of_tokens: set[LayerInfo] = field(default_factory=set)
    pooled: set[LayerInfo] = field(default_factory=set)
    _last_pooled: Tensor | None = None
    _running: list[str] = field(default_factory=list)
    _calls: Counter[nn.Module] = field(default_factory=Counter)

    def run(self, model: nn.Module) -> None:
        names: dict[nn.Module, list[str]] = {}
        for name, module in eager_modules(model).items():
            names.setdefault(module, []).append(name)
        with OwnHooks() as hooks, trial_run(model, self.request.inputs), torch.no_grad():
            for module, places in names.items():
                hooks.add(module, lambda m, _, places=places: self.enter(places), before=True)
                hooks.add(module, lambda m, _, output: self.leave(m, output))
            self.request.inputs(model)

    def enter(self, places: list[str]) -> None:
        parent = self._running[-1] + "." if self._running else ""
        self._running.append(next((name for name in places if name.startswith(parent)), places[0]))

    def leave(self, module: nn.Module, output: Any) -> None:
        name = self._running.pop()
        maps = feature_tensor(output)
        if maps is None or isinstance(module, nn.Identity):
            return
        call = self._calls[module]
        self._calls[module] += 1
        try:
            layout = self.request.layout(module, maps)
        except UnknownPatches as error:
            self.unknown_token_counts.add(error.count)
        except UnreadableLayout:
            pass
        else:
            grid = tuple(layout(maps).shape[2:])
            layer = LayerInfo(name, type(module).__name__, tuple(maps.shape), grid, call)
            self.layers.append(layer)
            if layout.kind == "tokens":
                self.of_tokens.add(layer)
            if is_pooling(module) or passes_on(module) or maps is self._last_pooled:
                self.pooled.add(layer)
                self._last_pooled = maps
