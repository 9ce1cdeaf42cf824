"""Traces one explanation into an FX graph of PyTorch operations: prediction, backward, and the fused operator.

The interface that compilation and export stand on::

    traced = trace(explainer, images, target, topk, class_input=False, dynamic_batch=True, dynamic_sides=False)
    traced.graph        # an fx.GraphModule: (*tensors) -> flat tuple; ExplanationRecord says which tensors and results
    traced.record       # ExplanationRecord
    traced.examples     # tensors to call the graph with, real ones
    traced.fakes        # the same as FakeTensors with symbolic sizes, those of the graph's placeholders
    traced.shapes       # ShapeGuards: for which sizes the graph is right

The eager explanation runs once before the trace: it checks the arguments, finds the layer, and asks the model whatever
needs the host. The trace repeats it at that layer and reads the layouts that were found.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from traceback import FrameSummary
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from .._capture.capture import capture
from .._capture.containers import all_tensors, map_tensors
from .._capture.request import Request
from .._capture.scores import as_class_logits
from .._model.fingerprint import buffer_versions, needs_its_code_because
from ..exceptions import CannotCompile
from ..explanation import REASONS
from ..ops.arguments import METHODS
from .record import ExplanationRecord, TensorInput, TracedTarget
from .refusal import in_line_of_model, reason_of

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from .._capture.capture import Capture
    from .._layout.feature_layout import FeatureLayout
    from ..explainer import Explainer
    from ..explanation import Explanation
    from ..types import Images, Target

__all__ = ["ShapeGuards", "TracedExplanation", "capture_to_trace", "trace", "trace_request"]


@dataclass(frozen=True)
class TracedExplanation:
    """A graph of one explanation, and what is needed to run it.

    Attributes:
        graph: takes the tensors of ``record.inputs`` and returns the flat tuple that ``record.explanation`` takes.
        record: its inputs, choices and outputs.
        examples: tensors to call it with.
        fakes: the same without memory, with symbolic sizes where the graph takes any.
        shapes: which sizes the graph takes.
        batch_fixed_in: the line of the model that fixed the number of images where it was to be free, as words; "" if
            none did, or it is not known.
    """

    graph: fx.GraphModule
    record: ExplanationRecord
    examples: tuple[Tensor, ...]
    fakes: tuple[Tensor, ...]
    shapes: ShapeGuards
    batch_fixed_in: str = ""

    def constants(self) -> list[Tensor]:
        """The tensors that the graph reads beside its inputs, weights above all."""
        names = {str(node.target) for node in self.graph.graph.nodes if node.op == "get_attr"}
        values = [getattr(self.graph, name) for name in sorted(names)]
        return [value for value in values if isinstance(value, torch.Tensor)]


class ShapeGuards:
    """For which sizes of its inputs a graph is right; sizes that were asked for before cost one look-up.

    Made before the trace, which may fix sizes that were to be free, or bound them.
    """

    def __init__(self, shape_env: ShapeEnv, fakes: Sequence[Tensor]) -> None:
        self._shape_env = shape_env
        # By input and axis: the symbol of a size, or the only size.
        self._sizes = [
            tuple(size.node.expr if isinstance(size, torch.SymInt) else int(size) for size in fake.shape)
            for fake in fakes
        ]
        self._known: dict[tuple[tuple[int, ...], ...], bool] = {}

    def hold(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether the graph is right for inputs of these shapes."""
        key = tuple(shapes)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._check(key)
        return known

    def bounds(self, place: int, axis: int) -> tuple[int, int | None]:
        """The smallest and the largest size of an axis of an input, None for no largest; other sizes may be refused."""
        size = self._sizes[place][axis]
        if isinstance(size, int):
            return size, size
        known = self._shape_env.bound_sympy(self._shape_env.replace(size))
        return int(known.lower), int(known.upper) if known.upper.is_Integer else None

    def fixed_in(self, place: int, axis: int) -> str:
        """The line of the model that fixed the size of an axis which was to be free, as words; "" if none is known."""
        size = self._sizes[place][axis]
        for guard in self._shape_env.guards:
            line = guard.sloc.framework_loc
            if guard.expr.free_symbols == {size} and isinstance(line, FrameSummary):
                return in_line_of_model(line.filename, line.lineno, line.name)
        return ""

    def _check(self, shapes: tuple[tuple[int, ...], ...]) -> bool:
        values: dict[Any, int] = {}
        for shape, sizes in zip(shapes, self._sizes, strict=True):
            if len(shape) != len(sizes):
                return False
            for actual, size in zip(shape, sizes, strict=True):
                if isinstance(size, int):
                    if actual != size:
                        return False
                elif values.setdefault(size, actual) != actual:
                    return False
        env = self._shape_env
        in_bounds = all(value in env.bound_sympy(symbol) for symbol, value in values.items())
        replaced = all(
            new.xreplace(values) == values[symbol] for symbol, new in env.replacements.items() if symbol in values
        )
        return in_bounds and replaced and all(bool(guard.expr.xreplace(values)) for guard in env.guards)


