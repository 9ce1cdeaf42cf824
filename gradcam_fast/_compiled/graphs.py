"""The compiled graphs of one explainer: makes them when a call needs one, and again when the model has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .._autocast import without_autocast
from .._model.fingerprint import fingerprint
from .._model.undo import Lock, outside_inference_mode
from .._model.warning import warn_caller
from ..exceptions import CannotCompile
from .callable_key import callable_key
from .tracing import capture_to_trace, trace_request
from .weights import ModelWatch

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.request import Request
    from ..explainer import Explainer
    from ..explanation import Explanation
    from ..types import Images, Target
    from .record import ExplanationRecord
    from .tracing import ShapeGuards, TracedExplanation

__all__ = ["GraphRunner"]

# Graphs that are kept at the same time; a graph may hold a copy of the weights.
MAX_GRAPHS = 16


class _Graph(NamedTuple):
    """A compiled graph, what its outputs are, and for which sizes it is right."""

    run: Callable[..., Sequence[Tensor]]
    record: ExplanationRecord
    shapes: ShapeGuards


class GraphRunner:
    """Explains by compiled graphs: the runner of a :class:`gradcam_fast.compiled.CompiledExplainer`.

    One graph serves all calls with the same kind of target, and inputs of the same dtypes, devices, layouts in memory
    and numbers of axes; another one is made for sizes for which it is not right.

    Args:
        explainer: gives the requests, and the eager explanations.
        compile_graph: compiles a traced explanation.
        dynamic_batch, dynamic_sides: as in :func:`gradcam_fast._compiled.tracing.trace`.
        freeze: whether a graph takes the values of the weights as constants.
        fallback: whether calls that cannot be compiled are explained eagerly.

    Attributes:
        eager_because: why the last call was explained eagerly; None if it was not.
    """

    def __init__(
        self,
        explainer: Explainer,
        compile_graph: Callable[[TracedExplanation], Callable[..., Sequence[Tensor]]],
        *,
        dynamic_batch: bool = True,
        dynamic_sides: bool = False,
        freeze: bool = True,
        fallback: bool = False,
    ) -> None:
        self.eager_because: str | None = None
        self._explainer, self._compile = explainer, compile_graph
        self._dynamic_batch, self._dynamic_sides, self._freeze = dynamic_batch, dynamic_sides, freeze
        self._fallback = fallback
        self._lock = Lock()
        self._graphs: OrderedDict[Any, list[_Graph]] = OrderedDict()
        # Of the model when the first of the graphs was made.
        self._watch: ModelWatch | None = None
        # By key: why such calls cannot be compiled, and the model as it was then.
        self._refused: dict[Any, tuple[str, list[Any]]] = {}
        self._reasons_warned_of: set[str] = set()

    def __call__(self, images: Images, target: Target = None, topk: int | None = None) -> Explanation:
        """Explain a batch, by a compiled graph if there is one or one can be made."""
        return self._explainer._answer(images, target, topk, self._explain)

    def _explain(self, request: Request) -> Explanation:
        if request.geometry.batch == 0:
            self.eager_because = "the batch is empty"
            return self._explainer._explain_request(request)
        tensors = _graph_inputs(request)
        try:
            graph = self._graph(request, tensors)
        except CannotCompile as error:
            if not self._fallback:
                raise
            return self._eagerly(request, str(error))
        graph.record.check_classes(request.target)
        self.eager_because = None
        with outside_inference_mode(), torch.no_grad(), without_autocast(tensors[0].device.type):
            return graph.record.explanation(graph.run(*tensors))

    @property
    def records(self) -> list[ExplanationRecord]:
        """What the graphs that exist explain."""
        return [graph.record for graphs in self._graphs.values() for graph in graphs]

    def _eagerly(self, request: Request, reason: str) -> Explanation:
        self.eager_because = reason
        self._warn_once(f"this is explained eagerly: {reason}")
        return self._explainer._explain_request(request)

    def _graph(self, request: Request, tensors: Sequence[Tensor]) -> _Graph:
        key = _key(request, tensors)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        graph = self._find(key, shapes)
        if graph is None:
            with self._lock.held():
                graph = self._find(key, shapes) or self._make(key, request, tensors)
        return graph

    def _find(self, key: Any, shapes: Sequence[tuple[int, ...]]) -> _Graph | None:
        if self._watch is not None and self._watch.changed():
            self._discard()
        return next((graph for graph in self._graphs.get(key, ()) if graph.shapes.hold(shapes)), None)

    def _discard(self) -> None:
        """Forget all graphs: the model has changed."""
        with self._lock.held():
            self._graphs, self._watch = OrderedDict(), None
        if self._freeze:
            self._warn_once(
                "the model has changed since its explanation was compiled, so it is compiled again; with freeze=False "
                "new values in the weights need no new compilation"
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._reasons_warned_of:
            self._reasons_warned_of.add(message)
            warn_caller(message, RuntimeWarning)

    def _make(self, key: Any, request: Request, tensors: Sequence[Tensor]) -> _Graph:
        refused = self._refused.get(key)
        if refused is not None and refused[1] == fingerprint(self._explainer.model):
            raise CannotCompile(refused[0])
        try:
            graph = self._traced_and_compiled(request)
        except CannotCompile as error:
            self._refused[key] = str(error), fingerprint(self._explainer.model)
            raise
        self._graphs.setdefault(key, []).append(graph)
        self._graphs.move_to_end(key)
        while sum(map(len, self._graphs.values())) > MAX_GRAPHS:
            _, graphs = next(iter(self._graphs.items()))
            graphs.pop(0)
            if not graphs:
                self._graphs.popitem(last=False)
        return graph

    def _traced_and_compiled(self, request: Request) -> _Graph:
        model = self._explainer.model
        request, captured = capture_to_trace(self._explainer, request)
        traced = trace_request(
            self._explainer,
            request,
            captured,
            class_input=True,
            # One image is a case of its own: PyTorch's symbolic sizes begin at 2.
            dynamic_batch=self._dynamic_batch and request.geometry.batch > 1,
            dynamic_sides=self._dynamic_sides,
        )
        # Before the compilation, which takes a while: what changes meanwhile is noticed by the next call.
        if self._watch is None:
            self._watch = ModelWatch(model)
        if self._freeze:
            self._watch.add_constants(traced.constants())
        return _Graph(self._compile(traced), traced.record, traced.shapes)


def _graph_inputs(request: Request) -> list[Tensor]:
    """The tensors of a request in the order of a graph's inputs, each contiguous or with its channels last."""
    tensors = [_dense(tensor) for tensor in request.inputs.tensors]
    if request.target is not None and not callable(request.target):
        tensors.append(_classes(request))
    return tensors


