"""The question that is asked of every photo: which classes, at which layer, by which method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .networks import Network

__all__ = ["Question", "QuestionError", "settings_of"]


@dataclass(frozen=True)
class Question:
    """Which classes of every photo are explained, at which layer, by which method.

    Attributes:
        target: the number of one class, or None.
        topk: how many of the most probable classes, or None.
        layer: dotted name of the target layer, or None to find it automatically.
        method: as in :func:`gradcam_fast.explain`.
    """

    target: int | None = None
    topk: int | None = None
    layer: str | None = None
    method: str = "gradcam"


class QuestionError(ValueError):
    """A part of a question that the network cannot answer.

    Attributes:
        field: the part, a name of `Question`'s.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


def settings_of(network: Network, question: Question) -> dict[str, Any]:
    """How maps are made, as plain values: what a table and every picture say of it."""
    return {
        "model": network.title,
        "input": list(network.input_size),
        "layer": question.layer,
        "method": question.method,
        "target": question.target,
        "topk": question.topk,
        "probabilities": network.probabilities,
    }
