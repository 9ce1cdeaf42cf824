"""Whole explanations on a device beside the prediction, by everybody who can explain the network, by turns.

Two times: a call among many queued ones, and a call alone, from an idle device to the finished heatmap. Knows nothing
of reports, and of the networks and the other ways only what contenders.py says.
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import contenders
import torch
from gpu_device import Device
from gpu_machine import reason, without_paths
from gpu_timing import TIME_WAS_UP, Budget, NotMeasured, by_turns, calls_for, summary
from torch import Tensor, nn

import gradcam_fast

Case = tuple[str, str, int]
PLAN: list[Case] = list(
    itertools.product(
        ["resnet50", "vgg16", "efficientnet_b0", "convnext_tiny", "vit_b_16"], ["float32", "bfloat16"], [1, 32, 256]
    )
)
TRIAL = [("resnet18", "float32", 1), ("resnet18", "float32", 3), ("resnet18", "bfloat16", 2)]

# How far another's map may be from ours, on [0,1], before it is marked: convolutions in TF32, or all in bfloat16.
APART = {"float32": 1e-3, "bfloat16": 5e-2}
COMPARED = 8
# Calls until a graph is replayed: it may be made in the second.
WARM = 3
# It explains one image at a time, so that its time for a few of a large batch tells that for all.
IMAGES_OF_THE_RECIPE = 16


def planned(plan: Iterable[Case], pixels: int) -> list[dict[str, Any]]:
    """The rows of the result, each unmeasured as yet and saying so."""
    return [
        {"network": contenders.NETWORKS[name][0], "torchvision": name, "dtype": dtype, "batch": batch}
        | {"pixels": pixels, "missing": TIME_WAS_UP, "runs": {}}
        for name, dtype, batch in plan
    ]


def networks(device: Device, rows: list[dict[str, Any]]) -> Iterator[tuple[nn.Module, list[dict[str, Any]]]]:
    """Each network and type of numbers with its rows, one at a time on the device; bfloat16 in channels_last."""
    for name, own in itertools.groupby(rows, lambda row: row["torchvision"]):
        model = contenders.build(name)
        for dtype, some in itertools.groupby(own, lambda row: row["dtype"]):
            moved = copy.deepcopy(model).to(device.kind, getattr(torch, dtype))
            if dtype == "bfloat16":
                moved = moved.to(memory_format=torch.channels_last)
            yield moved, list(some)
            del moved
            gc.collect()
            device.release()


def measure(device: Device, model: nn.Module, row: dict[str, Any], share: Budget, whole: Budget) -> None:
    """Fill in the row: of each contender how far its maps are from ours, memory and times; or why there is none."""
    del row["missing"]
    images = torch.randn(row["batch"], 3, row["pixels"], row["pixels"], device=device.kind)
    images = images.to(getattr(torch, row["dtype"]))
    if row["dtype"] == "bfloat16":
        images = images.to(memory_format=torch.channels_last)
    layer = contenders.NETWORKS[row["torchvision"]][1]
    turns, expected = {}, None
    for name, make in _makers(device, layer).items():
        run = row["runs"][name] = {"images_timed": len(images)}
        if whole.over():
            run["missing"] = TIME_WAS_UP
            continue
        timed = images[:IMAGES_OF_THE_RECIPE] if name == "recipe" else images
        run["images_timed"] = len(timed)
        try:
            warm = WARM if "graph" in name else 1
            explain = make(contenders.sharing_weights(model))
            found, turns[name] = _first_calls(device, explain, timed, warm, run)
            if name == "explainer":
                expected = found
            elif "inference" not in name:
                run.update(_compared(found, expected, row["dtype"]))
        except Exception as error:
            turns.pop(name, None)
            run["missing"] = reason(error)
    for name, taken in by_turns(turns, share, whole).items():
        row["runs"][name].update({"missing": reason(taken)} if isinstance(taken, Exception) else summary(taken, "ms"))
    del turns
    gc.collect()
    device.release()


def _makers(device: Device, layer: str) -> dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]]:
    """Each takes a model of its own; whoever cannot explain it raises, now or when it is called."""
    others = {
        name: lambda model, make=make: make(model, layer)
        for name, make in contenders.CONTENDERS.items()
        if name != "explainer"
    }
    return {
        "inference": contenders.predict,
        "inference, graph": lambda model: _graphed_inference(device, model),
        "explainer": lambda model: contenders.ours(model, layer),
        "explainer, graph": _graphed_explainer,
        **others,
    }


def _graphed_inference(device: Device, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """One replay, which reads the images where a copy puts them; the logits are overwritten by the next."""
    graphs: list[tuple[Tensor, Callable[[], Tensor]]] = []

    def run(images: Tensor) -> Tensor:
        if not graphs:
            held = images.clone()
            graphs.append((held, device.captured(lambda: contenders.predict(model)(held))))
        held, replay = graphs[0]
        held.copy_(images)
        return replay()

    return run


def _graphed_explainer(model: nn.Module) -> Callable[[Tensor], Tensor]:
    explainer = gradcam_fast.Explainer(model, cuda_graph=True)

    def run(images: Tensor) -> Tensor:
        heatmap = explainer(images).heatmap
        if explainer.eager_because is not None:
            raise NotMeasured(f"explained eagerly: {explainer.eager_because}")
        return heatmap

    return run


def _first_calls(
    device: Device, explain: Callable[[Tensor], Tensor], images: Tensor, warm: int, run: dict[str, Any]
) -> tuple[Tensor, Callable[[], dict[str, float]]]:
    """What the contender finds once it is warm, and a turn of it; memory and warnings go into ``run``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peaks = [device.peak(lambda: explain(images))[1] for _ in range(warm)]
    if caught:
        run["warning"] = without_paths(caught[0].message)
    run["first_calls_peak_bytes"] = max(peaks)
    start = time.perf_counter()
    found, run["later_call_peak_bytes"] = device.peak(lambda: explain(images))
    calls = calls_for(time.perf_counter() - start, 0.03, 50)
    found = found[:COMPARED].float().cpu()

    def turn() -> dict[str, float]:
        device.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            explain(images)
        device.synchronize()
        queued = alone = (time.perf_counter() - start) / calls
        if calls > 1:
            start = time.perf_counter()
            explain(images)
            device.synchronize()
            alone = time.perf_counter() - start
        return {"queued": queued, "alone": alone}

    return found, turn


def _compared(found: Tensor, expected: Tensor | None, dtype: str) -> dict[str, Any]:
    if expected is None:
        return {"images_compared": 0}
    pairs = [(one.unsqueeze(0), other.unsqueeze(0)) for one, other in zip(found, expected, strict=False)]
    apart = [contenders.apart(*pair) for pair in pairs]
    # A map without an extent is NaN when it is scaled: near nothing, and no number in JSON.
    far = [distance for distance in apart if not distance <= APART[dtype]]
    largest = max(apart) if all(map(math.isfinite, apart)) else None
    return {"images_compared": len(apart), "images_apart": len(far), "apart": largest}
