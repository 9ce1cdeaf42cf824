"""Answers in the form that a client accepts: JSON with small maps, an overlay as PNG, or an array as NPY."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy
import torch
from fastapi.responses import JSONResponse, Response
from PIL import Image

from ..pipeline.pictures import blend, resize_heatmap
from ..visual.colormaps import colormap_table
from .queries import PhotoAnswer, QueryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["JSON", "NPY", "PNG", "accepted", "array_answer", "check_colormap", "json_answer", "picture_answer"]

JSON, PNG, NPY = "application/json", "image/png", "application/x-npy"


def accepted(header: str, offered: Sequence[str]) -> str:
    """Which of the types ``offered`` an ``Accept`` header prefers; the first one of several that it likes as much.

    Raises:
        QueryError: none of them (406).

    Example:
        >>> accepted("text/html,image/*;q=0.8,*/*;q=0.1", (JSON, PNG, NPY))
        'image/png'
    """
    ranges = [_range(text) for text in (header or "*/*").split(",") if text.strip()]
    weights = {kind: _weight(kind, ranges) for kind in offered}
    best = max(offered, key=lambda kind: weights[kind])
    if weights[best] <= 0:
        raise QueryError(f"none of the types in Accept is made here; accept {', '.join(offered)}", 406)
    return best


def _range(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        return kind, min(1.0, max(0.0, float(weight)))
    except ValueError:
        return kind, 0.0


def _weight(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the most specific range that covers a type."""
    for pattern in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        if found := [weight for name, weight in ranges if name == pattern]:
            return max(found)
    return 0.0


def json_answer(answers: Sequence[PhotoAnswer], *, explained: bool) -> Response:
    """``predictions``, one for each photo, and with ``explained`` also ``explanations``."""
    content: dict[str, Any] = {"predictions": [_prediction(answer) for answer in answers]}
    if explained:
        content["explanations"] = [_explanation(answer) for answer in answers]
    return JSONResponse(content)


def _prediction(answer: PhotoAnswer) -> dict[str, Any]:
    return {
        "classes": [
            {"class": number, "name": name, "probability": _finite(probability), "score": _finite(score)}
            for name, number, probability, score in answer.result.best
        ]
    }


def _explanation(answer: PhotoAnswer) -> dict[str, Any]:
    result = answer.result
    levels = (result.maps * 255).round().astype(numpy.uint8)
    return {
        "layer": result.layer,
        "method": answer.method,
        "size": list(answer.size),
        "box": list(answer.box),
        "maps": [
            {
                "class": result.classes[rank],
                "name": result.names[rank],
                "probability": _finite(result.probabilities[rank]),
                "score": _finite(result.scores[rank]),
                "map": {
                    "b64": base64.b64encode(levels[rank].tobytes()).decode(),
                    "shape": list(levels[rank].shape),
                    "dtype": "uint8",
                },
                "raw_min": _finite(result.raw_min[rank]),
                "raw_max": _finite(result.raw_max[rank]),
                "valid": result.valid[rank],
            }
            for rank in range(len(levels))
        ],
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def check_colormap(name: str) -> None:
    """Refuse an unknown colormap, before any work.

    Raises:
        QueryError: the name is unknown (422).
    """
    try:
        colormap_table(name, torch.device("cpu"))
    except (ValueError, ImportError) as error:
        raise QueryError(str(error)) from None


def picture_answer(answers: Sequence[PhotoAnswer], colormap: str, alpha: float) -> Response:
    """The overlay of the one class of the one photo as PNG; headers say which class it is.

    Raises:
        QueryError: several photos, or several classes.
    """
    answer = _only(answers, PNG)
    if len(answer.result.classes) != 1:
        raise QueryError(f"{PNG} shows one class; ask for one, or accept {JSON}", 406)
    assert answer.pixels is not None
    heatmap = resize_heatmap(answer.result.maps[0], answer.pixels.shape[:2])
    return Response(_png(blend(answer.pixels, heatmap, colormap=colormap, alpha=alpha)), 200, _facts(answer), PNG)


def array_answer(answers: Sequence[PhotoAnswer]) -> Response:
    """The maps of one photo as NPY: float32 (classes, height, width) in [0,1], at the size of the network's input.

    Raises:
        QueryError: several photos.
    """
    answer = _only(answers, NPY)
    maps = [resize_heatmap(heatmap, answer.input_size) for heatmap in answer.result.maps]
    file = BytesIO()
    numpy.save(file, numpy.stack(maps))
    return Response(file.getvalue(), 200, _facts(answer), NPY)


def _only(answers: Sequence[PhotoAnswer], kind: str) -> PhotoAnswer:
    if len(answers) != 1:
        raise QueryError(f"{kind} is of one photo; send one, or accept {JSON}", 406)
    return answers[0]


def _facts(answer: PhotoAnswer) -> dict[str, str]:
    result = answer.result
    return {
        "X-Gradcam-Classes": ",".join(map(str, result.classes)),
        "X-Gradcam-Probabilities": ",".join(f"{probability:.6g}" for probability in result.probabilities),
        "X-Gradcam-Layer": result.layer.encode("ascii", "backslashreplace").decode(),
        "X-Gradcam-Box": ",".join(map(str, answer.box)),
    }


def _png(pixels: NDArray[Any]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
