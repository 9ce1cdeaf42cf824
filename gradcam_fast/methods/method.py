"""A method beyond the op's own: what it needs of a capture, and what it makes of it for the op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .._capture.request import Needs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .._capture.capture import Capture
    from .._capture.request import Request
    from .choices import Choices

__all__ = ["Evidence", "Method", "MethodInput"]


class MethodInput(NamedTuple):
    """One call: the model, what was asked of it, what was captured, and the choices of the method.

    Attributes:
        capture_again: captures the same layers for another request.
    """

    model: nn.Module
    request: Request
    capture: Capture
    choices: Choices
    capture_again: Callable[[Request], Capture]


class Evidence(NamedTuple):
    """What the op makes heatmaps of.

    Attributes:
        activations: of each layer (B,C,h,w).
        gradients: of each layer (B[,K],C,h,w); weights of the channels are gradients that are the same everywhere.
        method: the op's method.
    """

    activations: list[Tensor]
    gradients: list[Tensor]
    method: str


@dataclass(frozen=True)
class Method:
    """A method by its name.

    Attributes:
        evidence: from one call to what the op makes heatmaps of.
        needs: what has to be captured.
    """

    evidence: Callable[[MethodInput], Evidence]
    needs: Needs
