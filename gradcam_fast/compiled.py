"""Explanations that run compiled, prediction included: :class:`CompiledExplainer`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ._model.undo import leaves_no_trace

if TYPE_CHECKING:
    from ._compiled.record import ExplanationRecord
    from .explainer import Explainer
    from .explanation import Explanation
    from .types import Images, Target

__all__ = ["CompiledExplainer"]


class Runner(Protocol):
    """Explains a batch; what stands behind a CompiledExplainer.

    Attributes:
        eager_because: why the last call was explained eagerly; None if it was not.
        records: what the graphs that exist explain; the first is the one that was made first.
    """

    @property
    def eager_because(self) -> str | None: ...

    @property
    def records(self) -> list[ExplanationRecord]: ...

    @leaves_no_trace
    def __call__(self, images: Images, target: Target = None, topk: int | None = None) -> Explanation: ...


class CompiledExplainer:
    """Explains like the :class:`gradcam_fast.Explainer` it was made from, by compiled code.

    Made by :meth:`gradcam_fast.Explainer.compile`. Several threads may call it at the same time.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @leaves_no_trace
    def __call__(self, images: Images, target: Target = None, topk: int | None = None) -> Explanation:
        """Explain a batch; see :func:`gradcam_fast.explain` for the arguments, and its result."""
        return self._runner(images, target, topk)

    @property
    def layer(self) -> str | tuple[str, ...]:
        """The layer that was found or named when the first graph was compiled; a tuple of several."""
        return self._runner.records[0].layer

    @property
    def eager_because(self) -> str | None:
        """Why the last call was explained eagerly; None if it ran compiled."""
        return self._runner.eager_because


def compile_explainer(
    explainer: Explainer,
    images: Images,
    target: Target,
    topk: int | None,
    *,
    dynamic_batch: bool,
    dynamic_sides: bool,
    freeze: bool,
    fallback: str | None,
    options: Mapping[str, Any] | None,
) -> CompiledExplainer:
    """See :meth:`gradcam_fast.Explainer.compile`."""
    if fallback not in (None, "eager"):
        raise ValueError(f"fallback={fallback!r} is unknown; give 'eager', or None to raise an error")
    if explainer._graphs is not None:
        raise ValueError(
            "an Explainer with cuda_graph=True records eager kernels and is not compiled; make one without it, and let "
            'the compiler record its own with options={"triton.cudagraphs": True}'
        )
    from ._compiled.graphs import GraphRunner
    from ._compiled.inductor import compile_graph

    runner = GraphRunner(
        explainer,
        partial(compile_graph, freeze=freeze, options=options or {}),
        dynamic_batch=dynamic_batch,
        dynamic_sides=dynamic_sides,
        freeze=freeze,
        fallback=fallback == "eager",
    )
    runner(images, target, topk)
    return CompiledExplainer(runner)