@dataclass(frozen=True)
class _TracedRequest(Request):
    """A request whose layouts were read before, from maps that have sizes and values."""

    layouts: dict[nn.Module, FeatureLayout] = field(default_factory=dict)

    def layout(self, module: nn.Module, maps: Tensor) -> FeatureLayout:
        return self.layouts[module]


def trace(
    explainer: Explainer,
    images: Images,
    target: Target = None,
    topk: int | None = None,
    *,
    class_input: bool = False,
    dynamic_batch: bool = True,
    dynamic_sides: bool = False,
) -> TracedExplanation:
    """Trace the explanation of such images into one graph.

    Args:
        explainer, images, target, topk: the call to trace.
        class_input: whether the classes of ``target`` are an input of the graph, int64 (B,) or (B,K), on the images'
            device. A class out of range gets the score NaN and a heatmap of zeros.
        dynamic_batch: whether the graph takes any number of images above 1; where the model fixes the number, the
            graph takes that of ``images`` only, and ``record.batch`` says so.
        dynamic_sides: whether it takes images of any size.
    """
    request, captured = capture_to_trace(explainer, explainer._request(images, target, topk))
    return trace_request(
        explainer,
        request,
        captured,
        class_input=class_input,
        dynamic_batch=dynamic_batch,
        dynamic_sides=dynamic_sides,
    )


def capture_to_trace(explainer: Explainer, request: Request) -> tuple[Request, Capture]:
    """The request about the images explained, and its eager capture.

    Raises:
        CannotCompile: the model's own code has to run in every call.
    """
    reason = needs_its_code_because(explainer.model)
    choices = explainer._choices
    if not choices.traces:
        choice = f"smooth={choices.smooth!r}" if replace(choices, smooth=None).traces else f"method={choices.method!r}"
        reason = (
            f"{choice} decides by values, or runs the model again; use {', '.join(METHODS)}, eigencam or eigengradcam, "
            "and no smoothing but smooth='eigen'"
        )
    if reason is not None:
        raise CannotCompile(f"the explanation cannot be compiled: {reason}")
    versions = buffer_versions(explainer.model)
    # Eagerly first: this raises errors of the request, finds the layer, and warns of a gradient that vanishes.
    explainer._explain(request)
    request, captured = explainer._capture(request)
    if buffer_versions(explainer.model) != versions:
        raise CannotCompile(
            "the explanation cannot be compiled: the model's forward writes to its buffers, or replaces them"
        )
    return request, captured


def trace_request(
    explainer: Explainer,
    request: Request,
    captured: Capture,
    *,
    class_input: bool,
    dynamic_batch: bool,
    dynamic_sides: bool,
) -> TracedExplanation:
    """As :func:`trace`, for a request and its eager capture.

    Raises:
        CannotCompile: the explanation cannot be traced.
    """
    if request.when is not None:
        raise CannotCompile("an explanation with when= cannot be compiled: which images are explained is a value")
    if request.geometry.pictures is not None or any(calls.of_inputs for calls in captured.calls):
        raise CannotCompile(
            "an explanation of several pictures a sample cannot be compiled: the model is asked in every call which "
            "maps are of which picture"
        )
    target, batch_fixed_in = _traced_target(request, captured, class_input), ""
    if dynamic_batch:
        # An operation that computes K targets at once may fix the number of images; one target after another does not.
        for batched_backward in (True, False):
            asked = replace(request, batched_backward=batched_backward)
            try:
                traced = _trace(explainer, asked, captured, target, True, dynamic_sides)
            except CannotCompile:  # the model needs the number of images, which the next trace gives it
                break
            lowest, highest = traced.record.batch
            if lowest != highest:
                return traced
            batch_fixed_in = traced.batch_fixed_in
    traced = _trace(explainer, request, captured, target, False, dynamic_sides)
    return replace(traced, batch_fixed_in=batch_fixed_in)


