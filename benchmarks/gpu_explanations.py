"""Measures whole explanations on a device beside the prediction, for every contender, in interleaved rounds.

Two times are measured: per call when many are queued, and of one call alone, from an idle device to the finished
heatmap.
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
from gpu_goals import COMPILED, COMPILED_INFERENCE
from gpu_machine import reason, without_paths
from gpu_timing import TIME_WAS_UP, Budget, NotMeasured, calls_to_fill, interleave, summarize
from torch import Tensor, nn

import gradcam_fast

Case = tuple[str, str, int]
PLAN: list[Case] = list(
    itertools.product(
        ["resnet50", "vgg16", "efficientnet_b0", "convnext_tiny", "vit_b_16"], ["float32", "bfloat16"], [1, 32, 256]
    )
)
TRIAL = [("resnet18", "float32", 1), ("resnet18", "float32", 3), ("resnet18", "bfloat16", 2)]

# Rows in which prediction and explanation are compiled, too, in CUDA graphs of inductor's: it takes a minute each.
COMPILED_ROWS = [("resnet50", "float32", 1), ("resnet50", "float32", 32), ("vit_b_16", "bfloat16", 1)]

# Maps that differ more from ours, on [0,1], are marked; below are TF32 convolutions and bfloat16 arithmetic.
MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 5e-2}
IMAGES_COMPARED = 8
# Calls until a graph is replayed: it may be recorded in the second.
GRAPH_WARM_UP_CALLS = 3
# The recipe explains one image at a time, so a few images of a large batch are enough to know the time for all.
IMAGES_FOR_THE_RECIPE = 16


def planned_rows(plan: Iterable[Case], pixels: int) -> list[dict[str, Any]]:
    """The rows of the result, each marked as not measured yet."""
    return [
        {"network": contenders.NETWORKS[name][0], "torchvision": name, "dtype": dtype, "batch": batch}
        | {"pixels": pixels, "missing": TIME_WAS_UP, "runs": {}}
        for name, dtype, batch in plan
    ]


def networks(device: Device, rows: list[dict[str, Any]]) -> Iterator[tuple[nn.Module, list[dict[str, Any]]]]:
    """Each network in each dtype with its rows, one at a time on the device; bfloat16 in channels_last."""
    for name, rows_of_network in itertools.groupby(rows, lambda row: row["torchvision"]):
        model = contenders.build(name)
        for dtype, rows_of_dtype in itertools.groupby(rows_of_network, lambda row: row["dtype"]):
            moved = copy.deepcopy(model).to(device.kind, getattr(torch, dtype))
            if dtype == "bfloat16":
                moved = moved.to(memory_format=torch.channels_last)
            yield moved, list(rows_of_dtype)
            del moved
            gc.collect()
            device.release()


def measure(device: Device, model: nn.Module, row: dict[str, Any], row_budget: Budget, total_budget: Budget) -> None:
    """Fill in the row: each contender's difference from our maps, memory and times, or why it was not measured."""
    del row["missing"]
    images = torch.randn(row["batch"], 3, row["pixels"], row["pixels"], device=device.kind)
    images = images.to(getattr(torch, row["dtype"]))
    if row["dtype"] == "bfloat16":
        images = images.to(memory_format=torch.channels_last)
    layer = contenders.NETWORKS[row["torchvision"]][1]
    turns, expected = {}, None
    makers = _contender_makers(device, layer)
    if (row["torchvision"], row["dtype"], row["batch"]) in COMPILED_ROWS:
        makers |= {COMPILED_INFERENCE: _compiled_inference, COMPILED: _compiled_explainer}
    for name, make in makers.items():
        run = row["runs"][name] = {"images_timed": len(images)}
        if total_budget.expired():
            run["missing"] = TIME_WAS_UP
            continue
        timed = images[:IMAGES_FOR_THE_RECIPE] if name == "recipe" else images
        run["images_timed"] = len(timed)
        try:
            warm_up_calls = GRAPH_WARM_UP_CALLS if "graph" in name or "compiled" in name else 1
            explain = make(contenders.copy_sharing_weights(model))
            heatmaps, turns[name] = _first_calls(device, explain, timed, warm_up_calls, run)
            if name == "explainer":
                expected = heatmaps
            elif "inference" not in name:
                run.update(_compare_maps(heatmaps, expected, row["dtype"]))
        except Exception as error:
            turns.pop(name, None)
            run["missing"] = reason(error)
    for name, times in interleave(turns, row_budget, total_budget).items():
        row["runs"][name].update({"missing": reason(times)} if isinstance(times, Exception) else summarize(times, "ms"))
    del turns
    gc.collect()
    device.release()


def _contender_makers(device: Device, layer: str) -> dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]]:
    """By name, what makes a contender from its own copy of the model; it raises, then or when called, if it cannot."""
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
    """The prediction as a replay: images are copied into static memory, and the next replay overwrites the logits."""
    graphs: list[tuple[Tensor, Callable[[], Tensor]]] = []

    def run(images: Tensor) -> Tensor:
        if not graphs:
            static_images = images.clone()
            graphs.append((static_images, device.as_graph(lambda: contenders.predict(model)(static_images))))
        static_images, replay = graphs[0]
        static_images.copy_(images)
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


INDUCTOR_OPTIONS = {"triton.cudagraphs": True}


def _compiled_inference(model: nn.Module) -> Callable[[Tensor], Tensor]:
    compiled = torch.compile(model, dynamic=False, options=INDUCTOR_OPTIONS)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(images)

    return run


def _compiled_explainer(model: nn.Module) -> Callable[[Tensor], Tensor]:
    explainer = gradcam_fast.Explainer(model)
    compiled: list[gradcam_fast.compiled.CompiledExplainer] = []

    def run(images: Tensor) -> Tensor:
        if not compiled:
            # Not frozen, as the prediction, whose weights torch.compile takes as inputs.
            compiled.append(explainer.compile(images, dynamic_batch=False, freeze=False, options=INDUCTOR_OPTIONS))
        return compiled[0](images).heatmap

    return run


def _first_calls(
    device: Device, explain: Callable[[Tensor], Tensor], images: Tensor, warm_up_calls: int, run: dict[str, Any]
) -> tuple[Tensor, Callable[[], dict[str, float]]]:
    """The contender's heatmaps after its warm-up, and its turn; memory and warnings go into ``run``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peaks = [device.peak_bytes(lambda: explain(images))[1] for _ in range(warm_up_calls)]
    if caught:
        run["warning"] = without_paths(caught[0].message)
    run["first_calls_peak_bytes"] = max(peaks)
    start = time.perf_counter()
    heatmaps, run["later_call_peak_bytes"] = device.peak_bytes(lambda: explain(images))
    calls = calls_to_fill(time.perf_counter() - start, 0.03, 50)
    heatmaps = heatmaps[:IMAGES_COMPARED].float().cpu()

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

    return heatmaps, turn


def _compare_maps(heatmaps: Tensor, expected: Tensor | None, dtype: str) -> dict[str, Any]:
    if expected is None:
        return {"images_compared": 0}
    pairs = [(one.unsqueeze(0), other.unsqueeze(0)) for one, other in zip(heatmaps, expected, strict=False)]
    differences = [contenders.max_difference(*pair) for pair in pairs]
    # A flat map becomes NaN when it is scaled; a NaN counts as differing, and JSON has no number for it.
    differing = [difference for difference in differences if not difference <= MAX_DIFFERENCE[dtype]]
    largest = max(differences) if all(map(math.isfinite, differences)) else None
    return {"images_compared": len(differences), "images_differing": len(differing), "max_difference": largest}
