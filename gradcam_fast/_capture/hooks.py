"""Forward hooks on the target layers: one forward that keeps their activations, with a graph only behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .._model.own_hooks import OwnHooks, foreign_hooks
from ..exceptions import LayerNotRun, NoSuchCall
from .containers import feature_tensor, replace_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from .._model.inputs import Inputs
    from .._model.target_layer import TargetLayer
    from .module_runs import ModuleRuns

__all__ = [
    "ModuleHooks",
    "count_hooks",
    "forward_with_activations",
    "ran_several_times",
]

# How often a module ran in its last forward: the next forward records a graph only from the last call on.
_CALL_COUNTS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_RECORD_EVERY_CALL = 0

# PyTorch 2.10 caches the weights that autocast has cast without a graph; a later training step in the same autocast
# block would get no gradient through them.
_CLEARS_AUTOCAST_CACHE = torch.__version__ < "2.11"


class ModuleHooks(NamedTuple):
    """Kinds of hooks on a model's modules whose effect on a graph cannot be seen in the graph."""

    # A hook of register_backward_hook: PyTorch puts it on a node of the graph.
    backward: bool
    # A forward hook may make a tensor retain its gradient.
    forward: bool


def count_hooks() -> int:
    """How many hooks were registered in this process so far, on modules, tensors or nodes of a graph.

    If the count has not changed since before a forward, no tensor or node of the forward's graph has a hook. PyTorch
    numbers the handles of hooks, and that is the only place where hooks on tensors and nodes show. Hooks of
    explanations have no handle.
    """
    return RemovableHandle.next_id


def forward_with_activations(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[TargetLayer],
    *,
    enable_grad: bool = False,
    graph: bool = True,
    has_hooks: bool = True,
    runs: ModuleRuns | None = None,
    may_be_idle: bool = False,
) -> tuple[Any, list[list[Tensor]], list[list[Tensor]]]:
    """Run the model once; return its output, and per layer the activations of each call and copies handed onward.

    The graph begins at the earliest of the layers: there the layer's output becomes a leaf, and a copy of it is handed
    onward, so that what follows may work in place. Of a layer that runs several times its ``call`` counts, or the last;
    if that runs fewer times than in the forward before, the model is run a second time.

    Grad mode and hooks are afterwards as they were, also when the model raises. Inference mode must be off, because it
    records no graph, and compiled modules must run eagerly (``force_eager``), because they ignore new hooks.

    Args:
        enable_grad: run the model with gradients on from the start. Needed by a model that turns them off around a
            layer and then restores what was before.
        graph: False for the activations alone, without a graph behind them.
        has_hooks: whether a module may have hooks, which may run the model inside its own run.
        runs: notes which of its modules run.
        may_be_idle: whether a layer that does not run has no activations, and is no error.

    Raises:
        LayerNotRun: a layer did not run.
        NoSuchCall: it ran, but not as often as ``call`` says.
    """
    inputs = inputs.map(_normal_tensor)
    hooks = [_CaptureHook(layer, alone=len(layers) == 1, graph=graph) for layer in layers]
    output = _run_hooked(model, inputs, hooks, enable_grad, has_hooks, runs)
    if any(hook.only_last and not hook.kept and hook.calls for hook in hooks):
        for hook in hooks:
            hook.first_recorded_call = _CALL_COUNTS[hook.layer.module] = _RECORD_EVERY_CALL
        output = _run_hooked(model, inputs, hooks, enable_grad, has_hooks, runs)
    activations, handed_onward = [], []
    for hook in hooks:
        if not hook.calls and not may_be_idle:
            raise LayerNotRun(hook.layer.name)
        if hook.calls and _CALL_COUNTS.get(hook.layer.module) != _RECORD_EVERY_CALL:
            _CALL_COUNTS[hook.layer.module] = hook.calls
        chosen = hook.chosen_calls() if hook.calls else []
        activations.append([maps for maps, _ in chosen])
        handed_onward.append([copy for _, copy in chosen])
    return output, activations, handed_onward


def ran_several_times(module: nn.Module) -> bool:
    """Whether the module ran more than once in its last forward, as far as is known."""
    return _CALL_COUNTS.get(module, 1) != 1