def _trace(
    explainer: Explainer,
    request: Request,
    captured: Capture,
    target: TracedTarget,
    dynamic_batch: bool,
    dynamic_sides: bool,
) -> TracedExplanation:
    batch = request.geometry.batch
    examples = list(request.inputs.tensors)
    if target.kind == "input":
        assert captured.target is not None
        examples.append(captured.target.to(request.images.device))
    of_batch = [tensor.dim() > 0 and len(tensor) == batch for tensor in examples]
    if dynamic_batch and batch < 2:
        # A symbolic size is at least 2: for 1, PyTorch broadcasts and takes other strides.
        examples = [_repeated(tensor, 2) if mine else tensor for tensor, mine in zip(examples, of_batch, strict=True)]
    images_place = next(i for i, tensor in enumerate(request.inputs.tensors) if tensor is request.images)
    shape_env = ShapeEnv(duck_shape=False)
    mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
    fakes: list[Tensor] = []
    for i, (tensor, mine) in enumerate(zip(examples, of_batch, strict=True)):
        dynamic = [DimDynamic.STATIC] * tensor.dim()
        if mine and dynamic_batch:
            dynamic[0] = DimDynamic.DYNAMIC
        if i == images_place and dynamic_sides:
            rank = len(request.geometry.size)
            dynamic[-rank:] = [DimDynamic.DYNAMIC] * rank
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=dynamic)
        fakes.append(mode.from_tensor(tensor.detach(), symbolic_context=context))
    shapes = ShapeGuards(shape_env, fakes)
    by_name = {calls.layer.name: calls.layer for calls in captured.calls}
    layers = [by_name[name] for name in captured.layers]
    layouts = {calls.layer.module: calls.layouts[0] for calls in captured.calls}
    logits: Any = None

    def explained(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal logits
        asked = _request_of(request, tensors, layouts, target, images_place, dynamic_sides)
        explanation = explainer._explanation(capture(explainer.model, asked, layers), asked, may_wait=False)
        of_samples = [tensor for tensor, mine in zip(tensors, of_batch, strict=True) if mine]
        explanation = _without_maps(explanation, _not_finite(of_samples))
        logits = explanation.logits
        classes = () if explanation.target is None else (explanation.target,)
        assert explanation.reason_codes is not None
        return (
            explanation.heatmap,
            *all_tensors(logits),
            *classes,
            explanation.score,
            explanation.raw_min,
            explanation.raw_max,
            explanation.valid,
            explanation.reason_codes,
        )

    try:
        # Parts of the model that are compiled are traced as the eager modules inside.
        eager_parts = torch._dynamo.config.patch(error_on_nested_fx_trace=False)
        with mode, _attributes_put_back(explainer.model), eager_parts:
            for fake, mine in zip(fakes, of_batch, strict=True):
                if mine:
                    torch._check(fake.shape[0] == fakes[images_place].shape[0])
            graph = make_fx(explained, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*fakes)
        # Operations that refused their arguments in the trace are in the graph, too, and nothing reads them.
        graph.graph.eliminate_dead_code()
        graph.recompile()
    except Exception as error:
        raise CannotCompile(f"the explanation cannot be traced: {reason_of(error)}") from error
    record = ExplanationRecord(
        layer=captured.layers[0] if len(captured.layers) == 1 else captured.layers,
        method=explainer._choices.method,
        size=explainer._size,
        normalize=explainer._normalize,
        relu=explainer._relu,
        target=target,
        inputs=tuple(_inputs(request, fakes, of_batch, shapes)),
        images_at=request.inputs.images_at,
        batch=shapes.bounds(images_place, 0),
        logits=map_tensors(logits, lambda tensor: torch.empty(0, dtype=tensor.dtype)),
        logit_tensors=len(all_tensors(logits)),
        class_count=None if target.kind == "callable" else as_class_logits(captured.logits, batch).shape[1],
    )
    line = shapes.fixed_in(images_place, 0)
    return TracedExplanation(graph, record, tuple(examples), tuple(fakes), shapes, line)


def _not_finite(inputs: Sequence[Tensor]) -> Tensor:
    """Which samples (B,) have NaN or Inf in one of the inputs (B,...)."""
    floating = [tensor.reshape(tensor.shape[0], -1) for tensor in inputs if tensor.is_floating_point()]
    extremes = [extreme for values in floating for extreme in values.aminmax(dim=1)]
    return reduce(operator.and_, [extreme.isfinite() for extreme in extremes]).logical_not()


def _without_maps(explanation: Explanation, not_finite: Tensor) -> Explanation:
    """An explanation of some samples (B,) as of maps that are not finite: compiled, oneDNN's ReLU turns NaN into 0."""

    def filled(values: Tensor, value: float) -> Tensor:
        return values.masked_fill(not_finite.reshape(-1, *[1] * (values.dim() - 1)), value)

    assert explanation.reason_codes is not None
    return replace(
        explanation,
        heatmap=filled(explanation.heatmap, 0),
        raw_min=filled(explanation.raw_min, torch.nan),
        raw_max=filled(explanation.raw_max, torch.nan),
        valid=filled(explanation.valid, False),
        reason_codes=filled(explanation.reason_codes, REASONS.index("not finite")),
    )


@contextmanager
def _attributes_put_back(model: nn.Module) -> Iterator[None]:
    """Put the attributes of all modules back: in a trace a model would keep tensors without values."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            now = vars(module)
            if now.keys() != attributes.keys() or any(now[name] is not value for name, value in attributes.items()):
                now.clear()
                now.update(attributes)


def _repeated(tensor: Tensor, times: int) -> Tensor:
    repeated = torch.cat([tensor] * times)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        repeated = repeated.contiguous(memory_format=torch.channels_last)
    return repeated


def _traced_target(request: Request, captured: Capture, class_input: bool) -> TracedTarget:
    target = request.target
    if callable(target):
        return TracedTarget("callable", captured.scores.shape[1] if captured.scores.dim() == 2 else None)
    if target is None:
        return TracedTarget("highest") if request.topk is None else TracedTarget("topk", request.topk)
    targets = target.shape[1] if isinstance(target, torch.Tensor) and target.dim() == 2 else None
    if class_input:
        return TracedTarget("input", targets)
    if isinstance(target, int):
        return TracedTarget("classes", None, (target,))
    rows = {tuple(row) if isinstance(row, list) else (row,) for row in target.tolist()}
    if len(rows) != 1:
        raise ValueError("the classes differ between the images, so they cannot be fixed in a graph")
    return TracedTarget("classes", targets, rows.pop())


def _request_of(
    request: Request,
    tensors: Sequence[Tensor],
    layouts: dict[nn.Module, FeatureLayout],
    target: TracedTarget,
    images_place: int,
    dynamic_sides: bool,
) -> Request:
    """The request about the tensors of a trace."""
    remaining = iter(tensors)
    inputs = request.inputs.map(lambda _: next(remaining))
    batch = tensors[images_place].shape[0]
    sides = request.geometry.size
    if dynamic_sides:
        sides = tuple(tensors[images_place].shape[-len(sides) :])
    classes: Any = request.target
    if target.kind == "input":
        classes = next(remaining)
    elif target.kind == "classes" and target.targets is not None:
        classes = torch.tensor(target.classes).expand(batch, target.targets)
    elif target.kind == "classes":
        classes = target.classes[0]
    geometry = replace(request.geometry, batch=batch, size=sides)
    return _TracedRequest(
        inputs,
        geometry,
        classes,
        request.topk,
        request.output,
        request.tokens,
        may_look_at_classes=False,
        batched_backward=request.batched_backward,
        layouts=layouts,
    )


def _inputs(
    request: Request, fakes: Sequence[Tensor], of_batch: Sequence[bool], shapes: ShapeGuards
) -> Iterable[TensorInput]:
    arguments: dict[int | str, Any] = dict(enumerate(request.inputs.args))
    arguments.update(request.inputs.kwargs)
    names = [at for at, value in arguments.items() if isinstance(value, torch.Tensor)]
    for place, (fake, mine, at) in enumerate(zip(fakes, of_batch, [*names, "target"], strict=False)):
        bounds = [shapes.bounds(place, axis) for axis in range(fake.dim())]
        shape = tuple(low if low == high else None for low, high in bounds)
        last = fake.dim() == 4 and fake.is_contiguous(memory_format=torch.channels_last) and not fake.is_contiguous()
        yield TensorInput(at, shape, fake.dtype, fake.device, last, mine)
