"""Compiles a traced explanation with PyTorch's inductor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..exceptions import CannotCompile

if TYPE_CHECKING:
    from torch import Tensor

    from .tracing import TracedExplanation

    CompiledGraph = Callable[..., Sequence[Tensor]]

__all__ = ["compile_graph", "errors_of_inductor", "read_any_strides"]


def compile_graph(traced: TracedExplanation, *, freeze: bool, options: Mapping[str, Any]) -> CompiledGraph:
    """The compiled graph: takes the tensors that the traced one takes, and returns what that returns.

    Args:
        traced: is used up: the compiler changes the graph.
        freeze: whether the values of the weights become constants, which the compiler folds and packs.
        options: of inductor, such as {"triton.cudagraphs": True}.

    Raises:
        CannotCompile: inductor cannot compile the graph, or finds no C++ compiler.
    """
    # Imported here, because it takes a second and few programs need it.
    from torch._inductor import compile as inductor_compile

    read_any_strides()
    device = traced.fakes[0].device.type
    config = {"freezing": freeze, **options}
    with errors_of_inductor(), torch.no_grad(), torch.autocast(device, enabled=False):
        compiled: CompiledGraph = inductor_compile(traced.graph, list(traced.fakes), options=config)
    if not config.get("triton.cudagraphs") or device != "cuda":
        return compiled

    one_at_a_time = threading.Lock()

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        with one_at_a_time:
            torch.compiler.cudagraph_mark_step_begin()
            # The next replay overwrites what this one returns.
            return [output.clone() for output in compiled(*tensors)]

    return run


def read_any_strides() -> None:
    """Let inductor hand the activations to the operator as they lie in memory.

    By default it copies a custom operator's arguments to the strides they had in the trace: channels that lie last for
    the convolutions would be moved twice.
    """
    from torch._inductor.lowering import lowerings, make_fallback

    operator = getattr(torch.ops.gradcam_fast, "cam", None)
    if operator is not None and operator.default not in lowerings:
        make_fallback(operator.default, warn=False)


@contextmanager
def errors_of_inductor() -> Iterator[None]:
    """Put errors of inductor into a sentence.

    Raises:
        CannotCompile: inductor cannot compile the graph, or finds no C++ compiler.
    """
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        yield
    except Exception as error:
        cause = getattr(error, "inner_exception", error)
        first_line = str(cause).strip().partition("\n")[0]
        if isinstance(cause, (InvalidCxxCompiler, CppCompileError, FileNotFoundError)):
            raise CannotCompile(
                f"inductor, PyTorch's compiler, found no C++ compiler that works ({first_line}); install g++ or clang "
                "and name it in the environment variable CXX, or explain eagerly"
            ) from error
        raise CannotCompile(f"inductor, PyTorch's compiler, failed: {type(cause).__name__}: {first_line}") from error