def _dense(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return tensor
    return tensor.contiguous()


def _classes(request: Request) -> Tensor:
    target, device = request.target, request.images.device
    if isinstance(target, int):
        return torch.full((request.geometry.batch,), target, device=device)
    return target.to(device).contiguous()


def _key(request: Request, tensors: Sequence[Tensor]) -> Any:
    """The key of a request: one graph may serve requests with the same key, if it takes their sizes."""
    target = request.target
    kind: Any = ("input",)
    if callable(target):
        kind = "callable", callable_key(target)
    elif target is None:
        kind = "highest", request.topk
    others = [
        (at, value)
        for at, value in (*enumerate(request.inputs.args), *request.inputs.kwargs.items())
        if not isinstance(value, torch.Tensor)
    ]
    names = tuple(request.inputs.kwargs)
    inputs = tuple((tensor.dtype, tensor.device, tensor.dim(), _has_channels_last(tensor)) for tensor in tensors)
    device = request.images.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    key = (kind, inputs, names, tuple(others), request.inputs.images_at, autocast)
    try:
        hash(key)
    except TypeError as error:
        raise CannotCompile(
            f"the explanation cannot be compiled: an input is no tensor and cannot be compared with those of other "
            f"calls ({error})"
        ) from None
    return key


def _has_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous()
