"""Which pictures a layer's maps are of: asked of the model by a trial run, where its output alone cannot tell.

A model may take several images (siamese, two streams) or several pictures a sample (frames of a clip, views), and run a
layer on each of them in turn or on all at once, in any order. One forward under hooks, and the gradients of what the
layer returned with respect to the images, tell which picture each map comes from. The answers are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from .._capture.containers import feature_tensor, replace_tensor
from .._model.inputs import Inputs, Taken, convolutions
from .._model.own_hooks import OwnHooks
from .._model.recent import Recent
from .._model.target_layer import TargetLayer
from .._model.undo import undo_at_end
from ..exceptions import NoSuchCall, PicturesMixed
from .trace import trial_run

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.calls import ExplainedCalls
    from .._capture.capture import Capture
    from .._capture.request import Request

__all__ = [
    "PictureRows",
    "picture_rows",
    "resolve_calls",
    "select_input",
    "sort_pictures",
    "try_inputs",
]

# For each layer and shapes of the inputs: by call, the inputs that it depends on.
_INPUTS_OF_CALLS: WeakKeyDictionary[nn.Module, Recent[Any, list[frozenset[int | str]]]] = WeakKeyDictionary()
# For each layer, its calls and the shape of the images: which row is of which picture. Of a batch of any size, if the
# rows of several samples follow each other.
_ROWS: WeakKeyDictionary[nn.Module, Recent[Any, PictureRows]] = WeakKeyDictionary()

# A gradient that is one row's alone leaves so little (relative) beside a multiple of itself.
_UNMIXED = 1e-2
# Where layers before have mixed the pictures of a sample, the rows must still follow an order as closely as this.
_SAME_ORDER = 0.8


@dataclass(frozen=True)
class PictureRows:
    """The pictures that the rows (B*n,...) of a layer's maps are of.

    Attributes:
        pictures: which of the T pictures of a sample, rising.
        order: the rows (B*n,) sorted by sample and picture; None if that is how they lie.
    """

    pictures: tuple[int, ...]
    order: tuple[int, ...] | None


def try_inputs(model: nn.Module, inputs: Inputs, *, per_sample: bool) -> Taken | Exception:
    """Run the model once: how it takes the images among ``inputs``, or what it raises.

    Args:
        per_sample: whether an output of another number of samples is refused, too.
    """
    taken: list[Tensor] = []
    try:
        with OwnHooks() as hooks, trial_run(model, inputs), torch.no_grad():
            for module in convolutions(model):
                hooks.add(module, lambda _, args: taken.extend(args[:1]), before=True)
            returned = feature_tensor(inputs.map(torch.Tensor.clone)(model))
    except Exception as error:
        return error
    if per_sample and returned is not None and returned.shape[:1] != inputs.images.shape[:1]:
        return ValueError(f"it returned shape {tuple(returned.shape)} for {len(inputs.images)} samples")
    sides, first = tuple(inputs.images.shape[1:]), taken[0] if taken else inputs.images
    if len(sides) != 2 or first.dim() != 4 or tuple(first.shape[2:]) != sides[::-1]:
        return Taken(transposed=False)
    # Equal sides show no transposition, but its view has the strides of one.
    return Taken(transposed=sides[0] != sides[1] or first.stride(2) < first.stride(3))


def resolve_calls(
    model: nn.Module, request: Request, layers: Sequence[TargetLayer]
) -> tuple[Request, Sequence[TargetLayer]]:
    """The calls of the layers that see the images to explain, and the request about these.

    Other images than the request's are explained if the named call of a layer, or all calls of it, see these alone.

    The first time that a layer sees inputs of these shapes, this takes a forward that keeps its graph, and a backward
    to the images for each call of the layer.

    Raises:
        NoSuchCall: no call of a layer sees the images, or the one named sees none or several others; or layers, or
            calls, see images of different sizes.
    """
    images_at = request.inputs.images_at
    resolved: list[TargetLayer] = []
    seen: list[int | str] = []
    for layer in layers:
        calls = _inputs_of_calls(model, request, layer)
        seeing = [call for call, inputs in enumerate(calls) if images_at in inputs]
        if layer.call is None and seeing and seeing[-1] < len(calls) - 1:
            layer = replace(layer, call=seeing[-1])
        elif layer.call is None and not seeing and len({*calls}) > 1:
            raise NoSuchCall(layer.name, len(calls), f"but never on {_described(images_at)}")
        resolved.append(layer)
        if not any(calls):  # detached from the images, or run on none
            continue
        for inputs in _of_named_calls(layer, calls):
            if images_at not in inputs and len(inputs) != 1:
                shown = " and ".join(map(_described, sorted(inputs, key=str))) or "none of the images"
                raise NoSuchCall(layer.name, len(calls), f"and this call sees {shown}")
            seen.append(images_at if images_at in inputs else next(iter(inputs)))
        sizes = {_sides(request, at) for at in seen}
        if len(sizes) > 1:
            shown = " and ".join("x".join(map(str, size)) for size in sorted(sizes))
            raise NoSuchCall(
                layer.name, len(calls), f"and images of {shown} pixels are seen, which need a heatmap each"
            )
    if seen and images_at not in seen:
        geometry = replace(request.geometry, size=_sides(request, seen[0]))
        request = replace(request, inputs=replace(request.inputs, images_at=seen[0]), geometry=geometry)
    return request, resolved


def _of_named_calls(layer: TargetLayer, calls: Sequence[frozenset[int | str]]) -> Sequence[frozenset[int | str]]:
    """The inputs of the calls that a layer names; none if it does not run so often, as the capture will say."""
    if layer.call == "all":
        return calls
    named = layer.call if isinstance(layer.call, tuple) else (-1 if layer.call is None else layer.call,)
    return [calls[call] for call in named if -len(calls) <= call < len(calls)]


def _sides(request: Request, at: int | str) -> tuple[int, ...]:
    """The sides of the images at this place or name among the inputs."""
    if at == request.inputs.images_at:
        return request.geometry.size
    return tuple(request.inputs.all_images[at].shape[-len(request.geometry.size) :])


def _described(at: int | str) -> str:
    return f"the images {at!r}" if isinstance(at, str) else f"input {at} of images"


def _inputs_of_calls(model: nn.Module, request: Request, layer: TargetLayer) -> list[frozenset[int | str]]:
    known = _INPUTS_OF_CALLS.setdefault(layer.module, Recent())
    key = (*(tuple(tensor.shape) for tensor in request.inputs.tensors), request.inputs.images_at)
    inputs = known.get(key)
    if inputs is None:
        known[key] = inputs = _ask_for_inputs(model, request, layer)
    return inputs


def _ask_for_inputs(model: nn.Module, request: Request, layer: TargetLayer) -> list[frozenset[int | str]]:
    with _watched(model, request, layer) as (images, outputs):
        dependences = []
        for maps in outputs:
            parts: Sequence[Tensor | None] = [None] * len(images)
            if maps.requires_grad:
                parts = torch.autograd.grad(
                    maps, list(images.values()), torch.randn_like(maps), retain_graph=True, allow_unused=True
                )
            reached = {at for at, part in zip(images, parts, strict=True) if part is not None}
            # A stack of two images reaches both; a map of zeros has no gradient at all.
            nonzero = {at for at, part in zip(images, parts, strict=True) if part is not None and part.any()}
            dependences.append(frozenset(nonzero or reached))
        return dependences


def picture_rows(model: nn.Module, request: Request, calls: ExplainedCalls) -> PictureRows:
    """Which pictures of the samples the rows of a layer's maps are of.

    The first time that a layer sees images of this shape, this takes a forward on two samples that keeps its graph, and
    two backwards to the images.

    Raises:
        PicturesMixed: a map is of several pictures, or it cannot be told of which.
    """
    geometry = request.geometry
    count, pictures = calls.maps_per_sample, geometry.inputs if calls.of_inputs else geometry.pictures
    assert count is not None and pictures is not None
    if pictures == 1 or geometry.batch == 0:
        return PictureRows(tuple(range(count)), None)
    known = _ROWS.setdefault(calls.layer.module, Recent())
    shape = tuple(request.images.shape[1:])
    of_any_batch, of_this_batch = (shape, calls.layer.call), (shape, calls.layer.call, geometry.batch)
    rows = known.get(of_any_batch) or known.get(of_this_batch)
    if rows is not None:
        return rows
    if geometry.batch > 2:
        two = request.inputs.map(lambda tensor: tensor[:2] if len(tensor) == geometry.batch else tensor)
        try:
            rows = _rows_of(model, replace(request, inputs=two, geometry=replace(geometry, batch=2)), calls)
        except PicturesMixed:
            raise
        except Exception:  # the model needs its whole batch
            rows = None
    if rows is None or rows.order is not None:
        rows = _rows_of(model, request, calls)
    known[of_any_batch if rows.order is None and geometry.batch > 1 else of_this_batch] = rows
    return rows


def select_input(model: nn.Module, request: Request, captured: Capture) -> Capture:
    """The capture with the maps of the images to explain, where a layer ran on several inputs of images at once.

    Raises:
        PicturesMixed: a map is of several inputs, or it cannot be told of which.
    """
    alike = [at for at, images in request.inputs.all_images.items() if images.shape == request.images.shape]
    place = alike.index(request.inputs.images_at)
    activations, gradients, calls = list(captured.activations), list(captured.gradients), list(captured.calls)
    for layer, of_layer in enumerate(captured.calls):
        if of_layer.of_inputs:
            rows = picture_rows(model, request, of_layer)
            for maps in (activations, gradients) if gradients else (activations,):
                maps[layer] = _sorted(maps[layer], rows)[place :: len(alike)]
            calls[layer] = of_layer._replace(maps_per_sample=None, of_inputs=False)
    return replace(captured, activations=activations, gradients=gradients, calls=calls)


def sort_pictures(model: nn.Module, request: Request, captured: Capture) -> tuple[Capture, list[tuple[int, ...]]]:
    """The capture with its rows sorted by sample and picture, and for each layer the pictures that they are of.

    Raises:
        PicturesMixed: a map is of several pictures, the layers do not have the same pictures, nor each its own.
    """
    if request.geometry.pictures is None:  # one map for each call
        pictures = [tuple(range(calls.maps_per_sample or 0)) for calls in captured.calls]
    else:
        if any(calls.maps_per_sample is None for calls in captured.calls):
            raise PicturesMixed(captured.layers[0], "is explained together with one that has other pictures")
        rows = [picture_rows(model, request, calls) for calls in captured.calls]
        pictures = [of_layer.pictures for of_layer in rows]
        if any(of_layer.order is not None for of_layer in rows):
            sort = partial(zip, strict=bool(captured.gradients))
            captured = replace(
                captured,
                activations=[
                    _sorted(maps, of_layer) for maps, of_layer in zip(captured.activations, rows, strict=True)
                ],
                gradients=[_sorted(maps, of_layer) for maps, of_layer in sort(captured.gradients, rows)],
            )
    same = len(set(pictures)) == 1
    together = sorted(picture for of_layer in pictures for picture in of_layer)
    count = len(pictures[0]) if request.geometry.pictures is None else request.geometry.pictures
    if not (same and len(pictures[0]) == count) and together != list(range(count)):
        shown = ", ".join(
            f"{layer!r} those of {list(p)}" for layer, p in zip(sorted(captured.layers), pictures, strict=True)
        )
        raise PicturesMixed(
            captured.layers[0], f"has not the maps of all {count} pictures, nor each layer its own ({shown})"
        )
    return captured, pictures


def _sorted(maps: Tensor, rows: PictureRows) -> Tensor:
    if rows.order is None:
        return maps
    return maps.index_select(0, torch.tensor(rows.order, dtype=torch.int64, device=maps.device))


def _rows_of(model: nn.Module, request: Request, calls: ExplainedCalls) -> PictureRows:
    """Row r sends a random gradient back, then r+1 times the same: the ratio at a picture is its row's number."""
    layer, count, batch = calls.layer, calls.maps_per_sample or 1, request.geometry.batch
    with _watched(model, request, layer) as (images, recorded):
        if isinstance(layer.call, (int, tuple)):
            recorded = [recorded[call] for call in (layer.call if isinstance(layer.call, tuple) else (layer.call,))]
        folded = len(calls.indices) == 1
        if folded:
            recorded = recorded[-1:]
        maps = [request.layout(layer.module, tensor)(tensor) for tensor in recorded]
        if not all(tensor.requires_grad for tensor in maps):
            raise PicturesMixed(layer.name, "comes from the images without a gradient, so that its order is not known")
        seeds = [torch.randn_like(tensor) for tensor in maps]
        numbers = torch.arange(1, batch * count + 1, device=maps[0].device, dtype=maps[0].dtype)
        per_call = [numbers] if folded else list(numbers.reshape(batch, count).unbind(1))
        scaled = [
            seed * number.reshape(-1, *[1] * (seed.dim() - 1)) for seed, number in zip(seeds, per_call, strict=True)
        ]
        leaves = [images[request.inputs.images_at]]
        if calls.of_inputs:
            leaves = [leaf for leaf in images.values() if leaf.shape == request.images.shape]
        parts = torch.autograd.grad(maps, leaves, seeds, retain_graph=True, allow_unused=True)
        numbered_parts = torch.autograd.grad(maps, leaves, scaled, allow_unused=True)
    if any(part is None for part in parts):
        raise PicturesMixed(layer.name, "does not depend on the images")
    if calls.of_inputs:
        plain, numbered = (torch.stack(list(of_inputs), 1) for of_inputs in (parts, numbered_parts))
    else:
        axis = request.geometry.picture_axis
        plain, numbered = parts[0].movedim(axis, 1), numbered_parts[0].movedim(axis, 1)
    plain, numbered = plain.flatten(2).double(), numbered.flatten(2).double()
    length = plain.square().sum(2)
    ratio = (plain * numbered).sum(2) / length
    rest = (numbered - ratio.unsqueeze(2) * plain).square().sum(2) / numbered.square().sum(2)
    return _sorted_rows(layer.name, ratio - 1, rest, length > 0, count)