def _normal_tensor(value: Tensor) -> Tensor:
    # Outside inference mode an inference tensor can be neither changed in place nor saved for a backward.
    return value.clone() if value.is_inference() else value


class _CaptureHook:
    """A forward hook on one layer; it runs before the layer's own hooks.

    So what the layer's own hooks keep for later in the forward is the copy handed onward, and has a part in the
    gradient.
    """

    def __init__(self, layer: TargetLayer, *, alone: bool, graph: bool = True) -> None:
        self.layer = layer
        self.alone = alone
        self.graph = graph
        self.only_last = layer.call in (None, -1)
        self.first_recorded_call = _CALL_COUNTS.get(layer.module, 1)
        self.reset()

    def reset(self) -> None:
        self.calls = 0
        # By call: the activations, and the copy handed onward.
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.calls += 1
        if self.calls < self.first_recorded_call if self.only_last else not self.keeps_this_call():
            return None
        maps = feature_tensor(output)
        if maps is None:
            raise TypeError(
                f"layer {self.layer.name!r} returned a {type(output).__name__} without a floating tensor; "
                "choose a layer that returns feature maps"
            )
        if not self.graph:
            return self.hand_onward(output, maps, attached=False)
        torch.set_grad_enabled(True)
        # A lone layer needs no graph before it. One of several may lie behind another, and stays attached to it, as
        # does a call behind an earlier one; the graph of a call that is not is freed at once.
        attached = maps.requires_grad
        if self.alone:
            attached = attached and not self.only_last and _comes_from(maps, [kept for kept, _ in self.kept.values()])
        return self.hand_onward(output, maps, attached=attached)

    def keeps_this_call(self) -> bool:
        call = self.layer.call
        if isinstance(call, int) and call >= 0:
            return self.calls - 1 == call
        return True

    def hand_onward(self, output: Any, maps: Tensor, *, attached: bool) -> Any:
        """The layer's output with a copy of ``maps``, from which on there is a graph."""
        if self.only_last:
            self.kept.clear()
        activations = maps if attached and self.graph else maps.detach().requires_grad_(self.graph)
        handed_onward = activations.clone()
        self.kept[self.calls - 1] = activations, handed_onward
        return replace_tensor(output, maps, handed_onward)

    def chosen_calls(self) -> list[tuple[Tensor, Tensor]]:
        call = self.layer.call
        if self.only_last or call == "all":
            return list(self.kept.values())
        asked = call if isinstance(call, tuple) else (call,)
        try:
            return [self.kept[index if index >= 0 else self.calls + index] for index in asked]  # type: ignore
        except KeyError:
            raise NoSuchCall(self.layer.name, self.calls, f"so that there is no call={call}") from None


def _comes_from(maps: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Whether one of the leaves is in the graph behind ``maps``."""
    pending, seen = [maps.grad_fn] if leaves else [], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and any(leaf is earlier for earlier in leaves):
            return True
        pending.extend(behind for behind, _ in node.next_functions)
    return False


class _RecaptureHook:
    """A forward hook behind a layer's own hooks: what these have changed is what the model sees, and is captured."""

    def __init__(self, hook: _CaptureHook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        maps = feature_tensor(output)
        if self.hook.calls - 1 not in self.hook.kept or maps is None:
            return None
        return self.hook.hand_onward(output, maps, attached=maps.requires_grad)


def _run_hooked(
    model: nn.Module,
    inputs: Inputs,
    hooks: Sequence[_CaptureHook],
    enable_grad: bool,
    has_hooks: bool,
    runs: ModuleRuns | None,
) -> Any:
    try:
        with OwnHooks() as own_hooks:
            if has_hooks:
                own_hooks.ignore_inner_runs(model)
            if runs is not None:
                runs.names.clear()
                for module in runs.modules:
                    own_hooks.add(module, runs)
            for hook in hooks:
                hook.reset()
                module = hook.layer.module
                if foreign_hooks(module._forward_hooks):
                    own_hooks.add(module, _RecaptureHook(hook))
                own_hooks.add(module, hook, first=True)
            with torch.set_grad_enabled(enable_grad):
                return inputs(model)
    finally:
        if _CLEARS_AUTOCAST_CACHE:
            torch.clear_autocast_cache()