def _sorted_rows(name: str, place: Tensor, rest: Tensor, seen: Tensor, count: int) -> PictureRows:
    """The rows of pictures.

    Args:
        name: of the layer.
        place: (B,T), the row that depends on each picture; the mean of rows, if several do.
        rest: (B,T), how much of the picture's gradient another row's would be needed for.
        seen: (B,T), whether any row depends on the picture.
        count: the number of rows a sample.
    """
    batch, pictures = place.shape
    rows = torch.arange(batch * count, device=place.device, dtype=place.dtype)
    unmixed = bool((rest[seen] < _UNMIXED).all() and ((place - place.round())[seen].abs() < 0.1).all())
    if not unmixed and count == pictures:
        # Temporal shifts and convolutions over time mix pictures, but keep their order.
        orders = [rows.reshape(batch, count), rows.reshape(count, batch).t(), rows.reshape(batch, count).flip(1)]
        known = torch.where(seen, place, orders[0])
        alike = [torch.corrcoef(torch.stack([known.flatten(), order.flatten()]))[0, 1] for order in orders]
        if alike[0] == max(alike) and alike[0] > _SAME_ORDER:
            return PictureRows(tuple(range(pictures)), None)
    if not unmixed:
        raise PicturesMixed(name, "mixes the pictures of a sample")
    of_sample = seen.any(0)
    covered = of_sample.nonzero()[:, 0].tolist()
    if count == pictures:  # a picture that is all black may reach nothing
        place = torch.where(seen, place.round(), rows.reshape(batch, count))
        covered = list(range(pictures))
    order = place[:, covered].round().long().flatten()
    if len(covered) != count or order.sort().values.tolist() != list(range(batch * count)):
        raise PicturesMixed(name, f"has {count} maps a sample, and {len(covered)} of {pictures} pictures are in them")
    in_order = bool((order == rows.long()).all())
    return PictureRows(tuple(covered), None if in_order else tuple(order.tolist()))


class _GradEnabled(TorchFunctionMode):
    """Gradients are on in every operation, also where the model turns them off around a trunk."""

    def __enter__(self) -> _GradEnabled:
        undo_at_end(self._leave)
        _push_mode(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        while any(mode is self for mode in _get_current_function_mode_stack()):
            _pop_mode()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))


@contextmanager
def _watched(
    model: nn.Module, request: Request, layer: TargetLayer
) -> Iterator[tuple[dict[int | str, Tensor], list[Tensor]]]:
    """A forward with a graph from all images on: these as leaves, and what the layer returned in each of its calls."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        maps = feature_tensor(output)
        if maps is None:
            return None
        outputs.append(maps)
        return replace_tensor(output, maps, maps.clone())  # what follows may work in place

    with trial_run(model, request.inputs), torch.enable_grad():
        leaves = {at: images.detach().clone().requires_grad_() for at, images in request.inputs.all_images.items()}
        inputs = request.inputs.replace(leaves).map(torch.Tensor.clone)  # the model may write into its input
        with OwnHooks() as hooks, _GradEnabled():
            hooks.add(layer.module, keep, first=True)
            inputs(model)
        yield leaves, outputs
